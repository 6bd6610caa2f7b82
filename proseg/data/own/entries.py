"""The images and masks of a data set of a user's own, and what must hold for them, checked without reading pixels."""

import difflib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, get_args

from proseg.data import images
from proseg.data.folds import Fold
from proseg.data.manifest import Skipped
from proseg.data.own.identities import check_spelling, key
from proseg.errors import DataError, Faults

PartName = Literal["train", "val", "test"]
PARTS: tuple[PartName, ...] = get_args(PartName)
MIN_RATERS = 2
FOLDS = 4

Spacing = tuple[float | None, float | None, float | None]


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
    number: float | None = None
    """Number of a 2-D slice in its volume; None where nothing was said."""
    part: PartName | None = None
    spacing: Spacing = (None, None, None)
    """(z, y, x) in mm, as the user says; None where nothing was said."""


@dataclass(frozen=True)
class Inventory:
    """All images of a data set, in the order of the manifest, or by name."""

    source: Path
    """The manifest or the folder."""
    root: Path
    """Folder below which all files lie."""
    raters: tuple[str, ...]
    entries: tuple[Entry, ...]
    channels: tuple[str, ...] = ()
    """Names, where each channel has files of its own."""
    tables: tuple[Path, ...] = ()
    """Files that say what belongs together."""
    patients_known: bool = True
    skipped: tuple[Skipped, ...] = ()
    """Files that were found and are not used."""

    @property
    def files(self) -> list[Path]:
        """All of them, the tables included."""
        paths = (path for entry in self.entries for path in (*entry.images, *entry.masks) if path is not None)
        return [*self.tables, *chain.from_iterable(map(images.files, paths))]

    @property
    def fold(self) -> Fold | None:
        """The partition that came with the data."""
        if self.entries[0].part is None:
            return None
        parts = ({entry.patient: None for entry in self.entries if entry.part == part} for part in PARTS)
        return Fold(0, *map(tuple, parts))

    def without(self, raters: Sequence[str]) -> "Inventory":
        """The same without these raters; images that nobody else annotated are skipped.

        Raises:
            DataError: there is no rater of one of these names.
        """
        if unknown := [rater for rater in raters if rater not in self.raters]:
            raise DataError(f"--drop-rater {unknown[0]}: there is no such rater; there are {', '.join(self.raters)}")
        if not raters:
            return self
        kept = [place for place, rater in enumerate(self.raters) if rater not in raters]
        entries = [replace(one, masks=tuple(one.masks[place] for place in kept)) for one in self.entries]
        alone = [one for one in entries if not any(one.masks)]
        why = f"annotated by none but {', '.join(raters)}, who was dropped"
        return replace(
            self,
            raters=tuple(self.raters[place] for place in kept),
            entries=tuple(one for one in entries if any(one.masks)),
            skipped=(*self.skipped, *(Skipped(str(one.images[0]), why) for one in alone)),
        )


@dataclass(frozen=True)
class Files:
    """The files below a folder; what leads out of it is refused."""

    folder: Path
    option: str = "--root"
    """That names the folder."""
    _real: dict[Path, Path] = field(default_factory=dict)
    """Folders that have been looked at, and where they really lie."""

    def named(self, cell: str, where: str) -> Path:
        """The file of a cell of a manifest."""
        name = PurePosixPath(cell)
        path, leads_up = self.folder / name, {"..", "\0"} & {*name.parts, *cell}
        if name.is_absolute() and not leads_up:
            path = self.below(path) or path
        if leads_up or not path.is_relative_to(self.folder):
            raise DataError(
                f"{where}: {cell} leads out of {self.folder}; name files by their path below this folder, or another "
                "folder with --root"
            )
        self.check(path, where)
        return path

    def below(self, path: Path) -> Path | None:
        """A path by the name that the folder has here, where it may be called in another way, through a link; None
        where it lies elsewhere."""
        real, there = self._resolved(path.parent) / path.name, self._resolved(self.folder)
        return self.folder / real.relative_to(there) if real.is_relative_to(there) else None

    def check(self, path: Path, where: str) -> None:
        """That it is an image file, or the folder of a DICOM series, that can be opened."""
        if images.is_image(path.name):
            check_file(path, where)
        elif not path.is_dir():
            check_file(path, where)
            raise DataError(f"{where}: {path} is of an unknown type; images and masks must be {images.KNOWN}")
        real = path.resolve() if path.is_symlink() else self._resolved(path.parent) / path.name
        if not real.is_relative_to(self._resolved(self.folder)):
            raise DataError(
                f"{where}: {path} is a link out of {self.folder}, to {real}; put the file itself there, or name the "
                f"folder where it lies with {self.option}"
            )

    def _resolved(self, folder: Path) -> Path:
        if folder not in self._real:
            self._real[folder] = Path(os.path.realpath(folder))
        return self._real[folder]


def check_file(path: Path, where: str) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{where}: there is no file {path}{near_miss(path)}") from None
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{where}: {path} is no file")
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise DataError(f"{where}: there is no permission to read {path}")


