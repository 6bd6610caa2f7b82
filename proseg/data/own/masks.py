"""What the numbers of a mask mean: labels, black and white, or grey levels about a threshold."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from proseg.errors import DataError

NEAR = 1e-3
"""Distance from a whole number up to which a value is taken for it: programs write 0.9999999 for 1."""
WHITE = (255, 65535)
"""Values that mean 1 beside 0 where there is one class."""
MOST_CLASSES = 20
"""Classes that are proposed to a user; more labels are rather grey levels."""
SHOWN = 6


@dataclass(frozen=True)
class Meaning:
    """How masks are understood."""

    classes: int = 1
    threshold: float | None = None
    """Value from which on a pixel belongs to the object; None: masks hold labels."""
    invert: bool = False
    """Whether object and background are exchanged."""
    empty_is_missing: bool = False
    """Whether a mask without any object says that its rater did not annotate the image."""

    def labels(self, where: str, mask: np.ndarray) -> np.ndarray:
        """The labels of a mask: [D, H, W] bool for one class, uint8 otherwise.

        Raises:
            DataError: its values are no labels; says what they look like, and what to do.
        """
        if self.threshold is not None:
            return (mask >= self.threshold) != self.invert
        whole = np.rint(mask) if mask.dtype.kind == "f" else mask
        found = np.unique(mask) if mask.dtype.kind == "f" and (np.abs(mask - whole) > NEAR).any() else _distinct(whole)
        if self.classes == 1 and found[-1] in WHITE and np.isin(found, (0, found[-1])).all():
            return (whole != 0) != self.invert
        if not np.isin(found, np.arange(self.classes + 1)).all() or _grey(whole, found):
            raise DataError(f"{where} {_described(mask, found, self)}")
        return (whole != 0) != self.invert if self.classes == 1 else whole.astype(np.uint8)


def _distinct(mask: np.ndarray) -> np.ndarray:
    """The values in ascending order; of 8 bits without sorting the pixels, which takes far longer."""
    if mask.dtype not in (np.uint8, np.bool_):
        return np.unique(mask)
    return np.flatnonzero(np.bincount(mask.view(np.uint8).ravel(), minlength=256))


def _grey(mask: np.ndarray, found: np.ndarray) -> bool:
    """Whether the values between the least and the largest are those of smooth edges: few pixels have them, and most
    stand between a lower and a higher one wherever they are."""
    between = found[1:-1]
    if len(between) < 2 or np.isin(mask, found[[0, -1]]).mean() < 0.5:
        return False
    low, high = (of(mask, size=(1, 3, 3), mode="nearest") for of in (ndimage.minimum_filter, ndimage.maximum_filter))
    inside = np.unique(mask[(low == mask) | (high == mask)])
    return int(np.isin(between, inside).sum()) * 2 < len(between)


def _described(mask: np.ndarray, found: np.ndarray, meaning: Meaning) -> str:
    """What it looks like, and the option for that, which replaces those that do not go with it."""
    classes = meaning.classes
    allowed = "0 and 1, or 0 and 255" if classes == 1 else f"the labels 0 to {classes}"
    low, high, between = found[0], found[-1], max(0, len(found) - 2)
    middle = f"--threshold {(low + high + 1) // 2:g}" if high - low > 1 else f"--threshold {(low + high) / 2:g}"
    middle += " in place of --classes" if classes > 1 else ""
    ends = f"{low:g}, {high:g} and {between} value{'s' * (between != 1)} between"
    if between > 1 and _grey(mask, found):
        return f"holds {ends}, on edges, where {allowed} are expected: {middle}"
    if (found != np.rint(found)).any() or between > MOST_CLASSES:
        return f"holds {ends}, where {allowed} are expected: {middle}, if it shows an object in grey levels"
    values = ", ".join(f"{value:g}" for value in found[:SHOWN]) + (" ..." if len(found) > SHOWN else "")
    if low >= 0 and classes < high <= MOST_CLASSES:
        several = f"--classes {high:g}" + (" in place of --invert" if meaning.invert else "")
        return f"holds the labels {values}, where {allowed} are expected: {several}, if there are so many"
    return f"holds the values {values}, where {allowed} are expected: write labels from 0 up, or choose with {middle}"
