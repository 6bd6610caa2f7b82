"""Early stopping: who goes on at a rung, and why another does not."""

import math
import random
from itertools import permutations

import pytest

from orchestrator.rungs import Decision, Rungs, fronts

NAN = float("nan")


def rungs(*, maximize: bool = False, reduction: int = 2, grace: int = 1, epochs: int = 8) -> Rungs:
    return Rungs(grace=grace, reduction=reduction, epochs=epochs, maximize=[maximize])


def two(*maximize: bool, reduction: int = 2) -> Rungs:
    return Rungs(grace=1, reduction=reduction, epochs=8, maximize=maximize or (False, True))


def stopped(found: Rungs, values: list[float], epoch: int = 1) -> list[int]:
    """Who is stopped of trials that come to a rung one after another."""
    return [number for number, value in enumerate(values) if found.report(number, epoch, (value,)) is not None]


# Where the rungs are


@pytest.mark.parametrize(
    ("grace", "reduction", "epochs", "at"),
    [
        (1, 2, 8, {1, 2, 4}),
        (1, 2, 9, {1, 2, 4, 8}),
        (2, 2, 8, {2, 4}),
        (1, 3, 9, {1, 3}),
        (1, 3, 10, {1, 3, 9}),
        (6, 3, 60, {6, 18, 54}),
        (3, 4, 5, {3}),
        (4, 2, 4, set()),
        (5, 2, 4, set()),
        (1, 2, 1, set()),
        (1, 10, 1000, {1, 10, 100}),
    ],
)
def test_decisions_are_made_at_powers_of_the_reduction(grace: int, reduction: int, epochs: int, at: set[int]):
    """The last epoch is none: a trial that has come so far is complete."""
    found = rungs(grace=grace, reduction=reduction, epochs=epochs)
    for epoch in range(1, epochs + 1):
        for number in range(10 * reduction):  # of so many that are ever better the first are the worst
            found.record(number, epoch, (-number,))
    decided = {epoch for epoch in range(1, epochs + 1) if found.report(0, epoch, (0.0,)) is not None}
    assert decided == at


# One objective, by hand


def test_trials_that_come_to_a_rung_are_held_against_those_that_were_there():
    assert stopped(rungs(), [0.5, 0.6, 0.4, 0.45, 0.7, 0.3]) == [1, 4]
    assert stopped(rungs(reduction=3), [0.5, 0.6, 0.4, 0.45, 0.7, 0.3]) == [1, 3, 4]
    assert stopped(rungs(reduction=3), [0.1, 0.3, 0.2, 0.15]) == [1, 2, 3]


def test_the_first_at_a_rung_goes_on_whatever_it_brings():
    assert stopped(rungs(), [math.inf]) == []
    assert stopped(rungs(), [NAN]) == []


def test_where_large_is_good_the_small_are_stopped():
    assert stopped(rungs(maximize=True), [0.5, 0.4, 0.6, 0.55, 0.3, 0.7]) == [1, 4]


def test_trials_that_are_as_good_as_the_cut_off_go_on():
    assert stopped(rungs(), [0.5, 0.5, 0.5, 0.5]) == []


def test_rungs_do_not_know_of_each_other():
    found = rungs()
    assert stopped(found, [0.1, 0.2], epoch=1) == [1]
    assert found.report(1, 2, (0.9,)) is None, "it is the first of the next rung"
    assert found.report(0, 2, (0.1,)) is None
    assert found.report(2, 3, (99.0,)) is None, "there is no rung"


def test_a_decision_tells_all_of_it():
    found = rungs()
    for number, value in enumerate([0.4, 0.2, 0.3]):
        found.record(number, 2, (value,))
    decision = found.report(3, 2, (0.35,))
    assert decision == Decision(rung=2, value=(0.35,), cutoff=0.3, rank=3, of=4, kept=2)
    assert decision.sentence(["ged"]) == (
        "ASHA: rank 3 of 4 at epoch 2 (ged 0.3500, cut-off 0.3000), the best 2 go on"
    )  # fmt: skip
    assert decision.record() == {"rung": 2, "value": [0.35], "cutoff": 0.3, "rank": 3, "of": 4, "kept": 2}


def test_a_trial_that_comes_twice_counts_once():
    """An epoch may be reported again after a crash."""
    found = rungs()
    found.record(0, 1, (0.1,))
    first, again = found.report(1, 1, (0.2,)), found.report(1, 1, (0.2,))
    assert first == again
    assert first is not None
    assert first.of == 2


# Values that are no numbers


@pytest.mark.parametrize("maximize", [False, True])
def test_what_is_not_a_number_is_worse_than_any(maximize: bool):
    for value in (-math.inf, 0.0, math.inf):
        found = rungs(maximize=maximize)
        found.record(0, 1, (value,))
        decision = found.report(1, 1, (NAN,))
        worst = value == (-math.inf if maximize else math.inf)
        assert (decision is None) == worst, "as bad as infinitely bad"


@pytest.mark.parametrize("maximize", [False, True])
def test_what_is_not_a_number_does_not_disturb_the_cut_off(maximize: bool):
    for values in permutations([NAN, 0.5, 0.3, 0.9]):
        found = rungs(maximize=maximize)
        for number, value in enumerate(values):
            found.record(number, 1, (value,))
        decision = found.report(4, 1, (0.2 if maximize else 1.5,))
        assert decision is not None
        assert (decision.cutoff, decision.rank, decision.of, decision.kept) == (0.5, 4, 5, 2)


