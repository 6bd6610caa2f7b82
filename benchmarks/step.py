"""A training step: forward, loss, backward, optimiser; every rater is learnt.

The rival has the same weights and the same random numbers, but goes through raters and draws one after the other: a
convolution for each rater's head, the predictor once a draw, each term of the loss in a loop.
"""

import math
from functools import cache
from itertools import product

import torch
from torch import nn
from torch.distributions import Dirichlet, Normal, kl_divergence
from torch.nn import functional as F

from benchmarks.timing import Job, Row, command, paired
from proseg.config import TrainConfig
from proseg.data.batches import Batch
from proseg.losses import Loss
from proseg.method import Method
from proseg.methods import build
from proseg.model import CANDIDATES, DRAWS_A_RATER, LOG_VARIANCE_BOUND, ProSeg
from proseg.recipes import MODERN, PAPER
from proseg.train import channels_last, make_optimizer, train_step

CONFIGS = {
    "MODERN": {**MODERN},
    "MODERN at full resolution": {**MODERN, "model.patch": 1},
    "PAPER": {**PAPER},
    "multi-head U-Net": {**MODERN, "method": "multihead_unet"},
}
GOALS = {"MODERN": 0.6}


def measure(
    repeats: int = 3, device: str = "cpu", batch: int = 12, channels: int = 3, raters: int = 4, side: int = 128
) -> list[Row]:
    data = random_batch(batch, channels, raters, side).to(torch.device(device))
    rows = []
    for name, values in CONFIGS.items():
        config = TrainConfig().with_values(values)
        check(config, Batch(data.image[:2], data.annotations[:2], data.rater_mask[:2]))
        both = [make_step(config, data, naive=naive) for naive in (False, True)]
        rows.append(paired(f"step, {name}", *both, repeats, device=device, goal=GOALS.get(name)))
    return rows


def make_step(config: TrainConfig, batch: Batch, *, naive: bool) -> Job:
    model = model_like(config, batch, naive=naive)
    optimizer = make_optimizer(model, config.optim)
    network = Naive(model) if naive else model
    return lambda: train_step(network, optimizer, batch, config.optim)


def check(config: TrainConfig, batch: Batch) -> None:
    """Loss, its parts and all gradients are the same in ours and in the rival."""
    model, rival = (model_like(config, batch, naive=naive) for naive in (False, True))
    found = []
    for network in (model, Naive(rival)):
        torch.manual_seed(1)
        loss = network(batch)
        loss.total.backward()
        found.append({"total": loss.total.detach(), **loss.parts})
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), rival.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def model_like(config: TrainConfig, batch: Batch, *, naive: bool = False) -> Method:
    """The same weights every time; ours in the memory layout of `proseg.train`, the rival's in torch's own."""
    torch.manual_seed(0)
    model = build(config, channels=batch.image.shape[1], raters=batch.rater_mask.shape[1])
    if isinstance(model, ProSeg) and config.model.use_tau:  # fresh weights do not hear tau
        nn.init.normal_(model.from_tau[-1].weight)
    model = model.to(batch.image.device)
    return model if naive else channels_last(model)


def random_batch(batch: int, channels: int, raters: int, side: int) -> Batch:
    """Noise with discs of growing size as annotations."""
    torch.manual_seed(0)
    distance = torch.linspace(-1, 1, side).square()
    distance = distance[:, None] + distance
    radii = torch.linspace(0.2, 0.8, raters) * (0.5 + torch.rand(batch, 1))
    masks = (distance < radii[..., None, None].square()).to(torch.uint8)
    return Batch(torch.randn(batch, channels, side, side), masks, torch.ones(batch, raters, dtype=torch.bool))


class Naive(nn.Module):
    """The loss of a method, one rater after the other; binary masks, one shared trunk, both latents in use."""

    def __init__(self, model: Method):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Loss:
        return (naive_proseg if isinstance(self.model, ProSeg) else naive_multihead)(self.model, batch)


