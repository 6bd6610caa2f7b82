"""What every source of real data is to the preparation: a list of parts that can be read one by one.

A source (`npc`, `own`, `lidc_dicom`, `lidc_pickle`) looks at what it was given, refuses at once what can be refused
without reading pixels, and returns a `Source`. `prepare` reads its parts in several processes and writes the store.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from proseg.data.case import Slice
from proseg.data.folds import Fold, check_folds, check_parts
from proseg.data.manifest import MANIFEST, Description, Framing, Manifest, Skipped
from proseg.data.reading import Track, in_order, silent
from proseg.data.store import Store
from proseg.data.writer import Writer, publish, room_for
from proseg.errors import DataError, Faults
from proseg.records import write_atomically

PROGRESS = "progress.json"
"""Lies in the folder of a preparation under way, and is written anew after each complete file."""


@dataclass(frozen=True)
class Part:
    """What one part of a source gave: its slices in ascending z, and what had to be left out."""

    slices: tuple[Slice, ...]
    skipped: tuple[Skipped, ...] = ()
    clipped: int = 0
    """Pixels whose value lay beyond int16 and was clipped."""
    faults: tuple[str, ...] = ()
    """Sentences about what makes a store of this source impossible."""


@dataclass(frozen=True)
class Source:
    """A data set as it lies at the user's, looked at but not read."""

    description: Description
    parts: tuple[Any, ...]
    """In the order of the store. Picklable: each is handed to `read` in another process. A part is what is read at
    once: a volume, an examination, some tens of images; it must fit into memory several times."""
    read: Callable[[Any], Part]
    """A function of a module, or a `functools.partial` of one. Raises DataError naming the file."""
    identity: str
    """Of the files and of every option that changes what is read: see `identity_of`."""
    folds: tuple[Fold, ...] | None = None
    """The partition that came with the data; None deals patients into four."""
    skipped: tuple[Skipped, ...] = ()
    """What was left out before any pixel was read; told of after what turned out to be damaged."""
    raters: tuple[str, ...] = ()
    """Their names where they are people; in the order of the annotations."""
    channels: tuple[str, ...] = ()
    """Names of the image's channels."""
    framing: Framing | None = None
    """How the images came to their size; None where they have it by nature."""
    notes: tuple[str, ...] = ()
    """Sentences about what of the files was taken in one of two ways or repaired."""


def identity_of(files: Iterable[Path], **options: object) -> str:
    """Changes when a file is added, removed, renamed or replaced, or an option changes."""
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((facts, sorted(options.items()))).encode()).hexdigest()


class Progress(BaseModel):
    """How far a preparation has come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: int
    """Of the source: those whose slices lie in complete files."""
    manifest: Manifest
    """Of those files; of no fold yet."""


def prepare(source: Source, folder: Path, *, jobs: int = 1, track: Track = silent) -> Store:
    """Read a source and write its store, whole or not at all; where it has been prepared already, just open it.

    What was killed or interrupted goes on after the last file that was complete, as long as the source is the same. Of
    those who ask at once, one prepares and the others wait for it.

    Args:
        folder: where the store appears, when it is complete.
        jobs: processes that read; 1 reads in this one.
        track: shows the progress, by parts.

    Raises:
        DataError: the source is not what it claims to be, something else is in the place, there is no room, too
            little memory, or a process was killed. Except in the last two cases nothing is left behind.
    """
    _check_split(source)
    with room_for(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                _make(source, folder, jobs, track)
            return _opened(source, folder)


def unfinished(folder: Path) -> Path:
    """Where a store is made before it appears in `folder`."""
    return folder.with_name(f".{folder.name}.partial")


def _check_split(source: Source) -> None:
    """Before anything is read: no patient is in two parts, and none is empty."""
    for fold in source.folds or ():
        patients = (*fold.train, *fold.val, *fold.test)
        with _named(source):
            check_folds([fold], patients)
            check_parts([fold], patients)


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """What is wrong with the split is the user's to know."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"data set {source.description.name!r}: {error}") from None


