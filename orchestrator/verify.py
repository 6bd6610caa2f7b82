"""Whether an exported model still scores what it scored: loaded in a fresh process, evaluated anew, compared.

It finds what accidents do to a model: weights, configuration or data that were changed, files that were cut short, an
environment that computes something else. It is no proof against who would forge a model: the record lies beside it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.rescore import FOUND, SCORES
from orchestrator.scored import digests, read_columns
from orchestrator.stored import Stored, Tolerance, changed_files, contradictions, digest_of, read_stored
from orchestrator.study import StudyError, readable_studies
from proseg.data.catalog import is_rendered_here, open_data, stores
from proseg.data.store import Store
from proseg.records import CASES, CONFIG


@dataclass(frozen=True)
class Check:
    """One metric, stored and computed anew."""

    metric: str
    stored: float | None
    """Mean over the cases; None: this metric is not among the stored ones."""
    here: float | None
    largest: float | None
    """Difference of any case, infinite where one of the two is undefined; None: the cases were not kept."""
    differing: int | None
    """Cases that differ at all."""
    beyond: int | None
    """Cases that differ by more than the tolerance."""
    ok: bool

    @property
    def difference(self) -> float | None:
        return None if self.stored is None or self.here is None else self.here - self.stored

    @property
    def equal(self) -> bool:
        return self.difference == 0 and not self.differing


@dataclass(frozen=True)
class Verification:
    """What a verification came to."""

    folder: Path
    record: Stored
    data: Path
    """The store that was found."""
    checks: tuple[Check, ...]
    findings: tuple[str, ...]
    """What was changed since the export, a sentence each."""
    otherwise: tuple[str, ...]
    """How the evaluation itself differs from that of the export: name, stored -> here."""
    device: str
    threads: int
    versions: dict[str, str]

    @property
    def verified(self) -> bool:
        return not self.findings and all(check.ok for check in self.checks)

    @property
    def equal(self) -> bool:
        """To the bit, overall and case by case."""
        return not self.findings and all(check.equal for check in self.checks)


@dataclass(frozen=True)
class Found:
    """What the fresh process computed."""

    cases: list[str]
    values: dict[str, np.ndarray]
    """[N] float under each metric's name."""
    config: dict[str, Any]
    means: dict[str, float]
    terms: dict[str, Any]
    """`orchestrator.stored.terms` of the version that runs here."""
    device: str
    threads: int
    versions: dict[str, str]


Rescore = Callable[[Path, Path, Stored, Path], None]
"""(model, store, record, folder to write to)"""


def verify(
    folder: Path, home: Path, *, data: str | None = None, say: Callable[[str], None] = lambda text: None,
    rescore: Rescore | None = None,
) -> Verification:  # fmt: skip
    """Check an exported model.

    Args:
        home: the workspace in which its data are looked for.
        data: the name or folder of the data, where they are not in the workspace.
        say: hears what takes long.
        rescore: computes the scores, in a fresh process unless told otherwise.

    Raises:
        StudyError, DataError, CheckpointError: it cannot be checked: the folder is not a whole export, the data are not
            there, or the fresh process did not come to its end.
    """
    folder = folder.resolve()
    record = read_stored(folder)
    findings = [f"{name} is no longer the file that was exported" for name in changed_files(folder, record)]
    findings += contradictions(folder, record)
    store = find_data(record, home, data)
    say(f"evaluating {record.cases.count} {record.data.part} cases of {record.data.name}, fold {record.data.fold}")
    found = _computed(folder, store, record, rescore or in_fresh_process)
    _check_cases(record, store, found)
    findings += _configuration(folder, found)
    kept = _kept(folder, record, found)
    names = list(dict.fromkeys([*record.means, *found.means]))
    checks = tuple(_check(name, record, found, kept) for name in names)
    return Verification(folder, record, store, checks, tuple(findings), _otherwise(record, found), found.device,
                        found.threads, found.versions)  # fmt: skip


# --- the data ---------------------------------------------------------------------------------------------------------


def find_data(record: Stored, home: Path, given: str | None) -> Path:
    """The folder of the store that the model was scored on, known by its fingerprint.

    Raises:
        StudyError, DataError: it is not there, or what was named is something else.
    """
    wanted = record.data.fingerprint
    if given is not None:
        store = open_data(given, home)
        _check_fingerprint(f"--data {given}", store.manifest.fingerprint, record)
        return store.folder
    for folder, manifest in stores(home):
        if manifest.fingerprint == wanted:
            return folder
    for folder in _of_studies(home, wanted):
        if folder.is_dir() and Store(folder).manifest.fingerprint == wanted:
            return folder
    if is_rendered_here(record.data.name):
        store = open_data(record.data.name, home)
        _check_fingerprint(f"{record.data.name}, as it is rendered here,", store.manifest.fingerprint, record)
        return store.folder
    raise StudyError(_absent(record, home))


