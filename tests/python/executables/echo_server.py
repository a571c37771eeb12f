"""Accepts one connection on the inherited socket whose number is the argument, echoes it, and reports it at the end.

One write for the whole conversation, so that a watcher sees one piece however it was cut on the way.
"""

import socket
import sys

listener = socket.socket(fileno=int(sys.argv[1]))
connection, _ = listener.accept()
heard = b""
while True:
    piece = connection.recv(4096)
    if not piece:
        break
    heard += piece
    connection.sendall(piece)
connection.close()
sys.stdout.buffer.write(heard)