def naive_proseg(model: ProSeg, batch: Batch) -> Loss:
    m, weights, alpha = model.config.model, model.config.loss, model.alpha()
    features = naive_trunk(model, batch.image)
    images, raters, device = len(batch), model.raters, features.device
    shape = (images, raters, m.z_channels, *features.shape[-2:])
    # The random numbers in the order in which `ProSeg.predict` draws them.
    z_noise = naive_noise(shape, m.z_grid, device)
    taus = Dirichlet(alpha.expand(images, -1, -1)).rsample()
    chosen = torch.multinomial(batch.rater_mask.float(), 1)[:, 0]

    share = batch.rater_mask / batch.rater_mask.sum(1, keepdim=True)
    terms = dict.fromkeys(("seg", "cls", "kl_z", "kl_tau"), torch.zeros((), device=device))
    posteriors = [naive_head(model, features, r) for r in range(raters)]
    first_z = []
    for r, (mean, deviation) in enumerate(posteriors):
        first_z.append(mean + deviation * z_noise[:, r])
        p = torch.sigmoid(naive_predictor(model, first_z[r], taus[:, r]))
        truth, mine = batch.annotations[:, r].float(), share[:, r]
        right = torch.full((images,), r, device=device)
        wrong = F.cross_entropy(naive_rater(model, taus[:, r]), right, reduction="none")
        divergence = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).mean((1, 2, 3))
        from_prior = kl_divergence(Dirichlet(alpha[r]), Dirichlet(torch.full_like(alpha[r], m.concentration)))
        terms["seg"] = terms["seg"] + (naive_segmentation(p, truth, weights.segmentation) * mine).mean()
        terms["cls"] = terms["cls"] + (wrong * mine).mean()
        terms["kl_z"] = terms["kl_z"] + (divergence * mine).mean()
        terms["kl_tau"] = terms["kl_tau"] + from_prior * mine.mean()
    pictures = [F.pixel_shuffle(model.decoder(first_z[r][i : i + 1]), m.patch) for i, r in enumerate(chosen.tolist())]
    terms["rec"] = (torch.cat(pictures) - batch.image).square().mean()
    factors = {"seg": 1.0, "rec": weights.w_rec, "cls": weights.w_cls, "kl_z": weights.beta_z,
               "kl_tau": weights.beta_tau, "es": weights.w_es}  # fmt: skip
    if weights.w_es:
        terms["es"] = naive_energy_score(naive_diverse(model, posteriors), batch.annotations.float(), share)
    total = sum((factors[name] * term for name, term in terms.items()), torch.zeros((), device=device))
    return Loss(total, {name: term.detach() for name, term in terms.items()})


def naive_multihead(model: Method, batch: Batch) -> Loss:
    m, (first, relu, last) = model.config.model, model.heads
    features = naive_trunk(model, batch.image)
    share = batch.rater_mask / batch.rater_mask.sum(1, keepdim=True)
    seg = torch.zeros((), device=features.device)
    for r in range(model.raters):
        inner, outer = (slice(r * size, (r + 1) * size) for size in (m.predictor_width, m.patch**2))
        hidden = relu(F.conv2d(features, first.weight[inner], first.bias[inner], padding=1))
        logits = F.pixel_shuffle(F.conv2d(hidden, last.weight[outer], last.bias[outer], padding=1), m.patch)
        truth = batch.annotations[:, r].float()
        loss = naive_segmentation(torch.sigmoid(logits[:, 0]), truth, model.config.loss.segmentation)
        seg = seg + (loss * share[:, r]).mean()
    return Loss(seg, {"seg": seg.detach()})


def naive_trunk(model: Method, image: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, width, h, w]; H and W are multiples of the patch."""
    return model.trunk.unet(F.pixel_unshuffle(image, model.config.model.patch))


def naive_head(model: ProSeg, features: torch.Tensor, rater: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of z for one rater, each [B, Cz, h, w]."""
    size = 2 * model.config.model.z_channels
    mine = slice(rater * size, (rater + 1) * size)
    mean, raw = F.conv2d(features, model.heads.weight[mine], model.heads.bias[mine], padding=1).chunk(2, 1)
    return mean, torch.exp(0.5 * raw / (1 + raw.abs() / LOG_VARIANCE_BOUND))


