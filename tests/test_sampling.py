"""What is tried next, and how it ended: values within their ranges, the same for the same seed; none left running."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.results import ranked, read_trials
from orchestrator.study import Study
from proseg.records import Criterion
from search_spaces.space import SearchSpace
from tests.studies import make_space

EPOCHS = 4
SEARCH = {
    "optim.name": {"kind": "choice", "values": ["adam", "adamw"]},
    "optim.lr": {"kind": "float", "low": 0.0001, "high": 0.1, "log": True},
    "optim.weight_decay": {"kind": "float", "low": 0.0, "high": 0.5, "when": {"optim.name": "adamw"}},
    "model.tau_size": {"kind": "int", "low": 2, "high": 5},
    "model.levels": {"kind": "fixed", "value": 2},
}


@pytest.fixture
def space() -> SearchSpace:
    return make_space(search=SEARCH)


def searcher(space: SearchSpace, folder: Path, *, seed: int = 0, maximize: bool = False):
    from orchestrator.sampling import OptunaSearcher

    folder.mkdir(exist_ok=True)
    return OptunaSearcher(space, Criterion("ged", maximize), seed, folder / "optuna.db")


def ended(best: float, epoch: int = EPOCHS, finished: bool | None = None) -> dict[str, Any]:
    """What Ray hands over of a trial's last report."""
    finished = epoch == EPOCHS if finished is None else finished
    return {"epoch": epoch, "best": best, "ged": best, "finished": finished, "training_iteration": epoch}


def suggestions(space: SearchSpace, folder: Path, seed: int, count: int = 10) -> list[dict[str, Any]]:
    found = searcher(space, folder, seed=seed)
    values = []
    for number in range(count):
        suggestion = found.suggest(f"ray{number}")
        assert suggestion["number"] == number
        values.append(suggestion["values"])
        found.on_trial_complete(f"ray{number}", ended(suggestion["values"]["optim.lr"]))
    return values


def kept(folder: Path) -> list[Any]:
    """The trials as Optuna keeps them on disk."""
    import optuna

    return optuna.load_study(study_name="test", storage=f"sqlite:///{folder / 'optuna.db'}").trials


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return suggestions(make_space(search=SEARCH), tmp_path_factory.mktemp("optuna"), seed=0, count=16)


def test_values_lie_within_their_ranges(found: list[dict[str, Any]]):
    for values in found:
        assert values["optim.name"] in ("adam", "adamw")
        assert 0.0001 <= values["optim.lr"] <= 0.1
        assert values["model.tau_size"] in (2, 3, 4, 5)
        assert type(values["model.tau_size"]) is int
        assert values["model.levels"] == 2
        assert 0 <= values.get("optim.weight_decay", 0) <= 0.5


def test_a_condition_decides_whether_a_value_is_suggested(found: list[dict[str, Any]]):
    assert {values["optim.name"] for values in found} == {"adam", "adamw"}
    assert all(("optim.weight_decay" in values) == (values["optim.name"] == "adamw") for values in found)


def test_search_learns_from_what_it_was_told(found: list[dict[str, Any]]):
    """The objective was the learning rate itself: later suggestions are nearer to the low end than the first ones."""
    rates = [values["optim.lr"] for values in found]
    assert sorted(rates[-6:])[3] < sorted(rates[:6])[3]


def test_the_same_seed_suggests_the_same(found: list[dict[str, Any]], space: SearchSpace, tmp_path: Path):
    assert suggestions(space, tmp_path / "same", seed=0, count=8) == found[:8]
    assert suggestions(space, tmp_path / "other", seed=1, count=2) != found[:2]


