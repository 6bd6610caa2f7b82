"""Ships a study's spool to MLflow while the study runs, in a thread of the driver's own: nobody waits for it."""

import logging
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.sender import Sender
from orchestrator.server import LocalServer
from orchestrator.spool import SPOOL, Progress, Spool, count_points, read_on, read_progress, write_progress
from orchestrator.stores import (
    check_store,
    first_line,
    quieten,
    store_name,
    tracking_uri,
    wants_server,
    without_password,
)
from orchestrator.study import Study, StudyError, alone
from proseg.errors import ProSegError

if TYPE_CHECKING:
    from orchestrator.watcher import Watcher

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_RETRIES = 30.0
SECONDS_AT_THE_END = 120.0
"""Given to what is left when a study ends, while the store takes some of it."""
MOST_RECORDS = 200
"""Between two notes of how far it has got."""


class Shipping:
    """A spool on its way to a store, with the place that it has come to."""

    def __init__(self, study: Study, home: Path):
        self._study, self._home, self._store = study, home, store_name(home)
        self._path = study.folder / SPOOL
        self.progress = read_progress(study.folder, self._store)
        self.sent = 0
        """Metric values that this process has sent."""
        self._sender: Sender | None = None
        self._uri, self._rewound = "", False

    def ship(self, uri: str) -> bool:
        """Send the next records; whether there were any.

        Raises:
            MlflowException, OSError: the store does not answer.
        """
        sender = self._sender_to(uri)
        found = list(read_on(self._path, self.progress.offset, MOST_RECORDS))
        if not found:
            return False
        records = [record for record, _ in found]
        # Only who has taken all is asked on: what got no answer may have been done, what is refused may lack its run,
        # and who answers next may be another store.
        self._sender = None
        refused = sender.send(records)
        if not refused:
            self._sender, self._rewound = sender, False
        for reason in refused:
            logging.getLogger(__name__).warning("MLflow refused a record of study %s: %s", self._study.name, reason)
        points = sum(map(count_points, records))
        self.sent += points
        self.progress = replace(
            self.progress, offset=found[-1][1], points=self.progress.points + points,
            refused=self.progress.refused + len(refused),
        )  # fmt: skip
        write_progress(self._study.folder, self._store, self.progress)
        return True

    @property
    def records_left(self) -> int:
        return sum(1 for _ in read_on(self._path, self.progress.offset, sys.maxsize))

    def page(self) -> str:
        """The address of the study's page, kept for `status`; empty before a store has answered, or if none serves."""
        if self._sender is None or not self._uri.startswith("http"):
            return ""
        self.progress = replace(self.progress, page=without_password(self._sender.page(self._uri)))
        write_progress(self._study.folder, self._store, self.progress)
        return self.progress.page

    def _sender_to(self, uri: str) -> Sender:
        if self._sender is None or uri != self._uri:
            self._sender, self._uri = Sender(uri, self._study, self._home), uri
            if not self._rewound and not self._all_there(self._sender):
                self.progress, self._rewound = Progress(), True  # not again: what is refused twice stays refused
        return self._sender

    def _all_there(self, sender: Sender) -> bool:
        """Whether the store still has what it was sent: it may have been emptied, or replaced by another."""
        sent = (record for record, behind in read_on(self._path, 0, sys.maxsize) if behind <= self.progress.offset)
        return all(sender.has(record["key"]) for record in sent if record["op"] == "run")


class Shipper:
    """Ships until it is closed, from a thread of its own."""

    def __init__(self, study: Study, home: Path, spool: Spool, watcher: "Watcher"):
        """Begin; where the runs are kept in the workspace's own store, with a server over it."""
        quieten()
        self._study, self._spool, self._watcher = study, spool, watcher
        self._shipping = Shipping(study, home)
        self._server = LocalServer(home) if wants_server(home) else None
        self._uri = tracking_uri(home)
        self._retry_at, self._trouble, self._shown = 0.0, "", False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Metric values that the store has not taken yet."""
        return self._spool.points - self._shipping.progress.points

    def close(self) -> None:
        """Ship what is left, as long as the store takes it, and end the server; say what could not be shipped."""
        self._closing.set()
        try:
            self._thread.join(SECONDS_AT_THE_END)
        finally:
            if self._server is not None:
                self._server.stop()
        self._watcher.tracking(None)
        if left := self._shipping.records_left:
            self._watcher.note(
                f"MLflow has not taken {left} records ({self.queued} points) of study {self._study.name}"
                f"{self._because()}; they are kept, and `proseg-tune sync {self._study.name}` sends them"
            )
        if refused := self._shipping.progress.refused:
            self._watcher.note(f"MLflow refused {refused} records of study {self._study.name}; its log says why")

    def _run(self) -> None:
        while True:
            closing = self._closing.is_set()  # before the attempt: what was written until then is sent by it
            waiting = self._attempt() if closing or time.monotonic() >= self._retry_at else False
            if closing and not waiting:
                return
            if self._trouble:
                self._watcher.tracking(f"MLflow offline, {self.queued} points queued{self._because()}")
            self._closing.wait(SECONDS_BETWEEN_LOOKS) if not closing else time.sleep(0.2)

    def _attempt(self) -> bool:
        """Ship all there is; whether there is a server to wait for."""
        from mlflow.exceptions import MlflowException

        try:
            uri = self._server.address() if self._server is not None else self._uri
            if uri is None:
                return True
            while self._shipping.ship(uri):
                self._online()
            self._online()
        except Exception as error:  # drivers of databases and of object stores have errors of their own
            if not isinstance(error, MlflowException | OSError | ProSegError):
                logging.getLogger(__name__).warning("sending to MLflow failed", exc_info=error)
            if self._trouble and self._server is not None:
                self._server.look()  # twice in a row: it may hang
            self._trouble, self._retry_at = first_line(error), time.monotonic() + SECONDS_BETWEEN_RETRIES
        return False

    def _online(self) -> None:
        if self._trouble:
            self._watcher.tracking(None)
        self._trouble, self._retry_at = "", 0.0
        if not self._shown and (page := self._shipping.page()):
            self._shown = True
            self._watcher.note(f"MLflow: {page}")

    def _because(self) -> str:
        return f": {self._trouble}" if self._trouble else ""


def sync(study: Study, home: Path, *, again: bool = False) -> Shipping:
    """Send what MLflow has not got of a study that no process runs; with `again` everything, which is no second time.

    Raises:
        StudyError: a process runs the study, there is nothing to send, or MLflow does not answer.
    """
    if not (study.folder / SPOOL).exists():
        raise StudyError(f"study {study.name} has nothing to send: it was begun by an earlier version, or never ran")
    with alone(study):
        check_store(home)
        shipping = Shipping(study, home)
        if again:
            shipping.progress = Progress()
        try:
            while shipping.ship(tracking_uri(home)):
                pass
        except Exception as error:  # drivers of databases and of object stores have errors of their own
            if isinstance(error, ProSegError):
                raise
            raise StudyError(f"MLflow at {store_name(home)} does not answer any more: {first_line(error)}; what it has "
                             f"taken is noted: try again later") from None  # fmt: skip
    return shipping
