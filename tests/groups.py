"""Ranks of one process group on this machine, for tests of what runs in them."""

import multiprocessing
import os
import queue
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.multiprocessing as mp

from proseg.distributed import join_group, leave_group
from proseg.errors import ProSegError

T = TypeVar("T")


def run_ranks(function: Callable[..., Iterator[T]], *args: object, ranks: int) -> Iterator[T]:
    """Run `function(*args)` as every rank of one process group on this machine, yielding what rank 0 yields.

    What it yields must be plain values, not tensors. Closing the iterator ends the ranks; an error in any of them is
    raised here. With `ranks=1` the function runs in this process, so that a debugger can step into it.
    """
    if ranks == 1:
        yield from function(*args)
        return
    context = mp.get_context("spawn")
    threads = max(1, torch.get_num_threads() // ranks)
    with tempfile.TemporaryDirectory(prefix="proseg-ranks-") as meeting_place:
        heard, taken = context.Queue(), context.Semaphore(0)
        processes = [
            context.Process(
                target=_run_rank, args=(function, args, number, ranks, meeting_place, threads, heard, taken)
            )
            for number in range(ranks)
        ]
        for process in processes:
            process.start()
        try:
            yield from _listen(heard, taken, processes)
        finally:
            for process in processes:
                process.terminate()
                process.join()
            heard.close()


def _listen(heard: Any, taken: Any, processes: list[Any]) -> Iterator[Any]:
    """What rank 0 says, until all ranks have ended well; the first error of any rank is raised.

    Rank 0 goes on when its word has been dealt with, as a generator in this process would.
    """
    running = len(processes)
    while running:
        try:
            kind, value = heard.get(timeout=1)
        except queue.Empty:
            _raise_if_dead(processes)
            if all(process.exitcode is not None for process in processes):
                return
            continue
        if kind == "error":
            error, text = value
            if not isinstance(error, ProSegError):
                _raise_if_dead(processes)  # a peer's broken connection is not the cause
            raise error from RuntimeError(text)
        if kind == "value":
            yield value
            taken.release()
        else:
            running -= 1


def _raise_if_dead(processes: list[Any]) -> None:
    dead = [number for number, process in enumerate(processes) if process.exitcode not in (None, 0)]
    if dead:
        codes = ", ".join(f"rank {number}: exit code {processes[number].exitcode}" for number in dead)
        raise ProSegError(f"a training process ended without a word ({codes})")


def _run_rank(function, args, number: int, ranks: int, meeting_place: str, threads: int, heard, taken) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    join_group(number, ranks, meeting=f"file://{Path(meeting_place) / 'group'}", backend=_backend(ranks))
    try:
        for value in function(*args):
            if number == 0:
                heard.put(("value", value))
                taken.acquire()
        heard.put(("done", None))
    except Exception as error:  # sent to the parent, which raises it
        heard.put(
            ("error", (error if isinstance(error, ProSegError) else RuntimeError(str(error)), traceback.format_exc()))
        )
        heard.close()
        heard.join_thread()
    finally:
        leave_group()


def _end_with_parent() -> None:
    """A rank whose parent was killed must not train on: nobody would hear it, and its folder may be in use again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _backend(ranks: int) -> str:
    """For ranks that all see the same GPUs and take one each."""
    return "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= ranks else "gloo"
