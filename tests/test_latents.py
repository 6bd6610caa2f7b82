"""The latents: noise of unit variance, draws on the simplex, and closed forms against Monte Carlo."""

import math

import pytest
import torch
from torch.distributions import Dirichlet, Normal

from proseg.latents import Posterior, draw_dirichlet, grid_noise, kl_tau, kl_z

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbour_correlation(maps: torch.Tensor) -> float:
    left, right = maps[..., :-1].flatten(), maps[..., 1:].flatten()
    return torch.corrcoef(torch.stack([left, right]))[0, 1].item()


# Noise


@pytest.mark.parametrize("grid", [None, 1, 3, 8, 16, 100])
@pytest.mark.parametrize("size", [(16, 16), (12, 24), (17, 9), (1, 5)], ids=str)
def test_noise_has_unit_variance_in_every_pixel(size: tuple[int, int], grid: int | None):
    count = 4000
    noise = grid_noise(torch.Size((count, 1, *size)), grid, CPU, seeded())
    assert noise.shape == (count, 1, *size)
    assert noise.mean(0).abs().max() < 5.5 / count**0.5
    assert (noise.var(0) - 1).abs().max() < 5.5 * (2 / count) ** 0.5


def test_noise_correlates_over_a_cell_of_the_grid_and_not_beyond():
    def correlations(grid: int | None) -> tuple[float, float]:
        noise = grid_noise(torch.Size((500, 2, 3, 32, 32)), grid, CPU, seeded())
        return neighbour_correlation(noise), torch.corrcoef(noise[..., 8, [2, 29]].reshape(-1, 2).T)[0, 1].item()

    near, far = correlations(4)
    assert near > 0.9
    assert abs(far) < 0.1
    near, far = correlations(None)
    assert abs(near) < 0.02
    assert abs(far) < 0.1
    assert correlations(32) == correlations(None)


def test_noise_of_a_grid_of_one_cell_is_one_number_an_image():
    noise = grid_noise(torch.Size((3, 2, 8, 8)), 1, CPU, seeded())
    torch.testing.assert_close(noise, noise[..., :1, :1].expand_as(noise))
    assert len(noise.flatten(2)[..., 0].unique()) == 6


# The posterior


@pytest.mark.slow
def test_draws_are_compiled_whole_and_for_all_sizes():
    """A graph break, or a function that takes no varying sizes, would be an error with `fullgraph`."""
    draw = torch.compile(lambda mean: Posterior(mean, mean).draw(4), backend="aot_eager", fullgraph=True)
    for images, side in ((2, 16), (3, 20), (4, 24)):
        assert draw(torch.zeros(images, 2, 3, side, side + 1)).shape == (images, 2, 3, side, side + 1)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("grid", [None, 2])
def test_draws_have_the_posteriors_mean_and_variance(leading: tuple[int, ...], grid: int | None):
    shape, count = (*leading, 2, 5, 4), 3000
    mean, log_variance = torch.linspace(-3, 3, math.prod(shape)).view(shape), torch.full(shape, math.log(0.25))
    posterior, generator = Posterior(mean, log_variance), seeded()
    if not leading and grid:  # the channels are the leading axis then
        mean, log_variance, posterior = mean[None], log_variance[None], Posterior(mean[None], log_variance[None])
    draws = torch.stack([posterior.draw(grid, generator) for _ in range(count)])
    assert draws.shape[1:] == mean.shape
    assert (draws.mean(0) - mean).abs().max() < 5.5 * 0.5 / count**0.5
    assert (draws.var(0) / log_variance.exp() - 1).abs().max() < 5.5 * (2 / count) ** 0.5


@pytest.mark.usefixtures("global_rng")
def test_a_draw_follows_its_generator_or_else_the_global_one():
    posterior = Posterior(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    torch.manual_seed(1)
    one, free = posterior.draw(None, seeded(3)), posterior.draw(None)
    torch.manual_seed(2)
    assert torch.equal(posterior.draw(None, seeded(3)), one)
    assert not torch.equal(posterior.draw(None), free)
    torch.manual_seed(1)
    assert torch.equal(posterior.draw(None), free)


def test_the_gradient_of_a_draw_reaches_mean_and_variance():
    mean, log_variance = (torch.zeros(1, 1, 3, 3, requires_grad=True) for _ in range(2))
    Posterior(mean, log_variance).draw(None, seeded()).square().sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert (mean.grad != 0).all()
    assert (log_variance.grad > 0).all()


def test_an_index_picks_mean_and_variance_alike():
    posterior = Posterior(torch.arange(24.0).view(2, 3, 1, 2, 2), -torch.arange(24.0).view(2, 3, 1, 2, 2))
    picked = posterior[torch.tensor([0, 1, 1]), torch.tensor([2, 0, 2])]
    assert picked.mean[:, 0, 0, 0].tolist() == [8, 12, 20]
    assert picked.log_variance[:, 0, 0, 0].tolist() == [-8, -12, -20]


# The preference


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


def test_dirichlet_draws_follow_the_seed_and_have_no_gradient():
    alpha = torch.ones(4, 3, requires_grad=True)
    one = draw_dirichlet(alpha, seeded(1))
    assert not one.requires_grad
    assert torch.equal(draw_dirichlet(alpha, seeded(1)), one)
    assert not torch.equal(draw_dirichlet(alpha, seeded(2)), one)


# Divergences


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
