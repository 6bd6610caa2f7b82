"""What is tried next: values within their ranges, the same after a crash; and Optuna's database, a copy of the log."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator import sampling
from orchestrator.results import Trial
from orchestrator.sampling import Mirror, Proposals
from orchestrator.study import Point, Study
from proseg.data.store import Store
from tests.studies import make_study

EPOCHS = 4
SEARCH = {
    "optim.name": {"kind": "choice", "values": ["adam", "adamw"]},
    "optim.lr": {"kind": "float", "low": 0.0001, "high": 0.1, "log": True},
    "optim.weight_decay": {"kind": "float", "low": 0.0, "high": 0.5, "when": {"optim.name": "adamw"}},
    "model.tau_size": {"kind": "int", "low": 2, "high": 5},
    "model.levels": {"kind": "fixed", "value": 2},
}
UNIT = {"kind": "float", "low": 0.0, "high": 1.0}
TWO = {"second_objective": {"metric": "dice_mean"}}
SAMPLERS = ["tpe", "gp", "random", "qmc", "grid"]


@pytest.fixture(autouse=True)
def log_of_optuna() -> Iterator[None]:
    """Proposals turn it down, for the whole process."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def planned(tmp_path: Path, store: Store) -> Callable[..., Study]:
    """Makes a study; `points` and `seed` are its own, the other changes are those of its space."""
    made = 0

    def make(*, points: tuple[Point, ...] = (), seed: int = 0, **changes: Any) -> Study:
        nonlocal made
        made += 1
        study = make_study(tmp_path, store, name=f"s{made}", **{"search": SEARCH, **changes})
        return study.model_copy(update={"points": points, "seed": seed})

    return make


def ended(trial: Trial) -> Trial:
    """How a trial of this number ends: in all the ways there are."""
    value = abs(trial.values["optim.lr"] - 0.003) + 0.01 * trial.values["model.tau_size"]
    if trial.number % 7 == 5:
        return replace(trial, state="failed", reason="the loss is not finite")
    if trial.number % 5 == 3:
        return replace(trial, state="stopped early", epoch=1, objective=value + 0.1, second=0.5, reason="ASHA")
    return replace(
        trial, state="complete", epoch=EPOCHS, objective=value, second=0.5 + 0.1 * (trial.number % 3),
        memory=2**30, epoch_seconds=1.0 + trial.number % 4, over=("epoch_seconds",) if trial.number % 4 > 1 else (),
    )  # fmt: skip


def run(study: Study, count: int, *, at_once: int = 1) -> Iterator[tuple[list[Trial], Trial]]:
    """A search of so many trials, so many at a time: (the log before it, what was proposed) of each."""
    proposals, log, running = Proposals(study, []), dict[int, Trial](), list[Trial]()
    for number in range(count):
        before = [log[key] for key in sorted(log)]
        trial = proposals.ask()
        yield before, trial
        log[number] = trial
        running.append(trial)
        if len(running) == at_once:
            over = ended(running.pop(number % at_once))
            proposals.tell(over)
            log[over.number] = over


def proposed(study: Study, count: int) -> list[dict[str, Any]]:
    return [trial.values for _, trial in run(study, count)]


# Values


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_lie_within_their_ranges(planned, sampler: str):
    for number, (_, trial) in enumerate(run(planned(sampler=sampler), 6 if sampler == "gp" else 16)):
        values = trial.values
        assert (trial.number, trial.state, trial.origin) == (number, "running", "")
        assert values["optim.name"] in ("adam", "adamw")
        assert 0.0001 <= values["optim.lr"] <= 0.1
        assert values["model.tau_size"] in (2, 3, 4, 5)
        assert type(values["model.tau_size"]) is int
        assert values["model.levels"] == 2
        assert 0 <= values.get("optim.weight_decay", 0) <= 0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_condition_decides_whether_a_value_is_proposed(planned, sampler: str):
    found = proposed(planned(sampler=sampler), 7)
    assert {values["optim.name"] for values in found} == {"adam", "adamw"}
    assert all(("optim.weight_decay" in values) == (values["optim.name"] == "adamw") for values in found)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_search_learns_from_what_it_was_told(planned, sampler: str):
    """The objective is the learning rate itself: later proposals are nearer to the low end than the first ones."""
    study = planned(sampler=sampler, search={"optim.lr": SEARCH["optim.lr"]})
    proposals, rates = Proposals(study, []), []
    for _ in range(14):
        trial = proposals.ask()
        rates.append(trial.values["optim.lr"])
        proposals.tell(replace(trial, state="complete", epoch=EPOCHS, objective=rates[-1]))
    assert sorted(rates[-6:])[3] < sorted(rates[:6])[3]


