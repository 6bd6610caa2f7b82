"""Points of a search space: a grid's, those at coordinates, those near a configuration from elsewhere."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from search_spaces import SpaceError, find_space, shipped
from search_spaces.points import admitted, from_unit, grid, nearest, unit_size
from search_spaces.space import SearchSpace
from tests.studies import make_space


def floats(low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"kind": "float", "low": low, "high": high, **more}


def ints(low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"kind": "int", "low": low, "high": high, **more}


def choice(*values: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values), **more}


def fixed(value: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "fixed", "value": value, **more}


def one(dimension: dict[str, Any]) -> SearchSpace:
    return make_space(search={"x": dimension})


@pytest.fixture
def conditional() -> SearchSpace:
    """A dimension on which two depend, one of them through the other; and a fixed one among them."""
    return make_space(search={
        "name": choice("adam", "adamw"),
        "decay": choice(0.1, 0.2, when={"name": "adamw"}),
        "mode": fixed("late", when={"name": "adamw"}),
        "start": ints(1, 2, when={"decay": 0.2, "mode": "late"}),
        "size": ints(4, 5),
    })  # fmt: skip


# The grid


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        (floats(1.0, 2.0), [1.0, 1.5, 2.0]),
        (floats(-1, 1, grid=5), [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (floats(0.001, 0.1, log=True), [0.001, 0.01, 0.1]),
        (floats(0.001, 1.0, log=True, grid=4), [0.001, 0.01, 0.1, 1.0]),
        (floats(0.3, 0.7, grid=2), [0.3, 0.7]),
        (floats(-1.7e308, 1.7e308), [-1.7e308, 0.0, 1.7e308]),
        (ints(2, 6), [2, 3, 4, 5, 6]),
        (ints(1, 5, log=True), [1, 2, 3, 4, 5]),
        (ints(2, 7), [2, 4, 7]),
        (ints(4, 12, grid=5), [4, 6, 8, 10, 12]),
        (ints(1, 100, log=True), [1, 10, 100]),
        (ints(1, 3, grid=2), [1, 3]),
        (ints(1, 3, grid=50), [1, 2, 3]),
        (ints(0, 2**60), [0, 2**59, 2**60]),
        (choice("a", 2, True), ["a", 2, True]),
        (fixed(0.5), [0.5]),
    ],
)
def test_the_values_that_a_grid_gives_a_dimension(dimension: dict[str, Any], values: list[Any]):
    found = [point["x"] for point in grid(one(dimension))]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(("low", "high"), [(0.003, 0.3), (0.0001, 0.005), (0.1, 0.7), (1e-7, 3e5)])
def test_the_ends_are_exact_and_the_rest_is_between(low: float, high: float, log: bool):
    values: list[Any] = [point["x"] for point in grid(one(floats(low, high, log=log, grid=9)))]
    assert (values[0], values[-1], len(values)) == (low, high, 9)
    assert values == sorted(set(values))
    gaps = [math.log(b / a) if log else b - a for a, b in pairwise(values)]
    assert gaps == pytest.approx([gaps[0]] * 8)


def test_a_grid_has_every_combination_the_last_dimension_changing_fastest():
    space = make_space(search={"a": choice("x", "y"), "b": fixed(1), "c": ints(1, 3)})
    assert grid(space) == [{"a": a, "b": 1, "c": c} for a in ("x", "y") for c in (1, 2, 3)]


def test_a_grid_has_a_conditional_dimension_only_where_it_is_active(conditional: SearchSpace):
    late = {"name": "adamw", "decay": 0.2, "mode": "late"}
    starts = [
        {"name": "adam"},
        {"name": "adamw", "decay": 0.1, "mode": "late"},
        late | {"start": 1},
        late | {"start": 2},
    ]
    points = grid(conditional)
    assert points == [start | {"size": size} for start in starts for size in (4, 5)]
    assert [list(point) for point in points] == [[n for n in conditional.search if n in point] for point in points]


def test_a_grid_that_would_never_be_trained_is_refused():
    with pytest.raises(SpaceError, match=r"^test\.toml: .* more than 100000 points; .*grid"):
        grid(make_space(search={"a": floats(0.0, 1.0, grid=1000), "b": floats(0.0, 1.0, grid=101)}))
    assert len(grid(make_space(search={"a": floats(0.0, 1.0, grid=1000), "b": floats(0.0, 1.0, grid=100)}))) == 100_000


@pytest.mark.timeout(20)
def test_a_grid_far_too_large_is_refused_at_once():
    search = {f"x{number}": floats(0.0, 1.0, grid=10**9) for number in range(30)}
    with pytest.raises(SpaceError, match="100000"):
        grid(make_space(search=search))


@pytest.mark.parametrize("name", shipped())
def test_the_grid_of_a_shipped_space_has_no_point_twice(name: str):
    points = grid(find_space(name))
    assert len({tuple(point.items()) for point in points}) == len(points)


# Coordinates


EVENLY = [(step + 0.5) / 1000 for step in range(1000)]


def spread(dimension: dict[str, Any]) -> Counter:
    return Counter(from_unit(one(dimension), [place])["x"] for place in EVENLY)


@pytest.mark.parametrize(
    ("dimension", "place", "value"),
    [
        (floats(1.0, 3.0), 0.0, 1.0),
        (floats(1.0, 3.0), 0.25, 1.5),
        (floats(0.001, 0.1, log=True), 0.5, 0.01),
        (floats(0.001, 0.1, log=True), 0.0, 0.001),
        (ints(4, 7), 0.0, 4),
        (ints(4, 7), 0.2499, 4),
        (ints(4, 7), 0.25, 5),
        (ints(4, 7), 0.9999, 7),
        (ints(1, 100, log=True), 0.0, 1),
        (ints(1, 100, log=True), 0.9999, 100),
        (choice("a", "b", "c"), 0.33, "a"),
        (choice("a", "b", "c"), 0.34, "b"),
        (choice("a", "b", "c"), 0.9999, "c"),
    ],
)
def test_the_value_at_a_coordinate(dimension: dict[str, Any], place: float, value: Any):
    found = from_unit(one(dimension), [place])["x"]
    assert found == pytest.approx(value)
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "dimension",
    [floats(0.1, 0.7), floats(0.0001, 0.005, log=True), ints(-3, 3), ints(1, 9, log=True), choice(8, "a", False)],
)
def test_no_coordinate_leads_out_of_the_space(dimension: dict[str, Any]):
    space = one(dimension)
    for place in [0.0, *EVENLY, math.nextafter(1.0, 0.0), 1.0]:  # 1.0: what rounding to single precision makes of it
        assert space.search["x"].admits(from_unit(space, [place])["x"])


def test_coordinates_spread_evenly_give_whole_numbers_and_choices_equally_often():
    assert spread(ints(1, 10)) == dict.fromkeys(range(1, 11), 100)
    assert spread(choice("a", "b", 3, 4.5)) == dict.fromkeys(["a", "b", 3, 4.5], 250)


def test_whole_numbers_on_a_logarithmic_scale_come_as_often_as_their_share_of_it():
    counts, whole = spread(ints(1, 20, log=True)), math.log(20.5 / 0.5)
    assert set(counts) == set(range(1, 21))
    for value, count in counts.items():
        assert count == pytest.approx(1000 * math.log((value + 0.5) / (value - 0.5)) / whole, abs=1.5)


def test_each_dimension_has_its_own_coordinate_whether_active_or_not(conditional: SearchSpace):
    assert unit_size(conditional) == 4, "the fixed one needs none"
    assert from_unit(conditional, [0.0, 0.9, 0.9, 0.9]) == {"name": "adam", "size": 5}
    assert from_unit(conditional, [0.9, 0.0, 0.9, 0.0]) == {"name": "adamw", "decay": 0.1, "mode": "late", "size": 4}
    point = from_unit(conditional, [0.9, 0.9, 0.0, 0.9])
    assert list(point.items()) == [("name", "adamw"), ("decay", 0.2), ("mode", "late"), ("start", 1), ("size", 5)]


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_wrong_number_of_coordinates_is_refused(conditional: SearchSpace, count: int):
    with pytest.raises(ValueError, match="zip"):
        from_unit(conditional, [0.5] * count)


@pytest.mark.parametrize("name", shipped())
def test_a_point_of_a_shipped_space_is_held_by_it(name: str):
    space = find_space(name)
    point = from_unit(space, [0.7] * unit_size(space))
    assert list(point) == list(space.search)
    assert admitted(space, point) == point
    assert nearest(space, point) == (point, [])


# The nearest point


@pytest.mark.parametrize(
    ("dimension", "value", "near"),
    [
        (floats(0.001, 0.01), 0.0001, 0.001),
        (floats(0.001, 0.01), 5, 0.01),
        (floats(0.001, 0.01, log=True), -1.0, 0.001),
        (ints(4, 12), 3, 4),
        (ints(4, 12), 99.5, 12),
        (ints(4, 12), 7.6, 8),
        (choice(4, 8, 12), 32, 12),
        (choice(4, 8, 12), 5, 4),
        (choice(4, "auto", 12), 7.9, 4),
        (choice(0.1, 1.0), 0.9, 1.0),
        (fixed(4), 9, 4),
        (fixed("a"), "b", "a"),
        (fixed(1), True, 1),
    ],
)
def test_a_value_from_elsewhere_becomes_the_nearest_and_the_note_says_so(
    dimension: dict[str, Any], value: Any, near: Any
):
    point, notes = nearest(one(dimension), {"x": value})
    assert point == {"x": near}
    assert type(point["x"]) is type(near)
    assert notes == [f"x {value!r} -> {near!r}"]


@pytest.mark.parametrize(
    ("dimension", "value", "kept"),
    [
        (floats(0.0, 1.0), 0.25, 0.25),
        (floats(0.0, 2.0), 1, 1.0),
        (ints(4, 12), 5, 5),
        (ints(4, 12), 5.0, 5),
        (choice(4, "auto", True), "auto", "auto"),
        (choice(4, "auto", True), True, True),
        (choice(4.0, 8.0), 8, 8.0),
        (fixed("a"), "a", "a"),
    ],
)
def test_a_value_that_the_space_holds_is_kept_without_a_note(dimension: dict[str, Any], value: Any, kept: Any):
    point, notes = nearest(one(dimension), {"x": value})
    assert (point, notes) == ({"x": kept}, [])
    assert type(point["x"]) is type(kept)


@pytest.mark.parametrize(
    ("dimension", "value", "allowed"),
    [
        (floats(0.5, 1.0), None, "the numbers 0.5 to 1.0"),
        (floats(0.5, 1.0), "fast", "the numbers 0.5 to 1.0"),
        (floats(0.5, 1.0), True, "the numbers 0.5 to 1.0"),
        (floats(0.5, 1.0), math.nan, "the numbers 0.5 to 1.0"),
        (ints(4, 12), math.inf, "the whole numbers 4 to 12"),
        (choice("adam", "adamw"), "sgd", "the values 'adam', 'adamw'"),
        (choice("adam", "adamw"), 3, "the values 'adam', 'adamw'"),
        (choice(True, False), 1, "the values True, False"),
        (choice(4, 8), None, "the values 4, 8"),
        (choice(4, 8), True, "the values 4, 8"),
    ],
)
def test_a_value_that_is_like_none_of_the_space_is_left_out_and_the_note_says_so(
    dimension: dict[str, Any], value: Any, allowed: str
):
    assert nearest(one(dimension), {"x": value}) == ({}, [f"x {value!r} left out: outside of {allowed}"])


def test_what_a_configuration_lacks_or_the_space_does_not_know_is_passed_over(conditional: SearchSpace):
    assert nearest(conditional, {"size": 4, "epochs": 60}) == ({"size": 4}, [])


def test_a_fixed_value_belongs_to_the_nearest_point_even_if_the_configuration_lacks_it(conditional: SearchSpace):
    assert nearest(conditional, {"name": "adamw"}) == ({"name": "adamw", "mode": "late"}, [])


def test_inactive_dimensions_are_left_out_of_the_nearest_point(conditional: SearchSpace):
    foreign = {"size": 9, "start": 1, "mode": "early", "decay": 0.19, "name": "adam"}
    assert nearest(conditional, foreign) == ({"name": "adam", "size": 5}, ["size 9 -> 5"])


def test_a_condition_is_judged_by_the_nearest_value(conditional: SearchSpace):
    foreign = {"size": 4, "start": 1, "mode": "early", "decay": 0.19, "name": "adamw"}
    point, notes = nearest(conditional, foreign)
    assert list(point.items()) == [("name", "adamw"), ("decay", 0.2), ("mode", "late"), ("start", 1), ("size", 4)]
    assert notes == ["decay 0.19 -> 0.2", "mode 'early' -> 'late'"]
    assert admitted(conditional, point) == point


# The part that a space holds


@pytest.mark.parametrize(
    ("values", "held"),
    [
        ({}, {}),
        ({"size": 4, "epochs": 60}, {"size": 4}),
        ({"size": 6}, {}),
        ({"size": True}, {}),
        ({"size": None}, {}),
        ({"name": "adam", "decay": 0.1}, {"name": "adam"}),
        ({"decay": 0.1}, {}),
        ({"start": 1, "decay": 0.2, "name": "adamw"}, {"name": "adamw", "decay": 0.2, "start": 1}),
        ({"start": 1, "decay": 0.1, "name": "adamw"}, {"name": "adamw", "decay": 0.1}),
        ({"start": 1, "decay": 0.3, "name": "adamw"}, {"name": "adamw"}),
        ({"mode": "early", "name": "adamw"}, {"name": "adamw"}),
        ({"mode": "late", "name": "adamw"}, {"name": "adamw", "mode": "late"}),
        ({"mode": "late"}, {}),
    ],
)
def test_a_space_holds_the_part_that_is_known_admitted_and_active(
    conditional: SearchSpace, values: dict[str, Any], held: dict[str, Any]
):
    found = admitted(conditional, values)
    assert list(found.items()) == list(held.items())


def test_a_space_can_be_told_to_try_what_it_holds_or_what_is_nearest(conditional: SearchSpace):
    foreign = {"size": 9, "start": 1, "decay": 0.2, "name": "adamw", "mode": "late"}
    points = [admitted(conditional, foreign), nearest(conditional, foreign)[0], *grid(conditional)]
    again = SearchSpace.model_validate(conditional.model_dump() | {"points_to_try": points})
    assert again.points_to_try == points
