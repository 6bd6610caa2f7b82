"""The README: every command in it runs as it is written there, in a workspace that holds what it names.

A command that is added to the README is run, unless PARSED says why it is only parsed. What it names (a study, a model,
an image) is made by `workspace`; what must be so before it runs is done by BEFORE.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from orchestrator.export import export
from orchestrator.study import Study, find_study
from proseg.data.catalog import prepare_named
from proseg.data.kinds import Choices
from proseg.data.store import Store
from tests.images import write_image
from tests.studies import add_trial, make_store, make_study, running, score_fold, train_fold, train_trial

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAME = "proseg-tune"

PARSED = {
    r"launch .*--dry-run": "renders data and measures trainings, minutes; tests/test_cli.py plans small ones",
    r"launch ": "searches for minutes to days; tests/test_recovery.py and test_faults.py run small studies",
    r"data standin ": "writes 120 volumes; tests/test_cli.py and test_npc.py write a few",
    r"data (show|check) lidc-": "renders 1608 slices first, a minute; `data show mine` runs here",
    r"data prepare (lidc-|npc)": "needs files that only a user has; tests/test_lidc_dicom.py and test_npc.py make some",
    r"ui": "serves pages until it is ended; tests/test_tracking.py does",
    r"doctor": "says whether this machine is well, and ends accordingly; tests/test_doctor.py",
    r"best --verify ": "the scores of these made-up folds are not the model's; tests/test_verify.py runs real ones",
    r"sync": "talks to MLflow, which takes seconds to import; tested where it is written",
    r"--install-completion": "writes into the user's shell configuration; tests/test_terminal.py does, elsewhere",
}
"""Beginnings of commands, and why those are parsed with all their options and values, and not run."""


def blocks(language: str) -> list[str]:
    """The code blocks of the README."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [block for its_language, block in found if its_language == language]


def commands(program: str) -> list[str]:
    """What follows the name of a program in the shell's blocks, comments left out, each once."""
    found = []
    for line in "\n".join(blocks("sh")).replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[|;]", re.sub(r"(^|\s)#.*", "", line)):
            words = part.split()
            if program in words:
                found.append(" ".join(words[words.index(program) + 1 :]))
    return list(dict.fromkeys(found))


def why_parsed(command: str) -> str | None:
    return next((why for pattern, why in PARSED.items() if re.match(pattern, command)), None)


RUN = [command for command in commands(NAME) if why_parsed(command) is None]


def test_there_are_commands_of_both_kinds():
    assert RUN
    assert len(RUN) < len(commands(NAME))


# Parsed


def parse(command: str) -> None:
    """Find the command, and read its arguments and options as it would; raises where one is not as it should be."""
    found, words = typer.main.get_command(app), shlex.split(command)
    context = found.make_context(NAME, words)
    while hasattr(found, "resolve_command"):
        _, found, words = found.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        context = found.make_context(found.name, words, parent=context)


@pytest.mark.parametrize("command", [one for one in commands(NAME) if not one.startswith("--")])
def test_every_command_can_be_parsed(command: str):
    parse(command)


@pytest.mark.parametrize(
    "command",
    ["lanuch demo", "launch", "launch demo --trails 3", "launch demo --max-time 8", "data shwo x", "stop a b"],
)
def test_a_command_that_is_wrong_cannot_be_parsed(command: str):
    with pytest.raises(Exception, match=r"No such command|Missing|No such option|not a duration|unexpected"):
        parse(command)


def test_every_module_that_is_run_exists():
    modules = [found[1] for found in re.finditer(r"python -m ([\w.]+)", README)]
    assert modules
    assert [module for module in modules if find_spec(module) is None] == []


