"""CT images in DICOM files: which images of wanted series a folder holds, in any layout, and one of them in HU.

File names and folders say nothing: a file is an image of a series because its header says so. Images are told apart by
their SOP instance UID; several files with the same one are copies of each other. Where a series has several images at
the same z (some of LIDC-IDRI do) the one with the lowest InstanceNumber counts, which is what pylidc settled on too.
"""

import os
import struct
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from proseg.data.reading import Track, silent
from proseg.data.source import Skipped
from proseg.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

AIR = -1000
"""HU of what lies outside of the image, or in its padding."""
SAME_PLACE = 0.1
"""mm: images and outlines whose z differs by no more lie in the same slice."""
LARGEST_SIDE = 4096
"""Rows or columns of an image that is read."""

INTRODUCTION, MAGIC = 1024, slice(128, 132)
"""Bytes read before pydicom is trusted with a file, and where among them `DICM` stands."""
DEFLATED = b"1.2.840.10008.1.2.1.99"
"""A transfer syntax that pydicom unpacks as a whole, however large, merely to read the header."""

MOSTLY = 0.9
"""Cosine from which on an axis of the image is taken for one of the patient's: gantries may be tilted by 25 degrees."""
HEADER = ("SOPInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "InstanceNumber")

DAMAGE = (
    AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OverflowError, RuntimeError, TypeError,
    ValueError, struct.error,
)  # fmt: skip
"""What pydicom and its decoders raise over damaged bytes, beside their own errors (a length may ask for gigabytes)."""


class Unusable(Exception):
    """Why an image cannot be used; its caller knows how to call the image."""


@dataclass(frozen=True)
class CtImage:
    """One image, not read yet."""

    z: float
    """mm"""
    copies: tuple[Path, ...]
    """Files that hold it."""


@dataclass(frozen=True)
class Found:
    """What a folder holds of the wanted series."""

    series: Mapping[str, tuple[CtImage, ...]]
    """By series instance UID, in ascending z; only series with an image."""
    skipped: tuple[Skipped, ...]
    """DICOM files whose header cannot be read or is incomplete."""
    files: int
    """All files looked at."""
    others: int
    """DICOM files of series that were not wanted."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """One image, read."""

    hu: np.ndarray
    """[H, W] int32, Hounsfield units, rows and columns as stored."""
    reversed_axes: tuple[int, ...]
    """Axes along which it runs against the standard axial orientation (patient's right at the left, front on top)."""
    spacing: tuple[float, float]
    """(y, x) in mm."""


class _Place(NamedTuple):
    """An image within its series, in the order in which they are taken."""

    z: float
    number: float
    uid: str


# The folder


def find_images(folder: Path, wanted: Collection[str], track: Track = silent) -> Found:
    """The images of the wanted series below `folder`, whatever the names of its files and folders.

    Args:
        wanted: series instance UIDs.
        track: shows the progress, by files.

    Raises:
        DataError: it is no folder, or it or something in it may not be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the one that holds the DICOM files")
    copies: dict[str, dict[_Place, list[Path]]] = defaultdict(lambda: defaultdict(list))
    skipped, others, files = [], 0, list(walk(folder))
    for path in track(files, len(files), "Looking for DICOM series"):
        try:
            uid, place = _header(path, wanted)
        except Unusable as error:
            skipped.append(Skipped(str(path), str(error)))
            continue
        if place is not None:
            copies[uid][place].append(path)
        elif uid:
            others += 1
    series = {uid: _one_at_each_z(places) for uid, places in copies.items()}
    return Found(series, tuple(skipped), len(files), others)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the same order everywhere; links to folders are followed, once each."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); change its permissions") from error

    seen = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(place, name)).is_file())


def _header(path: Path, wanted: Collection[str]) -> tuple[str, _Place | None]:
    """The series of a file and, if it is wanted, the place in it; "" where the file is no DICOM file.

    Raises:
        Unusable: it is one, but damaged.
    """
    from pydicom import dcmread

    with opened(path) as file:
        if not is_dicom(file, path):
            return "", None
        header = dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER))
        uid = str(header.get("SeriesInstanceUID", ""))
        if not uid:
            raise Unusable("its header has no SeriesInstanceUID, or was cut short")
        return uid, _place(header) if uid in wanted else None


def is_dicom(file: BinaryIO, path: Path) -> bool:
    """Whether it is one that can be looked into, by its first bytes; leaves the file at its beginning.

    Raises:
        Unusable: it is none, but is called one, or is packed as a whole.
    """
    introduction = file.read(INTRODUCTION)
    file.seek(0)
    if introduction[MAGIC] != b"DICM":
        if path.suffix.lower() == ".dcm":
            raise Unusable("not a DICOM file, or cut short")
        return False
    if DEFLATED in introduction:
        raise Unusable("it is deflated as a whole, which is not read: store it without compression")
    return True


def _place(header: "Dataset") -> _Place:
    position, number = header.get("ImagePositionPatient"), header.get("InstanceNumber")
    if position is None or len(position) != 3 or not np.isfinite([float(each) for each in position]).all():
        raise Unusable("its header has no ImagePositionPatient, or was cut short")
    return _Place(float(position[2]), np.inf if number is None else float(number), str(header.get("SOPInstanceUID")))


def _one_at_each_z(copies: Mapping[_Place, list[Path]]) -> tuple[CtImage, ...]:
    images: list[CtImage] = []
    for place in sorted(copies):
        if not images or place.z - images[-1].z > SAME_PLACE:
            images.append(CtImage(place.z, tuple(copies[place])))
    return tuple(images)


# One image


def read_pixels(copies: Sequence[Path]) -> Pixels:
    """The image that these files are copies of: from the first of them that is whole.

    Raises:
        Unusable: none is; says what is wrong with the first.
        DataError: a file cannot be opened.
    """
    reasons = []
    for path in copies:
        try:
            return _read(path)
        except Unusable as error:
            reasons.append(f"{path}: {error}")
    raise Unusable(reasons[0])


def _read(path: Path) -> Pixels:
    from pydicom import dcmread

    with opened(path) as file:
        if not is_dicom(file, path):
            raise Unusable("not a DICOM file, or cut short")
        image = dcmread(file)
        _check(image)
        return Pixels(hounsfield(image), _reversed_axes(image), pixel_spacing(image))


def _check(image: "Dataset") -> None:
    """Refuse what is no plain CT image, before its pixels are decoded."""
    for name in ("PixelData", "RescaleSlope", "RescaleIntercept", "ImageOrientationPatient", "PixelSpacing"):
        if image.get(name) is None:
            raise Unusable(f"it has no {name}, or was cut short")
    check_plain(image)
    if image.get("LossyImageCompression") == "01":
        raise Unusable("it was compressed with loss, so its pixels no longer are Hounsfield units")


def check_plain(image: "Dataset") -> None:
    """Raises Unusable where a header is not that of one grey slice of a plausible size."""
    height, width = int(image.Rows), int(image.Columns)
    if not 0 < min(height, width) <= max(height, width) <= LARGEST_SIDE:
        raise Unusable(f"it has {height} x {width} pixels")
    if int(image.get("NumberOfFrames") or 1) != 1 or int(image.SamplesPerPixel) != 1:
        raise Unusable("it holds several frames or colours, where one slice was expected")
    if image.PhotometricInterpretation != "MONOCHROME2":
        raise Unusable(f"its PhotometricInterpretation is {image.PhotometricInterpretation}, not MONOCHROME2")


def hounsfield(image: "Dataset") -> np.ndarray:
    """[H, W] int32, with air in the padding; raises Unusable where the numbers are none."""
    stored = image.pixel_array
    slope, intercept = rescaling(image)
    hu = np.rint(stored * slope + intercept)
    hu[_is_padding(image, stored)] = AIR
    if abs(hu).max() >= 2**31:
        raise Unusable(f"its pixels run from {hu.min():.0f} to {hu.max():.0f} HU")
    return hu.astype(np.int32)


def rescaling(image: "Dataset") -> tuple[float, float]:
    """Slope and intercept: what the stored numbers mean. Where nothing is said, they mean themselves."""
    slope, intercept = (image.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if not (np.isfinite([slope, intercept]).all() and slope):
        raise Unusable(f"its RescaleSlope is {slope} and its RescaleIntercept {intercept}")
    return slope, intercept


def _is_padding(image: "Dataset", stored: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels that the scanner did not see."""
    first = image.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    last = image.get("PixelPaddingRangeLimit", first)
    # Many headers give a negative value as the unsigned number with the same bits (63536 for -2000).
    low, high = sorted(_with_bits_of(int(value), stored.dtype) for value in (first, last))
    return (stored >= low) & (stored <= high)


def _with_bits_of(value: int, kind: np.dtype) -> int:
    bits = value % (1 << 8 * kind.itemsize)
    return int(np.array(bits, f"u{kind.itemsize}").view(f"{kind.kind}{kind.itemsize}"))


def _reversed_axes(image: "Dataset") -> tuple[int, ...]:
    along_row, along_column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    if abs(along_row[0]) < MOSTLY or abs(along_column[1]) < MOSTLY:
        raise Unusable(f"it is no axial slice: its ImageOrientationPatient is {list(image.ImageOrientationPatient)}")
    return tuple(axis for axis, cosine in ((0, along_column[1]), (1, along_row[0])) if cosine < 0)


def pixel_spacing(image: "Dataset") -> tuple[float, float]:
    """(y, x) in mm"""
    y, x = (float(each) for each in image.PixelSpacing)
    if not (0 < y < np.inf and 0 < x < np.inf):
        raise Unusable(f"its PixelSpacing is {y} x {x} mm")
    return y, x


# Damage


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading. Only what pydicom reads belongs under it: its errors are taken for damage."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of what is harmless, or is found out here
            yield file
    except (*DAMAGE, BytesLengthException, InvalidDicomError) as error:
        raise Unusable("damaged or cut short, or packed in a way that cannot be decoded here") from error
    except OSError as error:
        if error.errno is None:  # pydicom's own
            raise Unusable("damaged or cut short") from error
        missing = isinstance(error, FileNotFoundError)
        raise DataError(f"{path}: {'no such file' if missing else f'cannot be read ({error.strerror})'}") from error
