"""Who sits where: the book-keeping of cards, without Ray and without GPUs."""

import random
from collections import Counter

import pytest

from orchestrator.placement import WHOLE, Card, Seating, backend_of, capacity, units


def gpus(*nodes: int, ranks: int = 20) -> list[Card]:
    """So many GPUs on each node."""
    return [Card(number, True, ranks) for number, count in enumerate(nodes) for _ in range(count)]


def filled(seating: Seating, ranks: int, share: float) -> list[list[int]]:
    """Trials until there is no room."""
    trials = []
    while (seats := seating.take(ranks, share)) is not None:
        trials.append(seats)
    return trials


# Four GPUs of one machine

ON_EACH = {0.2: 5, 0.25: 4, 0.34: 2, 0.5: 2, 1.0: 1}
BY_HAND = {
    (0.2, 1): 20, (0.2, 2): 10, (0.2, 4): 5, (0.25, 1): 16, (0.25, 2): 8, (0.25, 4): 4, (0.34, 1): 8, (0.34, 2): 4,
    (0.34, 4): 2, (0.5, 1): 8, (0.5, 2): 4, (0.5, 4): 2, (1.0, 1): 4, (1.0, 2): 2, (1.0, 4): 1,
}  # fmt: skip


@pytest.mark.parametrize(("share", "ranks"), BY_HAND)
def test_trials_share_gpus_and_the_ranks_of_one_sit_on_different_ones(share: float, ranks: int):
    seating = Seating(gpus(4))
    trials = filled(seating, ranks, share)
    assert len(trials) == BY_HAND[share, ranks] == capacity(gpus(4), ranks, share)
    assert all(len(set(seats)) == ranks for seats in trials)
    taken = Counter(card for seats in trials for card in seats)
    assert taken == dict.fromkeys(range(4), ON_EACH[share])
    assert max(taken.values()) * units(share) <= WHOLE
    assert seating.take(ranks, share) is None, "one more waits"
    for ended in trials:  # and is seated as soon as any of them has ended, in its very place
        seating.give(ended, share)
        seats = seating.take(ranks, share)
        assert sorted(seats or []) == sorted(ended)


def test_three_thirds_make_a_whole():
    assert capacity(gpus(1), 1, 0.3333) == 3
    assert capacity(gpus(1), 1, 1 / 3) == 3
    assert capacity(gpus(1), 1, 0.1) == 10


@pytest.mark.parametrize(
    ("cards", "ranks", "share", "seats"),
    [
        (1, 2, 0.5, [0, 0]),
        (2, 3, 0.5, [0, 1, 0]),
        (2, 4, 0.25, [0, 1, 0, 1]),
        (3, 2, 1.0, [0, 1]),
    ],
)
def test_ranks_share_a_gpu_only_where_there_are_fewer_gpus_than_ranks(
    cards: int, ranks: int, share: float, seats: list[int]
):
    assert Seating(gpus(cards)).take(ranks, share) == seats


def test_a_trial_waits_rather_than_put_two_ranks_on_one_gpu():
    seating = Seating(gpus(2))
    assert seating.take(1, 1.0) == [0]
    assert seating.take(2, 0.5) is None


def test_a_trial_for_which_no_room_was_found_has_taken_nothing():
    seating = Seating(gpus(2))
    assert seating.take(1, 0.75) == [0]
    assert seating.take(2, 0.5) is None
    assert sorted(filled(seating, 1, 0.25)) == [[0], [1], [1], [1], [1]]


def test_the_emptiest_gpu_is_taken_first():
    seating = Seating(gpus(3))
    assert [seating.take(1, share) for share in (0.5, 0.25, 0.3, 0.25, 0.1)] == [[0], [1], [2], [1], [2]]


def test_cores_bound_the_ranks_of_a_gpu():
    assert capacity(gpus(2, ranks=3), 1, 0.1) == 6
    assert capacity(gpus(2, ranks=3), 2, 0.1) == 3
    assert Seating([Card(0, True, 1), Card(0, True, 3)]).take(3, 0.1) is not None


def test_without_gpus_every_rank_has_a_seat_of_its_own():
    cards = [Card(0, False, 1) for _ in range(5)]
    assert capacity(cards, 1, 1.0) == 5
    assert capacity(cards, 2, 1.0) == 2
    assert capacity(cards, 6, 1.0) == 0


