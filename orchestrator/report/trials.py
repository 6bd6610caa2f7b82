"""The chapters on single trials: the leaderboard, what was stopped early and why, the comparison of the best, all."""

from orchestrator.report import charts
from orchestrator.report.facts import Facts, data_line, metric_heads
from orchestrator.report.parts import Cell, Figure, Section, Table
from orchestrator.results import Trial
from orchestrator.rivals import Rival, sentence
from orchestrator.rungs import rungs_of
from orchestrator.tables import settings
from orchestrator.words import count, listed, span

LEADERS = 10
SCORE = ".4f"
"""As `status` and `best` print it."""


def leaderboard(facts: Facts) -> Section:
    """The best trials, best first, their states in words."""
    leaders = facts.ranked[:LEADERS]
    if not leaders:
        return Section("Leaderboard", (f"No trial has a score yet{_so_far(facts)}.",))
    heads = metric_heads(facts.study)
    columns = ("trial", "place", *heads, "state", "epochs", "remarks", "configuration")
    rows = tuple(
        (trial.name, place, *_scores(facts, trial), trial.state, trial.epoch, _remarks(facts, trial),
         settings(trial))
        for place, trial in enumerate(leaders, start=1)
    )  # fmt: skip
    caption = f"The best {len(leaders)} of {count(len(facts.ranked), 'trial')} with a score ({data_line(facts.study)})"
    table = Table("leaderboard", caption, columns, rows, tuple(_order(facts)), dict.fromkeys(heads, SCORE))
    return Section("Leaderboard", parts=(table,))


def _so_far(facts: Facts) -> str:
    counts = facts.counts()
    return f" ({', '.join(f'{number} {state}' for state, number in counts.items())})" if counts else ""


def _order(facts: Facts) -> list[str]:
    study = facts.study
    best = listed([f"{'larger' if c.maximize else 'smaller'} {c.metric}" for c in study.criteria])
    notes = [
        f"Measured on the validation patients of fold {study.space.fold}, at each trial's best epoch; {best} is "
        "better. A trial that ran to its end stands before one that was stopped early: only it is known to hold what "
        "it promised."
    ]
    if any(trial.over for trial in facts.trials):
        notes.append("Trials over a limit of the search space stand last: they cannot win.")
    if facts.verdict is not None and facts.winner is not None and facts.winner is not facts.ranked[0]:
        notes.append("The chosen trial is not the first: see the comparison of the best.")
    return notes


def _scores(facts: Facts, trial: Trial) -> tuple[Cell, ...]:
    return (trial.objective, trial.second)[: len(facts.study.criteria)]


def _remarks(facts: Facts, trial: Trial) -> str:
    chosen = facts.winner is not None and trial.number == facts.winner.number
    remarks = [
        "chosen" if chosen else "",
        f"over the limit of {listed(trial.over)}" if trial.over else "",
        f"values from {trial.origin.partition(' (')[0]}" if trial.origin else "",
        f"went on {count(len(trial.retries), 'time')} from a checkpoint" if trial.retries else "",
    ]
    return "; ".join(filter(None, remarks))


# --- all of them ------------------------------------------------------------------------------------------------------


def every_trial(facts: Facts) -> Section:
    """One row a trial, with every value that it tried in a column of its own."""
    title = "All trials"
    if not facts.trials:
        return Section(title, ("No trial has begun.",))
    heads, names = metric_heads(facts.study), list(facts.study.space.search)
    columns = ("trial", "state", *heads, "epochs", "seconds", facts.study.resources.unit, *names)
    rows = tuple(
        (trial.name, trial.state, *_scores(facts, trial), trial.epoch, trial.seconds, trial.cost,
         *(trial.values.get(name) for name in names))
        for trial in facts.trials
    )  # fmt: skip
    conditional = any(dimension.when for dimension in facts.study.space.search.values())
    notes = ("An empty cell: not searched there, for it depends on another value.",) if conditional else ()
    caption = f"All {len(rows)} trials by number ({data_line(facts.study)})"
    formats = dict.fromkeys(heads, SCORE) | {"seconds": ".0f", facts.study.resources.unit: SCORE}
    return Section(title, parts=(Table("trials", caption, columns, rows, notes, formats),))


