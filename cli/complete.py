"""What the shell offers when Tab is pressed: names of studies, trials, spaces and data sets.

A shell waits for these and shows whatever goes wrong, so nothing slow is imported and a folder that cannot be read has
nothing to offer.
"""

import importlib.util
import re
from collections.abc import Callable, Iterable
from pathlib import Path

DATA_SETS = ("lidc-contours", "lidc-contours-all", "npc")
"""`proseg.data.catalog.NAMES`, whose import takes longer than a shell should wait."""
SOURCES = ("lidc-dicom", "lidc-pickle", "lidc-slices", "npc", "own")
"""The keys of `proseg.data.kinds.KINDS`."""
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*", re.ASCII)
"""What a shell takes for one word that means nothing else: zsh evaluates what it is offered."""


def studies() -> list[str]:
    """The names of all studies of the workspace."""
    return [path.parent.name for path in _below_workspace("studies", "*/study.json")]


def trials() -> list[str]:
    """Those of the study that was written last."""
    manifests = _below_workspace("studies", "*/study.json")
    if not manifests:
        return []
    latest = max(manifests, key=_changed)
    return [path.name for path in latest.parent.glob("trials/t[0-9]*")]


def spaces() -> list[str]:
    """The shipped search spaces, and the files of the current folder that may be some."""
    found = importlib.util.find_spec("search_spaces")  # found, not imported
    shipped = [path.stem for folder in (found and found.submodule_search_locations) or ()
               for path in Path(folder).glob("*.toml")]  # fmt: skip
    return [*shipped, *(path.name for path in Path().glob("*.toml") if path.name != "pyproject.toml")]


def data_sets() -> list[str]:
    """Those there are, and those a user has prepared."""
    prepared = (path.parent.name for path in _below_workspace("prepared", "[!.]*/manifest.json"))
    return list(dict.fromkeys((*DATA_SETS, *prepared)))


def sources() -> list[str]:
    """The kinds of files that `data prepare` reads."""
    return list(SOURCES)


def offer(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What Typer asks for the words that may follow what was typed; where none do, the shell offers files."""

    def complete(incomplete: str) -> list[str]:
        try:
            found = sorted(names())
        except OSError:  # a folder that may not be read, or is gone this moment
            return []
        return [name for name in found if name.startswith(incomplete) and PLAIN.fullmatch(name)]

    return complete


def _below_workspace(folder: str, pattern: str) -> list[Path]:
    from orchestrator.workspace import workspace
    from proseg.errors import ProSegError

    try:
        return list((workspace() / folder).glob(pattern))
    except ProSegError:  # PROSEG_HOME is no folder: the command itself will say so
        return []


def _changed(path: Path) -> float:
    return path.stat().st_mtime