@pytest.mark.parametrize(
    ("result", "error", "state", "value"),
    [
        (ended(0.3), False, "COMPLETE", 0.3),
        (ended(0.4, epoch=1), False, "PRUNED", 0.4),
        (ended(0.2, epoch=3, finished=True), False, "COMPLETE", 0.2),  # it converged
        (ended(0.4, epoch=1), True, "FAIL", None),
        (None, True, "FAIL", None),
        (None, False, "FAIL", None),
        ({}, False, "FAIL", None),
        ({"done": True}, False, "FAIL", None),
    ],
)
def test_optuna_is_told_how_a_trial_ended(
    space: SearchSpace, tmp_path: Path, result: dict | None, error: bool, state: str, value: float | None
):
    found = searcher(space, tmp_path)
    found.suggest("ray0")
    found.on_trial_complete("ray0", result, error=error)
    (trial,) = kept(tmp_path)
    assert (trial.state.name, trial.value) == (state, value)


def test_the_best_epoch_counts_not_the_last(space: SearchSpace, tmp_path: Path):
    found = searcher(space, tmp_path)
    found.suggest("ray0")
    found.on_trial_complete("ray0", ended(0.3) | {"ged": 0.5})
    assert kept(tmp_path)[0].value == 0.3


@pytest.mark.parametrize(("maximize", "direction"), [(False, "MINIMIZE"), (True, "MAXIMIZE")])
def test_the_direction_is_the_objectives(space: SearchSpace, tmp_path: Path, maximize: bool, direction: str):
    import optuna

    found = searcher(space, tmp_path, maximize=maximize)
    assert found.mode == direction[:3].lower()
    study = optuna.load_study(study_name="test", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert study.direction.name == direction


def test_nothing_stays_running(space: SearchSpace, tmp_path: Path):
    found = searcher(space, tmp_path)
    for number, end in enumerate([ended(0.3), ended(0.2, epoch=1), None]):
        found.suggest(f"ray{number}")
        found.on_trial_complete(f"ray{number}", end, error=end is None)
    found.on_trial_complete("ray1", ended(0.1))  # Ray may say it twice
    found.on_trial_complete("unknown", ended(0.1))
    assert [trial.state.name for trial in kept(tmp_path)] == ["COMPLETE", "PRUNED", "FAIL"]


# What the log says of it


@dataclass
class RayTrial:
    """What our callback reads of Ray's."""

    last_result: dict[str, Any]
    config: dict[str, Any] = field(default_factory=lambda: {"number": 0, "values": {"optim.lr": 0.001}})


class Deaf:
    """A tracker and a watcher that take everything."""

    def __getattr__(self, name: str):
        return lambda *_: None


@pytest.mark.parametrize(
    ("result", "state", "reason"),
    [
        (ended(0.3), "complete", ""),
        (ended(0.3, epoch=3, finished=True), "complete", "converged: not better for 2 epochs"),
        (ended(0.4, epoch=1), "stopped early", "ASHA: epoch 1 of 4"),
        ({}, "failed", "it was ended before its first epoch was over"),
    ],
)
def test_the_log_says_how_a_trial_ended_and_why(study: Study, result: dict, state: str, reason: str):
    from orchestrator.search import _Recorder

    study = study.model_copy(update={"base": study.base.with_values({"epochs": EPOCHS, "patience": 2})})
    recorder, trial = _Recorder(study, Deaf(), Deaf()), RayTrial(result)
    recorder.on_trial_start(0, [trial], trial)
    assert read_trials(study)[0].state == "running"
    recorder.on_trial_complete(0, [trial], trial)
    (found,) = read_trials(study)
    assert (found.state, found.reason, found.epoch) == (state, reason, result.get("epoch", 0))
    assert found.objective == result.get("best")


def test_a_trial_that_converged_is_ranked_among_the_complete(study: Study):
    from orchestrator.search import _Recorder

    recorder = _Recorder(study, Deaf(), Deaf())
    results = [ended(0.5), ended(0.3, epoch=1), ended(0.4, epoch=2, finished=True)]
    trials = [RayTrial(result, {"number": number, "values": {}}) for number, result in enumerate(results)]
    for trial in trials:
        recorder.on_trial_start(0, trials, trial)
        recorder.on_trial_complete(0, trials, trial)
    assert [trial.number for trial in ranked(read_trials(study), Criterion("ged"))] == [2, 0, 1]
