"""When a study ends before it is done: time, budget, a file, a signal."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control import Control, forget_stop, request_stop, stop_requested
from orchestrator.interrupt import children_keep_running, stoppable, terminable
from orchestrator.quote import Quote, Stage
from orchestrator.resources import Node, Resources
from orchestrator.results import Trial
from orchestrator.study import Study
from proseg.data.store import Store
from tests.studies import make_study

NOTHING = Stage(low=0, high=0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; a test turns it on."""
    now = [1000.0]
    monkeypatch.setattr("orchestrator.control.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def planned(tmp_path: Path, store: Store) -> Callable[..., Study]:
    """Makes a study on two cores, one trial at a time; after its search come `after` seconds."""

    def make(*, after: float = 0.0, final: bool = True, **changes: Any) -> Study:
        stages = {"final": [{"data": str(store.folder), "epochs": 1}]} if final else {}
        study = make_study(tmp_path, store, **stages)
        cost = Quote(
            step=0.1, epoch=1, spread=0, search=Stage(low=10, high=20), confirm=Stage(low=after / 4, high=after / 4),
            final=Stage(low=3 * after / 4, high=3 * after / 4), unit="CPU-hours", rate=2.0, memory=1, checkpoint=1,
            disk=1,
        )  # fmt: skip
        return study.model_copy(update={"quote": cost, **changes})

    return make


def cost(*hours: float) -> list[Trial]:
    return [Trial(number, {}, "complete", cost=one) for number, one in enumerate(hours)]


# Time


@pytest.mark.parametrize(("after", "final", "left"), [(0, True, 100), (40, True, 60), (40, False, 100)])
def test_a_search_ends_early_enough_for_what_comes_after_it(
    planned, clock: list[float], after: float, final: bool, left: float
):
    control = Control(planned(after=after, final=final, max_time=100.0), [])
    clock[0] += left - 0.1
    assert not control.over
    clock[0] += 0.1
    assert control.over == "the time of the search was over"


def test_without_a_limit_a_search_is_never_over(planned, clock: list[float]):
    control = Control(planned(after=40), cost(1e9))
    control.started(0)
    clock[0] += 1e9
    assert control.over == ""


def test_time_that_does_not_suffice_for_what_comes_after_is_over_at_once(planned, clock: list[float]):
    assert Control(planned(after=100, max_time=50.0), []).over


# Budget


def test_what_a_trial_costs_is_what_it_holds_for_as_long_as_it_runs(planned, clock: list[float]):
    control = Control(planned(), [])
    control.started(0)
    clock[0] += 1800
    control.started(1)
    clock[0] += 1800
    assert control.spent == 2 * 1.0 + 2 * 0.5
    assert control.ended(0) == (3600, 2.0)
    clock[0] += 3600
    assert control.spent == 2.0 + 2 * 1.5
    assert control.ended(1) == (5400, 3.0)
    assert control.spent == 5.0


def test_a_trial_that_never_began_costs_nothing(planned, clock: list[float]):
    control = Control(planned(), [])
    assert control.ended(7) == (0, 0)
    control.started(0)
    clock[0] += 10
    control.ended(0)
    assert control.ended(0) == (0, 0), "it ends once"


@pytest.mark.parametrize(
    ("resources", "hours"),
    [
        (Resources(nodes=(Node(cpus=8, gpus=2),), workers=2, gpu_share=0.25, concurrent=4, threads_per_rank=1), 0.5),
        (Resources(nodes=(Node(cpus=8, gpus=0),), workers=2, gpu_share=0, concurrent=1, threads_per_rank=4), 8.0),
    ],
)
def test_an_hour_is_weighted_by_what_is_held(planned, clock: list[float], resources: Resources, hours: float):
    control = Control(planned(resources=resources), [])
    control.started(0)
    clock[0] += 3600
    assert control.ended(0) == (3600, hours)


def test_a_budget_counts_what_was_spent_before_and_leaves_the_rest_its_part(planned, clock: list[float]):
    study = planned(after=1800, budget=4.0)  # half an hour of two cores is put by
    assert not Control(study, cost(1.0, 1.9)).over
    assert Control(study, cost(1.0, 2.0)).over == "the budget of the search was used up"
    control = Control(study, cost(1.0))
    control.started(5)
    clock[0] += 3599
    assert not control.over
    clock[0] += 1
    assert control.over == "the budget of the search was used up", "trials that run count"


def test_without_a_final_stage_all_of_the_budget_is_the_searchs(planned, clock: list[float]):
    study = planned(after=1800, final=False, budget=4.0)
    assert not Control(study, cost(3.9)).over
    assert Control(study, cost(4.0)).over


# A file


def test_a_study_is_asked_to_stop_from_anywhere(planned):
    study = planned()
    control = Control(study, [])
    assert not control.stopping
    request_stop(study.folder)
    request_stop(study.folder)
    assert control.stopping
    assert stop_requested(study.folder)
    forget_stop(study.folder)
    forget_stop(study.folder)
    assert not control.stopping


# Signals


def press(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_as_they_were():
    """Started by a shell in the background, tests would ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    signal.signal(signal.SIGINT, before)


def test_the_first_ctrl_c_stops_cleanly_and_the_second_at_once(tmp_path: Path):
    said: list[str] = []
    with stoppable(tmp_path, said.append):
        press()
        assert stop_requested(tmp_path)
        assert said == ["stopping when the epochs under way are finished; Ctrl-C again stops at once"]
        with pytest.raises(KeyboardInterrupt):
            press()
    assert len(said) == 1


def test_a_handler_that_is_put_over_another_does_the_same(tmp_path: Path):
    """Ray puts one of its own between them."""
    said: list[str] = []
    with stoppable(tmp_path, said.append), stoppable(tmp_path, said.append):
        press()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            press()


def test_ctrl_c_ends_a_study_that_is_stopping_already(tmp_path: Path):
    request_stop(tmp_path)
    with stoppable(tmp_path, print), pytest.raises(KeyboardInterrupt):
        press()


@pytest.mark.parametrize("block", [terminable, lambda: stoppable(Path("/none"), print)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_sends_sigterm_or_closes_the_terminal_does_not_wait_for_epochs(block: Callable, number: signal.Signals):
    with block(), pytest.raises(KeyboardInterrupt):
        press(number)


def test_who_said_nohup_goes_on_when_the_terminal_is_closed(tmp_path: Path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(tmp_path, print):
            press(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not stop_requested(tmp_path)


def test_what_is_said_to_a_terminal_that_is_gone_is_no_error(tmp_path: Path):
    """The rest of the program is about to write down how the study ended; it says so as well."""
    pty = pytest.importorskip("pty", reason="terminals are tested on Unix")
    ours, theirs = pty.openpty()
    command = subprocess.Popen([sys.executable, "-c", HUNG_UP, str(tmp_path)], stdin=theirs, stdout=theirs,
                               stderr=theirs, start_new_session=True)  # fmt: skip
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    command.send_signal(signal.SIGHUP)
    assert command.wait(timeout=60) == 0
    assert (tmp_path / "written").exists()


HUNG_UP = """
import sys, time
from pathlib import Path
from orchestrator.interrupt import terminable
try:
    with terminable():
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("what has been reached is kept", flush=True)
    Path(sys.argv[1], "written").touch()
"""


def test_what_is_started_beside_the_trainings_outlives_the_terminal():
    with children_keep_running():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.send_signal(signal.SIGHUP)
    child.communicate(b"end\n", timeout=60)
    assert child.returncode == 0
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_handlers_are_put_back_after_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), stoppable(tmp_path, print):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt):
        press()
    assert not stop_requested(tmp_path)
