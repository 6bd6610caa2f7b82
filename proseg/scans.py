"""What a model is asked to segment: image files, DICOM series, files of one channel each, or a table of these.

A table is a CSV or Parquet file with a row for each image, in the columns of a training manifest
(`proseg.data.own.manifest`), in capitals or not:

    image             its file or DICOM folder; or, one for each channel, image_<channel> ... in any order
    name              optional: what the folder of its results is called
    x, y, z           optional: the point about which a crop is segmented, instead of the whole (`Point`)

Paths are relative to the table's folder, or absolute. Other columns are ignored.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from proseg.data import images
from proseg.data.images import orientation
from proseg.data.images.channels import joined, joined_header
from proseg.data.images.dicom_series import SUFFIXES, Series, find_series, is_dicom_file
from proseg.data.images.picture import Header, Picture
from proseg.data.own.entries import near_miss
from proseg.data.own.manifest import IMAGE, named_columns
from proseg.data.tables import SUFFIXES as TABLES
from proseg.data.tables import read_table
from proseg.errors import DataError

POINT = (
    "X,Y of a slice or X,Y,Z of a volume, in whole voxels of the file counted from 0, as in 210,305,40 or 210,305,38:44"
)


class Piece(Protocol):
    """A file, or a series of them, that a picture is read from."""

    @property
    def path(self) -> Path: ...

    def look(self) -> Header: ...

    def read(self) -> Picture: ...

    def write_like(self, target: Path, maps: np.ndarray, *, classes: int = 1) -> Path: ...


@dataclass(frozen=True)
class ImageFile:
    """A file of `proseg.data.images`."""

    path: Path
    axes: str | None = None
    """What its axes are, of an array that does not say so; see `proseg.data.images.look`."""

    def look(self) -> Header:
        return images.look(self.path, axes=self.axes)

    def read(self) -> Picture:
        return images.read(self.path, axes=self.axes)

    def write_like(self, target: Path, maps: np.ndarray, *, classes: int = 1) -> Path:
        return images.write_like(target, maps, self.path, classes=classes)


@dataclass(frozen=True)
class Target:
    """A point in a picture's own axes, and the slices in which it is looked at."""

    slices: range
    row: int
    column: int


@dataclass(frozen=True)
class Point:
    """Where in an image a crop is to be segmented: along each axis of its file the first voxel and the last, from 0.

    Of a volume several slices may be meant; in their plane it is one point.
    """

    spans: tuple[tuple[int, int], ...]

    @property
    def slices(self) -> int:
        """Number of slices that are meant."""
        return math.prod(last - first + 1 for first, last in self.spans)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}:{last}" for first, last in self.spans)

    def within(self, picture: Picture, name: str) -> Target:
        """The same in the picture's axes; raises DataError, naming the image, where it lies outside or is not clear."""
        sizes, spans = orientation.sizes_in_file(picture), self.spans
        if len(sizes) == len(spans) + 1 and sizes.count(1) == 1:  # of one slice, which need not be named
            spans = (*spans[: sizes.index(1)], (0, 0), *spans[sizes.index(1) :])
        if len(sizes) != len(spans):
            raise DataError(f"{name}: has {len(sizes)} axes, but the point {self} has {len(spans)}; write {POINT}")
        if any(last >= size for (_, last), size in zip(spans, sizes, strict=True)):
            there = " x ".join(map(str, sizes))
            raise DataError(f"{name}: the point {self} lies outside of its {there} voxels, which are counted from 0")
        *slices, (row, last_row), (column, last_column) = orientation.spans(picture, spans)
        if (row, column) != (last_row, last_column):
            raise DataError(
                f"{name}: the point {self} names several voxels along an axis that is not that of its slices, where "
                "only one can be the middle of the crop"
            )
        first, last = slices[0] if slices else (0, 0)
        return Target(range(first, last + 1), row, column)