def test_it_learns_the_other_way_where_large_is_good(planned):
    study = planned(search={"optim.lr": SEARCH["optim.lr"]}, objective={"metric": "dice_mean"})
    proposals, rates = Proposals(study, []), []
    for _ in range(14):
        trial = proposals.ask()
        rates.append(trial.values["optim.lr"])
        proposals.tell(replace(trial, state="complete", epoch=EPOCHS, objective=rates[-1]))
    assert sorted(rates[-6:])[3] > sorted(rates[:6])[3]


def test_it_stays_away_from_what_is_over_a_limit(planned):
    """A small weight decay is best, and below the middle an epoch takes too long."""

    def allowed(**limits: float) -> int:
        """Of the last twelve proposals."""
        proposals, decays = Proposals(planned(search={"optim.weight_decay": UNIT}, limits=limits), []), []
        for _ in range(24):
            trial = proposals.ask()
            decays.append(trial.values["optim.weight_decay"])
            seconds = 0.5 if decays[-1] > 0.5 else 2.0
            proposals.tell(
                replace(trial, state="complete", epoch=EPOCHS, objective=decays[-1], epoch_seconds=seconds)
            )  # fmt: skip
        return sum(decay > 0.5 for decay in decays[-12:])

    assert allowed(epoch_seconds=1.0) > allowed() + 3


def test_points_of_a_sequence_are_spread_evenly(planned):
    study = planned(sampler="qmc", search={"optim.weight_decay": UNIT})
    decays = [trial.values["optim.weight_decay"] for _, trial in run_without_end(study, 16)]
    assert sorted(int(16 * decay) for decay in decays) == list(range(16))


def run_without_end(study: Study, count: int) -> Iterator[tuple[None, Trial]]:
    """Trials of which none has ended."""
    proposals = Proposals(study, [])
    for _ in range(count):
        yield None, proposals.ask()


# The same again


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_proposes_the_same_and_another_another(planned, sampler: str):
    first = proposed(planned(sampler=sampler), 6)
    assert proposed(planned(sampler=sampler), 6) == first
    assert proposed(planned(sampler=sampler, seed=1), 6) != first


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_was_killed_proposes_what_it_would_have_proposed(
    planned, sampler: str, objectives: int, at_once: int
):
    """Trials that failed, were stopped early, are over a limit or were still running are in the log."""
    point = Point(values={"optim.lr": 0.002}, origin="the space")
    changes = TWO if objectives == 2 else {}
    study = planned(sampler=sampler, points=(point,), limits={"epoch_seconds": 2.5}, **changes)
    count = 6 if sampler == "gp" else 14
    for log, trial in run(study, count, at_once=at_once):
        assert Proposals(study, log).ask() == trial
    states = {one.state for one in log}
    assert states >= {"complete", "stopped early"}
    assert ("running" in states) == (at_once > 1)


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_a_trial_that_goes_on_after_a_crash_can_be_told(planned, state):
    study = planned()
    trial = replace(Proposals(study, []).ask(), state=state)
    over = ended(trial)
    again = Proposals(study, [trial])
    again.tell(over)
    assert again.ask() == Proposals(study, [over]).ask()


def test_saying_twice_how_a_trial_ended_does_no_harm(planned):
    study = planned()
    proposals = Proposals(study, [])
    over = ended(proposals.ask())
    proposals.tell(over)
    proposals.tell(replace(over, objective=0.0))
    assert proposals.ask() == Proposals(study, [over]).ask()


def test_a_trial_that_was_interrupted_is_not_over(planned):
    proposals = Proposals(planned(), [])
    trial = proposals.ask()
    proposals.tell(replace(trial, state="interrupted"))
    proposals.tell(ended(trial))  # else this would be refused as a trial that has ended


