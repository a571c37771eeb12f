"""Waitress on a socket it is given. It has no stop of its own: on TERM it accepts no more here, and finishes first."""

import signal
import socket
import sys

import waitress

import app

stopping = False


def stop(*_):
    global stopping
    stopping = True


server = waitress.create_server(app.wsgi, sockets=[socket.socket(fileno=int(sys.argv[1]))], threads=4)
signal.signal(signal.SIGTERM, stop)
print("serving", flush=True)
while not stopping:
    server.asyncore.loop(timeout=0.1, map=server._map, count=1)
server.accepting = False
while server.active_channels:
    server.asyncore.loop(timeout=0.1, map=server._map, count=1)
