"""Search spaces: the files that ship, and what is said about a file that is wrong."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.study import base_config, check_objective
from search_spaces import SpaceError, find_space, shipped
from search_spaces.space import SearchSpace, parse_space, read_space
from tests.studies import make_space, space_values

LR = {"kind": "float", "low": 0.001, "high": 0.01}

GOOD = """
about = "A test."
data = "lidc-contours"
[budget]
trials = 4
epochs = 2
[search]
"optim.lr" = { kind = "float", low = 0.001, high = 0.01 }
"""


def mistake(**changes: Any) -> str:
    """The sentence about a space with these keys changed, as `launch` would say it."""
    with pytest.raises(SpaceError) as error:
        check(changes)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.startswith("test.toml: ")
    return sentence


def check(changes: dict[str, Any]) -> None:
    space = make_space(**changes)
    base_config(space, epochs=2, seed=0)
    check_objective(space, raters=4)


# What ships


def test_demo_lidc_and_npc_ship():
    assert set(shipped()) == {"demo", "lidc", "npc"}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_space_can_be_launched(name: str):
    space = find_space(name)
    base_config(space, epochs=space.budget.epochs, seed=0)
    check_objective(space, raters=4)
    assert space.objective.metric == "ged"
    assert space.objective.goal == "minimize"
    assert {final.data for final in space.final} == {"lidc-contours", "npc"}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_space_searches_the_latents_the_loss_weights_and_the_learning_rate(name: str):
    assert set(find_space(name).search) >= {
        "model.z_channels", "model.z_grid", "model.tau_size", "model.concentration", "loss.w_rec", "loss.w_cls",
        "loss.beta_z", "loss.beta_tau", "optim.lr",
    }  # fmt: skip


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_file_opens_with_what_it_searches_costs_and_gave(name: str):
    comment = [line for line in shipped()[name].read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    assert [word for word in ("Searches", "Costs", "Gave") if not any(word in line for line in comment)] == []


# Finding a space


def test_a_space_of_ones_own_is_given_by_its_path(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    assert find_space(str(file)).name == "mine"


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(SpaceError, match=r"'dmeo'.* demo, lidc, npc.*\.toml"):
        find_space("dmeo")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(SpaceError, match=r"gone\.toml does not exist"):
        find_space(str(tmp_path / "gone.toml"))


@pytest.mark.parametrize("content", [b"about = ", b"[search\n", b"\xff\xfe\x00", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_named_with_the_place(tmp_path: Path, content: bytes):
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(SpaceError, match=r"broken\.toml") as error:
        read_space(file)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_space(tmp_path: Path):
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(SpaceError, match=r"folder\.toml cannot be read"):
        read_space(tmp_path / "folder.toml")


# Mistakes: one sentence with the file, the key and what is allowed


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"bugdet": {"trials": 1}}, ["'bugdet'", "budget", "search", "scheduler"]),
        ({"name": "mine"}, ["'name'", "named after its file"]),
        ({"budget": {"trials": 4}}, ["'budget.epochs'", "missing"]),
        ({"budget": {"trials": 0, "epochs": 2}}, ["budget.trials", "greater than 0"]),
        ({"budget": {"trials": "four", "epochs": 2}}, ["budget.trials", "integer", "'four'"]),
        ({"budget": {"trials": 4, "epochs": 2, "gpus": 1}}, ["'budget.gpus'", "trials, epochs"]),
        ({"scheduler": {"kind": "pbt"}}, ["scheduler.kind", "'asha' or 'none'"]),
        ({"scheduler": {"reduction": 1}}, ["scheduler.reduction", "greater than or equal to 2"]),
        ({"objective": {"goal": "smaller"}}, ["objective.goal", "'minimize' or 'maximize'"]),
        ({"objective": {"metric": "loss"}}, ["objective.metric", "'loss'", "ged", "dice_mean"]),
        ({"objective": {"metric": "dice_a5"}}, ["objective.metric", "'dice_a5'", "dice_a4"]),
        ({"fold": -1}, ["fold", "greater than or equal to 0"]),
        ({"search": {}}, ["search", "at least 1"]),
        ({"final": [{"data": "npc"}]}, ["final.0.epochs", "missing"]),
    ],
)
def test_wrong_keys_of_the_file(changes: dict[str, Any], parts: list[str]):
    sentence = mistake(**changes)
    assert [part for part in parts if part not in sentence] == []


def test_a_missing_budget_is_named():
    values = space_values("blobs")
    del values["budget"]
    with pytest.raises(SpaceError, match=r"test\.toml: key 'budget' is missing"):
        parse_space(values, file="test.toml", name="test")


@pytest.mark.parametrize(
    ("dimension", "parts"),
    [
        (LR | {"low": 0.1}, ["low must be smaller than high", "0.1", "0.01"]),
        (LR | {"low": 0.01}, ["low must be smaller than high"]),
        (LR | {"low": 0.0, "log": True}, ["above 0", "logarithmic"]),
        (LR | {"low": -1.0, "log": True}, ["above 0", "logarithmic"]),
        (LR | {"low": "small"}, ["low", "number", "'small'"]),
        (LR | {"low": "0.001"}, ["low", "number", "'0.001'"]),
        (LR | {"high": float("inf")}, ["high", "finite"]),
        (LR | {"kind": "uniform"}, ["kind", "float, int, choice, fixed"]),
        ({"low": 0.001, "high": 0.01}, ["kind", "float, int, choice, fixed"]),
        (LR | {"step": 0.1}, ["'search.optim.lr.step'", "low, high, log"]),
        ({"kind": "choice", "values": []}, ["values", "at least 2"]),
        ({"kind": "choice", "values": [0.1]}, ["values", "at least 2"]),
        ({"kind": "fixed"}, ["'search.optim.lr.value'", "missing"]),
        ({"kind": "int", "low": 1.5, "high": 3}, ["low", "integer", "1.5"]),
    ],
)
def test_wrong_dimensions(dimension: dict[str, Any], parts: list[str]):
    sentence = mistake(search={"optim.lr": dimension})
    assert [part for part in ["search.optim.lr", *parts] if part not in sentence] == []


@pytest.mark.parametrize("section", ["base", "search"])
@pytest.mark.parametrize(("name", "instead"), [("epochs", "budget.epochs"), ("seed", "--seed")])
def test_epochs_and_seed_are_set_elsewhere(section: str, name: str, instead: str):
    entry = 3 if section == "base" else {"kind": "int", "low": 1, "high": 3}
    sentence = mistake(**{section: {name: entry}})
    assert f"{section}.{name}" in sentence
    assert instead in sentence


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"base": {"model.deepness": 3}}, "base"),
        ({"search": {"model.deepness": LR}}, "search"),
        ({"final": [{"data": "npc", "epochs": 1, "base": {"model.deepness": 3}}]}, "final (npc)"),
    ],
)
def test_an_unknown_field_lists_those_there_are(changes: dict[str, Any], section: str):
    sentence = mistake(**changes)
    assert [part for part in (section, "'model.deepness'", "model.levels", "optim.lr") if part not in sentence] == []


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"base": {"optim.lr": -1.0}}, ["base", "optim.lr", "-1.0", "greater than 0"]),
        ({"base": {"optim.lr": "fast"}}, ["base", "optim.lr", "'fast'", "number"]),
        ({"base": {"optim.name": "sgd"}}, ["base", "optim.name", "'adam' or 'adamw'"]),
        ({"search": {"optim.lr": LR | {"low": -1.0}}}, ["search", "optim.lr", "-1.0", "greater than 0"]),
        ({"search": {"optim.name": {"kind": "choice", "values": ["adam", "sgd"]}}}, ["search", "optim.name", "'sgd'"]),
        ({"search": {"model.tau_size": {"kind": "fixed", "value": 1}}}, ["search", "model.tau_size", "1"]),
        ({"final": [{"data": "npc", "epochs": 1, "base": {"data.crop": 0}}]}, ["final (npc)", "data.crop", "0"]),
    ],
)
def test_a_value_that_its_field_does_not_allow(changes: dict[str, Any], parts: list[str]):
    sentence = mistake(**changes)
    assert [part for part in parts if part not in sentence] == []


def test_a_range_of_fractions_is_refused_where_the_field_is_whole():
    assert "model.tau_size" in mistake(search={"model.tau_size": {"kind": "float", "low": 2.0, "high": 8.0}})


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}])
def test_a_value_that_toml_allows_and_no_field_holds_is_one_complaint(value: Any):
    sentence = mistake(base={"optim.lr": value})
    assert "base.optim.lr" in sentence
    assert sentence.count("base.optim.lr") == 1, "one fault is told once"


@pytest.mark.parametrize("other", ["model.z_grid", "model.nonsense", "optim.lr"])
def test_a_condition_must_name_a_dimension_before_it(other: str):
    search = {
        "optim.lr": LR | {"when": {other: 4}},
        "model.z_grid": {"kind": "choice", "values": [4, 8]},
    }
    sentence = mistake(search=search)
    assert [part for part in ("search.optim.lr.when", other, "before it") if part not in sentence] == []


# Conditions


@pytest.fixture
def conditional() -> SearchSpace:
    return make_space(search={
        "optim.name": {"kind": "choice", "values": ["adam", "adamw"]},
        "model.z_grid": {"kind": "choice", "values": [4, 8, 16]},
        "optim.weight_decay": LR | {"when": {"optim.name": "adamw", "model.z_grid": [4, 8]}},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "active"),
    [
        ({"optim.name": "adamw", "model.z_grid": 4}, True),
        ({"optim.name": "adamw", "model.z_grid": 8}, True),
        ({"optim.name": "adamw", "model.z_grid": 16}, False),
        ({"optim.name": "adam", "model.z_grid": 4}, False),
        ({"optim.name": "adamw"}, False),
    ],
)
def test_a_dimension_is_searched_where_all_its_conditions_hold(
    conditional: SearchSpace, chosen: dict[str, Any], active: bool
):
    assert conditional.active("optim.weight_decay", chosen) is active
    assert conditional.active("model.z_grid", chosen)


# Objectives


@pytest.mark.parametrize(("metric", "goal"), [("ged", "minimize"), ("d_pa", "minimize"), ("dice_mean", "maximize")])
def test_the_goal_follows_from_the_metric(metric: str, goal: str):
    assert make_space(objective={"metric": metric}).objective.direction == goal


def test_a_search_for_the_worst_is_refused():
    assert "must be maximize" in mistake(objective={"metric": "dice_mean", "goal": "minimize"})


def test_a_condition_that_can_never_hold_is_refused():
    search = {
        "optim.name": {"kind": "choice", "values": ["adam", "adamw"]},
        "optim.weight_decay": {"kind": "float", "low": 0.1, "high": 0.2, "when": {"optim.name": "adamwx"}},
    }
    assert "can never be 'adamwx'" in mistake(search=search)


def test_a_choice_that_stands_twice_is_refused():
    assert "twice" in mistake(search={"model.tau_size": {"kind": "choice", "values": [7, 7]}})
