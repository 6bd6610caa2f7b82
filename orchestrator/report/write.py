"""The report as a folder, whole or not at all: the page, Markdown, pictures, tables, and a list of them."""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.report.markdown import markdown
from orchestrator.report.page import page
from orchestrator.report.parts import Cell, Figure, Report, Table
from orchestrator.study import Study, StudyError
from proseg.records import whole_folder

PAGE, TEXT, LIST = "index.html", "report.md", "report.json"
FOLDER = "report"
"""Its name in the study's folder."""
MARK = "proseg-tune report"
"""In the list: by this a folder is known for a report of this program, which the next may replace."""


def target(study: Study, out: Path | None) -> Path:
    """Where the report goes.

    Raises:
        StudyError: there is something else.
    """
    folder = study.folder / FOLDER if out is None else out.resolve()
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{_named(out, folder)} is a file; name a folder")
    strange = _strange(folder) if folder.is_dir() else None
    if strange is not None:
        raise StudyError(f"{_named(out, folder)} holds {strange}, which is no part of a report of this program; name "
                         "another folder with --out")  # fmt: skip
    return folder


def _named(out: Path | None, folder: Path) -> str:
    return str(folder) if out is None else f"--out {folder}"


def _strange(folder: Path) -> str | None:
    """A file there that no report of ours has listed; None where there is none."""
    names = sorted(path.name for path in folder.iterdir())
    try:
        known = json.loads((folder / LIST).read_text(encoding="utf-8"))
        ours = {LIST, *known["files"]} if known["made by"] == MARK else set[str]()
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        ours = set[str]()
    return next((name for name in names if name not in ours), None)


def write(report: Report, folder: Path) -> dict[str, Any]:
    """Write the folder; returns its list, as `report --json` prints it.

    Raises:
        StudyError: it cannot be written.
    """
    contents = _apart(_contents(report))
    record = {
        "made by": MARK, "study": report.study, "state": report.state, "made": report.made, "label": report.label,
        "answer": list(report.answer), "facts": dict(report.facts), "page": PAGE,
        "sections": [section.title for section in report.sections],
        "files": {name: len(content) for name, content in contents.items()},
    }  # fmt: skip
    try:
        with whole_folder(folder) as partial:
            for name, content in contents.items():
                (partial / name).write_bytes(content)
            (partial / LIST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StudyError(f"the report cannot be written into {folder}: {error.strerror or error}; name another folder "
                         "with --out") from None  # fmt: skip
    return {**record, "folder": str(folder)}


def _apart(files: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """By name; no part may write over another."""
    found: dict[str, bytes] = {}
    for name, content in files:
        if name in found:
            raise ValueError(f"two parts of the report are called {name}")
        found[name] = content
    return found


def _contents(report: Report) -> Iterator[tuple[str, bytes]]:
    yield PAGE, page(report).encode()
    yield TEXT, markdown(report).encode()
    for section in report.sections:
        for part in section.parts:
            if isinstance(part, Figure):
                yield f"{part.name}.png", part.png
            table = part.table if isinstance(part, Figure) else part
            if isinstance(table, Table):
                yield f"{table.name}.parquet", parquet(table)


def parquet(table: Table) -> bytes:
    """A table with its numbers in full; what it is stands in the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [_column([row[place] for row in table.rows]) for place in range(len(table.columns))]
    about = {"caption": table.caption, "notes": "\n".join(table.notes)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, names=list(table.columns)).replace_schema_metadata(about), buffer)
    return buffer.getvalue()


def _column(cells: list[Cell]) -> Any:
    """Numbers as numbers; a column with a word in it is words."""
    import pyarrow as pa

    kinds = {type(cell) for cell in cells if cell is not None}
    if str in kinds:
        return pa.array([None if cell is None else str(cell) for cell in cells], pa.string())
    if float in kinds:
        return pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())
    return pa.array(cells, pa.int64() if kinds else pa.null())
