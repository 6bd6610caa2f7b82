"""What MLflow's pages show of a study: the names of runs, their numbers, the saved view, descriptions, addresses.

Pure functions: text from records. Whoever talks to MLflow (`orchestrator.sender`) sends what they return.

The format of a saved view is MLflow's own and not documented; it was read in version 3.17, and tests open the view in a
browser. Where a server is of another version, `study_page` names the filter instead, which every version understands.
"""

import base64
import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, get_args
from urllib.parse import quote

from orchestrator.results import Trial, TrialState, ranked
from orchestrator.study import Study
from orchestrator.tables import leaderboard_markdown
from proseg.config import TrainConfig
from proseg.records import best_epoch
from search_spaces.space import Fixed, Float, Int

SAMPLES = "samples/val"
"""Key of the pictures that trials log (`MlflowClient.log_image`): the saved view shows them side by side."""
SAMPLES_STEP = 0
"""Of every one of them: MLflow shows the pictures of one step, and trials end at different epochs."""
NOTE = "mlflow.note.content"
"""The tag of a run that MLflow shows as its description."""
VIEW = "mlflow.sharedViewState."
UNDERSTOOD = "3.17."
"""Versions of MLflow whose saved views are known to be as written here begin with this."""
GENERATED = ("objective", "val", "train", "cost", "time", "gpu")
"""Prefixes of the metrics of a trial; MLflow makes a section of charts for each."""
HERE = "."
"""Of links from one page to another: whatever the server is called, and whatever its path begins with."""
MOST_CHARACTERS = 8000
"""Of a run's description: MLflow cuts what is longer without a word."""
FAILURES, LONGEST_REASON = 5, 200
"""That a description tells, and characters of each."""
LEADERS = 5
"""Trials in the first paragraph of a study's description."""
MOST_AXES = 12
"""Of parallel coordinates: more cannot be read."""


# --- names and numbers of a run ---------------------------------------------------------------------------------------


def run_name(trial: Trial) -> str:
    """The number first, then what tells most: lists cut names at some twenty characters.

    While it runs that is its learning rate; then it is the score and the word for its end, so that every list of runs
    is a leaderboard, whatever columns it has.
    """
    if trial.state == "running":
        return " ".join([trial.name, *_telling(trial)])
    return " ".join([trial.name, *([] if trial.objective is None else [f"{trial.objective:.4f}"]), trial.state])


def _telling(trial: Trial) -> list[str]:
    floats = {name: value for name, value in trial.values.items() if isinstance(value, float)}
    names = sorted(floats, key=lambda name: name != "optim.lr")
    return [f"{name.split('.')[-1]} {floats[name]:.1e}" for name in names[:1]]


def trial_params(study: Study, trial: Trial, config: TrainConfig) -> dict[str, Any]:
    """Searched fields under model/, loss/, optim/; the others under fixed/, out of the way of comparisons."""
    params: dict[str, Any] = {}
    for name, value in config.flat().items():
        if name not in trial.values:
            params[f"fixed/{name}"] = value
            continue
        params[param(name)] = value
        if _logarithmic(study, name):  # MLflow's parallel coordinates have linear axes only
            params[log_param(name)] = round(math.log10(value), 4)
    return params


def param(name: str) -> str:
    """The parameter that holds a searched field."""
    return name.replace(".", "/", 1)


def log_param(name: str) -> str:
    """The parameter that holds its logarithm, where the space searches it by that."""
    group, leaf = name.rsplit(".", 1)
    return f"{group.replace('.', '/', 1)}/log10_{leaf}"


def _logarithmic(study: Study, name: str) -> bool:
    dimension = study.space.search.get(name)
    return isinstance(dimension, Float | Int) and dimension.log


def trial_tags(trial: Trial) -> dict[str, str]:
    """How it ended, in words: MLflow draws all that was not finished with the same red cross."""
    reason = "proseg.prune_reason" if trial.state == "stopped early" else "proseg.reason"
    over = {"proseg.over": "; ".join(trial.over)} if trial.over else {}
    return {"proseg.state": trial.state} | ({reason: trial.reason} if trial.reason else {}) | over


