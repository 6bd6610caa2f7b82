"""What the embedded data are good for: the same training on rendered and on real images of the same slices.

    python -m benchmarks.rendered_vs_real --from LIDC-IDRI-slices --out FOLDER
    python -m benchmarks.rendered_vs_real --report

The slices are the papers' whose real pixels are known (`data prepare lidc-slices`). Masks, patients and folds are the
real files' in all arms; only the pixels differ:

    real        CT, 8 bits, grey levels stretched for each crop
    rendered    what `lidc-contours` renders for the slice, moved to where the real crop lies, Hounsfield units
    stretched   the same, its grey levels stretched for each crop as the real ones are

Each arm trains the MODERN recipe on the training part of each fold and with each seed, on one thread; the weights after
the last epoch are scored once on the fold's test part of every arm: nothing is selected. A run that stands in
results/rendered_vs_real.jsonl is not repeated, one whose weights lie in FOLDER is only scored.
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from benchmarks.studies import keep, read

if TYPE_CHECKING:
    from proseg.data.case import Slice
    from proseg.data.store import Store

NAME = "rendered_vs_real"
SAMPLES = 50
SIZE = 128
ARMS = ("real", "rendered", "stretched")
LABELS = {"real": "real CT", "rendered": "simulated intensities", "stretched": "simulated intensities, stretched"}
COLUMNS = {"ged": "GED, S = 4", "prior_ged": "GED, S = 50", "dice_mean": "D_mean", "prior_dice_soft": "D_soft"}
"""D_soft is that of the 50 samples."""


def main() -> None:
    options = _options()
    wanted = [
        {"arm": arm, "fold": fold, "seed": seed, "epochs": options.epochs, "crop": options.crop}
        for arms in (ARMS[:2], ARMS[2:])
        for seed in range(options.seeds)
        for fold in range(4)
        for arm in arms
    ]
    left = [one for one in wanted if not any(one.items() <= record.items() for record in read(NAME))]
    if left and not options.report:
        stores = make_stores(options.source, options.out)
        for one in left:
            record = run(one, stores, options.out)
            keep(NAME, record)
            own = record["on"][one["arm"]]
            print(one, *(f"{name} {own[name]:.4f}" for name in COLUMNS), f"{record['cpu']} CPU-s", flush=True)
    print(table(read(NAME)))


def make_stores(files: Path, out: Path) -> dict[str, "Store"]:
    """The data of each arm, made where they are missing."""
    from dataclasses import replace

    from proseg.data.catalog import LUNG_WINDOW
    from proseg.data.lidc_contours import LABEL
    from proseg.data.lidc_slices import source
    from proseg.data.source import prepare
    from proseg.data.store import MANIFEST, Store, write

    real = prepare(source(files, selection="paper"), out / "real")
    hu = real.manifest.description.model_copy(update={"label": LABEL, "window": LUNG_WINDOW})
    stretched = hu.model_copy(update={"label": f"{LABEL}, stretched per crop", "window": real.manifest.window})
    if not (out / "rendered" / MANIFEST).exists():
        write(out / "rendered", rendered(real), hu, real.manifest.folds)
    drawn = Store(out / "rendered")
    if not (out / "stretched" / MANIFEST).exists():
        slices = (drawn.slice(row) for row in range(drawn.manifest.slices))
        slices = (replace(one, image=stretch(one.image)) for one in slices)
        write(out / "stretched", slices, stretched, real.manifest.folds)
    return {"real": real, "rendered": drawn, "stretched": Store(out / "stretched")}


def rendered(real: "Store") -> Iterator["Slice"]:
    """The store's slices with the images that the package renders for them, moved to where their masks lie."""
    from dataclasses import replace

    from orchestrator.workspace import workspace
    from proseg.data.catalog import open_data
    from proseg.data.lidc_slices import embedded, key_of

    drawn = open_data("lidc-contours", workspace(), jobs=os.cpu_count() or 1)
    rows_of = {(volume, z): row for row, (volume, z) in enumerate(zip(drawn.volumes, drawn.z.tolist(), strict=True))}
    for row in range(real.manifest.slices):
        one = real.slice(row)
        place = embedded()[one.patient][key_of(one.annotations)]
        assert place is not None  # or the slice would not be known as one of the papers'
        nodule, k = place
        image = drawn.image(rows_of["/".join(map(str, nodule.ids)), float(nodule.z[k])])
        moved = _corner(one.annotations) - _corner(nodule.masks[k])
        rows, columns = (np.clip(np.arange(SIZE) - by, 0, SIZE - 1) for by in moved)
        yield replace(one, image=image[:, rows[:, None], columns])


def _corner(masks: np.ndarray) -> np.ndarray:
    """(row, column) of the first pixels in which anything was drawn."""
    return np.argwhere(masks.any(axis=0)).min(axis=0)


def stretch(image: np.ndarray) -> np.ndarray:
    """As the real crops are: the darkest pixel 0, the brightest 255."""
    low, high = int(image.min()), int(image.max())
    return np.rint((image - float(low)) * (255 / max(high - low, 1))).astype(np.uint8)


