"""A training that something happens to: what goes on, what fails, and what its driver reports. Ray is not started."""

import errno
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from orchestrator import ranks, trial
from orchestrator.control import Stopped
from orchestrator.ranks import RESTARTS, Course, Crew, Job, Rank, Terms, TrainingFailed, Trouble, call, train, trouble
from orchestrator.study import Study
from orchestrator.trial import failure_of, failure_recorded
from proseg.data.store import Store
from proseg.errors import TrainingError
from proseg.records import append_line, read_epochs
from tests.studies import make_study

EPOCHS = 3

# What went wrong


@pytest.mark.parametrize(
    ("error", "kind", "reason", "sound"),
    [
        (ValueError("a bug\n  of two lines"), "error", "ValueError: a bug of two lines", False),
        (TrainingError("the loss is not finite"), "error", "the loss is not finite", True),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory", "OutOfMemoryError: CUDA out of memory.", False),
        (MemoryError(), "memory", "MemoryError:", False),
        (OSError(errno.ENOSPC, "No space left on device"), "disk", "OSError: [Errno 28] No space", False),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk", "OSError: [Errno 122] Disk quota", False),
        (OSError(errno.EIO, "Input/output error"), "error", "OSError: [Errno 5] Input/output error", False),
    ],
)
def test_errors_are_told_apart_by_what_can_be_done(error: Exception, kind: str, reason: str, sound: bool):
    try:
        raise error
    except Exception as raised:
        found = trouble(raised)
    assert (found.kind, found.sound) == (kind, sound)
    assert found.reason.startswith(reason)
    assert "test_recovery.py" in found.traceback
    sent = pickle.loads(pickle.dumps(found))
    assert (sent.kind, sent.reason, sent.traceback, sent.sound) == (kind, found.reason, found.traceback, sound)


# What is done about it


class Called:
    """A method of an actor: called later, when its answer is asked for."""

    def __init__(self, function: Callable[..., Any]):
        self.remote = lambda *args, **named: lambda: function(*args, **named)


class Hangs:
    def __call__(self) -> None:
        raise AssertionError("nobody waits for ever")


class Attempts:
    """A keeper, whose ranks do one list of things after another: an epoch's number, a trouble, an error, "hang"."""

    def __init__(self, *scripts: list[Any]):
        self._scripts = list(scripts)
        self.given: list[bool] = []
        self.shares: list[float] = []
        self.end: Exception | None = None
        self.take = Called(self._take)
        self.give = Called(lambda owner, *, warm: self.given.append(warm))

    def _take(self, owner: str, count: int, share: float) -> Crew:
        self.shares.append(share)
        script = self._scripts.pop(0)
        handles = [self._handle(list(script)) for _ in range(count)]
        return Crew(handles, [("10.0.0.1", "cpu", [])] * count, "token")

    def _handle(self, script: list[Any]) -> Any:
        def advance() -> Any:
            if not script:
                return None
            step = script.pop(0)
            if step == "hang":
                return Hangs()
            answer = step
            if isinstance(step, int):
                answer = {"epoch": step, "finished": step == EPOCHS}
            return lambda: answer

        def asked() -> Any:
            answer = advance()
            return answer if answer is not None else (lambda: None)

        def ended(token: str) -> None:
            if self.end is not None:
                raise self.end

        return SimpleNamespace(
            meeting=Called(lambda *, one_machine: f"file:///{one_machine}"), begin=Called(lambda *_: None),
            advance=SimpleNamespace(remote=asked), end=Called(ended), call=SimpleNamespace(remote=lambda *_: asked()),
        )  # fmt: skip


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: Any, timeout: float | None = None) -> Any:
        if isinstance(reference, list):
            return [get(one) for one in reference]
        answer = reference()
        if isinstance(answer, Exception) and not isinstance(answer, Trouble):
            raise answer
        return answer

    def wait(references: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        ready = [one for one in references if not isinstance(one, Hangs)]
        return ready[:1], [one for one in references if one not in ready[:1]]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)


@pytest.fixture
def job(tmp_path: Path, study: Study) -> Job:
    return Job(study.base, tmp_path, 0, tmp_path / "training", study.criterion)


def terms(*, workers: int = 1, share: float = 1.0, gpu: bool = False) -> Terms:
    return Terms(workers, share, epoch_timeout=5.0, can_double=gpu)


def epochs(job: Job, keeper: Attempts, given: Terms, course: Course) -> list[int]:
    return [record["epoch"] for record in train(job, keeper, "trial 0", given, course)]


