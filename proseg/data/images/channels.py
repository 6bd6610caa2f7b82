"""One image whose channels lie in several files: they must have one channel each, one size, and lie at one place."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from proseg.data.images.picture import Header, Picture
from proseg.errors import DataError

HALF_A_PIXEL = 0.5
"""Files may lie so far from each other, in the smallest spacing: programs round what they write."""


def joined_header(names: Sequence[str], headers: Sequence[Header], where: str = "") -> Header:
    """Of the image that these files make.

    Args:
        names: of the files, for messages.
        headers: one file holds all channels, or each of them one.
        where: what messages begin with.

    Raises:
        DataError: naming the file that does not go with the first.
    """
    first = headers[0]
    if len(headers) == 1:
        return first
    for name, header in zip(names, headers, strict=True):
        if header.channels != 1:
            raise DataError(f"{where}{name} has {header.channels} channels; a file of one channel has one")
        if shape_of(header) != shape_of(first):
            raise DataError(f"{where}{name} is {size_of(header)}, but {names[0]} is {size_of(first)}")
    dtype = np.result_type(*(header.dtype for header in headers))
    notes = tuple(dict.fromkeys(note for header in headers for note in header.notes))
    return Header(len(headers), first.depth, first.height, first.width, dtype, notes)


def joined(names: Sequence[str], pictures: Sequence[Picture], where: str = "") -> Picture:
    """The image that these files make; arguments and errors as of `joined_header`."""
    first = pictures[0]
    for name, other in zip(names, pictures, strict=True):
        if other.pixels.shape != first.pixels.shape:
            raise DataError(f"{where}{name} has another shape than {names[0]}")
        check_place(f"{where}{name}", first, other, names[0])
    if len(pictures) == 1:
        return first
    return replace(first, pixels=np.concatenate([picture.pixels for picture in pictures]))


def check_place(where: str, image: Picture, other: Picture, name: str) -> None:
    """That both lie at the same place in space, or neither says where it lies.

    Args:
        where: what `other` is.
        name: what `image` is.
    """
    if (image.grid is None) != (other.grid is None):
        silent = name if image.grid is None else "it"
        raise DataError(
            f"{where} cannot be laid on {name}, as {silent} does not say where in space it lies; use files of one type"
        )
    if image.grid is None or other.grid is None:
        return
    depth, height, width = with_depth(image.pixels).shape[1:]
    corners = np.array([(z, y, x, 1) for z in (0, depth) for y in (0, height) for x in (0, width)]).T
    apart = np.linalg.norm((image.grid - other.grid)[:3] @ corners, axis=0).max()
    if apart > HALF_A_PIXEL * min(np.linalg.norm(image.grid[:3, :3], axis=0)):
        raise DataError(f"{where} lies up to {apart:.3g} mm away from {name}, by what both files say")


def with_depth(pixels: np.ndarray) -> np.ndarray:
    """[C, H, W] or [C, D, H, W] -> [C, D, H, W]"""
    return pixels if pixels.ndim == 4 else pixels[:, None]


def shape_of(header: Header) -> tuple[int | None, int, int]:
    """(D, H, W), where there are no slices (None, H, W)."""
    return header.depth, header.height, header.width


def size_of(header: Header) -> str:
    """In words: "20 x 512 x 512"."""
    return " x ".join(str(length) for length in shape_of(header) if length is not None)
