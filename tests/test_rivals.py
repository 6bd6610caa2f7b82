"""Which of the best trials differ: inner folds, the paired test, what is taken, and how it is told."""

import json
import random
from dataclasses import replace
from itertools import product
from math import inf, nan

import numpy as np
import pytest
from scipy import stats

from orchestrator import rivals as module
from orchestrator.rivals import Rival, Score, Verdict, compare, from_json, inner_folds, sentence, to_json
from orchestrator.study import StudyError
from proseg.data.folds import Fold

PATIENTS = [f"p{i}" for i in range(8)]
BASE = [0.30, 0.10, 0.55, 0.20, 0.45, 0.15, 0.35, 0.25]
NOISE = [0.03, -0.01, 0.02, 0.05, -0.02, 0.04, 0.01, 0.02]
NOISY = [value + noise for value, noise in zip(BASE, NOISE, strict=True)]
WORSE = [value + 0.2 + noise for value, noise in zip(BASE, NOISE, strict=True)]


def score(trial: int, values: list[float], *, repeat: int = 0, patients: list[str] | None = None, cost=1.0) -> Score:
    return Score(trial, repeat, patients or PATIENTS[: len(values)], values, cost)


def verdict_of(*scores: Score, maximize: bool = False, confidence: float = 0.95) -> Verdict:
    return compare(scores, maximize=maximize, confidence=confidence)


# Inner folds


def fold_of(train: int, val: int) -> Fold:
    names = [f"patient-{i:03}" for i in range(train + val)]
    return Fold(2, tuple(names[val:]), tuple(names[:val]), ("patient-test",))


def test_inner_folds_part_the_patients_of_the_search_and_no_others():
    fold = fold_of(35, 5)
    for inner in inner_folds(fold, 20, seed=1):
        assert inner.train
        assert inner.val
        assert inner.test == ()
        assert sorted(inner.train + inner.val) == sorted(fold.train + fold.val)


