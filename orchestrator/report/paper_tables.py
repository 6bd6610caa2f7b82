"""The paper's tables with a study's own numbers: final stage (1, 3), ablation (2), decomposed GED (9).

Published rows stand beside them only where the data are like the paper's, and say in every row that they are published.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator import tables
from orchestrator.export import winner
from orchestrator.report import cost, figures
from orchestrator.report.parts import Cell, Section, Table
from orchestrator.report.published import (
    ABLATION,
    ALONE,
    DECOMPOSED,
    EACH,
    FIFTY,
    FINAL,
    LIKE,
    Likeness,
    PublishedTable,
)
from orchestrator.results import FoldResult, Trial, ranked, read_results, read_trials, summary
from orchestrator.study import DataRef, Study, StudyError
from orchestrator.words import count, slug
from proseg.config import TrainConfig
from proseg.records import best_epoch, read_epochs

PARTS = ("ged", "d_pp", "d_pa", "d_aa")
OURS, WINNER = "this study", "the winner, retrained"
LATENTS = {(False, False): "neither", (True, False): "tau", (False, True): "z", (True, True): "both"}
"""What a ProSeg model has, by use_tau and use_z; the names of the published rows."""


def sections(study: Study) -> list[Section]:
    """The chapters on what the paper's tables and figures show, in the paper's order."""
    results, drawn = read_results(study), figures.experts(study)
    return [
        final(study, results), ablation(study), decomposed(study, results), cost.section(study, results, drawn),
        *figures.sections(drawn),
    ]  # fmt: skip


# --- Tables 1 and 3 ---------------------------------------------------------------------------------------------------


def final(study: Study, results: Sequence[FoldResult]) -> Section:
    """Mean ± standard deviation over folds, beside the published rows."""
    title = "Final stage (the paper's Tables 1 and 3)"
    if not results:
        missing = [f"{final.stage.data} was left out: {final.missing}." for final in study.finals if final.missing]
        return Section(title, (NO_FINAL, *missing))
    rows = tables.final_rows(results)
    names = dict.fromkeys(row["data"] for row in rows)
    made = tuple(_final_table([row for row in rows if row["data"] == name]) for name in names)
    return Section(title, tuple(tables.notes(study, results)), made)


NO_FINAL = (
    "Not run: no fold of a final stage has been evaluated, so there is no number on held-out patients and nothing to "
    "put beside the published ones."
)


def _final_table(rows: Sequence[dict[str, Any]]) -> Table:
    data, label, folds = rows[0]["data"], rows[0]["label"], rows[0]["folds"]
    heads, like = tables.titles(rows), LIKE.get(label)
    mine = [(OURS, WINNER, row["samples"], *_cells(row, heads)) for row in rows]
    theirs = _published(FINAL[like.kind], like, heads) if like else []
    return Table(
        f"final-{slug(data)}",
        f"{data} ({label}): {rows[0]['cases']} test cases in {count(folds, 'fold')}",
        ("numbers", "method", "S", *heads), _by_samples([*mine, *theirs]),
        _notes(data, like and FINAL[like.kind], like),
    )  # fmt: skip


def _cells(row: dict[str, Any], heads: Iterable[str]) -> list[str | None]:
    return [tables.cell(head, row["cells"][head], row["folds"]) if head in row["cells"] else None for head in heads]


def _published(table: PublishedTable, like: Likeness, heads: Sequence[str]) -> list[tuple[Cell, ...]]:
    """Rows of a table of the paper, each marked."""
    found = []
    for row in table.rows:
        cells = {_title(name): _single(name, value) for name, value in row.metrics.items()}
        found.append((f"published: {like.differs}", row.method, row.samples, *(cells.get(head) for head in heads)))
    return found


def _title(metric: str) -> str:
    return metric if metric.startswith("d_") else tables.title(metric)


def _single(metric: str, value: float) -> str:
    """As the paper prints it: four decimals for distances, percent for Dice."""
    return f"{value:.4f}" if metric in PARTS else tables.cell(tables.title(metric), (value, 0.0), 1)


def _by_samples(rows: Iterable[tuple[Cell, ...]]) -> tuple[tuple[Cell, ...], ...]:
    """Rows of equal S together, for only these may be compared; ours first."""
    rows = list(rows)
    known = [row[2] for row in rows if row[0] == OURS]
    order = list(dict.fromkeys([*known, EACH, FIFTY, ALONE]))
    return tuple(sorted(rows, key=lambda row: (order.index(row[2]), row[0] != OURS)))


def _notes(data: str, table: PublishedTable | None, like: Likeness | None) -> tuple[str, ...]:
    """Where published rows come from and how far they can be compared."""
    if table is None or like is None:
        return (f"{data} is none of the paper's data sets: no published row fits beside it.",)
    notes = [
        f"Published rows: {table.source}, {table.data}; split: {table.split}. Not measured here: {like.differs}.",
        f"S of published rows: the paper states 50 only; {EACH} and {ALONE} are how it describes those methods.",
    ]
    personal = [row.metrics for row in table.rows if row.samples == EACH and "dice_mean" in row.metrics]
    same = sum(metrics["dice_mean"] == metrics["dice_match"] for metrics in personal)
    if same:
        notes.append("D_A1.. and D_mean of published rows are probably of matched predictions (D_mean equals D_match "
                     f"in {same} of {len(personal)} rows); ours are of the map made for each rater.")  # fmt: skip
    return tuple(notes)


def _table_notes(data: str, table: PublishedTable | None, like: Likeness | None) -> tuple[str, ...]:
    """As `_notes`, of a table that the paper has for one of its data sets only."""
    return _notes(data, table, like) if table or not like else (f"The paper has no such table for data like {data}.",)


# --- Table 2 ----------------------------------------------------------------------------------------------------------


def ablation(study: Study) -> Section:
    """The best trial of each choice of latents that the search tried, on validation patients."""
    title = "Ablation (the paper's Table 2)"
    arms = _arms(study)
    left = [name for name in LATENTS.values() if name not in arms]
    how = ('A search whose space has "model.use_tau" and "model.use_z" as choices of true and false fills this table; '
           "`python -m benchmarks.ablation` does it for the embedded data with fixed values.")  # fmt: skip
    if len(arms) < 2:
        only = (
            f"every trial with a score has the same latents ({', '.join(arms)})" if arms else "no trial has a score yet"
        )
        return Section(title, (f"Not run: {only}.", how))
    said = ("Each row is the best trial of its kind on validation patients: chosen by what is shown, with values tuned "
            "to different degrees, and not averaged over folds or seeds.")  # fmt: skip
    missing = (f"Not run: {', '.join(left)}.", how) if left else ()
    return Section(title, (said, *missing), (_ablation_table(study, arms),))


def _arms(study: Study) -> dict[str, list[Trial]]:
    """Trials with a score by what their model has, best first."""
    arms: dict[str, list[Trial]] = {}
    for trial in ranked(read_trials(study), study.criterion):
        arms.setdefault(arm_of(study.config_of(trial.values)), []).append(trial)
    return arms


def arm_of(config: TrainConfig) -> str:
    """The latents of a ProSeg model; of another method, its name."""
    return LATENTS[config.model.use_tau, config.model.use_z] if config.method == "proseg" else config.method


def _ablation_table(study: Study, arms: dict[str, list[Trial]]) -> Table:
    heads = [_title(name) for name in tables.PERSONAL]
    order = [*LATENTS.values(), *arms]
    rows = [
        (OURS, name, f"{study.data.raters} (one a rater)", *_at_best(study, arms[name][0], tables.PERSONAL),
         arms[name][0].name, len(arms[name]))
        for name in sorted(arms, key=order.index)
    ]  # fmt: skip
    like = LIKE.get(study.data.label)
    table = ABLATION.get(like.kind) if like else None
    theirs = [(*row, None, None) for row in _published(table, like, heads)] if table and like else []
    return Table(
        "ablation", f"Latents of the model, on validation patients of {_named(study.data)}",
        ("numbers", "latents", "S", *heads, "trial", "of trials"), (*rows, *theirs),
        _table_notes(study.data.name, table, like),
    )  # fmt: skip


def _named(data: DataRef) -> str:
    return f"{data.name} ({data.label})"


def _at_best(study: Study, trial: Trial, names: Sequence[str]) -> list[str | None]:
    """Validation metrics of a trial's best epoch."""
    metrics = best_epoch(read_epochs(study.trial_folder(trial.number)), study.criterion)
    return [_single(name, metrics[f"val/{name}"]) if f"val/{name}" in metrics else None for name in names]


