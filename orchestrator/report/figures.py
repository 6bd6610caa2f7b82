"""The paper's figures of experts (Fig. 1, 4, 6 to 12) from a study's own model, kept in its folder once they are drawn.

Drawn from few slices, so that a report takes seconds. What is kept is known by the checkpoint: another model, other
data or another version of this module is drawn anew, and nothing else needs the data or the weights again.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.export import winner
from orchestrator.report.parts import Figure, Section, Table
from orchestrator.results import best_trial, read_results, read_trials
from orchestrator.study import DataRef, Study, StudyError
from orchestrator.words import slug
from proseg.errors import ProSegError
from proseg.records import BEST, whole_folder

if TYPE_CHECKING:
    from orchestrator.report.drawing import Drawn

VERSION = 1
"""Raise it when the same checkpoint gives other figures: what was kept is then drawn anew."""
KEPT, RECORD = "figures", "figures.json"
"""The folder in the study's, one below it for each data set; what is in it beside the pictures."""


@dataclass(frozen=True)
class Subject:
    """A model and the cases it is shown on."""

    data: DataRef
    checkpoint: Path
    fold: int
    held_out: bool
    """Test patients of a final stage; otherwise validation patients, by which its epoch was chosen."""

    @property
    def cases(self) -> str:
        """In words."""
        part = "held-out test patients" if self.held_out else "validation patients (no final stage was evaluated)"
        return f"{part} of fold {self.fold} of {self.data.name} ({self.data.label})"


@dataclass(frozen=True)
class Experts:
    """What came of a subject."""

    subject: Subject
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    inference: Mapping[str, float] | None = None
    """CPU seconds for one image, by what was drawn of it."""
    missing: str | None = None
    """Why there are none."""


def subjects(study: Study) -> list[Subject]:
    """The model of every data set of the final stage, of the searched fold if it was; else the winner of the search.

    None where no trial has come to a score.
    """
    found: dict[str, Subject] = {}
    known = {data.name: data for data in (*(final.data for final in study.finals), study.data) if data is not None}
    for result in read_results(study):
        checkpoint = study.final_folder(result.data, result.fold) / BEST
        if result.data not in found or (result.data, result.fold) == (study.data.name, study.space.fold):
            found[result.data] = Subject(known[result.data], checkpoint, result.fold, held_out=True)
    if found:
        return sorted(found.values(), key=lambda subject: subject.data.name != study.data.name)
    if best_trial(read_trials(study), study.criterion) is None:
        return []
    checkpoint = study.trial_folder(winner(study).number) / BEST
    return [Subject(study.data, checkpoint, study.space.fold, held_out=False)]


def experts(study: Study) -> list[Experts]:
    """The figures of every subject: those that were kept, or drawn now and kept."""
    return [_of(study, subject) for subject in subjects(study)]


def sections(found: list[Experts]) -> list[Section]:
    """A chapter for each data set."""
    title = "Experts (the paper's Fig. 1, 4, 6 to 12)"
    if not found:
        return [Section(title, ("No figure: no trial has come to a score yet, so there is no model to draw with.",))]
    return [_section(title if len(found) == 1 else f"{title}: {one.subject.data.name}", one) for one in found]


def _section(title: str, one: Experts) -> Section:
    if one.missing is not None:
        return Section(title, (f"No figure of {one.subject.data.name}: {one.missing}",))
    said = f"The model on {one.subject.cases}; few slices, spread evenly, for which no score was looked at."
    return Section(title, (said, *one.notes), one.figures)


def _of(study: Study, subject: Subject) -> Experts:
    try:
        key = _key(subject)
    except OSError as error:
        return Experts(subject, missing=f"{subject.checkpoint} cannot be read ({error.strerror}).")
    folder = study.folder / KEPT / slug(subject.data.name)
    kept = _read(subject, folder, key)
    if kept is not None:
        return kept
    try:
        drawn = _drawn(subject)
    except ProSegError as error:
        return Experts(subject, missing=f"{error}.")
    if os.access(study.folder, os.W_OK):  # a study of somebody else can be reported as well
        _keep(folder, key, drawn)
    return Experts(subject, drawn.figures, drawn.notes, drawn.inference)


def _key(subject: Subject) -> str:
    """Of all that the figures depend on."""
    with open(subject.checkpoint, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    parts = (VERSION, weights, subject.data.fingerprint, subject.fold, subject.held_out, subject.data.name)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _drawn(subject: Subject) -> "Drawn":
    """Raises ProSegError where the data or the checkpoint are gone, damaged or others than they were."""
    from orchestrator.report.drawing import draw

    store = subject.data.store()
    fold = store.manifest.folds[subject.fold]
    return draw(
        subject.checkpoint, store, fold.test if subject.held_out else fold.val, slug(subject.data.name), subject.cases
    )


# --- kept -------------------------------------------------------------------------------------------------------------


def _keep(folder: Path, key: str, drawn: "Drawn") -> None:
    """Raises StudyError where they cannot be written."""
    listed = [{name: value for name, value in asdict(figure).items() if name != "png"} for figure in drawn.figures]
    record = {"key": key, "figures": listed, "notes": drawn.notes, "inference": drawn.inference}
    try:
        with whole_folder(folder) as partial:
            for figure in drawn.figures:
                (partial / f"{figure.name}.png").write_bytes(figure.png)
            (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StudyError(f"the figures cannot be written into {folder}: {error.strerror or error}") from None


def _read(subject: Subject, folder: Path, key: str) -> Experts | None:
    """What was kept under this key; None where nothing was, or not whole: it is drawn anew then."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["key"] != key:
            return None
        figures = tuple(_figure(listed, folder) for listed in record["figures"])
        return Experts(subject, figures, tuple(record["notes"]), dict(record["inference"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _figure(listed: dict[str, Any], folder: Path) -> Figure:
    table = listed.pop("table")
    png = (folder / f"{listed['name']}.png").read_bytes()
    return Figure(**listed, png=png, table=table and _table(table))


def _table(listed: dict[str, Any]) -> Table:
    rows = tuple(tuple(row) for row in listed.pop("rows"))
    columns, notes = tuple(listed.pop("columns")), tuple(listed.pop("notes"))
    return Table(**listed, columns=columns, rows=rows, notes=notes)


def png_of(figure: Any) -> bytes:
    """A matplotlib figure; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
