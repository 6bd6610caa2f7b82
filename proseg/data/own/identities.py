"""Whether two spellings mean one: patients, raters and volumes are told apart by what people type."""

import re
import unicodedata
from collections.abc import Iterable

from proseg.errors import Faults


def key(name: str) -> str:
    """What is left of a name once case, forms of letters, spaces, leading zeros and a last ".0" are set aside."""
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"(?<=\d)\.0+$", "", plain))


def check_spelling(what: str, names: Iterable[tuple[str, str]], faults: Faults) -> set[str]:
    """Note a fault for every two names that differ in spelling alone.

    Args:
        what: kind of thing that is named, as in "patient".
        names: each name, and where it stands.

    Returns:
        The names that were spelt in another way before.
    """
    first: dict[str, tuple[str, str]] = {}
    told: set[str] = set()
    for name, where in names:
        spelt, there = first.setdefault(key(name), (name, where))
        if name != spelt and name not in told:
            told.add(name)
            faults.add(
                f"{where}: {what} {name!r} is spelt {spelt!r} in {there}: spell them alike, or add --as-written if "
                "they are two"
            )
    return told
