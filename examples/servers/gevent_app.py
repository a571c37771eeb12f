"""gevent's own server: `stop` accepts no more and waits for what is being answered, if that is in a pool."""

from gevent import monkey

monkey.patch_all()

import signal
import sys

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

import app

server = WSGIServer(socket.socket(fileno=int(sys.argv[1])), app.wsgi, spawn=Pool(1000), log=None)
gevent.signal_handler(signal.SIGTERM, server.stop, 5)
print("serving", flush=True)
server.serve_forever(stop_timeout=5)
