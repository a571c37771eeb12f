#!/usr/bin/env bash
# Runs every fuzz target for a while: tests/fuzz.sh [SECONDS [TARGET...]], 5 seconds each unless said otherwise.
#
# libFuzzer is part of the `libfuzzer-sys` crate, and the coverage it steers by is a pass of the compiler that the
# stable toolchain has too, so this needs no nightly and no cargo-fuzz; a C++ compiler it does need. Inputs begin with
# */fuzz/seeds/TARGET (what was found once is kept there), the transcripts and the examples; the corpus grows in
# target/fuzz/corpus. An input that breaks something is left in target/fuzz/found, and the target's binary takes it
# as its argument.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${1:-5}"
shift || true
wanted=("$@")

host="$(rustc -vV | sed -n 's/^host: //p')"
work="$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz"
# With a --target, flags for the code under test do not reach build scripts and macros, which would not link.
export CARGO_TARGET_DIR="$work/build"
export RUSTFLAGS="${RUSTFLAGS:-} --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
  -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"

# Words worth trying: what the reference pages set in code type.
dictionary() {
  grep -ohE '`[a-z_.]{2,24}`|"[a-z_.]{2,24}"' protocol/README.md manager/docs/*.md | tr '`' '"' | sort -u
}

# Real inputs for a target, one file each, in the folder $2.
seeds() {
  case "$1" in
    dialogue | decode) cp tests/golden/transcripts/* "$2" ;;
    ini) find examples -name '*.ini' | while read -r file; do cp "$file" "$2/$(basename "$file")"; done ;;
    control | json) grep -ohE '^ *\{"[^`]*\}$' protocol/README.md manager/docs/*.md | split -l 1 - "$2/line-" || true ;;
  esac
}

mkdir -p "$work/found"
dictionary >"$work/words.dict"
for manifest in */fuzz/Cargo.toml; do
  cargo build --quiet --release --target "$host" --manifest-path "$manifest"
done

failed=()
for source in */fuzz/fuzz_targets/*.rs; do
  target="$(basename "$source" .rs)"
  if [ "${#wanted[@]}" -gt 0 ] && [[ " ${wanted[*]} " != *" $target "* ]]; then continue; fi
  corpus="$work/corpus/$target"
  fresh="$work/seeds/$target"
  kept="${source%/fuzz_targets/*}/seeds/$target"
  rm -rf "$fresh"
  mkdir -p "$corpus" "$fresh"
  seeds "$target" "$fresh"
  folders=("$corpus" "$fresh")
  [ -d "$kept" ] && folders+=("$kept")
  log="$work/$target.log"
  # What a target writes to the standard streams (warnings about what it was fed) says nothing.
  if "$CARGO_TARGET_DIR/$host/release/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
    -max_len=16384 -print_final_stats=1 -dict="$work/words.dict" -artifact_prefix="$work/found/$target-" \
    "${folders[@]}" >"$log" 2>&1; then
    runs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    # Unreadable figures mean that it did not run.
    [ "${runs:-0}" -gt 0 ] || { failed+=("$target"); echo "fuzz $target: no input was run"; continue; }
    echo "fuzz $target: ${runs} inputs, $(find "$corpus" -type f | wc -l) of them interesting"
  else
    failed+=("$target")
    echo "fuzz $target: FAILED"
    grep -aE 'panicked|assertion|left:|right:|ERROR|Test unit written' -A2 "$log" | tail -n 30
  fi
done
if [ "${#failed[@]}" -gt 0 ]; then
  echo "fuzz: failed: ${failed[*]}; inputs and logs are in $work" >&2
  exit 1
fi
