"""The search: Ray Tune runs the trials, Optuna proposes them, successive halving stops the hopeless ones early."""

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.control import Control, Stopped
from orchestrator.disk import lacking, patiently
from orchestrator.results import Trial, TrialLog, best_trial, read_trials
from orchestrator.rungs import Decision, Rungs
from orchestrator.sampling import Mirror, Proposals, constraints
from orchestrator.study import Study, StudyFailed
from orchestrator.tracking import Tracker
from orchestrator.trial import failure_of, run_trial, trial_owner
from orchestrator.watcher import Watcher
from proseg.records import drop_resumable, read_epochs

LOST_PROCESSES = 3
"""Times that Tune starts a trial again whose own process is lost."""
MEMORY_OF_A_TRIAL = 2**20
"""Bytes; what a trial's own process holds for Ray's accounts. Its ranks hold the cores and GPUs."""
BEFORE_ITS_FIRST_EPOCH = "it was ended before its first epoch was over"


def run_search(study: Study, keeper: Any, tracker: Tracker, watcher: Watcher, *, verbose: bool = False) -> Trial:
    """Run the trials that a study still lacks, inside a Ray session, and return the best.

    Raises:
        Stopped: a person asked for it; the trials under way have finished their epochs.
        StudyFailed: no trial came to a score.
    """
    search = _Search(study, keeper, tracker, watcher)
    if search.trials_left:
        _tune(study, keeper, search, verbose=verbose)
    if search.control.stopping:
        raise Stopped
    best = best_trial(read_trials(study), study.criterion)
    if best is None:
        raise StudyFailed(_why_none(study))
    return best


def _tune(study: Study, keeper: Any, search: "_Search", *, verbose: bool) -> None:
    shutil.rmtree(study.folder / "ray", ignore_errors=True)  # what an earlier, killed run left there
    trainable = tune.with_parameters(run_trial, study_folder=str(study.folder), keeper=keeper)
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"memory": MEMORY_OF_A_TRIAL}])),
        param_space=None,
        tune_config=tune.TuneConfig(
            num_samples=-1, max_concurrent_trials=study.resources.concurrent, reuse_actors=True,
            search_alg=_Searcher(search), scheduler=_Scheduler(search),
        ),
        run_config=tune.RunConfig(
            name="ray", storage_path=str(study.folder), verbose=3 if verbose else 0, callbacks=[_Recorder(search)],
            stop=_Stopper(search), failure_config=tune.FailureConfig(max_failures=LOST_PROCESSES),
        ),
    )  # fmt: skip
    tuner.fit()
    shutil.rmtree(study.folder / "ray", ignore_errors=True)  # nothing of it is needed: our log is the record


def _why_none(study: Study) -> str:
    reasons = {trial.reason for trial in read_trials(study) if trial.state == "failed"}
    if not reasons - {BEFORE_ITS_FIRST_EPOCH}:
        return f"no trial of study {study.name} finished an epoch in the time it had; raise --max-time or --budget"
    return f"every trial of study {study.name} failed: {'; '.join(sorted(reasons))}"


