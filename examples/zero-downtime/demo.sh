#!/bin/bash
# Five HTTP services under load, while they are deployed, well and badly, and while everything that manages them is replaced or
# killed with -9. Prints requests, errors and the worst latency of each step; fails if a single request does. Works on a copy of
# this folder in $TMPDIR, with a kernel of its own.
#
#   cargo build --release --workspace --examples --bins && examples/zero-downtime/demo.sh
#
# BIN names the folder of papa, papa-manager and papactl (and examples/ in it); NEXT that of the programs to upgrade to, by default
# the same; SECONDS_PER_STEP how long the load goes on after each step; VENV a virtual environment with requirements.txt in it, or
# where to make one; WRK_BREATH_MS the pause of wrk's connections between two requests (2); WRK=no leaves wrk out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [ -z "${BIN:-}" ]; then
    BIN=$here/../../target/release
    [ -x "$BIN/papactl" ] || BIN=$here/../../target/debug
fi
next=${NEXT:-$BIN}
linger=${SECONDS_PER_STEP:-2}
# Connections of wrk to each service.
wrk_connections=4
# wrk ends by itself, too; no step takes so long.
wrk_seconds=300

for program in python3 curl "$BIN/papa" "$BIN/papa-manager" "$BIN/papactl"; do
    command -v "$program" >/dev/null || {
        echo "demo.sh: $program is missing (apt-get install python3 curl; cargo build --release --workspace --bins --examples)" >&2
        exit 2
    }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/zero-downtime.XXXXXX")
# nginx's workers are somebody else when root starts it.
chmod 755 "$work"
cp -r "$here"/{app,services.ini,nginx.conf,load.py,table.py,wrk.lua,requirements.txt} "$work"
cd "$work"
mkdir run bin

# `install_from FOLDER`: the programs, as a package manager puts them: a new file in the old one's place.
install_from() {
    for program in papa papa-manager papactl; do
        cp "$1/$program" bin/new
        mv bin/new bin/$program
    done
}
install_from "$BIN"

say() { printf '\n== %s\n' "$*"; }

# Every service whose program is there; the others are left out of the INI file, and that is said.
services=()
leave_out() {
    echo "left out: $1: $2"
    python3 - "$@" <<'PYTHON'
import re, sys
gone = "watcher:%s|socket:%s" % (sys.argv[1], sys.argv[1]) + ("|watcher:nginx" if sys.argv[1] == "uwsgi" else "")
text = open("services.ini").read()
open("services.ini", "w").write(re.sub(r"(?ms)^\[(%s)\].*?(?=^\[|\Z)" % gone, "", text))
PYTHON
}
there() { command -v "$1" >/dev/null; }
services+=(stdlib)
venv=${VENV:-$work/run/venv}
installed() { cmp -s requirements.txt "$venv/installed.txt"; }
installed || { python3 -m venv "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check -r requirements.txt &&
    cp requirements.txt "$venv/installed.txt"; } || true
if installed; then
    services+=(gunicorn)
    sed -i "s|\$(circus.config_dir)/run/venv|$venv|" services.ini
else
    leave_out gunicorn "pip could not install it"
fi
if there node; then services+=(node); else leave_out node "there is no node (apt-get install nodejs)"; fi
if [ -x "$BIN/examples/zero_downtime_service" ]; then
    services+=(rust)
    cp "$BIN/examples/zero_downtime_service" app/service
else
    leave_out rust "it is not built (cargo build --release -p papa-manager --example zero_downtime_service)"
fi
if there nginx && there uwsgi; then services+=(uwsgi); else leave_out uwsgi "(apt-get install nginx-light uwsgi-core uwsgi-plugin-python3)"; fi
wrk=()
if [ "${WRK:-yes}" != no ]; then
    if there wrk; then wrk=("${services[@]}"); else echo "left out: wrk: not found (apt-get install wrk)"; fi
fi