def trial_summary(study: Study, trial: Trial, epochs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """One number each of a trial that has ended, the same as in its record, for columns and scatter plots.

    Args:
        epochs: its records (`proseg.records.read_epochs`).
    """
    at_best = best_epoch(epochs, study.criterion).get(f"val/{companion(study)}")
    found: dict[str, float | None] = {
        objective(study): trial.objective,
        f"objective/{companion(study)}": trial.second if study.second else at_best,
        "cost/epochs": trial.epoch,
        f"cost/{cost_unit(study)}": trial.cost,
        "time/seconds": trial.seconds,
        "time/epoch_seconds": trial.epoch_seconds,
        "gpu/mem_peak_gb": None if trial.memory is None else round(trial.memory / 2**30, 4),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def objective(study: Study) -> str:
    """The metric that holds the best value so far of what is searched for."""
    return f"objective/{study.criterion.metric}"


def companion(study: Study) -> str:
    """The metric that is shown beside the objective: the second objective, else agreement beside diversity."""
    if study.second is not None:
        return study.second.metric
    return "dice_match" if study.criterion.metric != "dice_match" else "ged"


def cost_unit(study: Study) -> str:
    """As `Trial.cost` counts: GPU-hours, or without GPUs core-hours."""
    return "gpu_hours" if study.resources.gpus else "cpu_hours"


# --- addresses --------------------------------------------------------------------------------------------------------


def experiment_name(study: Study) -> str:
    """Of MLflow's experiment: one for each space, so that studies of the same task are compared on one page."""
    return f"proseg-tune/{study.space.name}"


def study_page(server: str, experiment: str, study: Study, mlflow: str | None = None) -> str:
    """The page to open for a study.

    Args:
        mlflow: version of the server; that which is installed here without.
    """
    page = view_page if (mlflow or version("mlflow")).startswith(UNDERSTOOD) else filter_page
    return page(server, experiment, study)


def view_page(server: str, experiment: str, study: Study, *, charts: bool = False) -> str:
    """The saved view: the leaderboard as a table, or the charts.

    MLflow takes nothing else from an address that names a view: a filter beside it would be all it listens to.
    """
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{_runs(server, experiment)}&viewStateShareKey={quote(study.key)}{mode}"


def filter_page(server: str, experiment: str, study: Study) -> str:
    """The trials of a study, best first, in whatever columns MLflow has.

    Without the filter it shows one collapsed row.
    """
    order = quote(f"metrics.`{objective(study)}`")
    ascending = str(not study.criterion.maximize).lower()
    return (f"{_runs(server, experiment)}&searchFilter={quote(_filter(study))}&orderByKey={order}"
            f"&orderByAsc={ascending}")  # fmt: skip


def run_page(server: str, experiment: str, run: str) -> str:
    """The page of one run."""
    return f"{server}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def _runs(server: str, experiment: str) -> str:
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def _filter(study: Study) -> str:
    return f"tags.`proseg.study` = '{study.key}' and tags.`proseg.kind` = 'trial'"


# --- the saved view ---------------------------------------------------------------------------------------------------


def saved_view(study: Study) -> tuple[str, str]:
    """(name, value) of the tag of the experiment that holds the saved view; always the same for the same study."""
    packed = base64.b64encode(zlib.compress(json.dumps(_state(study), separators=(",", ":")).encode(), 9)).decode()
    created = int(1000 * study.created)
    view = {"name": study.name, "createdAt": created, "updatedAt": created, "state": f"deflate;{packed}"}
    return f"{VIEW}{study.key}", json.dumps(view)


def _state(study: Study) -> dict[str, Any]:
    columns = _columns(study)
    widths = {"attributes.`Run Name`": 220, "runDateAndNestInfo": 145} | columns
    return {
        "searchFilter": _filter(study),
        "orderByKey": f"metrics.`{objective(study)}`",
        "orderByAsc": not study.criterion.maximize,
        "selectedColumns": list(columns),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": _charts(study),
        "compareRunSections": _sections(study),
        "isAccordionReordered": True,
    }


def _columns(study: Study) -> dict[str, int]:
    """{column: width in pixels} of the leaderboard."""
    return {
        "tags.`proseg.state`": 110,
        f"metrics.`{objective(study)}`": 120,
        f"metrics.`objective/{companion(study)}`": 160,
        "metrics.`cost/epochs`": 95,
        "tags.`proseg.data_label`": 230,
        f"metrics.`cost/{cost_unit(study)}`": 120,
        **{f"params.`{param(name)}`": 130 for name in _searched(study)},
        "tags.`proseg.prune_reason`": 400,
        "tags.`proseg.reason`": 400,
    }


def _searched(study: Study) -> list[str]:
    return [name for name, dimension in study.space.search.items() if not isinstance(dimension, Fixed)]


def _axes(study: Study) -> list[str]:
    """Of parallel coordinates. A field that only some trials search is left out, for MLflow would drop the others."""
    names = [name for name in _searched(study) if not study.space.search[name].when]
    return [log_param(name) if _logarithmic(study, name) else param(name) for name in names[:MOST_AXES]]


def _charts(study: Study) -> list[dict[str, Any]]:
    first, beside = study.criterion.metric, companion(study)
    return [
        _chart("PARALLEL", "study", selectedParams=_axes(study), selectedMetrics=[objective(study)], showAllRuns=False),
        _chart("SCATTER", "curves", xaxis=_axis(first), yaxis=_axis(beside), runsCountToCompare=100),
        *(_curve(metric) for metric in (f"val/{first}", f"val/{beside}", "train/loss")),
        _chart("IMAGE", "samples", imageKeys=[SAMPLES], step=SAMPLES_STEP, showRunParams=False),
        _chart(
            "DIFFERENCE", "apart", chartName="By run", compareGroups=["Tags", "Parameters"],
            showChangeFromBaseline=False, showDifferencesOnly=True, baselineColumnUuid="",
        ),
    ]  # fmt: skip


def _axis(metric: str) -> dict[str, str]:
    return {"key": f"objective/{metric}", "type": "METRIC"}


def _curve(metric: str) -> dict[str, Any]:
    return _chart(
        "LINE", "curves", name=metric, metricKey=metric, lineSmoothness=0, scaleType="linear", xAxisScaleType="linear",
        xAxisKey="step", useGlobalXaxisKey=False, useGlobalLineSmoothing=False,
    )  # fmt: skip


def _chart(kind: str, section: str, *, name: str = "", **more: Any) -> dict[str, Any]:
    uuid = f"proseg-{kind.lower()}{name and '-'}{name}"
    return {"uuid": uuid, "type": kind, "metricSectionId": section, "deleted": False, "isGenerated": False, **more}


def _sections(study: Study) -> list[dict[str, Any]]:
    """Ours, open; and folded those into which MLflow sorts the charts of its own, by the metrics' prefixes."""
    return [
        _section("study", study.data.label, columns=1, cardHeight=340),
        _section("curves", "scores and learning curves", columns=2, cardHeight=270),
        _section("samples", "samples", columns=1, cardHeight=700),  # a picture's key decides the name of its section
        _section("apart", "what differs", columns=1, cardHeight=500),
        *(_section(prefix, prefix, display=False, isGenerated=True) for prefix in GENERATED),
    ]


def _section(uuid: str, name: str, **more: Any) -> dict[str, Any]:
    usual = {"uuid": uuid, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return usual | more


# --- the description of a study ---------------------------------------------------------------------------------------


def note(
    study: Study,
    trials: Sequence[Trial],
    *,
    experiment: str,
    runs: Mapping[str, str],
    winner: Trial | None = None,
    tables: str = "",
) -> str:
    """The description of a study's run, in Markdown.

    Args:
        runs: {trial's name: its run}, of those that have one.
        winner: the trial that goes on, where it is known.
        tables: what follows the leaderboard: those of the final stage.
    """
    links = {name: run_page(HERE, experiment, run) for name, run in runs.items()}
    head = [_leaders(study, trials, links), _outcome(study, trials, winner, links), _views(study, experiment)]
    failures = _failures(trials, links)
    for rows, shown in ((10, tables), (5, tables), (5, "")):
        text = _paragraphs([*head, leaderboard_markdown(study, trials, rows, links=links), *failures, shown])
        if len(text) <= MOST_CHARACTERS:
            return text
    return _paragraphs(head)


def _paragraphs(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _leaders(study: Study, trials: Sequence[Trial], links: Mapping[str, str]) -> str:
    """The leaderboard's head in one paragraph: MLflow folds a description after its first lines."""
    shown = (
        f"{_linked(trial.name, links)} {trial.objective:.4f} {trial.state}"
        for trial in ranked(trials, study.criterion)[:LEADERS]
    )
    return " · ".join([f"**{study.criterion.metric}**, {study.data.label}", *shown])


def _outcome(study: Study, trials: Sequence[Trial], winner: Trial | None, links: Mapping[str, str]) -> str:
    """How many ended how, and what was looked for where."""
    counts = Counter(trial.state for trial in trials)
    ended = ", ".join(f"{counts[state]} {state}" for state in get_args(TrialState) if counts[state])
    chosen = "" if winner is None else f" Chosen: {_linked(winner.name, links)}."
    return (
        f"{len(trials)} of {study.trials} trials: {ended or 'none yet'}.{chosen} Searched for the "
        f"{'highest' if study.criterion.maximize else 'lowest'} {study.criterion.metric} on the validation patients of "
        f"fold {study.space.fold} (S = {study.data.raters}, one sample a rater)."
    )


def _views(study: Study, experiment: str) -> str:
    addresses = {
        "Leaderboard": view_page(HERE, experiment, study),
        "charts": view_page(HERE, experiment, study, charts=True),
        "the same trials by a filter": filter_page(HERE, experiment, study),
    }
    return " · ".join(f"[{name}]({address})" for name, address in addresses.items())


def _failures(trials: Sequence[Trial], links: Mapping[str, str]) -> list[str]:
    failed = [trial for trial in trials if trial.state == "failed"]
    lines = [
        f"- {_linked(trial.name, links)} failed: {' '.join(trial.reason.split())[:LONGEST_REASON]}"
        for trial in failed[:FAILURES]
    ]
    return lines + ([f"- {len(failed) - FAILURES} more failed"] if len(failed) > FAILURES else [])


def _linked(name: str, links: Mapping[str, str]) -> str:
    return f"[{name}]({links[name]})" if name in links else name
