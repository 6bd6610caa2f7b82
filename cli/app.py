"""The commands: arguments in, one call into the orchestrator, the answer rendered.

Whatever is slow to import (torch, ray, mlflow) is imported inside the command that needs it, so that --help is instant.
"""

import contextlib
import errno
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import render

if TYPE_CHECKING:
    from orchestrator.study import Study
    from proseg.data.store import Store

Sampler = Literal["tpe", "gp", "random", "qmc", "grid"]  # of search_spaces.space, whose import would cost --help

app = typer.Typer(
    help="Search, compare and export ProSeg models of multi-rater medical image segmentation.",
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
data_app = typer.Typer(help="Data sets: list them, look at them, write a stand-in.", no_args_is_help=True)
app.add_typer(data_app, name="data")

USER_MISTAKE = 2
PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENOENT}
"""What the operating system says of a place that the user chose and that cannot be written or read."""
PICTURES = (".png", ".svg", ".pdf", ".jpg")
INTERRUPTED = 130


def main() -> None:
    """Entry point of the command."""
    # Foreign libraries' deprecation notes are for their developers, not for who runs a study.
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    app()


@contextmanager
def user_errors() -> Iterator[None]:
    """Print an error the user can act on, exit 2; let a bug keep its traceback."""
    from orchestrator.control import Stopped
    from proseg.errors import ProSegError
    from search_spaces import SpaceError

    try:
        yield
    except (ProSegError, SpaceError) as error:
        render.error(str(error))
        raise typer.Exit(error.exit_code if isinstance(error, ProSegError) else USER_MISTAKE) from None
    except OSError as error:
        if error.errno not in PLACES:
            raise
        render.error(f"{error.filename or 'a file'} cannot be used: {error.strerror}")
        raise typer.Exit(USER_MISTAKE) from None
    except Stopped:
        render.error("stopped; `proseg-tune resume` goes on from what has been reached")
        raise typer.Exit(INTERRUPTED) from None
    except KeyboardInterrupt:
        render.error("interrupted; what has been reached is kept in the workspace")
        raise typer.Exit(INTERRUPTED) from None


