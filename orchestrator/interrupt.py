"""Ctrl-C once stops a study cleanly, twice at once; SIGTERM, and a terminal that is closed (SIGHUP), at once, as
whoever sends them will not wait for epochs."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from orchestrator.control import request_stop, stop_requested


@contextmanager
def terminable() -> Iterator[None]:
    """Within this block SIGTERM and SIGHUP raise KeyboardInterrupt: children are ended and the state is written.

    Who said `nohup` goes on without a terminal.
    """
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def hung_up(number: int, frame: FrameType | None) -> None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            for terminal in terminals:  # which is gone: what is said to it from now on would be an error
                os.dup2(nowhere.fileno(), terminal)
        raise KeyboardInterrupt

    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    with _handling(signal.SIGTERM, _at_once), nullcontext() if nohup else _handling(signal.SIGHUP, hung_up):
        yield


@contextmanager
def children_keep_running() -> Iterator[None]:
    """What is started within this block hears no SIGHUP: the terminal tells all programs at once that it is closed, and
    those that we need to come to an end would be gone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
