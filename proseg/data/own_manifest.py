"""A data set of one's own by a manifest: a CSV or Parquet table, one row an image (a volume, or a 2-D slice).

    image             file of the image; or, one file for each channel, image_<channel> ...
    mask_<rater> ...  file of that rater's mask; empty where the rater did not see the image
    patient           folds are drawn over patients
    volume, slice     optional, of 2-D images: the volume they were cut from, and the number in it (from the feet up);
                      `slice` without `volume` counts within the patient
    split             optional: train, val or test; without it, four folds are dealt

Paths are relative to the manifest's folder (or absolute), and none leads out of it. Other columns are ignored.
"""

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from proseg.data.own_files import PARTS, Entry, Files, Inventory, PartName, check_file
from proseg.errors import DataError

MOST_TABLE_BYTES = 2**28
"""Of a manifest, unpacked."""

IMAGE, MASK = "image", "mask_"
OPTIONAL = ("volume", "slice", "split")

Row = Mapping[str, str]


def inventory(path: Path) -> Inventory:
    """The files that a manifest names.

    Raises:
        DataError: naming the manifest and the row, and the column where it is one.
    """
    check_file(path, "the manifest")
    columns, rows = read_table(path)
    _check_columns(path, columns)
    channels = [column for column in columns if column.startswith(f"{IMAGE}_")]
    raters = [column for column in columns if column.startswith(MASK)]
    if not rows:
        raise DataError(f"{path}: the manifest has no rows")
    files = Files(path.parent)
    entries = (_entry(f"{path}, row {number}", row, channels or [IMAGE], raters, files) for number, row in rows.items())
    return Inventory(
        source=path,
        raters=tuple(column.removeprefix(MASK) for column in raters),
        channels=tuple(column.removeprefix(f"{IMAGE}_") for column in channels),
        entries=tuple(entries),
        tables=(path,),
        patients_known=True,
    )


def read_table(path: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """The columns and rows of a CSV or Parquet file; as `read_csv`."""
    return read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)


def read_csv(path: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """The columns of a table, and its rows by their number; the header is the first, as in a spreadsheet.

    Raises:
        DataError: it is no table in UTF-8 with commas between the cells, or a row has more or fewer of them than the
            header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = {n: [cell.strip() for cell in line] for n, line in enumerate(csv.reader(file, strict=True), 1)}
    except UnicodeDecodeError:
        raise DataError(f"{path}: cannot be read as a table: it is not in UTF-8; save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from None
    filled = {number: line for number, line in lines.items() if any(line)}
    if not filled:
        raise DataError(f"{path}: the file is empty")
    names = filled.pop(min(filled))
    if len(names) == 1 and (other := next((sign for sign in ";\t|" if sign in names[0]), None)):
        raise DataError(f"{path}: its cells are divided by {other!r}; save it with commas between them")
    for number, line in filled.items():
        if len(line) != len(names):
            raise DataError(f"{path}, row {number}: has {len(line)} cells, the header has {len(names)}")
    return names, {number: dict(zip(names, line, strict=True)) for number, line in filled.items()}


def _read_parquet(path: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """As `read_csv`, as if the names of the columns were the first row."""
    try:
        with pq.ParquetFile(path) as file:
            groups = (file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
            if sum(groups) > MOST_TABLE_BYTES:
                raise DataError(f"{path}: unpacks to more than {MOST_TABLE_BYTES >> 20} MiB, which no manifest needs")
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
    names = table.column_names
    cells = zip(*([_text(value) for value in column.to_pylist()] for column in table.columns), strict=True)
    return names, {number: dict(zip(names, row, strict=True)) for number, row in enumerate(cells, start=2)}


def _text(value: object) -> str:
    missing = value is None or value != value  # pandas writes a missing text as a NaN
    return "" if missing else str(value).strip()


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the column {twice!r} stands there twice")
    for needed in (IMAGE, "patient"):
        if needed not in columns and not (needed == IMAGE and any(c.startswith(f"{IMAGE}_") for c in columns)):
            raise DataError(f"{path}: the column {needed!r} is missing; found {', '.join(map(repr, columns))}")
    if IMAGE in columns and any(column.startswith(f"{IMAGE}_") for column in columns):
        raise DataError(f"{path}: has a column 'image' and columns 'image_<channel>'; keep one or the others")
    for column in columns:
        _check_spelling(path, column)


def _check_spelling(path: Path, column: str) -> None:
    """A column that is nearly named like one that may be left out would be ignored without a word."""
    if column in (IMAGE, "patient", *OPTIONAL) or (column.startswith((f"{IMAGE}_", MASK)) and column[-1] != "_"):
        return
    lower = column.lower()
    near = difflib.get_close_matches(lower, OPTIONAL, 1, 0.75)
    if near or lower.startswith(("image", "mask")):
        raise DataError(
            f"{path}: unknown column {column!r}; the columns are image or image_<channel>, mask_<rater>, patient, "
            "volume, slice, split, and others must not be named like them"
        )


def _entry(where: str, row: Row, channels: Sequence[str], raters: Sequence[str], files: Files) -> Entry:
    if not row["patient"]:
        raise DataError(f"{where}: the patient is not named")
    images = tuple(_needed(files, where, row, column) for column in channels)
    masks = tuple(files.named(row[column], f"{where}, {column}") if row[column] else None for column in raters)
    number = _number(where, row.get("slice", ""))
    otherwise = row["patient"] if number is not None else str(PurePosixPath(row[channels[0]]))
    return Entry(where, images, masks, row["patient"], row.get("volume") or otherwise, number, _part(where, row))


def _needed(files: Files, where: str, row: Row, column: str) -> Path:
    if not row[column]:
        raise DataError(f"{where}: the cell of column {column!r} is empty")
    return files.named(row[column], f"{where}, {column}")


def _number(where: str, cell: str) -> float | None:
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
    if "split" not in row:
        return None
    if row["split"] not in PARTS:
        raise DataError(f"{where}: split is {row['split']!r}; expected train, val or test")
    return cast(PartName, row["split"])
