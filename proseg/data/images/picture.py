"""What an image file holds, and what is believed of its header."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from proseg.errors import DataError

MOST_BYTES = 2 * 2**30
"""Pixels of one file as it stores them: 1000 slices of 1024 x 1024 in 16 bits. A header that claims more is taken for
damaged, or for that of a bomb, before anything is decompressed."""

NUMERIC_KINDS = "fiub"
"""numpy dtype kinds: float, signed and unsigned integer, bool."""

Kind = Literal["slice", "volume"]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Header:
    """What a file says of its pixels, before they are read."""

    channels: int
    depth: int | None
    """Slices; None where the file is 2-D."""
    height: int
    width: int
    dtype: np.dtype
    """Type of the pixels, once scaled as the file asks."""
    notes: tuple[str, ...] = ()
    """Sentences of what was taken in one of two ways, ignored or repaired."""

    @property
    def whole(self) -> bool:
        """Whether the pixels are whole numbers."""
        return self.dtype.kind in "iub"


@dataclass(frozen=True, eq=False)
class Picture:
    """The pixels of a file, and where they lie."""

    pixels: np.ndarray
    """[C, H, W], or [C, D, H, W] of a volume, scaled as the file asks; numbers or bool, all of them finite."""
    spacing: Spacing | None
    """(z, y, x) in mm; None where the file does not say."""
    kind: Kind
    grid: np.ndarray | None = None
    """[4, 4]: takes (z, y, x, 1) of a pixel to mm left, posterior, superior; None where the file does not say."""
    turn: np.ndarray | None = None
    """[3, 2], nibabel's orientation: for each axis of the file, which one of (x, y, z) it has become, and whether it
    runs backwards (-1); None where the pixels lie as in the file."""


def check_claim(path: Path, shape: Sequence[int], dtype: np.dtype) -> None:
    """That pixels of this shape and type are plausible.

    Raises:
        DataError: there are none, more than `MOST_BYTES`, or they are no real numbers.
    """
    if dtype.hasobject:
        raise DataError(f"{path}: holds Python objects (a pickle), which are never loaded; save an array of numbers")
    if dtype.kind not in NUMERIC_KINDS:
        raise DataError(f"{path}: its pixels are of type {dtype}; expected integers or floating point numbers")
    if not shape or 0 in shape or min(shape) < 0:
        raise DataError(f"{path}: holds no pixels, its shape is {tuple(shape)}")
    claimed = math.prod(map(int, shape)) * dtype.itemsize
    if claimed > MOST_BYTES:
        raise DataError(
            f"{path}: its header claims {claimed / 2**30:.1f} GiB of pixels, shape {tuple(map(int, shape))}; at most "
            f"{MOST_BYTES / 2**30:.0f} GiB are read from one file"
        )


def header_of(picture_shape: Sequence[int], dtype: np.dtype) -> Header:
    """Of pixels [C, H, W] or [C, D, H, W]."""
    channels, *depth, height, width = map(int, picture_shape)
    return Header(channels, depth[0] if depth else None, height, width, np.dtype(dtype))
