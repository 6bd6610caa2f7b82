"""One annotated slice, as every data source yields it and the store keeps it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Slice:
    """An image with the masks of its raters."""

    image: np.ndarray
    """[C, H, W], uint8 or int16 as they were taken, or float32."""
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
    """(z, y, x) in mm; NaN where it is not known."""
    moments: np.ndarray | None = None
    """[2, C] float32, mean and deviation of each channel of the file, by which pixels are standardised when they are
    used; None where they are kept as they are used."""
