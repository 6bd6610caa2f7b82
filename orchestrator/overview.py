"""All studies of a workspace, a line for each."""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.confirm import read_verdict
from orchestrator.disk import used
from orchestrator.results import LOG, read_trials, winner_of
from orchestrator.study import Study, read_state, read_study, running_since, studies_folder
from proseg.errors import ProSegError
from proseg.records import read_lines


@dataclass(frozen=True)
class Overview:
    """What one line of `list` says of a study."""

    name: str
    space: str
    data: str
    label: str
    """Of the data: whether they are simulated."""
    state: str
    ended: int
    """Trials that have come to an end."""
    planned: int
    metric: str
    goal: str
    best: float | None
    """Of the trial that `best` shows, on validation patients."""
    trial: int | None
    begun: float
    """Seconds since the epoch."""
    seconds: float
    """Since then, until it ended or was last heard of; pauses before a `resume` are in it."""
    bytes: int
    folder: str


@dataclass(frozen=True)
class Unreadable:
    """A folder among the studies of which nothing can be told."""

    name: str
    why: str


def overview(home: Path, now: float) -> tuple[list[Overview], list[Unreadable]]:
    """The studies, newest first, and what lies beside them and cannot be read.

    Args:
        now: seconds since the epoch.
    """
    found: list[Overview] = []
    unreadable: list[Unreadable] = []
    for folder in sorted(_folders(home)):
        try:
            found.append(_of(read_study(folder), now))
        except (ProSegError, OSError) as error:
            unreadable.append(Unreadable(folder.name, _why(error)))
    return sorted(found, key=lambda one: one.begun, reverse=True), unreadable


def _folders(home: Path) -> list[Path]:
    folder = studies_folder(home)
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _why(error: ProSegError | OSError) -> str:
    return str(error) if isinstance(error, ProSegError) else f"{error.filename} cannot be read: {error.strerror}"


def _of(study: Study, now: float) -> Overview:
    trials, state = read_trials(study), read_state(study)
    best = winner_of(trials, read_verdict(study), study.criterion)
    return Overview(
        name=study.name, space=study.space.name, data=study.data.name, label=study.data.label, state=state,
        ended=sum(trial.state not in ("running", "interrupted") for trial in trials), planned=study.trials,
        metric=study.criterion.metric, goal=study.space.objective.direction,
        best=best and best.objective, trial=best and best.number, begun=study.created,
        seconds=max(0.0, (now if state == "running" else _last_heard(study)) - study.created),
        bytes=used(study.folder), folder=str(study.folder),
    )  # fmt: skip


def _last_heard(study: Study) -> float:
    """Seconds since the epoch: a study that was killed has written no end, but the events of its trials."""
    events = read_lines(study.folder / LOG)
    return max(running_since(study), study.created, *(event["time"] for event in events[-1:]))
