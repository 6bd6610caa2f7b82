"""What MLflow is to be told of a study, kept in a file of the study's folder until it has been told, and after.

The driver appends (`orchestrator.tracking`); who sends (`orchestrator.shipper`) reads on from where it was. A record
bears its own times, so that sending it again is the same record and no second one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proseg.records import append_line, parse_line, read_lines, write_atomically

SPOOL = "mlflow.jsonl"
SENT = "mlflow.json"
"""How far each store has got."""


class Spool:
    """The file; one writer at a time, and any number of readers.

    Its records, by `op`:

    - run: a run to be made (key, name, kind, parent, tags, params, data, time);
    - metrics: of one run (key, points: [step, milliseconds since 1970, {name: value}]);
    - tags: of one run (key, tags);
    - files: of one run (key, paths relative to the study's folder, under);
    - picture: of one run (key, path of its samples);
    - status: a run goes on (key, status, tags), or has ended (also time, and name where it has another now);
    - view: the study's saved view is to be made;
    - winner: it is to be registered;
    - note: the description of the study's run is to be written (winner: its number, tables: of the final stage).
    """

    def __init__(self, folder: Path):
        self.path = folder / SPOOL
        self.points = sum(count_points(record) for record in self.records())
        """Metric values in it."""

    def append(self, op: str, **fields: Any) -> None:
        record = {"op": op, **fields}
        append_line(self.path, record)
        self.points += count_points(record)

    def records(self) -> list[dict[str, Any]]:
        return read_lines(self.path)


def count_points(record: dict[str, Any]) -> int:
    return sum(len(values) for _, _, values in record["points"]) if record["op"] == "metrics" else 0


def read_on(path: Path, offset: int, most: int) -> Iterator[tuple[dict[str, Any], int]]:
    """At most so many records from a place on, each with the place behind it. Half a line is none yet."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for _ in range(most):
            line = file.readline()
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield parse_line(path, line, f"at byte {offset - len(line)}"), offset


# --- how far it has been sent -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How much of a spool a store has taken."""

    offset: int = 0
    """Bytes of the file."""
    points: int = 0
    """Metric values."""
    refused: int = 0
    """Records that the store will not take, whenever they are sent."""
    page: str = ""
    """The address of the study's page when it was last served."""


def read_all_progress(folder: Path) -> dict[str, Progress]:
    """Of every store that this study has been sent to, by its name. What cannot be read counts as nothing sent: to send
    again does no harm."""
    try:
        known = json.loads((folder / SENT).read_text(encoding="utf-8"))
        return {store: Progress(**values) for store, values in known.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def read_progress(folder: Path, store: str) -> Progress:
    """Nothing sent, for a store that this study has not seen."""
    return read_all_progress(folder).get(store, Progress())


def write_progress(folder: Path, store: str, progress: Progress) -> None:
    known = read_all_progress(folder) | {store: progress}
    content = json.dumps({name: vars(values) for name, values in known.items()}, indent=1)
    write_atomically(folder / SENT, content.encode())
