"""What a person sees: errors, tables, answers; the display of a running study is `cli.live`. Nothing else prints."""

import json as json_module
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from orchestrator.words import span

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.overview import Overview, Unreadable
    from orchestrator.quote import Quote
    from orchestrator.results import FoldResult, Trial
    from orchestrator.study import Study
    from proseg.data.catalog import Listing, Track

T = TypeVar("T")
WIDTH_OF_A_PIPE = 200
QUOTED_AFTER = 3.0
"""Seconds of work from which it is seen how long it will take."""
MOST_TRIALS = 40
STATES = ("running", "complete", "stopped early", "failed", "interrupted")
COLOURS = {"running": "cyan", "complete": "green", "finished": "green", "stopped early": "yellow", "failed": "red",
           "interrupted": "red"}  # fmt: skip


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)  # what users wrote is literal
    if not console.is_terminal:
        console.width = WIDTH_OF_A_PIPE  # a pipe has no width: nothing is folded there
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def _state(state: str) -> Text:
    return Text(state, style=COLOURS[state])


def line(text: str) -> None:
    out.print(text, soft_wrap=not out.is_terminal)


def marked(mark: str, colour: str, text: str) -> None:
    """A line that begins with a word in colour; what follows stands below what begins it."""
    out.print(Text(f"{mark:9}", style=colour), text, soft_wrap=not out.is_terminal)


def error(text: str) -> None:
    err.print(Text("error:", style="red"), text, soft_wrap=not err.is_terminal)


def json(record: object) -> None:
    print(json_module.dumps(_without_nan(record), indent=1, allow_nan=False))


def json_line(record: object) -> None:
    """One record a line, at once: who reads a pipe waits for it."""
    print(json_module.dumps(_without_nan(record), allow_nan=False), flush=True)


