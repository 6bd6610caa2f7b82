"""Drawing segmentations: personalised (eq. 10), diverse (eq. 11), the deterministic map of each rater, uncertainty.

The trunk runs once an image whatever the number of samples, and the predictor takes a bounded number of maps at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from proseg.losses import probabilities
from proseg.method import Draws, Method

Maps: TypeAlias = torch.Tensor
"""Probabilities in [0, 1] of every class of foreground."""

ENCODED_AT_ONCE = 2**19
"""Pixels of image that one pass of the trunk takes."""
DECODED_AT_ONCE = {"cpu": 2**18, "cuda": 2**22}
"""Pixels of output that one pass of the predictor makes. Both bound what is needed beside the maps themselves; on a CPU
a pass should also stay in its cache."""


@torch.no_grad()
def mean_maps(model: Method, image: torch.Tensor) -> Maps:
    """The map made for each rater from the means of both latents. [B, C, H, W] -> [B, R, K, H, W]"""
    return maps(model, image, model.each_rater())[0]


def mean_map(model: Method, image: torch.Tensor) -> Maps:
    """The mean over the raters of their maps. [B, C, H, W] -> [B, K, H, W]"""
    return mean_maps(model, image).mean(1)


@torch.no_grad()
def sample_personal(
    model: Method, image: torch.Tensor, count: int, generator: torch.Generator, *, one_volume: bool = False
) -> Maps:
    """`count` samples for each rater (eq. 10): z ~ q(z_r|x), tau ~ q(tau_r|r). -> [B, R, S, K, H, W]

    With `one_volume` the images are slices of one volume: a sample keeps its tau through all of them.
    """
    draws = model.personal(1 if one_volume else len(image), count, generator)
    return maps(model, image, draws)[0].unflatten(1, (model.raters, count))


@torch.no_grad()
def sample_prior(
    model: Method, image: torch.Tensor, count: int, generator: torch.Generator, *, one_volume: bool = False
) -> Maps:
    """`count` samples of what any rater might draw (eq. 11). -> [B, S, K, H, W]

    tau* ~ Dir(alpha_0); the classifier says whose preference it is like; z comes from that rater's posterior.
    """
    return maps(model, image, model.prior(1 if one_volume else len(image), count, generator))[0]


@torch.no_grad()
def maps(model: Method, image: torch.Tensor, *draws: Draws) -> list[Maps]:
    """Several sets of maps of the same images, with one pass of the trunk. -> for each, [B, S, K, H, W]"""
    batch, size = len(image), image.shape[-2:]
    found = [
        torch.empty(batch, one.who.shape[1], model.classes, *size, device=image.device) for one in draws
    ]  # filled part by part: nothing is held twice
    images = at_once(size)
    for start in range(0, batch, images):
        part = slice(start, start + images)
        encoding = model.encode(image[part])
        for out, one in zip(found, draws, strict=True):
            decode(model, encoding, _of_images(one, part, batch), out[part])
    return found


def at_once(size: Sequence[int]) -> int:
    """Images of a size (H, W) that one pass of the trunk takes."""
    return max(1, ENCODED_AT_ONCE // (size[0] * size[1]))


def _of_images(draws: Draws, part: slice, batch: int) -> Draws:
    """The draws of a part of the images: [N, S] -> [b, S]"""
    tau = None if draws.tau is None else draws.tau.expand(batch, -1, -1)[part]
    return replace(draws, who=draws.who.expand(batch, -1)[part], tau=tau)


@torch.no_grad()
def decode(model: Method, encoding: Any, draws: Draws, out: torch.Tensor) -> None:
    """Fill `out` [B, S, K, H, W] with the maps of the images of an encoding; the draws are [B, S]."""
    images, samples = draws.who.shape
    flat = out.flatten(0, 1)
    who, tau = draws.who.flatten(), None if draws.tau is None else draws.tau.flatten(0, 1)
    place = torch.arange(images, device=who.device).repeat_interleave(samples)
    maps_at_once = max(1, DECODED_AT_ONCE[out.device.type] // (out.shape[-2] * out.shape[-1]))
    for start in range(0, len(who), maps_at_once):
        part = slice(start, start + maps_at_once)
        chosen = replace(draws, who=who[part], tau=None if tau is None else tau[part])
        flat[part] = probabilities(model.decode(encoding, place[part], chosen))


def binarise(probabilities: Maps) -> torch.Tensor:
    """The likeliest class of every pixel, one mask a class of foreground; binary: p > 0.5. [..., K, H, W] -> bool"""
    if probabilities.shape[-3] == 1:
        return probabilities > 0.5
    background = 1 - probabilities.sum(-3, keepdim=True)
    return (probabilities == probabilities.amax(-3, keepdim=True)) & (probabilities > background)


@dataclass(frozen=True)
class Uncertainty:
    """Variance of the probability in every pixel, over what any rater might draw; each [B, K, H, W]."""

    mean: Maps
    """The mean probability."""
    from_z: torch.Tensor
    """Of the scan: the mean over preferences of the variance over z."""
    from_tau: torch.Tensor
    """Of the raters: the variance over preferences (and whose they are) of the mean over z."""

    @property
    def total(self) -> torch.Tensor:
        return self.from_z + self.from_tau


def uncertainty(
    model: Method, image: torch.Tensor, generator: torch.Generator, *, preferences: int = 16, draws: int = 4
) -> Uncertainty:
    """Split the variance of the maps into the part of z and the part of tau (law of total variance).

    `preferences` are drawn from the prior of tau, and for each of them z `draws` times. Both parts are estimated
    by a nested analysis of variance, which has no bias but for this: what falls below zero by chance is set to zero.

    Raises:
        ValueError: fewer than two preferences or two draws, from which no variance can be estimated.
    """
    nested = nested_draws(model, len(image), generator, preferences, draws)
    return split_variance(maps(model, image, nested)[0], draws)


def nested_draws(model: Method, images: int, generator: torch.Generator, preferences: int, draws: int) -> Draws:
    """Those of `uncertainty`: [N, preferences * draws], preference by preference."""
    if preferences < 2 or draws < 2:
        raise ValueError(f"preferences = {preferences} and draws = {draws} must both be at least 2")
    once = model.prior(images, preferences, generator)
    tau = None if once.tau is None else once.tau.repeat_interleave(draws, 1)
    return Draws(once.who.repeat_interleave(draws, 1), tau, generator)


def split_variance(found: Maps, draws: int) -> Uncertainty:
    """The parts of the variance of maps [B, preferences * draws, K, H, W] of `nested_draws`. Overwrites the maps."""
    found = found.unflatten(1, (-1, draws))
    means = found.mean(2)
    # torch's own variance over an axis that is not the last one takes as long as the network.
    within = found.sub_(means[:, :, None]).square_().sum((1, 2)) / (found.shape[1] * (draws - 1))
    mean = means.mean(1)
    between = means.sub_(mean[:, None]).square_().sum(1) / (found.shape[1] - 1)
    return Uncertainty(mean, within, (between - within / draws).clamp_(min=0))
