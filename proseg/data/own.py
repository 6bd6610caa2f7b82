"""A user's own images, annotated by several raters: a manifest (`own_manifest`) or a folder (`own_folder`).

2-D files make slices, 3-D files volumes that are cut along z (`images.orientation`). Intensities stay as they are if a
window is given, whole numbers as int16; without one, each channel of each file is brought to zero mean and unit
variance. Images of 8 bits are kept so. Images of another size are cut or filled up about their centre with the least
value of each channel (masks: background), or zoomed, images linearly, masks to the nearest pixel. Any height and width
will do for the model.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from proseg.data import frame, images, intensities, own_folder, own_manifest
from proseg.data.case import Slice
from proseg.data.images.channels import check_place, joined, joined_header, size_of, with_depth
from proseg.data.images.picture import Header, Kind, Picture
from proseg.data.own_files import Entry, Inventory, check, check_file
from proseg.data.source import Part, Source, identity_of
from proseg.data.store import Description
from proseg.errors import ConfigError, DataError

FORMAT = 1
"""Raise it when the same files and options would give other slices."""
SLICES_AT_ONCE = 64
BYTES_AT_ONCE = 2**26
"""Of 2-D images that are read as one part, as they are kept."""
LABEL = "images of one's own"
EACH_ITS_OWN = "each image taken for a patient of its own"
LICENCE = "not stated"

Fit = Literal["crop", "zoom"]


@dataclass(frozen=True)
class Reading:
    """How entries become slices."""

    raters: tuple[str, ...]
    classes: int
    size: tuple[int, int] | None
    fit: Fit
    dtype: Literal["uint8", "int16", "float32"]
    """uint8: as they were taken; int16: whole numbers, of which only those beyond the window may be clipped."""
    normalise: bool
    """To zero mean and unit variance: uint8 when they are used, float32 here."""
    sorted_raters: bool


def source(
    path: Path,
    *,
    name: str,
    size: tuple[int, int] | None,
    fit: Fit,
    classes: int,
    window: tuple[float, float] | None,
    sorted_raters: bool,
    label: str | None,
    licence: str | None,
) -> Source:
    """Look at a data set of one's own: every file is found and every image's header read, no pixel.

    Args:
        path: a manifest (.csv, .parquet), or a folder with images/ and masks/<rater>/.
        size: (height, width) of the slices; None takes them as they are, which must be alike.
        fit: what brings an image to that size.
        classes: of foreground; masks hold the labels 0 to this, or 0 and 255 where it is one.
        window: intensities that are mapped to -1..1; None normalises each file.
        sorted_raters: raters are nobody in particular: sort them by area, in each 2-D image or volume, missing last.
        label: what whoever sees a result must know of the data.

    Raises:
        ConfigError: an option is not allowed.
        DataError: naming the file or row, and the rater where it is one.
    """
    _check_options(size, classes, window)
    found = _inventory(path)
    headers = [_header(entry) for entry in found.entries]
    unit = _check_alike(found, headers, size)
    entries = _in_order(found.entries)
    description = Description(
        name=name, label=_label(label, found), licence=licence or LICENCE, unit=unit, sorted_raters=sorted_raters,
        window=window, classes=classes,
    )  # fmt: skip
    reading = Reading(found.raters, classes, size, fit, _dtype(headers, window), window is None, sorted_raters)
    options = {"own": FORMAT, "description": description.model_dump_json(), "size": size, "fit": fit}
    return Source(
        description=description,
        parts=tuple(_parts(entries, unit, _bytes_of_slice(headers[0], size, len(found.raters)))),
        read=partial(read, reading=reading),
        identity=identity_of(found.files, **options),
        folds=None if found.fold is None else (found.fold,),
        raters=() if sorted_raters else found.raters,
        channels=found.channels,
        framing=None if size is None else "crop" if fit == "crop" else "zoom_linear",
    )


def read(part: Sequence[Entry], *, reading: Reading) -> Part:
    """The slices of these entries.

    Raises:
        DataError: naming the file, and for a mask the row or image and the rater.
    """
    found = [_slices(entry, reading) for entry in part]
    return Part(tuple(one for slices, _ in found for one in slices), clipped=sum(clipped for _, clipped in found))


# What is known before a pixel is read


def _check_options(size: tuple[int, int] | None, classes: int, window: tuple[float, float] | None) -> None:
    if size is not None and min(size) < 1:
        raise ConfigError(f"a size of {size[0]} x {size[1]} is not possible: both must be at least 1")
    if not 1 <= classes <= 255:
        raise ConfigError(f"{classes} classes are not possible: from 1 to 255")
    if window is not None and not window[0] < window[1]:
        raise ConfigError(f"the window {window[0]:g} to {window[1]:g} is empty: its lower end comes first")


def _inventory(path: Path) -> Inventory:
    path = Path(path).absolute()
    if path.is_dir():
        found = own_folder.inventory(path)
    elif path.suffix.lower() in (".csv", ".parquet"):
        found = own_manifest.inventory(path)
    else:
        check_file(path, "own data")
        raise DataError(f"{path}: expected a manifest (.csv, .parquet), or a folder with images/ and masks/<rater>/")
    check(found)
    return found


def _header(entry: Entry) -> Header:
    """Of the image, whose channels may lie in several files."""
    return joined_header([*map(str, entry.images)], [*map(images.look, entry.images)], f"{entry.where}: ")


def _check_alike(found: Inventory, headers: Sequence[Header], size: tuple[int, int] | None) -> Kind:
    """Whether the files are slices or volumes; all of them must be the same, and alike."""
    unit: Kind = "volume" if any((header.depth or 1) > 1 for header in headers) else "slice"
    first = headers[0]
    for entry, header in zip(found.entries, headers, strict=True):
        path = entry.images[0]
        if unit == "volume" and header.depth is None:
            raise DataError(f"{path}: is 2-D, while other images are volumes; prepare them as two data sets")
        if unit == "volume" and entry.number is not None:
            raise DataError(f"{entry.where}: {path} is a volume and has a slice number; only 2-D images have one")
        if header.channels != first.channels:
            raise DataError(
                f"{path}: has {header.channels} channels, but {found.entries[0].images[0]} has {first.channels}"
            )
        if size is None and (header.height, header.width) != (first.height, first.width):
            raise DataError(_propose_size(found.entries, headers))
    if unit == "volume":
        _check_volumes_once(found.entries)
    return unit


def _propose_size(entries: Sequence[Entry], headers: Sequence[Header]) -> str:
    sizes = [(header.height, header.width) for header in headers]
    other = next(i for i, size in enumerate(sizes) if size != sizes[0])
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return (
        f"{entries[other].images[0]}: is {size_of(headers[other])}, but {entries[0].images[0]} is "
        f"{size_of(headers[0])}; say what all shall have, as in --size {height}x{width}, which cuts nothing off"
    )


def _check_volumes_once(entries: Iterable[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.volume, entry)
        if other is not entry:
            raise DataError(f"{entry.where}: volume {entry.volume!r} stands there a second time, after {other.where}")


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    """The slices of a volume together and ascending; volumes as they came."""
    volumes: dict[str, list[Entry]] = {}
    for entry in entries:
        volumes.setdefault(entry.volume, []).append(entry)
    return [entry for volume in volumes.values() for entry in _ascending(volume)]


def _ascending(volume: Sequence[Entry]) -> Sequence[Entry]:
    """By their numbers; slices without are numbered as they came."""
    if len(volume) > 1 and volume[0].number is None:
        return [replace(entry, number=float(place)) for place, entry in enumerate(volume)]
    return sorted(volume, key=lambda entry: entry.number or 0.0)


def _dtype(headers: Sequence[Header], window: tuple[float, float] | None) -> Literal["uint8", "int16", "float32"]:
    """As small as it can be, with nothing lost that counts: what lies beyond a window is clipped anyway."""
    if all(np.can_cast(header.dtype, np.uint8) for header in headers):
        return "uint8"
    within = window is not None and intensities.INT16.min <= window[0] and window[1] <= intensities.INT16.max
    return "int16" if within and all(header.whole for header in headers) else "float32"


def _label(label: str | None, found: Inventory) -> str:
    """Folds that may part one patient's images are what a reader must know of."""
    label = label or LABEL
    return label if found.patients_known else f"{label}; {EACH_ITS_OWN}"