# --- what ended early -------------------------------------------------------------------------------------------------


def stopped(facts: Facts) -> Section:
    """Which trials did not come to their last epoch, at which rung and by what comparison."""
    title = "What was stopped early, and why"
    if not facts.trials:
        return Section(title, ("No trial has begun.",))
    parts = [_rungs(facts), _curves(facts), _stops(facts), _others(facts)]
    return Section(title, (_rule(facts), *_tally(facts)), tuple(part for part in parts if part is not None))


def _rule(facts: Facts) -> str:
    scheduler = facts.study.space.scheduler
    epochs = facts.study.base.epochs
    if scheduler.kind == "none":
        return f"No trial was stopped early: each was to train {count(epochs, 'epoch')} (scheduler none)."
    rungs = rungs_of(grace=scheduler.grace_epochs, reduction=scheduler.reduction, epochs=epochs)
    if not rungs:
        return f"No trial could be stopped early: all {count(epochs, 'epoch')} are the grace period."
    share = "half" if scheduler.reduction == 2 else f"1/{scheduler.reduction}"
    after = listed([str(rung) for rung in rungs])
    return (
        f"Successive halving (ASHA) looked at every trial after {after} of {count(epochs, 'epoch')}: one went on if it "
        f"was then among the best {share} of those that had come as far, the first in any case. Nobody waited for "
        "anybody, so an early trial met fewer rivals than a late one."
    )


def _tally(facts: Facts) -> list[str]:
    counts = facts.counts()
    ended = [f"{number} of {len(facts.trials)} {state}" for state, number in counts.items()]
    trained = sum(trial.epoch for trial in facts.trials)
    full = len(facts.trials) * facts.study.base.epochs
    saved = f"Trained were {trained} of the {full} epochs that all of them to the end would have taken."
    return [f"Trials: {', '.join(ended)}. {saved}"]


def _rungs(facts: Facts) -> Table | None:
    """A row a rung: how many came to it, how many ended there, and how good one had to be."""
    decided = [trial for trial in facts.trials if trial.decision]
    if not decided:
        return None
    rows = []
    for rung in sorted({trial.decision["rung"] for trial in decided if trial.decision}):
        here = [trial.decision for trial in decided if trial.decision and trial.decision["rung"] == rung]
        came = sum(trial.epoch >= rung for trial in facts.trials)
        cutoffs = [one["cutoff"] for one in here if one["cutoff"] is not None]
        bounds = (min(cutoffs), max(cutoffs)) if cutoffs else (None, None)
        rows.append((rung, came, len(here), *bounds))
    columns = ("epoch", "came so far", "stopped there", "cut-off, smallest", "cut-off, largest")
    notes = (f"The cut-off is the {facts.study.criterion.metric} that the last trial to go on had; it moved while "
             "trials came.",) if facts.study.second is None else (
             "With two objectives the order is by non-dominated fronts, which have no cut-off.",)  # fmt: skip
    caption = f"Where trials were stopped ({data_line(facts.study)})"
    return Table("rungs", caption, columns, tuple(rows), notes, dict.fromkeys(columns[3:], SCORE))


def _curves(facts: Facts) -> Figure | None:
    """The objective over the epochs, trial by trial."""
    criterion = facts.study.criterion
    key = f"val/{criterion.metric}"
    curves = [
        charts.Curve(trial.name, trial.state, [(r["epoch"], r["metrics"][key]) for r in records if key in r["metrics"]])
        for trial in facts.trials
        if (records := facts.epochs.get(trial.number))
    ]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    rungs = {trial.decision["rung"] for trial in facts.trials if trial.decision}
    return charts.curves(
        curves, metric=criterion.metric, maximize=criterion.maximize, rungs=sorted(rungs),
        chosen=facts.winner and facts.winner.name, label=data_line(facts.study),
    )  # fmt: skip


