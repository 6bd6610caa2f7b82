"""The last stage: the best configuration trained anew on every fold, each evaluated once on its held-out patients."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.results import FoldResult
from orchestrator.scored import write_cases
from orchestrator.study import DataRef, Study, read_study
from orchestrator.tracking import Tracker
from orchestrator.trainings import RESULT, Training, run_trainings
from orchestrator.watcher import Watcher
from proseg.config import TrainConfig
from proseg.records import BEST, CASES, write_atomically

PRIOR_SAMPLES = 50
"""S of the rows the paper marks "prior #50"."""


def planned(study: Study, values: dict[str, Any]) -> list[tuple[DataRef, int, TrainConfig]]:
    """Every fold that the final stage trains, with its configuration."""
    config = study.config_of(values)
    return [
        (final.data, fold, config.with_values({**final.stage.base, "epochs": final.stage.epochs}))
        for final in study.finals
        if final.data is not None
        for fold in range(final.folds)
    ]


def run_final(
    study: Study, values: dict[str, Any], keeper: Any, tracker: Tracker, watcher: Watcher
) -> list[FoldResult]:
    """Train and evaluate every fold that is not done yet, inside a Ray session.

    Raises:
        Stopped, StudyFailed: as `run_trainings`.
    """
    plan = planned(study, values)
    tracker.folds_started(plan)
    folds = {_training(study, data, fold, config): (data, fold, config) for data, fold, config in plan}

    def progress(training: Training, epoch: int) -> None:
        if epoch:
            watcher.training(training.name, epoch, training.config.epochs)

    results = []
    for training in run_trainings(study, keeper, list(folds), progress):
        data, fold, config = folds[training]
        results.append(FoldResult(**training.result))
        progress(training, config.epochs)
        tracker.fold_ended(data, fold, config, results[-1].metrics)
    return sorted(results, key=lambda result: (result.data, result.fold))


def _training(study: Study, data: DataRef, fold: int, config: TrainConfig) -> Training:
    name = f"final {data.name} fold {fold}"
    return Training(name, config, data.folder, fold, study.final_folder(data.name, fold), evaluate_fold,
                    (data.name, fold))  # fmt: skip


def evaluate_fold(study_folder: str, folder: str, data_name: str, fold: int) -> None:
    """Evaluate the best epoch of a fold on its test part, once."""
    import torch

    from proseg.checkpoint import load_checkpoint
    from proseg.data.store import Store
    from proseg.distributed import device_kind
    from proseg.evaluate import score
    from proseg.train import model_of

    study, here = read_study(Path(study_folder)), Path(folder)
    data = next(final.data for final in study.finals if final.data is not None and final.data.name == data_name)
    store = Store(data.folder)
    part = store.manifest.folds[fold]
    checkpoint = load_checkpoint(here / BEST)
    cases = store.cases(part.test)
    scores = score(model_of(checkpoint), store, cases, prior_samples=PRIOR_SAMPLES)
    patients = [str(store.patients[case[0]]) for case in cases]
    write_cases(here / CASES, {"patient": patients, "case": scores.cases, **scores.values})
    result = FoldResult(
        data=data.name, label=data.label, fold=fold, cases=len(cases), patients=len(part.test), samples=data.raters,
        prior_samples=PRIOR_SAMPLES, epoch=checkpoint.epoch, metrics=scores.means(), device=device_kind(),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    write_atomically(here / RESULT, json.dumps(asdict(result), indent=1).encode())