def near_miss(path: Path) -> str:
    """What was probably meant by the name of a file that is not there, as the end of a sentence: its slashes, spelling
    or type are others."""
    if "\\" in path.name:
        turned = path.parent.joinpath(*PureWindowsPath(path.name).parts)
        return f"; there is {turned}: write / for \\" if os.path.isfile(turned) else ""
    if not os.path.isdir(path.parent):  # pathlib raises where a name is too long
        return near_miss(path.parent) if path.parent != path.parent.parent else ""
    if not os.access(path.parent, os.R_OK):
        return ""
    there = sorted(os.listdir(path.parent))
    same = [name for name in there if name.casefold() == path.name.casefold()] or [
        name for name in there if key(name) == key(path.name) or images.stem(name) == images.stem(path.name)
    ]
    near = same or difflib.get_close_matches(path.name, there, 1, 0.85)
    return f"; there is {path.parent / near[0]}" if near else ""


# What holds for manifests, folders and patterns alike


def check(found: Inventory, *, as_written: bool) -> None:
    """Raises DataError with all that is wrong."""
    if len(found.raters) < MIN_RATERS:
        raise DataError(
            f"{found.source}: has {len(found.raters)} rater{'' if len(found.raters) == 1 else 's'} "
            f"({', '.join(found.raters) or 'no column mask_<rater>, no folder masks/<rater>/'}); "
            f"the method learns how raters differ and needs at least {MIN_RATERS}"
        )
    if not found.entries:
        raise DataError(f"{found.source}: no image is left that a rater annotated")
    faults, spelt = Faults(), found.entries
    if not as_written:
        check_spelling("rater", ((rater, str(found.source)) for rater in found.raters), faults)
        others = check_spelling("patient", ((entry.patient, entry.where) for entry in spelt), faults)
        # A volume may be named after its patient: what follows from one spelling is not told of a second time.
        spelt = tuple(entry for entry in spelt if entry.patient not in others)
        check_spelling("volume", ((entry.volume, entry.where) for entry in spelt), faults)
    for some in (_files_once(found), _annotated(found), _slices_once(found), _patients(spelt), _parts(found)):
        faults.add(*some)
    faults.check()


def _files_once(found: Inventory) -> Iterable[str]:
    used: dict[Path, str] = {}
    for entry in found.entries:
        for path in (*entry.images, *filter(None, entry.masks)):
            if path in used:
                yield f"{entry.where}: {path} is named a second time, after {used[path]}"
            used[path] = entry.where


def _annotated(found: Inventory) -> Iterable[str]:
    for entry in found.entries:
        if not any(entry.masks):
            yield f"{entry.where}: the image {entry.images[0]} is annotated by no rater; leave it out"
    for place, rater in enumerate(found.raters):
        patients = {(entry.patient, entry.part) for entry in found.entries if entry.masks[place]}
        remedy = f"leave the rater out with --drop-rater {rater!r}"
        if not patients:
            yield f"{found.source}: rater {rater!r} has no mask at all; {remedy}"
        elif found.entries[0].part is not None and not any(part == "train" for _, part in patients):
            yield f"{found.source}: rater {rater!r} has no mask in the training part; {remedy}"
        elif found.entries[0].part is None and len(patients) == 1 and len({e.patient for e in found.entries}) > 1:
            yield (
                f"{found.source}: rater {rater!r} has masks of one patient alone, who is tested on in one of the "
                f"{FOLDS} folds, and then nothing is learnt of them; {remedy}"
            )


def _slices_once(found: Inventory) -> Iterable[str]:
    first: dict[str, Entry] = {}
    numbers: dict[tuple[str, float], Entry] = {}
    for entry in found.entries:
        other = first.setdefault(entry.volume, entry)
        if (other.number is None) != (entry.number is None):
            yield f"{entry.where}: volume {entry.volume!r} has slices with and without a number; see {other.where}"
        if entry.number is None:
            continue
        other = numbers.setdefault((entry.volume, entry.number), entry)
        if other is not entry:
            yield (
                f"{entry.where}: slice {entry.number:g} of volume {entry.volume!r} stands there a second time, after "
                f"{other.where}"
            )


def _patients(entries: Iterable[Entry]) -> Iterable[str]:
    whose: dict[str, Entry] = {}
    parts: dict[str, Entry] = {}
    for entry in entries:
        other = whose.setdefault(entry.volume, entry)
        if other.patient != entry.patient:
            yield (
                f"{entry.where}: volume {entry.volume!r} belongs to patient {entry.patient!r}, but to "
                f"{other.patient!r} in {other.where}"
            )
        other = parts.setdefault(entry.patient, entry)
        if other.part != entry.part:
            yield (
                f"{entry.where}: patient {entry.patient!r} is in {entry.part}, but in {other.part} in {other.where}; "
                "all images of a patient must be in one part"
            )


def _parts(found: Inventory) -> Iterable[str]:
    if found.fold is None:
        patients = len({entry.patient for entry in found.entries})
        if patients < 2 * FOLDS:
            yield (
                f"{found.source}: has {patients} patients; {FOLDS} folds need at least {2 * FOLDS}, so say yourself "
                "which are for train, val and test"
            )
        return
    for part in PARTS:
        if not any(entry.part == part for entry in found.entries):
            yield f"{found.source}: nothing is in the part {part!r}; train, val and test need a patient each"
