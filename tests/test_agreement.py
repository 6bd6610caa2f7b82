"""One study from its launch to its export: the same value for the same metric, wherever a person may read it.

A new place where numbers are told gets a function below that reads them there, and a line in `PLACES`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from orchestrator.study import Study, find_study
from orchestrator.tables import cell, title
from proseg.records import read_epochs
from tests.places import Place
from tests.studies import make_store

pytestmark = pytest.mark.slow

FOLDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Told:
    """A study and the words of the program about it."""

    place: Place
    study: Study
    export: Path

    def answer(self, *words: str) -> str:
        result = self.place.run(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.answer(*words, "--json"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("agreement")
    place = Place(folder, make_store(folder / "blobs"))
    search = {"optim.lr": {"kind": "float", "low": 0.001, "high": 0.003, "log": True}}
    file = place.space(
        search=search, budget={"trials": 3, "epochs": 2}, final=[{"data": str(place.store.folder), "epochs": 2}],
        scheduler={"kind": "none"}, confirm={"top": 2, "repeats": 1},
    )  # fmt: skip
    launched = place.run("launch", file, "--study", "s1", "--concurrent", "1")
    assert launched.returncode == 0, launched.stderr
    exported = place.run("best", "s1", "--export", str(folder / "out"))
    assert exported.returncode == 0, exported.stderr
    return Told(place, find_study(place.home, "s1"), folder / "out")


@pytest.fixture(scope="module")
def folds(told: Told) -> dict[int, dict[str, float]]:
    """{fold: test metrics}, as the evaluation wrote them."""
    found = {}
    for fold in FOLDS:
        path = told.study.final_folder("blobs", fold) / "result.json"
        found[fold] = json.loads(path.read_text())["metrics"]
    assert {"ged", "prior_ged", "prior_ged_unbiased", "dice_match", "dice_a1", "dice_mean"} <= set(found[0])
    return found


# Test scores, fold by fold: {fold: {metric: value}}

Scores = dict[int, dict[str, float]]


def of_status(told: Told) -> Scores:
    return {fold["fold"]: fold["metrics"] for fold in told.json("status", "s1")["folds"]}


def of_best(told: Told) -> Scores:
    return {fold["fold"]: fold["metrics"] for fold in told.json("best", "s1")["folds"]}


def of_final_json(told: Told) -> Scores:
    document = json.loads((told.study.folder / "final.json").read_text())
    return {fold["fold"]: fold["metrics"] for fold in document["folds"]}


def of_final_parquet(told: Told) -> Scores:
    rows = pq.read_table(told.study.folder / "final.parquet").to_pylist()
    return {row["fold"]: {n: v for n, v in row.items() if "ged" in n or "dice" in n or "d_" in n} for row in rows}


def of_mlflow(told: Told) -> Scores:
    runs = told.place.mlflow_runs("s1")
    return {
        fold: {name[len("test/") :]: value for name, value in runs[f"final/blobs/{fold}"].data.metrics.items()
               if name.startswith("test/")}
        for fold in FOLDS
    }  # fmt: skip


def of_cases(told: Told) -> Scores:
    """The means of what single cases scored."""
    return {fold: means(told.study.final_folder("blobs", fold) / "cases.parquet") for fold in FOLDS}


def of_export(told: Told) -> Scores:
    return {fold["fold"]: fold["metrics"] for fold in json.loads((told.export / "metrics.json").read_text())["folds"]}


def of_exported_cases(told: Told) -> Scores:
    return {0: means(told.export / "cases.parquet")}


def of_verify_json(told: Told) -> Scores:
    return {0: json.loads((told.export / "verify.json").read_text())["means"]}


def of_verification(told: Told) -> Scores:
    """Computed anew."""
    return {0: {m["metric"]: m["here"] for m in told.json("best", "--verify", str(told.export))["metrics"]}}


def means(path: Path) -> dict[str, float]:
    table = pq.read_table(path)
    names = [name for name in table.column_names if name not in ("patient", "case")]
    return {name: float(np.nanmean(table.column(name).to_numpy())) for name in names}


PLACES: list[Callable[[Told], Scores]] = [
    of_status, of_best, of_final_json, of_final_parquet, of_mlflow, of_cases, of_export, of_exported_cases,
    of_verify_json, of_verification,
]  # fmt: skip


@pytest.mark.parametrize("read", PLACES, ids=lambda read: read.__name__)
def test_test_scores_agree(told: Told, folds: Scores, read: Callable[[Told], Scores]):
    found = read(told)
    assert found == {fold: folds[fold] for fold in found}
    assert 0 in found, "nothing was read"


# Means over the folds, as a table prints them


@pytest.fixture(scope="module")
def cells(folds: Scores) -> dict[str, list[str]]:
    """{head of a column: [cell of the personal row, cell of the prior row]}, computed here."""
    found: dict[str, list[str]] = {}
    for name in ("ged", "dice_soft", "dice_max", "dice_match", "dice_a1", "dice_a2", "dice_mean", "prior_ged",
                 "prior_ged_unbiased", "prior_dice_soft", "prior_dice_max", "prior_dice_match"):  # fmt: skip
        values = np.array([folds[fold][name] for fold in FOLDS])
        found.setdefault(title(name), []).append(cell(title(name), (values.mean(), values.std()), len(FOLDS)))
    return found


def table_of(markdown: str) -> dict[str, list[str]]:
    """{head: cells that are not empty} of the first table of a Markdown text."""
    lines = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    heads, rows = [head.strip() for head in lines[0]], lines[2:4]
    return {head: [row[i].strip() for row in rows if row[i].strip()] for i, head in enumerate(heads)}


def of_final_md(told: Told) -> dict[str, list[str]]:
    return table_of((told.study.folder / "final.md").read_text())


def of_the_card(told: Told) -> dict[str, list[str]]:
    return table_of((told.export / "README.md").read_text())


def of_the_note_in_mlflow(told: Told) -> dict[str, list[str]]:
    note = told.place.mlflow_runs("s1")["study"].data.tags["mlflow.note.content"]
    return table_of(note[note.index("| data |") :])


def of_the_terminal(told: Told) -> dict[str, list[str]]:
    text = told.answer("status", "s1")
    lines = [line for line in text[text.index("Held-out patients") :].splitlines() if "±" in line]
    number = r"-?\d+\.\d+ ± \d+\.\d+"
    return {line.split()[0]: re.findall(number, line) for line in lines if re.search(number, line)}


@pytest.mark.parametrize(
    "read", [of_final_md, of_the_card, of_the_note_in_mlflow, of_the_terminal], ids=lambda read: read.__name__
)
def test_tables_agree(told: Told, cells: dict[str, list[str]], read: Callable[[Told], dict[str, list[str]]]):
    found = read(told)
    assert {head: found.get(head) for head in cells} == cells


def test_means_over_the_folds_agree(told: Told, folds: Scores):
    summary = json.loads((told.study.folder / "final.json").read_text())["summary"]["blobs"]
    logged = told.place.mlflow_runs("s1")["study"].data.metrics
    for name in folds[0]:
        values = np.array([folds[fold][name] for fold in FOLDS])
        assert summary[name]["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert summary[name]["std"] == pytest.approx(values.std(), rel=1e-9, abs=1e-15)
        assert (logged[f"cv/blobs/{name}_mean"], logged[f"cv/blobs/{name}_std"]) == (
            summary[name]["mean"], summary[name]["std"])  # fmt: skip


# The report


@pytest.fixture(scope="module")
def report(told: Told) -> Path:
    if find_spec("cli.report") is None:
        pytest.skip("this version has no command `report`")
    told.answer("report", "s1", "--out", str(told.place.folder / "report"))
    return told.place.folder / "report"


def test_the_final_table_of_the_report_agrees(report: Path, cells: dict[str, list[str]]):
    rows = [row for row in pq.read_table(report / "final-blobs.parquet").to_pylist() if row["numbers"] == "this study"]
    assert {head: [row[head] for row in rows if row[head] is not None] for head in cells} == cells


def test_the_trials_of_the_report_agree(report: Path, objectives: dict[int, float]):
    rows = pq.read_table(report / "trials.parquet").to_pylist()
    assert {int(row["trial"][1:]): row["ged (val)"] for row in rows} == objectives


# Validation scores of the trials


@pytest.fixture(scope="module")
def objectives(told: Told) -> dict[int, float]:
    """{trial: best validation GED}, of the epochs that the trainings wrote."""
    return {n: min(r["metrics"]["val/ged"] for r in read_epochs(told.study.trial_folder(n))) for n in range(3)}


def test_the_objectives_agree(told: Told, objectives: dict[int, float]):
    assert {t["number"]: t["objective"] for t in told.json("status", "s1")["trials"]} == objectives
    assert {n: min(e["value"] for e in told.json("explain", f"t{n}", "s1")["epochs"]) for n in objectives} == objectives
    best = told.json("best", "s1")
    assert best["objective"]["value"] == objectives[best["trial"]]
    assert f"{objectives[best['trial']]:.4f}" in told.answer("best", "s1").splitlines()[0]


def test_every_epoch_agrees_in_mlflow(told: Told):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{told.place.home}/mlflow/mlflow.db")
    runs = told.place.mlflow_runs("s1")
    for number in range(3):
        for record in read_epochs(told.study.trial_folder(number)):
            for name, value in record["metrics"].items():
                history = client.get_metric_history(runs[f"t{number:03d}"].info.run_id, name)
                assert [point.value for point in history if point.step == record["epoch"]] == [value], name


def test_what_is_preferred_by_scores_that_agree(told: Told):
    choice = told.json("best", "s1", "--prefer", "balanced")["preference"]
    assert choice["part"] == "validation"
    for member in choice["front"]:
        records = read_epochs(told.study.trial_folder(member["trial"]))
        best = min(records, key=lambda record: record["metrics"]["val/ged"])["metrics"]
        assert member["metrics"] == {n.removeprefix("val/"): v for n, v in best.items() if n.startswith("val/")}
