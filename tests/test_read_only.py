"""A workspace that cannot be written, as of somebody else or on a disk that is mounted so: it answers all the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proseg.data.store import Store
from tests.studies import make_study, score_fold, train_fold, train_trial

ASK = """
import json, sys
from typer.testing import CliRunner
from cli.app import app
answers = {}
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words)
    answers[" ".join(words[:2])] = [result.exit_code, result.output, repr(result.exception)]
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, store: Store):
    """With studies, the model of one of which was trained; MLflow has never been there."""
    home = tmp_path_factory.mktemp("workspace") / "home"
    study = make_study(home, store, final=[{"data": str(store.folder), "epochs": 2}])
    train_fold(study, train_trial(study), 0)
    for name in ("a", "b"):
        scored = make_study(home, store, name=name, created=0.0, final=[{"data": str(store.folder), "epochs": 2}])
        score_fold(scored, 0, {"ged": 0.5})
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    yield home
    for folder in folders:
        folder.chmod(0o700)


def ask(home: Path, *commands: list[str]) -> dict[str, Any]:
    """What commands answer to a user who is bound by permissions, as root is not: [exit code, output, exception]."""
    bound = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [*bound, sys.executable, "-c", ASK, json.dumps(commands)], text=True, capture_output=True, check=False,
        env=environment | {"PROSEG_HOME": str(home)}, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root cannot be bound here")
def test_questions_are_answered_and_what_writes_is_refused(home: Path, tmp_path: Path):
    before = sorted(home.rglob("*"))
    out = tmp_path / "elsewhere"
    answers = ask(
        home, ["status", "s1"], ["list"], ["explain", "t000"], ["best", "s1"], ["compare", "a", "b"],
        ["best", "--export", str(out / "model")], ["report", "--out", str(out / "report")], ["ui", "s1"],
        ["launch", "demo", "--dry-run", "--study", "s1"],
    )  # fmt: skip
    codes = {words: code for words, (code, _, _) in answers.items()}
    refused = {words: said for words, (code, said, _) in answers.items() if code}
    assert set(refused) == {"ui s1", "launch demo"}, refused
    assert {codes[words] for words in refused} == {2}
    assert f"{home / 'mlflow'} cannot be written" in refused["ui s1"]
    assert "name the copy in PROSEG_HOME" in refused["ui s1"]
    assert "several things stand in the way" in refused["launch demo"]
    assert "study 's1' already exists" in refused["launch demo"]
    assert f"{home} cannot be written" in refused["launch demo"]
    assert "it does not note where the export lies" in answers["best --export"][1]
    assert (out / "model" / "model.safetensors").is_file()
    assert (out / "report" / "index.html").is_file()
    assert sorted(home.rglob("*")) == before