LOST = RayActorError()
HUNG, DISK = "hang", Trouble("disk", "No space left")
BUG, FINITE = Trouble("error", "ValueError: a bug", "trace"), Trouble("error", "the loss is not finite", "trace", True)
MEMORY = Trouble("memory", "OutOfMemoryError: CUDA out of memory", "trace")
MEMORY_OF_NUMPY = Trouble("memory", "_ArrayMemoryError: Unable to allocate 9 TiB", "trace")


def test_a_training_to_which_nothing_happens(job: Job):
    keeper, course = Attempts([1, 2, 3]), Course()
    assert epochs(job, keeper, terms(), course) == [1, 2, 3]
    assert (course.retries, course.share, course.backend) == ([], 1.0, "gloo")
    assert keeper.given == [True]


def test_a_training_that_is_over_already_has_no_epochs(job: Job):
    assert epochs(job, Attempts([]), terms(), Course()) == []


@pytest.mark.parametrize(
    ("scripts", "retries"),
    [
        ([[1, LOST], [2, 3]], ["a training process was lost"]),
        ([[LOST], [1, LOST], [2, LOST], [3]], ["a training process was lost"] * 3),
        ([[1, HUNG], [2, 3]], ["no epoch was finished in 5 s (--epoch-timeout)"]),
        ([[1, HUNG], [2, LOST], [3]], ["no epoch was finished in 5 s", "a training process was lost"]),
        ([[1, DISK]] + [[DISK]] * 20 + [[2, 3]], []),
        ([[1, MEMORY], [2, 3]], ["out of memory"]),
        ([[1, MEMORY_OF_NUMPY], [2, 3]], ["out of memory"]),
    ],
)
def test_what_is_not_the_trainings_own_fault_costs_an_epoch(job: Job, scripts: list[list], retries: list[str]):
    keeper, course = Attempts(*scripts), Course()
    assert epochs(job, keeper, terms(), course) == [1, 2, 3]
    assert len(course.retries) == len(retries)
    assert all(said.lower().find(words) >= 0 for said, words in zip(course.retries, retries, strict=True))
    assert keeper.given == [False] * (len(scripts) - 1) + [True], "what troubled processes may be in any state"


@pytest.mark.parametrize(
    ("scripts", "reason"),
    [
        ([[1, LOST]] * (RESTARTS + 1), "a training process was lost"),
        ([[1, HUNG], [HUNG]], "no epoch was finished in 5 s (--epoch-timeout)"),
        ([[MEMORY], [MEMORY]], "OutOfMemoryError: CUDA out of memory"),
        ([[MEMORY_OF_NUMPY], [MEMORY_OF_NUMPY]], "_ArrayMemoryError: Unable to allocate 9 TiB"),
        ([[1, BUG]], "ValueError: a bug"),
        ([[1, DISK], [FINITE]], "the loss is not finite"),
    ],
)
def test_its_own_fault_or_too_many_of_others_fail_it(job: Job, scripts: list[list], reason: str):
    keeper = Attempts(*scripts)
    with pytest.raises(TrainingFailed) as error:
        epochs(job, keeper, terms(), Course())
    assert str(error.value).startswith(reason)
    assert len(keeper.shares) == len(scripts)


@pytest.mark.parametrize(
    ("share", "scripts", "shares"),
    [
        (0.25, [[1, MEMORY], [2, 3]], [0.25, 0.5]),
        (0.6, [[1, MEMORY], [2, 3]], [0.6, 1.0]),
        (0.25, [[MEMORY], [1, LOST], [2, 3]], [0.25, 0.5, 0.5]),
        (0.25, [[LOST], [MEMORY], [1, 2, 3]], [0.25, 0.25, 0.5]),
    ],
)
def test_a_training_that_ran_out_of_gpu_memory_gets_twice_the_share(
    job: Job, share: float, scripts: list[list], shares: list[float]
):
    keeper, course = Attempts(*scripts), Course()
    assert epochs(job, keeper, terms(share=share, gpu=True), course) == [1, 2, 3]
    assert keeper.shares == shares
    assert course.share == shares[-1]
    assert sum(f"tried again with a share of {shares[-1]:g}" in retry for retry in course.retries) == 1


@pytest.mark.parametrize(("share", "attempts"), [(1.0, 1), (0.25, 2)])
def test_a_training_that_does_not_fit_even_so_fails(job: Job, share: float, attempts: int):
    keeper = Attempts(*[[MEMORY]] * 9)
    with pytest.raises(TrainingFailed, match="out of memory"):
        epochs(job, keeper, terms(share=share, gpu=True), Course())
    assert len(keeper.shares) == attempts


