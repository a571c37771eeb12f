"""A worker of tests: answers on an inherited socket, and writes down from when until when it does.

Arguments: a path to which `.journal` is appended, the worker's number, how it says that it is ready (notify, fd, http,
log or none), and the number of the inherited socket, if any. What it finds in `PATH.mode` when it starts changes it:
`exit` ends it at once, `never` has it never say that it is ready, `gate` has it wait for `PATH.go` first, `hang` has it
accept and not answer. A line of the journal is: nanoseconds of the monotonic clock, pid, worker's number, word.
"""

import os
import select
import signal
import socket
import sys
import time

path, number, how = sys.argv[1:4]
journal = os.open(path + ".journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(word):
    os.write(journal, b"%d %d %s %s\n" % (time.monotonic_ns(), os.getpid(), number.encode(), word))


def mode():
    try:
        with open(path + ".mode") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


signals = []
wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
signal.set_wakeup_fd(wake_write)
for caught in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(caught, lambda received, _: signals.append(received))
note(b"start")
mood = mode()
if mood == "exit":
    sys.exit(3)
while mood == "gate" and not os.path.exists(path + ".go") and not signals:
    time.sleep(0.005)

listeners = {}
unanswered = []
if len(sys.argv) > 4:
    inherited = socket.socket(fileno=int(sys.argv[4]))
    inherited.setblocking(False)
    listeners[inherited] = False
note(b"up")
if mood != "never":
    if how == "notify":
        address = "\0" + os.environ["NOTIFY_SOCKET"][1:]
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", address)
    elif how == "fd":
        os.write(7, b"\n")
    elif how == "log":
        print("ready to serve", flush=True)
    elif how == "http":
        own = path + "." + number + ".sock"
        if os.path.exists(own):
            os.unlink(own)
        asked = socket.socket(socket.AF_UNIX)
        asked.bind(own)
        asked.listen()
        asked.setblocking(False)
        listeners[asked] = True

while True:
    readable, _, _ = select.select([*listeners, wake_read], [], [])
    if wake_read in readable:
        os.read(wake_read, 16)
    if signal.SIGHUP in signals:
        signals.remove(signal.SIGHUP)
        note(b"hup")
    if signal.SIGTERM in signals:
        note(b"down")
        sys.exit(0)
    for listener, is_http in listeners.items():
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        connection.setblocking(True)
        if is_http:
            if mode() == "hang":
                unanswered.append(connection)
                continue
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        else:
            connection.sendall(b"%d\n" % os.getpid())
        connection.close()
