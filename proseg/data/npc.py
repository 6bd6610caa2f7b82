"""The NPC data set: the HDF5 layout of MMIS-2024 task 1 (NPC-170), multi-modal MR of the nasopharynx with four raters.

    training/Sample_<i>.h5                volumes: t1, t1c, t2, label_a1, label_a2, ..., voxel_spacing
    training_2d/Sample_<i>_slice_<k>.h5   the training volumes again, slice by slice
    validation/Sample_<i>.h5              volumes
    testing/Sample_<i>.h5                 volumes; not in the public release

`training_2d` is never read. It is cut from all training volumes, so that it keeps the slices of volumes which the
split holds out: training on it leaks the validation set. The slices come from the volumes of each part instead.

Shapes: C modalities, R raters, D slices, H rows, W columns.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from proseg.data.case import Slice
from proseg.data.folds import Fold
from proseg.data.frame import crop_or_pad, zoom_nearest, zoomed_spacing
from proseg.data.images.picture import MOST_BYTES
from proseg.data.manifest import Description
from proseg.data.source import Part, Source, identity_of
from proseg.data.writer import MIN_RATERS
from proseg.errors import DataError

LABEL = "NPC (MMIS-2024 task 1)"
STANDIN_LABEL = "NPC stand-in: synthetic volumes, no patient, no expert"
DESCRIPTION = Description(
    name="npc", label=LABEL, licence="terms of MMIS-2024", unit="volume", sorted_raters=False, window=None
)
STANDIN_DESCRIPTION = DESCRIPTION.model_copy(
    update={"name": "npc-standin", "label": STANDIN_LABEL, "licence": "none needed: synthetic"}
)

CHANNELS = ("t1", "t1c", "t2")
SPACING = "voxel_spacing"
STANDIN = "standin"
"""HDF5 attribute that marks a synthetic file."""

NUMERIC_KINDS = "fiub"
"""numpy dtype kinds: float, signed and unsigned integer, bool."""

DAMAGE = (OSError, KeyError, RuntimeError, ValueError)
"""What h5py raises over damaged bytes, depending on what they stood for."""

PUBLISHED_FOLDER = "MMIS2024TASK1"


@dataclass(frozen=True)
class NpcFiles:
    """The volume files of each part, in numeric order."""

    folder: Path
    """The folder that holds `training/`."""
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    standin: bool
    """Synthetic volumes: whatever is made from them must carry STANDIN_LABEL."""


@dataclass(frozen=True)
class NpcVolume:
    """One examination with the masks of all its raters."""

    images: np.ndarray
    """[C, D, H, W] float32, in the order of CHANNELS, as stored: zero mean and unit variance over the volume."""
    labels: np.ndarray
    """[R, D, H, W] bool; rater r is `label_a<r + 1>`, a person, hence never sorted."""
    voxel_spacing: tuple[float, float, float]
    """(z, y, x) in mm; ones where the file does not say."""
    standin: bool


def find(folder: Path) -> NpcFiles:
    """The volumes of `folder`, or of `folder/MMIS2024TASK1`, split by subject.

    Where `testing/` holds volumes, each folder is its part. Where it does not, as in the public release (100 training
    and 20 validation volumes), the split is the paper's 80/20/20: the last fifth of training becomes validation, and
    `validation/` serves as test. Apart from the names, only the first training volume is looked into.
    """
    root = _root(folder)
    training, validation = _some_volumes(root / "training"), _some_volumes(root / "validation")
    testing = _volumes(root / "testing")
    if not testing:
        testing = validation
        training, validation = _hold_out_last_fifth(training)
    return NpcFiles(root, training, validation, testing, standin=is_standin(training[0]))


def is_standin(path: Path) -> bool:
    """Whether this file was written by the stand-in generator."""
    with _opened(path) as file:
        return STANDIN in file.attrs


def read_volume(path: Path) -> NpcVolume:
    """Read and check one volume; raises DataError, with the file and the key, where it is not what it claims to be."""
    with _opened(path) as file:
        label_keys = _label_keys(file)
        found = {key: _dataset(file, key) for key in (*CHANNELS, *label_keys)}
        _check_shapes(path, found)
        arrays = {key: _array(file, key) for key in found}
        spacing, standin = _spacing(file), STANDIN in file.attrs

    images = [_finite(path, key, arrays[key]) for key in CHANNELS]
    labels = [_binary(path, key, arrays[key]) for key in label_keys]
    return NpcVolume(np.stack(images), np.stack(labels), spacing, standin)


def patient_of(path: Path) -> str:
    """The patient of a volume file: "training/Sample_12". Whether the parts of a release share one numbering is not
    documented, so the part belongs to the name."""
    return f"{path.parent.name}/{path.stem}"


def source(folder: Path, *, size: tuple[int, int] = (128, 128), fit: Literal["crop", "zoom"] = "crop") -> Source:
    """The volumes of `folder` as a source of slices of `size` (H, W), split by subject as `find` says.

    Args:
        fit: "crop" cuts the centre out, as the paper says, and pads what is smaller. "zoom" squeezes the whole slice
            to the size by the nearest pixel, as the published loaders do, which makes a millimetre something else in
            each patient and direction.

    Raises:
        DataError: the layout is not there, or its first volume cannot be read.
    """
    found = find(folder)
    parts = {name: tuple(map(patient_of, getattr(found, name))) for name in ("train", "val", "test")}
    files = (*found.train, *found.val, *found.test)
    with _opened(found.train[0]) as file:
        raters = tuple(key.removeprefix("label_") for key in _label_keys(file))
    return Source(
        description=STANDIN_DESCRIPTION if found.standin else DESCRIPTION,
        parts=files,
        read=partial(read_part, size=size, fit=fit, standin=found.standin, raters=len(raters)),
        identity=identity_of(files, source="npc", size=size, fit=fit),
        folds=(Fold(0, **parts),),
        raters=raters,
        channels=CHANNELS,
        framing="crop" if fit == "crop" else "zoom_nearest",
    )


def read_part(path: Path, *, size: tuple[int, int], fit: Literal["crop", "zoom"], standin: bool, raters: int) -> Part:
    """Every slice of a volume, the empty ones included, in ascending z.

    Raises:
        DataError: the volume is not what it claims to be, has not as many raters as the others, or is a stand-in among
            real ones, or the reverse.
    """
    volume = read_volume(path)
    if len(volume.labels) != raters:
        first = min(len(volume.labels), raters) + 1
        which = f"no key 'label_a{first}'" if first <= raters else f"a key 'label_a{first}'"
        raise DataError(f"{path}: has {which}, but the first training volume has {raters} raters")
    if volume.standin != standin:  # neither label would be true of the result
        raise DataError(f"{path}: stand-in and real volumes are mixed in {path.parent}; keep them in two folders")
    images, labels, spacing = _fitted(volume, size, fit)
    name = patient_of(path)
    return Part(tuple(
        Slice(
            image=np.ascontiguousarray(images[:, index]),
            annotations=np.ascontiguousarray(labels[:, index]),
            rater_mask=np.ones(len(labels), dtype=bool),
            patient=name, volume=name, z=index * spacing[0], spacing=spacing,
        )
        for index in range(images.shape[1])
    ))  # fmt: skip


def _fitted(
    volume: NpcVolume, size: tuple[int, int], fit: Literal["crop", "zoom"]
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Images [C, D, *size], labels [R, D, *size], and the spacing (z, y, x) they have now."""
    if fit == "zoom":
        images, labels = zoom_nearest(volume.images, *size), zoom_nearest(volume.labels, *size)
        height, width = volume.images.shape[-2:]
        return images, labels, zoomed_spacing(volume.voxel_spacing, (height, width), *size)
    background = volume.images.min(axis=(1, 2, 3), keepdims=True)
    return crop_or_pad(volume.images, *size, background), crop_or_pad(volume.labels, *size), volume.voxel_spacing


