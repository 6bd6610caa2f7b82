"""One annotated slice, as every data source yields it and the store keeps it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Slice:
    """An image with the masks of its raters."""

    image: np.ndarray
    """[C, H, W], int16 (Hounsfield units) or float32 (already normalised)."""
    annotations: np.ndarray
    """[R, H, W] bool, or uint8 labels where there are several classes; all zero where the rater is missing."""
    rater_mask: np.ndarray
    """[R] bool: which raters annotated this image."""
    patient: str
    """Folds are drawn over patients: every slice of one patient lies on the same side."""
    volume: str
    """The slices of one volume (or nodule) share this id, in ascending `z`."""
    z: float
    """Position along the axis of the volume, mm."""
    spacing: tuple[float, float, float]
    """(z, y, x) in mm."""
