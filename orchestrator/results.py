"""What became of the trials: an append-only log on disk, and the records read back from it.

The log (`trials.jsonl` in the study's folder) is the truth; what Optuna and MLflow hold can be rebuilt from it and from
the trials' own folders. Reading needs neither Ray nor torch.
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.study import Study
from proseg.fit import Criterion

LOG = "trials.jsonl"
TrialState = Literal["running", "complete", "stopped early", "failed", "interrupted"]


@dataclass(frozen=True)
class Trial:
    """One configuration tried in a study."""

    number: int
    values: dict[str, Any]
    state: TrialState = "running"
    epoch: int = 0
    """Epochs it has trained."""
    objective: float | None = None
    """Best value so far."""
    reason: str = ""
    """Why it failed or was stopped."""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"t{self.number:03d}"


class TrialLog:
    """Appends events; each is one write of one line."""

    def __init__(self, folder: Path):
        self._path = folder / LOG

    def append(self, trial: Trial) -> None:
        line = json.dumps({"time": time.time(), **asdict(trial)}) + "\n"
        with open(self._path, "ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())


def read_trials(study: Study) -> list[Trial]:
    """The trials as they stand, by number."""
    path = study.folder / LOG
    if not path.exists():
        return []
    latest: dict[int, Trial] = {}
    for line in path.read_text().split("\n")[:-1]:  # what follows the last newline was not finished
        event = json.loads(line)
        del event["time"]
        latest[event["number"]] = Trial(**event)
    return [_with_progress(study, latest[number]) for number in sorted(latest)]


def ranked(trials: Sequence[Trial], criterion: Criterion) -> list[Trial]:
    """Best first. A trial that ran its full budget stands before one that was stopped: it was measured at more epochs,
    and only it is known to hold what it promised."""
    sign = -1 if criterion.maximize else 1
    scored = [(trial, trial.objective) for trial in trials if trial.objective is not None and trial.state != "failed"]
    return [t for t, value in sorted(scored, key=lambda pair: (pair[0].state != "complete", sign * pair[1]))]


def best_trial(trials: Sequence[Trial], criterion: Criterion) -> Trial | None:
    order = ranked([trial for trial in trials if trial.state != "running"], criterion)
    return order[0] if order else None


def median_objective(trials: Sequence[Trial]) -> float | None:
    """Over all trials that were scored at all."""
    values = [trial.objective for trial in trials if trial.objective is not None]
    return statistics.median(values) if values else None


def _with_progress(study: Study, trial: Trial) -> Trial:
    """A running trial's epochs are in its own folder."""
    if trial.state != "running":
        return trial
    from proseg.fit import read_epochs

    records = read_epochs(study.trial_folder(trial.number))
    return replace(trial, epoch=records[-1]["epoch"], objective=records[-1]["best"]) if records else trial
