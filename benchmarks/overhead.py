"""What a trial costs beyond its training: ours against the documented nesting, Tune function -> TorchTrainer.

Both run the same tiny training (`proseg.fit.fit`) one trial at a time with 1 and 2 DDP ranks, and CPU seconds of all
processes are counted (`benchmarks.studies.CpuClock`): driver, Ray's daemons, workers. A trial costs the difference of a
search of --many trials and one of --few, by the number of trials that they differ in, in a Ray that is warm: neither
the start of Ray nor what a search costs once is in it. The training itself, measured in a warm process without Ray, is
subtracted from both. Ours is `orchestrator.search.run_search` whole, with TPE, log and Optuna's database; the rival
(Train V2) proposes at random and keeps nothing but what Tune keeps.

`--study` instead: the wall time of a study of --trials trainings of about --seconds each, two at a time, against the
seconds of the same trainings without Ray, in two processes (`proseg.fit.fit`, with its checkpoints), summed / 2: of
`run_search`, and of `proseg-tune launch --no-final` from the start of its process to its end, with MLflow. It is only
fair on cores that nothing else uses.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.studies import TINY, CpuClock, Nobody, in_process, make_blobs, make_study, publish

EPOCHS = 2
SEARCH = {"optim.lr": {"kind": "float", "low": 0.001, "high": 0.01, "log": True},
          "model.tau_size": {"kind": "int", "low": 2, "high": 4}}  # fmt: skip
GOALS = {1: 10.0, 2: 5.0}
"""By the number of ranks: the rival costs at least so many times ours."""
LONGER = 1.05
"""Goal of --study: wall time in units of that of the bare trainings."""
AT_ONCE = 2


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    if options.one:
        request = json.loads(options.one)
        print(json.dumps(PARTS[request.pop("part")](**request)))
        return
    (_study if options.study else _trials)(options)


# --- a trial ----------------------------------------------------------------------------------------------------------


def _trials(options: argparse.Namespace) -> None:
    from benchmarks.timing import Row

    rows = []
    for workers in options.workers:
        request = {"workers": workers, "few": options.few, "many": options.many, "repeats": options.repeats}
        training = in_process("overhead", {"part": "training", "workers": workers})
        ours = in_process("overhead", {"part": "ours", **request})
        rival = in_process("overhead", {"part": "nested", **request})
        mine, theirs = ([cost - training for cost in costs(run, options.few, options.many)] for run in (ours, rival))
        row = Row(f"a trial beyond its training, {workers} rank(s)", mine, theirs)
        rows.append(Row(**vars(row) | {"note": _note(row, GOALS.get(workers), training)}))
    _publish(rows, options)


def costs(spent: list[list[float]], few: int, many: int) -> list[float]:
    """CPU seconds of one more trial, from those of [a search of few, a search of many] trials."""
    return [(of_many - of_few) / (many - few) for of_few, of_many in spent]


def _note(row: Any, goal: float | None, training: float) -> str:
    reached = statistics.median(row.ratios)
    said = "" if goal is None else f"; goal: rival / ours ≥ {goal:g}, {'met' if reached >= goal else 'missed'}"
    return f"the training itself: {training:.2f} CPU-s{said}"


def training(workers: int, repeats: int = 5) -> float:
    """CPU seconds of the training itself, over all its ranks; the median in processes that are warm."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with tempfile.TemporaryDirectory() as folder:
        make_blobs(Path(folder) / "blobs")
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            ranks = [pool.submit(_rank, folder, number, workers, repeats) for number in range(workers)]
            return statistics.median(map(sum, zip(*(rank.result() for rank in ranks), strict=True)))


def _rank(folder: str, number: int, ranks: int, repeats: int) -> list[float]:
    import torch

    from proseg.distributed import join_group, leave_group

    torch.set_num_threads(1)
    spent = []
    for repeat in range(repeats + 2):
        began = time.process_time()
        if ranks > 1:
            join_group(number, ranks, meeting=f"file://{folder}/meeting{repeat}", backend="gloo")
        for _ in _fit({"optim.lr": 0.003, "model.tau_size": 3}, Path(folder), Path(folder) / str(repeat)):
            pass
        leave_group()
        spent.append(time.process_time() - began)
    return spent[2:]


