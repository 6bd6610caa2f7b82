"""How many epochs the search saves: until it is as good as the best of 16 random configurations trained to the end.

    python -m benchmarks.efficiency --jobs 2

For each seed R is the best validation objective among 16 random configurations of demo.toml's space, trained for all
their epochs. The search (TPE and successive halving, as many trials as it comes to) has a third of their epochs; what
counts are those it had used, over all its trials, when the first of them was as good as R. Neither begins with the
paper's configuration, and their proposals have different seeds. The data are some of the embedded patients, 64 x 64
crops; a training has one thread. With --jobs > 1 what the search hears first depends on who is first.

A search that stands in the file already is not repeated; one that was interrupted is.
"""

import argparse
import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies import Nobody, keep, make_study, read

CONFIGURATIONS = 16
SHARE = 1 / 3
"""Of the epochs of the random configurations: what the search may use."""
RANDOM, SEARCH = "random", "search"
OTHER_SEED = 1000
"""Added to the seed of the random proposals: the search must not find the very same ones."""


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    setting = {"epochs": options.epochs, "configurations": options.configurations, "patients": options.limit,
               "data": options.data}  # fmt: skip
    done = read(options.out)
    wanted = [{"seed": seed, "arm": arm, **setting} for seed in range(options.seeds) for arm in (RANDOM, SEARCH)]
    left = [one for one in wanted if not any(one.items() <= record.items() for record in done)]
    if left:
        for record in _run_all(left, options):
            keep(options.out, record)
            print(f"seed {record['seed']} {record['arm']}: {len(record['values'])} epochs, {record['trials']} trials, "
                  f"best {best(record['values']):.4f}, {record['wall']:.0f} s", flush=True)  # fmt: skip
    print(table(read(options.out), setting))


def _run_all(wanted: Sequence[dict[str, Any]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from orchestrator import session
    from orchestrator.workspace import workspace
    from proseg.data.catalog import open_data

    with tempfile.TemporaryDirectory() as folder:
        store = subset(open_data(options.data, workspace(), jobs=options.jobs), Path(folder) / "data", options.limit)
        studies = [_study(Path(folder) / f"s{n}", store, one, options.jobs) for n, one in enumerate(wanted)]
        with session.keeper(studies[0].resources, address=None, verbose=False, lost=print) as keeper:
            for one, study in zip(wanted, studies, strict=True):
                yield {**one, **_searched(study, keeper, one), "jobs": options.jobs, "label": store.manifest.label,
                       "slices": store.manifest.slices}  # fmt: skip


def subset(store: Any, folder: Path, patients: int) -> Any:
    """A store of some of the patients, spread evenly over the file."""
    import numpy as np

    from proseg.data.case import Slice
    from proseg.data.store import Description, write

    names = list(dict.fromkeys(store.patients))
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(patients, len(names))).astype(int)]
    m = store.manifest
    description = Description(**{name: getattr(m, name) for name in Description.model_fields})
    slices = (
        Slice(
            store.image(row), store.annotations(row).astype(bool if m.classes == 1 else np.uint8),
            store.rater_mask(row), str(store.patients[row]), str(store.volumes[row]), float(store.z[row]),
            store.spacing(row),
        )
        for row in store.rows(chosen)
    )  # fmt: skip
    return write(folder, slices, description)


def _study(folder: Path, store: Any, one: dict[str, Any], jobs: int) -> Any:
    from search_spaces import find_space

    demo, search = find_space("demo").model_dump(mode="json"), one["arm"] == SEARCH
    crop = min(demo["base"]["data.crop"], store.manifest.height, store.manifest.width)
    space = {
        "search": demo["search"], "base": demo["base"] | {"data.crop": crop, "patience": one["epochs"]},
        "recipe": demo["recipe"], "objective": demo["objective"], "fold": demo["fold"],
        "sampler": "tpe" if search else "random",
        "scheduler": {"kind": "asha", "grace_epochs": 1, "reduction": 3} if search else {"kind": "none"},
        "budget": {"trials": allowed(one) if search else one["configurations"], "epochs": one["epochs"]},
    }  # fmt: skip
    proposals = one["seed"] + (0 if search else OTHER_SEED)
    return make_study(folder, store, space, concurrent=jobs, seed=one["seed"], sampler_seed=proposals)


