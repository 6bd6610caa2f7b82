"""What lies below a folder, and which of it a pattern names."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from proseg.data import images
from proseg.data.images.dicom_series import SUFFIXES, is_dicom_file
from proseg.data.manifest import Skipped
from proseg.data.own.wildcards import TOKEN, Pattern
from proseg.errors import ConfigError, DataError, listed


@dataclass(frozen=True)
class Listing:
    """Paths relative to a folder, without what is hidden."""

    folder: Path
    files: tuple[str, ...]
    """In alphabetical order."""
    folders: dict[str, frozenset[str]]
    """The files in each."""
    skipped: tuple[Skipped, ...]
    """Folders that were not looked into."""

    def called(self, pattern: Pattern) -> dict[str, re.Match[str]]:
        """The images that a pattern names, in alphabetical order: files, of a pair one, and folders of DICOM files.

        Raises:
            DataError: there is none.
            ConfigError: it names files of DICOM series that do not bear a suffix.
        """
        found = {
            name: match for name in self.files if images.is_image(name) and (match := pattern.regex.fullmatch(name))
        }
        parts = images.pixels_among(self.folder, found)
        for name, files in self.folders.items():
            if (match := pattern.regex.fullmatch(name)) and any(map(self._is_of_series, files)):
                found[name] = match
                parts |= files
        if not found:
            raise DataError(f"{self.folder}: no file is called like {pattern}; {self._meant(pattern)}")
        return {name: found[name] for name in sorted(found.keys() - parts)}

    def nearly_called(self, pattern: Pattern) -> Iterator[str]:
        """Files that would be called like a pattern if their letters were of another case."""
        for name in self.files:
            if pattern.regex_in_any_case.fullmatch(name) and not pattern.regex.fullmatch(name):
                yield name

    def _meant(self, pattern: Pattern) -> str:
        for name in filter(pattern.regex.fullmatch, self.files):
            if self._is_of_series(name):
                raise one_by_one(pattern)
            return f"{name} is, but its type is unknown; images and masks must be {images.KNOWN}, or DICOM"
        if near := [*self.nearly_called(pattern)]:
            return f"{listed(near)} differ from it in capitals and small letters alone"
        there = listed([*filter(images.is_image, self.files)])
        return f"there are {there}" if there else "there is no image file in it"

    def _is_of_series(self, name: str) -> bool:
        return (is_dicom_name(name) or not images.is_image(name)) and is_dicom_file(self.folder / name)


def is_dicom_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def one_by_one(pattern: Pattern) -> ConfigError:
    """What to do where the files of a series were named as if each were an image."""
    folder = pattern.given.rpartition("/")[0]
    known = f"name the folder of each instead, as in {pattern.option} {folder!r}"
    meant = known if TOKEN.search(folder) else "put each series into a folder of its own, and name that"
    return ConfigError(f"{pattern} names the files of DICOM series one by one: {meant}")


def listing(folder: Path) -> Listing:
    """All that lies below a folder; links to folders are not followed."""
    folders: dict[str, frozenset[str]] = {}
    skipped: list[Skipped] = []

    def refuse(error: OSError) -> None:
        if error.filename == str(folder):
            raise DataError(f"{folder}: cannot be read: {error.strerror}")
        name = os.path.relpath(error.filename, folder)
        skipped.append(Skipped(name, f"a folder that cannot be read: {error.strerror}"))

    for place, below, names in os.walk(folder, onerror=refuse):
        here = os.path.relpath(place, folder)
        before = "" if here == os.curdir else f"{here}/"
        below[:] = [name for name in below if not name.startswith(".")]
        links = [before + name for name in below if os.path.islink(f"{place}/{name}")]
        skipped += [Skipped(name, "a link to a folder, which is not followed") for name in links]
        folders[here] = frozenset(before + name for name in names if not name.startswith("."))
    return Listing(folder, tuple(sorted(chain.from_iterable(folders.values()))), folders, tuple(skipped))
