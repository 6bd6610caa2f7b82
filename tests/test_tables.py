"""The final table: known numbers come out as they are, and what is simulated says so."""

import json
import re

import pytest

from orchestrator.results import FoldResult, summary
from orchestrator.study import Study
from orchestrator.tables import final_markdown, leaderboard_markdown, write_tables
from tests.studies import LABEL, add_trial, fold_result

FOLDS = [fold_result(0, ged=0.1, dice=0.8), fold_result(1, ged=0.3, dice=0.9)]


def table(markdown: str) -> list[dict[str, str]]:
    """The rows of the first table, by column."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_the_summary_has_mean_and_population_deviation():
    found = summary(FOLDS)["blobs"]
    assert found["ged"] == pytest.approx({"mean": 0.2, "std": 0.1, "folds": 2})
    assert found["dice_mean"] == pytest.approx({"mean": 0.85, "std": 0.05, "folds": 2})


def test_a_metric_that_one_fold_lacks_is_the_mean_of_the_others():
    lacking = fold_result(1)
    del lacking.metrics["dice_a2"]
    for order in ([fold_result(0, dice=0.8), lacking], [lacking, fold_result(0, dice=0.8)]):
        assert summary(order)["blobs"]["dice_a2"] == pytest.approx({"mean": 0.8, "std": 0, "folds": 1})


def test_the_table_has_the_papers_columns(study: Study):
    personal, prior = table(final_markdown(study, FOLDS))
    assert list(personal) == [
        "data", "S", "folds", "test cases", "GED", "GED_U", "D_soft", "D_max", "D_match", "D_A1", "D_A2", "D_mean",
    ]  # fmt: skip
    assert personal["D_mean"] == "85.00 ± 5.00"
    assert prior["D_mean"] == "", "personal scores have no meaning for samples from the prior"


def test_known_numbers_come_out_with_the_number_of_samples_and_of_cases(study: Study):
    personal, prior = table(final_markdown(study, FOLDS))
    for row in (personal, prior):
        assert (row["data"], row["folds"], row["test cases"]) == ("blobs", "2", "8")
        assert row["GED"] == "0.2000 ± 0.1000"
        assert row["D_max"] == "85.00 ± 5.00"
    assert (personal["GED_U"], prior["GED_U"]) == ("", "0.1000 ± 0.0500")
    assert personal["S"].split()[0] == "2"
    assert prior["S"] == "50 (prior)"


def test_a_single_fold_has_no_deviation(study: Study):
    markdown = final_markdown(study, FOLDS[:1])
    assert table(markdown)[0]["GED"] == "0.1000"
    assert "±" not in "".join("".join(row.values()) for row in table(markdown))


def test_a_metric_that_is_defined_nowhere_is_an_empty_cell(study: Study):
    """With a single rater nothing is the unbiased GED, and one draw a rater never has one."""
    result = fold_result(0)
    assert [row["GED_U"] for row in table(final_markdown(study, [result]))] == ["", "0.1000"]
    del result.metrics["prior_ged_unbiased"]
    assert "GED_U" not in table(final_markdown(study, [result]))[0]


def test_what_is_simulated_says_so(study: Study):
    assert f"blobs: {LABEL}." in final_markdown(study, FOLDS)
    add_trial(study, 0, 0.3)
    assert LABEL in leaderboard_markdown(study, [])


def test_every_data_set_has_its_label_and_its_rows(study: Study):
    other = fold_result(0, data="npc", label="NPC stand-in: synthetic volumes")
    markdown = final_markdown(study, [*FOLDS, other])
    assert [row["data"] for row in table(markdown)] == ["blobs", "blobs", "npc", "npc"]
    assert "npc: NPC stand-in: synthetic volumes." in markdown


def test_a_data_set_that_was_left_out_is_told(study: Study):
    stage = {"data": "npc", "epochs": 1, "base": {}}
    final = {"stage": stage, "data": None, "folds": 0, "missing": "the NPC files are not there"}
    left_out = Study.model_validate_json(study.model_copy(update={"finals": ()}).model_dump_json())
    left_out = Study.model_validate({**left_out.model_dump(), "finals": [final]})
    assert "npc was left out: the NPC files are not there." in final_markdown(left_out, FOLDS)


def test_the_fold_that_was_searched_on_is_told(study: Study):
    assert re.search("fold 0 of blobs", final_markdown(study, FOLDS))


def test_ten_raters_keep_their_order(study: Study):
    result = fold_result(0)
    result.metrics.update({f"dice_a{rater}": 0.5 for rater in range(1, 11)})
    heads = [name for name in table(final_markdown(study, [result]))[0] if name.startswith("D_A")]
    assert heads == [f"D_A{rater}" for rater in range(1, 11)]


def test_the_leaderboard_is_best_first_and_without_failures(study: Study):
    trials = [add_trial(study, 0, 0.4), add_trial(study, 1, 0.2), add_trial(study, 2, None, "failed", reason="NaN")]
    rows = table(leaderboard_markdown(study, trials))
    assert [row["trial"] for row in rows] == ["t001", "t000"]
    assert [row["ged (val)"] for row in rows] == ["0.2000", "0.4000"]


def test_the_files_hold_the_same_numbers(study: Study):
    import pyarrow.parquet as pq

    paths = write_tables(study, FOLDS)
    assert [path.name for path in paths] == ["final.json", "final.md", "final.parquet"]
    document = json.loads((study.folder / "final.json").read_text())
    assert document["study"] == "s1"
    assert document["summary"]["blobs"]["ged"]["mean"] == pytest.approx(0.2)
    assert [FoldResult(**fold) for fold in document["folds"]] == FOLDS
    assert any(LABEL in note for note in document["notes"])
    rows = pq.read_table(study.folder / "final.parquet").to_pylist()
    assert [(row["fold"], row["ged"], row["label"]) for row in rows] == [(0, 0.1, LABEL), (1, 0.3, LABEL)]
    assert (study.folder / "final.md").read_text() == final_markdown(study, FOLDS)


def test_a_metric_that_the_first_fold_lacks_is_in_the_table_of_all(study: Study):
    import pyarrow.parquet as pq

    lacking = fold_result(0)
    del lacking.metrics["dice_a1"]
    write_tables(study, [lacking, fold_result(1)])
    assert pq.read_table(study.folder / "final.parquet").column("dice_a1").to_pylist()[0] is None
