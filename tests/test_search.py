"""The whole of it: a search with Ray, the final stage and MLflow, as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.results import median_objective, read_trials
from orchestrator.study import Study, find_study, read_state
from proseg.data.store import Store
from tests.studies import make_store, space_values

pytestmark = pytest.mark.slow

PROGRAM = str(Path(sys.executable).parent / "proseg-tune")
SEARCH = {
    # A learning rate that breaks the first epoch: one of many trials must fail, and only it.
    "optim.lr": {"kind": "choice", "values": [0.001, 0.003, 1e30]},
    "model.tau_size": {"kind": "int", "low": 2, "high": 6},
    "loss.beta_z": {"kind": "float", "low": 0.001, "high": 1.0, "log": True},
}


@dataclass(frozen=True)
class Place:
    """A folder with a store, a space and a workspace of its own."""

    folder: Path
    store: Store

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PROSEG_"))}
        return inherited | {"PROSEG_HOME": str(self.home)} | more

    def space(self, **changes: Any) -> str:
        defaults = {"data": str(self.store.folder), "search": SEARCH, "scheduler": {"grace_epochs": 1}}
        values = space_values(**(defaults | changes))
        del values["base"]["optim.grad_clip"]
        path = self.folder / "mine.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in values.items()))
        return str(path)

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *words], cwd=self.folder, env=self.environment(**more), capture_output=True, text=True,
            timeout=400, check=False,
        )  # fmt: skip

    def left_behind(self) -> list[str]:
        """Processes that have this workspace in their environment: ours, Ray's, and their children."""
        mark, found = f"PROSEG_HOME={self.home}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
            except OSError:
                continue  # it has ended, or is somebody else's
        return found


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("search")
    return Place(folder, make_store(folder / "blobs"))


@dataclass(frozen=True)
class Launched:
    place: Place
    result: subprocess.CompletedProcess[str]
    left_behind: list[str]

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.result.stdout)

    @property
    def study(self) -> Study:
        return find_study(self.place.home, "s1")


@pytest.fixture(scope="module")
def launched(place: Place) -> Launched:
    """One search of eight trials with its final stage."""
    file = place.space(
        budget={"trials": 8, "epochs": 3}, final=[{"data": str(place.store.folder), "epochs": 2}]
    )  # fmt: skip
    result = place.run("launch", file, "--json", "--study", "s1", "--concurrent", "1")
    return Launched(place, result, place.left_behind())


