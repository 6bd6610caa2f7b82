"""Whether two runs differ: paired tests of every metric over the same test cases, patient by patient.

Cases of one patient are alike, so the unit of every test is the patient: the mean of its differences over its cases.
Nothing here reads or writes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np
from scipy import stats

from orchestrator.rivals import patient_means
from orchestrator.scored import Pair, Part
from orchestrator.tables import NESTED, columns, title

RESAMPLES = 9999
FEW = 6
"""With fewer patients than this, Wilcoxon's p cannot fall below 0.05."""
EXACT = 12
"""Decimals to which differences are equal: what is left is rounding, and would break ties."""
OF_DATA = ("d_aa", "prior_d_aa")
"""How far the raters are from each other: the same for every run."""


@dataclass(frozen=True)
class Difference:
    """One metric of two runs, A and B. Means are over patients, of these over cases on which both are defined."""

    metric: str
    goal: Literal["smaller", "larger"] | None
    """Which values are good; None where neither is in itself."""
    a: float
    b: float
    difference: float
    """B minus A."""
    low: float | None
    high: float | None
    """Bootstrap interval of the difference; None with fewer than two patients."""
    p: float
    """Of Wilcoxon's signed-rank test."""
    p_holm: float
    """Corrected by Holm for the number of metrics of this data set."""
    cases: int
    patients: int
    """With a case on which both are defined: the units of the test."""
    better: Literal["A", "B", "neither"] | None
    """By the means; None without a goal."""
    distinguishable: bool
    """The corrected p is below 1 - confidence, and the interval excludes 0."""


@dataclass(frozen=True)
class Comparison:
    """Two runs on one data set."""

    data: str
    label: str
    fingerprint: str
    folds: tuple[int, ...]
    cases: int
    patients: int
    samples: int
    """S of the metrics that are not under prior_."""
    prior_samples: int
    confidence: float
    metrics: tuple[Difference, ...]
    sentence: str
    notes: tuple[str, ...]


def compare_pair(pair: Pair, a: str, b: str, *, confidence: float = 0.95) -> Comparison:
    """Compare two runs, called `a` and `b` in the sentence, on one data set."""
    part = pair.a
    folds = tuple(int(fold) for fold in np.unique(part.folds))
    differences = _corrected(_differences(pair, confidence), confidence)
    patients = len(np.unique(part.patients))
    return Comparison(
        part.data, part.label, part.fingerprint, folds, len(part.cases), patients, *part.samples, confidence,
        differences, sentence(differences, a, b), tuple(_notes(pair, a, b, confidence)),
    )  # fmt: skip


# --- the tests --------------------------------------------------------------------------------------------------------


def goal(metric: str) -> Literal["smaller", "larger"] | None:
    """Which values of a metric are good. Draws far apart (d_pp) are neither good nor bad in themselves."""
    name = metric.removeprefix("prior_")
    if name.startswith("dice_"):
        return "larger"
    return "smaller" if name.startswith("ged") or name == "d_pa" else None


def metric_order(names: Iterable[str]) -> list[str]:
    """The paper's columns in its order, then what is left; first with S = R, then from the prior."""
    known = dict.fromkeys(name for name in names if name not in OF_DATA)
    first = [*columns(known, prior=False), "d_pa", "d_pp"]
    prior = [*columns(known, prior=True), "prior_d_pa", "prior_d_pp"]
    ordered = [name for name in (*first, *prior) if name in known]
    return ordered + [name for name in known if name not in ordered]


def _differences(pair: Pair, confidence: float) -> list[Difference]:
    """Of every metric that both have and that is defined for both on some case."""
    found = []
    for metric in metric_order(name for name in pair.a.values if name in pair.b.values):
        one, other = pair.a.values[metric], pair.b.values[metric]
        defined = ~(np.isnan(one) | np.isnan(other))
        if defined.any():
            found.append(_difference(metric, one[defined], other[defined], pair.a.patients[defined], confidence))
    return found


def _difference(metric: str, one: np.ndarray, other: np.ndarray, patients: np.ndarray, confidence: float) -> Difference:
    a, b, units = (patient_means(zip(patients, values, strict=True)) for values in (one, other, other - one))
    difference = round(fmean(units), EXACT)
    low, high = interval(units, confidence)
    p = wilcoxon(units)
    return Difference(
        metric, goal(metric), fmean(a), fmean(b), difference, low, high, p, p, len(one), len(units),
        _better(metric, difference), distinguishable=False,
    )  # fmt: skip


def _better(metric: str, difference: float) -> Literal["A", "B", "neither"] | None:
    aim = goal(metric)
    if aim is None:
        return None
    if not difference:
        return "neither"
    return "B" if (difference < 0) == (aim == "smaller") else "A"


def wilcoxon(units: Sequence[float]) -> float:
    """p of the signed-rank test, two-sided; units without a difference are left out, as Wilcoxon did."""
    rounded = np.round(units, EXACT)
    if not rounded.any():
        return 1.0
    found: Any = stats.wilcoxon(rounded)
    return float(found.pvalue)


