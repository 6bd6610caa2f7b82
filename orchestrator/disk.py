"""The disk: what a study uses of it, and what is done when it is full, which is to wait and not to break."""

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FULL = {errno.ENOSPC, errno.EDQUOT}
MARGIN = 32 * 2**20
"""Bytes that are left to logs and databases, which are small but cannot wait."""
SECONDS_BETWEEN_LOOKS = 2.0


def used(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # it was replaced this moment
    return total


def lacking(folder: Path, need: int = 0) -> int:
    """Bytes that must become free before `need` more can be written; 0 where there is room."""
    return max(0, need + MARGIN - shutil.disk_usage(folder).free)


def is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def patiently(write: Callable[[], T], say: Callable[[str], None]) -> T:
    """Do a write; where the disk is full say so once and try again until it is not."""
    said = False
    while True:
        try:
            return write()
        except OSError as error:
            if not is_full(error):
                raise
            if not said:
                say(f"{error.filename or 'the disk'}: no space left; the study waits until there is")
                said = True
            time.sleep(SECONDS_BETWEEN_LOOKS)


def wait_for_space(folder: Path, need: int) -> float:
    """Wait until `need` bytes can be written below a folder; the seconds that took."""
    began = time.monotonic()
    while lacking(folder, need):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return time.monotonic() - began
