"""PNG, JPEG, BMP, GIF, PPM and its kin, and TIFF: grey levels of 8, 16 or 32 bits, or colours of 8 bits as three
channels.

The pages of a TIFF are the slices of a volume, from the first up; where ImageJ or OME-XML says that they are channels,
or both, they are, and `axes` has the last word. Pixels lie as they are stored: a tag that asks viewers to turn an image
is told of and not followed, since the masks beside it have none. Resolution tags are not read: they speak of paper more
often than of tissue.

As a mask, a palette gives its indices, but that of black and white, or of a GIF in grey levels, its colours; colours
that are all grey are one channel.
"""

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from proseg.data.images.picture import MOST_CHANNELS, Header, Picture, check_claim, header_of
from proseg.data.images.volumes import opened
from proseg.errors import DataError

DAMAGE: tuple[type[Exception], ...] = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
    RuntimeError, struct.error, NotImplementedError, UserWarning,
)  # fmt: skip
"""What Pillow raises over damaged bytes, depending on what they stood for."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF")
COLOURS = {"LA": 1, "RGB": 3, "RGBA": 3}
"""Channels of the modes that have several bands; an alpha band is none."""
TYPES = {"1": np.bool_, "I;16": np.uint16, "I;16B": np.uint16, "I;16L": np.uint16, "I": np.int32, "F": np.float32}
"""Of the modes with one band; 8 bits where nothing else is said."""

DESCRIPTION, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, SAMPLE_FORMAT = 270, 258, 259, 262, 274, 277, 339
"""Tags of TIFF."""
WHITE_IS_ZERO, SIGNED, UNSIGNED, FLOAT, LOSSY = 0, 2, 1, 3, (6, 7, 34892)
STORED = {
    2: lambda pixels: pixels[:, ::-1], 3: lambda pixels: pixels[::-1, ::-1], 4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1), 6: lambda pixels: np.rot90(pixels),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1), 8: lambda pixels: np.rot90(pixels, -1),
}  # fmt: skip
"""Back from how Pillow turns a TIFF that asks for it, by the value of its tag."""


@dataclass(frozen=True)
class _Pages:
    """What the pages of a file are."""

    channels: int = 1
    slices: int | None = None
    """None: the file is 2-D."""
    times: int = 1
    slowest: str = "z"
    """z or c: whether all channels of a slice stand together, or all slices of a channel."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Array:
    """A file; see `proseg.data.images.read` for `axes` and `mask`."""

    path: Path
    axes: str | None
    mask: bool

    def look(self) -> Header:
        with _image(self.path, self.mask) as image:
            pages = _pages(self.path, image, self.axes, self.mask)
            return header_of(_shape(image, pages, self.mask), _dtype(image), (*pages.notes, *_turning(image)))

    def read(self) -> Picture:
        with _image(self.path, self.mask) as image:
            pages, size, mode = _pages(self.path, image, self.axes, self.mask), _size(image), image.mode
            shape, page = _shape(image, pages, self.mask), _mask_page if self.mask else _page
            planes = []
            for number in range(_count(image)):
                image.seek(number)
                if (_size(image), image.mode) != (size, mode):
                    raise DataError(
                        f"{self.path}: page {number + 1} is {_words(image)}, but the first is {size} {mode}"
                    )
                _check_supported(self.path, image)
                planes.append(page(self.path, image))
        stack = np.stack(planes)  # [pages, H, W, bands]
        depth = pages.slices or 1
        outer = (depth, pages.channels) if pages.slowest == "z" else (pages.channels, depth)
        stack = stack.reshape(*outer, *stack.shape[1:])
        stack = stack if pages.slowest == "z" else stack.swapaxes(0, 1)  # [D, C, H, W, bands]
        return Picture(stack.transpose(1, 4, 0, 2, 3).reshape(shape), None, "slice" if len(shape) == 3 else "volume")


