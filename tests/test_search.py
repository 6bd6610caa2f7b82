"""The whole of it: a search with Ray, the final stage and MLflow, as a user starts it."""

import json
import os
import signal
import subprocess
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.results import median_objective, read_trials
from orchestrator.study import Study, find_study, read_state
from proseg.records import read_epochs
from search_spaces import find_space
from tests.places import SEARCH, Place, mlflow_runs, wait_for_epoch
from tests.studies import make_store, space_values

pytestmark = pytest.mark.slow


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
    assert all(trial.reason.startswith("ASHA: rank ") for trial in trials if trial.state == "stopped early")
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


def test_of_what_has_ended_only_the_best_weights_are_kept(launched: Launched):
    for trial in read_trials(launched.study):
        weights = {path.name for path in launched.study.trial_folder(trial.number).rglob("*.safetensors")}
        assert weights == (set() if trial.state == "failed" else {"best.safetensors"})
    folds = [path.name for path in (launched.study.folder / "final").rglob("*.safetensors")]
    assert folds == 4 * ["best.safetensors"]


def test_the_winner_can_be_taken_away(launched: Launched):
    import proseg

    target = launched.place.folder / "model"
    result = launched.place.run("best", "s1", "--export", str(target), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["export"] == str(target)
    assert proseg.load(target).config.flat()["epochs"] == 2


def test_as_many_trials_as_there_is_room_for_train_at_a_time_to_the_end(place: Place):
    """A seat that an ended trial kept would halve the rest of the study, which nothing else would tell."""
    file = place.space(
        budget={"trials": 6, "epochs": 2}, search=SEARCH | {"optim.lr": {"kind": "choice", "values": [0.001, 0.003]}},
        final=[{"data": str(place.store.folder), "epochs": 1}],
    )  # fmt: skip
    slow = {"PROSEG_TEST_FAULTS": str(place.folder), "PYTHONPATH": str(Path(__file__).parent / "faults")}
    (place.folder / "slow").write_text("1.5")  # an epoch takes longer than Tune waits for a trial to end
    result = place.run("launch", file, "--study", "two", "--concurrent", "2", "--confirm", "0", **slow)
    (place.folder / "slow").unlink()
    assert result.returncode == 0, result.stderr
    folds = [read_epochs(folder) for folder in find_study(place.home, "two").folder.glob("final/*/*")]
    spans = sorted((fold[0]["time"] - fold[0]["seconds"], fold[-1]["time"]) for fold in folds)
    assert any(later < end for (_, end), (later, _) in pairwise(spans)), spans


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
    return place.begin("launch", file, "--no-final", "--concurrent", "1", *words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_search_that_is_interrupted_keeps_what_it_has(place: Place, number: signal.Signals):
    name = number.name.lower()
    process = begin(place, "--study", name)
    try:
        wait_for_epoch(process, "", 1)
        if number == signal.SIGHUP:  # a terminal that is closed tells its whole group
            for child in psutil.Process(process.pid).children(recursive=True):
                if os.getpgid(child.pid) == os.getpgid(process.pid):
                    child.send_signal(number)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert ("stopped; `proseg-tune resume`" if number == signal.SIGINT else "interrupted") in err
    assert place.left_behind() == []
    study = find_study(place.home, name)
    assert read_state(study) == "interrupted"
    assert {trial.state for trial in read_trials(study)} == {"interrupted"}
    runs = mlflow_runs(f"sqlite:///{place.home}/mlflow/mlflow.db", name)
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    status = json.loads(place.run("status", name, "--json").stdout)
    assert status["state"] == "interrupted"
    assert status["trials"][0]["epoch"] >= 1


def test_nothing_listens_on_anything_but_loopback(place: Place):
    process = begin(place, "--study", "local", "--workers", "2")
    try:
        wait_for_epoch(process, "", 1)
        found = place.listening()
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert found
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


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


# NPC


def test_npc_goes_from_its_files_to_an_exported_model(tmp_path: Path):
    """npc.toml itself, on the stand-in, but for what makes it a GPU's job."""
    from mlflow import MlflowClient

    place = Place(tmp_path, make_store(tmp_path / "blobs"))
    assert place.run("data", "standin", "npc", "--subjects", "4,2,2", "--out", "files").returncode == 0
    prepared = place.run("data", "prepare", "npc", "--from", "files", "--name", "npc")
    assert "next: proseg-tune launch npc" in prepared.stdout, prepared.stderr
    found = find_space("npc")
    whole = tomllib.loads(Path(found.file).read_text(encoding="utf-8"))
    small = {"base": {"model.width": 4, "model.levels": 3}, "budget": {"trials": 2, "epochs": 1}, "confirm": {"top": 0},
             "final": [{"data": "npc", "epochs": 1}]}  # fmt: skip
    launched = place.run("launch", place.write(whole | small), "--study", "n")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "NPC stand-in: synthetic volumes, no patient, no expert." in launched.stdout
    best = place.run("best", "n", "--export", "model", "--json")
    assert best.returncode == 0, best.stderr
    assert json.loads(best.stdout)["folds"][0]["data"] == "npc-standin"
    assert "synthetic" in (tmp_path / "model" / "README.md").read_text()
    run = place.mlflow_runs("n")["study"]
    logged = MlflowClient(f"sqlite:///{place.home}/mlflow/mlflow.db").list_artifacts(run.info.run_id, "data")
    assert "data/report.md" in {entry.path for entry in logged}
