"""The command that compares two runs, case by case."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import render
from cli.complete import data_sets, offer, studies
from cli.errors import user_errors
from cli.options import Json

if TYPE_CHECKING:
    from orchestrator.scored import Run
    from orchestrator.significance import Comparison

WHAT = "A study's name, or the folder of a study or of an exported model."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=WHAT, autocompletion=offer(studies))],
    b: Annotated[
        str, typer.Argument(metavar="B", help="What it is compared with: as A.", autocompletion=offer(studies))
    ],
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only on this data set.", autocompletion=offer(data_sets))
    ] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Only on the test cases of this fold.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables into this new file, for a report.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell whether two runs differ on the same test cases: paired tests of every metric."""
    with user_errors():
        from orchestrator import significance
        from orchestrator.scored import find_run, matched
        from orchestrator.study import StudyError
        from orchestrator.workspace import workspace
        from proseg.records import write_atomically

        if markdown is not None and markdown.exists():
            raise StudyError(f"--markdown {markdown} exists; name another file")
        home = workspace()
        one, other = find_run(a, home), find_run(b, home)
        pairs, left_out = matched(one, other, data=data, fold=fold)
        comparisons = [significance.compare_pair(pair, a, b) for pair in pairs]
        if markdown is not None:
            write_atomically(markdown, significance.markdown(comparisons, a, b, left_out).encode())
        if as_json:
            render.json({"a": _run(one), "b": _run(other), "data": [asdict(found) for found in comparisons],
                         "left_out": left_out})  # fmt: skip
            return
        render.line(f"A: {one.kind} {a}\nB: {other.kind} {b}")
        for found in comparisons:
            _show(found)
        for text in left_out:
            render.line(text)


def _run(run: "Run") -> dict[str, str]:
    return {"name": run.name, "kind": run.kind, "folder": str(run.folder)}


def _show(found: "Comparison") -> None:
    from orchestrator.significance import HEADS, cells, heading

    render.line(f"\n{heading(found)}")
    render.grid(HEADS, cells(found), words=("metric", "better", "differ"))
    render.line(found.sentence)
    for note in found.notes:
        render.line(f"  {note}")
