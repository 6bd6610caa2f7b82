"""Who hears of a study while it runs."""

from typing import Protocol

from orchestrator.results import Trial


class Watcher(Protocol):
    """Hears of a study while it runs: the terminal's display, or nobody."""

    def stage(self, text: str) -> None:
        """The study has come to its next stage."""

    def trial(self, trial: Trial) -> None:
        """A trial has started, finished an epoch, or ended."""

    def training(self, name: str, epoch: int, epochs: int) -> None:
        """A training of the confirmation or of the final stage has finished an epoch."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def tracking(self, text: str | None) -> None:
        """MLflow has not got what there is, and why; None: it has. Called from a thread of its own."""
