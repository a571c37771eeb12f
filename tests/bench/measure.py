"""Takes the measurements run.py asks for; see there. Usage: measure.py FOLDER-OF-BINARIES quick|full"""

import collections
import contextlib
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time

from processes import below, cpu_seconds, memory, stat_fields
from servers import Cgroup, Echo, Json, Original, Ours

HERE = pathlib.Path(__file__).resolve().parent
KIB, MIB = 1 << 10, 1 << 20
TRUE = "/bin/true"
# The original selects, and so cannot go past FD_SETSIZE descriptors: two per process.
ORIGINAL_MOST = 480

rows = []


def row(what, original, limit, ours, wanted):
    rows.append((what, original, limit, ours, wanted))
    print("  %s: papa 1.0.6 %s, limit %s, ours %s (at least %s)" % rows[-1], flush=True)


def private(pids):
    return memory(pids, "Private_Clean") + memory(pids, "Private_Dirty")


# --- round trips, starts -------------------------------------------------------------------------------------------

def round_trips(server, count):
    client = server.client()
    client.get("a")
    start = time.perf_counter()
    for _ in range(count):
        client.get("a")
    took = time.perf_counter() - start
    client.close()
    return count / took


def starts(server, count):
    client = server.client()
    start = time.perf_counter()
    for number in range(count):
        client.make_process("s.%d" % number, TRUE)
    took = time.perf_counter() - start
    client.remove_processes("s.*")
    client.close()
    return count / took


def start_limit(echo, count):
    """posix_spawn of the same program by this process, with one round trip to the bare echo for each."""
    client = echo.client()
    pids = []
    start = time.perf_counter()
    for _ in range(count):
        pids.append(os.posix_spawn(TRUE, [TRUE], {}, setsid=True))
        client.get("a")
    took = time.perf_counter() - start
    client.close()
    for pid in pids:
        os.waitpid(pid, 0)
    return count / took


def turns(servers, times, rate):
    """The median over several turns of what `rate` finds for each server. All are there at once and are measured in
    turns, so that a slow moment of the machine hits everybody; the best turn of one may be the luckiest."""
    found = collections.defaultdict(list)
    for _ in range(times):
        for kind, server in servers.items():
            found[kind].append(rate(kind, server))
    return {kind: statistics.median(rates) for kind, rates in found.items()}


@contextlib.contextmanager
def placed(servers, ours, theirs):
    """Client and servers where they are told to be: left to itself the system moves them together and apart as it
    likes, which alone makes a factor of three."""
    pids = [pid for server in servers for pid in below(server.process.pid)]
    before = {pid: os.sched_getaffinity(pid) for pid in [*pids, os.getpid()]}
    for pid in pids:
        os.sched_setaffinity(pid, theirs)
    os.sched_setaffinity(0, ours)
    try:
        yield
    finally:
        for pid, processors in before.items():
            os.sched_setaffinity(pid, processors)


def measure_requests(binaries, quick):
    count, made, times = (2000, 100, 3) if quick else (4000, 300, 15)
    first, *_, last = sorted(os.sched_getaffinity(0)) * 2
    with contextlib.ExitStack() as stack:
        servers = {kind: stack.enter_context(kind(binaries)) for kind in (Original, Echo, Ours)}
        rates = turns(servers, times, lambda kind, server: (start_limit if kind is Echo else starts)(server, made))
        with placed(servers.values(), {first}, {first}):
            together = turns(servers, times, lambda _, server: round_trips(server, count))
        with placed(servers.values(), {first}, {last}):
            apart = turns(servers, times, lambda _, server: round_trips(server, count))
    row("process starts per second", "%d" % rates[Original], "%d" % rates[Echo],
        "%d = %.2f of the limit" % (rates[Ours], rates[Ours] / rates[Echo]), "0.8 of the limit")
    for what, trips in (("one processor", together), ("two", apart)):
        row("round trips/s, one Python client, on " + what, "%d" % trips[Original], "%d" % trips[Echo],
            "%d = %.2f of the limit" % (trips[Ours], trips[Ours] / trips[Echo]), "0.9 of the limit")


# --- output --------------------------------------------------------------------------------------------------------

