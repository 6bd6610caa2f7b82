"""Between search and final stage: the best trials trained anew, with other seeds and on other patients, and compared.

The best of many trials is partly the luckiest one. Nothing here touches the test patients of the searched fold: the
other splits are inner folds of its training and validation patients.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.objective import undefined
from orchestrator.results import Trial, front, ranked
from orchestrator.rivals import Score, Verdict, compare, from_json, inner_folds, to_json
from orchestrator.study import Study, StudyError, read_study
from orchestrator.tracking import Tracker
from orchestrator.trainings import RESULT, Training, run_trainings
from orchestrator.watcher import Watcher
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.records import BEST, write_atomically

VERDICT = "confirm.json"


def candidates(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """The trials to compare, the best of the search first: complete ones, of the Pareto front if there is one.

    Earlier versions tried one configuration more than once: it is not compared with itself.
    """
    best = front(trials, study.criteria) if study.second else ranked(trials, study.criterion)
    identity, different = study.identity, dict[Hashable, Trial]()
    for trial in best:
        if trial.state == "complete" and not trial.over:
            different.setdefault(identity(trial.values), trial)
    return list(different.values())[: study.space.confirm.top]


def read_verdict(study: Study) -> Verdict | None:
    """What the comparison came to, if there was one; raises StudyError where its record is damaged."""
    path = study.folder / VERDICT
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{path} is damaged or of another version: {error}") from None


def run_confirm(
    study: Study, trials: Sequence[Trial], keeper: Any, tracker: Tracker, watcher: Watcher
) -> Verdict | None:
    """Retrain and compare the best trials; None where there are not two to compare, or none can be.

    A trial of which a retraining fails is out of the comparison, and so is a split on which the objective is undefined.

    Raises:
        Stopped: a person asked for it.
    """
    verdict = read_verdict(study)
    best = candidates(study, trials)
    if verdict is not None or len(best) < 2:
        return verdict
    splits = _splits(study, watcher)
    if not splits:
        watcher.note(f"there is no confirmation: {study.criterion.metric} is undefined on every split of it")
        return None
    planned = _trainings(study, best, splits)
    tracker.repeats_started(list(planned))

    def progress(training: Training, epoch: int) -> None:
        if epoch:
            watcher.training(training.name, epoch, training.config.epochs)

    scores: list[Score] = []
    for training in run_trainings(study, keeper, list(planned), progress, tolerant=True):
        score = Score(**training.result)
        progress(training, training.config.epochs)
        mean = float("nan")
        if not np.isnan(score.values).all():
            scores.append(score)
            mean = float(np.nanmean(score.values))
        tracker.repeat_ended(training, mean)
    whole = [s for s in scores if sum(o.trial == s.trial for o in scores) == len(splits)]
    if not whole:
        watcher.note(f"there is no confirmation: no trial could be retrained on every split; the reasons are in "
                     f"{study.folder / 'confirm'}/*/*/failure.json")  # fmt: skip
        return None
    verdict = compare(whole, maximize=study.criterion.maximize)
    write_atomically(study.folder / VERDICT, json.dumps(to_json(verdict), indent=1, allow_nan=False).encode())
    tracker.artifact(study.folder / VERDICT)
    return verdict


def _splits(study: Study, watcher: Watcher) -> dict[int, Fold]:
    """The inner folds by the number of their repeat, without those on which the objective is undefined."""
    store = Store(study.data.folder)
    inner = inner_folds(store.manifest.folds[study.space.fold], study.space.confirm.repeats, seed=study.seed)
    whys = [undefined(study.criterion.metric, store, part.val) for part in inner]
    for repeat, why in enumerate(whys):
        if why:
            watcher.note(f"the confirmation leaves out repeat {repeat}: {study.criterion.metric} is undefined on its "
                         f"validation part, {why}")  # fmt: skip
    return {repeat: part for repeat, (part, why) in enumerate(zip(inner, whys, strict=True)) if not why}


def _trainings(study: Study, best: Sequence[Trial], splits: Mapping[int, Fold]) -> dict[Training, Trial]:
    """Repeat by repeat, so that a study that is stopped has compared as many trials as it can."""
    return {
        Training(
            name=f"confirm {trial.name} repeat {repeat}",
            config=study.config_of(trial.values).with_values({"seed": study.seed + 1 + repeat}),
            data=study.data.folder, fold=part, folder=study.confirm_folder(trial.number, repeat),
            evaluate=evaluate_repeat, arguments=(part, trial.number, repeat),
        ): trial
        for repeat, part in splits.items()
        for trial in best
    }  # fmt: skip


def evaluate_repeat(study_folder: str, folder: str, fold: Any, trial: int, repeat: int) -> None:
    """Score the best epoch case by case on the validation part of its inner fold."""
    from proseg.checkpoint import load_checkpoint
    from proseg.distributed import local_device
    from proseg.evaluate import evaluate
    from proseg.train import model_of

    study, here = read_study(Path(study_folder)), Path(folder)
    store, checkpoint = Store(study.data.folder), load_checkpoint(here / BEST)
    model, config = model_of(checkpoint).to(local_device()), checkpoint.config
    cases = store.cases(fold.val)
    scores = evaluate(model, store, cases, crop=config.data.crop, seed=config.seed)
    result = {
        "trial": trial, "repeat": repeat, "patients": [str(store.patients[case[0]]) for case in cases],
        "values": scores.values[study.criterion.metric].tolist(), "cost": float(training_flops(model, store, config)),
    }  # fmt: skip
    write_atomically(here / RESULT, json.dumps(result).encode())


def training_flops(model: Any, store: Store, config: Any) -> int:
    """Floating point operations of one slice's forward and backward pass: what a configuration costs on any machine."""
    from torch.utils.flop_counter import FlopCounterMode

    from proseg.data import batches

    batch = batches.load(store, np.zeros(1, int), config.data.crop).to(model.device)
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(batch).total.backward()
    return counter.get_total_flops()
