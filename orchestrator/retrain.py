"""The last stage: the best configuration trained anew on every fold, each evaluated once on its held-out patients."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.results import FoldResult
from orchestrator.study import DataRef, Study, StudyFailed, read_study
from orchestrator.tracking import Tracker
from orchestrator.trial import failure_of, failure_recorded
from orchestrator.watcher import Watcher
from proseg.config import TrainConfig, parse
from proseg.records import BEST, read_epochs, write_atomically

PRIOR_SAMPLES = 50
"""S of the rows the paper marks "prior #50"."""
POLL_SECONDS = 1.0


def planned(study: Study, values: dict[str, Any]) -> list[tuple[DataRef, int, TrainConfig]]:
    """Every fold that the final stage trains, with its configuration."""
    config = study.config_of(values)
    return [
        (final.data, fold, config.with_values({**final.stage.base, "epochs": final.stage.epochs}))
        for final in study.finals
        if final.data is not None
        for fold in range(final.folds)
    ]


def run_final(study: Study, values: dict[str, Any], tracker: Tracker, watcher: Watcher) -> list[FoldResult]:
    """Train and evaluate every fold, as many at a time as trials were, inside a Ray session.

    Raises:
        StudyFailed: a fold failed; those that ended before it keep their results.
    """
    import ray

    resources = study.resources
    train_fold = ray.remote(
        num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial, max_retries=0
    )(run_fold)  # fmt: skip
    plan = planned(study, values)
    tracker.folds_started(plan)
    running = {
        train_fold.remote(str(study.folder), data.name, fold, config.model_dump_json()): (data, fold, config)
        for data, fold, config in plan
    }
    results = []
    while running:
        done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        for data, fold, config in running.values():
            _show_progress(study, data, fold, config, watcher)
        for reference in done:
            data, fold, config = running.pop(reference)
            results.append(_collect(study, reference, data, fold))
            tracker.fold_ended(data, fold, config, results[-1].metrics)
    return sorted(results, key=lambda result: (result.data, result.fold))


def run_fold(study_folder: str, data_name: str, fold: int, config_json: str) -> None:
    """Train one fold and evaluate its best epoch on the test part, once; what Ray calls."""
    import torch

    study = read_study(Path(study_folder))
    data = next(final.data for final in study.finals if final.data is not None and final.data.name == data_name)
    folder = study.final_folder(data_name, fold)
    torch.set_num_threads(study.resources.threads_per_rank * study.resources.workers)
    with failure_recorded(folder):
        _train_and_evaluate(study, data, fold, parse(config_json), folder)


def _train_and_evaluate(study: Study, data: DataRef, fold: int, config: TrainConfig, folder: Path) -> None:
    from proseg.checkpoint import load_checkpoint
    from proseg.data.store import Store
    from proseg.distributed import local_device, run_ranks
    from proseg.evaluate import evaluate
    from proseg.fit import fit
    from proseg.train import model_of

    store = Store(data.folder)
    part = store.manifest.folds[fold]
    for _ in run_ranks(fit, config, data.folder, part, folder, study.criterion, ranks=study.resources.workers):
        pass
    checkpoint = load_checkpoint(folder / BEST)
    model = model_of(checkpoint).to(local_device())
    cases = store.cases(part.test)
    scores = evaluate(model, store, cases, crop=config.data.crop, seed=config.seed, prior_samples=PRIOR_SAMPLES)
    _write_cases(folder / "cases.parquet", scores.cases, scores.values)
    result = FoldResult(
        data=data.name, label=data.label, fold=fold, cases=len(cases), patients=len(part.test), samples=data.raters,
        prior_samples=PRIOR_SAMPLES, epoch=checkpoint.epoch, metrics=scores.means(),
    )  # fmt: skip
    write_atomically(folder / "result.json", json.dumps(asdict(result), indent=1).encode())


def _show_progress(study: Study, data: DataRef, fold: int, config: TrainConfig, watcher: Watcher) -> None:
    records = read_epochs(study.final_folder(data.name, fold))
    if records:
        watcher.fold(data.name, fold, records[-1]["epoch"], config.epochs)


def _collect(study: Study, reference: Any, data: DataRef, fold: int) -> FoldResult:
    import ray
    from ray.exceptions import RayError

    folder = study.final_folder(data.name, fold)
    try:
        ray.get(reference)
    except RayError:
        raise StudyFailed(
            f"the final training on {data.name}, fold {fold}, failed: {failure_of(folder)}; "
            f"the traceback is in {folder / 'failure.json'}"
        ) from None
    return FoldResult(**json.loads((folder / "result.json").read_text()))


def _write_cases(path: Path, cases: list[str], values: dict[str, np.ndarray]) -> None:
    """The scores of every test case, for paired comparisons of runs on the same cases."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"case": cases, **values}), buffer)
    write_atomically(path, buffer.getvalue())
