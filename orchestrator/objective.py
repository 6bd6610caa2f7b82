"""What a search is judged by: whether its metrics exist, and whether they are defined on the cases that decide."""

import re
from collections.abc import Iterable

from proseg.data.folds import Fold
from proseg.data.raters import cases_of_raters
from proseg.data.store import Store
from proseg.records import Criterion
from search_spaces.space import SearchSpace, SpaceError

INSTEAD = Criterion("dice_mean", maximize=True)
"""The mean of what is defined, where one rater's Dice is not."""


def check_objective(space: SearchSpace, raters: int | None = None) -> None:
    """Raises SpaceError where no metric of the validation bears an objective's name.

    Before the data are at hand the number of raters is not known: any rater's Dice passes.
    """
    for key, metric in _objectives(space).items():
        _check_metric(space.file, key, metric, raters)


def check_defined(space: SearchSpace, store: Store) -> None:
    """Raises SpaceError where an objective is undefined on the validation part of the searched fold: every trial would
    fail alike."""
    for key, metric in _objectives(space).items():
        if why := undefined(metric, store, store.manifest.folds[space.fold].val):
            raise SpaceError(
                f"{space.file}: {key}.metric = {metric!r} is undefined on the validation part of fold {space.fold} of "
                f"{store.manifest.name}: {why}; name another metric, or another fold"
            )


def undefined(metric: str, store: Store, patients: Iterable[str]) -> str:
    """Why a metric is undefined on all cases of these patients; empty where it is defined."""
    counts = cases_of_raters(store, patients)
    if not counts.any():
        return "it has no annotated case"
    if (rater := _rater(metric)) is None:
        return ""
    if rater > len(counts):
        return f"it has no rater {rater}"
    return "" if counts[rater - 1] else f"rater {store.manifest.rater_labels[rater - 1]} annotated no case of it"


def criterion_on(criterion: Criterion, store: Store, fold: Fold) -> Criterion:
    """By which the best epoch of a fold is known: `dice_mean` where this one is undefined on the validation part."""
    return INSTEAD if undefined(criterion.metric, store, fold.val) else criterion


def _objectives(space: SearchSpace) -> dict[str, str]:
    second = space.second_objective
    return {"objective": space.objective.metric} | ({"second_objective": second.metric} if second else {})


def _rater(metric: str) -> int | None:
    """3 of "dice_a3"."""
    match = re.fullmatch(r"dice_a([1-9]\d*)", metric)
    return int(match[1]) if match else None


def _check_metric(file: str, key: str, metric: str, raters: int | None) -> None:
    from proseg.evaluate import metric_names

    known = metric_names(raters or 0)
    if metric in known or (raters is None and _rater(metric)):
        return
    names = ", ".join(known) + (", dice_a1, dice_a2, ..." if raters is None else "")
    raise SpaceError(f"{file}: {key}.metric = {metric!r} is not a metric of the validation; use one of {names}")