def point(text: str, where: str = "--at") -> Point:
    """The point that a person or a spreadsheet (13.0) writes; raises DataError where it is none."""
    whole = r"(\d{1,6})(?:\.0*)?"
    found = [re.fullmatch(f"{whole}(?::{whole})?", word.strip(), re.ASCII) for word in text.split(",")]
    spans = [(int(match[1]), int(match[2] or match[1])) for match in found if match]
    if len(spans) != len(found) or len(spans) not in (2, 3) or any(first > last for first, last in spans):
        raise DataError(f"{where} {text!r} is no point: write {POINT}")
    return Point(tuple(spans))


@dataclass(frozen=True, eq=False)
class Scan:
    """One image to segment."""

    name: str
    """Of the folder of its results."""
    pieces: tuple[Piece, ...]
    """One with all channels, or one a channel in the model's order."""
    point: Point | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(piece.path for piece in self.pieces)

    def __str__(self) -> str:
        return ",".join(map(str, self.paths))

    def look(self) -> Header:
        """Raises DataError where a file is no image, or files do not belong together."""
        return joined_header(self._names, [piece.look() for piece in self.pieces])

    def read(self) -> Picture:
        """Raises DataError as `look`, and where a file is damaged."""
        return joined(self._names, [piece.read() for piece in self.pieces])

    def write_like(self, target: Path, maps: np.ndarray, *, classes: int = 1) -> Path:
        """Write maps in the geometry of the first of its files; see `proseg.data.images.write_like`."""
        return self.pieces[0].write_like(target, maps, classes=classes)

    @property
    def _names(self) -> list[str]:
        return [*map(str, self.paths)]


def find(
    inputs: Sequence[str | Path],
    channels: Sequence[str],
    *,
    series: Sequence[str] = (),
    at: str | None = None,
    axes: str | None = None,
) -> list[Scan]:
    """What these inputs are, no pixel read yet.

    Args:
        inputs: files, DICOM folders, such joined by commas, or tables.
        channels: their names, in the order in which the model takes them; empty where they have none.
        series: UIDs of DICOM series, for folders with several.
        at: a point, if there is one input.
        axes: of the files that do not say what their axes are, if there are any.

    Raises:
        DataError: naming the input that is not there, or is nothing that can be read, or a series that no input has.
    """
    scans = [scan for one in inputs for scan in _found(str(one), channels, series)]
    images.check_axes((path for scan in scans for path in scan.paths), axes)
    scans = [replace(scan, pieces=tuple(_with_axes(piece, axes) for piece in scan.pieces)) for scan in scans]
    _check_series(scans, series)
    if at is None:
        return scans
    where = point(at)
    if len(scans) != 1 or scans[0].point is not None:
        raise DataError(
            f"--at {at} is a point in one image, but {len(scans)} are given; name the points in a table of images "
            "with columns image, x, y and z"
        )
    return [replace(scans[0], point=where)]


def _check_series(scans: Sequence[Scan], wanted: Sequence[str]) -> None:
    """That each of the series that were asked for is one of those found: a folder with only one takes no notice."""
    found = {piece.uid: piece.path for scan in scans for piece in scan.pieces if isinstance(piece, Series)}
    if absent := [uid for uid in dict.fromkeys(wanted) if uid not in found]:
        there = ", ".join(f"{uid} ({path})" for uid, path in found.items()) or "no DICOM series"
        raise DataError(f"--series {', '.join(absent)}: no input holds that series; the inputs are {there}")


def _found(text: str, channels: Sequence[str], series: Sequence[str]) -> Iterator[Scan]:
    path = Path(text)
    if path.suffix.lower() in TABLES and os.path.isfile(path):
        yield from _rows(path, channels, series)
        return
    names = text.split(",") if "," in text and not os.path.exists(path) else [text]
    if not all(names):
        raise DataError(f"the input {text!r} leaves a name empty; write a file, or one for each channel")
    paths = [Path(one).expanduser() for one in names]
    _check_order(paths, channels)
    pieces = tuple(_piece(one, series) for one in paths)
    yield Scan(_name(paths[0]), pieces)


