"""A search as its driver lives through it: what is tried, how each trial concludes, and what a crash changes: nothing.

Ray is not started: what it would call is called here.
"""

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import disk
from orchestrator import search as module
from orchestrator.control import Stopped, request_stop
from orchestrator.placement import WHOLE
from orchestrator.results import Trial, TrialLog, ranked, read_trials
from orchestrator.search import BEFORE_ITS_FIRST_EPOCH, _Search, run_search
from orchestrator.study import Study, StudyFailed
from proseg.data.store import Store
from proseg.records import BEST, LAST, PREVIOUS, append_line, read_epochs
from tests.studies import add_trial, make_study, running

EPOCHS = 4
TWO = {"second_objective": {"metric": "dice_mean"}}


class Heard:
    """A tracker, a watcher and a keeper: all that is said, with what the log says of the trial at that moment."""

    def __init__(self, study: Study):
        self._study, self.said = study, list[tuple[str, str, Any]]()
        self.notes = list[str]()
        self.freed = list[tuple[str, bool]]()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def hear(trial: Trial) -> None:
            logged = {one.number: one.state for one in read_trials(self._study)}
            self.said.append((name, trial.state, logged.get(trial.number)))

        return hear

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def give(self) -> "Heard":
        return self

    def remote(self, owner: str, *, warm: bool) -> None:
        self.freed.append((owner, warm))


class NoDatabase:
    """In the place of Optuna's, which takes a moment to make and is tested elsewhere."""

    def __init__(self, *_: Any):
        pass

    def started(self, trial: Trial) -> None:
        pass

    ended = started


@pytest.fixture(autouse=True)
def neither_ray_nor_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ray, "get", lambda answer: answer)
    if "database" not in request.fixturenames:
        monkeypatch.setattr(module, "Mirror", NoDatabase)


@pytest.fixture
def database() -> None:
    """For a test that wants one."""


@pytest.fixture
def planned(tmp_path: Path, store: Store) -> Iterator[Callable[..., Study]]:
    """Makes a study that this process runs; `max_time` and `budget` are its own, other changes are its space's."""

    def make(name: str = "s1", *, max_time: float | None = None, budget: float | None = None, **changes: Any) -> Study:
        trials = changes.pop("trials", 4)
        space = {"budget": {"trials": trials, "epochs": EPOCHS}, "scheduler": {"grace_epochs": 1}, **changes}
        study = make_study(tmp_path, store, name=name, **space)
        runs.enter_context(running(study))
        return study.model_copy(update={"max_time": max_time, "budget": budget})

    with ExitStack() as runs:
        yield make


def begun(study: Study) -> tuple[_Search, Heard]:
    heard = Heard(study)
    return _Search(study, heard, heard, heard), heard  # type: ignore[arg-type]


def result(epoch: int, best: float, *, finished: bool | None = None, **more: Any) -> dict[str, Any]:
    """What a trial reports after an epoch."""
    finished = epoch == EPOCHS if finished is None else finished
    known = {"epoch": epoch, "best": best, "finished": finished, "seconds": 2.0, "memory": None, "second": None,
             "backend": ""}  # fmt: skip
    return known | more


def concluded(study: Study, *results: dict[str, Any], **end: Any) -> Trial:
    """The first trial of a search that reports this and ends."""
    search, _ = begun(study)
    trial = search.next_trial()
    assert trial is not None
    search.started(trial.number)
    for one in results:
        search.reached(trial.number, one)
    search.ended(trial.number, results[-1] if results else {}, **end)
    (found,) = read_trials(study)
    return found


# How trials conclude


@pytest.mark.parametrize(
    ("results", "state", "reason", "epoch", "objective"),
    [
        ([result(1, 0.5), result(4, 0.3)], "complete", "", 4, 0.3),
        ([result(1, 0.3), result(3, 0.3, finished=True)], "complete", "converged: not better for 2 epochs", 3, 0.3),
        ([], "failed", BEFORE_ITS_FIRST_EPOCH, 0, None),
        ([{"failed": "the loss is not finite", "retries": []}], "failed", "the loss is not finite", 0, None),
        ([result(2, 0.4), {"failed": "ValueError: no"}], "failed", "ValueError: no", 2, 0.4),
        ([result(1, float("nan")), result(4, float("nan"))], "failed", "its objective is not a number", 4, None),
        ([result(2, 0.4)], "stopped early", "Ray ended it: epoch 2 of 4", 2, 0.4),
    ],
)
def test_the_log_says_how_a_trial_ended_and_why(
    planned, results: list[dict], state: str, reason: str, epoch: int, objective: float | None
):
    study = planned()
    study = study.model_copy(update={"base": study.base.with_values({"patience": 2})})
    found = concluded(study, *results)
    assert (found.number, found.state, found.reason, found.epoch) == (0, state, reason, epoch)
    assert found.objective == objective or (objective is None and found.objective != found.objective)