# The folder


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the folder that holds {PUBLISHED_FOLDER}/ or training/")
    for root in (folder, folder / PUBLISHED_FOLDER):
        if (root / "training").is_dir():
            return root
    raise DataError(f"{folder}: expected training/ with volumes Sample_<i>.h5, here or below {PUBLISHED_FOLDER}/")


def _volumes(folder: Path) -> tuple[Path, ...]:
    """The volume files of one part in numeric order; none where there is no such folder."""
    if not folder.is_dir():
        return ()
    try:
        files = sorted(folder.iterdir())  # glob would take a folder that must not be read for an empty one
    except PermissionError:
        raise DataError(f"{folder}: no permission to list it; ask its owner, or `chmod u+rx` it") from None
    found = ((re.fullmatch(r"Sample_(\d+)\.h5", path.name), path) for path in files)
    return tuple(path for _, path in sorted((int(match[1]), path) for match, path in found if match))


def _some_volumes(folder: Path) -> tuple[Path, ...]:
    volumes = _volumes(folder)
    if not volumes:
        raise DataError(f"{folder}: expected volumes Sample_<i>.h5 in this folder, found none")
    return volumes


def _hold_out_last_fifth(training: tuple[Path, ...]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    held_out = max(1, len(training) // 5)
    if held_out == len(training):
        raise DataError(
            f"{training[0].parent}: expected at least 2 volumes, found 1; "
            "without testing/ the last fifth of them becomes the validation set"
        )
    return training[:-held_out], training[-held_out:]


# One file


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading. Only calls of h5py belong under it: their errors are taken for damage."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except PermissionError:
        raise DataError(f"{path}: no permission to read it; ask its owner, or `chmod u+r` it") from None
    except OSError as error:
        raise DataError(f"{path}: not an HDF5 file, or cut short: {error}") from error
    with file:
        try:
            yield file
        except DAMAGE as error:
            raise DataError(f"{path}: the file is damaged: {error}") from error


def _dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """What lies under `key`, not read: numbers of any type, as that of the real files is not documented, in this file.

    A file that says where else its pixels lie would have any file read that its reader may read.
    """
    if key not in file and file.get(key, getlink=True) is None:
        raise DataError(f"{file.filename}: no key '{key}'; found {', '.join(sorted(file)) or 'none'}")
    with _damage_of(file, key):
        item = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
        elsewhere = item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual))
    if elsewhere:
        raise DataError(f"{file.filename}: '{key}' is a link, or leads to another file; store the array itself there")
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in NUMERIC_KINDS:
        raise DataError(f"{file.filename}: '{key}' is not an array of numbers")
    return item


