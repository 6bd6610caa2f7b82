"""Fifty samples of one image from the prior of tau (`proseg.generate.sample_prior`).

The rival runs trunk, heads and predictor anew for each sample, one at a time; weights and random numbers are the same.
"""

import torch

from benchmarks.step import model_like, naive_head, naive_noise, naive_predictor, naive_rater, naive_trunk, random_batch
from benchmarks.timing import Row, command, paired
from proseg.config import TrainConfig
from proseg.generate import sample_prior
from proseg.model import ProSeg
from proseg.recipes import MODERN


def measure(repeats: int = 5, device: str = "cpu", samples: int = 50, side: int = 128) -> list[Row]:
    config = TrainConfig().with_values(MODERN)
    batch = random_batch(1, 3, 4, side).to(torch.device(device))
    model, rival = (model_like(config, batch, naive=naive).eval() for naive in (False, True))

    def ours() -> torch.Tensor:
        return sample_prior(model, batch.image, samples, torch.Generator().manual_seed(0))[0, :, 0]

    def naive() -> torch.Tensor:
        return naive_prior(rival, batch.image, samples, torch.Generator().manual_seed(0))

    torch.testing.assert_close(ours(), naive(), rtol=1e-3, atol=1e-4)
    return [paired(f"{samples} samples of one image", ours, naive, repeats, device=device, goal=0.05)]


def naive_prior(model: ProSeg, image: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """[1, C, H, W] -> [count, H, W]"""
    taus = naive_taus(torch.full((count, model.config.model.tau_size), model.config.model.concentration), generator)
    found = []
    for tau in taus:  # all taus were drawn before the first z
        tau = tau.to(image.device)
        noise = naive_z_noise(model, image, generator)
        with torch.no_grad():
            who = int(naive_rater(model, tau).argmax())
        found.append(naive_sample(model, image, who, tau, noise))
    return torch.stack(found)


def naive_taus(alphas: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """A draw of each Dirichlet, as gammas over their sum. [N, K] -> N of [K]"""
    gammas = [torch._standard_gamma(alpha.detach().double(), generator=generator) for alpha in alphas.cpu()]
    return [(gamma / gamma.sum()).float() for gamma in gammas]


def naive_z_noise(model: ProSeg, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    m = model.config.model
    height, width = (side // m.patch for side in image.shape[2:])
    shape = (1, m.z_channels, height, width)
    return naive_noise(shape, m.z_grid, torch.device("cpu"), generator).to(image.device)


@torch.no_grad()
def naive_sample(
    model: ProSeg, image: torch.Tensor, who: int, tau: torch.Tensor, noise: torch.Tensor | None
) -> torch.Tensor:
    """One map of one image in the name of one rater; without noise the mean of z. -> [H, W]"""
    features = naive_trunk(model, image)
    mean, deviation = [naive_head(model, features, rater) for rater in range(model.raters)][who]
    z = mean if noise is None else mean + deviation * noise
    return torch.sigmoid(naive_predictor(model, z, tau[None]))[0]


if __name__ == "__main__":
    command(__doc__, measure)
