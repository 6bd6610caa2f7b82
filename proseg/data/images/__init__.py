"""The one door for images and masks: of a file of any format, or of a DICOM series, its header, its pixels, and maps
written like it. What is wrong with a file is said in one sentence: "damaged" of damage, "not supported" with what to
do."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from proseg.data.images.picture import Header, Picture
from proseg.errors import ConfigError, DataError

__all__ = [
    "Header", "Picture", "axes_of", "check_axes", "files", "is_image", "look", "pixels_among", "read", "stem",
    "write_like",
]  # fmt: skip

KNOWN = (
    "NIfTI (.nii, .nii.gz, .hdr with .img), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), PNG, JPEG, BMP, GIF, PPM "
    "(.ppm, .pgm, .pbm, .pnm), TIFF or NumPy (.npy, .npz)"
)
FORMATS = {
    "nifti": r"nii|hdr|img|(?:nii|hdr|img)\.gz", "nrrd": "nrrd|nhdr", "meta": "mha|mhd", "npy": "npy|npz",
    "raster": "png|jpe?g|bmp|gif|p[bgpn]m|tiff?", "dicom": "dcm|dicom|ima",
}  # fmt: skip
"""Suffixes of each module's files."""
HEADERS = re.compile(r"\.(?:hdr|hdr\.gz|mhd|nhdr)$", re.IGNORECASE)
"""Suffixes of files whose pixels lie in another file beside them."""
ARRAYS = (".npy", ".npz", ".tif", ".tiff")
"""Suffixes of files whose axes a user may name."""
SUFFIXES = re.compile(
    rf"\.(?:{'|'.join(f'(?P<{form}>{suffixes})' for form, suffixes in FORMATS.items())})$", re.IGNORECASE
)


def look(path: Path, *, axes: str | None = None, mask: bool = False) -> Header:
    """The header of a file or of a DICOM series: shape and type of its pixels, without reading them.

    Args:
        path: a file, or the folder of one DICOM series.
        axes: what the axes of an NPY or NPZ file or the pages of a TIFF are: a letter each of z, y, x and c (channels),
            or t where its length is 1, as in "yxc".
        mask: see `read`.

    Raises:
        DataError: as `read`, as far as the header tells.
        ConfigError: `axes` is no such word.
    """
    form = _format(path)
    with _damage_said(path, form):
        return _source(path, form, axes, mask).look()


def read(path: Path, *, axes: str | None = None, mask: bool = False) -> Picture:
    """The pixels of a file or of a DICOM series. Nothing is unpacked before its size is known from the header to be
    plausible.

    Args:
        path: a file, or the folder of one DICOM series.
        axes: see `look`.
        mask: read as a mask of one channel: a palette gives its indices (that of black and white its colours), colours
            that are all grey are one channel, and what JPEG has compressed is refused.

    Raises:
        DataError: there is no such file, it may not be read, it is of another type, damaged, cut short, a pickle, too
            large for any image, empty, can be read in two ways, or has pixels that are no finite real numbers.
        ConfigError: `axes` is no such word.
    """
    form = _format(path)
    with _damage_said(path, form):
        picture = _source(path, form, axes, mask).read()
    bad = _not_finite(picture.pixels)
    if bad:
        raise DataError(f"{path}: has {bad} pixels that are NaN or infinite")
    native = picture.pixels.dtype.newbyteorder("=")
    return replace(picture, pixels=picture.pixels.astype(native, copy=False))


def write_like(target: Path, maps: np.ndarray, like: Path, *, classes: int = 1) -> Path:
    """Write maps of an image's pixels in the geometry of its file.

    A NIfTI, NRRD or MetaImage file gives one of its kind with the same axes, place and spacing (.nii.gz, .nrrd, .mha),
    a DICOM series a NIfTI file. Of the other formats, which know no place, labels of a slice become a PNG, where a
    single class is white (255), everything else an NPY file.

    Args:
        target: without a suffix, which is added.
        maps: [K, D, H, W] or [K, H, W] in the axes of `read`'s picture of `like`; uint8 labels or float32. The axis K
            is left out where it is 1; in a NIfTI or NRRD file it is the last one, in a MetaImage within each voxel.
        like: the file, or the DICOM series.
        classes: number of classes that labels stand for, beside the background.

    Returns:
        The file that was written.
    """
    form = _format(like)
    if form in ("npy", "raster"):
        return _write_plain(target, maps[0] if len(maps) == 1 else maps, classes)
    if form == "dicom":
        return _source(like, form, None, False).write_like(target, maps)
    return _module(form).write_like(target, maps, like)


