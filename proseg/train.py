"""Training as a generator: it yields once an epoch, and whoever iterates owns the loop.

No callbacks: logging, checkpoints, early stopping and the progress bar are a `for` around it, the same on a laptop, in
a trial and in the last stage.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from proseg.checkpoint import Checkpoint
from proseg.config import OptimConfig, TrainConfig
from proseg.data import batches
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.distributed import derive_seed, local_device, rank, seed_everything, sum_over_ranks, world_size
from proseg.errors import CheckpointError, ConfigError, DataError, TrainingError
from proseg.evaluate import evaluate
from proseg.method import Method
from proseg.methods import build

ADVICE = "a lower optim.lr or a gradient clip (optim.grad_clip) usually helps"
WARM_UP = 0.15
"""Share of a one-cycle schedule in which the learning rate rises."""


@dataclass
class TrainState:
    """What a checkpoint holds; the only thing that changes during training."""

    model: Method
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    """Moving average of the weights."""
    epoch: int = 0
    """Epochs that are finished."""

    @property
    def best_guess(self) -> Method:
        """The weights to validate and to keep: the average where there is one."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.module, Method)
        return self.average.module

    @classmethod
    def fresh(cls, config: TrainConfig, store: Store, device: torch.device) -> "TrainState":
        seed_everything(config.seed, "weights")
        m = store.manifest
        model = build(config, channels=m.channels, raters=m.raters, classes=m.classes)
        return cls._of(channels_last(model.to(device)))

    @classmethod
    def _of(cls, model: Method, epoch: int = 0) -> "TrainState":
        optim = model.config.optim
        average = None if optim.ema is None else AveragedModel(model, multi_avg_fn=_moving_average(optim.ema))
        return cls(model, make_optimizer(model, optim), average, epoch)

    @classmethod
    def restored(cls, checkpoint: Checkpoint, device: torch.device) -> "TrainState":
        """The state in which a training was saved; it goes on as if it had never stopped, to the bit on a CPU."""
        state = cls._of(channels_last(model_of(checkpoint).to(device)), checkpoint.epoch)
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": checkpoint.optimizer, "param_groups": groups})
        if state.average is not None:
            state.average.load_state_dict(checkpoint.average)
        return state

    def checkpoint(
        self, config: TrainConfig, metrics: dict[str, float], *, resumable: bool = True, extra: dict | None = None
    ) -> Checkpoint:
        """To resume from, or (`resumable=False`) only the weights to keep."""
        weights = self.model if resumable else self.best_guess
        optimizer = self.optimizer.state_dict()["state"] if resumable else {}
        average = self.average.state_dict() if resumable and self.average is not None else {}
        m = self.model
        return Checkpoint(config, self.epoch, metrics, m.channels, m.raters, m.classes, weights.state_dict(),
                          optimizer, average, extra or {})  # fmt: skip


@dataclass(frozen=True)
class EpochReport:
    """What training says to the world, once an epoch; the same on every rank."""

    epoch: int
    metrics: dict[str, float]
    """train/loss and its parts, and every validation metric under val/."""
    state: TrainState


def model_of(checkpoint: Checkpoint) -> Method:
    """The model with the weights of a checkpoint; raises CheckpointError where they are those of another model."""
    c = checkpoint
    model = build(c.config, channels=c.channels, raters=c.raters, classes=c.classes)
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its configuration ({error})") from None
    return model


