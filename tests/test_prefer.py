"""What a person prefers: which trial is taken along the front, what is said to be given up, and what is exported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from orchestrator.confirm import VERDICT
from orchestrator.export import export, winner
from orchestrator.prefer import WORDS, Preference, Word, preferred, to_json
from orchestrator.rivals import Score, compare
from orchestrator.rivals import to_json as verdict_json
from orchestrator.study import Study, StudyError
from proseg.data.store import Store
from proseg.records import write_atomically
from tests.studies import LABEL, add_trial, make_study, train_fold, train_trial, write_epochs

FRONT = [(0.20, 0.80, 0.70), (0.22, 0.88, 0.72), (0.30, 0.90, 0.74), (0.31, 0.85, 0.99)]
"""(ged, dice_match, dice_mean) of four trials; the last is beaten by the third in the first two."""


def add(study: Study, number: int, ged: float, match: float, mean: float, **more: Any) -> None:
    """A trial whose epochs scored the same."""
    add_trial(study, number, ged, **more)
    write_epochs(study.trial_folder(number), [ged], **{"val/dice_mean": mean, "val/dice_match": match})


def searched(home: Path, store: Store, **changes: Any) -> Study:
    study = make_study(home, store, **changes)
    for number, scores in enumerate(FRONT):
        add(study, number, *scores, epoch_seconds=10.0 * (4 - number))
    return study


def verdict(study: Study, values: dict[int, float], costs: dict[int, float], noise: float = 0.001) -> None:
    """A comparison of trials on ten patients; with noise of this size most differences are distinguishable."""
    patients = [f"p{i}" for i in range(10)]
    scores = [
        Score(trial, 0, patients, [mean + noise * ((i * (trial + 1)) % 5 - 2) for i in range(10)], costs[trial])
        for trial, mean in values.items()
    ]  # fmt: skip
    found = compare(scores, maximize=study.criterion.maximize)
    write_atomically(study.folder / VERDICT, json.dumps(verdict_json(found)).encode())


def chosen(study: Study, word: Word) -> int:
    return preferred(study, word).trial.number


def against(choice: Preference) -> dict[int, str]:
    return {one.than.number: one.role for one in choice.against}


# One objective: the front of GED and a personal Dice


@pytest.mark.parametrize(("word", "number"), [("diversity", 0), ("personalization", 2), ("balanced", 1), ("cheap", 0)])
def test_each_word_takes_its_trial(tmp_path: Path, store: Store, word: Word, number: int):
    study = searched(tmp_path, store)
    assert chosen(study, word) == number
    assert [member.trial.number for member in preferred(study, word).front] == [0, 1, 2]


def test_what_is_given_up_is_said(tmp_path: Path, store: Store):
    choice = preferred(searched(tmp_path, store), "personalization")
    assert choice.sentences == [
        "t002 is taken for personalization: the best dice_match, 0.9000, of the 3 trials on the front of ged and "
        "dice_match.",
        "Against t000, the best in ged and the study's own choice: ged 0.1000 (50.0 %) worse, "
        "dice_match 0.1000 (12.5 %) better, dice_mean 0.0400 (5.7 %) better, 0.5 x the time of an epoch.",
        f"Scores are those of the validation patients of fold 0 of blobs ({LABEL}).",
        "t002 was NOT evaluated on held-out patients; the study's own choice is t000.",
    ]  # fmt: skip


def test_the_trial_between_is_held_against_both_ends(tmp_path: Path, store: Store):
    choice = preferred(searched(tmp_path, store), "balanced")
    assert against(choice) == {0: "the best in ged and the study's own choice", 2: "the best in dice_match"}
    assert "(distance 0.28)" in choice.reason, "(0.2, 0.2) in units of the ranges"


def test_the_choice_of_the_study_itself_says_so(tmp_path: Path, store: Store):
    choice = preferred(searched(tmp_path, store), "diversity")
    assert "t000 is the study's own choice as well." in choice.sentences
    assert against(choice) == {2: "the best in dice_match"}
    assert "NOT evaluated" not in " ".join(choice.sentences)


def test_two_ends_without_a_middle_are_equally_near(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store)
    add(study, 0, 0.3, 0.9, 0.9)
    add(study, 1, 0.2, 0.8, 0.9)
    choice = preferred(study, "balanced")
    assert choice.trial.number == 1
    assert "t000 is as near and worse in ged" in choice.reason


def test_the_personal_dice_is_the_one_that_was_searched_for(tmp_path: Path, store: Store):
    objective = {"metric": "dice_mean", "goal": "maximize"}
    study = make_study(tmp_path, store, objective=objective)
    for number, (ged, match, mean) in enumerate(FRONT):
        add_trial(study, number, mean)
        epochs = study.trial_folder(number)
        write_epochs(epochs, [ged], **{"val/dice_mean": mean, "val/dice_match": match})
    assert chosen(study, "personalization") == 3
    assert chosen(study, "diversity") == 0


def test_scores_are_those_of_the_epoch_whose_weights_were_kept(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store)
    add(study, 0, 0.2, 0.8, 0.8)
    add_trial(study, 1, 0.3)
    folder = study.trial_folder(1)
    lines = [
        {"epoch": number, "time": 1.0, "best": 0.3, "finished": number == 3,
         "metrics": {"val/ged": ged, "val/dice_match": dice}}
        for number, ged, dice in [(1, 0.4, 0.95), (2, 0.3, 0.85), (3, 0.35, 0.99)]
    ]  # fmt: skip
    (folder / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    choice = preferred(study, "personalization")
    assert choice.trial.number == 1
    assert choice.front[-1].metrics["dice_match"] == 0.85


def test_trials_that_were_stopped_or_are_over_a_limit_are_no_candidates(tmp_path: Path, store: Store):
    study = searched(tmp_path, store)
    add(study, 4, 0.1, 0.99, 0.99, state="stopped early")
    add(study, 5, 0.1, 0.99, 0.99, over=("gpu_memory",))
    assert {chosen(study, word) for word in WORDS} == {0, 1, 2}


# Two objectives: the study's own front


def test_the_front_is_that_of_the_two_objectives(tmp_path: Path, store: Store):
    study = searched(tmp_path, store, second_objective={"metric": "dice_mean"})
    for number, (ged, match, mean) in enumerate(FRONT):
        add(study, number, ged, match, mean, second=mean)
    choice = preferred(study, "personalization")
    assert [member.trial.number for member in choice.front] == [0, 1, 2, 3]
    assert choice.trial.number == 3
    assert "on the front of ged and dice_mean" in choice.reason
    assert chosen(study, "diversity") == 0


# The confirmation


def test_what_the_confirmation_told_to_be_worse_is_out_of_the_question_it_answered(tmp_path: Path, store: Store):
    study = searched(tmp_path, store)
    verdict(study, {1: 0.20, 0: 0.25}, {0: 1.0, 1: 2.0})
    choice = preferred(study, "diversity")
    assert choice.trial.number == 1, "the best of the search is worse on other patients"
    assert "Left out, as the confirmation told them to be worse in ged: t000." in choice.sentences
    assert 0 in [one.than.number for one in choice.against], "but it is said what it scored"
    assert chosen(study, "personalization") == 2, "that was not what was compared"


def test_cheap_is_the_least_computation_of_equals(tmp_path: Path, store: Store):
    study = searched(tmp_path, store)
    verdict(study, {0: 0.2000, 1: 0.2001, 2: 0.3}, {0: 5.0, 1: 2.0, 2: 1.0}, noise=0.01)
    choice = preferred(study, "cheap")
    assert choice.trial.number == 1 == winner(study).number
    assert choice.reason == (
        "the least computation of the 2 trials not worse than t001 (by the confirmation, others within 0.005)"
    )
    (other,) = [one for one in choice.against if one.than.number == 0]
    assert other.sentence.endswith("0.4 x the computation.")


def test_without_a_confirmation_cheap_is_the_least_time_within_the_margin(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store)
    for number, (ged, seconds) in enumerate([(0.200, 20.0), (0.204, 10.0), (0.206, 1.0), (0.203, 10.3)]):
        add(study, number, ged, 0.8, 0.8, epoch_seconds=seconds)
    choice = preferred(study, "cheap")
    assert choice.trial.number == 3, "at a like cost, the better"
    assert choice.reason == "the least time of an epoch of the 3 trials not worse than t000 (within 0.005)"


def test_the_margin_holds_in_both_objectives(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store, second_objective={"metric": "dice_mean"})
    for number, (ged, dice, seconds) in enumerate([(0.2, 0.8, 20.0), (0.204, 0.796, 15.0), (0.204, 0.7, 1.0)]):
        add(study, number, ged, 0.8, dice, second=dice, epoch_seconds=seconds)
    assert chosen(study, "cheap") == 1


# Nothing to choose


def test_without_a_complete_trial_there_is_nothing_to_choose(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store)
    add(study, 0, 0.2, 0.8, 0.8, state="stopped early")
    with pytest.raises(StudyError, match="no complete trial within its limits"):
        preferred(study, "balanced")


@pytest.mark.parametrize("word", WORDS)
def test_a_single_trial_is_taken_and_said_so(tmp_path: Path, store: Store, word: Word):
    study = make_study(tmp_path, store)
    add(study, 0, 0.2, 0.8, 0.8, epoch_seconds=1.0)
    assert preferred(study, word).sentences[0] == (
        f"t000 is taken for {word}: it is the only complete trial, there is nothing to choose between."
    )


def test_trials_whose_records_are_gone_make_no_front(tmp_path: Path, store: Store):
    study = searched(tmp_path, store)
    shutil.rmtree(study.folder / "trials")
    with pytest.raises(StudyError, match="no front to choose along"):
        preferred(study, "balanced")


def test_costs_that_were_not_recorded_cannot_be_compared(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store)
    add(study, 0, 0.2, 0.8, 0.8)
    with pytest.raises(StudyError, match="no record of what its trials cost"):
        preferred(study, "cheap")


# The command, and what is exported


@pytest.fixture
def trained(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two trials with weights: t000 is the best in GED and was retrained, t001 in personal Dice."""
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path))
    study = make_study(tmp_path, store)
    trial = train_trial(study, 0)
    train_trial(study, 1)
    train_fold(study, trial, 0)
    for number, ged, dice in [(0, 0.2, 0.8), (1, 0.3, 0.9)]:
        add_trial_scores(study, number, ged, dice)
    return study


