"""A large image in overlapping tiles of the size that a network was trained on, their maps blended into one.

A U-Net takes any size, but what it says depends on it: its group norms take mean and variance over the whole field, and
the grid of z's noise stretches with it. Tiles of the trained size show it what it knows. They overlap by half, as is
usual, and fade into each other, so that no seam is left; what one of them says near its own border, where it sees
least, is not heard where another one sees more. Where they fade, a sample is the mean of two draws of z's noise (with
one tau), and so differs a little less from the others than elsewhere; the maps of the variance do not suffer from that,
for each tile makes its own.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

OVERLAP = 0.5
"""Share of a tile's side, at least, that it has in common with the next one."""
UNHEARD, FADING = 0.125, 0.25
"""Shares of a tile's side: from its border, and from there to where it counts fully."""
LEAST = 1e-3
"""What the border counts, for where there is no other tile."""


@dataclass(frozen=True, eq=False)
class Cover:
    """Tiles along one axis."""

    starts: tuple[int, ...]
    shares: np.ndarray
    """[tiles, length of a tile] float32: how much each counts at each of its places; all that cover a place add up to
    one."""

    @property
    def length(self) -> int:
        """Of a tile."""
        return self.shares.shape[1]


def cover(length: int, tile: int) -> Cover:
    """The fewest tiles that cover an axis, evenly spread; one of the axis' own length where it is no longer."""
    tile = min(length, tile)
    overlap = int(tile * OVERLAP)
    count = max(1, math.ceil((length - overlap) / (tile - overlap)))
    starts = np.linspace(0, length - tile, count).round().astype(int)
    rising = ((np.arange(tile) + 0.5) / tile - UNHEARD) / FADING
    weights = np.minimum(rising, rising[::-1]).clip(LEAST, 1)
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += weights
    shares = np.stack([weights / total[start : start + tile] for start in starts])
    return Cover(tuple(starts.tolist()), shares.astype(np.float32))


def tiled(
    maps_of: Callable[[np.ndarray], np.ndarray], image: np.ndarray, tile: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """The maps of an image, from the top down, band by band: no more than a band's rows are held at once.

    Args:
        maps_of: [C, h, w] -> [..., h, w] float32, the maps of one tile.
        image: [C, H, W].
        tile: (height, width).

    Yields:
        The first row of a band, and its maps [..., rows, W].
    """
    rows, columns = cover(image.shape[-2], tile[0]), cover(image.shape[-1], tile[1])
    ends = (*rows.starts[1:], image.shape[-2])
    above = None
    for top, end, share in zip(rows.starts, ends, rows.shares, strict=True):
        band = _across(maps_of, image[:, top : top + rows.length], columns) * share[:, None]
        if above is not None:
            band[..., : above.shape[-2], :] += above
        yield top, band[..., : end - top, :]
        above = band[..., end - top :, :]


def _across(maps_of: Callable[[np.ndarray], np.ndarray], strip: np.ndarray, columns: Cover) -> np.ndarray:
    """[C, h, W] -> [..., h, W]"""
    whole = None
    for left, share in zip(columns.starts, columns.shares, strict=True):
        place = slice(left, left + columns.length)
        maps = maps_of(strip[..., place])
        if whole is None:
            whole = np.zeros((*maps.shape[:-1], strip.shape[-1]), np.float32)
        whole[..., place] += maps * share
    assert whole is not None
    return whole
