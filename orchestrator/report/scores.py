"""The chapters on all trials together: how the search went, two scores against each other, values against scores."""

from collections.abc import Sequence

from orchestrator.report import charts
from orchestrator.report.facts import Facts, data_line
from orchestrator.report.parts import Section, Table
from orchestrator.results import Trial, front
from orchestrator.words import count, listed
from proseg.records import Criterion
from search_spaces.space import Choice, Dimension, Fixed, Float, Int

SCORE = ".4f"
BEST = 0.1
"""Share of the trials that are drawn strongly among all values."""
LEAST_BEST = 3
PAIR = (Criterion("ged"), Criterion("dice_match", maximize=True))
"""Accord with all raters at once, and with each: what is shown of a search with one objective."""


# --- how it went ------------------------------------------------------------------------------------------------------


def history(facts: Facts) -> Section:
    """Every trial's objective, and the best there was until then."""
    title = "How the search went"
    criterion, trials = facts.study.criterion, scored(facts)
    if not trials:
        return Section(title, ("Nothing to show: no trial has a score yet.",))
    best = best_so_far(trials, criterion)
    rows = tuple(
        (trial.name, trial.state, trial.epoch, trial.objective, value)
        for trial, value in zip(trials, best, strict=True)
    )  # fmt: skip
    columns = ("trial", "state", "epochs", f"{criterion.metric} (val)", "best so far")
    table = Table("history", f"Every trial with a score ({data_line(facts.study)})", columns, rows,
                  ("Best so far: of those that ran to their end.",), dict.fromkeys(columns[3:], SCORE))  # fmt: skip
    figure = charts.history(
        [charts.Point(t.name, t.number, t.objective or 0.0, t.state) for t in trials], best, metric=criterion.metric,
        maximize=criterion.maximize, chosen=facts.winner and facts.winner.name, label=data_line(facts.study),
        table=table,
    )  # fmt: skip
    failed = len(facts.trials) - len(trials)
    without = f" {count(failed, 'trial')} without a score {'is' if failed == 1 else 'are'} not drawn." if failed else ""
    return Section(title, (f"Trials by number, in the order in which they were begun.{without}",), (figure,))


def scored(facts: Facts) -> list[Trial]:
    """Trials with a score, by number; one that failed keeps none."""
    return [trial for trial in facts.trials if trial.objective is not None and trial.state != "failed"]


def best_so_far(trials: Sequence[Trial], criterion: Criterion) -> list[float | None]:
    """Of the complete trials up to each; None before the first."""
    found: list[float | None] = []
    best: float | None = None
    for trial in trials:
        if trial.state == "complete" and not trial.over and trial.objective is not None:
            best = trial.objective if criterion.better(trial.objective, best) else best
        found.append(best)
    return found


# --- two scores -------------------------------------------------------------------------------------------------------


def trade_off(facts: Facts) -> Section:
    """The Pareto front where there are two objectives, GED against matched Dice otherwise."""
    both = facts.study.criteria if facts.study.second else PAIR
    first, second = both
    title = "Pareto front" if facts.study.second else f"{first.metric} against {second.metric}"
    points = _points(facts, both)
    if not points:
        return Section(title, (f"Nothing to show: no trial has both {first.metric} and {second.metric}.",))
    members = front(facts.trials, facts.study.criteria) if facts.study.second else []
    names = {trial.name for trial in members}
    columns = ("trial", "state", f"{first.metric} (val)", f"{second.metric} (val)", "on the front")
    rows = tuple((p.name, p.state, p.x, p.y, "yes" if p.name in names else "no") for p in points)
    if not facts.study.second:
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    table = Table("trade-off", f"{first.metric} and {second.metric} of every trial ({data_line(facts.study)})", columns,
                  rows, formats=dict.fromkeys(columns[2:4], SCORE))  # fmt: skip
    figure = charts.scatter(
        points, [p for p in points if p.name in names], metrics=(first.metric, second.metric),
        maximize=(first.maximize, second.maximize), chosen=facts.winner and facts.winner.name,
        label=data_line(facts.study), table=table,
    )  # fmt: skip
    return Section(title, (_about_two(facts, members),), (figure,))


def _points(facts: Facts, both: Sequence[Criterion]) -> list[charts.Point]:
    """Both scores of a trial are those of its best epoch by the objective."""
    found = []
    for trial in scored(facts):
        x, y = (trial.objective, trial.second) if facts.study.second else _at_best(facts, trial, both)
        if x is not None and y is not None:
            found.append(charts.Point(trial.name, x, y, trial.state))
    return found


def _at_best(facts: Facts, trial: Trial, both: Sequence[Criterion]) -> tuple[float | None, ...]:
    metrics = facts.at_best(trial)
    return tuple(metrics.get(f"val/{criterion.metric}") for criterion in both)


def _about_two(facts: Facts, members: Sequence[Trial]) -> str:
    if not facts.study.second:
        metric = facts.study.criterion.metric
        return (f"The search had one objective, {metric}. Both scores of a trial are those of its epoch with the best "
                f"{metric}, with as many samples as there are raters.")  # fmt: skip
    if not members:
        return "No trial that ran to its end within the limits has both objectives: there is no front yet."
    names = listed([trial.name for trial in members])
    return f"The trials that no other beats in both objectives, among those that ran to their end: {names}."


# --- values and scores ------------------------------------------------------------------------------------------------


def all_values(facts: Facts) -> Section:
    """Parallel coordinates: every trial a line through the values that it tried."""
    title = "Values of all trials"
    trials = [trial for trial in facts.ranked if trial.state != "running"]
    dimensions = {n: d for n, d in facts.study.space.search.items() if not isinstance(d, Fixed)}
    if not trials:
        return Section(title, ("Nothing to show: no trial that has ended has a score.",))
    if not dimensions:
        return Section(title, ("Nothing to show: every dimension of the space has one value.",))
    best = trials[: max(LEAST_BEST, round(BEST * len(trials)))]
    criterion = facts.study.criterion
    scores = [trial.objective for trial in trials if trial.objective is not None]
    axes = [_axis(name, dimension) for name, dimension in dimensions.items()]
    ends = (min(scores), max(scores)) if criterion.maximize else (max(scores), min(scores))
    axes.append(charts.Axis(f"{criterion.metric} (val)", ends=ends))
    lines = [
        charts.Line(trial.name, (*(trial.values.get(name) for name in dimensions), trial.objective), trial in best)
        for trial in trials
    ]  # fmt: skip
    columns = ("trial", *dimensions, f"{criterion.metric} (val)")
    table = Table("parallel-best", f"The best {len(best)}, drawn strongly ({data_line(facts.study)})", columns,
                  tuple((line.name, *line.values) for line in lines if line.strong),
                  ("Those of all others are in the table of all trials.",), {columns[-1]: SCORE})  # fmt: skip
    figure = charts.parallel(axes, lines, chosen=facts.winner and facts.winner.name, label=data_line(facts.study),
                             table=table)  # fmt: skip
    return Section(title, ("Where the strong lines run together on an axis, the best trials agree.",), (figure,))


def _axis(name: str, dimension: Dimension) -> charts.Axis:
    match dimension:
        case Float() | Int():
            return charts.Axis(name, ends=(dimension.low, dimension.high), log=dimension.log)
        case Choice():
            return charts.Axis(name, choices=tuple(dimension.values))
        case Fixed():
            return charts.Axis(name, choices=(dimension.value,))
