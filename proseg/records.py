"""What a training and an export leave in their folders, and reading it back; needs no torch."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proseg.errors import ConfigError, RecordError

LAST, PREVIOUS, BEST, EPOCHS, CONFIG = (
    "last.safetensors", "previous.safetensors", "best.safetensors", "epochs.jsonl", "config.json",
)  # fmt: skip
"""The files of a training."""
SAMPLES = "samples.npz"
"""Of a training too: what the weights of BEST make of a few validation slices (`proseg.pictures`)."""
WEIGHTS, DATA, METRICS, ENVIRONMENT, CARD, CASES = (
    "model.safetensors", "data.json", "metrics.json", "environment.json", "README.md", "cases.parquet",
)  # fmt: skip
"""The files of an exported model, beside its CONFIG; a fold of a final stage has its CASES too."""
GRAPHS = {"pt2": "model.pt2", "onnx": "model.onnx"}
"""Its files as a graph, by format, where they were asked for."""


@dataclass(frozen=True)
class Criterion:
    """The validation metric by which the best epoch is known."""

    metric: str
    maximize: bool = False

    def of(self, metrics: dict[str, float]) -> float:
        """Its value among the metrics of an epoch; raises ConfigError if it is none of them."""
        if f"val/{self.metric}" not in metrics:
            names = ", ".join(name.removeprefix("val/") for name in metrics if name.startswith("val/"))
            raise ConfigError(f"{self.metric!r} is not a metric of the validation; there are {names}")
        return metrics[f"val/{self.metric}"]

    def better(self, value: float, than: float | None) -> bool:
        if than is None or math.isnan(than):  # an undefined value must not stay the best for ever
            return True
        return value > than if self.maximize else value < than


def drop_resumable(folder: Path) -> None:
    """A training that will not go on needs no checkpoint to go on from; the weights to keep stay."""
    for name in (LAST, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The records of `fit`, one an epoch; an epoch trained twice (after a crash) counts once, as trained last."""
    records = {record["epoch"]: record for record in read_lines(folder / EPOCHS)}
    return [records[epoch] for epoch in sorted(records)]


def best_epoch(epochs: Sequence[Mapping[str, Any]], criterion: Criterion) -> dict[str, float]:
    """The metrics of the first of these records at which the criterion was as good as it became: those of the weights
    that were kept. Empty where none has it."""
    found: dict[str, float] = {}
    best: float | None = None
    for record in epochs:
        value = record["metrics"].get(f"val/{criterion.metric}")
        if value is not None and criterion.better(value, best):
            best, found = value, record["metrics"]
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of an append-only file; what follows its last newline was not finished and is left out.

    Raises:
        RecordError: a line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [parse_line(path, line, f"in line {number}") for number, line in enumerate(lines, 1)]


def parse_line(path: Path, line: bytes, where: str) -> dict[str, Any]:
    """A record of an append-only file; raises RecordError where it is damaged."""
    return _object(line, f"{path} is damaged {where}: put back a copy, or delete that line")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a file of JSON.

    Args:
        advice: what to do with a damaged one, as in "delete it, and ...".

    Raises:
        RecordError: it is damaged.
    """
    return _object(path.read_bytes(), f"{path} is damaged: {advice}")


def _object(text: bytes, damaged: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise RecordError(damaged)
    return record


def append_line(path: Path, record: dict[str, Any]) -> None:
    """One write a line, so that a reader never takes half of one for a whole; one writer at a time.

    What a crash left behind the last newline is taken away first.
    """
    with open(path, "a+b", buffering=0) as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        line = (json.dumps(record) + "\n").encode()
        if file.write(line) < len(line):  # a disk that fills up takes a part, and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by one that is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside this one, to be filled: it takes its place, and that of what is there, when all has gone
    well, and is gone otherwise."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
