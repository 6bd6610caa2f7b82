"""The confirmation: which trials are trained anew, on whom, and what is made of it. Ray is not started."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator import confirm
from orchestrator.confirm import VERDICT, candidates, evaluate_repeat, read_verdict, run_confirm, training_flops
from orchestrator.control import Stopped
from orchestrator.results import Trial, read_trials
from orchestrator.rivals import inner_folds
from orchestrator.study import Study
from orchestrator.trainings import Training
from proseg.data.store import Store
from proseg.fit import fit
from proseg.records import write_atomically
from tests.studies import add_trial, make_store, make_study

TWO = {"second_objective": {"metric": "dice_mean"}}


@pytest.fixture
def searched(tmp_path: Path, store: Store) -> Callable[..., Study]:
    """Makes a study with four complete trials, of which t002 is the best; changes are those of its space."""

    def make(**changes: Any) -> Study:
        confirm = {"confirm": {"top": 3, "repeats": 2}} | changes
        study = make_study(tmp_path, store, final=[{"data": str(store.folder), "epochs": 1}], **confirm)
        for number, objective in enumerate([0.5, 0.4, 0.2, 0.3]):
            add_trial(study, number, objective, second=objective)
        return study

    return make


# Who is compared


def numbers(study: Study) -> list[int]:
    return [trial.number for trial in candidates(study, read_trials(study))]


@pytest.mark.parametrize(("top", "found"), [(0, []), (1, [2]), (3, [2, 3, 1]), (9, [2, 3, 1, 0])])
def test_the_best_are_compared_the_best_first(searched, top: int, found: list[int]):
    assert numbers(searched(confirm={"top": top})) == found


def test_only_complete_trials_that_keep_to_the_limits_are_compared(searched):
    study = searched()
    add_trial(study, 4, 0.01, "stopped early")
    add_trial(study, 5, 0.02, "failed")
    add_trial(study, 6, 0.03, over=("gpu_memory",))
    assert numbers(study) == [2, 3, 1]


def test_a_configuration_is_not_compared_with_itself(searched):
    study = searched()
    same = read_trials(study)[2].values
    add_trial(study, 4, 0.25, values=same)
    assert numbers(study) == [2, 3, 1]


def test_of_two_objectives_those_of_the_front_are_compared(searched):
    study = searched(**TWO)
    assert numbers(study) == [2, 3, 1], "the smaller one, the better the other one's Dice: all are in the front"
    add_trial(study, 4, 0.1, second=0.45)
    assert numbers(study) == [4, 0], "which beats all others but one in both"


# How they are trained


def planned(study: Study) -> list[Training]:
    splits = confirm._splits(study, Told())  # type: ignore[arg-type]
    trainings = confirm._trainings(study, candidates(study, read_trials(study)), splits)
    assert [trial.number for trial in trainings.values()] == [training.arguments[1] for training in trainings]
    return list(trainings)


def test_each_is_trained_anew_as_often_as_is_asked_for_all_of_them_before_any_a_second_time(searched):
    study = searched()
    found = planned(study)
    assert [training.name for training in found] == [
        f"confirm {name} repeat {repeat}" for repeat in (0, 1) for name in ("t002", "t003", "t001")
    ]
    assert {training.folder for training in found} == {
        study.folder / "confirm" / name / f"repeat{repeat}" for repeat in (0, 1) for name in ("t002", "t003", "t001")
    }


def test_seeds_are_others_and_the_same_for_all(searched):
    study = searched().model_copy(update={"seed": 7})
    found = planned(study)
    assert [training.config.seed for training in found] == [8, 8, 8, 9, 9, 9]
    assert study.base.seed not in {8, 9}
    assert found[0].config == study.config_of(read_trials(study)[2].values).with_values({"seed": 8})


def test_patients_are_parted_otherwise_and_the_same_for_all_without_those_of_the_test(searched, store: Store):
    study = searched()
    found = planned(study)
    fold = store.manifest.folds[0]
    assert [training.fold for training in found] == [part for part in inner_folds(fold, 2, seed=0) for _ in range(3)]
    for training in found:
        assert training.fold == training.arguments[0]
        assert not set(fold.test) & {*training.fold.train, *training.fold.val}  # type: ignore[union-attr]


# What is made of it


class Told:
    """A tracker and a watcher."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.heard.append((name, *arguments))

    def names(self) -> list[str]:
        return [name for name, *_ in self.heard]


SCORES = {1: 0.4, 2: 0.35, 3: 0.3}
"""Of retrainings: the best of the search was lucky."""


def trained(monkeypatch: pytest.MonkeyPatch, failing: Sequence[str] = (), stopped_at: str = "") -> None:
    """Retrainings end as SCORES say, without training."""

    def run(
        study: Study, keeper: Any, trainings: Sequence[Training], progress: Any, *, tolerant: bool
    ) -> Iterator[Any]:
        assert tolerant
        for training in trainings:
            if training.name == stopped_at:
                raise Stopped
            if training.name in failing:
                continue
            progress(training, 1)
            _, trial, repeat = training.arguments
            values = [SCORES[trial] + 0.001 * (trial + case) for case in range(4)]
            result = {"trial": trial, "repeat": repeat, "patients": ["a", "b", "c", "d"], "values": values,
                      "cost": 1.0}  # fmt: skip
            write_atomically(training.folder / "result.json", json.dumps(result).encode())
            yield training

    monkeypatch.setattr(confirm, "run_trainings", run)


def confirmed(study: Study, told: Told) -> Any:
    return run_confirm(study, read_trials(study), None, told, told)  # type: ignore[arg-type]


