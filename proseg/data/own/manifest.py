"""A data set of one's own by a manifest: a CSV or Parquet table, one row an image (a volume, or a 2-D slice).

    image             file of the image; or, one file for each channel, image_<channel> ...
    mask_<rater> ...  file of that rater's mask; empty where the rater did not see the image
    patient           folds are drawn over patients; or
    assumed_patient   where nobody knows whose the images are: each is taken for a patient of its own
    volume, slice     optional, of 2-D images: the volume they were cut from, and the number in it (from the feet up);
                      `slice` without `volume` counts within the patient
    split             optional: train, val or test; without it, four folds are dealt
    spacing_x, _y, _z optional: mm, for files that do not say it

A long table has columns rater and mask instead, one row a mask. Paths are relative to the manifest's folder or to
another root (or absolute), and none leads out of it. Names of columns may be in any case; others are ignored.
"""

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from proseg.data.own.entries import PARTS, Entry, Files, Inventory, PartName, Spacing, check_file
from proseg.data.tables import Rows, read_table
from proseg.errors import DataError, Faults

IMAGE, MASK = "image", "mask_"
PATIENT, ASSUMED = "patient", "assumed_patient"
SPACING = ("spacing_z", "spacing_y", "spacing_x")
LONG = ("rater", "mask")
OPTIONAL = ("volume", "slice", "split", *SPACING)

Row = Mapping[str, str]


def inventory(path: Path, root: Path) -> Inventory:
    """The files that a manifest names, below `root`.

    Raises:
        DataError: naming the manifest and the rows, and the columns where it is one.
    """
    check_file(path, "the manifest")
    columns, rows = named_columns(path, *read_table(path))
    if not rows:
        raise DataError(f"{path}: the manifest has no rows")
    assumed = ASSUMED in columns
    if assumed:
        columns, rows = _with_patients(path, columns, rows)
    if set(LONG) <= set(columns):
        columns, rows = _widened(path, columns, rows)
    _check_columns(path, columns)
    channels = [column for column in columns if column.startswith(f"{IMAGE}_")]
    raters = [column for column in columns if column.startswith(MASK)]
    files, faults, entries = Files(root), Faults(), []
    for number, row in rows.items():
        with faults.caught():
            entries.append(_entry(f"{path}, row {number}", row, channels or [IMAGE], raters, files))
    faults.check()
    if assumed:
        _check_assumed(entries)
    return Inventory(
        source=path,
        root=root,
        raters=tuple(column.removeprefix(MASK) for column in raters),
        channels=tuple(column.removeprefix(f"{IMAGE}_") for column in channels),
        entries=tuple(entries),
        tables=(path,),
        patients_known=not assumed,
    )


def named_columns(path: Path, columns: Sequence[str], rows: Rows) -> tuple[list[str], Rows]:
    """A table whose columns bear their names as they are written above, in whatever case they came."""
    known = {IMAGE, PATIENT, ASSUMED, "name", "x", "y", "z", *LONG, *OPTIONAL}
    names = []
    for column in columns:
        lower = column.lower()
        prefix = next((one for one in (f"{IMAGE}_", MASK) if lower.startswith(one)), "")
        names.append(lower if lower in known else prefix + column[len(prefix) :])
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the column {twice!r} stands there twice")
    return names, {number: dict(zip(names, row.values(), strict=True)) for number, row in rows.items()}


def _with_patients(path: Path, columns: Sequence[str], rows: Rows) -> tuple[list[str], Rows]:
    """The same with assumed patients where the others stand."""
    if PATIENT in columns:
        raise DataError(f"{path}: has the columns {PATIENT!r} and {ASSUMED!r}; keep the one that holds")
    names = [PATIENT if column == ASSUMED else column for column in columns]
    return names, {number: dict(zip(names, row.values(), strict=True)) for number, row in rows.items()}


