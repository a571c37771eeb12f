"""A plain accept loop: a thread for each connection, all of which are finished after TERM."""

import os
import signal
import socket
import select
import sys
import threading
import time

import app


def serve(connection):
    with connection:
        connection.settimeout(10)
        request = b""
        while b"\r\n\r\n" not in request:
            more = connection.recv(65536)
            if not more:
                return
            request += more
        time.sleep(app.SECONDS)
        body = b"%d\n" % os.getpid()
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


listener = socket.socket(fileno=int(sys.argv[1]))
stopping, wake = socket.socketpair()
signal.signal(signal.SIGTERM, lambda *_: wake.send(b"x"))
print("serving", flush=True)
while True:
    ready, _, _ = select.select([listener, stopping], [], [])
    if stopping in ready:
        break
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        continue  # another worker was quicker
    threading.Thread(target=serve, args=(connection,)).start()
