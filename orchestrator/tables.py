"""The final table and the leaderboard, as Markdown, JSON and Parquet. What is simulated says so in each of them."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.results import FoldResult, Trial, ranked, summary
from orchestrator.study import Study
from proseg.records import write_atomically

PERSONAL = ("ged", "dice_soft", "dice_max", "dice_match")
TITLES = {
    "ged": "GED",
    "ged_unbiased": "GED_U",
    "dice_soft": "D_soft",
    "dice_max": "D_max",
    "dice_match": "D_match",
    "dice_mean": "D_mean",
}
NESTED = (
    "The configuration was chosen on training and validation patients of fold {fold} of {data}. Its test patients "
    "played no part in that; those of the other folds did, as training or validation patients of the search."
)


def columns(metrics: dict[str, Any], *, prior: bool) -> list[str]:
    """The paper's columns in its order (Tables 1 and 3)."""
    if prior:
        return ["prior_ged", "prior_ged_unbiased", *(f"prior_{name}" for name in PERSONAL[1:])]
    raters = sorted((name for name in metrics if name.startswith("dice_a")), key=lambda name: int(name[6:]))
    return [*PERSONAL, *raters, "dice_mean"]


def title(metric: str) -> str:
    name = metric.removeprefix("prior_")
    return TITLES.get(name, name.replace("dice_a", "D_A"))


def final_rows(results: Sequence[FoldResult]) -> list[dict[str, Any]]:
    """One row for each data set and way of sampling; `cells` holds {column: (mean, std)}."""
    rows = []
    for data, metrics in summary(results).items():
        folds = [result for result in results if result.data == data]
        for prior in (False, True):
            names = columns(metrics, prior=prior)
            rows.append({
                "data": data, "label": folds[0].label, "folds": len(folds), "cases": sum(f.cases for f in folds),
                "patients": sum(f.patients for f in folds),
                "samples": f"{folds[0].prior_samples} (prior)" if prior else f"{folds[0].samples} (one a rater)",
                "cells": {title(n): (metrics[n]["mean"], metrics[n]["std"]) for n in names if n in metrics},
            })  # fmt: skip
    return rows


def titles(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of all rows, the two GEDs side by side."""
    names = dict.fromkeys(name for row in rows for name in row["cells"])
    return sorted(names, key=lambda name: not name.startswith("GED"))


def cell(column: str, mean_std: tuple[float, float], folds: int) -> str:
    """GED with four decimals, Dice in percent, as in the paper; a single fold has no deviation."""
    mean, std = mean_std
    scale, digits = (1, 4) if column.startswith("GED") else (100, 2)
    deviation = f" ± {scale * std:.{digits}f}" if folds > 1 else ""
    return f"{scale * mean:.{digits}f}{deviation}"


def final_markdown(study: Study, results: Sequence[FoldResult]) -> str:
    """The table in Markdown, with what must be known to read it."""
    lines = [f"## Final stage of {study.name}", ""]
    rows = final_rows(results)
    heads = titles(rows)
    lines += ["| data | S | folds | test cases | " + " | ".join(heads) + " |", "|---" * (4 + len(heads)) + "|"]
    for row in rows:
        cells = (cell(name, row["cells"][name], row["folds"]) if name in row["cells"] else "" for name in heads)
        lines.append(
            f"| {row['data']} | {row['samples']} | {row['folds']} | {row['cases']} | " + " | ".join(cells) + " |"
        )
    lines += ["", *(f"- {note}" for note in notes(study, results))]
    return "\n".join(lines) + "\n"


def notes(study: Study, results: Sequence[FoldResult]) -> list[str]:
    """What a reader must know beside the numbers."""
    labels = dict.fromkeys(f"{result.data}: {result.label}." for result in results)
    missing = [f"{final.stage.data} was left out: {final.missing}." for final in study.finals if final.missing]
    shared = [
        f"{final.data.name} shares {final.shared_patients} patients with {study.data.name}, in other folds: its scores "
        "are not independent of the search."
        for final in study.finals
        if final.data is not None and final.shared_patients
    ]
    return [
        *labels, *missing, *shared,
        "Mean ± population standard deviation over folds of patients; evaluated once, at the best epoch by validation.",
        "GED depends on the number of samples S: compare rows of equal S only. GED_U (i != j, "
        "may be negative) does not. D_A1.. are identity Dice (no matching).",
        NESTED.format(fold=study.space.fold, data=study.data.name),
    ]  # fmt: skip


def leaderboard_markdown(
    study: Study, trials: Sequence[Trial], count: int = 10, *, links: Mapping[str, str] | None = None
) -> str:
    """The best trials, for the page of the study in MLflow.

    Args:
        links: {trial's name: address of its page}.
    """
    unit = "GPU-hours" if study.resources.gpus else "CPU-hours"
    heads = ["trial", *(f"{criterion.metric} (val)" for criterion in study.criteria), "state", "epochs", unit,
             "configuration"]  # fmt: skip
    lines = [f"**{study.name}** · {study.data.name}: {study.data.label}", "", _row(heads), "|---" * len(heads) + "|"]
    order = ranked(trials, study.criterion)
    for trial in order[:count]:
        name = f"[{trial.name}]({links[trial.name]})" if links and trial.name in links else trial.name
        scores = [trial.objective, trial.second][: len(study.criteria)]
        cells = [name, *("" if score is None else f"{score:.4f}" for score in scores), trial.state, str(trial.epoch),
                 f"{trial.cost:.4f}", settings(trial)]  # fmt: skip
        lines.append(_row(cells))
    rest = f"The best {count} of {len(order)}. " if len(order) > count else ""
    return "\n".join(lines) + f"\n\n{rest}Trials that trained to the end stand before those that were stopped.\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def settings(trial: Trial) -> str:
    """The searched values in one line, each under the last part of its name."""
    shown = ((name.split(".")[-1], value) for name, value in trial.values.items())
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown)


def write_tables(study: Study, results: Sequence[FoldResult]) -> list[Path]:
    """final.json, final.md and final.parquet in the study's folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    document = {"study": study.name, "notes": notes(study, results), "summary": summary(results),
                "folds": [asdict(result) for result in results]}  # fmt: skip
    flat = [{**{k: v for k, v in asdict(r).items() if k != "metrics"}, **r.metrics} for r in results]
    names = dict.fromkeys(name for row in flat for name in row)  # a metric may be undefined on the first fold
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: [row.get(name) for row in flat] for name in names}), buffer)
    contents = {
        "final.json": json.dumps(document, indent=1).encode(),
        "final.md": final_markdown(study, results).encode(),
        "final.parquet": buffer.getvalue(),
    }
    for name, content in contents.items():
        write_atomically(study.folder / name, content)
    return [study.folder / name for name in contents]
