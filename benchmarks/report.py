"""How long the report of a study takes, and how large its page is: `python -m benchmarks.report [--trials 100]`.

The study is made up and lies on disk as a search leaves it: lidc.toml's space with a value that depends on another,
random proposals, successive halving over 30 epochs, 25 metrics an epoch, a few failures, four folds of a final stage.
Timed is the command, `proseg-tune report`, from the start of its process to its end.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.studies import make_blobs, make_study, publish

SECONDS_GOAL, BYTES_GOAL = 10.0, 5e6
EPOCHS, GRACE, REDUCTION = 30, 3, 3
FAILS = 33
"""Every trial of so many fails."""
NOISE = 0.006
RATERS = 4
DEPENDENT = {"kind": "float", "low": 1e-5, "high": 1e-2, "log": True, "when": {"optim.name": "adamw"}}
SEARCHED = {"optim.name": {"kind": "choice", "values": ["adam", "adamw"]}, "optim.weight_decay": DEPENDENT}


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    with tempfile.TemporaryDirectory() as home:
        make(Path(home), options.trials)
        found = [measure(Path(home)) for _ in range(options.repeats)]
    record = {"trials": options.trials, "found": found}
    publish("report", table(record), record)


def make(home: Path, trials: int, *, name: str = "made-up", seed: int = 0) -> Any:
    """A finished study in a workspace, without weights."""
    from orchestrator.sampling import Proposals
    from orchestrator.study import Final, write_state, write_study
    from search_spaces import find_space
    from search_spaces.space import FinalStage

    lidc = find_space("lidc").model_dump(mode="json")
    space = {"search": lidc["search"] | SEARCHED, "budget": {"trials": trials, "epochs": EPOCHS}, "sampler": "random",
             "scheduler": {"kind": "asha", "grace_epochs": GRACE, "reduction": REDUCTION}}  # fmt: skip
    store = make_blobs(home / "blobs")
    study = make_study(home / "studies" / name, store, space, seed=seed)
    stage = FinalStage(data=str(store.folder), epochs=EPOCHS)
    final = Final(stage=stage, data=study.data, folds=len(store.manifest.folds))
    study = study.model_copy(update={"finals": (final,), "created": 1.7e9})
    write_study(study)
    _search(study, Proposals(study, []), seed)
    _evaluate(study)
    write_state(study, "finished")
    return study


def _search(study: Any, proposals: Any, seed: int) -> None:
    """Trial after trial, each stopped where it would have been."""
    import numpy as np

    from orchestrator.results import TrialLog
    from orchestrator.rungs import Rungs

    log, rng = TrialLog(study.folder), np.random.default_rng(seed)
    rungs = Rungs(grace=GRACE, reduction=REDUCTION, epochs=EPOCHS, maximize=[False])
    for number in range(study.trials):
        trial = proposals.ask()
        log.append(trial)
        if number % FAILS == FAILS - 1:
            ended = replace(trial, state="failed", reason="the loss is not finite at epoch 1, step 17")
        else:
            ended = _trained(study, trial, rungs, list(_course(trial.values, rng)))
        log.append(ended)
        proposals.tell(ended)


def _course(values: dict[str, Any], rng: Any) -> Iterator[float]:
    """GED after each epoch: the learning rate and the energy score decide, the size of tau a little."""
    import math

    best = 0.12 + 0.02 * math.log10(values["optim.lr"] / 2e-3) ** 2 + 0.006 * abs(values["model.tau_size"] - 8) / 4
    best += 0.01 * math.log10(values["loss.w_es"] / 0.8) ** 2
    for epoch in range(1, EPOCHS + 1):
        yield float(best + 0.5 * math.exp(-epoch / 4) + NOISE * rng.normal() * (1 + 3 / epoch))


def _trained(study: Any, trial: Any, rungs: Any, course: list[float]) -> Any:
    """With the records of its epochs, up to the rung that stopped it."""
    from proseg.records import EPOCHS as RECORDS
    from proseg.records import write_atomically

    lines = []
    for epoch, value in enumerate(course, start=1):
        best = min(course[:epoch])
        lines.append({"epoch": epoch, "time": 1.7e9 + 60 * trial.number + epoch, "seconds": 20.0, "memory": None,
                      "best": best, "finished": epoch == EPOCHS, "metrics": _metrics(value)})  # fmt: skip
        decision = rungs.report(trial.number, epoch, (best,))
        if decision is not None:
            break
    content = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(study.trial_folder(trial.number) / RECORDS, content.encode())
    ended = replace(trial, epoch=epoch, objective=best, seconds=20.0 * epoch, cost=20.0 * epoch / 3600,
                    epoch_seconds=20.0)  # fmt: skip
    if decision is None:
        return replace(ended, state="complete")
    return replace(ended, state="stopped early", reason=decision.sentence(["ged"]), decision=decision.record())


def _metrics(ged: float) -> dict[str, float]:
    losses = {f"train/{part}": ged * weight for weight, part in
              enumerate(("loss", "seg", "rec", "cls", "kl_z", "kl_tau", "es"), start=1)}  # fmt: skip
    return losses | {f"val/{name}": value for name, value in _scores(ged).items()}


def _scores(ged: float) -> dict[str, float]:
    """All that an evaluation has, each following GED in its own way."""
    dice = {f"dice_a{rater}": 0.95 - ged / 2 + 0.002 * rater for rater in range(1, RATERS + 1)}
    sets = {"ged": ged, "d_pp": 0.6 * ged, "d_pa": 0.8 * ged, "d_aa": 0.16, "dice_soft": 0.94 - ged / 3,
            "dice_max": 0.95 - ged / 3, "dice_match": 0.95 - ged / 2}  # fmt: skip
    return {**sets, **dice, "dice_mean": sum(dice.values()) / RATERS}


def _evaluate(study: Any) -> None:
    """The results of the folds of the final stage."""
    from orchestrator.results import best_trial, read_trials
    from proseg.records import write_atomically

    best = best_trial(read_trials(study), study.criterion)
    assert best is not None
    assert best.objective is not None
    for fold in range(study.finals[0].folds):
        scores = _scores(best.objective + 0.01 * fold)
        prior = {
            f"prior_{name}": value for name, value in scores.items() if not name.startswith(("dice_a", "dice_mean"))
        }
        result = {"data": study.data.name, "label": study.data.label, "fold": fold, "cases": 4, "patients": 2,
                  "samples": RATERS, "prior_samples": 50, "epoch": EPOCHS,
                  "metrics": scores | prior | {"prior_ged_unbiased": scores["ged"] / 2}}  # fmt: skip
        path = study.final_folder(study.data.name, fold) / "result.json"
        write_atomically(path, json.dumps(result).encode())


def measure(home: Path) -> dict[str, float]:
    """Seconds and bytes of one report."""
    command = [sys.executable, "-m", "cli", "report", "made-up", "--json"]
    root = Path(__file__).resolve().parent.parent
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, check=True, cwd=root, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PROSEG_HOME": str(home)})  # fmt: skip
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    files = json.loads(done.stdout)["files"]
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
            "page": files["index.html"], "all": sum(files.values())}  # fmt: skip


def table(record: dict[str, Any]) -> str:
    lines = ["| report of a study of | wall s | CPU-s | page, MB | all files, MB | goal |", "|---" * 6 + "|"]
    for one in record["found"]:
        met = one["wall"] < SECONDS_GOAL and one["page"] < BYTES_GOAL
        lines.append(f"| {record['trials']} trials | {one['wall']:.1f} | {one['cpu']:.1f} | {one['page'] / 1e6:.2f} | "
                     f"{one['all'] / 1e6:.2f} | < 10 s, < 5 MB: {'met' if met else 'missed'} |")  # fmt: skip
    return "\n".join(lines)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="default 100")
    parser.add_argument("--repeats", type=int, default=3, help="default 3")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
