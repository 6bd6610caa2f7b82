"""The chapters on what was done: what was searched and on what data, with what it was made, how to do it again."""

import json
import shlex
from collections.abc import Iterator

from orchestrator.environment import environment
from orchestrator.report.facts import Facts, data_line
from orchestrator.report.parts import Listing, Section, Table, cell
from orchestrator.study import DataRef
from orchestrator.words import count, listed, moment, span
from search_spaces.space import Choice, Dimension, Fixed, Float, Int, Value

SAMPLERS = {
    "tpe": "a tree-structured Parzen estimator (tpe)", "gp": "a Gaussian process (gp)", "random": "chance (random)",
    "qmc": "scrambled Sobol points (qmc)", "grid": "every combination of a grid (grid)",
}  # fmt: skip


def searched(facts: Facts) -> Section:
    """The space, the objective, the budget, the data."""
    study, space = facts.study, facts.study.space
    aims = listed([f"{o.direction} {o.metric}" for o in (space.objective, space.second_objective) if o])
    text = (
        *([space.about] if space.about else []),
        f"Up to {count(study.trials, 'trial')} of at most {count(study.base.epochs, 'epoch')} each, proposed by "
        f"{SAMPLERS[space.sampler]}, to {aims} on the validation patients of fold {space.fold}. Every trial trained on "
        "that fold's training patients; its test patients play no part in the search.",
    )
    parts = (_plan(facts), _data(facts), _dimensions(facts))
    return Section("What was searched, and on what", text, parts)


def _plan(facts: Facts) -> Table:
    rows = tuple((name, value) for name, value in _plan_rows(facts) if value)
    return Table("study", f"The study {facts.study.name}", ("what", "value"), rows)


def _plan_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    study, resources = facts.study, facts.study.resources
    yield "state", facts.state
    yield "begun", moment(study.created)
    yield "search space", f"{study.space.name}, digest {study.space_digest}"
    yield "method", f"{study.base.method}, recipe {study.space.recipe}"
    yield "tried first", "; ".join(point.origin for point in study.points)
    yield "early stopping", _scheduler(facts)
    yield "limits", ", ".join(f"{name} {limit:g}" for name, limit in study.space.limits if limit is not None)
    yield "time allowed", span(study.max_time) if study.max_time else ""
    yield "budget", f"{study.budget:g} {resources.unit}" if study.budget else ""
    yield "machine", (f"{count(len(resources.nodes), 'node')}, {count(resources.cpus, 'core')}, "
                      f"{count(resources.gpus, 'GPU')}; {count(resources.concurrent, 'trial')} at a time, "
                      f"{count(resources.workers, 'rank')} each")  # fmt: skip
    yield "spent on trials", f"{sum(trial.cost for trial in facts.trials):.3g} {resources.unit}"
    yield "final stage", _finals(facts)


def _scheduler(facts: Facts) -> str:
    scheduler = facts.study.space.scheduler
    if scheduler.kind == "none":
        return "none"
    return (f"successive halving: after {count(scheduler.grace_epochs, 'epoch')} and at every multiple of "
            f"{scheduler.reduction} of it the best 1/{scheduler.reduction} go on")  # fmt: skip


def _finals(facts: Facts) -> str:
    told = [
        f"{final.stage.data}: left out, {final.missing}" if final.data is None
        else f"{final.data.name}: {count(final.folds, 'fold')} of {count(final.stage.epochs, 'epoch')}"
        for final in facts.study.finals
    ]  # fmt: skip
    return "; ".join(told) or "none was asked for"


def _sets(facts: Facts) -> dict[DataRef, list[str]]:
    """Every data set and what it is used for."""
    uses: dict[str, tuple[DataRef, list[str]]] = {facts.study.data.fingerprint: (facts.study.data, ["search"])}
    for final in facts.study.finals:
        if final.data is not None:
            uses.setdefault(final.data.fingerprint, (final.data, []))[1].append("final stage")
    return dict(uses.values())


def _data(facts: Facts) -> Table:
    columns = ("data set", "what it is", "slices", "patients", "raters", "a case is", "used for")
    rows = tuple((d.name, d.label, d.slices, d.patients, d.raters, f"a {d.unit}", listed(uses))
                 for d, uses in _sets(facts).items())  # fmt: skip
    return Table("data", "The data", columns, rows)


