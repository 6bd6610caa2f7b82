"""CPU seconds of `proseg-tune predict` on a volume: `python -m benchmarks.predict [--model DIR] [--slices 28]`.

Without --model, a model of demo.toml's size (MODERN on 64 x 64 crops, four raters) whose weights are random; its masks
are larger and rougher than those of a trained one, and take longer to pack. Each command is timed from the start of its
process to its end, in turn. The rival is a plain pass in this process: every overlapping tile by itself through the
network, once for the experts, with nothing read, blended or written.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch

import proseg
from benchmarks.timing import Row, command, seconds
from proseg.checkpoint import Checkpoint, save_checkpoint
from proseg.config import TrainConfig
from proseg.exported import ExportedModel
from proseg.generate import mean_map
from proseg.methods import build
from proseg.recipes import MODERN
from proseg.records import DATA, WEIGHTS
from proseg.tiles import cover

GOAL = 30.0
ARMS = {"without uncertainty": ["--no-uncertainty"], "16 draws": ["--draws", "16"], "64 draws": []}


def measure(repeats: int = 3, slices: int = 28, side: int = 512, model: str = "") -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(model) if model else _export(Path(place) / "model")
        scan = Path(place) / "scan.nii.gz"
        image = np.random.default_rng(0).normal(-600, 200, (side, side, slices)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([-0.7, -0.7, 2.5, 1])), scan)
        exported = proseg.load(folder)
        found: dict[str, list[float]] = {name: [] for name in ARMS}
        plain = []
        for _ in range(repeats):
            for name, words in ARMS.items():
                found[name].append(_spent([str(folder), str(scan), "--out", str(Path(place) / "out"), *words]))
            plain.append(slices * seconds(lambda: _plain(exported, image[..., 0])))
        about = f"{slices} x {side} x {side}"
        goals = {"without uncertainty": GOAL}
        return [Row(f"{about}, {name}", spent, plain, goal=goals.get(name)) for name, spent in found.items()]


def _export(folder: Path) -> Path:
    """A model with random weights, as `best --export` writes one."""
    config = TrainConfig().with_values({**MODERN, "data.crop": 64})
    torch.manual_seed(0)
    weights = build(config, channels=1, raters=4).state_dict()
    folder.mkdir()
    save_checkpoint(folder / WEIGHTS, Checkpoint(config, 1, {}, 1, 4, 1, weights, {}, {}, {}))
    facts = {"name": "random", "label": "random weights", "window": (-1000.0, 400.0), "height": 64, "width": 64}
    (folder / DATA).write_text(json.dumps(facts), encoding="utf-8")
    return folder


def _spent(words: list[str]) -> float:
    """CPU seconds of one command."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "cli", "predict", *words, "--force", "--json"], check=True,
                   stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - began.ru_utime - began.ru_stime


def _plain(exported: ExportedModel, image: np.ndarray) -> None:
    """Every tile of one slice, [H, W], by itself."""
    assert exported.field is not None
    pixels = torch.from_numpy(image.astype(np.float32))[None, None] / 1000
    rows, columns = (cover(length, side) for length, side in zip(image.shape, exported.field.tile, strict=True))
    for top in rows.starts:
        for left in columns.starts:
            mean_map(exported.model, pixels[..., top : top + rows.length, left : left + columns.length])


if __name__ == "__main__":
    command(__doc__, measure)
