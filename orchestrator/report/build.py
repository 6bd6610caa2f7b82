"""The whole report of a study: its chapters in their order, and what it says first."""

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.report import importance, paper_tables, scores, searched, trials
from orchestrator.report.against import against
from orchestrator.report.facts import Facts, data_line, read_facts
from orchestrator.report.parts import Report, Section
from orchestrator.results import median_objective
from orchestrator.rivals import sentence
from orchestrator.study import Study
from orchestrator.tables import cell, final_rows
from orchestrator.words import count, moment

Maker = Callable[[Facts], Section | list[Section]]

BEFORE: tuple[Maker, ...] = (
    trials.leaderboard, searched.searched, importance.importance, scores.history, scores.trade_off, scores.all_values,
    trials.stopped, trials.confirmation,
)  # fmt: skip
"""The search."""
FINAL: tuple[Maker, ...] = (lambda facts: paper_tables.sections(facts.study),)
"""What the final stage gave, as the paper shows it."""
AFTER: tuple[Maker, ...] = (trials.every_trial, searched.made_with, searched.again)
"""To look things up."""


def build(study: Study, home: Path, now: float, *, other: str | None = None) -> Report:
    """Everything that is known of a study, in the order in which it is asked.

    Args:
        other: a study or an exported model, by name or folder, that it is compared with.

    Raises:
        StudyError, DataError: the other run cannot be compared with it.
    """
    facts = read_facts(study, now)
    compared = [lambda facts: against(facts, other, home)] if other is not None else []
    chapters = _made((*BEFORE, *FINAL, *compared, *AFTER), facts)
    return Report(
        study.name, facts.state, moment(now), data_line(study), tuple(_answer(facts)), tuple(_numbers(facts)),
        tuple(chapters),
    )  # fmt: skip


def _made(makers: Sequence[Maker], facts: Facts) -> list[Section]:
    chapters: list[Section] = []
    for make in makers:
        made = make(facts)
        chapters += [made] if isinstance(made, Section) else made
    return chapters


def _answer(facts: Facts) -> list[str]:
    """What came out, in words; an unfinished study says so first."""
    study, winner, said = facts.study, facts.winner, []
    if not facts.over:
        said.append(f"The study is {facts.state}: {len(facts.trials)} of {count(study.trials, 'trial')} have begun. "
                    f"What stands here is of {moment(facts.made)} and can change.")  # fmt: skip
    if winner is None:
        return [*said, "There is no winner yet: no trial has ended with a score."]
    metric = study.criterion.metric
    said.append(f"{winner.name} is the chosen trial, {winner.state}, with {metric} {winner.objective:.4f} on "
                "validation patients.")  # fmt: skip
    if facts.verdict is not None:
        said.append(sentence(facts.verdict, metric))
    if not facts.results:
        said.append("It has not been evaluated on held-out patients: validation numbers are those it was chosen by, "
                    "and flatter it.")  # fmt: skip
    return said


def _numbers(facts: Facts) -> list[tuple[str, str]]:
    study, winner = facts.study, facts.winner
    metric, median = study.criterion.metric, median_objective(facts.trials)
    counts = ", ".join(f"{number} {state}" for state, number in facts.counts().items())
    begun = f"{len(facts.trials)} of {study.trials}"
    found = [("study", facts.state), ("trials", f"{begun}: {counts}" if counts else begun)]
    if winner is not None:
        scores = [trial.objective for trial in facts.trials if trial.objective is not None and trial.state != "failed"]
        best = max(scores) if study.criterion.maximize else min(scores)
        found.append((f"best {metric} of all trials (validation)", f"{best:.4f}"))
        found.append((f"{metric} of the chosen {winner.name} (validation)", f"{winner.objective:.4f}"))
    if median is not None:
        found.append((f"median {metric} (validation)", f"{median:.4f}"))
    found += [
        (f"GED on held-out {row['data']}, S = {row['samples']}", cell("GED", row["cells"]["GED"], row["folds"]))
        for row in final_rows(facts.results)
        if "GED" in row["cells"]
    ]
    spent = sum(trial.cost for trial in facts.trials)
    return [*found, ("spent on trials", f"{spent:.3g} {study.resources.unit}")]
