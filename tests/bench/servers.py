"""The things under measurement, started and ended: our kernel, the original server, the bare echo."""

import array
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import papa

from processes import below

START_SECONDS = 10
# The client would start the original in place of a kernel that does not answer.
papa.Papa.spawned = True


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One server on a port of its own; `with` ends it and everything below it."""

    name = "?"

    def __init__(self, binaries, cgroup=None):
        self.binaries, self.port = pathlib.Path(binaries), free_port()
        self.runtime = tempfile.TemporaryDirectory(prefix="papa-bench-")
        environment = dict(os.environ, XDG_RUNTIME_DIR=self.runtime.name)
        join = cgroup.join if cgroup else None
        # Each in a session of its own, as daemons are and as our kernel always is: the scheduler groups processes by
        # session (sched(7), autogroups), and one in the client's session is woken for less.
        self.process = subprocess.Popen(self.command(), env=environment, stdin=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, preexec_fn=join, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client().close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def client(self):
        """The original Python client, connected."""
        socket.create_connection(("127.0.0.1", self.port), 1).close()
        return papa.Papa(self.port)

    def pids(self):
        """The processes of the server itself."""
        return [self.process.pid]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        found = below(self.process.pid)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        self.process.wait()
        self.runtime.cleanup()


class Original(Server):
    name = "papa 1.0.6"

    def command(self):
        return [sys.executable, "-c", "from papa.server import main; main()", "-p", str(self.port)]


class Ours(Server):
    name = "ours"

    def command(self):
        return [str(self.binaries / "papa"), "--port", str(self.port)]

    def socket_path(self):
        return os.path.join(self.runtime.name, "papa", "%d.sock" % self.port)

    def pids(self):
        with Json(self.socket_path()) as session:
            status = session.call("status")
        return [status["keeper"], status["pid"]]


class Echo(Server):
    name = "bare echo"

    def command(self):
        return [str(self.binaries / "examples" / "bench_limits"), str(self.port)]


class Json:
    """A small blocking client of our JSON dialect. Output lands in one buffer that is used again and again, as in the
    plain pipe it is compared with: `push` gives a view that is good until the next call."""

    ROOM = 1 << 20

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.buffer = bytearray(8 << 20)
        self.start = self.end = 0
        self.pushes = []
        self.descriptors = []
        self.next_id = 0
        self.socket.sendall(b"json\n")
        self.line()
        self.need(2)
        self.start += 2
        self.hello = json.loads(self.line())["ok"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def fill(self):
        if len(self.buffer) - self.end < self.ROOM:
            rest = bytes(self.buffer[self.start:self.end])
            self.buffer[:len(rest)] = rest
            self.start, self.end = 0, len(rest)
        count, control, _, _ = self.socket.recvmsg_into([memoryview(self.buffer)[self.end:]], socket.CMSG_SPACE(4))
        if not count:
            raise EOFError
        self.end += count
        for _, _, data in control:
            self.descriptors.extend(array.array("i", data))

    def need(self, count):
        while self.end - self.start < count:
            self.fill()

    def line(self):
        while True:
            at = self.buffer.find(b"\n", self.start, self.end)
            if at >= 0:
                line = bytes(self.buffer[self.start:at])
                self.start = at + 1
                return line
            self.fill()

    def send(self, op, **fields):
        self.socket.sendall(json.dumps(dict(fields, op=op)).encode() + b"\n")

    def message(self):
        """One line and a view of its bytes."""
        if self.start == self.end:
            self.start = self.end = 0
        header = json.loads(self.line())
        length = header["output"]["length"] if "output" in header and header["output"]["inline"] else 0
        self.need(length)
        data = memoryview(self.buffer)[self.start:self.start + length]
        self.start += length
        return header, data

    def call(self, op, **fields):
        self.next_id += 1
        self.send(op, id=self.next_id, **fields)
        while True:
            header, data = self.message()
            if header.get("id") == self.next_id:
                if "error" in header:
                    raise RuntimeError(header["error"])
                return header["ok"]
            self.pushes.append((header, bytes(data)))

    def push(self):
        return self.pushes.pop(0) if self.pushes else self.message()


class Cgroup:
    """A memory control group for what is started in it; `None` from `make` when this machine does not allow one."""

    def __init__(self, folder, usage):
        self.folder, self.usage = folder, usage

    @classmethod
    def make(cls, label):
        name = "papa-bench-%d-%s" % (os.getpid(), label)
        for root, usage in (("/sys/fs/cgroup/memory", "memory.usage_in_bytes"), ("/sys/fs/cgroup", "memory.current")):
            folder = os.path.join(root, name)
            try:
                os.mkdir(folder)
            except OSError:
                continue
            if os.path.exists(os.path.join(folder, usage)):
                return cls(folder, os.path.join(folder, usage))
            os.rmdir(folder)
        return None

    def join(self):
        """Puts the calling process into it (run in the child before exec)."""
        with open(os.path.join(self.folder, "cgroup.procs"), "w") as members:
            members.write(str(os.getpid()))

    def bytes(self):
        with open(self.usage) as value:
            return int(value.read())

    def remove(self):
        for _ in range(200):
            try:
                os.rmdir(self.folder)
                return
            except OSError:
                time.sleep(0.02)
