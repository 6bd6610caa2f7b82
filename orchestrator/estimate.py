"""What a study will cost: a few real training steps of the largest configuration, in a process of their own."""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.quote import Quote, Stage
from orchestrator.resources import ResourceError
from orchestrator.retrain import PRIOR_SAMPLES
from orchestrator.study import DataRef, Study
from proseg.config import TrainConfig
from proseg.errors import ProSegError

STEPS = 4
EVALUATED_SLICES = 8
MEMORY_TO_SPARE = 1.2
"""Of what the probe needed: validation of larger images, fragments."""
CUDA_CONTEXT = 600 * 2**20
"""Bytes that each process on a GPU takes before it holds a tensor."""
TRIALS_PER_GPU = 4
"""More are not put on one card unasked: they would wait for each other."""
USABLE_MEMORY = 0.8
"""Of the machine's memory that is free now; the rest is left to Ray, MLflow and the system."""
KILLED = {"BrokenProcessPool", "WorkerCrashedError", "OutOfMemoryError"}
"""What Python and Ray call it when a process is gone; torch calls a full GPU so, but never in this process."""
BYTES_OF_AN_EPOCH = 4096
"""Of its record in the log, and of its points in MLflow's store."""


@dataclass(frozen=True)
class Timed:
    """Seconds, of one configuration on one data set."""

    step: float
    spread: float
    """Of the steps: (slowest - fastest) / median."""
    epoch: float
    """With its validation."""
    test: float
    """The evaluation of a test part."""


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    search: Timed
    finals: tuple[Timed, ...]
    """Of each data set of the final stage that is at hand."""
    memory: int
    """Bytes at most: of the GPU, or of the process where there is none."""
    room: int
    """Bytes there are: of one GPU, or of the machine, now."""
    gpu: bool
    weights: int
    """Bytes of the weights."""


def probe(study: Study, *, remotely: bool, meanwhile: Callable[[], object] = lambda: None) -> Probe:
    """Time a few steps of the largest configuration of the space, and of each data set of the final stage.

    In a fresh process, whose memory is that of a rank: on this machine, or (`remotely`) on a node of the cluster that
    is joined, on a GPU if it has one. This process, which would only wait, does something else `meanwhile`.

    Raises:
        ResourceError: not even one training finds room in memory.
    """
    try:
        if remotely:
            import ray

            gpus = 1 if study.resources.gpus else 0
            measured = ray.remote(num_cpus=1, num_gpus=gpus)(measure).remote(study.model_dump_json())
            meanwhile()
            return ray.get(measured)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            running = pool.submit(measure, study.model_dump_json())
            meanwhile()
            return running.result()
    except Exception as error:
        if type(error).__name__ in KILLED:
            raise ResourceError(
                "the process that measured the largest configuration of the space was killed, most likely as memory "
                f"ran out ({free_memory() / 2**30:.1f} GiB are free now): lower batch_size or the sizes under "
                "[search], or end other programs"
            ) from None
        if isinstance(error, ProSegError) or "out of memory" not in str(error).lower():
            raise
        raise ResourceError(
            "the largest configuration of the space does not fit into a whole GPU: lower batch_size or the sizes under "
            f"[search] ({str(error).splitlines()[0]})"
        ) from None


def measure(study_json: str) -> Probe:
    """Runs in the process that is measured."""
    import resource
    import sys

    import torch

    study = Study.model_validate_json(study_json)
    largest, gpu = largest_config(study), torch.cuda.is_available()
    weights, search = _timed(largest, study.data, study.space.fold, study)
    finals = tuple(
        _timed(largest.with_values(part.stage.base), part.data, 0, study)[1]
        for part in study.finals if part.data is not None
    )  # fmt: skip
    unit = 1 if sys.platform == "darwin" else 1024
    return Probe(
        search, finals,
        memory=torch.cuda.max_memory_reserved() + CUDA_CONTEXT if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        room=torch.cuda.get_device_properties(0).total_memory if gpu else free_memory(),
        gpu=gpu, weights=weights,
    )  # fmt: skip


def share_of(probe: Probe, *, asked: float | None) -> float | None:
    """The share of a GPU that a rank needs; what was asked for stands. None without GPUs."""
    if asked is not None or not probe.gpu:
        return asked
    fit = int(probe.room / (probe.memory * MEMORY_TO_SPARE))
    return math.floor(10_000 / max(1, min(fit, TRIALS_PER_GPU))) / 10_000


def fit_of(probe: Probe, *, workers: int) -> int | None:
    """Trials for which the machine's memory has room; None where the GPUs decide."""
    if probe.gpu:
        return None
    return max(1, int(USABLE_MEMORY * probe.room / (probe.memory * MEMORY_TO_SPARE * workers)))


