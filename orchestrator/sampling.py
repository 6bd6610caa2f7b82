"""What to try next: an Optuna study on disk behind Ray Tune's Searcher interface.

Ours and not Ray's OptunaSearch, which tells a trial that was stopped early as COMPLETE with a low-epoch value and
leaves one whose result is NaN running for ever.
"""

import logging
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from proseg.records import Criterion
from search_spaces.space import Choice, Fixed, Float, Int, SearchSpace, Value

STARTUP_TRIALS = 4
"""Random trials before the model is trusted; budgets here are small."""


class OptunaSearcher(Searcher):
    """Asks Optuna for values, tells it how each trial ended.

    `suggest` gives Ray {"number": the trial's number, "values": {field: value}}.
    """

    def __init__(self, space: SearchSpace, criterion: Criterion, seed: int, storage: Path):
        direction = "maximize" if criterion.maximize else "minimize"
        super().__init__(metric=criterion.metric, mode=direction[:3])
        optuna.logging.set_verbosity(logging.WARNING)
        self._space = space
        self._study = optuna.create_study(
            study_name=space.name, direction=direction, storage=f"sqlite:///{storage}", load_if_exists=True,
            sampler=optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
            ),
        )  # fmt: skip
        self._asked: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        trial = self._study.ask()
        self._asked[trial_id] = trial
        trial.set_user_attr("ray_trial_id", trial_id)
        return {"number": trial.number, "values": draw(trial, self._space)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        if error or result is None or "epoch" not in result:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        if not result["finished"]:
            # The value of a pruned trial is its last report; TPE ranks it by the step it reached.
            trial.report(result["best"], step=result["epoch"])
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, result["best"])

    # Tune pickles and saves its searcher for a restore that is never asked for: the study lies in its database.

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


def draw(trial: optuna.Trial, space: SearchSpace) -> dict[str, Value]:
    """One value for every dimension that is active, in the order of the file. The only translation to Optuna."""
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
