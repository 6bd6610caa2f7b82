"""Trainings outside of the search, those of the confirmation and of the final stage: a few at a time, each evaluated.

Each is driven by a light process of its own, which Ray starts again if it is lost. A training whose result lies on the
disk is not run again, so a stage that was interrupted goes on where it was.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.control import Stopped, stop_requested
from orchestrator.objective import criterion_on
from orchestrator.results import EVALUATED_ANEW
from orchestrator.study import Study, StudyFailed, read_study
from orchestrator.trial import failure_of, failure_recorded
from proseg.config import TrainConfig
from proseg.data.folds import Fold
from proseg.records import drop_resumable, read_epochs, read_json

RESULT = "result.json"
POLL_SECONDS = 1.0
LOST_PROCESSES = 3


@dataclass(frozen=True, eq=False)
class Training:
    """One training, and what is made of its best weights."""

    name: str
    """For people and for who holds its ranks; unique in the study."""
    config: TrainConfig
    data: Path
    fold: Fold | int
    folder: Path
    evaluate: Callable[..., None]
    """`evaluate(study folder, training folder, *arguments)`, run where the device is; writes result.json."""
    arguments: tuple[Any, ...] = ()

    @property
    def done(self) -> bool:
        return (self.folder / RESULT).exists()

    @property
    def result(self) -> dict[str, Any]:
        return read_json(self.folder / RESULT, EVALUATED_ANEW)


def run_trainings(
    study: Study, keeper: Any, trainings: Sequence[Training], progress: Callable[[Training, int], None],
    *, tolerant: bool = False,
) -> Iterator[Training]:  # fmt: skip
    """Run as many at a time as trials were, yielding each when it is done; inside a Ray session.

    Args:
        progress: hears once a second of the epochs that each running training has finished.
        tolerant: leave out those that fail.

    Raises:
        Stopped: a person asked for it; those under way have finished their epochs.
        StudyFailed: one failed; those that ended before it keep their results.
    """
    import ray

    task = ray.remote(num_cpus=0, max_retries=LOST_PROCESSES)(run_training)
    waiting = [training for training in trainings if not training.done]
    yield from (training for training in trainings if training.done)
    running: dict[Any, Training] = {}
    stopped = False
    while running or (waiting and not stopped):
        while waiting and not stopped and len(running) < study.resources.concurrent:
            training = waiting.pop(0)
            running[task.remote(str(study.folder), training, keeper)] = training
        done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        for training in running.values():
            progress(training, len(read_epochs(training.folder)))
        for reference in done:
            training = running.pop(reference)
            ray.get(keeper.give.remote(training.name, warm=False))  # nothing, unless its process was lost for good
            try:
                _check(reference, training)
            except Stopped:
                stopped = True  # the others finish their epochs as well
            except StudyFailed:
                if not tolerant:
                    raise
            else:
                yield training
    if stopped:
        raise Stopped


def run_training(study_folder: str, training: Training, keeper: Any) -> None:
    """Drive one training and have it evaluated; what Ray calls."""
    from orchestrator.ranks import Course, Job, Terms, call, train
    from proseg.data.store import Store

    study = read_study(Path(study_folder))
    terms, course, folder = Terms.of(study.resources, study.epoch_timeout), Course(), training.folder
    store = Store(training.data)
    fold = store.manifest.folds[training.fold] if isinstance(training.fold, int) else training.fold
    job = Job(training.config, training.data, fold, folder, criterion_on(study.criterion, store, fold))
    with failure_recorded(folder):
        with closing(train(job, keeper, training.name, terms, course)) as epochs:
            for record in epochs:
                if stop_requested(study.folder) and not record["finished"]:
                    raise Stopped
        call(training.evaluate, str(study.folder), str(folder), *training.arguments,
             folder=folder, keeper=keeper, owner=training.name, terms=terms, course=course)  # fmt: skip
    drop_resumable(folder)


def _check(reference: Any, training: Training) -> None:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(reference)
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, Stopped):
            raise Stopped from None
        raise StudyFailed(
            f"{training.name} failed: {failure_of(training.folder)}; "
            f"the traceback is in {training.folder / 'failure.json'}"
        ) from None