def run(one: dict[str, Any], stores: dict[str, "Store"], out: Path) -> dict[str, Any]:
    """One training, and its scores on the test slices of every arm."""
    import torch

    from proseg.checkpoint import load_checkpoint
    from proseg.evaluate import evaluate
    from proseg.train import model_of

    torch.set_num_threads(1)
    store, weights = stores[one["arm"]], out / f"{one['arm']}-fold{one['fold']}-seed{one['seed']}.safetensors"
    fold = store.manifest.folds[one["fold"]]
    if not weights.exists():
        train_to(weights, one, store)
    checkpoint = load_checkpoint(weights)
    model, cases = model_of(checkpoint), store.cases(fold.test)
    on = {}
    for arm, other in stores.items():
        means = evaluate(model, other, cases, crop=one["crop"], seed=0, prior_samples=SAMPLES).means()
        on[arm] = {name: round(value, 5) for name, value in means.items()}
    return {
        **one,
        "recipe": "modern",
        "label": LABELS[one["arm"]],
        "train_slices": len(store.rows(fold.train)),
        "test_slices": len(cases),
        "cpu": checkpoint.extra["cpu"],
        "on": on,
    }


def train_to(weights: Path, one: dict[str, Any], store: "Store") -> None:
    """Train and keep the weights after the last epoch."""
    from proseg.checkpoint import save_checkpoint
    from proseg.config import TrainConfig
    from proseg.data.folds import Fold
    from proseg.recipes import MODERN
    from proseg.train import train

    config = TrainConfig().with_values(
        {**MODERN, "epochs": one["epochs"], "seed": one["seed"], "data.crop": one["crop"]}
    )
    fold = store.manifest.folds[one["fold"]]
    began = time.process_time()
    *_, last = train(config, store, Fold(fold.index, fold.train, (), fold.test))
    cpu = round(time.process_time() - began, 1)
    save_checkpoint(weights, last.state.checkpoint(config, last.metrics, resumable=False, extra={"cpu": cpu}))


def table(records: Sequence[dict[str, Any]]) -> str:
    """Means over runs, those of each fold, and paired differences with their 95 % interval (t)."""
    runs: dict[str, dict[tuple[int, int], dict[str, Any]]] = defaultdict(dict)
    for record in records:
        runs[record["arm"]][record["fold"], record["seed"]] = record
    heads = " | ".join(COLUMNS.values())
    lines = [f"| trained on | tested on | runs | {heads} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for arm, of_arm in runs.items():
        for tested in ARMS:
            values = np.array([_scores(record, tested) for record in of_arm.values()])
            cells = " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0), strict=True))
            lines.append(f"| {LABELS[arm]} | {LABELS[tested]} | {len(of_arm)} | {cells} |")
    lines += ["", f"| difference, paired by fold and seed | pairs | {heads} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name, (arm, tested), (other, other_tested) in _pairs():
        both = sorted(runs[arm].keys() & runs[other].keys())
        if len(both) > 1:
            here = np.array([_scores(runs[arm][key], tested) for key in both])
            there = np.array([_scores(runs[other][key], other_tested) for key in both])
            lines.append(f"| {name} | {len(both)} | " + " | ".join(map(_interval, (here - there).T)) + " |")
    lines += ["", f"| fold | seed | trained and tested on | slices: training, test | {heads} | CPU-s |"]
    lines.append("|---" * (5 + len(COLUMNS)) + "|")
    for record in sorted(records, key=lambda one: (one["fold"], one["seed"], ARMS.index(one["arm"]))):
        cells = " | ".join(f"{value:.3f}" for value in _scores(record, record["arm"]))
        slices = f"{record['train_slices']}, {record['test_slices']}"
        run = f"| {record['fold']} | {record['seed']} | {record['label']} | {slices}"
        lines.append(f"{run} | {cells} | {record['cpu']:.0f} |")
    return "\n".join(lines)


def _pairs() -> Iterator[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Names of differences, and (trained on, tested on) of what is compared."""
    for arm in ARMS[1:]:
        yield f"real CT minus {LABELS[arm]}, each on its own", ("real", "real"), (arm, arm)
    for arm in ARMS[1:]:
        yield f"on real CT: trained on {LABELS[arm]} minus trained on real CT", (arm, "real"), ("real", "real")
    for arm in ARMS[1:]:
        yield f"on {LABELS[arm]}: trained on real CT minus trained on them", ("real", arm), (arm, arm)


def _scores(record: dict[str, Any], tested: str) -> list[float]:
    return [record["on"][tested][name] for name in COLUMNS]


def _interval(values: np.ndarray) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.3f} ± {half:.3f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, help="the folder LIDC-IDRI-slices")
    parser.add_argument("--out", type=Path, help="a folder for data and weights")
    parser.add_argument("--report", action="store_true", help="only the tables of what is there")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if not options.report and not (options.source and options.out):
        parser.error("--from and --out are needed, except with --report")
    return options


if __name__ == "__main__":
    main()
