"""The data sets by name: where each comes from, whether it is at hand, and how it becomes a store.

Everything lies below one folder (`home`): `sources/NAME` holds files as they came, `data/NAME-...` stores that are made
when they are first asked for, and `prepared/NAME` those that a user had prepared from files of his own.
"""

import difflib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from proseg.data.kinds import Choices, find_kind
from proseg.data.manifest import MANIFEST, Description, Manifest, read_manifest
from proseg.data.reading import Track, silent
from proseg.data.source import prepare, unfinished
from proseg.data.store import Store, write
from proseg.errors import DataError, listed

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
    """prepared | on first use | files found | missing | unfinished | damaged"""
    where: str


@dataclass(frozen=True)
class Prepared:
    """What a preparation came to."""

    store: Store
    anew: bool
    """False: it had been prepared before, from the same files and with the same options."""


def open_data(name: str, home: Path, *, jobs: int = 1, track: Track = silent) -> Store:
    """The store of a data set, prepared now if it has not been yet; two processes that ask at once prepare it once.

    Args:
        name: one of `NAMES`, a name that was given to `prepare_named`, or the path of a prepared store or of a folder
            in the NPC layout.
        home: the workspace.
        jobs: processes that may render or read.
        track: shows the progress of the preparation.

    Raises:
        DataError: unknown name, missing files, damaged files.
    """
    if name in _CONTOURS:
        return _prepare(home / "data" / f"{name}-v{RENDERING}", lambda folder: _contours(name, folder, jobs, track))
    if _is_prepared(name, home):
        return Store(prepared_folder(name, home))
    if name == "npc":
        return _open_npc(npc_folder(home), home, jobs, track)
    folder = Path(name).expanduser()
    if (folder / MANIFEST).exists():
        return Store(folder)
    if not folder.is_dir():
        raise DataError(_unknown(name, home))
    return _open_npc(folder, home, jobs, track)


def prepare_named(
    kind: str, path: Path, name: str, home: Path, choices: Choices, *, jobs: int = 1, track: Track = silent
) -> Prepared:
    """Prepare a data set from where it lies, to be opened by its name; nothing that is there is overwritten.

    Args:
        kind: one of `KINDS`.
        name: how it will be called. "npc" is what the search space of that name then uses.
        jobs: processes that read.

    Raises:
        DataError: what is wrong with the name, an option, or the data.
    """
    found = find_kind(kind)
    _check_name(name, kind)
    source = found.source(path, name, choices, track)
    if name not in NAMES:
        source = replace(source, description=source.description.model_copy(update={"name": name}))
    anew = not _is_prepared(name, home)
    return Prepared(prepare(source, prepared_folder(name, home), jobs=jobs, track=track), anew)


