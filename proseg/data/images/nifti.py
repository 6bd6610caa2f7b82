"""NIfTI-1 and -2 in one file, plain or gzipped: (x, y), (x, y, z), or with channels as the fourth or fifth axis.

nibabel understands the header; the bytes are counted here, so that a file which unpacks to more or less than its header
says is refused, and gzip's own sum is compared.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.loadsave import save
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError

from proseg.data.images import orientation
from proseg.data.images.picture import Header, Picture, check_claim, header_of
from proseg.errors import DataError

DAMAGE: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, KeyError, OverflowError, struct.error, zlib.error, HeaderDataError, ImageFileError,
    WrapStructError,
)  # fmt: skip
"""What nibabel and gzip raise over damaged bytes."""

KINDS = {348: Nifti1Header, 540: Nifti2Header}
"""By the size of the header, which is its first number."""
MOST_OFFSET = 2**24
"""Bytes before the first pixel that are believed: extensions stand there."""
SHEAR = 1e-4
"""mm, for each mm of an axis: what axes may be oblique to each other and still be taken for upright."""
MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


@dataclass(frozen=True, eq=False)
class _Claim:
    """What the header says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    place: np.ndarray
    """[4, 4], to mm left, posterior, superior"""
    spacing: np.ndarray
    """[2] or [3], mm along the axes in space"""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def sizes(self) -> tuple[int, ...]:
        """Along the axes in space."""
        return self.shape[:3]

    @property
    def channels(self) -> int:
        return math.prod(self.shape[3:])

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def whole(self) -> bool:
        return self.dtype.kind in "iub" and self.slope.is_integer() and self.intercept.is_integer()

    @property
    def scaled_dtype(self) -> np.dtype:
        return self.dtype if not self.scaled else np.dtype(np.int32 if self.whole else np.float32)


def look(path: Path, file: IO[bytes]) -> Header:
    claim, _ = _claim(path, _unpacked(path, file))
    return header_of(orientation.shape(claim.sizes, claim.channels, claim.place), claim.scaled_dtype)


def read(path: Path, file: IO[bytes]) -> Picture:
    stream = _unpacked(path, file)
    claim, start = _claim(path, stream)
    total = claim.offset + claim.bytes
    # One byte more than is wanted: at the end gzip compares its sum, and there must be no more.
    content = start + stream.read(max(1, total - len(start) + 1))
    if len(content) != total:
        longer = "more" if len(content) > total else f"{len(content)}"
        raise DataError(f"{path}: the file is damaged: its header asks for {total} bytes, it has {longer}")
    values = np.frombuffer(content, claim.dtype, offset=claim.offset).reshape(claim.shape, order="F")
    values = _scaled(values, claim).reshape((*claim.sizes, claim.channels), order="F")
    return orientation.picture(values, claim.place, claim.spacing)


def write_like(target: Path, maps: np.ndarray, like: Path, file: IO[bytes]) -> None:
    """Maps of a picture in the geometry of the file that it came from: its axes, affines, spacing and units.

    Args:
        maps: [K, D, H, W] or [K, H, W] in the picture's axes; one map gets no fourth axis.
        like: the picture's file, which `file` has been opened from.
    """
    claim, start = _claim(like, _unpacked(like, file))
    values = _values(maps, claim.sizes, claim.place)
    header = _header(like, start)
    header.set_data_dtype(maps.dtype)
    header.set_slope_inter(None, None)
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0  # of the image's intensities
    kind = Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image
    save(kind(values, header.get_best_affine(), header), target)


def write(target: Path, maps: np.ndarray, sizes: tuple[int, ...], place: np.ndarray) -> None:
    """Maps of a picture in axes that no NIfTI file had before.

    Args:
        maps: [K, D, H, W] or [K, H, W] in the picture's axes; one map gets no fourth axis.
        sizes: along the axes in space, two or three.
        place: [4, 4], from a voxel of these axes to mm left, posterior, superior.
    """
    affine = orientation.TO_LPS @ place
    image = Nifti1Image(_values(maps, sizes, place), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, "scanner")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    upright = np.allclose(affine[:3, :3].T @ affine[:3, :3], np.diag(spacing**2), rtol=0, atol=SHEAR * spacing.min())
    # A quaternion cannot say that the axes are oblique to each other: programs that read only it must find none.
    image.set_qform(affine if upright else None, "scanner" if upright else "unknown")
    save(image, target)


def _values(maps: np.ndarray, sizes: tuple[int, ...], place: np.ndarray) -> np.ndarray:
    """[K, D, H, W] or [K, H, W] as a file has them."""
    values = orientation.turned_back(maps, sizes, place)
    # A slice has two axes, or a third of length 1: channels stand behind the third.
    return values[..., 0] if len(maps) == 1 else values if values.ndim == 4 else values[:, :, None]


def _unpacked(path: Path, file: IO[bytes]) -> IO[bytes]:
    return gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file  # type: ignore[return-value]


def _claim(path: Path, stream: IO[bytes]) -> tuple[_Claim, bytes]:
    """What the header says, and the bytes that were read."""
    start = stream.read(540)
    header = _header(path, start)
    size = int(header["sizeof_hdr"])
    if bytes(header["magic"])[:2] != b"n+":
        raise DataError(f"{path}: the header of a pair of files; save image and header as one .nii or .nii.gz")
    shape, offset = _axes(path, header.get_data_shape()), int(header.get_data_offset())
    check_claim(path, shape, header.get_data_dtype())
    if not size <= offset <= MOST_OFFSET:
        raise DataError(f"{path}: the file is damaged: its pixels are said to begin at byte {offset}")
    slope, intercept = header.get_slope_inter()
    place, spacing = _place(header, len(shape))
    orientation.check(path, place, spacing)
    claim = _Claim(shape, header.get_data_dtype(), offset, 1.0 if slope is None else float(slope),
                   float(intercept or 0), place, spacing)  # fmt: skip
    return claim, start


def _header(path: Path, start: bytes) -> Nifti1Header:
    """As it stands in the first bytes of a file."""
    size = next((size for order in "<>" for size in KINDS if start[:4] == struct.pack(f"{order}i", size)), None)
    if size is None:
        raise DataError(f"{path}: the file is no NIfTI file, or damaged at its start")
    return KINDS[size](start[:size])


def _axes(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(x, y), (x, y, z) or (x, y, z, channels)."""
    if len(shape) == 5 and 1 in shape[3:]:
        shape = (*shape[:3], math.prod(shape[3:]))
    if not 2 <= len(shape) <= 4:
        raise DataError(f"{path}: has shape {tuple(map(int, shape))}; expected (x, y), (x, y, z) or channels as fourth")
    return tuple(map(int, shape))


def _place(header: Nifti1Header, axes: int) -> tuple[np.ndarray, np.ndarray]:
    unit = MM[str(header.get_xyzt_units()[0])]
    to_mm = np.diag([unit, unit, unit, 1.0])
    spacing = np.array([float(mm) * unit for mm in header.get_zooms()[: min(axes, 3)]])
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported by who checks the place
        return orientation.TO_LPS @ to_mm @ header.get_best_affine(), spacing


def _scaled(values: np.ndarray, claim: _Claim) -> np.ndarray:
    """The numbers that the file means, in the smallest of int32 and float32 that holds them."""
    if not claim.scaled:
        return values
    scaled = np.asarray(apply_read_scaling(values, claim.slope, claim.intercept), np.float64)
    fits = claim.whole and max(-scaled.min(), scaled.max()) < 2**31
    return scaled.astype(np.int32 if fits else np.float32)
