"""What a search may try: names of fields and the values they may take. Data, no framework; read from TOML.

This module does not know which fields exist: whoever runs the search checks that (`orchestrator.study`).
"""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

_VALUE_KINDS = ("bool", "int", "float", "str")
Value = bool | int | float | str
"""What a field may hold in a TOML file."""
Sampler = Literal["tpe", "gp", "random", "qmc", "grid"]


class SpaceError(Exception):
    """A search space is not there, or its file is wrong; the message names the file and the key."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Dimension(_Part):
    when: dict[str, Value | list[Value]] = {}
    """Only searched where these other dimensions have one of these values; the base's value is used elsewhere."""


class Float(_Dimension):
    kind: Literal["float"]
    low: float
    high: float
    log: bool = False
    grid: int | None = Field(default=None, ge=2)
    """For sampler "grid": so many values, evenly spaced over the range (by the logarithm if `log`), ends included;
    3 if left out."""

    def probes(self) -> tuple[Value, ...]:
        """Values to check a field with: the ends, and one between that is no whole number."""
        return (self.low, self.low + 0.382 * (self.high - self.low), self.high)

    def admits(self, value: Value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def allowed(self) -> str:
        """What is admitted, in words."""
        return f"the numbers {self.low} to {self.high}"

    @model_validator(mode="after")
    def _ordered(self):
        return _check_range(self)


class Int(_Dimension):
    kind: Literal["int"]
    low: int
    high: int
    log: bool = False
    grid: int | None = Field(default=None, ge=2)
    """As of a float, rounded; a value that comes twice counts once. If left out: all whole numbers if they are at
    most 5, else 3 of them."""

    def probes(self) -> tuple[Value, ...]:
        return (self.low, self.high)

    def admits(self, value: Value) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def allowed(self) -> str:
        return f"the whole numbers {self.low} to {self.high}"

    @model_validator(mode="after")
    def _ordered(self):
        return _check_range(self)


class Choice(_Dimension):
    kind: Literal["choice"]
    values: list[Value] = Field(min_length=2)

    def probes(self) -> tuple[Value, ...]:
        return tuple(self.values)

    def admits(self, value: Value) -> bool:
        return among(value, self.values)

    def allowed(self) -> str:
        return f"the values {', '.join(map(repr, self.values))}"

    @model_validator(mode="after")
    def _different(self):
        if len(set(self.values)) < len(self.values):
            raise ValueError("a value stands twice among values")
        return self


class Fixed(_Dimension):
    kind: Literal["fixed"]
    value: Value

    def probes(self) -> tuple[Value, ...]:
        return (self.value,)

    def admits(self, value: Value) -> bool:
        return among(value, self.value)

    def allowed(self) -> str:
        return f"the value {self.value!r}"


Dimension = Annotated[Float | Int | Choice | Fixed, Field(discriminator="kind")]
_KINDS: dict[str, type[BaseModel]] = {"float": Float, "int": Int, "choice": Choice, "fixed": Fixed}


class Objective(_Part):
    metric: str = "ged"
    """Any metric of the validation."""
    goal: Literal["minimize", "maximize"] | None = None
    """Follows from the metric: Dice is maximised, distances are minimised."""

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return "maximize" if self.metric.startswith("dice") else "minimize"

    @model_validator(mode="after")
    def _not_the_worst(self):
        if self.goal not in (None, self.direction):
            raise ValueError(f"goal of {self.metric} must be {self.direction}, or be left out")
        return self


class Scheduler(_Part):
    kind: Literal["asha", "none"] = "asha"
    grace_epochs: PositiveInt = 2
    """No trial is stopped before it has trained so long."""
    reduction: int = Field(default=2, ge=2)
    """At each rung the best 1/reduction go on."""


class Budget(_Part):
    trials: PositiveInt
    epochs: PositiveInt
    """Epochs of a trial that is not stopped early."""


class Confirm(_Part):
    """Before the final stage the best trials are trained anew and compared: the best of many is partly the luckiest."""

    top: int = Field(default=3, ge=0)
    """So many of the best trials are compared; 0 or 1 turns it off."""
    repeats: PositiveInt = 2
    """Trainings of each, with other seeds and other patients."""


class Limits(_Part):
    """What the model that is looked for may need. A trial over a limit is no winner, and the search learns to stay
    away from it."""

    gpu_memory: float | None = Field(default=None, gt=0)
    """GiB of GPU memory of one rank while it trains; not looked at on a CPU."""
    epoch_seconds: float | None = Field(default=None, gt=0)
    """Median seconds of an epoch with its validation, on the machine of the search."""


class FinalStage(_Part):
    """A data set on which the best configuration is trained anew and evaluated once on held-out patients."""

    data: str
    epochs: PositiveInt
    base: dict[str, Value] = {}
    """Fields that must differ on this data set."""


class SearchSpace(_Part):
    name: str
    file: str
    about: str = ""
    """One sentence for lists and pages."""
    data: str
    fold: int = Field(default=0, ge=0)
    """The fold whose training part is searched on; its test part is not touched by the search."""
    objective: Objective = Objective()
    second_objective: Objective | None = None
    """If given, the search keeps the trials that no other one beats in both metrics: a Pareto front."""
    sampler: Sampler = "tpe"
    """tpe: learns from the trials, also from those stopped early; gp: a Gaussian process, seconds a proposal, for short
    searches of numbers; random; qmc: scrambled Sobol points, spread evenly; grid: every combination."""
    scheduler: Scheduler = Scheduler()
    budget: Budget
    recipe: str = "modern"
    """The named set of values that the trials start from (`proseg.recipes`)."""
    base: dict[str, Value] = {}
    """Fields of the configuration that differ from the recipe in every trial."""
    search: dict[str, Dimension] = Field(min_length=1)
    points_to_try: list[dict[str, Value]] = []
    """Tried before anything is sampled; what a point leaves out is sampled."""
    confirm: Confirm = Confirm()
    limits: Limits = Limits()
    final: list[FinalStage] = []

    @model_validator(mode="after")
    def _conditions_point_back(self):
        seen: set[str] = set()
        for name, dimension in self.search.items():
            for other, allowed in dimension.when.items():
                if other not in seen:
                    raise ValueError(
                        f"search.{name}.when names {other}, which must be a dimension that stands before it"
                    )
                for value in allowed if isinstance(allowed, list) else [allowed]:
                    if not self.search[other].admits(value):
                        raise ValueError(f"search.{name}.when: {other} can never be {value!r}")
            seen.add(name)
        return self

    @model_validator(mode="after")
    def _objectives_differ(self):
        if self.second_objective and self.second_objective.metric == self.objective.metric:
            raise ValueError(
                f"second_objective.metric: {self.objective.metric} is objective.metric already; name another metric"
            )
        return self

    @model_validator(mode="after")
    def _points_can_be_tried(self):
        for number, point in enumerate(self.points_to_try):
            if fault := self._fault_of(point):
                raise ValueError(f"points_to_try.{number}: {fault}")
        return self

    def _fault_of(self, point: dict[str, Value]) -> str | None:
        for name, value in point.items():
            if name not in self.search:
                return f"{name} is no dimension of search; use {', '.join(self.search)}"
            if not self.search[name].admits(value):
                return f"{name} = {value!r} is outside of {self.search[name].allowed()}"
        settled = self.settled(point)
        for name in point:
            if name not in settled:
                return f"{name} is only searched where {_in_words(self.search[name].when)}; the point must say so"
        return None

    def active(self, name: str, chosen: Mapping[str, Value]) -> bool:
        """Is this dimension searched where the dimensions before it have these values?"""
        conditions = self.search[name].when
        return all(other in chosen and among(chosen[other], allowed) for other, allowed in conditions.items())

    def settled(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """What is known where a search holds to this point: those of its values that are admitted and active, and the
        fixed ones; in the order of the file."""
        known: dict[str, Value] = {}
        for name, dimension in self.search.items():
            if not self.active(name, known):
                continue
            if isinstance(dimension, Fixed):
                known[name] = dimension.value
            elif name in point and dimension.admits(point[name]):
                known[name] = point[name]
        return known


def among(value: object, allowed: Value | list[Value]) -> bool:
    """Is it this value, or one of these? To Python true is 1, to a configuration it is not."""
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool)
        for one in (allowed if isinstance(allowed, list) else [allowed])
    )


