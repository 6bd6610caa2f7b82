"""ProSeg: shapes, whose weights learn from what, the influence of both latents, and what is left without them."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from proseg.config import TrainConfig
from proseg.data.batches import Batch
from proseg.generate import maps, mean_maps, sample_personal, sample_prior
from proseg.latents import Posterior, draw_dirichlet
from proseg.method import Draws
from proseg.model import DRAWS_A_RATER, LOG_VARIANCE_BOUND, Encoding, ProSeg
from tests.studies import awake

SIZES = [(32, 32), (19, 30), (17, 17), (7, 5), (1, 1)]
R = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(channels: int = 1, raters: int = R, classes: int = 1, seed: int = 0, **changes: Any) -> ProSeg:
    """Changes are fields of `model`, or with a dot of any part."""
    values = {"width": 8, "levels": 3, "z_channels": 2, "tau_size": 3, "predictor_width": 8} | changes
    values = {name if "__" in name else f"model.{name}": value for name, value in values.items()}
    config = TrainConfig().with_values({name.replace("__", "."): value for name, value in values.items()})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return awake(ProSeg(config, channels=channels, raters=raters, classes=classes))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded())


def batch_for(model: ProSeg, *size: int, images_: int = 2, present: torch.Tensor | None = None) -> Batch:
    masks = torch.randint(1 + model.classes, (images_, model.raters, *size), generator=seeded(1), dtype=torch.uint8)
    everyone = torch.ones(images_, model.raters, dtype=torch.bool)
    return Batch(images(images_, model.channels, *size), masks, everyone if present is None else present)


def gradients(model: nn.Module, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}


def of_rater(parameter: torch.Tensor, rater: int, raters: int = R) -> torch.Tensor:
    """The share of one rater in a parameter of grouped convolutions."""
    return parameter.unflatten(0, (raters, -1))[rater]


# Shapes


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize(
    ("encoder", "channels", "raters", "classes", "z_grid"),
    [("shared", 1, 4, 1, None), ("separate", 3, 2, 3, 4), ("separate", 1, 1, 1, 1), ("shared", 3, 5, 3, None)],
)
@pytest.mark.usefixtures("global_rng")
def test_shapes(
    size: tuple[int, int], patch: int, encoder: str, channels: int, raters: int, classes: int, z_grid: int | None
):
    model = small(channels, raters, classes, encoder=encoder, patch=patch, z_grid=z_grid, loss__w_es=1.0)
    batch = batch_for(model, *size)
    found = model.predict(batch.image, batch.rater_mask)
    cells = tuple(-(-side // patch) for side in size)
    assert found.logits.shape == (2, raters, classes, *size)
    assert found.diverse.shape == (2, raters, DRAWS_A_RATER, classes, *size)
    assert found.reconstruction.shape == (2, channels, *size)
    assert found.rater_logits.shape == (2, raters, raters)
    assert found.posterior.mean.shape == found.posterior.log_variance.shape == (2, raters, 2, *cells)
    assert found.alpha.shape == (raters, 3)
    assert model(batch).total.isfinite()
    assert mean_maps(model, batch.image).shape == (2, raters, classes, *size)
    assert sample_personal(model, batch.image, 2, seeded()).shape == (2, raters, 2, classes, *size)
    assert sample_prior(model, batch.image, 3, seeded()).shape == (2, 3, classes, *size)


@pytest.mark.parametrize("levels", [1, 2, 7])
@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_any_depth_takes_any_size(levels: int, encoder: str):
    model = small(width=2, levels=levels, encoder=encoder)
    assert model.encode(images(2, 1, 19, 30)).posterior.mean.shape == (2, R, 2, 19, 30)


@pytest.mark.usefixtures("global_rng")
def test_without_the_energy_score_nothing_is_drawn_for_it():
    model = small()
    found = model.predict(images(2, 1, 9, 8), torch.ones(2, R, dtype=torch.bool))
    assert found.diverse is None
    assert len(found.logits.detach().reshape(-1, 72).unique(dim=0)) == 2 * R, "no two draws are the same"
    assert "es" not in model(batch_for(model, 9, 8)).parts


@pytest.mark.parametrize("changes", [{}, {"use_tau": False}, {"use_z": False}], ids=str)
@pytest.mark.usefixtures("global_rng")
def test_the_energy_score_s_draws_are_all_different_and_in_the_name_of_each_rater(changes: dict[str, bool]):
    model, image = small(loss__w_es=1.0, z_grid=4, **changes), images(2, 1, 16, 16)
    with torch.no_grad():
        found = model._diverse(model.encode(image))
    assert len(found.reshape(-1, 256).unique(dim=0)) == 2 * R * DRAWS_A_RATER
    if model.config.model.use_z:  # move one rater's z: that rater's draws alone follow
        torch.manual_seed(0)
        with torch.no_grad():
            one = model._diverse(model.encode(image))
            model.heads.bias.view(R, 2, 2)[1, 0] += 1
            torch.manual_seed(0)
            other = model._diverse(model.encode(image))
        assert (one != other).flatten(2).any(2).tolist() == [[False, True, False]] * 2


def two_sided(**changes: Any) -> ProSeg:
    """Two raters, each all but certain of a place of tau, and a classifier that says which of the two is larger."""
    model = small(raters=2, tau_size=2, concentration=1.0, **changes)
    first, last = model.classifier[0], model.classifier[2]
    with torch.no_grad():
        model.embedding.copy_(torch.tensor([[20.0, -20.0], [-20.0, 20.0]]))
        first.weight.copy_(torch.eye(2).repeat(len(first.weight) // 2, 1))
        first.bias.zero_()
        last.weight.copy_(torch.eye(2).repeat(1, len(first.weight) // 2))
        last.bias.zero_()
    return model


@pytest.mark.usefixtures("global_rng")
def test_the_likelihood_hears_a_raters_own_tau_and_the_energy_score_the_prior_s():
    """Without z all that varies is tau: next to nothing among a certain rater's own, much in the prior."""
    model, everyone = two_sided(use_z=False, loss__w_es=1.0), torch.ones(2, 2, dtype=torch.bool)
    torch.manual_seed(0)
    with torch.no_grad():
        one, other = (model.predict(images(2, 1, 8, 8), everyone) for _ in range(2))
        own = maps(model, images(2, 1, 8, 8), Draws(torch.tensor([[0, 1]]), torch.eye(2)[None]))[0]
    torch.testing.assert_close(one.logits.sigmoid(), own, atol=1e-2, rtol=0)
    torch.testing.assert_close(other.logits.sigmoid(), own, atol=1e-2, rtol=0)
    assert (one.diverse - other.diverse).abs().mean() > 0.03  # of logits


