"""Which GPU, or which cores, each rank of each trial sits on: book-keeping without Ray, so that it can be tested whole.

A card is a GPU, or without GPUs the cores of one rank. Trials share GPUs; the ranks of one trial sit on different ones
wherever there are enough, because NCCL refuses two ranks on one GPU, and Ray by itself would put them there.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

WHOLE = 10_000
"""A card in units of the smallest share that Ray accounts for: integers, so that three thirds make a whole."""


@dataclass(frozen=True)
class Card:
    """A GPU with the cores that go with it, or (`gpu` false) the cores of one rank."""

    node: int
    """Of the cluster; its number in the plan."""
    gpu: bool
    ranks: int
    """It holds at most so many, each with a core of its own at least."""


class Seating:
    """Who sits where. `take` and `give` are each other's reverse."""

    def __init__(self, cards: Sequence[Card]):
        self._cards = list(cards)
        self._free = [WHOLE] * len(cards)
        self._ranks = [0] * len(cards)
        self._lost: set[int] = set()

    def lose(self, card: int) -> None:
        """Its node is gone: nobody is seated there any more."""
        self._lost.add(card)

    @property
    def cards(self) -> list[int]:
        """The cards that are there."""
        return [card for card in range(len(self._cards)) if card not in self._lost]

    def take(self, ranks: int, share: float) -> list[int] | None:
        """A card for each rank of a trial, or None while there is no room.

        Different cards where there are as many, then cards of one node, then those with the most room.
        """
        need, distinct = units(share), len(self.cards) >= ranks
        free = {card: self._free[card] for card in self.cards}
        room = {card: self._cards[card].ranks - self._ranks[card] for card in free}
        fit = {card for card in free if free[card] >= need and room[card] > 0}
        on_node = Counter(self._cards[card].node for card in fit)
        seats: list[int] = []
        while len(seats) < ranks:
            here = self._cards[seats[0]].node if seats else None
            open_cards = [card for card in fit if not (distinct and card in seats)]
            if not open_cards:
                return None
            card = min(open_cards, key=lambda card: (
                seats.count(card), self._cards[card].node != here if seats else on_node[self._cards[card].node] < ranks,
                -free[card], card,
            ))  # fmt: skip
            seats.append(card)
            free[card] -= need
            room[card] -= 1
            fit = {card for card in fit if free[card] >= need and room[card] > 0}
        for card in seats:
            self._free[card] -= need
            self._ranks[card] += 1
        return seats

    def give(self, seats: Sequence[int], share: float) -> None:
        for card in seats:
            self._free[card] += units(share)
            self._ranks[card] -= 1


def units(share: float) -> int:
    return round(share * WHOLE)


def capacity(cards: Sequence[Card], ranks: int, share: float) -> int:
    """How many trials are seated at the same time."""
    seating, count = Seating(cards), 0
    while seating.take(ranks, share) is not None:
        count += 1
    return count


def backend_of(devices: Sequence[str]) -> str:
    """NCCL refuses two ranks on one GPU; gloo takes anything, through the host. Indices tell nothing: each rank may
    see only its own GPU, as number 0."""
    return "nccl" if "cpu" not in devices and len(set(devices)) == len(devices) else "gloo"
