"""GED, D_soft, D_max and D_match of one image (`proseg.metrics.set_metrics`), and the memory they take of a volume.

The rival compares all masks with all others in arrays [S, S, pixels], and loops over samples and raters for the rest.
"""

from itertools import product

import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.timing import Job, Row, command, paired, peak
from proseg.metrics import THRESHOLDS, set_metrics

FEW = 4
"""Slices of the volume that the rival is given: it takes 350 MB a slice."""


def measure(
    repeats: int = 20, device: str = "cpu", samples: int = 50, raters: int = 4, side: int = 128, depth: int = 56
) -> list[Row]:
    probabilities, annotations = (x.to(device) for x in random_sets(samples, raters, side, side))

    masks = probabilities > 0.5

    def ours() -> dict[str, torch.Tensor]:
        return set_metrics(masks[None], probabilities[None], annotations[None])

    def naive() -> dict[str, float]:
        return naive_metrics(masks, probabilities, annotations)

    mine = ours()
    for name, value in naive().items():
        assert abs(float(mine[name]) - value) < 1e-5, f"{name}: {float(mine[name])} and {value}"
    rows = [paired(f"metrics of {raters} x {samples} masks", ours, naive, repeats, device=device, goal=0.004)]
    return rows + (memory(samples, raters, side, depth) if depth and device == "cpu" else [])


def memory(samples: int, raters: int, side: int, depth: int) -> list[Row]:
    small = {"samples": samples, "raters": raters, "depth": 1, "side": 16}
    few, whole = {**small, "depth": FEW, "side": side}, {**small, "depth": depth, "side": side}
    ours, rival = (peak(prepare_volume, small, few, naive) for naive in (False, True))
    gigabytes = rival * depth / FEW / 1000
    name = f"metrics of {raters} x {samples} volumes of"
    return [
        Row(f"peak memory, {name} {FEW} slices", [ours], [rival], unit="MB"),
        Row(f"peak memory, {name} {depth} slices", [peak(prepare_volume, small, whole, False)], [], unit="MB",
            note=f"rival not run: in proportion {gigabytes:.2g} GB"),
    ]  # fmt: skip


def prepare_volume(naive: bool, *, samples: int, raters: int, depth: int, side: int) -> Job:
    probabilities, annotations = random_sets(samples, raters, depth, side, side)
    masks = probabilities > 0.5
    if naive:
        return lambda: naive_metrics(masks, probabilities, annotations)
    return lambda: set_metrics(masks[None], probabilities[None], annotations[None])


def random_sets(samples: int, raters: int, *size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [S, *size], annotations [R, *size] bool: balls of several sizes, the samples' with soft rims."""
    torch.manual_seed(0)
    distance = torch.zeros(size)
    for axis, length in enumerate(size):
        distance += torch.linspace(-1, 1, length).square().view(-1, *[1] * (len(size) - axis - 1))
    distance.sqrt_()
    predicted, annotated = torch.rand(samples), torch.rand(raters)
    maps = torch.stack([torch.sigmoid(10 * (0.2 + 0.6 * radius - distance)) for radius in predicted])
    return maps, torch.stack([distance < 0.2 + 0.6 * radius for radius in annotated])


def naive_metrics(samples: torch.Tensor, probabilities: torch.Tensor, annotations: torch.Tensor) -> dict[str, float]:
    """Of one case with all its raters. [S, *size] bool, [S, *size], [R, *size] bool"""
    p, a = samples.flatten(1), annotations.flatten(1)
    distances = naive_distances(p, a).mean(), naive_distances(p, p).mean(), naive_distances(a, a).mean()
    dice = torch.zeros(len(p), len(a), dtype=torch.float64)
    for i, j in product(range(len(p)), range(len(a))):
        dice[i, j] = naive_dice(p[i], a[j])
    matched = dice[linear_sum_assignment(dice, maximize=True)]
    expert, model = a.double().mean(0), probabilities.flatten(1).double().mean(0)
    soft = [naive_dice(model > threshold, expert > threshold) for threshold in THRESHOLDS]
    return {
        "ged": float(2 * distances[0] - distances[1] - distances[2]),
        "dice_soft": sum(soft) / len(soft),
        "dice_max": float(dice.max(0).values.mean()),
        "dice_match": float(matched.mean()),
    }


def naive_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - IoU of all masks of a with all of b. [M, pixels], [N, pixels] -> [M, N]"""
    both, either = (a[:, None] & b).sum(2).double(), (a[:, None] | b).sum(2).double()
    return 1 - torch.where(either > 0, both / either, 1.0)


def naive_dice(a: torch.Tensor, b: torch.Tensor) -> float:
    areas = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / areas if areas else 1.0


if __name__ == "__main__":
    command(__doc__, measure)
