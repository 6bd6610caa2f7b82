"""Points of a search space: all of a grid, one from numbers in [0, 1), the nearest to a configuration from elsewhere.

A point holds a value for each dimension that is active, by name and in the order of the file; a part of it, for some.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import TypeGuard

from search_spaces.space import Choice, Dimension, Fixed, Float, Int, SearchSpace, SpaceError, Value, among

MOST_POINTS = 100_000
"""A larger grid is a mistake: it would never be trained."""
MOST_COUNTED = 10_000
"""No search comes to the end of a larger space."""


def grid(space: SearchSpace) -> list[dict[str, Value]]:
    """Every combination once, the dimensions of the file's end changing fastest.

    Raises:
        SpaceError: there are more than `MOST_POINTS`.
    """
    points = _combined(space, {name: _grid_values(dimension) for name, dimension in space.search.items()}, MOST_POINTS)
    if points is None:
        raise SpaceError(
            f"{space.file}: the grid of search has more than {MOST_POINTS} points; give its dimensions a smaller "
            "grid or fewer values, or choose another sampler"
        )
    return points


def everything(space: SearchSpace) -> list[dict[str, Value]] | None:
    """All points of a space, in the order of `grid`; None where they are more than `MOST_COUNTED` or without end."""
    values: dict[str, Iterable[Value]] = {}
    for name, dimension in space.search.items():
        if isinstance(dimension, Float):
            return None
        whole = isinstance(dimension, Int)
        values[name] = range(dimension.low, dimension.high + 1) if whole else _grid_values(dimension)
    return _combined(space, values, MOST_COUNTED)


def is_whole(space: SearchSpace, point: Mapping[str, Value]) -> bool:
    """Does it leave nothing open?"""
    known = space.settled(point)
    return all(name in known for name in space.search if space.active(name, known))


def unit_size(space: SearchSpace) -> int:
    """How many coordinates `from_unit` takes."""
    return sum(not isinstance(dimension, Fixed) for dimension in space.search.values())


def from_unit(space: SearchSpace, coordinates: Sequence[float]) -> dict[str, Value]:
    """The point at these coordinates in [0, 1): one for each dimension that is not fixed, whether active or not.

    Coordinates spread evenly give values spread evenly: over the range, over its logarithm, over a choice's values.
    """
    searched = [name for name, dimension in space.search.items() if not isinstance(dimension, Fixed)]
    place = dict(zip(searched, coordinates, strict=True))
    point: dict[str, Value] = {}
    for name, dimension in space.search.items():
        if space.active(name, point):
            point[name] = dimension.value if isinstance(dimension, Fixed) else _at(dimension, place[name])
    return point


def nearest(space: SearchSpace, values: Mapping[str, Value | None]) -> tuple[dict[str, Value], list[str]]:
    """The point nearest to a configuration from elsewhere, and what had to be changed, in words.

    What the configuration lacks, and what is like no value of its dimension, is left out of the point.
    """
    point: dict[str, Value] = {}
    notes: list[str] = []
    for name, dimension in space.search.items():
        if not space.active(name, point):
            continue
        value = values.get(name)
        near = _nearest(dimension, value)
        if near is not None:
            point[name] = near
        if near is None and name in values:
            notes.append(f"{name} {value!r} left out: outside of {dimension.allowed()}")
        elif near is not None and name in values and not among(value, near):
            notes.append(f"{name} {value!r} -> {near!r}")
    return point, notes


def admitted(space: SearchSpace, values: Mapping[str, Value]) -> dict[str, Value]:
    """The part of a configuration that the space holds as it is: known names, admitted values, active dimensions."""
    known = space.settled(values)
    return {name: values[name] for name in known if name in values and space.search[name].admits(values[name])}


def _combined(space: SearchSpace, values: Mapping[str, Iterable[Value]], most: int) -> list[dict[str, Value]] | None:
    points: list[dict[str, Value]] = [{}]
    for name in space.search:
        # A part of a point never gets fewer by going on: whether there are too many is known before all are made.
        points = list(islice(_longer(space, points, name, list(islice(values[name], most + 1))), most + 1))
        if len(points) > most:
            return None
    return points


def _longer(
    space: SearchSpace, points: list[dict[str, Value]], name: str, values: list[Value]
) -> Iterator[dict[str, Value]]:
    for point in points:
        if space.active(name, point):
            yield from (point | {name: value} for value in values)
        else:
            yield point


def _grid_values(dimension: Dimension) -> Iterable[Value]:
    match dimension:
        case Fixed():
            return [dimension.value]
        case Choice():
            return dimension.values
        case Int() if dimension.grid is None and dimension.high - dimension.low < 5:
            return range(dimension.low, dimension.high + 1)
        case Int():
            return (value for value, _ in groupby(map(round, _spaced(dimension))))
        case Float():
            return (value for value, _ in groupby(_spaced(dimension)))


def _spaced(dimension: Float | Int) -> Iterator[float]:
    """The ends exactly, and what stands between them; equal ones follow each other."""
    count = dimension.grid or 3
    yield dimension.low
    for step in range(1, count - 1):
        yield _clipped(dimension, _between(dimension.low, dimension.high, dimension.log, step / (count - 1)))
    yield dimension.high


def _at(dimension: Float | Int | Choice, place: float) -> Value:
    match dimension:
        case Float():
            return _clipped(dimension, _between(dimension.low, dimension.high, dimension.log, place))
        case Int(log=True):  # half a number more at both ends, that they are as likely as their neighbours
            return round(_clipped(dimension, _between(dimension.low - 0.5, dimension.high + 0.5, True, place)))
        case Int():
            return _clipped(dimension, dimension.low + int(place * (dimension.high - dimension.low + 1)))
        case Choice():
            return dimension.values[min(int(place * len(dimension.values)), len(dimension.values) - 1)]


def _between(low: float, high: float, log: bool, place: float) -> float:
    if log:  # to the base of ten: what stands between decades is then a decade, to the last digit
        return 10.0 ** _between(math.log10(low), math.log10(high), False, place)
    return (1 - place) * low + place * high


def _nearest(dimension: Dimension, value: Value | None) -> Value | None:
    match dimension:
        case Fixed():
            return dimension.value
        case Float() if _is_number(value):
            return float(_clipped(dimension, value))
        case Int() if _is_number(value):
            return round(_clipped(dimension, value))
        case Choice():
            same = [one for one in dimension.values if among(value, one)]
            numbers = [one for one in dimension.values if _is_number(one)]
            if same or not numbers or not _is_number(value):
                return same[0] if same else None
            return min(numbers, key=lambda one: abs(one - value))
    return None


def _clipped(dimension: Float | Int, value: float) -> float:
    return min(max(value, dimension.low), dimension.high)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