def _bytes_of_slice(header: Header, size: tuple[int, int] | None, raters: int) -> int:
    """Of a slice as it is read, before it is brought to its size, or after, whichever is more."""
    pixels = max(header.height * header.width, size[0] * size[1] if size else 0)
    return pixels * (4 * header.channels + raters)


def _parts(entries: Sequence[Entry], unit: str, size: int) -> Iterator[tuple[Entry, ...]]:
    count = 1 if unit == "volume" else max(1, min(SLICES_AT_ONCE, BYTES_AT_ONCE // size))
    for start in range(0, len(entries), count):
        yield tuple(entries[start : start + count])


# What is read


def _slices(entry: Entry, reading: Reading) -> tuple[list[Slice], int]:
    """Of one image, and how many of its pixels were clipped."""
    _check_masks(entry, reading)
    picture = _picture(entry)
    pixels, moments, clipped = _intensities(entry, with_depth(picture.pixels), reading)
    masks = _masks(entry, picture, reading)
    present = np.array([mask is not None for mask in entry.masks])
    if reading.sorted_raters:
        masks, present = _by_area(masks, present)
    spacing = picture.spacing or (math.nan, math.nan, math.nan)
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


def _picture(entry: Entry) -> Picture:
    """The image, its channels put together."""
    return joined([*map(str, entry.images)], [*map(images.read, entry.images)], f"{entry.where}: ")


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


def _check_masks(entry: Entry, reading: Reading) -> None:
    """What the headers say, compared before anything is unpacked: a small file may claim to be a large mask."""
    image = _header(entry)
    for place, path in enumerate(entry.masks):
        if path is None:
            continue
        mask, where = images.look(path), _where(path, reading.raters[place], entry)
        if mask.channels != 1:
            raise DataError(f"{where} has {mask.channels} channels; a mask has one")
        if _volume(mask) != _volume(image):
            raise DataError(
                f"{where} is {size_of(mask)}, but {entry.images[0]} is {size_of(image)}; a mask has the size of its "
                "image"
            )


def _where(path: Path, rater: str, entry: Entry) -> str:
    return f"{path}: the mask of rater {rater!r} in {entry.where}"


def _volume(header: Header) -> tuple[int, int, int]:
    return header.depth or 1, header.height, header.width


def _masks(entry: Entry, picture: Picture, reading: Reading) -> np.ndarray:
    """[R, D, H, W] bool, or uint8 labels; zeros where a rater is missing."""
    shape = with_depth(picture.pixels).shape[1:]
    masks = np.zeros((len(entry.masks), *shape), bool if reading.classes == 1 else np.uint8)
    for place, path in enumerate(entry.masks):
        if path is not None:
            where = _where(path, reading.raters[place], entry)
            masks[place] = _labels(where, _mask_of(where, path, picture, entry), reading.classes)
    return masks


def _mask_of(where: str, path: Path, picture: Picture, entry: Entry) -> np.ndarray:
    """[D, H, W], as the file has it, at the place of its image."""
    mask = images.read(path)
    check_place(where, picture, mask, str(entry.images[0]))
    return with_depth(mask.pixels)[0]


def _labels(where: str, mask: np.ndarray, classes: int) -> np.ndarray:
    """[D, H, W] bool or uint8, checked."""
    if not _are_labels(mask, classes):
        allowed = "0 and 1, or 0 and 255" if classes == 1 else f"0 to {classes}"
        wrong = mask[~np.isin(mask, np.arange(classes + 1))]
        more = "; if there are more classes, say so with --classes" if np.isin(wrong, np.arange(256)).all() else ""
        raise DataError(f"{where} has {wrong.size} pixels other than {allowed}, the first is {wrong[0]}{more}")
    return mask != 0 if classes == 1 else mask.astype(np.uint8)


def _are_labels(mask: np.ndarray, classes: int) -> bool:
    if mask.dtype.kind in "iub" and mask.min() >= 0 and mask.max() <= classes:  # by far the fastest
        return True
    binary = classes == 1 and np.isin(mask, (0, 255)).all()
    return bool(binary or np.isin(mask, np.arange(classes + 1)).all())


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
