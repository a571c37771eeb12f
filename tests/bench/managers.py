"""Measures the manager against its peers, in one run on one machine, and prints the table.

    cargo build --release && python3 tests/bench/managers.py [--quick] [--only NAME]...

Installs supervisord, Circus (its last release, and the last that knew papa, with it) and pm2 into target/bench-peers, s6
and runit as Debian packages where this is root; what cannot be installed is said and left out. Everybody gets the same
services and is measured by the same means, in turns, several rounds; the least disturbed round counts.

A service of the first part is `sleep` under a name of its own; it runs when it was executed, which inotify tells. The
manager's side is every process below this one that is not a service. The writers of the second part wait for a common
start; the time ends when everything is in the files, or when nothing has come for a while.
"""

import argparse
import ctypes
import os
import pathlib
import platform
import select
import shutil
import statistics
import struct
import sys
import tempfile
import threading
import time

import peers
from processes import (below, birth, command_line, cpu_seconds, cpu_seconds_with_ended, end_everything_below, memory)

ROOT = pathlib.Path(__file__).resolve().parents[2]
WRITER = pathlib.Path(__file__).resolve().parent / "writer.py"
MIB = 1 << 20
LINE_BYTES = 61
WRITERS = 4
# How long services, logs and managers may take before they count as hanging.
PATIENCE_SECONDS = 60
# So long nothing was added to the logs after the writers' end: nothing more will.
SILENCE_SECONDS = 3
PR_SET_CHILD_SUBREAPER, IN_OPEN = 36, 0x20

libc = ctypes.CDLL(None, use_errno=True)


class Hangs(Exception):
    """Something did not happen in PATIENCE_SECONDS; the text names it."""


# --- services ------------------------------------------------------------------------------------------------------

class Quiet:
    """A folder of services, each a hard link to `sleep`, and what tells when they were executed."""

    def __init__(self, folder, count):
        folder.mkdir()
        self.count, self.paths = count, []
        shutil.copy(shutil.which("sleep"), folder / "quiet")
        for number in range(1, count + 1):
            path = folder / ("quiet-%04d" % number)
            os.link(folder / "quiet", path)
            self.paths.append(str(path))
        self.events = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        libc.inotify_add_watch(self.events, os.fsencode(folder), IN_OPEN)
        self.seen = set()

    def services(self):
        return [(os.path.basename(path), [path, "100000"], None) for path in self.paths]

    def forget(self):
        self.read()
        self.seen.clear()

    def read(self):
        try:
            data = os.read(self.events, MIB)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            length = struct.unpack_from("iIII", data, at)[3]
            name = data[at + 16:at + 16 + length].rstrip(b"\0")
            if name:
                self.seen.add(name)
            at += 16 + length

    def pids(self):
        """Those that run, told from later ones with the same pid."""
        paths = set(os.fsencode(path) for path in self.paths)
        running = set()
        for pid in below(os.getpid()):
            line = command_line(pid)
            if line and line[0] in paths:
                running.add((pid, birth(pid)))
        return running

    def wait_started(self, start):
        """Seconds from `start` until every service was executed; then makes sure that they run."""
        took = None
        while took is None:
            self.read()
            if len(self.seen) >= self.count:
                took = time.perf_counter() - start
            elif time.perf_counter() - start > PATIENCE_SECONDS:
                raise Hangs("%d of %d services run" % (len(self.pids()), self.count))
            else:
                select.select([self.events], [], [], 1)
        # Some read the program before they execute it.
        while len(self.pids()) < self.count:
            if time.perf_counter() - start > PATIENCE_SECONDS:
                raise Hangs("%d of %d services run" % (len(self.pids()), self.count))
            time.sleep(0.005)
            took = time.perf_counter() - start
        return took


def managers_side(services):
    """Everything below this process that is no service."""
    services = set(pid for pid, _ in services)
    return [pid for pid in below(os.getpid())[1:] if pid not in services and birth(pid) is not None]


def settle():
    """Lets what was started come to rest; supervisord and others count a service as up after a second."""
    time.sleep(2)


def start_all(manager, quiet):
    """Seconds until every service was executed, and until the command returned that started the manager."""
    quiet.forget()
    start, returned = time.perf_counter(), []

    def up():
        manager.up()
        returned.append(time.perf_counter() - start)

    thread = threading.Thread(target=up)
    thread.start()
    try:
        took = quiet.wait_started(start)
    finally:
        thread.join()
    if not returned:
        raise Hangs("the manager cannot be started")
    return took, returned[0]


