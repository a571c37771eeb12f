"""One application, as WSGI and as ASGI: takes 20 ms for a request and answers with the pid of the process that served it."""

import asyncio
import os
import time

SECONDS = 0.02


def wsgi(environ, start_response):
    time.sleep(SECONDS)
    body = b"%d\n" % os.getpid()
    start_response(
        "200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    )
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] != "http":
        return
    await asyncio.sleep(SECONDS)
    body = b"%d\n" % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