def test_an_error_of_rays_is_a_failure(planned):
    found = concluded(planned(), result(2, 0.4), error="its process ended without a word")
    assert (found.state, found.reason, found.epoch) == ("failed", "its process ended without a word", 2)


def test_a_second_objective_that_is_no_number_fails_the_trial(planned):
    found = concluded(planned(**TWO), result(4, 0.3, second=float("nan")))
    assert (found.state, found.reason) == ("failed", "its objective is not a number")


def test_what_is_measured_on_the_way_is_kept(planned):
    seconds = [9.0, 2.0, 3.0, 2.5]
    reports = [
        result(n, 0.5, seconds=s, memory=n * 2**20, second=0.1 * n, retries=["lost"][: n // 2])
        for n, s in enumerate(seconds, start=1)
    ]
    found = concluded(planned(**TWO), *reports)
    assert (found.epoch_seconds, found.memory, found.second) == (2.75, 4 * 2**20, 0.4)
    assert found.retries == ("lost",)
    assert found.seconds > 0
    assert found.cost == pytest.approx(2 * found.seconds / 3600, rel=0.01, abs=1e-6), "of two cores"


@pytest.mark.parametrize(
    ("limits", "over"),
    [
        ({"epoch_seconds": 1.5}, ("epoch_seconds",)),
        ({"epoch_seconds": 2.0}, ()),
        ({"gpu_memory": 0.5}, ("gpu_memory",)),
        ({"gpu_memory": 0.5, "epoch_seconds": 1.0}, ("gpu_memory", "epoch_seconds")),
        ({}, ()),
    ],
)
def test_a_trial_over_a_limit_is_complete_and_cannot_win(planned, limits: dict[str, float], over: tuple[str, ...]):
    study = planned(limits=limits)
    found = concluded(study, result(4, 0.1, memory=2**30))
    assert (found.state, found.over) == ("complete", over)
    assert found.reason == "; ".join(f"over the limit of {name}" for name in over)
    worse = Trial(1, {}, "complete", EPOCHS, 0.9)
    assert ranked([found, worse], study.criterion)[0] is (worse if over else found)


def test_the_memory_of_a_cpu_is_not_looked_at(planned):
    assert concluded(planned(limits={"gpu_memory": 0.5}), result(4, 0.1, memory=None)).over == ()


# Early stopping


def trained(search: _Search, curve: list[float], *, start: int = 1) -> bool:
    """Run the next trial, whose best values these are; has it run to its end?"""
    trial = search.next_trial()
    assert trial is not None
    search.started(trial.number)
    for epoch, best in enumerate(curve, start=start):
        report = result(epoch, best, second=0.5)
        goes_on = search.reached(trial.number, report)
        if not goes_on or report["finished"]:
            search.ended(trial.number, report)
            return goes_on
    raise AssertionError("the curve is too short")


def test_a_trial_that_is_not_among_the_best_is_stopped_and_told_why(planned):
    study = planned()
    search, _ = begun(study)
    assert trained(search, [0.5, 0.4, 0.3, 0.2])
    assert not trained(search, [0.6])
    first, second = read_trials(study)
    assert first.decision is None
    assert (second.state, second.epoch, second.objective) == ("stopped early", 1, 0.6)
    assert second.reason == "ASHA: rank 2 of 2 at epoch 1 (ged 0.6000, cut-off 0.5000), only the best goes on"
    assert second.decision == {"rung": 1, "value": [0.6], "cutoff": 0.5, "rank": 2, "of": 2, "kept": 1}


def test_a_trial_at_its_last_epoch_is_complete_whatever_it_brings(planned):
    study = planned(scheduler={"grace_epochs": EPOCHS})
    search, _ = begun(study)
    assert trained(search, [0.1, 0.1, 0.1, 0.1])
    assert trained(search, [0.9, 0.9, 0.9, 0.9])


def test_without_a_scheduler_nobody_is_stopped(planned):
    search, _ = begun(planned(scheduler={"kind": "none"}))
    assert all(trained(search, [0.1 * n] * EPOCHS) for n in range(1, 5))


def test_two_objectives_are_judged_by_fronts(planned):
    study = planned(**TWO)
    search, _ = begun(study)
    assert trained(search, [0.5, 0.4, 0.3, 0.2])
    assert not trained(search, [0.6])
    assert read_trials(study)[1].reason == (
        "ASHA: rank 2 of 2 at epoch 1 (ged 0.6000, dice_mean 0.5000, by non-dominated fronts), only the best goes on"
    )


# Ends from outside


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_trial_that_a_person_stopped_is_interrupted(planned, epochs: int):
    study = planned()
    search, heard = begun(study)
    trial = search.next_trial()
    assert trial is not None
    search.started(0)
    reports = [result(epoch, 0.4) for epoch in range(1, epochs + 1)]
    for report in reports:
        search.reached(0, report)
    request_stop(study.folder)
    search.ended(0, reports[-1] if reports else {})
    (found,) = read_trials(study)
    assert (found.state, found.epoch) == ("interrupted", epochs)
    assert found.reason == f"the study was stopped: epoch {epochs} of 4"
    assert search.next_trial() is None
    assert heard.said[-1] == ("trial", "interrupted", "interrupted")


def test_a_trial_that_finished_as_the_study_was_stopped_is_complete(planned):
    study = planned()
    search, _ = begun(study)
    search.next_trial()
    request_stop(study.folder)
    search.ended(0, result(4, 0.3))
    assert read_trials(study)[0].state == "complete"


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_time": 50.0}, "the time of the search was over: epoch 2 of 4"),
        ({"budget": 2 * 50 / 3600}, "the budget of the search was used up: epoch 2 of 4"),
    ],
)
def test_a_trial_that_ran_as_time_or_budget_was_over_is_stopped_and_frees_its_ranks(
    planned, monkeypatch: pytest.MonkeyPatch, limit: dict[str, float], reason: str
):
    study, clock = planned(**limit), [1000.0]
    monkeypatch.setattr("orchestrator.control.time.monotonic", lambda: clock[0])
    search, heard = begun(study)
    for number in (0, 1):
        search.next_trial()
        search.started(number)
    search.reached(0, result(2, 0.4))
    assert not search.control.over
    clock[0] += 51
    assert search.next_trial() is None
    for number, last in enumerate((result(2, 0.4), {})):
        search.ended(number, last, cut=True)
    stopped, hasty = read_trials(study)
    assert (stopped.state, stopped.reason, stopped.seconds) == ("stopped early", reason, 51)
    assert stopped.cost == pytest.approx(2 * 51 / 3600)
    assert (hasty.state, hasty.reason) == ("failed", BEFORE_ITS_FIRST_EPOCH)
    assert heard.freed == [("trial 0", False), ("trial 1", False)]


