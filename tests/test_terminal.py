"""What every command has in common: quick help, names that the shell completes, JSON for scripts."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import help as benchmark
from cli import complete
from cli.app import app
from proseg.data.catalog import NAMES
from proseg.data.kinds import KINDS
from proseg.data.store import Store
from search_spaces import shipped
from tests.studies import add_trial, make_store, make_study, running

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [" ".join(words) for words in benchmark.commands()]
SLOW = ("torch", "ray", "mlflow", "optuna", "matplotlib", "scipy", "pandas", "sklearn", "pyarrow", "numpy")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "blobs")


# Help


def imported(code: str, environment: dict[str, str] | None = None) -> tuple[str, list[str]]:
    """What code prints in a process of its own, and which of the slow modules it has imported."""
    ending = (f"import atexit, sys\natexit.register(lambda: print('\\n', [n for n in {SLOW} if n in sys.modules],"
              "file=sys.stderr))\n")  # fmt: skip
    found = subprocess.run([sys.executable, "-c", ending + code], capture_output=True, text=True, check=True, cwd=ROOT,
                           env={**os.environ, **(environment or {})})  # fmt: skip
    *errors, modules = found.stderr.splitlines()
    assert [line for line in errors if line.strip()] == []
    return found.stdout, json.loads(modules.replace("'", '"'))


def test_no_help_imports_anything_slow():
    code = ("from typer.testing import CliRunner; from cli.app import app\n"
            f"for command in {COMMANDS!r}:\n"
            "    result = CliRunner().invoke(app, [*command.split(), '--help'])\n"
            "    print(command, result.exit_code, 'Usage: ' in result.stdout)")  # fmt: skip
    said, modules = imported(code)
    assert said.splitlines() == [f"{command} 0 True" for command in COMMANDS]
    assert modules == []


def test_the_commands_stand_in_the_order_of_a_studys_life():
    said = CliRunner().invoke(app, ["--help"]).stdout
    names = re.findall(r"^  (\w+)", said.split("Commands:")[1], re.MULTILINE)
    assert names[:4] == ["launch", "resume", "stop", "status"]
    assert set(names) == {command.split()[0] for command in COMMANDS if command}


def test_the_benchmark_counts_the_seconds_of_a_command():
    assert 0 < benchmark.seconds(["stop", "--help"], {}) < 60
    with pytest.raises(RuntimeError, match="nonsense ended with code 2"):
        benchmark.seconds(["nonsense"], {})


# JSON

WITHOUT_JSON = {
    "": "it has no answer of its own",
    "data": "it has no answer of its own",
    "ui": "it serves pages until it is ended",
}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in WITHOUT_JSON])
def test_every_command_that_answers_answers_in_json(command: str):
    assert "--json" in CliRunner().invoke(app, [*command.split(), "--help"]).stdout


@pytest.mark.parametrize(
    "command",
    ["status", "list", "explain t000", "best", "resume", "data list", "data check {data}", "data show {data}",
     "data show {data} --out {folder}/samples.png", "data standin npc --subjects 1,1,1", "status --watch"],
)  # fmt: skip
def test_standard_output_holds_nothing_but_the_json(
    home: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.setattr("proseg.data.npc_standin.write", lambda folder, parts: [folder / "Sample_0.h5"])
    add_trial(make_study(home, store), 0, 0.4)
    words = [word.format(data=store.folder, folder=tmp_path) for word in command.split()]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    texts = result.stdout.splitlines() if "--watch" in command else [result.stdout]
    for text in texts:
        json.loads(text, parse_constant=pytest.fail)


def test_a_report_on_data_as_json_has_its_numbers(home: Path, store: Store):
    found = json.loads(CliRunner().invoke(app, ["data", "show", str(store.folder), "--json"]).stdout)
    assert (found["name"], found["label"], found["cases"]) == ("blobs", "random blobs, no patient", 16)
    assert 0 < found["d_aa"] < found["between_raters"] < 1
    assert Path(found["report"]).read_text(encoding="utf-8")


def test_a_stop_as_json(home: Path, store: Store):
    study = make_study(home, store)
    with running(study):
        found = json.loads(CliRunner().invoke(app, ["stop", "--json"]).stdout)
    assert found == {"study": "s1", "stop": "requested"}
    assert (study.folder / "stop").exists()


# Completion


def completed(text: str, shell: str = "bash", **environment: str) -> tuple[str, list[str]]:
    """What a shell is told where Tab is pressed after a text, and what slow modules that imported."""
    protocol = benchmark.completion(text) if shell == "bash" else {
        "_PROSEG_TUNE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": text,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    if shell == "bash" and not text.endswith(" "):
        protocol["COMP_CWORD"] = str(len(text.split()) - 1)
    return imported("from cli.app import main; main()", {**protocol, **environment})


@pytest.fixture
def filled(home: Path, store: Store) -> Path:
    """A workspace with two studies, of which the later has two trials, and a data set of the user's."""
    for name, trials in (("alpha", 1), ("beta", 2)):
        study = make_study(home, store, name=name)
        for number in range(trials):
            add_trial(study, number, 0.4)
    os.utime(home / "studies/alpha/study.json", (1, 1))
    shutil.copytree(store.folder, home / "prepared/mine")
    (home / "prepared/.half.partial").mkdir()
    return home


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("proseg-tune sta", ["status"]),
        ("proseg-tune status ", ["alpha", "beta"]),
        ("proseg-tune best b", ["beta"]),
        ("proseg-tune compare alpha ", ["alpha", "beta"]),
        ("proseg-tune launch demo --from ", ["alpha", "beta"]),
        ("proseg-tune explain t", ["t000", "t001"]),
        ("proseg-tune launch ", sorted(shipped())),
        ("proseg-tune launch demo --data ", sorted([*NAMES, "mine"])),
        ("proseg-tune data show m", ["mine"]),
        ("proseg-tune data prepare lidc", ["lidc-dicom", "lidc-pickle", "lidc-slices"]),
        ("proseg-tune data sh", ["show"]),
    ],
)
def test_names_are_completed_and_nothing_slow_is_imported(filled: Path, text: str, offered: list[str]):
    said, modules = completed(text)
    assert said.split() == offered
    assert modules == []