def _opened(source: Source, folder: Path) -> Store:
    if not (folder / MANIFEST).exists():
        raise DataError(
            f"{folder} is in the way and is no prepared data set: choose another name, or delete the folder"
        )
    store = Store(folder)
    if store.manifest.identity != source.identity or store.manifest.description != source.description:
        raise DataError(
            f"{folder} has been prepared from other files, or with other options: choose another name, or delete the "
            "folder"
        )
    return store


def _make(source: Source, folder: Path, jobs: int, track: Track) -> None:
    partial = unfinished(folder)
    try:
        _write(source, partial, jobs, track)
    except BrokenProcessPool:
        raise DataError(
            f"a process that read parts of {source.description.name} was killed, perhaps for want of memory: {_FEWER}"
        ) from None
    except MemoryError:
        raise DataError(
            f"there is too little memory to read the parts of {source.description.name}: {_FEWER}"
        ) from None
    except (DataError, OSError):  # an interruption leaves what was written, to go on from
        shutil.rmtree(partial, ignore_errors=True)
        raise
    publish(partial, folder)
    (folder / PROGRESS).unlink(missing_ok=True)


_FEWER = "ask for fewer --jobs; the preparation then goes on where it stopped"


def _write(source: Source, partial: Path, jobs: int, track: Track) -> None:
    writer, done, skipped, clipped = _taken_up(source, partial) or _begun(source, partial)
    left, what = source.parts[done:], f"Reading {source.description.name} (once)"
    faults = Faults()
    with writer, closing(in_order(source.read, left, jobs)) as read:
        for number, part in zip(count(done + 1), track(read, len(left), what)):
            faults.add(*part.faults)
            if faults.sentences:
                continue  # the rest is read to tell all that is wrong with it
            writer.add(part.slices)
            skipped += part.skipped
            clipped += part.clipped
            if writer.full:
                writer.cut()
                _note(source, writer, number, skipped, clipped)
        faults.check()
        skipped = (*skipped, *source.skipped)
        writer.tally.check_whole(skipped)
        with _named(source):  # all slices of a part may have been skipped
            check_parts(source.folds or (), writer.tally.patients)
        writer.finish(source.folds, skipped=skipped, clipped=clipped, **_origin(source))


Begun = tuple[Writer, int, tuple[Skipped, ...], int]
"""The writer, the number of parts that it has, what of them was skipped, and how many of their pixels were clipped."""


def _begun(source: Source, partial: Path) -> Begun:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return Writer(partial, source.description), 0, (), 0


def _taken_up(source: Source, partial: Path) -> Begun | None:
    """After the complete files of an earlier preparation; None where there is none, or not of this very source."""
    try:
        progress = Progress.model_validate(json.loads((partial / PROGRESS).read_text(encoding="utf-8")))
        m = progress.manifest
        if m.identity != source.identity or m.description != source.description:
            return None
        store, writer = Store(partial, m), Writer(partial, source.description)
        writer.take_up(m.files, map(store.slice, range(m.slices)))
    except (FileNotFoundError, ValueError, DataError):  # what is there is of no use: it is begun anew
        return None
    for path in partial.iterdir():
        if path.name not in (PROGRESS, *(file.name for file in m.files)):
            path.unlink()  # what was not complete
    return writer, progress.parts, m.skipped, m.clipped


def _note(source: Source, writer: Writer, parts: int, skipped: tuple[Skipped, ...], clipped: int) -> None:
    manifest = writer.manifest(skipped=skipped, clipped=clipped, **_origin(source))
    progress = Progress(parts=parts, manifest=manifest)
    write_atomically(writer.folder / PROGRESS, progress.model_dump_json().encode())


def _origin(source: Source) -> dict[str, Any]:
    return {
        "identity": source.identity, "rater_names": source.raters, "channel_names": source.channels,
        "framing": source.framing, "notes": source.notes,
    }  # fmt: skip
