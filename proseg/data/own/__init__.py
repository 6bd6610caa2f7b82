"""A user's own images, annotated by several raters: by a manifest, in a folder, or as patterns of paths tell.

2-D files make slices, 3-D files volumes that are cut along z (`images.orientation`). Intensities stay as they are if a
window is given, whole numbers as int16; without one, each channel of each file is brought to zero mean and unit
variance. Images of 8 bits are kept so. Images of another size are cut or filled up about their centre with the least
value of each channel (masks: background), or zoomed, images linearly, masks to the nearest pixel. Any height and width
will do for the model.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from proseg.data import images, intensities
from proseg.data.images.channels import joined_header, size_of
from proseg.data.images.picture import Header, Kind
from proseg.data.kinds import Choices
from proseg.data.own import folder, manifest, patterns
from proseg.data.own.entries import Entry, Inventory, check, check_file
from proseg.data.own.masks import Meaning
from proseg.data.own.reading import Reading, mask_of, read
from proseg.data.reading import Track, silent
from proseg.data.source import Source, identity_of
from proseg.data.store import Description
from proseg.data.tables import SUFFIXES
from proseg.errors import ConfigError, DataError, Faults

FORMAT = 2
"""Raise it when the same files and options would give other slices."""
SLICES_AT_ONCE = 64
BYTES_AT_ONCE = 2**26
"""Of 2-D images that are read as one part, as they are kept."""
MANY = 1000
"""Images whose headers take a while to read."""
LABEL = "images of one's own"
EACH_ITS_OWN = "each image taken for a patient of its own"
LICENCE = "not stated"


def source(path: Path, name: str, choices: Choices, track: Track = silent) -> Source:
    """Look at a data set of one's own: every file is found and every header read, masks' too, no pixel.

    Args:
        path: a manifest (.csv, .parquet), a folder with images/ and masks/<rater>/, or one whose layout patterns tell.
        track: shows the progress where there are many files.

    Raises:
        ConfigError: an option is not allowed.
        DataError: naming the files or rows that are at fault, and the rater where it is one.
    """
    _check_options(choices)
    found = _inventory(path, choices)
    notes: Counter[str] = Counter()
    headers, unit = _headers(found, choices, notes, track if len(found.entries) > MANY else silent)
    entries = _in_order(found.entries)
    if choices.write_manifest is not None:
        manifest.write(found, choices.write_manifest)
    window, size, fit = choices.window, choices.size, choices.fit or "crop"
    description = Description(
        name=name,
        label=_label(choices.label, found),
        licence=choices.licence or LICENCE,
        unit=unit,
        sorted_raters=choices.sorted_raters,
        window=window,
        classes=choices.classes or 1,
    )
    reading = Reading(
        raters=found.raters,
        masks=Meaning(description.classes, choices.threshold, choices.invert, choices.empty_is_missing),
        axes=choices.axes,
        spacing=(None, None, None, *(choices.spacing or ()))[-3:],
        size=size,
        fit=fit,
        dtype=_dtype(headers, window),
        normalise=window is None,
        sorted_raters=choices.sorted_raters,
    )
    options = {"own": FORMAT, "description": description.model_dump_json(), "reading": repr(reading)}
    return Source(
        description=description,
        parts=tuple(_parts(entries, unit, _bytes_of_slice(headers[0], size, len(found.raters)))),
        read=partial(read, reading=reading),
        identity=identity_of(found.files, **options),
        folds=None if found.fold is None else (found.fold,),
        skipped=found.skipped,
        raters=() if choices.sorted_raters else found.raters,
        channels=found.channels,
        framing=None if size is None else "crop" if fit == "crop" else "zoom_linear",
        notes=tuple(f"{note} ({count} file{'s' * (count > 1)})" for note, count in notes.items()),
    )


def _check_options(choices: Choices) -> None:
    size, window = choices.size, choices.window
    classes = 1 if choices.classes is None else choices.classes
    if size is not None and min(size) < 1:
        raise ConfigError(f"a size of {size[0]} x {size[1]} is not possible: both must be at least 1")
    if not 1 <= classes <= 255:
        raise ConfigError(f"{classes} classes are not possible: from 1 to 255")
    if window is not None and not window[0] < window[1]:
        raise ConfigError(f"the window {window[0]:g} to {window[1]:g} is empty: its lower end comes first")
    if choices.threshold is not None and not np.isfinite(choices.threshold):
        raise ConfigError(f"--threshold {choices.threshold} is no number that a mask can reach")
    if classes > 1 and (choices.invert or choices.threshold is not None):
        raise ConfigError("--threshold and --invert tell one object from its background; they do not go with --classes")
    if (choices.images is None) != (not choices.masks):
        raise ConfigError("--images and --masks go together: a pattern of the images' paths, and one of the masks'")


def _inventory(path: Path, choices: Choices) -> Inventory:
    path = Path(path).absolute()
    if choices.root is not None and (path.is_dir() or not choices.root.is_dir()):
        raise DataError(
            f"--root {choices.root}: is the folder below which the files of a manifest lie; "
            + ("there is no manifest" if path.is_dir() else "there is no such folder")
        )
    if choices.images is not None:
        if not path.is_dir():
            raise DataError(f"{path}: is no folder; --images and --masks are patterns of the paths in a folder")
        found = patterns.inventory(path, choices.images, choices.masks)
    elif path.is_dir():
        found = folder.inventory(path)
    elif path.suffix.lower() in SUFFIXES:
        found = manifest.inventory(path, (choices.root or path.parent).absolute())
    else:
        check_file(path, "own data")
        raise DataError(f"{path}: expected a manifest (.csv, .parquet), or a folder with images/ and masks/<rater>/")
    found = found.without(choices.drop_rater)
    check(found, as_written=choices.as_written)
    return found


def _headers(found: Inventory, choices: Choices, notes: Counter[str], track: Track) -> tuple[list[Header], Kind]:
    """Headers of the images, and whether they are slices or volumes; the masks' headers fit them."""
    images.check_axes(found.files, choices.axes)
    headers, faults = [], Faults()
    for entry in track(found.entries, len(found.entries), "Looking at the images"):
        with faults.caught():
            each = [images.look(path, axes=images.axes_of(path, choices.axes)) for path in entry.images]
            headers.append(joined_header([*map(str, entry.images)], each, f"{entry.where}: "))
            notes.update(headers[-1].notes)
    faults.check()
    unit: Kind = "volume" if any((header.depth or 1) > 1 for header in headers) else "slice"
    with faults.caught():
        _check_alike(found, headers, unit, choices.size)
    for entry, image in track(list(zip(found.entries, headers, strict=True)), len(headers), "Looking at their masks"):
        for rater, path in zip(found.raters, entry.masks, strict=True):
            if path is not None:
                with faults.caught():
                    mask = images.look(path, axes=images.axes_of(path, choices.axes), mask=True)
                    _check_mask(mask_of(path, rater, entry), mask, entry, image)
                    notes.update(mask.notes)
    faults.check()
    return headers, unit


def _volume(header: Header) -> tuple[int, int, int]:
    return header.depth or 1, header.height, header.width


def _check_mask(where: str, mask: Header, entry: Entry, image: Header) -> None:
    if mask.channels != 1:
        raise DataError(f"{where} has {mask.channels} channels; a mask has one")
    if _volume(mask) != _volume(image):
        raise DataError(
            f"{where} is {size_of(mask)}, but {entry.images[0]} is {size_of(image)}; a mask has the size of its image"
        )


def _check_alike(found: Inventory, headers: Sequence[Header], unit: Kind, size: tuple[int, int] | None) -> None:
    """Raises DataError where not all files are slices, or volumes, of one size and number of channels."""
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