def naive_predictor(model: ProSeg, z: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Logits of one draw an image. z [B, Cz, h, w], tau [B, K] -> [B, H, W]"""
    heard = model.from_tau(naive_standard(model, tau))[:, :, None, None]
    hidden = model.predictor(F.conv2d(z, model.from_z.weight, model.from_z.bias, padding=1) + heard)
    cells = F.conv2d(hidden, model.to_logits.weight[:, :, None, None], model.to_logits.bias)
    return F.pixel_shuffle(cells, model.config.model.patch)[:, 0]


def naive_rater(model: ProSeg, tau: torch.Tensor) -> torch.Tensor:
    """Logits of whose preference tau is. [..., K] -> [..., R]"""
    return model.classifier(naive_standard(model, tau))


def naive_standard(model: ProSeg, tau: torch.Tensor) -> torch.Tensor:
    prior = Dirichlet(torch.full_like(tau, model.config.model.concentration))
    return (tau - prior.mean) / prior.stddev


def naive_noise(
    shape: tuple[int, ...], grid: int | None, device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Noise on a coarse grid, upsampled and brought to unit variance."""
    height, width = shape[-2:]
    if grid is None or grid >= max(height, width):
        return torch.randn(shape, device=device, generator=generator)
    rows, columns = (max(1, round(grid * side / max(height, width))) for side in (height, width))
    coarse = torch.randn((*shape[:-2], rows, columns), device=device, generator=generator)
    smooth = F.interpolate(coarse.reshape(-1, 1, rows, columns), (height, width), mode="bilinear")
    return (smooth / _deviation(rows, columns, height, width, device)).view(shape)


@cache
def _deviation(rows: int, columns: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """Of upsampled unit noise in every cell: the root of the sum of the squared weights."""
    cells = torch.eye(rows * columns, device=device).view(-1, 1, rows, columns)
    return F.interpolate(cells, (height, width), mode="bilinear").square().sum(0).sqrt()


def naive_diverse(model: ProSeg, posteriors: list[tuple[torch.Tensor, torch.Tensor]]) -> list[list[torch.Tensor]]:
    """Draws in the name of each rater, tau from the prior, one after the other. [rater][draw] -> [B, H, W]"""
    m, mean = model.config.model, posteriors[0][0]
    shape = (len(mean), model.raters, DRAWS_A_RATER)
    taus = naive_prior(model, shape)
    noise = naive_noise((math.prod(shape), *mean.shape[1:]), m.z_grid, mean.device).unflatten(0, shape)
    maps: list[list[torch.Tensor]] = [[] for _ in posteriors]
    for r, n in product(range(model.raters), range(DRAWS_A_RATER)):
        mean, deviation = posteriors[r]
        maps[r].append(torch.sigmoid(naive_predictor(model, mean + deviation * noise[:, r, n], taus[:, r, n])))
    return maps


@torch.no_grad()
def naive_prior(model: ProSeg, shape: tuple[int, int, int]) -> torch.Tensor:
    """The first candidate from the prior that is like that rater's, or else the rater's own. -> [B, R, N, K]"""
    alpha = model.alpha()
    own = alpha[:, None, None].expand(*shape, 1, -1)
    prior = torch.full_like(alpha[0], model.config.model.concentration).expand(*shape, CANDIDATES, -1)
    candidates = Dirichlet(torch.cat([prior, own], 3)).sample()
    taus = candidates[..., -1, :].clone()
    for i, r, n in product(*map(range, shape)):
        places = (naive_rater(model, candidates[i, r, n, :-1]).argmax(1) == r).nonzero()
        if len(places):
            taus[i, r, n] = candidates[i, r, n, places[0, 0]]
    return taus


def naive_segmentation(p: torch.Tensor, truth: torch.Tensor, kind: str) -> torch.Tensor:
    """Cross-entropy and soft Dice of one draw an image. Both [B, H, W] -> [B]"""
    entropy = F.binary_cross_entropy(p, truth, reduction="none").mean((1, 2))
    dice = (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return {"ce": entropy, "dice": 1 - dice, "ce_dice": entropy + 1 - dice}[kind]


def naive_energy_score(draws: list[list[torch.Tensor]], truth: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Pair by pair. draws[rater][draw] [B, H, W], truth [B, R, H, W], share [B, R] -> scalar"""
    score = torch.zeros(len(share), device=share.device)
    for r, s in product(range(len(draws)), repeat=2):
        astray = [naive_distance(one, truth[:, s]) for one in draws[r]]
        apart = [naive_distance(a, b) for a, b in product(draws[r], draws[s]) if a is not b]
        score = score + share[:, r] * share[:, s] * (2 * torch.stack(astray).mean(0) - torch.stack(apart).mean(0))
    return score.mean()


def naive_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """One minus the soft Jaccard index. [B, H, W] -> [B]"""
    both = (a * b).sum((1, 2))
    return 1 - (both + 1) / ((a * a).sum((1, 2)) + (b * b).sum((1, 2)) - both + 1)


if __name__ == "__main__":
    command(__doc__, measure)
