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
        return torch.addcmul(self.mean, torch.exp(0.5 * self.log_variance), noise)


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


def grid_noise(
    shape: torch.Size, grid: int | None, device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Gaussian noise of unit variance whose correlation length is the cell of a `grid` along the longer side.

    Noise that is independent in every pixel makes samples differ by salt and pepper. Drawn on a coarser grid and
    upsampled they differ by regions. None, or a grid not smaller than z: independent cells, as in the paper.
    """
    *leading, height, width = shape
    coarse = torch.randn((*leading, *noise_cells(height, width, grid)), device=device, generator=generator)
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
