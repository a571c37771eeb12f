"""The managers under comparison: how each is installed, configured, started, asked and ended.

Every one gets the same services in its own words. A service is a name, a command line and, where its output is wanted, a
log file; where a manager puts the log elsewhere, `logged` says how much there is.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

COMMAND_SECONDS = 60
# Circus 0.17.2 with papa, and the libraries under it that still suit it; the same as the interoperation tests'.
CIRCUS_WITH_PAPA = ["papa==1.0.6", "circus==0.17.2", "psutil==7.2.2", "pyzmq==27.3.0", "tornado==6.6.1"]


class Missing(Exception):
    """This manager cannot be measured here; the text says why."""


def run(command, environment=None, seconds=COMMAND_SECONDS):
    """Runs a command to its end and gives what it printed. Raises TimeoutError when it does not end."""
    try:
        done = subprocess.run([str(word) for word in command], env=environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError("%s does not end" % command[0])
    return done.returncode, done.stdout.decode("utf-8", "replace")


def must(command, environment=None, seconds=COMMAND_SECONDS):
    try:
        status, text = run(command, environment, seconds)
    except OSError as error:
        raise Missing("%s: %s" % (command[0], error.strerror))
    if status:
        raise Missing("%s: %s" % (" ".join(map(str, command)), text.strip()[-300:]))
    return text


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def python_environment(folder, requirements):
    """A venv with what is asked for, made once."""
    stamp = folder / "installed.txt"
    wanted = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        must([sys.executable, "-m", "venv", folder])
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # papa is a source package that needs these to be built.
        must(pip + ["setuptools==65.5.0", "wheel"], seconds=300)
        must(pip + ["--no-build-isolation"] + requirements, seconds=300)
        stamp.write_text(wanted)
    return folder


def python_version(folder, package):
    code = "import importlib.metadata as m; print(m.version(%r))" % package
    return must([folder / "bin/python", "-c", code]).strip()


def debian_package(program, package):
    """Finds a program, or installs its Debian package where that is allowed; gives the version."""
    if not shutil.which(program):
        if os.getuid() or not shutil.which("apt-get"):
            raise Missing("%s is not installed, and only root can: apt-get install %s" % (program, package))
        must(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package],
             dict(os.environ, DEBIAN_FRONTEND="noninteractive"), 300)
    return must(["dpkg-query", "-W", "-f", "${Version}", package])


class Manager:
    """One manager in a scratch folder of its own."""

    name = "?"
    # Whether services are meant to run on while the manager is restarted.
    keeps_services = False

    @classmethod
    def install(cls, folder):
        """Makes the manager available and gives its version."""
        raise NotImplementedError

    def __init__(self, folder, services):
        self.folder, self.services = pathlib.Path(folder), services
        self.environment = dict(os.environ)
        self.daemon = None
        self.write()

    def write(self):
        """Writes the configuration."""

    def spawn(self, *command):
        """Starts a daemon that stays in the foreground."""
        with open(self.folder / "daemon.log", "ab") as log:
            self.daemon = subprocess.Popen([str(word) for word in command], env=self.environment, cwd=self.folder,
                                           stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def up(self):
        """Starts the manager; it starts the services."""
        raise NotImplementedError

    def status(self):
        """Asks for the state of all services with the manager's own command and gives its output."""
        raise NotImplementedError

    def quit(self):
        """Ends the manager in its normal way, and returns when it has ended."""
        raise NotImplementedError

    def wait_daemon(self):
        try:
            self.daemon.wait(COMMAND_SECONDS / 2)
        except subprocess.TimeoutExpired:
            raise TimeoutError("the manager does not end")

    def logged(self, log):
        """Size of a log, in bytes."""
        try:
            return os.stat(log).st_size
        except OSError:
            return 0


