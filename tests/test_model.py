"""The model and what is drawn from it: shapes, noise, gradients, the influence of both latents."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from proseg import generate
from proseg.config import LossConfig, ModelConfig
from proseg.data.batches import Batch
from proseg.generate import draw_dirichlet, mean_maps, sample_personal, sample_prior
from proseg.losses import elbo
from proseg.model import LOG_VARIANCE_BOUND, Posterior, ProSeg, grid_noise

SIZES = [(32, 32), (24, 40), (33, 47), (7, 5), (1, 1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(channels: int = 1, raters: int = 4, **changes: int | None) -> ProSeg:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = {"width": 8, "levels": 3, "z_channels": 2, "tau_size": 3, "predictor_width": 8} | changes
        return ProSeg(ModelConfig(**values), channels=channels, raters=raters)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded())


def neighbour_correlation(maps: torch.Tensor) -> float:
    left, right = maps[..., :-1].flatten(), maps[..., 1:].flatten()
    return torch.corrcoef(torch.stack([left, right]))[0, 1].item()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("channels", "raters", "z_grid"), [(1, 4, None), (3, 2, 4), (2, 1, 1)])
@pytest.mark.usefixtures("global_rng")
def test_shapes(size: tuple[int, int], channels: int, raters: int, z_grid: int | None):
    model = small(channels, raters, z_grid=z_grid)
    batch = 2
    found = model(images(batch, channels, *size), torch.ones(batch, raters, dtype=torch.bool))
    assert found.logits.shape == (batch, raters, *size)
    assert found.reconstruction.shape == (batch, channels, *size)
    assert found.rater_logits.shape == (batch, raters, raters)
    assert found.posterior.mean.shape == found.posterior.log_variance.shape == (batch, raters, 2, *size)
    assert found.alpha.shape == (raters, 3)
    assert all(value.isfinite().all() for value in (found.logits, found.reconstruction, found.rater_logits))


@pytest.mark.parametrize("levels", [1, 2, 7])
def test_any_depth_takes_any_size(levels: int):
    model = small(width=2, levels=levels)
    assert model.posterior(images(2, 1, 19, 30)).mean.shape == (2, 4, 2, 19, 30)


@pytest.mark.parametrize("grid", [None, 1, 3, 8, 16, 100])
@pytest.mark.parametrize("size", [(16, 16), (12, 24), (17, 9)], ids=str)
def test_noise_has_unit_variance_in_every_pixel(size: tuple[int, int], grid: int | None):
    count = 4000
    noise = grid_noise(torch.Size((count, 1, *size)), grid, torch.device("cpu"), seeded())
    assert noise.shape == (count, 1, *size)
    assert noise.mean(0).abs().max() < 5.5 / count**0.5
    assert (noise.var(0) - 1).abs().max() < 5.5 * (2 / count) ** 0.5


def test_noise_correlates_over_a_cell_of_the_grid_and_not_beyond():
    def correlations(grid: int | None) -> tuple[float, float]:
        noise = grid_noise(torch.Size((500, 2, 3, 32, 32)), grid, torch.device("cpu"), seeded())
        return neighbour_correlation(noise), torch.corrcoef(noise[..., 8, [2, 29]].reshape(-1, 2).T)[0, 1].item()

    near, far = correlations(4)
    assert near > 0.9
    assert abs(far) < 0.1
    near, far = correlations(None)
    assert abs(near) < 0.02
    assert abs(far) < 0.1
    assert correlations(32) == correlations(None)


def test_noise_of_a_grid_of_one_cell_is_one_number_an_image():
    noise = grid_noise(torch.Size((3, 2, 8, 8)), 1, torch.device("cpu"), seeded())
    torch.testing.assert_close(noise, noise[..., :1, :1].expand_as(noise))
    assert len(noise.flatten(2)[..., 0].unique()) == 6


@pytest.mark.parametrize("image", [0.0, 1e3, 1e6])
def test_log_variance_is_bounded(image: float):
    model = small()
    with torch.no_grad():
        model.heads.weight.mul_(1e4)
        found = model.posterior(image * images(1, 1, 16, 16)).log_variance
    assert found.abs().max() <= LOG_VARIANCE_BOUND
    assert found.isfinite().all()


def test_samples_differ_in_connected_regions_only_with_a_coarse_grid():
    def regions(z_grid: int | None) -> int:
        model = small(z_grid=z_grid)
        with torch.no_grad():
            maps = sample_personal(model, model.posterior(images(1, 1, 64, 64)), 2, seeded())[0, 0]
        difference = (maps[0] - maps[1]).numpy()
        return ndimage.label(difference > np.median(difference))[1]

    assert regions(4) < 25
    assert regions(None) > 5 * regions(4)


@pytest.mark.usefixtures("global_rng")
def test_every_parameter_receives_a_gradient():
    torch.manual_seed(0)
    model, present = small(z_grid=4), torch.ones(2, 4, dtype=torch.bool)
    masks = (images(2, 4, 16, 16) > 0).float()
    batch = Batch(images(2, 1, 16, 16), masks, present)
    elbo(model(batch.image, present), batch, LossConfig(), 1.0).total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert without == []


@pytest.mark.usefixtures("global_rng")
def test_the_reconstruction_comes_from_a_rater_who_is_present():
    model = small()
    with torch.no_grad():
        assert model.heads.bias is not None
        model.heads.bias.view(4, 2, 2)[[0, 1, 3], 0] = 1e6
    present = torch.tensor([False, False, True, False]).expand(8, 4)
    assert model(images(8, 1, 8, 8), present).reconstruction.abs().max() < 1e3


def test_both_latents_change_the_prediction():
    model = small()
    z, tau = images(1, 2, 8, 8), torch.tensor([[0.98, 0.01, 0.01]])
    with torch.no_grad():
        base = model.predict(z, tau)
        assert (base - model.predict(z, tau.roll(1, 1))).abs().mean() > 1e-3
        assert (base - model.predict(z + 1, tau)).abs().mean() > 1e-3


def test_alpha_is_positive_whatever_the_embedding():
    model = small()
    with torch.no_grad():
        model.embedding.copy_(torch.tensor([[-1e3, 0.0, 1e3]]).expand(4, 3))
        assert model.alpha().min() > 0
        assert model.alpha().isfinite().all()


def test_fresh_weights_follow_the_seed():
    one, other = small(), small()
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


# Generation


@pytest.fixture(scope="module")
def model() -> ProSeg:
    return small(z_grid=4).eval()


@pytest.fixture(scope="module")
def posterior(model: ProSeg) -> Posterior:
    with torch.no_grad():
        return model.posterior(images(3, 1, 16, 20))


@pytest.mark.parametrize("count", [1, 5])
def test_samples_have_their_shapes_and_are_probabilities(model: ProSeg, posterior: Posterior, count: int):
    with torch.no_grad():
        personal = sample_personal(model, posterior, count, seeded())
        prior = sample_prior(model, posterior, count, seeded())
        means = mean_maps(model, posterior)
    assert personal.shape == (3, 4, count, 16, 20)
    assert prior.shape == (3, count, 16, 20)
    assert means.shape == (3, 4, 16, 20)
    assert all(((maps >= 0) & (maps <= 1)).all() for maps in (personal, prior, means))


@pytest.mark.usefixtures("global_rng")
def test_samples_follow_the_seed_and_nothing_else(model: ProSeg, posterior: Posterior):
    for draw in (sample_personal, sample_prior):
        with torch.no_grad():
            torch.manual_seed(1)
            one = draw(model, posterior, 4, seeded(7))
            torch.manual_seed(2)
            assert torch.equal(draw(model, posterior, 4, seeded(7)), one)
            assert not torch.equal(draw(model, posterior, 4, seeded(8)), one)


def test_the_draws_of_one_call_differ(model: ProSeg, posterior: Posterior):
    with torch.no_grad():
        for draw in (sample_personal, sample_prior):
            maps = draw(model, posterior, 4, seeded()).reshape(-1, 16 * 20)
            assert len(maps.unique(dim=0)) == len(maps)


def test_slices_of_a_volume_share_their_tau(model: ProSeg, posterior: Posterior):
    mean = posterior.mean[:1].expand_as(posterior.mean)
    still = Posterior(mean, torch.full_like(mean, -1e3))
    with torch.no_grad():
        for draw in (sample_personal, sample_prior):
            shared, own = (draw(model, still, 2, seeded(), share_tau=share) for share in (True, False))
            torch.testing.assert_close(shared[0], shared[1])
            assert not torch.allclose(own[0], own[1])


@pytest.mark.parametrize("pixels", [1, 1000])
def test_memory_bound_changes_no_map(model: ProSeg, posterior: Posterior, pixels: int, monkeypatch: pytest.MonkeyPatch):
    with torch.no_grad():
        whole = mean_maps(model, posterior)
        monkeypatch.setattr(generate, "PIXELS_AT_ONCE", pixels)
        torch.testing.assert_close(mean_maps(model, posterior), whole)


def test_prior_samples_use_the_posterior_of_the_likeliest_rater(model: ProSeg, posterior: Posterior):
    """All draws of tau fall to rater 2 once its bias is large: only that rater's z may appear."""
    with torch.no_grad():
        last = model.classifier[-1]
        before = last.bias.clone()
        last.bias[2] = 1e4
        marked = posterior.mean.clone()
        marked[:, [0, 1, 3]] = torch.nan
        maps = sample_prior(model, Posterior(marked, posterior.log_variance), 6, seeded())
        last.bias.copy_(before)
    assert maps.isfinite().all()


@pytest.mark.parametrize("alpha", [(0.01, 0.01, 0.01), (0.1, 1.0, 10.0), (50.0, 50.0, 1.0)], ids=str)
def test_dirichlet_draws_lie_on_the_simplex_with_the_right_moments(alpha: tuple[float, ...]):
    a = torch.tensor(alpha)
    draws = draw_dirichlet(a.expand(50_000, -1), seeded())
    torch.testing.assert_close(draws.sum(1), torch.ones(50_000))
    assert draws.isfinite().all()
    mean = a / a.sum()
    variance = mean * (1 - mean) / (a.sum() + 1)
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / len(draws)).sqrt() + 1e-5).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.1, atol=1e-4)