@pytest.mark.parametrize(("train", "val"), [(35, 5), (28, 5), (27, 4), (7, 1), (5, 5), (2, 9)])
def test_a_part_is_about_as_large_as_the_validation_part_was(train: int, val: int):
    total = train + val
    parts = max(2, round(total / val))
    sizes = [len(inner.val) for inner in inner_folds(fold_of(train, val), parts, seed=0)]
    assert sum(sizes) == total
    assert set(sizes) <= {total // parts, -(-total // parts)}


def test_every_patient_validates_once_before_any_does_again():
    fold = fold_of(35, 5)
    folds = inner_folds(fold, 16, seed=3)
    assert [inner.index for inner in folds] == list(range(16))
    for turn in (folds[:8], folds[8:]):
        assert sorted(patient for inner in turn for patient in inner.val) == sorted(fold.train + fold.val)
    assert {inner.val for inner in folds[:8]}.isdisjoint(inner.val for inner in folds[8:])


def test_inner_folds_are_the_same_in_any_order_and_number_and_others_with_another_seed():
    fold = fold_of(35, 5)
    names = list(fold.train + fold.val)
    random.Random(0).shuffle(names)
    mixed = replace(fold, train=tuple(names[:35]), val=tuple(names[35:]))
    assert inner_folds(mixed, 12, seed=7) == inner_folds(fold, 12, seed=7)
    assert inner_folds(fold, 3, seed=7) == inner_folds(fold, 12, seed=7)[:3]
    assert inner_folds(fold, 3, seed=8) != inner_folds(fold, 3, seed=7)


def test_inner_folds_never_change():
    folds = inner_folds(Fold(0, ("a", "b", "c"), ("d",), ()), 8, seed=0)
    assert "".join(inner.val[0] for inner in folds) == "adcb" + "dbac"  # by sha256sum


def test_two_patients_take_turns():
    folds = inner_folds(Fold(0, ("a",), ("b",), ("c",)), 2, seed=0)
    assert {(inner.train, inner.val) for inner in folds} == {(("a",), ("b",)), (("b",), ("a",))}


@pytest.mark.parametrize("fold", [Fold(3, ("a",), (), ("b",)), Fold(3, (), (), ("a", "b"))])
def test_fewer_than_two_patients_have_no_inner_folds(fold: Fold):
    with pytest.raises(StudyError, match="fold 3"):
        inner_folds(fold, 1, seed=0)


# The test


def test_two_trials_are_compared_as_students_paired_test_does():
    verdict = verdict_of(score(0, BASE), score(1, NOISY))
    expected = stats.ttest_rel(NOISY, BASE).confidence_interval(0.95)
    leader, rival = verdict.rivals
    assert (verdict.leader, leader.trial, rival.trial) == (0, 0, 1)
    assert rival.difference == pytest.approx(np.mean(NOISE))
    assert (rival.low, rival.high) == pytest.approx((expected.low, expected.high))
    assert (rival.patients, rival.repeats) == (8, 1)
    assert rival.distinguishable == (stats.ttest_rel(NOISY, BASE).pvalue < 0.05)


def test_the_leader_does_not_differ_from_itself():
    mean = pytest.approx(np.mean(BASE))
    assert verdict_of(score(0, BASE), score(1, WORSE)).rivals[0] == Rival(0, mean, 1.0, 0, 0, 0, 1, 8, 1, False)


def test_p_counts_the_flips_that_go_as_far():
    flips = [abs(np.mean(np.array(signs) * NOISE)) for signs in product((-1, 1), repeat=8)]
    expected = np.mean([flip >= abs(np.mean(NOISE)) - 1e-12 for flip in flips])
    assert verdict_of(score(0, BASE), score(1, NOISY)).rivals[1].p == pytest.approx(expected)


def test_p_is_the_same_each_time_where_flips_are_drawn(monkeypatch: pytest.MonkeyPatch):
    exact = verdict_of(score(0, BASE), score(1, NOISY)).rivals[1].p
    monkeypatch.setattr(module, "RESAMPLES", 200)
    first, second = (verdict_of(score(0, BASE), score(1, NOISY)).rivals[1].p for _ in range(2))
    assert first == second == pytest.approx(exact, abs=0.08)


def test_more_rivals_make_wider_intervals_and_larger_p():
    alone = verdict_of(score(0, BASE), score(1, NOISY)).rivals[1]
    beside = verdict_of(score(0, BASE), score(1, NOISY), score(2, WORSE), score(3, WORSE)).rivals[1]
    expected = stats.ttest_rel(NOISY, BASE).confidence_interval(1 - 0.05 / 3)
    assert (beside.low, beside.high) == pytest.approx((expected.low, expected.high))
    assert beside.p == pytest.approx(3 * alone.p)


def test_p_is_at_most_one():
    rivals = verdict_of(*(score(trial, BASE) for trial in range(4))).rivals
    assert [rival.p for rival in rivals] == [1.0] * 4


def test_more_confidence_makes_wider_intervals():
    expected = stats.ttest_rel(NOISY, BASE).confidence_interval(0.8)
    verdict = verdict_of(score(0, BASE), score(1, NOISY), confidence=0.8)
    assert verdict.confidence == 0.8
    assert (verdict.rivals[1].low, verdict.rivals[1].high) == pytest.approx((expected.low, expected.high))


def test_the_largest_leads_where_large_is_good_and_positive_is_still_worse():
    verdict = verdict_of(score(0, BASE), score(1, WORSE), maximize=True)
    assert verdict.leader == verdict.chosen == 1
    assert verdict.rivals[1].difference == pytest.approx(0.2 + np.mean(NOISE))
    assert verdict.rivals[1].distinguishable


def test_of_trials_with_one_mean_the_first_leads():
    assert [rival.trial for rival in verdict_of(score(4, BASE), score(2, BASE)).rivals] == [2, 4]


def test_cases_of_one_patient_are_one_unit():
    patients = ["a", "a", "a", "b", "c"]
    best = score(0, [0.1, 0.2, 0.3, 0.4, 0.5], patients=patients)
    other = score(1, [0.2, 0.4, 0.6, 0.5, 0.9], patients=patients)
    rival = verdict_of(best, other).rivals[1]
    expected = stats.ttest_1samp([0.2, 0.1, 0.4], 0).confidence_interval(0.95)
    assert rival.mean == pytest.approx((0.4 + 0.5 + 0.9) / 3)
    assert rival.patients == 3
    assert (rival.low, rival.high) == pytest.approx((expected.low, expected.high))


def test_a_patient_in_several_repeats_counts_once():
    first = [score(0, [0.1, 0.2, 0.3]), score(1, [0.2, 0.4, 0.4])]
    second = [score(0, [0.3, 0.1], repeat=1, patients=["p1", "p7"]),
              score(1, [0.7, 0.4], repeat=1, patients=["p1", "p7"])]  # fmt: skip
    rival = verdict_of(*first, *second).rivals[1]
    expected = stats.ttest_1samp([0.1, 0.3, 0.1, 0.3], 0).confidence_interval(0.95)
    assert (rival.patients, rival.repeats) == (4, 2)
    assert rival.mean == pytest.approx((1 / 3 + 0.55) / 2)
    assert (rival.low, rival.high) == pytest.approx((expected.low, expected.high))


def test_an_undefined_case_is_left_out_for_both():
    holes = [*BASE[:2], nan, *BASE[3:]], [*NOISY[:6], nan, NOISY[7]]
    rival = verdict_of(score(0, holes[0]), score(1, holes[1])).rivals[1]
    kept = [noise for i, noise in enumerate(NOISE) if i not in (2, 6)]
    assert rival.patients == 6
    assert rival.difference == pytest.approx(np.mean(kept))


def test_a_repeat_that_a_trial_lacks_does_not_change_who_leads():
    easy = [value - 0.1 for value in BASE]
    scores = [score(0, BASE), score(0, easy, repeat=1), score(1, WORSE), score(1, WORSE, repeat=1),
              score(2, NOISY)]  # fmt: skip
    verdict = verdict_of(*scores)
    assert [rival.trial for rival in verdict.rivals] == [0, 2, 1]
    assert [rival.mean for rival in verdict.rivals] == pytest.approx([np.mean(v) for v in (BASE, NOISY, WORSE)])
    assert [rival.repeats for rival in verdict.rivals] == [2, 1, 2]


@pytest.mark.parametrize(
    "scores",
    [
        [score(0, [0.1]), score(1, [0.9])],
        [score(0, [0.1, nan]), score(1, [0.9, 0.9])],
        [score(0, [0.1, 0.1]), score(1, [0.9, 0.9], repeat=1)],
    ],
    ids=["one patient", "one patient with a defined case", "no shared repeat"],
)
def test_fewer_than_two_patients_tell_nothing(scores: list[Score]):
    rival = verdict_of(*scores).rivals[1]
    assert (rival.low, rival.high, rival.p, rival.distinguishable) == (-inf, inf, 1.0, False)
    assert rival.difference == pytest.approx(0.8)


def test_other_patients_are_refused():
    with pytest.raises(StudyError, match=r"t005 and t003 .* repeat 2"):
        verdict_of(
            score(3, [0.1, 0.2], repeat=2), score(5, [0.3, 0.4], repeat=2, patients=["p1", "p0"]),
        )  # fmt: skip


def test_a_repeat_scored_twice_is_refused():
    with pytest.raises(StudyError, match="t001 has two scores of repeat 0"):
        verdict_of(score(1, BASE), score(1, NOISY))


def test_a_trial_without_a_defined_case_is_refused():
    with pytest.raises(StudyError, match="t001"):
        verdict_of(score(0, BASE), score(1, [nan, nan]))


def test_nothing_is_not_compared():
    with pytest.raises(StudyError, match="nothing to compare"):
        verdict_of()


# Configurations whose truth is known


def drawn(rng: np.random.Generator, gaps: list[float]) -> list[Score]:
    """Trials that are `gaps` worse than one another in expectation; how a patient takes to one is its own, and shared
    by its three cases in two repeats, each on six of twelve patients."""
    scores = []
    patients = [f"p{i}" for i in range(12)]
    hardness = rng.normal(0.4, 0.2, 12)
    for trial, gap in enumerate(gaps):
        taste = hardness + rng.normal(gap, 0.05, 12)
        for repeat in range(2):
            cases = np.repeat(np.arange(6) + 6 * repeat, 3)
            values = taste[cases] + rng.normal(0, 0.05, 18)
            scores.append(Score(trial, repeat, [patients[i] for i in cases], values.tolist(), 1.0))
    return scores


def share_distinguished(gaps: list[float], draws: int) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([compare(drawn(rng, gaps), maximize=False).rivals[-1].distinguishable for _ in range(draws)]))


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "RESAMPLES", 99)


