"""Whether the best trials of a search really differ: their retrainings compared by a paired test, patient by patient.

Other splits are inner folds of the patients that the search trained and validated on: its test patients stay unseen
until the final stage. Nothing here trains, reads or writes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isinf, isnan, sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np

from orchestrator.study import StudyError
from proseg.data.folds import Fold

SEED = "proseg-tune/inner-folds/1"
LIKE_COST = 1.05
"""A trial that costs at most this multiple of the cheapest is no dearer."""
RESAMPLES = 9999
"""Sign flips tried where there are more than this; up to it all are."""
UNBOUNDED = {"low": -inf, "high": inf}


@dataclass(frozen=True)
class Score:
    """One retraining of a trial, evaluated case by case on the validation part of its fold."""

    trial: int
    repeat: int
    """Trials that share a repeat were evaluated on the same cases in the same order."""
    patients: list[str]
    """The patient of every case."""
    values: list[float]
    """The objective of every case; NaN where it is undefined."""
    cost: float
    """Any unit that all trials share; smaller is cheaper."""


@dataclass(frozen=True)
class Rival:
    """One trial, and how far it stands behind the leader."""

    trial: int
    mean: float
    """Over repeats, in them over patients, of these over cases. Only repeats that all trials have count, if there are
    any: another fold has easier or harder patients."""
    cost: float
    """Mean over its repeats."""
    difference: float
    """From the leader, mean over patients; positive is worse, whatever the goal. As patients weigh otherwise than in
    `mean`, that of a close rival can fall just below 0. Without a patient in common it is that of the means."""
    low: float
    high: float
    """The interval of the difference; infinite with fewer than two patients."""
    p: float
    """Of a difference so large or larger, in either direction, among equals."""
    patients: int
    """With a case on which both are defined: the units of the test."""
    repeats: int
    """That both have."""
    distinguishable: bool
    """The interval excludes 0."""


@dataclass(frozen=True)
class Verdict:
    """Which trial is taken, and why."""

    leader: int
    """The trial with the best mean."""
    chosen: int
    """The cheapest of the leader and those not distinguishable from it; of those at a like cost, the best."""
    rivals: tuple[Rival, ...]
    """Best mean first: the leader, then all others."""
    confidence: float


# --- other splits -----------------------------------------------------------------------------------------------------


def inner_folds(fold: Fold, count: int, *, seed: int) -> list[Fold]:
    """`count` other ways to part the training and validation patients of a fold; none has test patients.

    The patients are shuffled and cut into parts of about the size of `fold.val`, so that as many train as did in the
    search; each part validates once, then they are shuffled anew. The order rests on hashes, as that of all folds:
    the first inner folds of a seed are the same for any count, on any machine.

    Raises:
        StudyError: there are fewer than two patients.
    """
    patients = sorted({*fold.train, *fold.val})
    if len(patients) < 2:
        raise StudyError(f"fold {fold.index} has {len(patients)} patients outside its test part; inner folds need two")
    parts = max(2, round(len(patients) / max(1, len(fold.val))))
    folds = []
    for index in range(count):
        turn, part = divmod(index, parts)
        val = _shuffled(patients, f"{seed}:{turn}")[part::parts]
        train = sorted(set(patients) - set(val))
        folds.append(Fold(index, tuple(train), tuple(sorted(val)), ()))
    return folds


def _shuffled(patients: Sequence[str], salt: str) -> list[str]:
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{SEED}:{salt}:{patient}".encode()).digest())


# --- the test ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    trial: int
    mean: float
    cost: float
    scores: Mapping[int, Score]
    """By repeat."""


def compare(scores: Sequence[Score], *, maximize: bool, confidence: float = 0.95) -> Verdict:
    """Compare every trial with the best one.

    Cases of one patient are alike, so the unit is the patient: the mean of its differences over cases and over the
    repeats that both trials have, counted once however many repeats it is in. Cases on which either is NaN are left
    out. Intervals are Student's t over patients; p comes from flipping the signs of patients. Both are corrected by
    Bonferroni for the number of rivals: all intervals hold together with the confidence asked for.

    What the test does not know: the leader was chosen by the same scores, which makes it slightly liberal with more
    than one rival. And repeats share training patients: an interval speaks of other patients like these, not of all
    that would vary if everything were trained anew.

    Raises:
        StudyError: there are no scores, a trial has two of one repeat or is defined on no case, or two trials were
            evaluated on different cases in one repeat.
    """
    sign = -1 if maximize else 1
    leader, *others = sorted(_candidates(scores), key=lambda one: (sign * one.mean, one.trial))
    patients = len(_paired(leader, leader, sign))
    rivals = [Rival(leader.trial, leader.mean, leader.cost, 0.0, 0.0, 0.0, 1.0, patients, len(leader.scores), False)]
    for other in others:
        rivals.append(_rival(other, leader, sign, comparisons=len(others), confidence=confidence))
    return Verdict(leader.trial, _chosen(rivals), tuple(rivals), confidence)


def _candidates(scores: Sequence[Score]) -> list[_Candidate]:
    if not scores:
        raise StudyError("there is nothing to compare: no trial was retrained")
    trials: dict[int, dict[int, Score]] = defaultdict(dict)
    for score in scores:
        if score.repeat in trials[score.trial]:
            raise StudyError(f"{_name(score.trial)} has two scores of repeat {score.repeat}")
        trials[score.trial][score.repeat] = score
    shared = set.intersection(*(set(repeats) for repeats in trials.values()))
    return [
        _Candidate(
            trial,
            _mean(trial, [repeats[number] for number in sorted(shared or repeats)]),
            fmean(score.cost for score in repeats.values()),
            repeats,
        )
        for trial, repeats in trials.items()
    ]


def _mean(trial: int, scores: Iterable[Score]) -> float:
    by_patient = [patient_means(zip(score.patients, score.values, strict=True)) for score in scores]
    by_repeat = [fmean(means) for means in by_patient if means]
    if not by_repeat:
        raise StudyError(f"{_name(trial)} cannot be compared: the objective is undefined on all its cases")
    return fmean(by_repeat)


def patient_means(cases: Iterable[tuple[str, float]]) -> list[float]:
    """One mean for every patient with a case that is not NaN."""
    defined: dict[str, list[float]] = defaultdict(list)
    for patient, value in cases:
        if not isnan(value):
            defined[patient].append(value)
    return [fmean(values) for values in defined.values()]


def _paired(one: _Candidate, leader: _Candidate, sign: int) -> list[float]:
    """How much worse than the leader it is on every patient they share."""
    cases: list[tuple[str, float]] = []
    for repeat in sorted(one.scores.keys() & leader.scores.keys()):
        mine, best = one.scores[repeat], leader.scores[repeat]
        if mine.patients != best.patients:
            raise StudyError(
                f"{_name(one.trial)} and {_name(leader.trial)} cannot be compared: "
                f"in repeat {repeat} they were evaluated on different cases"
            )
        differences = (sign * (a - b) for a, b in zip(mine.values, best.values, strict=True))
        cases += zip(mine.patients, differences, strict=True)
    return patient_means(cases)


def _rival(one: _Candidate, leader: _Candidate, sign: int, *, comparisons: int, confidence: float) -> Rival:
    units = _paired(one, leader, sign)
    difference = fmean(units) if units else sign * (one.mean - leader.mean)
    margin = _margin(units, 1 - (1 - confidence) / comparisons)
    return Rival(
        one.trial, one.mean, one.cost, difference, difference - margin, difference + margin,
        min(1.0, comparisons * _p(units)), len(units), len(one.scores.keys() & leader.scores.keys()),
        distinguishable=abs(difference) > margin,
    )  # fmt: skip


def _margin(units: Sequence[float], confidence: float) -> float:
    """Half the width of Student's interval of the mean."""
    if len(units) < 2:
        return inf
    from scipy import stats  # takes longer than all that `status` does

    return float(stats.t.ppf((1 + confidence) / 2, len(units) - 1)) * stdev(units) / sqrt(len(units))


