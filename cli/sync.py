"""`proseg-tune sync`: send MLflow what it has not got."""

from typing import Annotated

import typer

from cli import render
from cli.errors import user_errors
from cli.options import Json, StudyName


def sync(
    study: StudyName = None,
    again: Annotated[bool, typer.Option("--again", help="Send everything again; nothing is doubled by it.")] = False,
    as_json: Json = False,
) -> None:
    """Send MLflow what it has not got of a study: after an outage, or to another server."""
    with user_errors():
        from orchestrator.launch import conclude
        from orchestrator.shipper import sync as send
        from orchestrator.stores import store_name
        from orchestrator.study import find_study
        from orchestrator.workspace import workspace

        home = workspace()
        found = find_study(home, study)
        conclude(found)
        shipping = send(found, home, again=again)
        record = {"study": found.name, "store": store_name(home), "points": shipping.progress.points,
                  "sent_now": shipping.sent, "refused": shipping.progress.refused}  # fmt: skip
        if as_json:
            render.json(record)
            return
        render.line("study {study}: MLflow ({store}) has its {points} points, {sent_now} sent now".format(**record))
        if record["refused"]:
            render.line(f"{record['refused']} records were refused, for the reasons in the log above")
