"""NPY, and NPZ with one array: [H, W], a volume [D, H, W], or channels first [C, D, H, W]; never a pickle."""

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from proseg.data.images.picture import Header, Picture, check_claim, header_of
from proseg.errors import DataError

DAMAGE: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
    RuntimeError, NotImplementedError,
)  # fmt: skip
"""What numpy and zipfile raise over damaged bytes; the last two over encryption and unknown compression."""

MOST_HEADER = 10_000
"""Bytes; numpy parses no more."""


@dataclass(frozen=True)
class _Claim:
    """The header of an array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """[C, H, W] or [C, D, H, W]"""
        return self.shape if len(self.shape) == 4 else (1, *self.shape)


def look(path: Path, file: IO[bytes]) -> Header:
    with _stream(path, file) as (stream, length):
        claim = _claim(path, stream, length)
    return header_of(claim.picture_shape, claim.dtype)


def read(path: Path, file: IO[bytes]) -> Picture:
    with _stream(path, file) as (stream, length):
        claim = _claim(path, stream, length)
        content = stream.read(length)
        stream.read(1)  # an archive checks its sum at the end of a member, which must be asked for
    values = np.frombuffer(content, claim.dtype).reshape(claim.shape, order="F" if claim.fortran else "C")
    pixels = values.reshape(claim.picture_shape)
    return Picture(pixels, None, "slice" if pixels.ndim == 3 else "volume")


@contextmanager
def _stream(path: Path, file: IO[bytes]) -> Iterator[tuple[IO[bytes], int]]:
    """The bytes of the one array, and how many there are."""
    if path.suffix.lower() == ".npy":
        yield file, path.stat().st_size
        return
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:5]) or "none"
            raise DataError(f"{path}: an archive must hold one array, it holds {len(members)} ({names})")
        with archive.open(members[0]) as stream:
            yield stream, members[0].file_size


def _claim(path: Path, stream: IO[bytes], length: int) -> _Claim:
    """The header, checked against the number of bytes; the stream is left at the first pixel."""
    claim = _parsed(_header(stream))
    check_claim(path, claim.shape, claim.dtype)
    if not 2 <= len(claim.shape) <= 4:
        raise DataError(
            f"{path}: has shape {claim.shape}; expected [rows, columns], [slices, rows, columns] or [channels, slices, "
            "rows, columns]"
        )
    there, claimed = length - stream.tell(), int(np.prod(claim.shape)) * claim.dtype.itemsize
    if there != claimed:
        raise DataError(f"{path}: the file is damaged: it has {there} bytes of pixels, its header says {claimed}")
    return claim


def _header(stream: IO[bytes]) -> bytes:
    """All that stands before the pixels."""
    start = stream.read(8)
    length = stream.read(2 if start[6:] == b"\x01\x00" else 4)
    return start + length + stream.read(min(int.from_bytes(length, "little"), MOST_HEADER))


@lru_cache(maxsize=64)
def _parsed(header: bytes) -> _Claim:
    """Parsing takes longer than reading a slice, and the slices of a data set have the same header."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return _Claim(*np.lib.format.read_array_header_1_0(stream))
    if version == (2, 0):
        return _Claim(*np.lib.format.read_array_header_2_0(stream))
    raise ValueError(f"version {version} of the format")
