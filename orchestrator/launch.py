"""A study from beginning to end: check and measure, search, confirm, retrain, write the tables; and go on with one."""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import earlier, session
from orchestrator.addresses import settled
from orchestrator.confirm import candidates, run_confirm
from orchestrator.control import Stopped, forget_stop
from orchestrator.disk import patiently
from orchestrator.doctor import mlflow, needed
from orchestrator.doctor.findings import Finding
from orchestrator.doctor.machine import space as room
from orchestrator.environment import environment
from orchestrator.estimate import fit_of, probe, quote, share_of
from orchestrator.export import winner
from orchestrator.interrupt import stoppable
from orchestrator.objective import INSTEAD, check_defined, check_objective, undefined
from orchestrator.quote import Quote
from orchestrator.resources import Node, Resources, plan_resources, this_node
from orchestrator.results import Trial, TrialLog, best_trial, ranked, read_results, read_trials, summary
from orchestrator.retrain import run_final
from orchestrator.rivals import sentence
from orchestrator.spool import SPOOL
from orchestrator.stores import cannot_open, check_store, is_own
from orchestrator.study import (
    DIED,
    DataRef,
    Final,
    Point,
    State,
    Study,
    StudyError,
    alone,
    base_config,
    check_name,
    claim_folder,
    died,
    find_study,
    identity_of,
    read_state,
    readable_studies,
    variants,
    write_state,
    write_study,
)  # fmt: skip
from orchestrator.tables import final_markdown, write_tables
from orchestrator.tracking import DATA_REPORT, SpoolTracker
from orchestrator.watcher import Watcher
from proseg.config import TrainConfig
from proseg.data import quality
from proseg.data.catalog import Track, missing, open_data, silent
from proseg.data.store import Manifest, Store
from proseg.errors import DataError, ProSegError
from proseg.recipes import RECIPES
from proseg.records import Criterion, write_atomically
from search_spaces import points
from search_spaces.space import FinalStage, Sampler, SearchSpace, SpaceError


@dataclass(frozen=True)
class Options:
    """What a user asks of a launch; None leaves it to the space, to the machine, or to what the probe measures."""

    trials: int | None = None
    epochs: int | None = None
    workers: int = 1
    gpu_share: float | None = None
    concurrent: int | None = None
    data: str | None = None
    max_time: float | None = None
    budget: tuple[float, str] | None = None
    """(hours, "gpuh" or "cpuh")."""
    seed: int = 0
    final: bool = True
    confirm: int | None = None
    sampler: Sampler | None = None
    start_from: str | None = None
    """A study whose best trials are tried first."""
    epoch_timeout: float | None = None
    storage: str | None = None


LEAST_EPOCH_TIMEOUT = 600.0
EPOCHS_BEFORE_TIMEOUT = 20
"""An epoch that takes so many times what the probe expects is taken for hanging."""


def check_here(home: Path, *, workers: int, joins: bool) -> list[str]:
    """What `doctor` knows that no study can do without; a sentence for each thing that stands in the way.

    Args:
        joins: a cluster, where Ray is not started here.
    """
    gpus = workers if this_node().gpus else 0
    return _sentences(needed(home, os.environ, gpus=gpus, own_ray=not joins))


def check_new(home: Path, name: str | None) -> list[str]:
    """As `check_here`, of what only a new study needs: a name that is free, and MLflow."""
    faults = _sentences(mlflow(home, os.environ))
    try:
        check_name(home, name)
    except StudyError as error:
        return [str(error), *faults]
    return faults


def _sentences(found: Iterable[Finding]) -> list[str]:
    return [f"{one.text}; to mend it: {one.fix}" for one in found if one.level == "problem"]


def refuse(faults: Sequence[str]) -> None:
    """Raises StudyError with all of it, if there is anything."""
    if faults:
        several = ["several things stand in the way of a study here:"] * (len(faults) > 1)
        raise StudyError("\n  ".join([*several, *faults]))


