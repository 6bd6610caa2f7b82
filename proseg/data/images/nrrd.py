"""NRRD in one file: two or three axes in space, and one of channels at most.

pynrrd understands the header; what is packed is unpacked here, and no further than the header says.
"""

import bz2
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nrrd
import numpy as np

from proseg.data.images import orientation
from proseg.data.images.picture import Header, Picture, check_claim, header_of
from proseg.errors import DataError

DAMAGE: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, KeyError, TypeError, IndexError, OverflowError, StopIteration, struct.error,
    zlib.error, nrrd.NRRDError,
)  # fmt: skip
"""What pynrrd and the packers raise over damaged bytes."""

TYPES = {
    "char": "i1", "int8": "i1", "unsigned char": "u1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "unsigned short": "u2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "unsigned int": "u4", "uint": "u4", "uint32": "u4",
    "long long": "i8", "longlong": "i8", "int64": "i8",
    "unsigned long long": "u8", "ulonglong": "u8", "uint64": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
"""The format's names of types, without "signed", "_t" and a last "int"."""

TO_LPS = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
"""The sign of each direction of a space."""
IN_SPACE = ("domain", "space")
"""Kinds of axes."""
ABOUT_SPACE = ("space", "space dimension", "space origin", "space units")
"""Fields of the header that do not speak of one axis."""
MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "μm": 0.001}


@dataclass(frozen=True, eq=False)
class _Claim:
    """What the header says."""

    header: dict[str, Any]
    sizes: tuple[int, ...]
    """Of all axes, in the file's order."""
    dtype: np.dtype
    spatial: tuple[int, ...]
    """The axes in space."""
    place: np.ndarray | None
    spacing: np.ndarray | None

    @property
    def channel_axis(self) -> int | None:
        return next((axis for axis in range(len(self.sizes)) if axis not in self.spatial), None)

    @property
    def channels(self) -> int:
        return 1 if self.channel_axis is None else self.sizes[self.channel_axis]


def look(path: Path, file: IO[bytes]) -> Header:
    claim = _claim(path, file)
    sizes = tuple(claim.sizes[axis] for axis in claim.spatial)
    return header_of(orientation.shape(sizes, claim.channels, claim.place), claim.dtype)


def read(path: Path, file: IO[bytes]) -> Picture:
    claim = _claim(path, file)
    wanted = math.prod(claim.sizes) * claim.dtype.itemsize
    content = _unpacked(path, file, claim.header["encoding"], wanted)
    if len(content) != wanted:
        longer = "more" if len(content) > wanted else f"{len(content)}"
        raise DataError(f"{path}: the file is damaged: its header asks for {wanted} bytes of pixels, it has {longer}")
    values = np.frombuffer(content, claim.dtype).reshape(claim.sizes, order="F")
    values = values[..., None] if claim.channel_axis is None else np.moveaxis(values, claim.channel_axis, -1)
    return orientation.picture(values, claim.place, claim.spacing)


def write_like(target: Path, maps: np.ndarray, like: Path, file: IO[bytes]) -> None:
    """Maps of a picture in the geometry of the file that it came from: its axes, directions, origin and units.

    Args:
        maps: [K, D, H, W] or [K, H, W] in the picture's axes; one map gets no axis of its own, several the last one.
        like: the picture's file, which `file` has been opened from.
    """
    claim = _claim(like, file)
    values = orientation.turned_back(maps, tuple(claim.sizes[axis] for axis in claim.spatial), claim.place)
    several = len(maps) > 1
    header = {key: claim.header[key] for key in ABOUT_SPACE if key in claim.header}
    if "space directions" in claim.header:
        rows = _directions(claim.header)
        directions = [np.asarray(rows[axis]) for axis in claim.spatial]
        header["space directions"] = np.array(directions + [np.full_like(directions[0], np.nan)] * several)
    elif "spacings" in claim.header:
        header["spacings"] = [float(claim.header["spacings"][axis]) for axis in claim.spatial] + [math.nan] * several
    header["kinds"] = ["domain"] * len(claim.spatial) + ["list"] * several
    nrrd.write(str(target), values if several else values[..., 0], header)


