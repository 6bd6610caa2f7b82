"""The record in MLflow, in a real SQLite store: whole, in order, once each, whatever happens on the way."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator import tracking
from orchestrator.results import Trial, read_trials
from orchestrator.study import Study, StudyError
from orchestrator.tracking import MlflowTracker, check_server
from orchestrator.trainings import Training
from proseg.data.store import Store
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


def runs_of(home: Path, study: str) -> dict[str, Any]:
    """The runs of a study by what they are: study, t000, final, blobs/0."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.local_uri(home))
    experiment = client.get_experiment_by_name("proseg-tune/test")
    found = client.search_runs([experiment.experiment_id], f"tags.`proseg.study` = '{study}'", max_results=1000)
    runs = {run.data.tags["proseg.uid"].removeprefix(f"{study}/").removeprefix("final/"): run for run in found}
    assert len(runs) == len(found), "no run was made twice"
    return runs


def history(home: Path, run: Any, metric: str) -> list[tuple[int, float, int]]:
    """(step, value, milliseconds) of every point."""
    from mlflow import MlflowClient

    points = MlflowClient(tracking.local_uri(home)).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value, point.timestamp) for point in points)


def files_of(home: Path, run: Any, under: str | None = None) -> set[str]:
    from mlflow import MlflowClient

    return {file.path for file in MlflowClient(tracking.local_uri(home)).list_artifacts(run.info.run_id, under)}


def data_report(study: Study) -> Path:
    """The folder of a report on the data."""
    folder = study.folder / "data"
    folder.mkdir(exist_ok=True)
    for name in ("report.md", "samples.png"):
        (folder / name).write_bytes(b"a report")
    return folder


def record(study: Study, home: Path, *, folds: int = 2) -> list[Trial]:
    """A study as the driver tells it: two trials, then a final stage."""
    tracker = MlflowTracker(study, home)
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
    assert tracker.waiting == 0
    return ended


@pytest.fixture(scope="module")
def runs(home: Path, store: Store) -> dict[str, Any]:
    """The runs of a study that went well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        record(make_study(home, store, name="well"), home)
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
    assert runs["t001"].data.tags["proseg.reason"] == "ASHA: epoch 1 of 2"
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
    assert tags["proseg.code"] == "0123456789ab"
    (given,) = runs[run].inputs.dataset_inputs
    assert given.dataset.digest == store.manifest.fingerprint[:12]


def test_configuration_and_best_weights_are_kept(home: Path, runs: dict[str, Any]):
    assert files_of(home, runs["study"]) >= {"study.json"}
    assert files_of(home, runs["t000"]) == {"config.json", "best.safetensors"}
    assert files_of(home, runs["t002"]) == {"failure.json"}
    assert files_of(home, runs["blobs/0"]) >= {"config.json", "best.safetensors", "result.json"}


def test_the_report_on_the_data_lies_with_the_study(home: Path, runs: dict[str, Any], store: Store):
    assert files_of(home, runs["study"], "data") == {"data/report.md", "data/samples.png"}
    assert runs["study"].data.tags["proseg.data_report"] == store.manifest.fingerprint[:12]


def test_the_best_trial_is_marked_and_the_page_shows_the_table(runs: dict[str, Any]):
    assert [name for name, run in runs.items() if run.data.tags.get("proseg.best") == "true"] == ["t000"]
    assert runs["study"].data.tags["mlflow.note.content"] == "the table"


# Numbers that are none


def test_values_that_are_not_finite_are_dropped(home: Path, store: Store):
    study = make_study(home, store, name="infinite")
    tracker = MlflowTracker(study, home)
    trial = Trial(0, {"optim.lr": 0.001, "model.tau_size": 2})
    tracker.trial_started(trial)
    write_epochs(study.trial_folder(0), [0.5, 0.4], **{"val/odd": float("nan"), "val/high": float("inf")})
    tracker.trial_epochs(trial)
    assert tracker.waiting == 0
    assert set(runs_of(home, "infinite")["t000"].data.metrics) == {"train/loss", "val/ged", "objective/ged"}


def test_an_interrupted_study_is_killed(home: Path, store: Store):
    study = make_study(home, store, name="interrupted")
    tracker = MlflowTracker(study, home)
    trial = Trial(0, {"optim.lr": 0.001, "model.tau_size": 2})
    tracker.trial_started(trial)
    tracker.trial_ended(Trial(0, trial.values, "interrupted", reason="the study was ended while it ran"))
    tracker.study_ended("interrupted", None, {}, "")
    runs = runs_of(home, "interrupted")
    assert {name: run.info.status for name, run in runs.items()} == {"study": "KILLED", "t000": "KILLED"}


# A store that goes away


class Outage:
    """MLflow's client, of which some calls are refused, before or after the server did what was asked."""

    def __init__(self, patch: pytest.MonkeyPatch, calls: tuple[str, ...], *, done: bool = False):
        from mlflow import MlflowClient

        self.down, self.refused = False, 0
        for name in calls:
            patch.setattr(MlflowClient, name, self._refusing(getattr(MlflowClient, name), done))

    def _refusing(self, call: Any, done: bool):
        from mlflow.exceptions import MlflowException

        def refuse(*args: Any, **named: Any) -> Any:
            if not self.down:
                return call(*args, **named)
            self.refused += 1
            if done:
                call(*args, **named)
            raise MlflowException("nobody answers")

        return refuse


