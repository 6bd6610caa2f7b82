"""What MLflow is told: one parent run for each study, one child for each trial, one run for each final fold.

The driver writes it down in the study's folder (`orchestrator.spool`) and asks nobody; `orchestrator.shipper` sends it.
A server that is slow, hangs or goes away costs the trainings nothing.
"""

import getpass
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator import pages
from orchestrator.disk import patiently
from orchestrator.results import Trial
from orchestrator.spool import Spool
from orchestrator.study import DataRef, Study
from orchestrator.trainings import RESULT, Training
from orchestrator.trial import FAILURE
from proseg.config import TrainConfig
from proseg.records import BEST, CASES, CONFIG, SAMPLES, read_epochs

SECONDS_BETWEEN_EPOCHS = 5.0
"""Epochs of a trial that end sooner one after another are written down together."""
DATA_REPORT = "data"
"""Where the report on the data lies, in the study's folder and among the artifacts of its run."""


class Tracker(Protocol):
    """What a study tells whoever keeps its record."""

    def trial_started(self, trial: Trial) -> None: ...
    def trial_epochs(self, trial: Trial) -> None: ...
    def trial_ended(self, trial: Trial) -> None: ...
    def repeats_started(self, trainings: Sequence[Training]) -> None: ...
    def repeat_ended(self, training: Training, score: float) -> None: ...
    def folds_started(self, folds: Sequence[tuple[DataRef, int, TrainConfig]]) -> None: ...
    def fold_ended(self, data: DataRef, fold: int, config: TrainConfig, summary: dict[str, float]) -> None: ...
    def artifact(self, path: Path) -> None: ...
    def data_report(self, folder: Path) -> None: ...
    def winner(self) -> None: ...
    def study_ended(self, state: str, best: Trial | None, summary: dict[str, float], tables: str) -> None: ...


