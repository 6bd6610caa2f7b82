"""Training as a generator: it yields once an epoch, and whoever iterates owns the loop.

No callbacks: logging, checkpoints, early stopping and the progress bar are a `for` around it, the same on a laptop, in
a trial and in the last stage.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from proseg.checkpoint import Checkpoint
from proseg.config import OptimConfig, TrainConfig
from proseg.data import batches
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.distributed import derive_seed, local_device, rank, seed_everything, sum_over_ranks, world_size
from proseg.errors import CheckpointError, ConfigError, DataError, TrainingError
from proseg.evaluate import evaluate
from proseg.losses import elbo
from proseg.model import ProSeg

WARM_UP = 0.15
"""Share of a one-cycle schedule in which the learning rate rises."""


@dataclass
class TrainState:
    """What a checkpoint holds; the only thing that changes during training."""

    model: ProSeg
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Epochs that are finished."""

    @classmethod
    def fresh(cls, config: TrainConfig, store: Store, device: torch.device) -> "TrainState":
        seed_everything(config.seed, "weights")
        model = ProSeg(config.model, channels=store.manifest.channels, raters=store.manifest.raters)
        model = channels_last(model.to(device))
        return cls(model, make_optimizer(model, config.optim))

    @classmethod
    def restored(cls, checkpoint: Checkpoint, device: torch.device) -> "TrainState":
        """The state in which a training was saved; it goes on as if it had never stopped, to the bit on a CPU."""
        model = channels_last(model_of(checkpoint).to(device))
        optimizer = make_optimizer(model, checkpoint.config.optim)
        state = optimizer.state_dict()
        optimizer.load_state_dict({"state": checkpoint.optimizer, "param_groups": state["param_groups"]})
        return cls(model, optimizer, checkpoint.epoch)

    def checkpoint(
        self, config: TrainConfig, metrics: dict[str, float], *, resumable: bool = True, extra: dict | None = None
    ) -> Checkpoint:
        optimizer = self.optimizer.state_dict()["state"] if resumable else {}
        return Checkpoint(config, self.epoch, metrics, self.model.channels, self.model.raters,
                          self.model.state_dict(), optimizer, extra or {})  # fmt: skip


@dataclass(frozen=True)
class EpochReport:
    """What training says to the world, once an epoch; the same on every rank."""

    epoch: int
    metrics: dict[str, float]
    """train/loss and its parts, and every validation metric under val/."""
    state: TrainState


def model_of(checkpoint: Checkpoint) -> ProSeg:
    """The model with the weights of a checkpoint; raises CheckpointError where they are those of another model."""
    model = ProSeg(checkpoint.config.model, channels=checkpoint.channels, raters=checkpoint.raters)
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its configuration ({error})") from None
    return model


def train(config: TrainConfig, store: Store, fold: Fold, *, resume: Checkpoint | None = None) -> Iterator[EpochReport]:
    """Train ProSeg on the training part of a fold, yielding after each epoch with the scores of its validation part.

    Runs in a single process, or in every rank of a process group that the caller has started; the batch and the
    reports mean the same in both. To stop early, stop iterating. To resume, pass the checkpoint of an earlier report:
    the weights that follow are those of a run that never stopped.

    Raises:
        TrainingError: the loss became NaN or infinite; the message names epoch and step.
        ConfigError: the batch cannot be shared out over the ranks.
        DataError: the fold has no training slices.
    """
    rows = store.rows(fold.train)
    if not len(rows):
        raise DataError(f"fold {fold.index} of {store.manifest.name} has no training slices")
    batch_size = min(config.batch_size, len(rows))
    if batch_size % world_size():
        raise ConfigError(f"batch_size = {batch_size} cannot be shared equally by {world_size()} ranks")
    device = local_device()
    state = TrainState.restored(resume, device) if resume else TrainState.fresh(config, store, device)
    model = DistributedDataParallel(state.model) if world_size() > 1 else state.model
    steps = len(rows) // batch_size  # the rest of an epoch is left to the next shuffle
    cases = store.cases(fold.val)

    while state.epoch < config.epochs:
        epoch = state.epoch
        order = rows[_shuffled(len(rows), config.seed, epoch)]
        seed_everything(config.seed, "epoch", epoch, rank())
        model.train()
        losses: list[dict[str, torch.Tensor]] = []
        for step in range(steps):
            mine = order[step * batch_size : (step + 1) * batch_size][rank() :: world_size()]
            batch = batches.load(store, mine, config.data.crop).to(device)
            batch = batches.augment(batch, flip=config.data.flip, noise=config.data.noise)
            set_learning_rate(state.optimizer, config.optim, (epoch * steps + step) / (config.epochs * steps))
            losses.append(train_step(model, state.optimizer, batch, config))
        state.epoch += 1
        training = _mean_losses(losses, state.epoch)
        scores = evaluate(state.model, store, cases, crop=config.data.crop, seed=config.seed)
        validation = {f"val/{name}": value for name, value in scores.means().items()}
        yield EpochReport(state.epoch, training | validation, state)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: batches.Batch, config: TrainConfig
) -> dict[str, torch.Tensor]:
    """One optimiser step; the loss before it and its parts, still on the device so that nothing waits."""
    loss = elbo(model(batch.image, batch.rater_mask), batch, config.loss, config.model.concentration)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    if config.optim.grad_clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
    optimizer.step()
    return {"loss": loss.total.detach(), **loss.parts}


def channels_last(model: ProSeg) -> ProSeg:
    """The memory layout in which convolutions are fastest, on CPUs and GPUs alike."""
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, progress: float) -> None:
    """The schedule is a function of the progress (0..1) alone, so that resuming needs no scheduler state."""
    factor = 1.0
    if config.schedule == "onecycle":
        rising = progress < WARM_UP
        factor = max(progress / WARM_UP, 0.04) if rising else _cosine((progress - WARM_UP) / (1 - WARM_UP))
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator).numpy()


def _mean_losses(steps: list[dict[str, torch.Tensor]], epoch: int) -> dict[str, float]:
    """Means over the steps of an epoch and over the ranks; the only place where the host waits for the device."""
    table = torch.stack([torch.stack(list(step.values())) for step in steps])  # [steps, names]
    table = sum_over_ranks(table) / world_size()
    broken = (~table.isfinite()).any(1).nonzero()
    if len(broken):
        raise TrainingError(
            f"the loss is not finite in epoch {epoch}, step {int(broken[0]) + 1} of {len(steps)}; "
            "a lower optim.lr or a gradient clip (optim.grad_clip) usually helps"
        )
    return {f"train/{name}": value for name, value in zip(steps[0], table.mean(0).tolist(), strict=True)}