def record_through(outage: Outage, study: Study, home: Path, patch: pytest.MonkeyPatch, *, until: str) -> None:
    """Record a study; the store is away from the end of the first trial until this event is over."""

    def during(name: str, starts: bool, ends: bool) -> None:
        event = getattr(MlflowTracker, name)

        def wrapped(*args: Any, **named: Any) -> None:
            outage.down = outage.down or starts
            event(*args, **named)
            if ends:
                outage.down = False

        patch.setattr(MlflowTracker, name, wrapped)

    during("trial_epochs", starts=True, ends=False)
    during(until, starts=False, ends=True)
    record(study, home)
    assert outage.refused > 0


EVERYTHING = ("log_batch", "create_run", "set_tag", "log_artifact", "log_inputs", "set_terminated", "search_runs")


@pytest.mark.parametrize("calls", [("log_batch",), EVERYTHING])
@pytest.mark.parametrize("pause", [0.0, 1000.0])
@pytest.mark.parametrize("until", ["trial_ended", "fold_ended"])
def test_an_outage_loses_nothing_and_duplicates_nothing(
    home: Path, store: Store, runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...],
    pause: float, until: str, caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    """With a pause of 0 it is tried again at once, with one of 1000 s only at the end of the study."""
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_RETRIES", pause)
    name = f"outage-{len(calls)}-{pause:g}-{until}"
    with caplog.at_level(logging.CRITICAL, "orchestrator.tracking"):
        record_through(Outage(monkeypatch, calls), make_study(home, store, name=name), home, monkeypatch, until=until)
    same_as_without(home, runs_of(home, name), runs)


