"""From the axes of a file to those of the store.

Volumes are turned (by whole axes, nothing is resampled) so that slices lie from the feet up, rows run from front to
back, and columns from the patient's right to the left: what a radiologist sees, and what DICOM calls LPS. A volume of
one slice, along whichever axis of the file, lies as DICOM shows such a slice: an axial one as the slices of other
volumes, a sagittal one with columns to the back and rows to the feet, a coronal one with columns to the left and rows
to the feet. What has two axes only stays as it lies, rows along the file's second axis.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from proseg.data.images.picture import Picture
from proseg.errors import DataError

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From mm right, anterior, superior."""
STRAIGHT = np.array([[0, 1], [1, 1], [2, 1]])
"""nibabel's orientation of a volume that needs no turning."""
AS_SHOWN = (np.array([[2, 1], [0, 1], [1, -1]]), np.array([[0, 1], [2, 1], [1, -1]]), STRAIGHT)
"""Of a single slice across L, P or S: which of (x, y, z) each of L, P and S becomes, and with which sign."""


def picture(values: np.ndarray, place: np.ndarray | None, spacing: np.ndarray | None) -> Picture:
    """The picture of a file's array; `place` and `spacing` have been checked.

    Args:
        values: [x, y, C] or [x, y, z, C], the file's axes in its order, then channels.
        place: [4, 4], from (x, y, z, 1) to mm left, posterior, superior; None where it is not known.
        spacing: mm along the file's axes, NaN where it is not known; None where none of it is.
    """
    turn = _turn(values.shape[:-1], place)
    if turn is not None:
        place = place @ inv_ornt_aff(turn, values.shape[:3])
        values = apply_orientation(values, turn)
        spacing = None if spacing is None else spacing[np.argsort(turn[:, 0])]
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
    turn = _turn(sizes, place)
    if turn is not None:
        sizes = tuple(sizes[axis] for axis in np.argsort(turn[:, 0]))
    return (channels, *sizes[::-1])


def turned_back(maps: np.ndarray, sizes: tuple[int, ...], place: np.ndarray | None) -> np.ndarray:
    """The inverse of `picture`, to the very voxel: [K, D, H, W] or [K, H, W] in the store's axes to [x, y, z, K] or
    [x, y, K] in the file's, whose sizes in space and whose place these are."""
    values = maps.transpose(*range(maps.ndim)[::-1])
    turn = _turn(sizes, place)
    return values if turn is None else apply_orientation(values, ornt_transform(STRAIGHT, turn))


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


def place_of(
    columns: Sequence[np.ndarray] | np.ndarray, origin: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where axes lie, and the spacing along them.

    Args:
        columns: mm left, posterior, superior from a voxel to the next one along each axis of a file. Where the third
            is missing or zero (a single slice of unknown thickness) it is upright to the others and 1 mm long.
        origin: [3], the middle of the first voxel.

    Returns:
        [4, 4], from (x, y, z, 1) to mm; and mm along as many axes as there are columns, NaN where one is zero.
    """
    place, spacing = np.eye(4), np.linalg.norm(columns, axis=1)
    place[:3, : len(columns)], place[:3, 3] = np.transpose(columns), origin
    if not place[:3, 2].any() or len(columns) == 2:
        normal = np.cross(columns[0], columns[1])
        place[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
        spacing[2:] = np.nan
    return place, spacing


def check(path: Path, place: np.ndarray | None, spacing: np.ndarray | None) -> None:
    """Raises DataError where they make no sense; only the thickness of a slice may be unknown (NaN)."""
    if place is not None and (not np.isfinite(place).all() or np.linalg.matrix_rank(place) < 4):
        raise DataError(f"{path}: the directions of its axes make no sense: {place[:3, :3].tolist()}")
    if spacing is not None and not all(0 < mm < np.inf or (np.isnan(mm) and axis == 2)
                                       for axis, mm in enumerate(spacing)):  # fmt: skip
        raise DataError(f"{path}: its spacing is {list(map(float, spacing))}; expected positive numbers, in mm")


def _turn(sizes: tuple[int, ...], place: np.ndarray | None) -> np.ndarray | None:
    """[3, 2], nibabel's orientation by which a volume of these sizes is turned; None where it stays as it lies."""
    if place is None or len(sizes) != 3:
        return None
    turn = io_orientation(place).astype(int)
    if sizes.count(1) != 1:
        return turn
    shown = AS_SHOWN[turn[sizes.index(1), 0]][turn[:, 0]]
    return np.column_stack([shown[:, 0], shown[:, 1] * turn[:, 1]])
