"""What can go wrong while a study runs, done to a real one: nothing is lost, nothing is counted twice.

A study with one trial at a time is seeded to the bit, so whatever happened to it, it must end like the one to which
nothing did.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.results import Trial, read_trials
from orchestrator.study import Study, find_study, read_state
from proseg.records import read_epochs
from tests.places import SEARCH, Place, wait_for, wait_for_epoch
from tests.studies import make_store

pytestmark = pytest.mark.slow

TRIALS, EPOCHS = 4, 6
FAULTS = Path(__file__).parent / "faults"


@dataclass(frozen=True)
class Faulty(Place):
    """A place whose trainings can be made to go wrong."""

    def environment(self, **more: str) -> dict[str, str]:
        self.faults.mkdir(exist_ok=True)
        return super().environment(PROSEG_TEST_FAULTS=str(self.faults), PYTHONPATH=str(FAULTS), **more)

    @property
    def faults(self) -> Path:
        return self.folder / "faults"

    def put(self, fault: str, content: str = "") -> None:
        (self.faults / fault).write_text(content)

    def launch(self, study: str, *words: str, **more: str) -> subprocess.Popen[str]:
        file = self.space(
            budget={"trials": TRIALS, "epochs": EPOCHS}, scheduler={"grace_epochs": 2},
            search=SEARCH | {"optim.lr": {"kind": "choice", "values": [0.001, 0.003]}},
        )  # fmt: skip
        return self.begin("launch", file, "--no-final", "--concurrent", "1", "--study", study, *words, **more)

    def study(self, name: str) -> Study:
        return find_study(self.home, name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    folder = tmp_path_factory.mktemp("faults")
    place = Faulty(folder, make_store(folder / "blobs"))
    place.environment()
    place.put("slow", "0.05")
    return place


@pytest.fixture(scope="module")
def undisturbed(place: Faulty) -> list[Trial]:
    """How the study ends to which nothing happens."""
    process = place.launch("undisturbed")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return read_trials(place.study("undisturbed"))


def told(trials: list[Trial]) -> list[tuple[Any, ...]]:
    """What must not depend on what happened on the way."""
    return [(t.number, t.values, t.state, t.epoch, t.objective, t.reason) for t in trials]


def check_whole(place: Faulty, name: str, undisturbed: list[Trial]) -> list[Trial]:
    """The study has ended like the one to which nothing happened, and every record of it agrees."""
    import optuna

    study = place.study(name)
    trials = read_trials(study)
    assert told(trials) == told(undisturbed)
    assert read_state(study) == "finished"
    kept = optuna.load_study(study_name="mine", storage=f"sqlite:///{study.folder}/optuna.db").trials
    words = {"complete": "COMPLETE", "stopped early": "PRUNED"}
    assert [trial.state.name for trial in kept] == [words[trial.state] for trial in trials]
    assert [trial.params for trial in kept] == [trial.values for trial in trials]
    check_mlflow(place, name, trials)
    return trials


def check_mlflow(place: Faulty, name: str, trials: list[Trial]) -> None:
    from mlflow import MlflowClient

    client, runs = MlflowClient(f"sqlite:///{place.home}/mlflow/mlflow.db"), place.mlflow_runs(name)
    assert set(runs) == {"study", *(trial.name for trial in trials)}
    for trial in trials:
        run = runs[trial.name]
        assert (run.data.tags["proseg.state"], run.info.status) == (trial.state, "FINISHED")
        points = client.get_metric_history(run.info.run_id, "objective/ged")
        assert [point.step for point in points] == list(range(1, trial.epoch + 1))
        assert points[-1].value == trial.objective


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, out + err
    assert "Traceback" not in out + err
    return out + err


def resume(place: Faulty, name: str) -> str:
    return finish(place.begin("resume", name))


def find(place: Faulty, *words: str) -> list[int]:
    return [pid for pid, command in place.processes().items() if any(word in command for word in words)]


# While it goes on by itself


@pytest.mark.parametrize("victim", ["ray::Rank", "ray::ImplicitFunc"])
def test_a_process_that_is_killed_costs_the_epoch_under_way(place: Faulty, undisturbed: list[Trial], victim: str):
    name = f"killed-{victim[5:]}"
    process = place.launch(name)
    wait_for_epoch(process, "t001", 2)
    (pid,) = find(place, victim)
    os.kill(pid, signal.SIGKILL)
    finish(process)
    assert place.left_behind() == []
    trials = check_whole(place, name, undisturbed)
    if victim == "ray::Rank":
        assert any("a training process was lost" in retry for trial in trials for retry in trial.retries)


def test_a_trial_that_raises_fails_alone_and_says_why(place: Faulty):
    process = place.launch("raises")
    wait_for_epoch(process, "t001", 1)
    place.put("raise")
    out = finish(process)
    trials = read_trials(place.study("raises"))
    broken = [trial for trial in trials if trial.state == "failed"]
    assert len(trials) == TRIALS
    assert [trial.reason for trial in broken] == ["ValueError: a bug that a test put there"]
    assert "a bug that a test put there" in out
    failure = json.loads((place.study("raises").trial_folder(broken[0].number) / "failure.json").read_text())
    assert "train_step" in failure["traceback"]
    told_of = json.loads(place.run("explain", broken[0].name, "raises", "--json").stdout)
    assert told_of["reason"] == broken[0].reason
    assert place.mlflow_runs("raises")[broken[0].name].info.status == "FAILED"


def test_a_trial_that_is_out_of_memory_is_tried_once_more(place: Faulty, undisturbed: list[Trial]):
    process = place.launch("memory")
    wait_for_epoch(process, "t001", 1)
    place.put("memory")
    finish(process)
    trials = check_whole(place, "memory", undisturbed)
    assert sum("out of memory" in retry for trial in trials for retry in trial.retries) == 1


def test_a_rank_that_hangs_is_started_anew(place: Faulty, undisturbed: list[Trial]):
    process = place.launch("hangs", "--epoch-timeout", "30s")
    wait_for_epoch(process, "t001", 1)
    place.put("hang")
    finish(process)
    trials = check_whole(place, "hangs", undisturbed)
    assert any("no epoch was finished in 30 s (--epoch-timeout)" in r for trial in trials for r in trial.retries)


def test_a_write_that_finds_no_space_is_done_again(place: Faulty, undisturbed: list[Trial]):
    process = place.launch("no-space")
    wait_for_epoch(process, "t001", 1)
    place.put("disk")
    finish(process)
    check_whole(place, "no-space", undisturbed)


# When the whole of it is ended, and goes on


def test_a_driver_killed_ten_times_loses_nothing(place: Faulty, undisturbed: list[Trial]):
    rng = random.Random(0)
    process = place.launch("driver")
    wait_for(process, "search: begun")
    for _ in range(10):
        time.sleep(rng.uniform(0, 7))
        process.kill()
        process.communicate()
        wait_until_gone(place)
        if read_state(place.study("driver")) == "finished":
            break
        process = place.begin("resume", "driver")
    finish(process) if process.poll() is None else resume(place, "driver")
    check_whole(place, "driver", undisturbed)


def wait_until_gone(place: Faulty, seconds: float = 120) -> None:
    """Ray ends with the process that started it."""
    deadline = time.monotonic() + seconds
    while place.left_behind():
        assert time.monotonic() < deadline, place.left_behind()
        time.sleep(0.2)


@pytest.mark.parametrize("victim", ["gcs_server", "raylet/raylet"])
def test_a_ray_head_that_is_killed_ends_the_study_with_a_word(place: Faulty, undisturbed: list[Trial], victim: str):
    name = f"head-{victim[:3]}"
    process = place.launch(name)
    wait_for_epoch(process, "t001", 1)
    os.kill(find(place, victim)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 1, out + err
    assert f"proseg-tune resume {name}" in out
    assert read_state(place.study(name)) == "interrupted"
    wait_until_gone(place)
    resume(place, name)
    check_whole(place, name, undisturbed)


def test_a_last_checkpoint_that_is_damaged_costs_one_epoch_more(place: Faulty, undisturbed: list[Trial]):
    process = place.launch("damaged")
    wait_for_epoch(process, "t000", 3)
    process.kill()
    process.communicate()
    wait_until_gone(place)
    last = place.study("damaged").trial_folder(0) / "last.safetensors"
    last.write_bytes(last.read_bytes()[:100])
    resume(place, "damaged")
    check_whole(place, "damaged", undisturbed)


def test_ctrl_c_once_finishes_the_epoch_and_twice_ends_at_once(place: Faulty, undisturbed: list[Trial]):
    process = place.launch("ctrl-c")
    wait_for_epoch(process, "t001", 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 130, out + err
    assert "stopping when the epochs under way are finished" in out
    assert "proseg-tune resume" in err
    stopped = read_trials(place.study("ctrl-c"))[-1]
    finished = read_epochs(place.study("ctrl-c").trial_folder(stopped.number))
    assert (stopped.state, stopped.epoch) == ("interrupted", len(finished))
    process = place.begin("resume", "ctrl-c")
    wait_for_epoch(process, "t002", 1)
    place.put("slow", "5")
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping when")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    place.put("slow", "0.05")
    assert process.returncode == 130, out + err
    assert place.left_behind() == []
    resume(place, "ctrl-c")
    check_whole(place, "ctrl-c", undisturbed)


def test_a_study_is_stopped_from_elsewhere_and_only_one_process_goes_on_with_it(
    place: Faulty, undisturbed: list[Trial]
):
    process = place.launch("stopped")
    wait_for_epoch(process, "t001", 1)
    second = place.run("resume", "stopped")
    assert second.returncode == 2
    assert "is running already" in second.stderr
    assert place.run("stop", "stopped").returncode == 0
    out, err = process.communicate(timeout=150)
    assert process.returncode == 130, out + err
    again = place.run("stop", "stopped")
    assert again.returncode == 2
    assert "is not running" in again.stderr
    both = [place.begin("resume", "stopped") for _ in range(2)]
    ended = {(one.communicate(timeout=240)[1] and one.returncode) or one.returncode for one in both}
    assert ended == {0, 2}
    check_whole(place, "stopped", undisturbed)
    finished = place.run("resume", "stopped")
    assert finished.returncode == 0
    assert "is finished; there is nothing to go on with" in finished.stdout
    check_whole(place, "stopped", undisturbed)


def test_confirmation_and_final_stage_go_on_where_they_were(tmp_path: Path, place: Faulty):
    place = Faulty(tmp_path, place.store)
    place.environment()
    file = place.space(
        budget={"trials": 2, "epochs": 2}, scheduler={"kind": "none"}, final=[{"data": str(place.store.folder),
        "epochs": 2}], search=SEARCH | {"optim.lr": {"kind": "choice", "values": [0.001, 0.003]}},
    )  # fmt: skip
    words = (file, "--concurrent", "1", "--confirm", "2", "--json")
    whole = json.loads(finish(place.begin("launch", *words, "--study", "whole")).split("\n}")[0] + "}")
    place.put("slow", "0.1")
    process = place.begin("launch", *words[:-1], "--study", "broken")
    wait_for(process, "confirm t")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 130, out + err
    process = place.begin("resume", "broken")
    wait_for_epoch(process, "final blobs fold 1", 1)
    process.kill()
    process.communicate()
    wait_until_gone(place)
    resume(place, "broken")
    again = json.loads(place.run("best", "broken", "--json").stdout)
    for name in ("trial", "folds", "confirmation"):
        assert again[name] == whole[name], name
    assert set(place.mlflow_runs("broken")) == set(place.mlflow_runs("whole"))


def test_databases_that_are_gone_are_made_again_from_the_log(tmp_path: Path, place: Faulty, undisturbed: list[Trial]):
    """In a workspace of its own: MLflow keeps a store open that this process has once read."""
    place = Faulty(tmp_path, place.store)
    place.environment()
    place.put("slow", "0.05")
    process = place.launch("rebuilt")
    wait_for_epoch(process, "t002", 1)
    process.kill()
    process.communicate()
    wait_until_gone(place)
    (place.study("rebuilt").folder / "optuna.db").write_bytes(b"no database")
    shutil.rmtree(place.home / "mlflow")
    resume(place, "rebuilt")
    check_whole(place, "rebuilt", undisturbed)
    assert (place.study("rebuilt").folder / "optuna.damaged").read_bytes() == b"no database"


# A disk that is really full


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 160 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: run the test as root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # MLflow may still hold its database open


def test_a_full_disk_pauses_the_study(small_disk: Path, undisturbed: list[Trial]):
    place = Faulty(small_disk, make_store(small_disk / "blobs"))
    place.environment()
    place.put("slow", "0.05")
    process = place.launch("full")
    wait_for_epoch(process, "t001", 1)
    ballast = small_disk / "ballast"
    with open(ballast, "wb") as file:
        while (free := shutil.disk_usage(small_disk).free) > 4096:
            file.write(bytes(min(free - 4096, 2**20)))
            file.flush()
    wait_for(process, "the study is paused")
    assert read_state(place.study("full")) == "running"
    ballast.unlink()
    finish(process)
    check_whole(place, "full", undisturbed)