def read_space(path: Path) -> SearchSpace:
    """Read a search space.

    Raises:
        SpaceError: one sentence with the file, the key at fault and what is allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark before all else
    except FileNotFoundError:
        raise SpaceError(f"search space {path} does not exist") from None
    except OSError as error:
        raise SpaceError(f"search space {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpaceError(f"search space {path} is not text in UTF-8; save it as that") from None
    except tomllib.TOMLDecodeError as error:
        raise SpaceError(f"{path} is not valid TOML: {error}") from None
    return parse_space(values, file=str(path), name=path.stem)


def parse_space(values: dict[str, Any], *, file: str, name: str) -> SearchSpace:
    """A search space from its values; `file` is named in errors.

    Raises:
        SpaceError: as `read_space`.
    """
    for reserved in ("name", "file"):
        if reserved in values:
            raise SpaceError(f"{file}: unknown key {reserved!r}; a space is named after its file")
    named = {"base": _by_path(values["base"])} if "base" in values else {}
    named |= {"search": _by_path(values["search"], _is_dimension)} if "search" in values else {}
    try:
        return SearchSpace.model_validate({**values, **named, "name": name, "file": file})
    except ValidationError as error:
        faults = dict.fromkeys(_explain(fault) for fault in error.errors())
        raise SpaceError(f"{file}: {'; '.join(faults)}") from None


def _by_path(table: object, leaf: Callable[[dict[str, Any]], bool] = lambda table: False) -> Any:
    """Fields under their full path: to TOML `optim.lr` without quotes is a table `lr` within a table `optim`."""
    if not isinstance(table, dict):
        return table  # a mistake, which is told later
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict) and not leaf(value):
            found |= {f"{name}.{part}": one for part, one in _by_path(value, leaf).items()}
        else:
            found[name] = value
    return found


def _is_dimension(table: dict[str, Any]) -> bool:
    return "kind" in table or not all(isinstance(value, dict) for value in table.values())


def _check_range(dimension):
    if not dimension.low < dimension.high:
        raise ValueError(f"low must be smaller than high, but low = {dimension.low} and high = {dimension.high}")
    if dimension.log and dimension.low <= 0:
        raise ValueError(f"low must be above 0 on a logarithmic scale, but low = {dimension.low}")
    return dimension


def _in_words(when: Mapping[str, Value | list[Value]]) -> str:
    conditions = ((other, allowed if isinstance(allowed, list) else [allowed]) for other, allowed in when.items())
    return " and ".join(f"{other} is {' or '.join(map(repr, allowed))}" for other, allowed in conditions)


def _explain(fault: Any) -> str:
    # Pydantic puts the chosen kind of a dimension into the path; the user did not write it there.
    path = [str(part) for part in fault["loc"]]
    kind = path.pop(2) if len(path) > 2 and path[0] == "search" and path[2] in _KINDS else ""
    if len(path) > 1 and path[-1] in _VALUE_KINDS and {"base", "points_to_try"} & set(path):
        # Each kind of the union complains for itself.
        hint = "; a name with a dot stands in quotes" if isinstance(fault["input"], dict) else ""
        return f"{'.'.join(path[:-1])}: must be a boolean, a number or a string{hint}"
    key, message = ".".join(path), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed here: {_allowed(path, kind)}"
    if fault["type"] == "missing":
        return f"key {key!r} is missing"
    if fault["type"].startswith("union_tag"):
        return f"{key}: kind must be one of {', '.join(_KINDS)}"
    if fault["type"] == "list_type" and path in (["points_to_try"], ["final"]):
        return f"{key}: must be a list of tables; write [[{key}]]"
    shown = "" if isinstance(fault["input"], dict) else f" (it is {fault['input']!r})"
    if fault["type"] in ("model_type", "dict_type"):
        message = "must be a table"
    return f"{key}: {message}{shown}" if key else message


def _allowed(path: list[str], kind: str) -> str:
    parts: dict[str, type[BaseModel]] = {
        "search": _KINDS.get(kind, SearchSpace), "objective": Objective, "second_objective": Objective,
        "scheduler": Scheduler, "budget": Budget, "confirm": Confirm, "limits": Limits, "final": FinalStage,
    }  # fmt: skip
    model = parts.get(path[0], SearchSpace) if len(path) > 1 else SearchSpace
    return ", ".join(name for name in model.model_fields if name not in ("name", "file"))
