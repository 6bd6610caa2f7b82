"""What to try next: Optuna's samplers over the trials of the log, and Optuna's database as a copy of it.

The study that samplers see is rebuilt in memory from the log (`trials.jsonl`), and each proposal is seeded by its
number: a search that was killed proposes what it would have proposed. The database (SQLite in the study's folder, or
any that SQLAlchemy reaches) is written after the log, for dashboards and for people; it is never read back except to
see whether it is still a copy.

Ours and not Ray's OptunaSearch, which tells a trial that was stopped early as COMPLETE with a low-epoch value, leaves
one whose result is NaN running for ever, and loses its state in a crash.
"""

import logging
import os
import random
import sqlite3
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.addresses import for_libraries, sqlite_address
from orchestrator.results import Trial
from orchestrator.stores import first_line
from orchestrator.study import Study
from search_spaces import points
from search_spaces.space import Choice, Fixed, Float, Int, SearchSpace, Value

T = TypeVar("T")

ATTEMPTS = 5
"""Times that the sampler proposes anew what has been tried; then any that has not been tried will do."""
STARTUP_TRIALS = 4
"""Random trials before the model is trusted; budgets here are small."""
STATES = {"complete": TrialState.COMPLETE, "stopped early": TrialState.PRUNED, "failed": TrialState.FAIL,
          "running": TrialState.RUNNING, "interrupted": TrialState.RUNNING}  # fmt: skip
"""An interrupted trial goes on when the study does."""


class Proposals:
    """Proposes values for one trial after another, and hears how each ended."""

    def __init__(self, study: Study, trials: Sequence[Trial]):
        optuna.logging.set_verbosity(logging.WARNING)
        self._plan, self._space = study, study.space
        self._study = optuna.create_study(directions=directions(study))
        self._live: dict[int, optuna.Trial] = {}
        self._asked = list(trials)
        self._identity = study.identity
        self._tried = {self._identity(trial.values) for trial in trials}
        self._fixed = deque(_fixed_points(study))
        whole = None if study.space.sampler == "grid" else points.everything(study.space)
        self._all = None if whole is None else {self._identity(point): point for point in whole}
        for trial in trials:
            self._study.add_trial(frozen(study, trial))
            if STATES[trial.state] is TrialState.RUNNING:
                self._live[trial.number] = optuna.trial.Trial(
                    self._study, self._study.get_trials(deepcopy=False)[-1]._trial_id
                )

    @property
    def exhausted(self) -> bool:
        """Every configuration of the grid, or of the space, has been tried."""
        if self._space.sampler == "grid":
            return self._point() is None
        return self._all is not None and self._all.keys() <= self._tried

    def ask(self) -> Trial:
        """The next trial, with its number and values, which come to a configuration that has not been tried."""
        number = len(self._asked)
        for attempt, (values, origin) in enumerate(self._candidates(number)):
            if values is not None:
                self._study.enqueue_trial(values)
            self._study.sampler = _sampler(self._plan, number, attempt)
            live = self._study.ask()
            trial = Trial(number, draw(live, self._space), origin=origin)
            if self._identity(trial.values) not in self._tried:
                break
            self._study.tell(live, state=TrialState.FAIL)  # which samplers pass over
        else:
            raise ValueError("every configuration of the space has been tried")
        self._live[number] = live
        self._asked.append(trial)
        self._tried.add(self._identity(trial.values))
        return trial

    def _candidates(self, number: int) -> Iterator[tuple[dict[str, Value] | None, str]]:
        """Values and their origin, for the sampler to complete: None leaves all of them to it."""
        point = self._point()
        if point is None and self._space.sampler == "qmc":
            point = _sobol(self._space, sum(not trial.origin for trial in self._asked), self._plan.seed), ""
        yield from [point or (None, "")] * ATTEMPTS
        untried = self._untried()
        yield from [(point, "") for point in random.Random(number).sample(untried, len(untried))]
        while self._all is None:
            yield None, ""

    def _point(self) -> tuple[dict[str, Value], str] | None:
        """The next of those that are tried before anything is sampled."""
        while self._fixed and self._known(*self._fixed[0]):
            self._fixed.popleft()
        return self._fixed[0] if self._fixed else None

    def _known(self, point: dict[str, Value], origin: str) -> bool:
        if points.is_whole(self._space, point):
            return self._identity(self._space.settled(point)) in self._tried
        return any(
            trial.origin == origin and all(trial.values.get(name) == point[name] for name in point)
            for trial in self._asked
        )

    def _untried(self) -> list[dict[str, Value]]:
        """All that is left of a space that has an end."""
        return [point for identity, point in (self._all or {}).items() if identity not in self._tried]

    def tell(self, trial: Trial) -> None:
        """How a trial ended; saying it twice does no harm."""
        live = self._live.pop(trial.number, None)
        if live is None or STATES[trial.state] is TrialState.RUNNING:
            return
        for name, value in constraints(self._plan, trial).items():
            live.set_constraint(name, value)
        ended = frozen(self._plan, trial)
        for step, value in ended.intermediate_values.items():
            live.report(value, step)  # the value of a pruned trial is its last; TPE ranks it by the step it reached
        values = ended.values if ended.state is TrialState.COMPLETE else None
        self._study.tell(live, values, state=ended.state)


