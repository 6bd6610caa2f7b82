"""Who hears of a study while it runs."""

from typing import Protocol

from orchestrator.results import Trial


class Watcher(Protocol):
    """Hears of a study while it runs: the terminal's display, or nobody."""

    def stage(self, text: str) -> None:
        """The study has come to its next stage."""

    def trial(self, trial: Trial) -> None:
        """A trial has started, finished an epoch, or ended."""

    def fold(self, data: str, fold: int, epoch: int, epochs: int) -> None:
        """A fold of the final stage has finished an epoch."""
