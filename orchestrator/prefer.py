"""A trial chosen along the Pareto front by what a person values more, and what is given up for it.

Validation scores only: those of the epoch whose weights were kept. No test score is read here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from orchestrator.confirm import read_verdict
from orchestrator.export import winner
from orchestrator.results import Trial, front, ranked, read_trials
from orchestrator.rivals import LIKE_COST, Verdict
from orchestrator.rungs import fronts
from orchestrator.study import Study, StudyError
from proseg.records import Criterion, best_epoch, read_epochs

Word = Literal["diversity", "personalization", "balanced", "cheap"]
WORDS: tuple[Word, ...] = get_args(Word)
MARGIN = 0.005
"""Of any objective: trials that differ by no more are not told apart where the confirmation did not compare them. It is
half a Dice point; README's paired intervals over twelve runs are about 0.003 wide to either side."""
GED = Criterion("ged")
TOLD = ("ged", "dice_match", "dice_mean")
"""Metrics that are compared whatever the study searched for."""


@dataclass(frozen=True)
class Member:
    """A complete trial with the validation scores of its best epoch."""

    trial: Trial
    metrics: dict[str, float]


@dataclass(frozen=True)
class Against:
    """What was given up, or gained, against another trial."""

    than: Trial
    role: str
    worse: dict[str, tuple[float, float]]
    """{metric: (by how much the chosen trial is worse, negative where it is better; value of the other)}."""
    cost: float | None
    """In units of the other's; None where it is not known."""
    unit: str
    """computation, or time of an epoch."""

    @property
    def sentence(self) -> str:
        parts = [_difference(name, by, value) for name, (by, value) in self.worse.items()]
        parts += [] if self.cost is None else [_ratio(self.cost, self.unit)]
        return f"Against {self.than.name}, {self.role}: {', '.join(parts)}."


@dataclass(frozen=True)
class Preference:
    """The choice, with its reasons."""

    word: Word
    trial: Trial
    reason: str
    axes: tuple[Criterion, Criterion]
    front: tuple[Member, ...]
    """Best first in the first axis."""
    against: tuple[Against, ...]
    notes: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        first = f"{self.trial.name} is taken for {self.word}: {self.reason}."
        return [first, *(one.sentence for one in self.against), *self.notes]


def preferred(study: Study, word: Word) -> Preference:
    """Choose among the complete trials of a study.

    The front is that of the study's two objectives. A study with one has the front of GED and a personal Dice (the
    study's own if it is one, else dice_match, as in the pages and the report), which every validation records.

    - diversity: the best GED of the front.
    - personalization: the best personal Dice of the front.
    - balanced: the point of the front that is nearest to the best of both, each in units of the front's range.
    - cheap: the least computation (or, where the confirmation did not count it, time of an epoch) among the trials that
      are not worse than the study's own choice: by the confirmation, or, where that did not compare them, by no more
      than `MARGIN` in any objective. Of those at a like cost, the best.

    Trials that the confirmation told to be worse in the metric that is asked for are out.

    Raises:
        StudyError: no trial is complete.
    """
    verdict = read_verdict(study)
    complete = [t for t in ranked(read_trials(study), study.criterion) if t.state == "complete" and not t.over]
    if not complete:
        raise StudyError(
            f"study {study.name} has no complete trial within its limits: --prefer chooses among trials that ran all "
            "their epochs"
        )
    own = winner(study)
    asked = {"diversity": GED, "personalization": personal(study)}.get(word)
    worse = _told_to_be_worse(study, asked, verdict)
    axes = _axes(study)
    whole = _front(study, axes, complete)
    members = _front(study, axes, [trial for trial in complete if trial.number not in worse])
    if word == "cheap":
        chosen, reason = _cheapest(study, complete, verdict, own)
    elif asked is not None:
        chosen, reason = _best(members, asked, axes)
    else:
        chosen, reason = _knee(members, axes)
    if len(complete) == 1:
        reason = "it is the only complete trial, there is nothing to choose between"
    against = _against(study, Member(chosen, best_metrics(study, chosen)), whole, axes, verdict, own)
    notes = [*_left_out(worse, whole, study), *_notes(study, chosen, own)]
    return Preference(word, chosen, reason, axes, tuple(members), tuple(against), tuple(notes))


def _told_to_be_worse(study: Study, asked: Criterion | None, verdict: Verdict | None) -> set[int]:
    """Trials that the confirmation set apart from its leader in the metric that is asked for."""
    if asked is None or verdict is None or asked.metric != study.criterion.metric:
        return set()
    return {rival.trial for rival in verdict.rivals if rival.distinguishable}


