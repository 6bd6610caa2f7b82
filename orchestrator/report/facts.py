"""What a report is made from: a study as its folder has it at one moment. Reads, and decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.confirm import read_verdict
from orchestrator.results import FoldResult, Trial, ranked, read_results, read_trials, winner_of
from orchestrator.rivals import Verdict
from orchestrator.study import Study, read_state
from proseg.records import best_epoch, read_epochs

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
        return winner_of(self.trials, self.verdict, self.study.criterion)

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


def metric_heads(study: Study) -> list[str]:
    """Columns of the objectives; `val`, as on a trial's own page, says on whom."""
    return [f"{criterion.metric} (val)" for criterion in study.criteria]


def data_line(study: Study) -> str:
    """The data that are searched on, and what they are: in every caption."""
    return f"{study.data.name}: {study.data.label}"
