"""The objective: every term against plain loops, and what a missing rater must not do."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from proseg.config import LossConfig
from proseg.data.batches import Batch
from proseg.latents import Posterior, kl_tau, kl_z
from proseg.losses import Prediction, energy_score, objective, planes, probabilities, segmentation, with_background

B, R, N, C, CZ, T, H, W = 4, 3, 2, 2, 2, 5, 6, 7
EVERYTHING = LossConfig(segmentation="ce_dice", w_rec=0.7, w_cls=0.9, beta_z=0.3, beta_tau=0.2, w_es=0.4)
KINDS = ["ce", "dice", "ce_dice"]


@pytest.fixture(params=[1, 3], ids=["binary", "3 classes"])
def classes(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def random() -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def prediction(random: Callable[..., torch.Tensor], classes: int) -> Prediction:
    return Prediction(
        logits=random(B, R, classes, H, W), reconstruction=random(B, C, H, W), rater_logits=random(B, R, R),
        posterior=Posterior(random(B, R, CZ, H, W), random(B, R, CZ, H, W)), alpha=random(R, T).exp(),
        diverse=random(B, R, N, classes, H, W),
    )  # fmt: skip


@pytest.fixture
def batch(random: Callable[..., torch.Tensor], classes: int) -> Batch:
    present = torch.ones(B, R, dtype=torch.bool)
    present[1, 0] = present[2, 2] = present[3, 1] = present[3, 2] = False
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(1 + classes, (B, R, H, W), generator=generator, dtype=torch.uint8)
    return Batch(random(B, C, H, W), masks, present)


def part(prediction: Prediction, batch: Batch, rows: slice) -> tuple[Prediction, Batch]:
    p, b = prediction, batch
    return (
        Prediction(p.logits[rows], p.reconstruction[rows], p.rater_logits[rows], p.posterior[rows], p.alpha,
                   p.diverse[rows]),
        Batch(b.image[rows], b.annotations[rows], b.rater_mask[rows]),
    )  # fmt: skip


# The whole


def test_the_total_is_the_weighted_sum_of_the_parts(prediction: Prediction, batch: Batch):
    loss = objective(prediction, batch, EVERYTHING, 0.5)
    p = loss.parts
    assert set(p) == {"seg", "rec", "cls", "kl_z", "kl_tau", "es"}
    expected = p["seg"] + 0.7 * p["rec"] + 0.9 * p["cls"] + 0.3 * p["kl_z"] + 0.2 * p["kl_tau"] + 0.4 * p["es"]
    torch.testing.assert_close(loss.total, expected)
    assert not any(value.requires_grad for value in p.values())


def test_a_part_that_the_model_lacks_is_left_out(prediction: Prediction, batch: Batch):
    loss = objective(Prediction(prediction.logits), batch, EVERYTHING)
    assert set(loss.parts) == {"seg"}
    assert loss.total == loss.parts["seg"]


def test_every_part_is_the_mean_over_images_of_the_mean_over_present_raters(prediction: Prediction, batch: Batch):
    parts, classes = objective(prediction, batch, EVERYTHING, 0.5).parts, prediction.logits.shape[2]
    truth = planes(batch.annotations, classes)
    expected = {name: 0.0 for name in parts}
    for b in range(B):
        raters = batch.rater_mask[b].nonzero().flatten().tolist()
        for r in raters:
            share = 1 / len(raters) / B
            one = prediction.logits[b, r], batch.annotations[b, r]
            expected["seg"] += share * (cross_entropy(*one) + dice_loss(*one))
            expected["cls"] -= share * prediction.rater_logits[b, r].log_softmax(0)[r].item()
            expected["kl_z"] += share * kl_z(prediction.posterior[b : b + 1])[0, r].item()
            expected["kl_tau"] += share * kl_tau(prediction.alpha, 0.5)[r].item()
        expected["es"] += plain_score(probabilities(prediction.diverse[b]), truth[b], raters) / B
        expected["rec"] += (prediction.reconstruction[b] - batch.image[b]).square().mean().item() / B
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-4)


def test_half_batches_average_to_the_whole(prediction: Prediction, batch: Batch):
    halves = [
        objective(*part(prediction, batch, rows), EVERYTHING, 0.5).total
        for rows in (slice(0, B // 2), slice(B // 2, B))
    ]
    torch.testing.assert_close(sum(halves) / 2, objective(prediction, batch, EVERYTHING, 0.5).total)


# Missing raters


@pytest.mark.parametrize("kind", KINDS)
def test_missing_raters_contribute_nothing(prediction: Prediction, batch: Batch, kind: str):
    config = EVERYTHING.model_copy(update={"segmentation": kind})
    absent = ~batch.rater_mask
    mean, log_variance = prediction.posterior.mean.clone(), prediction.posterior.log_variance.clone()
    logits, rater_logits, masks = prediction.logits.clone(), prediction.rater_logits.clone(), batch.annotations.clone()
    mean[absent], log_variance[absent], logits[absent], rater_logits[absent] = 9, 5, -30, 40
    masks[absent] = 1 - masks[absent].clamp(max=1)
    diverse = prediction.diverse.clone()
    diverse[absent] = -30
    changed = replace(prediction, logits=logits, rater_logits=rater_logits, diverse=diverse,
                      posterior=Posterior(mean, log_variance))  # fmt: skip
    one = objective(prediction, batch, config, 0.5)
    other = objective(changed, replace(batch, annotations=masks), config, 0.5)
    torch.testing.assert_close(other.total, one.total)
    torch.testing.assert_close(other.parts, one.parts)


def test_a_rater_who_is_missing_everywhere_gets_no_gradient(prediction: Prediction, batch: Batch):
    present = torch.tensor([True, False, True]).expand(B, R)
    names = ("alpha", "logits", "rater_logits", "diverse")
    free = {name: getattr(prediction, name).clone().requires_grad_() for name in names}
    moved = replace(prediction, **free)
    objective(moved, replace(batch, rater_mask=present), EVERYTHING, 0.5).total.backward()
    for name in names:
        axis = 0 if name == "alpha" else 1
        touched = (free[name].grad != 0).transpose(0, axis).flatten(1).any(1).tolist()
        assert touched == [True, False, True], name


# Segmentation


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """[K, H, W] and [H, W], pixel by pixel; the background's logit is zero."""
    total = 0.0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            scores = [0.0, *logits[:, y, x].tolist()]
            total += math.log(sum(map(math.exp, scores))) - scores[int(labels[y, x])]
    return total / labels.numel()


def dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """[K, H, W] and [H, W]: one minus the soft Dice with its ones, a mean over classes."""
    total, exponents = 0.0, logits.double().exp()
    for k in range(len(logits)):
        p = exponents[k] / (1 + exponents.sum(0))
        marked = labels == k + 1
        total += 1 - (2 * p[marked].sum().item() + 1) / (p.sum().item() + marked.sum().item() + 1)
    return total / len(logits)


@pytest.mark.parametrize("kind", KINDS)
def test_segmentation_agrees_with_plain_loops(prediction: Prediction, batch: Batch, kind: str):
    logits = 3 * prediction.logits
    found = segmentation(logits, batch.annotations, kind)
    assert found.shape == (B, R)
    terms = {"ce": [cross_entropy], "dice": [dice_loss], "ce_dice": [cross_entropy, dice_loss]}[kind]
    for b in range(B):
        for r in range(R):
            value = sum(term(logits[b, r], batch.annotations[b, r]) for term in terms)
            assert found[b, r].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(("kind", "undecided"), [("ce", math.log(2)), ("dice", 1 - 13 / 25), ("ce_dice", None)])
def test_segmentation_of_an_undecided_map(kind: str, undecided: float | None):
    """Probability 1/2 on 4 x 6 pixels, half of them marked: overlap 6, areas 12 + 12."""
    masks = torch.zeros(1, 1, 4, 6, dtype=torch.uint8)
    masks[..., :3] = 1
    expected = math.log(2) + 1 - 13 / 25 if undecided is None else undecided
    assert segmentation(torch.zeros(1, 1, 1, 4, 6), masks, kind).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", [0, 1, -1], ids=["empty", "full", "mixed"])
def test_segmentation_of_a_perfect_map_is_zero_and_of_a_wrong_one_is_not(
    batch: Batch, classes: int, kind: str, label: int
):
    masks = batch.annotations if label < 0 else torch.full_like(batch.annotations, label)
    right = (2 * planes(masks, classes) - 1) * 50
    torch.testing.assert_close(segmentation(right, masks, kind), torch.zeros(B, R))
    wrong = (2 * planes((masks + 1) % (1 + classes), classes) - 1) * 50
    assert (segmentation(wrong, masks, kind) > 0.3).all()


def test_planes_are_one_mask_a_class(batch: Batch, classes: int):
    found = planes(batch.annotations, classes)
    assert found.shape == (B, R, classes, H, W)
    assert found.dtype == torch.float32
    for k in range(classes):
        assert torch.equal(found[:, :, k], (batch.annotations == k + 1).float())


def test_probabilities_and_the_backgrounds_sum_to_one(prediction: Prediction, classes: int):
    found = probabilities(prediction.logits)
    whole = with_background(prediction.logits).softmax(2)
    torch.testing.assert_close(found, whole[:, :, 1:])
    torch.testing.assert_close(found.sum(2) + whole[:, :, 0], torch.ones(B, R, H, W))


