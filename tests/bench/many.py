#!/usr/bin/env python3
"""How long many watchers of one sleeping worker each take to come up and to go down.

    tests/bench/many.py [--bin target/release] [COUNT...]

The counts are 1000, 2000 and 4000 unless others are named; the times should grow as the counts do.
A worker needs some four descriptors of the kernel's. Each run has a runtime directory of its own. Nothing else may use papa's port meanwhile.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

# A run that takes longer than this has failed.
PATIENCE_S = 600


def measure(programs: str, count: int) -> tuple[float, float]:
    """Seconds until all workers run, and until everything has gone."""
    with tempfile.TemporaryDirectory(prefix="papa-many-") as directory:
        environment = dict(os.environ, XDG_RUNTIME_DIR=directory, HOME=directory)
        path = os.path.join(directory, "many.ini")
        with open(path, "w", encoding="utf-8") as file:
            for number in range(count):
                file.write(f"[watcher:w{number}]\ncmd = sleep 100000\n\n")
        times = []
        for words in (["up", path], ["down"]):
            begun = time.monotonic()
            subprocess.run(
                [os.path.join(programs, "papactl"), *words],
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=PATIENCE_S,
            )
            times.append(time.monotonic() - begun)
        return times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="target/release", help="directory of the programs")
    parser.add_argument("count", nargs="*", type=int, default=[1000, 2000, 4000])
    arguments = parser.parse_args()
    print("| watchers | up | down |\n|---|---|---|")
    for count in arguments.count:
        try:
            up, down = measure(os.path.abspath(arguments.bin), count)
        except (subprocess.SubprocessError, OSError) as error:
            sys.exit(f"{count} watchers: {error}")
        print(f"| {count:,} | {up:.1f} s | {down:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
