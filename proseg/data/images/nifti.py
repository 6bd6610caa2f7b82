"""NIfTI-1 and -2, plain or gzipped, in one file or a pair: (x, y), (x, y, z), or with channels as the fourth or fifth
axis. nibabel understands the header."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.loadsave import save
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from proseg.data.images import orientation
from proseg.data.images.channels import HALF_A_PIXEL
from proseg.data.images.volumes import MM, Claim, Geometry, beside, is_gzip, opened
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
GEOMETRY = (
    "pixdim", "xyzt_units", "sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c",
    "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
)  # fmt: skip
"""Fields that an image and its masks have in common."""
HALVES = {".hdr": ".img", ".img": ".hdr"}
"""Suffixes of the two files of a pair."""


def claim(path: Path) -> Claim:
    """What the header of a file, or of a pair of which this is one, says."""
    named, pixels = files(path)
    if path.exists() and not named.exists():
        raise DataError(f"{path}: its header, {named.name}, is not there")
    header = _header(named)
    size, magic = int(header["sizeof_hdr"]), bytes(header["magic"])[:3].rstrip(b"\0")
    if magic[:2] == b"ni":
        if len({named, pixels}) == 1:
            raise DataError(f"{path}: the header of a pair of files; name it .hdr, beside its pixels in .img")
        beside(path, pixels.name)
    elif magic[:2] != b"n+":
        raise DataError(
            f"{path}: is an Analyze file, which does not say where left and right are, and is not supported; convert "
            "it to NIfTI with the program that wrote it"
        )
    else:
        pixels = named
    shape, notes = _axes(path, tuple(map(int, header.get_data_shape())))
    geometry, repaired = _geometry(path, header, len(shape))
    offset = int(header.get_data_offset())
    if not (size if pixels == named else 0) <= offset <= MOST_OFFSET:
        raise DataError(f"{path}: the file is damaged: its pixels are said to begin at byte {offset}")
    slope, intercept = header.get_slope_inter()
    return Claim(
        path,
        shape,
        header.get_data_dtype(),
        tuple(range(min(len(shape), 3))),
        geometry,
        pixels,
        offset,
        "gzip" if is_gzip(pixels) else "",
        1.0 if slope is None else float(slope),
        float(intercept or 0),
        (*notes, *repaired),
    )


def files(path: Path) -> tuple[Path, ...]:
    """The header, then the pixels of a pair, whichever was named; otherwise one file, twice."""
    ending = ".gz" if is_gzip(path) else ""
    half = Path(path.name.removesuffix(path.suffix) if ending else path.name)
    other = HALVES.get(half.suffix.lower())
    if other is None:
        return path, path
    other = other.upper() if half.suffix.isupper() else other
    pair = path, path.with_name(f"{half.stem}{other}{path.suffix if ending else ''}")
    return pair if other.lower() == ".img" else pair[::-1]


def write_like(target: Path, maps: np.ndarray, like: Path) -> Path:
    """Maps of a picture in the geometry of the file that it came from: its axes, affines, spacing and units.

    Args:
        target: without a suffix.
        maps: [K, D, H, W] or [K, H, W] in the picture's axes; one map gets no fourth axis.
        like: the picture's file.
    """
    said, of_file = _header(files(like)[0]), claim(like)
    kind = Nifti1Image if max(of_file.in_space) < 2**15 else Nifti2Image  # of which ITK knows nothing
    header = kind.header_class()
    for key in GEOMETRY:
        header[key] = said[key]
    affine = _affine(said, len(said.get_data_shape()))
    if not min(header["pixdim"][1:4].tolist()) > 0:
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_data_dtype(maps.dtype)
    _save(kind(_values(maps, of_file.turned_back(maps)), affine, header), affine, path := _path(target))
    return path


def write(target: Path, maps: np.ndarray, sizes: tuple[int, ...], place: np.ndarray) -> Path:
    """Maps of a picture in axes that no NIfTI file had before.

    Args:
        target: without a suffix.
        maps: [K, D, H, W] or [K, H, W] in the picture's axes; one map gets no fourth axis.
        sizes: along the axes in space, two or three.
        place: [4, 4], from a voxel of these axes to mm left, posterior, superior.
    """
    affine = orientation.TO_LPS @ place
    image = Nifti1Image(_values(maps, orientation.turned_back(maps, sizes, place)), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    _save(image, affine, path := _path(target))
    return path


def _path(target: Path) -> Path:
    return target.with_name(f"{target.name}.nii.gz")


def _save(image: Nifti1Image, affine: np.ndarray, path: Path) -> None:
    """With a quaternion that every reader can take: it cannot say that axes are oblique to each other (a tilted
    gantry), and ITK opens such a file by the nearest one that are upright."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    upright = np.allclose(affine[:3, :3].T @ affine[:3, :3], np.diag(lengths**2), rtol=0, atol=SHEAR * lengths.min())
    if not upright and not int(image.header["qform_code"]):  # type: ignore[call-overload]
        image.set_qform(affine, "aligned")
    save(image, path)


