"""What every source of real data is to the preparation: a list of parts that can be read one by one.

A source (`npc`, `own`, `lidc_dicom`, `lidc_pickle`) looks at what it was given, refuses at once what can be refused
without reading pixels, and returns a `Source`. `prepare` reads its parts in several processes and writes the store.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proseg.data.case import Slice
from proseg.data.folds import Fold
from proseg.data.store import Description


@dataclass(frozen=True)
class Skipped:
    """Something of the source that is not in the store."""

    what: str
    """A file, a slice, a rater: named as the user would look for it."""
    why: str


@dataclass(frozen=True)
class Part:
    """What one part of a source gave: its slices in ascending z, and what had to be left out."""

    slices: tuple[Slice, ...]
    skipped: tuple[Skipped, ...] = ()


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
    """What was left out before any pixel was read."""
    raters: tuple[str, ...] = ()
    """Their names where they are people; in the order of the annotations."""
    channels: tuple[str, ...] = ()
    """Names of the image's channels."""


def identity_of(files: Iterable[Path], **options: object) -> str:
    """Changes when a file is added, removed, renamed or replaced, or an option changes."""
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((facts, sorted(options.items()))).encode()).hexdigest()
