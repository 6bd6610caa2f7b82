"""MLflow's server over the workspace's own store, on loopback, as a child of ours that ends with us."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from orchestrator import guard
from orchestrator.interrupt import terminable
from orchestrator.pages import experiment_name, study_page
from orchestrator.stores import check_store, is_own, local_uri, own_artifacts, quieten, store_name
from orchestrator.study import Study, StudyError

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 15.0
NICENESS = 5
"""It gives way to the trainings."""
SETTINGS = {
    # Without these MLflow starts fifteen processes, most of them for features that are not used here.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "64",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "64",
}  # fmt: skip
LOG = "mlflow/server.log"
"""In the workspace."""


class LocalServer:
    """A server over the workspace's own store. It is started at once and answers some seconds later."""

    def __init__(self, home: Path, port: int | None = None):
        """Start it, on a free port unless one is given; `check_store` has made the store."""
        self._home, self._port = home, port or free_port()  # also of those that follow: its address stays
        self._start()

    def address(self) -> str | None:
        """Where it answers; None while it starts. One that has ended is started anew.

        Raises:
            StudyError: it ended while it started, or does not answer for two minutes.
        """
        if self._child.poll() is not None:
            code, was_up = self._child.returncode, self._up
            self.stop()
            self._start()
            if not was_up:
                raise StudyError(f"MLflow's server ended with code {code}; its log is {LOG} in the workspace")
        if not self._up:
            self._up = self._is_ours() and self._answers()
            if not self._up and time.monotonic() > self._deadline:
                self.stop()  # the next call starts it anew
                raise StudyError(f"MLflow's server did not answer on {self._url} within {START_SECONDS:.0f} s; its "
                                 f"log is {LOG} in the workspace")  # fmt: skip
        return self._url if self._up else None

    def look(self) -> None:
        """End one that hangs; `address` starts it anew."""
        if self._up and not self._answers():
            self.stop()

    def wait(self) -> None:
        """Until it ends."""
        self._child.wait()

    def stop(self) -> None:
        """End it and all that it has started."""
        assert self._child.stdin is not None
        self._child.stdin.close()  # the guard ends the rest
        try:
            self._child.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(self._child.pid).children(recursive=True), self._child]:
                process.kill()
            self._child.wait()

    def _start(self) -> None:
        self._url = f"http://{HOST}:{self._port}"
        self._up, self._deadline = False, time.monotonic() + START_SECONDS
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(self._port),
                   "--workers", "1", "--backend-store-uri", local_uri(self._home),
                   "--artifacts-destination", own_artifacts(self._home).as_uri()]  # fmt: skip
        with open(self._home / LOG, "ab") as sink:
            self._child = subprocess.Popen(
                [sys.executable, guard.__file__, *command], env={**SETTINGS, **os.environ}, stdin=subprocess.PIPE,
                stdout=sink, stderr=sink, cwd=self._home, start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self._child.pid).nice(NICENESS)

    def _is_ours(self) -> bool:
        """Whether it is our child who listens: another server on the port would answer too."""
        try:
            family = psutil.Process(self._child.pid).children(recursive=True)
            sockets = [connection for process in family for connection in process.net_connections("tcp4")]
        except psutil.Error:  # one of them has just ended
            return False
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == self._port for c in sockets if c.laddr)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/health", timeout=2):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def serve(
    home: Path, study: Study, port: int, *, say: Callable[[str], None], before: Callable[[], None] = lambda: None
) -> None:
    """Serve until interrupted (Ctrl-C or SIGTERM), which is the way to end it and no error.

    Args:
        before: called when the store can be written, before its pages are shown.

    Raises:
        StudyError: the runs lie on a server already, the port is taken, or the server does not start.
    """
    quieten()
    if not is_own(home):
        raise StudyError(f"the runs are kept at MLFLOW_TRACKING_URI = {store_name(home)}: open its pages there")
    if not port_is_free(port):
        raise StudyError(f"--port {port} is taken by another program; choose another")
    check_store(home)
    before()
    page = _page(home, study)
    server = LocalServer(home, port)
    try:
        with terminable(), contextlib.suppress(KeyboardInterrupt):
            while (address := server.address()) is None:
                time.sleep(0.3)
            say(f"MLflow on {address} (Ctrl-C ends it)")
            say(f"trials of {study.name}: {page(address)}")
            server.wait()
            raise StudyError(f"MLflow's server has ended; its log is {LOG} in the workspace")
    finally:
        server.stop()


def free_port() -> int:
    """A port of loopback that nobody holds."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    """Whether a server could take it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _page(home: Path, study: Study) -> Callable[[str], str]:
    from mlflow import MlflowClient

    found = MlflowClient(local_uri(home)).get_experiment_by_name(experiment_name(study))
    if found is None:
        raise StudyError(f"study {study.name} has no runs in MLflow yet; `proseg-tune sync {study.name}` sends them")
    return lambda server: study_page(server, found.experiment_id, study)
