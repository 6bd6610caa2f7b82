"""All quick benchmarks, one table: `python -m benchmarks [--only step samples] [--list] [--json FILE]`.

Each runs in a process of its own: what one leaves in the allocator would show in the times of the next.
"""

import argparse
import importlib
import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import Row, publish

QUICK = ("step", "samples", "metrics", "loading", "reading", "evaluation", "memory")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=QUICK, default=list(QUICK))
    parser.add_argument("--list", action="store_true", help="say what there is, and measure nothing")
    parser.add_argument("--repeats", type=int, help="of each; otherwise each benchmark's own number")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of those that can use a GPU")
    parser.add_argument("--json", type=Path, help="keep every repetition in this file")
    options = parser.parse_args(argv)
    if options.list:
        for name in options.only:
            print(f"{name:12}{_module(name).__doc__.splitlines()[0]}")
        return
    asked = {"repeats": options.repeats, "device": options.device}
    publish([row for name in options.only for row in _run(name, asked)], options.device, options.json)


def _run(name: str, asked: dict) -> list[Row]:
    known = inspect.signature(_module(name).measure).parameters
    words = [f"--{key}={value}" for key, value in asked.items() if value is not None and key in known]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *words, "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]


def _module(name: str):
    return importlib.import_module(f"benchmarks.{name}")


if __name__ == "__main__":
    main()