def test_what_was_done_without_an_answer_is_not_done_twice(
    home: Path, store: Store, runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_RETRIES", 1000.0)
    outage = Outage(monkeypatch, ("log_batch", "create_run"), done=True)
    with caplog.at_level(logging.CRITICAL, "orchestrator.tracking"):
        record_through(outage, make_study(home, store, name="deaf"), home, monkeypatch, until="fold_ended")
    same_as_without(home, runs_of(home, "deaf"), runs)


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


def test_an_outage_until_the_end_is_counted(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    study = make_study(home, store, name="away")
    tracker = MlflowTracker(study, home)
    Outage(monkeypatch, EVERYTHING).down = True
    tracker.trial_started(Trial(0, {"optim.lr": 0.001, "model.tau_size": 2}))
    tracker.study_ended("finished", None, {}, "")
    assert tracker.waiting > 3
    said = [message for message in caplog.messages if "records wait" in message]
    assert len(said) == 1, "one outage is told once"


# The store itself


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db", "nonsense://x"])
def test_a_store_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StudyError, match="MLFLOW_TRACKING_URI") as error:
        check_server(tmp_path)
    assert uri in str(error.value)
    assert "\n" not in str(error.value)


def test_the_store_lies_in_the_workspace_unless_a_uri_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert tracking.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking.tracking_uri(tmp_path) == "http://127.0.0.1:5000"


def test_the_page_of_a_study_lists_its_trials_best_first(home: Path, store: Store):
    page = tracking.study_page("http://127.0.0.1:5000", "7", make_study(home, store, name="page"))
    assert page.startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    assert "%27page%27" in page
    assert "orderByAsc=true" in page


def test_a_final_stage_that_breaks_off_says_so(home: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = make_study(home, store, name="broken-off")
    tracker, config = MlflowTracker(study, home), study.config_of({})
    tracker.folds_started([(study.data, fold, config) for fold in (0, 1)])
    tracker.fold_ended(study.data, 0, config, {"ged": 0.2})
    tracker.study_ended("failed", None, {}, "")
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
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = MlflowTracker(make_study(tmp_path, store, name="first"), tmp_path)
    MlflowClient(first.uri).delete_experiment(first.experiment)
    assert MlflowTracker(make_study(tmp_path, store, name="second"), tmp_path).experiment == first.experiment


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3"])
def test_a_store_that_is_no_database_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(content * 100)
    with pytest.raises(StudyError, match="cannot be used") as error:
        check_server(tmp_path)
    assert "\n" not in str(error.value)


# A driver that dies while it ends a trial


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("name", ["_tag", "set_terminated"])
def test_a_run_is_not_left_open_by_a_driver_that_dies_as_it_ends_it(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch, name: str, done: bool
):
    study = make_study(home, store, name=f"dies{name}{done}")
    tracker = MlflowTracker(study, home)
    tracker.trial_started(Trial(0, {"optim.lr": 0.001, "model.tau_size": 2}))
    ended = add_trial(study, 0, 0.3, "stopped early", reason="ASHA")
    owner = tracker if name == "_tag" else tracker._client
    original = getattr(owner, name)

    def dies(*args: Any) -> None:
        if done:
            original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, dies)
    with pytest.raises(KeyboardInterrupt):
        tracker.trial_ended(ended)
    MlflowTracker(study, home, read_trials(study))
    run = runs_of(home, study.name)["t000"]
    assert (run.info.status, run.data.tags["proseg.state"]) == ("FINISHED", "stopped early")


# Epochs in quick succession


def test_epochs_that_end_soon_one_after_another_are_sent_together(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    study = make_study(home, store, name="together")
    monkeypatch.setattr("orchestrator.tracking.MOST_METRICS", 9)  # of three epochs, three numbers each
    tracker, trial = MlflowTracker(study, home), Trial(0, {"optim.lr": 0.001, "model.tau_size": 2})
    tracker.trial_started(trial)
    sent, log_batch = [], tracker._client.log_batch

    def counted(run: str, metrics: Any = (), **more: Any) -> None:
        sent.append([point.step for point in metrics if point.key == "objective/ged"])
        log_batch(run, metrics=metrics, **more)

    monkeypatch.setattr(tracker._client, "log_batch", counted)
    for epoch in range(1, 8):
        add_trial(study, 0, 0.3, "running", epoch=epoch)
        tracker.trial_epochs(trial)
    assert sent == [[1]]
    tracker.trial_ended(add_trial(study, 0, 0.3, epoch=8))
    assert [steps for steps in sent if steps] == [[1], [2, 3, 4], [5, 6, 7], [8]]


# A study that goes on

GOES_ON = [Trial(number, {"optim.lr": 0.001 * (number + 1), "model.tau_size": 2}) for number in range(3)]


def killed(study: Study, home: Path) -> list[Trial]:
    """A study whose driver died: one trial had ended, one had ended in the log only, one was at its first epoch."""
    tracker = MlflowTracker(study, home)
    for trial in GOES_ON:
        tracker.trial_started(trial)
    tracker.trial_ended(add_trial(study, 0, 0.3, epoch=2))
    add_trial(study, 1, 0.4, epoch=1)
    tracker.trial_epochs(GOES_ON[1])
    add_trial(study, 1, 0.4, epoch=2)
    add_trial(study, 2, 0.5, "running", epoch=1)
    tracker.trial_epochs(GOES_ON[2])
    assert tracker.waiting == 0
    return read_trials(study)


def finish(study: Study, home: Path, trials: list[Trial]) -> None:
    """What the driver that goes on tells."""
    tracker = MlflowTracker(study, home, trials)
    tracker.trial_started(GOES_ON[2])
    tracker.trial_epochs(GOES_ON[2])
    ended = add_trial(study, 2, 0.2, "stopped early", epoch=3, reason="ASHA")
    tracker.trial_epochs(GOES_ON[2])
    tracker.trial_ended(ended)
    tracker.study_ended("finished", ended, {}, "")
    assert tracker.waiting == 0


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


def test_a_study_whose_store_is_gone_is_sent_again_from_the_log(home: Path, store: Store):
    study = make_study(home, store, name="rebuilt")
    trials = killed(study, home)
    client = MlflowTracker(study, home, trials)._client
    for run in runs_of(home, "rebuilt").values():
        client.delete_run(run.info.run_id)
    assert runs_of(home, "rebuilt") == {}
    finish(study, home, trials)
    check_whole(home, runs_of(home, "rebuilt"))


def test_a_study_that_goes_on_runs_until_it_ends_again(home: Path, store: Store):
    study = make_study(home, store, name="again")
    MlflowTracker(study, home).study_ended("interrupted", None, {}, "")
    assert runs_of(home, "again")["study"].info.status == "KILLED"
    tracker = MlflowTracker(study, home)
    run = runs_of(home, "again")["study"]
    assert (run.info.status, run.data.tags["proseg.state"]) == ("RUNNING", "running")
    tracker.study_ended("finished", None, {}, "")
    assert runs_of(home, "again")["study"].info.status == "FINISHED"


def test_a_study_that_goes_on_elsewhere_keeps_what_it_was_begun_with(home: Path, store: Store):
    """MLflow refuses another value of a parameter; nothing of it may hold up what comes after."""
    study = make_study(home, store, name="elsewhere")
    MlflowTracker(study, home)
    changed = study.model_copy(update={"resources": study.resources.model_copy(update={"concurrent": 2})})
    assert MlflowTracker(changed, home).waiting == 0
    assert runs_of(home, "elsewhere")["study"].data.params["concurrent"] == "1"


def test_only_one_trial_is_the_best(home: Path, store: Store):
    study = make_study(home, store, name="best")
    first, second = add_trial(study, 0, 0.3), add_trial(study, 1, 0.2)
    MlflowTracker(study, home, [first, second]).study_ended("interrupted", first, {}, "")
    MlflowTracker(study, home, [first, second]).study_ended("finished", second, {}, "")
    best = [name for name, run in runs_of(home, "best").items() if run.data.tags.get("proseg.best") == "true"]
    assert best == ["t001"]


def test_the_report_on_the_data_is_sent_once_though_its_first_attempt_got_no_answer(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from mlflow import MlflowClient

    study = make_study(home, store, name="reported")
    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL, "orchestrator.tracking"):
        tracker = MlflowTracker(study, home)
        Outage(patch, EVERYTHING).down = True
        tracker.data_report(data_report(study))
        assert tracker.waiting == 3
    sent, log_artifact = [], MlflowClient.log_artifact

    def heard(client: Any, run: str, path: str, *rest: Any) -> None:
        sent.append(Path(path).name)
        log_artifact(client, run, path, *rest)

    monkeypatch.setattr(MlflowClient, "log_artifact", heard)
    for _ in range(3):
        MlflowTracker(study, home).data_report(data_report(study))
    assert [name for name in sent if name != "study.json"] == ["report.md", "samples.png"]
    assert files_of(home, runs_of(home, "reported")["study"], "data") == {"data/report.md", "data/samples.png"}


# The confirmation


def repeats(study: Study, store: Store, count: int = 2) -> list[Training]:
    return [
        Training(f"confirm t000 repeat {repeat}", study.config_of({}), study.data.folder, store.manifest.folds[0],
                 study.confirm_folder(0, repeat), print)
        for repeat in range(count)
    ]  # fmt: skip


def test_every_repeat_of_the_confirmation_has_a_run(home: Path, store: Store):
    study = make_study(home, store, name="confirmed")
    tracker, trainings = MlflowTracker(study, home), repeats(study, store)
    tracker.repeats_started(trainings)
    for repeat, training in enumerate(trainings):
        write_epochs(training.folder, [0.5, 0.25])
        (training.folder / "result.json").write_text("{}")
        tracker.repeat_ended(training, 0.3 + repeat)
    tracker.study_ended("finished", None, {}, "")
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
    tracker, trainings = MlflowTracker(study, home), repeats(study, store)
    tracker.repeats_started(trainings)
    for training in trainings:
        training.folder.mkdir(parents=True)
    (trainings[1].folder / "failure.json").write_text("{}")
    tracker.repeat_ended(trainings[0], 0.3)
    tracker.study_ended("finished", None, {}, "")
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
        tracker = MlflowTracker(study, home)
        tracker.repeats_started(trainings)
        tracker.repeat_ended(trainings[0], 0.3)
        tracker.study_ended(state, None, {}, "")
    found = runs_of(home, "confirms-on")
    assert len(found) == 4
    assert [step for step, *_ in history(home, found[trainings[0].name], "objective/ged")] == [1, 2]
