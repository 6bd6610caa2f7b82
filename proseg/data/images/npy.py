"""NPY, and NPZ with one array; never a pickle.

Its axes are [H, W], [D, H, W] or [C, D, H, W], unless `axes` says otherwise; an array whose last axis looks like one of
channels is refused without it.
"""

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

from proseg.data.images.picture import MOST_CHANNELS, Header, Picture, check_claim, header_of
from proseg.data.images.volumes import opened
from proseg.errors import DataError, listed

DAMAGE: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
    RuntimeError, NotImplementedError,
)  # fmt: skip
"""What numpy and zipfile raise over damaged bytes; the last two over encryption and unknown compression."""

USUAL = {2: "yx", 3: "zyx", 4: "czyx"}
"""The axes of an array, by their number."""
MOST_HEADER = 10_000
"""Bytes; numpy parses no more."""


@dataclass(frozen=True)
class _Claim:
    """The header of an array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


@dataclass(frozen=True)
class Array:
    """A file; see `proseg.data.images.read` for `axes` and `mask`."""

    path: Path
    axes: str | None
    mask: bool

    def look(self) -> Header:
        with _stream(self.path) as (stream, length):
            claim = _claim(self.path, stream, length)
        sizes = dict(zip(self._word(claim), claim.shape, strict=True))
        shape = [sizes.get("c", 1), *([sizes["z"]] if "z" in sizes else []), sizes["y"], sizes["x"]]
        return header_of(shape, claim.dtype, () if self.axes or self.mask else _notes(claim.shape))

    def read(self) -> Picture:
        with _stream(self.path) as (stream, length):
            claim = _claim(self.path, stream, length)
            word = self._word(claim)
            content = stream.read(length)
            stream.read(1)  # an archive checks its sum at the end of a member, which must be asked for
        values = np.frombuffer(content, claim.dtype).reshape(claim.shape, order="F" if claim.fortran else "C")
        order = [word.index(axis) for axis in "tczyx" if axis in word]
        pixels = values.transpose(order).reshape([claim.shape[axis] for axis in order if word[axis] != "t"])
        pixels = pixels if "c" in word else pixels[None]
        return Picture(pixels, None, "slice" if pixels.ndim == 3 else "volume")

    def _word(self, claim: _Claim) -> str:
        return _axes(self.path, claim.shape, self.axes, self.mask)


def _axes(path: Path, shape: tuple[int, ...], axes: str | None, mask: bool) -> str:
    """The letter of each axis; raises DataError where they are not those of the array, or not clear."""
    if axes is None:
        *rest, rows, columns, last = 0, *shape
        if len(shape) > 2 and last <= MOST_CHANNELS < min(rows, columns):
            slices = "z" * (len(rest) > 1)
            raise DataError(
                f"{path}: has shape {shape}, whose axes can be read in two ways; say --axes {slices}yxc if the last "
                f"one is channels, or --axes {'c' * (len(rest) > 1)}zyx if it is columns"
            )
        return USUAL[len(shape)]
    word = axes.replace("c", "") if mask and len(axes) == len(shape) + 1 else axes
    if len(word) != len(shape):
        raise DataError(f"{path}: has {len(shape)} axes of the sizes {shape}, but --axes {axes} names {len(axes)}")
    if "t" in word and shape[word.index("t")] > 1:
        raise DataError(f"{path}: holds {shape[word.index('t')]} points in time; save each as a file of its own")
    return word


def _notes(shape: tuple[int, ...]) -> tuple[str, ...]:
    """What was read in one of two ways."""
    sizes = " x ".join(map(str, shape[-2:]))
    if len(shape) == 3 and shape[0] <= MOST_CHANNELS < min(shape[1:]):
        return (f"read as {shape[0]} slices of {sizes}; --axes cyx would make them channels",)
    if len(shape) == 4 and shape[1] <= MOST_CHANNELS < shape[0]:
        return (f"read as {shape[0]} channels of {shape[1]} slices of {sizes}; --axes zcyx would turn that round",)
    return ()


@contextmanager
def _stream(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The bytes of the one array, and how many there are."""
    if path.suffix.lower() == ".npy":
        with opened(path) as file:
            yield file, path.stat().st_size
        return
    with opened(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = listed([member.filename for member in members]) or "none"
            raise DataError(f"{path}: an archive must hold one array, it holds {len(members)} ({names})")
        if members[0].flag_bits & 1:
            raise DataError(f"{path}: not supported: an encrypted archive; save it without a password")
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
    raise NotImplementedError(f"version {version} of the format")
