"""What MLflow's pages are told of a study: known values, the right direction, and every address well formed."""

import base64
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestrator import pages
from orchestrator.resources import Node, Resources
from orchestrator.results import Trial, read_trials
from orchestrator.study import Study, base_config
from proseg.data.store import Store
from proseg.records import read_epochs
from search_spaces import find_space
from tests.studies import LABEL, add_trial, make_study, write_epochs

SERVER = "http://127.0.0.1:5000"
SEARCH = {
    "optim.lr": {"kind": "float", "low": 0.001, "high": 0.01, "log": True},
    "model.tau_size": {"kind": "int", "low": 2, "high": 4},
    "model.z_channels": {"kind": "choice", "values": [2, 4]},
    "loss.beta_z": {"kind": "float", "low": 0.01, "high": 1.0, "log": True, "when": {"model.z_channels": 4}},
    "loss.w_rec": {"kind": "fixed", "value": 0.5},
}
MOST_OF_A_TAG = 20_000
"""Of the value of an experiment's tag."""


def state_of(study: Study) -> dict[str, Any]:
    """What the saved view of a study says, read as MLflow reads it."""
    name, value = pages.saved_view(study)
    assert name == f"mlflow.sharedViewState.{study.name}"
    view = json.loads(value)
    assert view["name"] == study.name
    kind, packed = view["state"].split(";")
    assert kind == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def charts_of(study: Study, kind: str) -> list[dict[str, Any]]:
    return [chart for chart in state_of(study)["compareRunCharts"] if chart["type"] == kind]


def query_of(address: str) -> tuple[str, dict[str, str]]:
    """The path behind the hash, and what follows it."""
    parts = urlsplit(urlsplit(address).fragment)
    return parts.path, {name: values[0] for name, values in parse_qs(parts.query, strict_parsing=True).items()}


@pytest.fixture
def searched(tmp_path: Path, store: Store) -> Study:
    return make_study(tmp_path, store, name="searched", search=SEARCH)


@pytest.fixture
def two_objectives(tmp_path: Path, store: Store) -> Study:
    return make_study(
        tmp_path, store, name="two", objective={"metric": "dice_mean"}, second_objective={"metric": "ged"}
    )


# Runs


@pytest.mark.parametrize(
    ("trial", "name"),
    [
        (Trial(7, {"model.tau_size": 2, "loss.beta_z": 0.5, "optim.lr": 0.00123}), "t007 lr 1.2e-03"),
        (Trial(7, {"model.tau_size": 2, "loss.beta_z": 0.5}), "t007 beta_z 5.0e-01"),
        (Trial(7, {"model.tau_size": 2}), "t007"),
        (Trial(7, {"optim.lr": 0.1}, "complete", 4, 0.16919), "t007 0.1692 complete"),
        (Trial(7, {"optim.lr": 0.1}, "stopped early", 1, 0.25), "t007 0.2500 stopped early"),
        (Trial(1234, {}, "failed", reason="NaN"), "t1234 failed"),
        (Trial(7, {}, "interrupted", 1, 0.25), "t007 0.2500 interrupted"),
    ],
)
def test_the_name_of_a_run_begins_with_its_number_and_says_how_it_ended(trial: Trial, name: str):
    assert pages.run_name(trial) == name


def test_searched_fields_stand_apart_from_fixed_ones_and_have_their_logarithm(searched: Study):
    values = {"optim.lr": 0.001, "model.tau_size": 3, "model.z_channels": 2, "loss.w_rec": 0.5}
    params = pages.trial_params(searched, Trial(0, values), searched.config_of(values))
    assert (params["optim/lr"], params["optim/log10_lr"], params["model/tau_size"]) == (0.001, -3.0, 3)
    assert "model/log10_tau_size" not in params
    assert params["fixed/model.width"] == 4
    assert "fixed/optim.lr" not in params
    assert "fixed/loss.beta_z" in params, "it is not searched where z_channels is 2"
    assert len(params) == len(searched.base.flat()) + 1


def test_why_a_trial_was_stopped_is_told_apart_from_why_it_failed():
    assert pages.trial_tags(Trial(0, {}, "complete")) == {"proseg.state": "complete"}
    stopped = Trial(0, {}, "stopped early", reason="ASHA: rank 2 of 2")
    assert pages.trial_tags(stopped) == {"proseg.state": "stopped early", "proseg.prune_reason": "ASHA: rank 2 of 2"}
    failed = Trial(0, {}, "failed", reason="the loss is not finite")
    assert pages.trial_tags(failed) == {"proseg.state": "failed", "proseg.reason": "the loss is not finite"}


