"""What NIfTI, NRRD and MetaImage have in common: a header that says where the numbers of an array stand, and where the
array lies.

The bytes are counted here, whatever library understands the header: a file that unpacks to more or less than its header
says is refused, nothing is unpacked before its size is known to be plausible, and the sum of what was packed is
compared.
"""

import bz2
import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from proseg.data.images import orientation
from proseg.data.images.picture import Header, Picture, check_claim, header_of, scaled, scaled_dtype
from proseg.errors import DataError

MM = {"meter": 1000.0, "m": 1000.0, "cm": 10.0, "mm": 1.0, "micron": 0.001, "um": 0.001, "μm": 0.001}
"""The names of units of length in headers."""


class Geometry(NamedTuple):
    """Where an array lies."""

    place: np.ndarray | None
    """[4, 4], from (x, y, z, 1) along its axes in space to mm left, posterior, superior"""
    spacing: np.ndarray | None
    """[2] or [3], mm along the axes in space"""


@dataclass(frozen=True, eq=False)
class Claim:
    """What a header says."""

    path: Path
    """Of the file that was named."""
    sizes: tuple[int, ...]
    """Along all axes, the one that changes fastest first."""
    dtype: np.dtype
    spatial: tuple[int, ...]
    """The axes in space; another one holds channels."""
    geometry: Geometry
    data: Path
    """The file in which the numbers stand."""
    offset: int | None
    """Bytes before the first number, once unpacked if all of the file is packed; None: they stand at its end."""
    packing: str = ""
    """gzip, zlib or bzip2; empty where the numbers are not packed."""
    slope: float = 1.0
    intercept: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_claim(self.path, self.sizes, self.dtype)
        if len(self.spatial) not in (2, 3):
            raise DataError(f"{self.path}: has {len(self.spatial)} axes in space; expected two or three")
        orientation.check(self.path, *self.geometry)

    @property
    def in_space(self) -> tuple[int, ...]:
        """Sizes along the axes in space."""
        return tuple(self.sizes[axis] for axis in self.spatial)

    @property
    def channels(self) -> int:
        return math.prod(self.sizes) // math.prod(self.in_space)

    def look(self) -> Header:
        if not self.packing:
            self._check_size()
        shape = orientation.shape(self.in_space, self.channels, self.geometry.place)
        return header_of(shape, scaled_dtype(self.dtype, self.slope, self.intercept), self.notes)

    def read(self) -> Picture:
        content = self._content()
        values = np.frombuffer(content, self.dtype, math.prod(self.sizes)).reshape(self.sizes, order="F")
        rest = [axis for axis in range(len(self.sizes)) if axis not in self.spatial]
        values = values.transpose(*self.spatial, *rest).reshape(*self.in_space, self.channels, order="F")
        return orientation.picture(scaled(values, self.slope, self.intercept), *self.geometry)

    def turned_back(self, maps: np.ndarray) -> np.ndarray:
        """[K, D, H, W] or [K, H, W] in the axes of the picture to the file's axes in space, then K."""
        return orientation.turned_back(maps, self.in_space, self.geometry.place)

    def _content(self) -> bytes:
        """The bytes of all numbers, in one piece of memory."""
        wanted = math.prod(self.sizes) * self.dtype.itemsize
        with opened(self.data) as file:
            offset = self._check_size() - wanted if self.offset is None else self.offset
            whole = self.packing == "gzip" and is_gzip(self.data)
            if not whole:
                file.seek(offset)
            match self.packing:
                case "":
                    content = file.read(wanted + 1)
                case "gzip" if whole:
                    with gzip.GzipFile(fileobj=file) as stream:
                        stream.seek(offset)
                        content = stream.read(wanted + 1)  # at the end gzip compares its sum, and there must be no more
                case "bzip2":
                    content = self._unpacked(bz2.BZ2Decompressor(), file.read(), wanted)
                case _:  # zlib knows its own header from that of gzip
                    content = self._unpacked(zlib.decompressobj(zlib.MAX_WBITS | 32), file.read(), wanted)
        self._compare(len(content), wanted)
        return content

    def _check_size(self) -> int:
        """Bytes of the file of pixels, which is as long as the header says."""
        wanted, size = math.prod(self.sizes) * self.dtype.itemsize, self.data.stat().st_size
        self._compare(min(size, wanted) if self.offset is None else size - self.offset, wanted)
        return size

    def _unpacked(self, unpacker, packed: bytes, wanted: int) -> bytes:
        content = unpacker.decompress(packed, wanted + 1)
        if len(content) <= wanted and not unpacker.eof:  # only there is the sum of all bytes compared
            raise DataError(f"{self.path}: the file is cut short")
        return content

    def _compare(self, there: int, wanted: int) -> None:
        if there != wanted:
            longer = "more" if there > wanted else f"{there}"
            raise DataError(
                f"{self.path}: the file is damaged: its header asks for {wanted} bytes of pixels, it has {longer}"
            )


def is_gzip(path: Path) -> bool:
    """Whether all of a file is packed, by its name."""
    return path.suffix.lower() == ".gz"


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A regular file, open for reading; raises DataError where it is none, or may not be read."""
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise DataError(f"{path}: is no file" if path.exists() else f"{path}: no such file")
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    with file:
        yield file


def beside(path: Path, name: str) -> Path:
    """The file of pixels that a header names, which must lie in the folder of the header or below it.

    Raises:
        DataError: it leads elsewhere, or stands for several files.
    """
    found = path.parent / name
    if not name or "\0" in name or "%" in name or name.upper().startswith("LIST"):
        raise DataError(f"{path}: its pixels lie in several files, which is not supported; save them as one")
    if not found.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(f"{path}: its pixels lie in another folder ({name}); put both files into one")
    if not found.exists():
        raise DataError(f"{path}: its pixels lie in {name}, which is not there")
    return found