# Points that are tried first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_points_come_first_in_their_order_and_say_where_they_are_from(planned, sampler: str):
    points = (
        Point(values={"optim.lr": 0.01, "model.tau_size": 5, "optim.name": "adam"}, origin="the paper"),
        Point(values={"optim.name": "adamw", "optim.weight_decay": 0.25}, origin="the space"),
        Point(values={}, origin="another study"),
    )
    found = [trial for _, trial in run(planned(sampler=sampler, points=points), 5)]
    assert [trial.origin for trial in found] == ["the paper", "the space", "another study", "", ""]
    assert found[0].values == {"optim.name": "adam", "optim.lr": 0.01, "model.tau_size": 5, "model.levels": 2}
    assert (found[1].values["optim.name"], found[1].values["optim.weight_decay"]) == ("adamw", 0.25)
    assert 0.0001 <= found[1].values["optim.lr"] <= 0.1, "what a point leaves open is sampled"
    assert set(found[2].values) >= {"optim.name", "optim.lr", "model.tau_size"}


def test_points_do_not_shift_what_a_sequence_tries(planned):
    point = Point(values={"optim.lr": 0.01}, origin="the space")
    without = proposed(planned(sampler="qmc"), 3)
    assert proposed(planned(sampler="qmc", points=(point,)), 4)[1:] == without


# Grids

GRID = {
    "optim.lr": {"kind": "float", "low": 0.001, "high": 0.1, "log": True, "grid": 3},
    "model.tau_size": {"kind": "int", "low": 2, "high": 3},
}


def test_a_grid_is_tried_whole_once_in_the_order_of_the_seed(planned):
    study = planned(sampler="grid", search=GRID)
    proposals, found = Proposals(study, []), []
    while not proposals.exhausted:
        found.append(proposals.ask().values)
    everything = {(rate, size) for rate in (0.001, 0.01, 0.1) for size in (2, 3)}
    assert len(found) == 6
    assert {(round(values["optim.lr"], 12), values["model.tau_size"]) for values in found} == everything
    other = planned(sampler="grid", search=GRID, seed=1)
    assert [trial.values for _, trial in run_without_end(other, 6)] != found


def test_a_grid_is_exhausted_after_its_points_and_all_of_its_own(planned):
    study = planned(sampler="grid", search=GRID, points=(Point(values={"optim.lr": 0.05}, origin="the space"),))
    log = [trial for _, trial in run_without_end(study, 7)]
    assert [Proposals(study, log[:count]).exhausted for count in (0, 1, 6, 7)] == [False, False, False, True]


def test_a_point_of_the_grid_that_is_tried_first_is_not_tried_again(planned):
    """Nor does one that leaves something open, or that two origins name, take the place of one of the grid's own."""
    given = [{"optim.lr": 0.1, "model.tau_size": 3}, {"optim.lr": 0.001}, {"optim.lr": 0.1, "model.tau_size": 3}]
    points = tuple(Point(values=values, origin=f"o{number}") for number, values in enumerate(given))
    study = planned(sampler="grid", search=GRID, points=points)
    log = [trial for _, trial in run_without_end(study, 6)]
    assert [trial.origin for trial in log] == ["o0", "o1", "", "", "", ""]
    assert len({study.identity(trial.values) for trial in log}) == 6
    assert Proposals(study, log).exhausted


# Each configuration once

SMALL = {
    "model.use_tau": {"kind": "choice", "values": [True, False]},
    "model.tau_size": {"kind": "int", "low": 2, "high": 6, "when": {"model.use_tau": True}},
    "optim.name": {"kind": "choice", "values": ["adam", "adamw"]},
}
"""5 sizes with tau, and one way without, twice."""


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_no_configuration_is_tried_twice_and_a_space_can_come_to_its_end(planned, sampler: str):
    study = planned(sampler=sampler, search=SMALL)
    proposals, log = Proposals(study, []), []
    while not proposals.exhausted:
        trial = proposals.ask()
        assert Proposals(study, log).ask() == trial, "as after a crash"
        log.append(replace(trial, state="complete", epoch=EPOCHS, objective=0.1 * len(log)))
        proposals.tell(log[-1])
    assert len(log) == len({study.config_of(trial.values) for trial in log}) == 12


def test_a_field_that_is_not_searched_has_the_value_of_the_base(planned):
    """With tau_size = 4 in the base, a trial without that dimension is one that has it with 4."""
    search = {"optim.name": SMALL["optim.name"], "model.tau_size": {"kind": "int", "low": 4, "high": 5,
              "when": {"optim.name": "adam"}}}  # fmt: skip
    study = planned(search=search, base={"model.tau_size": 4})
    assert study.identity({"optim.name": "adam"}) == study.identity({"optim.name": "adam", "model.tau_size": 4})
    assert study.identity({"optim.name": "adam"}) != study.identity({"optim.name": "adamw"})