def _unpacked(path: Path, file: IO[bytes], encoding: str, wanted: int) -> bytes:
    """What stands behind the header, one byte more than is wanted at most."""
    match encoding.lower():
        case "raw":
            return file.read(wanted + 1)
        case "gzip" | "gz":
            unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        case "bzip2" | "bz2":
            unpacker = bz2.BZ2Decompressor()
        case _:
            raise DataError(f"{path}: its pixels are encoded as {encoding}; save it as raw or gzip")
    content = unpacker.decompress(file.read(), wanted + 1)
    if len(content) <= wanted and not unpacker.eof:  # only there is the sum of all bytes compared
        raise DataError(f"{path}: the file is cut short")
    return content


def _claim(path: Path, file: IO[bytes]) -> _Claim:
    header = dict(nrrd.read_header(file))
    if "data file" in header or "datafile" in header:
        raise DataError(f"{path}: its pixels lie in another file; save header and pixels as one .nrrd")
    if any(int(header.get(key, 0)) for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise DataError(f"{path}: asks to skip lines or bytes before its pixels, which is not done; save it anew")
    sizes = tuple(int(size) for size in header["sizes"])
    dtype = _dtype(path, header)
    check_claim(path, sizes, dtype)
    spatial = _spatial_axes(path, header, len(sizes))
    place, spacing = _place(header, spatial)
    orientation.check(path, place, spacing)
    return _Claim(header, sizes, dtype, spatial, place, spacing)


def _dtype(path: Path, header: dict[str, Any]) -> np.dtype:
    name = header["type"].lower().removeprefix("signed ").removesuffix("_t")
    code = TYPES.get(name) or TYPES.get(name.removesuffix(" int"))
    if code is None:
        raise DataError(f"{path}: its pixels are of the type {header['type']!r}; expected integers, float or double")
    return np.dtype(code).newbyteorder(">" if header.get("endian") == "big" else "<")


def _spatial_axes(path: Path, header: dict[str, Any], axes: int) -> tuple[int, ...]:
    """Those that have a direction, or whose kind says so; all of them where the header says neither."""
    if "space directions" in header:
        spatial = [axis for axis, row in enumerate(_directions(header)) if row is not None]
    elif "kinds" in header:
        spatial = [axis for axis, kind in enumerate(header["kinds"]) if str(kind).lower() in IN_SPACE]
    else:
        spatial = list(range(axes))
    if len(spatial) not in (2, 3) or axes - len(spatial) > 1:
        raise DataError(
            f"{path}: has {axes} axes, {len(spatial)} of them in space; expected two or three, and at most "
            "one of channels"
        )
    return tuple(spatial)


def _directions(header: dict[str, Any]) -> list[np.ndarray | None]:
    """Of each axis, None where it has none."""
    rows = [None if row is None else np.asarray(row, float) for row in header["space directions"]]
    return [None if row is None or np.isnan(row).all() else row for row in rows]


def _place(header: dict[str, Any], spatial: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where the axes lie, if the space is anatomical, and the spacing along them."""
    if "space directions" not in header:
        spacings = header.get("spacings")
        if spacings is None or np.isnan([spacings[axis] for axis in spatial]).any():
            return None, None
        return None, np.array([float(spacings[axis]) for axis in spatial])
    directions = _directions(header)
    unit = MM.get(str((header.get("space units") or ["mm"])[0]), 1.0)
    columns = [np.asarray(directions[axis]) * unit for axis in spatial]
    spacing = np.array([np.linalg.norm(column) for column in columns])
    signs = TO_LPS.get(str(header.get("space", "")).lower())
    if signs is None or len(columns[0]) != 3:
        return None, spacing
    place = np.eye(4)
    place[:3, : len(columns)] = np.transpose(columns)
    if len(columns) == 2:  # a single slice, which has no third direction of its own
        place[:3, 2] = np.cross(columns[0], columns[1]) / np.prod(spacing)
    place[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), float) * unit
    place[:3] *= np.array(signs)[:, None]
    return place, spacing
