"""What is drawn from a model: by seed, in bounded memory, with one pass of the trunk; and how unsure it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from proseg import generate
from proseg.config import TrainConfig
from proseg.generate import binarise, maps, mean_maps, sample_personal, sample_prior, uncertainty
from proseg.losses import probabilities
from proseg.method import Draws, Method
from proseg.methods import build
from proseg.model import Encoding, ProSeg
from tests.studies import awake

R, SIZE = 3, (12, 20)
SAMPLERS = [sample_personal, sample_prior]
KINDS: list[dict[str, Any]] = [
    {}, {"model.encoder": "separate", "model.patch": 2}, {"model.use_z": False}, {"model.use_tau": False},
    {"model.use_z": False, "model.use_tau": False}, {"method": "multihead_unet"},
]  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(classes: int = 1, raters: int = R, **changes: Any) -> Method:
    values = {"model.width": 8, "model.levels": 2, "model.z_channels": 2, "model.z_grid": 4, "model.tau_size": 3,
              "model.predictor_width": 8}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(TrainConfig().with_values(values | changes), channels=1, raters=raters, classes=classes).eval()
        return awake(model)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn((5, 1, *SIZE), generator=seeded())


@contextmanager
def passes(module: nn.Module) -> Iterator[list[int]]:
    """How many images each pass of a module takes."""
    found: list[int] = []
    handle = module.register_forward_hook(lambda _, given, __: found.append(len(given[0])))
    yield found
    handle.remove()


def decoded(model: Method, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many maps each call of `decode` makes."""
    found, decode = [], model.decode

    def counting(encoding: Any, places: torch.Tensor, draws: Draws) -> torch.Tensor:
        found.append(len(places))
        return decode(encoding, places, draws)

    monkeypatch.setattr(model, "decode", counting)
    return found


def large(tau: float = 1.0, log_variance: float | None = None, **changes: Any) -> ProSeg:
    """A model whose latents matter more than in fresh weights."""
    model = small(**changes)
    assert isinstance(model, ProSeg)
    with torch.no_grad():
        if model.config.model.use_tau:
            model.from_tau[-1].weight.mul_(tau)
        if log_variance is not None:
            assert model.heads.bias is not None
            model.heads.bias.view(model.raters, 2, -1)[:, 1] = log_variance
        model.to_logits.weight.mul_(4)
    return model


# Maps


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("count", [1, 4])
def test_maps_have_their_shapes_and_are_probabilities(
    changes: dict[str, Any], classes: int, count: int, image: torch.Tensor
):
    model = small(classes, **changes)
    found = {
        (5, R, classes, *SIZE): mean_maps(model, image),
        (5, R, count, classes, *SIZE): sample_personal(model, image, count, seeded()),
        (5, count, classes, *SIZE): sample_prior(model, image, count, seeded()),
    }
    for shape, values in found.items():
        assert values.shape == shape
        assert not values.requires_grad
        assert ((values >= 0) & (values <= 1)).all()
        assert (values.sum(-3) <= 1 + 1e-6).all()


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("count", [1, 40])
def test_the_trunk_runs_once_an_image_whatever_is_drawn(changes: dict[str, Any], count: int, image: torch.Tensor):
    model = small(**changes)
    with passes(model.trunk) as found:
        draws = model.each_rater(), model.personal(5, count, seeded()), model.prior(5, count, seeded())
        assert [len(one[0]) for one in maps(model, image, *draws)] == [R, R * count, count]
    assert found == [5]


@pytest.mark.parametrize("draw", SAMPLERS)
@pytest.mark.parametrize("changes", [{}, {"model.use_z": False}, {"model.use_tau": False}], ids=str)
@pytest.mark.usefixtures("global_rng")
def test_samples_follow_the_seed_and_nothing_else(draw: Callable, changes: dict[str, Any], image: torch.Tensor):
    model = small(**changes)
    torch.manual_seed(1)
    one = draw(model, image, 4, seeded(7))
    torch.manual_seed(2)
    assert torch.equal(draw(model, image, 4, seeded(7)), one)
    assert not torch.equal(draw(model, image, 4, seeded(8)), one)


@pytest.mark.usefixtures("global_rng")
def test_drawing_does_not_move_the_global_generator(image: torch.Tensor):
    before = torch.get_rng_state()
    for changes in KINDS:
        for draw in SAMPLERS:
            draw(small(**changes), image, 2, seeded())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", SAMPLERS)
