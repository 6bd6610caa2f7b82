"""How many trials run at the same time, and what each of them holds."""

import math
import os
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from orchestrator.placement import Card, capacity
from proseg.errors import ProSegError


class ResourceError(ProSegError):
    """The machine is smaller than what a trial asks for."""


class Node(BaseModel):
    """A machine: what this study may use of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int
    gpus: int


class Resources(BaseModel):
    """What the study uses, and how it is shared out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: tuple[Node, ...]
    workers: int
    """DDP ranks of one trial."""
    gpu_share: float
    """Share of one GPU that each rank holds; 0 without GPUs."""
    concurrent: int
    """Trials at the same time."""
    threads_per_rank: int

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def share(self) -> float:
        """Share of a card (`orchestrator.placement`) that each rank holds."""
        return self.gpu_share or 1.0

    @property
    def cpus_per_trial(self) -> int:
        return self.workers * self.threads_per_rank

    @property
    def gpus_per_trial(self) -> float:
        return round(self.workers * self.gpu_share, 4)

    @property
    def unit(self) -> str:
        """What budgets are counted in."""
        return "GPU-hours" if self.gpus else "CPU-hours"

    @property
    def units_per_trial(self) -> float:
        """GPUs, or without them cores, that a trial holds: its share of the budget per hour."""
        return self.gpus_per_trial if self.gpus else float(self.cpus_per_trial)

    def cards(self) -> list[Card]:
        return cards_of(self.nodes, self.threads_per_rank)

    def bundles(self) -> list[dict[str, float]]:
        """What Ray sets aside for each card."""
        cards = self.cards()
        ranks = math.ceil(self.concurrent * self.workers / len(cards))
        cores = [
            min(card.ranks, ranks * self.threads_per_rank) if card.gpu else self.threads_per_rank for card in cards
        ]
        return [{"CPU": float(n)} | ({"GPU": 1.0} if card.gpu else {}) for n, card in zip(cores, cards, strict=True)]


def cards_of(nodes: Sequence[Node], threads: int) -> list[Card]:
    """Every GPU of the nodes that has a core, or without GPUs as many seats of `threads` cores as there are."""
    if any(node.gpus for node in nodes):
        usable = [min(node.gpus, node.cpus) for node in nodes]
        return [Card(number, True, node.cpus // gpus)
                for number, (node, gpus) in enumerate(zip(nodes, usable, strict=True))
                for _ in range(gpus)]  # fmt: skip
    return [Card(number, False, 1) for number, node in enumerate(nodes) for _ in range(node.cpus // threads)]


def plan_resources(
    *, workers: int, gpu_share: float | None, concurrent: int | None, trials: int,
    nodes: Sequence[Node] | None = None, fit: int | None = None,
) -> Resources:  # fmt: skip
    """Fit trials onto the machines; what is None is chosen.

    Args:
        nodes: this machine without it.
        fit: trials that find room in memory, where it is known.

    Raises:
        ResourceError: a trial, or so many of them, does not fit; the message says what would.
    """
    nodes = tuple(nodes or [this_node()])
    gpus = sum(node.gpus for node in nodes)
    share = _gpu_share(gpu_share, gpus)
    room = _room(nodes, workers, share)
    if concurrent is not None and concurrent > room:
        raise ResourceError(
            f"--concurrent {concurrent} trials of {workers} worker(s) do not fit onto "
            f"{sum(node.cpus for node in nodes)} cores and {gpus} GPUs: use at most {room}"
        )
    chosen = concurrent or max(1, min(room, trials, fit or room))
    return Resources(nodes=nodes, workers=workers, gpu_share=share, concurrent=chosen,
                     threads_per_rank=_threads(nodes, workers, share, chosen))  # fmt: skip


def this_node() -> Node:
    """The machine we run on, as far as this process may use it."""
    return Node(cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                gpus=_count_gpus())  # fmt: skip


def _room(nodes: Sequence[Node], workers: int, share: float) -> int:
    """Trials that find room at the same time, at least one.

    Raises:
        ResourceError: not even one does.
    """
    room = capacity(cards_of(nodes, 1), workers, share or 1.0)
    if room:
        return room
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    most = max((n for n in range(1, workers) if capacity(cards_of(nodes, 1), n, share or 1.0)), default=0)
    if not gpus or cpus < workers:
        raise ResourceError(
            f"--workers {workers} needs as many CPU cores, there are {cpus}: use at most {max(1, min(most, cpus))}"
        )
    raise ResourceError(
        f"--workers {workers} with --gpu-share {share:g} does not fit onto {gpus} GPU(s) and {cpus} cores: "
        f"the largest that does is --workers {most} with this share"
    )


def _threads(nodes: Sequence[Node], workers: int, share: float, concurrent: int) -> int:
    """Cores of each rank: as many as there are for so many ranks at the same time."""
    ranks = workers * concurrent
    if share:
        cards = cards_of(nodes, 1)
        return max(1, min(card.ranks for card in cards) // math.ceil(ranks / len(cards)))
    threads = max(1, sum(node.cpus for node in nodes) // ranks)
    while threads > 1 and capacity(cards_of(nodes, threads), workers, 1.0) < concurrent:
        threads -= 1
    return threads


def _gpu_share(asked: float | None, gpus: int) -> float:
    if not gpus:
        if asked is not None:
            raise ResourceError("--gpu-share has no meaning on a machine without GPUs: leave it out")
        return 0.0
    return 1.0 if asked is None else asked


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
