"""What becomes of the numbers of an image file before a model sees them: one way, for training and for prediction."""

import math
from collections.abc import Iterator

import numpy as np

from proseg.errors import DataError

INT16 = np.iinfo(np.int16)


def clipped(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Whole numbers as int16, and how many of them lay beyond and were clipped."""
    if np.can_cast(pixels.dtype, np.int16):
        return pixels.astype(np.int16, copy=False), 0
    least = max(INT16.min, np.iinfo(pixels.dtype).min)
    return pixels.clip(least, INT16.max).astype(np.int16), beyond_int16(pixels)


def beyond_int16(pixels: np.ndarray) -> int:
    """Number of pixels that int16 cannot hold."""
    if np.can_cast(pixels.dtype, np.int16):
        return 0
    return int(np.count_nonzero(pixels > INT16.max)) + int(np.count_nonzero(pixels < INT16.min))


def as_float32(pixels: np.ndarray, where: object) -> np.ndarray:
    """Raises DataError, naming `where`, if a value is too large for 32 bits."""
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which is reported below
        image = pixels.astype(np.float32)
    if not np.isfinite([image.min(), image.max()]).all():
        raise DataError(f"{where}: has intensities that are too large for 32 bits")
    return image


def moments(image: np.ndarray) -> np.ndarray:
    """Mean and deviation of each channel, [2, C] float32; the deviation of a channel of one value is 1.

    Args:
        image: [C, D, H, W] of any type.
    """
    return np.array([*zip(*map(_moments, image), strict=True)], np.float32)


def standardised(image: np.ndarray) -> np.ndarray:
    """Each channel of [C, D, H, W] float32 of zero mean and unit variance, in place; a channel of one value is zero."""
    for channel, mean, deviation in zip(image, *moments(image), strict=True):
        channel -= mean
        channel /= deviation
    return image


def _moments(channel: np.ndarray) -> Iterator[np.float32]:
    """One slice at a time: numpy's own deviation of a volume takes twice its memory."""
    mean = np.float32(channel.mean(dtype=np.float64))
    squares = sum(float(np.square(one - mean, dtype=np.float64).sum()) for one in channel)
    yield mean
    yield np.float32(math.sqrt(squares / channel.size)) or np.float32(1)
