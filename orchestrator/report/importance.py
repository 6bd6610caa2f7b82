"""Which values of the space mattered: PED-ANOVA (Watanabe et al., IJCAI 2023; of conditional values: KDD 2026).

It asks in which dimensions the best trials lie elsewhere than all trials do. Optuna computes it. A trial's value here
is its place on the leaderboard, so that those stopped early count for what they are known to be, worse than those they
lost to; Optuna by itself would leave them out, and with them most of a search.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import TYPE_CHECKING

from orchestrator.report import charts
from orchestrator.report.facts import Facts, data_line
from orchestrator.report.parts import Figure, Section, Table
from orchestrator.results import Trial, ranked
from orchestrator.study import Study
from orchestrator.words import count, listed, slug
from proseg.records import Criterion
from search_spaces.space import Fixed, SearchSpace

if TYPE_CHECKING:
    import numpy as np
    import optuna

FEWEST = 20
"""Trials: with fewer, what looks important is mostly chance."""
BEST, LEAST_BEST = 0.2, 5
"""Share of the trials that are the best, and how many at least."""
LEAST_ACTIVE = 10
"""Trials in which a value that depends on another was searched."""
SHUFFLES = 40
"""Times that the places are dealt out anew, to see what chance alone gives."""


@dataclass(frozen=True)
class Importance:
    """Of one dimension."""

    name: str
    share: float
    """Of all that are measured; they sum to 1."""
    chance: float
    """What it would be in 19 of 20 searches in which nothing matters, at most."""
    trials: int
    """In which it was searched."""


def importance(facts: Facts) -> Section:
    """The chapter: a chart for each objective, and what it does not show."""
    title = "What mattered"
    shown, silent = measurable(facts.study, _ended(facts))
    if not shown:
        return Section(title, (f"The importance of the searched values is not shown: {listed(silent)}.",))
    parts = [_figure(facts, criterion, shown) for criterion in facts.study.criteria]
    text = [
        "How much the values of the best trials differ from those of all trials, dimension by dimension (PED-ANOVA). "
        "Trials that were stopped early count as worse than those that ran to their end. A bar within its mark of "
        "chance says nothing: dealing the places out at random gives as much.",
        "Of twenty dimensions that do not matter one passes its mark. The importance is of the ranges as they were "
        "searched: one that is good everywhere in its range does not matter here.",
        *([f"Not shown: {'; '.join(silent)}."] if silent else []),
    ]
    return Section(title, tuple(text), tuple(parts))


def _ended(facts: Facts) -> list[Trial]:
    """Trials whose place is known: they are over, and have every objective."""
    over = [trial for trial in facts.trials if trial.state in ("complete", "stopped early")]
    both = facts.study.second is not None
    return [t for t in over if t.objective is not None and not (both and t.second is None)]


def measurable(study: Study, trials: Sequence[Trial]) -> tuple[list[str], list[str]]:
    """The dimensions whose importance can be told, and of all others why not."""
    if len(trials) < FEWEST:
        return [], [f"{count(len(trials), 'trial')} with a score, fewer than {FEWEST}, would show little but chance"]
    reasons = {name: _why_not(study.space, name, trials) for name in study.space.search}
    shown = [name for name, reason in reasons.items() if reason is None]
    return shown, [f"{name} ({reason})" for name, reason in reasons.items() if reason is not None]


def _why_not(space: SearchSpace, name: str, trials: Sequence[Trial]) -> str | None:
    if isinstance(space.search[name], Fixed):
        return "it has one value"
    values = [trial.values[name] for trial in trials if name in trial.values]
    if len(values) < LEAST_ACTIVE:
        return f"it was searched in {count(len(values), 'trial')} only, for it depends on other values"
    if len(set(values)) == 1:
        return f"every trial had {values[0]}"
    return None


def measure(study: Study, criterion: Criterion, trials: Sequence[Trial], names: Sequence[str]) -> list[Importance]:
    """The importance of these dimensions for being among the best, largest first.

    Args:
        trials: with `objective` as the criterion has it.
    """
    import numpy as np

    order = ranked(trials, criterion)
    copy, places = _as_optuna(study, order), np.arange(len(order))
    found = _divergences(copy, places, names)
    total = sum(found.values()) or 1.0
    rng = np.random.default_rng(study.seed)
    dealt = [_divergences(copy, rng.permutation(places), names) for _ in range(SHUFFLES)]
    return [
        Importance(
            name, value / total, quantiles([one[name] for one in dealt], n=20)[-1] / total,
            sum(name in trial.values for trial in trials),
        )
        for name, value in sorted(found.items(), key=lambda item: -item[1])
    ]  # fmt: skip


def _divergences(copy: "optuna.Study", places: "np.ndarray", names: Sequence[str]) -> dict[str, float]:
    """PED-ANOVA's measure of each dimension, where trials have these places (0 the best)."""
    from optuna.importance import PedAnovaImportanceEvaluator

    best = max(LEAST_BEST, round(BEST * len(places)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=(best - 0.5) / len(places))  # rounded up by Optuna
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".* computes the importances of params to achieve low", category=UserWarning
        )
        # One trial without a conditional value is no regime; those with it are measured all the same.
        warnings.filterwarnings("ignore", message="Some regimes for parameter", category=UserWarning)
        return evaluator.evaluate(copy, list(names), target=lambda trial: float(places[trial.number]))


def _as_optuna(study: Study, trials: Sequence[Trial]) -> "optuna.Study":
    """All of them complete, numbered in this order."""
    import optuna
    from optuna.trial import TrialState, create_trial

    from orchestrator.sampling import distributions

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spread = distributions(study.space)
    copy = optuna.create_study(direction="minimize")
    for place, trial in enumerate(trials):
        values = {name: value for name, value in trial.values.items() if name in spread}
        copy.add_trial(create_trial(
            state=TrialState.COMPLETE, value=float(place), params=values,
            distributions={name: spread[name] for name in values},
        ))  # fmt: skip
    return copy


def _figure(facts: Facts, criterion: Criterion, names: Sequence[str]) -> Figure:
    trials = _ended(facts)
    if criterion is not facts.study.criterion and facts.study.second == criterion:
        trials = [replace(trial, objective=trial.second) for trial in trials]
    found = measure(facts.study, criterion, trials, names)
    rows = tuple((one.name, one.share, one.chance, one.share > one.chance, one.trials) for one in found)
    name = f"importance-{slug(criterion.metric)}"
    data = data_line(facts.study)
    columns = ("dimension", "importance", "by chance up to", "more than chance", "trials")
    table = Table(name, f"Importance for {criterion.metric} ({data})", columns,
                  tuple((*row[:3], "yes" if row[3] else "no", row[4]) for row in rows),
                  formats={"importance": ".3f", "by chance up to": ".3f"})  # fmt: skip
    beyond = [f"{one.name} ({one.share:.0%})" for one in found if one.share > one.chance]
    says = f"more than chance: {listed(beyond)}" if beyond else "no dimension mattered more than chance would show"
    caption = f"Importance for {criterion.metric}, {count(len(trials), 'trial')}; {says}."
    return charts.bars(
        name, [(one.name, one.share, one.chance) for one in found], caption=caption,
        alternative=f"Horizontal bars, longest first: {'; '.join(f'{o.name} {o.share:.0%}' for o in found)}. "
                    f"Of these, {says}.",
        axis=f"importance for {criterion.metric} (shares)", label=data, table=table,
    )  # fmt: skip