@contextmanager
def _image(path: Path, mask: bool) -> Iterator[ImageFile.ImageFile]:
    """The file, opened and checked as far as its header tells."""
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is the limit that counts
    try:
        with opened(path) as file, warnings.catch_warnings():
            if _is_tiff(file):
                warnings.filterwarnings("error", "Corrupt|Truncated", UserWarning)
            try:
                image = Image.open(file, formats=FORMATS)
            except UnidentifiedImageError:
                _refuse(path, file)
            with image:
                if mask and (image.format in ("JPEG", "MPO") or _tag(image, COMPRESSION, 1) in LOSSY):
                    raise DataError(
                        f"{path}: is a mask compressed as JPEG, which changes values along edges; save masks as PNG"
                    )
                _check_supported(path, image, file)
                check_claim(path, (_count(image), *_size(image), len(image.getbands())), _dtype(image))
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = most


def _refuse(path: Path, file: IO[bytes]) -> NoReturn:
    """Of a file that Pillow cannot open, whether it is one that it does not know or is damaged."""
    file.seek(0)
    if not _is_tiff(file):
        raise ValueError
    start = file.read(16)
    tags = TiffImagePlugin.ImageFileDirectory_v2(start if b"+" in start[2:4] else start[:8])
    file.seek(tags.next)
    tags.load(file)
    bits, samples, kind = tags.get(BITS, (1,)), tags.get(SAMPLES, 1), tags.get(SAMPLE_FORMAT, (UNSIGNED,))
    what = {SIGNED: " signed", FLOAT: " floating point"}.get(kind[0], "")
    raise DataError(
        f"{path}: not supported: {bits[0]}-bit TIFF of{what} numbers, {samples} a pixel; save it with 8 or 16 bits, 32 "
        "bits for floating point numbers, or as .npy"
    )


def _is_tiff(file: IO[bytes]) -> bool:
    start = file.read(4)
    file.seek(0)
    return start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _check_supported(path: Path, image: ImageFile.ImageFile, file: IO[bytes] | None = None) -> None:
    """Raises DataError where Pillow would give other numbers than the file holds."""
    if image.mode not in ("L", "P", *TYPES, *COLOURS):
        raise DataError(
            f"{path}: not supported: {image.format} of the mode {image.mode}; save it in grey levels, or in red, green "
            "and blue"
        )
    bits = _tag(image, BITS, 1)
    deep = bits > 8 or (image.format == "PNG" and file is not None and _png_bits(file) > 8)
    deep |= image.format == "PPM" and _most(image) > 255
    if deep and image.mode in COLOURS:
        raise DataError(f"{path}: not supported: colours of 16 bits; save each channel as a file of its own")
    if image.format == "TIFF":
        _check_tags(path, image)


def _check_tags(path: Path, image: ImageFile.ImageFile) -> None:
    if _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO and image.mode not in ("1", "L"):
        raise DataError(f"{path}: not supported: TIFF with 0 as white; save it with 0 as black")
    if _tag(image, SAMPLE_FORMAT, UNSIGNED) == SIGNED and image.mode == "L":
        raise DataError(f"{path}: not supported: signed numbers of 8 bits; save it with 16 bits")
    if _tag(image, SAMPLES, 1) > len(image.getbands()):
        raise DataError(
            f"{path}: not supported: more samples a pixel than its colours; save each channel as a file of its own"
        )


def _png_bits(file: IO[bytes]) -> int:
    """Of a sample: the byte that follows the signature, the first chunk's name, width and height."""
    place = file.tell()
    file.seek(24)
    bits = file.read(1)[0]
    file.seek(place)
    return bits


def _most(image: ImageFile.ImageFile) -> int:
    """The number that Pillow turns into white, 255 or 65535: of a PPM or PGM, and of grey levels of 2 or 4 bits."""
    args = image.tile[0].args if image.tile else None
    if image.format == "PPM":
        return args[1] if isinstance(args, tuple) and isinstance(args[1], int) and args[1] > 0 else 255
    bits = _tag(image, BITS, {"L;2": 2, "L;4": 4}.get(str(args), 8))
    return 2**bits - 1 if image.mode == "L" and bits in (2, 4) else 255


# Pages and axes


