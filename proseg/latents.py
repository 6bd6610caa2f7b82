"""The two latents: their distributions, how they are drawn, and how far they lie from their priors.

Letters: B images, R raters, S samples, Cz channels of z, K size of tau, h x w cells of z.
"""

from dataclasses import dataclass

import torch
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F


@dataclass(frozen=True)
class Posterior:
    """q(z | x): Gaussians, with any leading axes."""

    mean: torch.Tensor
    """[..., Cz, h, w]"""
    log_variance: torch.Tensor
    """[..., Cz, h, w]"""

    @property
    def deviation(self) -> torch.Tensor:
        """[..., Cz, h, w]"""
        return torch.exp(0.5 * self.log_variance)

    def __getitem__(self, index) -> "Posterior":
        return Posterior(self.mean[index], self.log_variance[index])

    def expand(self, *leading: int) -> "Posterior":
        """The same for other leading axes, as `torch.Tensor.expand`."""
        last = self.mean.shape[-3:]
        return Posterior(self.mean.expand(*leading, *last), self.log_variance.expand(*leading, *last))

    def draw(self, grid: int | None, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of z for every mean. With a generator the noise is drawn on the generator's device."""
        device = self.mean.device if generator is None else generator.device
        noise = grid_noise(self.mean.shape, grid, device, generator).to(self.mean)
        return torch.addcmul(self.mean, self.deviation, noise)


def kl_z(posterior: Posterior) -> torch.Tensor:
    """KL(q(z | x) || N(0, I)), a MEAN over the elements of z (marginal variances). [B, R, Cz, h, w] -> [B, R]"""
    mean, log_variance = posterior.mean, posterior.log_variance
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean((-3, -2, -1))


def kl_tau(alpha: torch.Tensor, concentration: float) -> torch.Tensor:
    """KL(q(tau_r | r) || Dir(alpha_0 * 1)) in closed form. [R, K] -> [R]"""
    # Unchecked: a NaN must come out as one, so that training can say in which step it arose.
    prior = Dirichlet(torch.full_like(alpha, concentration), validate_args=False)
    return kl_divergence(Dirichlet(alpha, validate_args=False), prior)


def draw_dirichlet(alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Samples of Dir(alpha) over the last axis, without a gradient (torch.distributions takes no generator)."""
    gammas = torch._standard_gamma(alpha.detach().double().to(generator.device), generator=generator)  # pyright: ignore[reportPrivateImportUsage]
    gammas = gammas.clamp(min=torch.finfo(torch.float64).tiny)
    return (gammas / gammas.sum(-1, keepdim=True)).to(alpha)


@dataclass(frozen=True)
class Lattice:
    """How noise that is drawn for a z of the size that a network knows lies over a larger z: mirrored at each border of
    that size, over and over, so that it has no seam."""

    size: tuple[int, int]
    """(height, width) that the network knows, in cells."""
    rows: range
    """Of the larger z, those that are wanted; its columns are all wanted."""


def _mirrored(places: range, size: int) -> torch.Tensor:
    """Of each place along an axis, that within the size."""
    within = torch.tensor(places) % (2 * size)
    return torch.minimum(within, 2 * size - 1 - within)


def grid_noise(
    shape: torch.Size, grid: int | None, device: torch.device, generator: torch.Generator | None = None,
    lattice: Lattice | None = None,
) -> torch.Tensor:  # fmt: skip
    """Gaussian noise of unit variance whose correlation length is the cell of a `grid` along the longer side.

    Noise that is independent in every pixel makes samples differ by salt and pepper. Drawn on a coarser grid and
    upsampled they differ by regions. None, or a grid not smaller than z: independent cells, as in the paper.

    With a lattice each map's noise, [maps, Cz, h, w], is drawn for itself: the same numbers, whatever part is wanted
    and however many maps are made at once.
    """
    *leading, height, width = shape
    if lattice is not None:
        one = (*leading[1:], *noise_cells(*lattice.size, grid))
        drawn = torch.stack([torch.randn(one, device=device, generator=generator) for _ in range(leading[0])])
        rows, columns = _mirrored(lattice.rows, lattice.size[0]), _mirrored(range(width), lattice.size[1])
        if one[1:] == lattice.size:
            return drawn[..., rows[:, None], columns]
        down, across = (_upsampling(*sizes, device) for sizes in zip(lattice.size, one[1:], strict=True))
        return down[rows] @ drawn @ across[columns].mT
    cells = (*leading, *noise_cells(height, width, grid))
    # Not torch.randn, which cannot be compiled for sizes that vary once it is given a generator.
    coarse = torch.empty(cells, device=device).normal_(generator=generator)
    return upsampled(coarse, height, width)


def noise_cells(height: int, width: int, grid: int | None) -> tuple[int, int]:
    """The cells on which the noise of a z of this size is drawn."""
    longer = max(height, width)
    if grid is None or grid >= longer:
        return height, width
    return max(1, round(grid * height / longer)), max(1, round(grid * width / longer))


def upsampled(coarse: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Noise drawn on `noise_cells`, at the size of z. [..., cells, cells] -> [..., height, width]"""
    cells = coarse.shape[-2:]
    if cells == (height, width):
        return coarse
    return _upsampling(height, cells[0], coarse.device) @ coarse @ _upsampling(width, cells[1], coarse.device).mT


def _upsampling(pixels: int, cells: int, device: torch.device) -> torch.Tensor:
    """[pixels, cells], linear interpolation along an axis, in rows of length one: unit variance stays unit variance."""
    basis = torch.eye(cells, device=device)[None]  # [1, cells, cells]
    return F.normalize(F.interpolate(basis, pixels, mode="linear", align_corners=False)[0].mT, dim=1)
