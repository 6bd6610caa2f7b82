"""What a network knows how to look at, and how other images are brought before it.

A large image is cut into overlapping tiles of the size that the network was trained on, their features blended into
one image's, from which all of its maps are decoded.

A U-Net takes any size, but what it says depends on it: its group norms take mean and variance over the whole field.
Tiles of the trained size show it what it knows. They overlap by half, as is usual, and fade into each other, so that no
seam is left; what one of them says near its own border, where it sees least, is not heard where another one sees more.
What turns features into maps looks at a few cells only: it sees the whole image, once a map instead of once a tile and
map. The noise of z is that of one tile, mirrored over the image (`proseg.latents.Lattice`).

Where the training images had been zoomed as a whole, so is the image, and its maps are zoomed back. Where they were
crops about a lesion, one tile about a point that a person names may be all that is looked at.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from proseg.data.frame import zoom_linear, zoom_nearest

FeaturesOf: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""[N, C, H, W] -> [N, F, h, w], the features of several tiles in their cells."""

OVERLAP = 0.5
"""Share of a tile's side, at least, that it has in common with the next one."""
UNHEARD, FADING = 0.125, 0.25
"""Shares of a tile's side: from its border, and from there to where it counts fully."""
LEAST = 1e-3
"""What the border counts, for where there is no other tile."""


@dataclass(frozen=True)
class Field:
    """What a network was trained to look at."""

    tile: tuple[int, int]
    """(height, width) of its training images, or of the crops of them that it saw."""
    whole: tuple[int, int]
    """(height, width) of its training images."""
    zoom: Literal["linear", "nearest"] | None = None
    """How images had been brought to that size; None: their pixels are as large as they were taken."""

    def smaller_than(self, size: Sequence[int]) -> bool:
        """Whether it takes several tiles to see an image of (height, width)."""
        height, width = self.whole if self.zoom else size
        return height > self.tile[0] or width > self.tile[1]

    def zoomed(self, image: np.ndarray) -> np.ndarray:
        """An image [C, H, W] as large as the training images."""
        return (zoom_nearest if self.zoom == "nearest" else zoom_linear)(image, *self.whole)


def field_of(data: Mapping[str, Any], crop: int | None) -> Field | None:
    """Of a model, by what it says of its training data; None where it says nothing of their size.

    Args:
        data: the fields of `proseg.data.manifest.Manifest`.
        crop: side of the crops that the model saw of them; None: all of them.
    """
    try:
        height, width = int(data["height"]), int(data["width"])
    except (KeyError, TypeError, ValueError):
        return None
    side = crop or max(height, width)
    zoom = {"zoom_linear": "linear", "zoom_nearest": "nearest"}.get(str(data.get("framing")))
    return Field((min(height, side), min(width, side)), (height, width), zoom)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Crop:
    """One tile about a point of a slice; what of it lies beyond the slice is filled up."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: np.ndarray, fill: np.ndarray | float) -> np.ndarray:
        """[C, H, W] -> [C, height, width]; `fill` is broadcast."""
        cut = np.empty((len(image), self.height, self.width), image.dtype)
        cut[...] = fill
        here, there = self.seen(image.shape), self._inside(image.shape)
        cut[there] = image[here]
        return cut

    def onto(self, target: np.ndarray, maps: np.ndarray) -> None:
        """Write maps [..., height, width] of the tile into those of the slice [..., H, W]."""
        target[self.seen(target.shape)] = maps[self._inside(target.shape)]

    def seen(self, shape: Sequence[int]) -> tuple[Any, ...]:
        """Index of what lies in both, in a slice of this shape [..., H, W]."""
        return ..., _common(self.top, self.height, shape[-2]), _common(self.left, self.width, shape[-1])

    def _inside(self, shape: Sequence[int]) -> tuple[Any, ...]:
        """Index of the same in the tile."""
        _, rows, columns = self.seen(shape)
        return ..., *(slice(r.start - s, r.stop - s) for r, s in ((rows, self.top), (columns, self.left)))


def crop_about(row: int, column: int, tile: tuple[int, int]) -> Crop:
    """With the point at [height // 2, width // 2], where LIDC's crops have the middle of the lesion."""
    height, width = tile
    return Crop(row - height // 2, column - width // 2, height, width)


def _common(start: int, length: int, size: int) -> slice:
    return slice(max(0, start), min(size, start + length))


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
    features_of: FeaturesOf, image: torch.Tensor, tile: Sequence[int], cell: int = 1
) -> Iterator[tuple[int, torch.Tensor]]:
    """The features of an image, from the top down, band by band: no more than a band's rows are held at once.

    Args:
        features_of: is given a row of tiles at a time.
        image: [C, H, W], in whole cells.
        tile: (height, width) in pixels.
        cell: side of a cell of the features, in pixels.

    Yields:
        The first row of a band, in cells, and its features [F, rows, W / cell].
    """
    height, width = (length // cell for length in image.shape[-2:])
    rows, columns = (cover(a, math.ceil(b / cell)) for a, b in zip((height, width), tile, strict=True))
    above = None
    for top, end, share in zip(rows.starts, (*rows.starts[1:], height), rows.shares, strict=True):
        strip = image[:, top * cell : (top + rows.length) * cell]
        band = _across(features_of, strip, columns, cell) * torch.from_numpy(share).to(image.device)[:, None]
        if above is not None:
            band[..., : above.shape[-2], :] += above
        yield top, band[..., : end - top, :]
        above = band[..., end - top :, :]


def _across(features_of: FeaturesOf, strip: torch.Tensor, columns: Cover, cell: int) -> torch.Tensor:
    """[C, H, W] -> [F, h, w]"""
    tiles = torch.stack([strip[..., cell * left : cell * (left + columns.length)] for left in columns.starts])
    found = features_of(tiles)
    whole = found.new_zeros(*found.shape[1:-1], strip.shape[-1] // cell)
    shares = torch.from_numpy(columns.shares).to(found.device)
    for left, share, one in zip(columns.starts, shares, found, strict=True):
        whole[..., left : left + columns.length] += one * share
    return whole
