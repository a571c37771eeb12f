"""Records what the original papa 1.0.6 server answers, as transcripts for tests/kernel/golden.rs.

Usage: record.py [NAME...]     with the interpreter of a venv that has papa==1.0.6

Drives a fresh original server per script over a raw socket and writes transcripts/NAME.json: each step is a line sent
and the exact text received, volatile parts replaced (see `normalise`; the replay does the same). A step whose original
answer is a defect carries the defect's name and, in `better`, what our kernel answers instead; after `~` a star there
stands for anything. Steps marked `ours` are help texts, which are our own and not compared. `until` repeats a line until
its answer contains that text; `end` is what the answer ends in (nothing: the connection closes).
"""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from scripts import SCRIPTS

HERE = pathlib.Path(__file__).resolve().parent
PATIENCE_SECONDS = 10
SERVER = "from papa.server import main; main()"

VOLATILE = [
    (re.compile(r"\bpid=\d+"), "pid=N"),
    (re.compile(r"\bstarted=\d+\.\d+"), "started=T"),
    (re.compile(r"\bfileno=\d+"), "fileno=N"),
    (re.compile(r"\bport=[1-9]\d*"), "port=N"),
    (re.compile(r"^(out|err|closed):([^:\n]*):\d+\.\d+:", re.MULTILINE), r"\1:\2:T:"),
    (re.compile(r"/proc/self/fd/\d+"), "/proc/self/fd/N"),
    (re.compile(r"(\d+\.\d+\.\d+\.\d+):[1-9]\d*"), r"\1:N"),
]
# A short process may have ended before the answer to its start was written.
STARTS = re.compile(r"m\w* p\w* ")
RUNNING = re.compile(r"\brunning=\w+")
LINE = re.compile(r"^(\S+) ((?:\S+=\S* ?)+)", re.MULTILINE)


def normalise(text, directory):
    """Replaces what differs from run to run. Kept the same in tests/kernel/golden.rs."""
    text = text.replace(directory, "{dir}")
    for pattern, replacement in VOLATILE:
        text = pattern.sub(replacement, text)
    return text


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
        self.unread = b""

    def read(self, end):
        """Everything up to `end`, or up to the close of the connection when `end` is empty."""
        while not (end and self.unread.endswith(end.encode())):
            try:
                piece = self.socket.recv(65536)
            except TimeoutError:
                raise SystemExit("silent after %r, expected %r" % (self.unread, end))
            if not piece:
                if end:
                    raise SystemExit("closed after %r, expected %r" % (self.unread, end))
                break
            self.unread += piece
        text, self.unread = self.unread.decode(), b""
        return text


class Run:
    def __init__(self, port, directory):
        self.port, self.directory, self.clients, self.variables = port, directory, {}, {}

    def fill(self, text):
        for name, value in self.variables.items():
            text = text.replace("{%s}" % name, value)
        return text.replace("{dir}", self.directory)

    def learn(self, text):
        """Remembers pid, port and fileno of whatever is listed in an answer."""
        for name, words in LINE.findall(text):
            for word in words.split():
                key, _, value = word.partition("=")
                if key in ("pid", "port", "fileno"):
                    self.variables["%s:%s" % (key, name)] = value

    def step(self, step):
        who = step.get("who", "a")
        if step.get("close"):
            self.clients.pop(who).socket.close()
            return step
        if who not in self.clients:
            self.clients[who] = Client(self.port)
            greeting = self.clients[who].read("> ")
            assert greeting.endswith("\n> "), greeting
        client = self.clients[who]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            client.socket.sendall((self.fill(step["send"]) + "\n").encode())
            text = client.read(step.get("end", "\n> "))
            if step.get("until", "") in text:
                break
            if time.monotonic() > deadline:
                raise SystemExit("%s never matched: %r" % (step, text))
            time.sleep(0.02)
        self.learn(text)
        if step.get("ours"):
            return step
        text = normalise(text, self.directory)
        if STARTS.match(step["send"]):
            text = RUNNING.sub("running=?", text)
        return dict(step, receive=text)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def record(name, steps):
    port, directory = free_port(), tempfile.mkdtemp(prefix="papa-golden-")
    server = subprocess.Popen([sys.executable, "-c", SERVER, "-p", str(port)], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        run = Run(port, directory)
        done = [run.step(step) for step in steps]
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(directory)
    path = HERE / "transcripts" / (name + ".json")
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(step) for step in done) + "\n]\n")
    print("%s: %d steps" % (name, len(done)))


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(SCRIPTS)
    for wanted_name in wanted:
        record(wanted_name, SCRIPTS[wanted_name])