def writer(mib, processor):
    return ["taskset", "-c", str(processor), "/bin/dd", "if=/dev/zero", "bs=64k", "count=%d" % (mib * 16),
            "status=none"]


def pipe_rate(mib, processor):
    start = time.perf_counter()
    child = subprocess.Popen(writer(mib, processor), stdout=subprocess.PIPE)
    total = 0
    buffer = bytearray(MIB)
    while True:
        count = os.readv(child.stdout.fileno(), [buffer])
        if not count:
            break
        total += count
    child.wait()
    assert total == mib * MIB
    return mib / (time.perf_counter() - start)


def classic_rate(server, mib, processor, bufsize):
    client = server.client()
    argv = writer(mib, processor)
    start = time.perf_counter()
    watcher = client.make_process("w", shutil.which(argv[0]), args=argv[1:], bufsize=bufsize, watch_immediately=True)
    total = 0
    while watcher:
        reply = watcher.read()
        if reply:
            total += sum(len(piece.data) for piece in reply[0])
    took = time.perf_counter() - start
    client.close()
    return total / MIB / took, mib * MIB - total


def json_rate(server, mib, processor, mode):
    """`inline`: the bytes come on the session; `reel`: the consumer reads them from the reel's descriptor itself."""
    argv = writer(mib, processor)
    argv[0] = shutil.which(argv[0])
    with Json(server.socket_path()) as session:
        session.call("output.consume", names=["w"], bytes=mode)
        start = time.perf_counter()
        serial = session.call("process.make", name="w", argv=argv)["process"]["serial"]
        if mode == "reel":
            offset = session.call("output.reel", serial=serial)["data_offset"]
            reel, buffer = session.descriptors.pop(), bytearray(MIB)
        position = 0
        while position < mib * MIB:
            header, _ = session.push()
            output = header.get("output")
            if not output:
                continue
            assert output["start"] == position
            end = position + output["length"]
            while mode == "reel" and position < end:
                view = memoryview(buffer)[:min(MIB, end - position)]
                position += os.preadv(reel, [view], offset + position)
            position = end
            session.send("output.ack", acks={str(serial): position})
        took = time.perf_counter() - start
        session.call("process.remove", names=["w"])
        if mode == "reel":
            os.close(reel)
    return mib / took


def measure_output(binaries, quick):
    """Reader and writer on two processors, our kernel on either of them; and all on one, where what the pipe copies
    never leaves the cache."""
    mib, rounds = (128, 2) if quick else (512, 5)
    first, *_, last = sorted(os.sched_getaffinity(0)) * 2
    for what, processor, kernels in (("two processors", last, {first, last}), ("one", first, {first})):
        found, lost = collections.defaultdict(list), {}
        # In turns: a disturbance hits them all.
        for _ in range(rounds):
            with placed([], {first}, None):
                found["pipe"].append(pipe_rate(mib, processor))
            with Original(binaries) as server, placed([server], {first}, kernels):
                # A buffer that holds everything: with its default one it would lose most of it.
                rate, lost["original"] = classic_rate(server, mib, processor, "1g")
                found["original"].append(rate)
            with Ours(binaries) as server, placed([server], {first}, kernels):
                rate, lost["classic"] = classic_rate(server, mib, processor, None)
                found["classic"].append(rate)
                for mode in ("inline", "reel"):
                    found[mode].append(json_rate(server, mib, processor, mode))
        rates = {name: statistics.median(turns) for name, turns in found.items()}
        pipe = rates.pop("pipe")
        original, classic, inline, reel = (rates[name] / pipe for name in ("original", "classic", "inline", "reel"))
        row("output, one writer to one consumer, on " + what,
            "%.2f of a plain pipe, %d bytes lost" % (original, lost["original"]), "1.0 (%d MiB/s)" % pipe,
            "%.2f (JSON), %.2f (JSON, by the reel's descriptor), %.2f (the original's client, %d bytes lost)"
            % (inline, reel, classic, lost["classic"]), "0.5")


# Writes the time, now and then, on one line: the client cannot send a newline.
STAMPER = "import os,time;[(time.sleep(0.23),os.write(1,b'%%d ' %% time.monotonic_ns())) for _ in range(%d)]"


