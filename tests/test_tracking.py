"""The record in MLflow, in a real SQLite store: whole, in order, once each, whatever happens on the way."""

import contextlib
import json
import logging
import math
import resource
import signal
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator import pages, sender, shipper, stores, tracking
from orchestrator.results import Trial, read_trials
from orchestrator.shipper import Shipping, sync
from orchestrator.spool import SPOOL, Spool, read_progress
from orchestrator.stores import check_store, local_uri
from orchestrator.study import Study, StudyError, find_study
from orchestrator.tracking import SpoolTracker
from orchestrator.trainings import Training
from proseg.data.store import Store
from tests.recorded import ship, write_samples
from tests.studies import LABEL, add_trial, make_store, make_study, write_epochs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose store all tests of this module share: it takes seconds to make one."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def store(home: Path) -> Store:
    return make_store(home / "blobs")


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(autouse=True)
def every_epoch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_EPOCHS", 0.0)


def runs_of(home: Path, study: str) -> dict[str, Any]:
    """The runs of a study by what they are: study, t000, final, blobs/0."""
    client = MlflowClient(local_uri(home))
    experiment = client.get_experiment_by_name("proseg-tune/test")
    found = client.search_runs([experiment.experiment_id], f"tags.`proseg.study` = '{study}'", max_results=1000)
    runs = {run.data.tags["proseg.uid"].removeprefix(f"{study}/").removeprefix("final/"): run for run in found}
    assert len(runs) == len(found), "no run was made twice"
    return runs


def history(home: Path, run: Any, metric: str) -> list[tuple[int, float, int]]:
    """(step, value, milliseconds) of every point."""
    points = MlflowClient(local_uri(home)).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value, point.timestamp) for point in points)


def files_of(home: Path, run: Any, under: str | None = None) -> set[str]:
    return {file.path for file in MlflowClient(local_uri(home)).list_artifacts(run.info.run_id, under)}


def data_report(study: Study) -> Path:
    """The folder of a report on the data."""
    folder = study.folder / "data"
    folder.mkdir(exist_ok=True)
    for name in ("report.md", "samples.png"):
        (folder / name).write_bytes(b"a report")
    return folder


def record(study: Study, *, folds: int = 2) -> list[Trial]:
    """A study as the driver tells it: two trials, then a final stage."""
    tracker = SpoolTracker(study)
    tracker.data_report(data_report(study))
    running = [Trial(number, {"optim.lr": 0.001 * (number + 1), "model.tau_size": 2}) for number in (0, 1, 2)]
    for trial in running:
        tracker.trial_started(trial)
    add_trial(study, 0, 0.3, epoch=2)
    tracker.trial_epochs(running[0])
    tracker.trial_epochs(running[0])
    ended = [
        add_trial(study, 0, 0.3, epoch=2),
        add_trial(study, 1, 0.4, "stopped early", epoch=1, reason="ASHA: epoch 1 of 2"),
        add_trial(study, 2, None, "failed", epoch=0, reason="the loss is not finite"),
    ]
    (study.trial_folder(2)).mkdir(parents=True, exist_ok=True)
    (study.trial_folder(2) / "failure.json").write_text("{}")
    for trial in ended:
        tracker.trial_ended(trial)
    config = study.config_of(ended[0].values)
    tracker.folds_started([(study.data, fold, config) for fold in range(folds)])
    for fold in range(folds):
        folder = study.final_folder("blobs", fold)
        write_epochs(folder, [0.5, 0.25])
        (folder / "result.json").write_text("{}")
        tracker.fold_ended(study.data, fold, config, {"ged": 0.2 + fold, "dice_mean": 0.9})
    tracker.study_ended("finished", ended[0], {"cv/blobs/ged_mean": 0.7}, "the table")
    return ended