def plan(
    space: SearchSpace,
    options: Options,
    home: Path,
    *,
    nodes: Sequence[Node] | None = None,
    track: Track = silent,
    meanwhile: Callable[[Study], object] = lambda study: None,
) -> Study:
    """Check everything, prepare the data and measure what a training costs; the study has no folder and no name yet.

    Args:
        nodes: of the cluster that is joined; this machine without.
        meanwhile: done while a training is measured in another process: `get_ready`, where a run follows.

    Raises:
        SpaceError, ResourceError, DataError, StudyError: what is wrong, before anything has been started.
    """
    space = _as_asked(space, options)
    base = base_config(space, epochs=options.epochs or space.budget.epochs, seed=options.seed)
    tried_first = (*first_points(space, base), *_from(space, options.start_from, home))
    asked_for = options.trials or space.budget.trials
    trials = min(asked_for, configurations(space, base, tried_first) or asked_for)
    asked: dict[str, Any] = {
        "workers": options.workers, "concurrent": options.concurrent, "trials": trials, "nodes": nodes,
    }  # fmt: skip
    resources = plan_resources(gpu_share=options.gpu_share, **asked)
    for config in (*variants(space, base), *(base.with_values(stage.base) for stage in space.final)):
        if config.batch_size % resources.workers:
            raise SpaceError(
                f"{space.file}: batch_size = {config.batch_size} cannot be shared equally by "
                f"--workers {resources.workers}"
            )
    check_objective(space)
    storage = _checked_storage(options.storage)
    _check_budget(options, resources)
    absent = missing(space.data, home)
    if absent:
        raise DataError(absent)

    def prepared(name: str) -> Store:
        found = open_data(name, home, jobs=resources.cpus, track=track)
        found.verify()
        return found

    store = prepared(space.data)
    _check_fold(space, store)
    for config in variants(space, base):
        _check_crop(space, config, store.manifest)
    check_objective(space, store.manifest.raters)
    check_defined(space, store)
    stages = space.final if options.final else []
    finals = tuple(_final(space, base, stage, home, prepared, store) for stage in stages)
    _check_names(space, finals)
    study = Study(
        name="", folder=home, created=0.0, space=space, base=base, data=DataRef.of(store.folder, store.manifest),
        finals=finals, resources=resources, trials=trials, seed=options.seed, points=tried_first,
        max_time=options.max_time, budget=options.budget and options.budget[0], storage=storage,
        environment=environment(),
    )  # fmt: skip
    return _quoted(study, options, home, asked, meanwhile)


def _quoted(
    study: Study, options: Options, home: Path, asked: dict[str, Any], meanwhile: Callable[[Study], object]
) -> Study:
    """With the resources that the probe decides, and with the quote."""
    found = probe(study, remotely=asked["nodes"] is not None, meanwhile=partial(meanwhile, study))
    share = share_of(found, asked=options.gpu_share)
    resources = plan_resources(gpu_share=share, fit=fit_of(found, workers=options.workers), **asked)
    study = study.model_copy(update={"resources": resources})
    cost = quote(study, found)
    timeout = options.epoch_timeout or max(LEAST_EPOCH_TIMEOUT, EPOCHS_BEFORE_TIMEOUT * cost.epoch)
    _check_disk(cost, home)
    _check_limits(study, cost)
    return study.model_copy(update={"quote": cost, "epoch_timeout": timeout})


def _check_disk(cost: Quote, home: Path) -> None:
    there = room(home)
    free = there.free if there else 0
    if cost.disk > free:
        raise StudyError(
            f"the study may need {cost.disk / 2**30:.1f} GiB in {home}, where {free / 2**30:.1f} GiB are free: make "
            "room, try fewer trials, or name another workspace in PROSEG_HOME"
        )


