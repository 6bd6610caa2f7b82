"""What `doctor` says of one thing: whether it is well, in one sentence, and what can be typed where it is not."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem", "unchecked"]
"""A warning costs time or may bite later, a problem stops a study; unchecked: the check itself could not be made."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    text: str
    fix: str = ""
    """A command, or where none can be typed, what to do."""


def ok(check: str, text: str, fix: str = "") -> Finding:
    return Finding(check, "ok", text, fix)


def warning(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "warning", text, fix)


def problem(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "problem", text, fix)


def unchecked(check: str, text: str, fix: str = "") -> Finding:
    return Finding(check, "unchecked", text, fix)