def duration(text: str) -> float:
    """Seconds of "90s", "30m", "8h" or "2d"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not match or float(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a duration: write 90s, 30m, 8h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def share(text: str) -> float:
    """A share of one GPU, above 0 and at most 1; 0 for auto, which the probe decides."""
    if text == "auto":
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{text!r} is not a share: it must be above 0 and at most 1, or auto")
    return value


def count_or_auto(text: str) -> int:
    """A number of at least 1; 0 for auto, which the probe decides."""
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a number of at least 1, nor auto")
    return int(text)


@dataclass(frozen=True)
class Hours:
    """Of GPUs ("gpuh"), or of cores ("cpuh")."""

    amount: float
    unit: str


def hours(text: str) -> Hours:
    """40 of "gpuh" of "40gpuh"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(gpuh|cpuh)", text.strip())
    if not match or float(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a budget: write 40gpuh, or 12cpuh where there are no GPUs")
    return Hours(float(match[1]), match[2])


def _pair(budget: Hours | None) -> tuple[float, str] | None:
    return budget and (budget.amount, budget.unit)


def trial_number(text: str) -> int:
    """3 of "t003" or "3"."""
    match = re.fullmatch(r"t?(\d+)", text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r} is not a trial: write t003 or 3")
    return int(match[1])


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
GpuShare = Annotated[
    float | None,
    typer.Option(parser=share, metavar="SHARE", help="Share of a GPU that each rank holds; auto: measured."),
]
Concurrent = Annotated[
    int | None,
    typer.Option(parser=count_or_auto, metavar="N", help="Trials at the same time; auto: by cores and memory."),
]
MaxTime = Annotated[
    float | None,
    typer.Option(parser=duration, metavar="TIME", help="Be done after 30m, 8h, ...: the search ends early enough."),
]
Budget = Annotated[
    Hours | None,
    typer.Option(parser=hours, metavar="HOURS", help="As --max-time, in 40gpuh, or 12cpuh without GPUs."),
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", metavar="ADDRESS", help="Join this Ray cluster: auto, or its head's host:port."),
]
StudyName = Annotated[str | None, typer.Argument(help="Name of a study; the latest without one.")]


@app.command()
def launch(
    space: Annotated[str, typer.Argument(help="A search space: demo, lidc, npc, or the path of a .toml file.")],
    study: Annotated[str | None, typer.Option(help="Name of the study; a readable one is made up.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Configurations to try.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of a trial that is not stopped early.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="DDP ranks of each training.")] = 1,
    gpu_share: GpuShare = None,
    concurrent: Concurrent = None,
    data: Annotated[str | None, typer.Option(help="Search on this data set or folder instead.")] = None,
    max_time: MaxTime = None,
    budget: Budget = None,
    sampler: Annotated[
        Sampler | None, typer.Option(help="How configurations are proposed, instead of the space's own way.")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", metavar="STUDY", help="Try the best of an earlier study first.")
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
        from orchestrator.launch import Options, create, plan
        from orchestrator.session import joined
        from orchestrator.workspace import workspace

        home = workspace()
        options = Options(
            trials=trials, epochs=epochs, workers=workers, gpu_share=gpu_share or None, concurrent=concurrent or None,
            data=data, max_time=max_time, budget=_pair(budget), seed=seed, final=final, confirm=confirm,
            sampler=sampler, start_from=start_from, epoch_timeout=epoch_timeout, storage=storage,
        )  # fmt: skip
        with joined(address, home, verbose=verbose) as nodes:
            planned = plan(found, options, home, nodes=nodes, track=render.track(quiet=as_json))
            if dry_run:
                render.plan(planned, as_json=as_json)
                return
            created = create(planned, home, study, time.time())
            _run(created, home, address=address, verbose=verbose, as_json=as_json)


def _run(study: "Study", home: Path, *, address: str | None, verbose: bool, as_json: bool) -> None:
    from orchestrator.launch import left_out, run

    with render.watching(study, quiet=as_json) as watcher:
        for text in left_out(study.finals):
            watcher.note(text)
        # Ray's log goes to standard output, which belongs to the JSON.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            run(study, home, watcher, address=address, verbose=verbose)
    _show_outcome(study, as_json)


@app.command()
def resume(
    study: StudyName = None,
    gpu_share: GpuShare = None,
    concurrent: Concurrent = None,
    max_time: MaxTime = None,
    budget: Budget = None,
    address: Address = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of Ray.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a study that was stopped, interrupted or killed; one that is finished stays as it is."""
    with user_errors():
        from orchestrator.launch import Options, resumed
        from orchestrator.session import joined
        from orchestrator.study import alone, find_study, read_state
        from orchestrator.workspace import workspace

        home = workspace()
        found = find_study(home, study)
        if read_state(found) == "finished":
            if not as_json:
                render.line(f"study {found.name} is finished; there is nothing to go on with")
            _show_outcome(found, as_json)
            return
        options = Options(gpu_share=gpu_share or None, concurrent=concurrent or None, max_time=max_time,
                          budget=_pair(budget))  # fmt: skip
        with joined(address, home, verbose=verbose) as nodes:
            with alone(found):
                going_on = resumed(found, home, options, nodes)
            _run(going_on, home, address=address, verbose=verbose, as_json=as_json)


@app.command()
def stop(study: StudyName = None) -> None:
    """Stop a running study when the epochs under way are finished; `resume` goes on with it."""
    with user_errors():
        from orchestrator.control import request_stop
        from orchestrator.study import StudyError, find_study, read_state
        from orchestrator.workspace import workspace

        found = find_study(workspace(), study)
        if read_state(found) != "running":
            raise StudyError(f"study {found.name} is not running: it is {read_state(found)}")
        request_stop(found.folder)
        render.line(f"study {found.name} stops when the epochs under way are finished")


@app.command()
def explain(
    trial: Annotated[int, typer.Argument(parser=trial_number, metavar="TRIAL", help="As in t003.")],
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
def best(
    study: StudyName = None,
    export: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the model into this folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that stands there.")] = False,
    as_json: Json = False,
) -> None:
    """Show the best configuration of a study; export its model."""
    with user_errors():
        from orchestrator import export as exporting
        from orchestrator.study import find_study
        from orchestrator.workspace import workspace

        found = find_study(workspace(), study)
        record = exporting.best_record(found)
        if export is not None:
            exporting.export(found, export, force=force)
            record["export"] = str(export.resolve())
        if as_json:
            render.json(record)
        elif export is not None:
            render.exported(record)
        else:
            render.best(found, record)


@app.command()
def status(study: StudyName = None, as_json: Json = False) -> None:
    """Show how far a study is, and its trials."""
    with user_errors():
        from orchestrator.results import read_results, read_trials
        from orchestrator.study import find_study, read_state
        from orchestrator.workspace import workspace

        found = find_study(workspace(), study)
        render.status(found, read_state(found), read_trials(found), read_results(found), as_json=as_json)


@app.command()
def ui(
    study: StudyName = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Serve the runs in MLflow's pages, on this machine only."""
    with user_errors():
        from orchestrator.server import serve
        from orchestrator.study import find_study
        from orchestrator.workspace import workspace

        home = workspace()
        serve(home, find_study(home, study), port, say=render.line)


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """List the data sets and whether they are at hand."""
    with user_errors():
        from orchestrator.workspace import workspace
        from proseg.data.catalog import listing

        render.listing(listing(workspace()), as_json=as_json)


@data_app.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="A data set or a folder.")],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where the report goes; a .png, .svg, .pdf or .jpg: the samples alone."),
    ],
    count: Annotated[int, typer.Option(min=1, max=200, help="Slices shown, in a picture alone.")] = 24,
    force: Annotated[bool, typer.Option("--force", help="Replace what this command wrote there.")] = False,
) -> None:
    """Report on a data set: samples with their raters' outlines, how far the raters agree, what is suspicious."""
    with user_errors():
        from orchestrator.workspace import workspace
        from proseg.data.catalog import open_data

        picture = out.suffix.lower() in PICTURES and not out.is_dir()
        _check_place(out, picture=picture, force=force)
        store = open_data(name, workspace(), jobs=os.cpu_count() or 1, track=render.track())
        store.verify()
        if picture:
            _draw_samples(store, out, count)
        else:
            _write_report(store, out)


def _check_place(out: Path, *, picture: bool, force: bool) -> None:
    """Before the data are opened, which may take a while."""
    from proseg.errors import DataError

    if not out.resolve().parent.is_dir():
        raise DataError(f"--out {out}: the folder {out.resolve().parent} does not exist")
    if not picture and not out.is_dir() and (out.exists() or out.suffix):
        raise DataError(f"--out {out} must be a folder, which may be new, or end in one of {', '.join(PICTURES)}")
    if not force and (out.exists() if picture else out.is_dir() and any(out.iterdir())):
        what = "exists; choose another file, or" if picture else "is not empty; choose another folder, or"
        raise DataError(f"--out {out} {what} add --force to replace what this command wrote there")


def _draw_samples(store: "Store", out: Path, count: int) -> None:
    from proseg.figures import contact_sheet
    from proseg.records import write_atomically

    picture = io.BytesIO()
    contact_sheet(store, count).savefig(picture, format=out.suffix[1:].lower())
    write_atomically(out, picture.getvalue())
    m = store.manifest
    render.line(f"{m.name}: {m.label}. {m.slices} slices of {m.patients} patients, {m.raters} raters -> {out}")


def _write_report(store: "Store", out: Path) -> None:
    from proseg.data.quality import highlights, measure
    from proseg.data.quality_page import write_page

    quality = measure(store)
    path = write_page(quality, store, out)
    for text in highlights(quality):
        render.line(text)
    render.line(f"-> {path}")


@data_app.command("standin")
def data_standin(
    name: Annotated[str, typer.Argument(help="Only npc has a stand-in.")],
    subjects: Annotated[str, typer.Option(help="Volumes for training, validation, test.")] = "80,20,20",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the files go; `launch npc` looks in the "
                                                                     "workspace.")] = None,
) -> None:  # fmt: skip
    """Write synthetic volumes in the layout of a data set that cannot be had; they say so everywhere."""
    with user_errors():
        from orchestrator.workspace import workspace
        from proseg.data import npc, npc_standin
        from proseg.data.catalog import npc_folder
        from proseg.errors import DataError

        if name != "npc":
            raise DataError(f"there is no stand-in for {name!r}: only npc has one")
        counts = re.fullmatch(r"(\d+),(\d+),(\d+)", subjects)
        if not counts:
            raise DataError(f"--subjects {subjects!r} must be three numbers, as in 80,20,20")
        parts = (int(counts[1]), int(counts[2]), int(counts[3]))
        folder = out or npc_folder(workspace())
        written = list(render.track()(npc_standin.write(folder, parts), sum(parts), "Writing the NPC stand-in"))
        state = f"{len(written)} volumes written to" if written else "already complete in"
        render.line(f"{npc.STANDIN_LABEL}: {state} {folder}")
