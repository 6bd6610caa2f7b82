"""What became of a study: the append-only log of its trials, the results of its folds, and both read back from disk.

The log (`trials.jsonl` in the study's folder) and the trials' own folders hold all that Optuna and MLflow are told.
Reading needs neither Ray nor torch.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.rungs import fronts
from orchestrator.study import DIED, Study, StudyError, read_state
from proseg.errors import RecordError
from proseg.records import Criterion, append_line, read_epochs, read_json, read_lines

if TYPE_CHECKING:
    from orchestrator.rivals import Verdict

LOG = "trials.jsonl"
EVALUATED_ANEW = "delete it, and `proseg-tune resume` evaluates that training anew"
"""What to do with a damaged result of a training."""
TrialState = Literal["running", "complete", "stopped early", "failed", "interrupted"]


@dataclass(frozen=True)
class Trial:
    """One configuration tried in a study."""

    number: int
    values: dict[str, Any]
    state: TrialState = "running"
    epoch: int = 0
    """Epochs it has trained."""
    objective: float | None = None
    """Best value so far."""
    reason: str = ""
    """Why it failed or was stopped."""
    seconds: float = 0.0
    """That it has run, pauses between a crash and its resume not counted."""
    second: float | None = None
    """The second objective, of the epoch whose first objective is the best."""
    origin: str = ""
    """Where its values come from, if not from the sampler."""
    decision: dict[str, Any] | None = None
    """Of early stopping: `orchestrator.rungs.Decision`."""
    retries: tuple[str, ...] = ()
    """Why it had to go on from a checkpoint."""
    cost: float = 0.0
    """GPU-hours, or without GPUs core-hours, weighted by the shares it held."""
    memory: int | None = None
    """Bytes of GPU memory at most; None on CPUs."""
    epoch_seconds: float | None = None
    """Median of its epochs."""
    over: tuple[str, ...] = ()
    """Limits of the space that it exceeds: it cannot win."""

    @property
    def name(self) -> str:
        return f"t{self.number:03d}"


class TrialLog:
    """Appends events; each is one write of one line."""

    def __init__(self, folder: Path):
        self._path = folder / LOG

    def append(self, trial: Trial) -> None:
        append_line(self._path, {"time": time.time(), **asdict(trial)})


def read_trials(study: Study) -> list[Trial]:
    """The trials as they stand, by number; none runs in a study that no process runs.

    Raises:
        StudyError: the log is damaged, or of another version.
    """
    path = study.folder / LOG
    try:
        latest = {event["number"]: _logged(event) for event in read_lines(path)}
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{path} is damaged or of another version: {error}") from None
    trials = [_with_progress(study, latest[number]) for number in sorted(latest)]
    if any(trial.state == "running" for trial in trials) and read_state(study) != "running":
        trials = [replace(one, state="interrupted", reason=DIED) if one.state == "running" else one for one in trials]
    return trials


def _logged(event: dict[str, Any]) -> Trial:
    del event["time"]
    event["retries"], event["over"] = tuple(event.get("retries", ())), tuple(event.get("over", ()))
    return Trial(**event)


def ranked(trials: Sequence[Trial], criterion: Criterion) -> list[Trial]:
    """Best first. A trial that ran its full budget stands before one that was stopped: it was measured at more epochs,
    and only it is known to hold what it promised. Those over a limit of the space stand last."""
    sign = -1 if criterion.maximize else 1
    scored = [(trial, trial.objective) for trial in trials if trial.objective is not None and trial.state != "failed"]
    order = sorted(scored, key=lambda pair: (bool(pair[0].over), pair[0].state != "complete", sign * pair[1]))
    return [trial for trial, _ in order]


def best_trial(trials: Sequence[Trial], criterion: Criterion) -> Trial | None:
    order = ranked([trial for trial in trials if trial.state != "running"], criterion)
    return order[0] if order else None


def winner_of(trials: Sequence[Trial], verdict: "Verdict | None", criterion: Criterion) -> Trial | None:
    """The trial that the comparison of the best chose; without one, or where the log no longer has that trial, the best
    of the search."""
    chosen = next((trial for trial in trials if verdict and trial.number == verdict.chosen), None)
    return chosen or best_trial(trials, criterion)


def front(trials: Sequence[Trial], criteria: Sequence[Criterion]) -> list[Trial]:
    """The complete trials that no other one beats in both objectives, best first in the first."""
    both = {t.number: (t.objective, t.second) for t in trials
            if t.state == "complete" and not t.over and t.objective is not None and t.second is not None}  # fmt: skip
    layers = fronts(both, [criterion.maximize for criterion in criteria])
    return ranked([trial for trial in trials if layers and trial.number in layers[0]], criteria[0])


def median_objective(trials: Sequence[Trial]) -> float | None:
    """Over all trials that were scored at all."""
    values = [trial.objective for trial in trials if trial.objective is not None]
    return statistics.median(values) if values else None


def explanation(study: Study, number: int) -> dict[str, Any]:
    """All that is known of one trial: its record, and its epochs.

    Raises:
        StudyError: the study has no such trial.
    """
    trials = read_trials(study)
    found = next((trial for trial in trials if trial.number == number), None)
    if found is None:
        names = f"t000 to {trials[-1].name}" if trials else "no trial yet"
        raise StudyError(f"study {study.name} has no trial t{number:03d}; it has {names}")
    folder = study.trial_folder(number)
    order = [trial.number for trial in ranked(trials, study.criterion)]
    failure = folder / "failure.json"
    return {
        **asdict(found), "study": study.name, "metric": study.criterion.metric,
        "second_metric": study.second and study.second.metric,
        "place": order.index(number) + 1 if number in order else None, "scored": len(order),
        "epochs": [{"epoch": r["epoch"], "value": r["metrics"].get(f"val/{study.criterion.metric}"), "best": r["best"]}
                   for r in read_epochs(folder)],
        "folder": str(folder), "traceback": str(failure) if failure.exists() else None,
    }  # fmt: skip


def _with_progress(study: Study, trial: Trial) -> Trial:
    """A running trial's epochs are in its own folder."""
    if trial.state != "running":
        return trial
    records = read_epochs(study.trial_folder(trial.number))
    return replace(trial, epoch=records[-1]["epoch"], objective=records[-1]["best"]) if records else trial


