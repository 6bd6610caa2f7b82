"""Metrics against plain loops, and the conventions that distinguish ours from the peers'."""

import json
import subprocess
import sys
from math import nan
from pathlib import Path

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
    others_pp = [1 - iou(a, b) for i, a in enumerate(samples) for j, b in enumerate(samples) if i != j]
    others_aa = [1 - iou(a, b) for i, a in enumerate(experts) for j, b in enumerate(experts) if i != j]
    unbiased = 2 * d_pa - np.mean(others_pp) - np.mean(others_aa) if others_pp and others_aa else nan
    table = np.array([[dice(a, b) for b in experts] for a in samples])
    expert, model = experts.sum(0) / len(experts), probabilities.mean(0, dtype=float)
    soft = [dice(expert > t, model > t) for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
    scores = {
        "ged": 2 * d_pa - d_pp - d_aa, "ged_unbiased": unbiased, "d_pp": d_pp, "d_pa": d_pa, "d_aa": d_aa,
        "dice_soft": np.mean(soft), "dice_max": table.max(0).mean(), "dice_match": best_matching(table),
    }  # fmt: skip
    return {name: float(value) for name, value in scores.items()}


def ours(
    probabilities: torch.Tensor, annotations: torch.Tensor, present: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    return metrics.set_metrics(probabilities > 0.5, probabilities, annotations, present)


def random_sets(
    seed: int, shape: tuple[int, ...], samples: int, batch: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
    probabilities = (strength + jitter).clip(0, 1).astype(np.float32)
    return torch.from_numpy(probabilities), torch.from_numpy(masks(raters)), torch.from_numpy(present)


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_plain_loops(shape: tuple[int, ...], samples: int):
    for seed in range(8):  # of three images each: 216 cases in all
        probabilities, annotations, present = random_sets(seed, shape, samples)
        found = ours(probabilities, annotations, present)
        for i in range(len(present)):
            expected = brute_force(probabilities[i].numpy(), annotations[i].numpy(), present[i].numpy())
            values = {name: float(value[i]) for name, value in found.items()}
            assert values == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dice_per_rater_agrees_with_plain_loops(shape: tuple[int, ...]):
    for seed in range(25):
        _, annotations, present = random_sets(seed, shape, 1)
        predictions = random_sets(seed + 100, shape, annotations.shape[1])[0] > 0.5
        found = metrics.dice_per_rater(predictions, annotations, present).numpy()
        for i, r in np.ndindex(*present.shape):
            expected = dice(predictions[i, r].numpy(), annotations[i, r].numpy()) if present[i, r] else nan
            assert found[i, r] == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_metric_is_what_all_of_them_together_are(shape: tuple[int, ...]):
    probabilities, annotations, present = random_sets(2, shape, 4)
    samples = probabilities > 0.5
    distance = metrics.ged(samples, annotations, present)
    alone = {
        "ged": distance.ged, "ged_unbiased": distance.unbiased,
        "d_pp": distance.d_pp, "d_pa": distance.d_pa, "d_aa": distance.d_aa,
        "dice_soft": metrics.dice_soft(probabilities, annotations, present),
        "dice_max": metrics.dice_max(samples, annotations, present),
        "dice_match": metrics.dice_match(samples, annotations, present),
    }  # fmt: skip
    together = metrics.set_metrics(samples, probabilities, annotations, present)
    assert list(alone) == list(together)
    for name in alone:
        torch.testing.assert_close(alone[name], together[name], rtol=0, atol=1e-12, equal_nan=True)


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
        torch.testing.assert_close(one[name], other[name], equal_nan=True)


def test_permuted_heads_are_seen_by_dice_per_rater_and_not_by_dice_match():
    masks = torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    for r in range(4):
        masks[0, r, 2 * r : 2 * r + 2] = True
    permuted = masks[:, [1, 2, 3, 0]]
    assert metrics.dice_match(permuted, masks).item() == metrics.dice_match(masks, masks).item() == 1
    assert metrics.dice_per_rater(masks, masks).tolist() == [[1, 1, 1, 1]]
    assert metrics.dice_per_rater(permuted, masks).tolist() == [[0, 0, 0, 0]]


def test_two_empty_masks_agree_and_an_empty_and_a_full_one_do_not():
    empty, full = torch.zeros(1, 1, 3, 3, dtype=torch.bool), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    for other, apart in ((empty, 0), (full, 1)):
        found = metrics.ged(empty, other)
        assert (found.ged, found.d_pp, found.d_pa, found.d_aa) == (2 * apart, 0, apart, 0)
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
        torch.testing.assert_close(masked[name], without[name], equal_nan=True)


def test_dice_of_a_missing_rater_is_nan():
    masks = torch.ones(2, 3, 2, 2, dtype=torch.bool)
    present = torch.tensor([[True, False, True], [True, True, True]])
    assert metrics.dice_per_rater(masks, masks, present).isnan().tolist() == [[False, True, False], [False] * 3]


@pytest.mark.parametrize("samples", [1, 2, 6])
def test_matching_uses_as_many_pairs_as_there_can_be(samples: int):
    annotations = torch.eye(4, dtype=torch.bool).reshape(1, 4, 2, 2)
    perfect = annotations[:, torch.arange(samples) % 4]
    assert metrics.dice_match(perfect, annotations).item() == 1


def test_the_unbiased_ged_does_not_depend_on_the_number_of_samples():
    """Repetitions draw from one pool; the true value has all pairs of the pool, i = j included, as draws repeat."""
    rng = np.random.default_rng(0)
    pool, annotations = torch.from_numpy(rng.random((20, 6, 6)) < 0.3), torch.from_numpy(rng.random((4, 6, 6)) < 0.5)
    whole = metrics.ged(pool[None], annotations[None])
    true = (2 * whole.d_pa - whole.d_pp - whole.d_aa * 4 / 3).item()
    paper = {}
    for samples in (2, 4, 50):
        drawn = metrics.ged(
            pool[torch.from_numpy(rng.integers(0, 20, (1000, samples)))], annotations.expand(1000, -1, -1, -1)
        )
        error = drawn.unbiased.std().item() / 1000**0.5
        assert abs(drawn.unbiased.mean().item() - true) < 4 * error < 0.03
        paper[samples] = drawn.ged.mean().item()
    assert paper[2] > paper[4] + 0.1 > paper[50] + 0.2


def test_the_unbiased_ged_of_two_draws_from_one_population_can_be_negative():
    masks = torch.eye(4, dtype=torch.bool).reshape(1, 4, 2, 2)
    found = metrics.ged(masks, masks)
    assert found.ged.item() == 0
    assert found.unbiased.item() == pytest.approx(2 * 3 / 4 - 1 - 1)


def test_the_unbiased_ged_needs_two_samples_and_two_raters():
    masks = torch.eye(4, dtype=torch.bool).reshape(1, 4, 2, 2).expand(4, -1, -1, -1)
    present = torch.arange(4) < torch.arange(4)[:, None] + 1
    assert metrics.ged(masks, masks, present).unbiased.isnan().tolist() == [True, False, False, False]
    assert metrics.ged(masks[:, :1], masks, present).unbiased.isnan().all()
    assert not metrics.ged(masks[:, :1], masks, present).ged.isnan().any()


def test_an_image_without_raters_has_no_score():
    probabilities, annotations, present = random_sets(4, (6, 5), 4)
    present[1] = False
    for name, value in ours(probabilities, annotations, present).items():
        assert name == "d_pp" or value[1].isnan()


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_of_any_size_give_the_same(shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch):
    probabilities, annotations, present = random_sets(6, shape, 4)
    masks = probabilities[:, :1].expand_as(annotations) > 0.5
    whole, each = ours(probabilities, annotations, present), metrics.dice_per_rater(masks, annotations)
    monkeypatch.setattr(metrics, "BLOCK", block)
    for name, value in ours(probabilities, annotations, present).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(metrics.dice_per_rater(masks, annotations), each, rtol=0, atol=0)


def test_strides_do_not_matter():
    """As of the slices of a volume, where the batch is an axis of space."""
    probabilities, annotations, present = random_sets(6, (3, 4, 5), 4)
    maps, masks = (x.permute(2, 4, 1, 0, 3).contiguous().permute(3, 2, 0, 4, 1) for x in (probabilities, annotations))
    assert not maps.is_contiguous()
    expected, found = ours(probabilities, annotations, present), ours(maps, masks, present)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, equal_nan=True)


def test_counts_are_exact_beyond_what_float32_can_count():
    """2^24 + 3 voxels against two fewer: in float32 both would round."""
    voxels = 2**24 + 3
    full = torch.ones(1, 1, 1, voxels, dtype=torch.bool)
    less = full.clone()
    less[..., :2] = False
    assert metrics.ged(less, full).d_pa.item() == pytest.approx(2 / voxels, rel=1e-6)
    exact = 2 * (voxels - 2) / (2 * voxels - 2)
    for measure in (metrics.dice_max, metrics.dice_match, metrics.dice_per_rater):
        assert measure(less, full).item() == pytest.approx(exact, abs=1e-15)
    assert metrics.dice_soft(less.float(), full).item() == pytest.approx(exact, abs=1e-15)


def test_autocast_does_not_round():
    masks = torch.ones(1, 2, 40, 40, dtype=torch.bool)
    masks[:, 1, 0, 0] = False
    with torch.autocast("cpu", torch.bfloat16):
        assert metrics.ged(masks[:, :1], masks[:, 1:]).d_pa.item() == pytest.approx(1 / 1600)


MEMORY = """
import json, torch
from pathlib import Path
from proseg import metrics
torch.set_num_threads(1)

def memory(line):
    return int(Path("/proc/self/status").read_text().split(line + ":")[1].split()[0])

probabilities = torch.zeros(1, 50, 56, 128, 128)
for s in range(50):
    probabilities[:, s, ..., s : s + 64] = 1  # touches every page, so that all of them are in memory
samples = probabilities > 0.5
annotations = samples[:, ::15].clone()
grown = {}
for name, inputs in {
    "set_metrics": (samples, probabilities, annotations), "dice_soft": (probabilities, annotations),
    "dice_per_rater": (samples[:, :4], annotations), "ged": (samples, annotations),
    "dice_max": (samples, annotations), "dice_match": (samples, annotations),
}.items():
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    before = memory("VmRSS")
    getattr(metrics, name)(*inputs)
    grown[name] = memory("VmHWM") - before
print(json.dumps(grown))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_volume_with_fifty_samples_takes_little_memory():
    """In a process of its own, and not by ru_maxrss, which a process inherits from the one that started it."""
    root = Path(metrics.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True, check=True)
    grown = json.loads(done.stdout)
    assert len(grown) == 6
    assert max(grown.values()) < 300 * 1024, grown  # KiB


def test_types_and_shapes_that_do_not_fit_are_named():
    probabilities, annotations, present = random_sets(0, (6, 5), 4)
    samples = probabilities > 0.5
    for measure in (metrics.ged, metrics.dice_max, metrics.dice_match):
        with pytest.raises(TypeError, match=r"samples must be bool, not torch\.float32"):
            measure(probabilities, annotations)
        with pytest.raises(ValueError, match=r"samples \[3, 4, 6, 4\] and annotations \[3, \d, 6, 5\]"):
            measure(samples[..., :4], annotations)
        with pytest.raises(ValueError, match=r"samples \[1, 4, 6, 5\] and annotations \[3, \d, 6, 5\]"):
            measure(samples[:1], annotations)  # would broadcast
    for wrong in (annotations.float(), annotations.byte()):
        with pytest.raises(TypeError, match="annotations must be bool"):
            metrics.dice_soft(probabilities, wrong)
        with pytest.raises(TypeError, match="annotations must be bool"):
            metrics.set_metrics(samples, probabilities, wrong)
    with pytest.raises(TypeError, match=r"probabilities must be floating point, not torch\.bool"):
        metrics.dice_soft(samples, annotations)
    with pytest.raises(TypeError, match="rater_mask must be bool"):
        metrics.ged(samples, annotations, present.long())
    with pytest.raises(ValueError, match=r"rater_mask \[1, \d\] and annotations"):
        metrics.ged(samples, annotations, present[:1])
    with pytest.raises(ValueError, match=r"probabilities \[3, 4, 5, 5\] and annotations"):
        metrics.set_metrics(samples, probabilities[:, :, :5], annotations)
    with pytest.raises(TypeError, match="predictions must be bool"):
        metrics.dice_per_rater(probabilities, annotations)
    with pytest.raises(ValueError, match=r"predictions \[3, 9, 6, 5\] and annotations"):
        metrics.dice_per_rater(samples[:, [0] * 9], annotations)