@pytest.mark.parametrize(("shell", "part"), [("zsh", '(("alpha"\n"beta"))'), ("fish", "alpha\nbeta")])
def test_other_shells_are_told_the_same(filled: Path, shell: str, part: str):
    said, _ = completed("proseg-tune status ", shell)
    assert part in said


def test_spaces_of_the_current_folder_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.toml", "pyproject.toml", "notes.txt"):
        (tmp_path / name).write_text("")
    assert complete.offer(complete.spaces)("m") == ["mine.toml"]
    assert "pyproject.toml" not in complete.spaces()


def test_what_a_shell_would_evaluate_is_not_offered(home: Path):
    for name in ("good", "a b", "$(touch x)", "-rf", "`id`", "naïve"):
        folder = home / "studies" / name
        folder.mkdir(parents=True)
        (folder / "study.json").write_text("{}")
    assert complete.offer(complete.studies)("") == ["good"]


@pytest.mark.parametrize("names", [complete.studies, complete.trials, complete.data_sets])
def test_a_workspace_that_is_none_offers_nothing_and_raises_nothing(
    names: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    for place in ("s3://bucket/runs", str(tmp_path / "gone"), str(tmp_path / "file"), ""):
        monkeypatch.setenv("PROSEG_HOME", place)
        monkeypatch.chdir(tmp_path)
        assert set(complete.offer(names)("")) <= set(NAMES)


def test_a_folder_that_may_not_be_read_offers_nothing():
    def forbidden() -> list[str]:
        raise PermissionError

    assert complete.offer(forbidden)("") == []


def test_the_names_that_are_written_down_twice_are_the_same():
    assert complete.DATA_SETS == NAMES
    assert tuple(sorted(KINDS)) == complete.SOURCES


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", ".config/fish")])
def test_completion_is_installed_and_shown(tmp_path: Path, shell: str, file: str):
    def run(*words: str) -> str:
        environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        command = [sys.executable, "-m", "cli", *words]
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        return found.stdout

    assert "_PROSEG_TUNE_COMPLETE" in run("--show-completion", shell)
    assert "completion installed" in run("--install-completion", shell)
    assert (tmp_path / file).exists()


def test_bash_itself_completes(filled: Path, tmp_path: Path):
    """The script that Typer gives bash, in a bash."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash on this machine: install it")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "proseg-tune"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n')
    command.chmod(0o755)
    script = """
eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 proseg-tune --show-completion bash)"
COMP_WORDS=(proseg-tune status al); COMP_CWORD=2
_proseg_tune_completion proseg-tune
printf '%s\\n' "${COMPREPLY[@]}"
"""
    environment: dict[str, Any] = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
                                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    found = subprocess.run([bash, "--norc", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert (found.stdout, found.stderr) == ("alpha\n", "")


@pytest.mark.parametrize("settings", [
    {"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
], ids=["ascii", "C"])  # fmt: skip
def test_what_a_terminal_cannot_show_is_replaced_and_files_are_utf8(home: Path, store: Store, settings: dict[str, str]):
    study = make_study(home, store, about="Größe ± 測試")
    add_trial(study, 0, 0.4)
    out = home / "report"
    for words in (["best"], ["report", "--out", str(out)], ["status", "größe"], ["launch", "größe"]):
        done = subprocess.run([sys.executable, "-m", "cli", *words], capture_output=True, check=False,
                              env=os.environ | settings | {"PROSEG_HOME": str(home)}, cwd=ROOT)  # fmt: skip
        assert done.returncode == (2 if "größe" in words else 0), done.stderr
        assert b"Traceback" not in done.stderr
    assert "Größe ± 測試" in (out / "report.md").read_text(encoding="utf-8")
