"""What a person sees: errors, tables, the display of a running study. The one place that prints."""

import json as json_module
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from orchestrator.estimate import Estimate
    from orchestrator.results import FoldResult, Trial
    from orchestrator.study import Study
    from proseg.data.catalog import Listing, Track

T = TypeVar("T")
LEADERS = 5
WIDTH_OF_A_PIPE = 200
REFRESHES_PER_SECOND = 2
STATES = ("running", "complete", "stopped early", "failed", "interrupted")
COLOURS = {"running": "cyan", "complete": "green", "stopped early": "yellow", "failed": "red", "interrupted": "red"}


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_PIPE  # a pipe has no width: nothing is folded there
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def line(text: str) -> None:
    out.print(escape(text), soft_wrap=not out.is_terminal)


def error(text: str) -> None:
    err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=not err.is_terminal)


def json(record: object) -> None:
    print(json_module.dumps(record, indent=1))


def span(seconds: float) -> str:
    """A duration a person can read: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def track(*, quiet: bool = False) -> "Track":
    """A progress bar for preparations: on a terminal a bar, in a pipe a line at the beginning, with `quiet` nothing."""

    def tracked(items: Iterable[T], total: int, what: str) -> Iterable[T]:
        if quiet:
            return items
        if not err.is_terminal:
            err.print(f"{what}: {total}")
            return items
        return _bar(items, total, what)

    return tracked


def _bar(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


# --- a running study --------------------------------------------------------------------------------------------------


@contextmanager
def watching(study: "Study", *, quiet: bool) -> Iterator["Watch"]:
    """The display of a study: live on a terminal, plain lines in a pipe, on standard error with `quiet`."""
    console = err if quiet else out
    watch = Watch(study, console)
    if not console.is_terminal:
        yield watch
        return
    with Live(get_renderable=watch.picture, console=console, refresh_per_second=REFRESHES_PER_SECOND):
        watch.live = True
        yield watch


class Watch:
    """Hears what happens in a study (orchestrator.search.Watcher) and shows it."""

    def __init__(self, study: "Study", console: Console):
        self._study, self._console = study, console
        self._trials: dict[int, Trial] = {}
        self._folds: dict[tuple[str, int], tuple[int, int]] = {}
        self._stage, self._began = "starting", time.monotonic()
        self._notes: list[str] = []
        self.live = False
        self._say(f"study {study.name}: {study.trials} trials of {study.base.epochs} epochs on {study.data.name} "
                  f"({study.data.label}), {study.resources.concurrent} at a time")  # fmt: skip

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._say(f"note: {text}")

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

    def fold(self, data: str, fold: int, epoch: int, epochs: int) -> None:
        if self._folds.get((data, fold)) != (epoch, epochs):
            self._folds[data, fold] = (epoch, epochs)
            self._say(f"final {data} fold {fold} epoch {epoch}/{epochs}")

    def picture(self) -> Group:
        """The whole display, drawn anew at every refresh."""
        parts: list[Any] = [self._headline()]
        if self._trials:
            parts.append(_trial_table(self._study, self._leaders()))
        parts += [Text(f"{data} fold {fold}: epoch {epoch}/{epochs}") for (data, fold), (epoch, epochs)
                  in sorted(self._folds.items())]  # fmt: skip
        parts += [Text(f"note: {note}", style="dim") for note in self._notes]
        return Group(*parts)

    def _headline(self) -> Text:
        counts = {state: sum(trial.state == state for trial in self._trials.values()) for state in STATES}
        words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        ended = sum(count for state, count in counts.items() if state != "running")
        elapsed = time.monotonic() - self._began
        left = ""
        if self._stage == "search" and ended:
            left = f", about {span(elapsed / ended * (self._study.trials - ended))} of search left"
        return Text(f"{self._study.name} · {self._stage} · {ended}/{self._study.trials} trials"
                    f"{f' ({words})' if words else ''} · {span(elapsed)}{left}", style="bold")  # fmt: skip

    def _leaders(self) -> list["Trial"]:
        from orchestrator.results import ranked

        trials = list(self._trials.values())
        unscored = [trial for trial in trials if trial.objective is None and trial.state == "running"]
        return [*ranked(trials, self._study.criterion)[:LEADERS], *unscored]

    def _score(self, trial: "Trial") -> str:
        return "" if trial.objective is None else f"best {self._study.criterion.metric} {trial.objective:.4f}"

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(escape(text), soft_wrap=True)


# --- answers ----------------------------------------------------------------------------------------------------------


def plan(study: "Study", cost: "Estimate", *, as_json: bool) -> None:
    """What a launch would do."""
    resources = study.resources
    if as_json:
        json({
            "space": study.space.name, "trials": study.trials, "epochs": study.base.epochs,
            "resources": {**resources.model_dump(), "cpus_per_trial": resources.cpus_per_trial,
                          "gpus_per_trial": resources.gpus_per_trial},
            "data": study.data.model_dump(mode="json"),
            "final": [{"data": final.stage.data, "folds": final.folds, "epochs": final.stage.epochs,
                       "missing": final.missing} for final in study.finals],
            "seconds": {"step": cost.step, "search": cost.search, "final": cost.final, "total": cost.total},
        })  # fmt: skip
        return
    gpu = f", {resources.gpus_per_trial:g} GPU" if resources.gpus else ", no GPU"
    table = Table(show_header=False, box=None)
    rows = {
        "space": f"{study.space.name}: {study.space.about}",
        "trials": f"{study.trials}, at most {study.base.epochs} epochs each, {resources.concurrent} at a time",
        "each trial": f"{resources.workers} worker(s), {resources.cpus_per_trial} CPU core(s){gpu}",
        "objective": f"{study.space.objective.direction} {study.criterion.metric} on the validation patients of fold "
                     f"{study.space.fold}",
        "data": f"{study.data.name}: {study.data.label}; {study.data.slices} slices, {study.data.patients} patients",
    }  # fmt: skip
    for final in study.finals:
        told = f"left out: {final.missing}"
        if final.data is not None:
            told = f"{final.folds} fold(s), {final.stage.epochs} epochs; {final.data.label}"
        rows[f"final stage, {final.stage.data}"] = told
    rows["time"] = (
        f"about {span(cost.search)} of search if no trial stopped early, and {span(cost.final)} of final stage; one "
        f"training step takes {1000 * cost.step:.0f} ms"
    )
    for name, text in rows.items():
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    out.print(table)


def outcome(study: "Study") -> None:
    """What a launch ends with."""
    from orchestrator.export import winner
    from orchestrator.results import read_results, read_trials

    trials, results = read_trials(study), read_results(study)
    out.print(_trial_table(study, trials, title=f"Trials of {study.name}"))
    trial = winner(study)
    line(f"best: {trial.name} with {study.criterion.metric} {trial.objective:.4f} on validation patients")
    if results:
        _final_table(study, results)
    line(f"\nrecord: {study.folder}")
    line(f"next:   proseg-tune ui {study.name}\n        proseg-tune best {study.name} --export DIR")


def exported(record: dict[str, Any]) -> None:
    line(f"study {record['study']}, trial t{record['trial']:03d}: exported to {record['export']}")


def best(study: "Study", record: dict[str, Any]) -> None:
    objective = record["objective"]
    line(f"study {record['study']}, trial t{record['trial']:03d}: {objective['metric']} {objective['value']:.4f} on "
         "validation patients")  # fmt: skip
    table = Table(box=None, show_header=False)
    for name, value in record["values"].items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    out.print(table)
    from orchestrator.results import read_results

    results = read_results(study)
    if results:
        _final_table(study, results)
    if record["export"]:
        line(f"exported to {record['export']}")


def status(
    study: "Study", state: str, trials: Sequence["Trial"], results: Sequence["FoldResult"], *, as_json: bool
) -> None:
    from dataclasses import asdict

    folds = sum(final.folds for final in study.finals if final.data is not None)
    if as_json:
        json({"study": study.name, "state": state, "trials_planned": study.trials, "folder": str(study.folder),
              "trials": [asdict(trial) for trial in trials], "folds_planned": folds,
              "folds": [asdict(result) for result in results]})  # fmt: skip
        return
    counts = {name: sum(trial.state == name for trial in trials) for name in STATES}
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none yet"
    line(f"study {study.name}: {state}; {len(trials)} of {study.trials} trials ({words}); "
         f"{len(results)} of {folds} final folds")  # fmt: skip
    if trials:
        out.print(_trial_table(study, trials))
    if results:
        _final_table(study, results)


def listing(lines: Sequence["Listing"], *, as_json: bool) -> None:
    if as_json:
        json([vars(entry) for entry in lines])
        return
    table = Table(box=None)
    for head in ("name", "state", "what it is", "where"):
        table.add_column(head, overflow="fold")
    for entry in lines:
        table.add_row(entry.name, entry.state, entry.about, entry.where)
    out.print(table)


def _trial_table(study: "Study", trials: Sequence["Trial"], title: str | None = None) -> Table:
    from orchestrator.tables import settings

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head in ("trial", "state", "epochs", f"{study.criterion.metric} (val)", "configuration"):
        table.add_column(head, overflow="fold", no_wrap=head != "configuration")
    for trial in trials:
        score = "" if trial.objective is None else f"{trial.objective:.4f}"
        words = settings(trial) if trial.state != "failed" else trial.reason
        table.add_row(trial.name, f"[{COLOURS[trial.state]}]{trial.state}[/]", str(trial.epoch), score, escape(words))
    return table


def _final_table(study: "Study", results: Sequence["FoldResult"]) -> None:
    """Metrics down, data sets across: fits a terminal of 80 columns."""
    from orchestrator.tables import cell, final_rows, notes, titles

    rows = final_rows(results)
    table = Table(title="Held-out patients (GED; Dice in %)", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for row in rows:
        table.add_column(row["data"], justify="right")
    table.add_row("samples S", *(row["samples"] for row in rows))
    table.add_row("test cases", *(str(row["cases"]) for row in rows))
    table.add_row("folds", *(str(row["folds"]) for row in rows))
    for name in titles(rows):
        table.add_row(name, *(cell(name, row["cells"][name], row["folds"]) if name in row["cells"] else ""
                              for row in rows))  # fmt: skip
    out.print(table)
    for note in notes(study, results):
        line(f"  {note}")
