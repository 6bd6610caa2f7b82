"""Joining a cluster, and what is said to Ray; Ray itself is not started."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RayError

from orchestrator import session
from orchestrator.resources import Node
from orchestrator.study import StudyError

NODES = [
    {"NodeID": 56 * "a", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"NodeID": 56 * "b", "NodeManagerAddress": "10.0.0.2", "Alive": False, "Resources": {"CPU": 99.0}},
    {"NodeID": 56 * "c", "NodeManagerAddress": "10.0.0.3", "Alive": True, "Resources": {"CPU": 4.0}},
    {"NodeID": 56 * "d", "NodeManagerAddress": "10.0.0.4", "Alive": True, "Resources": {}},
]


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is said to Ray does not outlive the test."""
    for name in [*session.QUIET, *session.EQUAL, "RAY_AIR_NEW_OUTPUT", "TUNE_PRINT_ALL_TRIAL_ERRORS"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


# What is said to Ray


@pytest.mark.usefixtures("own_environment")
def test_ray_is_told_to_be_quiet_and_to_leave_ctrl_c_to_us():
    session.environment(local=True, verbose=False)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
    assert os.environ.items() >= session.EQUAL.items()
    assert (os.environ["RAY_AIR_NEW_OUTPUT"], os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"]) == ("0", "0")


@pytest.mark.usefixtures("own_environment")
def test_whoever_wants_to_hear_it_does():
    session.environment(local=False, verbose=True)
    assert (os.environ["RAY_AIR_NEW_OUTPUT"], os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"]) == ("1", "1")


@pytest.mark.usefixtures("own_environment")
def test_what_a_user_has_said_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    session.environment(local=True, verbose=False)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


# A workspace that all nodes see


def test_a_node_that_sees_the_workspace_has_nothing_to_say_and_leaves_nothing_there(tmp_path: Path):
    mark = tmp_path / "mark"
    mark.write_text("ours")
    assert session._sees(str(mark)) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


def test_a_node_that_sees_something_else_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert session._sees(str(tmp_path / "mark")) == "No such file or directory"
    (tmp_path / "mark").write_text("theirs")
    assert session._sees(str(tmp_path / "mark")) == "it sees another folder there"

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    (tmp_path / "mark").write_text("ours")
    monkeypatch.setattr(Path, "write_text", refused)
    assert session._sees(str(tmp_path / "mark")) == "Read-only file system"


class Cluster:
    """In the place of Ray: nodes on which a function answers as `says`, by the first letter of the node's id."""

    def __init__(self, patch: pytest.MonkeyPatch, says: Callable[[str], str] = lambda node: ""):
        self.says, self.joined, self.left = says, list[tuple[str, dict[str, Any]]](), 0
        self.asked = list[str]()
        patch.setattr(session, "no_cluster", lambda address, folder: "")
        patch.setattr(ray, "init", self._init)
        patch.setattr(ray, "shutdown", self._shutdown)
        patch.setattr(ray, "nodes", lambda: NODES)
        patch.setattr(ray, "remote", lambda **_: lambda function: self)
        patch.setattr(ray, "get", lambda answer, timeout: answer())

    def _init(self, address: str, **more: Any) -> None:
        self.joined.append((address, more))

    def _shutdown(self) -> None:
        self.left += 1

    def options(self, *, scheduling_strategy: Any) -> Any:
        node = scheduling_strategy.node_id[0]
        self.asked.append(node)
        return SimpleNamespace(remote=lambda mark: lambda: self.says(node))


def test_every_node_that_lives_is_asked_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(monkeypatch)
    session.check_shared(tmp_path)
    assert cluster.asked == ["a", "c", "d"]
    assert list(tmp_path.iterdir()) == []


def lost(node: str) -> str:
    raise RayError("the node died\nand more")


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (
            lambda node: "No such file or directory" if node == "c" else "",
            "node 10.0.0.3 .* (No such file or directory)",
        ),
        (lost, "node 10.0.0.1 .* (the node died)"),
    ],
)
def test_a_node_that_does_not_see_the_workspace_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[[str], str], words: str
):
    Cluster(monkeypatch, says)
    with pytest.raises(StudyError, match=words.replace("(", r"\(").replace(")", r"\)")) as error:
        session.check_shared(tmp_path)
    assert f"cannot use the workspace {tmp_path}" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


# Joining


@pytest.mark.usefixtures("own_environment")
def test_a_cluster_is_joined_with_our_code_and_left_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(monkeypatch)
    with session.joined("10.0.0.1:6379", tmp_path / "home", verbose=False) as nodes:
        assert nodes == [Node(cpus=8, gpus=2), Node(cpus=4, gpus=0), Node(cpus=0, gpus=0)]
        assert cluster.left == 0
    ((address, more),) = cluster.joined
    assert address == "10.0.0.1:6379"
    modules = more["runtime_env"]["py_modules"]
    assert [Path(module).name for module in modules] == ["orchestrator", "proseg", "search_spaces"]
    assert all(Path(module).is_dir() for module in modules)
    assert cluster.left == 1
    assert (tmp_path / "home").is_dir()


@pytest.mark.usefixtures("own_environment")
def test_a_cluster_is_left_when_its_nodes_do_not_see_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(monkeypatch, lambda node: "it sees another folder there")
    refused = pytest.raises(StudyError, match="PROSEG_HOME must be a folder that all nodes share")
    with refused, session.joined("auto", tmp_path, verbose=False):
        raise AssertionError("it was joined")
    assert cluster.left == 1


@pytest.mark.usefixtures("own_environment")
def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def nobody(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify one")

    monkeypatch.setattr(session, "no_cluster", lambda address, folder: "")
    monkeypatch.setattr(ray, "init", nobody)
    refused = pytest.raises(StudyError, match=r"--address auto: no Ray cluster .*RAY_AUTH_TOKEN")
    with refused as error, session.joined("auto", tmp_path, verbose=False):
        raise AssertionError("it was joined")
    assert "Could not find any running Ray instance." in str(error.value)
    assert "\n" not in str(error.value)


def test_without_an_address_nothing_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(monkeypatch)
    with session.joined(None, tmp_path, verbose=False) as nodes:
        assert nodes is None
    assert (cluster.joined, cluster.left) == ([], 0)


# When our own Ray has ended


def test_whoever_outlives_it_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "SECONDS_TO_END", 0.05)
    started = [subprocess.Popen(["sleep", seconds]) for seconds in ("1000", "0")]
    processes = [psutil.Process(process.pid) for process in started]
    session._see_off(processes)
    assert not any(process.is_running() for process in processes)
    for process in started:
        process.wait()