def _stops(facts: Facts) -> Table | None:
    """Every trial that early stopping ended, with what it was compared to."""
    metrics = [criterion.metric for criterion in facts.study.criteria]
    rows = tuple(
        (trial.name, one["rung"], *one["value"], one["cutoff"], one["rank"], one["of"], one["kept"])
        for trial in facts.trials if (one := trial.decision) and trial.state == "stopped early"
    )  # fmt: skip
    if not rows:
        return None
    columns = ("trial", "epoch", *(f"{metric} then" for metric in metrics), "cut-off", "rank", "of", "went on")
    caption = f"What {count(len(rows), 'trial')} had when they were stopped ({data_line(facts.study)})"
    formats = dict.fromkeys((*columns[2 : 2 + len(metrics)], "cut-off"), SCORE)
    return Table("stopped", caption, columns, rows, formats=formats)


def _others(facts: Facts) -> Table | None:
    """Every other trial that says why it ended."""
    told = [trial for trial in facts.trials if trial.reason and not (trial.decision and trial.state == "stopped early")]
    if not told:
        return None
    rows = tuple((trial.name, trial.state, trial.epoch, span(trial.seconds), trial.reason) for trial in told)
    caption = f"Why {count(len(told), 'other')} ended where they did ({data_line(facts.study)})"
    return Table("ended", caption, ("trial", "state", "epochs", "took", "reason"), rows)


# --- the best against each other --------------------------------------------------------------------------------------


def confirmation(facts: Facts) -> Section:
    """The best of many trials is partly the luckiest: what came of training them anew."""
    title = "Comparison of the best"
    study, verdict = facts.study, facts.verdict
    if verdict is None:
        return Section(title, (_unconfirmed(facts),))
    metric = study.criterion.metric
    explained = (
        "The best trials were trained anew with other seeds on inner folds of the training and validation patients "
        f"of fold {study.space.fold}, and compared patient by patient; its test patients played no part. Of those "
        "that are not distinguishable the cheapest is taken."
    )
    columns = ("trial", f"mean {metric}", "behind the first", "interval from", "interval to", "p", "patients",
               "repeats", "relative cost", "differs", "taken")  # fmt: skip
    cheapest = min(rival.cost for rival in verdict.rivals)
    rows = tuple(
        (f"t{r.trial:03d}", r.mean, *_behind(r, first=r.trial == verdict.leader), r.patients, r.repeats,
         r.cost / cheapest if cheapest else None, "yes" if r.distinguishable else "no",
         "yes" if r.trial == verdict.chosen else "no")
        for r in verdict.rivals
    )  # fmt: skip
    notes = (
        f"Difference from the first on the patients both share, positive is worse; {100 * verdict.confidence:g} % "
        "intervals and p are corrected for the number of rivals. Cost: floating point operations of a training step.",
    )
    formats = dict.fromkeys(columns[1:5], SCORE) | {"p": ".3g", "relative cost": ".2f"}
    table = Table("confirmation", f"The best trials, trained anew ({data_line(study)})", columns, rows, notes, formats)
    return Section(title, (sentence(verdict, metric), explained), (table,))


def _behind(rival: Rival, *, first: bool) -> tuple[Cell, ...]:
    """Difference, interval and p; the first is not compared with itself, nor has few patients' interval an end."""
    if first:
        return (None, None, None, None)
    ends = [bound if abs(bound) != float("inf") else None for bound in (rival.low, rival.high)]
    return (rival.difference, *ends, rival.p)


def _unconfirmed(facts: Facts) -> str:
    confirm, complete = facts.study.space.confirm, sum(t.state == "complete" and not t.over for t in facts.trials)
    if not facts.study.finals:
        return (
            "Without a final stage the best trials are not compared: the winner is the best of the search, which is "
            "partly the luckiest."
        )
    if confirm.top < 2:
        return "It was turned off (--confirm 0): the winner is the best of the search, which is partly the luckiest."
    if not facts.over:
        return f"It has not been made yet: the study is {facts.state}."
    if complete < 2:
        return f"There was nothing to compare: {count(complete, 'trial')} ran to its end within the limits."
    return "It was not made."
