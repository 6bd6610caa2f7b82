"""Search spaces: the files that ship, and what is said about a file that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.objective import check_objective
from orchestrator.study import base_config
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


@pytest.mark.parametrize(("name", "top", "repeats"), [("demo", 3, 1), ("lidc", 3, 2), ("npc", 3, 2)])
def test_every_shipped_space_confirms_its_best_trials_and_says_so_itself(name: str, top: int, repeats: int):
    confirm = find_space(name).confirm
    assert (confirm.top, confirm.repeats) == (top, repeats)
    assert confirm.model_fields_set == {"top", "repeats"}


@pytest.mark.parametrize("name", shipped())
def test_no_shipped_space_lists_points(name: str):
    assert find_space(name).points_to_try == [], "the program itself puts the paper's configuration first"


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


def test_an_editors_mark_and_names_without_quotes_change_nothing(tmp_path: Path):
    """To TOML `optim.lr` is a table within a table, and Windows editors begin a file with a mark."""
    quoted = """
        data = "x"
        budget = { trials = 2, epochs = 2 }
        [base]
        "optim.grad_clip" = 5.0
        [search]
        "optim.lr" = { kind = "float", low = 0.1, high = 0.2 }
        "optim.name" = { kind = "choice", values = ["adam", "adamw"] }
    """
    for name, text in (("quoted", quoted), ("bare", quoted.replace('"optim.', "optim.").replace('" =', " ="))):
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8-sig" if name == "bare" else "utf-8")
    one, other = (read_space(tmp_path / f"{name}.toml") for name in ("quoted", "bare"))
    assert (one.base, one.search) == (other.base, other.search)
    assert set(one.search) == {"optim.lr", "optim.name"}


def test_a_file_in_another_encoding_says_what_to_do(tmp_path: Path):
    (tmp_path / "latin.toml").write_bytes("about = 'größe'".encode("latin-1"))
    with pytest.raises(SpaceError, match=r"latin\.toml is not text in UTF-8; save it as that"):
        read_space(tmp_path / "latin.toml")


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
        ({"final": {"data": "npc"}}, ["final:", "[[final]]"]),
        ({"budget": 4}, ["budget", "table", "4"]),
        ({"sampler": "cma"}, ["sampler", "'tpe', 'gp', 'random', 'qmc' or 'grid'", "'cma'"]),
        ({"second_objective": "dice_mean"}, ["second_objective", "table", "'dice_mean'"]),
        ({"second_objective": {"metric": "dice_mean", "weight": 1}}, ["'second_objective.weight'", "metric, goal"]),
        ({"second_objective": {"metric": "dice_mean", "goal": "minimize"}}, ["second_objective", "be maximize"]),
        ({"second_objective": {"metric": "ged"}}, ["second_objective.metric", "ged", "another metric"]),
        ({"confirm": {"top": -1}}, ["confirm.top", "greater than or equal to 0", "-1"]),
        ({"confirm": {"top": True}}, ["confirm.top", "integer", "True"]),
        ({"confirm": {"repeats": 0}}, ["confirm.repeats", "greater than 0"]),
        ({"confirm": {"seeds": 3}}, ["'confirm.seeds'", "top, repeats"]),
        ({"confirm": 3}, ["confirm", "table", "3"]),
        ({"limits": {"memory": 1}}, ["'limits.memory'", "allowed here: gpu_memory, epoch_seconds"]),
        ({"limits": {"gpu_memory": 0}}, ["limits.gpu_memory", "greater than 0"]),
        ({"limits": {"epoch_seconds": True}}, ["limits.epoch_seconds", "number", "True"]),
        ({"limits": 3}, ["limits", "table", "3"]),
        ({"points_to_try": {"optim.lr": 0.005}}, ["points_to_try", "[[points_to_try]]"]),
        ({"points_to_try": [3]}, ["points_to_try.0", "table", "3"]),
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
        (LR | {"step": 0.1}, ["'search.optim.lr.step'", "low, high, log, grid"]),
        (LR | {"grid": 1}, ["search.optim.lr.grid", "greater than or equal to 2", "1"]),
        (LR | {"grid": True}, ["search.optim.lr.grid", "integer", "True"]),
        ({"kind": "int", "low": 1, "high": 9, "grid": 2.5}, ["search.optim.lr.grid", "integer", "2.5"]),
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


@pytest.mark.parametrize("value", [[1, 2], [{"a": 1}]])
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


def test_a_key_of_another_kind_is_not_named_as_allowed():
    sentence = mistake(search={"optim.lr": {"kind": "choice", "values": [0.1, 0.2], "grid": 2}})
    assert "unknown key 'search.optim.lr.grid'; allowed here: when, kind, values" in sentence


@pytest.mark.parametrize("value", [True, 2, 0.5])
def test_true_is_not_the_number_one(value: Any):
    space = make_space(search={
        "a": {"kind": "int", "low": 0, "high": 1}, "b": {"kind": "float", "low": 0.0, "high": 1.0},
        "c": {"kind": "choice", "values": [0, 1]}, "d": {"kind": "fixed", "value": 1},
    })  # fmt: skip
    admitting = [name for name, dimension in space.search.items() if dimension.admits(value)]
    assert admitting == (["b"] if value == 0.5 else [])


def test_one_is_not_true():
    search = {
        "a": {"kind": "choice", "values": [True, False]},
        "b": {"kind": "int", "low": 1, "high": 9, "when": {"a": True}},
    }
    space = make_space(search=search)
    assert not space.search["a"].admits(1)
    assert space.active("b", {"a": True})
    assert not space.active("b", {"a": 1})
    search["b"]["when"] = {"a": 1}
    with pytest.raises(SpaceError, match=r"search\.b\.when: a can never be 1"):
        make_space(search=search)


# What may be left out


def test_what_a_space_does_by_itself():
    space = make_space()
    assert space.sampler == "tpe"
    assert space.second_objective is None
    assert space.points_to_try == []
    assert (space.confirm.top, space.confirm.repeats) == (3, 2)
    assert (space.limits.gpu_memory, space.limits.epoch_seconds) == (None, None)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "grid"])
def test_every_sampler_can_be_chosen(sampler: str):
    assert make_space(sampler=sampler).sampler == sampler


def test_the_second_objective_has_its_own_goal():
    second = make_space(second_objective={"metric": "dice_mean"}).second_objective
    assert second is not None
    assert second.direction == "maximize"


@pytest.mark.parametrize("top", [0, 1])
def test_confirming_can_be_turned_off(top: int):
    assert make_space(confirm={"top": top}).confirm.top == top


# Points to try


def points_mistake(*points: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(SpaceError) as error:
        make_space(points_to_try=list(points), **changes)
    return str(error.value)


CONDITIONAL = {
    "optim.name": {"kind": "choice", "values": ["adam", "adamw", "lamb"]},
    "optim.decoupled": {"kind": "fixed", "value": True},
    "optim.weight_decay": LR | {"when": {"optim.name": ["adamw", "lamb"], "optim.decoupled": True}},
}


def test_points_are_written_as_tables_with_quoted_names(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD + '[[points_to_try]]\n"optim.lr" = 0.002\n[[points_to_try]]\n"optim.lr" = 0.005\n')
    assert read_space(file).points_to_try == [{"optim.lr": 0.002}, {"optim.lr": 0.005}]


def test_a_name_without_quotes_is_explained(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD + "[[points_to_try]]\noptim.lr = 0.002\n")
    with pytest.raises(SpaceError, match=r"mine\.toml: points_to_try\.0\.optim: .*in quotes$"):
        read_space(file)


@pytest.mark.parametrize(
    ("point", "sentence"),
    [
        ({"optim.lr": 5}, "optim.lr = 5 is outside of the numbers 0.001 to 0.01"),
        ({"optim.lr": True}, "optim.lr = True is outside of the numbers 0.001 to 0.01"),
        ({"optim.lr": "fast"}, "optim.lr = 'fast' is outside of the numbers 0.001 to 0.01"),
        ({"model.tau_size": 5}, "model.tau_size = 5 is outside of the whole numbers 1 to 4"),
        ({"model.tau_size": 2.5}, "model.tau_size = 2.5 is outside of the whole numbers 1 to 4"),
        ({"model.tau_size": True}, "model.tau_size = True is outside of the whole numbers 1 to 4"),
        ({"optim.name": "sgd"}, "optim.name = 'sgd' is outside of the values 'adam', 'adamw'"),
        ({"model.z_grid": 8}, "model.z_grid = 8 is outside of the value 4"),
        (
            {"model.width": 8},
            "model.width is no dimension of search; use optim.lr, model.tau_size, optim.name, model.z_grid",
        ),
    ],
)
def test_a_point_outside_of_the_space_is_named_with_what_is_allowed(point: dict[str, Any], sentence: str):
    search = {
        "optim.lr": LR, "model.tau_size": {"kind": "int", "low": 1, "high": 4},
        "optim.name": {"kind": "choice", "values": ["adam", "adamw"]}, "model.z_grid": {"kind": "fixed", "value": 4},
    }  # fmt: skip
    assert points_mistake({"optim.lr": 0.002}, point, search=search) == f"test.toml: points_to_try.1: {sentence}"


@pytest.mark.parametrize("value", [[0.1], {"a": 0.1}, float("nan")])
def test_a_points_value_that_no_field_holds_is_one_complaint(value: Any):
    assert points_mistake({"optim.lr": value}).count("points_to_try.0.optim.lr") == 1


@pytest.mark.parametrize("others", [{}, {"optim.name": "adam"}])
def test_a_point_says_why_a_conditional_value_is_searched(others: dict[str, Any]):
    sentence = points_mistake({"optim.weight_decay": 0.002, **others}, search=CONDITIONAL)
    assert "points_to_try.0: optim.weight_decay is only searched where optim.name is 'adamw' or 'lamb' and" in sentence


def test_a_point_need_not_say_what_is_fixed_nor_keep_the_order_of_the_file():
    point = {"optim.weight_decay": 0.002, "optim.name": "lamb"}
    assert make_space(search=CONDITIONAL, points_to_try=[point]).points_to_try == [point]


def test_a_point_may_leave_out_everything():
    assert make_space(points_to_try=[{}]).points_to_try == [{}]


def test_what_follows_from_a_point():
    space = make_space(search=CONDITIONAL)
    assert space.settled({}) == {"optim.decoupled": True}
    assert space.settled({"optim.weight_decay": 0.002, "optim.name": "adam"}) == {
        "optim.name": "adam", "optim.decoupled": True,
    }  # fmt: skip
    assert list(space.settled({"optim.weight_decay": 0.002, "optim.name": "lamb"})) == list(CONDITIONAL)
    assert space.settled({"optim.weight_decay": 7, "optim.name": "lamb", "seed": 1}) == {
        "optim.name": "lamb", "optim.decoupled": True,
    }  # fmt: skip


# Writing a space down and reading it again


@pytest.fixture
def everything() -> SearchSpace:
    return make_space(
        sampler="grid", objective={"metric": "ged"}, second_objective={"metric": "dice_mean", "goal": "maximize"},
        confirm={"top": 4, "repeats": 1}, limits={"gpu_memory": 10, "epoch_seconds": 2.5},
        final=[{"data": "npc", "epochs": 1, "base": {"data.crop": 8}}],
        search=CONDITIONAL | {
            "optim.lr": LR | {"grid": 4, "log": True}, "loss.w_es": {"kind": "float", "low": 0, "high": 2.0},
            "model.tau_size": {"kind": "int", "low": 1, "high": 9, "grid": 3},
            "flag": {"kind": "choice", "values": [True, False]},
            "mixed": {"kind": "choice", "values": [1.0, 2, "auto"]},
        },
        points_to_try=[{"optim.lr": 0.002, "flag": False}, {"loss.w_es": 1, "mixed": 1.0}, {}],
    )  # fmt: skip


def test_a_space_survives_being_written_as_values(everything: SearchSpace):
    again = SearchSpace.model_validate(everything.model_dump())
    assert again == everything
    assert again.model_dump_json() == everything.model_dump_json(), "true, 1 and 1.0 stay what they are"


def test_a_space_survives_being_written_as_json(everything: SearchSpace):
    text = everything.model_dump_json()
    assert SearchSpace.model_validate_json(text).model_dump_json() == text
    assert SearchSpace.model_validate(json.loads(text)).model_dump_json() == text


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_space_survives_it_too(name: str):
    space = find_space(name)
    assert SearchSpace.model_validate(space.model_dump()) == space
    assert SearchSpace.model_validate_json(space.model_dump_json()) == space


def test_a_space_that_was_written_before_these_keys_can_be_read():
    new = {"sampler", "second_objective", "points_to_try", "confirm", "limits"}
    values = make_space().model_dump(exclude=new)
    assert SearchSpace.model_validate(values) == make_space()
