"""Metrics of multi-rater segmentation (App. C.1.2), pure functions on batches.

Letters: B batch, S samples, R raters, *spatial two or three axes.

Conventions: d(a, b) = 1 - IoU(a, b). Two empty masks agree (IoU = Dice = 1); an empty and a non-empty one do not (0).
An image without any rater scores NaN. Sets are compared as matrix products over blocks of pixels, so that neither
[S, S, pixels] nor a float copy of a volume ever exists in memory; counts are exact for any number of voxels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan, prod

import torch
from scipy.optimize import linear_sum_assignment

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
# Pixels, over all masks of the batch, that are converted at once: 2 MB, which a cache holds. Must not exceed 2^24,
# where float32 ceases to count.
BLOCK = 2**19


@dataclass(frozen=True)
class GED:
    """Generalised energy distance and its parts, each [B].

    `unbiased` has d_pp and d_aa over pairs i != j only (a U-statistic). For samples drawn independently its expectation
    does not depend on S, as that of `ged` does; one sample of each rater is no such draw. It can be negative, and is
    NaN for S = 1 or a single rater.
    """

    ged: torch.Tensor
    d_pp: torch.Tensor
    d_pa: torch.Tensor
    d_aa: torch.Tensor
    unbiased: torch.Tensor


def set_metrics(
    samples: torch.Tensor,
    probabilities: torch.Tensor,
    annotations: torch.Tensor,
    rater_mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """All metrics of a set of samples, each [B], for little more than the price of one.

    Args:
        samples: [B, S, *spatial] bool.
        probabilities: [B, S, *spatial] in [0, 1], for `dice_soft` alone.
        annotations: [B, R, *spatial] bool.
        rater_mask: [B, R] bool, raters to count; None counts all.
    """
    present = _checked(annotations, rater_mask, samples=samples, probabilities=probabilities)
    iou = _iou(samples, annotations)
    distance = _ged(iou, present)
    pairs = iou[:, : samples.shape[1], samples.shape[1] :]
    dice = 2 * pairs / (1 + pairs)
    return {
        "ged": distance.ged, "ged_unbiased": distance.unbiased,
        "d_pp": distance.d_pp, "d_pa": distance.d_pa, "d_aa": distance.d_aa,
        "dice_soft": _dice_soft(probabilities, annotations, present),
        "dice_max": _dice_max(dice, present), "dice_match": _dice_match(dice, present),
    }  # fmt: skip


def ged(samples: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None) -> GED:
    """Generalised energy distance (eq. 20): 2 d_pa - d_pp - d_aa, means over all ordered pairs, i = j included.

    Args:
        samples: [B, S, *spatial] bool.
        annotations: [B, R, *spatial] bool.
        rater_mask: [B, R] bool, raters to count; None counts all.
    """
    present = _checked(annotations, rater_mask, samples=samples)
    return _ged(_iou(samples, annotations), present)


def dice_soft(
    probabilities: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Soft Dice (eq. 21): mean over five thresholds of Dice(mean annotation > t, mean prediction > t). -> [B]

    Args:
        probabilities: [B, S, *spatial] in [0, 1].
        annotations: [B, R, *spatial] bool.
        rater_mask: [B, R] bool.
    """
    return _dice_soft(probabilities, annotations, _checked(annotations, rater_mask, probabilities=probabilities))


