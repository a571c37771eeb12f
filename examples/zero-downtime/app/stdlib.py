"""A service in Python without any package: stdlib.py FD, the number of the listening socket.

What it takes to be replaced without an error is in DRAIN 1 to 4, and explained in README.md.
"""

import http.server
import os
import signal
import socket
import sys
import threading
import time

# What clients are promised: an idle connection is not closed before so many seconds. Kept with a margin, since the client's
# clock starts later than ours.
KEEP_ALIVE_SECONDS = 5
MARGIN_SECONDS = 1

with open("VERSION") as file:
    VERSION = file.read().strip()

draining = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Also the time a connection may be idle.
    timeout = KEEP_ALIVE_SECONDS + MARGIN_SECONDS
    disable_nagle_algorithm = True

    def do_GET(self):
        body = b"ok\n" if self.path == "/health" else b"stdlib %s %d\n" % (VERSION.encode(), os.getpid())
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        # DRAIN 2: this answer is the last one of its connection, and says so. The client opens another, which a new worker accepts.
        if draining.is_set():
            self.send_header("Connection", "close")
        else:
            self.send_header("Keep-Alive", "timeout=%d" % KEEP_ALIVE_SECONDS)
        self.end_headers()
        if self.path == "/slow":
            self.wfile.write(body[:5])
            time.sleep(0.2)
            self.wfile.write(body[5:])
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    # DRAIN 3: `server_close` waits for the threads, and so for every connection. One that is idle is not closed for it:
    # the next request may be on its way. It has its answer, or the promised time runs out.
    daemon_threads = False


def ready():
    """READY=1 to the manager, if one asks for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", address.replace("@", "\0", 1))


def main():
    # Before there are threads, which inherit it: the signal waits until it is asked for.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    server = Server(None, Handler, bind_and_activate=False)
    server.socket = socket.socket(fileno=int(sys.argv[1]))
    # Several processes wait for the same connection, and one gets it: the others must not wait in accept().
    server.socket.setblocking(False)
    # Everything that can fail is done. Only now are connections accepted.
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    ready()

    signal.sigwait([signal.SIGTERM])
    draining.set()
    # DRAIN 1: accept no more. The socket stays open with the kernel; whoever waits in its queue is served by the others.
    server.shutdown()
    server.server_close()
    # DRAIN 4: end by yourself, before `graceful_timeout`.


main()
