"""The data sets by name: where each comes from, whether it is at hand, and how it becomes a store.

Everything lies below one folder (`home`): `sources/NAME` holds files as they came, `data/NAME-...` prepared stores.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from filelock import FileLock

from proseg.data.folds import Fold
from proseg.data.store import MANIFEST, Description, Store, write
from proseg.errors import DataError

T = TypeVar("T")
Track = Callable[[Iterable[T], int, str], Iterable[T]]
"""Wraps an iterable of known length with a progress display: (items, total, what is being done)."""

LUNG_WINDOW = (-1000.0, 400.0)
"""Hounsfield units."""
RENDERING = 1
"""Raise it when outlines or renderer change: what was rendered before is then rendered anew."""


@dataclass(frozen=True)
class Listing:
    """One line of `data list`."""

    name: str
    about: str
    state: str
    """prepared | on first use | files found | missing"""
    where: str


def silent(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    return items


def open_data(name: str, home: Path, *, jobs: int = 1, track: Track = silent) -> Store:
    """The store of a data set, prepared now if it has not been yet; two processes that ask at once prepare it once.

    Args:
        name: one of `NAMES`, or the path of a prepared store or of a folder in the NPC layout.
        home: the workspace.
        jobs: processes that may render.
        track: shows the progress of the preparation.

    Raises:
        DataError: unknown name, missing files, damaged files.
    """
    if name in _CONTOURS:
        return _prepare(home / "data" / f"{name}-v{RENDERING}", lambda folder: _contours(name, folder, jobs, track))
    if name == "npc":
        return _open_npc(npc_folder(home), home, track)
    folder = Path(name)
    if (folder / MANIFEST).exists():
        return Store(folder)
    if not folder.is_dir():
        raise DataError(f"there is no data set {name!r}: use one of {', '.join(NAMES)}, or the path of a folder")
    return _open_npc(folder, home, track)


def missing(name: str, home: Path) -> str | None:
    """Why this data set cannot be used now, in one sentence with the ways on; None if it can."""
    if name in _CONTOURS:
        return None
    if name == "npc":
        if any(npc_folder(home).rglob("*.h5")):
            return None
        return (
            f"the NPC files are not there: put the HDF5 files of MMIS-2024 task 1 (training/, validation/) into "
            f"{npc_folder(home)}, or write a synthetic stand-in with `proseg-tune data standin npc`"
        )
    folder = Path(name)
    if not folder.is_dir():
        return f"there is no data set {name!r}: use one of {', '.join(NAMES)}, or the path of a folder"
    if not (folder / MANIFEST).exists() and not any(folder.rglob("*.h5")):
        return f"the folder {name} holds neither a prepared data set ({MANIFEST}) nor HDF5 files in the NPC layout"
    return None


def npc_folder(home: Path) -> Path:
    """Where the files of NPC are looked for."""
    return home / "sources" / "npc"


def listing(home: Path) -> list[Listing]:
    """All data sets and whether they are at hand."""
    lines = []
    for name, (_, about) in _CONTOURS.items():
        folder = home / "data" / f"{name}-v{RENDERING}"
        ready = (folder / MANIFEST).exists()
        lines.append(
            Listing(name, about, "prepared" if ready else "on first use", str(folder) if ready else "embedded")
        )
    state = "missing" if missing("npc", home) else "files found"
    lines.append(Listing("npc", "MR volumes in the layout of MMIS-2024 task 1, four experts", state,
                         str(npc_folder(home))))  # fmt: skip
    return lines


_CONTOURS: dict[str, tuple[Literal["paper", "all4"], str]] = {
    "lidc-contours": ("paper", "LIDC-IDRI, 1608 of the paper's 1609 slices: real contours, simulated intensities"),
    "lidc-contours-all": ("all4", "LIDC-IDRI, all 5200 slices with four raters: real contours, simulated intensities"),
}
NAMES = (*_CONTOURS, "npc")


def _prepare(folder: Path, make: Callable[[Path], Store]) -> Store:
    if (folder / MANIFEST).exists():
        return Store(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (folder / MANIFEST).exists():
            return Store(folder)
        if folder.exists():  # a cache of ours without its manifest is damaged
            shutil.rmtree(folder)
        return make(folder)


def _contours(name: str, folder: Path, jobs: int, track: Track) -> Store:
    from proseg.data import lidc_contours as lidc

    selection, _ = _CONTOURS[name]
    description = Description(
        name=name, label=lidc.LABEL, licence=lidc.LICENCE, unit="slice", sorted_raters=True, window=LUNG_WINDOW
    )
    slices = track(lidc.slices(selection, jobs), lidc.count(selection), f"Rendering {name} (once)")
    return write(folder, slices, description)


def _open_npc(files: Path, home: Path, track: Track) -> Store:
    from proseg.data import npc

    found = npc.find(files)
    paths = (*found.train, *found.val, *found.test)
    folder = home / "data" / f"npc-{_key(paths)}"
    name, label, licence = "npc", npc.LABEL, "terms of MMIS-2024"
    if found.standin:
        name, label, licence = "npc-standin", npc.STANDIN_LABEL, "none needed: synthetic"
    description = Description(
        name=name, label=label, licence=licence, unit="volume", sorted_raters=False, window=None
    )  # fmt: skip

    def patients(part: Iterable[Path]) -> tuple[str, ...]:
        return tuple(npc.patient_of(path) for path in part)

    def make(folder: Path) -> Store:
        slices = npc.slices(track(paths, len(paths), "Reading NPC volumes (once)"))
        return write(folder, slices, description, (fold,))

    fold = Fold(0, patients(found.train), patients(found.val), patients(found.test))
    return _prepare(folder, make)


def _key(paths: Iterable[Path]) -> str:
    """Changes when a file is added, removed or replaced."""
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