class SpoolTracker:
    """Writes down what MLflow is to be told, each thing once.

    A study that goes on reads what an earlier process has written and adds what is missing, from the log and from the
    folders of the trainings.
    """

    def __init__(self, study: Study, trials: Sequence[Trial] = (), say: Callable[[str], None] = lambda text: None):
        """Begin the study's run, or go on with it.

        Args:
            trials: those that an earlier process has run.
            say: hears that the disk is full.
        """
        self.spool = Spool(study.folder)
        self._study, self._say = study, say
        self._states: dict[str, str] = {}
        self._epochs_of: dict[str, int] = {}
        self._read_at: dict[str, float] = {}
        self._open: dict[str, Path] = {}
        self._best: str | None = None
        self._final = "final"
        self._reported = False
        self._told: dict[str, tuple[int, float]] = {}
        for record in self.spool.records():
            self._note(record)
        new = not self._states
        self._start("study", study.name, kind="study", parent=None, params=_study_params(study),
                    data=[(study.data, study.space.fold)])  # fmt: skip
        if new:
            self._append("view")
        for trial in trials:
            if trial.state not in ("running", "interrupted") and self._states.get(trial.name) != trial.state:
                self.trial_started(trial)
                self.trial_ended(trial)

    # --- the study's events -------------------------------------------------------------------------------------------

    def trial_started(self, trial: Trial) -> None:
        config = self._study.config_of(trial.values)
        tags = {"proseg.trial": str(trial.number), "proseg.trial_uid": f"{self._study.key}/{trial.name}"}
        self._start(trial.name, pages.run_name(replace(trial, state="running")), kind="trial", parent="study",
                    tags=tags, params=pages.trial_params(self._study, trial, config),
                    data=[(self._study.data, self._study.space.fold)])  # fmt: skip

    def trial_epochs(self, trial: Trial) -> None:
        now = time.monotonic()
        if now - self._read_at.get(trial.name, -math.inf) >= SECONDS_BETWEEN_EPOCHS:
            self._read_at[trial.name] = now
            self._epochs(trial.name, self._study.trial_folder(trial.number))

    def trial_ended(self, trial: Trial) -> None:
        folder = self._study.trial_folder(trial.number)
        epochs = self._epochs(trial.name, folder)
        ended = int(1000 * epochs[-1]["time"]) if epochs else _now()
        self._metrics(trial.name, pages.trial_summary(self._study, trial, epochs), step=trial.epoch, time=ended)
        self._picture(trial.name, folder)
        self._files(trial.name, [folder / CONFIG, folder / BEST, folder / FAILURE])
        status = {"failed": "FAILED", "interrupted": "KILLED"}.get(trial.state, "FINISHED")
        self._end(trial.name, status, trial.state, pages.trial_tags(trial), name=pages.run_name(trial))

    def repeats_started(self, trainings: Sequence[Training]) -> None:
        self._start("confirm", "confirmation", kind="confirmation", parent="study")
        self._open["confirm"] = self._study.folder / "confirm"
        for training in trainings:
            self._open[training.name] = training.folder
            self._start(training.name, training.name, kind="repeat", parent="confirm", params=_config(training.config),
                        data=[(self._study.data, self._study.space.fold)])  # fmt: skip

    def repeat_ended(self, training: Training, score: float) -> None:
        scores = {f"confirm/{self._study.criterion.metric}": score}
        self._training_ended(training.name, training.config, scores, [CONFIG, RESULT])

    def folds_started(self, folds: Sequence[tuple[DataRef, int, TrainConfig]]) -> None:
        if before := self._study.earlier_finals:  # of other winners: their runs stay as they are
            self._final = f"final-{len(before) + 1}"
        self._start(self._final, "final stage", kind="final", parent="study",
                    tags={"proseg.data_label": _labels(self._study)})  # fmt: skip
        self._open[self._final] = self._study.folder / "final"
        for data, fold, config in folds:
            key = f"{self._final}/{data.name}/{fold}"
            self._open[key] = self._study.final_folder(data.name, fold)
            self._start(key, f"{data.name} fold {fold}", kind="fold", parent=self._final, params=_config(config),
                        tags={"proseg.fold": str(fold)}, data=[(data, fold)])  # fmt: skip

    def fold_ended(self, data: DataRef, fold: int, config: TrainConfig, summary: dict[str, float]) -> None:
        scores = {f"test/{name}": value for name, value in summary.items()}
        self._training_ended(f"{self._final}/{data.name}/{fold}", config, scores, [CONFIG, BEST, RESULT, CASES])

    def _training_ended(self, key: str, config: TrainConfig, scores: dict[str, float], files: Sequence[str]) -> None:
        folder = self._open.pop(key)
        if self._states.get(key) == "complete":  # an earlier process has told so
            return
        self._epochs(key, folder)
        self._metrics(key, scores, step=config.epochs)
        self._picture(key, folder)
        self._files(key, [folder / name for name in files])
        self._end(key, "FINISHED", "complete")

    def artifact(self, path: Path) -> None:
        self._files("study", [path])

    def data_report(self, folder: Path) -> None:
        """The files of the report on the study's data; a study that goes on has them already."""
        if not self._reported:
            self._files("study", sorted(folder.iterdir()), under=DATA_REPORT)

    def winner(self) -> None:
        """The study has one: it is to be registered."""
        self._append("winner", key="study")

    def study_ended(self, state: str, best: Trial | None, summary: dict[str, float], tables: str) -> None:
        step = self._study.trials
        if best is not None and best.objective is not None:
            self._metrics("study", {pages.objective(self._study): best.objective}, step=step)
            self._mark_best(best.name)
        self._metrics("study", summary, step=step)
        status = {"finished": "FINISHED", "interrupted": "KILLED"}.get(state, "FAILED")
        if self._final in self._open:
            self._metrics(self._final, summary, step=0)
        for key, folder in self._open.items():  # the stages themselves, and trainings that did not come to an end
            failure = folder / FAILURE
            self._epochs(key, folder)
            self._files(key, [failure])
            word = "failed" if failure.exists() else "complete" if state == "finished" else state
            self._end(key, "FAILED" if failure.exists() else status, word)
        self._files("study", [self._study.folder / "study.json"])
        self._append("note", key="study", winner=best and best.number, tables=tables)
        self._end("study", status, state, {"proseg.data_label": _labels(self._study)})

    # --- writing down -------------------------------------------------------------------------------------------------

    def _append(self, op: str, **fields: Any) -> None:
        patiently(lambda: self.spool.append(op, **fields), self._say)
        self._note({"op": op, **fields})

    def _note(self, record: dict[str, Any]) -> None:
        """Keep what decides whether something has been written down already."""
        key, tags = record.get("key", ""), record.get("tags", {})
        if "proseg.state" in tags:
            self._states[key] = tags["proseg.state"]
        if tags.get("proseg.best") == "true":
            self._best = key
        if record["op"] == "files" and record["under"] == DATA_REPORT:
            self._reported = True
        for step, _, values in record.get("points", ()):
            self._told |= {f"{key} {name}": (step, value) for name, value in values.items()}
            if pages.objective(self._study) in values:
                self._epochs_of[key] = max(step, self._epochs_of.get(key, 0))

    def _start(
        self, key: str, name: str, *, kind: str, parent: str | None, tags: dict[str, str] | None = None,
        params: dict[str, Any] | None = None, data: Sequence[tuple[DataRef, int]] = (),
    ) -> None:  # fmt: skip
        """Make a run; one that there is goes on, with the parameters that it was begun with."""
        if self._states.get(key) == "complete":
            return
        if key in self._states:
            self._append("status", key=key, status="RUNNING", tags={"proseg.state": "running"})
            return
        common = {
            "proseg.uid": f"{self._study.key}/{key}", "proseg.kind": kind, "proseg.study": self._study.key,
            "proseg.space": self._study.space.name, "proseg.space_digest": self._study.space_digest,
            "proseg.seed": str(self._study.seed), "proseg.git_sha": self._study.environment["git"],
            "proseg.version": self._study.environment["proseg-tune"], "mlflow.user": _user(),
            "mlflow.source.name": "proseg-tune", "proseg.state": "running",
        }  # fmt: skip
        given = [_dataset(*part) for part in data]
        about = {"proseg.data": given[0]["name"], "proseg.data_digest": given[0]["digest"],
                 "proseg.data_label": data[0][0].label} if given else {}  # fmt: skip
        self._append(
            "run", key=key, name=name, parent=parent, tags=common | about | (tags or {}), data=given,
            params={name: str(value) for name, value in (params or {}).items()}, time=_now(),
        )  # fmt: skip

    def _epochs(self, key: str, folder: Path) -> list[dict[str, Any]]:
        """Write down the epochs that have not been, with the time at which they ended; all there are."""
        objective, records = pages.objective(self._study), read_epochs(folder)
        new = [record for record in records if record["epoch"] > self._epochs_of.get(key, 0)]
        points = [
            _point(r["metrics"] | {objective: r["best"]}, step=r["epoch"], time=int(1000 * r["time"])) for r in new
        ]
        if points:
            self._append("metrics", key=key, points=points)
            self._epochs_of[key] = new[-1]["epoch"]
        return records

    def _metrics(self, key: str, values: dict[str, float], *, step: int, time: int | None = None) -> None:
        new = {name: value for name, value in values.items() if self._told.get(f"{key} {name}") != (step, value)}
        point = _point(new, step=step, time=time or _now())
        if point[2]:
            self._append("metrics", key=key, points=[point])

    def _files(self, key: str, paths: Iterable[Path], under: str | None = None) -> None:
        found = [str(path.relative_to(self._study.folder)) for path in paths if path.exists()]
        if found:
            self._append("files", key=key, paths=found, under=under)

    def _picture(self, key: str, folder: Path) -> None:
        if (folder / SAMPLES).exists():
            self._append("picture", key=key, path=str((folder / SAMPLES).relative_to(self._study.folder)))

    def _mark_best(self, key: str) -> None:
        if self._best not in (None, key):  # of an earlier process, which knew of fewer trials
            self._append("tags", key=self._best, tags={"proseg.best": "false"})
        self._append("tags", key=key, tags={"proseg.best": "true"})

    def _end(
        self, key: str, status: str, state: str, tags: dict[str, str] | None = None, name: str | None = None
    ) -> None:
        tags = {"proseg.state": state} | (tags or {})
        self._append("status", key=key, status=status, tags=tags, time=_now(), name=name)


