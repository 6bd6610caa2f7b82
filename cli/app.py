"""The commands: arguments in, one call into the orchestrator, the answer rendered.

Whatever is slow to import (torch, ray, mlflow) is imported inside the command that needs it, so that --help is instant.
"""

import contextlib
import io
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cli import render
from cli.best import best
from cli.compare import compare
from cli.complete import data_sets, offer, spaces, studies, trials
from cli.data import data_app
from cli.doctor import doctor
from cli.errors import user_errors
from cli.options import (
    Address,
    Budget,
    Concurrent,
    GpuShare,
    Json,
    Located,
    MaxTime,
    StudyName,
    duration,
    pair,
    trial_number,
)
from cli.predict import predict
from cli.report import report
from cli.status import list_studies, status
from cli.sync import sync
from orchestrator.surroundings import settle

if TYPE_CHECKING:
    from orchestrator.study import Study

Sampler = Literal["tpe", "gp", "random", "qmc", "grid"]  # of search_spaces.space, whose import would cost --help

ORDER = ("launch", "resume", "stop", "status", "list", "explain", "best", "compare", "report", "predict", "ui", "sync",
         "data", "doctor")  # fmt: skip


class InOrder(TyperGroup):
    """Lists the commands in the order of a study's life; every word may name a file by ~."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_expanded(word) for word in args])

    def list_commands(self, ctx: typer.Context) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def _expanded(word: str) -> str:
    """What a shell makes of ~ where it stands alone, but not behind `--option=` or in quotes."""
    option, mark, value = word.partition("=")
    if mark and option.startswith("--"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(word)


app = typer.Typer(
    cls=InOrder, help="Search, compare and export ProSeg models of multi-rater medical image segmentation.",
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
app.add_typer(data_app, name="data")
app.command()(best)
app.command()(compare)
app.command()(predict)
app.command()(status)
app.command("list")(list_studies)
app.command()(doctor)
app.command()(report)
app.command()(sync)


def main() -> None:
    """Entry point of the command."""
    for stream in (sys.stdout, sys.stderr):  # what the terminal's encoding lacks is replaced
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Foreign libraries' deprecation notes are for their developers, not for who runs a study.
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    settle()
    app(prog_name="proseg-tune")  # also of `python -m cli`: the shell completes commands of this name


@app.command()
def launch(
    space: Annotated[
        str,
        typer.Argument(
            help="A search space: demo, lidc, npc, or the path of a .toml file.", autocompletion=offer(spaces)
        ),
    ],
    study: Annotated[str | None, typer.Option(help="Name of the study; a readable one is made up.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Configurations to try.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of a trial that is not stopped early.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="DDP ranks of each training.")] = 1,
    gpu_share: GpuShare = None,
    concurrent: Concurrent = None,
    data: Annotated[
        str | None,
        typer.Option(help="Search on this data set or folder instead.", autocompletion=offer(data_sets)),
    ] = None,
    max_time: MaxTime = None,
    budget: Budget = None,
    sampler: Annotated[
        Sampler | None, typer.Option(help="How configurations are proposed, instead of the space's own way.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STUDY", help="Try the best of an earlier study first.", autocompletion=offer(studies)
        ),
    ] = None,
    confirm: Annotated[
        int | None, typer.Option(min=0, help="Retrain and compare so many of the best; 0 turns it off.")
    ] = None,
    epoch_timeout: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="TIME", help="A training without an epoch for so long hangs."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Optuna's database, as in postgresql+psycopg2://...; a file of the study without."
        ),
    ] = None,
    address: Address = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search and of every training.")] = 0,
    final: Annotated[
        bool, typer.Option("--final/--no-final", help="Retrain the best on all folds and data sets.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, start nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of Ray.")] = False,
    as_json: Json = False,
) -> None:
    """Search a space for the best configuration, retrain it, evaluate it once on held-out patients."""
    with user_errors():
        from search_spaces import find_space

        found = find_space(space)  # before anything slow is imported: most mistakes are here
        from orchestrator.launch import Options, check_here, check_new, create, get_ready, plan, refuse, told_first
        from orchestrator.session import joined
        from orchestrator.stores import check_store, is_own
        from orchestrator.workspace import workspace
        from proseg.data.raters import rare_raters
        from proseg.data.store import Store

        home = workspace()
        if not dry_run and not is_own(home):
            check_store(home)  # a password that is wrong is told before anything is measured
        refuse([*check_new(home, study), *check_here(home, workers=workers, joins=address is not None)])
        options = Options(
            trials=trials, epochs=epochs, workers=workers, gpu_share=gpu_share or None, concurrent=concurrent or None,
            data=data, max_time=max_time, budget=pair(budget), seed=seed, final=final, confirm=confirm,
            sampler=sampler, start_from=start_from, epoch_timeout=epoch_timeout, storage=storage,
        )  # fmt: skip
        with joined(address, home, verbose=verbose) as nodes:
            ready = partial(get_ready, home=home, local=address is None, verbose=verbose)
            planned = plan(
                found, options, home, nodes=nodes, track=render.track(quiet=as_json),
                meanwhile=(lambda study: None) if dry_run else ready,
            )  # fmt: skip
            if dry_run:
                notes = [*told_first(planned), *rare_raters(Store(planned.data.folder))]
                render.plan(planned, notes, as_json=as_json)
                return
            created = create(planned, home, study, time.time())
            _run(created, home, address=address, verbose=verbose, as_json=as_json)


def _run(study: "Study", home: Path, *, address: str | None, verbose: bool, as_json: bool) -> None:
    from cli.live import watching
    from orchestrator.launch import run, told_first

    with watching(study, quiet=as_json) as watcher:
        for text in told_first(study):
            watcher.note(text)
        # Ray's log goes to standard output, which belongs to the JSON.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            run(study, home, watcher, address=address, verbose=verbose)
    _show_outcome(study, as_json)


@app.command()
def resume(
    study: StudyName = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Configurations to try in all, those that were tried counted.")
    ] = None,
    gpu_share: GpuShare = None,
    concurrent: Concurrent = None,
    max_time: MaxTime = None,
    budget: Budget = None,
    data: Located = None,
    address: Address = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of Ray.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a study that was stopped or killed, or with a finished one that is given more trials or time."""
    with user_errors():
        from orchestrator.launch import Options, check_here, refuse, resumed
        from orchestrator.results import read_trials
        from orchestrator.sampling import Mirror
        from orchestrator.session import joined
        from orchestrator.study import alone, find_study, located, read_state, write_study
        from orchestrator.workspace import workspace

        home = workspace()
        found = find_study(home, study)
        if data:
            found = located(found, data)
            with alone(found):
                write_study(found)
        more = (trials, max_time, budget) != (None, None, None)
        if read_state(found) == "finished" and not more:
            if found.storage is not None:  # it may have been away when the study ended
                with alone(found):
                    Mirror(found, read_trials(found))
            if not as_json:
                render.line(
                    f"study {found.name} is finished; there is nothing to go on with, unless --trials gives it more"
                )
            _show_outcome(found, as_json)
            return
        with alone(found):
            pass  # that another process runs it is told at once
        options = Options(trials=trials, gpu_share=gpu_share or None, concurrent=concurrent or None, max_time=max_time,
                          budget=pair(budget))  # fmt: skip
        refuse(check_here(home, workers=found.resources.workers, joins=address is not None))
        with joined(address, home, verbose=verbose) as nodes:
            with alone(found):
                going_on = resumed(found, home, options, nodes)
            _run(going_on, home, address=address, verbose=verbose, as_json=as_json)


