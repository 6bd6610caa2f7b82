"""Runs a command in a process group of its own, and ends the whole group with whoever started this.

`python guard.py COMMAND...`, with a pipe for its standard input that is never written to: it closes when its owner
ends, in whatever way, SIGKILL included. MLflow's server starts workers that outlive it.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

SECONDS_TO_END = 5.0


def main(command: list[str]) -> int:
    """Until the command ends, its exit code; or until the pipe closes."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while child.poll() is None:
            if select.select([0], [], [], 0.5)[0] and not os.read(0, 1):
                return 0
        return child.returncode
    finally:
        end(child)


def end(child: subprocess.Popen) -> None:
    """Its whole group: asked first, then killed."""
    for way, seconds in ((signal.SIGTERM, SECONDS_TO_END), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, way)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
