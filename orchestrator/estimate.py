"""What a study will cost, from a few measured training steps on this machine."""

import math
import time
from dataclasses import dataclass

from orchestrator.retrain import PRIOR_SAMPLES
from orchestrator.study import DataRef, Study
from proseg.config import TrainConfig

STEPS = 3
EVALUATED_SLICES = 8


@dataclass(frozen=True)
class Estimate:
    """Seconds. Early stopping is not counted, nor is what trainings at the same time take from each other."""

    step: float
    search: float
    final: float

    @property
    def total(self) -> float:
        return self.search + self.final


def estimate(study: Study) -> Estimate:
    """Time a few steps of the largest configuration of the space, and of each data set of the final stage."""
    largest, at_once = largest_config(study), study.resources.concurrent
    step, epoch, _ = _seconds(largest, study.data, study.space.fold, study)
    search = math.ceil(study.trials / at_once) * study.base.epochs * epoch
    if study.max_time is not None:
        search = min(search, study.max_time)
    folds: list[float] = []
    for part in study.finals:
        if part.data is not None:
            _, epoch, test = _seconds(largest.with_values(part.stage.base), part.data, 0, study)
            folds += part.folds * [part.stage.epochs * epoch + test]
    final = max(sum(folds) / at_once, max(folds, default=0.0))
    return Estimate(step, search, final)


def largest_config(study: Study) -> TrainConfig:
    """The base with the largest value of every size the space searches: what costs most."""
    values = {}
    for name, dimension in study.space.search.items():
        numbers = [v for v in dimension.probes() if isinstance(v, int | float) and not isinstance(v, bool)]
        if name.startswith("model.") and numbers:
            values[name] = max(numbers)
    return study.base.with_values(values)


def _seconds(config: TrainConfig, data: DataRef, fold: int, study: Study) -> tuple[float, float, float]:
    """(one training step, one epoch with its validation, the evaluation of the test part)."""
    import torch

    from proseg.data import batches
    from proseg.data.store import Store
    from proseg.distributed import local_device
    from proseg.evaluate import evaluate
    from proseg.train import TrainState, train_step

    store, device, before = Store(data.folder), local_device(), torch.get_num_threads()
    part = store.manifest.folds[fold]
    rows = store.rows(part.train)
    torch.set_num_threads(study.resources.threads_per_rank * study.resources.workers)
    try:
        state = TrainState.fresh(config, store, device)
        batch = batches.load(store, rows[: config.batch_size], config.data.crop).to(device)
        train_step(state.model, state.optimizer, batch, config.optim)
        began = time.perf_counter()
        for _ in range(STEPS):
            train_step(state.model, state.optimizer, batch, config.optim)["loss"].item()
        step = (time.perf_counter() - began) / STEPS

        def scoring(patients: tuple[str, ...], prior_samples: int) -> float:
            cases = store.cases(patients)
            some = cases[: EVALUATED_SLICES if data.unit == "slice" else 1]
            began = time.perf_counter()
            evaluate(state.model, store, some, crop=config.data.crop, seed=0, prior_samples=prior_samples)
            return (time.perf_counter() - began) / len(some) * len(cases)

        validation, test = scoring(part.val, 0), scoring(part.test, PRIOR_SAMPLES)
    finally:
        torch.set_num_threads(before)
    return step, len(rows) / len(batch) * step + validation, test
