"""What Ray Tune calls in a trial of the search: a light process that drives the ranks of the training."""

import json
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.control import Stopped
from orchestrator.study import Study, read_study
from proseg.errors import ProSegError
from proseg.records import read_epochs, read_json, write_atomically

FAILURE = "failure.json"


def run_trial(suggestion: dict[str, Any], study_folder: str, keeper: Any) -> None:
    """Train one configuration, reporting to Ray Tune after every epoch.

    A training that fails is an answer, not an error of Tune's: Tune starts a trial again whose process is lost.
    """
    from ray import tune

    from orchestrator.ranks import Course, Job, Terms, TrainingFailed, train

    study = read_study(Path(study_folder))
    number = suggestion["number"]
    folder, course = study.trial_folder(number), Course()
    job = Job(study.config_of(suggestion["values"]), study.data.folder, study.space.fold, folder, study.criterion)
    report = _Reporter(study, course, read_epochs(folder))
    if report.known and not report.known[-1]["finished"]:
        tune.report(report.of(report.known[-1]))  # a decision about this epoch may have been lost with the process
    terms = Terms.of(study.resources, study.epoch_timeout)
    try:
        with failure_recorded(folder), closing(train(job, keeper, trial_owner(number), terms, course)) as epochs:
            trained = False
            for record in epochs:
                trained = True
                tune.report(report.of(record))
        if not trained and report.known:
            tune.report(report.of({**report.known[-1], "finished": True}))
    except TrainingFailed as error:
        tune.report({"failed": str(error), "retries": course.retries, "share": course.share})


def trial_owner(number: int) -> str:
    """Who holds the ranks of a trial."""
    return f"trial {number}"


class _Reporter:
    """Makes of the record of an epoch what the driver needs to know."""

    def __init__(self, study: Study, course: Any, known: list[dict[str, Any]]):
        self._study, self._course, self.known = study, course, known
        self._second: float | None = None
        self._best: float | None = None
        for record in known:
            self._follow(record)

    def of(self, record: dict[str, Any]) -> dict[str, Any]:
        self._follow(record)
        return {
            **{name: record[name] for name in ("epoch", "best", "finished", "seconds", "memory")},
            "second": self._second, "retries": list(self._course.retries), "share": self._course.share,
            "backend": self._course.backend,
        }  # fmt: skip

    def _follow(self, record: dict[str, Any]) -> None:
        """The second objective is that of the epoch whose weights are kept."""
        if self._study.second is not None and record["best"] != self._best:
            self._second = self._study.second.of(record["metrics"])
        self._best = record["best"]


@contextmanager
def failure_recorded(folder: Path) -> Iterator[None]:
    """Keep why a training failed, whatever it was, where people find it: the study goes on without it.

    One sentence for the tables, the traceback for the developer; the error goes on.
    """
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ProSegError) else f"{type(error).__name__}: {error}"
        cause = str(error.__cause__) if error.__cause__ is not None else traceback.format_exc()
        record = {"reason": " ".join(reason.split()), "traceback": cause}
        write_atomically(folder / FAILURE, json.dumps(record, indent=1).encode())
        raise


def failure_of(folder: Path) -> str:
    """Why the training of this folder failed."""
    path = folder / FAILURE
    known = read_json(path, "delete it") if path.exists() else {}
    return known.get("reason") or "its process ended without a word"
