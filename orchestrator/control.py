"""When a study ends before it is done: because a person asks, or because its time or its budget is used up."""

import time
from collections.abc import Iterable
from pathlib import Path

from orchestrator.results import Trial
from orchestrator.study import Study

STOP = "stop"
"""A file of this name in the study's folder asks it to stop: another process, or another machine, can make it."""


def request_stop(folder: Path) -> None:
    (folder / STOP).touch()


def forget_stop(folder: Path) -> None:
    (folder / STOP).unlink(missing_ok=True)


def stop_requested(folder: Path) -> bool:
    return (folder / STOP).exists()


class Stopped(Exception):
    """A person asked the study to stop; what has been reached is kept and `resume` goes on from it."""


class Control:
    """Knows while a search runs whether it should go on."""

    def __init__(self, study: Study, trials: Iterable[Trial]):
        self._study = study
        self._spent = sum(trial.cost for trial in trials)
        self._running: dict[int, tuple[float, float]] = {}
        self._deadline = time.monotonic() + self._left(study.max_time) if study.max_time else float("inf")
        reserve = study.quote.units(study.quote.after_search) if study.quote and study.finals else 0.0
        self._budget = study.budget - reserve if study.budget else float("inf")

    def _left(self, seconds: float) -> float:
        quote = self._study.quote
        return seconds - (quote.after_search if quote and self._study.finals else 0.0)

    def started(self, number: int) -> None:
        # Tune starts a trial again whose process was lost: its time goes on.
        self._running.setdefault(number, (time.monotonic(), self._study.resources.units_per_trial))

    def ended(self, number: int) -> tuple[float, float]:
        """(seconds that a trial ran, what it cost in the unit of the budget)."""
        began, units = self._running.pop(number, (time.monotonic(), 0.0))
        seconds = time.monotonic() - began
        self._spent += units * seconds / 3600
        return seconds, units * seconds / 3600

    @property
    def spent(self) -> float:
        now = time.monotonic()
        return self._spent + sum(units * (now - began) / 3600 for began, units in self._running.values())

    @property
    def over(self) -> str:
        """Why the search may not go on; empty while it may."""
        if time.monotonic() >= self._deadline:
            return "the time of the search was over"
        if self.spent >= self._budget:
            return "the budget of the search was used up"
        return ""

    @property
    def stopping(self) -> bool:
        """A person asked for it: epochs under way are finished, nothing new is begun."""
        return stop_requested(self._study.folder)
