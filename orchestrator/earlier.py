"""What confirmation and final stage of a finished study came to, whose search then goes on.

It is set aside in `earlier/`, and taken up again if the same configuration wins: nothing is trained twice, and the test
patients are looked at a second time only for another configuration.
"""

from pathlib import Path
from typing import Any

from orchestrator.confirm import VERDICT
from orchestrator.retrain import planned
from orchestrator.study import Study
from proseg.config import parse
from proseg.errors import ConfigError
from proseg.records import CONFIG

FINAL = "final"


def set_aside(study: Study) -> None:
    """Make room for another verdict and another final stage."""
    there = [study.folder / name for name in (VERDICT, FINAL) if (study.folder / name).exists()]
    if there:
        earlier = study.folder / "earlier"
        earlier.mkdir(exist_ok=True)
        place = earlier / f"{1 + len(list(earlier.iterdir())):03d}"
        place.mkdir()
        for path in there:
            path.rename(place / path.name)


def take_up(study: Study, values: dict[str, Any]) -> str:
    """Take up the final stage of these values again, if there was one; what a person should know of it."""
    before = study.earlier_finals
    if not before or (study.folder / FINAL).exists():
        return ""
    for folder in before:
        if _is_of(study, values, folder):
            folder.rename(study.folder / FINAL)
            return "the winner is one that was retrained before: its final stage is taken up again"
    return (f"another configuration wins than before: it is evaluated on the test patients that {len(before)} other(s) "
            f"were evaluated on, whose results are kept in {before[-1]}")  # fmt: skip


def _is_of(study: Study, values: dict[str, Any], folder: Path) -> bool:
    """Whether all that was trained there has the configuration that these values come to."""
    wanted = {(data.name, fold): config for data, fold, config in planned(study, values)}
    try:
        found = {(path.parts[-3], int(path.parts[-2].removeprefix("fold"))): parse(path.read_text(encoding="utf-8"))
                 for path in folder.glob(f"*/fold*/{CONFIG}")}  # fmt: skip
    except ConfigError:  # of another version
        return False
    return bool(found) and all(wanted.get(place) == config for place, config in found.items())
