"""What a search costs its driver when the trials cost nothing, and whether that grows: --trials of a trivial objective.

All but the training is real: `orchestrator.search.run_search` in a Ray of its own with TPE over the ten dimensions of
demo.toml, successive halving, log, Optuna's database, and with --mlflow the tracker on a SQLite store. In place of a
training each trial reports one finished epoch whose value is a smooth function of its configuration.

Counted: CPU seconds of the driver's process, all its threads; its resident memory at every tenth of the trials; the
longest time in which nothing was heard that a display could show. --profile says where the driver's main thread was.

One trial at a time: where several take no time Tune may start a process for one of them, give it that of another which
has just ended, throw the new one away, and so on with every trial.
"""

import argparse
import cProfile
import json
import math
import pstats
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.studies import TINY, Nobody, in_process, make_blobs, make_study, publish

CPU_GOAL, GAP_GOAL = 0.1, 5.0
"""Seconds: of the driver's CPU for each trial; without a word at most."""
METRICS = 20
"""That an epoch leaves, about as many as those of a real one."""
PARTS = 10
SHOWN = 45


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    if options.one:
        print(json.dumps(run(**json.loads(options.one))))
        return
    request = {name: getattr(options, name) for name in ("trials", "concurrent", "sampler", "mlflow")}
    request["profile"] = str(options.profile.resolve()) if options.profile else None
    found = in_process("many", request)
    publish("many", table(found), found)


