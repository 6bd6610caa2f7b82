"""What a model makes of a few validation slices, taken at each best epoch of a training at next to no cost.

The forward pass is a tiny one of its own, on the rank that asks: the slices may have been validated by another rank.
"""

from collections.abc import Sequence

import numpy as np
import torch

from proseg.data import batches
from proseg.data.store import Store
from proseg.distributed import derive_seed
from proseg.generate import binarise, maps
from proseg.method import Method
from proseg.pictures import LARGEST_DEVIATION, Samples

SLICES = 3
DRAWS = 16
"""From the prior, of which the uncertainty is the standard deviation."""


def choose(store: Store, cases: Sequence[np.ndarray], crop: int | None) -> list[int]:
    """Rows to show: of each of the first patients among the cases, the slice with the most annotated pixels.

    Patients of whom nothing is annotated within the crop are passed over, unless there are no others.
    """
    found: list[int] = []
    for patient in _patients(store, cases):
        areas = [int(batches.load(store, [row], crop).annotations.bool().sum()) for row in patient]
        if any(areas):
            found.append(patient[areas.index(max(areas))])
        if len(found) == SLICES:
            break
    return found or [int(case[0]) for case in cases[:SLICES]]


def _patients(store: Store, cases: Sequence[np.ndarray]) -> list[list[int]]:
    """The rows of every patient, in the order in which the patients come."""
    rows: dict[str, list[int]] = {}
    for case in cases:
        rows.setdefault(str(store.patients[case[0]]), []).extend(case.tolist())
    return list(rows.values())


@torch.no_grad()
def take(model: Method, store: Store, rows: Sequence[int], epoch: int) -> Samples:
    """The slices, their annotations, the map made for each rater and the uncertainty; leaves global noise alone."""
    config, manifest = model.config, store.manifest
    batch = batches.load(store, rows, config.data.crop).to(model.device)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "samples"))
    model.eval()
    mine, drawn = maps(model, batch.image, model.each_rater(), model.prior(len(rows), DRAWS, generator))
    deviation = drawn.sum(2).std(1).clamp(max=LARGEST_DEVIATION)  # of the probability of any class of foreground
    return Samples(
        label=f"{manifest.name}: {manifest.label}", epoch=epoch, draws=DRAWS,
        image=_grey(batch.image[:, 0].cpu().numpy(), normalised=manifest.window is not None),
        annotations=batch.annotations.cpu().numpy(), present=batch.rater_mask.cpu().numpy(),
        predictions=_labels(binarise(mine)).cpu().numpy(),
        uncertainty=(deviation * (255 / LARGEST_DEVIATION)).round().byte().cpu().numpy(),
    )  # fmt: skip


def _labels(masks: torch.Tensor) -> torch.Tensor:
    """[..., K, H, W] bool -> [..., H, W] uint8, 0 the background."""
    classes = torch.arange(1, masks.shape[-3] + 1, device=masks.device, dtype=torch.uint8)
    return (masks * classes[:, None, None]).amax(-3)


def _grey(images: np.ndarray, *, normalised: bool) -> np.ndarray:
    """[N, H, W] float -> uint8: from the window, or from the range of each image that has none."""
    shape = (-1, 1, 1)
    low, high = (-1.0, 1.0) if normalised else np.percentile(images, (1, 99), axis=(1, 2)).reshape(2, *shape)
    scaled = (images - low) / np.maximum(high - low, 1e-6)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8)