@app.command()
def stop(study: StudyName = None, as_json: Json = False) -> None:
    """Stop a running study when the epochs under way are finished; `resume` goes on with it."""
    with user_errors():
        from orchestrator.control import request_stop
        from orchestrator.study import StudyError, find_study, read_state
        from orchestrator.workspace import workspace

        found = find_study(workspace(), study)
        if read_state(found) != "running":
            raise StudyError(f"study {found.name} is not running: it is {read_state(found)}")
        request_stop(found.folder)
        if as_json:
            render.json({"study": found.name, "stop": "requested"})
        else:
            render.line(f"study {found.name} stops when the epochs under way are finished")


@app.command()
def explain(
    trial: Annotated[
        int,
        typer.Argument(parser=trial_number, metavar="TRIAL", help="As in t003.", autocompletion=offer(trials)),
    ],
    study: StudyName = None,
    as_json: Json = False,
) -> None:
    """Tell what a trial tried, how far it came, and why it ended."""
    with user_errors():
        from orchestrator.results import explanation
        from orchestrator.study import find_study
        from orchestrator.workspace import workspace

        found = find_study(workspace(), study)
        render.explained(found, explanation(found, trial), as_json=as_json)


def _show_outcome(study: "Study", as_json: bool) -> None:
    from orchestrator.export import best_record

    if as_json:
        render.json(best_record(study))
    else:
        render.outcome(study)


@app.command()
def ui(
    study: StudyName = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Serve the runs in MLflow's pages, on this machine only."""
    with user_errors():
        render.line("starting MLflow's pages, which may take a minute ...")
        from orchestrator.launch import tell_of_the_dead
        from orchestrator.server import serve
        from orchestrator.study import find_study
        from orchestrator.workspace import workspace

        home = workspace()
        found = find_study(home, study)
        serve(home, found, port, say=render.line, before=lambda: tell_of_the_dead(home, render.line))
