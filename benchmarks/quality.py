"""CPU seconds of training until the held-out GED (prior, S = 50) is at most 0.18: recipe MODERN against PAPER.

Trained on the training part of a fold, evaluated after each epoch on its validation and test parts; evaluation is not
counted. Takes minutes: a recipe that has not got there after --limit CPU seconds, or after its last epoch, is stopped.
"""

import time
from dataclasses import dataclass

from benchmarks.timing import Row, command
from orchestrator.workspace import workspace
from proseg.config import TrainConfig
from proseg.data.catalog import open_data
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.evaluate import evaluate
from proseg.recipes import RECIPES
from proseg.train import train


def measure(
    goal: float = 0.18, limit: float = 600.0, epochs: int = 4, fold: int = 0, seed: int = 0, samples: int = 50,
    data: str = "lidc-contours",
) -> list[Row]:  # fmt: skip
    """`epochs` is the length of MODERN's schedule; PAPER has its own."""
    store = open_data(data, workspace())
    modern = TrainConfig().with_values({**RECIPES["modern"], "epochs": epochs, "seed": seed})
    paper = TrainConfig().with_values({**RECIPES["paper"], "seed": seed})
    ours, rival = (until(goal, config, store, fold, limit, samples) for config in (modern, paper))
    note = f"MODERN {ours.said}; PAPER {rival.said}"
    if ours.reached and not rival.reached:
        note += ": the ratio is a lower bound"
    return [Row(f"training to GED ≤ {goal:g}", [ours.spent], [rival.spent] if ours.reached else [], note=note)]


@dataclass(frozen=True)
class Outcome:
    spent: float
    """CPU seconds."""
    epochs: int
    best: float
    """GED"""
    reached: bool

    @property
    def said(self) -> str:
        what = "reached it" if self.reached else f"did NOT reach it, best GED {self.best:.4f},"
        return f"{what} in {self.spent:.0f} CPU-s, {self.epochs} epochs"


def until(goal: float, config: TrainConfig, store: Store, number: int, limit: float, samples: int) -> Outcome:
    """Train until the goal, the limit or the last epoch."""
    fold = store.manifest.folds[number]
    cases = store.cases((*fold.val, *fold.test))
    run = train(config, store, Fold(fold.index, fold.train, (), ()))  # without cases of its own to validate
    spent, epoch, best = 0.0, 0, float("inf")
    while best > goal and spent < limit and epoch < config.epochs:
        began = time.process_time()
        report = next(run)
        spent, epoch = spent + time.process_time() - began, report.epoch
        model = report.state.best_guess
        scores = evaluate(model, store, cases, crop=config.data.crop, seed=0, prior_samples=samples)
        best = min(best, scores.means()["prior_ged"])
        print(f"epoch {epoch}: {spent:.0f} CPU-s, best GED {best:.4f}", flush=True)
    return Outcome(spent, epoch, best, best <= goal)


if __name__ == "__main__":
    command(__doc__, measure)