def latency(server, count):
    client = server.client()
    watcher = client.make_process("l", sys.executable, args=["-c", STAMPER % count],
                                  env=dict(PATH=os.environ["PATH"]), watch_immediately=True)
    delays = []
    while watcher:
        reply = watcher.read()
        now = time.monotonic_ns()
        if reply:
            for piece in reply[0]:
                delays.extend((now - int(stamp)) / 1e6 for stamp in piece.data.split())
    client.close()
    return statistics.median(delays)


def pipe_latency(count):
    child = subprocess.Popen([sys.executable, "-c", STAMPER % count], stdout=subprocess.PIPE)
    delays = []
    while True:
        data = os.read(child.stdout.fileno(), 4096)
        now = time.monotonic_ns()
        if not data:
            break
        delays.extend((now - int(stamp)) / 1e6 for stamp in data.split())
    child.wait()
    return statistics.median(delays)


def measure_latency(binaries, quick):
    count = 15 if quick else 40
    with Original(binaries) as server:
        original = latency(server, count)
    with Ours(binaries) as server:
        ours = latency(server, count)
    row("write-to-reader latency, median", "%.0f ms" % original, "%.2f ms" % pipe_latency(count), "%.2f ms" % ours,
        "1 ms")


# --- memory and idle cost ------------------------------------------------------------------------------------------

def quiet(server, count):
    client = server.client()
    for number in range(count):
        client.make_process("q.%d" % number, "/bin/sleep", args=["100000"])
    return client


def settle():
    """Lets what was started come to rest."""
    time.sleep(1)


def plain_charge(count):
    """What the same number of sleepers is charged without any kernel, their output going nowhere."""
    group = Cgroup.make("plain")
    if not group:
        return None
    script = ("import os,sys\nnull=os.open('/dev/null',os.O_RDWR)\nfor _ in range(%d):\n"
              " os.posix_spawn('/bin/sleep',['/bin/sleep','100000'],{},setsid=True,file_actions=["
              "(os.POSIX_SPAWN_DUP2,null,1),(os.POSIX_SPAWN_DUP2,null,2)])\n"
              "print('up',flush=True)\nsys.stdin.read()\n") % count
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             preexec_fn=group.join)
    child.stdout.readline()
    settle()
    charge = group.bytes()
    for pid in below(child.pid)[1:]:
        os.kill(pid, 9)
    child.stdin.close()
    child.wait()
    group.remove()
    return charge


def quiet_costs(kind, binaries, count, label, seconds):
    """What `count` quiet processes cost a server: dict of measurements."""
    group = Cgroup.make(label)
    try:
        with kind(binaries, group) as server:
            settle()
            pids = server.pids()
            found = {"idle_pss": memory(pids, "Pss")}
            before, charge = private(pids), group.bytes() if group else 0
            threads = sum(int(stat_fields(pid)[17]) for pid in pids)
            start = time.perf_counter()
            client = quiet(server, count)
            found["start_seconds"] = time.perf_counter() - start
            settle()
            found["private"] = (private(pids) - before) / count
            found["threads"] = (sum(int(stat_fields(pid)[17]) for pid in pids) - threads) / count
            found["charge"] = (group.bytes() - charge) / KIB / count if group else None
            times = []
            for _ in range(20):
                begin = time.perf_counter()
                answer = client._do_command(["l", "p"])
                times.append(time.perf_counter() - begin)
            assert answer.count("\n") == count - 1
            found["list_ms"] = statistics.median(times) * 1000
            watcher = client.watch_processes("q.*")
            settle()
            used = cpu_seconds(pids)
            time.sleep(seconds)
            found["cpu_percent"] = (cpu_seconds(pids) - used) / seconds * 100
            watcher.connection.close()
            return found
    finally:
        if group:
            group.remove()


def charge_text(found, plain, count):
    if found["charge"] is None or plain is None:
        return "cgroup not readable"
    return "%.1f KiB charged" % (found["charge"] - plain / KIB / count)


