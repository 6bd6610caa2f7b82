"""Drawing segmentations: personalised (eq. 10), diverse (eq. 11), and the deterministic map of each rater.

The trunk runs once an image, whatever the number of samples: all functions start from its posterior.
"""

from typing import TypeAlias

import torch

from proseg.model import Posterior, ProSeg

Maps: TypeAlias = torch.Tensor
"""Probabilities in [0, 1]."""

PIXELS_AT_ONCE = 4_000_000
"""Pixels of output that one pass of the predictor makes: bounds memory."""


def mean_maps(model: ProSeg, posterior: Posterior) -> Maps:
    """The map made for each rater from the means of both latents. -> [B, R, H, W]"""
    batch, raters = posterior.mean.shape[:2]
    alpha = model.alpha()
    tau = (alpha / alpha.sum(1, keepdim=True)).expand(batch, -1, -1)
    return _predict(model, posterior.mean.flatten(0, 1), tau.flatten(0, 1)).unflatten(0, (batch, raters))


def sample_personal(
    model: ProSeg, posterior: Posterior, count: int, generator: torch.Generator, *, share_tau: bool = False
) -> Maps:
    """`count` samples for each rater (eq. 10): z ~ q(z_r|x), tau ~ q(tau_r|r). -> [B, R, S, H, W]

    With `share_tau` the images are slices of one volume: a sample keeps its tau through all of them.
    """
    batch, raters = posterior.mean.shape[:2]
    draws = 1 if share_tau else batch
    tau = draw_dirichlet(model.alpha()[None, :, None].expand(draws, -1, count, -1), generator)
    tau = tau.expand(batch, -1, -1, -1)  # [B, R, S, K]
    samples = []
    for s in range(count):
        z = model.draw_z(posterior, generator)
        samples.append(_predict(model, z.flatten(0, 1), tau[:, :, s].flatten(0, 1)).unflatten(0, (batch, raters)))
    return torch.stack(samples, 2)


def sample_prior(
    model: ProSeg, posterior: Posterior, count: int, generator: torch.Generator, *, share_tau: bool = False
) -> Maps:
    """`count` samples of what any rater might draw (eq. 11). -> [B, S, H, W]

    tau* ~ Dir(alpha_0); the classifier says whose preference it is like; z comes from that rater's posterior.
    """
    batch = len(posterior.mean)
    draws = 1 if share_tau else batch
    prior = torch.full((draws, count, model.config.tau_size), model.config.concentration, device=model.embedding.device)
    tau = draw_dirichlet(prior, generator).expand(batch, -1, -1)  # [B, S, K]
    likeliest = model.classifier(tau).argmax(-1)  # [B, S]
    images = torch.arange(batch, device=likeliest.device)
    samples = []
    for s in range(count):
        who = likeliest[:, s]
        z = model.draw_z(Posterior(posterior.mean[images, who], posterior.log_variance[images, who]), generator)
        samples.append(_predict(model, z, tau[:, s]))
    return torch.stack(samples, 1)


def draw_dirichlet(alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Samples of Dir(alpha) over the last axis, from a generator (torch.distributions takes none)."""
    gammas = torch._standard_gamma(alpha.double().cpu(), generator=generator)  # pyright: ignore[reportPrivateImportUsage]
    gammas = gammas.clamp(min=torch.finfo(torch.float64).tiny)
    return (gammas / gammas.sum(-1, keepdim=True)).to(alpha)


def _predict(model: ProSeg, z: torch.Tensor, tau: torch.Tensor) -> Maps:
    at_once = max(1, PIXELS_AT_ONCE // (z.shape[-1] * z.shape[-2]))
    parts = zip(z.split(at_once), tau.split(at_once), strict=True)
    return torch.cat([torch.sigmoid(model.predict(*part)) for part in parts])