# Against the definition


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_a_trial_goes_on_if_it_is_among_the_best_of_those_that_came_as_far(maximize: bool, reduction: int):
    rng = random.Random(reduction)
    for _ in range(50):
        found, seen = rungs(maximize=maximize, reduction=reduction), []
        for number in range(20):
            value = rng.choice([round(rng.random(), 1), NAN])
            seen.append(math.inf if math.isnan(value) else -value if maximize else value)
            kept = max(1, len(seen) // reduction)
            among_best = sorted(seen).index(seen[-1]) < kept
            decision = found.report(number, 1, (value,))
            assert (decision is None) == among_best
            if decision is not None:
                assert (decision.of, decision.kept) == (len(seen), kept)
                assert (-1 if maximize else 1) * decision.cutoff == sorted(seen)[kept - 1]
                assert decision.rank == 1 + sum(other < seen[-1] for other in seen)


# Two objectives


def test_with_two_objectives_the_order_is_that_of_fronts():
    found = two(False, True)  # GED small, Dice large
    assert found.report(0, 1, (0.3, 0.8)) is None
    assert found.report(1, 1, (0.2, 0.7)) is None, "neither beats the other"
    decision = found.report(2, 1, (0.4, 0.6))
    assert decision == Decision(rung=1, value=(0.4, 0.6), cutoff=None, rank=3, of=3, kept=1)
    assert decision.sentence(["ged", "dice_mean"]) == (
        "ASHA: rank 3 of 3 at epoch 1 (ged 0.4000, dice_mean 0.6000, by non-dominated fronts), only the best goes on"
    )


def test_a_whole_front_goes_on_if_its_first_does():
    found = two(False, False)
    assert [found.report(n, 1, values) for n, values in enumerate([(1, 4), (2, 3), (3, 2), (4, 1)])] == [None] * 4


def test_a_trial_in_a_worse_front_is_ranked_after_all_of_the_better():
    found = two(False, False)
    for number, values in enumerate([(1, 3), (3, 1), (2, 4), (4, 2)]):
        found.record(number, 1, values)
    decision = found.report(4, 1, (5, 5))
    assert decision is not None
    assert (decision.rank, decision.of, decision.kept) == (5, 5, 2)
    third = found.report(5, 1, (4, 4))
    assert third is not None
    assert third.rank == 5, "two fronts of two stand before it"


@pytest.mark.parametrize(
    ("values", "maximize", "layers"),
    [
        ({}, [False, False], []),
        ({7: (1.0, 1.0)}, [False, False], [[7]]),
        ({0: (1, 2), 1: (2, 1), 2: (2, 2), 3: (3, 3)}, [False, False], [[0, 1], [2], [3]]),
        ({0: (1, 2), 1: (2, 1), 2: (2, 2), 3: (3, 3)}, [True, True], [[3], [2], [0, 1]]),
        ({0: (0.3, 0.9), 1: (0.2, 0.8), 2: (0.3, 0.8)}, [False, True], [[0, 1], [2]]),
        ({0: (1, 1), 1: (1, 1), 2: (1, 2)}, [False, False], [[0, 1], [2]]),
        ({0: (NAN, 1), 1: (5, 1), 2: (NAN, NAN)}, [False, False], [[1], [0], [2]]),
        ({0: (NAN, 9), 1: (5, 5)}, [True, True], [[0, 1]]),
        ({0: (0.2,), 1: (0.1,), 2: (0.2,)}, [False], [[1], [0, 2]]),
    ],
)
def test_fronts_by_hand(values: dict, maximize: list[bool], layers: list[list[int]]):
    assert fronts(values, maximize) == layers


@pytest.mark.parametrize("seed", range(10))
def test_fronts_are_those_of_the_definition(seed: int):
    """A trial's front is one more than the longest chain of trials each of which beats the next, ending at it."""
    rng = random.Random(seed)
    values = {number: (rng.randint(0, 6), rng.randint(0, 6)) for number in range(25)}
    beats = {
        n: [m for m in values if m != n and values[m] != values[n] and
            values[m][0] <= values[n][0] and values[m][1] >= values[n][1]] for n in values
    }  # fmt: skip

    def depth(number: int) -> int:
        return 1 + max(map(depth, beats[number]), default=-1)

    layers = fronts(values, [False, True])
    assert sorted(number for layer in layers for number in layer) == list(values)
    for place, layer in enumerate(layers):
        assert [depth(number) for number in layer] == [place] * len(layer)


# After a crash


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("objectives", [1, 2])
def test_what_was_recorded_decides_as_what_was_reported(seed: int, objectives: int):
    """However often a search is killed, its decisions are those of one that was not."""
    rng, maximize = random.Random(seed), [False, True][:objectives]
    reports = [(number, epoch, tuple(rng.random() for _ in maximize)) for number in range(12) for epoch in (1, 2, 3, 4)]
    rng.shuffle(reports)
    whole = Rungs(grace=1, reduction=2, epochs=8, maximize=maximize)
    decisions = [whole.report(*one) for one in reports]
    assert any(decisions)
    for killed in range(0, len(reports), 5):
        again = Rungs(grace=1, reduction=2, epochs=8, maximize=maximize)
        for one in reports[:killed]:
            again.record(*one)
        assert [again.report(*one) for one in reports[killed:]] == decisions[killed:]
