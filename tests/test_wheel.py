"""The package as others get it: built, installed into an empty environment, run from another folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.studies import make_store, space_values

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "proseg-runs", "proseg-export", ".*_cache")


def call(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*NOT_COPIED))
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "tree")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    call(sys.executable, "-m", "venv", folder)
    call(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    return folder / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, object]:
    """Another folder, with a workspace of its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    return {"cwd": tmp_path, "env": inherited | {"PROSEG_HOME": str(tmp_path / "home")}}


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_carries_its_data(wheel: Path):
    assert set(names(wheel)) >= {
        "proseg/data/lidc_contours.parquet", "proseg/data/LIDC-IDRI-ATTRIBUTION.md", "search_spaces/demo.toml",
        "search_spaces/lidc.toml", "search_spaces/npc.toml", "orchestrator/report/page.html",
    }  # fmt: skip
    kept = {path.name for path in (ROOT / "proseg" / "data").iterdir() if path.suffix in (".parquet", ".csv", ".md")}
    assert {f"proseg/data/{name}" for name in kept} <= set(names(wheel))


def test_the_wheel_carries_nothing_else(wheel: Path):
    tops = {name.split("/")[0] for name in names(wheel)}
    info = {top for top in tops if top.endswith(".dist-info")}
    assert tops - info == {"cli", "orchestrator", "proseg", "search_spaces"}
    assert [name for name in names(wheel) if "test" in name or name.endswith(".pyc")] == []
    assert any(name.endswith("licenses/LICENSE") for name in names(wheel))


def test_it_runs_in_another_folder(installed: Path, elsewhere: dict):
    assert "Usage:" in call(installed / "proseg-tune", "--help", **elsewhere).stdout
    listed = json.loads(call(installed / "proseg-tune", "data", "list", "--json", **elsewhere).stdout)
    assert {"lidc-contours", "npc"} <= {entry["name"] for entry in listed}
    found = call(
        installed / "python", "-c", "import proseg, mlflow; print(proseg.__file__, mlflow.__file__)", **elsewhere
    )
    assert str(ROOT) not in found.stdout


def test_it_searches_in_another_folder(installed: Path, elsewhere: dict, tmp_path: Path):
    store = make_store(tmp_path / "blobs")
    values = space_values(str(store.folder), budget={"trials": 2, "epochs": 2})
    space = tmp_path / "mine.toml"
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    text = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables]
    for key, table in tables.items():
        text += [f"[{key}]", *(f'"{name}" = {_toml(value)}' for name, value in table.items())]
    space.write_text("\n".join(text) + "\n")
    result = call(installed / "proseg-tune", "launch", space, "--no-final", "--json", **elsewhere)
    assert json.loads(result.stdout)["objective"]["value"] > 0
    assert [word for word in ("Traceback", "Warning") if word in result.stdout + result.stderr] == []


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {json.dumps(entry)}" for name, entry in value.items()) + " }"
    return json.dumps(value)