def _piece(path: Path, series: Sequence[str]) -> Piece:
    if not os.path.exists(path):  # asked of os: pathlib raises where a name is too long
        raise DataError(f"{path}: no such file{near_miss(path)}")
    if images.is_image(path.name) and path.suffix.lower() not in SUFFIXES and not path.is_dir():
        return ImageFile(path)
    if path.is_dir() or is_dicom_file(path):
        return find_series(path, series)
    raise DataError(f"{path}: images must be {images.KNOWN}, or DICOM")


def _with_axes(piece: Piece, axes: str | None) -> Piece:
    return ImageFile(piece.path, images.axes_of(piece.path, axes)) if isinstance(piece, ImageFile) else piece


def _name(path: Path) -> str:
    """Of a file without its type, or of a folder; "." has the name of the folder that it is."""
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.suffix.lower() in SUFFIXES else images.stem(path.name)


def _check_order(paths: Sequence[Path], channels: Sequence[str]) -> None:
    """That no file which bears the name of one channel stands in the place of another."""
    if len(paths) != len(channels) or len(paths) < 2:
        return
    known = {channel.casefold(): channel for channel in channels}
    for path, channel in zip(paths, channels, strict=True):
        words = {word.casefold() for word in re.split(r"[^A-Za-z0-9]+", path.name)} & known.keys()
        if len(words) == 1 and (named := known[words.pop()]) != channel:
            raise DataError(
                f"{path}: stands where the model takes {channel}, and is called {named}; the order is "
                f"{', '.join(channels)}"
            )


# A table


def _rows(path: Path, channels: Sequence[str], series: Sequence[str]) -> Iterator[Scan]:
    columns, rows = named_columns(path, *read_table(path))
    pick = _image_columns(path, columns, channels)
    if not rows:
        raise DataError(f"{path}: the table has no rows")
    for number, row in rows.items():
        where = f"{path}, row {number}"
        empty = next((column for column in pick if not row[column]), None)
        if empty is not None:
            raise DataError(f"{where}: the cell of column {empty!r} is empty")
        paths = [path.parent / row[column] for column in pick]
        pieces = tuple(_named(where, lambda one=one: _piece(one, series)) for one in paths)
        yield Scan(_called(where, row) or _name(paths[0]), pieces, _point_of(where, row))


def _image_columns(path: Path, columns: Sequence[str], channels: Sequence[str]) -> list[str]:
    """Of the files of a row, in the model's order."""
    each = {column.casefold(): column for column in columns if column.startswith(f"{IMAGE}_")}
    if (IMAGE in columns) == bool(each):
        raise DataError(f"{path}: expected a column {IMAGE!r}, or columns image_<channel>; found {', '.join(columns)}")
    if not each:
        return [IMAGE]
    wanted = [f"{IMAGE}_{channel}" for channel in channels] or list(each.values())
    if {*map(str.casefold, wanted)} != each.keys():
        raise DataError(f"{path}: has the columns {', '.join(each.values())}; the model takes {', '.join(wanted)}")
    return [each[column.casefold()] for column in wanted]


def _named(where: str, make: Callable[[], Piece]) -> Piece:
    try:
        return make()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _called(where: str, row: Mapping[str, str]) -> str:
    name = row.get("name", "")
    if name in (".", "..") or re.search(r"[/\\\0]", name):
        raise DataError(f"{where}: the name {name!r} is no name of a folder")
    return name


def _point_of(where: str, row: Mapping[str, str]) -> Point | None:
    cells = [row.get(axis, "") for axis in "xyz"]
    if not any(cells):
        return None
    if not all(cells[:2]):
        raise DataError(f"{where}: a point has x and y, and z in a volume; x is {cells[0]!r} and y is {cells[1]!r}")
    return point(",".join(cell for cell in cells if cell), f"{where}:")