@pytest.fixture(scope="module")
def runs(home: Path, store: Store) -> dict[str, Any]:
    """The runs of a study that went well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        study = make_study(home, store, name="well")
        record(study)
        ship(study, home)
        return runs_of(home, "well")


# What a study leaves


def test_one_run_for_the_study_each_trial_and_each_fold(runs: dict[str, Any]):
    assert set(runs) == {"study", "t000", "t001", "t002", "final", "blobs/0", "blobs/1"}


@pytest.mark.parametrize(
    ("child", "parent"),
    [("study", None), ("t000", "study"), ("t002", "study"), ("final", "study"), ("blobs/0", "final"),
     ("blobs/1", "final")],
)  # fmt: skip
def test_runs_are_nested(runs: dict[str, Any], child: str, parent: str | None):
    assert runs[child].data.tags.get("mlflow.parentRunId") == (runs[parent].info.run_id if parent else None)


@pytest.mark.parametrize(
    ("run", "status", "state"),
    [("study", "FINISHED", "finished"), ("t000", "FINISHED", "complete"), ("t001", "FINISHED", "stopped early"),
     ("t002", "FAILED", "failed"), ("final", "FINISHED", "complete"), ("blobs/0", "FINISHED", "complete")],
)  # fmt: skip
def test_every_run_says_how_it_ended(runs: dict[str, Any], run: str, status: str, state: str):
    assert (runs[run].info.status, runs[run].data.tags["proseg.state"]) == (status, state)


def test_reasons_are_kept(runs: dict[str, Any]):
    assert runs["t001"].data.tags["proseg.prune_reason"] == "ASHA: epoch 1 of 2"
    assert runs["t002"].data.tags["proseg.reason"] == "the loss is not finite"


def test_all_parameters_are_there_searched_and_fixed_apart(runs: dict[str, Any]):
    params = runs["t001"].data.params
    assert params["optim/lr"] == "0.002"
    assert float(params["optim/log10_lr"]) == pytest.approx(math.log10(0.002), abs=1e-4)
    assert params["model/tau_size"] == "2"
    assert params["fixed/model.width"] == "4"
    assert params["fixed/epochs"] == "2"
    assert "fixed/optim.lr" not in params
    assert runs["blobs/0"].data.params["config/optim.lr"] == "0.001"
    assert runs["study"].data.params["objective"] == "ged"
    assert runs["study"].data.params["version/git"] == "0123456789ab"


def test_every_epoch_is_a_step_with_the_time_it_ended(home: Path, runs: dict[str, Any]):
    assert history(home, runs["t000"], "train/loss") == [(1, 1.0, 1001000), (2, 0.5, 1002000)]
    assert [point[:2] for point in history(home, runs["t000"], "val/ged")] == [(1, 0.31), (2, 0.3)]
    assert [point[:2] for point in history(home, runs["blobs/1"], "objective/ged")] == [(1, 0.5), (2, 0.25)]
    assert [point[0] for point in history(home, runs["t001"], "train/loss")] == [1]


def test_held_out_scores_are_those_of_the_folds(runs: dict[str, Any]):
    assert runs["blobs/0"].data.metrics["test/ged"] == 0.2
    assert runs["blobs/1"].data.metrics["test/ged"] == 1.2
    assert runs["study"].data.metrics["cv/blobs/ged_mean"] == 0.7
    assert runs["study"].data.metrics["objective/ged"] == 0.3


@pytest.mark.parametrize("run", ["study", "t000", "blobs/1"])
def test_runs_bear_the_data_and_the_code_they_rest_on(runs: dict[str, Any], run: str, store: Store):
    tags = runs[run].data.tags
    assert tags["proseg.data"] == "blobs"
    assert tags["proseg.data_digest"] == store.manifest.fingerprint[:12]
    assert LABEL in tags["proseg.data_label"]
    assert tags["proseg.git_sha"] == "0123456789ab"
    (given,) = runs[run].inputs.dataset_inputs
    assert given.dataset.digest == store.manifest.fingerprint[:12]


def test_configuration_and_best_weights_are_kept(home: Path, runs: dict[str, Any]):
    assert files_of(home, runs["study"]) >= {"study.json"}
    assert files_of(home, runs["t000"]) == {"config.json", "best.safetensors"}
    assert files_of(home, runs["t002"]) == {"failure.json"}
    assert files_of(home, runs["blobs/0"]) >= {"config.json", "best.safetensors", "result.json"}


def test_the_report_on_the_data_lies_with_the_study(home: Path, runs: dict[str, Any]):
    assert files_of(home, runs["study"], "data") == {"data/report.md", "data/samples.png"}


def test_the_best_trial_is_marked_and_the_page_shows_the_table(runs: dict[str, Any]):
    assert [name for name, run in runs.items() if run.data.tags.get("proseg.best") == "true"] == ["t000"]
    note = runs["study"].data.tags["mlflow.note.content"]
    assert LABEL in note
    assert "t000" in note
    assert "the table" in note


# Numbers that are none


def test_values_that_are_not_finite_are_dropped(home: Path, store: Store):
    study = make_study(home, store, name="infinite")
    tracker = SpoolTracker(study)
    trial = Trial(0, {"optim.lr": 0.001, "model.tau_size": 2})
    tracker.trial_started(trial)
    write_epochs(study.trial_folder(0), [0.5, 0.4], **{"val/odd": float("nan"), "val/high": float("inf")})
    tracker.trial_epochs(trial)
    ship(study, home)
    assert set(runs_of(home, "infinite")["t000"].data.metrics) == {"train/loss", "val/ged", "objective/ged"}


def test_an_interrupted_study_is_killed(home: Path, store: Store):
    study = make_study(home, store, name="interrupted")
    tracker = SpoolTracker(study)
    trial = Trial(0, {"optim.lr": 0.001, "model.tau_size": 2})
    tracker.trial_started(trial)
    tracker.trial_ended(Trial(0, trial.values, "interrupted", reason="the study was ended while it ran"))
    tracker.study_ended("interrupted", None, {}, "")
    ship(study, home)
    runs = runs_of(home, "interrupted")
    assert {name: run.info.status for name, run in runs.items()} == {"study": "KILLED", "t000": "KILLED"}


# A store that goes away


class Outage:
    """MLflow's client, of which some calls are refused, before or after the server did what was asked."""

    def __init__(self, patch: pytest.MonkeyPatch, calls: tuple[str, ...], *, done: bool = False):
        self.down, self.refused = False, 0
        for name in calls:
            patch.setattr(MlflowClient, name, self._refusing(getattr(MlflowClient, name), done))

    def _refusing(self, call: Any, done: bool):
        def refuse(*args: Any, **named: Any) -> Any:
            if not self.down:
                return call(*args, **named)
            self.refused += 1
            if done:
                call(*args, **named)
            raise MlflowException("nobody answers")

        return refuse


