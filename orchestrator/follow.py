"""A study that another process runs, followed by reading its folder."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.results import LOG, Trial, read_trials
from orchestrator.study import Study, read_state
from orchestrator.trainings import RESULT
from orchestrator.watcher import Watcher
from proseg.records import read_epochs


def stage_of(study: Study) -> str:
    """How far the study has come, as `orchestrator.launch` calls its stages."""
    for folder, stage in (("final", "final"), ("confirm", "confirmation"), (LOG, "search")):
        if (study.folder / folder).exists():
            return stage
    return "starting"


def follow(study: Study, watcher: Watcher, *, every: float, wait: Callable[[float], None] = time.sleep) -> str:
    """Tell a watcher what changes, until no process runs the study any more; the state it is in then.

    What stands there when it is called is not told.

    Args:
        every: seconds between two looks.
    """
    seen = _Seen(study)
    while True:
        state = read_state(study)  # before the look: what was written until it ended is seen
        seen.tell_changes(watcher)
        if state != "running":
            break
        wait(every)
    return state


class _Seen:
    """What was there at the last look."""

    def __init__(self, study: Study):
        self._study = study
        self._stage = stage_of(study)
        self._trials = _trials(study)
        self._trainings = dict(_trainings(study))

    def tell_changes(self, watcher: Watcher) -> None:
        stage, trials, trainings = stage_of(self._study), _trials(self._study), dict(_trainings(self._study))
        if stage != self._stage:
            watcher.stage(stage)
        for number in trials:
            if trials[number] != self._trials.get(number):
                watcher.trial(trials[number])
        for name in trainings:
            if trainings[name] != self._trainings.get(name):
                watcher.training(name, *trainings[name])
        self._stage, self._trials, self._trainings = stage, trials, trainings


def _trials(study: Study) -> dict[int, Trial]:
    return {trial.number: trial for trial in read_trials(study)}


def _trainings(study: Study) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (epochs it has trained, epochs it is to train)) of those of the confirmation and of the final stage."""
    for folder in sorted((study.folder / "confirm").glob("t*/repeat*")):
        name = f"confirm {folder.parent.name} repeat {folder.name.removeprefix('repeat')}"
        yield from _progress(name, folder, study.base.epochs)
    for final in study.finals:
        if final.data is None:
            continue
        for fold in range(final.folds):
            folder = study.final_folder(final.data.name, fold)
            yield from _progress(f"final {final.data.name} fold {fold}", folder, final.stage.epochs)


def _progress(name: str, folder: Path, epochs: int) -> Iterator[tuple[str, tuple[int, int]]]:
    if done := len(read_epochs(folder)):
        yield name, (epochs if (folder / RESULT).exists() else done, epochs)
