"""Moments, durations, counts and lists as a person reads them; names as files and addresses take them."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime


def moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def span(seconds: float) -> str:
    """A duration a person can read: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def slug(name: str) -> str:
    """A name as a part of a file's or of an address: letters of any script, digits, `.`, `_`, `-`. Where others had to
    give way a few digits follow, so that different names stay different."""
    name = unicodedata.normalize("NFC", name)
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")