def test_the_ranks_of_a_trial_are_free_when_it_has_ended_and_stay_warm_if_they_were_between_epochs(planned):
    study = planned()
    search, heard = begun(study)
    trained(search, [0.5, 0.4, 0.3, 0.2])
    assert heard.freed == [("trial 0", True)]
    search.next_trial()
    search.ended(1, {}, error="its process ended without a word")
    assert heard.freed[1:] == [("trial 1", False)]


# What is written, and when


def test_everything_is_in_the_log_before_anyone_hears_of_it(planned):
    search, heard = begun(planned())
    trained(search, [0.5, 0.4, 0.3, 0.2])
    trained(search, [0.6])
    assert [(name, state) for name, state, _ in heard.said if name.startswith("trial_")] == [
        ("trial_started", "running"), *[("trial_epochs", "running")] * 4, ("trial_ended", "complete"),
        ("trial_started", "running"), ("trial_epochs", "running"), ("trial_ended", "stopped early"),
    ]  # fmt: skip
    assert all(state == logged for _, state, logged in heard.said)


def test_a_trial_ends_once(planned):
    study = planned()
    search, heard = begun(study)
    trained(search, [0.5, 0.4, 0.3, 0.2])
    before = (study.folder / "trials.jsonl").read_bytes()
    heard.said.clear()
    heard.freed.clear()
    search.ended(0, {}, cut=True)
    search.ended(0, {}, error="late")
    assert (study.folder / "trials.jsonl").read_bytes() == before
    assert (heard.said, heard.freed) == ([], [])