def allowed(one: dict[str, Any]) -> int:
    """Epochs of the search."""
    return int(SHARE * one["configurations"] * one["epochs"])


def _searched(study: Any, keeper: Any, one: dict[str, Any]) -> dict[str, Any]:
    from orchestrator.control import Stopped
    from orchestrator.results import read_trials
    from orchestrator.search import run_search

    began, limit = time.monotonic(), allowed(one) if one["arm"] == SEARCH else one["configurations"] * one["epochs"]
    with contextlib.suppress(Stopped):  # its epochs were used up
        run_search(study, keeper, Nobody(), Meter(study.folder, limit))
    trials = read_trials(study)
    return {"values": course(study, trials)[:limit], "trials": len(trials), "wall": round(time.monotonic() - began, 1),
            "states": [trial.state for trial in trials]}  # fmt: skip


class Meter(Nobody):
    """The watcher: stops a study whose epochs are used up; those under way are finished, and not counted."""

    def __init__(self, folder: Path, limit: int):
        self.used: dict[int, int] = {}
        self._folder, self._limit = folder, limit

    def trial(self, trial: Any) -> None:
        from orchestrator.control import request_stop

        self.used[trial.number] = trial.epoch
        if sum(self.used.values()) >= self._limit:
            request_stop(self._folder)


def course(study: Any, trials: Sequence[Any]) -> list[float]:
    """The objective after each epoch of any trial, in the order in which they were finished."""
    from proseg.records import read_epochs

    records = [record for trial in trials for record in read_epochs(study.trial_folder(trial.number))]
    records.sort(key=lambda record: record["time"])
    return [round(study.criterion.of(record["metrics"]), 6) for record in records]


def best(values: Sequence[float]) -> float:
    return min((value for value in values if not math.isnan(value)), default=math.inf)


def used_until(values: Sequence[float], goal: float) -> int | None:
    """Epochs until one was as good; None where none was."""
    return next((count for count, value in enumerate(values, start=1) if value <= goal), None)


def table(records: Sequence[dict[str, Any]], setting: dict[str, Any]) -> str:
    fitting = [record for record in records if setting.items() <= record.items()]
    by_arm = {(record["seed"], record["arm"]): record for record in fitting}
    lines = ["| seed | R: best of random | its epochs | search: epochs until R | of random's | goal | search: best |",
             "|---" * 7 + "|"]  # fmt: skip
    for seed in sorted({seed for seed, _ in by_arm}):
        arms = [by_arm.get((seed, arm)) for arm in (RANDOM, SEARCH)]
        if None in arms:
            continue
        random, search = (arm["values"] for arm in arms if arm)
        goal, all_of_them = best(random), setting["configurations"] * setting["epochs"]
        used = used_until(search, goal)
        shown = (f"{used}", f"**{used / all_of_them:.2f}**") if used else (f"not in {len(search)}", "")
        met = "met" if used and used <= SHARE * all_of_them else "missed"
        lines.append(f"| {seed} | {goal:.4f} | {all_of_them} | {shown[0]} | {shown[1]} | ≤ 1/3: {met} | "
                     f"{best(search):.4f} |")  # fmt: skip
    about = f"{setting['configurations']} random configurations of {setting['epochs']} epochs"
    if fitting:
        about = f"{fitting[0]['label']}; {fitting[0]['slices']} slices of {setting['patients']} patients; {about}"
    return "\n".join([about, "", *lines])


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--epochs", type=int, default=9, help="of a trial that is not stopped early; default 9")
    parser.add_argument("--limit", type=int, default=100, metavar="PATIENTS", help="of 211; default 100")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time; default 2")
    parser.add_argument("--configurations", type=int, default=CONFIGURATIONS, help="random ones; default 16")
    parser.add_argument("--data", default="lidc-contours", help="default lidc-contours")
    parser.add_argument("--out", default="efficiency", help="name of the file among the results; default efficiency")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