def test_the_traceback_comes_along(job: Job):
    with pytest.raises(TrainingFailed) as error:
        epochs(job, Attempts([BUG]), terms(), Course())
    assert str(error.value.__cause__) == "trace"


# The processes afterwards


@pytest.mark.parametrize(
    ("fault", "workers", "warm"), [(FINITE, 1, True), (FINITE, 2, False), (BUG, 1, False), (BUG, 2, False)]
)
def test_a_process_is_kept_if_it_is_as_good_as_before(job: Job, fault: Trouble, workers: int, warm: bool):
    """The peers of a rank that failed still wait for it."""
    keeper = Attempts([1, fault])
    with pytest.raises(TrainingFailed):
        epochs(job, keeper, terms(workers=workers), Course())
    assert keeper.given == [warm]


def test_a_training_that_is_stopped_early_gives_its_ranks_back_warm(job: Job):
    keeper = Attempts([1, 2, 3])
    training = train(job, keeper, "trial 0", terms(), Course())
    next(training)
    assert keeper.given == []
    training.close()
    assert keeper.given == [True]


def test_nobody_waits_for_a_process_that_is_slow_to_let_go(job: Job):
    """The keeper finds out that a process is lost when the next training asks for it."""
    keeper = Attempts([1, 2, 3])
    keeper.end = LOST
    assert epochs(job, keeper, terms(), Course()) == [1, 2, 3]
    assert keeper.given == [True]


def test_the_first_trouble_of_any_rank_counts_while_its_peers_hang(job: Job):
    class Unequal(Attempts):
        def _take(self, owner: str, count: int, share: float) -> Crew:
            crew = super()._take(owner, count, share)
            crew.handles[1] = self._handle([1, BUG])
            return crew

    keeper = Unequal([1, HUNG])
    with pytest.raises(TrainingFailed, match="a bug"):
        epochs(job, keeper, terms(workers=2), Course())


def test_no_room_for_ever_is_one_sentence(job: Job):
    keeper = Attempts()

    def refuse(*_: Any) -> None:
        raise RayTaskError("take", "trace", RuntimeError("no node of the cluster is left"))

    keeper.take = Called(refuse)
    with pytest.raises(TrainingFailed, match=r"^no node of the cluster is left$"):
        epochs(job, keeper, terms(), Course())


@pytest.mark.parametrize("scripts", [[["answer"]], [[LOST], ["answer"]], [[DISK], [DISK], ["answer"]]])
def test_an_evaluation_is_done_again_like_a_training(tmp_path: Path, scripts: list[list]):
    keeper, course = Attempts(*scripts), Course(share=0.5)
    answer = call(print, folder=tmp_path, keeper=keeper, owner="final", terms=terms(share=0.5, gpu=True), course=course)
    assert answer == "answer"
    assert keeper.shares == [0.5] * len(scripts)


# A rank, in this process


@pytest.fixture
def as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("as_it_was", "global_rng")
def test_a_rank_trains_one_job_after_another(study: Study):
    rank = Rank(1, 1.0)
    for number in (0, 1):
        folder = study.trial_folder(number)
        job = Job(study.config_of({"model.tau_size": 2 + number}), study.data.folder, 0, folder, study.criterion)
        assert rank.begin(job, 0, 1, "", "gloo", f"token {number}") is None
        records = [rank.advance(), rank.advance()]
        assert records == read_epochs(folder)
        assert [record["finished"] for record in records] == [False, True]
        assert rank.advance() is None
        rank.end(f"token {number}")


@pytest.mark.usefixtures("as_it_was", "global_rng")
def test_a_rank_that_was_given_to_another_is_not_ended_by_the_first(study: Study):
    rank = Rank(1, 1.0)
    job = Job(study.base, study.data.folder, 0, study.trial_folder(0), study.criterion)
    rank.begin(job, 0, 1, "", "gloo", "second")
    rank.end("first")
    assert rank.advance()["epoch"] == 1  # type: ignore[index]
    rank.end("second")
    assert rank.advance() is None