class _Search:
    """One search: what is asked next, what is decided, and where all of it is written down."""

    def __init__(self, study: Study, keeper: Any, tracker: Tracker, watcher: Watcher):
        self.study, self._keeper, self._tracker, self._watcher = study, keeper, tracker, watcher
        trials = read_trials(study)
        self.control = Control(study, trials)
        self._log = TrialLog(study.folder)
        self._proposals = Proposals(study, trials)
        self._mirror = Mirror(study, trials)
        self._trials = {trial.number: trial for trial in trials}
        self._interrupted = [trial for trial in trials if trial.state in ("running", "interrupted")]
        self._decisions: dict[int, Decision] = {}
        self._rungs = _rungs(study, trials)
        self._paused = False
        self._told: set[str] = set()
        self._seconds: dict[int, list[float]] = {}

    @property
    def trials_left(self) -> bool:
        return bool(self._interrupted) or not (len(self._trials) >= self.study.trials or self._proposals.exhausted)

    def next_trial(self) -> Trial | None:
        """An interrupted trial goes on first, then a new one; None where there are no more."""
        if self.control.stopping or self.control.over or not self.trials_left:
            return None
        fresh = not self._interrupted
        trial = self._proposals.ask() if fresh else replace(self._interrupted.pop(0), state="running", reason="")
        self._trials[trial.number] = trial
        self._write(trial)  # before anything else knows of it: a number is never given twice
        if fresh:
            self._mirror.started(trial)
        self._tracker.trial_started(trial)
        return trial

    def started(self, number: int) -> None:
        self.control.started(number)
        self._watcher.trial(self._trials[number])

    def reached(self, number: int, result: dict[str, Any]) -> bool:
        """A trial has finished an epoch; may it go on?"""
        if "failed" in result:
            return True
        self._seconds.setdefault(number, []).append(result["seconds"])
        self._tell_backend(result["backend"])
        trial = self._followed(number, result)
        self._trials[number] = trial
        self._tracker.trial_epochs(trial)
        self._watcher.trial(trial)
        if result["finished"]:
            return True
        decision = self._rungs.report(number, trial.epoch, _values(self.study, trial)) if self._rungs else None
        if decision is not None:
            self._decisions[number] = decision
        return decision is None

    def ended(self, number: int, result: dict[str, Any], error: str | None = None, *, cut: bool = False) -> None:
        """A trial is over, one way or another; saying it twice does no harm. `cut`: it was in the middle of an epoch.

        Its ranks are free from now on: Tune ends some trials without giving them the time to say so.
        """
        trial = self._trials[number]
        if trial.state != "running":
            return
        ray.get(self._keeper.give.remote(trial_owner(number), warm=not cut and error is None))
        seconds, cost = self.control.ended(number)
        trial = self._concluded(self._followed(number, result), result, error)
        trial = replace(trial, seconds=round(trial.seconds + seconds, 3), cost=trial.cost + cost)
        self._trials[number] = trial
        self._write(trial)
        self._proposals.tell(trial)
        self._mirror.ended(trial)
        self._tracker.trial_ended(trial)
        self._watcher.trial(trial)
        if trial.state != "interrupted":
            drop_resumable(self.study.trial_folder(number))

    def look_around(self) -> None:
        """Say once that the disk is full: the ranks wait by themselves."""
        short = lacking(self.study.folder)
        if short and not self._paused:
            self._watcher.note(f"the disk of {self.study.folder} is full: the study is paused and goes on by itself "
                               f"when {short / 2**20:.0f} MB more are free")  # fmt: skip
        self._paused = bool(short)

    def _tell_backend(self, backend: str) -> None:
        """Once, where ranks talk to each other at all: by what decides how fast they do."""
        if self.study.resources.workers > 1 and backend and backend not in self._told:
            self._told.add(backend)
            why = "each has a GPU of its own" if backend == "nccl" else "they are on CPUs or share a GPU"
            self._watcher.note(f"the {self.study.resources.workers} ranks of a trial talk over {backend}: {why}")

    def _followed(self, number: int, result: dict[str, Any]) -> Trial:
        trial = self._trials[number]
        trial = replace(trial, retries=tuple(result.get("retries", trial.retries)))
        if "epoch" not in result:
            return trial
        seconds = self._seconds.get(number)
        return replace(
            trial, epoch=result["epoch"], objective=result["best"], second=result["second"], memory=result["memory"],
            epoch_seconds=round(statistics.median(seconds), 3) if seconds else trial.epoch_seconds,
        )  # fmt: skip

    def _concluded(self, trial: Trial, result: dict[str, Any], error: str | None) -> Trial:
        """With the state and the reason of its end."""
        epochs = self.study.base.epochs
        progress = f"epoch {trial.epoch} of {epochs}"
        if error is not None or "failed" in result:
            return replace(trial, state="failed", reason=error or result["failed"])
        if result.get("finished"):
            return self._completed(trial)
        if trial.number in self._decisions:
            decision = self._decisions[trial.number]
            metrics = [criterion.metric for criterion in self.study.criteria]
            return replace(trial, state="stopped early", reason=decision.sentence(metrics), decision=decision.record())
        if self.control.stopping:
            return replace(trial, state="interrupted", reason=f"the study was stopped: {progress}")
        if trial.objective is None:
            return replace(trial, state="failed", reason=BEFORE_ITS_FIRST_EPOCH)
        return replace(trial, state="stopped early", reason=f"{self.control.over or 'Ray ended it'}: {progress}")

    def _completed(self, trial: Trial) -> Trial:
        reached = [value for value in _values(self.study, trial) if value == value]
        if len(reached) < len(self.study.criteria):
            return replace(trial, state="failed", reason="its objective is not a number")
        patience = self.study.config_of(trial.values).patience
        early = trial.epoch < self.study.base.epochs
        over = tuple(name for name, value in constraints(self.study, trial).items() if value > 0)
        reasons = [f"converged: not better for {patience} epochs"] if early else []
        reasons += [f"over the limit of {name}" for name in over]
        return replace(trial, state="complete", reason="; ".join(reasons), over=over)

    def _write(self, trial: Trial) -> None:
        patiently(lambda: self._log.append(trial), self._watcher.note)