def interval(units: Sequence[float], confidence: float) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap interval of the mean; the same each time."""
    if len(units) < 2:
        return None, None
    found = stats.bootstrap(
        (np.array(units),), np.mean, n_resamples=RESAMPLES, batch=1000, confidence_level=confidence,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return round(float(found.low), EXACT), round(float(found.high), EXACT)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: the smallest p times the number of tests, the next times one less, never falling.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = np.argsort(ps, kind="stable")
    factors = len(ps) - np.arange(len(ps))
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * np.array(ps)[order]))
    return corrected.tolist()


def _corrected(differences: Sequence[Difference], confidence: float) -> tuple[Difference, ...]:
    corrected = holm([one.p for one in differences])
    return tuple(replace(one, p_holm=p, distinguishable=p < 1 - confidence and _excludes_0(one))
                 for one, p in zip(differences, corrected, strict=True))  # fmt: skip


def _excludes_0(one: Difference) -> bool:
    return one.low is not None and one.high is not None and not one.low <= 0 <= one.high


# --- in words ---------------------------------------------------------------------------------------------------------


def sentence(differences: Sequence[Difference], a: str, b: str) -> str:
    """Which metrics tell the two apart."""
    told = [one for one in differences if one.distinguishable]
    if not told:
        return f"{a} and {b} are not distinguishable: none of the {len(differences)} metrics differs beyond chance."
    groups = {
        f"{b} is better in": [one for one in told if one.better == "B"],
        f"{a} is better in": [one for one in told if one.better == "A"],
        "they differ, for better or worse, in": [one for one in told if one.better is None],
    }
    findings = [f"{words} {', '.join(map(named, group))}" for words, group in groups.items() if group]
    rest = len(differences) - len(told)
    others = f"; in the other {rest} they are not distinguishable" if rest else ""
    return (
        f"{a} and {b} are distinguishable in {len(told)} of {len(differences)} metrics: {'; '.join(findings)}{others}."
    )


def named(one: Difference) -> str:
    """The metric as tables call it, and whether its samples are of the prior."""
    return f"{title(one.metric)} (prior)" if one.metric.startswith("prior_") else title(one.metric)


def _of_searches(pair: Pair, a: str, b: str) -> list[str]:
    """The same of both is said once."""
    mine, theirs = _of_search(pair.a), _of_search(pair.b)
    if mine == theirs:
        return [f"{a} and {b}: {mine}"] if mine else []
    return [f"{name}: {text}" for name, text in ((a, mine), (b, theirs)) if text]


def _of_search(part: Part) -> str:
    """How far a run's scores depend on its search; nothing where they do not."""
    if part.shared is not None:
        return (f"{part.data} has patients of {part.shared}, which was searched on, in other folds: its scores "
                "are not independent of the search.")  # fmt: skip
    if part.searched is not None and set(part.folds) != {part.searched}:
        return NESTED.format(fold=part.searched, data=part.data)
    return ""


def _notes(pair: Pair, a: str, b: str, confidence: float) -> list[str]:
    """What a reader must know beside the numbers."""
    part, patients = pair.a, len(np.unique(pair.a.patients))
    several = sum(len(np.unique(part.folds[part.patients == one])) > 1 for one in np.unique(part.patients))
    overlap = [
        f"{several} patient(s) are in the test parts of several folds: each counts once, as the mean of its cases."
    ]
    few = [f"With {patients} patients no p can fall below {0.5 ** (patients - 1):.3g}: they are too few to tell "
           "anything apart."]  # fmt: skip
    lacking = sorted(pair.a.values.keys() ^ pair.b.values.keys())
    return [
        *_of_searches(pair, a, b),
        *([f"Only one of them has {', '.join(lacking)}."] if lacking else []),
        *(overlap if several else []), *(few if patients < FEW else []),
        "Differences are B minus A, paired by case; means are over patients, the unit of the tests (`best` and "
        "`status` give means over cases, of these over folds).",
        f"Interval: {100 * confidence:g} %, bootstrap over patients. p: Wilcoxon's signed-rank test; p Holm is "
        "corrected for the number of metrics. They differ where that p is below "
        f"{1 - confidence:.2g} and the interval excludes 0.",
        "An interval speaks of other patients like these, not of all that would vary if both were trained anew.",
    ]  # fmt: skip


# --- as a table -------------------------------------------------------------------------------------------------------

HEADS = ("metric", "S", "A", "B", "B - A", "interval", "p", "p Holm", "better", "differ")


def cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row a metric under HEADS; GED and distances with four decimals, Dice in percent."""
    return [_row(one, comparison) for one in comparison.metrics]


def _row(one: Difference, comparison: Comparison) -> tuple[str, ...]:
    scale, digits = (100, 2) if goal(one.metric) == "larger" else (1, 4)
    s = comparison.prior_samples if one.metric.startswith("prior_") else comparison.samples

    def shown(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{scale * value:{sign}z.{digits}f}"

    by_map = one.metric.startswith("dice_a") or one.metric == "dice_mean"
    bounds = f"{shown(one.low, '+')} to {shown(one.high, '+')}" if one.low is not None else "too few"
    return (title(one.metric), "" if by_map else str(s), shown(one.a), shown(one.b), shown(one.difference, "+"), bounds,
            _p(one.p), _p(one.p_holm), one.better or "", "yes" if one.distinguishable else "no")  # fmt: skip


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def heading(comparison: Comparison) -> str:
    """What was compared on, and on how much of it."""
    folds = ", ".join(map(str, comparison.folds))
    return (f"{comparison.data}: {comparison.label}; {comparison.cases} cases of {comparison.patients} patients, "
            f"test part of fold {folds}")  # fmt: skip


def markdown(comparisons: Sequence[Comparison], a: str, b: str, left_out: Sequence[str]) -> str:
    """All tables, for a report."""
    lines = [f"## {a} (A) against {b} (B)", ""]
    for one in comparisons:
        lines += [f"### {heading(one)}", "", one.sentence, "", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in cells(one)]
        lines += ["", *(f"- {note}" for note in one.notes), ""]
    lines += [f"- {text}" for text in left_out]
    return "\n".join(lines).rstrip() + "\n"
