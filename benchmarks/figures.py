"""The paper's figures from a model of our own, on the held-out patients of one fold of the embedded data.

    python -m benchmarks.figures [--model EXPORT | --epochs 4] [--fold 0] [--out benchmarks/pictures]

Takes an exported model (of the same fold), or trains the MODERN recipe, then writes outlines.png (Fig. 9 to 12),
tau.png (Fig. 6), distances.png (Fig. 1, 7, 8), ranks.png (Fig. 4) and uncertainty.png.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from orchestrator.workspace import workspace
from proseg import figures
from proseg.config import TrainConfig
from proseg.data import batches
from proseg.data.catalog import open_data
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.exported import load
from proseg.generate import binarise, mean_maps, sample_personal, sample_prior, uncertainty
from proseg.latents import draw_dirichlet
from proseg.model import ProSeg
from proseg.recipes import MODERN
from proseg.train import train

CASES, DRAWS, TAUS = 4, 4, 300
"""Rows of outlines, draws of the prior in them, samples of tau for each rater (the paper's number)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an export of proseg-tune; without it one is trained")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store = open_data("lidc-contours", workspace())
    fold = store.manifest.folds[options.fold]
    if options.model:
        model = load(options.model).model
    else:
        config = TrainConfig().with_values({**MODERN, "epochs": options.epochs})
        *_, report = train(config, store, Fold(fold.index, fold.train, (), fold.test))
        model = report.state.best_guess.eval()
    assert isinstance(model, ProSeg)
    for name, figure in draw(model, store, store.rows(fold.test)).items():
        print(figures.save(figure, options.out / f"{name}.png"))


@torch.no_grad()
def draw(model: ProSeg, store: Store, rows: np.ndarray):
    """Every figure by name."""
    m = store.manifest
    generator = torch.Generator().manual_seed(0)
    batch = batches.load(store, rows, model.config.data.crop)
    gold, present = batch.annotations.bool().numpy(), batch.rater_mask.numpy()
    means = _masks(mean_maps(model, batch.image))
    personal = _masks(sample_personal(model, batch.image, 1, generator).flatten(1, 2))
    prior = _masks(sample_prior(model, batch.image, DRAWS, generator))
    few = np.linspace(0, len(rows) - 1, CASES + 2).astype(int)[1:-1]
    images = batch.image[:, 0].numpy()
    yes = {"window": (-1.0, 1.0) if m.window else None, "label": m.label}
    tau = draw_dirichlet(model.alpha()[:, None].expand(-1, TAUS, -1), generator).numpy()
    one = uncertainty(model, batch.image[few[:1]], generator)
    panels = (getattr(one, name)[0, 0].numpy() for name in ("mean", "from_z", "from_tau"))
    distances = {
        "gold": figures.pairwise_distances(gold, present),
        "ProSeg, one draw a rater": figures.pairwise_distances(personal, present),
        f"ProSeg, prior, {DRAWS} draws": figures.pairwise_distances(prior),
    }
    areas = {"gold": gold.sum((2, 3)), "ProSeg": means.sum((2, 3))}
    return {
        "outlines": figures.outlines(
            images[few], gold[few], {"mean map": means[few], "one draw a rater": personal[few], "prior": prior[few]},
            rater_mask=present[few], **yes,
        ),
        "tau": figures.tau_map(tau, label=m.label),
        "distances": figures.pair_distances(distances, label=m.label),
        "ranks": figures.area_ranks(areas, rater_mask=present, label=m.label),
        "uncertainty": figures.uncertainty(
            images[few[0]], gold[few[0]], *panels, rater_mask=present[few[0]], draws=64, **yes
        ),
    }  # fmt: skip


def _masks(maps: torch.Tensor) -> np.ndarray:
    return binarise(maps).squeeze(-3).numpy()


if __name__ == "__main__":
    main()