def _fit(values: dict[str, Any], home: Path, folder: Path):
    from proseg.config import TrainConfig
    from proseg.data.store import Store
    from proseg.fit import fit
    from proseg.recipes import MODERN
    from proseg.records import Criterion

    config = TrainConfig().with_values({**MODERN, **TINY, "epochs": EPOCHS, "seed": 0, **values})
    store = Store(home / "blobs")
    return fit(config, store.folder, store.manifest.folds[0], folder, Criterion("ged"))


def ours(workers: int, few: int, many: int, repeats: int) -> list[list[float]]:
    """CPU seconds of [a search of few trials, a search of many], after one that warms up."""
    clock = CpuClock()
    from orchestrator import session

    with tempfile.TemporaryDirectory() as folder:
        store = make_blobs(Path(folder) / "blobs")

        def study(trials: int, number: int):
            space = {"budget": {"trials": trials, "epochs": EPOCHS}, "base": TINY, "search": SEARCH,
                     "scheduler": {"kind": "none"}}  # fmt: skip
            return make_study(Path(folder) / f"s{number}", store, space, workers=workers)

        with session.keeper(study(1, 0).resources, address=None, verbose=False, lost=print) as keeper:
            from orchestrator.search import run_search

            def spent(trials: int, number: int) -> float:
                planned, began = study(trials, number), clock.seconds()
                run_search(planned, keeper, Nobody(), Nobody())
                return clock.seconds() - began

            return _alternately(spent, few, many, repeats)


def nested(workers: int, few: int, many: int, repeats: int) -> list[list[float]]:
    """As `ours`, for the documented nesting."""
    clock = CpuClock()
    from orchestrator import session
    from orchestrator.resources import this_node

    session.environment(local=True, verbose=False)
    import ray
    from ray import tune

    cpus = this_node().cpus
    with tempfile.TemporaryDirectory() as folder:
        make_blobs(Path(folder) / "blobs")
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=128 * 2**20,
        )  # fmt: skip
        try:
            # The function holds next to nothing, its workers what is left: or they would wait for ever.
            share = (cpus - 0.1) / workers
            trainable = tune.with_resources(
                tune.with_parameters(_nesting, home=folder, workers=workers, share=min(1.0, share)), {"CPU": 0.01}
            )

            def spent(trials: int, number: int) -> float:
                began = clock.seconds()
                found = tune.Tuner(
                    trainable,
                    param_space={"optim.lr": tune.loguniform(0.001, 0.01), "model.tau_size": tune.randint(2, 5)},
                    tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
                    run_config=tune.RunConfig(name=f"s{number}", storage_path=f"{folder}/tune", verbose=0),
                ).fit()
                scored = [result for result in found if result.metrics and "best" in result.metrics]
                if found.errors or len(scored) < trials:
                    raise RuntimeError(f"{len(scored)} of {trials} nested trials succeeded: {found.errors}")
                return clock.seconds() - began

            return _alternately(spent, few, many, repeats)
        finally:
            ray.shutdown()


def _alternately(spent: Any, few: int, many: int, repeats: int) -> list[list[float]]:
    spent(1, 1)
    return [[spent(few, 2 * repeat), spent(many, 2 * repeat + 1)] for repeat in range(1, repeats + 1)]


def _nesting(values: dict[str, Any], home: str, workers: int, share: float) -> None:
    """What Tune calls in the rival: a trainer of its own for every trial."""
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.torch.torch_trainer import TorchTrainer as Second
    from ray.tune.integration.ray_train import TuneReportCallback

    if not issubclass(TorchTrainer, Second):
        raise RuntimeError("this is not Train V2")
    name = tune.get_context().get_trial_id()
    TorchTrainer(
        _loop, train_loop_config={"values": values, "home": home, "folder": f"{home}/nested/{name}"},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": share}),
        run_config=RunConfig(name=name, storage_path=f"{home}/train", callbacks=[TuneReportCallback()]),
    ).fit()  # fmt: skip


