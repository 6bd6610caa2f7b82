"""From the mapped store to tensors: gather rows, cut the centre out, normalise.

No worker processes: at these sizes a batch is one copy out of the page cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proseg.data.store import Store


@dataclass(frozen=True)
class Batch:
    image: torch.Tensor
    """[B, C, H, W] float32, normalised."""
    annotations: torch.Tensor
    """[B, R, H, W] float32, 0 or 1."""
    rater_mask: torch.Tensor
    """[B, R] bool."""

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.image.to(device), self.annotations.to(device), self.rater_mask.to(device))


def load(store: Store, rows: Sequence[int] | np.ndarray, crop: int | None = None) -> Batch:
    """These slices as one batch, the central `crop` x `crop` pixels of each (None: all)."""
    window = _centre(store.manifest.height, crop), _centre(store.manifest.width, crop)
    image = torch.from_numpy(np.stack([store.image(row)[:, *window] for row in rows]).astype(np.float32))
    masks = torch.from_numpy(np.stack([store.annotations(row)[:, *window] for row in rows]).astype(np.float32))
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


def augment(batch: Batch, *, flip: bool, noise: float) -> Batch:
    """Mirror and turn the whole batch by one random symmetry of the square, image and masks together; add noise.

    One symmetry a batch, not one an image: over an epoch every symmetry is seen as often, and nothing is gathered.
    """
    image, masks = batch.image, batch.annotations
    if flip:
        turns, mirror = (int(v) for v in torch.randint(0, 4, (2,)))
        if image.shape[-1] == image.shape[-2]:
            image, masks = image.rot90(turns, (-2, -1)), masks.rot90(turns, (-2, -1))
        if mirror % 2:
            image, masks = image.flip(-1), masks.flip(-1)
    if noise:
        image = image + noise * torch.randn_like(image)
    return Batch(image.contiguous(), masks.contiguous(), batch.rater_mask)