def _p(units: Sequence[float]) -> float:
    """That the mean is so far from 0 if each unit could as well have had the other sign."""
    if len(units) < 2:
        return 1.0
    from scipy import stats

    result = stats.permutation_test(
        (np.array(units),), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=np.random.default_rng(0)
    )
    return float(result.pvalue)


def _chosen(rivals: Sequence[Rival]) -> int:
    equals = [rival for rival in rivals if not rival.distinguishable]
    cheapest = min(rival.cost for rival in equals)
    return next(rival.trial for rival in equals if rival.cost <= LIKE_COST * cheapest)


# --- in words ---------------------------------------------------------------------------------------------------------


def sentence(verdict: Verdict, metric: str) -> str:
    """The verdict in a sentence or two, for a report."""
    leader, others = _name(verdict.leader), verdict.rivals[1:]
    if not others:
        return f"{leader} is taken: no other trial was compared with it on {metric}."
    equal = [_measured(rival, verdict.confidence) for rival in others if not rival.distinguishable]
    unequal = [_measured(rival, verdict.confidence) for rival in others if rival.distinguishable]
    findings = []
    if equal:
        findings.append(f"{_and(equal)} {'is' if len(equal) == 1 else 'are'} not distinguishable from {leader}")
    if unequal:
        findings.append(f"{_and(unequal)} {'is' if len(unequal) == 1 else 'are'} distinguishable from {leader}")
    return f"On {metric}, {'; '.join(findings)}. {_reason(verdict, alone=not equal)}"


def _reason(verdict: Verdict, *, alone: bool) -> str:
    if verdict.chosen != verdict.leader:
        return f"{_name(verdict.chosen)} is taken as the cheaper of equals."
    if alone:
        return f"{_name(verdict.leader)} is taken as the best."
    return f"{_name(verdict.leader)} is taken: it has the best mean, and no equal is clearly cheaper."


def _measured(rival: Rival, confidence: float) -> str:
    interval = f"{100 * confidence:g} % interval {rival.low:z.4f} to {rival.high:z.4f}"
    if isinf(rival.low):
        interval = "too few patients for an interval"
    units = f"{_number(rival.patients, 'patient')} in {_number(rival.repeats, 'repeat')}"
    return f"{_name(rival.trial)} (difference {rival.difference:z.4f}, {interval}, {units})"


def _and(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _name(trial: int) -> str:
    return f"t{trial:03d}"


# --- as JSON ----------------------------------------------------------------------------------------------------------


def to_json(verdict: Verdict) -> dict[str, Any]:
    """What strict JSON can hold: infinite bounds, which it cannot, are None."""
    stored = asdict(verdict)
    for rival in stored["rivals"]:
        if isinf(rival["low"]):
            rival["low"] = rival["high"] = None
    return stored


def from_json(stored: Mapping[str, Any]) -> Verdict:
    """The verdict that `to_json` gave, before or after it was text."""
    rivals = tuple(Rival(**rival | (UNBOUNDED if rival["low"] is None else {})) for rival in stored["rivals"])
    return Verdict(**{**stored, "rivals": rivals})
