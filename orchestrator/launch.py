"""A study from beginning to end: check and prepare, search, retrain, write the tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.environment import environment
from orchestrator.interrupt import interruptible
from orchestrator.resources import plan_resources
from orchestrator.results import Trial, TrialLog, read_results, read_trials, summary
from orchestrator.retrain import run_final
from orchestrator.search import ray_session, run_search
from orchestrator.study import (
    DataRef,
    Final,
    State,
    Study,
    StudyError,
    StudyFailed,
    base_config,
    check_name,
    check_objective,
    claim_folder,
    variants,
    write_state,
    write_study,
)  # fmt: skip
from orchestrator.tables import final_markdown, leaderboard_markdown, write_tables
from orchestrator.tracking import MlflowTracker, check_server
from orchestrator.watcher import Watcher
from proseg.config import TrainConfig
from proseg.data.catalog import Track, missing, open_data, silent
from proseg.data.store import Manifest, Store
from proseg.errors import DataError
from search_spaces.space import FinalStage, SearchSpace, SpaceError


@dataclass(frozen=True)
class Options:
    """What a user asks of a launch; None leaves it to the space or the machine."""

    trials: int | None = None
    epochs: int | None = None
    workers: int = 1
    gpu_share: float | None = None
    concurrent: int | None = None
    data: str | None = None
    max_time: float | None = None
    seed: int = 0
    final: bool = True


def plan(space: SearchSpace, options: Options, home: Path, *, track: Track = silent) -> Study:
    """Check everything and prepare the data; the study has no folder and no name yet.

    Raises:
        SpaceError, ResourceError, DataError: what is wrong, before anything has been started.
    """
    if options.data not in (None, space.data):
        space = _on_other_data(space, options.data)
    base = base_config(space, epochs=options.epochs or space.budget.epochs, seed=options.seed)
    trials = options.trials or space.budget.trials
    resources = plan_resources(
        workers=options.workers, gpu_share=options.gpu_share, concurrent=options.concurrent, trials=trials
    )
    for config in (*variants(space, base), *(base.with_values(stage.base) for stage in space.final)):
        if config.batch_size % resources.workers:
            raise SpaceError(
                f"{space.file}: batch_size = {config.batch_size} cannot be shared equally by "
                f"--workers {resources.workers}"
            )
    check_objective(space)
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
    stages = space.final if options.final else []
    finals = tuple(_final(space, base, stage, home, prepared, store) for stage in stages)
    _check_names(space, finals)
    return Study(
        name="", folder=home, created=0.0, space=space, base=base, data=DataRef.of(store.folder, store.manifest),
        finals=finals, resources=resources, trials=trials, seed=options.seed, max_time=options.max_time,
        environment=environment(),
    )  # fmt: skip


def create(study: Study, home: Path, name: str | None, created: float) -> Study:
    """Give a planned study its name and folder.

    Raises:
        StudyError: the name is taken, or MLflow does not answer; nothing has been written.
    """
    check_name(home, name)
    check_server(home)
    folder = claim_folder(home, study.space.name, name)
    study = study.model_copy(update={"name": folder.name, "folder": folder, "created": created})
    write_study(study)
    write_state(study, "running")
    return study


def run(study: Study, home: Path, watcher: Watcher, *, verbose: bool = False) -> None:
    """Search, retrain and write the tables; the study's folder and MLflow say how it ended, whatever happens.

    Raises:
        StudyFailed: no trial succeeded, or the final stage failed, or MLflow did not take every record.
        KeyboardInterrupt: the user stopped it; what has been reached is kept.
    """
    state: State = "failed"
    note = ""
    try:
        tracker = MlflowTracker(study, home)
    except StudyError:
        write_state(study, state)
        raise
    try:
        watcher.stage("search")
        # Twice: ray.init puts a handler of its own over the first.
        with interruptible(), ray_session(study, verbose=verbose), interruptible():
            best = run_search(study, tracker, watcher, verbose=verbose)
            if any(final.data for final in study.finals):
                watcher.stage("final")
                note = _finish(study, best, tracker, watcher)
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        write_state(study, state)
        _close(study, tracker, state, note)
    if tracker.waiting:
        raise StudyFailed(
            f"MLflow at {tracker.uri} did not take {tracker.waiting} records of study {study.name}; "
            f"all of them are kept in {study.folder}"
        )


def _finish(study: Study, best: Trial, tracker: MlflowTracker, watcher: Watcher) -> str:
    results = run_final(study, best.values, tracker, watcher)
    for path in write_tables(study, results):
        tracker.artifact(path)
    return final_markdown(study, results)


def _close(study: Study, tracker: MlflowTracker, state: str, note: str) -> None:
    _end_running_trials(study, tracker)
    trials = read_trials(study)
    table = summary(read_results(study)) if state == "finished" else {}
    numbers = {f"cv/{data}/{name}_{kind}": values[kind] for data, metrics in table.items()
               for name, values in metrics.items() for kind in ("mean", "std")}  # fmt: skip
    tracker.study_ended(state, trials, numbers, "\n".join([leaderboard_markdown(study, trials), note]))


def _end_running_trials(study: Study, tracker: MlflowTracker) -> None:
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


def left_out(finals: Sequence[Final]) -> list[str]:
    """Why parts of the final stage will not run, told before the search begins."""
    return [f"the final stage leaves out {final.stage.data}: {final.missing}" for final in finals if final.missing]