def directions(study: Study) -> list[StudyDirection]:
    return [StudyDirection.MAXIMIZE if criterion.maximize else StudyDirection.MINIMIZE for criterion in study.criteria]


def frozen(study: Study, trial: Trial) -> FrozenTrial:
    """A trial of the log as Optuna keeps it."""
    state = STATES[trial.state]
    reached = [value for value in (trial.objective, trial.second)[: len(study.criteria)] if value is not None]
    single = len(study.criteria) == 1
    told = {
        TrialState.COMPLETE: {"values": reached},
        TrialState.PRUNED: {"intermediate_values": {trial.epoch: trial.objective}, "values": reached} if single else {},
    }.get(state, {})  # fmt: skip
    spread = distributions(study.space)
    values = {name: value for name, value in trial.values.items() if name in spread}
    return create_trial(
        state=state, params=values, distributions={name: spread[name] for name in values},
        user_attrs={"trial": trial.name, "reason": trial.reason, "origin": trial.origin},
        constraints=constraints(study, trial) if state in (TrialState.COMPLETE, TrialState.PRUNED) else None, **told,
    )  # fmt: skip


def constraints(study: Study, trial: Trial) -> dict[str, float]:
    """By how much a trial is over the limits of the space; at most 0 where it keeps to them."""
    limits = study.space.limits
    return {
        name: used - limit
        for name, used, limit in (
            ("gpu_memory", None if trial.memory is None else trial.memory / 2**30, limits.gpu_memory),
            ("epoch_seconds", trial.epoch_seconds, limits.epoch_seconds),
        )
        if used is not None and limit is not None
    }


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Of each dimension that is not fixed, by name; with `draw` the only translation to Optuna."""
    found: dict[str, BaseDistribution] = {}
    for name, dimension in space.search.items():
        match dimension:
            case Float():
                found[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
            case Int():
                found[name] = IntDistribution(dimension.low, dimension.high, log=dimension.log)
            case Choice():
                found[name] = CategoricalDistribution(dimension.values)
    return found


def draw(trial: optuna.Trial, space: SearchSpace) -> dict[str, Value]:
    """One value for every dimension that is active, in the order of the file."""
    chosen: dict[str, Value] = {}
    for name, dimension in space.search.items():
        if not space.active(name, chosen):
            continue
        match dimension:
            case Float():
                chosen[name] = trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
            case Int():
                chosen[name] = trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log)
            case Choice():
                chosen[name] = trial.suggest_categorical(name, dimension.values)  # type: ignore[assignment]
            case Fixed():
                chosen[name] = dimension.value
    return chosen


def _sampler(study: Study, number: int, attempt: int) -> optuna.samplers.BaseSampler:
    """Fresh for every proposal: what it draws depends on the study's seed, the trial's number and the history alone."""
    seed = int(np.random.SeedSequence([study.seed, number, attempt][: 3 if attempt else 2]).generate_state(1)[0])
    if attempt >= ATTEMPTS:
        return optuna.samplers.RandomSampler(seed=seed)
    if study.space.sampler == "gp":
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
        )  # fmt: skip
    if study.space.sampler == "tpe":
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )
    return optuna.samplers.RandomSampler(seed=seed)  # also what a point leaves open is drawn by


def _fixed_points(study: Study) -> list[tuple[dict[str, Value], str]]:
    """What is tried before anything is sampled; for a grid the whole of it, in an order that the seed decides."""
    given = [(dict(point.values), point.origin) for point in study.points]
    if study.space.sampler != "grid":
        return given
    rest = points.grid(study.space)
    random.Random(study.seed).shuffle(rest)
    return [(_completed(point, rest), origin) for point, origin in given] + [(point, "") for point in rest]


def _completed(point: dict[str, Value], grid: Sequence[dict[str, Value]]) -> dict[str, Value]:
    """What the point leaves open is taken from the grid, where a point of the grid agrees with it."""
    return next((one for one in grid if all(one.get(name) == value for name, value in point.items())), point)


def _sobol(space: SearchSpace, index: int, seed: int) -> dict[str, Value]:
    from scipy.stats import qmc

    size = points.unit_size(space)
    if not size:
        return points.from_unit(space, [])
    sequence = qmc.Sobol(size, rng=seed)
    if index:  # scipy cannot go forward by nothing
        sequence.fast_forward(index)
    return points.from_unit(space, sequence.random(1)[0])


# --- the database -----------------------------------------------------------------------------------------------------


SECONDS_FOR_THE_DATABASE = 15.0
"""To say something of one trial, before it is taken for hanging; of a whole study, a second for each trial more."""


class Mirror:
    """Optuna's database of a study. It can be rebuilt from the log at any time, so its errors never end a study."""

    def __init__(self, study: Study, trials: Sequence[Trial]):
        """Open it and bring it to what the log says."""
        optuna.logging.set_verbosity(logging.WARNING)
        self._plan = study
        self.url = for_libraries(study.storage or sqlite_address(study.folder / "optuna.db"))
        self._study = self._try(lambda: self._open(trials), more=len(trials))

    def started(self, trial: Trial) -> None:
        if (study := self._study) is not None:
            self._try(lambda: study.add_trial(frozen(self._plan, trial)))

    def ended(self, trial: Trial) -> None:
        if (study := self._study) is not None and STATES[trial.state] is not TrialState.RUNNING:
            self._try(lambda: self._tell(study, trial))

    def _try(self, operation: Callable[[], T], more: float = 0) -> T | None:
        """What an operation comes to; nothing, from now on, where it fails or does not come to an end."""
        try:
            return _in_time(operation, SECONDS_FOR_THE_DATABASE + more)
        except Exception as error:  # a database has no end of errors; the log has all, and `resume` rebuilds it
            self._study = None
            logging.getLogger(__name__).warning(
                "Optuna's database %s is not kept up to date any more (%s); the study goes on, `resume` rebuilds it",
                _without_password(self.url), first_line(error),
            )  # fmt: skip
            return None

    def _open(self, trials: Sequence[Trial]) -> optuna.Study:
        name = self._plan.space.name if self._plan.storage is None else self._plan.key
        file = self._plan.folder / "optuna.db" if self._plan.storage is None else None
        arguments: dict[str, Any] = {"study_name": name, "directions": directions(self._plan)}
        try:
            study = optuna.create_study(storage=self._storage(file), load_if_exists=True, **arguments)
            same = _is_copy(self._plan, study.trials, trials)
        except Exception:
            if file is None or not file.exists():
                raise
            os.replace(file, file.with_suffix(".damaged"))
            study, same = optuna.create_study(storage=self._storage(file), **arguments), False
        if not same:
            if study.trials:
                optuna.delete_study(study_name=name, storage=study._storage)
                study = optuna.create_study(storage=study._storage, **arguments)
            study.add_trials(frozen(self._plan, trial) for trial in trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([criterion.metric for criterion in self._plan.criteria])
        return study

    def _storage(self, file: Path | None) -> optuna.storages.RDBStorage:
        if file is None:
            return optuna.storages.RDBStorage(self.url)
        return optuna.storages.RDBStorage(self.url, engine_kwargs={"creator": lambda: _hasty(file)})

    def _tell(self, study: optuna.Study, trial: Trial) -> None:
        storage, ended = study._storage, frozen(self._plan, trial)
        number = storage.get_trial_id_from_study_id_trial_number(study._study_id, trial.number)
        if storage.get_trial(number).state.is_finished():
            return
        for step, value in ended.intermediate_values.items():
            storage.set_trial_intermediate_value(number, step, value)
        for name, value in ended.user_attrs.items():
            if value:
                storage.set_trial_user_attr(number, name, value)
        for name, value in ended.system_attrs.items():
            storage.set_trial_system_attr(number, name, value)
        storage.set_trial_state_values(number, ended.state, ended.values)


def _in_time(operation: Callable[[], T], seconds: float) -> T:
    """What an operation returns, or the error that it raises.

    A thread of its own does it, which is left to itself when the time is over: what speaks to a database may wait for
    ever for one that hangs, or that the network does not reach any more, and cannot be told to stop.

    Raises:
        TimeoutError: it has not come to an end.
    """
    outcome: Future[T] = Future()

    def do() -> None:
        try:
            outcome.set_result(operation())
        except Exception as error:  # raised again by whoever waits
            outcome.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    try:
        return outcome.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(f"it has not answered for {seconds:g} s") from None


def _hasty(file: Path) -> sqlite3.Connection:
    """A connection that does not wait for the disk: only a machine that goes down can damage the file, and it is made
    again from the log."""
    connection = sqlite3.connect(file, check_same_thread=False)
    connection.execute("PRAGMA synchronous=OFF")
    return connection


def _is_copy(study: Study, found: Sequence[FrozenTrial], trials: Sequence[Trial]) -> bool:
    wanted = [frozen(study, trial) for trial in trials]
    return len(found) == len(wanted) and all(
        (one.params, one.state, one.values) == (other.params, other.state, other.values)
        for one, other in zip(found, wanted, strict=True)
    )


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(of an address that is none)"
