"""The chapter on another run: whether the two differ, metric by metric, patient by patient."""

from pathlib import Path

from orchestrator import significance
from orchestrator.report.facts import Facts
from orchestrator.report.parts import Section, Table
from orchestrator.scored import find_run, matched
from orchestrator.significance import Comparison
from orchestrator.words import slug

COLUMNS: tuple[str, ...] = (
    "metric",
    "S",
    "A",
    "B",
    "B - A",
    "interval from",
    "interval to",
    "p",
    "p Holm",
    "better",
    "differ",
)


def against(facts: Facts, other: str, home: Path) -> Section:
    """The study (A) against a study or an exported model (B), by name or folder.

    Raises:
        StudyError, DataError: either has no scores of test cases, or they were not scored on the same.
    """
    name = facts.study.name
    pairs, left_out = matched(find_run(name, home), find_run(other, home))
    comparisons = [significance.compare_pair(pair, name, other) for pair in pairs]
    sentences = [f"{one.data}: {one.sentence}" for one in comparisons]
    text = (f"A is {name}, B is {other}.", *sentences, *left_out)
    return Section(f"Against {other}", text, tuple(_table(one) for one in comparisons))


def _table(comparison: Comparison) -> Table:
    """The numbers of `compare --json`, not in percent: a file's reader should not have to know which are."""
    rows = tuple(
        (one.metric, _samples(one.metric, comparison), one.a, one.b, one.difference, one.low, one.high, one.p,
         one.p_holm, one.better, "yes" if one.distinguishable else "no")
        for one in comparison.metrics
    )  # fmt: skip
    formats = dict.fromkeys(COLUMNS[2:7], ".4f") | dict.fromkeys(COLUMNS[7:9], ".2g")
    notes = ("Dice from 0 to 1; `compare` prints it in percent.", *comparison.notes)
    return Table(f"against-{slug(comparison.data)}", significance.heading(comparison), COLUMNS, rows, notes, formats)


def _samples(metric: str, comparison: Comparison) -> int | None:
    """S; a rater's own map is no sample."""
    if metric.startswith("dice_a") or metric == "dice_mean":
        return None
    return comparison.prior_samples if metric.startswith("prior_") else comparison.samples