def test_a_log_that_finds_no_space_is_written_when_there_is_some(planned, monkeypatch: pytest.MonkeyPatch):
    study = planned()
    search, heard = begun(study)
    append, full = TrialLog.append, [True, True, False]

    def tried(log: TrialLog, trial: Trial) -> None:
        if full and full.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device", "trials.jsonl")
        append(log, trial)

    monkeypatch.setattr(disk, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(TrialLog, "append", tried)
    assert search.next_trial() is not None
    assert [one.state for one in read_trials(study)] == ["running"]
    assert heard.notes == ["trials.jsonl: no space left; the study waits until there is"]


def test_a_full_disk_is_told_once_each_time_it_is_full(planned, monkeypatch: pytest.MonkeyPatch):
    search, heard = begun(planned())
    for short in (0, 5 * 2**20, 4 * 2**20, 0, 3 * 2**20):
        monkeypatch.setattr(module, "lacking", lambda folder, short=short: short)
        search.look_around()
    assert [note.split("when ")[1] for note in heard.notes] == ["5 MB more are free", "3 MB more are free"]


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (result(4, 0.3), {BEST}),
        (result(1, 0.9), {BEST}),
        ({"failed": "ValueError: no"}, {BEST}),
        (None, {BEST, LAST, PREVIOUS}),
    ],
    ids=["complete", "stopped", "failed", "interrupted"],
)
def test_checkpoints_to_go_on_from_are_kept_as_long_as_a_trial_may_go_on(planned, end: dict | None, kept: set[str]):
    study = planned()
    folder = study.trial_folder(0)
    folder.mkdir(parents=True)
    for name in (BEST, LAST, PREVIOUS):
        (folder / name).write_bytes(b"weights")
    search, _ = begun(study)
    search.next_trial()
    if end is None:
        request_stop(study.folder)
    search.ended(0, end or result(1, 0.5))
    assert {path.name for path in folder.iterdir()} == kept


# How many


def test_no_more_trials_are_tried_than_were_asked_for(planned):
    search, _ = begun(planned(trials=2))
    assert search.trials_left
    numbers = [trial and trial.number for trial in (search.next_trial() for _ in range(4))]
    assert numbers == [0, 1, None, None]
    assert not search.trials_left


def test_a_grid_ends_a_search_when_it_has_been_tried_whole(planned):
    study = planned(trials=9, sampler="grid", search={"model.tau_size": {"kind": "int", "low": 2, "high": 4}})
    search, _ = begun(study)
    while trial := search.next_trial():
        search.ended(trial.number, result(4, 0.3))
    assert sorted(trial.values["model.tau_size"] for trial in read_trials(study)) == [2, 3, 4]
    assert not begun(study)[0].trials_left


@pytest.mark.parametrize(("workers", "notes"), [(1, []), (2, ["gloo", "nccl"])])
def test_how_ranks_talk_to_each_other_is_told_once(planned, workers: int, notes: list[str]):
    study = planned(scheduler={"kind": "none"})
    resources = study.resources.model_copy(update={"workers": workers})
    search, heard = begun(study.model_copy(update={"resources": resources}))
    search.next_trial()
    for epoch, backend in enumerate(["", "gloo", "gloo", "nccl"], start=1):
        search.reached(0, result(epoch, 0.5, backend=backend))
    assert [note.split("over ")[1].split(":")[0] for note in heard.notes] == notes


# The end of a search


def test_a_search_that_has_no_trial_left_answers_with_the_best(planned):
    study = planned(trials=2)
    for number, value in enumerate([0.4, 0.3]):
        add_trial(study, number, value)
    heard = Heard(study)
    best = run_search(study, heard, heard, heard)  # type: ignore[arg-type]
    assert (best.number, best.objective) == (1, 0.3)


def test_a_search_that_was_stopped_after_its_last_trial_is_stopped(planned):
    study = planned(trials=1)
    add_trial(study, 0, 0.4)
    request_stop(study.folder)
    heard = Heard(study)
    with pytest.raises(Stopped):
        run_search(study, heard, heard, heard)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reasons", "sentence"),
    [
        ([BEFORE_ITS_FIRST_EPOCH, BEFORE_ITS_FIRST_EPOCH], "finished an epoch in the time it had; raise --max-time"),
        (["the loss is not finite", "a bug"], "every trial of study s1 failed: a bug; the loss is not finite"),
    ],
)
def test_a_search_without_a_score_says_why(planned, reasons: list[str], sentence: str):
    study = planned(trials=2)
    for number, reason in enumerate(reasons):
        add_trial(study, number, None, "failed", reason=reason)
    heard = Heard(study)
    with pytest.raises(StudyFailed) as error:
        run_search(study, heard, heard, heard)  # type: ignore[arg-type]
    assert sentence in str(error.value)