def _of_studies(home: Path, fingerprint: str) -> list[Path]:
    """Where the studies of a workspace found the data of this fingerprint."""
    refs = (ref for study in readable_studies(home) for ref in study.sets)
    return list(dict.fromkeys(ref.folder for ref in refs if ref.fingerprint == fingerprint))


def _check_fingerprint(what: str, fingerprint: str, record: Stored) -> None:
    if fingerprint != record.data.fingerprint:
        raise StudyError(f"{what} is not the data that the model was scored on ({record.data.name}, fingerprint "
                         f"{record.data.fingerprint[:12]}, not {fingerprint[:12]})")  # fmt: skip


def _absent(record: Stored, home: Path) -> str:
    d = record.data
    namesake = next((manifest for _, manifest in stores(home) if manifest.name == d.name), None)
    changed = f"; its {d.name} has another fingerprint, {namesake.fingerprint[:12]}" if namesake else ""
    return (
        f"the data that the model was scored on, {d.name} with the fingerprint {d.fingerprint[:12]}, are not in the "
        f"workspace {home}{changed}: name their folder with --data, or prepare them with `proseg-tune data prepare`"
    )


# --- the fresh process ------------------------------------------------------------------------------------------------


def in_fresh_process(model: Path, store: Path, record: Stored, out: Path) -> None:
    """Run `orchestrator.rescore`; what it says goes to standard error only where it fails.

    Raises:
        StudyError: it was killed or failed.
    """
    e, d = record.evaluation, record.data
    words = [str(model), str(store), str(e.prior_samples), d.part, str(d.fold), str(e.threads), str(out)]
    # It must find the code that runs here, and nothing of the folder that the user happens to be in.
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator.rescore", *words], env=os.environ | {"PYTHONPATH": paths},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    if done.returncode and not (out / FOUND).exists():
        raise StudyError(f"the process that evaluated {model} {_ending(done.returncode, done.stderr)}")


def _ending(code: int, said: str) -> str:
    if code == -signal.SIGKILL:
        return "was killed, as the system does where memory runs out: free some, or use a machine with more"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return f"failed with exit code {code}: {last}"


def _computed(model: Path, store: Path, record: Stored, rescore: Rescore) -> Found:
    with tempfile.TemporaryDirectory(prefix="proseg-verify-") as name:
        out = Path(name)
        rescore(model, store, record, out)
        found = json.loads((out / FOUND).read_text(encoding="utf-8"))
        if "error" in found:
            raise StudyError(found["error"])
        values = read_columns(out / SCORES)
    return Found(values.pop("case").tolist(), values, **found)


# --- comparing --------------------------------------------------------------------------------------------------------


def _check_cases(record: Stored, store: Path, found: Found) -> None:
    if digest_of(record.data.fingerprint, found.cases) != record.cases.digest:
        raise StudyError(
            f"fold {record.data.fold} of {store} has other {record.data.part} cases ({len(found.cases)}) than the "
            f"{record.cases.count} the model was scored on: its folds were made by another version, or changed"
        )


def _configuration(folder: Path, found: Found) -> list[str]:
    """Where the configuration beside the weights is not the one in them."""
    path = folder / CONFIG
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is damaged ({error}); export the model again") from None
    return [] if told == found.config else [f"{CONFIG} is not the configuration that the weights carry"]


def _otherwise(record: Stored, found: Found) -> tuple[str, ...]:
    """Where the noise or the pixels of this evaluation are not those of the stored one."""
    stored = record.evaluation.model_dump()
    idle = {"slices_at_once"} if record.data.unit == "volume" else set()  # of a volume all slices are one group
    return tuple(f"{name} {stored[name]} -> {now}" for name, now in found.terms.items()
                 if name not in idle and stored[name] != now)  # fmt: skip


def _kept(folder: Path, record: Stored, found: Found) -> dict[str, np.ndarray] | None:
    """The stored scores of every case, in the order of the evaluation; None where they were not kept."""
    if record.cases.file is None:
        return None
    columns = read_columns(folder / record.cases.file)
    if columns["case"].tolist() != digests(record.data.fingerprint, found.cases).tolist():
        raise StudyError(f"{folder / CASES} does not hold the cases that the model was scored on; export it again")
    return columns


