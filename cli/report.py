"""The command that writes the report of a study."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.errors import user_errors
from cli.options import Json, StudyName


def report(
    study: StudyName = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write it into this folder instead of the study's own.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Compare it with another study, or an exported model's folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a study: one HTML page, and Markdown, pictures and tables beside it."""
    with user_errors():
        from orchestrator.report.build import build
        from orchestrator.report.write import PAGE, target, write
        from orchestrator.study import find_study
        from orchestrator.workspace import workspace

        home = workspace()
        found = find_study(home, study)
        folder = target(found, out)
        written = write(build(found, home, time.time(), other=against), folder)
        if as_json:
            render.json(written)
            return
        size, beside = written["files"][PAGE], len(written["files"]) - 1
        render.line(f"report of study {found.name}: {folder / PAGE} ({size / 2**20:.1f} MB, {beside} files beside it)")
