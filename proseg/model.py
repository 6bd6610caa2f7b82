"""ProSeg: two latents, z for the ambiguity of the scan and tau for the preference of the rater (paper, section 4).

Letters: B images, R raters, S samples, C channels, Cz channels of z, K size of tau, H x W pixels.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributions import Dirichlet
from torch.nn import functional as F

from proseg.config import ModelConfig
from proseg.unet import UNet

LOG_VARIANCE_BOUND = 6.0
"""log sigma^2 lies in (-6, 6): an unbounded exponential is a known source of NaN."""
INITIAL_LOG_VARIANCE = -3.0
SMALLEST_ALPHA = 1e-2


@dataclass(frozen=True)
class Posterior:
    """q(z_r | x) for all raters: Gaussians."""

    mean: torch.Tensor
    """[B, R, Cz, H, W]"""
    log_variance: torch.Tensor
    """[B, R, Cz, H, W]"""


@dataclass(frozen=True)
class Prediction:
    """One draw of both latents for every rater, and what the objective needs of it."""

    logits: torch.Tensor
    """[B, R, H, W], of p(y_r = 1 | tau_r, z_r)."""
    reconstruction: torch.Tensor
    """[B, C, H, W], of the image from one rater's z."""
    rater_logits: torch.Tensor
    """[B, R, R], of p(r | tau_r); the last axis is the class."""
    posterior: Posterior
    alpha: torch.Tensor
    """[R, K], concentrations of q(tau_r | r)."""


class ProSeg(nn.Module):
    """A shared trunk, a posterior head for each rater, and ONE predictor for all raters."""

    def __init__(self, config: ModelConfig, *, channels: int, raters: int):
        super().__init__()
        self.config, self.channels, self.raters = config, channels, raters
        width, z, k, hidden = config.width, config.z_channels, config.tau_size, config.predictor_width
        self.trunk = UNet(channels, width, config.levels)
        # Every rater's head is a 3x3 convolution; side by side they are one.
        self.heads = nn.Conv2d(width, raters * 2 * z, 3, padding=1)
        with torch.no_grad():  # little noise at first, so that the predictor hears the image before z's variance
            assert self.heads.bias is not None
            self.heads.bias.view(raters, 2, z)[:, 1] = INITIAL_LOG_VARIANCE
        self.embedding = nn.Parameter(torch.randn(raters, k))
        self.classifier = nn.Sequential(nn.Linear(k, 32), nn.ReLU(), nn.Linear(32, raters))
        # tau is constant over the image, so its share of the predictor's first convolution is a bias. No normalisation
        # follows: it would take a bias out again.
        self.from_z = nn.Conv2d(z, hidden, 3, padding=1)
        self.from_tau = nn.Linear(k, hidden, bias=False)
        self.predictor = nn.Sequential(
            nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
        )  # fmt: skip
        self.to_logit = nn.Linear(hidden, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(z, width, 3, padding=1), nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(width, channels, 3, padding=1)
        )

    def forward(self, image: torch.Tensor, rater_mask: torch.Tensor) -> Prediction:
        """Draw z and tau for every rater. image [B, C, H, W], rater_mask [B, R] bool."""
        posterior = self.posterior(image)
        batch = len(image)
        z = self.draw_z(posterior)
        tau = Dirichlet(self.alpha().expand(batch, -1, -1), validate_args=False).rsample()  # [B, R, K]
        # One present rater an image is enough for an unbiased estimate of the reconstruction term.
        chosen = torch.multinomial(rater_mask.float(), 1).squeeze(1)
        return Prediction(
            logits=self.predict(z.flatten(0, 1), tau.flatten(0, 1)).unflatten(0, (batch, self.raters)),
            reconstruction=self.decoder(z[torch.arange(batch, device=z.device), chosen]),
            rater_logits=self.classifier(tau), posterior=posterior, alpha=self.alpha(),
        )  # fmt: skip

    def posterior(self, image: torch.Tensor) -> Posterior:
        """q(z_r | x) for all raters: one pass of the trunk."""
        heads = self.heads(self.trunk(image)).unflatten(1, (self.raters, 2, self.config.z_channels))
        bounded = LOG_VARIANCE_BOUND * F.softsign(heads[:, :, 1] / LOG_VARIANCE_BOUND)
        return Posterior(heads[:, :, 0], bounded)

    def alpha(self) -> torch.Tensor:
        """[R, K], concentrations of q(tau_r | r)."""
        return F.softplus(self.embedding) + SMALLEST_ALPHA

    def draw_z(self, posterior: Posterior, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of z for every mean, any leading axes. [..., Cz, H, W] -> the same shape.

        With a generator the noise is drawn on the CPU, so that a seed means the same samples on every device.
        """
        mean = posterior.mean
        device = mean.device if generator is None else generator.device
        noise = grid_noise(mean.shape, self.config.z_grid, device, generator).to(mean.device)
        return mean + torch.exp(0.5 * posterior.log_variance) * noise

    def predict(self, z: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """Logits of the segmentation. z [N, Cz, H, W], tau [N, K] -> [N, H, W]"""
        hidden = self.from_z(z.contiguous(memory_format=torch.channels_last)) + self.from_tau(tau)[:, :, None, None]
        # A linear layer over the channels, which lie together in memory: a 1x1 convolution to one channel is slower.
        return self.to_logit(self.predictor(hidden).permute(0, 2, 3, 1)).squeeze(-1)


def grid_noise(
    shape: torch.Size, grid: int | None, device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Gaussian noise of unit variance whose correlation length is the cell of a `grid` along the longer side.

    Noise that is independent in every pixel makes samples differ by salt and pepper. Drawn on a coarser grid and
    upsampled they differ by regions. None, or a grid not smaller than the image: independent pixels, as in the paper.
    """
    height, width = shape[-2:]
    if grid is None or grid >= max(height, width):
        return torch.randn(shape, device=device, generator=generator)
    longer = max(height, width)
    cells = (max(1, round(grid * height / longer)), max(1, round(grid * width / longer)))
    coarse = torch.randn((*shape[:-2], *cells), device=device, generator=generator)
    smooth = F.interpolate(coarse.flatten(0, -4), (height, width), mode="bilinear", align_corners=False)
    return (smooth / _spread((height, width), cells, device)).reshape(shape)


def _spread(size: tuple[int, int], cells: tuple[int, int], device: torch.device) -> torch.Tensor:
    """[H, W], standard deviation of upsampled unit noise: bilinear weights are separable, so one axis at a time."""
    axes = []
    for pixels, count in zip(size, cells, strict=True):
        basis = torch.eye(count, device=device)[None]  # [1, count, count]
        weights = F.interpolate(basis, pixels, mode="linear", align_corners=False)[0]  # [count, pixels]
        axes.append(weights.square().sum(0).sqrt())
    return axes[0][:, None] * axes[1][None, :]
