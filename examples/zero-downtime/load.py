"""Clients of all services at once, until they are told to end: load.py RESULT VERSIONS SERVICE=PORT...

Each service has clients of five kinds: some keep their connection and ask without a pause, some open one for each request, one takes
its time between requests, one asks for answers that come in two halves, one does both. Every answer must be whole, with status 200,
from that service, and of one of VERSIONS (comma-joined). Nothing is tried a second time, but for a connection that was seen closed
before the request was sent. The file RESULT.begun says that every client has had an answer. At SIGTERM requests under way are
finished, and RESULT has one line of JSON for each service, with the longest time that a request took beyond what it has to.
"""

import asyncio
import collections
import json
import random
import re
import signal
import sys
import time

# What becomes of a request must be known by then, even if it waits for its turn while everything is replaced.
TIMEOUT_SECONDS = 30
# Nobody forgets the clients for longer.
LIFE_SECONDS = 600
MAX_REQUESTS = 5_000_000
# The pause of clients without a pause: they leave the processor to what they measure.
BREATH_SECONDS = 0.004
# The pause of the one that takes its time; far below the time for which the services promise to keep a connection.
PAUSE_SECONDS = (0.1, 1.5)
# What the services take for the second half of /slow.
SLOW_SECONDS = 0.2

# keep the connection, path, takes its time
KINDS = [
    (True, "/", False),
    (True, "/", False),
    (False, "/", False),
    (False, "/", False),
    (True, "/", True),
    (True, "/slow", False),
    (False, "/slow", True),
]

ending = asyncio.Event()


class Tally:
    """What happened to one service's requests."""

    def __init__(self, name, port, versions):
        self.name, self.port, self.versions = name, port, versions
        self.requests = 0
        self.begun = 0
        self.worst = 0.0
        self.errors = collections.Counter()
        self.pids = set()

    def judge(self, body):
        found = re.fullmatch(rb"(\w+) (\S+) (\d+)\n", body)
        if not found or found[1].decode() != self.name:
            return "strange answer %r" % body[:60]
        self.pids.add(int(found[3]))
        if found[2].decode() not in self.versions:
            return "version %s" % found[2].decode()
        return None


class Connection:
    """One connection, at most."""

    def __init__(self, port):
        self.port = port
        self.streams = None

    async def get(self, path, keep):
        """The body. Raises what went wrong."""
        if self.streams and self.streams[0].at_eof():
            # Closed by the server, and seen before anything was sent: no request is lost by it.
            self.close()
        if not self.streams:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        close = "" if keep else "Connection: close\r\n"
        writer.write(("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n" % (path, close)).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if not re.match(r"http/1.1 200 ", head):
            raise ValueError("status %s" % head.split("\r\n")[0])
        length = re.search(r"\r\ncontent-length: (\d+)\r\n", head)
        if length:
            body = await reader.readexactly(int(length[1]))
        elif "\r\ntransfer-encoding: chunked\r\n" in head:
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            raise ValueError("an answer without its length")
        if not keep or "\r\nconnection: close\r\n" in head:
            self.close()
        return body

    def close(self):
        if self.streams:
            self.streams[1].close()
        self.streams = None


async def client(tally, keep, path, takes_its_time):
    connection = Connection(tally.port)
    first = True
    while not ending.is_set() and tally.requests < MAX_REQUESTS:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                problem = tally.judge(await connection.get(path, keep))
        except asyncio.IncompleteReadError as error:
            problem = "cut off after %d bytes" % len(error.partial)
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            problem = repr(error)
        tally.requests += 1
        tally.begun += first
        first = False
        tally.worst = max(tally.worst, time.monotonic() - begin - (SLOW_SECONDS if path == "/slow" else 0))
        if problem:
            kept = "kept" if keep else "new"
            tally.errors["%s, %s connection: %s" % (path, kept, problem)] += 1
            connection.close()
        try:
            pause = random.uniform(*PAUSE_SECONDS) if takes_its_time else BREATH_SECONDS
            await asyncio.wait_for(ending.wait(), pause)
        except TimeoutError:
            pass
    connection.close()


async def tell_when_begun(tallies):
    while any(tally.begun < len(KINDS) for tally in tallies):
        await asyncio.sleep(0.01)
    open(sys.argv[1] + ".begun", "w").close()


async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    loop.call_later(LIFE_SECONDS, ending.set)
    versions = sys.argv[2].split(",")
    tallies = [Tally(*pair.split("=", 1), versions) for pair in sys.argv[3:]]
    clients = [client(tally, *kind) for tally in tallies for kind in KINDS]
    await asyncio.gather(tell_when_begun(tallies), *clients)
    with open(sys.argv[1], "w") as file:
        for tally in tallies:
            result = {
                "service": tally.name,
                "requests": tally.requests,
                "errors": tally.errors,
                "worst_ms": tally.worst * 1000,
                "pids": sorted(tally.pids),
            }
            file.write(json.dumps(result) + "\n")


asyncio.run(main())
