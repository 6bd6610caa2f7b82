"""Checkpoints: one safetensors file, written whole or not at all.

Reading one cannot execute code: it holds tensors and, in its header, JSON. `last` resumes a training to the bit, `best`
is the weights to keep.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from proseg.config import TrainConfig, parse
from proseg.errors import CheckpointError, ConfigError, DamagedCheckpoint
from proseg.records import write_atomically

FORMAT = "proseg-checkpoint/3"
MODEL, OPTIMIZER, AVERAGE = "model.", "optimizer.", "average."


@dataclass(frozen=True)
class Checkpoint:
    config: TrainConfig
    epoch: int
    metrics: dict[str, float]
    channels: int
    raters: int
    classes: int
    model: dict[str, torch.Tensor]
    """The state dict of the model."""
    optimizer: dict[int, dict[str, torch.Tensor]]
    """The state of the optimiser by parameter number; empty in a file that is not for resuming."""
    average: dict[str, torch.Tensor]
    """The moving average of the weights; empty without one, and in a file that is not for resuming."""
    extra: dict[str, Any]
    """JSON values of the caller's."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a crash leaves the file that was there, or none."""
    tensors = {MODEL + name: value for name, value in checkpoint.model.items()}
    tensors |= {AVERAGE + name: value for name, value in checkpoint.average.items()}
    for number, state in checkpoint.optimizer.items():
        tensors |= {f"{OPTIMIZER}{number}.{name}": value for name, value in state.items()}
    header = {
        "format": FORMAT, "config": checkpoint.config.model_dump_json(), "epoch": str(checkpoint.epoch),
        "metrics": json.dumps(checkpoint.metrics), "channels": str(checkpoint.channels),
        "raters": str(checkpoint.raters), "classes": str(checkpoint.classes), "extra": json.dumps(checkpoint.extra),
    }  # fmt: skip
    write_atomically(path, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DamagedCheckpoint: it is not whole.
        CheckpointError: it is missing or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({error})") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this program (format {header.get('format')!r})")
    try:
        return Checkpoint(
            config=parse(header["config"]), epoch=int(header["epoch"]), metrics=json.loads(header["metrics"]),
            channels=int(header["channels"]), raters=int(header["raters"]), classes=int(header["classes"]),
            extra=json.loads(header["extra"]), model=_under(MODEL, tensors), average=_under(AVERAGE, tensors),
            optimizer=_optimizer(tensors),
        )  # fmt: skip
    except (KeyError, ValueError, ConfigError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} has a damaged header ({error})") from None


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _optimizer(tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(OPTIMIZER):
            number, entry = name.removeprefix(OPTIMIZER).split(".", 1)
            state.setdefault(int(number), {})[entry] = value
    return state