def _check_limits(study: Study, cost: Quote) -> None:
    """What is known not to suffice is refused before anything is started."""
    if not study.finals:
        return
    if study.max_time is not None and cost.after_search >= study.max_time:
        raise StudyError(
            f"--max-time {study.max_time:.0f}s is less than confirmation and final stage take ({cost.after_search:.0f} "
            "s): raise it, or leave them out with --no-final"
        )
    if study.budget is not None and cost.units(cost.after_search) >= study.budget:
        raise StudyError(
            f"--budget of {study.budget:g} {cost.unit} is less than confirmation and final stage take "
            f"({cost.units(cost.after_search):.2g}): raise it, or leave them out with --no-final"
        )


def _checked_storage(address: str | None) -> str | None:
    """As it can be kept in the study."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if address is None:
        return None
    try:
        password = make_url(address).password
    except ArgumentError:
        raise StudyError(
            f"--storage {address!r} is not the address of a database: write sqlite:///FILE or "
            "postgresql+psycopg2://USER@HOST/NAME"
        ) from None
    if password is not None:
        raise StudyError(
            "--storage holds a password, which would be kept in the study's folder and in MLflow: leave it out, and "
            "give it in PGPASSWORD or ~/.pgpass"
        )
    if why := cannot_open(address):
        raise StudyError(f"--storage {address} cannot be opened: {why}")
    return settled(address)


def _check_budget(options: Options, resources: Resources) -> None:
    if options.budget is None:
        return
    wanted = "gpuh" if resources.gpus else "cpuh"
    if options.budget[1] != wanted:
        there = "GPUs" if resources.gpus else "no GPUs"
        raise StudyError(f"--budget is counted in {wanted} here, as there are {there}: write "
                         f"{options.budget[0]:g}{wanted}")  # fmt: skip


def _as_asked(space: SearchSpace, options: Options) -> SearchSpace:
    """The space with what the options say instead."""
    if options.data not in (None, space.data):
        space = _on_other_data(space, options.data)
    if options.sampler is not None:
        space = space.model_copy(update={"sampler": options.sampler})
    if options.confirm is not None:
        space = space.model_copy(update={"confirm": space.confirm.model_copy(update={"top": options.confirm})})
    return space


def first_points(space: SearchSpace, base: TrainConfig) -> tuple[Point, ...]:
    """The paper's configuration, as near as the space comes to it; then what the space wants to be tried."""
    paper = dict(RECIPES["paper"])
    if paper["model.z_grid"] is None:  # noise of its own in every pixel: the finest grid comes nearest
        paper["model.z_grid"] = base.data.crop or 1_000_000
    values, changed = points.nearest(space, paper)
    note = f" ({'; '.join(changed)})" if changed else ""
    given = (Point(values=values, origin="the space") for values in space.points_to_try)
    return (Point(values=values, origin=f"the paper{note}"), *given)


TAKEN_OVER = 5


def _from(space: SearchSpace, name: str | None, home: Path) -> tuple[Point, ...]:
    """The best trials of an earlier study, as far as the space admits their values."""
    if name is None:
        return ()
    earlier = find_study(home, name)
    if earlier.criterion != Criterion(space.objective.metric, maximize=space.objective.direction == "maximize"):
        raise StudyError(f"--from {name} searched for {earlier.criterion.metric}, this space for "
                         f"{space.objective.metric}: what is best there says nothing here")  # fmt: skip
    best = ranked([trial for trial in read_trials(earlier) if trial.state == "complete"], earlier.criterion)
    found = [(trial, points.admitted(space, trial.values)) for trial in best[:TAKEN_OVER]]
    usable = tuple(Point(values=values, origin=f"{name} {trial.name}") for trial, values in found if values)
    if not usable:
        raise StudyError(f"--from {name} has no complete trial with a value that {space.file} admits")
    return usable


def create(study: Study, home: Path, name: str | None, created: float) -> Study:
    """Give a planned study its name and folder.

    Raises:
        StudyError: the name is taken, or MLflow does not answer; nothing has been written.
    """
    check_name(home, name)
    check_store(home)
    folder = claim_folder(home, study.space.name, name)
    study = study.model_copy(update={"name": folder.name, "folder": folder, "created": created})
    write_study(study)
    write_state(study, "running")
    return study