# A search that goes on


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_trials_that_were_interrupted_go_on_first_as_they_were(planned, state):
    study = planned()
    add_trial(study, 0, 0.4)
    before = [
        Trial(number, {"optim.lr": 0.002 * number, "model.tau_size": 3}, state, 1, 0.5, "ended", 100.0, cost=2.0,
              origin="the paper")
        for number in (1, 2)
    ]  # fmt: skip
    for trial in before:
        TrialLog(study.folder).append(trial)
    search, heard = begun(study)
    for trial in before:
        again = search.next_trial()
        assert again is not None
        assert (again.number, again.values, again.origin) == (trial.number, trial.values, "the paper")
        assert (again.state, again.reason) == ("running", "")
    new = search.next_trial()
    assert new is not None
    assert new.number == 3
    assert search.next_trial() is None
    assert [name for name, *_ in heard.said] == ["trial_started"] * 3
    search.started(1)
    search.ended(1, result(4, 0.3))
    found = read_trials(study)[1]
    assert found.seconds >= 100, "what it had run before counts"
    assert found.cost >= 2
    assert search.control.spent >= 4


def test_a_search_that_was_over_its_budget_stays_so(planned):
    study = planned(budget=1.0)
    add_trial(study, 0, 0.4, cost=1.0)
    search, _ = begun(study)
    assert search.trials_left
    assert search.next_trial() is None


class Killed(BaseException):
    """Ends the driver wherever it is."""


CURVES = [0.5, 0.6, 0.1, 0.55, 0.45, 0.52, 0.4]
"""The trial that fails, of number 2, was the best until then: others are held against it."""


class Simulated:
    """Trainings of which the outcome is known; the driver dies when its patience is over."""

    def __init__(self, study: Study, steps: int):
        self._study, self._steps = study, steps
        self.search, _ = begun(study)

    def run(self) -> None:
        while trial := self.search.next_trial():
            self._step()
            self.search.started(trial.number)
            last: dict[str, Any] = {}
            for last in self._reports(trial):
                self._step()
                if not self.search.reached(trial.number, last):
                    break
                self._step()
            self.search.ended(trial.number, last)
            self._step()

    def _step(self) -> None:
        if not self._steps:
            raise Killed
        self._steps -= 1

    def _reports(self, trial: Trial) -> Iterator[dict[str, Any]]:
        """As `orchestrator.trial.run_trial`: the last epoch that is known first, its decision may have been lost."""
        folder = self._study.trial_folder(trial.number)
        known = read_epochs(folder)
        if known and not known[-1]["finished"]:
            yield self._report(known)
        for epoch in range(len(known) + 1, EPOCHS + 1):
            if trial.number == 2 and epoch == 2:
                yield {"failed": "the loss is not finite"}
                return
            value = CURVES[trial.number] + 0.1 / epoch
            record = {"epoch": epoch, "time": 0.0, "seconds": 1.0, "memory": None, "finished": epoch == EPOCHS,
                      "best": value, "metrics": {"val/ged": value, "val/dice_mean": 1 - value}}  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
            append_line(folder / "epochs.jsonl", record)
            known.append(record)
            yield self._report(known)
        if known and known[-1]["finished"]:
            yield self._report(known)

    def _report(self, known: list[dict[str, Any]]) -> dict[str, Any]:
        second = known[-1]["metrics"]["val/dice_mean"] if self._study.second else None
        return result(known[-1]["epoch"], known[-1]["best"], second=second)


def told(study: Study) -> str:
    """What must not depend on what happened on the way."""
    trials = [replace(trial, seconds=0.0, cost=0.0, epoch_seconds=None) for trial in read_trials(study)]
    return json.dumps([vars(trial) for trial in trials], default=str, indent=1)


@pytest.mark.parametrize("changes", [{}, TWO], ids=["one objective", "two objectives"])
def test_a_driver_that_is_killed_at_any_moment_loses_nothing(planned, changes: dict[str, Any]):
    whole = planned("whole", trials=7, **changes)
    Simulated(whole, 10**6).run()
    states = [trial.state for trial in read_trials(whole)]
    assert set(states) == {"complete", "stopped early", "failed"}
    for steps in range(1, 100):
        study = planned(f"killed{steps}", trials=7, **changes)
        try:
            Simulated(study, steps).run()
            break
        except Killed:
            Simulated(study, 10**6).run()
        assert told(study) == told(whole), f"killed after {steps} steps"
    else:
        raise AssertionError("every moment was tried")
    assert steps > 20


