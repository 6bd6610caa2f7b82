"""What a report consists of, whatever it is written as: sections of text, tables and figures."""

from dataclasses import dataclass

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Numbers stay numbers: who writes the page rounds them, who exports them does not."""

    name: str
    """Of its file: letters, digits, hyphens."""
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below it."""


@dataclass(frozen=True)
class Figure:
    """A picture, and the same in words."""

    name: str
    """Of its file: letters, digits, hyphens."""
    caption: str
    alternative: str
    """What the picture shows, in words, for who does not see it."""
    png: bytes
    svg: str | None = None
    """Drawn in lines, for the page; the page takes the PNG without."""
    table: Table | None = None
    """The numbers that it draws."""


@dataclass(frozen=True)
class Section:
    """One chapter. One that does not apply says so in its text and is not left out silently."""

    title: str
    text: tuple[str, ...] = ()
    """Paragraphs, plain."""
    parts: tuple[Table | Figure, ...] = ()
