#!/bin/bash
# Shows the promise on a real stack: nginx and uwsgi under load, while everything around them is replaced, killed with -9,
# deployed well and deployed badly. No request fails, and the logs have each of them exactly once. Works on a copy of this
# folder in $TMPDIR, with a kernel of its own.
#
#   cargo build --release && examples/web-stack/demo.sh
#
# BIN names the folder of papa, papa-manager and papactl; SECONDS_PER_STEP how long the load goes on after each step.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [ -z "${BIN:-}" ]; then
    BIN=$here/../../target/release
    [ -x "$BIN/papactl" ] || BIN=$here/../../target/debug
fi
linger=${SECONDS_PER_STEP:-1}

for program in nginx uwsgi curl python3 "$BIN/papa" "$BIN/papa-manager" "$BIN/papactl"; do
    command -v "$program" >/dev/null || {
        echo "demo.sh: $program is missing (apt-get install nginx-light uwsgi-core uwsgi-plugin-python3 curl python3; cargo build --release)" >&2
        exit 2
    }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/web-stack.XXXXXX")
# nginx's workers are somebody else when root starts it.
chmod 755 "$work"
cp "$here"/{stack.ini,nginx.conf,uwsgi.ini,app.py,logger.py,load.py} "$work"
cd "$work"
mkdir run logs

# Ports nobody uses: one for the kernel, one for nginx, and a row of ten for uwsgi's statistics.
read -r kernel_port http_port stats_port < <(python3 - <<'PYTHON'
import socket
def free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        return probe.getsockname()[1]
row = next(row for row in range(8090, 60000, 10) if all(free(row + n) for n in range(10)))
print(free(0), free(0), row)
PYTHON
)
sed -i "s/^\[circus\]/&\npapa_endpoint = tcp:\/\/127.0.0.1:$kernel_port/; s/127.0.0.1:809\\$/127.0.0.1:$((stats_port / 10))$/" stack.ini
sed -i "s/127.0.0.1:8088/127.0.0.1:$http_port/" nginx.conf
url=http://127.0.0.1:$http_port

export XDG_RUNTIME_DIR=$work/run
papactl() { "$BIN/papactl" "$@"; }
load_pid=
cleanup() {
    [ -z "$load_pid" ] || kill "$load_pid" 2>/dev/null || true
    papactl down >/dev/null 2>&1 || true
}
trap cleanup EXIT

say() { printf '\n== %s\n' "$*"; }
fail() {
    echo "demo.sh: FAILED: $*" >&2
    papactl status >&2 || true
    tail -n 20 run/papa/circus.manager.log >&2 || true
    echo "demo.sh: everything is left in $work" >&2
    exit 1
}
field() { papactl --json status | python3 -c "import json,sys; print(json.load(sys.stdin)['manager']['$1'])"; }
# A stack's pids: the processes that the manager started, and the workers of the web application below its master.
others() { papactl list nginx; papactl list logger; }
web() { papactl list web_app; }
workers_of() { ps -o pid= --ppid "$1" | sort -n; }
pids() { others; web; workers_of "$(web)"; }
await() {
    for _ in $(seq 400); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    fail "waited in vain for: $*"
}
connected() { [ "$(field kernel_pid)" != None ]; }
same() { [ "$1" = "$2" ] || fail "$3: $1 became $2"; }
different() { [ "$1" != "$2" ] || fail "$3: still $1"; }

# `load STEP` … `unload`: clients without a pause meanwhile; not one request may fail.
load() {
    python3 load.py "$url" "$1" &
    load_pid=$!
    sleep 0.3
}
unload() {
    sleep "$linger"
    kill "$load_pid"
    wait "$load_pid" || fail "a request failed"
    load_pid=
}

say "up"
papactl up stack.ini
await curl -sf "$url/"
curl -s "$url/?hello"
before=$(pids)

say "kill -9 of the manager under load, up again"
load killed_manager
kill -9 "$(field pid)"
papactl up stack.ini
unload
same "$before" "$(pids)" "pids"

say "kill -9 of the kernel under load, five times"
load killed_kernel
for _ in 1 2 3 4 5; do
    await connected
    kill -9 "$(field kernel_pid)"
    sleep 0.1
done
await connected
unload
same "$before" "$(pids)" "pids"

say "quit and up again: the manager is new, the stack is not"
load quit_and_up
papactl quit
papactl up stack.ini
unload
same "$before" "$(pids)" "pids"

say "three deploys: reload starts the new uwsgi, waits until it serves, then lets the old one finish"
load reload
rest=$(others)
for _ in 1 2 3; do
    old=$(web)
    papactl reload web_app
    different "$old" "$(web)" "the pid of web_app"
done
unload
same "$rest" "$(others)" "the other pids"

say "kill -9 of the manager in the middle of a deploy, then of the kernel"
load killed_in_reload
old=$(web)
papactl reload web_app >/dev/null 2>&1 &
reload_pid=$!
sleep 0.3
kill -9 "$(field pid)"
wait "$reload_pid" || true
papactl up stack.ini
kill -9 "$(field kernel_pid)"
await connected
replaced() { [ "$(web)" != "$old" ] && [[ "$(web)" != *,* ]]; }
await replaced
unload

say "a bad deploy: the new one never serves, the old one stays, and the command says why"
load bad_deploy
old=$(web)
cp app.py good_app.py
echo 'raise RuntimeError("a bad deploy")' >>app.py
papactl reload web_app && fail "the bad deploy was taken for a good one"
same "$old" "$(web)" "the pid of web_app"
cp good_app.py app.py
papactl reload web_app
different "$old" "$(web)" "the pid of web_app"
unload

say "one more uwsgi, and one less"
load incr_decr
papactl incr web_app
[ "$(papactl list web_app | tr , '\n' | wc -l)" = 2 ] || fail "two were expected: $(web)"
papactl decr web_app
[ "$(papactl list web_app | tr , '\n' | wc -l)" = 1 ] || fail "one was expected: $(web)"
unload

say "nginx takes up its configuration: send_hup keeps its pid"
load nginx
rest=$(others)
workers=$(workers_of "$(papactl list nginx)")
papactl reload nginx
renewed() { [ "$(workers_of "$(papactl list nginx)")" != "$workers" ]; }
await renewed
unload
same "$rest" "$(others)" "the pids"

say "another INI file: first the plan, which changes nothing, then the change, which rolls"
load reloadconfig
old=$(web)
sed -i 's/^cmd = uwsgi /&--procname-prefix new- /' stack.ini
papactl reloadconfig --plan
same "$old" "$(web)" "the pid of web_app"
papactl reloadconfig
different "$old" "$(web)" "the pid of web_app"
unload
same "$rest" "$(others)" "the other pids"

say "logs: every request exactly once, with uwsgi and with the logger"
cat >check.py <<'PYTHON'
import collections, glob, re, sys
wanted = set(open("sent").read().split())
bad = 0
for name in ("web_app.log", "logger.log"):
    text = b"".join(open(path, "rb").read() for path in glob.glob(f"logs/{name}*")).decode()
    found = collections.Counter(re.findall(r"n=\w+\.\d+\.\d+", text))
    lost = wanted - found.keys()
    repeated = [key for key, count in found.items() if count > 1]
    print(f"{name}: {len(found)} of {len(wanted)} requests, {len(lost)} lost, {len(repeated)} repeated")
    bad += len(lost) + len(repeated)
sys.exit(bad > 0)
PYTHON
# The last lines may still be on their way.
await python3 check.py
python3 check.py

say "down"
papactl down
trap - EXIT
cd /
rm -rf "$work"
say "all well"