def test_a_trial_over_a_limit_says_which():
    tags = pages.trial_tags(Trial(0, {}, "complete", over=("gpu_memory", "epoch_seconds")))
    assert tags == {"proseg.state": "complete", "proseg.over": "gpu_memory; epoch_seconds"}


def test_the_numbers_of_a_trial_are_those_of_its_record_to_the_last_digit(study: Study):
    trial = Trial(0, {}, "complete", 3, 0.1234567890123, seconds=12.345, cost=0.00778526314333337, epoch_seconds=4.1)
    write_epochs(study.trial_folder(0), [0.3, 0.1234567890123, 0.2], **{"val/dice_match": 0.9})
    summary = pages.trial_summary(study, trial, read_epochs(study.trial_folder(0)))
    assert summary == {
        "objective/ged": 0.1234567890123, "objective/dice_match": 0.9, "cost/epochs": 3.0,
        "cost/cpu_hours": 0.00778526314333337, "time/seconds": 12.345, "time/epoch_seconds": 4.1,
    }  # fmt: skip


def test_agreement_is_shown_of_the_epoch_whose_weights_are_kept(study: Study):
    epochs = [
        {"best": best, "metrics": {"val/ged": ged, "val/dice_match": dice}}
        for best, ged, dice in [(0.3, 0.3, 0.7), (0.2, 0.2, 0.8), (0.2, 0.25, 0.99), (0.2, 0.2, 0.98)]
    ]
    assert pages.trial_summary(study, Trial(0, {}, "complete", 4, 0.2), epochs)["objective/dice_match"] == 0.8


def test_agreement_of_an_epoch_without_a_score_is_not_shown(study: Study):
    epochs = [
        {"best": best, "metrics": {"val/ged": ged, "val/dice_match": dice}}
        for best, ged, dice in [(math.nan, math.nan, 0.7), (0.3, 0.3, 0.8), (0.3, math.nan, 0.9)]
    ]
    assert pages.trial_summary(study, Trial(0, {}, "complete", 3, 0.3), epochs)["objective/dice_match"] == 0.8


def test_a_trial_that_failed_at_once_has_no_score_and_a_cost(study: Study):
    summary = pages.trial_summary(study, Trial(0, {}, "failed", seconds=1.0, cost=0.5), [])
    assert summary == {"cost/epochs": 0.0, "cost/cpu_hours": 0.5, "time/seconds": 1.0}


def test_on_gpus_the_cost_is_gpu_hours_and_the_memory_is_told(study: Study):
    gpus = Resources(nodes=(Node(cpus=2, gpus=1),), workers=1, gpu_share=1, concurrent=1, threads_per_rank=2)
    on_gpus = study.model_copy(update={"resources": gpus})
    summary = pages.trial_summary(on_gpus, Trial(0, {}, "complete", 1, 0.2, cost=1.5, memory=3 * 2**29), [])
    assert (summary["cost/gpu_hours"], summary["gpu/mem_peak_gb"]) == (1.5, 1.5)
    assert "cost/cpu_hours" not in summary
    assert "metrics.`cost/gpu_hours`" in state_of(on_gpus)["selectedColumns"]


def test_the_second_objective_is_shown_beside_the_first(two_objectives: Study):
    trial = Trial(0, {}, "complete", 2, 0.9, second=0.25)
    summary = pages.trial_summary(two_objectives, trial, [])
    assert (summary["objective/dice_mean"], summary["objective/ged"]) == (0.9, 0.25)


# The saved view


def test_the_saved_view_is_the_same_whenever_it_is_written(searched: Study):
    assert pages.saved_view(searched) == pages.saved_view(searched)
    renamed = searched.model_copy(update={"name": "other"})
    assert pages.saved_view(renamed)[0] != pages.saved_view(searched)[0], "each study has its own"


def test_the_saved_view_holds_the_trials_of_this_study_alone(searched: Study):
    assert state_of(searched)["searchFilter"] == "tags.`proseg.study` = 'searched' and tags.`proseg.kind` = 'trial'"


def test_the_best_stand_first_whatever_is_best(searched: Study, two_objectives: Study):
    lower, higher = state_of(searched), state_of(two_objectives)
    assert (lower["orderByKey"], lower["orderByAsc"]) == ("metrics.`objective/ged`", True)
    assert (higher["orderByKey"], higher["orderByAsc"]) == ("metrics.`objective/dice_mean`", False)
    assert lower["runsHiddenMode"] == "SHOW_ALL"