def _array(file: h5py.File, key: str) -> np.ndarray:
    """The numbers under `key`."""
    item = _dataset(file, key)
    with _damage_of(file, key):
        return np.asarray(item[()])


@contextmanager
def _damage_of(file: h5py.File, key: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise DataError(f"{file.filename}: '{key}' cannot be read, the file is damaged: {error}") from error


def _label_keys(file: h5py.File) -> tuple[str, ...]:
    """label_a1 to the highest that is there, so that a gap is noticed as a missing key."""
    numbers = [int(match[1]) for match in (re.fullmatch(r"label_a(\d{1,3})", key) for key in map(str, file)) if match]
    return tuple(f"label_a{number}" for number in range(1, max([MIN_RATERS, *numbers]) + 1))


def _spacing(file: h5py.File) -> tuple[float, float, float]:
    if SPACING not in file:
        return (1.0, 1.0, 1.0)
    count = _dataset(file, SPACING).size
    values = _array(file, SPACING).ravel().astype(float) if count == 3 else np.zeros(0)
    if count != 3 or not np.isfinite(values).all() or values.min() <= 0:
        raise DataError(
            f"{file.filename}: '{SPACING}' is {values.tolist() or f'{count} numbers'}; expected three positive numbers "
            "(z, y, x), in mm"
        )
    z, y, x = values.tolist()
    return z, y, x


def _check_shapes(path: Path, arrays: Mapping[str, h5py.Dataset]) -> None:
    first, expected = CHANNELS[0], arrays[CHANNELS[0]].shape
    if len(expected) != 3 or 0 in expected:
        raise DataError(f"{path}: '{first}' has shape {expected}; expected three axes [z, y, x], none of them empty")
    for key, array in arrays.items():
        if array.shape != expected:
            raise DataError(f"{path}: '{key}' has shape {array.shape}, but '{first}' has {expected}")
    claimed = sum(map(_claimed, arrays.values()))
    if claimed > MOST_BYTES:
        raise DataError(
            f"{path}: claims {claimed / 2**30:.1f} GiB of pixels in arrays of shape {expected}; at most "
            f"{MOST_BYTES / 2**30:.0f} GiB are read from one volume"
        )


def _claimed(array: h5py.Dataset) -> int:
    """Bytes that reading it takes: of all its pixels, or of one piece that it is packed in, if that is larger."""
    return max(math.prod(array.shape), math.prod(array.chunks or ())) * array.dtype.itemsize


def _finite(path: Path, key: str, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which is reported below
        image = values.astype(np.float32)
    bad = image.size - np.count_nonzero(np.isfinite(image))
    if bad:
        raise DataError(f"{path}: '{key}' has {bad} pixels that are NaN or infinite")
    return image


def _binary(path: Path, key: str, values: np.ndarray) -> np.ndarray:
    other = values[(values != 0) & (values != 1)]
    if other.size:
        raise DataError(f"{path}: '{key}' has {other.size} pixels other than 0 and 1, the first is {other[0]}")
    return values == 1
