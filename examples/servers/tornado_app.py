"""Tornado. It has no stop of its own: TERM ends it in the middle of what it does. Here it accepts no more and finishes first."""

import asyncio
import os
import signal
import socket
import sys

import tornado.httpserver
import tornado.web

import app


class Handler(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.sleep(app.SECONDS)
        self.write("%d\n" % os.getpid())


async def main():
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Handler)]))
    # As it came: tornado trusts that a socket it is given does not block.
    server.add_socket(socket.socket(fileno=int(sys.argv[1])))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("serving", flush=True)
    await stop.wait()
    server.stop()
    # `close_all_connections` would cut those off that are being answered. Idle ones of keep-alive clients: at most 5 s.
    for _ in range(100):
        if not server._connections:
            break
        await asyncio.sleep(0.05)


asyncio.run(main())
