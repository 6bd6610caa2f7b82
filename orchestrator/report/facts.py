"""What a report is made from: a study as its folder has it at one moment. Reads, and decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from orchestrator.confirm import read_verdict
from orchestrator.results import FoldResult, Trial, best_trial, ranked, read_results, read_trials
from orchestrator.rivals import Verdict
from orchestrator.study import Study, read_state
from proseg.records import Criterion, read_epochs

Epochs = Sequence[Mapping[str, Any]]
"""The records of a training, one an epoch."""


@dataclass(frozen=True)
class Facts:
    """A study, and what has become of it."""

    study: Study
    state: str
    trials: tuple[Trial, ...]
    """By number."""
    epochs: Mapping[int, Epochs]
    """Of each trial, by its number."""
    verdict: Verdict | None
    results: tuple[FoldResult, ...]
    made: float
    """When it was read, in seconds since the epoch."""

    @cached_property
    def ranked(self) -> list[Trial]:
        """Those with a score, best first."""
        return ranked(self.trials, self.study.criterion)

    @cached_property
    def winner(self) -> Trial | None:
        """As `best` names it: chosen by the comparison of the best, or without one the best of the search."""
        if self.verdict is None:
            return best_trial(self.trials, self.study.criterion)
        return next(trial for trial in self.trials if trial.number == self.verdict.chosen)

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.state == "finished"

    def counts(self) -> dict[str, int]:
        """How many trials are in each state that occurs."""
        states = [trial.state for trial in self.trials]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def at_best(self, trial: Trial) -> Mapping[str, float]:
        """The metrics of the epoch whose objective is the trial's; empty where its records are gone."""
        return best_epoch(self.epochs.get(trial.number, ()), self.study.criterion)


def read_facts(study: Study, now: float) -> Facts:
    """Everything, once: a study that is running goes on while it is read."""
    state, trials = read_state(study), read_trials(study)
    epochs = {trial.number: read_epochs(study.trial_folder(trial.number))[: trial.epoch] for trial in trials}
    return Facts(study, state, tuple(trials), epochs, read_verdict(study), tuple(read_results(study)), now)


def best_epoch(epochs: Epochs, criterion: Criterion) -> Mapping[str, float]:
    """The metrics of the first epoch at which the objective was as good as it became."""
    found: Mapping[str, float] = {}
    best: float | None = None
    for record in epochs:
        value = record["metrics"].get(f"val/{criterion.metric}")
        if value is not None and criterion.better(value, best):
            best, found = value, record["metrics"]
    return found


def metric_heads(study: Study) -> list[str]:
    """Columns of the objectives; `val`, as on a trial's own page, says on whom."""
    return [f"{criterion.metric} (val)" for criterion in study.criteria]


def data_line(study: Study) -> str:
    """The data that are searched on, and what they are: in every caption."""
    return f"{study.data.name}: {study.data.label}"


def moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def span(seconds: float) -> str:
    """A duration a person can read: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