# --- the final stage --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoldResult:
    """One fold of one data set, evaluated on its held-out patients."""

    data: str
    label: str
    fold: int
    cases: int
    patients: int
    samples: int
    """S of ged, d_pp, d_pa, dice_soft, dice_max, dice_match: one sample for each rater."""
    prior_samples: int
    """S of the same metrics under prior_."""
    epoch: int
    """Epoch of the weights, chosen on the validation part."""
    metrics: dict[str, float]
    """Means over the test cases."""
    device: str = ""
    """What they were computed on: cpu, or the name of a GPU; earlier versions did not say."""
    threads: int = 0
    """Of the process that computed them; 0 where it is not known."""


def read_results(study: Study) -> list[FoldResult]:
    """The folds that have been evaluated."""
    results = [_fold_result(path) for path in (study.folder / "final").glob("*/fold*/result.json")]
    return sorted(results, key=lambda result: (result.data, result.fold))


def _fold_result(path: Path) -> FoldResult:
    try:
        return FoldResult(**read_json(path, EVALUATED_ANEW))
    except TypeError:
        raise RecordError(f"{path} is damaged or of another version: {EVALUATED_ANEW}") from None


def summary(results: Sequence[FoldResult]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and population standard deviation over the folds: {data: {metric: {mean, std, folds}}}."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for data in dict.fromkeys(result.data for result in results):
        folds = [result for result in results if result.data == data]
        names = dict.fromkeys(name for fold in folds for name in fold.metrics)
        table[data] = {n: _mean_std([fold.metrics[n] for fold in folds if n in fold.metrics]) for n in names}
    return table


def _mean_std(values: Sequence[float]) -> dict[str, float]:
    mean = sum(values) / len(values)
    return {"mean": mean, "std": math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)), "folds": len(values)}