def files(path: Path) -> list[Path]:
    """The files that an image consists of: header and pixels of a pair (whichever was named), the images of a series.

    Raises:
        DataError: as `look`.
    """
    form = _format(path)
    if form in ("npy", "raster"):
        return [path]
    with _damage_said(path, form):
        if form == "dicom":
            return [image.path for image in _source(path, form, None, False).images]
        return [*dict.fromkeys(_module(form).files(path))]


def pixels_among(folder: Path, names: Iterable[str]) -> set[str]:
    """Of these files in a folder those that hold the pixels of a header among them: of a pair, the header is the image.

    Raises:
        DataError: a header is damaged.
    """
    headers = (folder / name for name in names if HEADERS.search(name))
    return {other.relative_to(folder).as_posix() for path in headers for other in files(path) if other != path}


def is_image(name: str) -> bool:
    """Whether a file of this name is of a type that can be read."""
    return SUFFIXES.search(name) is not None


def stem(name: str) -> str:
    """The name without what says its type: "a.b" of "a.b.nii.gz"."""
    return SUFFIXES.sub("", name)


def axes_of(path: Path, axes: str | None) -> str | None:
    """What is said of the axes, for files that do not say it themselves."""
    return axes if path.suffix.lower() in ARRAYS else None


def check_axes(paths: Iterable[Path], axes: str | None) -> None:
    """Raises DataError where axes are named and none of these files needs that."""
    if axes is not None and not any(axes_of(path, axes) for path in paths):
        raise DataError(f"--axes {axes}: all files say by themselves what their axes are; leave it out")


def _write_plain(target: Path, values: np.ndarray, classes: int) -> Path:
    if values.dtype != np.uint8 or values.ndim != 2:
        path = target.with_name(f"{target.name}.npy")
        np.save(path, values)
        return path
    from PIL import Image

    path = target.with_name(f"{target.name}.png")
    Image.fromarray(values * np.uint8(255) if classes == 1 else values).save(path)
    return path


def _source(path: Path, form: str, axes: str | None, mask: bool) -> Any:
    """What has the methods `look` and `read`."""
    if axes is not None and (sorted({*axes}) != sorted(axes) or not set("yx") <= {*axes} <= set("zyxct")):
        raise ConfigError(f"--axes {axes!r} must have one letter an axis: y and x, and of z, c and t those that are")
    if form in ("npy", "raster"):
        return _module(form).Array(path, axes, mask)
    if axes is not None:
        raise DataError(f"{path}: says by itself what its axes are; --axes is for NPY, NPZ and TIFF files")
    return _module(form).claim(path)


def _format(path: Path) -> str:
    """The module for a file or a folder."""
    suffix = SUFFIXES.search(path.name)
    if suffix is not None and not path.is_dir():
        return str(suffix.lastgroup)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir() or _module("dicom").is_dicom_file(path):
        return "dicom"
    raise DataError(f"{path}: images and masks must be {KNOWN}, or DICOM")


def _module(form: str) -> Any:
    match form:
        case "nifti":
            from proseg.data.images import nifti as module
        case "nrrd":
            from proseg.data.images import nrrd as module
        case "meta":
            from proseg.data.images import meta as module
        case "npy":
            from proseg.data.images import npy as module
        case "raster":
            from proseg.data.images import raster as module
        case _:
            from proseg.data.images import dicom_series as module
    return module


@contextmanager
def _damage_said(path: Path, form: str) -> Iterator[None]:
    """Where a library trips over the bytes of a file, that is said in our words."""
    damage = _module(form).DAMAGE
    try:
        yield
    except NotImplementedError as error:
        raise DataError(
            f"{path}: is packed or laid out in a way that is not supported; save it anew, uncompressed"
        ) from error
    except damage as error:
        raise DataError(f"{path}: the file is damaged or cut short, or not what its name says") from error


def _not_finite(pixels: np.ndarray) -> int:
    if pixels.dtype.kind != "f":
        return 0
    return pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
