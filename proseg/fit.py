"""Train with checkpoints in a folder: what a trial and a final fold both do.

The folder then holds `last.safetensors` (resumes to the bit), `best.safetensors` (the weights to keep) and
`epochs.jsonl` (one line an epoch). A training that finds its own `last` goes on from it.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proseg.checkpoint import load_checkpoint, save_checkpoint
from proseg.config import TrainConfig
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.distributed import rank
from proseg.errors import CheckpointError
from proseg.records import BEST, CONFIG, EPOCHS, LAST, Criterion, append_line, write_atomically
from proseg.train import EpochReport, train


def fit(config: TrainConfig, data: Path, fold: Fold, folder: Path, criterion: Criterion) -> Iterator[dict[str, Any]]:
    """Train on a fold, yielding the record of each epoch: epoch, time, best (so far), finished (the last one), metrics.

    Ends before `config.epochs` when `config.patience` epochs in a row were not better than the best.

    Raises:
        CheckpointError: the folder holds a checkpoint of another configuration, or a damaged one.
        TrainingError: the loss is not finite; the checkpoints of the epochs before stay.
    """
    store = Store(data)
    resume = load_checkpoint(folder / LAST) if (folder / LAST).exists() else None
    if resume and resume.config != config:
        raise CheckpointError(f"{folder / LAST} belongs to another configuration; use another folder")
    if rank() == 0:
        write_atomically(folder / CONFIG, (config.model_dump_json(indent=1) + "\n").encode())
    best, best_epoch = (resume.extra["best"], resume.extra["best_epoch"]) if resume else (None, 0)
    if resume and _patience_over(config, resume.epoch, best_epoch):
        return
    for report in train(config, store, fold, resume=resume):
        value = criterion.of(report.metrics)
        improved = criterion.better(value, best)
        if improved:
            best, best_epoch = value, report.epoch
        finished = report.epoch == config.epochs or _patience_over(config, report.epoch, best_epoch)
        record = {"epoch": report.epoch, "time": time.time(), "best": best, "finished": finished,
                  "metrics": report.metrics}  # fmt: skip
        if rank() == 0:
            append_line(folder / EPOCHS, record)  # first: an epoch that is trained twice counts once, a lost one never
            _save(report, config, folder, {"best": best, "best_epoch": best_epoch}, improved)
        yield record
        if finished:
            return


def _patience_over(config: TrainConfig, epoch: int, best_epoch: int) -> bool:
    return config.patience is not None and epoch - best_epoch >= config.patience


def _save(report: EpochReport, config: TrainConfig, folder: Path, so_far: dict[str, Any], improved: bool) -> None:
    if improved:
        save_checkpoint(folder / BEST, report.state.checkpoint(config, report.metrics, resumable=False))
    last = report.state.checkpoint(config, report.metrics, extra=so_far)
    save_checkpoint(folder / LAST, last)
