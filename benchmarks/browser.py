"""The system's Chromium without a window, for pictures of pages and for tests of them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from orchestrator.server import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120_000
"""Milliseconds to wait for a page: a machine may be busy."""
FOLDED = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
"""Keeps MLflow's assistant from taking a quarter of the window, as it does until a person has closed it once."""


def chromium() -> str | None:
    """Where it is: PROSEG_BROWSER, else what the system has."""
    named = os.environ.get("PROSEG_BROWSER")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


def lacking() -> str | None:
    """What a person must do before a page can be opened here; None if it can be."""
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install -c constraints.txt -e '.[dev]'"
    if chromium() is None:
        return "there is no Chromium: apt-get install chromium, or name one in PROSEG_BROWSER"
    return None


@contextmanager
def browser() -> Iterator["Browser"]:
    """A browser of our own; `lacking` has said that there is one."""
    from playwright.sync_api import sync_playwright

    # Root, as in a container, cannot have Chromium's sandbox, and its shared memory is small there.
    options = ["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=options, timeout=PATIENCE)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def mlflow_pages(home: Path, study: str) -> Iterator[str]:
    """MLflow over a workspace, as a user starts and ends it with `proseg-tune ui`: its address."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    port = free_port()
    command = [sys.executable, "-m", "cli", "ui", study, "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=ROOT, env=inherited | {"PROSEG_HOME": str(home)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        _wait(server.stdout)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.communicate(timeout=60)


def _wait(said: IO[str]) -> None:
    lines = []
    for line in said:
        lines.append(line)
        if line.startswith("MLflow on http"):
            return
    raise RuntimeError("`proseg-tune ui` ended: " + "".join(lines))
