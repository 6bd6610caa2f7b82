"""The command that shows the best configuration of a study, exports its model, and checks an export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import render
from cli.errors import user_errors
from cli.options import Json, StudyName

if TYPE_CHECKING:
    from orchestrator.study import Study

Word = Literal["diversity", "personalization", "balanced", "cheap"]  # of orchestrator.prefer, imported when needed


def best(
    study: StudyName = None,
    prefer: Annotated[
        Word | None, typer.Option(help="Choose along the Pareto front by validation scores; says what is given up.")
    ] = None,
    export: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the model into this folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that stands there.")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Export the model also as a graph of torch.export.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export the model also as an ONNX graph.")] = False,
    champion: Annotated[
        bool, typer.Option("--champion", help="Make the winner the champion of its space in MLflow's registry.")
    ] = False,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Evaluate an exported model anew and compare; exit code 1 if it differs."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="With --verify, --export or --champion: its data, by name or folder, where they moved."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the best configuration of a study; export its model, or verify an exported one."""
    with user_errors():
        from orchestrator.study import StudyError

        if verify is not None:
            _refuse("--verify", {"a study": study, "--prefer": prefer, "--export": export, "--force": force,
                                 "--pt2": pt2, "--onnx": onnx, "--champion": champion})  # fmt: skip
            _verify(verify, data, as_json)
            return
        if data is not None and export is None and not champion:
            raise StudyError("--data goes with --verify, --export or --champion: it names the data of the model")
        graphs = [name for name, asked in (("pt2", pt2), ("onnx", onnx)) if asked]
        if graphs and export is None:
            raise StudyError(f"--{graphs[0]} goes with --export DIR")
        if champion and prefer:
            raise StudyError("--champion registers the winner of the study: leave out --prefer")
        _best(study, data, prefer, export, force, graphs, champion, as_json)


def _refuse(option: str, others: dict[str, object]) -> None:
    from orchestrator.study import StudyError

    given = [name for name, value in others.items() if value]
    if given:
        raise StudyError(f"{option} reads an exported folder and nothing else: leave out {' and '.join(given)}")


def _best(
    study: str | None, data: str | None, prefer: Word | None, export: Path | None, force: bool, graphs: list[str],
    champion: bool, as_json: bool,
) -> None:  # fmt: skip
    from orchestrator import export as exporting
    from orchestrator.prefer import preferred, to_json
    from orchestrator.study import find_study, located
    from orchestrator.workspace import workspace

    found = find_study(workspace(), study)
    if data is not None:
        found = located(found, [data])
    choice = preferred(found, prefer) if prefer else None
    record = exporting.best_record(found, choice and choice.trial)
    if choice is not None:
        record["preference"] = to_json(choice)
    noted = True
    if champion:  # before anything is written: MLflow may not be there
        if export is not None:
            exporting.check_target(export, force)
        _promote(found, record)
    if export is not None:
        noted = exporting.export(found, export, force=force, choice=choice, graphs=graphs)
        record["export"] = str(export.resolve())
    if as_json:
        render.json(record)
        return
    for text in choice.sentences if choice else ():
        render.line(text)
    if export is not None:
        render.exported(record)
        if not noted:
            render.line(f"  {found.folder} cannot be written: it does not note where the export lies")
    else:
        render.best(found, record)
    if champion:
        render.line(f"champion: {record['registered']['uri']}, version {record['registered']['version']}")


def _promote(study: "Study", record: dict[str, Any]) -> None:
    from orchestrator.registry import promote
    from orchestrator.workspace import workspace

    registered = promote(study, workspace())
    record["registered"] = {"name": registered.name, "version": registered.version, "uri": registered.uri}


def _verify(folder: Path, data: str | None, as_json: bool) -> None:
    from orchestrator import verify
    from orchestrator.workspace import workspace

    say = (lambda text: None) if as_json else render.line
    outcome = verify.verify(folder, workspace(), data=data, say=say)
    if as_json:
        render.json(verify.to_json(outcome))
    else:
        render.grid(verify.HEADS, verify.rows(outcome), words=("metric", ""))
        for text in verify.notes(outcome):
            render.line(f"  {text}")
        render.line(verify.sentence(outcome))
    if not outcome.verified:
        raise typer.Exit(1)