def _pages(path: Path, image: ImageFile.ImageFile, axes: str | None, mask: bool) -> _Pages:
    count, bands = _count(image), 1 if mask else _bands(image)
    if image.format != "TIFF":
        if axes is not None:
            raise DataError(f"{path}: says by itself what its axes are; --axes is for NPY, NPZ and TIFF files")
        if count > 1:
            raise DataError(f"{path}: is an animation of {count} pictures; save one picture a file")
        return _Pages()
    stated = _stated(image)
    slices = stated.slices or 1
    if axes is not None:
        if stated.channels > 1 and slices > 1:
            raise DataError(f"{path}: says by itself which of its pages are channels and slices; leave --axes out")
        return _as_told(path, axes, count, bands)
    if stated.times > 1:
        raise DataError(
            f"{path}: holds {stated.times} points in time, which are not supported; save each as a file, or say "
            "--axes zyx if its pages are slices"
        )
    if stated.channels * slices not in (1, count):
        raise DataError(
            f"{path}: has {count} page(s), but says that it consists of {stated.channels} channel(s) of {slices} "
            "slice(s); if the others lie in other files, save it as one TIFF"
        )
    if stated.channels * slices > 1 or count == 1:
        return stated
    height, width = _size(image)[::-1]
    note = f"read as {count} slices of {height} x {width}; --axes cyx would make them channels"
    return _Pages(1, count, notes=(note,) if count <= MOST_CHANNELS and bands == 1 and not mask else ())


def _as_told(path: Path, axes: str, count: int, bands: int) -> _Pages:
    outer, plane, inner = axes.partition("yx")
    if plane != "yx" or outer not in ("", "z", "c", "t") or inner not in ("", "c") or outer == inner == "c":
        raise DataError(f"{path}: --axes {axes} is not possible for a TIFF; it may be yx, zyx or cyx, and a last c")
    if (not outer and count > 1) or (not inner and bands > 1) or (outer == "t" and count > 1):
        raise DataError(
            f"{path}: has {count} page(s) of {bands} channel(s), which is not what --axes {axes} says; t may only "
            "stand for one page"
        )
    return _Pages(count if outer == "c" else 1, count if outer == "z" else None)