def test_a_driver_that_is_killed_again_and_again_loses_nothing(planned):
    whole, study = planned("whole", trials=7), planned("often", trials=7)
    Simulated(whole, 10**6).run()
    for _ in range(100):
        try:
            Simulated(study, 5).run()
            break
        except Killed:
            continue
    assert told(study) == told(whole)


def test_optunas_database_follows(planned, database: None):
    import optuna

    study = planned(trials=4)
    try:
        Simulated(study, 9).run()
    except Killed:
        Simulated(study, 10**6).run()
    kept = optuna.load_study(study_name="test", storage=f"sqlite:///{study.folder / 'optuna.db'}").trials
    words = {"complete": "COMPLETE", "stopped early": "PRUNED", "failed": "FAIL"}
    assert [one.state.name for one in kept] == [words[trial.state] for trial in read_trials(study)]
    assert [one.params for one in kept] == [trial.values for trial in read_trials(study)]


# What Ray calls


class RayTrial:
    """What our callbacks read of Ray's."""

    def __init__(self, number: int, last_result: dict[str, Any] | None):
        self.config, self.last_result = {"number": number, "values": {}}, last_result


def test_rays_callbacks_come_to_the_search(planned):
    from ray.tune.schedulers import TrialScheduler

    study = planned()
    search, heard = begun(study)
    searcher, scheduler = module._Searcher(search), module._Scheduler(search)
    recorder, stopper = module._Recorder(search), module._Stopper(search)
    suggested = [searcher.suggest(f"ray{number}") for number in range(5)]
    assert [one if isinstance(one, str) else one["number"] for one in suggested] == [0, 1, 2, 3, searcher.FINISHED]
    rays = [RayTrial(number, None) for number in range(4)]
    for one in rays:
        recorder.on_trial_start(0, rays, one)
    assert scheduler.on_trial_result(None, rays[0], result(1, 0.4)) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, rays[1], result(1, 0.5)) == TrialScheduler.STOP
    rays[1].last_result = result(1, 0.5)
    recorder.on_trial_complete(0, rays, rays[1])
    recorder.on_trial_error(0, rays, rays[2])
    assert not stopper("ray0", {})
    assert not stopper.stop_all()
    request_stop(study.folder)
    assert stopper("ray0", {}), "after the epoch that was under way"
    assert not stopper.stop_all(), "others finish theirs"
    rays[0].last_result = result(1, 0.4)
    recorder.on_experiment_end(rays)
    assert [trial.state for trial in read_trials(study)] == ["interrupted", "stopped early", "failed", "interrupted"]
    assert read_trials(study)[2].reason == "its process ended without a word"
    assert heard.freed == [("trial 1", True), ("trial 2", False), ("trial 0", False), ("trial 3", False)]


def test_what_ray_would_pickle_of_a_search_is_nothing(planned):
    """It saves its own state again and again, and what hangs on to ours cannot be pickled."""
    import pickle

    search, _ = begun(planned())
    for part in (module._Searcher, module._Scheduler, module._Stopper, module._Recorder):
        assert len(pickle.dumps(part(search))) < 200


def test_the_budget_of_a_trial_on_half_a_gpu_is_half(planned):
    from orchestrator.resources import plan_resources
    from tests.studies import ONE_TRIAL

    node = ONE_TRIAL.nodes[0].model_copy(update={"gpus": 1})
    resources = plan_resources(workers=1, gpu_share=0.5, concurrent=None, trials=4, nodes=[node])
    study = planned().model_copy(update={"resources": resources})
    found = concluded(study, result(4, 0.3, seconds=1.0))
    assert found.cost == pytest.approx(0.5 * found.seconds / 3600, rel=0.01, abs=1e-6)
    assert WHOLE * resources.share == 5000


def test_who_drives_a_training_does_without_torch():
    """Its import would cost every trial's process a second and 150 MB, beside the ranks that have it."""
    code = (
        "import sys, orchestrator.trial\n"
        "from orchestrator.ranks import Crew\n"
        "print(Crew([], [('10.0.0.1', 'cpu', [])], '').backend, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["gloo", "False"]