def train(config: TrainConfig, store: Store, fold: Fold, *, resume: Checkpoint | None = None) -> Iterator[EpochReport]:
    """Train a model on the training part of a fold, yielding after each epoch with the scores of its validation part.

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
    if config.deterministic:
        make_deterministic()
    state = TrainState.restored(resume, device) if resume else TrainState.fresh(config, store, device)
    if config.optim.compile:
        state.model.compile()  # only the forward pass of training: sizes differ elsewhere
    model = DistributedDataParallel(state.model) if world_size() > 1 else state.model
    steps = len(rows) // batch_size  # the rest of an epoch is left to the next shuffle
    cases = store.cases(fold.val)

    while state.epoch < config.epochs:
        epoch = state.epoch
        order = rows[_shuffled(len(rows), config.seed, epoch)]
        seed_everything(config.seed, "epoch", epoch, rank())
        state.model.train()
        losses: list[dict[str, torch.Tensor]] = []
        for step in range(steps):
            mine = order[step * batch_size : (step + 1) * batch_size][rank() :: world_size()]
            batch = batches.load(store, mine, config.data.crop).to(device)
            batch = batches.augment(batch, flip=config.data.flip, rotate=config.data.rotate, noise=config.data.noise)
            set_learning_rate(state.optimizer, config.optim, (epoch * steps + step) / (config.epochs * steps))
            losses.append(train_step(model, state.optimizer, batch, config.optim))
            if state.average is not None:
                state.average.update_parameters(state.model)
        state.epoch += 1
        training = _mean_losses(losses, state.epoch)
        _check_weights(state)
        scores = evaluate(state.best_guess, store, cases, crop=config.data.crop, seed=config.seed)
        validation = {f"val/{name}": value for name, value in scores.means().items()}
        yield EpochReport(state.epoch, training | validation, state)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: batches.Batch, config: OptimConfig
) -> dict[str, torch.Tensor]:
    """One optimiser step; the loss before it and its parts, still on the device so that nothing waits."""
    with mixed_precision(batch.image.device, config.bf16):
        loss = model(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    if config.grad_clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return {"loss": loss.total.detach(), **loss.parts}


def mixed_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """bfloat16 where it is wanted and the GPU has it; it needs no scaling of the loss."""
    enabled = wanted and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def make_deterministic() -> None:
    """Only algorithms that give the same bits every time, in this process from now on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _moving_average(decay: float):
    """averaged += (1 - d) (weights - averaged); d rises to `decay`, so that the first weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged, current, count) -> None:
        weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for old, new in zip(averaged, current, strict=True):
            old.lerp_(new, weight)

    return update


def channels_last(model: Method) -> Method:
    """The memory layout in which convolutions are fastest, on CPUs and GPUs alike."""
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Two groups: the network, and tau's embedding, which has its own learning rate and does not decay (zero is no
    neutral value of it)."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    tau = [weight for name, weight in model.named_parameters() if name == "embedding"]
    rest = [weight for name, weight in model.named_parameters() if name != "embedding"]
    groups = [{"params": rest, "factor": 1.0}]
    if tau:
        groups.append({"params": tau, "factor": config.tau_lr_factor, "weight_decay": 0.0})
    return kind(groups, lr=config.lr, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, progress: float) -> None:
    """The schedule is a function of the progress (0..1) alone, so that resuming needs no scheduler state."""
    factor = 1.0
    if config.schedule == "cosine":
        factor = _cosine(progress)
    if config.schedule == "onecycle":
        rising = progress < WARM_UP
        factor = max(progress / WARM_UP, 0.04) if rising else _cosine((progress - WARM_UP) / (1 - WARM_UP))
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor * group["factor"]


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator).numpy()


def _check_weights(state: TrainState) -> None:
    """The last step of an epoch may spoil the weights after its own loss was still finite."""
    weights = [*state.model.parameters(), *state.best_guess.parameters()]
    if not torch.stack([weight.detach().isfinite().all() for weight in weights]).all():
        raise TrainingError(f"the weights are not finite after the last step of epoch {state.epoch}; {ADVICE}")


def _mean_losses(steps: list[dict[str, torch.Tensor]], epoch: int) -> dict[str, float]:
    """Means over the steps of an epoch and over the ranks; only here does the host wait for the losses."""
    table = torch.stack([torch.stack(list(step.values())) for step in steps])  # [steps, names]
    table = sum_over_ranks(table) / world_size()
    broken = (~table.isfinite()).any(1).nonzero()
    if len(broken):
        raise TrainingError(
            f"the loss is not finite in epoch {epoch}, step {int(broken[0]) + 1} of {len(steps)}; {ADVICE}"
        )
    return {f"train/{name}": value for name, value in zip(steps[0], table.mean(0).tolist(), strict=True)}