def _dimensions(facts: Facts) -> Table:
    """Each dimension, the value that trials start from, and the one that was chosen."""
    space, base = facts.study.space, facts.study.base.flat()
    chosen = facts.winner.values if facts.winner else {}
    columns = ("dimension", "values", "only where", "recipe", "chosen")
    rows = tuple(
        (name, _range(dimension), _when(dimension), base.get(name), chosen.get(name))
        for name, dimension in space.search.items()
    )  # fmt: skip
    notes = ("Recipe: the value of whatever is not searched. Chosen: that of the chosen trial, if there is one.",)
    return Table("space", f"The search space {space.name} ({data_line(facts.study)})", columns, rows, notes)


def _range(dimension: Dimension) -> str:
    match dimension:
        case Float() | Int():
            return f"{dimension.low:g} to {dimension.high:g}{', logarithmic' if dimension.log else ''}"
        case Choice():
            return ", ".join(map(_text, dimension.values))
        case Fixed():
            return f"{_text(dimension.value)}, fixed"


def _when(dimension: Dimension) -> str:
    return " and ".join(
        f"{name} is {' or '.join(map(_text, allowed if isinstance(allowed, list) else [allowed]))}"
        for name, allowed in dimension.when.items()
    )


def _text(value: Value | object) -> str:
    return str(cell(value))


# --- with what, and again ---------------------------------------------------------------------------------------------


def made_with(facts: Facts) -> Section:
    """Versions and fingerprints: what must be the same for numbers to be comparable."""
    study = facts.study
    versions = _environments(study.environment, environment())
    prints = (
        *(("data", data.name, data.fingerprint) for data in _sets(facts)),
        ("search space", study.space.name, study.space_digest),
    )  # fmt: skip
    return Section("Environment and fingerprints", (), (
        versions,
        Table("fingerprints", "What it rests on", ("what", "name", "fingerprint"), prints),
    ))  # fmt: skip


def _environments(then: dict[str, str], now: dict[str, str]) -> Table:
    """Of the study; that of the report beside it where it is another."""
    caption = "With what the study was made"
    if then == now:
        rows = tuple(then.items())
        return Table("environment", caption, ("what", "version"), rows, ("The report was made with the same.",))
    names = dict.fromkeys((*then, *now))
    rows = tuple((name, then.get(name), now.get(name)) for name in names)
    return Table("environment", caption, ("what", "study", "this report"), rows)


def again(facts: Facts) -> Section:
    """Commands that make the study anew, and those that use what it gave."""
    study = facts.study
    text = (
        "The same proposals follow from the same seed and the same order in which trials end; with several at a time "
        "that order, and so what is tried, can differ from run to run. On CPUs a training of one configuration gives "
        "the same numbers again, on GPUs nearly.",
        f"All that was asked for is in study.json in the study's folder; the search space {study.space.name} is there "
        "under its own key, as it was read.",
    )
    parts = [
        Listing("The study anew", "\n".join([*_versions(facts), _launch(facts)])),
        Listing("What it gave", f"proseg-tune status {study.name}\nproseg-tune best {study.name} --export DIR\n"
                                f"proseg-tune report {study.name}"),
    ]  # fmt: skip
    if facts.winner is not None:
        config = study.config_of(facts.winner.values).model_dump()
        parts.append(
            Listing(f"The configuration of {facts.winner.name}, the chosen trial", json.dumps(config, indent=1))
        )
    return Section("How to do it again", text, tuple(parts))


def _versions(facts: Facts) -> list[str]:
    revision = facts.study.environment.get("git", "")
    commit = revision.removesuffix("-modified")
    checkout = [f"git checkout {shlex.quote(commit)}"] if commit and " " not in commit else []
    changed = ["# the code had changes that no commit holds"] if revision.endswith("-modified") else []
    return [*checkout, *changed, "pip install -c constraints.txt -e ."]


def _launch(facts: Facts) -> str:
    study, space = facts.study, facts.study.space
    sampler, confirm = f"--sampler {space.sampler}", f"--confirm {space.confirm.top}"
    words = [
        f"proseg-tune launch {shlex.quote(space.name)} --study {study.name}-again --seed {study.seed}",
        f"--trials {study.trials} --epochs {study.base.epochs} {sampler} {confirm}",
        f"--concurrent {study.resources.concurrent} --workers {study.resources.workers}",
        f"--gpu-share {study.resources.gpu_share:g}" if study.resources.gpus else "",
        "" if study.finals else "--no-final",
    ]
    return " \\\n  ".join(filter(None, words))
