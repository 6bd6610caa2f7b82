"""What a run scored on every test case: read from a study's final stage or an exported model, and matched with another.

Patients and cases are known by digests, here and in an exported folder: a model that is given away names no patient.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orchestrator.results import FoldResult, read_results
from orchestrator.study import MANIFEST, DataRef, Study, StudyError, located, read_study, studies_folder
from proseg.records import CASES, DATA, METRICS, write_atomically

SAME = 1e-3
"""Distances between raters that differ by less are the same, computed on different devices."""


@dataclass(frozen=True)
class Part:
    """All test cases of one data set that a run was scored on, in an order that every run of these cases shares."""

    data: str
    label: str
    fingerprint: str
    samples: tuple[int, int]
    """S of the set metrics, and of those under prior_."""
    folds: np.ndarray
    """[N] int, the fold whose test part a case is in."""
    patients: np.ndarray
    """[N] str, digests."""
    cases: np.ndarray
    """[N] str, digests."""
    values: dict[str, np.ndarray]
    """[N] under each metric's name; NaN where it is undefined."""
    searched: int | None = None
    """The fold that the configuration was chosen on; None where it was on other data."""
    shared: str | None = None
    """The data that were searched on, where they have patients in common with these."""

    def of_fold(self, fold: int) -> "Part":
        """The cases of one fold."""
        here = self.folds == fold
        return replace(
            self, folds=self.folds[here], patients=self.patients[here], cases=self.cases[here],
            values={name: values[here] for name, values in self.values.items()},
        )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A study or an exported model."""

    name: str
    """As it was asked for."""
    kind: Literal["study", "model"]
    folder: Path
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Pair:
    """One data set on which both runs were scored: the same cases in the same order."""

    a: Part
    b: Part


# --- the file of a fold -----------------------------------------------------------------------------------------------


def write_cases(path: Path, columns: Mapping[str, Sequence[str] | np.ndarray]) -> None:
    """The scores of every case of a fold; columns are `patient`, `case`, and the metrics."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer)
    write_atomically(path, buffer.getvalue())


def read_columns(path: Path) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        columns = {name: np.array(table.column(name).to_pylist()) for name in table.column_names}
    except FileNotFoundError:
        raise StudyError(f"{path} is missing: without the scores of every case nothing can be compared") from None
    except (pa.ArrowException, OSError) as error:
        raise StudyError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    numbers = {name for name in columns if name not in ("patient", "case")}
    if "case" not in columns or not numbers or any(columns[name].dtype.kind != "f" for name in numbers):
        raise StudyError(f"{path} is damaged: its columns are not those of scored cases")
    return columns


def anonymous_cases(study: Study, result: FoldResult) -> dict[str, np.ndarray]:
    """The scores of a fold of the final stage, its patients and cases as digests.

    Raises:
        StudyError, DataError: the file is missing or damaged; or it was written by an earlier version, without
            patients, and the data are no longer at hand.
    """
    data = next(final.data for final in study.finals if final.data is not None and final.data.name == result.data)
    path = study.final_folder(result.data, result.fold) / CASES
    columns = read_columns(path)
    patients = columns.pop("patient", None)
    if patients is None:
        patients = _patients(data, result.fold)
    names = columns.pop("case")
    if not len(names) == len(patients) == result.cases:
        raise StudyError(f"{path} is damaged: it does not hold the {result.cases} cases of the fold")
    return {"patient": digests(data.fingerprint, patients), "case": digests(data.fingerprint, names), **columns}


def _patients(data: DataRef, fold: int) -> list[str]:
    """The patient of every test case, in the order of the evaluation."""
    store = data.store()
    return [str(store.patients[case[0]]) for case in store.cases(store.manifest.folds[fold].test)]


def digests(fingerprint: str, names: Sequence[str] | np.ndarray) -> np.ndarray:
    """[N] str: what patients or cases of the data with this fingerprint are called where nobody is to be named."""
    return np.array([hashlib.sha256(f"{fingerprint}:{name}".encode()).hexdigest()[:16] for name in names])


# --- a run ------------------------------------------------------------------------------------------------------------


def find_run(name: str, home: Path) -> Run:
    """A study of the workspace by its name, or the folder of a study or of an exported model.

    Raises:
        StudyError, DataError: there is none, or it has no scores of test cases.
    """
    for folder in (studies_folder(home) / name, Path(name)):
        if (folder / MANIFEST).is_file():
            return _of_study(name, located(read_study(folder)))
        if (folder / METRICS).is_file():
            return _of_model(name, folder.resolve())
    raise StudyError(f"{name!r} is neither a study in {home}, nor the folder of a study or of an exported model")


def _of_study(name: str, study: Study) -> Run:
    results = read_results(study)
    if not results:
        raise StudyError(
            f"study {study.name} has no scores of test cases: no fold of its final stage has been evaluated "
            f"(`proseg-tune resume {study.name}` goes on with a study that is not finished)"
        )
    parts = []
    for final in study.finals:
        folds = [result for result in results if final.data is not None and result.data == final.data.name]
        if final.data is not None and folds:
            scores = [anonymous_cases(study, result) for result in folds]
            part = _part(folds, final.data.fingerprint, scores)
            searched = study.space.fold if final.data.name == study.data.name else None
            shared = study.data.name if final.shared_patients else None
            parts.append(replace(part, searched=searched, shared=shared))
    return Run(name, "study", study.folder, tuple(parts))


