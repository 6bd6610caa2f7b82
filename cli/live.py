"""The display of a running study: a picture on a terminal, lines in a pipe, JSON lines for scripts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cli import render
from cli.render import STATES, cost
from orchestrator.words import span

if TYPE_CHECKING:
    from orchestrator.results import Trial
    from orchestrator.study import Study

LEADERS = 5
REFRESHES_PER_SECOND = 2
ENDED = ("complete", "stopped early", "failed")


@contextmanager
def watching(study: "Study", *, quiet: bool) -> Iterator["Watch"]:
    """The display of a study that this process runs: on standard error with `quiet`."""
    with shown(Watch(study, render.err if quiet else render.out)) as watch:
        yield watch


@contextmanager
def shown(watch: "Watch") -> Iterator["Watch"]:
    """Keep it before the eyes of who sits at a terminal; in a pipe it speaks for itself."""
    if not watch.console.is_terminal:
        yield watch
        return
    with Live(get_renderable=watch.picture, console=watch.console, refresh_per_second=REFRESHES_PER_SECOND):
        yield watch


class Watch:
    """Hears what happens in a study (`orchestrator.watcher.Watcher`) and shows it."""

    def __init__(self, study: "Study", console: Console, *, stage: str = "starting", age: float = 0.0):
        """Begin to watch.

        Args:
            stage: in which the study is now.
            age: seconds that it has run already, where another process runs it.
        """
        from orchestrator.results import read_trials

        self._study, self.console = study, console
        self._trials: dict[int, Trial] = {trial.number: trial for trial in read_trials(study)}
        self._before = self._ended()
        self._trainings: dict[str, tuple[int, int]] = {}
        self._watched_since = time.monotonic()
        self._stage, self._began = stage, self._watched_since - age
        self._notes: list[str] = []
        self._tracking: str | None = None
        self._say(f"study {study.name}: {study.trials} trials of {study.base.epochs} epochs on {study.data.name} "
                  f"({study.data.label}), {study.resources.concurrent} at a time")  # fmt: skip
        if study.quote is not None:
            self._say(f"expected: {cost(study.quote)}")
        if stage != "starting":
            self._say(self._headline())

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._say(f"note: {text}")

    def tracking(self, text: str | None) -> None:
        if text is not None and self._tracking is None:  # once: how many points wait changes all the time
            self._say(text)
        self._tracking = text

    def stage(self, text: str) -> None:
        self._stage = text
        self._say(f"{text}: begun")

    def trial(self, trial: "Trial") -> None:
        before = self._trials.get(trial.number)
        self._trials[trial.number] = trial
        if trial.state == "running":
            if trial.epoch and (before is None or before.epoch != trial.epoch):
                self._say(f"{trial.name} epoch {trial.epoch}/{self._study.base.epochs} {self._score(trial)}")
            return
        self._say(f"{trial.name} {trial.state} after {trial.epoch} epochs {self._score(trial)} {trial.reason}".rstrip())

    def training(self, name: str, epoch: int, epochs: int) -> None:
        if self._trainings.get(name) != (epoch, epochs):
            self._trainings[name] = (epoch, epochs)
            self._say(f"{name} epoch {epoch}/{epochs}")

    def picture(self) -> Group:
        """The whole display, drawn anew at every refresh."""
        parts: list[Any] = [Text(self._headline(), style="bold")]
        if self._study.quote is not None:
            parts.append(Text(f"expected: {cost(self._study.quote)}", style="dim"))
        if self._trials:
            parts.append(render.trial_table(self._study, self._leaders()))
        parts += [Text(f"{name}: epoch {epoch}/{epochs}") for name, (epoch, epochs) in list(self._trainings.items())
                  if epoch < epochs]  # fmt: skip
        parts += [Text(f"note: {note}", style="dim") for note in list(self._notes)]
        if self._tracking:
            parts.append(Text(self._tracking, style="yellow"))
        return Group(*parts)

    def _headline(self) -> str:
        states = [trial.state for trial in list(self._trials.values())]  # the study goes on while this is drawn
        counts = {state: states.count(state) for state in STATES}
        words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        ended, left = self._ended(), ""
        if self._stage == "search" and ended > self._before:
            each = (time.monotonic() - self._watched_since) / (ended - self._before)
            left = f", about {span(each * (self._study.trials - ended))} of search left"
        return (f"{self._study.name} · {self._stage} · {ended}/{self._study.trials} trials"
                f"{f' ({words})' if words else ''} · {span(time.monotonic() - self._began)}{left}")  # fmt: skip

    def _ended(self) -> int:
        return sum(trial.state in ENDED for trial in list(self._trials.values()))

    def _leaders(self) -> list["Trial"]:
        from orchestrator.results import ranked

        trials = list(self._trials.values())
        unscored = [trial for trial in trials if trial.objective is None and trial.state == "running"]
        return [*ranked(trials, self._study.criterion)[:LEADERS], *unscored]

    def _score(self, trial: "Trial") -> str:
        return "" if trial.objective is None else f"best {self._study.criterion.metric} {trial.objective:.4f}"

    def _say(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, soft_wrap=True, markup=False, emoji=False)


class JsonLines:
    """The same for scripts: one JSON object a line on standard output, whose key `event` says what it is."""

    def stage(self, text: str) -> None:
        self.say("stage", stage=text)

    def trial(self, trial: "Trial") -> None:
        self.say("trial", trial=asdict(trial))

    def training(self, name: str, epoch: int, epochs: int) -> None:
        self.say("training", name=name, epoch=epoch, epochs=epochs)

    def note(self, text: str) -> None:
        self.say("note", text=text)

    def tracking(self, text: str | None) -> None:
        self.say("tracking", text=text)

    def say(self, event: str, **record: Any) -> None:
        render.json_line({"event": event, "time": time.time(), **record})
