"""A worker of tests that numbers every line it writes, answers on an inherited socket, and takes orders.

Arguments: a directory, a name, and `key=value` options: `rate` (lines for each stream a tick of 10 ms), `listen` (number of
the inherited socket). A line is `NAME.WID.PID.STREAM NUMBER PADDING;`, where STREAM is `out` or `err` and the numbers of each
begin at 0. WID is the manager's, 0 without one.

What it did is in `DIRECTORY/lives/NAME.WID.PID.TICKS`, TICKS being its start time: once it is about to end a line
`end OUT ERR BYTES HOW` (lines of each stream, bytes of both together, `exit N` or `signal N`). A worker that died without
having said so was killed. A line `left PID` before it names a child that stays when the worker ends.

`DIRECTORY/slots/NAME.WID` is locked for as long as anything of a worker lives, its children too. A worker that finds it locked runs
beside what it came in place of, and says so: `twice`.

Orders come over `DIRECTORY/orders/PID.sock`, a line for each connection, and are answered when they are done:

    pause                               unfinished lines are finished, and nothing is written by itself;
    go                                  what pause stopped; both are answered with `OUT ERR BYTES`
    burst STREAM COUNT LENGTH CHUNK     lines of that length, in writes of CHUNK bytes; CHUNK 0 is a write for each
    partial STREAM                      begins a line that the next one finishes
    leave                               starts a child that ignores SIGTERM and keeps everything open
    swarm DEPTH                         starts a child that keeps two children, each of which does the same, DEPTH deep; they ignore SIGTERM
    replace                             starts a child that is replaced by a child of its own for ever
    exit CODE, signal NUMBER            ends; answered before
"""

import fcntl
import os
import select
import signal
import socket
import sys
import time

TICK = 0.01

directory, name = sys.argv[1:3]
options = dict(word.split("=", 1) for word in sys.argv[3:])
rate = int(options.get("rate", "2"))
pid = os.getpid()
who = "%s.%s.%d" % (name, os.environ.get("PAPA_WID", "0"), pid)


class Stream:
    def __init__(self, number, kind):
        self.number, self.prefix = number, "%s.%s" % (who, kind)
        self.next = self.bytes = 0
        self.begun = False

    def put(self, text):
        data = text.encode()
        while data:
            count = os.write(self.number, data)
            self.bytes += count
            data = data[count:]

    def line(self, length):
        begin = "%s %d " % (self.prefix, self.next)
        self.next += 1
        return begin + "x" * (length - len(begin) - 2) + ";\n"

    def finish(self):
        if self.begun:
            self.begun = False
            self.put(" and its end;\n")

    def begin(self):
        self.finish()
        self.put("%s %d begun" % (self.prefix, self.next))
        self.next += 1
        self.begun = True

    def burst(self, count, length, chunk):
        self.finish()
        lines = [self.line(length) for _ in range(count)]
        if chunk:
            text = "".join(lines)
            lines = [text[at : at + chunk] for at in range(0, len(text), chunk)]
        for text in lines:
            self.put(text)


streams = {"out": Stream(1, "out"), "err": Stream(2, "err")}


def counts():
    out, err = streams["out"], streams["err"]
    return "%d %d %d" % (out.next, err.next, out.bytes + err.bytes)


asked = []
wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
signal.set_wakeup_fd(wake_write)
for caught in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(caught, lambda received, _: asked.append(received))

with open("/proc/self/stat") as file:
    ticks = file.read().rsplit(")", 1)[1].split()[19]
life = os.open("%s/lives/%s.%s" % (directory, who, ticks), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

wid = who.rsplit(".", 2)[1]
if wid != "0":
    slot = os.open("%s/slots/%s.%s" % (directory, name, wid), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(life, b"twice\n")

listeners = []
if "listen" in options:
    inherited = socket.socket(fileno=int(options["listen"]))
    inherited.setblocking(False)
    listeners.append(inherited)

orders_path = "%s/orders/%d.sock" % (directory, pid)
try:
    os.unlink(orders_path)
except FileNotFoundError:
    pass
orders = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
orders.bind(orders_path)
orders.listen(16)


def end(how):
    for listener in listeners:
        listener.close()
    for stream in streams.values():
        stream.finish()
    os.write(life, ("end %s %s\n" % (counts(), how)).encode())
    orders.close()
    os.unlink(orders_path)


def leave():
    child = os.fork()
    if child:
        os.write(life, b"left %d\n" % child)
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Only the pipes and the slot: nobody is to be served or ordered by it.
    for inherited in [orders] + listeners:
        inherited.close()
    while True:
        time.sleep(1000)


def become_stray():
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for inherited in [orders] + listeners:
        inherited.close()


def swarm(depth):
    """Keeps two children, also when they are killed; the deepest have none."""
    while True:
        time.sleep(1000 if depth == 0 else 0.002)
        if depth == 0:
            continue
        for _ in range(2):
            if os.fork() == 0:
                swarm(depth - 1)
        os.wait()
        os.wait()


def replace():
    while True:
        time.sleep(0.002)
        if os.fork():
            os._exit(0)


def stray(work, *arguments):
    if os.fork() == 0:
        become_stray()
        try:
            work(*arguments)
        finally:
            os._exit(1)


paused = False


def obey(words):
    """The answer, and what is to be done when it was sent."""
    global paused
    if words[0] == "pause":
        paused = True
        for stream in streams.values():
            stream.finish()
    elif words[0] == "go":
        paused = False
    elif words[0] == "burst":
        streams[words[1]].burst(*map(int, words[2:5]))
    elif words[0] == "partial":
        streams[words[1]].begin()
    elif words[0] == "leave":
        leave()
    elif words[0] == "swarm":
        stray(swarm, int(words[1]))
    elif words[0] == "replace":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        stray(replace)
    elif words[0] in ("exit", "signal"):
        return "ending", words
    return counts(), None


def take_order():
    connection, _ = orders.accept()
    with connection:
        text = b""
        while not text.endswith(b"\n"):
            more = connection.recv(4096)
            if not more:
                return None
            text += more
        answer, last = obey(text.decode().split())
        try:
            connection.sendall(answer.encode() + b"\n")
        except OSError:
            pass
        return last


if "NOTIFY_SOCKET" in os.environ:
    address = "\0" + os.environ["NOTIFY_SOCKET"][1:]
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", address)

due = time.monotonic()
while True:
    wait = TICK if paused else max(0, due - time.monotonic())
    readable, _, _ = select.select([wake_read, orders] + listeners, [], [], wait)
    if signal.SIGTERM in asked:
        end("exit 0")
        sys.exit(0)
    for listener in listeners:
        if listener in readable:
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            with accepted:
                accepted.sendall(b"%d\n" % pid)
    if orders in readable:
        last = take_order()
        if last:
            end(" ".join(last))
            if last[0] == "exit":
                os._exit(int(last[1]))
            signal.signal(int(last[1]), signal.SIG_DFL) if int(last[1]) != 9 else None
            os.kill(pid, int(last[1]))
    if not paused and time.monotonic() >= due:
        due = time.monotonic() + TICK
        for stream in streams.values():
            for _ in range(rate):
                stream.finish()
                stream.put(stream.line(60))