def _of_model(name: str, folder: Path) -> Run:
    data, metrics = _json(folder / DATA), _json(folder / METRICS)
    if not metrics.get("retrained"):
        raise StudyError(
            f"{folder} was exported without a final stage: the model was never scored on test cases; export it again "
            "after the final stage"
        )
    try:
        result = next(FoldResult(**fold) for fold in metrics["folds"]
                      if (fold["data"], fold["fold"]) == (data["name"], metrics["fold"]))  # fmt: skip
        fingerprint = str(data["fingerprint"])
    except (KeyError, TypeError, StopIteration):
        raise StudyError(f"{folder / METRICS} is not that of an exported model of this version") from None
    if not (folder / CASES).is_file():
        raise StudyError(
            f"{folder} has no {CASES}: it was exported by an earlier version; `proseg-tune best --export` with --force "
            "writes it anew"
        )
    return Run(name, "model", folder, (_part([result], fingerprint, [read_columns(folder / CASES)]),))


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None


def _part(results: Sequence[FoldResult], fingerprint: str, scores: Sequence[dict[str, np.ndarray]]) -> Part:
    """The folds of one data set together, sorted by fold, patient and case."""
    first = results[0]
    names = [name for name in scores[0] if name not in ("patient", "case") and all(name in one for one in scores)]
    if not all("patient" in one for one in scores):
        raise StudyError(f"{CASES} of {first.data} is damaged: it has no patients")
    columns = {name: np.concatenate([one[name] for one in scores]) for name in ("patient", "case", *names)}
    folds = np.repeat([result.fold for result in results], [len(one["case"]) for one in scores])
    order = np.lexsort((columns["case"], columns["patient"], folds))
    samples = {(result.samples, result.prior_samples) for result in results}
    if len(samples) > 1:
        raise StudyError(
            f"the folds of {first.data} were scored with different numbers of samples S: {sorted(samples)}"
        )
    return Part(
        first.data, first.label, fingerprint, samples.pop(), folds[order], columns["patient"][order],
        columns["case"][order], {name: columns[name][order] for name in names},
    )  # fmt: skip


# --- two runs ---------------------------------------------------------------------------------------------------------


def matched(a: Run, b: Run, *, data: str | None = None, fold: int | None = None) -> tuple[list[Pair], list[str]]:
    """The data sets on which both runs were scored, and what is left out because only one of them was.

    Args:
        data: only the data set of this name.
        fold: only the cases of this fold.

    Raises:
        StudyError: there is none; or a data set of one name is not the same data, has other cases, or was scored with
            other numbers of samples.
    """
    mine, theirs = ([_of_fold(run, part, fold) for part in run.parts if data in (None, part.data)] for run in (a, b))
    pairs, met = [], set[str]()
    for one in mine:
        other = next((o for o in theirs if one.fingerprint == o.fingerprint or one.data == o.data), None)
        if other is not None:
            _check(a.name, b.name, one, other)
            pairs.append(Pair(one, other))
            met |= {one.data, other.data}
    if not pairs:
        raise StudyError(f"{a.name} and {b.name} cannot be compared: they were not scored on the same data "
                         f"({_scored_on(a)}; {_scored_on(b)}{f'; asked for was {data}' if data else ''})")  # fmt: skip
    left = [f"{part.data} is left out: only {run.name} was scored on it."
            for run, parts in ((a, mine), (b, theirs)) for part in parts if part.data not in met]  # fmt: skip
    return pairs, left


def _scored_on(run: Run) -> str:
    return f"{run.name}: {', '.join(part.data for part in run.parts)}"


def _of_fold(run: Run, part: Part, fold: int | None) -> Part:
    if fold is None:
        return part
    if fold not in part.folds:
        raise StudyError(f"{run.name} was not scored on fold {fold} of {part.data}, but on {_folds(part)}")
    return part.of_fold(fold)


def _folds(part: Part) -> str:
    numbers = ", ".join(map(str, np.unique(part.folds)))
    return f"fold {numbers}" if len(np.unique(part.folds)) == 1 else f"folds {numbers}"


def _check(a: str, b: str, one: Part, other: Part) -> None:
    """Raises StudyError where two parts are not scores of the same cases, made alike."""
    start = f"{a} and {b} cannot be compared on {one.data}: "
    if one.fingerprint != other.fingerprint:
        raise StudyError(f"{start}the data are not the same (fingerprints {one.fingerprint[:12]} and "
                         f"{other.fingerprint[:12]})")  # fmt: skip
    if one.samples != other.samples:
        raise StudyError(f"{start}GED depends on the number of samples S, which was {_s(one)} and {_s(other)}")
    if set(one.folds) != set(other.folds):
        common = sorted(set(one.folds) & set(other.folds))
        advice = f"; `--fold {common[0]}` compares them where both were" if common else ""
        raise StudyError(f"{start}they were scored on different cases, of {_folds(one)} and of {_folds(other)}{advice}")
    mine, theirs = (list(zip(p.folds, p.patients, p.cases, strict=True)) for p in (one, other))
    if mine != theirs:
        both = len(set(mine) & set(theirs))
        raise StudyError(f"{start}they were scored on different cases ({len(mine)} and {len(theirs)}, {both} in both)")
    if not _same_raters(one, other):
        raise StudyError(f"{start}their cases show different parts of the raters' masks (data.crop differs)")


def _same_raters(one: Part, other: Part) -> bool:
    """Whether the raters are as far from each other in both, where both have measured it."""
    mine, theirs = one.values.get("d_aa"), other.values.get("d_aa")
    return mine is None or theirs is None or np.allclose(mine, theirs, rtol=0, atol=SAME, equal_nan=True)


def _s(part: Part) -> str:
    return f"{part.samples[0]} ({part.samples[1]} from the prior)"
