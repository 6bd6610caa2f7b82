"""Metrics against plain loops, and the conventions that distinguish ours from the peers'."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from proseg import metrics

SHAPES = [(6, 5), (3, 4, 5), (1, 1)]
SAMPLES = [1, 4, 50]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1.0


def best_matching(table: np.ndarray) -> float:
    """The largest mean of min(S, R) pairs, by trying every set of annotations for the samples one after another."""
    best = {frozenset(): 0.0}
    for row in table:
        for used, score in list(best.items()):
            for r in range(len(row)):
                if r not in used:
                    grown = used | {r}
                    best[grown] = max(best.get(grown, -1), score + row[r])
    pairs = min(table.shape)
    return max(score for used, score in best.items() if len(used) == pairs) / pairs


def brute_force(probabilities: np.ndarray, annotations: np.ndarray, present: np.ndarray) -> dict[str, float]:
    samples, experts = probabilities > 0.5, annotations[present]
    d_pp = np.mean([1 - iou(a, b) for a in samples for b in samples])
    d_pa = np.mean([1 - iou(a, b) for a in samples for b in experts])
    d_aa = np.mean([1 - iou(a, b) for a in experts for b in experts])
    table = np.array([[dice(a, b) for b in experts] for a in samples])
    expert, model = experts.sum(0) / len(experts), probabilities.mean(0, dtype=float)
    soft = [dice(expert > t, model > t) for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
    return {
        "ged": 2 * d_pa - d_pp - d_aa, "d_pp": d_pp, "d_pa": d_pa, "d_aa": d_aa, "dice_soft": float(np.mean(soft)),
        "dice_max": table.max(0).mean(), "dice_match": best_matching(table),
    }  # fmt: skip


def ours(
    probabilities: torch.Tensor, annotations: torch.Tensor, present: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    samples = probabilities > 0.5
    return vars(metrics.ged(samples, annotations, present)) | {
        "dice_soft": metrics.dice_soft(probabilities, annotations, present),
        "dice_max": metrics.dice_max(samples, annotations, present),
        "dice_match": metrics.dice_match(samples, annotations, present),
    }


def random_sets(seed: int, shape: tuple[int, ...], samples: int, batch: int = 3) -> Iterator[torch.Tensor]:
    """Probabilities [B, S], annotations [B, R] and who is present [B, R]; any mask may be empty or full."""
    rng = np.random.default_rng(seed)
    raters = int(rng.integers(1, 6))

    def masks(count: int) -> np.ndarray:
        density = rng.choice([0, 0.1, 0.5, 1], (batch, count, *[1] * len(shape)))
        return rng.random((batch, count, *shape)) < density

    strength = np.where(masks(samples), rng.uniform(0.5, 1, 1), rng.uniform(0, 0.5, 1))
    present = rng.random((batch, raters)) < 0.6
    present[np.arange(batch), rng.integers(0, raters, batch)] = True
    jitter = rng.uniform(-0.01, 0.01, strength.shape)
    yield torch.from_numpy((strength + jitter).clip(0, 1).astype(np.float32))
    yield torch.from_numpy(masks(raters))
    yield torch.from_numpy(present)


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_plain_loops(shape: tuple[int, ...], samples: int):
    for seed in range(8):
        probabilities, annotations, present = random_sets(seed, shape, samples)
        found = ours(probabilities, annotations, present)
        for i in range(len(present)):
            expected = brute_force(probabilities[i].numpy(), annotations[i].numpy(), present[i].numpy())
            assert {name: float(value[i]) for name, value in found.items()} == pytest.approx(expected, abs=1e-6)


def test_the_random_sets_hold_what_they_should():
    probabilities, annotations, present = zip(*(random_sets(s, (6, 5), 4) for s in range(8)), strict=True)
    empty = [~(p > 0.5).flatten(2).any(2) for p in probabilities]
    assert any(e.any() for e in empty)
    assert any((~a.flatten(2).any(2)).any() for a in annotations)
    assert any((~p).any() for p in present)


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ged_is_never_negative(shape: tuple[int, ...], samples: int):
    for seed in range(20):
        probabilities, annotations, present = random_sets(seed, shape, samples)
        assert (metrics.ged(probabilities > 0.5, annotations, present).ged > -1e-9).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_identical_sets_are_at_distance_zero_with_perfect_dice(shape: tuple[int, ...]):
    _, annotations, _ = random_sets(3, shape, 4)
    found = ours(annotations.float(), annotations, None)
    for name, perfect in {"ged": 0, "dice_soft": 1, "dice_max": 1, "dice_match": 1}.items():
        torch.testing.assert_close(found[name], torch.full_like(found[name], perfect))
    assert (metrics.dice_per_rater(annotations, annotations) == 1).all()


@pytest.mark.parametrize("samples", SAMPLES)
def test_the_order_of_samples_does_not_matter(samples: int):
    probabilities, annotations, present = random_sets(5, (6, 5), samples)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    one, other = ours(probabilities, annotations, present), ours(probabilities[:, order], annotations, present)
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_permuted_heads_are_seen_by_dice_per_rater_and_not_by_dice_match():
    masks = torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    for r in range(4):
        masks[0, r, 2 * r : 2 * r + 2] = True
    permuted = masks[:, [1, 2, 3, 0]]
    assert metrics.dice_match(permuted, masks).item() == 1
    assert metrics.dice_per_rater(masks, masks).tolist() == [[1, 1, 1, 1]]
    assert metrics.dice_per_rater(permuted, masks).tolist() == [[0, 0, 0, 0]]


def test_two_empty_masks_agree_and_an_empty_and_a_full_one_do_not():
    empty, full = torch.zeros(1, 1, 3, 3, dtype=torch.bool), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    assert vars(metrics.ged(empty, empty)) == {"ged": 0, "d_pp": 0, "d_pa": 0, "d_aa": 0}
    assert vars(metrics.ged(empty, full)) == {"ged": 2, "d_pp": 0, "d_pa": 1, "d_aa": 0}
    for measure in (metrics.dice_max, metrics.dice_match, metrics.dice_per_rater):
        assert measure(empty, empty).item() == 1
        assert measure(empty, full).item() == measure(full, empty).item() == 0
    assert metrics.dice_soft(empty.float(), empty).item() == 1
    assert metrics.dice_soft(empty.float(), full).item() == 0


def test_predicting_nothing_where_half_of_the_raters_see_nothing():
    annotations = torch.zeros(1, 4, 2, 2, dtype=torch.bool)
    annotations[:, :2] = True
    nothing = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    assert metrics.ged(nothing, annotations).ged.item() == pytest.approx(2 * 0.5 - 0 - 0.5)


@pytest.mark.parametrize(("agree", "above"), [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4), (10, 5), (2, 1), (4, 2)])
def test_dice_soft_thresholds_are_strict(agree: int, above: int):
    """`agree` of ten raters mark the pixel: a share equal to a threshold is not above it."""
    votes = (torch.arange(10) < agree).reshape(1, 10, 1, 1)
    certain, nothing = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert metrics.dice_soft(certain, votes).item() == pytest.approx(above / 5)
    assert metrics.dice_soft(nothing, votes).item() == pytest.approx(1 - above / 5)
    everybody = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    assert metrics.dice_soft(votes.float(), everybody).item() == pytest.approx(above / 5)


def test_a_missing_rater_is_no_rater():
    probabilities, annotations, _ = random_sets(1, (6, 5), 4)
    garbage = torch.cat([annotations, torch.ones_like(annotations[:, :1])], 1)
    present = torch.ones(garbage.shape[:2], dtype=torch.bool)
    present[:, -1] = False
    without, masked = ours(probabilities, annotations, None), ours(probabilities, garbage, present)
    for name in without:
        torch.testing.assert_close(masked[name], without[name])


def test_dice_of_a_missing_rater_is_nan():
    masks = torch.ones(2, 3, 2, 2, dtype=torch.bool)
    present = torch.tensor([[True, False, True], [True, True, True]])
    assert metrics.dice_per_rater(masks, masks, present).isnan().tolist() == [[False, True, False], [False] * 3]


@pytest.mark.parametrize("samples", [1, 2, 6])
def test_matching_uses_as_many_pairs_as_there_can_be(samples: int):
    annotations = torch.eye(4, dtype=torch.bool).reshape(1, 4, 2, 2)
    perfect = annotations[:, torch.arange(samples) % 4]
    assert metrics.dice_match(perfect, annotations).item() == 1
