"""The pictures in README.md, from a study in the workspace: `python benchmarks/pictures.py [STUDY]`.

Writes benchmarks/pictures/study.svg (what `proseg-tune status` shows) and lidc-contours.png (`data show`).
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from cli import render
from orchestrator.results import read_results, read_trials
from orchestrator.study import find_study, read_state
from orchestrator.workspace import workspace
from proseg.data.catalog import open_data
from proseg.figures import contact_sheet

FOLDER = Path(__file__).parent / "pictures"


def main() -> None:
    home = workspace()
    study = find_study(home, sys.argv[1] if len(sys.argv) > 1 else None)
    render.out = Console(record=True, width=118, force_terminal=True, file=io.StringIO(), highlight=False)
    render.status(study, read_state(study), read_trials(study), read_results(study), as_json=False)
    picture = render.out.export_svg(title=f"proseg-tune status {study.name}")
    without_fonts = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)  # they would be fetched from elsewhere
    (FOLDER / "study.svg").write_text(without_fonts, encoding="utf-8")
    contact_sheet(open_data("lidc-contours", home), 24).savefig(FOLDER / "lidc-contours.png", dpi=80)


if __name__ == "__main__":
    main()
