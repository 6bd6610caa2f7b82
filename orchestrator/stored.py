"""verify.json: what an exported model scored, and all that is needed to score it again.

It names no place: the data are known by their fingerprint, their cases by digests.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.results import FoldResult
from orchestrator.scored import digests, read_columns
from orchestrator.study import Study, StudyError
from proseg.config import TrainConfig
from proseg.data.store import Store
from proseg.records import CARD, CASES, METRICS

if TYPE_CHECKING:
    from proseg.checkpoint import Checkpoint

VERIFY = "verify.json"
FORMAT = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tolerance(_Frozen):
    """How far numbers may lie from the stored ones that are computed anew on another machine."""

    mean: float = 5e-4
    """Of the mean of a metric over the cases."""
    case: float = 0.05
    """Of the metric of one case."""
    share: float = 0.01
    """Of the cases that may lie further off than that."""
    reason: str = (
        "On the same kind of processor, with the same versions, the numbers are equal to the bit. Another one rounds "
        "sums differently, and a pixel whose probability lies within that rounding of a threshold may change sides; in "
        "a small lesion one pixel is much. Measured on a CPU: with the operands of all convolutions rounded to TF32, "
        "as GPUs do, means moved by at most 0.0001 and no case by more than 0.005; with all weights changed at random "
        "by 1 %, a mean moved by 0.0008."
    )


class StoredData(_Frozen):
    name: str
    label: str
    fingerprint: str
    unit: str
    fold: int
    part: Literal["test", "validation"]
    """validation: the model was exported without a final stage, and was never scored on held-out patients."""
    patients: int


class StoredCases(_Frozen):
    count: int
    digest: str
    """sha256 over the digests of all cases, in the order of the evaluation, on which the noise depends."""
    file: str | None
    """Where the scores of every case are; None: only their means were kept."""


class Evaluation(_Frozen):
    """What the numbers depend on beside weights, configuration and data."""

    seed: int
    samples: int
    """S of the set metrics: one sample for each rater."""
    prior_samples: int
    """S of those under prior_; 0: they were not measured."""
    crop: int | None
    slices_at_once: int
    """Slices whose noise comes from one generator."""
    threads: int
    device: str


class Stored(_Frozen):
    """The whole of verify.json."""

    format: Literal[1]
    study: str
    trial: int
    data: StoredData
    cases: StoredCases
    evaluation: Evaluation
    means: dict[str, float]
    """Of every metric over the cases."""
    files: dict[str, str]
    """sha256 of every other file of the export but the model card, which its owner may edit."""
    versions: dict[str, str]
    tolerance: Tolerance


def write_stored(
    folder: Path, study: Study, trial: int, checkpoint: "Checkpoint", store: Store, result: FoldResult | None
) -> None:
    """Write the record of an export, after all its other files.

    Args:
        result: of the final stage on the test part; None: what the checkpoint scored on the validation part is stored.
    """
    from proseg.evaluate import case_name

    fold = store.manifest.folds[study.space.fold]
    patients = fold.test if result else fold.val
    names = [case_name(store, case) for case in store.cases(patients)]
    m, config = store.manifest, checkpoint.config
    record = Stored(
        format=FORMAT, study=study.name, trial=trial,
        data=StoredData(name=m.name, label=m.label, fingerprint=m.fingerprint, unit=m.unit, fold=fold.index,
                        part="test" if result else "validation", patients=len(patients)),
        cases=StoredCases(count=len(names), digest=digest_of(m.fingerprint, names),
                          file=CASES if result and (folder / CASES).exists() else None),
        evaluation=Evaluation(
            **terms(config, m.raters, result.prior_samples if result else 0),
            threads=(result.threads if result else 0) or study.resources.threads_per_rank,
            device=(result.device if result else "") or ("a GPU" if study.resources.gpus else "cpu"),
        ),
        means=result.metrics if result else validation_means(checkpoint.metrics),
        files=file_digests(folder), versions=study.environment, tolerance=Tolerance(),
    )  # fmt: skip
    (folder / VERIFY).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def terms(config: TrainConfig, raters: int, prior_samples: int) -> dict[str, Any]:
    """How this version evaluates a model: the fields of `Evaluation` that do not depend on the machine."""
    from proseg.evaluate import SLICES_AT_ONCE

    return {"seed": config.seed, "samples": raters, "prior_samples": prior_samples, "crop": config.data.crop,
            "slices_at_once": SLICES_AT_ONCE}  # fmt: skip


def validation_means(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of the validation among the metrics of an epoch, under their names in a final stage."""
    return {name.removeprefix("val/"): value for name, value in metrics.items() if name.startswith("val/")}


def digest_of(fingerprint: str, names: Sequence[str]) -> str:
    """Of cases, in their order."""
    return hashlib.sha256("\n".join(digests(fingerprint, names)).encode()).hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of an export but its card and its record."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (CARD, VERIFY))
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_stored(folder: Path) -> Stored:
    """The record of an export, all of whose files are there.

    Raises:
        StudyError: this is no export, one of an earlier version, or it is not whole.
    """
    path = folder / VERIFY
    if not path.is_file():
        raise StudyError(_not_one(folder))
    try:
        record = Stored.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its JSON"
        raise StudyError(f"{path} is damaged or of another version ({where}: {first['msg']}); {_ANEW}") from None
    missing = [name for name in record.files if not (folder / name).is_file()]
    if missing:
        raise StudyError(f"{folder} is not whole: {', '.join(missing)} is missing; {_ANEW}")
    return record


_ANEW = "export the model again with `proseg-tune best --export`"


def _not_one(folder: Path) -> str:
    if not folder.is_dir():
        return f"--verify {folder}: there is no such folder; name the one that `proseg-tune best --export` wrote"
    if (folder / METRICS).is_file():
        return f"{folder} has no {VERIFY}: it was exported by an earlier version; {_ANEW} and --force"
    return f"{folder} is not an exported model (it has no {VERIFY}); name one that `proseg-tune best --export` wrote"


def changed_files(folder: Path, record: Stored) -> list[str]:
    """Those that are no longer what was exported."""
    return [name for name, digest in record.files.items() if _digest(folder / name) != digest]


def contradictions(folder: Path, record: Stored) -> list[str]:
    """Where other files of the export state other numbers than its record, a sentence each.

    Raises:
        StudyError: one of them is damaged.
    """
    told = {METRICS: _told(folder / METRICS, record)}
    if record.cases.file is not None:
        told[record.cases.file] = _means(folder / record.cases.file)
    return [
        f"{file} says {name} is {means.get(name)}, {VERIFY} {record.means.get(name)}"
        for file, means in told.items()
        for name in sorted(record.means.keys() | means.keys())
        if not _same(record.means.get(name), means.get(name))
    ]


def _means(path: Path) -> dict[str, float]:
    columns = {name: values for name, values in read_columns(path).items() if name not in ("patient", "case")}
    return {name: float(np.nanmean(v)) for name, v in columns.items() if not np.isnan(v).all()}


def _same(one: float | None, other: float | None) -> bool:
    """Sums of the same numbers may be taken in another order by another version of numpy."""
    return one == other or (one is not None and other is not None and math.isclose(one, other, rel_tol=1e-12))


def _told(path: Path, record: Stored) -> dict[str, float]:
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record.data.part == "validation":
            return validation_means(metrics["validation"])
        here = (record.data.name, record.data.fold)
        return next(dict(fold["metrics"]) for fold in metrics["folds"] if (fold["data"], fold["fold"]) == here)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise StudyError(f"{path} is damaged ({type(error).__name__}: {error}); {_ANEW}") from None
