"""What a person sees: errors, tables, the display of a running study. The one place that prints."""

import json as json_module
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from orchestrator.quote import Quote
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
        from orchestrator.results import read_trials

        self._study, self._console = study, console
        self._trials: dict[int, Trial] = {trial.number: trial for trial in read_trials(study)}
        self._before = sum(trial.state not in ("running", "interrupted") for trial in self._trials.values())
        self._trainings: dict[str, tuple[int, int]] = {}
        self._stage, self._began = "starting", time.monotonic()
        self._notes: list[str] = []
        self.live = False
        self._say(f"study {study.name}: {study.trials} trials of {study.base.epochs} epochs on {study.data.name} "
                  f"({study.data.label}), {study.resources.concurrent} at a time")  # fmt: skip
        if study.quote is not None:
            self._say(f"expected: {cost(study.quote)}")

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._say(f"note: {text}")

    def tracking(self, text: str | None) -> None:
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
        parts: list[Any] = [self._headline()]
        if self._study.quote is not None:
            parts.append(Text(f"expected: {cost(self._study.quote)}", style="dim"))
        if self._trials:
            parts.append(_trial_table(self._study, self._leaders()))
        parts += [Text(f"{name}: epoch {epoch}/{epochs}") for name, (epoch, epochs) in list(self._trainings.items())
                  if epoch < epochs]  # fmt: skip
        parts += [Text(f"note: {note}", style="dim") for note in list(self._notes)]
        return Group(*parts)

    def _headline(self) -> Text:
        states = [trial.state for trial in list(self._trials.values())]  # the study goes on while this is drawn
        counts = {state: states.count(state) for state in STATES}
        words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        ended = sum(count for state, count in counts.items() if state not in ("running", "interrupted"))
        elapsed = time.monotonic() - self._began
        left = ""
        if self._stage == "search" and ended > self._before:
            each = elapsed / (ended - self._before)
            left = f", about {span(each * (self._study.trials - ended))} of search left"
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


def cost(quote: "Quote") -> str:
    """What a study is expected to take, in one line."""
    low, high = quote.units(quote.low), quote.units(quote.high)
    units = _between(low, high, lambda value: f"{value:.2g}")
    time = _between(quote.low, quote.high, span)
    return f"{time} ({units} {quote.unit}), at most {quote.disk / 2**20:.0f} MB of disk"


def _between(low: float, high: float, shown: Callable[[float], str]) -> str:
    return shown(high) if shown(low) == shown(high) else f"{shown(low)} to {shown(high)}"


def plan(study: "Study", *, as_json: bool) -> None:
    """What a launch would do."""
    resources, quote = study.resources, study.quote
    assert quote is not None
    if as_json:
        json({
            "space": study.space.name, "trials": study.trials, "epochs": study.base.epochs,
            "sampler": study.space.sampler,
            "points": [point.model_dump() for point in study.points],
            "resources": {**resources.model_dump(), "cpus": resources.cpus, "gpus": resources.gpus,
                          "cpus_per_trial": resources.cpus_per_trial, "gpus_per_trial": resources.gpus_per_trial},
            "data": study.data.model_dump(mode="json"),
            "confirm": study.space.confirm.model_dump() if study.finals else None,
            "final": [{"data": final.stage.data, "folds": final.folds, "epochs": final.stage.epochs,
                       "missing": final.missing} for final in study.finals],
            "seconds": {"step": quote.step, "epoch": quote.epoch, "low": quote.low, "high": quote.high,
                        **{stage: getattr(quote, stage).model_dump() for stage in ("search", "confirm", "final")}},
            "units": {"unit": quote.unit, "low": quote.units(quote.low), "high": quote.units(quote.high)},
            "memory": quote.memory, "disk": quote.disk,
        })  # fmt: skip
        return
    gpu = f", {resources.gpus_per_trial:g} GPU" if resources.gpus else ", no GPU"
    table = Table(show_header=False, box=None)
    rows = {
        "space": f"{study.space.name}: {study.space.about}",
        "trials": f"{study.trials} by {study.space.sampler}, at most {study.base.epochs} epochs each, "
                  f"{resources.concurrent} at a time",
        "first": "; ".join(point.origin for point in study.points),
        "each trial": f"{resources.workers} worker(s), {resources.cpus_per_trial} CPU core(s){gpu}; a worker needs "
                      f"{quote.memory / 2**20:.0f} MB",
        "objective": f"{study.space.objective.direction} {study.criterion.metric}"
                     f"{_and_second(study)} on the validation patients of fold {study.space.fold}",
        "data": f"{study.data.name}: {study.data.label}; {study.data.slices} slices, {study.data.patients} patients",
    }  # fmt: skip
    if study.finals and study.space.confirm.top > 1:
        confirm = study.space.confirm
        rows["confirmation"] = f"the best {confirm.top} are retrained {confirm.repeats} time(s) each and compared"
    for final in study.finals:
        told = f"left out: {final.missing}"
        if final.data is not None:
            told = f"{final.folds} fold(s), {final.stage.epochs} epochs; {final.data.label}"
        rows[f"final stage, {final.stage.data}"] = told
    rows["time"] = (
        f"search {_between(quote.search.low, quote.search.high, span)}, confirmation {span(quote.confirm.high)}, final "
        f"stage {span(quote.final.high)}; one training step takes {1000 * quote.step:.0f} ms (steps differed by "
        f"{100 * quote.spread:.0f} %)"
    )
    rows["in all"] = cost(quote)
    for name, text in rows.items():
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    out.print(table)


