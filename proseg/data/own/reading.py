"""What entries become: the slices of images, and of masks the labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from proseg.data import frame, images, intensities
from proseg.data.case import Slice
from proseg.data.images.channels import check_place, joined, with_depth
from proseg.data.images.picture import Picture
from proseg.data.kinds import Fit
from proseg.data.manifest import Skipped
from proseg.data.own.entries import Entry
from proseg.data.own.masks import Meaning
from proseg.data.source import Part
from proseg.errors import DataError, Faults

SAME_SPACING = 0.01
"""Share by which the spacing that a user names may differ from that of the file."""

Where = tuple[float, float, float]


@dataclass(frozen=True)
class Reading:
    """How entries become slices."""

    raters: tuple[str, ...]
    masks: Meaning
    axes: str | None
    """Order of the axes of arrays, where the user says it."""
    spacing: tuple[float | None, ...]
    """(z, y, x) in mm of files that do not know theirs, as the user says it."""
    size: tuple[int, int] | None
    fit: Fit
    dtype: Literal["uint8", "int16", "float32"]
    """uint8: as they were taken; int16: whole numbers, of which only those beyond the window may be clipped."""
    normalise: bool
    """To zero mean and unit variance: uint8 when they are used, float32 here."""
    sorted_raters: bool


def read(part: Sequence[Entry], *, reading: Reading) -> Part:
    """The slices of these entries, and what was wrong with their files."""
    slices, skipped, clipped, faults = [], [], 0, Faults()
    for entry in part:
        with faults.caught():
            some, more = _slices(entry, reading)
            slices += some
            clipped += more
            if not some:
                skipped.append(Skipped(str(entry.images[0]), "all its masks are empty, so nobody annotated it"))
    return Part(tuple(slices), tuple(skipped), clipped, tuple(faults.sentences))


def mask_of(path: Path, rater: str, entry: Entry) -> str:
    return f"{path}: the mask of rater {rater!r} in {entry.where}"


def _slices(entry: Entry, reading: Reading) -> tuple[list[Slice], int]:
    """Slices of one image, none where nobody annotated it, and the number of its pixels that were clipped."""
    picture = _picture(entry, reading)
    pixels, moments, clipped = _intensities(entry, with_depth(picture.pixels), reading)
    masks, present = _masks(entry, picture, reading)
    if not present.any():
        return [], 0
    if reading.sorted_raters:
        masks, present = _by_area(masks, present)
    spacing = _spacing(entry, picture, reading)
    if reading.size is not None:
        pixels, masks, spacing = _framed(pixels, masks, spacing, reading)
    step = 1.0 if math.isnan(spacing[0]) else spacing[0]
    slices = [
        Slice(
            image=np.ascontiguousarray(pixels[:, index]),
            annotations=np.ascontiguousarray(masks[:, index]),
            rater_mask=present,
            patient=entry.patient,
            volume=entry.volume,
            z=(index if entry.number is None else entry.number) * step,
            spacing=spacing,
            moments=moments,
        )
        for index in range(pixels.shape[1])
    ]
    return slices, clipped


def _picture(entry: Entry, reading: Reading) -> Picture:
    """The image, its channels put together."""
    each = [images.read(path, axes=images.axes_of(path, reading.axes)) for path in entry.images]
    return joined([*map(str, entry.images)], each, f"{entry.where}: ")


def _spacing(entry: Entry, picture: Picture, reading: Reading) -> Where:
    """(z, y, x) in mm: that of the file, else of its row, else of the option; NaN where none of them says it."""
    known = [math.nan if length is None else length for length in picture.spacing or (None, None, None)]
    for axis, lengths in enumerate(zip(entry.spacing, reading.spacing, strict=True)):
        said = next((length for length in lengths if length is not None), None)
        if said is None:
            continue
        if abs(known[axis] - said) > SAME_SPACING * known[axis]:
            raise DataError(
                f"{entry.where}: {entry.images[0]} has a spacing of {known[axis]:g} mm along {'zyx'[axis]}, where "
                f"{said:g} mm are said; mend whichever is wrong"
            )
        known[axis] = known[axis] if known[axis] > 0 else said
    z, y, x = known
    return z, y, x


def _intensities(entry: Entry, pixels: np.ndarray, reading: Reading) -> tuple[np.ndarray, np.ndarray | None, int]:
    """As they are kept, [C, D, H, W]; the moments by which they will be standardised; how many were clipped."""
    if reading.dtype == "uint8":
        image = pixels.astype(np.uint8, copy=False)
        return image, intensities.moments(image) if reading.normalise else None, 0
    if reading.dtype == "int16":
        image, clipped = intensities.clipped(pixels)
        return image, None, clipped
    image = intensities.as_float32(pixels, entry.images[0])
    return intensities.standardised(image) if reading.normalise else image, None, 0


def _masks(entry: Entry, picture: Picture, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """[R, D, H, W] bool, or uint8 labels; zeros where a rater is missing. [R] bool: who is there."""
    shape = with_depth(picture.pixels).shape[1:]
    masks = np.zeros((len(entry.masks), *shape), bool if reading.masks.classes == 1 else np.uint8)
    present, faults = np.array([mask is not None for mask in entry.masks]), Faults()
    for place, path in enumerate(entry.masks):
        if path is None:
            continue
        where = mask_of(path, reading.raters[place], entry)
        with faults.caught():
            mask = images.read(path, axes=images.axes_of(path, reading.axes), mask=True)
            check_place(where, picture, mask, str(entry.images[0]))
            masks[place] = reading.masks.labels(where, with_depth(mask.pixels)[0])
            present[place] = not reading.masks.empty_is_missing or masks[place].any()
    faults.check()
    return masks, present


def _by_area(masks: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By ascending area, ties in the given order, missing raters last."""
    area = np.count_nonzero(masks, axis=(1, 2, 3))
    order = np.lexsort((area, ~present))
    return masks[order], present[order]


def _framed(
    pixels: np.ndarray, masks: np.ndarray, spacing: tuple[float, float, float], reading: Reading
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    assert reading.size is not None
    shape = pixels.shape[-2], pixels.shape[-1]
    if shape == reading.size:
        return pixels, masks, spacing
    if reading.fit == "crop":
        least = pixels.min((1, 2, 3), keepdims=True)
        return frame.crop_or_pad(pixels, *reading.size, least), frame.crop_or_pad(masks, *reading.size), spacing
    zoomed = frame.zoom_linear(pixels, *reading.size)
    zoomed = zoomed if reading.dtype == "float32" else np.rint(zoomed).astype(reading.dtype)
    return zoomed, frame.zoom_nearest(masks, *reading.size), frame.zoomed_spacing(spacing, shape, *reading.size)
