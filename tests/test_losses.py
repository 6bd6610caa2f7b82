"""The objective: closed forms against Monte Carlo, and what a missing rater must not do."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.distributions import Dirichlet, Normal

from proseg.config import LossConfig
from proseg.data.batches import Batch
from proseg.losses import elbo, kl_tau, kl_z, segmentation
from proseg.model import Posterior, Prediction

B, R, C, CZ, K, H, W = 4, 3, 2, 2, 5, 6, 7
EVERYTHING = LossConfig(segmentation="ce_dice", w_rec=0.7, w_cls=0.9, beta_z=0.3, beta_tau=0.2)


@pytest.fixture
def random() -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def prediction(random: Callable[..., torch.Tensor]) -> Prediction:
    return Prediction(
        logits=random(B, R, H, W), reconstruction=random(B, C, H, W), rater_logits=random(B, R, R),
        posterior=Posterior(random(B, R, CZ, H, W), random(B, R, CZ, H, W)), alpha=random(R, K).exp(),
    )  # fmt: skip


@pytest.fixture
def batch(random: Callable[..., torch.Tensor]) -> Batch:
    present = torch.ones(B, R, dtype=torch.bool)
    present[1, 0] = present[2, 2] = present[3, 1] = present[3, 2] = False
    return Batch(random(B, C, H, W), (random(B, R, H, W) > 0).float(), present)


def part(prediction: Prediction, batch: Batch, rows: slice) -> tuple[Prediction, Batch]:
    posterior = Posterior(prediction.posterior.mean[rows], prediction.posterior.log_variance[rows])
    return (
        Prediction(prediction.logits[rows], prediction.reconstruction[rows], prediction.rater_logits[rows], posterior,
                   prediction.alpha),
        Batch(batch.image[rows], batch.annotations[rows], batch.rater_mask[rows]),
    )  # fmt: skip


@pytest.mark.parametrize("prior", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("alpha", [(0.1, 0.1, 0.1), (0.1, 1.0, 10.0), (1.0, 1.0, 1.0), (10.0, 9.0, 8.0, 0.5)], ids=str)
@pytest.mark.usefixtures("global_rng")
def test_kl_tau_agrees_with_monte_carlo(alpha: tuple[float, ...], prior: float):
    torch.manual_seed(1)
    q = torch.tensor(alpha, dtype=torch.float64)
    draws = Dirichlet(q).sample((100_000,))
    ratio = Dirichlet(q).log_prob(draws) - Dirichlet(torch.full_like(q, prior)).log_prob(draws)
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(kl_tau(q[None], prior).item() - ratio.mean()) < 5 * error + 1e-9


def test_kl_tau_of_the_prior_is_zero():
    torch.testing.assert_close(kl_tau(torch.full((2, 8), 0.3), 0.3), torch.zeros(2))


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.5, -5.9), (-2.0, 3.0), (0.3, 5.9)])
@pytest.mark.usefixtures("global_rng")
def test_kl_z_agrees_with_monte_carlo(mean: float, log_variance: float):
    torch.manual_seed(1)
    q = Normal(torch.tensor(mean).double(), math.exp(log_variance / 2))
    draws = q.sample((200_000,))
    ratio = q.log_prob(draws) - Normal(0.0, 1.0).log_prob(draws)
    error = ratio.std() / math.sqrt(len(ratio))
    shape = (2, 3, 4, 5, 6)
    found = kl_z(Posterior(torch.full(shape, mean), torch.full(shape, log_variance)))
    assert found.shape == (2, 3)
    assert (found - ratio.mean()).abs().max() < 5 * error + 1e-5


def test_the_total_is_the_weighted_sum_of_the_parts(prediction: Prediction, batch: Batch):
    loss = elbo(prediction, batch, EVERYTHING, 0.5)
    p = loss.parts
    assert set(p) == {"seg", "rec", "cls", "kl_z", "kl_tau"}
    expected = p["seg"] + 0.7 * p["rec"] + 0.9 * p["cls"] + 0.3 * p["kl_z"] + 0.2 * p["kl_tau"]
    torch.testing.assert_close(loss.total, expected)


def test_every_part_is_the_mean_over_images_of_the_mean_over_present_raters(prediction: Prediction, batch: Batch):
    parts = elbo(prediction, batch, LossConfig(), 0.5).parts
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = {name: 0.0 for name in parts}
    for b in range(B):
        raters = batch.rater_mask[b].nonzero().flatten().tolist()
        for r in raters:
            share = 1 / len(raters) / B
            posterior = Posterior(prediction.posterior.mean[b : b + 1], prediction.posterior.log_variance[b : b + 1])
            expected["seg"] += share * cross_entropy(prediction.logits[b, r], batch.annotations[b, r]).item()
            expected["cls"] -= share * prediction.rater_logits[b, r].log_softmax(0)[r].item()
            expected["kl_z"] += share * kl_z(posterior)[0, r].item()
            expected["kl_tau"] += share * kl_tau(prediction.alpha, 0.5)[r].item()
        expected["rec"] += (prediction.reconstruction[b] - batch.image[b]).square().mean().item() / B
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["ce", "dice", "ce_dice"])
def test_missing_raters_contribute_nothing(prediction: Prediction, batch: Batch, kind: str):
    config = EVERYTHING.model_copy(update={"segmentation": kind})
    absent = ~batch.rater_mask
    mean, log_variance = prediction.posterior.mean.clone(), prediction.posterior.log_variance.clone()
    logits, rater_logits, masks = prediction.logits.clone(), prediction.rater_logits.clone(), batch.annotations.clone()
    mean[absent], log_variance[absent], logits[absent], rater_logits[absent] = 9, 5, -30, 40
    masks[absent] = 1 - masks[absent]
    changed = replace(prediction, logits=logits, rater_logits=rater_logits, posterior=Posterior(mean, log_variance))
    one, other = elbo(prediction, batch, config, 0.5), elbo(changed, replace(batch, annotations=masks), config, 0.5)
    torch.testing.assert_close(other.total, one.total)
    torch.testing.assert_close(other.parts, one.parts)


def test_a_rater_who_is_missing_everywhere_gets_no_gradient(prediction: Prediction, batch: Batch):
    present = torch.tensor([True, False, True]).expand(B, R)
    alpha, logits = prediction.alpha.clone().requires_grad_(), prediction.logits.clone().requires_grad_()
    moved = replace(prediction, alpha=alpha, logits=logits)
    elbo(moved, replace(batch, rater_mask=present), EVERYTHING, 0.5).total.backward()
    assert alpha.grad is not None
    assert logits.grad is not None
    assert (alpha.grad != 0).any(1).tolist() == [True, False, True]
    assert (logits.grad[:, 1] == 0).all()


def test_half_batches_average_to_the_whole(prediction: Prediction, batch: Batch):
    halves = [
        elbo(*part(prediction, batch, rows), EVERYTHING, 0.5).total for rows in (slice(0, B // 2), slice(B // 2, B))
    ]
    torch.testing.assert_close(sum(halves) / 2, elbo(prediction, batch, EVERYTHING, 0.5).total)


@pytest.mark.parametrize(("kind", "undecided"), [("ce", math.log(2)), ("dice", 1 - 13 / 25), ("ce_dice", None)])
def test_segmentation_of_an_undecided_map(kind: str, undecided: float | None):
    """Probability 1/2 on 4 x 6 pixels, half of them marked: overlap 6, areas 12 + 12."""
    masks = torch.zeros(1, 1, 4, 6)
    masks[..., :3] = 1
    expected = math.log(2) + 1 - 13 / 25 if undecided is None else undecided
    assert segmentation(torch.zeros(1, 1, 4, 6), masks, kind).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["ce", "dice", "ce_dice"])
@pytest.mark.parametrize("marked", [0.0, 1.0])
def test_segmentation_of_a_perfect_map_is_zero_and_of_a_wrong_one_is_not(kind: str, marked: float):
    masks = torch.full((2, 3, 4, 4), marked)
    right = (2 * masks - 1) * 50
    torch.testing.assert_close(segmentation(right, masks, kind), torch.zeros(2, 3))
    assert (segmentation(-right, masks, kind) > 0.9).all()
