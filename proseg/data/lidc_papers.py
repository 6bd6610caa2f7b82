"""The slices of LIDC-IDRI that the multi-rater segmentation papers use: 1608 of their 1609, by name and by place.

Their names are those of MedicalMatting's release, `<u>_slice<n>`: u is the last component of the study instance UID, n
the position of the slice among those in which something was outlined, counted from 1. One of the 1609 is a slice of a
nodule that five annotations describe; it is not in the list.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAPER_SLICES = Path(__file__).parent / "lidc_paper_slices.csv"
"""Names, z and crop centres."""

OTHER_STUDIES = {"299122687641741853427119259207": "LIDC-IDRI-0332"}
"""The study of the slice that is not in the list, and its patient (who is in the list with another study)."""

Place = tuple[str, str, int, int]
"""The end of a study's UID, z, and the row and column of the middle of the outlines."""


@dataclass(frozen=True)
class PaperSlice:
    study: str
    """The last component of its UID."""
    n: int
    place: Place


@cache
def paper_slices(path: Path = PAPER_SLICES) -> tuple[PaperSlice, ...]:
    """The list, in the file's order."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(_slice(line) for line in csv.DictReader(file))


def place(study: str, z: float, row: int, column: int) -> Place:
    """Where a slice of a nodule lies, as the list has it; `study` is a UID or the end of one."""
    return study_end(study), f"{z:.3f}", row, column


def study_end(study: str) -> str:
    """The last component of a study instance UID."""
    return study.rpartition(".")[2]


def _slice(line: dict[str, str]) -> PaperSlice:
    study, _, n = line["file"].partition("_slice")
    return PaperSlice(study, int(n), place(study, float(line["z"]), int(line["row"]), int(line["column"])))