def test_large_spaces_and_those_of_numbers_do_not_come_to_an_end(planned):
    large = {name: {"kind": "int", "low": 2, "high": 200} for name in ("model.tau_size", "batch_size")}
    assert not Proposals(planned(search=large), [Trial(0, {"model.tau_size": 2, "batch_size": 2})]).exhausted
    study = planned()
    assert not Proposals(study, [trial for _, trial in run(study, 9)]).exhausted


# Optuna's database


def kept(study: Study) -> list[Any]:
    """The trials as Optuna keeps them on the disk."""
    return database(study).trials


def database(study: Study) -> optuna.Study:
    return optuna.load_study(study_name="test", storage=f"sqlite:///{study.folder / 'optuna.db'}")


def mirrored(study: Study, count: int = 6) -> list[Trial]:
    """A search of which the database is written as it goes on; one trial is left running."""
    mirror, log = Mirror(study, []), []
    for _, trial in run(study, count):
        mirror.started(trial)
        log.append(ended(trial))
        mirror.ended(log[-1])
    last = Trial(count, log[0].values)
    mirror.started(last)
    return [*log, last]


STATES = {"complete": "COMPLETE", "stopped early": "PRUNED", "failed": "FAIL", "running": "RUNNING"}


@pytest.mark.parametrize("objectives", [1, 2])
def test_the_database_agrees_with_the_log(planned, objectives: int):
    study = planned(**(TWO if objectives == 2 else {}))
    log = mirrored(study)
    found = kept(study)
    assert [trial.number for trial in found] == list(range(7))
    assert [trial.state.name for trial in found] == [STATES[trial.state] for trial in log]
    assert {trial.state.name for trial in found} == {"COMPLETE", "PRUNED", "FAIL", "RUNNING"}
    for one, trial in zip(found, log, strict=True):
        values = {name: value for name, value in trial.values.items() if name != "model.levels"}
        assert one.params == values, "what is fixed is no parameter"
        assert one.user_attrs["trial"] == trial.name
        assert one.user_attrs["reason"] == trial.reason
        if trial.state == "complete":
            assert one.values == [trial.objective, trial.second][:objectives]
        if trial.state == "stopped early" and objectives == 1:
            assert (one.values, one.intermediate_values) == ([trial.objective], {1: trial.objective})


def test_the_database_names_metrics_and_directions(planned):
    study = planned(**TWO)
    Mirror(study, [])
    found = database(study)
    assert found.metric_names == ["ged", "dice_mean"]
    assert [direction.name for direction in found.directions] == ["MINIMIZE", "MAXIMIZE"]


def test_the_database_knows_who_is_over_a_limit(planned):
    study = planned(limits={"epoch_seconds": 2.5, "gpu_memory": 1.5})
    log = mirrored(study)
    for one, trial in zip(kept(study), log, strict=True):
        if trial.state == "complete":
            assert one.constraints == {"gpu_memory": -0.5, "epoch_seconds": trial.epoch_seconds - 2.5}


def test_a_trial_that_was_interrupted_runs_on_in_the_database(planned):
    study = planned()
    mirror, trial = Mirror(study, []), Proposals(study, []).ask()
    mirror.started(trial)
    mirror.ended(replace(trial, state="interrupted", epoch=1, objective=0.5))
    assert [one.state.name for one in kept(study)] == ["RUNNING"]
    again = Mirror(study, [replace(trial, state="interrupted", epoch=1, objective=0.5)])
    again.ended(ended(trial))
    assert [one.state.name for one in kept(study)] == ["COMPLETE"]


def test_a_trial_that_has_ended_stays_as_it_is(planned):
    study = planned()
    log = mirrored(study, 1)
    Mirror(study, log).ended(replace(log[0], objective=0.0))
    assert kept(study)[0].value == log[0].objective


def test_a_database_that_agrees_is_left_alone(planned):
    study = planned()
    log = mirrored(study)
    database(study).set_user_attr("a person's", "note")
    Mirror(study, log)
    assert database(study).user_attrs == {"a person's": "note"}


