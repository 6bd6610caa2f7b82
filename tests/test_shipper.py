"""Shipping while a study runs: a server of our own that ends with us, and servers that die, hang and come back."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from mlflow.exceptions import MlflowException

from orchestrator import server as serving
from orchestrator import shipper as shipping
from orchestrator.results import Trial
from orchestrator.sender import _is_final
from orchestrator.server import LocalServer
from orchestrator.shipper import Shipper, sync
from orchestrator.stores import check_store, local_uri, store_name, without_password
from orchestrator.study import Study, StudyError, alone
from orchestrator.tracking import SpoolTracker
from proseg.data.store import Store
from tests.studies import add_trial, make_study


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


class Heard:
    """A watcher."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.said: list[str | None] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def tracking(self, text: str | None) -> None:
        self.said.append(text)


def until(true: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


@pytest.fixture
def direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The workspace's store without a server; looked at without pauses."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_uri(tmp_path))
    monkeypatch.setattr(shipping, "SECONDS_BETWEEN_LOOKS", 0.02)
    check_store(tmp_path)
    return local_uri(tmp_path)


def tell(tracker: SpoolTracker, study: Study, number: int, *, epochs: int = 2) -> None:
    tracker.trial_started(Trial(number, {"optim.lr": 0.001, "model.tau_size": 2}))
    tracker.trial_ended(add_trial(study, number, 0.3, epoch=epochs))


def steps(home: Path, study: str) -> dict[str, list[int]]:
    """{trial: the steps of its loss}, each point once as MLflow holds it."""
    from mlflow import MlflowClient

    client = MlflowClient(local_uri(home))
    experiment = client.get_experiment_by_name("proseg-tune/test")
    assert experiment is not None
    query = f"tags.`proseg.study` = '{study}' and tags.`proseg.kind` = 'trial'"
    runs = client.search_runs([experiment.experiment_id], query)
    names = [run.data.tags["proseg.uid"].split("/")[1] for run in runs]
    assert len(names) == len(set(names)), "a run was made twice"
    return {
        name: sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/loss"))
        for name, run in zip(names, runs, strict=True)
    }


# The thread


def test_what_is_written_down_while_it_runs_is_shipped(direct: str, tmp_path: Path, store: Store):
    study, heard = make_study(tmp_path, store), Heard()
    tracker = SpoolTracker(study)
    shipper = Shipper(study, tmp_path, tracker.spool, heard)  # type: ignore[arg-type]
    tell(tracker, study, 0)
    until(lambda: shipper.queued == 0)
    tell(tracker, study, 1, epochs=3)
    shipper.close()
    assert shipper.queued == 0
    assert steps(tmp_path, "s1") == {"t000": [1, 2], "t001": [1, 2, 3]}
    assert heard.notes == []
    assert set(heard.said) == {None}


def test_while_the_store_is_away_it_is_said_how_much_waits_and_nobody_waits_for_it(
    direct: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient

    monkeypatch.setattr(shipping, "SECONDS_BETWEEN_RETRIES", 0.1)
    hanging, log_batch = threading.Event(), MlflowClient.log_batch

    def away(*args: Any, **named: Any) -> Any:
        if hanging.is_set():
            return log_batch(*args, **named)
        time.sleep(0.2)
        raise MlflowException("nobody\nanswers")

    study, heard = make_study(tmp_path, store), Heard()
    tracker = SpoolTracker(study)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        shipper = Shipper(study, tmp_path, tracker.spool, heard)  # type: ignore[arg-type]
        tell(tracker, study, 0)
        points = tracker.spool.points
        until(lambda: f"MLflow offline, {points} points queued: nobody" in heard.said)
        hanging.set()
        until(lambda: shipper.queued == 0)
        shipper.close()
    assert heard.said[-1] is None
    assert heard.notes == []
    assert steps(tmp_path, "s1") == {"t000": [1, 2]}


def test_what_is_left_in_the_end_is_named_and_sync_sends_it(
    direct: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    study, heard = make_study(tmp_path, store), Heard()
    tracker = SpoolTracker(study)
    tell(tracker, study, 0)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        shipper = Shipper(study, tmp_path, tracker.spool, heard)  # type: ignore[arg-type]
        shipper.close()
        with pytest.raises(StudyError, match="MLFLOW_TRACKING_URI") as error:
            sync(study, tmp_path)
    assert shipper.queued == tracker.spool.points
    (note,) = heard.notes
    assert f"({shipper.queued} points) of study s1" in note
    assert "`proseg-tune sync s1`" in note
    assert "secret" not in str(error.value) + (study.folder / "mlflow.jsonl").read_text()
    for again, sent in ((False, tracker.spool.points), (False, 0), (True, tracker.spool.points)):
        assert sync(study, tmp_path, again=again).sent == sent
        assert steps(tmp_path, "s1") == {"t000": [1, 2]}


@pytest.mark.parametrize("error", [ZeroDivisionError("a driver's own"), OSError("away"), StudyError("no server")])
def test_nothing_that_a_store_does_ends_the_shipping(
    direct: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    monkeypatch.setattr(shipping, "SECONDS_BETWEEN_RETRIES", 0.05)
    study, heard, raised = make_study(tmp_path, store), Heard(), []
    real = shipping.Sender

    def failing(*arguments: Any) -> Any:
        if len(raised) < 3:
            raised.append(error)
            raise error
        return real(*arguments)

    monkeypatch.setattr(shipping, "Sender", failing)
    tracker = SpoolTracker(study)
    with caplog.at_level("CRITICAL", "orchestrator.shipper"):
        shipper = Shipper(study, tmp_path, tracker.spool, heard)  # type: ignore[arg-type]
        tell(tracker, study, 0)
        until(lambda: len(raised) == 3)
        until(lambda: shipper.queued == 0)
        shipper.close()
    assert any(text and str(error) in text for text in heard.said)
    assert steps(tmp_path, "s1") == {"t000": [1, 2]}
    raised.clear()
    with pytest.raises(StudyError) as refused:
        sync(study, tmp_path, again=True)
    assert str(error) in str(refused.value)


def test_a_study_that_runs_is_not_sent_by_another_process(direct: str, tmp_path: Path, store: Store):
    study = make_study(tmp_path, store)
    with pytest.raises(StudyError, match="has nothing to send"):
        sync(study, tmp_path)
    SpoolTracker(study)
    with alone(study), pytest.raises(StudyError, match="is running already"):
        sync(study, tmp_path)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@host:8443/path", "https://me@host:8443/path"),
        ("postgresql+psycopg2://me:s%40cret@host/db", "postgresql+psycopg2://me@host/db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://[::1", "http://[::1"),
        ("https://me:a:b@c@host/x@y", "https://me@host/x@y"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_an_address_is_shown_and_kept_without_its_password(uri: str, shown: str, tmp_path: Path, monkeypatch):
    assert without_password(uri) == shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store_name(tmp_path) == shown


# A server of our own


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    check_store(tmp_path)
    started = LocalServer(tmp_path)
    yield started
    started.stop()


def family(server: LocalServer) -> list[psutil.Process]:
    guard = psutil.Process(server._child.pid)
    return [guard, *guard.children(recursive=True)]


@pytest.mark.slow
def test_our_server_answers_is_started_again_when_it_dies_and_leaves_nothing(server: LocalServer, tmp_path: Path):
    until(server.address)
    first = family(server)
    assert server.address() == f"http://127.0.0.1:{server._port}"
    assert {c.laddr.ip for p in first for c in p.net_connections() if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    for process in first[1:]:
        process.kill()
    until(lambda: server._child.poll() is not None)
    assert server.address() is None, "it starts anew"
    until(server.address)
    second = family(server)
    server.stop()
    until(lambda: not any(process.is_running() for process in [*first, *second]), seconds=20)


@pytest.mark.slow
def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path: Path):
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    check_store(tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server = LocalServer(tmp_path, other.server_port)
        try:
            with pytest.raises(StudyError, match=r"ended with code .*; its log is mlflow/server.log"):
                until(server.address)
        finally:
            server.stop()
            other.shutdown()


OWNER = """
import sys, time
from pathlib import Path
from orchestrator.server import LocalServer
server = LocalServer(Path(sys.argv[1]))
while server.address() is None:
    time.sleep(0.1)
print(server._child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_our_server_ends_with_its_owner_even_by_sigkill(tmp_path: Path):
    check_store(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(serving.__file__).parents[1])},
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        guard = psutil.Process(int(owner.stdout.readline()))
        processes = [guard, *guard.children(recursive=True)]
        assert len(processes) > 1
        owner.send_signal(signal.SIGKILL)
        until(lambda: not any(process.is_running() for process in processes), seconds=20)


@pytest.mark.slow
def test_a_server_that_hangs_and_one_that_is_killed_cost_no_point_and_no_time(
    server: LocalServer, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    """A real server, stopped in the middle of its work (it accepts and never answers), killed, started again twice."""
    until(server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(server.address()))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(shipping, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(shipping, "SECONDS_BETWEEN_RETRIES", 0.5)
    study, heard, number = make_study(tmp_path, store), Heard(), 0
    tracker = SpoolTracker(study)
    shipper = Shipper(study, tmp_path, tracker.spool, heard)  # type: ignore[arg-type]

    def during_an_outage() -> None:
        nonlocal number
        said = len([text for text in heard.said if text])
        began = time.monotonic()
        for _ in range(5):
            tell(tracker, study, number)
            number += 1
        assert time.monotonic() - began < 2.0, "nobody waits for a server"
        until(lambda: len([text for text in heard.said if text]) > said)

    tell(tracker, study, number)
    number += 1
    until(lambda: shipper.queued == 0)
    members = family(server)
    for process in members:
        process.suspend()
    during_an_outage()
    for process in members:
        process.resume()
    until(lambda: shipper.queued == 0)
    for _ in range(2):
        for process in family(server)[1:]:
            process.kill()
        during_an_outage()
        until(lambda: server._child.poll() is not None)  # its guard has seen it
        until(server.address)
        until(lambda: shipper.queued == 0)
    tracker.study_ended("finished", None, {}, "")
    shipper.close()
    assert any("offline" in (text or "") for text in heard.said)
    assert steps(tmp_path, "s1") == {f"t{n:03d}": [1, 2] for n in range(number)}
    sync(study, tmp_path, again=True)
    assert steps(tmp_path, "s1") == {f"t{n:03d}": [1, 2] for n in range(number)}


# What is refused for good, and what may pass


def http_error(code: int) -> Exception:
    response = requests.Response()
    response.status_code = code
    return requests.HTTPError("no", response=response)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (http_error(404), True), (http_error(403), True), (http_error(401), False), (http_error(429), False),
        (http_error(503), False), (requests.ConnectionError("away"), False), (PermissionError(13, "no"), True),
        (OSError(28, "full"), False), (MlflowException("bad name", 1000), True), (MlflowException("down", 1), False),
    ],
)  # fmt: skip
def test_what_would_be_refused_again_is_told_from_an_outage(error: Exception, final: bool):
    assert _is_final(error) is final


def test_the_address_of_a_page_bears_no_password(direct: str, tmp_path: Path, store: Store, monkeypatch):
    study = make_study(tmp_path, store)
    SpoolTracker(study)
    one = shipping.Shipping(study, tmp_path)
    one.ship(direct)
    monkeypatch.setattr(shipping.Sender, "page", lambda self, server: f"{server}/#/experiments/1")
    one._uri = "https://me:secret@host"
    assert one.page() == "https://me@host/#/experiments/1"
    assert "secret" not in (study.folder / "mlflow.json").read_text()