def test_the_leaderboard_has_its_columns_in_their_order(searched: Study):
    state = state_of(searched)
    assert state["selectedColumns"] == [
        "tags.`proseg.state`", "metrics.`objective/ged`", "metrics.`objective/dice_match`", "metrics.`cost/epochs`",
        "tags.`proseg.data_label`", "metrics.`cost/cpu_hours`", "params.`optim/lr`", "params.`model/tau_size`",
        "params.`model/z_channels`", "params.`loss/beta_z`", "tags.`proseg.prune_reason`", "tags.`proseg.reason`",
    ]  # fmt: skip
    assert [name for name in state["columnOrder"] if name in state["selectedColumns"]] == state["selectedColumns"]
    assert state["columnOrder"][0] == "attributes.`Run Name`"
    assert set(state["columnWidths"]) == set(state["columnOrder"])


def test_parallel_coordinates_have_an_axis_for_each_field_that_all_trials_search(searched: Study):
    (chart,) = charts_of(searched, "PARALLEL")
    assert chart["selectedParams"] == ["optim/log10_lr", "model/tau_size", "model/z_channels"]
    assert chart["selectedMetrics"] == ["objective/ged"]
    values = {"optim.lr": 0.001, "model.tau_size": 3, "model.z_channels": 2, "loss.w_rec": 0.5}
    logged = pages.trial_params(searched, Trial(0, values), searched.config_of(values))
    assert set(chart["selectedParams"]) <= set(logged), "MLflow leaves out runs that lack one"


def test_the_scatter_shows_the_trade_off(searched: Study, two_objectives: Study):
    def axes(study: Study) -> list[str]:
        (chart,) = charts_of(study, "SCATTER")
        return [chart[axis]["key"] for axis in ("xaxis", "yaxis")]

    assert axes(searched) == ["objective/ged", "objective/dice_match"]
    assert axes(two_objectives) == ["objective/dice_mean", "objective/ged"]


def test_curves_and_pictures_are_there(searched: Study):
    curves = [chart["metricKey"] for chart in charts_of(searched, "LINE")]
    assert curves == ["val/ged", "val/dice_match", "train/loss"]
    (pictures,) = charts_of(searched, "IMAGE")
    assert (pictures["imageKeys"], pictures["step"]) == ([pages.SAMPLES], pages.SAMPLES_STEP)


def test_an_objective_of_agreement_has_diversity_beside_it(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store, name="agree", objective={"metric": "dice_match"})
    assert [chart["metricKey"] for chart in charts_of(study, "LINE")] == ["val/dice_match", "val/ged", "train/loss"]