def _and_second(study: "Study") -> str:
    second = study.space.second_objective
    return f" and {second.direction} {second.metric}" if second else ""


def explained(study: "Study", record: dict[str, Any], *, as_json: bool) -> None:
    """One trial: what it tried, how far it came, why it ended."""
    if as_json:
        json(record)
        return
    metric = record["metric"]
    place = f", place {record['place']} of {record['scored']}" if record["place"] else ""
    line(f"t{record['number']:03d} of {record['study']}: {record['state']} after {record['epoch']} of "
         f"{study.base.epochs} epochs{place}")  # fmt: skip
    if record["reason"]:
        line(f"why: {record['reason']}")
    if record["origin"]:
        line(f"values from: {record['origin']}")
    for retry in record["retries"]:
        line(f"went on from its last checkpoint: {retry}")
    if record["traceback"]:
        line(f"traceback: {record['traceback']}")
    table = Table(box=None, show_header=False)
    for name, value in record["values"].items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    out.print(table)
    if record["epochs"]:
        epochs = Table(box=None, pad_edge=False)
        for head in ("epoch", f"{metric} (val)", "best"):
            epochs.add_column(head, justify="right")
        for epoch in record["epochs"]:
            epochs.add_row(str(epoch["epoch"]), f"{epoch['value']:.4f}", f"{epoch['best']:.4f}")
        out.print(epochs)
    line(f"took {span(record['seconds'])}; its files are in {record['folder']}")


def outcome(study: "Study") -> None:
    """What a launch ends with."""
    from orchestrator.export import winner
    from orchestrator.results import read_results, read_trials

    trials, results = read_trials(study), read_results(study)
    out.print(_trial_table(study, trials, title=f"Trials of {study.name}"))
    trial = winner(study)
    line(f"best: {trial.name} with {study.criterion.metric} {trial.objective:.4f} on validation patients")
    _show_confirmation(study)
    if results:
        _final_table(study, results)
    line(f"\nrecord: {study.folder}")
    line(f"next:   proseg-tune ui {study.name}\n        proseg-tune best {study.name} --export DIR")


def _show_confirmation(study: "Study") -> None:
    from orchestrator.confirm import read_verdict
    from orchestrator.rivals import sentence

    verdict = read_verdict(study)
    if verdict is not None:
        line(f"confirmed: {sentence(verdict, study.criterion.metric)}")


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
    _show_confirmation(study)
    for member in record["front"]:
        shown = ", ".join(f"{c.metric} {v:.4f}" for c, v in zip(study.criteria, member["objectives"], strict=True))
        line(f"Pareto front: t{member['trial']:03d} with {shown}")
    from orchestrator.results import FoldResult

    results = [FoldResult(**fold) for fold in record["folds"]]
    if results:
        _final_table(study, results)
    if record["export"]:
        line(f"exported to {record['export']}")


def status(
    study: "Study", state: str, trials: Sequence["Trial"], results: Sequence["FoldResult"], *, as_json: bool
) -> None:
    from dataclasses import asdict

    from orchestrator.disk import used

    folds = sum(final.folds for final in study.finals if final.data is not None)
    if as_json:
        json({"study": study.name, "state": state, "trials_planned": study.trials, "folder": str(study.folder),
              "trials": [asdict(trial) for trial in trials], "folds_planned": folds,
              "spent": {"unit": study.resources.unit, "amount": sum(trial.cost for trial in trials)},
              "disk": used(study.folder),
              "folds": [asdict(result) for result in results]})  # fmt: skip
        return
    counts = {name: sum(trial.state == name for trial in trials) for name in STATES}
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none yet"
    line(f"study {study.name}: {state}; {len(trials)} of {study.trials} trials ({words}); "
         f"{len(results)} of {folds} final folds")  # fmt: skip
    spent, limit = sum(trial.cost for trial in trials), f" of {study.budget:g}" if study.budget else ""
    retries = sum(len(trial.retries) for trial in trials)
    again = f", which went on {retries} time(s) from a checkpoint" if retries else ""
    line(f"{spent:.3g}{limit} {study.resources.unit} spent on trials{again}; "
         f"{used(study.folder) / 2**20:.1f} MB in {study.folder}")  # fmt: skip
    if trials:
        out.print(_trial_table(study, trials))
    _show_confirmation(study)
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


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[str] = ()) -> None:
    """A plain table; numbers stand to the right, the columns named in `words` to the left."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head in words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _trial_table(study: "Study", trials: Sequence["Trial"], title: str | None = None) -> Table:
    from orchestrator.tables import settings

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    metrics = [f"{criterion.metric} (val)" for criterion in study.criteria]
    for head in ("trial", "state", "epochs", *metrics, "configuration"):
        table.add_column(head, overflow="fold", no_wrap=head != "configuration")
    for trial in trials:
        reached = (trial.objective, trial.second)[: len(metrics)]
        scores = ["" if value is None else f"{value:.4f}" for value in reached]
        words = settings(trial) if trial.state != "failed" else trial.reason
        table.add_row(trial.name, f"[{COLOURS[trial.state]}]{trial.state}[/]", str(trial.epoch), *scores, escape(words))
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
