"""MetaImage: MHA in one file, MHD beside its file of pixels. Two or three axes in space, channels within each voxel or
along a fourth axis. Its space is LPS."""

import re
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from proseg.data.images import orientation
from proseg.data.images.volumes import MM, Claim, Geometry, beside, opened
from proseg.errors import DataError

DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, KeyError, IndexError, OverflowError, zlib.error)
"""What damaged bytes lead to."""

TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
"""Numpy's names of the format's types; those of whole numbers have the sizes of MetaIO."""
SAME = {"Position": "Offset", "Origin": "Offset", "Rotation": "TransformMatrix", "Orientation": "TransformMatrix",
        "ElementByteOrderMSB": "BinaryDataByteOrderMSB"}  # fmt: skip
"""Older names of fields."""
ABOUT_SPACE = ("TransformMatrix", "Offset", "CenterOfRotation", "AnatomicalOrientation", "DistanceUnits")
"""Fields that an image and its masks have in common."""
SCALING = {"Slope": 1.0, "Offset": 0.0}
"""What asks for no scaling; ITK reads past it, other programs do not."""
MOST_LINE, MOST_LINES = 2**16, 1000


def claim(path: Path) -> Claim:
    """What the header says."""
    with opened(path) as file:
        header = _header(path, file)
        after = file.tell()
    dimensions, channels = int(header["NDims"]), int(header.get("ElementNumberOfChannels", 1))
    sizes, name = tuple(map(int, _numbers(header, "DimSize", dimensions))), header["ElementDataFile"]
    if not 2 <= dimensions <= 4 or (dimensions == 4 and channels > 1):
        raise DataError(f"{path}: has {dimensions} axes of {channels} channel(s); expected two or three, or channels")
    code = TYPES.get(header["ElementType"].removeprefix("MET_").removesuffix("_ARRAY"))
    if code is None:
        raise DataError(f"{path}: its pixels are of the type {header['ElementType']}; expected integers or floats")
    if not _is_true(header.get("BinaryData", "True")):
        raise DataError(f"{path}: its pixels are written as text, which is not supported; save it as binary data")
    scaling = [float(header.get(f"ElementToIntensityFunction{one}", usual)) for one, usual in SCALING.items()]
    if scaling != [*SCALING.values()]:
        raise DataError(f"{path}: asks to scale its pixels, which is not supported; save it with the numbers meant")
    local, skipped = name.upper() == "LOCAL", int(header.get("HeaderSize", 0))
    packed = _is_true(header.get("CompressedData", "False"))
    if skipped < (0 if packed else -1):
        raise DataError(f"{path}: its HeaderSize of {skipped} is not supported; save it anew")
    notes = (f"the fourth axis, which may be time, is read as {sizes[3]} channels",) if dimensions == 4 else ()
    return Claim(
        path,
        sizes if channels == 1 else (channels, *sizes),
        np.dtype(code).newbyteorder(">" if _is_true(header.get("BinaryDataByteOrderMSB", "False")) else "<"),
        tuple(axis + (channels > 1) for axis in range(min(dimensions, 3))),
        _geometry(header, dimensions),
        path if local else beside(path, name),
        None if skipped == -1 else skipped + after * local,
        "zlib" if packed else "",
        notes=notes,
    )


def files(path: Path) -> tuple[Path, ...]:
    """The file, and that of its pixels where they lie elsewhere."""
    return path, claim(path).data


def write_like(target: Path, maps: np.ndarray, like: Path) -> Path:
    """Maps of a picture in the geometry of the file that it came from: its axes, directions, origin and spacing.

    Args:
        target: without a suffix.
        maps: [K, D, H, W] or [K, H, W] in the picture's axes; several maps become channels of each voxel.
        like: the picture's file.
    """
    of_file, path = claim(like), target.with_name(f"{target.name}.mha")
    with opened(like) as file:
        said = _header(like, file)
    axes = len(of_file.spatial)
    dimensions = int(said["NDims"])
    header = {"ObjectType": "Image", "NDims": axes, "BinaryData": True, "BinaryDataByteOrderMSB": False,
              "CompressedData": True}  # fmt: skip
    for key in ABOUT_SPACE:
        if key in said:
            header[key] = said[key]
    for key in ("Offset", "CenterOfRotation", "TransformMatrix", "ElementSpacing", "ElementSize"):
        if key in said:  # of four axes, those of the first three
            values = np.reshape(said[key].split(), (-1, dimensions))
            header[key] = " ".join(values[: axes if key == "TransformMatrix" else 1, :axes].ravel())
    values = np.moveaxis(of_file.turned_back(maps), -1, 0).astype(maps.dtype.newbyteorder("<"))
    packed = zlib.compress(values.tobytes(order="F"))
    header |= {"CompressedDataSize": len(packed), "DimSize": " ".join(map(str, of_file.in_space))}
    if len(maps) > 1:
        header["ElementNumberOfChannels"] = len(maps)
    code = f"{maps.dtype.kind}{maps.dtype.itemsize}"
    header |= {"ElementType": f"MET_{next(name for name, one in TYPES.items() if one == code)}"}
    text = "".join(f"{key} = {value}\n" for key, value in header.items())
    path.write_bytes(f"{text}ElementDataFile = LOCAL\n".encode() + packed)
    return path


def _header(path: Path, file: IO[bytes]) -> dict[str, str]:
    """The fields, up to the last one, behind which pixels may stand."""
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields:
        key, *value = map(str.strip, re.split("[=:]", file.readline(MOST_LINE).decode("utf-8", "replace"), maxsplit=1))
        if not value or len(fields) > MOST_LINES:
            raise DataError(f"{path}: the file is damaged, or no MetaImage: its header does not say where pixels are")
        fields[SAME.get(key, key)] = value[0]
    return fields


def _geometry(header: dict[str, str], dimensions: int) -> Geometry:
    key = next((key for key in ("ElementSpacing", "ElementSize") if key in header), None)
    if key is None:
        return Geometry(None, None)
    unit = MM.get(header.get("DistanceUnits", "mm"), 1.0)
    axes = min(dimensions, 3)
    spacing = _numbers(header, key, dimensions)[:axes] * unit
    if axes == 2:  # a plane of its own, in no space that other files share
        return Geometry(None, spacing)
    directions = np.eye(3)
    if "TransformMatrix" in header:
        directions = _numbers(header, "TransformMatrix", dimensions**2).reshape(dimensions, dimensions)[:3, :3]
    origin = _numbers(header, "Offset", dimensions)[:3] * unit if "Offset" in header else np.zeros(3)
    return Geometry(orientation.place_of(directions * spacing[:, None], origin)[0], spacing)


def _numbers(header: dict[str, str], key: str, count: int) -> np.ndarray:
    values = np.array(header[key].split(), float)
    if len(values) != count:
        raise ValueError(key)
    return values


def _is_true(word: str) -> bool:
    return word[:1].upper() in ("T", "1")
