"""From the axes of a file to those of the store.

Volumes are turned (by whole axes, nothing is resampled) so that slices lie from the feet up, rows run from front to
back, and columns from the patient's right to the left: what a radiologist sees, and what DICOM calls LPS. A single
slice stays as it lies, rows along the file's second axis.
"""

from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from proseg.data.images.picture import Picture
from proseg.errors import DataError

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From mm right, anterior, superior."""
STRAIGHT = np.array([[0, 1], [1, 1], [2, 1]])
"""nibabel's orientation of a volume that needs no turning."""


def picture(values: np.ndarray, place: np.ndarray | None, spacing: np.ndarray | None) -> Picture:
    """The picture of a file's array; `place` and `spacing` have been checked.

    Args:
        values: [x, y, C] or [x, y, z, C], the file's axes in its order, then channels.
        place: [4, 4], from (x, y, z, 1) to mm left, posterior, superior; None where it is not known.
        spacing: mm along the file's axes; None where it is not known.
    """
    turn = None
    if place is not None and _is_turned(values.shape[:-1]):
        turn = io_orientation(place)
        values, place, spacing = _turned(values, place, turn)
    pixels = values.transpose(*range(values.ndim)[::-1])
    return Picture(
        pixels,
        None if spacing is None else (*[float(mm) for mm in [1.0, *spacing[::-1]][-3:]],),  # type: ignore[arg-type]
        "slice" if pixels.ndim == 3 else "volume",
        None if place is None else place[:, [2, 1, 0, 3]],
        turn,
    )


def shape(sizes: tuple[int, ...], channels: int, place: np.ndarray | None) -> tuple[int, ...]:
    """[C, H, W] or [C, D, H, W] that `picture` will have, from the file's sizes along (x, y) or (x, y, z)."""
    if place is not None and _is_turned(sizes):
        axes = io_orientation(place)[:, 0].astype(int)
        sizes = tuple(sizes[i] for i in np.argsort(axes))
    return (channels, *sizes[::-1])


def turned_back(maps: np.ndarray, sizes: tuple[int, ...], place: np.ndarray | None) -> np.ndarray:
    """The inverse of `picture`, to the very voxel: [K, D, H, W] or [K, H, W] in the store's axes to [x, y, z, K] or
    [x, y, K] in the file's, whose sizes in space and whose place these are."""
    values = maps.transpose(*range(maps.ndim)[::-1])
    if place is None or not _is_turned(sizes):
        return values
    return apply_orientation(values, ornt_transform(STRAIGHT, io_orientation(place)))


def sizes_in_file(picture: Picture) -> tuple[int, ...]:
    """Along the axes in space of the file that a picture came from, in its order."""
    sizes = picture.pixels.shape[:0:-1]
    return sizes if picture.turn is None else tuple(sizes[axis] for axis in picture.turn[:, 0].astype(int))


def spans(picture: Picture, of_file: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Spans of voxels (first, last) along the file's axes in space, as those along (z, y, x) or (y, x) of its
    picture."""
    if picture.turn is None:
        return of_file[::-1]
    found = {}
    for (axis, sign), (first, last) in zip(picture.turn.astype(int).tolist(), of_file, strict=True):
        end = picture.pixels.shape[-1 - axis] - 1
        found[axis] = (first, last) if sign > 0 else (end - last, end - first)
    return found[2], found[1], found[0]


def check(path: Path, place: np.ndarray | None, spacing: np.ndarray | None) -> None:
    """Raises DataError where they make no sense."""
    if place is not None and (not np.isfinite(place).all() or np.linalg.matrix_rank(place) < 4):
        raise DataError(f"{path}: the directions of its axes make no sense: {place[:3, :3].tolist()}")
    if spacing is not None and (not np.isfinite(spacing).all() or min(spacing) <= 0):
        raise DataError(f"{path}: its spacing is {list(map(float, spacing))}; expected positive numbers, in mm")


def _is_turned(sizes: tuple[int, ...]) -> bool:
    """Whether axes of these sizes are those of a volume; a single slice stays as it lies."""
    return len(sizes) == 3 and sizes[2] > 1


def _turned(
    values: np.ndarray, place: np.ndarray, turn: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    place = place @ inv_ornt_aff(turn, values.shape[:3])
    return apply_orientation(values, turn), place, np.linalg.norm(place[:3, :3], axis=0)