def _check(name: str, record: Stored, found: Found, kept: Mapping[str, np.ndarray] | None) -> Check:
    stored, here, bound = record.means.get(name), found.means.get(name), record.tolerance
    near = stored is not None and here is not None and abs(here - stored) <= bound.mean
    if kept is None:
        return Check(name, stored, here, None, None, None, near)
    distances = _distances(name, found, kept)
    beyond = int((distances > bound.case).sum())
    return Check(name, stored, here, float(distances.max(initial=0.0)), int((distances > 0).sum()), beyond,
                 near and beyond <= bound.share * len(distances))  # fmt: skip


def _distances(name: str, found: Found, kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N] of every case, infinite where only one of the two is defined."""
    nowhere = np.full(len(found.cases), np.nan)
    before, now = kept.get(name, nowhere), found.values.get(name, nowhere)
    undefined = np.isnan(before) & np.isnan(now)
    return np.where(undefined, 0.0, np.nan_to_num(np.abs(now - before), nan=np.inf))


# --- in words and as JSON ---------------------------------------------------------------------------------------------


def sentence(v: Verification) -> str:
    """The outcome in one sentence."""
    what = f"{len(v.checks)} metrics of {v.record.cases.count} {v.record.data.part} cases"
    if v.equal:
        each = ", overall and case by case" if v.record.cases.file else ""
        return f"verified: {what} are equal to the stored ones to the bit{each}"
    if v.verified:
        worst = max(v.checks, key=lambda check: abs(check.difference or 0.0))
        return (f"verified: {what} are those stored, within the tolerance; the largest difference of a mean is "
                f"{abs(worst.difference or 0.0):.2g} ({worst.metric})")  # fmt: skip
    off = [*v.findings, *(_off(check, v.record.tolerance) for check in v.checks if not check.ok)]
    return "NOT verified: " + "; ".join([*off, *_evaluated_otherwise(v)])


def _evaluated_otherwise(v: Verification) -> list[str]:
    return [f"evaluated otherwise than at the export: {', '.join(v.otherwise)}"] if v.otherwise else []


def _off(check: Check, bound: Tolerance) -> str:
    if check.difference is None:
        return f"{check.metric} is {'not stored' if check.stored is None else 'not defined here'}"
    if abs(check.difference) > bound.mean:
        return f"{check.metric} differs by {check.difference:+.4g}"
    return f"{check.metric} differs by more than {bound.case:g} in {check.beyond} cases"


def to_json(v: Verification) -> dict[str, Any]:
    """What `best --verify --json` prints."""
    d = v.record.data
    return {
        "model": str(v.folder), "verified": v.verified, "equal": v.equal, "sentence": sentence(v),
        "findings": list(v.findings), "otherwise": list(v.otherwise), "study": v.record.study, "trial": v.record.trial,
        "data": {**d.model_dump(), "folder": str(v.data)},
        "cases": v.record.cases.count, "evaluation": v.record.evaluation.model_dump(),
        "metrics": [{"metric": c.metric, "stored": c.stored, "here": c.here, "difference": c.difference,
                     "largest": None if c.largest == np.inf else c.largest, "cases_differing": c.differing,
                     "cases_beyond": c.beyond, "ok": c.ok} for c in v.checks],
        "tolerance": v.record.tolerance.model_dump(), "stored_with": v.record.versions,
        "here": {"device": v.device, "threads": v.threads, "versions": v.versions},
    }  # fmt: skip


HEADS = ("metric", "stored", "here", "difference", "largest of a case", "cases that differ", "")


def rows(v: Verification) -> list[list[str]]:
    """The table for a person, one metric a row."""
    return [[c.metric, _number(c.stored), _number(c.here), _signed(c.difference), _small(c.largest),
             "" if c.differing is None else str(c.differing), "" if c.ok else "DIFFERS"] for c in v.checks]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _signed(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:+.2g}"


def _small(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.2g}"


def notes(v: Verification) -> list[str]:
    """What a reader must know beside the table."""
    r, e = v.record, v.record.evaluation
    told = f"{r.data.name}: {r.data.label}; fold {r.data.fold}, S = {e.samples}"
    told += f" and {e.prior_samples} from the prior" if e.prior_samples else ""
    lines = [told, *_evaluated_otherwise(v)]
    if r.data.part == "validation":
        lines.append("exported without a final stage: these are validation patients, on which its epoch was chosen")
    if r.cases.file is None:
        lines.append("the scores of single cases were not kept at the export: only means are compared")
    changed = [f"{name} {r.versions[name]} -> {now}" for name, now in v.versions.items()
               if name != "git" and r.versions.get(name) not in (None, now)]  # fmt: skip
    if e.device != v.device:
        changed.insert(0, f"device {e.device} -> {v.device}")
    return [*lines, f"stored -> here: {', '.join(changed)}"] if changed else lines
