"""The data sets of a workspace: those that are prepared are whole, and what is missing can be had."""

from collections.abc import Iterable
from pathlib import Path

from orchestrator.doctor.findings import Finding, ok, problem, warning
from proseg.data.catalog import Listing, missing
from proseg.data.manifest import MANIFEST, read_manifest
from proseg.data.store import Store
from proseg.errors import DataError

CHECK = "data"


def data_sets(found: Iterable[Listing], home: Path) -> list[Finding]:
    """Every data set that is known by a name."""
    return [_one(entry, home) for entry in found]


def _one(entry: Listing, home: Path) -> Finding:
    if entry.state == "prepared":
        return prepared(entry.name, Path(entry.where))
    if entry.state == "damaged":
        return problem(CHECK, f"{entry.name}: {entry.about}", f"rm -r {entry.where}    # then prepare it again")
    if entry.state == "unfinished":
        return warning(CHECK, f"{entry.name}: its preparation was interrupted",
                       f"proseg-tune data prepare ... --name {entry.name}    # as before: it goes on")  # fmt: skip
    if entry.state == "missing":
        return ok(CHECK, f"{entry.name} is not here: {missing(entry.name, home)}",
                  f"proseg-tune data standin {entry.name}")  # fmt: skip
    return ok(CHECK, f"{entry.name}: {entry.state}")


def prepared(name: str, folder: Path) -> Finding:
    """Sizes, columns and offsets of all files; that every byte is as it was written, `data check` tells."""
    try:
        store = Store(folder)
    except DataError as error:
        return problem(CHECK, f"{name}: {error}", f"rm -r {folder}    # then prepare it again")
    m = store.manifest
    return ok(CHECK, f"{name}: {m.slices} slices of {m.patients} patients, {m.label}; its files are whole "
                     f"(`proseg-tune data check {name}` reads every byte)")  # fmt: skip


def searched(study: str, folder: Path, fingerprint: str) -> list[Finding]:
    """Whether a study that is not finished still has the data it was begun on; nothing where it has."""
    try:
        now = read_manifest(folder / MANIFEST).fingerprint
    except DataError as error:
        return [warning(CHECK, f"study {study} cannot go on: {error}", f"ls {folder.parent}")]
    if now != fingerprint:
        return [warning(CHECK, f"study {study} cannot go on: {folder} is not what it was begun on any more",
                        f"proseg-tune best {study}    # what it has reached stays")]  # fmt: skip
    return []