def damage(study: Study, how: str) -> None:
    file = study.folder / "optuna.db"
    if how == "missing":
        file.unlink()
    elif how == "no database":
        file.write_bytes(b"no database at all" * 100)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif how == "one too many":
        database(study).ask()
    elif how == "other values":
        database(study).tell(6, 0.5)
    else:
        optuna.delete_study(study_name="test", storage=f"sqlite:///{file}")


@pytest.mark.parametrize("how", ["missing", "no database", "cut", "one too many", "other values", "without a study"])
def test_a_database_that_is_no_copy_is_made_again_from_the_log(planned, how: str, caplog: pytest.LogCaptureFixture):
    study = planned()
    log = mirrored(study)
    before = [vars_of(one) for one in kept(study)]
    damage(study, how)
    Mirror(study, log)
    assert [vars_of(one) for one in kept(study)] == before
    damaged = study.folder / "optuna.damaged"
    assert damaged.exists() == (how in ("no database", "cut")), "what is damaged is kept for a person to look at"
    assert caplog.messages == []


def vars_of(trial: Any) -> tuple[Any, ...]:
    return (trial.number, trial.state, trial.params, trial.values, trial.user_attrs["trial"], trial.intermediate_values,
            trial.constraints)  # fmt: skip


@pytest.mark.parametrize(
    "url",
    ["postgresql+nodriver://me:secret@127.0.0.1:9/optuna", "nonsense", "sqlite:////proc/none/optuna.db", "a://b:c@d/"],
)
def test_a_database_that_cannot_be_used_never_ends_a_study(planned, url: str, caplog: pytest.LogCaptureFixture):
    study = planned().model_copy(update={"storage": url})
    mirror = Mirror(study, [])
    for _, trial in run(study, 3):
        mirror.started(trial)
        mirror.ended(ended(trial))
    (warning,) = caplog.messages
    assert "is not kept up to date any more" in warning
    assert "secret" not in warning
    assert "\n" not in warning


def test_a_database_that_breaks_on_the_way_is_told_once(
    planned, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: Any) -> None:
        raise RuntimeError("the disk is on fire\nand more")

    study = planned()
    mirror, trials = Mirror(study, []), [trial for _, trial in run(study, 3)]
    mirror.started(trials[0])
    with monkeypatch.context() as context:
        context.setattr(optuna.Study, "add_trial", fail)
        mirror.started(trials[1])
    mirror.ended(ended(trials[0]))
    mirror.started(trials[2])
    assert len(caplog.messages) == 1
    assert "(the disk is on fire)" in caplog.messages[0]
    assert len(kept(study)) == 1
    Mirror(study, [ended(trials[0]), *trials[1:]])
    assert [one.state.name for one in kept(study)] == ["COMPLETE", "RUNNING", "RUNNING"]


def test_a_database_that_hangs_is_left_to_itself(
    planned, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    study, answers, answered = planned(), threading.Event(), threading.Event()
    mirror, trials = Mirror(study, []), [trial for _, trial in run(study, 3)]
    add_trial = optuna.Study.add_trial

    def hang(*given: Any) -> None:
        answers.wait()
        add_trial(*given)
        answered.set()

    with monkeypatch.context() as context:
        context.setattr(optuna.Study, "add_trial", hang)
        context.setattr(sampling, "SECONDS_FOR_THE_DATABASE", 0.05)
        for trial in trials:
            mirror.started(trial)
            mirror.ended(ended(trial))
        (warning,) = caplog.messages
        assert "(it has not answered for 0.05 s)" in warning
        answers.set()
        assert answered.wait(60)
    log = [ended(trial) for trial in trials]
    mirror.ended(log[0])
    assert [one.state.name for one in kept(study)] == ["RUNNING"], "what came too late, and nothing after it"
    Mirror(study, log)
    assert [one.state.name for one in kept(study)] == [STATES[trial.state] for trial in log]


def test_several_studies_share_a_database_that_is_given(planned, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    studies = [planned().model_copy(update={"storage": url}) for _ in range(2)]
    for study in studies:
        mirror = Mirror(study, [])
        for _, trial in run(study, 2):
            mirror.started(trial)
    assert {one.study_name: one.n_trials for one in optuna.get_all_study_summaries(url)} == {"s1": 2, "s2": 2}
    assert not (studies[0].folder / "optuna.db").exists()