# Ports nobody uses: for the kernel, and for the services.
read -r -a ports < <(python3 - <<'PYTHON'
import socket
probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
print(*(probe.getsockname()[1] for probe in probes))
PYTHON
)
sed -i "s/^\[circus\]/&\npapa_endpoint = tcp:\/\/127.0.0.1:${ports[5]}/" services.ini
declare -A port
number=0
for service in stdlib gunicorn node rust uwsgi; do
    port[$service]=${ports[$number]}
    number=$((number + 1))
    sed -i "s/\b809$number\b/${port[$service]}/" services.ini nginx.conf
done
targets=()
for service in "${services[@]}"; do targets+=("$service=${port[$service]}"); done

export XDG_RUNTIME_DIR=$work/run
papactl() { "$work/bin/papactl" "$@"; }
clients=()
cleanup() {
    [ "${#clients[@]}" = 0 ] || kill "${clients[@]}" 2>/dev/null || true
    papactl down >/dev/null 2>&1 || true
}
trap cleanup EXIT

fail() {
    echo "demo.sh: FAILED: $*" >&2
    papactl status >&2 || true
    tail -n 40 run/papa/circus.manager.log >&2 || true
    echo "demo.sh: everything is left in $work" >&2
    exit 1
}
await() {
    for _ in $(seq 600); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    fail "waited in vain for: $*"
}
manager() { papactl --json status | python3 -c "import json,sys; print(json.load(sys.stdin)['manager']['pid'])"; }
kernel() { papactl --json kernel status | python3 -c "import json,sys; print(json.load(sys.stdin)['kernel']['$1'])"; }
connected() { papactl --json status | python3 -c "import json,sys; sys.exit(not json.load(sys.stdin)['manager']['kernel_pid'])"; }
# Every process of the services, whoever started it, with the time at which it began: number and time together are never used twice.
processes() {
    for name in "$@"; do papactl list "$name" | tr , '\n'; done | python3 -c '
import sys
def below(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            began = file.read().rpartition(")")[2].split()[19]
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            children = file.read().split()
    except OSError:
        return
    print(pid, began)
    for child in children:
        below(int(child))
for line in sys.stdin:
    if line.strip():
        below(int(line))' | sort
}
all() { papactl list | tr , '\n'; }
snapshot() { processes $(all); }
unchanged() {
    local now
    now=$(snapshot)
    [ "$before" = "$now" ] || fail "processes should be as they were: $(diff <(echo "$before") <(echo "$now"))"
}
# The new ones of a deploy that was taken back may take their time to end.
as_before() { [ "$before" = "$(snapshot)" ]; }
# Of the old ones none is left.
left() { comm -12 <(echo "$before") <(processes "${services[@]}"); }
replaced() { [ -z "$(left)" ] || fail "processes should have been replaced: $(left)"; }
none_left() { [ -z "$(left)" ]; }

# `load HEADING VERSIONS` … `unload`: clients without a pause meanwhile; not one request may fail, and no other version may answer.
load() {
    say "$1"
    heading=$1
    rm -f run/load* run/wrk.*
    python3 load.py run/load "$2" "${targets[@]}" &
    clients=($!)
    for service in "${wrk[@]}"; do
        wrk -t 1 -c $wrk_connections -d $wrk_seconds --timeout 30 -s wrk.lua "http://127.0.0.1:${port[$service]}/" >"run/wrk.$service" 2>&1 &
        clients+=($!)
    done
    await test -e run/load.begun
}
unload() {
    sleep "$linger"
    # Who ended by itself, after the longest time a step may take, has said what there is to say.
    kill "${clients[0]}" || true
    [ "${#wrk[@]}" = 0 ] || kill -INT "${clients[@]:1}" || true
    for client in "${clients[@]}"; do wait "$client" || fail "the clients failed"; done
    clients=()
    python3 table.py step "$heading" || fail "requests failed"
}
# Nobody but this version answers any more.
only() {
    rm -f run/only*
    python3 load.py run/only "$1" "${targets[@]}" &
    clients=($!)
    await test -e run/only.begun
    kill "${clients[0]}"
    wait "${clients[0]}"
    clients=()
    ! grep -v '"errors": {}' run/only || fail "version $1 was expected, and no error"
    echo "version $1 answers, of every service"
}
# `release VERSION`: a folder with the application, to be named in the INI file.
release() {
    mkdir -p releases
    cp -r app "releases/$1"
    echo "$1" >"releases/$1/VERSION"
}
point_to() { sed -i -E "s#^(working_dir = .*)/(app|releases/[0-9]+)\$#\1/releases/$1#" services.ini; }

say "up"
papactl up services.ini
only 1

load "rolling reload of each, one after the other" 1
before=$(snapshot)
for name in "${services[@]}"; do
    echo "papactl reload $name"
    papactl reload "$name"
done
replaced
unload

load "deploy of version 2: edited in place, reload of all" 1,2
before=$(processes "${services[@]}")
echo 2 >app/VERSION
papactl reload
replaced
unload
only 2

load "deploy of version 3: another folder in the INI, reloadconfig" 2,3
before=$(processes "${services[@]}")
release 3
point_to 3
papactl reloadconfig --plan
papactl reloadconfig
replaced
unload
only 3

load "deploy of version 4, which ends at start: taken back" 3
before=$(snapshot)
cp services.ini good.ini
release 4
for file in stdlib.py wsgi.py; do sed -i '1i raise RuntimeError("a bad deploy")' releases/4/$file; done
sed -i '1i throw new Error("a bad deploy");' releases/4/service.js
printf '#!/bin/sh\nexit 1\n' >releases/4/service
point_to 4
papactl reloadconfig && fail "a version that ends at start was taken for a good one"
cp good.ini services.ini
await as_before
unload
only 3

load "deploy of version 5, which never gets ready: taken back" 3
before=$(snapshot)
release 5
for file in stdlib.py wsgi.py; do sed -i '1i import time; time.sleep(1000)' releases/5/$file; done
sed -i 's/^graceful_timeout = .*/graceful_timeout = 1/' releases/5/gunicorn.conf.py
echo 'setTimeout(() => {}, 1000000);' >releases/5/service.js
printf '#!/bin/sh\nexec sleep 1000\n' >releases/5/service
point_to 5
sed -i 's/^ready = .*/&\nready_timeout = 3/' services.ini
papactl reloadconfig && fail "a version that never gets ready was taken for a good one"
cp good.ini services.ini
await as_before
unload
only 3

load "manager: quit, up" 3
before=$(snapshot)
papactl quit
papactl up services.ini
unchanged
unload

load "manager: kill -9, up" 3
kill -9 "$(manager)"
papactl up services.ini
unchanged
unload

load "manager: upgrade" 3
install_from "$next"
papactl upgrade
unchanged
unload

load "kernel: upgrade" 3
old=$(kernel incarnation)
papactl kernel upgrade
[ "$(kernel incarnation)" != "$old" ] || fail "the kernel is the one it was"
await connected
unchanged
unload

load "kernel: kill -9, three times" 3
for _ in 1 2 3; do
    await connected
    kill -9 "$(kernel pid)"
    sleep 0.2
done
await connected
unchanged
unload

load "keeper: kill -9" 3
old=$(kernel keeper)
kill -9 "$old"
new_keeper() { [ "$(kernel keeper)" != "$old" ]; }
await new_keeper
await connected
unchanged
unload

load "deploy of version 6: manager, then kernel killed with -9 in the middle of it" 3,6
before=$(processes "${services[@]}")
release 6
point_to 6
papactl reloadconfig >/dev/null 2>&1 &
command=$!
sleep 0.3
kill -9 "$(manager)"
wait "$command" || true
papactl up services.ini
kill -9 "$(kernel pid)"
await connected
# The next ones go on with what had begun; what had not, they show as different from the file, and this begins it.
papactl reloadconfig
await none_left
unload
only 6

say "all steps"
python3 table.py all
papactl down
trap - EXIT
cd /
rm -rf "$work"
say "all well"