def add_trial_scores(study: Study, number: int, ged: float, dice: float) -> None:
    """Scores of a trial's own, in the place of those of its training; its weights stay."""
    folder = study.trial_folder(number)
    weights = (folder / "best.safetensors").read_bytes()
    add(study, number, ged, dice, dice)
    (folder / "best.safetensors").write_bytes(weights)


def test_a_preferred_trial_is_exported_with_its_own_weights_and_says_so(trained: Study, tmp_path: Path):
    choice = preferred(trained, "personalization")
    export(trained, tmp_path / "out", choice=choice)
    weights = (tmp_path / "out/model.safetensors").read_bytes()
    assert weights == (trained.trial_folder(1) / "best.safetensors").read_bytes()
    card, metrics, record = (
        (tmp_path / "out" / name).read_text() for name in ("README.md", "metrics.json", "verify.json")
    )
    assert "NOT evaluated on held-out patients" in card
    assert "Preferred for personalization: t001 is taken" in card
    assert "Final stage" not in card, "whose numbers are those of another trial"
    told = json.loads(metrics)
    assert (told["retrained"], told["folds"], told["trial"]) == (False, [], 1)
    assert json.loads(record)["data"]["part"] == "validation"


def test_the_winner_is_exported_retrained_whatever_it_is_preferred_for(trained: Study, tmp_path: Path):
    export(trained, tmp_path / "out", choice=preferred(trained, "diversity"))
    weights = (tmp_path / "out/model.safetensors").read_bytes()
    assert weights == (trained.final_folder("blobs", 0) / "best.safetensors").read_bytes()
    assert json.loads((tmp_path / "out/verify.json").read_text())["data"]["part"] == "test"


def test_the_command_says_and_writes_it(trained: Study, tmp_path: Path):
    words = ["best", "--prefer", "personalization"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "t001 is taken for personalization: the best dice_match, 0.9000, of the 2 trials on the front" in text
    assert "ged 0.1000 (50.0 %) worse" in text
    assert "study s1, trial t001: ged 0.3000 on validation patients" in text
    assert "Held-out patients" not in text
    found = json.loads(CliRunner().invoke(app, [*words, "--json", "--export", str(tmp_path / "out")]).stdout)
    assert (found["trial"], found["folds"]) == (1, [])
    assert found["preference"] == json.loads(json.dumps(to_json(preferred(trained, "personalization"))))
    assert found["preference"]["front"][0]["metrics"] == {"ged": 0.2, "dice_mean": 0.8, "dice_match": 0.8}
    assert found["preference"]["against"][0]["worse_by"]["dice_mean"] == pytest.approx(-0.1)
    assert (tmp_path / "out/verify.json").exists()
    json.dumps(found, allow_nan=False)


def test_a_word_that_is_none_is_refused(trained: Study):
    result = CliRunner().invoke(app, ["best", "--prefer", "pretty"])
    assert result.exit_code == 2
    assert "diversity" in result.output
