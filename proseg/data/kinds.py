"""What `data prepare` can read: the kinds of source by name, and the options that each takes."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from proseg.data.reading import Track, silent
from proseg.data.source import Source
from proseg.errors import DataError

Selection = Literal["paper", "all4", "any"]
Fit = Literal["crop", "zoom"]


@dataclass(frozen=True)
class Choices:
    """What was asked for of a source; None (False) is what was not said."""

    selection: Selection | None = None
    """Of LIDC's slices: the paper's list, all with four raters, all with any."""
    outline: Literal["in", "out"] | None = None
    """Whether the outlines that LIDC's raters drew belong to their masks."""
    size: tuple[int, int] | None = None
    """(H, W) of the slices."""
    fit: Fit | None = None
    """How they come to that size."""
    classes: int | None = None
    """Of foreground."""
    window: tuple[float, float] | None = None
    """Intensities that are mapped to -1..1."""
    sorted_raters: bool = False
    """Raters are nobody in particular: sorted by area in every image."""
    label: str | None = None
    licence: str | None = None
    root: Path | None = None
    """Folder below which the files of a manifest lie; None: the manifest's own."""
    images: str | None = None
    """Pattern of the images' paths below a folder; see `proseg.data.own.patterns`."""
    masks: tuple[str, ...] = ()
    """Patterns of the masks' paths."""
    write_manifest: Path | None = None
    """File to which a manifest of all that was found is written."""
    axes: str | None = None
    """Order of the axes of arrays, as in "yxc"."""
    spacing: tuple[float, ...] | None = None
    """(y, x) or (z, y, x) in mm of files that do not know theirs."""
    threshold: float | None = None
    """Value of a mask from which on a pixel belongs to the object."""
    invert: bool = False
    """Whether object and background of the masks are exchanged."""
    empty_is_missing: bool = False
    """Whether an empty mask says that its rater did not annotate the image."""
    drop_rater: tuple[str, ...] = ()
    """Raters who are left out."""
    as_written: bool = False
    """Whether names that differ in spelling alone are different."""

    def given(self) -> list[str]:
        """Names of what was said."""
        return [field.name for field in fields(self) if getattr(self, field.name) not in (None, False, ())]


@dataclass(frozen=True)
class Kind:
    """A kind of source."""

    name: str
    about: str
    options: tuple[str, ...]
    """Fields of `Choices` which it takes."""
    open: Callable[[Path, str, Choices, Track], Source]
    """Looks at a path and refuses what it must, without reading pixels; of the data set's name and what was asked."""
    space: str | None = None
    """The shipped search space that fits whatever is prepared from it."""

    def source(self, path: Path, name: str, choices: Choices, track: Track = silent) -> Source:
        """The source at `path`; where there is much to look through, `track` shows how far that is.

        Raises:
            DataError: there is nothing, an option does not belong to this kind, or the source is not what it should be.
        """
        if surplus := [option(one) for one in choices.given() if one not in self.options]:
            takes = ", ".join(map(option, self.options)) or "none"
            raise DataError(f"data prepare {self.name} does not take {', '.join(surplus)}; its options are: {takes}")
        if not path.exists():
            raise DataError(f"--from {path}: there is no such file or folder")
        return self.open(path.resolve(), name, choices, track)


def option(name: str) -> str:
    """As a person types it."""
    return f"--{name.replace('_', '-')}"


def _npc(path: Path, name: str, choices: Choices, track: Track) -> Source:
    from proseg.data.npc import source

    return source(path, size=choices.size or (128, 128), fit=choices.fit or "crop")


def _lidc_dicom(path: Path, name: str, choices: Choices, track: Track) -> Source:
    from proseg.data.lidc_dicom import source

    return source(path, selection=choices.selection or "paper", outline=choices.outline != "out", track=track)


def _lidc_pickle(path: Path, name: str, choices: Choices, track: Track) -> Source:
    from proseg.data.lidc_pickle import source

    return source(path)


def _lidc_slices(path: Path, name: str, choices: Choices, track: Track) -> Source:
    from proseg.data.lidc_slices import source

    return source(path, selection=choices.selection or "paper")


def _own(path: Path, name: str, choices: Choices, track: Track) -> Source:
    from proseg.data.own import source

    return source(path, name, choices, track=track)


_OWN = tuple(field.name for field in fields(Choices) if field.name not in ("selection", "outline"))
KINDS = {
    kind.name: kind
    for kind in (
        Kind("lidc-dicom", "a folder of LIDC-IDRI's DICOM series, in any layout", ("selection", "outline"),
             _lidc_dicom, space="lidc"),
        Kind("lidc-pickle", "MedicalMatting's lidc_attributes.pkl", (), _lidc_pickle, space="lidc"),
        Kind("lidc-slices", "the folder LIDC-IDRI-slices of PNG crops", ("selection",), _lidc_slices, space="lidc"),
        Kind("npc", "a folder in the layout of MMIS-2024 task 1 (HDF5)", ("size", "fit"), _npc),
        Kind("own", "a manifest (.csv, .parquet), a folder of images/ and masks/RATER/, or of any layout", _OWN, _own),
    )
}  # fmt: skip


def find_kind(name: str) -> Kind:
    """By the name a user types; raises DataError, with the names there are, where it is none."""
    if name not in KINDS:
        names = "; ".join(f"{kind.name} ({kind.about})" for kind in KINDS.values())
        raise DataError(f"there is no source {name!r}: use one of {names}")
    return KINDS[name]
