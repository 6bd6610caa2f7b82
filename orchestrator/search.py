"""The search: Ray Tune runs the trials, Optuna proposes them, ASHA stops the hopeless ones early."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from orchestrator.results import Trial, TrialLog, best_trial, read_trials
from orchestrator.sampling import OptunaSearcher
from orchestrator.study import Study, StudyFailed
from orchestrator.tracking import Tracker
from orchestrator.trial import failure_of, run_trial
from orchestrator.watcher import Watcher


@contextmanager
def ray_session(study: Study, *, verbose: bool) -> Iterator[None]:
    """A Ray of our own on this machine, always shut down."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: Tune would go on as if all were done
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "1" if verbose else "0")  # the new output has no way to be silent
    # A trial that fails is ours to report: Tune would print its traceback.
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "1" if verbose else "0")
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.CRITICAL)
    level = logging.INFO if verbose else logging.ERROR
    ray.init(
        address="local", num_cpus=study.resources.cpus, num_gpus=study.resources.gpus, include_dashboard=False,
        log_to_driver=verbose, logging_level=level, configure_logging=True, object_store_memory=128 * 2**20,
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def run_search(study: Study, tracker: Tracker, watcher: Watcher, *, verbose: bool = False) -> Trial:
    """Run the trials of a study, inside a Ray session, and return the best.

    Raises:
        StudyFailed: no trial came to a score.
    """
    criterion, space = study.criterion, study.space
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, study_folder=str(study.folder)), _holdings(study)),
        param_space=None,
        tune_config=tune.TuneConfig(
            num_samples=study.trials, max_concurrent_trials=study.resources.concurrent, reuse_actors=True,
            time_budget_s=study.max_time,
            search_alg=OptunaSearcher(space, criterion, study.seed, study.folder / "optuna.db"),
            scheduler=_scheduler(study),
        ),
        run_config=tune.RunConfig(
            name="ray", storage_path=str(study.folder), verbose=3 if verbose else 0,
            callbacks=[_Recorder(study, tracker, watcher)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )  # fmt: skip
    tuner.fit()
    best = best_trial(read_trials(study), criterion)
    if best is None:
        raise StudyFailed(_why_none(study))
    return best


def _holdings(study: Study) -> dict[str, float]:
    resources = study.resources
    gpu = {"GPU": resources.gpus_per_trial} if resources.gpus else {}
    return {"CPU": resources.cpus_per_trial, **gpu}


def _scheduler(study: Study) -> Any:
    scheduler = study.space.scheduler
    if scheduler.kind == "none" or scheduler.grace_epochs >= study.base.epochs:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="epoch", max_t=study.base.epochs, grace_period=scheduler.grace_epochs,
        reduction_factor=scheduler.reduction, 
        metric=study.criterion.metric, mode="max" if study.criterion.maximize else "min",
    )  # fmt: skip


def _why_none(study: Study) -> str:
    reasons = {trial.reason for trial in read_trials(study) if trial.state == "failed"}
    if not reasons:
        return f"no trial of study {study.name} finished an epoch in the time it had; raise --max-time"
    return f"every trial of study {study.name} failed: {'; '.join(sorted(reasons))}"


class _Recorder(tune.Callback):
    """Turns Ray's events into our records: the log on disk first, then the tracker, then the display."""

    def __init__(self, study: Study, tracker: Tracker, watcher: Watcher):
        self._study, self._tracker, self._watcher = study, tracker, watcher
        self._log = TrialLog(study.folder)
        self._started: dict[int, float] = {}
        self._end_of_time = time.monotonic() + study.max_time if study.max_time else float("inf")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that is never asked for

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._started[trial.config["number"]] = time.time()
        record = self._record(trial, {}, "running")
        self._log.append(record)
        self._tracker.trial_started(record)
        self._watcher.trial(record)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        record = self._record(trial, result, "running")
        self._tracker.trial_epochs(record)
        self._watcher.trial(record)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result
        if "epoch" not in result:
            self._end(self._record(trial, {}, "failed", "it was ended before its first epoch was over"))
        elif not result["finished"]:
            # Ray does not say which of the two it was.
            why = "the time of the search was over" if time.monotonic() >= self._end_of_time else "ASHA"
            reason = f"{why}: epoch {result['epoch']} of {self._study.base.epochs}"
            self._end(self._record(trial, result, "stopped early", reason))
        else:
            left = self._study.base.epochs - result["epoch"]
            patience = self._study.config_of(trial.config["values"]).patience
            reason = f"converged: not better for {patience} epochs" if left else ""
            self._end(self._record(trial, result, "complete", reason))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        reason = failure_of(self._study.trial_folder(trial.config["number"]))
        self._end(self._record(trial, trial.last_result or {}, "failed", reason))

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        """Trials that were under way when the time was over: Ray ends them without a word to us or to the searcher."""
        left = {trial.number for trial in read_trials(self._study) if trial.state == "running"}
        for trial in trials:
            if trial.config["number"] in left:
                self.on_trial_complete(0, trials, trial)

    def _end(self, record: Trial) -> None:
        self._log.append(record)
        self._tracker.trial_ended(record)
        self._watcher.trial(record)

    def _record(self, trial: Any, result: dict, state: Any, reason: str = "") -> Trial:
        number = trial.config["number"]
        seconds = round(time.time() - self._started.get(number, time.time()), 3)
        return Trial(number, trial.config["values"], state, result.get("epoch", 0), result.get("best"), reason, seconds)
