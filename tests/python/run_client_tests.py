"""Runs papa's own client test module, unmodified, each test against a kernel of its own.

Usage: run_client_tests.py WORKDIR KERNEL [ARGUMENT...]

Fetches the source package of papa 1.0.6 with pip into WORKDIR (it is not in the wheel), puts our stand-ins for the
executables it forgot to ship beside the test module, and runs every test in its own interpreter. KERNEL is started
for each with `--port N` appended, on a private runtime directory. The word `original` as KERNEL runs the server of the
installed Python package instead, to check the stand-ins themselves.

Prints one line per test and, last, `passed N of M`. Exit code 0 when all passed.
"""

import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time

PACKAGE = "papa==1.0.6"
START_SECONDS = 10
TEST_SECONDS = 60
# What a test may see of our environment: the client cannot send a variable without a value, and cargo sets some.
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
USER = pwd.getpwuid(os.getuid()).pw_name
HERE = pathlib.Path(__file__).resolve().parent

# Runs inside the child: one test by name, against the kernel on the given port.
ONE_TEST = """
import sys, unittest
import papa
papa.set_default_port(int(sys.argv[1]))
# The module would start the original server inside this process if nobody answered; then the test says nothing
# about the kernel, so it must not happen.
papa.Papa.spawned = True
import tests
suite = unittest.defaultTestLoader.loadTestsFromName(sys.argv[2], tests)
result = unittest.TextTestRunner(verbosity=0).run(suite)
sys.exit(0 if result.testsRun == 1 and result.wasSuccessful() and not result.skipped else 1)
"""

LIST_TESTS = """
import unittest
import tests
def walk(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from walk(item)
        else:
            yield item.id().split(".", 1)[1]
print("\\n".join(walk(unittest.defaultTestLoader.loadTestsFromModule(tests))))
"""


def prepare(work):
    """The folder that holds the test module as a package, with its executables beside it."""
    work.mkdir(parents=True, exist_ok=True)
    folder = work / "client-tests"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder), PACKAGE],
            check=True)
        (archive,) = folder.glob("papa-*.tar.gz")
        with tarfile.open(archive) as source:
            member = next(m for m in source.getmembers() if m.name.endswith("tests/__init__.py"))
            text = source.extractfile(member).read()
        (folder / "tests").mkdir()
        (folder / "tests" / "__init__.py").write_bytes(text)
        (folder / "complete").touch()
    shutil.rmtree(folder / "tests" / "executables", ignore_errors=True)
    shutil.copytree(HERE / "executables", folder / "tests" / "executables")
    return folder


def plain_environment():
    found = {key: os.environ[key] for key in KEPT if os.environ.get(key)}
    return dict(found, LOGNAME=USER)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_serving(kernel, port):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if kernel.poll() is not None:
                raise SystemExit("the kernel ended at once with %s" % kernel.returncode)
            if time.monotonic() > deadline:
                raise SystemExit("the kernel does not serve port %d" % port)
            time.sleep(0.01)


def descendants(root):
    """Every process below one, by /proc."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/%s/stat" % entry) as line:
                    parents[int(entry)] = int(line.read().rpartition(")")[2].split()[1])
            except OSError:
                pass
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def stop(kernel):
    """Ends the kernel and everything below it; its two halves restart each other, so both are stopped first."""
    found = descendants(kernel.pid)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in found:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
    kernel.wait()


def run_one(name, folder, command):
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="papa-client-") as runtime:
        environment = dict(plain_environment(), XDG_RUNTIME_DIR=runtime)
        log = open(os.path.join(runtime, "kernel.log"), "w+")
        kernel = subprocess.Popen(command + ["--port", str(port)], env=environment, stdin=subprocess.DEVNULL,
                                  stderr=log)
        try:
            wait_until_serving(kernel, port)
            try:
                done = subprocess.run([sys.executable, "-c", ONE_TEST, str(port), name], cwd=folder, env=environment,
                                      stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TEST_SECONDS)
                text = done.stderr
            except subprocess.TimeoutExpired:
                done, text = None, "no end within %d s\n" % TEST_SECONDS
            log.seek(0)
            return done is not None and done.returncode == 0, text + log.read()
        finally:
            stop(kernel)
            log.close()


def with_eth0():
    """Two tests bind to an interface named eth0: where there is none, goes on in a network of its own that has one."""
    if os.path.exists("/sys/class/net/eth0"):
        return
    script = ("ip link set lo up && ip link add eth0 type dummy && ip link set eth0 up && exec \"$@\"")
    again = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-B"] + sys.argv
    if os.getuid() == 0 and "PAPA_OWN_NETWORK" not in os.environ:
        os.environ["PAPA_OWN_NETWORK"] = "1"
        os.execvp(again[0], again)
    print("no interface eth0 here: two tests cannot pass")


def main():
    work, command = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    if command == ["original"]:
        command = [sys.executable, "-c", "from papa.server import main; main()"]
    # Before the network goes away.
    folder = prepare(work)
    with_eth0()
    listing = subprocess.run([sys.executable, "-c", LIST_TESTS], cwd=folder, check=True, capture_output=True, text=True,
                             env=plain_environment())
    names = listing.stdout.split()
    passed = 0
    for name in names:
        good, text = run_one(name, folder, command)
        passed += good
        print("%s %s" % ("ok    " if good else "FAILED", name), flush=True)
        if not good:
            print(text, flush=True)
    print("passed %d of %d" % (passed, len(names)))
    sys.exit(0 if passed == len(names) else 1)


if __name__ == "__main__":
    main()