def resumed(study: Study, home: Path, options: Options, nodes: Sequence[Node] | None) -> Study:
    """A study as it goes on: on the machines there are now, and with the limits that are given now.

    The search of a finished study goes on if it is given more time, budget or trials.

    Raises:
        DataError: the data are not there, or have changed.
        StudyError: the workspace's own MLflow store cannot be used, or a finished study has no trial left to try.
        ResourceError: the machines there are now are too small.
    """
    if is_own(home):
        check_store(home)
    for data in study.sets:
        data.store()
    trials = _trials_now(study, options)
    before = study.resources
    gpus = any(node.gpus for node in nodes or [this_node()])
    share = options.gpu_share or (before.gpu_share or None if gpus else None)
    concurrent = options.concurrent or min(
        before.concurrent,
        plan_resources(workers=before.workers, gpu_share=share, concurrent=None, trials=trials, nodes=nodes)
        .concurrent,
    )  # fmt: skip
    resources = plan_resources(
        workers=before.workers, gpu_share=share, concurrent=concurrent, trials=trials, nodes=nodes
    )
    _check_budget(options, resources)
    changes: dict[str, Any] = {"resources": resources, "trials": trials}
    if options.max_time is not None:
        changes["max_time"] = options.max_time
    if options.budget is not None:
        changes["budget"] = options.budget[0]
    finished = read_state(study) == "finished"
    study = study.model_copy(update=changes)
    if study.quote is not None and len(read_trials(study)) < trials:
        _check_limits(study, study.quote)
    write_study(study)
    if finished:
        write_state(study, "interrupted", "its search goes on")
        earlier.set_aside(study)
    return study


def _trials_now(study: Study, options: Options) -> int:
    """How many trials the study is to have.

    Raises:
        StudyError: it has so many already.
    """
    asked, tried = options.trials or study.trials, len(read_trials(study))
    trials = min(asked, configurations(study.space, study.base, study.points) or asked)
    if trials > tried or (options.trials is None and read_state(study) != "finished"):
        return trials
    if trials < asked:
        raise StudyError(f"study {study.name} has tried all {tried} configurations of its space")
    raise StudyError(f"study {study.name} has tried {tried} trials already: --trials {tried + 1}, or more, goes on")


def get_ready(study: Study, home: Path, *, local: bool, verbose: bool) -> None:
    """Do what `run` will need, and what takes seconds: imports, and the report on the data."""
    session.environment(local=local, verbose=verbose)  # Ray listens to it only when it is imported
    for module in ("mlflow", "optuna", "orchestrator.search", "orchestrator.ranks"):
        importlib.import_module(module)
    quality.kept(Store(study.data.folder), home)


def run(study: Study, home: Path, watcher: Watcher, *, address: str | None = None, verbose: bool = False) -> None:
    """Search, confirm, retrain and write the tables: what of it is not done yet.

    The study's folder and MLflow say how it ended, whatever happens.

    Raises:
        StudyError: another process runs this study.
        StudyFailed: no trial succeeded, or the final stage failed.
        Stopped, KeyboardInterrupt: the user stopped it; what has been reached is kept.
    """
    with alone(study):
        forget_stop(study.folder)
        write_state(study, "running")
        _run(study, home, watcher, address=address, verbose=verbose)


def _run(study: Study, home: Path, watcher: Watcher, *, address: str | None, verbose: bool) -> None:
    from orchestrator.shipper import Shipper

    tracker = SpoolTracker(study, read_trials(study), say=watcher.note)
    shipper = Shipper(study, home, tracker.spool, watcher)
    try:
        _all_stages(study, home, tracker, watcher, address=address, verbose=verbose)
    finally:
        shipper.close()