def _values(maps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[x, y, K] or [x, y, z, K] as a file has them."""
    # A slice has two axes, or a third of length 1: channels stand behind the third.
    return values[..., 0] if len(maps) == 1 else values if values.ndim == 4 else values[:, :, None]


def _header(path: Path) -> Nifti1Header:
    """As it stands in the first bytes of a file."""
    with opened(path) as file:
        start = (gzip.GzipFile(fileobj=file) if is_gzip(path) else file).read(540)
    size = next((size for order in "<>" for size in KINDS if start[:4] == struct.pack(f"{order}i", size)), None)
    if size is None:
        raise DataError(f"{path}: the file is no NIfTI file, or damaged at its start")
    return KINDS[size](start[:size], check=False)  # which would mend what it finds and print that


def _axes(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(x, y), (x, y, z) or (x, y, z, channels), and what is to be told of the last one."""
    notes = ()
    if len(shape) == 4 and shape[3] > 1:
        notes = (f"the fourth axis, which may be time, is read as {shape[3]} channels",)
    if len(shape) == 5 and 1 in shape[3:]:
        notes = () if shape[3] == 1 else (f"the fourth axis, which may be time, is read as {shape[3]} channels",)
        shape = (*shape[:3], shape[3] * shape[4])
    if not 2 <= len(shape) <= 4:
        raise DataError(f"{path}: has shape {shape}; expected (x, y), (x, y, z) or channels as fourth")
    return shape, notes


def _geometry(path: Path, header: Nifti1Header, axes: int) -> tuple[Geometry, tuple[str, ...]]:
    """Where the array lies, and what is to be told of it."""
    pixdim, notes = np.array(header["pixdim"][1 : min(axes, 3) + 1], float), ()
    thickness_unknown = axes > 2 and int(header["dim"][3]) == 1 and not 0 < abs(pixdim[2]) < np.inf
    wrong = ~((pixdim > 0) & np.isfinite(pixdim))
    if wrong[: 2 if thickness_unknown else 3].any():
        said = f"its pixdim, the size of a voxel, is {pixdim.tolist()}, where positive numbers are expected"
        if not int(header["sform_code"]):
            raise DataError(f"{path}: {said}; mend the header, or save the file with the program that wrote it")
        notes = (f"{said}; where it lies is taken from its sform alone",)
    elif int(header["sform_code"]) and int(header["qform_code"]) and not thickness_unknown:
        apart = np.abs(np.asarray(header.get_sform()) - np.asarray(header.get_qform())).max()
        if apart > HALF_A_PIXEL * pixdim.min():
            notes = (f"its sform and its qform differ by {apart:.3g} mm; the sform counts here, not in every program",)
    unit = MM.get(str(header.get_xyzt_units()[0]), 1.0)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported by who checks the place
        affine = orientation.TO_LPS @ np.diag([unit, unit, unit, 1.0]) @ _affine(header, axes)
        place, spacing = orientation.place_of(affine[:3, : min(axes, 3)].T, affine[:3, 3])
    if thickness_unknown and not int(header["sform_code"]):
        spacing[2] = np.nan
    return Geometry(place, spacing), notes


def _affine(header: Nifti1Header, axes: int) -> np.ndarray:
    """The sform, or else the quaternion, or else what stands for none of them; a slice of unknown thickness has 1."""
    header = header.copy()
    if axes < 3 or (int(header["dim"][3]) == 1 and not float(header["pixdim"][3]) > 0):
        header["pixdim"][3] = 1
    return np.asarray(header.get_best_affine())