# Several nodes


def test_the_ranks_of_a_trial_stay_on_one_node_where_they_can():
    seating = Seating(gpus(1, 2, 2))
    assert [seating.take(2, 1.0) for _ in range(3)] == [[1, 2], [3, 4], None]
    assert seating.take(1, 1.0) == [0]


def test_a_node_with_room_for_all_ranks_is_preferred_to_one_with_an_emptier_gpu():
    seating = Seating(gpus(1, 2))
    assert [seating.take(1, 0.5), seating.take(1, 0.5), seating.take(1, 0.5)] == [[0], [1], [2]]
    seating.give([0], 0.5)
    assert seating.take(2, 0.5) == [1, 2]


def test_a_trial_that_is_larger_than_a_node_spans_two():
    assert sorted(Seating(gpus(2, 2)).take(3, 1.0) or []) in ([0, 1, 2], [0, 2, 3])
    assert capacity(gpus(2, 2), 4, 0.5) == 2


# A node that is lost


def test_nobody_is_seated_on_a_card_that_is_lost():
    seating = Seating(gpus(2, 2))
    for card in (0, 1):
        seating.lose(card)
    assert seating.cards == [2, 3]
    assert sorted(filled(seating, 1, 0.5)) == [[2], [2], [3], [3]]


def test_what_is_given_back_of_a_lost_card_is_not_given_out_again():
    seating = Seating(gpus(2))
    assert seating.take(2, 1.0) == [0, 1]
    seating.lose(0)
    seating.give([0, 1], 1.0)
    assert filled(seating, 1, 1.0) == [[1]]


def test_ranks_share_what_is_left_rather_than_wait_for_ever():
    seating = Seating(gpus(2, 1))
    seating.lose(0)
    seating.lose(1)
    assert seating.take(2, 0.5) == [2, 2]


# Whatever happens


@pytest.mark.parametrize("seed", range(20))
def test_however_trials_come_and_go_nothing_is_given_twice_and_no_room_is_overlooked(seed: int):
    rng = random.Random(seed)
    cards = [Card(node, True, rng.randint(1, 8)) for node in range(rng.randint(1, 3)) for _ in range(rng.randint(1, 4))]
    seating, held, lost = Seating(cards), [], set[int]()
    for _ in range(300):
        used, ranks_on = Counter[int](), Counter[int]()
        for seats, share in held:
            used.update({card: n * units(share) for card, n in Counter(seats).items()})
            ranks_on.update(seats)
        there = [card for card in range(len(cards)) if card not in lost]
        assert seating.cards == there
        assert all(used[card] <= WHOLE and ranks_on[card] <= cards[card].ranks for card in range(len(cards)))
        if held and rng.random() < 0.45:
            seating.give(*held.pop(rng.randrange(len(held))))
            continue
        if len(there) > 1 and rng.random() < 0.01:
            lost.add(rng.choice(there))
            for card in lost:
                seating.lose(card)
            continue
        ranks, share = rng.randint(1, 4), rng.choice([0.1, 0.2, 0.25, 0.34, 0.5, 0.6, 1.0])
        places = {card: min((WHOLE - used[card]) // units(share), cards[card].ranks - ranks_on[card]) for card in there}
        apart = len(there) >= ranks
        fits = sum(places[card] > 0 for card in there) >= ranks if apart else sum(places.values()) >= ranks
        seats = seating.take(ranks, share)
        assert (seats is not None) == fits
        if seats is not None:
            assert len(seats) == ranks
            assert not lost & set(seats)
            assert not apart or len(set(seats)) == ranks
            held.append((seats, share))
    for seats, share in held:
        seating.give(seats, share)
    assert filled(seating, 1, 1.0) == [[card] for card in seating.cards], "all are as empty as in the beginning"


# How they talk


@pytest.mark.parametrize(
    ("devices", "backend"),
    [
        (["GPU-1"], "nccl"),
        (["GPU-1", "GPU-2", "GPU-3"], "nccl"),
        (["GPU-1", "GPU-2", "GPU-1"], "gloo"),
        (["cpu"], "gloo"),
        (["cpu", "cpu"], "gloo"),
        (["GPU-1", "cpu"], "gloo"),
    ],
)
def test_nccl_is_for_ranks_that_have_a_gpu_each(devices: list[str], backend: str):
    assert backend_of(devices) == backend