# --- names ------------------------------------------------------------------------------------------------------------


def _study_params(study: Study) -> dict[str, Any]:
    plan = {"trials": study.trials, "epochs": study.base.epochs, "workers": study.resources.workers,
            "concurrent": study.resources.concurrent, "objective": study.criterion.metric,
            "scheduler": study.space.scheduler.kind, "seed": study.seed}  # fmt: skip
    return plan | {f"version/{name}": value for name, value in study.environment.items()}


def _labels(study: Study) -> str:
    """The label of every data set whose numbers a run holds."""
    return "; ".join(dict.fromkeys(f"{data.name}: {data.label}" for data in study.sets))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _config(config: TrainConfig) -> dict[str, Any]:
    return {f"config/{name}": value for name, value in config.flat().items()}


def _dataset(data: DataRef, fold: int) -> dict[str, str]:
    return {"name": data.name, "digest": data.fingerprint[:12], "fold": str(fold)}


def _point(values: dict[str, float], *, step: int, time: int) -> tuple[int, int, dict[str, float]]:
    """Those that are numbers, which MLflow's stores want."""
    return step, time, {name: value for name, value in values.items() if math.isfinite(value)}


def _now() -> int:
    """Milliseconds since 1970: taken when a thing happens and not when it is sent, which may be twice."""
    return int(1000 * time.time())