@pytest.mark.usefixtures("global_rng")
def test_taus_of_the_energy_score_come_from_the_prior_and_are_that_rater_s():
    """Two raters who share the prior between them: what is drawn for one is like the prior given that it is theirs."""
    model = two_sided()
    with torch.no_grad():
        torch.manual_seed(0)
        tau = model._prior_of_each((250, 2, 2))
    assert torch.equal(tau.argmax(3), torch.tensor([[0], [1]]).expand(250, 2, 2)), "the rater's by the classifier"
    largest = tau.amax(3)  # of Dir(1, 1): uniform in 1/2..1
    assert abs(largest.mean() - 0.75) < 0.02
    assert abs(largest.std() - 0.5 / 12**0.5) < 0.02


@pytest.mark.usefixtures("global_rng")
def test_a_rater_whom_the_prior_never_gives_is_drawn_from_its_own_posterior():
    model = small(raters=2)
    with torch.no_grad():
        model.classifier[2].weight.zero_()
        model.classifier[2].bias.copy_(torch.tensor([1.0, 0.0]))  # all taus are taken for the first rater's
        torch.manual_seed(0)
        model.embedding.copy_(torch.tensor([[-20.0, -20.0, 20.0], [20.0, -20.0, -20.0]]))
        tau = model._prior_of_each((50, 2, 1))[:, 1, 0]
    assert (tau.argmax(1) == 0).all()
    assert tau[:, 0].mean() > 0.9


@pytest.mark.parametrize(("z_channels", "tau_size", "raters"), [(1, 2, 1), (5, 4, 2), (16, 8, 4), (3, 11, 5)])
@pytest.mark.usefixtures("global_rng")
def test_sizes_of_the_latents_are_free(z_channels: int, tau_size: int, raters: int):
    model = small(raters=raters, z_channels=z_channels, tau_size=tau_size)
    found = model.predict(images(2, 1, 9, 8), torch.ones(2, raters, dtype=torch.bool))
    assert found.posterior.mean.shape == (2, raters, z_channels, 9, 8)
    assert found.alpha.shape == (raters, tau_size)
    prior = model.prior(2, 6, seeded())
    assert prior.tau.shape == (2, 6, tau_size)
    assert prior.who.max() < raters