@pytest.mark.usefixtures("as_it_was")
def test_ranks_of_one_machine_meet_in_a_file_and_others_at_an_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "get_node_ip_address", lambda: "127.0.0.1")
    rank = Rank(1, 1.0)
    place = rank.meeting(one_machine=True)
    assert place.startswith("file:///")
    assert rank._folder is not None
    assert place == f"file://{rank._folder.name}/group"
    rank._folder.cleanup()
    host, port = rank.meeting(one_machine=False).removeprefix("tcp://").split(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


@pytest.mark.usefixtures("as_it_was")
def test_a_rank_tells_what_went_wrong_and_goes_on(study: Study):
    rank = Rank(1, 1.0)
    job = Job(study.base, study.folder / "gone", 0, study.trial_folder(0), study.criterion)
    found = rank.begin(job, 0, 1, "", "gloo", "token")
    assert isinstance(found, Trouble)
    assert (found.kind, found.sound) == ("error", True)
    assert "gone" in found.reason
    assert rank.call(int, "7") == 7
    bad = rank.call(int, "seven")
    assert isinstance(bad, Trouble)
    assert bad.reason.startswith("ValueError")


# What the driver of a trial reports


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    from ray import tune

    found: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", found.append)
    return found


def record(epoch: int, best: float, dice: float = 0.5) -> dict[str, Any]:
    return {"epoch": epoch, "time": 0.0, "seconds": 1.0, "memory": None, "best": best, "finished": epoch == EPOCHS,
            "metrics": {"val/ged": best, "val/dice_mean": dice}}  # fmt: skip


def driven(monkeypatch: pytest.MonkeyPatch, study: Study, *steps: Any, known: int = 0) -> None:
    """A trial of which an earlier process trained `known` epochs, and which now does this."""
    folder = study.trial_folder(0)
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, known + 1):
        append_line(folder / "epochs.jsonl", record(epoch, 0.5 - 0.1 * epoch))

    def pretended(job: Job, keeper: Any, owner: str, terms: Terms, course: Course) -> Iterator[Any]:
        assert (job.folder, owner, terms.workers) == (folder, "trial 0", 1)
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield step

    monkeypatch.setattr(ranks, "train", pretended)
    trial.run_trial({"number": 0, "values": {"optim.lr": 0.002}}, str(study.folder), None)


def test_every_epoch_is_reported(study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]):
    driven(monkeypatch, study, *(record(epoch, 0.5 - 0.1 * epoch) for epoch in (1, 2, 3)))
    assert [(one["epoch"], one["finished"]) for one in reported] == [(1, False), (2, False), (3, True)]
    assert [round(one["best"], 9) for one in reported] == [0.4, 0.3, 0.2]
    assert all(one["second"] is None for one in reported)


def test_the_last_known_epoch_is_reported_again(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
):
    """A decision about it may have been lost with the process."""
    driven(monkeypatch, study, record(3, 0.2), known=2)
    assert [(one["epoch"], one["finished"]) for one in reported] == [(2, False), (3, True)]


def test_a_trial_that_had_come_to_its_end_is_reported_once(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
):
    driven(monkeypatch, study, known=3)
    assert [(one["epoch"], one["finished"]) for one in reported] == [(3, True)]


def test_a_trial_that_was_out_of_patience_is_finished(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
):
    """Its process was lost after the record said so and before anyone heard; training goes on no more."""
    driven(monkeypatch, study, known=2)
    assert [(one["epoch"], one["finished"]) for one in reported] == [(2, False), (2, True)]


def test_a_failure_is_an_answer(study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]):
    error = TrainingFailed("the loss is not finite")
    error.__cause__ = RuntimeError("trace")
    driven(monkeypatch, study, record(1, 0.4), error)
    assert reported[-1]["failed"] == "the loss is not finite"
    assert failure_of(study.trial_folder(0)) == "the loss is not finite"
    kept = json.loads((study.trial_folder(0) / "failure.json").read_text())
    assert kept["traceback"] == "trace"


def test_a_bug_of_ours_is_rays_to_tell_and_is_written_down(study: Study, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ZeroDivisionError):
        driven(monkeypatch, study, ZeroDivisionError("oh"))
    assert failure_of(study.trial_folder(0)) == "ZeroDivisionError: oh"


def test_the_second_objective_is_that_of_the_weights_that_are_kept(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
):
    study = make_study(tmp_path, store, name="two", second_objective={"metric": "dice_mean"})
    driven(monkeypatch, study, record(1, 0.4, 0.6), record(2, 0.4, 0.9), record(3, 0.3, 0.7))
    assert [one["second"] for one in reported] == [0.6, 0.6, 0.7]


def test_what_was_stopped_has_not_failed(tmp_path: Path):
    with pytest.raises(Stopped), failure_recorded(tmp_path):
        raise Stopped
    assert not (tmp_path / "failure.json").exists()
    assert failure_of(tmp_path) == "its process ended without a word"
