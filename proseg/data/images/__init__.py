"""One image or mask from a file: NIfTI, NRRD, PNG, TIFF, NPY or NPZ; what is wrong with it is said in one sentence."""

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np

from proseg.data.images.picture import Header, Picture
from proseg.errors import DataError

__all__ = ["Header", "Picture", "is_image", "look", "read", "stem", "write_like"]

KNOWN = "NIfTI (.nii, .nii.gz), NRRD (.nrrd), PNG, TIFF or NumPy (.npy, .npz)"
SUFFIXES = re.compile(r"\.(nii|nii\.gz|nrrd|png|tiff?|npy|npz)$", re.IGNORECASE)

T = TypeVar("T")


class Format(Protocol):
    """A module of `proseg.data.images`."""

    DAMAGE: tuple[type[Exception], ...]
    """What its libraries raise over damaged bytes."""

    def look(self, path: Path, file: IO[bytes]) -> Header: ...

    def read(self, path: Path, file: IO[bytes]) -> Picture: ...


def files(path: Path) -> list[Path]:
    return [path]


def look(path: Path, *, axes: str | None = None, mask: bool = False) -> Header:
    """Shape and type of a file's pixels, without reading them.

    Raises:
        DataError: as `read`, as far as the header tells.
    """
    form = _format(path)
    return _with(path, form, form.look)


def read(path: Path, *, axes: str | None = None, mask: bool = False) -> Picture:
    """The pixels of a file. Nothing is unpacked before its size is known from the header to be plausible.

    Raises:
        DataError: there is no such file, it may not be read, it is of another type, damaged, cut short, a pickle, too
            large for any image, empty, or has pixels that are no finite real numbers.
    """
    form = _format(path)
    picture = _with(path, form, form.read)
    bad = _not_finite(picture.pixels)
    if bad:
        raise DataError(f"{path}: has {bad} pixels that are NaN or infinite")
    native = picture.pixels.dtype.newbyteorder("=")
    return replace(picture, pixels=picture.pixels.astype(native, copy=False))


def write_like(target: Path, maps: np.ndarray, like: Path, *, classes: int = 1) -> Path:
    """Write maps of an image's pixels in the geometry of its file.

    A NIfTI or NRRD file gives one of its kind with the same axes, place and spacing. Of the other formats, which know
    no place, labels of a slice become a PNG, where a single class is white (255), everything else an NPY file.

    Args:
        target: without a suffix, which is added.
        maps: [K, D, H, W] or [K, H, W] in the axes of `read`'s picture of `like`; uint8 labels or float32. The axis K
            is left out where it is 1; in a NIfTI or NRRD file it is the last one.
        classes: that labels stand for, beside the background.

    Returns:
        What was written.
    """
    match _suffix(like):
        case "nii" | "nii.gz":
            from proseg.data.images import nifti as form

            path = target.with_name(f"{target.name}.nii.gz")
        case "nrrd":
            from proseg.data.images import nrrd as form

            path = target.with_name(f"{target.name}.nrrd")
        case _:
            return _write_plain(target, maps[0] if len(maps) == 1 else maps, classes)
    with _opened(like) as file:
        form.write_like(path, maps, like, file)
    return path


def _write_plain(target: Path, values: np.ndarray, classes: int) -> Path:
    if values.dtype != np.uint8 or values.ndim != 2:
        path = target.with_name(f"{target.name}.npy")
        np.save(path, values)
        return path
    from PIL import Image

    path = target.with_name(f"{target.name}.png")
    Image.fromarray(values * np.uint8(255) if classes == 1 else values).save(path)
    return path


def is_image(name: str) -> bool:
    """Whether a file of this name is of a type that can be read."""
    return SUFFIXES.search(name) is not None


def stem(name: str) -> str:
    """The name without what says its type: "a.b" of "a.b.nii.gz"."""
    return SUFFIXES.sub("", name)


def _format(path: Path) -> Format:
    match _suffix(path):
        case "nii" | "nii.gz":
            from proseg.data.images import nifti as form
        case "nrrd":
            from proseg.data.images import nrrd as form
        case "png" | "tif" | "tiff":
            from proseg.data.images import raster as form
        case "npy" | "npz":
            from proseg.data.images import npy as form
        case _:
            raise DataError(f"{path}: images and masks must be {KNOWN}")
    return form


def _suffix(path: Path) -> str | None:
    found = SUFFIXES.search(path.name)
    return found and found[1].lower()


def _with(path: Path, form: Format, function: Callable[[Path, IO[bytes]], T]) -> T:
    with _opened(path) as file:
        try:
            return function(path, file)
        except form.DAMAGE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path}: the file is damaged or cut short, or not what its name says: {reason}") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise DataError(f"{path}: is no file")
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    with file:
        yield file


def _not_finite(pixels: np.ndarray) -> int:
    if pixels.dtype.kind != "f":
        return 0
    return pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
