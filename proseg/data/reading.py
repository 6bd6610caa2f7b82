"""Working through the parts of a source: in several processes, in order, never far ahead of who takes the results."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any, TypeVar

T = TypeVar("T")
Track = Callable[[Iterable[T], int, str], Iterable[T]]
"""Wraps an iterable of known length with a progress display: (items, total, what is being done)."""

LOOK_AHEAD = 2
"""Results of each process that may wait to be taken: with large parts, what fills the memory."""


def silent(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    return items


def in_order(
    work: Callable[[Any], T], parts: Sequence[Any], jobs: int, ahead: int = LOOK_AHEAD
) -> Generator[T, None, None]:
    """What `work` makes of each part, in the order of the parts; to be closed by who does not take all.

    Args:
        work: a function that can be pickled, as its parts and results can.
        jobs: processes; 1 works in this one.
        ahead: results that each process may be ahead.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    yield from map(work, parts) if jobs <= 1 else _in_pool(work, parts, jobs, ahead)


def _in_pool(work: Callable[[Any], T], parts: Sequence[Any], jobs: int, ahead: int) -> Generator[T, None, None]:
    # Spawned, not forked: the parent may run threads (torch, Ray), whose locks a fork would copy in a locked state.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, max(1, len(parts))), mp_context=spawn, initializer=_leave_with_the_parent)
    waiting: deque[Future[T]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(work, part))
            if len(waiting) > ahead * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_with_the_parent() -> None:
    """Ctrl-C is for the parent, which ends its processes in order; where it is killed, they must not stay behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