# --- Table 9 ----------------------------------------------------------------------------------------------------------


def decomposed(study: Study, results: Sequence[FoldResult]) -> Section:
    """GED = 2 d_pa - d_pp - d_aa, part by part."""
    title = "Decomposed GED (the paper's Table 9)"
    said = ("GED = 2 d_pa - d_pp - d_aa: how far predictions lie from the raters, less how far they lie from each "
            "other, less how far the raters do. The last is a constant of the data.")  # fmt: skip
    made = [_parts_table(data, metrics, results) for data, metrics in summary(results).items()]
    if results:
        found = tuple(table for table in made if table is not None)
        absent = () if found else ("Its parts were not recorded by the version that ran this study's final stage.",)
        return Section(title, (said, *absent), found)
    try:
        trial = winner(study)
    except StudyError:
        return Section(title, (said, "Not run: no trial has come to a score yet."))
    return Section(title, (said, NO_FINAL), (_validation_parts(study, trial),))


def _parts_table(data: str, metrics: dict[str, dict[str, float]], results: Sequence[FoldResult]) -> Table | None:
    folds = [result for result in results if result.data == data]
    first, rows = folds[0], []
    for prefix, samples in (("", f"{first.samples} (one a rater)"), ("prior_", f"{first.prior_samples} (prior)")):
        parts = [metrics.get(prefix + name) for name in PARTS]
        if all(parts):
            cells = (tables.cell("GED", (part["mean"], part["std"]), len(folds)) for part in parts if part)
            rows.append((OURS, WINNER, samples, *cells))
    if not rows:
        return None
    like = LIKE.get(first.label)
    table = DECOMPOSED.get(like.kind) if like else None
    heads = [_title(name) for name in PARTS]
    theirs = _published(table, like, heads) if table and like else []
    caption = f"{data} ({first.label}): held-out test cases in {count(len(folds), 'fold')}"
    return Table(f"decomposed-{slug(data)}", caption, ("numbers", "method", "S", *heads),
                 _by_samples([*rows, *theirs]), _table_notes(data, table, like))  # fmt: skip


def _validation_parts(study: Study, trial: Trial) -> Table:
    samples = f"{study.data.raters} (one a rater)"
    row = (OURS, trial.name, samples, *_at_best(study, trial, PARTS))
    caption = f"{_named(study.data)}: VALIDATION patients of fold {study.space.fold}, by which the trial was chosen"
    return Table(
        "decomposed-validation", caption, ("numbers", "method", "S", *(_title(name) for name in PARTS)), (row,)
    )
