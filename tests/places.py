"""A folder in which a user works: a store, a space, a workspace, and the program as a user starts it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proseg.data.store import Store
from tests.studies import space_values

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
        # Without a server, which takes seconds to start; MLFLOW_TRACKING_URI="" has one.
        store = f"sqlite:///{self.home}/mlflow/mlflow.db"
        return inherited | {"PROSEG_HOME": str(self.home), "MLFLOW_TRACKING_URI": store} | more

    def space(self, **changes: Any) -> str:
        defaults = {"data": str(self.store.folder), "search": SEARCH, "scheduler": {"grace_epochs": 1}}
        values = space_values(**(defaults | changes))
        del values["base"]["optim.grad_clip"]
        return self.write(values)

    def write(self, values: dict[str, Any]) -> str:
        """The path of a space of these values."""
        path = self.folder / "mine.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in values.items()))
        return str(path)

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *words], cwd=self.folder, env=self.environment(**more), capture_output=True, text=True,
            timeout=550, check=False,
        )  # fmt: skip

    def begin(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start the program in the background."""
        # Started by a shell in the background, these tests would hand down an ignored Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                [PROGRAM, *words], cwd=self.folder, env=self.environment(**more), stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)

    def processes(self) -> dict[int, str]:
        """Those that have this workspace in their environment, by pid: ours, Ray's, and their children."""
        mark, found = f"PROSEG_HOME={self.home}".encode(), {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(process.name)] = command[:200]
            except OSError:
                continue  # it has ended, or is somebody else's
        return found

    def listening(self) -> set[str]:
        """The addresses at which these processes listen, in hexadecimal as the kernel writes them."""
        inodes = set()
        for pid in self.processes():
            with contextlib.suppress(OSError):  # it has ended
                inodes |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        tables = [Path(f"/proc/net/{table}").read_text(encoding="utf-8").splitlines() for table in ("tcp", "tcp6")]
        lines = [line.split() for table in tables for line in table]
        listen = "0A"
        return {line[1].split(":")[0] for line in lines if line[3] == listen and f"socket:[{line[9]}]" in inodes}

    def left_behind(self) -> list[str]:
        return list(self.processes().values())

    def mlflow_runs(self, study: str) -> dict[str, Any]:
        return mlflow_runs(f"sqlite:///{self.home}/mlflow/mlflow.db", study)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def mlflow_runs(uri: str, study: str) -> dict[str, Any]:
    """{uid within the study: run}."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("proseg-tune/mine")
    found = client.search_runs([experiment.experiment_id], f"tags.`proseg.study` = '{study}'", max_results=1000)
    runs = {run.data.tags["proseg.uid"].removeprefix(f"{study}/"): run for run in found}
    assert len(runs) == len(found), "a run was made twice"
    return runs


def wait_for_epoch(process: subprocess.Popen[str], name: str, epoch: int) -> list[str]:
    """Read what the program prints until this training has come to this epoch, or further: it looks at times, and an
    epoch may be over before it is said; the lines."""
    return wait_for(process, rf"{name} epoch ({'|'.join(map(str, range(epoch, 10)))})/")


def wait_for(process: subprocess.Popen[str], words: str, seconds: float = 120) -> list[str]:
    """Read what the program prints until a line matches this expression; the lines."""
    assert process.stdout is not None
    lines, deadline = [], time.monotonic() + seconds
    for line in process.stdout:
        lines.append(line)
        if re.search(words, line):
            return lines
        assert time.monotonic() < deadline, f"{words!r} was not said: {lines}"
    raise AssertionError(f"it ended before it said {words!r}: {lines} {process.communicate()[1]}")
