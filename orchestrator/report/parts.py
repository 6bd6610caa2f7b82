"""What a report consists of, whatever it is written as: sections of text, tables and figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Cell = str | float | int | None
PRECISION = ".4g"
"""Of numbers with a point, in columns that do not say otherwise."""


def cell(value: object) -> Cell:
    """Numbers stay numbers. Truth values are words: they are no numbers to a reader."""
    if value is None or (isinstance(value, str | float | int) and not isinstance(value, bool)):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Numbers stay numbers: who writes the page rounds them, who exports them does not."""

    name: str
    """Of its file, as `orchestrator.words.slug` gives it."""
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """Cells, or what `cell` makes one of."""
    notes: tuple[str, ...] = ()
    """Sentences below it."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """How a column's numbers are written, as in {"ged (val)": ".4f"}."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(tuple(map(cell, row)) for row in self.rows))

    def words(self, row: tuple[Cell, ...]) -> tuple[str, ...]:
        """A row as it is read."""
        return tuple(
            format(cell, f"z{self.formats.get(column, PRECISION)}") if isinstance(cell, float)
            else "" if cell is None else str(cell)
            for column, cell in zip(self.columns, row, strict=True)
        )  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A picture, and the same in words."""

    name: str
    """Of its file, as `orchestrator.words.slug` gives it."""
    caption: str
    alternative: str
    """What the picture shows, in words, for who does not see it."""
    png: bytes
    svg: str | None = None
    """Drawn in lines, for the page; the page takes the PNG without."""
    table: Table | None = None
    """The numbers that it draws."""


@dataclass(frozen=True)
class Listing:
    """Text to be copied as it stands: commands, a file."""

    caption: str
    text: str


@dataclass(frozen=True)
class Section:
    """One chapter. One that does not apply says so in its text and is not left out silently."""

    title: str
    text: tuple[str, ...] = ()
    """Paragraphs, plain."""
    parts: tuple[Table | Figure | Listing, ...] = ()


@dataclass(frozen=True)
class Report:
    """All of it, before it is written as anything."""

    study: str
    state: str
    made: str
    """When: a date and a time, UTC."""
    label: str
    """Of the data; what is simulated says so."""
    answer: tuple[str, ...]
    """What came out, in sentences: the first thing that is read."""
    facts: tuple[tuple[str, str], ...]
    """The few numbers that matter most, each under its name."""
    sections: tuple[Section, ...]