def _all_stages(
    study: Study, home: Path, tracker: SpoolTracker, watcher: Watcher, *, address: str | None, verbose: bool
) -> None:
    state: State = "failed"
    tables = reason = ""

    def ray_lost(why: str) -> None:
        watcher.note(f"{why}; what has been reached is kept: `proseg-tune resume {study.name}` goes on")

    try:
        # Twice: ray.init puts a handler of its own over the first.
        with (
            stoppable(study.folder, watcher.note),
            session.keeper(study.resources, address=address, verbose=verbose, lost=ray_lost) as keeper,
            stoppable(study.folder, watcher.note),
        ):
            tracker.data_report(_report_on_data(study, home, watcher))
            watcher.stage("search")
            from orchestrator.search import run_search

            best = run_search(study, keeper, tracker, watcher, verbose=verbose)
            if any(final.data for final in study.finals):
                tables = _finish(study, best, keeper, tracker, watcher)
        state = "finished"
        tracker.winner()
    except (KeyboardInterrupt, Stopped):
        state = "interrupted"
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ProSegError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        try:
            _close(study, tracker, state, tables)
        finally:
            write_state(study, state, reason)  # last: a study that has ended has told all there is


def _report_on_data(study: Study, home: Path, watcher: Watcher) -> Path:
    """The folder of the report on the searched data: made once for each data set, and copied into each study."""
    store, folder = Store(study.data.folder), study.folder / DATA_REPORT

    def copy() -> Path:
        for file in quality.kept(store, home).iterdir():
            write_atomically(folder / file.name, file.read_bytes())
        return folder

    return patiently(copy, watcher.note)


def _finish(study: Study, best: Trial, keeper: Any, tracker: SpoolTracker, watcher: Watcher) -> str:
    trials = read_trials(study)
    if len(candidates(study, trials)) > 1:
        watcher.stage("confirmation")
        verdict = run_confirm(study, trials, keeper, tracker, watcher)
        if verdict is not None:
            watcher.note(sentence(verdict, study.criterion.metric))
            best = next(trial for trial in trials if trial.number == verdict.chosen)
    watcher.stage("final")
    if told := earlier.take_up(study, best.values):
        watcher.note(told)
    results = run_final(study, best.values, keeper, tracker, watcher)
    for path in write_tables(study, results):
        tracker.artifact(path)
    return final_markdown(study, results)


def _close(study: Study, tracker: SpoolTracker, state: str, tables: str) -> None:
    _end_running_trials(study, tracker)
    trials = read_trials(study)
    scores = summary(read_results(study)) if state == "finished" else {}
    numbers = {f"cv/{data}/{name}_{kind}": values[kind] for data, metrics in scores.items()
               for name, values in metrics.items() for kind in ("mean", "std")}  # fmt: skip
    best = winner(study) if best_trial(trials, study.criterion) else None
    tracker.study_ended(state, best, numbers, tables)


def conclude(study: Study) -> None:
    """Write down the end of a study whose process died before it could, and what MLflow is to be told of it.

    Raises:
        StudyError: a process runs it.
    """
    if not died(study):
        return
    with alone(study):
        _close(study, SpoolTracker(study, read_trials(study)), "interrupted", "")
        write_state(study, "interrupted", DIED)


def tell_of_the_dead(home: Path, say: Callable[[str], None]) -> None:
    """Tell MLflow how the studies of a workspace ended whose processes died before they could.

    Raises:
        StudyError: MLflow does not answer.
    """
    from orchestrator.shipper import sync

    for study in readable_studies(home):
        if died(study) and (study.folder / SPOOL).exists() and os.access(study.folder, os.W_OK):
            conclude(study)
            sync(study, home)
            say(f"study {study.name} is interrupted, as {DIED}; `proseg-tune resume {study.name}` goes on")


def _end_running_trials(study: Study, tracker: SpoolTracker) -> None:
    """A trial must not seem to run in a study that has ended."""
    log = TrialLog(study.folder)
    for trial in read_trials(study):
        if trial.state == "running":
            ended = replace(trial, state="interrupted", reason="the study was ended while it ran")
            log.append(ended)
            tracker.trial_ended(ended)