def run(trials: int, concurrent: int, sampler: str, mlflow: bool, profile: str | None) -> dict[str, Any]:
    """One search, in this process."""
    from benchmarks import many  # by its name, which workers know it by; here it is __main__
    from orchestrator import session
    from search_spaces import find_space

    demo = find_space("demo").model_dump(mode="json")
    space = {"budget": {"trials": trials, "epochs": 4}, "base": TINY, "search": demo["search"], "sampler": sampler,
             "scheduler": {"grace_epochs": 1}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        store = make_blobs(home / "blobs")
        study = make_study(home / "studies" / "many", store, space, concurrent=concurrent)
        with session.keeper(study.resources, address=None, verbose=False, lost=print) as keeper:
            from orchestrator import search

            search.run_trial = many.instant  # type: ignore[assignment]  # the one thing that is not real
            watcher, profiler = Listener(trials), cProfile.Profile()
            with _tracking(study, home, watcher) if mlflow else nullcontext(Nobody()) as tracker:
                if profile:
                    profiler.enable()
                watcher.begin()
                search.run_search(study, keeper, tracker, watcher)
                record = watcher.end()
                profiler.disable()
    if profile:
        _write_profile(profiler, Path(profile), trials)
    return {"trials": trials, "concurrent": concurrent, "sampler": sampler, "mlflow": mlflow,
            "profiled": bool(profile), **record}  # fmt: skip


@contextmanager
def _tracking(study: Any, home: Path, watcher: Any) -> Iterator[Any]:
    """As a study does it: written down by the search, shipped by a thread of the driver to a server over the store."""
    from orchestrator.shipper import Shipper
    from orchestrator.stores import check_store
    from orchestrator.tracking import SpoolTracker

    check_store(home)
    tracker = SpoolTracker(study)
    shipper = Shipper(study, home, tracker.spool, watcher)
    try:
        yield tracker
    finally:
        shipper.close()


def instant(suggestion: dict[str, Any], study_folder: str, keeper: Any) -> None:
    """In place of `orchestrator.trial.run_trial`: leaves the files of a training and reports its last epoch."""
    from ray import tune

    from orchestrator.study import read_study
    from proseg.records import BEST, CONFIG, EPOCHS, append_line, write_atomically

    study = read_study(Path(study_folder))
    folder, value = study.trial_folder(suggestion["number"]), objective(suggestion["values"])
    metrics = {f"val/part{number}": value for number in range(METRICS)}
    record = {"epoch": study.base.epochs, "time": time.time(), "seconds": 0.01, "memory": None, "best": value,
              "finished": True, "metrics": metrics | {"val/ged": value}}  # fmt: skip
    write_atomically(folder / CONFIG, study.config_of(suggestion["values"]).model_dump_json().encode())
    append_line(folder / EPOCHS, record)
    write_atomically(folder / BEST, bytes(1000))
    report = {name: record[name] for name in ("epoch", "best", "finished", "seconds", "memory")}
    tune.report({**report, "second": None, "retries": [], "share": 1.0, "backend": "gloo"})


def objective(values: dict[str, Any]) -> float:
    """A bowl over the logarithms of what is numeric, its lowest point inside of the space."""
    numbers = [math.log(float(value)) for value in values.values() if not isinstance(value, str) and value]
    return 0.1 + sum((number - math.log(0.1)) ** 2 for number in numbers) / 100


@dataclass
class Listener(Nobody):
    """The watcher: notes when it heard something, and what the driver had used by then."""

    trials: int
    heard: list[float] = field(default_factory=list)
    marks: list[dict[str, float]] = field(default_factory=list)
    """At every tenth of the trials."""
    ended: int = 0

    def begin(self) -> None:
        self._began, self._cpu = time.monotonic(), time.process_time()
        self.heard.append(self._began)
        self._mark()

    def trial(self, trial: Any) -> None:
        self.heard.append(time.monotonic())
        if trial.state == "running":
            return
        self.ended += 1
        if self.ended % max(1, self.trials // PARTS) == 0:
            self._mark()

    def end(self) -> dict[str, Any]:
        seconds, cpu = time.monotonic() - self._began, time.process_time() - self._cpu
        gap = longest_gap(self.heard)
        return {"ended": self.ended, "seconds": seconds, "cpu": cpu, "gap": gap, "marks": self.marks}

    def _mark(self) -> None:
        self.marks.append({"trials": self.ended, "cpu": time.process_time() - self._cpu, "memory": resident(),
                           "seconds": time.monotonic() - self._began})  # fmt: skip


def longest_gap(heard: list[float]) -> float:
    return max((after - before for before, after in pairwise(heard)), default=0.0)


def resident() -> float:
    """Memory of this process now, MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(lines["VmRSS"].split()[0]) / 2**10


def table(record: dict[str, Any]) -> str:
    """The course of a run, and what came of its goals."""
    lines = ["| trials | driver's CPU-s a trial | trials/s | driver's memory, MB |", "|---" * 4 + "|"]
    for before, after in pairwise(record["marks"]):
        count = after["trials"] - before["trials"]
        cpu, rate = (after["cpu"] - before["cpu"]) / count, count / (after["seconds"] - before["seconds"])
        which = f"{before['trials'] + 1} to {after['trials']}"
        lines.append(f"| {which} | {cpu:.3f} | {rate:.1f} | {after['memory']:.0f} |")
    cpu = record["cpu"] / max(1, record["ended"])
    grown = record["marks"][-1]["memory"] - record["marks"][min(1, len(record["marks"]) - 1)]["memory"]
    how = f"{record['sampler']}, {record['concurrent']} at a time, " + ("MLflow" if record["mlflow"] else "no MLflow")
    how += ", profiled" if record["profiled"] else ""
    lines += [
        "", f"{record['ended']} trials ({how}) in {record['seconds']:.0f} s",
        f"driver's CPU a trial: {1000 * cpu:.0f} ms, goal ≤ {1000 * CPU_GOAL:.0f}: {_met(cpu <= CPU_GOAL)}",
        f"driver's memory from the first tenth to the last: {grown:+.0f} MB",
        f"longest silence: {record['gap']:.1f} s, goal ≤ {GAP_GOAL:g}: {_met(record['gap'] <= GAP_GOAL)}",
    ]  # fmt: skip
    return "\n".join(lines)


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _write_profile(profiler: cProfile.Profile, file: Path, trials: int) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(f"{trials} trials; the driver's main thread\n")
        stats = pstats.Stats(profiler, stream=stream)
        for order in ("cumulative", "tottime"):
            stats.sort_stats(order).print_stats(SHOWN)
    profiler.dump_stats(file.with_suffix(".stats"))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="default 1000")
    parser.add_argument("--concurrent", type=int, default=1, help="trials at the same time; default 1")
    parser.add_argument("--sampler", default="tpe", help="default tpe")
    parser.add_argument("--mlflow", action="store_true", help="with MLflow, as a study has it")
    parser.add_argument("--profile", type=Path, help="write here where the driver's main thread was; slows it down")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
