"""Train with checkpoints in a folder: what a trial and a final fold both do.

The folder then holds `last.safetensors` (resumes to the bit), `best.safetensors` (the weights to keep) and
`epochs.jsonl` (one line an epoch). A training that finds its own `last` goes on from it.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proseg.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from proseg.config import TrainConfig
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.distributed import rank
from proseg.errors import CheckpointError
from proseg.train import EpochReport, train

LAST, BEST, EPOCHS, CONFIG = "last.safetensors", "best.safetensors", "epochs.jsonl", "config.json"


@dataclass(frozen=True)
class Criterion:
    """The validation metric by which the best epoch is known."""

    metric: str
    maximize: bool = False

    def of(self, metrics: dict[str, float]) -> float:
        return metrics[f"val/{self.metric}"]

    def better(self, value: float, than: float | None) -> bool:
        return than is None or (value > than if self.maximize else value < than)


def fit(config: TrainConfig, data: Path, fold: Fold, folder: Path, criterion: Criterion) -> Iterator[dict[str, Any]]:
    """Train on a fold, yielding the record of each epoch: epoch, time, best (so far) and metrics.

    Raises:
        CheckpointError: the folder holds a checkpoint of another configuration, or a damaged one.
        TrainingError: the loss is not finite; the checkpoints of the epochs before stay.
    """
    store = Store(data)
    if rank() == 0:
        write_atomically(folder / CONFIG, (config.model_dump_json(indent=1) + "\n").encode())
    resume = load_checkpoint(folder / LAST) if (folder / LAST).exists() else None
    if resume and resume.config != config:
        raise CheckpointError(f"{folder / LAST} belongs to another configuration; use another folder")
    best: float | None = resume.extra["best"] if resume else None
    for report in train(config, store, fold, resume=resume):
        value = criterion.of(report.metrics)
        improved = criterion.better(value, best)
        best = value if improved or best is None else best
        record = {"epoch": report.epoch, "time": time.time(), "best": best, "metrics": report.metrics}
        if rank() == 0:
            _save(report, config, folder, best, improved)
            _append(folder / EPOCHS, record)
        yield record


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The records of `fit`, one an epoch; an epoch trained twice (after a crash) counts once, as trained last."""
    path = folder / EPOCHS
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline is a line that was not finished
    return sorted({record["epoch"]: record for record in map(json.loads, lines)}.values(), key=lambda r: r["epoch"])


def _save(report: EpochReport, config: TrainConfig, folder: Path, best: float, improved: bool) -> None:
    if improved:
        save_checkpoint(folder / BEST, report.state.checkpoint(config, report.metrics, resumable=False))
    last = report.state.checkpoint(config, report.metrics, extra={"best": best})
    save_checkpoint(folder / LAST, last)


def _append(path: Path, record: dict[str, Any]) -> None:
    """One write a line, so that a reader never sees half of one that is complete."""
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(record) + "\n").encode())
        os.fsync(file.fileno())
