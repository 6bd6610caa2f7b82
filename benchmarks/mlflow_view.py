"""The picture of MLflow's saved view in README.md: `python -m benchmarks.mlflow_view [STUDY]`.

Opens the charts of a study of the workspace in a browser and writes benchmarks/pictures/mlflow.png.
"""

import io
import sys
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image

from benchmarks.browser import FOLDED, PATIENCE, browser, lacking, mlflow_pages
from orchestrator import pages
from orchestrator.stores import local_uri, quieten
from orchestrator.study import Study, StudyError, find_study
from orchestrator.workspace import workspace
from proseg.records import write_atomically

PICTURE = Path(__file__).parent / "pictures" / "mlflow.png"
SIZE = {"width": 1600, "height": 1750}
COLOURS = 256
"""Of the picture, which is of flat areas and text and shall be small."""


def main() -> None:
    if reason := lacking():
        raise SystemExit(reason)
    home = workspace()
    study = find_study(home, sys.argv[1] if len(sys.argv) > 1 else None)
    experiment = experiment_of(home, study)
    with mlflow_pages(home, study.name) as address:
        shot = photograph(pages.view_page(address, experiment, study, charts=True))
    buffer = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(buffer, "PNG", optimize=True)
    write_atomically(PICTURE, buffer.getvalue())
    print(f"{PICTURE}: {len(buffer.getvalue()) // 1000} kB")


def experiment_of(home: Path, study: Study) -> str:
    """Raises StudyError where the workspace's store has no saved view of the study."""
    quieten()
    found = MlflowClient(local_uri(home)).get_experiment_by_name(pages.experiment_name(study))
    if found is None or pages.saved_view(study)[0] not in found.tags:
        raise StudyError(f"MLflow's store in {home} has no saved view of study {study.name}")
    return found.experiment_id


def photograph(address: str) -> bytes:
    """A PNG of the page, once its charts and the sample pictures are drawn."""
    with browser() as opened:
        page = opened.new_page(viewport=SIZE)
        page.set_default_timeout(PATIENCE)
        page.add_init_script(FOLDED)
        page.goto(address)
        page.locator(".js-plotly-plot .xtitle").nth(3).wait_for()
        page.locator("img[src*='get-artifact']").first.wait_for(state="attached")
        page.wait_for_timeout(5000)  # lines are drawn after their axes
        return page.screenshot(timeout=PATIENCE)


if __name__ == "__main__":
    main()