def _on_other_data(space: SearchSpace, data: str) -> SearchSpace:
    """The same search on another data set. Where the final stage names the space's own, it follows, unless another of
    its entries names the new one already."""
    named = any(stage.data == data for stage in space.final)
    kept = [stage for stage in space.final if not (named and stage.data == space.data)]
    final = [stage.model_copy(update={"data": data}) if stage.data == space.data else stage for stage in kept]
    return space.model_copy(update={"data": data, "final": final})


def _check_names(space: SearchSpace, finals: Sequence[Final]) -> None:
    names = [final.data.name for final in finals if final.data is not None]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SpaceError(f"{space.file}: two entries of final come to the same data set, {', '.join(twice)}; keep one")


def _check_fold(space: SearchSpace, store: Store) -> None:
    count = len(store.manifest.folds)
    if space.fold >= count:
        raise SpaceError(f"{space.file}: fold = {space.fold}, but {space.data} has folds 0 to {count - 1}")


def _check_crop(space: SearchSpace, config: TrainConfig, m: Manifest) -> None:
    if config.data.crop is not None and config.data.crop > min(m.height, m.width):
        raise SpaceError(
            f"{space.file}: data.crop = {config.data.crop} is larger than the images of {m.name}, "
            f"{m.height} x {m.width} pixels"
        )


def _final(
    space: SearchSpace,
    base: TrainConfig,
    stage: FinalStage,
    home: Path,
    prepared: Callable[[str], Store],
    searched: Store,
) -> Final:
    absent = missing(stage.data, home)
    if absent:
        return Final(stage=stage, data=None, folds=0, missing=absent)
    store = prepared(stage.data)
    _check_crop(space, base.with_values(stage.base), store.manifest)
    # Another selection of the same patients has other folds.
    shared = set() if store.folder == searched.folder else set(store.patients) & set(searched.patients)
    return Final(
        stage=stage, data=DataRef.of(store.folder, store.manifest), folds=len(store.manifest.folds),
        shared_patients=len(shared),
    )  # fmt: skip


def configurations(space: SearchSpace, base: TrainConfig, given: Sequence[Point]) -> int | None:
    """How many a search can try, each once; None where there are more than any search tries.

    Raises:
        SpaceError: a grid is too large.
    """
    grid = space.sampler == "grid"
    whole = points.grid(space) if grid else points.everything(space)
    if whole is None:
        return None
    others = [space.settled(point.values) for point in given if grid and points.is_whole(space, point.values)]
    return len(set(map(identity_of(space, base), (*whole, *others))))


def told_first(study: Study) -> list[str]:
    """What a person should know before the search begins: what of it will not be done, and why."""
    told = [f"the final stage leaves out {final.stage.data}: {final.missing}"
            for final in study.finals if final.missing]  # fmt: skip
    told += _chosen_otherwise(study)
    count = configurations(study.space, study.base, study.points)
    if count == study.trials:
        told.append(f"the {count} trials are all configurations that the space has, each tried once")
    elif count is not None and study.space.sampler == "grid":
        told.append(f"{study.trials} of the {count} configurations of the grid are tried; --trials {count} tries all")
    return told


def _chosen_otherwise(study: Study) -> list[str]:
    """Where the objective cannot choose the epoch of a training of the final stage."""
    metric, told = study.criterion.metric, []
    for final in study.finals:
        if final.data is not None:
            store = Store(final.data.folder)
            whys = {fold.index: undefined(metric, store, fold.val) for fold in store.manifest.folds}
            told += [
                f"in the final stage the epoch of fold {fold} of {final.data.name} is chosen by {INSTEAD.metric}: "
                f"{metric} is undefined on its validation part, {why}"
                for fold, why in whys.items()
                if why
            ]
    return told
