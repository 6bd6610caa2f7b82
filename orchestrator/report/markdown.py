"""The report as Markdown, with its pictures as files beside it."""

import re
from collections.abc import Iterable, Sequence

from orchestrator.report.parts import Figure, Listing, Report, Section, Table

SHOWN = 20
"""Rows of a table; all of them are in its Parquet file."""


def markdown(report: Report) -> str:
    """report.md."""
    head = [f"# {plain(report.study)}", f"**{plain(report.label)}**", *map(plain, report.answer),
            "\n".join(f"- {plain(name)}: {plain(value)}" for name, value in report.facts)]  # fmt: skip
    body = [block for section in report.sections for block in _section(section)]
    foot = f"Made on {report.made} by proseg-tune. Not a medical device; for research only."
    return "\n\n".join((*head, *body, foot)) + "\n"


def _section(section: Section) -> Iterable[str]:
    yield f"## {plain(section.title)}"
    yield from map(plain, section.text)
    for part in section.parts:
        match part:
            case Table():
                yield from _table(part)
            case Figure():
                yield from _figure(part)
            case Listing():
                yield f"{plain(part.caption)}:"
                yield _fenced(part.text)


def _table(table: Table) -> Iterable[str]:
    more = f"; the first {SHOWN} of {len(table.rows)} rows" if len(table.rows) > SHOWN else ""
    yield f"**{plain(table.caption)}** ({table.name}.parquet{more})"
    lines = [table.columns, ["---"] * len(table.columns), *(table.words(row) for row in table.rows[:SHOWN])]
    yield "\n".join(f"| {' | '.join(_row(number, line))} |" for number, line in enumerate(lines))
    if table.notes:
        yield "\n".join(f"- {plain(note)}" for note in table.notes)


def _row(number: int, line: Sequence[str]) -> Sequence[str]:
    return line if number == 1 else [plain(word) for word in line]  # the second separates the heads


def _figure(figure: Figure) -> Iterable[str]:
    yield f"![{plain(figure.alternative)}]({figure.name}.png)"
    yield f"*{plain(figure.caption)}*" + (f" ({figure.table.name}.parquet)" if figure.table else "")


def _fenced(text: str) -> str:
    """A block that no run of backticks in it can end."""
    fence = "`" * (1 + max([2, *(len(run) for run in re.findall("`+", text))]))
    return f"{fence}\n{text}\n{fence}"


def plain(text: str) -> str:
    """Words that come from elsewhere: on one line, and nothing in them is taken for Markdown or HTML."""
    line = " ".join(text.split()).replace("&", "&amp;")
    line = re.sub(r"([\\`*\[\]<|~])", r"\\\1", line)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # inside of a word it is only itself
    line = re.sub(r"^(\d+)([.)])(?= |$)", r"\1\\\2", line)
    return re.sub(r"^(>|[#+\-=]+(?= |$))", r"\\\1", line)
