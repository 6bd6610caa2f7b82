"""Early stopping by successive halving (ASHA, Li et al., MLSys 2020), with the reason of every decision.

At rungs of grace, grace * reduction, grace * reduction^2, ... epochs a trial goes on if it is among the best
1/reduction of those that have come as far, the first in any case; nobody waits for anybody. With two objectives the
order is that of non-dominated fronts. Ray's own ASHA does the same for one objective and does not say why.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Decision:
    """Why a trial was stopped at a rung."""

    rung: int
    """Epochs."""
    value: tuple[float, ...]
    """Its own, one an objective."""
    cutoff: float | None
    """The value it had to reach; None with two objectives, where the order is by fronts."""
    rank: int
    """1 is the best; with two objectives one more than the trials in better fronts."""
    of: int
    """Trials at this rung so far."""
    kept: int
    """So many go on."""

    def sentence(self, metrics: Sequence[str]) -> str:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in zip(metrics, self.value, strict=True))
        bound = f", cut-off {self.cutoff:.4f}" if self.cutoff is not None else ", by non-dominated fronts"
        goes_on = "only the best goes on" if self.kept == 1 else f"the best {self.kept} go on"
        return f"ASHA: rank {self.rank} of {self.of} at epoch {self.rung} ({shown}{bound}), {goes_on}"

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "value": list(self.value)}


def rungs_of(*, grace: int, reduction: int, epochs: int) -> list[int]:
    """The epochs after which it is decided who goes on."""
    count = math.floor(math.log(epochs / grace, reduction) + 1e-9) + 1 if grace < epochs else 0
    return [rung for rung in (grace * reduction**k for k in range(count)) if rung < epochs]


class Rungs:
    """The values of all trials at every rung."""

    def __init__(self, *, grace: int, reduction: int, epochs: int, maximize: Sequence[bool]):
        rungs = rungs_of(grace=grace, reduction=reduction, epochs=epochs)
        self._reduction, self._maximize = reduction, list(maximize)
        self._values: dict[int, dict[int, tuple[float, ...]]] = {rung: {} for rung in rungs}

    def record(self, number: int, epoch: int, values: Sequence[float]) -> None:
        """Note what a trial had reached after so many epochs, without a decision (it was made before a crash)."""
        if epoch in self._values:
            self._values[epoch][number] = tuple(values)

    def report(self, number: int, epoch: int, values: Sequence[float]) -> Decision | None:
        """Note it and decide: None where the trial goes on."""
        if epoch not in self._values:
            return None
        self.record(number, epoch, values)
        here = self._values[epoch]
        kept = max(1, len(here) // self._reduction)
        rank = self._rank(number, here)
        if rank <= kept:
            return None
        return Decision(epoch, tuple(values), self._cutoff(here, kept), rank, len(here), kept)

    def _rank(self, number: int, here: dict[int, tuple[float, ...]]) -> int:
        if len(self._maximize) == 1:
            costs = {n: _as_costs(values, self._maximize) for n, values in here.items()}
            return 1 + sum(other < costs[number] for other in costs.values())
        layers = fronts(here, self._maximize)
        better = 0
        for layer in layers:
            if number in layer:
                return better + 1
            better += len(layer)
        raise AssertionError("a trial is in one of the fronts")

    def _cutoff(self, here: dict[int, tuple[float, ...]], kept: int) -> float | None:
        if len(self._maximize) > 1:
            return None
        best = sorted(here.values(), key=lambda values: _as_costs(values, self._maximize))
        return best[kept - 1][0]


def fronts(values: dict[int, tuple[float, ...]], maximize: Sequence[bool]) -> list[list[int]]:
    """Non-dominated fronts, the best first. A value that is not a number is worse than any."""
    left = {number: _as_costs(entry, maximize) for number, entry in values.items()}
    layers = []
    while left:
        layer = [n for n, mine in left.items() if not any(_dominates(other, mine) for other in left.values())]
        layers.append(layer)
        left = {number: costs for number, costs in left.items() if number not in layer}
    return layers


def _as_costs(values: Sequence[float], maximize: Sequence[bool]) -> tuple[float, ...]:
    signed = (-value if largest else value for value, largest in zip(values, maximize, strict=True))
    return tuple(math.inf if math.isnan(value) else value for value in signed)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
