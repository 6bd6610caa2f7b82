"""MLflow's pages over the workspace, on loopback, as a child of ours that ends with us."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from orchestrator.interrupt import terminable
from orchestrator.study import Study, StudyError
from orchestrator.tracking import artifact_folder, local_uri, quieten, study_page, tracking_uri

HOST = "127.0.0.1"
START_SECONDS = 120
SETTINGS = {
    # Without these MLflow starts fifteen processes, most of them for features that are not used here.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "64",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "64",
}  # fmt: skip


def serve(home: Path, study: Study, port: int, *, say: Callable[[str], None]) -> None:
    """Serve until interrupted (Ctrl-C or SIGTERM), which is the way to end it and no error.

    Raises:
        StudyError: the runs lie on a server already, the port is taken, or the server does not start.
    """
    quieten()
    if tracking_uri(home) != local_uri(home):
        raise StudyError(f"the runs are kept at MLFLOW_TRACKING_URI = {tracking_uri(home)}: open its pages there")
    _check_port(port)
    address = f"http://{HOST}:{port}"
    server = _start(home, port)
    try:
        with terminable(), contextlib.suppress(KeyboardInterrupt):
            _wait(server, address)
            say(f"MLflow on {address} (Ctrl-C ends it)")
            say(f"trials of {study.name}: {study_page(address, _experiment(home, study), study)}")
            server.wait()
    finally:
        _stop(server)


def _start(home: Path, port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
               "--backend-store-uri", local_uri(home),
               "--artifacts-destination", artifact_folder(home).as_uri()]  # fmt: skip
    log = home / "mlflow" / "server.log"
    with open(log, "ab") as sink:
        # A process group of its own: its workers outlive it if only the parent is ended.
        return subprocess.Popen(command, env={**SETTINGS, **os.environ}, stdout=sink, stderr=sink, cwd=home,
                                start_new_session=True)  # fmt: skip


def _wait(server: subprocess.Popen, address: str) -> None:
    """Until OUR child answers; another server on the port would answer too."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StudyError(
                f"MLflow's server ended with code {server.returncode}; its log is mlflow/server.log in the workspace"
            )
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{address}/health", timeout=2),
        ):
            return
        time.sleep(0.3)
    raise StudyError(f"MLflow's server did not answer on {address} within {START_SECONDS} s")


def _stop(server: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise StudyError(f"--port {port} is taken by another program; choose another") from None


def _experiment(home: Path, study: Study) -> str:
    from mlflow import MlflowClient

    found = MlflowClient(local_uri(home)).get_experiment_by_name(f"proseg-tune/{study.space.name}")
    if found is None:
        raise StudyError(f"study {study.name} has no runs in MLflow yet")
    return found.experiment_id