# Run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user's may be: studies in proseg-runs, a model, an image, data of the user's own."""
    folder = tmp_path_factory.mktemp("readme")
    home, store = folder / "proseg-runs", make_store(tmp_path_factory.mktemp("data") / "blobs")
    latest = _study(home, store, "one-study", created=2.0)
    _study(home, store, "another-study", created=1.0)
    export(latest, folder / "my-model")
    rng = np.random.default_rng(0)
    write_image(folder / "scan.nii.gz", rng.normal(-500, 200, (3, 16, 16)).astype(np.float32))
    for manifest in (folder / "manifest.csv", folder / "study" / "manifest.csv"):
        _own_images(manifest)
    prepare_named("own", folder / "manifest.csv", "mine", home, Choices())
    _public_layouts(folder)
    return folder


def _study(home: Path, store: Store, name: str, created: float) -> Study:
    """Four trials, of which the first was trained, and a final stage of one fold."""
    study = make_study(home, store, name=name, created=created, final=[{"data": str(store.folder), "epochs": 2}])
    trial = train_trial(study)
    for number in (1, 2, 3):
        add_trial(study, number, 9.0, "stopped early", reason="ASHA")
    train_fold(study, trial, 0)
    metrics = ("ged", "dice_soft", "dice_max", "dice_match", "dice_mean", "dice_a1", "dice_a2")
    score_fold(study, 0, {name: np.linspace(0.2, 0.2 + created / 10, 4) for name in metrics})
    return study


def _own_images(manifest: Path) -> None:
    """A manifest of eight patients, an image and two raters each, and its files."""
    rng = np.random.default_rng(0)
    rows = ["image,mask_anna,mask_bert,patient"]
    for number in range(8):
        image = rng.normal(100, 20, (16, 16)).clip(0, 255).astype(np.uint8)
        write_image(manifest.parent / f"{number}.png", image)
        for rater, low in (("anna", 4), ("bert", 5)):
            mask = np.zeros((16, 16), np.uint8)
            mask[low:11, 4:11] = 1
            write_image(manifest.parent / f"{number}-{rater}.png", mask)
        rows.append(f"{number}.png,{number}-anna.png,{number}-bert.png,p{number}")
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _public_layouts(folder: Path) -> None:
    """Folders as public sets come: an image and two masks of eight cases each."""
    rng = np.random.default_rng(1)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:11, 4:11] = 255
    for number in range(8):
        layouts = {
            f"DRIVE/training/images/{number}_training.tif":
                [f"DRIVE/training/{name}_manual/{number}_manual{name[0]}.gif" for name in ("1st", "2nd")],
            f"CHASE_DB1/Image_{number:02}L.jpg":
                [f"CHASE_DB1/Image_{number:02}L_{name}HO.png" for name in ("1st", "2nd")],
            f"STARE/stare-images/im{number}.ppm": [f"STARE/labels-{one}/im{number}.{one}.ppm" for one in ("ah", "vk")],
            f"CELLS/images/{number}.png": [f"CELLS/annotations/{rater}/{number}.png" for rater in range(10)],
        }  # fmt: skip
        for image, masks in layouts.items():
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / image)
            for path in masks:
                write_image(folder / path, 255 - mask if path.startswith("CELLS") else mask)


_KEPT = ExitStack()


def _runs(home: Path) -> None:
    """The latest study runs, until the tests end."""
    _KEPT.enter_context(running(find_study(home, None)))


BEFORE: dict[str, Callable[[Path], None]] = {
    r"stop": _runs,
    r"best .*--export my-model": lambda home: shutil.rmtree(home.parent / "my-model"),
    r"data prepare own .*--name mine": lambda home: shutil.rmtree(home / "prepared" / "mine"),
}
"""What must be so for commands that begin like this; of the workspace in proseg-runs."""


@pytest.mark.parametrize("command", RUN)
def test_every_command_runs_as_it_is_written(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    folder = tmp_path / "here"
    shutil.copytree(workspace, folder)
    for name in ("PROSEG_HOME", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    for pattern, prepare in BEFORE.items():
        if re.match(pattern, command):
            prepare(folder / "proseg-runs")
    result = CliRunner().invoke(app, shlex.split(command))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
