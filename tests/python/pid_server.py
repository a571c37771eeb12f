"""Answers every connection on the inherited socket whose number is the argument with its pid."""

import os
import socket
import sys

listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    connection, _ = listener.accept()
    connection.sendall(b"%d\n" % os.getpid())
    connection.close()