EVERYTHING = ("log_batch", "create_run", "log_artifact", "log_inputs", "set_terminated", "search_runs")


def ship_through(outage: Outage, study: Study, home: Path) -> None:
    """Send all there is, with an outage before every other attempt."""
    check_store(home)
    shipping, left = Shipping(study, home), True
    while left:
        outage.down = not outage.down
        try:
            left = shipping.ship(local_uri(home))
        except MlflowException:
            assert outage.down
    outage.down = False
    assert outage.refused > 0


@pytest.mark.parametrize(
    ("calls", "most", "done"),
    [(("log_batch",), 1, False), (EVERYTHING, 1, False), (EVERYTHING, 5, True), (EVERYTHING, 1000, True)],
)
def test_an_outage_loses_nothing_and_duplicates_nothing(
    home: Path, store: Store, runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...], most: int,
    done: bool,
):  # fmt: skip
    """`most`: records between two notes of how far it has got. `done`: what was asked was done, but not answered."""
    monkeypatch.setattr(shipper, "MOST_RECORDS", most)
    study = make_study(home, store, name=f"outage-{len(calls)}-{most}-{done}")
    record(study)
    with monkeypatch.context() as patch:
        ship_through(Outage(patch, calls, done=done), study, home)
    same_as_without(home, runs_of(home, study.name), runs)


def test_sending_everything_again_changes_nothing(home: Path, store: Store, runs: dict[str, Any]):
    study = make_study(home, store, name="twice")
    record(study)
    for _ in range(3):
        shipping = ship(study, home)
        assert (shipping.progress.points, shipping.records_left, shipping.progress.refused) == (
            Spool(study.folder).points, 0, 0,
        )  # fmt: skip
        (study.folder / "mlflow.json").unlink()
    same_as_without(home, runs_of(home, "twice"), runs)