def measure_services(kind, folder, count, idle_seconds):
    """Start, memory, status, restart: dict of figures."""
    quiet = Quiet(folder / "quiet", count)
    manager = kind(folder, quiet.services())
    found = {}
    found["start"], found["up"] = start_all(manager, quiet)
    settle()
    running = quiet.pids()
    side = managers_side(running)
    found["pss"], found["processes"] = memory(side, "Pss"), len(side)
    if idle_seconds:
        used = cpu_seconds(side)
        time.sleep(idle_seconds)
        found["idle_percent"] = (cpu_seconds(side) - used) / idle_seconds * 100
    times = []
    for _ in range(7):
        start = time.perf_counter()
        answer = manager.status()
        times.append(time.perf_counter() - start)
    if answer.count("\n") < count:
        raise Hangs("status shows less than %d services:\n%s" % (count, answer[-300:]))
    found["status"] = statistics.median(times)
    quiet.forget()
    try:
        start = time.perf_counter()
        manager.quit()
        manager.up()
        if kind.keeps_services:
            # It manages them when it can tell of them.
            manager.status()
        else:
            quiet.wait_started(start)
        found["restart"] = time.perf_counter() - start
    except (Hangs, TimeoutError):
        found["restart"] = None
    if kind.keeps_services and found["restart"]:
        settle()
    found["killed"] = len(running - quiet.pids())
    return found


# --- logs ----------------------------------------------------------------------------------------------------------

def wait_files(paths, start):
    while not all(path.exists() for path in paths):
        if time.perf_counter() - start > PATIENCE_SECONDS:
            raise Hangs("the writers do not start or end")
        time.sleep(0.002)


def measure_logs(kind, folder, mib):
    """Writers at full speed, each into a file of its own: dict of figures."""
    lines = mib * MIB // LINE_BYTES // WRITERS
    total = lines * WRITERS * LINE_BYTES
    gate = folder / "gate"
    os.mkfifo(gate)
    services, logs, ready, done = [], [], [], []
    for number in range(1, WRITERS + 1):
        ready.append(folder / ("ready.%d" % number))
        done.append(folder / ("done.%d" % number))
        logs.append(folder / ("writer-%d.log" % number))
        argv = [sys.executable, "-S", "-E", WRITER, gate, ready[-1], done[-1], lines]
        services.append(("writer-%d" % number, [str(word) for word in argv], logs[-1]))
    manager = kind(folder, services)
    manager.up()
    wait_files(ready, time.perf_counter())
    time.sleep(0.5)
    writers = [(pid, birth(pid)) for pid in below(os.getpid()) if os.fsencode(WRITER) in command_line(pid)]
    side = managers_side(writers)
    used = cpu_seconds_with_ended(side)
    start = time.perf_counter()
    opened = os.open(gate, os.O_WRONLY)
    size, last, ended = 0, start, False
    while size < total:
        time.sleep(0.005)
        now = time.perf_counter()
        grown = sum(manager.logged(log) for log in logs)
        if grown > size:
            size, last = grown, now
        if not ended:
            ended = all(path.exists() for path in done)
        elif now - last > SILENCE_SECONDS:
            break
        if now - start > PATIENCE_SECONDS * 4:
            raise Hangs("%d of %d bytes are in the files" % (size, total))
    os.close(opened)
    # What is done after the last byte is part of the work; the writers still live.
    time.sleep(0.2)
    used = cpu_seconds_with_ended(side) - used
    return {"rate": size / MIB / (last - start), "lost": total - size, "total": total,
            "cpu_per_gib": used / (size / (MIB << 10))}


# --- rounds and the table ------------------------------------------------------------------------------------------