def measure_quiet(binaries, quick):
    seconds = 5 if quick else 10
    # The difference of two counts, so that the interpreter that starts them drops out.
    small, large = plain_charge(50), plain_charge(500)
    plain = (large - small) / 450 * 500 if small is not None else None
    original = quiet_costs(Original, binaries, ORIGINAL_MOST, "original", seconds)
    ours = quiet_costs(Ours, binaries, 500, "ours", seconds)
    row("idle: keeper + kernel, PSS", "%.1f MiB" % (original["idle_pss"] / KIB), "-",
        "%.1f MiB" % (ours["idle_pss"] / KIB), "3 MiB")
    row("per quiet process (500)",
        "%.1f KiB private, %s, %.0f thread" % (original["private"], charge_text(original, plain, 500),
                                               original["threads"]), "-",
        "%.1f KiB private, %s, %.0f thread" % (ours["private"], charge_text(ours, plain, 500), ours["threads"]),
        "4 KiB, 12 KiB, no thread")
    row("CPU watching 500 quiet processes", "%.3f %%" % original["cpu_percent"], "0", "%.3f %%" % ours["cpu_percent"],
        "0")
    row("`list` of 500", "%.1f ms" % original["list_ms"], "-", "%.2f ms" % ours["list_ms"], "1 ms")
    if quick:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(4000, (hard - 1000) // 4)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ours = quiet_costs(Ours, binaries, count, "many", seconds)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    row("per quiet process (%d)" % count, "cannot: select() ends at 1,024 descriptors", "-",
        "%.1f KiB private, %s, %.0f thread, list %.1f ms, CPU %.2f %%"
        % (ours["private"], charge_text(ours, plain / 500 * count if plain else None, count), ours["threads"],
           ours["list_ms"], ours["cpu_percent"]), "4 KiB, 12 KiB, no thread")


# --- crash, client tests -------------------------------------------------------------------------------------------

def lost_by_kills(binaries, last, kills):
    """Bytes of `seq LAST` that did not arrive, or came twice, over several kills of the kernel under load."""
    with Ours(binaries) as server:
        with Json(server.socket_path()) as session:
            made = session.call("process.make", name="k", argv=["/usr/bin/seq", str(last)], overflow="block")
            serial = made["process"]["serial"]
        expected = "".join("%d\n" % number for number in range(1, last + 1)).encode()
        got, done = bytearray(), 0
        step = len(expected) // (kills + 1)
        while len(got) < len(expected):
            try:
                with Json(server.socket_path()) as session:
                    session.call("output.consume", names=["k"], force=True)
                    while len(got) < len(expected):
                        header, data = session.push()
                        output = header.get("output")
                        if not output:
                            continue
                        if output["start"] > len(got):
                            return output["start"] - len(got)
                        # A kill may take an acknowledgement with it: then the same bytes come again.
                        got += data[len(got) - output["start"]:]
                        session.send("output.ack", acks={str(serial): len(got)})
                        if done < kills and len(got) > step * (done + 1):
                            done += 1
                            os.kill(session.hello["pid"], 9)
            except (OSError, EOFError):
                time.sleep(0.002)
        return 0 if got == expected else len(expected)


def measure_crash(binaries, quick):
    lost = lost_by_kills(binaries, 300000 if quick else 3000000, 5 if quick else 20)
    row("bytes lost by kill -9 of the kernel under load", "all unread", "0", "%d" % lost, "0")


def measure_suite(binaries):
    def passed(*command):
        output = subprocess.run([sys.executable, "-B", str(HERE.parent / "python" / "run_client_tests.py"),
                                 str(pathlib.Path(sys.prefix) / "client"), *command], capture_output=True, text=True)
        return output.stdout.splitlines()[-1].replace("passed ", "")
    row("unmodified client test suite", passed("original"), "29", passed(str(pathlib.Path(binaries) / "papa")), "29")


def main():
    binaries, quick = sys.argv[1], sys.argv[2] == "quick"
    print("machine: %d cores, %s; Python %s" % (os.cpu_count(), os.uname().release, sys.version.split()[0]))
    if not quick:
        measure_suite(binaries)
    measure_requests(binaries, quick)
    measure_output(binaries, quick)
    measure_latency(binaries, quick)
    measure_quiet(binaries, quick)
    measure_crash(binaries, quick)
    print("\n| kernel | papa 1.0.6 | limit | ours | at least |\n|---|---|---|---|---|")
    for line in rows:
        print("| %s |" % " | ".join(line))


if __name__ == "__main__":
    main()