def missing(name: str, home: Path) -> str | None:
    """Why this data set cannot be used now, in one sentence with the ways on; None if it can."""
    if name in _CONTOURS or _is_prepared(name, home):
        return None
    if name == "npc":
        if any(npc_folder(home).rglob("*.h5")):
            return None
        return (
            f"the NPC files are not there: put the HDF5 files of MMIS-2024 task 1 (training/, validation/) into "
            f"{npc_folder(home)}, or prepare them from where they lie with `proseg-tune data prepare npc --from FOLDER "
            "--name npc`, or write a synthetic stand-in with `proseg-tune data standin npc`"
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return _unknown(name, home)
    if not (folder / MANIFEST).exists() and not any(folder.rglob("*.h5")):
        return f"the folder {name} holds neither a prepared data set ({MANIFEST}) nor HDF5 files in the NPC layout"
    return None


def npc_folder(home: Path) -> Path:
    """Where the files of NPC are looked for."""
    return home / "sources" / "npc"


def prepared_folder(name: str, home: Path) -> Path:
    """Where the store of a data set lies that was given this name."""
    return home / "prepared" / name


def listing(home: Path) -> list[Listing]:
    """All data sets and whether they are at hand."""
    lines = []
    for name, (_, about) in _CONTOURS.items():
        folder = home / "data" / f"{name}-v{RENDERING}"
        ready = (folder / MANIFEST).exists()
        lines.append(
            Listing(name, about, "prepared" if ready else "on first use", str(folder) if ready else "embedded")
        )
    if not _is_prepared("npc", home):
        state = "missing" if missing("npc", home) else "files found"
        about = "MR volumes in the layout of MMIS-2024 task 1, four experts"
        lines.append(Listing("npc", about, state, str(npc_folder(home))))
    return lines + [_listed(name, home) for name in _prepared_names(home)] + _unfinished(home)


def _listed(name: str, home: Path) -> Listing:
    folder = prepared_folder(name, home)
    try:
        m = read_manifest(folder / MANIFEST)
    except DataError as error:
        return Listing(name, str(error), "damaged", str(folder))
    about = f"{m.label}: {m.slices} slices, {m.patients} patients, {m.raters} raters"
    return Listing(name, about, "prepared", str(folder))


def _unfinished(home: Path) -> list[Listing]:
    names = sorted(path.name[1 : -len(".partial")] for path in (home / "prepared").glob(".*.partial"))
    about = "the same `data prepare` goes on with it"
    return [Listing(name, about, "unfinished", str(unfinished(prepared_folder(name, home)))) for name in names]


_CONTOURS: dict[str, tuple[Literal["paper", "all4"], str]] = {
    "lidc-contours": ("paper", "LIDC-IDRI, 1608 of the paper's 1609 slices: real contours, simulated intensities"),
    "lidc-contours-all": ("all4", "LIDC-IDRI, all 5200 slices with four raters: real contours, simulated intensities"),
}
NAMES = (*_CONTOURS, "npc")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""What a user may call a data set."""


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
    return write(folder, slices, description, framing="lesion")


def _open_npc(files: Path, home: Path, jobs: int, track: Track) -> Store:
    from proseg.data import npc

    source = npc.source(files)
    key = hashlib.sha256(repr((source.identity, source.description)).encode()).hexdigest()[:12]
    return prepare(source, home / "data" / f"npc-{key}", jobs=jobs, track=track)


def stores(home: Path) -> Iterator[tuple[Path, Manifest]]:
    """The prepared data sets of a workspace; one whose manifest cannot be read is none."""
    for kind in ("prepared", "data"):
        for path in sorted((home / kind).glob(f"[!.]*/{MANIFEST}")):
            try:
                manifest = read_manifest(path)
            except DataError:
                continue
            yield path.parent, manifest


def rows_of_case(store: Store, case: str) -> tuple[str, list[int]]:
    """The name of a volume, an image or a patient and its rows.

    Args:
        case: its whole name, or the end of it, in any case of letters.

    Raises:
        DataError: there is none, or there are several.
    """
    volumes, patients = _rows_by_name(store.volumes), _rows_by_name(store.patients)
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == case,
        lambda name: name.casefold().endswith(case.casefold()),
    )
    for fits in tests:
        for rows in (volumes, patients):
            found = [name for name in rows if fits(name)]
            if len(found) > 1:
                raise DataError(f"--case {case}: {len(found)} are called so; there are {listed(found)}")
            if found:
                return found[0], rows[found[0]]
    near = difflib.get_close_matches(case, [*volumes, *patients], len(volumes) + len(patients), 0.5)
    there = f"similar are {listed(near)}" if near else f"there are {listed([*volumes])}"
    raise DataError(f"--case {case}: there is no volume, image or patient of this name; {there}")


def _rows_by_name(names: Iterable[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(str(name), []).append(row)
    return rows


def folders_of(name: str, home: Path) -> list[Path]:
    """The folders of the workspace that hold a data set, or what is left of a preparation that was not finished.

    Raises:
        DataError: there are none, or this is no name.
    """
    patterns = [prepared_folder(name, home)] if NAME.fullmatch(name) else []
    if name in NAMES:
        patterns.append(home / "data" / (f"{name}-v*" if name in _CONTOURS else f"{name}-*"))
    both = [one for pattern in patterns for one in (pattern, unfinished(pattern))]
    found = [path for pattern in both for path in sorted(pattern.parent.glob(pattern.name)) if path.is_dir()]
    if not found and name in NAMES:
        raise DataError(f"there is nothing to remove: {name} has not been prepared in {home}")
    if not found:
        names = ", ".join(_prepared_names(home)) or "none"
        raise DataError(f"there is no prepared data set {name!r} in {home}; there are: {names}")
    return found


def remove(name: str, home: Path) -> None:
    """Delete the folders of a data set; the files that it was prepared from stay.

    Raises:
        DataError: there are none, or it is being prepared at this moment.
    """
    for folder in folders_of(name, home):
        place = folder.name.removeprefix(".").removesuffix(".partial")
        try:
            with FileLock(folder.with_name(f".{place}.lock"), timeout=0):
                left = unfinished(folder.with_name(place))
                if folder != left:
                    shutil.rmtree(left, ignore_errors=True)
                    folder.rename(left)  # an interruption leaves no damaged data set, but an unfinished one
                if left.exists():
                    shutil.rmtree(left)
        except Timeout:
            raise DataError(f"{name} is being prepared by another process: wait for it, or end that first") from None


def is_rendered_here(name: str) -> bool:
    """Whether this data set is made of what the package holds, by whoever asks for it first."""
    return name in _CONTOURS


# Names given by users


def _is_prepared(name: str, home: Path) -> bool:
    return bool(NAME.fullmatch(name)) and (prepared_folder(name, home) / MANIFEST).exists()


def _prepared_names(home: Path) -> list[str]:
    return sorted(path.parent.name for path in (home / "prepared").glob(f"[!.]*/{MANIFEST}"))


def _check_name(name: str, kind: str) -> None:
    if not NAME.fullmatch(name):
        raise DataError(
            f"--name {name!r}: a name has up to 64 letters, digits, '-', '_' and '.', and begins with a letter or a "
            "digit"
        )
    if name in NAMES and name != kind:
        raise DataError(f"--name {name}: this is the name of a data set that there is already; choose another")


def _unknown(name: str, home: Path) -> str:
    names = ", ".join((*NAMES, *(one for one in _prepared_names(home) if one not in NAMES)))
    return (
        f"there is no data set {name!r}: use one of {names}, or the path of a folder, or prepare data of your own with "
        "`proseg-tune data prepare`"
    )