class Ours(Manager):
    name = "ours"
    keeps_services = True
    binaries = None

    @classmethod
    def install(cls, folder):
        return must([cls.binaries / "papactl", "--version"]).split()[-1]

    def write(self):
        self.environment.update(XDG_RUNTIME_DIR=str(self.folder / "run"))
        (self.folder / "run").mkdir(mode=0o700)
        lines = ["[circus]", "papa_endpoint = tcp://127.0.0.1:%d" % free_port()]
        for name, argv, log in self.services:
            lines += ["[watcher:%s]" % name, "cmd = " + " ".join(argv)]
            if log:
                lines += ["stdout_stream.class = FileStream", "stdout_stream.filename = %s" % log]
        (self.folder / "stack.ini").write_text("\n".join(lines) + "\n")

    def papactl(self, *arguments):
        status, text = run([self.binaries / "papactl", *arguments], self.environment)
        if status:
            raise RuntimeError("papactl %s: %s" % (arguments[0], text))
        return text

    def up(self):
        self.papactl("up", self.folder / "stack.ini")

    def status(self):
        return self.papactl("status")

    def quit(self):
        self.papactl("quit")


class Supervisord(Manager):
    name = "supervisord"

    @classmethod
    def install(cls, folder):
        cls.bin = python_environment(folder / "supervisor", ["supervisor==4.3.0"]) / "bin"
        return python_version(folder / "supervisor", "supervisor")

    def write(self):
        lines = ["[supervisord]", "logfile=%s/supervisord.log" % self.folder, "pidfile=%s/pid" % self.folder,
                 "childlogdir=%s" % self.folder, "[unix_http_server]", "file=%s/sock" % self.folder,
                 "[rpcinterface:supervisor]",
                 "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
                 "[supervisorctl]", "serverurl=unix://%s/sock" % self.folder]
        for name, argv, log in self.services:
            lines += ["[program:%s]" % name, "command=" + " ".join(argv), "stdout_logfile=%s" % (log or "NONE"),
                      "stdout_logfile_maxbytes=0", "stderr_logfile=NONE"]
        (self.folder / "supervisord.conf").write_text("\n".join(lines) + "\n")

    def up(self):
        self.spawn(self.bin / "supervisord", "-n", "-c", self.folder / "supervisord.conf")

    def control(self, *arguments):
        return run([self.bin / "supervisorctl", "-c", self.folder / "supervisord.conf", *arguments])[1]

    def status(self):
        return self.control("status")

    def quit(self):
        self.control("shutdown")
        self.wait_daemon()


class Circus(Manager):
    name = "circus"
    requirements, kind = ["circus==0.19.0"], "circus"

    @classmethod
    def install(cls, folder):
        cls.bin = python_environment(folder / cls.kind, cls.requirements) / "bin"
        return python_version(folder / cls.kind, "circus")

    def write(self):
        lines = ["[circus]", "multicast_endpoint ="]
        lines += ["%s = ipc://%s/%s" % (key, self.folder, key) for key in ("endpoint", "pubsub_endpoint")]
        for name, argv, log in self.services:
            lines += ["[watcher:%s]" % name, "cmd = " + " ".join(argv)] + self.more()
            if log:
                lines += ["stdout_stream.class = FileStream", "stdout_stream.filename = %s" % log]
        (self.folder / "circus.ini").write_text("\n".join(lines) + "\n")

    def more(self):
        return []

    def up(self):
        self.spawn(self.bin / "circusd", self.folder / "circus.ini")

    def control(self, *arguments):
        command = [self.bin / "circusctl", "--endpoint", "ipc://%s/endpoint" % self.folder, *arguments]
        return run(command, seconds=COMMAND_SECONDS / 2)[1]

    def status(self):
        return self.control("status")

    def quit(self):
        self.control("quit")
        self.wait_daemon()