def quote(study: Study, probe: Probe) -> Quote:
    """The whole study from what was measured. Not counted: what trainings at the same time take from each other."""
    resources, at_once, epoch = study.resources, study.resources.concurrent, probe.search.epoch
    search = Stage(
        low=max(study.trials * _epochs_if_halved(study) / at_once, study.base.epochs) * epoch,
        high=math.ceil(study.trials / at_once) * study.base.epochs * epoch,
    )
    folds = [part.stage.epochs * timed.epoch + timed.test
             for part, timed in zip([part for part in study.finals if part.data], probe.finals, strict=True)
             for _ in range(part.folds)]  # fmt: skip
    compared = study.space.confirm.top if study.finals else 0
    repeats = min(compared, study.trials) * study.space.confirm.repeats if compared > 1 and study.trials > 1 else 0
    checkpoint = 3 * probe.weights  # with Adam's two moments
    trainings = study.trials + repeats + len(folds)
    epochs = study.trials * study.base.epochs + repeats * study.base.epochs + sum(
        part.stage.epochs * part.folds for part in study.finals)  # fmt: skip
    return Quote(
        step=probe.search.step, epoch=epoch, spread=probe.search.spread, search=search,
        confirm=_stage([study.base.epochs * epoch] * repeats, at_once), final=_stage(folds, at_once),
        unit=resources.unit, rate=at_once * resources.units_per_trial, memory=probe.memory, checkpoint=checkpoint,
        # The best weights of all, once in the folder and once in MLflow's store; last and previous of those that run.
        disk=2 * trainings * probe.weights + 3 * at_once * checkpoint + 2 * epochs * BYTES_OF_AN_EPOCH,
    )  # fmt: skip


def _stage(trainings: Sequence[float], at_once: int) -> Stage:
    seconds = max(sum(trainings) / at_once, max(trainings, default=0.0))
    return Stage(low=seconds, high=seconds)


def _epochs_if_halved(study: Study) -> float:
    """Mean epochs of a trial if at each rung no more than one of `reduction` goes on."""
    scheduler, epochs = study.space.scheduler, study.base.epochs
    if scheduler.kind == "none":
        return epochs
    total, share, done, rung = 0.0, 1.0, 0, scheduler.grace_epochs
    while rung < epochs:
        total, done = total + share * (rung - done), rung
        share, rung = share / scheduler.reduction, rung * scheduler.reduction
    return total + share * (epochs - done)


def largest_config(study: Study) -> TrainConfig:
    """The base with the largest value of every size the space searches: what costs most."""
    values = {}
    for name, dimension in study.space.search.items():
        numbers = [v for v in dimension.probes() if isinstance(v, int | float) and not isinstance(v, bool)]
        if name.startswith("model.") and numbers:
            values[name] = max(numbers)
    return study.base.with_values(values)


def free_memory() -> int:
    """Bytes of this machine's memory that are free now, or that its container may still take."""
    import os

    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, current = (_number(Path("/sys/fs/cgroup") / f"memory.{name}") for name in ("max", "current"))
    if limit is None or current is None:
        return free
    stat = dict(
        line.split() for line in (Path("/sys/fs/cgroup") / "memory.stat").read_text(encoding="utf-8").splitlines()
    )
    return min(free, limit - current + int(stat["inactive_file"]))  # a cache of files is given back


def _number(path: Path) -> int | None:
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


def _timed(config: TrainConfig, data: DataRef, fold: int, study: Study) -> tuple[int, Timed]:
    """(bytes of the weights, seconds)."""
    import torch

    from proseg.data import batches
    from proseg.data.store import Store
    from proseg.distributed import local_device
    from proseg.evaluate import evaluate
    from proseg.train import TrainState, train_step

    store, device = Store(data.folder), local_device()
    part = store.manifest.folds[fold]
    rows = store.rows(part.train)
    torch.set_num_threads(study.resources.threads_per_rank * study.resources.workers)
    state = TrainState.fresh(config, store, device)
    batch = batches.load(store, rows[: config.batch_size], config.data.crop).to(device)

    def timed_step() -> float:
        began = time.perf_counter()
        train_step(state.model, state.optimizer, batch, config.optim)["loss"].item()
        return time.perf_counter() - began

    timed_step()  # the first one allocates
    steps = [timed_step() for _ in range(STEPS)]
    step = statistics.median(steps)

    def scoring(patients: tuple[str, ...], prior_samples: int) -> float:
        cases = store.cases(patients)
        some: list[Any] = cases[: EVALUATED_SLICES if data.unit == "slice" else 1]
        began = time.perf_counter()
        evaluate(state.model, store, some, crop=config.data.crop, seed=0, prior_samples=prior_samples)
        return (time.perf_counter() - began) / len(some) * len(cases)

    validation, test = scoring(part.val, 0), scoring(part.test, PRIOR_SAMPLES)
    weights = sum(w.numel() * w.element_size() for w in state.model.state_dict().values())
    spread = (max(steps) - min(steps)) / step
    return weights, Timed(step, spread, len(rows) / len(batch) * step + validation, test)
