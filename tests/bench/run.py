"""Measures the kernel against papa 1.0.6 and against plain limits, in one run, and prints the table.

    cargo build --release -p papa-kernel --bin papa --example bench_limits
    python3 tests/bench/run.py [--quick]

The same Python client (the original one, where nothing else is said) drives both servers on the same machine. It is
installed with pip into target/interop-venv, where the interoperation tests have it too. Ratios within one run are what
counts; absolute numbers depend on the machine.
"""

import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default=str(ROOT / "target"), help="cargo's target folder")
    parser.add_argument("--profile", default="release", help="folder below it that holds the binaries")
    parser.add_argument("--venv", help="a venv with papa 1.0.6 (default: TARGET/interop-venv, made when missing)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no client test suite, no 4,000")
    arguments = parser.parse_args()
    target = pathlib.Path(arguments.target).resolve()
    binaries = target / arguments.profile
    for name in ("papa", "examples/bench_limits"):
        if not (binaries / name).exists():
            sys.exit("%s is missing: cargo build --release -p papa-kernel --bin papa --example bench_limits"
                     % (binaries / name))
    venv = pathlib.Path(arguments.venv) if arguments.venv else target / "interop-venv"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
        subprocess.run(pip + ["setuptools==65.5.0", "wheel"], check=True)
        subprocess.run(pip + ["papa==1.0.6"], check=True)
    measure = pathlib.Path(__file__).resolve().parent / "measure.py"
    command = [str(python), "-B", str(measure), str(binaries), "quick" if arguments.quick else "full"]
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
