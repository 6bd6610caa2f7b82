"""PNG and TIFF: grey levels of 8, 16 or 32 bits, or colours of 8 bits as three channels.

The pages of a TIFF are the slices of a volume, from the first up; where ImageJ wrote it and says so, the pages of a
slice are its channels. Resolution tags are not read: they speak of paper more often than of tissue.
"""

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile

from proseg.data.images.picture import Header, Picture, check_claim, header_of
from proseg.errors import DataError

DAMAGE: tuple[type[Exception], ...] = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
    RuntimeError, struct.error, NotImplementedError, UserWarning,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow raises over damaged bytes, depending on what they stood for; the last two over bombs."""

COLOURS = {"LA": 1, "RGB": 3, "RGBA": 3}
"""Channels of the modes that have several bands; an alpha band is none."""
TYPES = {"1": np.bool_, "I;16": np.uint16, "I;16B": np.uint16, "I;16L": np.uint16, "I": np.int32, "F": np.float32}
"""Of the modes with one band; 8 bits where nothing else is said."""

DESCRIPTION, BITS, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = 270, 258, 262, 277, 339
"""Tags of TIFF."""
WHITE_IS_ZERO, SIGNED, UNSIGNED = 0, 2, 1


def look(path: Path, file: IO[bytes]) -> Header:
    with _opened(path, file) as image:
        return header_of(_shape(path, image), _dtype(image))


def read(path: Path, file: IO[bytes]) -> Picture:
    with _opened(path, file) as image:
        shape, size, mode = _shape(path, image), image.size, image.mode
        pages = []
        for number in range(_pages(image)):
            image.seek(number)
            if (image.size, image.mode) != (size, mode):
                raise DataError(f"{path}: page {number + 1} is {_words(image)}, but the first is {size} {mode}")
            _check_lossless(path, image)
            pages.append(_page(path, image))
    # [pages, H, W, bands], the channels of a slice one after the other -> [C, D, H, W]
    stack = np.stack(pages)
    depth, height, width = len(stack) // _page_channels(image), *stack.shape[1:3]
    ordered = stack.reshape(depth, -1, height, width, stack.shape[3]).transpose(1, 4, 0, 2, 3)
    return Picture(ordered.reshape(shape), None, "slice" if len(shape) == 3 else "volume")


@contextmanager
def _opened(path: Path, file: IO[bytes]) -> Iterator[ImageFile.ImageFile]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("error", "Corrupt|Truncated", UserWarning)
        with Image.open(file, formats=["PNG", "TIFF"]) as image:
            _check_lossless(path, image, file)
            check_claim(path, _shape(path, image), _dtype(image))
            yield image


def _check_lossless(path: Path, image: ImageFile.ImageFile, file: IO[bytes] | None = None) -> None:
    """Raises DataError where Pillow would give other numbers than the file holds."""
    if image.mode in ("P", "PA"):
        raise DataError(f"{path}: has a palette: its numbers stand for colours; save it in grey levels")
    if image.mode not in ("L", *TYPES, *COLOURS):
        raise DataError(f"{path}: is of the mode {image.mode}; expected grey levels, or red, green and blue")
    deep = _png_bits(file) > 8 if image.format == "PNG" and file else max(_tag(image, BITS, (1,))) > 8
    if deep and image.mode in COLOURS:
        raise DataError(f"{path}: has colours of 16 bits, which are not read; save each channel as a file of its own")
    if image.format == "TIFF":
        _check_tags(path, image)


def _check_tags(path: Path, image: ImageFile.ImageFile) -> None:
    if _tag(image, PHOTOMETRIC, (1,))[0] == WHITE_IS_ZERO and image.mode not in ("1", "L"):
        raise DataError(f"{path}: is stored with 0 as white; save it with 0 as black")
    if _tag(image, SAMPLE_FORMAT, (UNSIGNED,))[0] == SIGNED and image.mode == "L":
        raise DataError(f"{path}: has signed numbers of 8 bits, which are not read; save it with 16 bits")
    if _tag(image, SAMPLES, (1,))[0] > len(image.getbands()):
        raise DataError(f"{path}: has more samples a pixel than its colours; save each channel as a file of its own")


def _png_bits(file: IO[bytes]) -> int:
    """Of a sample: the byte that follows the signature, the first chunk's name, width and height."""
    place = file.tell()
    file.seek(24)
    bits = file.read(1)[0]
    file.seek(place)
    return bits


def _shape(path: Path, image: ImageFile.ImageFile) -> tuple[int, ...]:
    """[C, H, W], or [C, D, H, W] where there are several slices."""
    pages, channels, (width, height) = _pages(image), _page_channels(image), image.size
    if pages > 1 and image.format == "PNG":
        raise DataError(f"{path}: is an animation of {pages} pictures; save one picture a file")
    if pages % channels:
        raise DataError(f"{path}: has {pages} pages, which is no multiple of the {channels} channels that it claims")
    bands = COLOURS.get(image.mode, 1) * channels
    return (bands, height, width) if pages == channels else (bands, pages // channels, height, width)


def _pages(image: ImageFile.ImageFile) -> int:
    return getattr(image, "n_frames", 1)


def _page_channels(image: ImageFile.ImageFile) -> int:
    """Pages of one slice: ImageJ writes their number into the description."""
    text = _tag(image, DESCRIPTION, ("",))[0]
    found = re.search(r"^channels=(\d{1,3})\s*$", text, re.MULTILINE) if str(text).startswith("ImageJ=") else None
    return max(1, int(found[1])) if found else 1


def _dtype(image: ImageFile.ImageFile) -> np.dtype:
    return np.dtype(TYPES.get(image.mode, np.uint8))


def _page(path: Path, image: ImageFile.ImageFile) -> np.ndarray:
    """[H, W, bands]"""
    pixels = np.array(image)
    if image.mode in ("LA", "RGBA"):
        if (pixels[..., -1] != 255).any():
            raise DataError(f"{path}: is transparent in places; save it without an alpha channel")
        pixels = pixels[..., :-1]
    if image.mode == "I" and _tag(image, SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED and image.format == "TIFF":
        pixels = pixels.view(np.uint32)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _tag(image: ImageFile.ImageFile, number: int, otherwise: tuple) -> tuple:
    """The values of a tag of TIFF."""
    value = image.tag_v2.get(number, otherwise) if image.format == "TIFF" else otherwise  # type: ignore[attr-defined]
    return value if isinstance(value, tuple) else (value,)


def _words(image: ImageFile.ImageFile) -> str:
    return f"{image.size} {image.mode}"
