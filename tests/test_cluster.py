"""A cluster that is joined: several Ray nodes on this machine, one of which dies."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.results import read_trials
from orchestrator.study import find_study
from tests.places import SEARCH, Place, wait_for, wait_for_epoch
from tests.studies import make_store

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Faulty(Place):
    """Its trainings take their time."""

    def environment(self, **more: str) -> dict[str, str]:
        faults = self.folder / "faults"
        faults.mkdir(exist_ok=True)
        (faults / "slow").write_text("0.1")
        return super().environment(PROSEG_TEST_FAULTS=str(faults), PYTHONPATH=str(HERE / "faults"), **more)


@pytest.fixture
def place(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path, make_store(tmp_path / "blobs"))


@dataclass(frozen=True)
class Cluster:
    process: subprocess.Popen[str]
    address: str

    def kill_a_node(self) -> None:
        assert self.process.stdin is not None
        print("kill", file=self.process.stdin, flush=True)
        wait_for(self.process, "killed")


@contextmanager
def cluster(place: Place, nodes: int, **more: str) -> Iterator[Cluster]:
    """A head and so many more nodes, one core each."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "cluster.py"), str(nodes)], env=place.environment(**more), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Cluster(process, wait_for(process, ":")[-1].strip())
    finally:
        process.communicate("end\n", timeout=120)


def test_trials_run_on_all_nodes_and_the_study_outlives_one_of_them(place: Faulty):
    file = place.space(
        budget={"trials": 5, "epochs": 30}, scheduler={"kind": "none"},
        search=SEARCH | {"optim.lr": {"kind": "choice", "values": [0.001, 0.003]}},
    )  # fmt: skip
    with cluster(place, 2) as found:
        process = place.begin("launch", file, "--study", "c", "--no-final", "--address", found.address)
        lines = wait_for_epoch(process, "t002", 3)
        assert "3 at a time" in lines[0], "a core on each of three nodes"
        found.kill_a_node()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        assert "Traceback" not in out + err
    trials = read_trials(find_study(place.home, "c"))
    assert [(trial.number, trial.state, trial.epoch) for trial in trials] == [(n, "complete", 30) for n in range(5)]
    assert any("a training process was lost" in retry for trial in trials for retry in trial.retries)
    assert set(place.mlflow_runs("c")) == {"study", *(trial.name for trial in trials)}


def test_ranks_of_a_trial_on_two_nodes_train_together(place: Faulty):
    with cluster(place, 1) as found:
        words = ("--workers", "2", "--trials", "1", "--no-final", "--study", "two", "--address", found.address)
        result = place.run("launch", place.space(), *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert read_trials(find_study(place.home, "two"))[0].state == "complete"


def test_a_cluster_lets_in_who_has_its_token(place: Faulty):
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with cluster(place, 0, **secret) as found:
        words = ("launch", place.space(), "--dry-run", "--json", "--address", found.address)
        let_in = place.run(*words, **secret)
        assert let_in.returncode == 0, let_in.stderr
        assert json.loads(let_in.stdout)["resources"]["cpus"] == 1
        kept_out = place.run(*words, **secret | {"RAY_AUTH_TOKEN": TOKEN[::-1]})
    assert kept_out.returncode == 2, kept_out.stderr
    assert "no Ray cluster can be joined" in kept_out.stderr
    assert "RAY_AUTH_TOKEN" in kept_out.stderr
    assert "Traceback" not in kept_out.stderr
    assert not (place.home / "studies").exists()