# The energy score


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Soft Jaccard distance of two maps [H, W]."""
    both = (a * b).sum().item()
    union = a.square().sum().item() + b.square().sum().item() - both
    return 1 - (both + 1) / (union + 1)


def plain_score(samples: torch.Tensor, truth: torch.Tensor, raters: list[int]) -> float:
    """[R, N, K, H, W] and [R, K, H, W], of the raters that are present."""
    total, count = 0.0, samples.shape[1]
    for k in range(samples.shape[2]):
        astray = [distance(samples[r, i, k], truth[q, k]) for r in raters for q in raters for i in range(count)]
        total += 2 * sum(astray) / len(astray)
        for r in raters:
            for q in raters:
                pairs = [(i, j) for i in range(count) for j in range(count) if r != q or i != j]
                apart = [distance(samples[r, i, k], samples[q, j, k]) for i, j in pairs]
                total -= sum(apart) / len(apart) / len(raters) ** 2
    return total / samples.shape[2]


def evenly(raters: int, images: int = 1) -> torch.Tensor:
    return torch.full((images, raters), 1 / raters)


@pytest.mark.parametrize("count", [2, 3])
def test_the_energy_score_agrees_with_plain_loops(
    random: Callable[..., torch.Tensor], batch: Batch, classes: int, count: int
):
    samples, truth = random(B, R, count, classes, H, W).sigmoid(), planes(batch.annotations, classes)
    found = energy_score(samples, truth, batch.rater_mask / batch.rater_mask.sum(1, keepdim=True))
    assert found.shape == (B,)
    present = [row.nonzero().flatten().tolist() for row in batch.rater_mask]
    assert found.tolist() == pytest.approx([plain_score(samples[b], truth[b], present[b]) for b in range(B)], rel=1e-4)


def test_equal_maps_are_no_distance_apart_even_if_soft(random: Callable[..., torch.Tensor]):
    """All draws of both raters are one soft map: what is left is its distance to what they drew."""
    soft, truth = random(H, W).sigmoid(), (random(1, 2, 1, H, W) > 0).float()
    found = energy_score(soft.expand(1, 2, 2, 1, H, W), truth, evenly(2))
    assert found.item() == pytest.approx(sum(distance(soft, one) for one in truth[0, :, 0]), rel=1e-5)
    empty = energy_score(torch.zeros(1, 2, 3, 1, H, W), torch.zeros(1, 2, 1, H, W), evenly(2))
    assert empty.item() == pytest.approx(0, abs=1e-6), "empty masks agree"


def test_draws_that_are_what_the_raters_drew_score_better_than_copies_of_one(batch: Batch, classes: int):
    truth = planes(batch.annotations, classes)
    right = energy_score(truth[:, :, None].expand(-1, -1, 2, -1, -1, -1), truth, evenly(R, B))
    for r in range(R):
        copies = truth[:, r][:, None, None].expand(-1, R, 2, -1, -1, -1)
        assert (energy_score(copies, truth, evenly(R, B)) > right + 0.05).all()
    mean = truth.mean(1)[:, None, None].expand(-1, R, 2, -1, -1, -1)
    assert (energy_score(mean, truth, evenly(R, B)) > right + 0.05).all()


def test_it_does_not_matter_whose_draw_is_whose_annotation(random: Callable[..., torch.Tensor]):
    """It compares sets: who is like whom is the likelihood's affair."""
    samples, truth = random(2, R, 2, 1, H, W).sigmoid(), (random(2, R, 1, H, W) > 0).float()
    one = energy_score(samples, truth, evenly(R, 2))
    torch.testing.assert_close(energy_score(samples.roll(1, 1), truth, evenly(R, 2)), one)


def test_the_energy_score_pulls_draws_apart_where_raters_differ(random: Callable[..., torch.Tensor]):
    """Draws that begin alike become what the two raters drew: one the left half, the other the right."""
    logits = (random(1, 2, 2, 1, H, W) * 0.1).requires_grad_()
    left = torch.zeros(H, W)
    left[:, :3] = 1
    truth = torch.stack([left, 1 - left])[None, :, None]
    optimizer, scores = torch.optim.Adam([logits], lr=0.1), []
    for _ in range(200):
        score = energy_score(logits.sigmoid(), truth, evenly(2)).sum()
        optimizer.zero_grad()
        score.backward()
        optimizer.step()
        scores.append(score.item())
    found = logits.detach().sigmoid()[0, :, :, 0]
    assert scores[-1] < scores[0] - 0.5
    nearest = [
        min((distance(one, mask), side) for side, mask in enumerate(truth[0, :, 0])) for one in found.flatten(0, 1)
    ]
    assert {side for _, side in nearest} == {0, 1}
    assert max(far for far, _ in nearest) < 0.1


# Precision


def test_half_precision_is_summed_in_single(prediction: Prediction, batch: Batch):
    """A mask of thousands of pixels has no exact number of them in bfloat16."""
    half = {name: value.bfloat16() for name, value in vars(prediction).items() if isinstance(value, torch.Tensor)}
    posterior = Posterior(prediction.posterior.mean.bfloat16(), prediction.posterior.log_variance.bfloat16())
    rounded = Prediction(**half, posterior=posterior)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(rounded, batch, EVERYTHING, 0.5)
    expected = objective(rounded.float(), batch, EVERYTHING, 0.5)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.parts, expected.parts)