def _without_nan(record: Any) -> Any:
    """JSON has no NaN and no infinity: such a number is null."""
    if isinstance(record, dict):
        return {key: _without_nan(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [_without_nan(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def track(*, quiet: bool = False) -> "Track":
    """The progress of long work: on a terminal a bar, in a pipe a line at the beginning and every tenth of the way,
    with `quiet` nothing. What will take more than a minute is quoted."""

    def tracked(items: Iterable[T], total: int, what: str) -> Iterable[T]:
        if quiet:
            return items
        shown = _bar if err.is_terminal else _told
        return shown(_quoted(items, total), total, what)

    return tracked


def _told(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    err.print(f"{what}: {total}")
    for done, item in enumerate(items, 1):
        yield item
        if 10 * done // total > 10 * (done - 1) // total:
            err.print(f"{what}: {done} of {total} ({100 * done // total} %)")


def _quoted(items: Iterable[T], total: int) -> Iterator[T]:
    began, silent = time.monotonic(), True
    for done, item in enumerate(items, 1):
        yield item
        passed = time.monotonic() - began
        if silent and passed > QUOTED_AFTER and done < total:
            silent = False
            if (expected := passed / done * total) > 60:
                err.print(f"about {span(expected)} for all {total}")


def _bar(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


# --- answers ----------------------------------------------------------------------------------------------------------


def cost(quote: "Quote") -> str:
    """What a study is expected to take, in one line."""
    low, high = quote.units(quote.low), quote.units(quote.high)
    units = _between(low, high, lambda value: f"{value:.2g}")
    time = _between(quote.low, quote.high, span)
    return f"{time} ({units} {quote.unit}), at most {quote.disk / 2**20:.0f} MB of disk"


def _between(low: float, high: float, shown: Callable[[float], str]) -> str:
    return shown(high) if shown(low) == shown(high) else f"{shown(low)} to {shown(high)}"


def plan(study: "Study", warnings: Sequence[str], *, as_json: bool) -> None:
    """What a launch would do, and what is odd in its data."""
    resources, quote = study.resources, study.quote
    assert quote is not None
    if as_json:
        json({
            "space": study.space.name, "trials": study.trials, "epochs": study.base.epochs,
            "sampler": study.space.sampler,
            "points": [point.model_dump() for point in study.points],
            "resources": {**resources.model_dump(), "cpus": resources.cpus, "gpus": resources.gpus,
                          "cpus_per_trial": resources.cpus_per_trial, "gpus_per_trial": resources.gpus_per_trial},
            "data": study.data.model_dump(mode="json"), "warnings": list(warnings),
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
    rows |= {f"note {number}": text for number, text in enumerate(warnings, 1)}
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
        table.add_row(Text(name, style="bold"), text)
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
    _show_trials(study, trials, title=f"Trials of {study.name}")
    trial = winner(study)
    line(f"best: {trial.name} with {study.criterion.metric} {trial.objective:.4f} on validation patients")
    _show_confirmation(study)
    if results:
        _final_table(study, results)
    line(f"\nrecord: {study.folder}")
    line(f"next:   proseg-tune report {study.name}\n        proseg-tune ui {study.name}\n"
         f"        proseg-tune best {study.name} --export DIR")  # fmt: skip


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
    from orchestrator.study import reason_of

    folds = sum(final.folds for final in study.finals if final.data is not None)
    if as_json:
        json({"study": study.name, "state": state, "reason": reason_of(study),
              "trials_planned": study.trials, "folder": str(study.folder),
              "trials": [asdict(trial) for trial in trials], "folds_planned": folds,
              "spent": {"unit": study.resources.unit, "amount": sum(trial.cost for trial in trials)},
              "disk": used(study.folder), "mlflow": _tracked(study, state),
              "folds": [asdict(result) for result in results]})  # fmt: skip
        return
    counts = {name: sum(trial.state == name for trial in trials) for name in STATES}
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none yet"
    line(f"study {study.name}: {state}; {len(trials)} of {study.trials} trials ({words}); "
         f"{len(results)} of {folds} final folds")  # fmt: skip
    if reason := reason_of(study):
        line(f"why: {reason}")
    spent, limit = sum(trial.cost for trial in trials), f" of {study.budget:g}" if study.budget else ""
    retries = sum(len(trial.retries) for trial in trials)
    again = f", which went on {retries} time(s) from a checkpoint" if retries else ""
    line(f"{spent:.3g}{limit} {study.resources.unit} spent on trials{again}; "
         f"{used(study.folder) / 2**20:.1f} MB in {study.folder}")  # fmt: skip
    for store in _tracked(study, state):
        waiting = f", {store['queued']} points queued" if store["queued"] else ""
        line(f"MLflow ({store['store']}){waiting}" + (f": {store['page']}" if store["page"] else ""))
    if trials:
        _show_trials(study, trials)
    _show_confirmation(study)
    if results:
        _final_table(study, results)


def _tracked(study: "Study", state: str) -> list[dict[str, Any]]:
    """What each MLflow store has got of a study, and where it shows it; our own server ends with the study."""
    from orchestrator.spool import Progress, Spool, read_all_progress
    from orchestrator.stores import OWN

    points = Spool(study.folder).points
    known = read_all_progress(study.folder) or ({"not reached yet": Progress()} if points else {})
    return [{"store": store, "points": progress.points, "queued": max(0, points - progress.points),
             "page": progress.page if store != OWN or state == "running" else ""}
            for store, progress in known.items()]  # fmt: skip


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
        table.add_row(*row)
    out.print(table)


def _show_trials(study: "Study", trials: Sequence["Trial"], title: str | None = None) -> None:
    """All of them; of many those that run and the best."""
    from orchestrator.results import ranked

    shown = list(trials)
    if len(trials) > MOST_TRIALS:
        best = ranked(trials, study.criterion)[: MOST_TRIALS // 2]
        shown = [trial for trial in trials if trial.state == "running" and trial not in best] + best
    out.print(trial_table(study, shown, title))
    if len(shown) < len(trials):
        line(f"those that run and the best; {len(trials) - len(shown)} others are in --json, and in "
             f"`proseg-tune report {study.name}`")  # fmt: skip


def trial_table(study: "Study", trials: Sequence["Trial"], title: str | None = None) -> Table:
    from orchestrator.tables import settings

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    metrics = [f"{criterion.metric} (val)" for criterion in study.criteria]
    for head in ("trial", "state", "epochs", *metrics, "configuration"):
        table.add_column(head, overflow="fold", no_wrap=head != "configuration")
    for trial in trials:
        reached = (trial.objective, trial.second)[: len(metrics)]
        scores = ["" if value is None else f"{value:.4f}" for value in reached]
        words = settings(trial) if trial.state != "failed" else trial.reason
        table.add_row(trial.name, _state(trial.state), str(trial.epoch), *scores, words)
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


def studies(found: Sequence["Overview"], unreadable: Sequence["Unreadable"], home: "Path", *, as_json: bool) -> None:
    """All studies of a workspace, newest first."""
    from dataclasses import asdict

    if as_json:
        json({"workspace": str(home), "studies": [asdict(one) for one in found],
              "unreadable": [asdict(one) for one in unreadable]})  # fmt: skip
        return
    if found:
        out.print(_studies_table(found))
    for name, label in {one.data: one.label for one in found}.items():
        line(f"  {name}: {label}")
    for folder in unreadable:
        line(f"  {folder.name} cannot be read: {folder.why}")
    if not found:
        line(f"there is no study in {home} yet: `proseg-tune launch demo` makes one")


def _studies_table(found: Sequence["Overview"]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("study", "space", "data", "state", "trials", "best (validation)", "begun", "took", "disk"):
        numeric = head in ("trials", "took", "disk")
        table.add_column(head, overflow="fold", no_wrap=head == "study", justify="right" if numeric else "left")
    for one in found:
        best = "" if one.best is None else f"{one.metric} {one.best:.4f} (t{one.trial:03d})"
        begun = datetime.fromtimestamp(one.begun).strftime("%Y-%m-%d %H:%M")
        table.add_row(one.name, one.space, one.data, _state(one.state),
                      f"{one.ended}/{one.planned}", best, begun, span(one.seconds),
                      f"{one.bytes / 2**20:.0f} MB")  # fmt: skip
    return table