def test_the_best_of_the_retrainings_is_chosen_and_the_verdict_is_kept(searched, monkeypatch: pytest.MonkeyPatch):
    study, told = searched(), Told()
    trained(monkeypatch)
    verdict = confirmed(study, told)
    assert (verdict.leader, verdict.chosen) == (3, 3)
    assert [rival.trial for rival in verdict.rivals] == [3, 2, 1]
    assert read_verdict(study) == verdict
    assert told.names() == ["repeats_started", *["training", "training", "repeat_ended"] * 6, "artifact"]
    assert told.heard[1] == ("training", "confirm t002 repeat 0", 1, 2)
    assert told.heard[3][2] == pytest.approx(0.35 + 0.001 * 3.5), "the mean over its cases"


def test_a_verdict_that_is_there_is_not_come_to_again(searched, monkeypatch: pytest.MonkeyPatch):
    study = searched()
    trained(monkeypatch)
    verdict = confirmed(study, Told())
    again = Told()
    assert confirmed(study, again) == verdict
    assert again.heard == []


@pytest.mark.parametrize("top", [0, 1])
def test_one_trial_is_not_compared(searched, monkeypatch: pytest.MonkeyPatch, top: int):
    study, told = searched(confirm={"top": top}), Told()
    trained(monkeypatch)
    assert confirmed(study, told) is None
    assert told.heard == []
    assert not (study.folder / VERDICT).exists()


def test_a_trial_of_which_a_retraining_failed_is_out_of_the_comparison(searched, monkeypatch: pytest.MonkeyPatch):
    study, told = searched(), Told()
    trained(monkeypatch, failing=["confirm t003 repeat 1"])
    verdict = confirmed(study, told)
    assert [rival.trial for rival in verdict.rivals] == [2, 1]
    assert told.names().count("repeat_ended") == 5


def test_a_confirmation_of_which_every_trial_failed_is_left_out_and_says_where_the_reasons_are(
    searched, monkeypatch: pytest.MonkeyPatch
):
    study, told = searched(), Told()
    trained(monkeypatch, failing=[f"confirm t00{trial} repeat {trial % 2}" for trial in (1, 2, 3)])
    assert confirmed(study, told) is None
    assert told.heard[-1][0] == "note"
    assert re.match(r"there is no confirmation: no trial could .*confirm/\*/\*/failure.json", told.heard[-1][1])
    assert not (study.folder / VERDICT).exists()


@pytest.mark.parametrize(("absent", "compared"), [([1], "there is no confirmation"), ([0], "leaves out repeat")])
def test_a_split_on_which_the_objective_is_undefined_is_left_out(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, absent: list[int], compared: str
):
    """Rater 2 annotated no validation case of one split, or of both."""
    first, second = inner_folds(store.manifest.folds[0], 2, seed=0)
    without = {*first.val} if absent == [0] else {*first.val, *second.val}
    partly = make_store(tmp_path / "partly", without=without)
    study = make_study(tmp_path, partly, objective={"metric": "dice_a2"}, confirm={"top": 2, "repeats": 2},
                       final=[{"data": str(partly.folder), "epochs": 1}])  # fmt: skip
    for number in (1, 2):
        add_trial(study, number, 0.5 + 0.1 * number)
    told = Told()
    trained(monkeypatch)
    verdict = confirmed(study, told)
    notes = [words for kind, words in (one[:2] for one in told.heard) if kind == "note"]
    assert compared in notes[-1]
    assert "rater A2 annotated no case of it" in notes[0]
    assert (verdict is None) == (absent == [1])
    if verdict is not None:
        assert {rival.repeats for rival in verdict.rivals} == {1}


def test_a_confirmation_that_was_stopped_has_no_verdict_yet(searched, monkeypatch: pytest.MonkeyPatch):
    study = searched()
    trained(monkeypatch, stopped_at="confirm t001 repeat 1")
    with pytest.raises(Stopped):
        confirmed(study, Told())
    assert read_verdict(study) is None


# A repeat, really evaluated


def repeated(study: Study, trial: Trial) -> Training:
    """The first of its repeats, trained here."""
    training = next(one for one in planned(study) if one.arguments[1] == trial.number)
    list(fit(training.config, training.data, training.fold, training.folder, study.criterion))  # type: ignore[arg-type]
    return training


@pytest.mark.usefixtures("global_rng")
def test_a_repeat_is_scored_case_by_case_on_those_it_did_not_train_on(searched, store: Store):
    study = searched(search={"model.tau_size": {"kind": "int", "low": 2, "high": 4}})
    training = repeated(study, read_trials(study)[2])
    assert training.evaluate is evaluate_repeat
    assert not training.done
    training.evaluate(str(study.folder), str(training.folder), *training.arguments)
    assert training.done
    found = training.result
    assert (found["trial"], found["repeat"]) == (2, 0)
    assert len(found["patients"]) == len(found["values"]) == 2 * len(training.fold.val)  # type: ignore[union-attr]
    assert set(found["patients"]) == set(training.fold.val)  # type: ignore[union-attr]
    assert all(value > 0 for value in found["values"])
    best = json.loads((training.folder / "epochs.jsonl").read_text().splitlines()[-1])["best"]
    assert sum(found["values"]) / len(found["values"]) == pytest.approx(best), "as the training itself said"
    assert found["cost"] > 0


@pytest.mark.usefixtures("global_rng")
def test_a_larger_model_costs_more_and_the_same_one_the_same(store: Store, searched):
    from proseg.train import TrainState

    study = searched()

    def cost(**values: Any) -> int:
        import torch

        config = study.base.with_values({key.replace("_", ".", 1): value for key, value in values.items()})
        return training_flops(TrainState.fresh(config, store, torch.device("cpu")).model, store, config)

    assert cost() == cost()
    assert cost(model_width=8) > 1.5 * cost()
    assert cost(optim_lr=0.5) == cost(), "it is a matter of the model"