def _left_out(worse: set[int], whole: Sequence[Member], study: Study) -> list[str]:
    names = [member.trial.name for member in whole if member.trial.number in worse]
    told = f"Left out, as the confirmation told them to be worse in {study.criterion.metric}: {', '.join(names)}."
    return [told] if names else []


def personal(study: Study) -> Criterion:
    """The Dice that a study searched for, if it is one of the personal ones (as published tables group them)."""
    names = (criterion for criterion in study.criteria if criterion.metric.startswith("dice_"))
    return next((c for c in names if c.metric != "dice_soft"), Criterion("dice_match", maximize=True))


def best_metrics(study: Study, trial: Trial) -> dict[str, float]:
    """The validation scores of the epoch whose weights were kept; empty where its record is gone."""
    found = best_epoch(read_epochs(study.trial_folder(trial.number)), study.criterion)
    return {name.removeprefix("val/"): value for name, value in found.items() if name.startswith("val/")}


# --- the front --------------------------------------------------------------------------------------------------------


def _axes(study: Study) -> tuple[Criterion, Criterion]:
    return (study.criterion, study.second) if study.second else (GED, personal(study))


def _front(study: Study, axes: tuple[Criterion, Criterion], trials: Sequence[Trial]) -> list[Member]:
    members = {trial.number: Member(trial, best_metrics(study, trial)) for trial in trials}
    if study.second:
        return [members[trial.number] for trial in front(trials, study.criteria)]
    points = {
        number: tuple(member.metrics[axis.metric] for axis in axes)
        for number, member in members.items()
        if all(axis.metric in member.metrics for axis in axes)
    }
    layers = fronts(points, [axis.maximize for axis in axes])
    return sorted((members[number] for number in layers[0]), key=lambda m: _order(axes[0], m)) if layers else []


def _order(criterion: Criterion, member: Member) -> float:
    """Smaller is better; a value that is not a number is worse than any."""
    value = _value(criterion, member)
    return math.inf if math.isnan(value) else -value if criterion.maximize else value


def _value(criterion: Criterion, member: Member) -> float:
    return member.metrics.get(criterion.metric, math.nan)


# --- the choice -------------------------------------------------------------------------------------------------------


def _best(members: Sequence[Member], asked: Criterion, axes: tuple[Criterion, Criterion]) -> tuple[Trial, str]:
    _check(members, axes)
    best = min(members, key=lambda member: _order(asked, member))
    return best.trial, f"the best {asked.metric}, {_value(asked, best):.4f}, {_of_the_front(members, axes)}"


def _knee(members: Sequence[Member], axes: tuple[Criterion, Criterion]) -> tuple[Trial, str]:
    _check(members, axes)
    distances = [math.hypot(*(_share(member, members, axis) for axis in axes)) for member in members]
    nearest = min(range(len(members)), key=distances.__getitem__)
    equal = [members[i].trial.name for i, d in enumerate(distances) if math.isclose(d, distances[nearest])]
    tie = f"; {' and '.join(equal[1:])} is as near and worse in {axes[0].metric}" if len(equal) > 1 else ""
    reason = f"the nearest to the best of both {_of_the_front(members, axes)}, in units of the front's ranges"
    return members[nearest].trial, f"{reason} (distance {distances[nearest]:.2f}){tie}"


def _share(member: Member, members: Sequence[Member], axis: Criterion) -> float:
    """0 for the best of the front in an axis, 1 for the worst."""
    orders = [_order(axis, one) for one in members]
    low, high = min(orders), max(orders)
    return (_order(axis, member) - low) / (high - low) if high > low else 0.0


def _check(members: Sequence[Member], axes: tuple[Criterion, Criterion]) -> None:
    if not members:
        names = " and ".join(axis.metric for axis in axes)
        raise StudyError(f"no complete trial has the {names} of its best epoch: there is no front to choose along")


def _of_the_front(members: Sequence[Member], axes: tuple[Criterion, Criterion]) -> str:
    names = f"the front of {axes[0].metric} and {axes[1].metric}"
    return f"of the {len(members)} trials on {names}" if len(members) > 1 else f"of the one trial on {names}"


def _cheapest(study: Study, complete: Sequence[Trial], verdict: Verdict | None, own: Trial) -> tuple[Trial, str]:
    """`complete` is in the order of the ranking."""
    rivals = {rival.trial: rival for rival in verdict.rivals} if verdict else {}
    pool = [
        trial for trial in complete
        if trial.number == own.number
        or (not rivals[trial.number].distinguishable if trial.number in rivals else _near(study, trial, own))
    ]  # fmt: skip
    costs, unit = _costs(pool, verdict)
    if not costs:
        raise StudyError(f"study {study.name} has no record of what its trials cost: cheap cannot be told")
    limit = LIKE_COST * min(costs.values())
    chosen = next(trial for trial in pool if costs.get(trial.number, math.inf) <= limit)
    how = f"by the confirmation, others within {MARGIN}" if rivals else f"within {MARGIN}"
    others = "trial" if len(pool) == 1 else "trials"
    reason = f"the least {unit} of the {len(pool)} {others} not worse than {own.name} ({how})"
    return chosen, reason


