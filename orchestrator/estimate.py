"""What a study will cost, from a few measured training steps on this machine."""

import time
from dataclasses import dataclass

from orchestrator.study import DataRef, Study
from proseg.config import TrainConfig

STEPS = 3
EVALUATED_CASES = 8


@dataclass(frozen=True)
class Estimate:
    """Seconds, as upper bounds: early stopping is not counted."""

    step: float
    search: float
    final: float

    @property
    def total(self) -> float:
        return self.search + self.final


def estimate(study: Study) -> Estimate:
    """Time a few steps of the largest configuration of the space, and of each data set of the final stage."""
    largest = largest_config(study)
    step, epoch = _seconds_per_epoch(largest, study.data, study.space.fold, study)
    search = study.trials * study.base.epochs * epoch / study.resources.concurrent
    if study.max_time is not None:
        search = min(search, study.max_time)
    final = 0.0
    for part in study.finals:
        if part.data is not None:
            config = largest.with_values(part.stage.base)
            final += part.folds * part.stage.epochs * _seconds_per_epoch(config, part.data, 0, study)[1]
    return Estimate(step, search, final / study.resources.concurrent)


def largest_config(study: Study) -> TrainConfig:
    """The base with the largest value of every size the space searches: what costs most."""
    values = {}
    for name, dimension in study.space.search.items():
        numbers = [v for v in dimension.probes() if isinstance(v, int | float) and not isinstance(v, bool)]
        if name.startswith("model.") and numbers:
            values[name] = max(numbers)
    return study.base.with_values(values)


def _seconds_per_epoch(config: TrainConfig, data: DataRef, fold: int, study: Study) -> tuple[float, float]:
    """(one training step, one epoch with its validation)."""
    import torch

    from proseg.data import batches
    from proseg.data.store import Store
    from proseg.distributed import local_device
    from proseg.evaluate import evaluate
    from proseg.train import TrainState, train_step

    store, device, before = Store(data.folder), local_device(), torch.get_num_threads()
    part = store.manifest.folds[fold]
    rows, cases = store.rows(part.train), store.cases(part.val)
    torch.set_num_threads(study.resources.threads_per_rank * study.resources.workers)
    try:
        state = TrainState.fresh(config, store, device)
        batch = batches.load(store, rows[: config.batch_size], config.data.crop).to(device)
        train_step(state.model, state.optimizer, batch, config)
        began = time.perf_counter()
        for _ in range(STEPS):
            train_step(state.model, state.optimizer, batch, config)["loss"].item()
        step = (time.perf_counter() - began) / STEPS
        some = cases[:EVALUATED_CASES]
        began = time.perf_counter()
        evaluate(state.model, store, some, crop=config.data.crop, seed=0)
        validation = (time.perf_counter() - began) / len(some) * len(cases)
    finally:
        torch.set_num_threads(before)
    return step, len(rows) / len(batch) * step + validation
