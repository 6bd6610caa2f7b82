"""Tables that a user writes: CSV or Parquet files whose cells are read as text."""

import csv
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from proseg.errors import DataError

MOST_BYTES = 2**28
"""Size of a table, unpacked."""
SUFFIXES = (".csv", ".parquet")
WHOLE = re.compile(r"\d+\.0+")

Rows = dict[int, dict[str, str]]
"""Rows by their number in a spreadsheet, where the header is the first."""


def read_table(path: Path) -> tuple[list[str], Rows]:
    """The columns of a table, and its rows; whole numbers that a program wrote as `13.0` are read as 13.

    Raises:
        DataError: it is no table in UTF-8 with commas between the cells, or a row has more or fewer of them than the
            header.
    """
    columns, rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    for column in columns:
        filled = [row for row in rows.values() if row[column]]
        if filled and all(WHOLE.fullmatch(row[column]) for row in filled):
            for row in filled:
                row[column] = row[column].partition(".")[0]
    return columns, rows


def _read_csv(path: Path) -> tuple[list[str], Rows]:
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


def _read_parquet(path: Path) -> tuple[list[str], Rows]:
    """As if the names of the columns were the first row."""
    try:
        with pq.ParquetFile(path) as file:
            groups = (file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
            if sum(groups) > MOST_BYTES:
                raise DataError(f"{path}: unpacks to more than {MOST_BYTES >> 20} MiB, which no table needs")
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
    names = table.column_names
    cells = zip(*([_text(value) for value in column.to_pylist()] for column in table.columns), strict=True)
    return names, {number: dict(zip(names, row, strict=True)) for number, row in enumerate(cells, start=2)}


def _text(value: object) -> str:
    missing = value is None or value != value  # pandas writes a missing text as a NaN
    return "" if missing else str(value).strip()
