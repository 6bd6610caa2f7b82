"""Trainings of the confirmation and the final stage: a few at a time, each once. Ray is not started."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from orchestrator import ranks
from orchestrator.control import Stopped, request_stop
from orchestrator.ranks import TrainingFailed
from orchestrator.study import Study, StudyFailed, write_study
from orchestrator.trainings import Training, run_training, run_trainings
from proseg.data.store import Store
from proseg.records import BEST, LAST, PREVIOUS
from search_spaces.space import Objective
from tests.studies import make_store, write_epochs


class Pretended:
    """In the place of Ray: a task ends in the order in which it was begun, as `ends` says by its name."""

    def __init__(self, patch: pytest.MonkeyPatch, ends: dict[str, Exception] | None = None):
        self._ends = ends or {}
        self.begun: list[str] = []
        self.most, self.freed = 0, list[str]()
        patch.setattr(ray, "remote", lambda **_: lambda function: self)
        patch.setattr(ray, "wait", self._wait)
        patch.setattr(ray, "get", lambda reference: reference())

    def remote(self, folder: str, training: Training, keeper: Any) -> Callable[[], None]:
        self.begun.append(training.name)

        def ended() -> None:
            if training.name in self._ends:
                raise self._ends[training.name]
            (training.folder / "result.json").write_text(json.dumps({"name": training.name}))

        return ended

    def _wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(references))
        return references[:1], references[1:]

    @property
    def give(self) -> Any:
        """Of the keeper, of which this also is one."""
        return Free(self.freed)


class Free:
    def __init__(self, freed: list[str]):
        self._freed = freed

    def remote(self, owner: str, *, warm: bool) -> Callable[[], None]:
        assert not warm
        return lambda: self._freed.append(owner)


def stopped() -> RayTaskError:
    return RayTaskError("run_training", "trace", Stopped())


@pytest.fixture
def two_at_a_time(study: Study) -> Study:
    return study.model_copy(update={"resources": study.resources.model_copy(update={"concurrent": 2})})


def trainings(study: Study, count: int = 5) -> list[Training]:
    found = [
        Training(f"n{number}", study.base, study.data.folder, 0, study.final_folder("blobs", number), print)
        for number in range(count)
    ]
    for training in found:
        training.folder.mkdir(parents=True, exist_ok=True)
    return found


def ran(study: Study, pretended: Pretended, planned: list[Training], **more: Any) -> list[str]:
    return [one.name for one in run_trainings(study, pretended, planned, lambda training, epochs: None, **more)]


ALL = ["n0", "n1", "n2", "n3", "n4"]


def test_as_many_run_at_a_time_as_trials_did(two_at_a_time: Study, monkeypatch: pytest.MonkeyPatch):
    pretended = Pretended(monkeypatch)
    assert ran(two_at_a_time, pretended, trainings(two_at_a_time)) == ALL
    assert (pretended.begun, pretended.most) == (ALL, 2)
    assert pretended.freed == ALL, "whatever a process that was lost for good still held"


def test_what_is_done_is_not_done_again(two_at_a_time: Study, monkeypatch: pytest.MonkeyPatch):
    planned = trainings(two_at_a_time)
    for number in (1, 3):
        (planned[number].folder / "result.json").write_text('{"ged": 0.5}')
    pretended = Pretended(monkeypatch)
    assert ran(two_at_a_time, pretended, planned) == ["n1", "n3", "n0", "n2", "n4"]
    assert pretended.begun == ["n0", "n2", "n4"]
    assert planned[1].result == {"ged": 0.5}
    again = Pretended(monkeypatch)
    assert ran(two_at_a_time, again, planned) == ALL
    assert again.begun == []


def test_whoever_watches_hears_of_epochs(study: Study, monkeypatch: pytest.MonkeyPatch):
    (planned,) = trainings(study, 1)
    write_epochs(planned.folder, [0.5, 0.4])
    heard = []
    list(run_trainings(study, Pretended(monkeypatch), [planned], lambda *what: heard.append(what)))
    assert heard == [(planned, 2)]


@pytest.mark.parametrize("error", [RayTaskError("f", "trace", TrainingFailed("no")), WorkerCrashedError()])
def test_one_that_fails_fails_the_stage_and_the_others_keep_their_results(
    study: Study, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    planned, pretended = trainings(study), Pretended(monkeypatch, {"n2": error})
    (planned[2].folder / "failure.json").write_text('{"reason": "the loss is not finite"}')
    with pytest.raises(StudyFailed, match=r"^n2 failed: the loss is not finite; the traceback is in .*failure\.json$"):
        ran(study, pretended, planned)
    assert [one.done for one in planned] == [True, True, False, False, False]
    assert pretended.begun == ["n0", "n1", "n2"]


def test_where_it_is_tolerated_one_that_fails_is_left_out(two_at_a_time: Study, monkeypatch: pytest.MonkeyPatch):
    pretended = Pretended(monkeypatch, {"n2": WorkerCrashedError()})
    assert ran(two_at_a_time, pretended, trainings(two_at_a_time), tolerant=True) == ["n0", "n1", "n3", "n4"]


@pytest.mark.parametrize("tolerant", [False, True])
def test_a_stage_that_is_stopped_begins_nothing_and_waits_for_those_under_way(
    two_at_a_time: Study, monkeypatch: pytest.MonkeyPatch, tolerant: bool
):
    pretended, done = Pretended(monkeypatch, {"n1": stopped()}), list[str]()
    running = run_trainings(
        two_at_a_time, pretended, trainings(two_at_a_time), lambda *_: None, tolerant=tolerant
    )  # fmt: skip
    with pytest.raises(Stopped):
        done.extend(one.name for one in running)
    assert pretended.begun == ["n0", "n1", "n2"]
    assert done == ["n0", "n2"], "what was at its last epoch has its result"


# One of them, as its driver lives through it


def driven(study: Study, monkeypatch: pytest.MonkeyPatch, *steps: Any, evaluated: Any = None) -> list[Any]:
    """Run a training whose epochs are these; what it was evaluated with."""
    (training,), calls = trainings(study, 1), []
    for name in (BEST, LAST, PREVIOUS):
        (training.folder / name).write_bytes(b"weights")

    def pretended(*_: Any) -> Iterator[dict[str, Any]]:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield {"finished": step == len(steps)}

    def call(function: Any, *arguments: Any, **more: Any) -> None:
        calls.append((function, *arguments))
        if evaluated is not None:
            raise evaluated

    monkeypatch.setattr(ranks, "train", pretended)
    monkeypatch.setattr(ranks, "call", call)
    run_training(str(study.folder), training, None)
    return calls


def files(study: Study) -> set[str]:
    return {path.name for path in study.final_folder("blobs", 0).iterdir()}


def test_a_training_is_evaluated_and_then_needs_no_checkpoint_to_go_on_from(
    study: Study, monkeypatch: pytest.MonkeyPatch
):
    calls = driven(study, monkeypatch, 1, 2, 3)
    assert calls == [(print, str(study.folder), str(study.final_folder("blobs", 0)))]
    assert files(study) == {BEST}


def test_where_the_objective_is_undefined_the_mean_dice_of_all_chooses_the_epoch(
    study: Study, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    partly = make_store(tmp_path / "partly", without=store.manifest.folds[0].val)
    objective = study.space.model_copy(update={"objective": Objective(metric="dice_a2")})
    write_study(study.model_copy(update={"space": objective}))
    jobs = []

    def pretended(job: Any, *_: Any) -> Iterator[dict[str, Any]]:
        jobs.append(job)
        yield {"finished": True}

    monkeypatch.setattr(ranks, "train", pretended)
    monkeypatch.setattr(ranks, "call", lambda *_, **__: None)
    for fold in (0, 1):
        training = replace(trainings(study, 1)[0], data=partly.folder, fold=fold)
        run_training(str(study.folder), training, None)
    assert [job.criterion.metric for job in jobs] == ["dice_mean", "dice_a2"]


@pytest.mark.parametrize(("epochs", "ends"), [((1, 2, 3), False), ((1,), True)])
def test_a_training_that_is_stopped_goes_on_later_unless_it_was_at_its_end(
    study: Study, monkeypatch: pytest.MonkeyPatch, epochs: tuple[int, ...], ends: bool
):
    request_stop(study.folder)
    if ends:
        assert len(driven(study, monkeypatch, *epochs)) == 1
    else:
        with pytest.raises(Stopped):
            driven(study, monkeypatch, *epochs)
    assert (LAST in files(study)) != ends
    assert "failure.json" not in files(study)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_why_a_training_failed_is_written_down(study: Study, monkeypatch: pytest.MonkeyPatch, where: str):
    error = TrainingFailed("no memory is left")
    steps, evaluated = ((1, error), None) if where == "training" else ((1,), error)
    with pytest.raises(TrainingFailed):
        driven(study, monkeypatch, *steps, evaluated=evaluated)
    found = json.loads((study.final_folder("blobs", 0) / "failure.json").read_text())
    assert found["reason"] == "no memory is left"
    assert LAST in files(study), "it can be tried again"


def test_a_training_knows_by_its_folder_whether_it_is_done(tmp_path: Path, study: Study):
    one = Training("n", study.base, tmp_path, 0, tmp_path, print)
    assert not one.done
    (tmp_path / "result.json").write_text("{}")
    assert one.done