def _stated(image: ImageFile.ImageFile) -> _Pages:
    """What ImageJ or OME-XML wrote into the description; one page where it says nothing of axes."""
    text = str(_tag(image, DESCRIPTION, ""))
    if text.startswith("ImageJ="):
        said = dict(re.findall(r"^(\w+)=(\d{1,6})\s*$", text, re.MULTILINE))
        channels, slices, times = (int(said.get(key, 1)) for key in ("channels", "slices", "frames"))
        order = "CZT"
    elif found := re.search(r"<(?:\w+:)?Pixels\s([^>]{1,4000})>", text):
        said = dict(re.findall(r"(\w+)\s*=\s*[\"'](\w{1,20})[\"']", found[1]))
        channels, slices, times = (int(said.get(f"Size{axis}", 1)) for axis in "CZT")
        channels, order = max(1, channels // len(image.getbands())), said.get("DimensionOrder", "XYZCT")
    else:
        return _Pages()
    slowest = "z" if order.index("C") < order.index("Z") else "c"
    return _Pages(channels, slices if slices > 1 else None, times, slowest)


def _shape(image: ImageFile.ImageFile, pages: _Pages, mask: bool) -> tuple[int, ...]:
    """[C, H, W], or [C, D, H, W] of a volume."""
    width, height = _size(image)
    channels = pages.channels * (1 if mask else _bands(image))
    return (channels, height, width) if pages.slices is None else (channels, pages.slices, height, width)


def _size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """(width, height) as stored."""
    width, height = image.size
    return (height, width) if _tag(image, ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def _turning(image: ImageFile.ImageFile) -> tuple[str, ...]:
    """What is to be told of a tag that asks for turning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            asked = _tag(image, ORIENTATION, image.getexif().get(ORIENTATION, 1))
        except DAMAGE:  # what a camera wrote beside the pixels
            return ()
    if asked not in STORED:
        return ()
    return (f"its orientation tag ({asked}) asks viewers to turn it; it is read as its pixels are stored",)


def _count(image: ImageFile.ImageFile) -> int:
    # MPO is the JPEG of a camera, whose other pictures are previews.
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


# Pixels


def _bands(image: ImageFile.ImageFile) -> int:
    """Channels of a page of an image."""
    if image.mode == "P":
        colours = _palette(image)
        return 1 if (colours == colours[:, :1]).all() else 3
    return COLOURS.get(image.mode, 1)


def _palette(image: ImageFile.ImageFile) -> np.ndarray:
    """[colours, 3]"""
    return np.reshape(image.getpalette("RGB") or [0, 0, 0], (-1, 3)).astype(np.uint8)


def _dtype(image: ImageFile.ImageFile) -> np.dtype:
    if image.format == "PPM" and image.mode == "I":
        return np.dtype(np.uint16)
    if image.format == "TIFF" and image.mode == "I" and _tag(image, SAMPLE_FORMAT, UNSIGNED) == UNSIGNED:
        return np.dtype(np.uint32)
    return np.dtype(TYPES.get(image.mode, np.uint8))


def _stored(image: ImageFile.ImageFile) -> np.ndarray:
    """[H, W, bands] as the file has them."""
    turned = STORED.get(_tag(image, ORIENTATION, 1), lambda pixels: pixels)
    most, dtype = _most(image), _dtype(image)
    pixels = turned(np.array(image))
    if most not in (255, 65535):  # Pillow stretches them
        pixels = np.rint(pixels * (most / (65535 if most > 255 else 255)))
    pixels = pixels.astype(dtype) if dtype.itemsize != 4 else pixels.view(dtype)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _page(path: Path, image: ImageFile.ImageFile) -> np.ndarray:
    """[H, W, bands] of an image: colours instead of a palette, and no alpha band."""
    pixels = _stored(image)
    if image.mode == "P":
        hidden, colours = image.info.get("transparency"), _palette(image)
        alpha = np.isin(pixels, hidden) if isinstance(hidden, int) else _alphas(hidden)[pixels]
        pixels = colours[np.minimum(pixels[..., 0], len(colours) - 1)][..., : _bands(image)]
    elif image.mode in ("LA", "RGBA"):
        alpha, pixels = pixels[..., -1], pixels[..., :-1]
    else:
        return pixels
    if alpha.min() != alpha.max():
        raise DataError(f"{path}: is transparent in places; save it without an alpha channel")
    return pixels


def _alphas(of_palette: Any) -> np.ndarray:
    """[256], of each index; those that are not named are opaque."""
    named = np.frombuffer(of_palette if isinstance(of_palette, bytes) else b"", np.uint8)[:256]
    return np.pad(named, (0, 256 - len(named)), constant_values=255)


def _mask_page(path: Path, image: ImageFile.ImageFile) -> np.ndarray:
    """[H, W, 1] of a mask."""
    pixels = _stored(image)
    if image.mode == "P":
        # A GIF has no other way to store grey levels.
        shades = _palette(image)[:, 0]
        as_shown = _bands(image) == 1 and shades.any() and (image.format == "GIF" or np.isin(shades, (0, 255)).all())
        return shades[np.minimum(pixels, len(shades) - 1)] if as_shown else pixels
    if image.mode not in COLOURS:
        return pixels
    colours = pixels[..., : COLOURS[image.mode]]
    if (colours != colours[..., :1]).any():
        several = len(np.unique(colours.reshape(-1, 3), axis=0))
        raise DataError(
            f"{path}: is a mask in {several} colours, of which it does not say what they stand for; save its labels as "
            "grey levels or with a palette"
        )
    labels = colours[..., 0]
    if image.mode in ("LA", "RGBA"):
        # An alpha band tells nothing new where all pixels of a label have the same.
        alpha = pixels[..., -1]
        if len(np.unique(labels.astype(np.uint16) * 256 + alpha)) > len(np.unique(labels)):
            raise DataError(f"{path}: is a mask that is transparent in places; save its labels as grey levels")
    return labels[..., None]


def _tag(image: ImageFile.ImageFile, number: int, otherwise: Any) -> Any:
    """The first value of a tag of TIFF."""
    value = image.tag_v2.get(number, otherwise) if image.format == "TIFF" else otherwise  # type: ignore[attr-defined]
    return value[0] if isinstance(value, tuple) else value


def _words(image: ImageFile.ImageFile) -> str:
    return f"{_size(image)} {image.mode}"
