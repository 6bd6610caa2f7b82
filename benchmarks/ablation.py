"""What the two latents add: ProSeg, its ablations and the multi-head U-Net, on held-out patients of the embedded data.

    python -m benchmarks.ablation --out benchmarks/results/ablation.jsonl --jobs 2

Every arm trains the MODERN recipe with one switch changed, for the same number of epochs, on every fold of patients and
with every seed, on one thread each; the weights after the last epoch are evaluated once on the fold's test part:
nothing is selected. `multi-head, equal CPU` trains for as many epochs as cost what ProSeg cost. A run that stands in
the file already is not repeated.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, stats

SAMPLES = 50
SMALL = 5
"""Pixels: a component of fewer, where two draws of the prior differ, is a speck and not a shape."""
ARMS: dict[str, dict[str, Any]] = {
    "ProSeg": {},
    "without tau": {"model.use_tau": False},
    "without z": {"model.use_z": False},
    "without both": {"model.use_tau": False, "model.use_z": False},
    "multi-head U-Net": {"method": "multihead_unet"},
    "multi-head, equal CPU": {"method": "multihead_unet"},
    "without energy score": {"loss.w_es": 0.0},
    "paper's training": {
        "loss.segmentation": "ce",
        "loss.w_rec": 1.0,
        "loss.w_cls": 1.0,
        "loss.beta_z": 1.0,
        "loss.beta_tau": 1.0,
        "loss.w_es": 0.0,
        "optim.name": "adam",
        "optim.lr": 1e-4,
        "optim.weight_decay": 0.0,
        "optim.schedule": "constant",
        "optim.grad_clip": None,
    },
}
LONGER = {"multi-head, equal CPU": 2.5}
"""Epochs of an arm in units of the others'."""
COLUMNS = {
    "prior_ged": "GED, prior, S = 50", "prior_ged_unbiased": "GED_U, prior", "ged": "GED, S = 4",
    "prior_d_pp": "d_pp, prior", "dice_mean": "D_mean", "prior_dice_soft": "D_soft",
    "specks": "specks", "cpu": "CPU-s",
}  # fmt: skip
PROGRESS = ("arm", "fold", "seed", "prior_ged", "dice_mean", "cpu")


def main() -> None:
    options = _options()
    if options.one:
        print(json.dumps(run(json.loads(options.one))))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = read(options.out)
    wanted = [
        {"arm": arm, "fold": fold, "seed": seed, "epochs": round(options.epochs * LONGER.get(arm, 1))}
        for seed in range(options.seeds) for fold in range(options.folds) for arm in options.arms
    ]  # fmt: skip
    left = [one for one in wanted if not any(one.items() <= record.items() for record in done)]
    with ThreadPoolExecutor(options.jobs) as pool, open(options.out, "a", encoding="utf-8") as file:
        for line in pool.map(_in_process, left):
            file.write(line)
            file.flush()
            record = json.loads(line)
            print(*(f"{key} {record[key]}" for key in PROGRESS), flush=True)
    print(table(read(options.out), options.epochs))


def run(one: dict[str, Any]) -> dict[str, Any]:
    """One training and its evaluation, in this process."""
    import torch

    from orchestrator.workspace import workspace
    from proseg.config import TrainConfig
    from proseg.data.catalog import open_data
    from proseg.data.folds import Fold
    from proseg.evaluate import evaluate
    from proseg.recipes import MODERN
    from proseg.train import train

    torch.set_num_threads(1)
    store = open_data("lidc-contours", workspace())
    changes = {**ARMS[one["arm"]], "epochs": one["epochs"], "seed": one["seed"]}
    config = TrainConfig().with_values({**MODERN, **changes})
    fold = store.manifest.folds[one["fold"]]
    began = time.process_time()
    *_, report = train(config, store, Fold(fold.index, fold.train, (), fold.test))
    cpu = time.process_time() - began
    model = report.state.best_guess
    scores = evaluate(model, store, store.cases(fold.test), crop=None, seed=0, prior_samples=SAMPLES)
    return {**one, "label": store.manifest.label, "cases": len(scores.cases), "cpu": round(cpu, 1),
            **{name: round(value, 5) for name, value in scores.means().items()},
            "specks": round(specks(model, store, store.rows(fold.test)), 4)}  # fmt: skip


def specks(model, store, rows: np.ndarray, pairs: int = 64) -> float:
    """Share of the pixels in which two samples of an image differ that lie in components of fewer than 5 pixels."""
    import torch

    from proseg.data import batches
    from proseg.generate import binarise, sample_prior

    chosen = rows[np.linspace(0, len(rows) - 1, min(pairs, len(rows))).astype(int)]
    image = batches.load(store, chosen).image
    masks = binarise(sample_prior(model, image, 2, torch.Generator().manual_seed(0)))[:, :, 0].numpy()
    different = small = 0
    for one, other in masks:
        components, _ = ndimage.label(one != other, structure=np.ones((3, 3)))
        sizes = np.bincount(components.ravel())[1:]
        different, small = different + sizes.sum(), small + sizes[sizes < SMALL].sum()
    return float(small / different) if different else 0.0


def table(records: list[dict[str, Any]], epochs: int) -> str:
    """Means ± standard deviation over runs, and the paired difference to ProSeg with its 95 % interval (t)."""
    ours = _runs(records, "ProSeg", epochs)
    heads = " | ".join(COLUMNS.values())
    lines = [f"| arm | runs | epochs | {heads} |", "|---" * (3 + len(COLUMNS)) + "|"]
    differences = ["", f"| arm minus ProSeg, paired | runs | {heads} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for arm in ARMS:
        runs = _runs(records, arm, round(epochs * LONGER.get(arm, 1)))
        if not runs:
            continue
        cells = (f"{np.mean(v):.4g} ± {np.std(v):.2g}" for v in _columns(runs.values()))
        lines.append(f"| {arm} | {len(runs)} | {round(epochs * LONGER.get(arm, 1))} | " + " | ".join(cells) + " |")
        both = sorted(runs.keys() & ours.keys())
        if arm != "ProSeg" and len(both) > 1:
            here, there = _columns(runs[k] for k in both), _columns(ours[k] for k in both)
            cells = (_interval(np.subtract(a, b)) for a, b in zip(here, there, strict=True))
            differences.append(f"| {arm} | {len(both)} | " + " | ".join(cells) + " |")
    label = records[0]["label"] if records else ""
    return "\n".join([f"{label}; test cases of all folds, each fold once per seed", "", *lines, *differences])


def _runs(records: list[dict[str, Any]], arm: str, epochs: int) -> dict[tuple[int, int], dict[str, Any]]:
    return {(r["fold"], r["seed"]): r for r in records if r["arm"] == arm and r["epochs"] == epochs}


def _columns(runs) -> list[list[float]]:
    runs = list(runs)
    return [[run[name] for run in runs] for name in COLUMNS]


def _interval(values: np.ndarray) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.4f} ± {half:.4f}"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _in_process(one: dict[str, Any]) -> str:
    command = [sys.executable, "-m", "benchmarks.ablation", "--one", json.dumps(one)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1] + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.jsonl"))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