def _loop(task: dict[str, Any]) -> None:
    """What every rank of the rival runs."""
    import torch
    from ray import train

    torch.set_num_threads(1)
    for record in _fit(task["values"], Path(task["home"]), Path(task["folder"])):
        train.report({name: record[name] for name in ("epoch", "best", "seconds")})


# --- a study ----------------------------------------------------------------------------------------------------------


SIDE, EPOCH = 32, 1.0
"""Pixels; seconds that an epoch of --study takes, about."""
STUDY_BASE = TINY | {"model.width": 8, "batch_size": 8}
STUDY_SEARCH = {"optim.lr": SEARCH["optim.lr"], "loss.beta_z": SEARCH["optim.lr"]}
"""Nothing that changes what a step costs."""


def _study(options: argparse.Namespace) -> None:
    from benchmarks.timing import Row

    slices, epochs = in_process("overhead", {"part": "size", "seconds": options.seconds})
    request = {"slices": slices, "epochs": epochs, "trials": options.trials}
    bare_seconds = in_process("overhead", {"part": "bare", **request})
    rows, parts = [], [{"part": "bare", "wall": bare_seconds}]
    for part, name in (("search", "run_search"), ("launch", "proseg-tune launch, start to end of its process")):
        found = in_process("overhead", {"part": part, **request})
        parts.append({"part": part, **found})
        row = Row(
            f"{name}: wall time / that of the bare trainings", [found["wall"] / bare_seconds], [], unit="", goal=LONGER,
            note=f"{options.trials} trials, {AT_ONCE} at a time; bare {bare_seconds:.1f} s; wall "
            f"{found['wall']:.1f} s, of it {found['before']:.1f} before the first training, {found['after']:.1f} after "
            f"the last; others had {found['others']:.0f} CPU-s meanwhile",
        )  # fmt: skip
        rows.append(row)
    _publish(rows, options, parts=parts, **request)


def size(seconds: float) -> list[int]:
    """[slices of the store, epochs] with which a training takes about so many seconds on a core of its own."""
    import torch

    torch.set_num_threads(1)
    slices = 64
    with tempfile.TemporaryDirectory() as folder:
        store = make_blobs(Path(folder) / "blobs", slices=slices, side=SIDE)
        study = _planned(Path(folder) / "s", store, epochs=3, trials=1)
        from proseg.fit import fit

        *_, last = fit(study.base, store.folder, store.manifest.folds[0], Path(folder) / "t", study.criterion)
    epoch = min(EPOCH, seconds / 2)
    return [max(16, round(slices * epoch / last["seconds"] / 8) * 8), max(2, round(seconds / epoch))]


def _planned(folder: Path, store: Any, *, epochs: int, trials: int):
    return make_study(folder, store, _space(epochs, trials), concurrent=AT_ONCE)


def _space(epochs: int, trials: int) -> dict[str, Any]:
    return {"budget": {"trials": trials, "epochs": epochs}, "base": STUDY_BASE, "search": STUDY_SEARCH,
            "scheduler": {"kind": "none"}}  # fmt: skip


