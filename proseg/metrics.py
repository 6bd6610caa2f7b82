"""Metrics of multi-rater segmentation (App. C.1.2), pure functions on batches.

Letters: B batch, S samples, R raters, *spatial two or three axes.

Conventions: d(a, b) = 1 - IoU(a, b). Two empty masks agree (IoU = Dice = 1); an empty and a non-empty one do not (0).
Sets are compared as matrix products, so that [S, S, pixels] never exists in memory. Sums run in float32 and are exact
up to 2^24 voxels.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class GED:
    """Generalised energy distance and its parts, each [B]."""

    ged: torch.Tensor
    d_pp: torch.Tensor
    d_pa: torch.Tensor
    d_aa: torch.Tensor


def ged(samples: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None) -> GED:
    """Generalised energy distance (eq. 20): 2 d_pa - d_pp - d_aa, means over all ordered pairs, i = j included.

    Args:
        samples: [B, S, *spatial] bool.
        annotations: [B, R, *spatial] bool.
        rater_mask: [B, R] bool, raters to count; None counts all.
    """
    weights = _weights(annotations, rater_mask)
    p, a = _flat(samples), _flat(annotations)
    d_pp = (1 - _iou(p, p)).mean((1, 2))
    d_pa = ((1 - _iou(p, a)).mean(1) * weights).sum(1)
    d_aa = ((1 - _iou(a, a)) * weights[:, :, None] * weights[:, None, :]).sum((1, 2))
    return GED(2 * d_pa - d_pp - d_aa, d_pp, d_pa, d_aa)


def dice_soft(
    probabilities: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Soft Dice (eq. 21): mean over five thresholds of Dice(mean annotation > t, mean prediction > t). -> [B]

    Args:
        probabilities: [B, S, *spatial] in [0, 1].
        annotations: [B, R, *spatial] bool.
        rater_mask: [B, R] bool.
    """
    counts = annotations if rater_mask is None else annotations & _spread(rater_mask, annotations)
    raters = annotations.shape[1] if rater_mask is None else rater_mask.sum(1, keepdim=True).double()
    # Divide whole counts last: 3/10 must equal the threshold 0.3, not exceed it.
    expert = counts.flatten(2).sum(1, dtype=torch.float64) / raters
    model = probabilities.flatten(2).mean(1, dtype=torch.float64)
    return torch.stack([_dice_pairwise(expert > t, model > t) for t in THRESHOLDS]).mean(0)


def dice_max(samples: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over annotations of the best Dice that any sample reaches (Fig. 5). -> [B]"""
    best = _dice(_flat(samples), _flat(annotations)).amax(1)
    return (best * _weights(annotations, rater_mask)).sum(1)


def dice_match(
    samples: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean Dice of the best one-to-one matching of samples to annotations (Hungarian method). -> [B]

    With unequal numbers, min(S, R) pairs are matched.
    """
    table = _dice(_flat(samples), _flat(annotations)).cpu()
    present = torch.ones(annotations.shape[:2], dtype=torch.bool) if rater_mask is None else rater_mask.cpu()
    scores = []
    for dice, keep in zip(table, present, strict=True):
        dice = dice[:, keep]
        rows, columns = linear_sum_assignment(dice.numpy(), maximize=True)
        scores.append(dice[rows, columns].mean())
    return torch.stack(scores).to(samples.device)


def dice_per_rater(
    predictions: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Dice of annotation r with the prediction made FOR rater r: identity, no matching. -> [B, R]

    NaN where the rater is missing.
    """
    scores = _dice_pairwise(predictions.flatten(2), annotations.flatten(2))
    return scores if rater_mask is None else scores.masked_fill(~rater_mask, torch.nan)


def _flat(masks: torch.Tensor) -> torch.Tensor:
    return masks.flatten(2).float()  # [B, S, P]


def _spread(rater_mask: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return rater_mask.reshape(*rater_mask.shape, *[1] * (masks.ndim - 2))


def _weights(annotations: torch.Tensor, rater_mask: torch.Tensor | None) -> torch.Tensor:
    """[B, R] weights of the raters, summing to one in every image."""
    if rater_mask is None:
        rater_mask = torch.ones(annotations.shape[:2], dtype=torch.bool, device=annotations.device)
    return rater_mask.double() / rater_mask.sum(1, keepdim=True)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersections [B, M, N] and sums of areas [B, M, N] of two sets of masks."""
    both = torch.bmm(a, b.transpose(1, 2)).double()
    return both, a.sum(2).double()[:, :, None] + b.sum(2).double()[:, None, :]


def _iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    both, areas = _overlap(a, b)
    return torch.where(areas > 0, both / (areas - both).clamp(min=1), 1.0)


def _dice(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    both, areas = _overlap(a, b)
    return torch.where(areas > 0, 2 * both / areas.clamp(min=1), 1.0)


def _dice_pairwise(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dice along the last axis of two bool tensors of one shape."""
    areas = (a.sum(-1) + b.sum(-1)).double()
    return torch.where(areas > 0, 2 * (a & b).sum(-1).double() / areas.clamp(min=1), 1.0)
