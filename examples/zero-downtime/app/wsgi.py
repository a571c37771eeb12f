"""The application that gunicorn and uwsgi serve."""

import os
import time

with open("VERSION") as file:
    VERSION = file.read().strip()


def application(environ, start_response):
    path = environ["PATH_INFO"]
    name = "gunicorn" if environ.get("SERVER_SOFTWARE", "").startswith("gunicorn") else "uwsgi"
    body = b"ok\n" if path == "/health" else ("%s %s %d\n" % (name, VERSION, os.getpid())).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    if path != "/slow":
        return [body]
    return slowly(body)


def slowly(body):
    yield body[:5]
    time.sleep(0.2)
    yield body[5:]
