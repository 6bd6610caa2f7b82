"""What a data set of a user's own consists of, and what must hold for it, checked without looking into an image."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from proseg.data.folds import Fold
from proseg.data.images import KNOWN, is_image
from proseg.errors import DataError

PartName = Literal["train", "val", "test"]
PARTS: tuple[PartName, ...] = get_args(PartName)
MIN_RATERS = 2
FOLDS = 4


@dataclass(frozen=True)
class Entry:
    """One image with its masks, none of them read yet."""

    where: str
    """Row or file, as the user would look for it."""
    images: tuple[Path, ...]
    """One file, or one for each channel."""
    masks: tuple[Path | None, ...]
    """In the order of the raters; None where the rater is missing."""
    patient: str
    volume: str
    number: float | None
    """Of a 2-D slice in its volume; None where nothing was said."""
    part: PartName | None


@dataclass(frozen=True)
class Inventory:
    """All images of a data set, in the order of the manifest, or by name."""

    source: Path
    """The manifest or the folder."""
    raters: tuple[str, ...]
    channels: tuple[str, ...]
    """Names, where each channel has files of its own."""
    entries: tuple[Entry, ...]
    tables: tuple[Path, ...]
    """Files that say what belongs together."""
    patients_known: bool

    @property
    def files(self) -> list[Path]:
        """All of them, the tables included."""
        pictures = (path for entry in self.entries for path in (*entry.images, *entry.masks) if path is not None)
        return [*self.tables, *pictures]

    @property
    def fold(self) -> Fold | None:
        """The partition that came with the data."""
        if self.entries[0].part is None:
            return None
        parts = ({entry.patient: None for entry in self.entries if entry.part == part} for part in PARTS)
        return Fold(0, *map(tuple, parts))


@dataclass(frozen=True)
class Files:
    """The files below a folder; what leads out of it is refused."""

    folder: Path
    _real: dict[Path, Path] = field(default_factory=dict)
    """Folders that have been looked at, and where they really lie."""

    def named(self, cell: str, where: str) -> Path:
        """The file of a cell of a manifest."""
        name = PurePosixPath(cell)
        path = self.folder / name  # if the name is absolute, it is the path
        if not path.is_relative_to(self.folder) or {"..", "\0"} & {*name.parts, *cell}:
            raise DataError(f"{where}: {cell} leads out of {self.folder}; name files by their path below this folder")
        self.check(path, where)
        return path

    def check(self, path: Path, where: str) -> None:
        """That it is an image file below the folder, which can be opened."""
        if not is_image(path.name):
            raise DataError(f"{where}: {path} is of an unknown type; images and masks must be {KNOWN}")
        check_file(path, where)
        real = path.resolve() if path.is_symlink() else self._resolved(path.parent) / path.name
        if not real.is_relative_to(self._resolved(self.folder)):
            raise DataError(f"{where}: {path} is a link out of {self.folder}, to {real}; put the file itself there")

    def _resolved(self, folder: Path) -> Path:
        if folder not in self._real:
            self._real[folder] = folder.resolve()
        return self._real[folder]


def check_file(path: Path, where: str) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{where}: there is no file {path}") from None
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{where}: {path} is no file")
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise DataError(f"{where}: there is no permission to read {path}")


# What holds for both


def check(found: Inventory) -> None:
    if len(found.raters) < MIN_RATERS:
        raise DataError(
            f"{found.source}: has {len(found.raters)} rater{'' if len(found.raters) == 1 else 's'} "
            f"({', '.join(found.raters) or 'no column mask_<rater>, no folder masks/<rater>/'}); "
            f"the method learns how raters differ and needs at least {MIN_RATERS}"
        )
    for each in (_check_files_once, _check_annotated, _check_slices_once, _check_patients, _check_parts):
        each(found)


def _check_files_once(found: Inventory) -> None:
    used: dict[Path, str] = {}
    for entry in found.entries:
        for path in (*entry.images, *filter(None, entry.masks)):
            if path in used:
                raise DataError(f"{entry.where}: {path} is named a second time, after {used[path]}")
            used[path] = entry.where


def _check_annotated(found: Inventory) -> None:
    for entry in found.entries:
        if not any(entry.masks):
            raise DataError(f"{entry.where}: the image {entry.images[0]} is annotated by no rater; leave it out")
    for place, rater in enumerate(found.raters):
        if not any(entry.masks[place] for entry in found.entries):
            raise DataError(f"{found.source}: rater {rater!r} has no mask at all; leave the rater out")


def _check_slices_once(found: Inventory) -> None:
    first: dict[str, Entry] = {}
    numbers: dict[tuple[str, float], Entry] = {}
    for entry in found.entries:
        other = first.setdefault(entry.volume, entry)
        if (other.number is None) != (entry.number is None):
            raise DataError(
                f"{entry.where}: volume {entry.volume!r} has slices with a number and slices without; see {other.where}"
            )
        if entry.number is None:
            continue
        other = numbers.setdefault((entry.volume, entry.number), entry)
        if other is not entry:
            raise DataError(
                f"{entry.where}: slice {entry.number:g} of volume {entry.volume!r} stands there a second time, after "
                f"{other.where}"
            )


def _check_patients(found: Inventory) -> None:
    whose: dict[str, Entry] = {}
    parts: dict[str, Entry] = {}
    for entry in found.entries:
        other = whose.setdefault(entry.volume, entry)
        if other.patient != entry.patient:
            raise DataError(
                f"{entry.where}: volume {entry.volume!r} belongs to patient {entry.patient!r}, but to "
                f"{other.patient!r} in {other.where}"
            )
        other = parts.setdefault(entry.patient, entry)
        if other.part != entry.part:
            raise DataError(
                f"{entry.where}: patient {entry.patient!r} is in {entry.part}, but in {other.part} in {other.where}; "
                "all images of a patient must be in one part"
            )


def _check_parts(found: Inventory) -> None:
    if found.fold is None:
        patients = len({entry.patient for entry in found.entries})
        if patients < 2 * FOLDS:
            raise DataError(
                f"{found.source}: has {patients} patients; {FOLDS} folds need at least {2 * FOLDS}, so say yourself "
                "which are for train, val and test"
            )
        return
    for part in PARTS:
        if not any(entry.part == part for entry in found.entries):
            raise DataError(f"{found.source}: nothing is in the part {part!r}; train, val and test need a patient each")
