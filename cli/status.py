"""The commands that tell how studies stand: one of them, now or for as long as it runs, and all of them."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cli import render
from cli.errors import INTERRUPTED, user_errors
from cli.options import Json, StudyName

if TYPE_CHECKING:
    from orchestrator.study import Study

SECONDS_BETWEEN_LOOKS = 2.0


def status(
    study: StudyName = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it ends; Ctrl-C ends only this.")] = False,
    every: Annotated[
        float | None,
        typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Between two looks of --watch; 2 without."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how far a study is, and its trials."""
    if every is not None and not watch:
        raise typer.BadParameter("it says how often --watch looks: add --watch", param_hint="--every")
    with user_errors():
        from orchestrator.results import read_results, read_trials
        from orchestrator.study import find_study, read_state
        from orchestrator.workspace import workspace

        found = find_study(workspace(), study)
        state = read_state(found)
        if watch and (as_json or state == "running"):
            _watch(found, state, every or SECONDS_BETWEEN_LOOKS, as_json=as_json)
            return
        render.status(found, state, read_trials(found), read_results(found), as_json=as_json)


def _watch(study: "Study", state: str, every: float, *, as_json: bool) -> None:
    """Until it ends, which is success however it ended; an interrupted watch says nothing and exits as interrupted."""
    try:
        _follow_as_json(study, state, every) if as_json else _follow(study, every)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _follow(study: "Study", every: float) -> None:
    from cli.live import Watch, shown
    from orchestrator.follow import follow, stage_of
    from orchestrator.study import running_since

    with shown(
        Watch(study, render.out, stage=stage_of(study), age=max(0.0, time.time() - running_since(study)))
    ) as watch:
        state = follow(study, watch, every=every)
    render.line(f"study {study.name} is {state}; `proseg-tune status {study.name}` shows what has been reached")


def _follow_as_json(study: "Study", state: str, every: float) -> None:
    from cli.live import JsonLines
    from orchestrator.follow import follow, stage_of

    lines = JsonLines()
    lines.say("study", study=study.name, state=state, stage=stage_of(study), trials_planned=study.trials,
              folder=str(study.folder))  # fmt: skip
    lines.say("ended", state=follow(study, lines, every=every))


def list_studies(as_json: Json = False) -> None:
    """List the studies of the workspace, the newest first."""
    with user_errors():
        from orchestrator.overview import overview
        from orchestrator.workspace import workspace

        home = workspace()
        render.studies(*overview(home, time.time()), home, as_json=as_json)