@pytest.mark.usefixtures("few_resamples")
def test_equals_are_seldom_told_apart():
    assert share_distinguished([0.0, 0.0], 300) <= 0.07


@pytest.mark.usefixtures("few_resamples")
def test_equals_are_seldom_told_apart_among_several():
    assert share_distinguished([0.0, 0.0, 0.0], 300) <= 0.09


@pytest.mark.usefixtures("few_resamples")
def test_a_clear_difference_is_nearly_always_found():
    assert share_distinguished([0.0, 0.12], 100) >= 0.95


# What is taken


def test_the_cheaper_of_equals_is_taken():
    verdict = verdict_of(score(0, BASE, cost=2.0), score(1, BASE, cost=1.0), score(2, WORSE, cost=0.1))
    assert (verdict.leader, verdict.chosen) == (0, 1)


def test_the_best_is_taken_of_those_at_a_like_cost():
    slightly = [value + 0.001 * (-1) ** i for i, value in enumerate(BASE)]
    slightly[0] += 0.0001
    verdict = verdict_of(score(0, BASE, cost=2.0), score(1, slightly, cost=1.0), score(2, BASE, cost=1.04))
    assert (verdict.leader, verdict.chosen) == (0, 2)
    assert verdict_of(score(0, BASE, cost=1.05), score(1, slightly, cost=1.0)).chosen == 0
    assert verdict_of(score(0, BASE, cost=1.06), score(1, slightly, cost=1.0)).chosen == 1


