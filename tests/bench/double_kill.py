#!/usr/bin/env python3
"""How long after keeper or kernel was killed may the other be killed without losing everything?

Starts a kernel with so many processes, kills one of the two, waits, kills the other, and looks whether a kernel comes back
that has all of them. Prints one line for each number of processes and order: the shortest wait from which on nothing was
lost in any round, and the longest at which something was.

    cargo build --release -p papa-kernel --bin papa
    python3 tests/bench/double_kill.py [--program target/release/papa] [--rounds 5] [--processes 50 500 2000]

With --window only one is killed, and perf (as root) says how long it took until the other one had forked: from then on two
processes hold everything again. Several programs are measured in turns, so that they meet the same load.

    python3 tests/bench/double_kill.py --window target/release/papa [OTHER...] --rounds 10
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time

WAITS_MS = [0, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 400]
PATIENCE = 20


class Daemon:
    """A kernel with processes of its own."""

    def __init__(self, program, count):
        self.directory = tempfile.TemporaryDirectory(prefix="papa-bench-")
        environment = dict(os.environ, XDG_RUNTIME_DIR=self.directory.name)
        with open(os.path.join(self.directory.name, "log"), "wb") as log:
            self.child = subprocess.Popen([program, "-p", "0"], env=environment, stderr=log, stdin=subprocess.DEVNULL)
        self.count = count
        self.path = None
        self.pids = []
        self.wait(lambda status: True)
        session = self.connect()
        for number in range(count):
            made = self.call(session, {"id": number, "op": "process.make", "name": f"p.{number}", "argv": ["/bin/sleep", "1000"]})
            self.pids.append(made["ok"]["process"]["pid"])

    def connect(self):
        if self.path is None:
            folder = os.path.join(self.directory.name, "papa")
            names = os.listdir(folder) if os.path.isdir(folder) else []
            sockets = [name for name in names if name.endswith(".sock")]
            if not sockets:
                raise OSError("no socket yet")
            self.path = os.path.join(folder, sockets[0])
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        connection.connect(self.path)
        session = connection.makefile("rwb")
        session.write(b"json\n")
        session.flush()
        session.readline()
        if not session.readline():
            raise OSError("closed")
        return session

    @staticmethod
    def call(session, request):
        session.write(json.dumps(request).encode() + b"\n")
        session.flush()
        line = session.readline()
        if not line:
            raise OSError("closed")
        return json.loads(line)

    def status(self):
        return self.call(self.connect(), {"id": 1, "op": "status"})["ok"]

    def wait(self, condition):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                status = self.status()
                if condition(status):
                    return status
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.01)
        return None

    def settled(self):
        """Status of a kernel whose keeper lives, once nothing is being taken over any more."""
        status = self.wait(lambda status: os.path.exists(f"/proc/{status['keeper']}"))
        time.sleep(0.2)
        return status

    def end(self):
        status = None
        try:
            status = self.status()
        except (OSError, ValueError, KeyError):
            pass
        for pid in ([status["keeper"], status["pid"]] if status else []) + self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.child.kill()
        self.child.wait()
        self.directory.cleanup()


def survives(daemon, first, wait_ms):
    """Kills both, the first one `wait_ms` before the other; whether everything is there afterwards."""
    before = daemon.settled()
    if before is None:
        return False
    victims = [before["keeper"], before["pid"]]
    if first == "kernel":
        victims.reverse()
    os.kill(victims[0], signal.SIGKILL)
    until = time.monotonic() + wait_ms / 1000
    while time.monotonic() < until:
        time.sleep(min(0.0005, max(0, until - time.monotonic())))
    os.kill(victims[1], signal.SIGKILL)
    daemon.child.poll()
    after = daemon.wait(lambda status: status["incarnation"] > before["incarnation"])
    return after is not None and after["counts"]["running"] == daemon.count


def window(programs, count, rounds):
    """Prints how long one process held everything after the other was killed, for each program and order, in milliseconds."""
    data = tempfile.NamedTemporaryFile(prefix="papa-bench-")
    daemons = {program: Daemon(program, count) for program in programs}
    events = ["-e", "signal:signal_generate", "--filter", "sig==9", "-e", "sched:sched_process_fork"]
    perf = subprocess.Popen(["perf", "record", "-q", "-a", *events, "-o", data.name])
    time.sleep(3)
    kills = []
    try:
        for _ in range(rounds):
            for first in ("keeper", "kernel"):
                for program, daemon in daemons.items():
                    before = daemon.settled()
                    victims = [before["keeper"], before["pid"]]
                    if first == "kernel":
                        victims.reverse()
                    os.kill(victims[0], signal.SIGKILL)
                    daemon.child.poll()
                    kills.append((first, program, *victims))
                    daemon.wait(lambda status: status["incarnation"] > before["incarnation"])
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait()
        for daemon in daemons.values():
            daemon.end()
    script = subprocess.run(["perf", "script", "-i", data.name], capture_output=True, text=True, check=True).stdout
    killed, forks = {}, []
    for line in script.splitlines():
        event = re.match(r"\s*.*?\s+(\d+)\s+\[\d+\]\s+([\d.]+):\s+(\S+):\s*(.*)", line)
        if event is None:
            continue
        pid, at, name, rest = event.groups()
        if "signal_generate" in name:
            killed.setdefault(int(re.search(r" pid=(\d+)", rest)[1]), float(at))
        else:
            forks.append((int(pid), float(at)))
    found = {}
    for first, program, victim, other in kills:
        forked = [at for pid, at in forks if pid == other and at > killed.get(victim, float("inf"))]
        if forked:
            found.setdefault((first, program), []).append((min(forked) - killed[victim]) * 1000)
    for (first, program), times in sorted(found.items()):
        times.sort()
        print(f"{count} processes, {first} first, {program}: median {times[len(times) // 2]:.1f} ms, longest {times[-1]:.1f} ms "
              f"of {len(times)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/papa")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[50, 500, 2000])
    parser.add_argument("--window", nargs="+", metavar="PROGRAM", help="measure how long one process holds everything")
    arguments = parser.parse_args()
    if arguments.window:
        for count in arguments.processes:
            window(arguments.window, count, arguments.rounds)
        return
    for count in arguments.processes:
        for first, second in [("keeper", "kernel"), ("kernel", "keeper")]:
            daemon = Daemon(arguments.program, count)
            lost = {}
            try:
                # From the longest wait down, until everything is lost each time.
                for wait_ms in reversed(WAITS_MS):
                    lost[wait_ms] = 0
                    for _ in range(arguments.rounds):
                        if not survives(daemon, first, wait_ms):
                            lost[wait_ms] += 1
                            daemon.end()
                            daemon = Daemon(arguments.program, count)
                    if lost[wait_ms] == arguments.rounds:
                        break
            finally:
                daemon.end()
            losing = [wait for wait, number in lost.items() if number]
            longest = max(losing) if losing else None
            safe = min([wait for wait in lost if longest is None or wait > longest], default=None)
            print(f"{count} processes, {first} then {second}: nothing lost from {safe} ms on; lost at (of {arguments.rounds}): "
                  f"{ {wait: number for wait, number in sorted(lost.items()) if number} }", flush=True)


main()