def bare(slices: int, epochs: int, trials: int) -> float:
    """Wall time of the trainings without Ray, in as many processes: the sum of their own seconds by those at a time."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with tempfile.TemporaryDirectory() as folder:
        store = make_blobs(Path(folder) / "blobs", slices=slices, side=SIDE)
        study = _planned(Path(folder) / "s", store, epochs=epochs, trials=trials)
        with ProcessPoolExecutor(AT_ONCE, mp_context=get_context("spawn")) as pool:
            return sum(pool.map(partial(_bare, study.folder), range(trials))) / AT_ONCE


def _bare(study_folder: Path, number: int) -> float:
    """Seconds of a training, imports not counted: a rank of ours is warm."""
    import torch

    from orchestrator.study import read_study
    from proseg.data.store import Store
    from proseg.fit import fit

    torch.set_num_threads(1)
    study = read_study(study_folder)
    data = study.data.folder
    began = time.monotonic()
    for _ in fit(study.base, data, Store(data).manifest.folds[0], study.trial_folder(number), study.criterion):
        pass
    return time.monotonic() - began


def search(slices: int, epochs: int, trials: int) -> dict[str, Any]:
    """Wall time of `run_search` in a fresh Ray, and the seconds of its trainings."""
    clock = CpuClock()
    from orchestrator import session

    with tempfile.TemporaryDirectory() as folder:
        store = make_blobs(Path(folder) / "blobs", slices=slices, side=SIDE)
        study = _planned(Path(folder) / "s", store, epochs=epochs, trials=trials)
        with session.keeper(study.resources, address=None, verbose=False, lost=print) as keeper:
            from orchestrator.search import run_search

            began = time.time()
            run_search(study, keeper, Nobody(), Nobody())
            return spans(study, began, time.time()) | {"others": clock.others}


def launch(slices: int, epochs: int, trials: int) -> dict[str, Any]:
    """Wall time of the command, and the seconds of its trainings."""
    clock = CpuClock()
    from orchestrator.study import find_study

    with tempfile.TemporaryDirectory() as folder:
        store, home = make_blobs(Path(folder) / "blobs", slices=slices, side=SIDE), Path(folder) / "home"
        file = Path(folder) / "benchmark.toml"
        file.write_text(toml({"data": str(store.folder), **_space(epochs, trials)}), encoding="utf-8")
        program = Path(sys.executable).parent / "proseg-tune"
        command = [str(program), "launch", str(file), "--no-final", "--json", "--concurrent", str(AT_ONCE)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PROSEG_"))}
        environment = inherited | {"PROSEG_HOME": str(home)}
        began = time.time()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        ended = time.time()
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
        return spans(find_study(home, None), began, ended) | {"others": clock.others}


def spans(study: Any, began: float, ended: float) -> dict[str, float]:
    """Seconds of the whole, of all epochs of all trials (each of which must have come to its end), before the first
    training and after the last one."""
    from orchestrator.results import read_trials
    from proseg.records import read_epochs

    trials = read_trials(study)
    if len(trials) < study.trials or {trial.state for trial in trials} != {"complete"}:
        raise RuntimeError(f"trials ended otherwise: {[(trial.name, trial.state, trial.reason) for trial in trials]}")
    epochs = [record for trial in trials for record in read_epochs(study.trial_folder(trial.number))]
    return {
        "wall": ended - began, "trainings": sum(record["seconds"] for record in epochs),
        "before": min(record["time"] - record["seconds"] for record in epochs) - began,
        "after": ended - max(record["time"] for record in epochs),
    }  # fmt: skip


def toml(value: Any, *, top: bool = True) -> str:
    """A space as its file holds it."""
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)} = {toml(entry, top=False)}" for key, entry in value.items()]
        return "\n".join(lines) + "\n" if top else "{ " + ", ".join(lines) + " }"
    return json.dumps(value)


def _publish(rows: list[Any], options: argparse.Namespace, **more: Any) -> None:
    from dataclasses import asdict

    from benchmarks.timing import table

    asked = {name: value for name, value in vars(options).items() if name != "one"}
    publish("overhead", table(rows), {"options": asked, **more, "rows": [asdict(row) for row in rows]})


PARTS = {part.__name__: part for part in (training, ours, nested, size, bare, search, launch)}


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="DDP ranks of a trial; default 1 2")
    parser.add_argument("--few", type=int, default=2, help="trials of the small search; default 2")
    parser.add_argument("--many", type=int, default=6, help="trials of the large search; default 6")
    parser.add_argument("--repeats", type=int, default=1, help="pairs of searches; default 1")
    parser.add_argument("--study", action="store_true", help="the wall time of a whole study instead")
    parser.add_argument("--trials", type=int, default=20, help="of --study; default 20")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a training of --study; default 20")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
