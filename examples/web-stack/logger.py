"""The logger: prints what arrives on a datagram socket that the kernel holds and passes down by number."""

import socket
import sys

INBOX = socket.socket(fileno=int(sys.argv[1]))

print("the logger listens", file=sys.stderr)
try:
    while True:
        print(INBOX.recv(65536).decode("utf-8", "replace"))
except KeyboardInterrupt:
    print("the logger ends", file=sys.stderr)
