"""A source of blobs for tests of the preparation; what happens while a part is read can be chosen."""

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from proseg.data.case import Slice
from proseg.data.source import Part, Skipped, Source
from proseg.data.store import Description
from proseg.errors import DataError

SIDE, RATERS, SLICES = 16, 2, 2
DESCRIPTION = Description(
    name="blobs", label="random blobs, no patient", licence="none needed: made by a test", unit="volume",
    sorted_raters=False, window=None,
)  # fmt: skip

Events = Mapping[int, str]


def make_source(parts: int = 12, events: Events | None = None, log: Path | None = None, **changes: Any) -> Source:
    """A volume of two slices for each part, of a patient of its own.

    Args:
        events: what happens when a part is read; see `EVENTS`.
        log: a file that gets a line for each part that is read, and of the process that reads it.
    """
    known = {
        "description": DESCRIPTION, "parts": tuple(range(parts)), "identity": "blobs",
        "read": partial(read_part, events=events or {}, log=log), "raters": ("ann", "bob"), "channels": ("grey",),
        "skipped": (Skipped("readme.txt", "no image"),),
    }  # fmt: skip
    return Source(**known | changes)


def read_part(number: int, events: Events, log: Path | None = None) -> Part:
    if log is not None:
        with log.open("a") as file:
            file.write(f"{number} {os.getpid()}\n")
    EVENTS[events.get(number, events.get(-1, "nothing"))](number)
    skipped = (Skipped(f"slice {number}", "every fifth is"),) if number % 5 == 4 else ()
    return Part(tuple(make_slice(number, z) for z in range(SLICES)), skipped)


def make_slice(number: int, z: int = 0, **changes: Any) -> Slice:
    rng = np.random.default_rng((number, z))
    masks = np.zeros((RATERS, SIDE, SIDE), bool)
    for mask, size in zip(masks, rng.integers(2, 8, RATERS), strict=True):
        mask[4 : 4 + size, 4 : 4 + size] = True
    image = rng.integers(-1000, 400, (1, SIDE, SIDE)).astype(np.int16)
    known = {
        "image": image, "annotations": masks, "rater_mask": np.ones(RATERS, bool), "patient": f"p{number}",
        "volume": f"v{number}", "z": float(z), "spacing": (1.0, 0.5, 0.5),
    }  # fmt: skip
    return Slice(**known | changes)


def _spoilt(number: int) -> None:
    raise DataError(f"part {number} is spoilt")


def _denied(number: int) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", f"part-{number}.npy")


def _interrupted(number: int) -> None:
    raise KeyboardInterrupt


def _too_large(number: int) -> None:
    raise MemoryError(f"Unable to allocate 119 GiB for part {number}")


EVENTS: dict[str, Callable[[int], object]] = {
    "nothing": lambda number: None,
    "slow": lambda number: time.sleep(0.05),
    "spoilt": _spoilt,
    "denied": _denied,
    "interrupted": _interrupted,
    "too large": _too_large,
    "killed": lambda number: os.kill(os.getpid(), signal.SIGKILL),
}
"""-1 in `Events` is every part that has none of its own."""