def _near(study: Study, trial: Trial, own: Trial) -> bool:
    pairs = ((trial.objective, own.objective), (trial.second, own.second))[: len(study.criteria)]
    return all(
        mine is not None and its is not None and (its - mine if criterion.maximize else mine - its) <= MARGIN
        for criterion, (mine, its) in zip(study.criteria, pairs, strict=True)
    )


def _costs(trials: Sequence[Trial], verdict: Verdict | None) -> tuple[dict[int, float], str]:
    """{trial: cost} in the one unit in which all of them are known, as far as any is."""
    counted = {rival.trial: rival.cost for rival in verdict.rivals} if verdict else {}
    if all(trial.number in counted for trial in trials):
        return {trial.number: counted[trial.number] for trial in trials}, "computation"
    return {t.number: t.epoch_seconds for t in trials if t.epoch_seconds}, "time of an epoch"


# --- what is given up -------------------------------------------------------------------------------------------------


def _against(
    study: Study, chosen: Member, members: Sequence[Member], axes: tuple[Criterion, Criterion],
    verdict: Verdict | None, own: Trial,
) -> list[Against]:  # fmt: skip
    roles: dict[int, list[str]] = {}
    others: dict[int, Member] = {}
    for axis in axes if members else ():
        best = min(members, key=lambda member, axis=axis: _order(axis, member))
        others[best.trial.number] = best
        roles.setdefault(best.trial.number, []).append(f"the best in {axis.metric}")
    others.setdefault(own.number, Member(own, best_metrics(study, own)))
    roles.setdefault(own.number, []).append("the study's own choice")
    return [
        _compared(chosen, other, " and ".join(roles[number]), axes, verdict)
        for number, other in others.items()
        if number != chosen.trial.number
    ]


def _compared(
    chosen: Member, other: Member, role: str, axes: tuple[Criterion, Criterion], verdict: Verdict | None
) -> Against:
    named = {name: Criterion(name, maximize=name != "ged") for name in TOLD} | {axis.metric: axis for axis in axes}
    known = [name for name in named if name in chosen.metrics and name in other.metrics]
    worse = {
        name: (_order(named[name], chosen) - _order(named[name], other), other.metrics[name]) for name in known
    }  # fmt: skip
    costs, unit = _costs([chosen.trial, other.trial], verdict)
    ratio = costs[chosen.trial.number] / costs[other.trial.number] if len(costs) == 2 else None
    return Against(other.trial, role, worse, ratio, unit)


def _difference(name: str, worse_by: float, value: float) -> str:
    if not worse_by:
        return f"{name} equal"
    relative = f" ({100 * abs(worse_by / value):.1f} %)" if value else ""
    return f"{name} {abs(worse_by):.4f}{relative} {'worse' if worse_by > 0 else 'better'}"


def _ratio(cost: float, unit: str) -> str:
    return f"a like {unit}" if 1 / LIKE_COST <= cost <= LIKE_COST else f"{cost:.2g} x the {unit}"


def _notes(study: Study, chosen: Trial, own: Trial) -> list[str]:
    where = f"{study.data.name} ({study.data.label})"
    notes = [f"Scores are those of the validation patients of fold {study.space.fold} of {where}."]
    if chosen.number == own.number:
        return [f"{chosen.name} is the study's own choice as well.", *notes]
    return [*notes, f"{chosen.name} was NOT evaluated on held-out patients; the study's own choice is {own.name}."]


def to_json(choice: Preference) -> dict[str, Any]:
    """What `best --prefer --json` adds to the record."""
    return {
        "word": choice.word, "trial": choice.trial.number, "reason": choice.reason, "part": "validation",
        "axes": [{"metric": axis.metric, "goal": "maximize" if axis.maximize else "minimize"} for axis in choice.axes],
        "front": [{"trial": member.trial.number, "metrics": member.metrics,
                   "epoch_seconds": member.trial.epoch_seconds} for member in choice.front],
        "against": [{"trial": one.than.number, "role": one.role, "cost_ratio": one.cost, "cost": one.unit,
                     "worse_by": {name: by for name, (by, _) in one.worse.items()}} for one in choice.against],
        "sentences": choice.sentences,
    }  # fmt: skip
