"""Sends what a study's spool holds to one MLflow store: in order, and as often as need be, for twice is once.

Runs are known by their `proseg.uid`, metrics by their own times, files by their names.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import pages
from orchestrator.results import read_trials
from orchestrator.stores import artifact_folder, first_line, local_lock
from orchestrator.study import Study, StudyError

if TYPE_CHECKING:
    from mlflow.entities import Run

MOST_METRICS = 1000
"""MLflow takes no more at once."""
FINAL = {
    "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST",
    "ENDPOINT_NOT_FOUND", "PERMISSION_DENIED", "NOT_IMPLEMENTED",
}  # fmt: skip
"""Answers that will be the same tomorrow. Everything else is an outage."""
PASSING = {401, 408, 409, 429}
"""Refusals of a file that a later attempt may not meet; the others of their hundred stay."""


class Refused(Exception):
    """The store answers, and will not take a record, now or later."""


class Sender:
    """One study's way to one store."""

    def __init__(self, uri: str, study: Study, home: Path):
        """Open the study's experiment and find the runs that it has there.

        Raises:
            MlflowException, OSError: the store does not answer.
        """
        from mlflow import MlflowClient

        self._client = MlflowClient(uri)
        self._study = study
        with local_lock(home):
            self.experiment = self._open_experiment(home)
        self._known = self._runs_of_the_study()

    def page(self, server: str) -> str:
        """The address of the study's page on this server: whose version decides what it understands."""
        from mlflow.exceptions import MlflowException
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        try:
            answer = http_request(get_default_host_creds(server), "/version", "GET")
            version = answer.text if answer is not None and answer.ok else "unknown"
        except MlflowException:
            version = "unknown"
        return pages.study_page(server, self.experiment, self._study, version)

    def has(self, key: str) -> bool:
        return self._uid(key) in self._known

    def send(self, records: Iterable[dict[str, Any]]) -> list[str]:
        """Send records in order, the metrics of a run many at a time; why some were refused.

        Raises:
            MlflowException, OSError: the store does not answer; what was sent may be sent again.
        """
        refused = []
        for record in together(records):
            try:
                self._send(record)
            except Refused as error:
                refused.append(str(error))
        return refused

    def _send(self, record: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            getattr(self, f"_{record['op']}")(**{name: value for name, value in record.items() if name != "op"})
        except (MlflowException, OSError) as error:
            if not _is_final(error):
                raise
            raise Refused(f"{record.get('key', 'study')}: {first_line(error)}") from None

    # --- the records, by their op -------------------------------------------------------------------------------------

    def _run(
        self, key: str, name: str, parent: str | None, tags: dict[str, str], params: dict[str, str],
        data: list[dict[str, str]], time: int,
    ) -> None:  # fmt: skip
        from mlflow.entities import Param

        if not self.has(key):
            family = {"mlflow.parentRunId": self._id(parent)} if parent else {}
            self._known[self._uid(key)] = self._client.create_run(
                self.experiment, start_time=time, run_name=name, tags=tags | family
            )
        # MLflow refuses another value: a run keeps what it was begun with.
        known = self._known[self._uid(key)].data.params
        new = [Param(name, value) for name, value in params.items() if name not in known]
        self._client.log_batch(self._id(key), params=new)
        if data:
            places = {ref.name: ref.folder.as_uri() for ref in self._study.sets}
            self._client.log_inputs(self._id(key), [_input(**part | {"source": places[part["name"]]}) for part in data])

    def _metrics(self, key: str, points: list[tuple[int, int, dict[str, float]]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, time, step) for step, time, values in points for name, value in values.items()]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id(key), metrics=metrics[first : first + MOST_METRICS])

    def _tags(self, key: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._id(key), tags=[RunTag(name, value) for name, value in tags.items()])

    def _files(self, key: str, paths: list[str], under: str | None) -> None:
        for path in (self._study.folder / name for name in paths):
            if path.exists():  # what has been deleted since cannot be sent; the record stays
                self._client.log_artifact(self._id(key), str(path), under)

    def _picture(self, key: str, path: str) -> None:
        from proseg.errors import DataError
        from proseg.pictures import picture

        begins = f"images/{pages.SAMPLES.replace('/', '~')}+step+{pages.SAMPLES_STEP}+"
        there = self._client.list_artifacts(self._id(key), "images")
        if any(file.path.startswith(begins) and file.path.endswith(".webp") for file in there):
            return  # MLflow names every picture anew
        if not (self._study.folder / path).exists():  # as with other files
            return
        try:
            image = picture(self._study.folder / path)
        except DataError as error:
            raise Refused(f"{key}: {error}") from None
        self._client.log_image(self._id(key), image, key=pages.SAMPLES, step=pages.SAMPLES_STEP, synchronous=True)

    def _view(self) -> None:
        self._client.set_experiment_tag(self.experiment, *pages.saved_view(self._study))

    def _winner(self, key: str) -> None:
        from orchestrator.registry import register_winner

        try:
            register_winner(self._client, self._id(key), self._study)
        except StudyError as error:
            raise Refused(f"the winner cannot be registered: {error}") from None

    def _note(self, key: str, winner: int | None, tables: str) -> None:
        trials = read_trials(self._study)
        text = pages.note(
            self._study, trials, experiment=self.experiment, tables=tables,
            runs={trial.name: self._id(trial.name) for trial in trials if self.has(trial.name)},
            winner=next((trial for trial in trials if trial.number == winner), None),
        )  # fmt: skip
        self._tags(key, {pages.NOTE: text})

    def _status(
        self, key: str, status: str, tags: dict[str, str], time: int | None = None, name: str | None = None
    ) -> None:
        if time is None:
            self._client.update_run(self._id(key), status=status)
        else:
            self._client.set_terminated(self._id(key), status, time)
        if name:
            self._client.update_run(self._id(key), name=name)
        self._tags(key, tags)  # last: by its state a run is known to have all that belongs to it

    # --- runs ---------------------------------------------------------------------------------------------------------

    def _uid(self, key: str) -> str:
        return f"{self._study.key}/{key}"

    def _id(self, key: str) -> str:
        if not self.has(key):
            raise Refused(f"{key}: its run was refused")
        return self._known[self._uid(key)].info.run_id

    def _open_experiment(self, home: Path) -> str:
        name = pages.experiment_name(self._study)
        found = self._client.get_experiment_by_name(name)
        if found:
            if found.lifecycle_stage == "deleted":  # by a person, in MLflow's pages; its name stays taken
                self._client.restore_experiment(found.experiment_id)
            return found.experiment_id
        folder = artifact_folder(home)
        location = folder and (folder / self._study.space.name).as_uri()
        return self._client.create_experiment(
            name, artifact_location=location, tags={"mlflow.experimentKind": "custom_model_development"}
        )

    def _runs_of_the_study(self) -> "dict[str, Run]":
        """By their uid; also those that a person has deleted: they are not to come back."""
        from mlflow.entities import ViewType

        found: dict[str, Run] = {}
        query, token = f"tags.`proseg.study` = '{self._study.key}'", None
        while True:
            page = self._client.search_runs([self.experiment], query, ViewType.ALL, 1000, page_token=token)
            for run in page:
                self._keep(run, found)
            token = page.token
            if not token:
                return found

    def _keep(self, run: "Run", found: "dict[str, Run]") -> None:
        """One run for each uid. A server that hung may have made two: the second is empty, and goes."""
        uid = run.data.tags["proseg.uid"]
        if uid not in found:
            found[uid] = run
            return
        first, second = sorted((found[uid], run), key=lambda one: (_deleted(one), -len(one.data.params)))
        found[uid] = first
        if not _deleted(second):
            self._client.delete_run(second.info.run_id)


def _is_final(error: Exception) -> bool:
    """Whether the same record would be refused again."""
    from requests import HTTPError

    if isinstance(error, HTTPError):  # of a file's way through a server, or to a store behind it
        code = error.response.status_code if error.response is not None else 0
        return 400 <= code < 500 and code not in PASSING
    return isinstance(error, PermissionError) or getattr(error, "error_code", None) in FINAL


def _deleted(run: "Run") -> bool:
    return run.info.lifecycle_stage == "deleted"


def together(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records with the metrics of a run gathered into one; whatever else is said of any run finds them sent."""
    waiting: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["op"] != "metrics":
            yield from waiting.values()
            waiting = {}
            yield record
        elif record["key"] in waiting:
            waiting[record["key"]]["points"].extend(record["points"])
        else:
            waiting[record["key"]] = {**record, "points": list(record["points"])}
    yield from waiting.values()


def _input(name: str, digest: str, source: str, fold: str) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", "training"), InputTag("fold", fold)]
    return DatasetInput(Dataset(name, digest, "local", source), tags)
