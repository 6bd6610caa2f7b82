"""The evaluation of held-out slices with S = R and with 50 samples from the prior (`proseg.evaluate.evaluate`).

The rival goes slice by slice with the naive sampler of `samples` and the naive metrics of `metrics`.
"""

import numpy as np
import torch

from benchmarks.loading import naive_item
from benchmarks.metrics import naive_dice, naive_metrics
from benchmarks.samples import naive_sample, naive_taus, naive_z_noise
from benchmarks.step import model_like, naive_rater
from benchmarks.timing import Row, command, paired
from orchestrator.workspace import workspace
from proseg.config import TrainConfig
from proseg.data import batches
from proseg.data.catalog import open_data
from proseg.data.store import Store
from proseg.distributed import derive_seed
from proseg.evaluate import SLICES_AT_ONCE, Scores, evaluate
from proseg.model import ProSeg
from proseg.recipes import MODERN


def measure(
    repeats: int = 1, device: str = "cpu", slices: int = 64, samples: int = 50, data: str = "lidc-contours"
) -> list[Row]:
    store = open_data(data, workspace())
    cases = store.cases(store.manifest.folds[0].test)[:slices]
    batch = batches.load(store, cases[0]).to(torch.device(device))
    config = TrainConfig().with_values(MODERN)
    model, rival = (model_like(config, batch, naive=naive).eval() for naive in (False, True))
    found: dict = {}

    def ours(count: int = slices) -> None:
        found["ours"] = evaluate(model, store, cases[:count], crop=None, seed=0, prior_samples=samples)

    def naive(count: int = slices) -> None:
        found["naive"] = naive_evaluation(rival, store, np.concatenate(cases[:count]), samples)

    for warm_up in (ours, naive):
        warm_up(1)
    name = f"evaluation of {len(cases)} slices, S = {model.raters} and {samples}"
    row = paired(name, ours, naive, repeats, device=device, warm=True)
    check(found["ours"], found["naive"])
    return [row]


def check(ours: Scores, naive: list[dict[str, float]]) -> None:
    """The same numbers, but for a pixel whose probability is 0.5 to seven digits."""
    for name in naive[0]:
        np.testing.assert_allclose(ours.values[name], [scores[name] for scores in naive], atol=1e-2, err_msg=name)


def naive_evaluation(model: ProSeg, store: Store, rows: np.ndarray, samples: int) -> list[dict[str, float]]:
    found = []
    for number, start in enumerate(range(0, len(rows), SLICES_AT_ONCE)):
        part, raters = rows[start : start + SLICES_AT_ONCE], range(model.raters)
        loaded = [naive_item(store, int(row)) for row in part]
        images = [image[None].to(model.device) for image, _, _ in loaded]
        # All random numbers first, in the order in which `evaluate` draws them.
        generator = torch.Generator().manual_seed(derive_seed(0, "evaluate", number))
        alpha = model.alpha().detach().cpu()
        prior = torch.full((samples, model.config.model.tau_size), model.config.model.concentration)
        personal_taus = [naive_taus(alpha, generator) for _ in images]
        prior_taus = [naive_taus(prior, generator) for _ in images]
        personal_noise = [[naive_z_noise(model, image, generator) for _ in raters] for image in images]
        prior_noise = [[naive_z_noise(model, image, generator) for _ in range(samples)] for image in images]
        for i, (image, (_, masks, present)) in enumerate(zip(images, loaded, strict=True)):
            gold = masks[present].bool()
            personal = naive_maps(model, image, list(raters), personal_taus[i], personal_noise[i])
            with torch.no_grad():
                whose = [int(naive_rater(model, tau.to(model.device)).argmax()) for tau in prior_taus[i]]
            prior_maps = naive_maps(model, image, whose, prior_taus[i], prior_noise[i])
            means = naive_maps(model, image, list(raters), [one / one.sum() for one in alpha], [None] * len(raters))
            scores = {r: naive_dice(means[r] > 0.5, masks[r].bool()) for r in raters if present[r]}
            found.append({
                **naive_metrics(personal > 0.5, personal, gold),
                **{f"prior_{name}": x for name, x in naive_metrics(prior_maps > 0.5, prior_maps, gold).items()},
                "dice_mean": sum(scores.values()) / len(scores),
            })  # fmt: skip
    return found


def naive_maps(model: ProSeg, image: torch.Tensor, who: list, taus: list, noises: list) -> torch.Tensor:
    """One after the other. -> [S, H, W]"""
    maps = [naive_sample(model, image, r, tau.to(image.device), n) for r, tau, n in zip(who, taus, noises, strict=True)]
    return torch.stack(maps).cpu()


if __name__ == "__main__":
    command(__doc__, measure)