class CircusWithPapa(Circus):
    name = "circus + papa"
    requirements, kind = CIRCUS_WITH_PAPA, "circus-papa"
    keeps_services = True

    @classmethod
    def install(cls, folder):
        return "%s + %s" % (super().install(folder), python_version(folder / cls.kind, "papa"))

    def more(self):
        return ["use_papa = true"]

    def up(self):
        # Circus ignores a tcp:// papa_endpoint; its client starts papa itself.
        if not hasattr(self, "port"):
            self.port = free_port()
        self.spawn(self.bin / "python", "-c", "import papa; papa.set_default_port(%d); "
                   "from circus.circusd import main; main()" % self.port, self.folder / "circus.ini")


class Supervision(Manager):
    """What s6 and runit have in common: a folder of folders with a script `run`."""

    logger = None

    def write(self):
        self.scan = self.folder / "services"
        for name, argv, log in self.services:
            self.script(self.scan / name / "run", argv)
            if log:
                log.mkdir()
                self.script(self.scan / name / "log" / "run", self.logger + [str(log)])

    def script(self, path, argv):
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\nexec %s\n" % " ".join(argv))
        path.chmod(0o755)

    def folders(self):
        return [self.scan / name for name, _, _ in self.services]

    def logged(self, log):
        return sum(file.stat().st_size for file in log.iterdir() if file.name == "current" or file.name[0] == "@")


class S6(Supervision):
    name = "s6"
    # The largest files it allows, all kept.
    logger = ["s6-log", "n0", "s268435455"]

    @classmethod
    def install(cls, folder):
        return debian_package("s6-svscan", "s6")

    def up(self):
        self.spawn("s6-svscan", self.scan)

    def status(self):
        # It tells of one service at a time.
        script = 'for folder in "$@"; do s6-svstat "$folder"; done'
        return run(["sh", "-c", script, "sh", *self.folders()])[1]

    def quit(self):
        run(["s6-svscanctl", "-t", self.scan])
        self.wait_daemon()


class Runit(Supervision):
    name = "runit"
    logger = ["svlogd"]

    @classmethod
    def install(cls, folder):
        return debian_package("runsvdir", "runit")

    def write(self):
        super().write()
        for _, _, log in self.services:
            if log:
                # Never rotated.
                (log / "config").write_text("s0\n")

    def up(self):
        self.spawn("runsvdir", self.scan)

    def status(self):
        return run(["sv", "status", *self.folders()])[1]

    def quit(self):
        self.daemon.send_signal(1)
        self.wait_daemon()
        # Its children end by themselves, some time later.
        for folder in self.folders():
            run(["sh", "-c", "until sv status %s | grep -q 'runsv not running'; do sleep 0.01; done" % folder])


class Pm2(Manager):
    name = "pm2"

    @classmethod
    def install(cls, folder):
        for program in ("node", "npm"):
            if not shutil.which(program):
                raise Missing("%s is not installed" % program)
        cls.bin = folder / "pm2/node_modules/.bin/pm2"
        if not cls.bin.exists():
            (folder / "pm2").mkdir(parents=True, exist_ok=True)
            must(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder / "pm2", "pm2@7"],
                 seconds=300)
        package = folder / "pm2/node_modules/pm2/package.json"
        return json.loads(package.read_text())["version"]

    def write(self):
        self.environment.update(PM2_HOME=str(self.folder / "home"))
        apps = [dict(name=name, script=argv[0], args=argv[1:], interpreter="none", exec_mode="fork",
                     out_file=str(log or "/dev/null"), error_file="/dev/null")
                for name, argv, log in self.services]
        text = json.dumps(dict(apps=apps))
        (self.folder / "ecosystem.config.js").write_text("module.exports = %s;\n" % text)

    def up(self):
        run([self.bin, "start", self.folder / "ecosystem.config.js"], self.environment)

    def status(self):
        return run([self.bin, "ls"], self.environment)[1]

    def quit(self):
        run([self.bin, "kill"], self.environment)


ALL = [Supervisord, Circus, CircusWithPapa, S6, Runit, Pm2, Ours]
