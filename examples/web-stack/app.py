"""The web application: answers every request and tells the logger about it."""

import os
import socket

LOG = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def application(environ, start_response):
    query = environ.get("QUERY_STRING", "")
    # Blocks while the logger's queue is full: nothing is dropped.
    LOG.sendto(f"request {query}".encode(), "run/log.sock")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"hello from {os.getpid()}: {query}\n".encode()]
