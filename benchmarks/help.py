"""What the help of each command costs, CPU-seconds of its process: `python -m benchmarks.help [--repeats 3]`.

A person waits for it, and a shell for the names that it offers when Tab is pressed, which is measured as well.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

GOAL = 0.6
"""CPU-seconds, of each."""
NAME = "proseg-tune"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args(argv).repeats
    jobs = [(" ".join([NAME, *words, "--help"]), [*words, "--help"], {}) for words in commands()]
    jobs += [(f"{text}<Tab>", [], completion(text)) for text in (f"{NAME} ", f"{NAME} status ", f"{NAME} launch ")]
    print(f"| command | CPU-s, median of {repeats} | goal |\n|---|---|---|")
    for name, words, environment in jobs:
        spent = statistics.median(seconds(words, environment) for _ in range(repeats))
        print(f"| `{name}` | {spent:.2f} | ≤ {GOAL}: {'met' if spent <= GOAL else 'missed'} |")


def commands() -> list[list[str]]:
    """The words of every command, that without any the first."""
    import typer

    from cli.app import app

    return list(_below(typer.main.get_command(app), []))


def _below(command: Any, words: list[str]) -> Iterator[list[str]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from _below(inner, [*words, name])


def completion(text: str) -> dict[str, str]:
    """What bash tells the command where Tab is pressed after a text."""
    return {"_PROSEG_TUNE_COMPLETE": "complete_bash", "COMP_WORDS": text, "COMP_CWORD": str(len(text.split()))}


def seconds(words: Sequence[str], environment: dict[str, str]) -> float:
    """User and system CPU of one process that runs the command with these words."""
    command = subprocess.Popen([sys.executable, "-m", "cli", *words], stdout=subprocess.DEVNULL,
                               env={**os.environ, **environment})  # fmt: skip
    _, status, usage = os.wait4(command.pid, 0)
    command.returncode = os.waitstatus_to_exitcode(status)
    if command.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with code {command.returncode}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
