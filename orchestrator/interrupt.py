"""Ctrl-C once stops a study cleanly, twice at once; SIGTERM at once, as whoever sends it will not wait for epochs."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from orchestrator.control import request_stop, stop_requested


@contextmanager
def terminable() -> Iterator[None]:
    """Within this block SIGTERM raises KeyboardInterrupt: children are ended and the state is written."""
    with _handling(signal.SIGTERM, _at_once):
        yield


@contextmanager
def stoppable(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Within this block also a first Ctrl-C asks the study in `folder` to stop; the next raises KeyboardInterrupt."""

    def cleanly(number: int, frame: FrameType | None) -> None:
        if stop_requested(folder):
            raise KeyboardInterrupt
        request_stop(folder)
        say("stopping when the epochs under way are finished; Ctrl-C again stops at once")

    with terminable(), _handling(signal.SIGINT, cleanly):
        yield


def _at_once(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handling(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
