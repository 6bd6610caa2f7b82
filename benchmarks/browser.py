"""The system's Chromium without a window, for pictures of pages and for tests of them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
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