def test_every_chart_has_a_name_of_its_own_and_a_section(searched: Study):
    state = state_of(searched)
    names = [chart["uuid"] for chart in state["compareRunCharts"]]
    assert len(set(names)) == len(names)
    sections = {section["uuid"]: section for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= set(sections)
    assert sections["study"]["name"] == LABEL, "above the charts stands what the data are"
    assert [uuid for uuid, section in sections.items() if section["display"]] == ["study", "curves", "samples", "apart"]


@pytest.mark.parametrize("space", ["demo", "lidc", "npc"])
def test_the_view_of_every_space_that_ships_fits_into_a_tag(searched: Study, space: str):
    found = find_space(space)
    base = base_config(found, epochs=found.budget.epochs, seed=0)
    name, value = pages.saved_view(searched.model_copy(update={"space": found, "base": base}))
    assert len(name) <= 250
    assert len(value) < MOST_OF_A_TAG / 4, "a user's own space may be larger"


# Addresses


def test_the_view_is_named_alone(searched: Study):
    """MLflow does not look at a view in an address that filters or orders."""
    path, query = query_of(pages.view_page(SERVER, "7", searched))
    assert path == "/experiments/7/runs"
    assert query == {"workflowType": "machine_learning", "viewStateShareKey": "searched"}
    assert query_of(pages.view_page(SERVER, "7", searched, charts=True))[1]["compareRunsMode"] == "CHART"


def test_the_filter_says_what_the_view_says(searched: Study, two_objectives: Study):
    for study, ascending in ((searched, "true"), (two_objectives, "false")):
        path, query = query_of(pages.filter_page(SERVER, "7", study))
        state = state_of(study)
        assert path == "/experiments/7/runs"
        assert (query["searchFilter"], query["orderByKey"]) == (state["searchFilter"], state["orderByKey"])
        assert query["orderByAsc"] == ascending


@pytest.mark.parametrize(("version", "view"), [("3.17.2", True), ("3.17.0", True), ("3.18.0", False), ("4.0.0", False)])
def test_a_server_that_may_not_know_the_view_is_asked_by_the_filter(searched: Study, version: str, view: bool):
    expected = pages.view_page if view else pages.filter_page
    assert pages.study_page(SERVER, "7", searched, version) == expected(SERVER, "7", searched)


def test_the_installed_version_is_one_whose_views_are_known(searched: Study):
    """Where this fails, open the view in a browser (tests/test_browser.py) and extend `UNDERSTOOD`."""
    assert pages.study_page(SERVER, "7", searched) == pages.view_page(SERVER, "7", searched)


# The description


def note(study: Study, **more: Any) -> str:
    runs = {trial.name: f"run{trial.number}" for trial in read_trials(study)}
    return pages.note(study, read_trials(study), experiment="7", runs=runs, **more)


def test_the_first_paragraph_is_the_leaderboard(study: Study):
    """MLflow folds the rest."""
    add_trial(study, 0, 0.4)
    add_trial(study, 1, 0.2)
    add_trial(study, 2, 0.1, "stopped early", reason="ASHA")
    add_trial(study, 3, None, "failed", reason="the loss is not finite")
    first = note(study).split("\n\n")[0]
    assert LABEL in first
    places = [first.index(words) for words in ("0.2000 complete", "0.4000 complete", "0.1000 stopped early")]
    assert places == sorted(places), "those that were stopped were measured at fewer epochs"
    assert "[t001](./#/experiments/7/runs/run1?" in first


def test_the_description_counts_says_what_failed_and_where_it_was_looked(study: Study):
    add_trial(study, 0, 0.4)
    add_trial(study, 1, 0.3)
    failed = add_trial(study, 2, None, "failed", reason="the loss is not finite")
    text = note(study, winner=read_trials(study)[0], tables="## Final stage")
    assert "3 of 4 trials: 2 complete, 1 failed." in text
    assert "Chosen: [t000]" in text
    assert "lowest ged on the validation patients of fold 0 (S = 2" in text
    assert f"- [{failed.name}]({pages.run_page('.', '7', 'run2')}) failed: {failed.reason}" in text
    assert text.endswith("## Final stage\n")
    for address in (pages.view_page(".", "7", study), pages.filter_page(".", "7", study)):
        assert f"({address})" in text


def test_a_description_of_nothing_says_so(study: Study):
    assert "0 of 4 trials: none yet." in pages.note(study, [], experiment="7", runs={})


def test_what_is_looked_for_is_named_in_its_direction(two_objectives: Study):
    trials = [Trial(0, {"optim.lr": 0.1}, "complete", 2, 0.9, second=0.25)]
    text = pages.note(two_objectives, trials, experiment="7", runs={})
    assert "highest dice_mean" in text
    assert "| t000 | 0.9000 | 0.2500 | complete | 2 |" in text


def test_of_many_trials_the_best_ten_are_listed(study: Study):
    trials = [replace(add_trial(study, 0, 0.5), number=number, objective=0.1 + number / 100) for number in range(12)]
    text = pages.note(study, trials, experiment="7", runs={})
    assert "The best 10 of 12." in text
    assert "| t009 |" in text
    assert "| t010 |" not in text


def test_a_description_is_never_longer_than_what_mlflow_keeps(study: Study):
    """It cuts the rest off, in the middle of a table."""
    values = {f"model.dimension_{number}": 0.123456 for number in range(20)}
    trials = [Trial(number, values, "complete", 2, 0.1 + number / 100) for number in range(40)]
    trials += [Trial(number, values, "failed", reason=f"why {number} " * 100) for number in range(40, 80)]
    runs = {trial.name: "0" * 32 for trial in trials}
    for tables in ("| the table |\n" * 100, "| the table |\n" * 1000):
        text = pages.note(study, trials, experiment="7", runs=runs, tables=tables)
        assert len(text) <= pages.MOST_CHARACTERS
        assert "40 complete, 40 failed" in text
        assert "35 more failed" in text
        assert text.count("| t000 |") + text.count("| [t000]") == 1
        assert text.count("the table") in (0, tables.count("the table")), "whole or not at all"
