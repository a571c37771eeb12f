#!/bin/bash
# Shows the promise on a real stack: nginx and uwsgi under load, while the manager and then the kernel are killed with -9.
# Same pids, no failed request, every request in the logs exactly once. Writes only below this folder.
#
#   cargo build --release && examples/web-stack/demo.sh
#
# BIN names the folder of papa, papa-manager and papactl; REQUESTS how many requests each of the two clients sends per round.
set -euo pipefail
cd "$(dirname "$0")"

top=$(cd ../.. && pwd)
if [ -z "${BIN:-}" ]; then
    BIN=$top/target/release
    [ -x "$BIN/papactl" ] || BIN=$top/target/debug
fi
requests=${REQUESTS:-1500}
url=http://127.0.0.1:8088

for program in nginx uwsgi curl python3 "$BIN/papa" "$BIN/papa-manager" "$BIN/papactl"; do
    command -v "$program" >/dev/null || {
        echo "demo.sh: $program is missing (apt-get install nginx-light uwsgi-core uwsgi-plugin-python3 curl python3; cargo build)" >&2
        exit 2
    }
done

if (exec 3<>/dev/tcp/127.0.0.1/20202) 2>/dev/null; then
    echo "demo.sh: a kernel listens on port 20202 already; the demo kills kernels and wants one of its own" >&2
    exit 2
fi

rm -rf run logs
mkdir -p run logs
# Sockets and logs of kernel and manager stay in this folder too.
export XDG_RUNTIME_DIR=$PWD/run
papactl() { "$BIN/papactl" "$@"; }
cleanup() {
    jobs -p | xargs -r kill 2>/dev/null || true
    papactl down >/dev/null 2>&1 || true
}
trap cleanup EXIT

say() { printf '\n== %s\n' "$*"; }
fail() { echo "demo.sh: FAILED: $*" >&2; exit 1; }
field() { papactl --json status | python3 -c "import json,sys; print(json.load(sys.stdin)['manager']['$1'])"; }
pids() { for name in nginx logger web_app; do papactl list "$name"; done; ps -o pid= --ppid "$(papactl list web_app)" | sort; }
await() {
    for _ in $(seq 200); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    fail "waited in vain for: $*"
}
connected() { [ "$(field kernel_pid)" != None ]; }

# Two clients, each a sequence of numbered requests; the answers' status codes go to a file.
load() {
    for client in 1 2; do
        curl -s -o /dev/null -w '%{http_code}\n' "$url/?n=$1.$client.[1-$requests]" >"run/codes.$1.$client" &
    done
}
finish_load() {
    wait "$(jobs -p | head -1)" "$(jobs -p | tail -1)" || fail "a client failed"
    cat run/codes."$1".* | sort | uniq -c
    [ "$(cat run/codes."$1".* | grep -c '^200$')" = $((requests * 2)) ] || fail "a request failed"
}

say "up"
papactl up stack.ini
await curl -sf "$url/"
curl -s "$url/?hello"
before=$(pids)

say "kill -9 of the manager under load, up again"
load manager
kill -9 "$(field pid)"
await curl -sf "$url/"
papactl up stack.ini
finish_load manager
[ "$(pids)" = "$before" ] || fail "pids changed"
echo "same pids:" $before

say "kill -9 of the kernel under load, five times"
load kernel
for _ in 1 2 3 4 5; do
    await connected
    kill -9 "$(field kernel_pid)"
    sleep 0.1
done
await connected
finish_load kernel
[ "$(pids)" = "$before" ] || fail "pids changed"
echo "same pids:" $before

say "logs: every request exactly once, with uwsgi and with the logger"
cat >run/check.py <<'PYTHON'
import glob, re, sys, collections
wanted = {f"n={round}.{client}.{i}" for round in ("manager", "kernel") for client in (1, 2) for i in range(1, int(sys.argv[1]) + 1)}
bad = 0
for name in ("web_app.log", "logger.log"):
    text = b"".join(open(path, "rb").read() for path in glob.glob(f"logs/{name}*")).decode()
    found = collections.Counter(re.findall(r"n=(?:manager|kernel)\.\d+\.\d+", text))
    lost = wanted - found.keys()
    repeated = [key for key, count in found.items() if count > 1]
    print(f"{name}: {len(found)} of {len(wanted)} requests, {len(lost)} lost, {len(repeated)} repeated")
    bad += len(lost) + len(repeated)
sys.exit(bad > 0)
PYTHON
# The last lines may still be on their way.
await python3 run/check.py "$requests"
python3 run/check.py "$requests"

say "quit and up again: the manager is new, the stack is not"
papactl quit
papactl up stack.ini
[ "$(pids)" = "$before" ] || fail "pids changed"

say "down"
papactl down
trap - EXIT
say "all well"