def mlflow_runs(uri: str, study: str) -> dict[str, Any]:
    """{uid within the study: run}."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("proseg-tune/mine")
    found = client.search_runs([experiment.experiment_id], f"tags.`proseg.study` = '{study}'", max_results=100)
    return {run.data.tags["proseg.uid"].removeprefix(f"{study}/"): run for run in found}


@pytest.fixture(scope="module")
def runs(launched: Launched) -> dict[str, Any]:
    return mlflow_runs(f"sqlite:///{launched.place.home}/mlflow/mlflow.db", "s1")


# A search that goes well


def test_it_ends_well_and_quietly(launched: Launched):
    assert launched.result.returncode == 0, launched.result.stderr
    everything = launched.result.stdout + launched.result.stderr
    assert [word for word in ("Traceback", "Warning", "WARNING", "ERROR") if word in everything] == [], everything


def test_no_process_is_left(launched: Launched):
    assert launched.left_behind == []


def test_its_answer_is_json_with_what_a_script_needs(launched: Launched):
    assert set(launched.record) >= {"study", "trial", "config", "objective", "folds", "export"}
    assert launched.record["study"] == "s1"
    assert launched.record["objective"]["metric"] == "ged"
    assert [(fold["fold"], fold["cases"]) for fold in launched.record["folds"]] == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_every_trial_ended_one_way_or_another(launched: Launched):
    trials = read_trials(launched.study)
    assert [trial.number for trial in trials] == list(range(8))
    assert {trial.state for trial in trials} == {"complete", "stopped early", "failed"}
    assert read_state(launched.study) == "finished"


def test_a_trial_that_fails_is_recorded_with_its_reason(launched: Launched):
    trials = read_trials(launched.study)
    broken = [trial for trial in trials if trial.values["optim.lr"] == 1e30]
    assert broken == [trial for trial in trials if trial.state == "failed"]
    assert all("loss is not finite in epoch 1" in trial.reason for trial in broken)
    assert all(trial.reason.startswith("ASHA: epoch ") for trial in trials if trial.state == "stopped early")
    assert broken[0].number < 7, "the study went on after it"


def test_the_winner_is_better_than_the_median(launched: Launched):
    trials = read_trials(launched.study)
    median = median_objective(trials)
    assert median is not None
    assert launched.record["objective"]["value"] < median
    best = trials[launched.record["trial"]]
    assert (best.state, best.objective) == ("complete", launched.record["objective"]["value"])


def test_optuna_agrees_with_the_log(launched: Launched):
    import optuna

    kept = optuna.load_study(study_name="mine", storage=f"sqlite:///{launched.study.folder}/optuna.db").trials
    words = {"complete": "COMPLETE", "stopped early": "PRUNED", "failed": "FAIL"}
    assert [trial.state.name for trial in kept] == [words[trial.state] for trial in read_trials(launched.study)]


def test_mlflow_agrees_with_the_log(launched: Launched, runs: dict[str, Any]):
    trials = read_trials(launched.study)
    assert {name for name in runs if name.startswith("t")} == {trial.name for trial in trials}
    for trial in trials:
        run = runs[trial.name]
        assert run.data.tags["proseg.state"] == trial.state
        assert run.info.status == ("FAILED" if trial.state == "failed" else "FINISHED")
        assert float(run.data.params["optim/lr"]) == trial.values["optim.lr"]
        assert run.data.metrics.get("objective/ged") == trial.objective
    assert len({tuple(sorted(runs[trial.name].data.params.items())) for trial in trials}) == len(trials)


def test_the_same_numbers_stand_everywhere(launched: Launched, runs: dict[str, Any]):
    best = json.loads(launched.place.run("best", "s1", "--json").stdout)
    assert best == launched.record
    final = json.loads((launched.study.folder / "final.json").read_text())
    assert final["folds"] == best["folds"]
    mean = sum(fold["metrics"]["ged"] for fold in best["folds"]) / 4
    assert final["summary"]["blobs"]["ged"]["mean"] == pytest.approx(mean)
    assert runs["study"].data.metrics["cv/blobs/ged_mean"] == pytest.approx(mean)
    assert runs["study"].data.metrics["objective/ged"] == best["objective"]["value"]
    for fold in best["folds"]:
        assert runs[f"final/blobs/{fold['fold']}"].data.metrics["test/ged"] == fold["metrics"]["ged"]
    assert {run.info.status for name, run in runs.items() if not name.startswith("t")} == {"FINISHED"}


def test_only_the_best_and_the_last_checkpoint_are_kept(launched: Launched):
    for trial in read_trials(launched.study):
        weights = {path.name for path in launched.study.trial_folder(trial.number).rglob("*.safetensors")}
        assert weights == (set() if trial.state == "failed" else {"best.safetensors", "last.safetensors"})


def test_the_winner_can_be_taken_away(launched: Launched):
    import proseg

    target = launched.place.folder / "model"
    result = launched.place.run("best", "s1", "--export", str(target), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["export"] == str(target)
    assert proseg.load(target).config.flat()["epochs"] == 2


# Two ranks a trial, and a store elsewhere


def test_two_workers_and_a_store_that_the_user_names(place: Place):
    uri = f"sqlite:///{place.folder}/elsewhere.db"
    words = ("--workers", "2", "--trials", "2", "--no-final", "--study", "ranks", "--data", str(place.store.folder))
    result = place.run("launch", place.space(), *words, MLFLOW_TRACKING_URI=uri)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert place.left_behind() == []
    assert set(mlflow_runs(uri, "ranks")) == {"study", "t000", "t001"}
    study = find_study(place.home, "ranks")
    assert study.resources.workers == 2
    assert all(trial.state in ("complete", "stopped early", "failed") for trial in read_trials(study))


# Early stopping


def test_a_trial_that_converges_is_complete_and_says_why(place: Place):
    """A learning rate at which nothing moves: the first epoch remains the best."""
    base = space_values("")["base"] | {"patience": 2}
    search = SEARCH | {"optim.lr": {"kind": "fixed", "value": 1e-9}}
    file = place.space(base=base, search=search, budget={"trials": 2, "epochs": 12}, scheduler={"kind": "none"})
    result = place.run("launch", file, "--no-final", "--study", "patient", "--concurrent", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert place.left_behind() == []
    trials = read_trials(find_study(place.home, "patient"))
    assert [trial.state for trial in trials] == ["complete", "complete"]
    for trial in trials:
        assert trial.epoch < 12
        assert trial.reason == "converged: not better for 2 epochs"


# Searches that are ended


def begin(place: Place, *words: str) -> subprocess.Popen[str]:
    """A search that would take minutes."""
    file = place.space(
        budget={"trials": 4, "epochs": 5000}, scheduler={"kind": "none"},
        search={name: dimension for name, dimension in SEARCH.items() if name != "optim.lr"},
    )  # fmt: skip
    # Started by a shell in the background, these tests would hand down an ignored Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [PROGRAM, "launch", file, "--no-final", "--concurrent", "1", *words], cwd=place.folder,
            env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for_epoch(process: subprocess.Popen[str], seconds: float = 120) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    for line in process.stdout:
        if "epoch" in line and "best" in line:
            return
        assert time.monotonic() < deadline, "no epoch was reported"
    raise AssertionError(f"it ended before its first epoch: {process.communicate()[1]}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_interrupted_keeps_what_it_has(place: Place, number: signal.Signals):
    name = number.name.lower()
    process = begin(place, "--study", name)
    try:
        wait_for_epoch(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert "interrupted" in err
    assert place.left_behind() == []
    study = find_study(place.home, name)
    assert read_state(study) == "interrupted"
    assert {trial.state for trial in read_trials(study)} == {"interrupted"}
    runs = mlflow_runs(f"sqlite:///{place.home}/mlflow/mlflow.db", name)
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    status = json.loads(place.run("status", name, "--json").stdout)
    assert status["state"] == "interrupted"
    assert status["trials"][0]["epoch"] >= 1


def test_a_search_whose_time_is_over_has_a_winner(place: Place):
    process = begin(place, "--study", "timed", "--max-time", "15s", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "Traceback" not in out + err
    study = find_study(place.home, "timed")
    assert read_state(study) == "finished"
    assert "running" not in {trial.state for trial in read_trials(study)}
    assert json.loads(out)["objective"]["value"] > 0


def test_a_search_without_time_for_an_epoch_says_so(place: Place):
    process = begin(place, "--study", "hasty", "--max-time", "0.1s")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert "Traceback" not in out + err
    assert "--max-time" in err
    assert read_state(find_study(place.home, "hasty")) == "failed"


def test_a_search_of_which_every_trial_fails_says_why(place: Place):
    file = place.space(search=SEARCH | {"optim.lr": {"kind": "fixed", "value": 1e30}})
    result = place.run("launch", file, "--no-final", "--trials", "2", "--study", "doomed")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "the loss is not finite" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert read_state(find_study(place.home, "doomed")) == "failed"
    assert place.left_behind() == []
