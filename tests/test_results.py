"""Trials as the log tells them, and who of them is best."""

import pytest

from orchestrator.results import LOG, Trial, TrialLog, best_trial, median_objective, ranked, read_trials
from orchestrator.study import Study
from proseg.fit import Criterion
from tests.studies import add_trial, write_epochs

GED, DICE = Criterion("ged"), Criterion("dice_mean", maximize=True)


def trial(number: int, objective: float | None, state="complete") -> Trial:
    return Trial(number, {}, state, 1, objective)


# The log


def test_a_study_that_has_just_begun_has_no_trials(study: Study):
    assert read_trials(study) == []


def test_the_last_event_of_a_trial_counts(study: Study):
    log = TrialLog(study.folder)
    events = [Trial(1, {"optim.lr": 0.1}), Trial(0, {"optim.lr": 0.2}),
              Trial(1, {"optim.lr": 0.1}, "complete", 2, 0.3, "", 5.0)]  # fmt: skip
    for event in events:
        log.append(event)
    assert read_trials(study) == [events[1], events[2]]


def test_a_line_that_was_not_finished_does_not_count(study: Study):
    TrialLog(study.folder).append(trial(0, 0.5))
    with open(study.folder / LOG, "ab") as file:
        file.write(b'{"time": 1.0, "number": 1, "val')
    assert [one.number for one in read_trials(study)] == [0]


def test_a_running_trial_shows_the_epochs_it_has_written(study: Study):
    add_trial(study, 0, None, "running", epoch=0)
    write_epochs(study.trial_folder(0), [0.5, 0.3, 0.4])
    (found,) = read_trials(study)
    assert (found.state, found.epoch, found.objective) == ("running", 3, 0.3)


def test_a_failed_trial_keeps_its_reason(study: Study):
    add_trial(study, 0, None, "failed", epoch=1, reason="the loss is not finite")
    assert read_trials(study)[0].reason == "the loss is not finite"


def test_trials_are_named_by_number():
    assert [trial(number, None).name for number in (0, 12, 1234)] == ["t000", "t012", "t1234"]


# Ranking


def test_the_smallest_is_first_where_small_is_good():
    trials = [trial(0, 0.3), trial(1, 0.1), trial(2, 0.2)]
    assert [one.number for one in ranked(trials, GED)] == [1, 2, 0]
    assert [one.number for one in ranked(trials, DICE)] == [0, 2, 1]


def test_a_complete_trial_stands_before_one_that_was_stopped():
    trials = [trial(0, 0.1, "stopped early"), trial(1, 0.3), trial(2, 0.2, "stopped early")]
    assert [one.number for one in ranked(trials, GED)] == [1, 0, 2]


def test_a_failed_trial_is_never_ranked_nor_one_without_a_score():
    assert ranked([trial(0, 0.1, "failed"), trial(1, None), trial(2, None, "running")], GED) == []


def test_of_equal_trials_the_first_is_best():
    assert best_trial([trial(0, 0.2), trial(1, 0.2)], GED) == trial(0, 0.2)


def test_a_running_trial_is_not_the_best_yet():
    running, stopped = trial(0, 0.1, "running"), trial(1, 0.5, "stopped early")
    assert best_trial([running, stopped], GED) == stopped
    assert best_trial([running], GED) is None


def test_the_median_is_over_all_trials_with_a_score():
    assert median_objective([trial(0, 0.1), trial(1, 0.5, "stopped early"), trial(2, 0.4), trial(3, None)]) == 0.4
    assert median_objective([trial(0, 0.1), trial(1, 0.2)]) == pytest.approx(0.15)
    assert median_objective([trial(0, None, "failed")]) is None
