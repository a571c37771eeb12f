#!/usr/bin/env bash
# Other targets: the workspace is checked for each one that is installed, and a static build runs in an empty root directory.
# Targets are installed with `rustup target add TARGET`; one that is missing is said and passed over. The last part takes root.
set -euo pipefail
cd "$(dirname "$0")/.."

STATIC=x86_64-unknown-linux-musl
TARGETS=(aarch64-unknown-linux-gnu "$STATIC")

installed() {
  [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ]
}

for target in "${TARGETS[@]}"; do
  if installed "$target"; then
    cargo check --quiet --workspace --target "$target"
    echo "$target: checked"
  else
    echo "$target: skipped: not installed (rustup target add $target)"
  fi
done

installed "$STATIC" || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "static build: skipped: chroot takes root"
  exit 0
fi

cargo build --quiet --workspace --bins --target "$STATIC"
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
built="${CARGO_TARGET_DIR:-target}/$STATIC/debug"
cp "$built"/{papa,papa-manager,papactl} "$root"
# What a container gives an image: /proc and a few devices. The worker is the one program at hand that needs no library.
mkdir "$root"/{proc,dev,run}
cat > "$root/app.ini" <<'INI'
[watcher:inner]
cmd = /papa --unix-socket /run/inner.sock
INI
# In namespaces of its own, so that ports do not collide and everything ends with the script.
unshare --net --mount --pid --fork --kill-child bash -euo pipefail -s "$root" <<'INSIDE'
root=$1
mount -t proc proc "$root/proc"
touch "$root/dev/null"
mount --bind /dev/null "$root/dev/null"
ip link set lo up
papactl() { XDG_RUNTIME_DIR=/run chroot "$root" /papactl "$@"; }
papactl check /app.ini >/dev/null
papactl up /app.ini >/dev/null
status=$(papactl status)
[[ "$status" == *active*1/1* ]] || { echo "static build: $status"; exit 1; }
papactl down >/dev/null
INSIDE
echo "static build: started, looked at and stopped a worker in an empty root directory"
