"""A training with its folder: checkpoints and records kept as it goes, one yielded an epoch.

Both rest on the same files, so a trial, the last stage and a notebook resume in the same way. The folder holds
`last.safetensors` (resumes to the bit), `previous.safetensors` (the one before, should `last` be damaged),
`best.safetensors` (the weights to keep), `samples.npz` (what those make of a few validation slices) and `epochs.jsonl`
(one line an epoch). A training that finds its own `last` goes on from it.
"""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from proseg.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from proseg.config import TrainConfig
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.distributed import rank
from proseg.errors import CheckpointError, DamagedCheckpoint
from proseg.records import (
    BEST,
    CONFIG,
    EPOCHS,
    LAST,
    PREVIOUS,
    SAMPLES,
    Criterion,
    append_line,
    read_epochs,
    write_atomically,
)
from proseg.samples import choose, take
from proseg.train import EpochReport, train


def fit(config: TrainConfig, data: Path, fold: Fold, folder: Path, criterion: Criterion) -> Iterator[dict[str, Any]]:
    """Train on a fold, yielding the record of each epoch.

    A record holds epoch, time (seconds since 1970), seconds (the epoch took), cpu (seconds of this process in it),
    memory (bytes of GPU memory at most, None on a CPU), best (so far), finished (the last epoch) and metrics.

    Ends before `config.epochs` when `config.patience` epochs in a row were not better than the best.

    Raises:
        CheckpointError: the folder holds a checkpoint of another configuration or version.
        TrainingError: the loss is not finite; the checkpoints of the epochs before stay.
    """
    store = Store(data)
    resume = _resumable(folder, config)
    if rank() == 0:
        write_atomically(folder / CONFIG, (config.model_dump_json(indent=1) + "\n").encode())
    # An epoch that is trained again after a crash is the same epoch: whoever was told of it keeps one point.
    known = {record["epoch"]: record["time"] for record in read_epochs(folder)}
    best, best_epoch = (resume.extra["best"], resume.extra["best_epoch"]) if resume else (None, 0)
    if resume and _patience_over(config, resume.epoch, best_epoch):
        return
    pictured = choose(store, store.cases(fold.val), config.data.crop) if rank() == 0 else []
    began, spent = time.monotonic(), time.process_time()
    for report in train(config, store, fold, resume=resume):
        value = criterion.of(report.metrics)
        improved = criterion.better(value, best)
        if improved:
            best, best_epoch = value, report.epoch
        finished = report.epoch == config.epochs or _patience_over(config, report.epoch, best_epoch)
        record = {
            "epoch": report.epoch, "time": known.get(report.epoch, time.time()), "seconds": time.monotonic() - began,
            "cpu": time.process_time() - spent, "memory": _gpu_memory(), "best": best, "finished": finished,
            "metrics": report.metrics,
        }  # fmt: skip
        if rank() == 0:
            append_line(folder / EPOCHS, record)  # first: an epoch that is trained twice counts once, a lost one never
            if improved:
                take(report.state.best_guess, store, pictured, report.epoch).write(folder / SAMPLES)
            _save(report, config, folder, {"best": best, "best_epoch": best_epoch}, improved)
        yield record
        if finished:
            return
        began, spent = time.monotonic(), time.process_time()


def _resumable(folder: Path, config: TrainConfig) -> Checkpoint | None:
    """The newest checkpoint that is whole: what a crash or a disk spoilt costs an epoch or two, not the training."""
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            found = load_checkpoint(path)
        except DamagedCheckpoint as error:
            logging.getLogger(__name__).warning("%s; going on from an earlier one", error)
            continue
        if found.config != config:
            raise CheckpointError(f"{path} belongs to another configuration; use another folder")
        return found
    return None


def _patience_over(config: TrainConfig, epoch: int, best_epoch: int) -> bool:
    return config.patience is not None and epoch - best_epoch >= config.patience


def _save(report: EpochReport, config: TrainConfig, folder: Path, so_far: dict[str, Any], improved: bool) -> None:
    if improved:
        save_checkpoint(folder / BEST, report.state.checkpoint(config, report.metrics, resumable=False))
    last = report.state.checkpoint(config, report.metrics, extra=so_far)
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    save_checkpoint(folder / LAST, last)


def _gpu_memory() -> int | None:
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
