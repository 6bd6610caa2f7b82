"""What a search may try: names of fields and the values they may take. Data, no framework; read from TOML.

This module does not know which fields exist: whoever runs the search checks that (`orchestrator.study`).
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

_VALUE_KINDS = ("bool", "int", "float", "str")
Value = bool | int | float | str
"""What a field may hold in a TOML file."""


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

    def probes(self) -> tuple[Value, ...]:
        """Values to check a field with: the ends, and one between that is no whole number."""
        return (self.low, self.low + 0.382 * (self.high - self.low), self.high)

    def admits(self, value: Value) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    @model_validator(mode="after")
    def _ordered(self):
        return _check_range(self)


class Int(_Dimension):
    kind: Literal["int"]
    low: int
    high: int
    log: bool = False

    def probes(self) -> tuple[Value, ...]:
        return (self.low, self.high)

    def admits(self, value: Value) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high

    @model_validator(mode="after")
    def _ordered(self):
        return _check_range(self)


class Choice(_Dimension):
    kind: Literal["choice"]
    values: list[Value] = Field(min_length=2)

    def probes(self) -> tuple[Value, ...]:
        return tuple(self.values)

    def admits(self, value: Value) -> bool:
        return value in self.values

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
        return value == self.value


Dimension = Annotated[Float | Int | Choice | Fixed, Field(discriminator="kind")]


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
    scheduler: Scheduler = Scheduler()
    budget: Budget
    recipe: str = "modern"
    """The named set of values that the trials start from (`proseg.recipes`)."""
    base: dict[str, Value] = {}
    """Fields of the configuration that differ from the recipe in every trial."""
    search: dict[str, Dimension] = Field(min_length=1)
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

    def active(self, name: str, chosen: dict[str, Value]) -> bool:
        """Is this dimension searched where the dimensions before it have these values?"""
        conditions = self.search[name].when
        return all(
            other in chosen and chosen[other] in (allowed if isinstance(allowed, list) else [allowed])
            for other, allowed in conditions.items()
        )


def read_space(path: Path) -> SearchSpace:
    """Read a search space.

    Raises:
        SpaceError: one sentence with the file, the key at fault and what is allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpaceError(f"search space {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(f"search space {path} cannot be read: {error}") from None
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
    try:
        return SearchSpace.model_validate({**values, "name": name, "file": file})
    except ValidationError as error:
        faults = dict.fromkeys(_explain(fault) for fault in error.errors())
        raise SpaceError(f"{file}: {'; '.join(faults)}") from None


def _check_range(dimension):
    if not dimension.low < dimension.high:
        raise ValueError(f"low must be smaller than high, but low = {dimension.low} and high = {dimension.high}")
    if dimension.log and dimension.low <= 0:
        raise ValueError(f"low must be above 0 on a logarithmic scale, but low = {dimension.low}")
    return dimension


def _explain(fault: Any) -> str:
    # Pydantic puts the chosen kind of a dimension into the path; the user did not write it there.
    path = [str(part) for part in fault["loc"]]
    if len(path) > 2 and path[0] == "search" and path[2] in ("float", "int", "choice", "fixed"):
        del path[2]
    if len(path) > 1 and path[-1] in _VALUE_KINDS and "base" in path:  # each kind of the union complains for itself
        return f"{'.'.join(path[:-1])}: must be a boolean, a number or a string"
    key, message = ".".join(path), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed here: {_allowed(path)}"
    if fault["type"] == "missing":
        return f"key {key!r} is missing"
    if fault["type"].startswith("union_tag"):
        return f"{key}: kind must be one of float, int, choice, fixed"
    shown = "" if isinstance(fault["input"], dict) else f" (it is {fault['input']!r})"
    return f"{key}: {message}{shown}" if key else message


def _allowed(path: list[str]) -> str:
    parts: dict[str, list[type[BaseModel]]] = {
        "search": [Float, Int, Choice, Fixed], "objective": [Objective], "scheduler": [Scheduler],
        "budget": [Budget], "final": [FinalStage],
    }  # fmt: skip
    models = parts.get(path[0], [SearchSpace]) if len(path) > 1 else [SearchSpace]
    names = dict.fromkeys(name for model in models for name in model.model_fields if name not in ("name", "file"))
    return ", ".join(names)
