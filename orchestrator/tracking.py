"""Where numbers go: MLflow, one parent run per study, one child per trial, one run per final fold.

Only the driver talks to MLflow, so a SQLite store has one writer and a trial never waits for a server. Everything that
is sent also lies in the study's folder: a server that goes away costs nothing but the wait for it to come back.
"""

import getpass
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from filelock import FileLock

from orchestrator.results import Trial
from orchestrator.study import DataRef, Study, StudyError
from orchestrator.trainings import RESULT, Training
from proseg.config import TrainConfig
from proseg.records import BEST, CASES, CONFIG, read_epochs
from search_spaces.space import Float

if TYPE_CHECKING:
    from mlflow.entities import Metric

SECONDS_BETWEEN_RETRIES = 30.0
SECONDS_BETWEEN_EPOCHS = 5.0
"""Epochs of a trial that end sooner one after another are sent together: sending takes CPU from the trainings."""
MOST_METRICS = 1000
"""MLflow takes no more at once."""
DATA_REPORT = "data"
"""Where the report on the data lies, in the study's folder and among the artifacts of its run."""
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}  # fmt: skip
"""The client's own defaults block for four minutes where nobody answers."""


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
    def study_ended(self, state: str, best: Trial | None, summary: dict[str, float], note: str) -> None: ...


def check_server(home: Path) -> None:
    """Ask the store something, before anything is written.

    A fresh SQLite store is made here, under a lock: two processes that make it at the same time destroy it.

    Raises:
        StudyError: it cannot be used.
    """
    quieten()
    uri = tracking_uri(home)
    try:
        with _local_lock(home):
            from mlflow import MlflowClient

            MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # a driver that is not installed, a file that is no database: foreign code has no limit
        raise StudyError(
            f"MLflow at {uri} cannot be used: {_first_line(error)}; "
            "mend MLFLOW_TRACKING_URI, or unset it to use the workspace's own store"
        ) from None