def dice_max(samples: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over annotations of the best Dice that any sample reaches (Fig. 5). -> [B]"""
    present = _checked(annotations, rater_mask, samples=samples)
    return _dice_max(_dice_table(samples, annotations), present)


def dice_match(
    samples: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean Dice of the best one-to-one matching of samples to annotations (Hungarian method). -> [B]

    With unequal numbers, min(S, R) pairs are matched.
    """
    present = _checked(annotations, rater_mask, samples=samples)
    return _dice_match(_dice_table(samples, annotations), present)


def dice_per_rater(
    predictions: torch.Tensor, annotations: torch.Tensor, rater_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Dice of annotation r with the prediction made FOR rater r: identity, no matching. -> [B, R]

    NaN where the rater is missing.
    """
    present = _checked(annotations, rater_mask, predictions=predictions)
    if predictions.shape != annotations.shape:
        raise ValueError(_differ("predictions", predictions, annotations))
    scores = _dice(torch.stack([_counts(p, a) for p, a in _blocks(predictions, annotations)]).sum(0))
    return scores.masked_fill(~present, nan)


def _checked(annotations: torch.Tensor, rater_mask: torch.Tensor | None, **predicted: torch.Tensor) -> torch.Tensor:
    """Which raters to count, [B, R], once types and shapes are what they should be."""
    if rater_mask is None:
        rater_mask = torch.ones(annotations.shape[:2], dtype=torch.bool, device=annotations.device)
    for name, value in {**predicted, "annotations": annotations, "rater_mask": rater_mask}.items():
        if name == "probabilities" and not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, not {value.dtype}.")
        if name != "probabilities" and value.dtype != torch.bool:
            raise TypeError(f"{name} must be bool, not {value.dtype}.")
    for name, value in predicted.items():
        if value.ndim < 3 or value.shape[:1] + value.shape[2:] != annotations.shape[:1] + annotations.shape[2:]:
            raise ValueError(_differ(name, value, annotations))
    if rater_mask.shape != annotations.shape[:2]:
        raise ValueError(_differ("rater_mask", rater_mask, annotations))
    return rater_mask


def _differ(name: str, value: torch.Tensor, annotations: torch.Tensor) -> str:
    return f"{name} {list(value.shape)} and annotations {list(annotations.shape)} do not fit each other."


def _blocks(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """[B, M, *spatial] and [B, N, *spatial] as pairs of [B, M, pixels] and [B, N, pixels], together at most BLOCK."""
    pixels = max(1, BLOCK // (len(a) * (a.shape[1] + b.shape[1])))
    # Along the first axis before flattening: that of a whole tensor with other strides would be a copy of it.
    rows = max(1, pixels // prod(a.shape[3:]))
    for x, y in zip(a.split(rows, 2), b.split(rows, 2), strict=True):
        yield from zip(x.flatten(2).split(pixels, 2), y.flatten(2).split(pixels, 2), strict=True)


def _iou(samples: torch.Tensor, annotations: torch.Tensor) -> torch.Tensor:
    """IoU of all masks with all others, [B, S + R, S + R], samples first."""
    count = samples.shape[1] + annotations.shape[1]
    both = torch.zeros(len(samples), count, count, dtype=torch.float64, device=samples.device)
    # In half precision the products would be rounded; in float32, as in TF32, those of a block are whole numbers.
    with torch.autocast(samples.device.type, enabled=False):
        for pair in _blocks(samples, annotations):
            masks = torch.cat(pair, 1).view(torch.uint8).float()  # three times as fast as from bool
            both += torch.bmm(masks, masks.transpose(1, 2))
    areas = both.diagonal(dim1=1, dim2=2)
    either = areas[:, :, None] + areas[:, None, :] - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def _weights(present: torch.Tensor) -> torch.Tensor:
    """[B, R] weights of the raters, summing to one in every image."""
    return present.double() / present.sum(1, keepdim=True)


def _ged(iou: torch.Tensor, present: torch.Tensor) -> GED:
    weights = _weights(present)
    raters = present.sum(1)
    samples = iou.shape[1] - present.shape[1]
    distance = 1 - iou
    d_pp = distance[:, :samples, :samples].mean((1, 2))
    d_pa = (distance[:, :samples, samples:].mean(1) * weights).sum(1)
    d_aa = (distance[:, samples:, samples:] * weights[:, :, None] * weights[:, None, :]).sum((1, 2))
    # As d(a, a) = 0, leaving out the pairs i = j only makes the divisor n (n - 1) instead of n^2.
    unequal_pp = d_pp * (samples / (samples - 1) if samples > 1 else nan)
    unequal_aa = d_aa * torch.where(raters > 1, raters.double() / (raters - 1), nan)
    return GED(2 * d_pa - d_pp - d_aa, d_pp, d_pa, d_aa, 2 * d_pa - unequal_pp - unequal_aa)


def _dice_table(samples: torch.Tensor, annotations: torch.Tensor) -> torch.Tensor:
    """Dice of every sample with every annotation, [B, S, R]: a small part of what `_iou` computes."""
    both = torch.zeros(*samples.shape[:2], annotations.shape[1], dtype=torch.float64, device=samples.device)
    areas = torch.zeros_like(both)
    with torch.autocast(samples.device.type, enabled=False):
        for pair in _blocks(samples, annotations):
            p, a = (masks.view(torch.uint8).float() for masks in pair)
            both += torch.bmm(p, a.transpose(1, 2))
            areas += p.sum(2)[:, :, None] + a.sum(2)[:, None, :]
    return torch.where(areas > 0, 2 * both / areas.clamp(min=1), 1.0)


def _dice_max(dice: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return (dice.amax(1) * _weights(present)).sum(1)


def _dice_match(table: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    scores = []
    for dice, keep in zip(table.cpu().numpy(), present.cpu().numpy(), strict=True):
        dice = dice[:, keep]
        pairs = linear_sum_assignment(dice, maximize=True)
        scores.append(dice[pairs].mean() if keep.any() else nan)
    return torch.tensor(scores, dtype=torch.float64, device=table.device)


def _dice_soft(probabilities: torch.Tensor, annotations: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64, device=annotations.device)[:, None, None]
    raters = present.sum(1, keepdim=True).double()
    counts = []
    for p, a in _blocks(probabilities, annotations):
        # Divide whole counts last: 3/10 must equal the threshold 0.3, not exceed it.
        expert = (a & present[:, :, None]).sum(1, dtype=torch.int32) / raters
        model = p.sum(1, dtype=torch.float64) / p.shape[1]
        counts.append(_counts(expert > thresholds, model > thresholds))
    return _dice(torch.stack(counts).sum(0)).mean(0).masked_fill(raters[:, 0] == 0, nan)


def _counts(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Along the last axis of two bool tensors of one shape: intersection and sum of areas, [2, ...]."""
    # Twice as fast as int64, and a block has no more pixels than fit; callers add blocks up in int64.
    both, of_a, of_b = (mask.sum(-1, dtype=torch.int32) for mask in (a & b, a, b))
    return torch.stack([both, of_a + of_b])


def _dice(counts: torch.Tensor) -> torch.Tensor:
    both, areas = counts.double()
    return torch.where(areas > 0, 2 * both / areas.clamp(min=1), 1.0)
