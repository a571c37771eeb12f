#!/bin/bash
# Shows that a watcher in trouble delays no other: the times of one that is well, alone and beside four that are not. The four
# ignore SIGTERM for a minute while they are to stop, name a program that does not exist, write to a full disk (/dev/full),
# and write without end. Writes only below a folder of its own in $TMPDIR.
#
#   cargo build --release && examples/isolation/demo.sh
#
# BIN names the folder of papa, papa-manager and papactl; ROUNDS how often each time is taken.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [ -z "${BIN:-}" ]; then
    BIN=$here/../../target/release
    [ -x "$BIN/papactl" ] || BIN=$here/../../target/debug
fi
rounds=${ROUNDS:-5}

# A kernel, sockets and logs of its own.
work=$(mktemp -d "${TMPDIR:-/tmp}/isolation.XXXXXX")
export XDG_RUNTIME_DIR=$work
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
{ printf '[circus]\npapa_endpoint = tcp://127.0.0.1:%d\n' "$port"; cat "$here/isolation.ini"; } >"$work/isolation.ini"

papactl() { "$BIN/papactl" "$@"; }
cleanup() {
    # Nobody waits for the stubborn one here.
    papactl signal stubborn 9 >/dev/null 2>&1 || true
    papactl down >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

fail() { echo "demo.sh: FAILED: $*" >&2; exit 1; }
state() { papactl --json status "$1" | python3 -c "import json,sys; print(json.load(sys.stdin)['watchers'][0]['state'])"; }

# Milliseconds of a command, the best of all rounds, by verb.
declare -A best
measure() {
    local round verb start took
    best=()
    for round in $(seq "$rounds"); do
        for verb in stop start reload; do
            start=$(date +%s%N)
            papactl "$verb" well >/dev/null || fail "$verb well"
            took=$((($(date +%s%N) - start) / 10000))
            [ -n "${best[$verb]:-}" ] && [ "${best[$verb]}" -le "$took" ] || best[$verb]=$took
        done
    done
}
report() {
    local verb
    printf '%-28s' "$1"
    for verb in start reload stop; do printf '  %s %d.%02d ms' "$verb" $((best[$verb] / 100)) $((best[$verb] % 100)); done
    echo
}

papactl up "$work/isolation.ini" >/dev/null
measure
report "alone"

papactl start stubborn >/dev/null
papactl start flood >/dev/null
papactl start --no-wait full >/dev/null
papactl start --no-wait absent >/dev/null
# From now on it is in its minute.
papactl stop --no-wait stubborn >/dev/null
measure
report "beside four in trouble"
[ "$(state stubborn)" = stopping ] || fail "stubborn was meant to be stopping all the time, not $(state stubborn)"
papactl status