class MlflowTracker:
    """Sends records in order; what cannot be sent now is kept and sent later.

    A study that goes on finds the runs it has, by their `proseg.uid`, and makes none twice; what the store lacks of
    the log, all of it if need be, is sent again.
    """

    def __init__(self, study: Study, home: Path, trials: Sequence[Trial] = ()):
        """Open the store and the parent run of a study; `check_server` has said that it answers.

        Args:
            trials: those that an earlier process has run.

        Raises:
            StudyError: it does not answer any more.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        quieten()
        self._study, self._waiting, self._retry_at = study, deque[Callable[[], None]](), 0.0
        self._runs: dict[str, str] = {}
        self._sent_epochs: dict[str, int] = {}
        self._sent_at: dict[str, float] = {}
        self._open_folds: dict[str, Path] = {}
        self._known: dict[str, Any] = {}
        self.uri = tracking_uri(home)
        self._client = MlflowClient(self.uri)
        try:
            with _local_lock(home):
                self.experiment = self._open_experiment(home)
            self._known = self._runs_of_the_study()
            self._runs = {uid.removeprefix(f"{study.name}/"): run.info.run_id for uid, run in self._known.items()}
            self._create("study", study.name, kind="study", parent=None, tags={"proseg.state": "running"})
        except (MlflowException, OSError) as error:
            raise StudyError(f"MLflow at {self.uri} does not answer any more: {_first_line(error)}") from None
        self._send(lambda: self._log_params("study", _study_params(study)))
        self._send(lambda: self._log_data("study", study.data, study.space.fold))
        self.artifact(study.folder / "study.json")
        for trial in trials:
            if trial.state not in ("running", "interrupted") and self._state_of(trial.name) != trial.state:
                self.trial_started(trial)
                self.trial_ended(trial)

    # --- the study's events -------------------------------------------------------------------------------------------

    def trial_started(self, trial: Trial) -> None:
        config = self._study.config_of(trial.values)
        tags = {"proseg.trial": str(trial.number), "proseg.state": "running"}
        self._send(lambda: self._create(trial.name, _run_name(trial), kind="trial", parent="study", tags=tags))
        self._send(lambda: self._log_params(trial.name, _trial_params(self._study, trial, config)))
        self._send(lambda: self._log_data(trial.name, self._study.data, self._study.space.fold))

    def trial_epochs(self, trial: Trial) -> None:
        now = time.monotonic()
        if now - self._sent_at.get(trial.name, -math.inf) >= SECONDS_BETWEEN_EPOCHS:
            self._sent_at[trial.name] = now
            self._epochs(trial.name, self._study.trial_folder(trial.number))

    def trial_ended(self, trial: Trial) -> None:
        folder = self._study.trial_folder(trial.number)
        self._epochs(trial.name, folder)
        tags = {"proseg.state": trial.state} | ({"proseg.reason": trial.reason} if trial.reason else {})
        self._files(trial.name, [folder / CONFIG, folder / BEST, folder / "failure.json"])
        self._end(trial.name, {"failed": "FAILED", "interrupted": "KILLED"}.get(trial.state, "FINISHED"), tags)

    def repeats_started(self, trainings: Sequence[Training]) -> None:
        self._send(lambda: self._create("confirm", "confirmation", kind="confirmation", parent="study", tags={}))
        self._open_folds["confirm"] = self._study.folder / "confirm"
        for training in trainings:
            key, data = training.name, self._study.data
            self._open_folds[key] = training.folder
            tags = {"proseg.state": "running"}
            self._send(lambda key=key, tags=tags: self._create(key, key, kind="repeat", parent="confirm", tags=tags))
            params = {f"config/{name}": value for name, value in training.config.flat().items()}
            self._send(lambda key=key, params=params: self._log_params(key, params))
            self._send(lambda key=key, data=data: self._log_data(key, data, self._study.space.fold))

    def repeat_ended(self, training: Training, score: float) -> None:
        key = training.name
        folder = self._open_folds.pop(key)
        self._epochs(key, folder)
        scores = {f"confirm/{self._study.criterion.metric}": score}
        self._metrics(key, self._new(key, scores), step=training.config.epochs)
        self._files(key, [folder / CONFIG, folder / RESULT])
        self._end(key, "FINISHED", {"proseg.state": "complete"})

    def folds_started(self, folds: Sequence[tuple[DataRef, int, TrainConfig]]) -> None:
        label = {"proseg.data_label": _labels(self._study)}
        self._send(lambda: self._create("final", "final stage", kind="final", parent="study", tags=label))
        self._open_folds["final"] = self._study.folder / "final"
        for data, fold, config in folds:
            self._fold_started(data, fold, config)

    def _fold_started(self, data: DataRef, fold: int, config: TrainConfig) -> None:
        key = f"final/{data.name}/{fold}"
        self._open_folds[key] = self._study.final_folder(data.name, fold)
        tags = {"proseg.fold": str(fold), "proseg.data": data.name, "proseg.state": "running"}
        self._send(lambda: self._create(key, f"{data.name} fold {fold}", kind="fold", parent="final", tags=tags))
        self._send(lambda: self._log_params(key, {f"config/{n}": v for n, v in config.flat().items()}))
        self._send(lambda: self._log_data(key, data, fold))

    def fold_ended(self, data: DataRef, fold: int, config: TrainConfig, summary: dict[str, float]) -> None:
        key = f"final/{data.name}/{fold}"
        folder = self._open_folds.pop(key)
        self._epochs(key, folder)
        scores = {f"test/{name}": value for name, value in summary.items()}
        self._metrics(key, self._new(key, scores), step=config.epochs)
        self._files(key, [folder / CONFIG, folder / BEST, folder / "result.json", folder / CASES])
        self._end(key, "FINISHED", {"proseg.state": "complete"})

    def artifact(self, path: Path) -> None:
        self._files("study", [path])

    def data_report(self, folder: Path) -> None:
        """The files of the report on the study's data, once for each study; a run that goes on has them already."""
        mark = {"proseg.data_report": self._study.data.fingerprint[:12]}
        known = self._known.get(f"{self._study.name}/study")
        if known is not None and mark.items() <= known.data.tags.items():
            return
        self._files("study", sorted(folder.iterdir()), under=DATA_REPORT)
        self._send(lambda: self._tag("study", mark))

    def study_ended(self, state: str, best: Trial | None, summary: dict[str, float], note: str) -> None:
        step = self._study.trials
        if best is not None and best.objective is not None:
            self._metrics("study", {f"objective/{self._study.criterion.metric}": best.objective}, step=step)
            for uid, run in self._known.items():  # of an earlier process, which knew of fewer trials
                if "proseg.best" in run.data.tags and uid != f"{self._study.name}/{best.name}":
                    self._send(lambda run=run: self._client.set_tag(run.info.run_id, "proseg.best", "false"))
            self._send(lambda: self._client.set_tag(self._runs[best.name], "proseg.best", "true"))
        self._metrics("study", summary, step=step)
        status = {"finished": "FINISHED", "interrupted": "KILLED"}.get(state, "FAILED")
        if "final" in self._open_folds:
            self._metrics("final", summary, step=0)
        for key, folder in self._open_folds.items():  # the stages themselves, and trainings that did not come to an end
            failure = folder / "failure.json"
            self._epochs(key, folder)
            self._files(key, [failure])
            word = "failed" if failure.exists() else "complete" if state == "finished" else state
            self._end(key, "FAILED" if failure.exists() else status, {"proseg.state": word})
        labels = {"proseg.data_label": _labels(self._study)}
        self._end("study", status, labels | {"proseg.state": state, "mlflow.note.content": note})
        self._flush(now=True)

    @property
    def waiting(self) -> int:
        """Records that MLflow has not taken yet."""
        return len(self._waiting)

    # --- sending ------------------------------------------------------------------------------------------------------

    def _send(self, operation: Callable[[], Any]) -> None:
        self._waiting.append(operation)
        self._flush()

    def _flush(self, *, now: bool = False) -> None:
        """Send what waits, in order, until MLflow does not answer; then not again for a while."""
        from mlflow.exceptions import MlflowException

        if not now and time.monotonic() < self._retry_at:
            return
        while self._waiting:
            try:
                self._waiting[0]()
            except (MlflowException, OSError) as error:
                if not self._retry_at:
                    logging.getLogger(__name__).warning(
                        "MLflow does not answer (%s); the study goes on and its records wait", _first_line(error)
                    )
                self._retry_at = time.monotonic() + SECONDS_BETWEEN_RETRIES
                return
            self._waiting.popleft()
        self._retry_at = 0.0

    def _open_experiment(self, home: Path) -> str:
        name = f"proseg-tune/{self._study.space.name}"
        found = self._client.get_experiment_by_name(name)
        if found:
            if found.lifecycle_stage == "deleted":  # by a person, in MLflow's pages; its name stays taken
                self._client.restore_experiment(found.experiment_id)
            return found.experiment_id
        location = (artifact_folder(home) / self._study.space.name).as_uri() if self.uri == local_uri(home) else None
        return self._client.create_experiment(
            name, artifact_location=location, tags={"mlflow.experimentKind": "custom_model_development"}
        )

    def _create(self, key: str, name: str, *, kind: str, parent: str | None, tags: dict[str, str]) -> None:
        uid = f"{self._study.name}/{key}"
        if self._retry_at:  # it may have been made by the attempt that got no answer
            for run in self._client.search_runs([self.experiment], f"tags.`proseg.uid` = '{uid}'", max_results=1):
                self._known[uid] = run
        if uid in self._known:
            self._go_on(key, self._known[uid].info.run_id, tags)
            return
        common = {
            "proseg.uid": uid, "proseg.kind": kind, "proseg.study": self._study.name,
            "proseg.space": self._study.space.name, "proseg.space_digest": self._study.space_digest,
            "proseg.seed": str(self._study.seed), "proseg.code": self._study.environment["git"],
            "proseg.version": self._study.environment["proseg-tune"], "mlflow.user": _user(),
            "mlflow.source.name": "proseg-tune",
        }  # fmt: skip
        family = {"mlflow.parentRunId": self._runs[parent]} if parent else {}
        run = self._client.create_run(self.experiment, run_name=name, tags=common | family | tags)
        self._runs[key] = run.info.run_id

    def _go_on(self, key: str, run_id: str, tags: dict[str, str]) -> None:
        """The run of an earlier process is ours again. Epochs that it has are not sent twice."""
        self._runs[key] = run_id
        self._client.update_run(run_id, status="RUNNING")
        self._tag(key, tags)
        history = self._client.get_metric_history(run_id, f"objective/{self._study.criterion.metric}")
        if key != "study":
            self._sent_epochs[key] = max((point.step for point in history), default=0)

    def _runs_of_the_study(self) -> dict[str, Any]:
        """{uid: run}; empty for a study that is new."""
        found: dict[str, Any] = {}
        query, token = f"tags.`proseg.study` = '{self._study.name}'", None
        while True:
            page = self._client.search_runs([self.experiment], query, max_results=1000, page_token=token)
            found |= {run.data.tags["proseg.uid"]: run for run in page}
            token = page.token
            if not token:
                return found

    def _state_of(self, key: str) -> str | None:
        """What the store says of a run; None where it has none."""
        run = self._known.get(f"{self._study.name}/{key}")
        return run and run.data.tags.get("proseg.state")

    def _new(self, key: str, values: dict[str, float]) -> dict[str, float]:
        """Those that a run does not have from an earlier process: sent again they would be points of another time."""
        known = self._known.get(f"{self._study.name}/{key}")
        return {name: value for name, value in values.items() if known is None or name not in known.data.metrics}

    def _log_params(self, key: str, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        # A run that goes on keeps what it was begun with: MLflow refuses another value, and it may run elsewhere now.
        known = self._known.get(f"{self._study.name}/{key}")
        new = {name: value for name, value in params.items() if known is None or name not in known.data.params}
        self._client.log_batch(self._runs[key], params=[Param(name, str(value)) for name, value in new.items()])

    def _log_data(self, key: str, data: DataRef, fold: int) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(data.name, data.fingerprint[:12], "local", data.folder.as_uri())
        tags = [InputTag("mlflow.data.context", "training"), InputTag("fold", str(fold))]
        self._client.log_inputs(self._runs[key], [DatasetInput(dataset, tags)])
        self._tag(key, {"proseg.data": data.name, "proseg.data_digest": data.fingerprint[:12],
                        "proseg.data_label": data.label})  # fmt: skip

    def _epochs(self, key: str, folder: Path) -> None:
        """Send the epochs that have not been sent, with the time at which they ended."""
        objective = f"objective/{self._study.criterion.metric}"
        new = [record for record in read_epochs(folder) if record["epoch"] > self._sent_epochs.get(key, 0)]
        batch: list[Metric] = []
        for record in new:
            metrics = record["metrics"] | {objective: record["best"]}
            points = _points(metrics, step=record["epoch"], seconds=record["time"])
            if len(batch) + len(points) > MOST_METRICS:  # an epoch is sent whole: its objective tells that it was
                self._log(key, batch)
                batch = []
            batch += points
        if new:
            self._log(key, batch)
            self._sent_epochs[key] = new[-1]["epoch"]

    def _metrics(self, key: str, values: dict[str, float], *, step: int) -> None:
        # The time is taken now and not when it is sent: sending twice must be the same point.
        self._log(key, _points(values, step=step, seconds=time.time()))

    def _log(self, key: str, points: list["Metric"]) -> None:
        self._send(lambda: self._client.log_batch(self._runs[key], metrics=points))

    def _files(self, key: str, paths: Iterable[Path], under: str | None = None) -> None:
        for path in paths:
            if path.exists():
                self._send(lambda path=path: self._client.log_artifact(self._runs[key], str(path), under))

    def _end(self, key: str, status: str, tags: dict[str, str]) -> None:
        self._send(lambda: self._client.set_terminated(self._runs[key], status))
        self._send(lambda: self._tag(key, tags))  # last: by its state a run is known to have all that belongs to it

    def _tag(self, key: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._runs[key], tags=[RunTag(name, value) for name, value in tags.items()])


# --- addresses --------------------------------------------------------------------------------------------------------


def local_uri(home: Path) -> str:
    """The store in the workspace."""
    return f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"


def artifact_folder(home: Path) -> Path:
    return home / "mlflow" / "artifacts"


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the store in the workspace, whose folder is made."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    (home / "mlflow").mkdir(parents=True, exist_ok=True)
    return local_uri(home)


def _local_lock(home: Path) -> AbstractContextManager:
    """Held by who makes or changes the workspace's own store; nothing where a server does its own locking."""
    if tracking_uri(home) != local_uri(home):
        return nullcontext()
    return FileLock(home / "mlflow" / ".lock")


def study_page(server: str, experiment: str, study: Study) -> str:
    """The address that lists a study's trials, best first. Without the filter MLflow shows one collapsed row."""
    query = f"tags.`proseg.study` = '{study.name}' and tags.`proseg.kind` = 'trial'"
    metric = f"metrics.`objective/{study.criterion.metric}`"
    ascending = str(not study.criterion.maximize).lower()
    return (f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&searchFilter={quote(query)}"
            f"&orderByKey={quote(metric)}&orderByAsc={ascending}&compareRunsMode=CHART")  # fmt: skip


def quieten() -> None:
    """MLflow's telemetry off, its waits short and its log at warnings, unless the user has set it otherwise."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401, now: importing it sets its log to INFO

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _points(values: dict[str, float], *, step: int, seconds: float) -> list["Metric"]:
    """Those that are numbers, which MLflow's stores want."""
    from mlflow.entities import Metric

    return [Metric(name, value, int(1000 * seconds), step) for name, value in values.items() if math.isfinite(value)]


# --- names ------------------------------------------------------------------------------------------------------------


def _run_name(trial: Trial) -> str:
    """The number first, then the most telling value: the list of runs cuts names at some twenty characters."""
    floats = {name: value for name, value in trial.values.items() if isinstance(value, float)}
    telling = sorted(floats, key=lambda name: name != "optim.lr")[:2]
    return " ".join([trial.name, *(f"{name.split('.')[-1]} {floats[name]:.1e}" for name in telling)])


def _trial_params(study: Study, trial: Trial, config: TrainConfig) -> dict[str, Any]:
    """Searched fields under model/, loss/, optim/; the others under fixed/, out of the way of comparisons."""
    params: dict[str, Any] = {}
    for name, value in config.flat().items():
        if name not in trial.values:
            params[f"fixed/{name}"] = value
            continue
        params[name.replace(".", "/", 1)] = value
        dimension = study.space.search[name]
        if isinstance(dimension, Float) and dimension.log:  # MLflow's parallel coordinates have linear axes only
            group, leaf = name.rsplit(".", 1)
            params[f"{group}/log10_{leaf}"] = round(math.log10(value), 4)
    return params


def _study_params(study: Study) -> dict[str, Any]:
    plan = {"trials": study.trials, "epochs": study.base.epochs, "workers": study.resources.workers,
            "concurrent": study.resources.concurrent, "objective": study.criterion.metric,
            "scheduler": study.space.scheduler.kind, "seed": study.seed}  # fmt: skip
    return plan | {f"version/{name}": value for name, value in study.environment.items()}


def _labels(study: Study) -> str:
    """The label of every data set whose numbers a run holds."""
    sets = [study.data, *(final.data for final in study.finals if final.data is not None)]
    return "; ".join(dict.fromkeys(f"{data.name}: {data.label}" for data in sets))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
