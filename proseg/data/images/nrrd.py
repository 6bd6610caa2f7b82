"""NRRD in one file, or a header (NHDR) beside its file of pixels: two or three axes in space, and one of channels at
most. pynrrd understands the header."""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from proseg.data.images import orientation
from proseg.data.images.volumes import MM, Claim, Geometry, beside, opened
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


PACKING = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
"""By the names of encodings."""


def claim(path: Path) -> Claim:
    """What the header says."""
    with opened(path) as file:
        header = dict(nrrd.read_header(file))
        offset: int | None = file.tell()
    named = header.get("data file", header.get("datafile"))
    data, offset = (path, offset) if named is None else (beside(path, str(named)), 0)
    packing = PACKING.get(header["encoding"].lower())
    if packing is None:
        raise DataError(f"{path}: the encoding {header['encoding']} is not supported; save it as raw or gzip")
    lines, skipped = (int(header.get(f"{one} skip", header.get(f"{one}skip", 0))) for one in ("line", "byte"))
    if lines or skipped < -1 or (skipped and packing):
        raise DataError(f"{path}: asks to skip lines or packed bytes before its pixels, which is not supported")
    sizes = tuple(int(size) for size in header["sizes"])
    spatial = _spatial_axes(path, header, len(sizes))
    times = [kind for kind in header.get("kinds", ()) if str(kind).lower() == "time"]
    return Claim(
        path,
        sizes,
        _dtype(path, header),
        spatial,
        _geometry(header, spatial),
        data,
        None if skipped == -1 else offset + skipped,
        packing,
        notes=("the axis of time is read as channels",) if times else (),
    )


def files(path: Path) -> tuple[Path, ...]:
    """The file, and that of its pixels where they lie elsewhere."""
    return path, claim(path).data


def write_like(target: Path, maps: np.ndarray, like: Path) -> Path:
    """Maps of a picture in the geometry of the file that it came from: its axes, directions, origin and units.

    Args:
        target: without a suffix.
        maps: [K, D, H, W] or [K, H, W] in the picture's axes; one map gets no axis of its own, several the last one.
        like: the picture's file.
    """
    of_file, path = claim(like), target.with_name(f"{target.name}.nrrd")
    with opened(like) as file:
        said = dict(nrrd.read_header(file))
    values = of_file.turned_back(maps)
    several = len(maps) > 1
    header = {key: said[key] for key in ABOUT_SPACE if key in said}
    if "space directions" in said:
        rows = _directions(said)
        directions = [np.asarray(rows[axis]) for axis in of_file.spatial]
        header["space directions"] = np.array(directions + [np.full_like(directions[0], np.nan)] * several)
    elif "spacings" in said:
        header["spacings"] = [float(said["spacings"][axis]) for axis in of_file.spatial] + [math.nan] * several
    header["kinds"] = ["domain"] * len(of_file.spatial) + ["list"] * several
    nrrd.write(str(path), values if several else values[..., 0], header)
    return path


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


def _geometry(header: dict[str, Any], spatial: tuple[int, ...]) -> Geometry:
    """Where the axes lie, if the space is anatomical, and the spacing along them."""
    if "space directions" not in header:
        spacings = header.get("spacings")
        if spacings is None or np.isnan([spacings[axis] for axis in spatial]).any():
            return Geometry(None, None)
        return Geometry(None, np.array([float(spacings[axis]) for axis in spatial]))
    directions = _directions(header)
    unit = MM.get(str((header.get("space units") or ["mm"])[0]), 1.0)
    columns = [np.asarray(directions[axis]) * unit for axis in spatial]
    signs = TO_LPS.get(str(header.get("space", "")).lower())
    if signs is None or len(columns[0]) != 3:
        return Geometry(None, np.linalg.norm(columns, axis=1))
    origin = np.asarray(header.get("space origin", np.zeros(3)), float) * unit
    return Geometry(*orientation.place_of([column * signs for column in columns], origin * signs))