@pytest.mark.parametrize("image", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_log_variance_is_bounded(image: float, encoder: str):
    model = small(encoder=encoder)
    with torch.no_grad():
        model.heads.weight.mul_(1e4)
        found = model.encode(image * images(1, 1, 16, 16)).posterior.log_variance
    assert found.abs().max() <= LOG_VARIANCE_BOUND
    assert found.isfinite().all()


def test_alpha_is_positive_whatever_the_embedding():
    model = small()
    with torch.no_grad():
        model.embedding.copy_(torch.tensor([[-1e3, 0.0, 1e3]]).expand(R, 3))
        assert model.alpha().min() > 0
        assert model.alpha().isfinite().all()


@pytest.mark.parametrize("concentration", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("raters", "tau_size"), [(2, 2), (4, 8), (5, 3)])
def test_every_rater_starts_at_the_prior_leaning_to_places_of_its_own(raters: int, tau_size: int, concentration: float):
    alpha = small(raters=raters, tau_size=tau_size, concentration=concentration).alpha().detach()
    lean = alpha - concentration
    assert (((lean.abs() < 1e-4) | ((lean - 8).abs() < 1e-4)).all(1) & (lean > 1).any(1)).all()
    if tau_size >= raters:
        assert ((lean > 1).sum(0) == 1).all(), "no two raters share a place"


def test_a_single_rater_starts_at_the_prior():
    torch.testing.assert_close(small(raters=1, concentration=1.5).alpha(), torch.full((1, 3), 1.5))


@pytest.mark.parametrize("concentration", [1e-2, 1e3])
def test_no_concentration_breaks_the_first_weights(concentration: float):
    alpha = small(concentration=concentration).alpha()
    assert alpha.isfinite().all()
    assert (alpha > 0).all()


def test_fresh_weights_follow_the_seed():
    one, other = small(), small()
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert not torch.equal(small(seed=1).from_z.weight, one.from_z.weight)


# Who learns from what


@pytest.mark.parametrize("encoder", ["shared", "separate"])
@pytest.mark.parametrize("w_es", [0.0, 1.0])
@pytest.mark.usefixtures("global_rng")
def test_every_parameter_receives_a_gradient(encoder: str, w_es: float):
    torch.manual_seed(0)
    model = small(classes=2, encoder=encoder, z_grid=4, patch=2, loss__w_es=w_es)
    found = gradients(model, model(batch_for(model, 16, 16)).total)
    assert [name for name, gradient in found.items() if not (gradient != 0).any()] == []


@pytest.mark.parametrize("rater", range(R))
def test_a_raters_posterior_is_that_raters_network_alone(rater: int):
    model = small(channels=3, encoder="separate")
    posterior = model.encode(images(2, 3, 10, 9)).posterior[:, rater]
    found = gradients(model, posterior.mean.sum() + posterior.log_variance.square().sum())
    network = {name: value for name, value in found.items() if name.startswith(("trunk", "heads"))}
    assert network
    for name, gradient in network.items():
        touched = [(of_rater(gradient, other) != 0).any().item() for other in range(R)]
        assert touched == [other == rater for other in range(R)], name


def test_a_shared_trunk_learns_from_every_rater_and_a_head_from_its_own():
    model = small()
    for rater in range(R):
        found = gradients(model, model.encode(images(2, 1, 10, 9)).posterior.mean[:, rater].square().sum())
        assert all((found[name] != 0).any() for name in found if name.startswith("trunk"))
        touched = [(of_rater(found["heads.weight"], other) != 0).any().item() for other in range(R)]
        assert touched == [other == rater for other in range(R)]


@pytest.mark.parametrize("patch", [1, 2])
def test_separate_is_one_unet_a_rater(patch: int):
    together, image = small(channels=3, encoder="separate", patch=patch), images(2, 3, 11, 14)
    with torch.no_grad():
        for parameter in together.trunk.parameters():  # also what begins as ones or zeros
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
        found = together.encode(image).posterior
        for rater in range(R):
            alone = small(channels=3, raters=1, patch=patch)
            weights = dict(together.named_parameters())
            for name, parameter in alone.named_parameters():
                if name.startswith(("trunk", "heads")):
                    parameter.copy_(of_rater(weights[name], rater))
            expected = alone.encode(image).posterior
            torch.testing.assert_close(found.mean[:, rater], expected.mean[:, 0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.log_variance[:, rater], expected.log_variance[:, 0], rtol=1e-4, atol=1e-5)


# Missing raters


@pytest.mark.parametrize("encoder", ["shared", "separate"])
@pytest.mark.parametrize("w_es", [0.0, 1.0])
@pytest.mark.usefixtures("global_rng")
def test_what_a_missing_rater_drew_does_not_matter(encoder: str, w_es: float):
    model = small(encoder=encoder, classes=2, loss__w_es=w_es)
    present = torch.tensor([[True, False, True], [False, True, True]])
    batch = batch_for(model, 12, 9, present=present)
    annotations = batch.annotations.clone()
    annotations[~present] = 2 - annotations[~present]
    losses = []
    for masks in (batch.annotations, annotations):
        torch.manual_seed(0)
        losses.append(model(Batch(batch.image, masks, present)))
    assert not torch.equal(annotations, batch.annotations)
    torch.testing.assert_close(losses[0].total, losses[1].total, rtol=0, atol=0)
    torch.testing.assert_close(losses[0].parts, losses[1].parts, rtol=0, atol=0)


@pytest.mark.parametrize("encoder", ["shared", "separate"])
@pytest.mark.parametrize("w_es", [0.0, 1.0])
@pytest.mark.usefixtures("global_rng")
def test_a_rater_who_is_missing_everywhere_learns_nothing(encoder: str, w_es: float):
    torch.manual_seed(0)
    model = small(encoder=encoder, loss__w_es=w_es)
    present = torch.tensor([True, False, True]).expand(4, R)
    found = gradients(model, model(batch_for(model, 12, 9, images_=4, present=present)).total)
    own = ["embedding", "heads.weight", "heads.bias"]
    own += [name for name in found if name.startswith("trunk")] if encoder == "separate" else []
    for name in own:
        learns = [(of_rater(found[name], rater) != 0).any().item() for rater in range(R)]
        assert learns == [True, False, True], name


@pytest.mark.usefixtures("global_rng")
def test_the_reconstruction_comes_from_a_rater_who_is_present():
    model = small(raters=4)
    with torch.no_grad():
        assert model.heads.bias is not None
        model.heads.bias.view(4, 2, 2)[[0, 1, 3], 0] = 1e6
    present = torch.tensor([False, False, True, False]).expand(8, 4)
    assert model.predict(images(8, 1, 8, 8), present).reconstruction.abs().max() < 1e3


# Both latents, one of them, none


def decoded(model: ProSeg, z: torch.Tensor, tau: torch.Tensor | None, who: int = 0) -> torch.Tensor:
    """Logits of one image whose posterior means are z for everyone. z [Cz, h, w]"""
    mean = z.expand(1, model.raters if model.config.model.use_z else 1, *z.shape)
    encoding = Encoding(Posterior(mean, torch.zeros_like(mean)), torch.Size(z.shape[-2:]))
    with torch.no_grad():
        return model.decode(encoding, torch.tensor([0]), Draws(torch.tensor([who]), tau))


TAU = torch.tensor([[0.98, 0.01, 0.01]])


def test_both_latents_change_the_prediction():
    model, z = small(), images(2, 8, 8)
    base = decoded(model, z, TAU)
    assert (base - decoded(model, z, TAU.roll(1, 1))).abs().mean() > 1e-3
    assert (base - decoded(model, z + 1, TAU)).abs().mean() > 1e-3


def test_the_predictor_is_told_the_rater_by_tau_and_z_alone():
    model, z = small(), images(2, 8, 8)
    assert torch.equal(decoded(model, z, TAU, who=0), decoded(model, z, TAU, who=2))


@pytest.mark.usefixtures("global_rng")
def test_without_tau_there_is_no_preference():
    model = small(use_tau=False, loss__w_es=1.0)
    assert [n for n, _ in model.named_parameters() if n.startswith(("embedding", "classifier", "from_tau"))] == []
    assert model.each_rater().tau is model.personal(1, 2, seeded()).tau is model.prior(1, 2, seeded()).tau is None
    assert set(model(batch_for(model, 8, 8)).parts) == {"seg", "rec", "kl_z", "es"}
    prior = model.prior(50, 20, seeded())
    assert torch.bincount(prior.who.flatten(), minlength=R).min() > 250, "any rater, uniformly"
    raters = mean_maps(model, images(1, 1, 8, 8))[0]
    assert len(raters.flatten(1).unique(dim=0)) == R, "raters differ by z"


@pytest.mark.parametrize("encoder", ["shared", "separate"])
@pytest.mark.usefixtures("global_rng")
def test_without_z_all_raters_share_their_features(encoder: str):
    model, image = small(use_z=False, encoder=encoder, loss__w_es=1.0), images(2, 1, 8, 8)
    assert [name for name, _ in model.named_parameters() if name.startswith("decoder")] == []
    assert model.encode(image).posterior.mean.shape == (2, 1, 2, 8, 8)
    assert set(model(batch_for(model, 8, 8)).parts) == {"seg", "cls", "kl_tau", "es"}
    tau = torch.tensor([[[0.7, 0.2, 0.1]]]).expand(1, 4, 3)
    (same,) = maps(model, image, Draws(torch.tensor([[0, 1, 2, 2]]), tau, seeded()))
    torch.testing.assert_close(same, same[:, :1].expand_as(same))
    raters = mean_maps(model, image)[0]
    assert len(raters.flatten(1).unique(dim=0)) == R, "raters differ by tau"


@pytest.mark.usefixtures("global_rng")
def test_without_either_every_map_is_the_same():
    model, image = small(use_z=False, use_tau=False, loss__w_es=1.0), images(2, 1, 8, 8)
    assert set(model(batch_for(model, 8, 8)).parts) == {"seg", "es"}
    one = mean_maps(model, image)[:, :1]
    found = maps(model, image, model.each_rater(), model.personal(2, 3, seeded()), model.prior(2, 5, seeded()))
    for sets in found:
        torch.testing.assert_close(sets, one.expand_as(sets))


@pytest.mark.parametrize("changes", [{"use_z": False}, {"use_tau": False}, {"use_z": False, "use_tau": False}], ids=str)
@pytest.mark.usefixtures("global_rng")
def test_what_is_left_learns(changes: dict[str, bool]):
    torch.manual_seed(0)
    model = small(encoder="separate", **changes)
    found = gradients(model, model(batch_for(model, 12, 12)).total)
    assert [name for name, gradient in found.items() if not (gradient != 0).any()] == []


def test_samples_differ_in_connected_regions_only_with_a_coarse_grid():
    def regions(z_grid: int | None) -> int:
        one, other = sample_personal(small(z_grid=z_grid), torch.zeros(1, 1, 64, 64), 2, seeded())[0, 0, :, 0]
        difference = (one - other).numpy()
        return ndimage.label(difference > np.median(difference))[1]

    assert regions(4) < 25
    assert regions(None) > 5 * regions(4)


def test_the_predictor_of_a_fresh_model_does_not_hear_tau_yet():
    torch.manual_seed(0)
    model = ProSeg(TrainConfig().with_values({"model.width": 4, "model.levels": 2}), channels=1, raters=R)
    assert not model.from_tau[-1].weight.any()
    model.train()
    batch = batch_for(model, 16, 16)
    model(batch).total.backward()
    assert model.from_tau[-1].weight.grad is not None
    assert model.from_tau[-1].weight.grad.any()  # but it can learn to


@pytest.mark.parametrize(("concentration", "size"), [(0.1, 4), (1.0, 8), (10.0, 3)])
def test_the_network_is_given_tau_in_its_prior_s_units(concentration: float, size: int):
    model = small(tau_size=size, concentration=concentration)
    tau = draw_dirichlet(torch.full((20_000, size), concentration), seeded())
    heard: list[torch.Tensor] = []
    handles = [
        network.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
        for network in (model.classifier, model.from_tau)
    ]
    with torch.no_grad():
        model.classify(tau)
        model._logits(torch.zeros(len(tau), 2, 1, 1), tau, torch.Size((1, 1)))
    for handle in handles:
        handle.remove()
    assert len(heard) == 2
    for given in heard:
        assert given.mean().abs() < 0.01
        assert abs(given.std() - 1) < 0.02