def test_the_draws_of_one_call_differ(draw: Callable, image: torch.Tensor):
    found = draw(small(), image, 4, seeded()).reshape(-1, SIZE[0] * SIZE[1])
    assert len(found.unique(dim=0)) == len(found)


def test_personal_samples_come_rater_by_rater(image: torch.Tensor):
    model = large(log_variance=-1e3)  # z does not vary
    with torch.no_grad():
        model.embedding.copy_(50 * torch.eye(3))  # nor does tau, much
    found, means = sample_personal(model, image, 6, seeded()), mean_maps(model, image)
    distance = (found.mean(2)[:, :, None] - means[:, None]).square().mean((0, 3, 4, 5))  # [R, R]
    assert distance.argmin(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("draw", SAMPLERS)
@pytest.mark.parametrize("changes", [{"model.use_z": False}, {"model.use_tau": False}, {}], ids=str)
def test_a_sample_of_a_volume_keeps_its_preference_and_its_rater(draw: Callable, changes: dict[str, Any]):
    model = small(**changes)
    named = model.personal if draw is sample_personal else model.prior
    shared, own = named(1, 8, seeded()), named(5, 8, seeded())
    assert len(shared.who) == 1
    if model.config.model.use_tau:
        assert len(shared.tau) == 1
        assert len(own.tau.unique(dim=0)) == 5
    if not model.config.model.use_z:  # then nothing else varies, and equal slices are drawn alike
        slices = torch.randn((1, 1, *SIZE), generator=seeded()).expand(5, -1, -1, -1)
        together, apart = (draw(model, slices, 8, seeded(), one_volume=one) for one in (True, False))
        torch.testing.assert_close(together, together[:1].expand_as(together))
        assert not torch.allclose(apart, apart[:1].expand_as(apart), atol=1e-4)


def test_prior_samples_use_the_posterior_of_the_likeliest_rater(image: torch.Tensor):
    """All draws of tau fall to rater 2 once its bias is large: only that rater's z may appear."""
    model = large()
    with torch.no_grad():
        model.classifier[-1].bias[2] = 1e4
        draws = model.prior(5, 6, seeded())
        assert (draws.who == 2).all()
        encoding = model.encode(image)
        marked = encoding.posterior.mean.clone()
        marked[:, :2] = torch.nan
        still = Encoding(type(encoding.posterior)(marked, encoding.posterior.log_variance), encoding.size)
        places = torch.arange(5).repeat_interleave(6)
        one = Draws(draws.who.flatten(), draws.tau.flatten(0, 1), seeded())
        assert model.decode(still, places, one).isfinite().all()


# Memory


@pytest.mark.parametrize("pixels", [1, 1000, 2_000_000])
@pytest.mark.parametrize("changes", KINDS[:2] + KINDS[-1:], ids=str)
def test_one_pass_makes_a_bounded_number_of_maps(
    pixels: int, changes: dict[str, Any], image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    model = small(**changes)
    whole = mean_maps(model, image)
    monkeypatch.setitem(generate.DECODED_AT_ONCE, "cpu", pixels)
    found = decoded(model, monkeypatch)
    torch.testing.assert_close(mean_maps(model, image), whole)
    assert sum(found) == 5 * R
    sample_prior(model, image, 30, seeded())
    assert sum(found) == 5 * R + 5 * 30
    assert max(found) <= max(1, pixels // (SIZE[0] * SIZE[1]))


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_one_pass_of_the_trunk_takes_a_bounded_number_of_images(
    at_once: int, changes: dict[str, Any], image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    model = small(**changes)
    whole = mean_maps(model, image)
    drawn = sample_personal(model, image, 3, seeded()) if not model.config.model.use_z else None
    monkeypatch.setattr(generate, "ENCODED_AT_ONCE", at_once * SIZE[0] * SIZE[1])
    with passes(model.trunk) as found:
        torch.testing.assert_close(mean_maps(model, image), whole)
    assert sum(found) == 5
    assert max(found) == at_once
    if drawn is not None:  # no noise of z, whose order depends on the parts
        torch.testing.assert_close(sample_personal(model, image, 3, seeded()), drawn)
    assert sample_prior(model, image, 3, seeded()).isfinite().all()


def test_no_image_no_map(image: torch.Tensor):
    assert mean_maps(small(), image[:0]).shape == (0, R, 1, *SIZE)


# Masks


def test_one_class_is_cut_at_a_half():
    found = binarise(torch.tensor([0.0, 0.5, 0.50001, 1.0]).view(1, 1, 1, 4))
    assert found.dtype == torch.bool
    assert found.flatten().tolist() == [False, False, True, True]


def test_several_classes_are_the_likeliest_background_included():
    given = torch.rand((2, 5, 4, 6, 7), generator=seeded()).softmax(2)  # the last is the background
    found = binarise(given[:, :, :3])
    assert found.shape == (2, 5, 3, 6, 7)
    best = given.argmax(2)
    for k in range(3):
        assert torch.equal(found[:, :, k], best == k)
    assert {0, 1, 2, 3} == set(best.unique().tolist())


def test_masks_of_a_model_follow_its_logits(image: torch.Tensor):
    logits = 3 * torch.randn((4, 3, 6, 6), generator=seeded())
    best = torch.cat([torch.zeros(4, 1, 6, 6), logits], 1).argmax(1)
    found = binarise(probabilities(logits))
    assert torch.equal(found, torch.stack([best == k for k in (1, 2, 3)], 1))


# Uncertainty


def one_preference(model: Method, image: torch.Tensor, draws: Draws, place: int, count: int, seed: int) -> torch.Tensor:
    """Maps of one preference with z drawn anew. -> [count, H, W]"""
    who = draws.who[:1, place : place + 1].expand(-1, count)
    tau = None if draws.tau is None else draws.tau[:1, place : place + 1].expand(-1, count, -1)
    return maps(model, image, Draws(who, tau, seeded(seed)))[0][0, :, 0]


@pytest.mark.parametrize(("changes", "log_variance"), [({}, 1.0), ({"model.use_tau": False}, -3.0)], ids=str)
def test_uncertainty_agrees_with_brute_force(changes: dict[str, Any], log_variance: float):
    model, image = large(tau=3, log_variance=log_variance, **changes), torch.randn((1, 1, 6, 6), generator=seeded())
    preferences = model.prior(1, 300, seeded(1))
    found = [one_preference(model, image, preferences, place, 60, 100 + place) for place in range(300)]
    from_z = torch.stack([one.var(0) for one in found]).mean(0)
    means = torch.stack([one.mean(0) for one in found])
    from_tau = means.var(0) - from_z / 60
    ours = uncertainty(model, image, seeded(2), preferences=600, draws=3)
    assert ours.mean.shape == ours.from_z.shape == ours.from_tau.shape == (1, 1, 6, 6)
    torch.testing.assert_close(ours.from_z[0, 0].mean(), from_z.mean(), rtol=0.15, atol=0)
    torch.testing.assert_close(ours.from_tau[0, 0].mean(), from_tau.mean(), rtol=0.2, atol=0)
    torch.testing.assert_close(ours.mean[0, 0], means.mean(0), rtol=0, atol=0.03)
    free = sample_prior(model, image, 2000, seeded(3))[0, :, 0].var(0).mean()
    torch.testing.assert_close(ours.total.mean(), free, rtol=0.15, atol=0)


def test_with_one_opinion_nothing_is_left_to_the_raters():
    """Half of the variance over z would remain if the noise of the means were not taken off."""
    model = large(log_variance=1.0, raters=1, **{"model.use_tau": False})
    found = uncertainty(model, torch.randn((1, 1, 6, 6), generator=seeded()), seeded(), preferences=64, draws=2)
    assert found.from_z.min() > 0
    assert found.from_tau.mean() < 0.15 * found.from_z.mean()


@pytest.mark.parametrize("changes", [{"model.use_z": False}, {"method": "multihead_unet"}], ids=str)
def test_without_z_the_scan_leaves_nothing_open(changes: dict[str, Any], image: torch.Tensor):
    found = uncertainty(small(2, **changes), image, seeded())
    assert found.from_z.max() < 1e-10
    assert found.from_tau.mean() > 1e-8
    assert found.total.shape == (5, 2, *SIZE)


def test_without_tau_raters_still_differ_by_their_z(image: torch.Tensor):
    found = uncertainty(large(log_variance=-1e3, **{"model.use_tau": False}), image, seeded())
    assert found.from_tau.mean() > 10 * found.from_z.mean()


def test_uncertainty_follows_its_seed(image: torch.Tensor):
    one, again, other = (uncertainty(small(), image, seeded(seed)) for seed in (1, 1, 2))
    for name in ("mean", "from_z", "from_tau", "total"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("changes", [{"preferences": 1}, {"draws": 1}, {"preferences": 0}], ids=str)
def test_no_variance_from_a_single_draw(changes: dict[str, int], image: torch.Tensor):
    with pytest.raises(ValueError, match="must both be at least 2"):
        uncertainty(small(), image, seeded(), **changes)