def _check_assumed(entries: Sequence[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.patient, entry)
        if other is not entry:
            raise DataError(
                f"{entry.where}: {ASSUMED} {entry.patient!r} stands there a second time, after {other.where}; call the "
                f"column {PATIENT!r} if it says whose the images are"
            )


def _widened(path: Path, columns: Sequence[str], rows: Rows) -> tuple[list[str], Rows]:
    """One row an image, from one row a mask; what else a row says must be the same in all rows of an image."""
    if IMAGE not in columns:
        raise DataError(f"{path}: a table of one row a mask needs the column {IMAGE!r}; found {_listed(columns)}")
    wide: dict[str, tuple[int, dict[str, str]]] = {}
    raters = list(dict.fromkeys(row["rater"] for row in rows.values()))
    shared = [one for one in columns if one in (IMAGE, PATIENT, *OPTIONAL) or one.startswith(f"{IMAGE}_")]
    for number, row in rows.items():
        there, image = wide.setdefault(row[IMAGE], (number, {column: row[column] for column in shared}))
        if other := next((column for column in shared if image[column] != row[column]), None):
            raise DataError(f"{path}, row {number}: {other} is {row[other]!r}, but {image[other]!r} in row {there}")
        if not row["rater"]:
            raise DataError(f"{path}, row {number}: the rater is not named")
        if image.get(MASK + row["rater"]):
            raise DataError(f"{path}, row {number}: rater {row['rater']!r} has a second mask of {row[IMAGE]}")
        image[MASK + row["rater"]] = row["mask"]
    blank = dict.fromkeys((MASK + rater for rater in raters), "")
    return [*shared, *blank], {number: blank | image for number, image in wide.values()}


def write(found: Inventory, target: Path) -> None:
    """Write what was found as a manifest that is read back with `found.root` as its root.

    Raises:
        DataError: another file exists there, or it cannot be written.
    """
    names = [f"{IMAGE}_{name}" for name in found.channels] or [IMAGE]
    said = {name: any(one.spacing[axis] for one in found.entries) for axis, name in enumerate(SPACING)}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    extra = [name for name in ("slice", "split") if any(_told(one)[name] for one in found.entries)]
    axes = [axis for axis, name in enumerate(SPACING) if said[name]]
    masks, whose = [MASK + rater for rater in found.raters], PATIENT if found.patients_known else ASSUMED
    writer.writerow([*names, *masks, whose, "volume", *extra, *(SPACING[axis] for axis in axes)])
    for one in found.entries:
        paths = [path and path.relative_to(found.root).as_posix() for path in (*one.images, *one.masks)]
        told = _told(one)
        writer.writerow([*paths, one.patient, one.volume, *(told[name] for name in extra),
                         *(one.spacing[axis] for axis in axes)])  # fmt: skip
    try:
        with target.open("x", encoding="utf-8", newline="") as file:
            file.write(table.getvalue())
    except FileExistsError:
        # The same command may go on where it stopped.
        if not target.is_file() or target.read_bytes() != table.getvalue().encode():
            raise DataError(f"--write-manifest {target} exists; choose another file") from None
    except OSError as error:
        raise DataError(f"--write-manifest {target} cannot be written: {error.strerror}") from None


def _told(entry: Entry) -> dict[str, str]:
    return {"slice": "" if entry.number is None else repr(entry.number).removesuffix(".0"), "split": entry.part or ""}


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    each = [column for column in columns if column.startswith(f"{IMAGE}_")]
    for needed in (IMAGE, PATIENT):
        if needed not in columns and not (needed == IMAGE and each):
            raise DataError(f"{path}: the column {needed!r} is missing; found {_listed(columns)}")
    if IMAGE in columns and each:
        raise DataError(f"{path}: has a column 'image' and columns 'image_<channel>'; keep one or the others")
    for column in columns:
        _check_spelling(path, column)


def _check_spelling(path: Path, column: str) -> None:
    """A column that is nearly named like one that may be left out would be ignored without a word."""
    if column in (IMAGE, PATIENT, *OPTIONAL) or (column.startswith((f"{IMAGE}_", MASK)) and column[-1] != "_"):
        return
    lower = column.lower()
    near = difflib.get_close_matches(lower, OPTIONAL, 1, 0.75)
    if near or lower.startswith(("image", "mask")):
        raise DataError(
            f"{path}: unknown column {column!r}; the columns are image or image_<channel>, mask_<rater>, patient, "
            "volume, slice, split, spacing_x, spacing_y, spacing_z, and others must not be named like them"
        )


def _entry(where: str, row: Row, channels: Sequence[str], raters: Sequence[str], files: Files) -> Entry:
    faults = Faults()
    if not row["patient"]:
        faults.add(f"{where}: the patient is not named")
    number, part, spacing = None, None, cast(Spacing, (None, None, None))
    paths: dict[str, Path] = {}
    for column in (*channels, *raters):
        if column in channels and not row[column]:
            faults.add(f"{where}: the cell of column {column!r} is empty")
        elif row[column]:
            with faults.caught():
                paths[column] = files.named(row[column], f"{where}, {column}")
    with faults.caught():
        number, part, spacing = number_of(where, row.get("slice", "")), _part(where, row), _spacing(where, row)
    faults.check()
    otherwise = row["patient"] if number is not None else str(PurePosixPath(row[channels[0]]))
    return Entry(
        where,
        tuple(paths[column] for column in channels),
        tuple(paths.get(column) for column in raters),
        row["patient"],
        row.get("volume") or otherwise,
        number,
        part,
        spacing,
    )


def number_of(where: str, cell: str) -> float | None:
    """The number of a slice; None of an empty cell."""
    if not cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        number = float("nan")
    if number - number != 0:  # NaN or infinite
        raise DataError(f"{where}: slice is {cell!r}; expected a number")
    return number


def _part(where: str, row: Row) -> PartName | None:
    return part_of(where, row["split"]) if "split" in row else None


def part_of(where: str, cell: str) -> PartName:
    """The part of the data set that a cell names."""
    if cell not in PARTS:
        raise DataError(f"{where}: split is {cell!r}; expected train, val or test")
    return cast(PartName, cell)


def _spacing(where: str, row: Row) -> Spacing:
    return cast(Spacing, tuple(_millimetres(where, row, column) for column in SPACING))


def _millimetres(where: str, row: Row, column: str) -> float | None:
    if not row.get(column):
        return None
    try:
        found = float(row[column])
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise DataError(f"{where}: {column} is {row[column]!r}; expected a positive number, in mm")
    return found
