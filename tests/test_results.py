"""Trials as the log tells them, and who of them is best."""

import re
from dataclasses import replace

import pytest

from orchestrator.results import (
    LOG,
    Trial,
    TrialLog,
    best_trial,
    explanation,
    front,
    median_objective,
    ranked,
    read_results,
    read_trials,
)  # fmt: skip
from orchestrator.study import Study, StudyError, write_state
from proseg.errors import RecordError
from proseg.fit import Criterion
from tests.studies import add_trial, running, write_epochs

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
    with running(study):
        assert read_trials(study) == [events[1], events[2]]


def test_no_trial_runs_in_a_study_whose_process_died(study: Study):
    add_trial(study, 0, None, "running", epoch=0)
    write_epochs(study.trial_folder(0), [0.5])
    write_state(study, "running")
    (found,) = read_trials(study)
    assert (found.state, found.epoch, found.reason) == ("interrupted", 1, "the process of the study died")


def test_a_line_that_was_not_finished_does_not_count(study: Study):
    TrialLog(study.folder).append(trial(0, 0.5))
    with open(study.folder / LOG, "ab") as file:
        file.write(b'{"time": 1.0, "number": 1, "val')
    assert [one.number for one in read_trials(study)] == [0]


def test_a_running_trial_shows_the_epochs_it_has_written(study: Study):
    add_trial(study, 0, None, "running", epoch=0)
    write_epochs(study.trial_folder(0), [0.5, 0.3, 0.4])
    with running(study):
        (found,) = read_trials(study)
    assert (found.state, found.epoch, found.objective) == ("running", 3, 0.3)


def test_a_failed_trial_keeps_its_reason(study: Study):
    add_trial(study, 0, None, "failed", epoch=1, reason="the loss is not finite")
    assert read_trials(study)[0].reason == "the loss is not finite"


def test_trials_are_named_by_number():
    assert [trial(number, None).name for number in (0, 12, 1234)] == ["t000", "t012", "t1234"]


def test_all_of_a_trial_is_read_back(study: Study):
    decision = {"rung": 1, "value": [0.5], "cutoff": 0.4, "rank": 3, "of": 4, "kept": 2}
    whole = Trial(
        0, {"optim.lr": 0.1}, "stopped early", 2, 0.3, "ASHA", 5.0, second=0.8, origin="the paper", decision=decision,
        retries=("lost", "hung"), cost=0.5, memory=2**30, epoch_seconds=2.5, over=("gpu_memory",),
    )  # fmt: skip
    TrialLog(study.folder).append(whole)
    assert read_trials(study) == [whole]


def test_a_log_that_was_written_before_there_was_more_to_say_is_read(study: Study):
    (study.folder / LOG).write_text('{"time": 1.0, "number": 0, "values": {}, "state": "complete", "epoch": 2}\n')
    assert read_trials(study) == [Trial(0, {}, "complete", 2)]


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


def test_a_trial_over_a_limit_stands_after_all_that_keep_to_them():
    trials = [replace(trial(0, 0.1), over=("gpu_memory",)), trial(1, 0.5), trial(2, 0.4, "stopped early")]
    assert [one.number for one in ranked(trials, GED)] == [1, 2, 0]


# Two objectives


def both(number: int, objective: float | None, second: float | None, state="complete", **more) -> Trial:
    return replace(trial(number, objective, state), second=second, **more)


def test_the_front_holds_what_no_other_trial_beats_in_both():
    trials = [both(0, 0.3, 0.8), both(1, 0.2, 0.7), both(2, 0.4, 0.9), both(3, 0.3, 0.7), both(4, 0.5, 0.9)]
    assert [one.number for one in front(trials, [GED, DICE])] == [1, 0, 2], "the best of the first objective first"
    assert [one.number for one in front(trials, [GED, GED])] == [1]


def test_only_complete_trials_that_keep_to_the_limits_and_have_both_values_are_in_the_front():
    trials = [both(0, 0.3, 0.8), both(1, 0.1, 0.9, "stopped early"), both(2, 0.1, None), both(3, None, 0.9),
              both(4, 0.1, 0.9, over=("epoch_seconds",)), both(5, 0.1, 0.9, "failed")]  # fmt: skip
    assert [one.number for one in front(trials, [GED, DICE])] == [0]
    assert front(trials[1:], [GED, DICE]) == []


# Explaining


def test_a_trial_is_explained_by_its_record_and_its_epochs(study: Study):
    for number, objective in enumerate([0.5, 0.3, 0.4]):
        add_trial(study, number, objective, origin="the paper" if number == 2 else "")
    found = explanation(study, 2)
    assert (found["number"], found["state"], found["origin"]) == (2, "complete", "the paper")
    assert (found["study"], found["metric"], found["second_metric"]) == ("s1", "ged", None)
    assert (found["place"], found["scored"]) == (2, 3)
    assert [(one["epoch"], round(one["value"], 9)) for one in found["epochs"]] == [(1, 0.41), (2, 0.4)]
    assert [round(one["best"], 9) for one in found["epochs"]] == [0.41, 0.4]
    assert found["folder"] == str(study.trial_folder(2))
    assert found["traceback"] is None


def test_a_failed_trial_has_no_place_and_names_its_traceback(study: Study):
    add_trial(study, 0, 0.5)
    add_trial(study, 1, None, "failed", reason="the loss is not finite")
    file = study.trial_folder(1) / "failure.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    found = explanation(study, 1)
    assert (found["place"], found["scored"], found["reason"]) == (None, 1, "the loss is not finite")
    assert (found["traceback"], found["epochs"]) == (str(file), [])


@pytest.mark.parametrize(("trials", "words"), [(0, "it has no trial yet"), (2, "it has t000 to t001")])
def test_a_trial_that_is_not_there_is_named_with_those_that_are(study: Study, trials: int, words: str):
    for number in range(trials):
        add_trial(study, number, 0.5)
    with pytest.raises(StudyError, match=f"study s1 has no trial t007; {words}"):
        explanation(study, 7)


# In between


def test_the_median_is_over_all_trials_with_a_score():
    assert median_objective([trial(0, 0.1), trial(1, 0.5, "stopped early"), trial(2, 0.4), trial(3, None)]) == 0.4
    assert median_objective([trial(0, 0.1), trial(1, 0.2)]) == pytest.approx(0.15)
    assert median_objective([trial(0, None, "failed")]) is None


@pytest.mark.parametrize("file", ["trials.jsonl", "trials/t000/epochs.jsonl", "final/blobs/fold0/result.json"])
@pytest.mark.parametrize("content", [b"{\n", b"\x00\x00\n", b"[]\n", b"7\n", b"\xff\n"])
def test_a_damaged_record_is_one_sentence_that_says_what_to_do(study: Study, file: str, content: bytes):
    add_trial(study, 0, 0.5)
    (study.folder / file).parent.mkdir(parents=True, exist_ok=True)
    (study.folder / file).write_bytes(content)
    reads = read_results if "final" in file else lambda one: explanation(one, 0)
    with pytest.raises(RecordError, match=rf"{re.escape(file)} is damaged.*(delete that line|delete it, and)"):
        reads(study)