def test_what_was_sent_is_not_sent_again(home: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    study = make_study(home, store, name="once")
    record(study)
    ship(study, home)
    outage = Outage(monkeypatch, ("log_batch", "create_run", "log_artifact", "log_inputs", "set_terminated"))
    outage.down = True
    ship(study, home)
    assert outage.refused == 0


def same_as_without(home: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, run in expected.items():
        assert found[name].info.status == run.info.status, name
        assert found[name].data.metrics == run.data.metrics, name
        assert set(found[name].data.params) == set(run.data.params), name
        assert found[name].data.tags["proseg.state"] == run.data.tags["proseg.state"], name
        assert files_of(home, found[name]) == files_of(home, run), name
        assert files_of(home, found[name], "data") == files_of(home, run, "data"), name
        for metric in ("train/loss", "val/ged", "test/ged"):
            points = [point[:2] for point in history(home, found[name], metric)]
            assert points == [point[:2] for point in history(home, run, metric)], (name, metric)


def test_a_record_that_is_never_taken_does_not_hold_up_the_others(
    home: Path, store: Store, runs: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    study = make_study(home, store, name="refused")
    spool = Spool(study.folder)
    spool.append("metrics", key="t000", points=[[1, 1, {"early": 1.0}]])
    record(study)
    spool.append("metrics", key="t000", points=[[1, 1, {"no @ in names": 1.0}]])
    spool.append("tags", key="t000", tags={"after": "it"})
    with caplog.at_level(logging.WARNING, "orchestrator.shipper"):
        shipping = ship(study, home)
    assert (shipping.progress.refused, shipping.records_left) == (2, 0)
    assert any("t000: its run was refused" in message for message in caplog.messages)
    assert any("no @ in names" in message for message in caplog.messages)
    found = runs_of(home, "refused")
    assert found["t000"].data.tags["after"] == "it"
    same_as_without(home, found, runs)


def test_half_a_record_waits_for_its_end(home: Path, store: Store):
    study = make_study(home, store, name="torn")
    tracker = SpoolTracker(study)
    whole = (study.folder / SPOOL).read_bytes()
    with open(study.folder / SPOOL, "ab") as file:
        file.write(b'{"op": "tags", "key": "stu')
    assert ship(study, home).progress.offset == len(whole)
    tracker.study_ended("finished", None, {}, "")
    ship(study, home)
    assert runs_of(home, "torn")["study"].info.status == "FINISHED"


# The store itself


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db", "nonsense://x"])
def test_a_store_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StudyError, match="MLFLOW_TRACKING_URI") as error:
        check_store(tmp_path)
    assert uri in str(error.value)
    assert "\n" not in str(error.value)


def test_the_store_lies_in_the_workspace_unless_a_uri_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert stores.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert stores.tracking_uri(tmp_path) == "http://127.0.0.1:5000"


def test_the_saved_view_lies_with_the_experiment(home: Path, runs: dict[str, Any], store: Store):
    experiment = MlflowClient(local_uri(home)).get_experiment(runs["study"].info.experiment_id)
    name, view = pages.saved_view(make_study(home / "elsewhere", store, name="well"))
    assert json.loads(experiment.tags[name])["state"] == json.loads(view)["state"]


def test_an_ended_run_is_named_after_its_end_and_has_its_summary(runs: dict[str, Any]):
    assert runs["t000"].info.run_name == "t000 0.3000 complete"
    assert runs["t002"].info.run_name == "t002 failed"
    assert runs["t001"].data.metrics["cost/epochs"] == 1
    assert runs["t001"].data.metrics["objective/ged"] == 0.4


def test_a_picture_of_the_best_weights_is_sent_once(home: Path, store: Store):
    study = make_study(home, store, name="pictured")
    tracker, trial = SpoolTracker(study), Trial(0, {"optim.lr": 0.001, "model.tau_size": 2})
    tracker.trial_started(trial)
    folder = study.trial_folder(0)
    write_samples(folder)
    tracker.trial_ended(add_trial(study, 0, 0.3))
    for _ in range(2):
        ship(study, home)
        (study.folder / "mlflow.json").unlink()
    found = runs_of(home, "pictured")["t000"]
    images = [Path(path).suffix for path in sorted(files_of(home, found, "images"))]
    assert images == [".webp", ".png"] or images == [".png", ".webp"]


def test_a_winner_that_cannot_be_registered_holds_up_nothing(home: Path, store: Store):
    """The weights of these trials are no weights."""
    study = make_study(home, store, name="unregistered")
    best = add_trial(study, 0, 0.3)
    tracker = SpoolTracker(study, [best])
    tracker.winner()
    tracker.study_ended("finished", best, {}, "")
    assert ship(study, home).progress.refused == 1
    assert runs_of(home, "unregistered")["study"].info.status == "FINISHED"


def test_a_final_stage_that_breaks_off_says_so(home: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = make_study(home, store, name="broken-off")
    tracker, config = SpoolTracker(study), study.config_of({})
    tracker.folds_started([(study.data, fold, config) for fold in (0, 1)])
    tracker.fold_ended(study.data, 0, config, {"ged": 0.2})
    tracker.study_ended("failed", None, {}, "")
    ship(study, home)
    found = runs_of(home, "broken-off")
    ended = {name: (run.info.status, run.data.tags["proseg.state"]) for name, run in found.items()}
    assert ended["blobs/0"] == ("FINISHED", "complete")
    assert ended["blobs/1"] == ended["final"] == ended["study"] == ("FAILED", "failed")


def test_runs_with_numbers_of_several_sets_bear_the_label_of_each(runs: dict[str, Any], store: Store):
    for name in ("study", "final"):
        assert store.manifest.label in runs[name].data.tags["proseg.data_label"]


def test_an_experiment_that_was_deleted_in_the_pages_is_used_again(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("first", "second"):
        study = make_study(tmp_path, store, name=name)
        SpoolTracker(study)
        ship(study, tmp_path)
        (run,) = runs_of(tmp_path, name).values()
        if name == "first":
            experiment = run.info.experiment_id
            MlflowClient(local_uri(tmp_path)).delete_experiment(experiment)
    assert run.info.experiment_id == experiment


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3"])
def test_a_store_that_is_no_database_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(content * 100)
    with pytest.raises(StudyError, match="cannot be used") as error:
        check_store(tmp_path)
    assert "\n" not in str(error.value)


# A driver that dies while it ends a trial


@pytest.mark.parametrize("last", range(5))
def test_a_run_is_not_left_open_by_a_driver_that_dies_as_it_ends_it(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch, last: int
):
    """After each of the records that the end of a trial makes."""
    study = make_study(home, store, name=f"dies{last}")
    tracker = SpoolTracker(study)
    tracker.trial_started(Trial(0, {"optim.lr": 0.001, "model.tau_size": 2}))
    ended = add_trial(study, 0, 0.3, "stopped early", reason="ASHA")
    written, append = [], Spool.append

    def dies(spool: Spool, op: str, **fields: Any) -> None:
        if len(written) == last:
            raise KeyboardInterrupt
        written.append(op)
        append(spool, op, **fields)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Spool, "append", dies)
        tracker.trial_ended(ended)
    assert written == ["metrics", "metrics", "files", "status"][:last]
    SpoolTracker(study, read_trials(study))
    ship(study, home)
    run = runs_of(home, study.name)["t000"]
    assert (run.info.status, run.data.tags["proseg.state"]) == ("FINISHED", "stopped early")
    assert [step for step, *_ in history(home, run, "train/loss")] == [1]


# Epochs in quick succession


def test_epochs_that_end_soon_one_after_another_are_written_down_together(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    study = make_study(home, store, name="together")
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_EPOCHS", 1000.0)
    tracker, trial = SpoolTracker(study), Trial(0, {"optim.lr": 0.001, "model.tau_size": 2})
    tracker.trial_started(trial)
    for epoch in range(1, 8):
        add_trial(study, 0, 0.3, "running", epoch=epoch)
        tracker.trial_epochs(trial)
    tracker.trial_ended(add_trial(study, 0, 0.3, epoch=8))
    points = [record["points"] for record in tracker.spool.records() if record["op"] == "metrics"]
    assert [[step for step, *_ in some] for some in points] == [[1], [2, 3, 4, 5, 6, 7, 8], [8]]


def test_metrics_of_a_run_are_sent_many_at_a_time_and_before_what_follows_them():
    points = [[step, step, {"loss": 1.0}] for step in range(4)]
    records = [
        {"op": "metrics", "key": "a", "points": points[:1]}, {"op": "metrics", "key": "b", "points": points[:2]},
        {"op": "metrics", "key": "a", "points": points[1:3]}, {"op": "status", "key": "a"},
        {"op": "metrics", "key": "a", "points": points[3:]},
    ]  # fmt: skip
    sent = [(record["op"], record["key"], len(record.get("points", []))) for record in sender.together(records)]
    assert sent == [("metrics", "a", 3), ("metrics", "b", 2), ("status", "a", 0), ("metrics", "a", 1)]
    assert [len(record.get("points", [])) for record in records] == [1, 2, 2, 0, 1], "they may be sent again"


def test_mlflow_is_never_given_more_than_it_takes_at_once(home: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    study = make_study(home, store, name="many")
    monkeypatch.setattr(sender, "MOST_METRICS", 4)
    tracker, trial = SpoolTracker(study), Trial(0, {"optim.lr": 0.001, "model.tau_size": 2})
    tracker.trial_started(trial)
    tracker.trial_ended(add_trial(study, 0, 0.3, epoch=9))
    ship(study, home)
    assert [step for step, *_ in history(home, runs_of(home, "many")["t000"], "train/loss")] == list(range(1, 10))


# A study that goes on

GOES_ON = [Trial(number, {"optim.lr": 0.001 * (number + 1), "model.tau_size": 2}) for number in range(3)]


def killed(study: Study, home: Path) -> list[Trial]:
    """A study whose driver died: one trial had ended, one had ended in the log only, one was at its first epoch."""
    tracker = SpoolTracker(study)
    for trial in GOES_ON:
        tracker.trial_started(trial)
    tracker.trial_ended(add_trial(study, 0, 0.3, epoch=2))
    add_trial(study, 1, 0.4, epoch=1)
    tracker.trial_epochs(GOES_ON[1])
    add_trial(study, 1, 0.4, epoch=2)
    add_trial(study, 2, 0.5, "running", epoch=1)
    tracker.trial_epochs(GOES_ON[2])
    ship(study, home)
    return read_trials(study)


def finish(study: Study, home: Path, trials: list[Trial]) -> None:
    """What the driver that goes on tells."""
    tracker = SpoolTracker(study, trials)
    tracker.trial_started(GOES_ON[2])
    tracker.trial_epochs(GOES_ON[2])
    ended = add_trial(study, 2, 0.2, "stopped early", epoch=3, reason="ASHA")
    tracker.trial_epochs(GOES_ON[2])
    tracker.trial_ended(ended)
    tracker.study_ended("finished", ended, {}, "")
    ship(study, home)


EPOCHS_OF = {"t000": [1, 2], "t001": [1, 2], "t002": [1, 2, 3]}


def check_whole(home: Path, found: dict[str, Any]) -> None:
    assert set(found) == {"study", *EPOCHS_OF}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    states = {name: run.data.tags["proseg.state"] for name, run in found.items()}
    assert states == {"study": "finished", "t000": "complete", "t001": "complete", "t002": "stopped early"}
    for name, epochs in EPOCHS_OF.items():
        for metric in ("objective/ged", "train/loss"):
            assert [step for step, *_ in history(home, found[name], metric)] == epochs, (name, metric)
        assert found[name].data.params["optim/lr"] == f"{0.001 * (int(name[1:]) + 1):g}"
        assert files_of(home, found[name]) == {"config.json", "best.safetensors"}
    assert [name for name, run in found.items() if run.data.tags.get("proseg.best") == "true"] == ["t002"]


def test_a_study_that_goes_on_makes_no_run_and_sends_no_epoch_twice(home: Path, store: Store):
    study = make_study(home, store, name="goes-on")
    trials = killed(study, home)
    before = runs_of(home, "goes-on")
    assert before["t001"].data.tags["proseg.state"] == "running"
    finish(study, home, trials)
    after = runs_of(home, "goes-on")
    check_whole(home, after)
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }


def test_a_study_whose_runs_are_gone_is_sent_again(home: Path, store: Store):
    """As where another store took the place of the one that was sent to."""
    from mlflow.tracking._tracking_service.utils import _get_store

    study = make_study(home, store, name="rebuilt")
    trials = killed(study, home)
    for run in runs_of(home, "rebuilt").values():
        _get_store(local_uri(home))._hard_delete_run(run.info.run_id)
    assert runs_of(home, "rebuilt") == {}
    finish(study, home, trials)
    check_whole(home, runs_of(home, "rebuilt"))


def test_a_store_that_comes_back_empty_is_sent_everything(home: Path, store: Store, runs: dict[str, Any]):
    """Between two records, without an outage that anybody noticed."""
    from mlflow.tracking._tracking_service.utils import _get_store

    study = make_study(home, store, name="emptied")
    SpoolTracker(study)
    shipping = ship(study, home)
    for run in runs_of(home, "emptied").values():
        _get_store(local_uri(home))._hard_delete_run(run.info.run_id)
    record(study)
    while shipping.ship(local_uri(home)):
        pass
    same_as_without(home, runs_of(home, "emptied"), runs)


def test_a_run_that_a_person_has_deleted_does_not_come_back(home: Path, store: Store):
    study = make_study(home, store, name="deleted")
    trials = killed(study, home)
    client, before = MlflowClient(local_uri(home)), runs_of(home, "deleted")
    client.delete_run(before["t001"].info.run_id)
    finish(study, home, trials)
    after = runs_of(home, "deleted")
    assert set(after) == {"study", "t000", "t002"}
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert after["t000"].info.run_id == before["t000"].info.run_id


def test_of_two_runs_of_a_server_that_hung_the_empty_one_goes(home: Path, store: Store):
    study = make_study(home, store, name="doubled")
    trials = killed(study, home)
    client, first = MlflowClient(local_uri(home)), runs_of(home, "doubled")["t000"]
    client.create_run(first.info.experiment_id, tags=first.data.tags)
    finish(study, home, trials)
    found = runs_of(home, "doubled")
    assert found["t000"].info.run_id == first.info.run_id
    check_whole(home, found)


def test_a_note_of_how_far_it_has_got_that_is_damaged_costs_nothing(home: Path, store: Store, runs: dict[str, Any]):
    study = make_study(home, store, name="forgetful")
    record(study)
    for damage in (b"{", b"[]", b'{"workspace": {"other": 1}}', b"\xff"):
        (study.folder / "mlflow.json").write_bytes(damage)
        ship(study, home)
    same_as_without(home, runs_of(home, "forgetful"), runs)


def test_a_disk_that_takes_half_a_record_is_full(tmp_path: Path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    spool = Spool(tmp_path)
    spool.append("tags", key="study", tags={"a": "b"})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="space"):
            spool.append("tags", key="study", tags={"a": 200 * "b"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    spool.append("tags", key="study", tags={"c": "d"})
    assert [record["tags"] for record in spool.records()] == [{"a": "b"}, {"c": "d"}]


def test_a_study_that_goes_on_runs_until_it_ends_again(home: Path, store: Store):
    study = make_study(home, store, name="again")
    SpoolTracker(study).study_ended("interrupted", None, {}, "")
    ship(study, home)
    assert runs_of(home, "again")["study"].info.status == "KILLED"
    tracker = SpoolTracker(study)
    ship(study, home)
    run = runs_of(home, "again")["study"]
    assert (run.info.status, run.data.tags["proseg.state"]) == ("RUNNING", "running")
    tracker.study_ended("finished", None, {}, "")
    ship(study, home)
    assert runs_of(home, "again")["study"].info.status == "FINISHED"


def test_a_study_that_goes_on_elsewhere_keeps_what_it_was_begun_with(home: Path, store: Store):
    """MLflow refuses another value of a parameter; nothing of it may hold up what comes after."""
    study = make_study(home, store, name="elsewhere")
    SpoolTracker(study)
    ship(study, home)
    changed = study.model_copy(update={"resources": study.resources.model_copy(update={"concurrent": 2})})
    (study.folder / SPOOL).unlink()  # as in a study that an earlier version has begun
    SpoolTracker(changed)
    assert ship(study, home).progress.refused == 0
    assert runs_of(home, "elsewhere")["study"].data.params["concurrent"] == "1"


def test_only_one_trial_is_the_best(home: Path, store: Store):
    study = make_study(home, store, name="best")
    first, second = add_trial(study, 0, 0.3), add_trial(study, 1, 0.2)
    SpoolTracker(study, [first, second]).study_ended("interrupted", first, {}, "")
    SpoolTracker(study, [first, second]).study_ended("finished", second, {}, "")
    ship(study, home)
    best = [name for name, run in runs_of(home, "best").items() if run.data.tags.get("proseg.best") == "true"]
    assert best == ["t001"]


def test_the_report_on_the_data_is_written_down_once(home: Path, store: Store):
    study = make_study(home, store, name="reported")
    for _ in range(3):
        SpoolTracker(study).data_report(data_report(study))
    sent = [record["paths"] for record in Spool(study.folder).records() if record["op"] == "files"]
    assert sent == [["data/report.md", "data/samples.png"]]
    ship(study, home)
    assert files_of(home, runs_of(home, "reported")["study"], "data") == {"data/report.md", "data/samples.png"}


@pytest.mark.parametrize("name", ["plain", "a b%20c?d#e"])
def test_what_was_moved_and_renamed_goes_on_in_its_runs(tmp_path: Path, name: str):
    before, now = tmp_path / "before", tmp_path / name
    study = make_study(before, make_store(before / "prepared" / "blobs"), name="first")
    record(study)
    ship(study, before)
    first = runs_of(before, "first")
    before.rename(now)
    (now / "studies" / "first").rename(now / "studies" / "second")
    again = find_study(now, "second")
    (again.folder / "new.txt").write_text("new")
    SpoolTracker(again).artifact(again.folder / "new.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{now}/mlflow/mlflow.db")
        patch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", OrderedDict())  # a new process's
        sync(again, now, again=True)
    runs = runs_of(now, "first")
    assert {key: run.info.run_id for key, run in runs.items()} == {key: run.info.run_id for key, run in first.items()}
    assert {"new.txt", "study.json"} <= files_of(now, runs["study"])
    assert (now / "mlflow" / "artifacts" / "test" / runs["study"].info.run_id / "artifacts" / "new.txt").exists()
    assert runs["study"].inputs.dataset_inputs[0].dataset.source == (now / "prepared" / "blobs").as_uri()
    assert sorted(tmp_path.iterdir()) == [now]


def test_another_store_is_sent_everything(home: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As when a study of one's own is shown to others."""
    study = make_study(home, store, name="shown")
    record(study)
    ship(study, home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    monkeypatch.chdir(tmp_path)  # where such a store keeps its artifacts
    check_store(home)
    assert Shipping(study, home).progress.offset == 0
    shipping = Shipping(study, home)
    while shipping.ship(f"sqlite:///{tmp_path}/other.db"):
        pass
    assert shipping.records_left == 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert read_progress(study.folder, "workspace").offset == shipping.progress.offset


# The confirmation


def repeats(study: Study, store: Store, count: int = 2) -> list[Training]:
    return [
        Training(f"confirm t000 repeat {repeat}", study.config_of({}), study.data.folder, store.manifest.folds[0],
                 study.confirm_folder(0, repeat), print)
        for repeat in range(count)
    ]  # fmt: skip


def test_every_repeat_of_the_confirmation_has_a_run(home: Path, store: Store):
    study = make_study(home, store, name="confirmed")
    tracker, trainings = SpoolTracker(study), repeats(study, store)
    tracker.repeats_started(trainings)
    for repeat, training in enumerate(trainings):
        write_epochs(training.folder, [0.5, 0.25])
        (training.folder / "result.json").write_text("{}")
        tracker.repeat_ended(training, 0.3 + repeat)
    tracker.study_ended("finished", None, {}, "")
    ship(study, home)
    found = runs_of(home, "confirmed")
    names = {training.name for training in trainings}
    assert set(found) == {"study", "confirm", *names}
    assert found["confirm"].data.tags["mlflow.parentRunId"] == found["study"].info.run_id
    for repeat, training in enumerate(trainings):
        run = found[training.name]
        assert run.data.tags["mlflow.parentRunId"] == found["confirm"].info.run_id
        assert (run.data.tags["proseg.kind"], run.data.tags["proseg.data"]) == ("repeat", "blobs")
        assert run.data.metrics["confirm/ged"] == 0.3 + repeat
        assert run.data.params["config/model.width"] == "4"
        assert [step for step, *_ in history(home, run, "objective/ged")] == [1, 2]
        assert files_of(home, run) == {"config.json", "result.json"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_a_repeat_that_failed_says_so_in_a_study_that_went_well(home: Path, store: Store):
    study = make_study(home, store, name="tolerant")
    tracker, trainings = SpoolTracker(study), repeats(study, store)
    tracker.repeats_started(trainings)
    for training in trainings:
        training.folder.mkdir(parents=True)
    (trainings[1].folder / "failure.json").write_text("{}")
    tracker.repeat_ended(trainings[0], 0.3)
    tracker.study_ended("finished", None, {}, "")
    ship(study, home)
    found = runs_of(home, "tolerant")
    ended = {name: (run.info.status, run.data.tags["proseg.state"]) for name, run in found.items()}
    assert ended[trainings[0].name] == ended["confirm"] == ("FINISHED", "complete")
    assert ended[trainings[1].name] == ("FAILED", "failed")
    assert files_of(home, found[trainings[1].name]) == {"failure.json"}


def test_a_confirmation_that_goes_on_makes_no_run_twice(home: Path, store: Store):
    study = make_study(home, store, name="confirms-on")
    trainings = repeats(study, store)
    write_epochs(trainings[0].folder, [0.5, 0.25])
    for state in ("interrupted", "finished"):
        tracker = SpoolTracker(study)
        tracker.repeats_started(trainings)
        tracker.repeat_ended(trainings[0], 0.3)
        tracker.study_ended(state, None, {}, "")
        ship(study, home)
    found = runs_of(home, "confirms-on")
    assert len(found) == 4
    assert [step for step, *_ in history(home, found[trainings[0].name], "objective/ged")] == [1, 2]
