"""The command that looks at everything a study needs, and says how to mend it."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli import render
from cli.errors import user_errors
from cli.options import Json

if TYPE_CHECKING:
    from orchestrator.doctor.findings import Finding

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red", "unchecked": "dim"}


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Start a Ray as well, which takes seconds.")] = False,
    as_json: Json = False,
) -> None:
    """Look at all that a study needs: versions, GPUs, memory, disks, Ray, MLflow, data; each with a fix."""
    with user_errors():
        from orchestrator.doctor import examine
        from orchestrator.workspace import workspace

        found = []
        for finding in examine(workspace(), os.environ, deep=deep):
            found.append(finding)
            if not as_json:
                _show(finding)
        problems = sum(finding.level == "problem" for finding in found)
        if as_json:
            render.json({"well": not problems, "findings": [asdict(finding) for finding in found]})
        else:
            render.line(_verdict(found))
        raise typer.Exit(1 if problems else 0)


def _show(finding: "Finding") -> None:
    render.marked(finding.level, COLOURS[finding.level], f"{finding.check}: {finding.text}")
    if finding.fix:
        render.line(f"          {finding.fix}")


def _verdict(found: "list[Finding]") -> str:
    counts = {level: sum(finding.level == level for finding in found) for level in COLOURS}
    if counts["problem"]:
        return f"{counts['problem']} problem(s), {counts['warning']} warning(s): a study would not run as it should"
    return f"no problem, {counts['warning']} warning(s)"
