"""From the mapped store to tensors: gather rows, cut the centre out, normalise.

No worker processes: at these sizes a batch is one copy out of the page cache.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from proseg.data.store import Store


@dataclass(frozen=True)
class Batch:
    image: torch.Tensor
    """[B, C, H, W] float32, normalised."""
    annotations: torch.Tensor
    """[B, R, H, W] uint8: 0 is background, then the classes; binary: 0 or 1."""
    rater_mask: torch.Tensor
    """[B, R] bool."""

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.image.to(device), self.annotations.to(device), self.rater_mask.to(device))


def load(store: Store, rows: Sequence[int] | np.ndarray, crop: int | None = None) -> Batch:
    """These slices as one batch, the central `crop` x `crop` pixels of each (None: all)."""
    window = _centre(store.manifest.height, crop), _centre(store.manifest.width, crop)
    image = torch.from_numpy(store.pixels(rows, window).astype(np.float32))
    masks = torch.from_numpy(np.stack([store.annotations(row)[:, *window] for row in rows]))
    present = torch.from_numpy(np.stack([store.rater_mask(row) for row in rows]))
    return Batch(normalise(image, store.manifest.window), masks, present)


def normalise(image: torch.Tensor, window: tuple[float, float] | None) -> torch.Tensor:
    """Map the intensity window to -1..1 and clip; an image that came normalised is left alone."""
    if window is None:
        return image
    low, high = window
    return ((image - low) * (2 / (high - low)) - 1).clamp_(-1, 1)


def _centre(size: int, crop: int | None) -> slice:
    if crop is None or crop >= size:
        return slice(None)
    start = (size - crop) // 2
    return slice(start, start + crop)


def augment(batch: Batch, *, flip: bool, rotate: float = 0.0, noise: float = 0.0) -> Batch:
    """Random flips, quarter turns, rotations and noise (App. C.1.1), each image its own, the whole batch at once.

    Image and masks move together; masks are read at the nearest pixel and so stay labels. What a rotation brings into
    view is the border's intensity, and background in the masks. The random numbers come from torch's global generator.

    Args:
        flip: mirror images, and quarter turns where the image is square.
        rotate: largest angle, degrees.
        noise: standard deviation, in normalised intensities.
    """
    image, masks = batch.image, batch.annotations
    if flip:
        mirrored, flipped, turned = torch.randint(0, 2, (3, len(batch), 1, 1, 1)).bool().to(image.device)
        image, masks = _flipped(image, mirrored, flipped, turned), _flipped(masks, mirrored, flipped, turned)
    if rotate:
        image, masks = _rotated(image, masks, rotate)
    if noise:
        image = image + noise * torch.randn_like(image)
    return Batch(image, masks, batch.rater_mask)


def _flipped(images: torch.Tensor, mirrored: torch.Tensor, flipped: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """Any of the symmetries of a square, of each image its own; those of an oblong where it is one."""
    images = torch.where(mirrored, images.flip(-1), images)
    images = torch.where(flipped, images.flip(-2), images)
    square = images.shape[-1] == images.shape[-2]
    return torch.where(turned, images.mT, images) if square else images


def _rotated(image: torch.Tensor, masks: torch.Tensor, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image turned by an angle of its own, uniform in -largest..largest degrees."""
    batch, (height, width) = len(image), image.shape[-2:]
    angle = math.radians(largest) * (2 * torch.rand(batch, device=image.device) - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # grid_sample's axes run from -1 to 1 on both sides: on an oblong image a turn must know their true lengths.
    rows = (cos, -sin * height / width, zero, sin * width / height, cos, zero)
    grid = F.affine_grid(torch.stack(rows, 1).view(batch, 2, 3), [batch, 1, height, width], align_corners=False)
    moved = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    labels = F.grid_sample(masks.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, labels.to(masks.dtype)