def in_scratch(function, kind, *arguments):
    """Runs one measurement in a folder of its own, and leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="papa-managers-", ignore_cleanup_errors=True) as folder:
        try:
            return function(kind, pathlib.Path(folder), *arguments)
        finally:
            end_everything_below(os.getpid())


def attempt(results, problems, label, function, kind, *arguments):
    print("  %s: %s" % (kind.name, label), end=" ", flush=True)
    try:
        found = in_scratch(function, kind, *arguments)
    except (Hangs, TimeoutError, RuntimeError, OSError) as error:
        problems.append("%s, %s: %s" % (kind.name, label, error))
        print("failed: %s" % error, flush=True)
        return
    results.setdefault(kind, {}).setdefault(label, []).append(found)
    print(" ".join("%s=%.4g" % item if item[1] is not None else "%s=hangs" % item[0] for item in found.items()),
          flush=True)


def least(found, key):
    values = [one[key] for one in found if one.get(key) is not None]
    return min(values) if values else None


def services_cells(found):
    """The cells of the first four rows, from all rounds of one manager."""
    if not found:
        return ["–"] * 4
    restart, killed = least(found, "restart"), max(one["killed"] for one in found)
    return ["%.2f s" % least(found, "start"),
            "%.1f MiB (%d process%s)" % (least(found, "pss") / 1024, found[0]["processes"],
                                         "es" * (found[0]["processes"] != 1)),
            "%.0f ms" % (least(found, "status") * 1000),
            "%s, kills %d" % ("hangs" if restart is None else "%.2f s" % restart, killed)]


def logs_cells(found):
    if not found:
        return ["–"] * 2
    best = max(found, key=lambda one: one["rate"])
    lost = max(one["lost"] for one in found)
    share = ", lost 0" if not lost else ", lost %d bytes (%.0f %%)" % (lost, 100 * lost / best["total"])
    return ["%.0f MiB/s%s" % (best["rate"], share), "%.1f" % least(found, "cpu_per_gib")]


def print_table(kinds, versions, results, count, mib):
    rows = ["start all", "memory of the manager's side, PSS", "`status`", "restart of the manager",
            "%d writers, %d MiB of %d-byte lines to files" % (WRITERS, mib, LINE_BYTES), "CPU seconds per GiB logged"]
    columns = [["%s %s" % (kind.name, versions[kind])] + services_cells(results.get(kind, {}).get("services"))
               + logs_cells(results.get(kind, {}).get("logs")) for kind in kinds]
    print("\n| %d services / log capture | %s |" % (count, " | ".join(column[0] for column in columns)))
    print("|---" * (len(columns) + 1) + "|")
    for number, label in enumerate(rows, 1):
        print("| %s | %s |" % (label, " | ".join(column[number] for column in columns)))


def print_many(found, count):
    print("\n| ours, %d watchers | |\n|---|---|" % count)
    print("| start all (the command returns) | %.2f s (%.2f s) |" % (least(found, "start"), least(found, "up")))
    pss = least(found, "pss")
    print("| memory of the manager's side, PSS | %.1f MiB, %.1f KiB a watcher |" % (pss / 1024, pss / count))
    print("| `status` | %.0f ms |" % (least(found, "status") * 1000))
    print("| restart of the manager | %.2f s, kills %d |" % (least(found, "restart"), max(f["killed"] for f in found)))
    print("| idle CPU | %.3f %% |" % least(found, "idle_percent"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default=str(ROOT / "target"), help="cargo's target folder")
    parser.add_argument("--profile", default="release", help="folder below it that holds the binaries")
    parser.add_argument("--quick", action="store_true", help="one round, less of everything: to see that it works")
    parser.add_argument("--rounds", type=int, help="how often each measurement is taken [default: 3]")
    parser.add_argument("--only", action="append", metavar="NAME", help="measure only this one; may be repeated")
    parser.add_argument("--skip", action="append", default=[], choices=["services", "logs", "many"])
    arguments = parser.parse_args()
    target = pathlib.Path(arguments.target).resolve()
    peers.Ours.binaries = target / arguments.profile
    for name in ("papa", "papa-manager", "papactl"):
        if not (peers.Ours.binaries / name).exists():
            sys.exit("%s is missing: cargo build --release" % (peers.Ours.binaries / name))
    names = [kind.name for kind in peers.ALL]
    for name in arguments.only or []:
        if name not in names:
            sys.exit("--only %r: expected one of %s" % (name, ", ".join(map(repr, names))))
    # Daemons that leave their parent come to this process: everything that was started stays below it.
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit("prctl PR_SET_CHILD_SUBREAPER: %s" % os.strerror(ctypes.get_errno()))

    folder = target / "bench-peers"
    folder.mkdir(parents=True, exist_ok=True)
    kinds, versions, missing = [], {}, []
    for kind in peers.ALL:
        if arguments.only and kind.name not in arguments.only:
            continue
        try:
            versions[kind] = kind.install(folder)
            kinds.append(kind)
        except (peers.Missing, TimeoutError) as error:
            missing.append("%s: %s" % (kind.name, error))
    for line in missing:
        print("not measured: %s" % line, flush=True)

    count, mib, many, idle, rounds = (20, 32, 100, 5, 1) if arguments.quick else (100, 481, 1000, 30, 3)
    rounds = arguments.rounds or rounds
    results, problems = {}, []
    for number in range(rounds):
        print("round %d of %d, load %.2f" % (number + 1, rounds, os.getloadavg()[0]), flush=True)
        # In turns, so that a slow minute of the machine hits everybody.
        for label, function, more in (("services", measure_services, (count, 0)), ("logs", measure_logs, (mib,))):
            if label not in arguments.skip:
                for kind in kinds:
                    attempt(results, problems, label, function, kind, *more)
        if peers.Ours in kinds and "many" not in arguments.skip:
            attempt(results, problems, "many", measure_services, peers.Ours, many, idle)

    cpus = len(os.sched_getaffinity(0))
    print("\n%d cores, Linux %s, Python %s, scratch files in %s; the best of %d rounds."
          % (cpus, platform.release(), platform.python_version(), tempfile.gettempdir(), rounds))
    print_table(kinds, versions, results, count, mib)
    if results.get(peers.Ours, {}).get("many"):
        print_many(results[peers.Ours]["many"], many)
    for line in missing:
        print("\nnot measured: %s" % line)
    for line in problems:
        print("\nproblem: %s" % line)


if __name__ == "__main__":
    main()