def _values(study: Study, trial: Trial) -> tuple[float, ...]:
    reached = (trial.objective, trial.second)[: len(study.criteria)]
    return tuple(float("nan") if value is None else value for value in reached)


def _rungs(study: Study, trials: Sequence[Trial]) -> Rungs | None:
    scheduler = study.space.scheduler
    if scheduler.kind == "none":
        return None
    rungs = Rungs(grace=scheduler.grace_epochs, reduction=scheduler.reduction, epochs=study.base.epochs,
                  maximize=[criterion.maximize for criterion in study.criteria])  # fmt: skip
    for trial in trials:  # those that failed as well: others were held against them before they did
        second = None
        best = None
        for record in read_epochs(study.trial_folder(trial.number))[: trial.epoch]:
            if study.second is not None and record["best"] != best:
                second = study.second.of(record["metrics"])
            best = record["best"]
            rungs.record(trial.number, record["epoch"], (best,) if study.second is None else (best, second or 0.0))
    return rungs


# --- what Ray Tune calls ----------------------------------------------------------------------------------------------


class _Searcher(Searcher):
    """Gives Tune {"number": the trial's number, "values": {field: value}}."""

    def __init__(self, search: _Search):
        super().__init__()
        self._search = search

    def suggest(self, trial_id: str) -> Any:
        trial = self._search.next_trial()
        return Searcher.FINISHED if trial is None else {"number": trial.number, "values": trial.values}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # the recorder hears of it, with more to go on

    # Tune pickles and saves its searcher for a restore that is never asked for: the log is what we go on from.

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Scheduler(FIFOScheduler):
    def __init__(self, search: _Search):
        super().__init__()
        self._search = search

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        goes_on = self._search.reached(trial.config["number"], result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class _Stopper(tune.Stopper):
    def __init__(self, search: _Search):
        self._search = search

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._search.control.stopping  # after the epoch that was under way

    def stop_all(self) -> bool:
        return bool(self._search.control.over)


class _Recorder(tune.Callback):
    def __init__(self, search: _Search):
        self._search = search

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        self._search.look_around()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._search.started(trial.config["number"])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._search.ended(trial.config["number"], trial.last_result or {})

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self._search.ended(number, trial.last_result or {}, failure_of(self._search.study.trial_folder(number)))

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        """Trials that were under way when the time was over: Ray ends them without a word to us."""
        for trial in trials:
            self._search.ended(trial.config["number"], trial.last_result or {}, cut=True)