def test_a_cheaper_trial_that_is_worse_is_not_taken():
    assert verdict_of(score(0, BASE, cost=2.0), score(1, WORSE, cost=1.0)).chosen == 0


def test_a_trial_costs_the_mean_of_its_repeats():
    verdict = verdict_of(score(0, BASE, cost=1.0), score(0, BASE, repeat=1, cost=3.0))
    assert verdict.rivals[0].cost == 2.0


def test_a_single_trial_is_taken():
    verdict = verdict_of(score(7, BASE))
    assert (verdict.leader, verdict.chosen, len(verdict.rivals)) == (7, 7, 1)


# In words and as JSON


def rival_of(trial: int, **changes) -> Rival:
    rival = Rival(trial, 0.2, 1.0, 0.004, -0.002, 0.01, 0.3, 31, 2, False)
    return replace(rival, **changes)


LEADER = rival_of(3, difference=0.0, low=0.0, high=0.0, p=1.0)
EQUAL = rival_of(5)
UNEQUAL = rival_of(9, difference=0.05, low=0.03, high=0.07, distinguishable=True)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict(3, 3, (LEADER,), 0.95), "t003 is taken: no other trial was compared with it on ged."),
        (
            Verdict(3, 5, (LEADER, EQUAL), 0.95),
            "On ged, t005 (difference 0.0040, 95 % interval -0.0020 to 0.0100, 31 patients in 2 repeats) is not "
            "distinguishable from t003. t005 is taken as the cheaper of equals.",
        ),
        (
            Verdict(3, 3, (LEADER, UNEQUAL), 0.95),
            "On ged, t009 (difference 0.0500, 95 % interval 0.0300 to 0.0700, 31 patients in 2 repeats) is "
            "distinguishable from t003. t003 is taken as the best.",
        ),
        (
            Verdict(3, 3, (LEADER, EQUAL, rival_of(6, low=-inf, high=inf, patients=1, repeats=1), UNEQUAL), 0.99),
            "On ged, t005 (difference 0.0040, 99 % interval -0.0020 to 0.0100, 31 patients in 2 repeats) and "
            "t006 (difference 0.0040, too few patients for an interval, 1 patient in 1 repeat) are not "
            "distinguishable from t003; t009 (difference 0.0500, 99 % interval 0.0300 to 0.0700, 31 patients in 2 "
            "repeats) is distinguishable from t003. t003 is taken: it has the best mean, and no equal is clearly "
            "cheaper.",
        ),
    ],
    ids=["alone", "the cheaper of equals", "the best", "several"],
)
def test_the_verdict_reads_as_plain_sentences(verdict: Verdict, expected: str):
    assert sentence(verdict, "ged") == expected


@pytest.mark.parametrize(
    "scores",
    [[score(0, BASE), score(1, NOISY)], [score(0, [0.1]), score(1, [0.2])], [score(0, BASE)]],
    ids=["bounded", "infinite", "alone"],
)
def test_a_verdict_survives_strict_json(scores: list[Score]):
    verdict = compare(scores, maximize=False)
    assert from_json(json.loads(json.dumps(to_json(verdict), allow_nan=False))) == verdict
    assert from_json(to_json(verdict)) == verdict
