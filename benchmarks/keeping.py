"""What the sample pictures of a best epoch cost beside that epoch: training and validation on fold 0, recipe MODERN.

There is no rival: the other column is the epoch itself. An epoch may be no best one, and then costs nothing more.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.timing import Row, command
from orchestrator.workspace import workspace
from proseg.config import TrainConfig
from proseg.data.catalog import open_data
from proseg.data.store import Store
from proseg.recipes import MODERN
from proseg.records import SAMPLES
from proseg.samples import choose, take
from proseg.train import train


def measure(repeats: int = 2, crop: int = 64, data: str = "lidc-contours") -> list[Row]:
    store = open_data(data, workspace())
    with tempfile.TemporaryDirectory() as folder:
        epochs, kept, size = _measured(store, repeats, crop or None, Path(folder))
    share = max(mine / epoch for mine, epoch in zip(kept, epochs, strict=True))
    name = f"sample pictures of an epoch, {crop or 'whole'} pixels"
    return [Row(name, kept, epochs, note=f"at most {share:.2%} of the epoch; {size / 1024:.0f} KB on disk")]


def _measured(store: Store, repeats: int, crop: int | None, folder: Path) -> tuple[list[float], list[float], int]:
    """CPU seconds of each epoch and of what is kept of it, and the bytes that this takes."""
    config, fold = TrainConfig().with_values({**MODERN, "data.crop": crop, "epochs": repeats}), store.manifest.folds[0]
    epochs, kept = [], []
    began = time.process_time()
    rows = choose(store, store.cases(fold.val), crop)
    first = time.process_time() - began  # once a training; counted here to the first epoch
    began = time.process_time()
    for report in train(config, store, fold):
        done = time.process_time()
        take(report.state.best_guess, store, rows, report.epoch).write(folder / SAMPLES)
        epochs.append(done - began)
        began = time.process_time()
        kept.append(began - done + first)
        first = 0.0
    return epochs, kept, (folder / SAMPLES).stat().st_size


if __name__ == "__main__":
    command(__doc__, measure)
