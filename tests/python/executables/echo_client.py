"""Says one line to the port given as the argument and prints what comes back."""

import socket
import sys

LINE = b"howdy\n"

with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(LINE)
    heard = b""
    while len(heard) < len(LINE):
        piece = connection.recv(len(LINE) - len(heard))
        if not piece:
            break
        heard += piece
sys.stdout.buffer.write(heard)
