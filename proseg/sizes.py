"""How large masks are: pixels, areas in mm2, volumes in ml."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from proseg.data.images.picture import Picture

MM3_A_ML = 1000

Measure = dict[str, float | int | None]
"""Of one class in one mask: pixels, area_px, area_mm2, volume_ml; None where the file does not tell."""


def measure(picture: Picture, counts: np.ndarray) -> Measure:
    """Of one class in one mask, by its pixels in every slice [D]. The area of a volume is that of the slice in which it
    is largest."""
    area, pixels = int(counts.max()), int(counts.sum())
    found: Measure = {"pixels": pixels, "area_px": area, "area_mm2": None, "volume_ml": None}
    if picture.spacing is not None:
        _, y, x = picture.spacing
        found["area_mm2"] = _known(area * y * x)
        found["volume_ml"] = None if picture.kind == "slice" else _known(pixels * _voxel(picture) / MM3_A_ML)
    return found


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _voxel(picture: Picture) -> float:
    """mm3. Where the slices are oblique to their axis (a tilted gantry) it is less than the product of the spacings."""
    assert picture.spacing is not None
    if picture.grid is None or math.isnan(picture.spacing[0]):
        return float(np.prod(picture.spacing))
    return abs(float(np.linalg.det(picture.grid[:3, :3])))


def over(measures: Sequence[Mapping[str, Any]], of) -> dict[str, float | None]:
    """`of` (a mean, a deviation) each measure of several masks."""
    return {key: None if measures[0][key] is None else float(of([one[key] for one in measures])) for key in measures[0]}


def spacing(picture: Picture) -> list[float | None] | None:
    """(z, y, x) in mm, of a slice (y, x); None along an axis of which it is not known."""
    axes = picture.pixels.ndim - 1
    return None if picture.spacing is None else [*map(_known, picture.spacing[-axes:])]
