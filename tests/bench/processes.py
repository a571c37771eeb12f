"""What the system says about processes: who is below whom, memory, processor time."""

import os
import re
import signal
import time

TICKS = os.sysconf("SC_CLK_TCK")


def stat_fields(pid):
    """The fields of /proc/PID/stat after the name."""
    with open("/proc/%d/stat" % pid) as line:
        return line.read().rpartition(")")[2].split()


def below(root):
    """Every process below one, itself first."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(stat_fields(int(entry))[1])
            except OSError:
                pass
    children = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def birth(pid):
    """Tells a process from a later one with the same number; none when it does not live."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def command_line(pid):
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as text:
            return text.read().split(b"\0")[:-1]
    except OSError:
        return []


def memory(pids, key):
    """One line of smaps_rollup summed over processes, in KiB."""
    total = 0
    for pid in pids:
        with open("/proc/%d/smaps_rollup" % pid) as text:
            total += sum(int(n) for n in re.findall(r"^%s:\s+(\d+) kB" % key, text.read(), re.MULTILINE))
    return total


def cpu_seconds(pids):
    """Processor time of all threads, to the nanosecond: clock ticks are too coarse for what is quiet."""
    total = 0
    for pid in pids:
        for thread in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/schedstat" % (pid, thread)) as line:
                total += int(line.read().split()[0])
    return total / 1e9


def cpu_seconds_with_ended(pids):
    """The same to the clock tick, with threads that ended and children that were waited for."""
    return sum(sum(int(field) for field in stat_fields(pid)[11:15]) for pid in pids) / TICKS


def end_everything_below(root):
    """Kills what a process started, itself left alone: first everything stops, so that nobody starts another."""
    deadline = time.monotonic() + 20
    while True:
        found = [pid for pid in below(root)[1:] if birth(pid) is not None]
        if not found:
            break
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        if time.monotonic() > deadline:
            raise RuntimeError("processes %s do not end" % found)
        time.sleep(0.01)
        reap()


def reap():
    """Collects what has ended and was handed to us."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return
