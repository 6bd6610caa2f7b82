"""The command: what a person types, and what they are told. Nothing here starts Ray."""

import errno
import io
import json
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from orchestrator.control import Stopped
from orchestrator.resources import Node
from orchestrator.study import Study, StudyError, StudyFailed, alone, find_study, read_state, write_state, write_study
from proseg.data import npc
from proseg.data.store import Store
from tests.studies import (
    add_trial,
    confirm,
    fold_result,
    make_store,
    make_study,
    probe_of,
    running,
    space_values,
    tree,
    write_epochs,
)

STUDIES = ["launch", "resume", "stop", "explain", "best", "compare", "report", "status", "ui"]
COMMANDS = [*STUDIES, "data", "data list", "data show", "data standin", "data prepare", "data check", "data remove"]
SLOW_IMPORTS = ("torch", "ray", "mlflow", "optuna")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def neither_ray_nor_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What should have been refused must not start a search instead; and nothing is measured, which takes seconds."""

    def started(*args: Any, **named: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("orchestrator.session.keeper", started)
    monkeypatch.setattr("orchestrator.launch.probe", probe_of)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "blobs")


@pytest.fixture
def study(home: Path, store: Store) -> Study:
    """A finished study with three trials and a final stage."""
    study = make_study(home, store, final=[{"data": str(store.folder), "epochs": 2}])
    add_trial(study, 0, 0.4)
    add_trial(study, 1, 0.3)
    add_trial(study, 2, None, "failed", reason="the loss is not finite")
    for fold in range(2):
        folder = study.final_folder("blobs", fold)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(vars(fold_result(fold))))
    return study


@pytest.fixture
def space(tmp_path: Path, store: Store) -> Callable[..., str]:
    """Writes a space over the store and gives its path; changes are keys of the file, as TOML."""

    def write(**changes: Any) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(toml(space_values(**{"data": str(store.folder)} | changes)))
        return str(path)

    return write


def toml(values: dict[str, Any]) -> str:
    """JSON's strings, numbers and lists are TOML's too; tables become inline ones."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{json.dumps(key)} = {text(entry)}" for key, entry in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return json.dumps(value)

    return "".join(f"{key} = {text(value)}\n" for key, value in values.items())


def run(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


def refused(result: Result) -> str:
    """The one sentence on standard error of a command that ended with a user's mistake."""
    assert not isinstance(result.exception, Exception), repr(result.exception)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.lower().startswith("error")]
    usage_or_progress = re.compile(r"Usage:|Try |.*\(once\): \d+( of \d+ \(\d+ %\))?$|\s*$")
    assert [line for line in result.stderr.splitlines() if not usage_or_progress.match(line)] == errors
    assert len(errors) == 1, result.stderr
    return errors[0]


@pytest.fixture
def nothing_written(tmp_path: Path, home: Path):
    """Checks afterwards that the files below the test's folder are those that were there."""
    checks: list[dict[str, bytes]] = []
    yield lambda: checks.append(tree(tmp_path))
    assert checks, "the test must say when it is prepared"
    # A lock is an empty file that stays: to remove one that another process waits for would be a race.
    after = {name: content for name, content in tree(tmp_path).items() if not name.endswith(".lock")}
    assert after == checks[0]


# Wrong input


def test_an_unknown_space(home: Path, nothing_written):
    nothing_written()
    assert "'dmeo'" in refused(run("launch", "dmeo"))


def test_a_space_whose_file_does_not_exist(home: Path, nothing_written):
    nothing_written()
    assert "gone.toml does not exist" in refused(run("launch", "gone.toml"))


def test_broken_toml(tmp_path: Path, home: Path, nothing_written):
    (tmp_path / "broken.toml").write_text("[search\n")
    nothing_written()
    assert "broken.toml is not valid TOML" in refused(run("launch", str(tmp_path / "broken.toml")))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"search": {"optim.lr": {"kind": "float", "low": 0.1, "high": 0.01}}}, "search.optim.lr"),
        ({"search": {"optim.speed": {"kind": "float", "low": 0.1, "high": 1.0}}}, "optim.speed"),
        ({"base": {"optim.speed": 1.0}}, "optim.speed"),
        ({"objective": {"metric": "loss"}}, "objective.metric"),
        ({"fold": 4}, "fold = 4"),
        ({"colour": "red"}, "'colour'"),
        ({"data": "no/such/folder"}, "'no/such/folder'"),
    ],
)
def test_a_space_that_cannot_be_searched(space, nothing_written, changes: dict[str, Any], key: str):
    file = space(**changes)
    nothing_written()
    sentence = refused(run("launch", file, "--no-final"))
    assert key in sentence
    assert "mine.toml" in sentence or "data" in changes


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--workers", "0"], "--workers"),
        (["--workers", "99"], "--workers 99"),
        (["--workers", "two"], "--workers"),
        (["--concurrent", "99"], "--concurrent 99"),
        (["--trials", "0"], "--trials"),
        (["--epochs", "-1"], "--epochs"),
        (["--budget", "40"], "'40' is not a budget"),
        (["--budget", "0gpuh"], "'0gpuh' is not a budget"),
        (["--budget", "2gpuh"], "write 2cpuh"),
        (["--sampler", "best"], "--sampler"),
        (["--confirm", "-1"], "--confirm"),
        (["--from", "x"], "there is no study"),
        (["--concurrent", "few"], "'few' is not a number"),
        (["--epoch-timeout", "never"], "'never' is not a duration"),
        (["--max-time", "soon"], "'soon' is not a duration"),
        (["--max-time", "0m"], "'0m' is not a duration"),
        (["--max-time", "10"], "'10' is not a duration"),
        (["--gpu-share", "0"], "'0' is not a share"),
        (["--gpu-share", "1.5"], "'1.5' is not a share"),
        (["--gpu-share", "half"], "'half' is not a share"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "99999999999"], "seed"),
        (["--concurrent", "0"], "'0' is not a number of at least 1"),
        (["--gpu-share", "-0.5"], "'-0.5' is not a share"),
        (["--gpu-share", "nan"], "'nan' is not a share"),
        (["--epoch-timeout", "0s"], "'0s' is not a duration"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_options(space, nothing_written, options: list[str], part: str):
    file = space()
    nothing_written()
    assert part in refused(run("launch", file, "--no-final", *options))


def test_a_share_of_a_gpu_where_there_is_none(space, nothing_written, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.resources._count_gpus", lambda: 0)
    file = space()
    nothing_written()
    assert "without GPUs" in refused(run("launch", file, "--gpu-share", "0.5"))


def test_a_study_whose_name_cannot_be_a_folders(home: Path, space):
    assert "--study" in refused(run("launch", space(), "--no-final", "--study", "a/b"))
    assert not [path for path in tree(home) if not path.startswith("mlflow/")]


def test_a_study_whose_name_is_taken(study: Study, space):
    before = tree(study.folder)
    assert "'s1' already exists" in refused(run("launch", space(), "--no-final", "--study", "s1"))
    assert tree(study.folder) == before


@pytest.mark.parametrize("place", ["middle", "end", "short", "manifest", "text", "schema"])
@pytest.mark.parametrize("command", ["launch", "data show"])
def test_a_corrupt_arrow_file(tmp_path: Path, store: Store, space, nothing_written, place: str, command: str):
    file, arrow, manifest = space(), store.folder / "slices.arrow", store.folder / "manifest.json"
    content = bytearray(arrow.read_bytes())
    at = {"middle": len(content) // 2, "end": len(content) - 20}.get(place)
    if place == "manifest":
        manifest.write_text("{")
    elif place in ("text", "schema"):  # bytes that are no UTF-8, and a column that is gone
        old, new = {"text": (b"p0p0", b"\xff0p0"), "schema": (b"annotations", b"bnnotations")}[place]
        assert old in content
        arrow.write_bytes(content.replace(old, new))
    else:
        if at is not None:
            content[at] ^= 0xFF
        arrow.write_bytes(content if at is not None else content[:-10])
    nothing_written()
    words = ["launch", file, "--no-final"] if command == "launch" else ["data", "show", str(store.folder), "--out",
                                                                         str(tmp_path / "sheet.png")]  # fmt: skip
    sentence = refused(run(*words))
    assert ("manifest.json" if place == "manifest" else "slices.arrow") in sentence


def write_npc(folder: Path, volumes: int = 5) -> None:
    """A small data set in the layout of NPC."""
    rng = np.random.default_rng(0)
    for number in range(volumes):
        part = folder / ("validation" if number == volumes - 1 else "training")
        part.mkdir(parents=True, exist_ok=True)
        with h5py.File(part / f"Sample_{number}.h5", "w") as file:
            for key in npc.CHANNELS:
                file.create_dataset(key, data=rng.normal(size=(2, 16, 16)))
            for rater in (1, 2, 3, 4):
                file.create_dataset(f"label_a{rater}", data=rng.integers(0, 2, (2, 16, 16)))


@pytest.mark.parametrize("place", [0, "half"])
@pytest.mark.parametrize("volume", ["training/Sample_0.h5", "training/Sample_3.h5", "validation/Sample_4.h5"])
@pytest.mark.parametrize("words", [["launch", "npc", "--no-final"], ["data", "show", "npc", "--out", "{}/sheet.png"]])
def test_a_corrupt_hdf5_file(tmp_path: Path, home: Path, nothing_written, place, volume: str, words: list[str]):
    write_npc(home / "sources/npc")
    file = home / "sources/npc" / volume
    file.write_bytes(b"\0" * 500 if place == 0 else file.read_bytes()[: file.stat().st_size // 2])
    nothing_written()
    assert Path(volume).name in refused(run(*(word.format(tmp_path) for word in words)))


def test_npc_without_its_files_names_both_ways_on(home: Path, nothing_written):
    nothing_written()
    sentence = refused(run("launch", "npc"))
    assert str(home / "sources/npc") in sentence
    assert "proseg-tune data standin npc" in sentence


@pytest.mark.parametrize("command", ["best", "status", "ui"])
@pytest.mark.parametrize("name", [[], ["gone"]])
def test_a_study_that_does_not_exist(home: Path, nothing_written, command: str, name: list[str]):
    nothing_written()
    assert "there is no study" in refused(run(command, *name))


@pytest.mark.parametrize("command", ["best", "status", "ui"])
def test_a_study_that_does_not_exist_beside_others(study: Study, nothing_written, command: str):
    nothing_written()
    assert "there are s1" in refused(run(command, "gone"))


@pytest.mark.parametrize("command", ["best", "status", "ui"])
@pytest.mark.parametrize("name", [[], ["s1"]])
def test_a_study_that_is_damaged(study: Study, nothing_written, command: str, name: list[str]):
    (study.folder / "study.json").write_text("{")
    nothing_written()
    assert "study.json" in refused(run(command, *name))


def test_an_export_folder_that_exists(study: Study, tmp_path: Path, nothing_written):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    nothing_written()
    assert "exists" in refused(run("best", "--export", str(tmp_path / "out")))
    assert "not an export" in refused(run("best", "--export", str(tmp_path / "out"), "--force"))


def test_best_of_a_study_without_a_finished_trial(home: Path, store: Store, nothing_written):
    make_study(home, store)
    nothing_written()
    assert "no finished trial" in refused(run("best"))


def test_a_picture_that_exists(store: Store, home: Path, tmp_path: Path, nothing_written):
    (tmp_path / "sheet.png").write_bytes(b"mine")
    nothing_written()
    assert "--force" in refused(run("data", "show", str(store.folder), "--out", str(tmp_path / "sheet.png")))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["data", "show", "gone", "--out", "sheet.png"], "'gone'"),
        (["data", "show", "{}", "--out", "no/such/folder/sheet.png"], "no/such/folder"),
        (["data", "show", "{}", "--out", "sheet.nonsense"], "sheet.nonsense"),
        (["data", "show", "{}", "--out", "sheet.png", "--count", "0"], "--count"),
        (["data", "standin", "lidc"], "'lidc'"),
        (["data", "standin", "npc", "--subjects", "1,2"], "--subjects"),
        (["data", "standin", "npc", "--subjects", "0,0,0"], "--subjects"),
        (["data", "check", "gone"], "'gone'"),
        (["data", "check"], "name"),
        (["data", "prepare"], "source"),
        (["data", "prepare", "npc", "--name", "mr"], "--from"),
        (["data", "prepare", "npc", "--from", "{0}"], "--name"),
        (["data", "prepare", "mri", "--from", "{0}", "--name", "mr"], "there is no source 'mri'"),
        (["data", "prepare", "npc", "--from", "gone", "--name", "mr"], "gone: there is no such file or folder"),
        (["data", "prepare", "npc", "--from", "{0}", "--name", "mr"], "expected training/"),
        (["data", "prepare", "npc", "--from", "{0}", "--name", "a/b"], "--name 'a/b'"),
        (["data", "prepare", "npc", "--from", "{0}", "--name", "mr", "--size", "128"], "'128' is not a size"),
        (["data", "prepare", "npc", "--from", "{0}", "--name", "mr", "--size", "0x8"], "'0x8' is not a size"),
        (["data", "prepare", "npc", "--from", "{0}", "--name", "mr", "--fit", "squeeze"], "--fit"),
        (["data", "prepare", "npc", "--from", "{0}", "--name", "mr", "--jobs", "0"], "--jobs"),
        (["data", "prepare", "npc", "--from", "{0}", "--name", "mr", "--classes", "2"], "does not take --classes"),
        (["data", "prepare", "own", "--from", "{0}", "--name", "mr", "--window", "9,1"], "'9,1' is not a window"),
        (["data", "prepare", "own", "--from", "{0}", "--name", "mr", "--window", "low"], "'low' is not a window"),
        (["data", "nonsense"], "nonsense"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_words(
    tmp_path: Path, store: Store, home: Path, nothing_written, monkeypatch: pytest.MonkeyPatch, words: list[str],
    part: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    nothing_written()
    assert part in refused(run(*(word.format(store.folder) for word in words)))


def test_a_tracking_server_that_does_not_answer(space, home: Path, nothing_written, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    file = space()
    nothing_written()
    assert "http://127.0.0.1:9" in refused(run("launch", file, "--no-final"))


# Answers


def answer(*words: str) -> Any:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_data_list_as_json(home: Path):
    found = {entry["name"]: entry["state"] for entry in answer("data", "list", "--json")}
    assert found["lidc-contours"] == "on first use"
    assert found["npc"] == "missing"


def test_status_as_json(study: Study):
    found = answer("status", "--json")
    assert (found["study"], found["state"], found["trials_planned"]) == ("s1", "finished", 4)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete", "failed"]
    assert found["trials"][2]["reason"] == "the loss is not finite"
    assert len(found["folds"]) == 2


def test_status_tells_what_was_spent_and_what_lies_on_the_disk(home: Path, store: Store):
    study = make_study(home, store)
    write_study(study.model_copy(update={"budget": 2.0}))
    for number, cost in enumerate([0.25, 0.5]):
        add_trial(study, number, 0.4, cost=cost, retries=("a training process was lost",))
    found = answer("status", "--json")
    assert found["spent"] == {"unit": "CPU-hours", "amount": 0.75}
    assert found["disk"] == sum(len(content) for content in tree(study.folder).values())
    assert (
        "0.75 of 2 CPU-hours spent on trials, which went on 2 time(s) from a checkpoint; 0.0 MB in"
        in run("status").stdout
    )


def test_best_as_json(study: Study):
    found = answer("best", "s1", "--json")
    assert (found["study"], found["trial"], found["objective"]["value"]) == ("s1", 1, 0.3)
    assert found["objective"]["metric"] == "ged"
    assert found["config"]["optim"]["lr"] == found["values"]["optim.lr"] == 0.002
    assert [fold["metrics"]["ged"] for fold in found["folds"]] == [0.2, 0.2]
    assert found["export"] is None


def test_a_dry_run_as_json_writes_nothing(space, nothing_written):
    file = space()
    nothing_written()
    found = answer("launch", file, "--no-final", "--dry-run", "--json", "--trials", "3", "--concurrent", "1")
    assert (found["trials"], found["epochs"], found["resources"]["concurrent"]) == (3, 2, 1)
    assert found["seconds"]["high"] == 3 * 2 * 10.0
    assert found["units"]["unit"] == "CPU-hours"


@pytest.mark.slow
def test_a_dry_run_measures(space, monkeypatch: pytest.MonkeyPatch):
    from orchestrator.estimate import probe

    monkeypatch.setattr("orchestrator.launch.probe", probe)
    found = answer("launch", space(), "--no-final", "--dry-run", "--json")
    assert 0 < found["seconds"]["low"] <= found["seconds"]["high"]
    assert found["memory"] > 2**27, "at least what importing torch takes"


def test_a_dry_run_tells_the_plan(space, store: Store):
    result = run("launch", space(), "--dry-run", "--no-final")
    assert result.exit_code == 0
    parts = ["4 by tpe, at most 2 epochs each", "random blobs, no patient", "CPU core", "minimize ged", "the paper",
             "in all", "40 s"]  # fmt: skip
    assert [part for part in parts if part not in result.stdout] == []


@pytest.mark.parametrize("asked", [["--concurrent", "auto"], ["--gpu-share", "auto"], ["--budget", "1cpuh"]])
def test_what_is_left_to_the_probe_can_be_said(space, monkeypatch: pytest.MonkeyPatch, asked: list[str]):
    monkeypatch.setattr("orchestrator.resources._count_gpus", lambda: 0)
    words = ["launch", space(), "--no-final", "--dry-run", "--json"]
    assert answer(*words, *asked) == answer(*words)


def test_a_dry_run_tells_what_confirmation_and_final_stage_cost(space, store: Store):
    file = space(final=[{"data": str(store.folder), "epochs": 3}], confirm={"top": 2, "repeats": 2}, sampler="qmc")
    words = ["launch", file, "--dry-run", "--concurrent", "1"]
    found = answer(*words, "--json")
    assert (found["sampler"], found["confirm"]) == ("qmc", {"top": 2, "repeats": 2})
    assert [(final["folds"], final["epochs"], final["missing"]) for final in found["final"]] == [(4, 3, None)]
    assert found["seconds"]["confirm"]["high"] == 2 * 2 * 2 * 10.0
    assert found["seconds"]["final"]["high"] == 4 * (3 * 10.0 + 5.0)
    assert found["points"][0]["origin"].startswith("the paper")
    shown = run(*words).stdout
    for part in ("the best 2 are retrained 2 time(s) each and compared", "4 fold(s), 3 epochs", "confirmation 80 s"):
        assert part in shown
    assert "are retrained" not in run(*words, "--confirm", "0").stdout
    assert answer(*words, "--json", "--confirm", "0")["seconds"]["confirm"]["high"] == 0


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        (["--max-time", "220s"], "--max-time 220s is less than"),
        (["--budget", "0.01cpuh"], "--budget of 0.01 CPU-hours"),
    ],
)
def test_what_does_not_suffice_for_the_final_stage_is_refused(
    space, store: Store, nothing_written, asked: list[str], part: str
):
    file = space(final=[{"data": str(store.folder), "epochs": 3}], confirm={"top": 2, "repeats": 2})
    nothing_written()
    sentence = refused(run("launch", file, "--concurrent", "1", *asked))
    assert part in sentence
    assert "--no-final" in sentence


def test_a_cluster_is_joined_where_the_environment_names_one(space, monkeypatch: pytest.MonkeyPatch):
    joined = []

    @contextmanager
    def join(address: str | None, home: Path, *, verbose: bool):
        joined.append(address)
        yield address and [Node(cpus=6, gpus=0), Node(cpus=5, gpus=0)]

    monkeypatch.setattr("orchestrator.session.joined", join)
    words = ["launch", space(), "--no-final", "--dry-run", "--json", "--trials", "30"]
    assert len(answer(*words)["resources"]["nodes"]) == 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert answer(*words)["resources"]["cpus"] == 11
    answer(*words, "--address", "auto")
    assert joined == [None, "10.0.0.1:6379", "auto"]


def test_status_and_best_for_a_person(study: Study):
    for command in ("status", "best"):
        result = run(command)
        assert result.exit_code == 0
        assert "random blobs, no patient" in result.stdout
        assert "20.00" not in result.stdout
        assert "0.2000" in result.stdout
    assert "the loss is not finite" in run("status").stdout


def test_best_tells_what_the_comparison_came_to(study: Study):
    confirm(study, leader=1, chosen=0)
    assert answer("best", "--json")["trial"] == 0
    for words in (["best"], ["resume"]):
        assert "confirmed: On ged, t000 (difference" in run(*words).stdout
    assert "study s1, trial t000: ged 0.4000 on validation patients" in run("best").stdout


def test_best_shows_the_front_of_two_objectives(home: Path, store: Store):
    study = make_study(home, store, second_objective={"metric": "dice_mean"})
    for number, (ged, dice) in enumerate([(0.3, 0.9), (0.2, 0.8), (0.4, 0.85)]):
        add_trial(study, number, ged, second=dice)
    shown = [line for line in run("best").stdout.splitlines() if "Pareto" in line]
    assert shown == [
        "Pareto front: t001 with ged 0.2000, dice_mean 0.8000", "Pareto front: t000 with ged 0.3000, dice_mean 0.9000",
    ]  # fmt: skip


def test_status_of_a_study_that_runs(home: Path, store: Store):
    study = make_study(home, store)
    add_trial(study, 0, 0.4, "running")
    with running(study):
        assert "running; 1 of 4 trials (1 running)" in run("status").stdout
    write_state(study, "running")  # as who dies leaves it
    assert "interrupted; 1 of 4 trials (1 interrupted)" in run("status").stdout


def test_status_of_many_trials_shows_those_that_run_and_the_best(home: Path, store: Store):
    study = make_study(home, store)
    for number in range(50):
        add_trial(study, number, 1 - 0.01 * number)
    add_trial(study, 50, 0.99, "running")
    with running(study):
        lines = [line for line in run("status").stdout.splitlines() if re.match(r"t\d{3} ", line)]
        assert [line.split()[0] for line in lines] == ["t050", *(f"t{number:03d}" for number in range(49, 29, -1))]
        assert "30 others are in --json" in run("status").stdout


def test_a_contact_sheet_is_drawn(store: Store, home: Path, tmp_path: Path):
    result = run("data", "show", str(store.folder), "--out", str(tmp_path / "sheet.png"), "--count", "4")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert "random blobs, no patient" in result.stdout


def test_a_data_set_is_reported_in_a_folder(tmp_path: Path, store: Store, home: Path):
    out = tmp_path / "report"
    shown = run("data", "show", str(store.folder), "--out", str(out))
    assert shown.exit_code == 0, shown.output
    assert {path.name for path in out.iterdir()} == {"report.md", "samples.png", "distances.png", "ranks.png"}
    for part in ("random blobs, no patient", "16 slices", "d_aa", str(out / "report.md")):
        assert part in shown.stdout
    assert "two raters are" in (out / "report.md").read_text()


def test_without_a_place_the_report_lies_in_the_workspace(tmp_path: Path, store: Store, home: Path):
    shown = run("data", "show", str(store.folder), "--out", str(tmp_path / "report")).stdout.splitlines()
    *told, place = run("data", "show", str(store.folder)).stdout.splitlines()
    assert told == shown[:-1]
    report = Path(place.removeprefix("-> "))
    assert home in report.parents
    assert report.read_text(encoding="utf-8") == (tmp_path / "report" / "report.md").read_text()


def test_a_report_replaces_its_own_files_alone_and_only_when_forced(tmp_path: Path, store: Store, home: Path):
    out = tmp_path / "v1.2"
    out.mkdir()
    assert run("data", "show", str(store.folder), "--out", str(out)).exit_code == 0, "an empty folder is free"
    for name in ("notes.md", "report.md"):
        (out / name).write_text("mine")
    assert "--force" in refused(run("data", "show", str(store.folder), "--out", str(out)))
    assert (out / "report.md").read_text() == "mine"
    assert run("data", "show", str(store.folder), "--out", str(out), "--force").exit_code == 0
    assert (out / "notes.md").read_text() == "mine"
    assert "two raters are" in (out / "report.md").read_text()


def test_a_report_does_not_take_the_place_of_a_file(tmp_path: Path, store: Store, home: Path, nothing_written):
    file = tmp_path / "report"
    file.write_text("mine")
    nothing_written()
    for force in ([], ["--force"]):
        assert "must be a folder" in refused(run("data", "show", str(store.folder), "--out", str(file), *force))


@pytest.mark.parametrize("out", ["report", "sheet.png"])
def test_a_report_that_cannot_be_written_names_its_place(
    tmp_path: Path, store: Store, home: Path, monkeypatch: pytest.MonkeyPatch, out: str
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("proseg.records.os.replace", full)
    told = refused(run("data", "show", str(store.folder), "--out", str(tmp_path / out)))
    assert f"--out {tmp_path / out} cannot be written: No space left on device" in told


def test_a_stand_in_is_written_where_launch_looks(home: Path):
    assert run("data", "standin", "npc", "--subjects", "1,1,1").exit_code == 0
    volumes = [path for path in (home / "sources/npc").glob("*/*.h5") if path.parent.name != "training_2d"]
    assert len(volumes) == 3
    assert {entry["name"]: entry["state"] for entry in answer("data", "list", "--json")}["npc"] == "files found"


# Data of one's own


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> None:
    """A space that names what it was made for."""

    def template_space(data: str, **counts: int) -> str:
        return f"# {data} {sorted(counts.items())}\n"

    module = types.ModuleType("search_spaces.template")
    module.template_space = template_space  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "search_spaces.template", module)


@pytest.fixture
def prepare(tmp_path: Path, home: Path, template: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Prepares small volumes under a name, in a folder of the test's."""
    write_npc(tmp_path / "files")
    monkeypatch.chdir(tmp_path)
    words = ["data", "prepare", "npc", "--from", "files", "--size", "16x12", "--jobs", "1"]
    return lambda name="mr", *more: run(*words, "--name", name, *more)


def test_prepared_data_are_told_of_and_a_space_is_written(prepare, tmp_path: Path, home: Path):
    result = prepare()
    assert result.exit_code == 0, result.output
    for part in ("mr: NPC (MMIS-2024 task 1)", "10 slices of 16 x 12 in 3 channel(s), of 5 volumes of 5 patients, by "
                 "4 raters (a1, a2, a3, a4)", str(home / "prepared/mr"), str(tmp_path / "mr.toml"),
                 "next: proseg-tune launch mr.toml"):  # fmt: skip
        assert part in result.stdout
    counts = [("classes", 1), ("height", 16), ("raters", 4), ("slices", 10), ("width", 12)]
    assert (tmp_path / "mr.toml").read_text() == f"# mr {counts}\n"
    assert {entry["name"]: entry["state"] for entry in answer("data", "list", "--json")}["mr"] == "prepared"


def test_a_space_that_is_there_is_left_alone(prepare, tmp_path: Path):
    (tmp_path / "mr.toml").write_text("mine")
    result = prepare()
    assert result.exit_code == 0, result.output
    assert "mr.toml is there already and was left alone" in result.stdout
    assert (tmp_path / "mr.toml").read_text() == "mine"


def test_a_space_that_cannot_be_written_whole_is_not_there(
    prepare, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, *how: Any, **options: Any) -> Any:
        file = as_it_is(path, *how, **options)
        if path.suffix != ".toml":
            return file
        file.close()
        return Full()

    as_it_is = Path.open
    with monkeypatch.context() as context:
        context.setattr(Path, "open", opened)
        told = refused(prepare())
    assert (
        f"mr is prepared, but a search space for it cannot be written to {tmp_path / 'mr.toml'} (No space left" in told
    )
    assert not (tmp_path / "mr.toml").exists()
    again = prepare()
    assert "nothing was done" in again.stdout
    assert f"was written to {tmp_path / 'mr.toml'}" in again.stdout


def test_npc_under_its_own_name_needs_no_space(prepare, tmp_path: Path):
    result = prepare("npc")
    assert "next: proseg-tune launch npc" in result.stdout
    assert list(tmp_path.glob("*.toml")) == []


def test_lidc_under_any_name_is_searched_by_its_own_space(prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from proseg.data import npc
    from proseg.data.kinds import KINDS

    lidc = replace(KINDS["lidc-pickle"], open=lambda path, name, choices, track: npc.source(path))
    monkeypatch.setitem(KINDS, "lidc-pickle", lidc)
    result = run("data", "prepare", "lidc-pickle", "--from", "files", "--name", "mine", "--jobs", "1")
    assert "next: proseg-tune launch lidc --data mine" in result.stdout
    assert list(tmp_path.glob("*.toml")) == []


def test_prepared_data_as_json(prepare, tmp_path: Path, home: Path):
    found = json.loads(prepare("mr", "--json").stdout)
    assert (found["name"], found["folder"], found["anew"]) == ("mr", str(home / "prepared/mr"), True)
    assert (found["slices"], found["patients"], found["raters"], found["skipped"]) == (10, 5, 4, [])
    assert (found["space"], found["next"]) == (str(tmp_path / "mr.toml"), "proseg-tune launch mr.toml")
    again = json.loads(prepare("mr", "--json").stdout)
    assert (again["anew"], again["space"], again["fingerprint"]) == (False, None, found["fingerprint"])
    assert "nothing was done" in prepare().stdout


def test_what_was_skipped_is_counted_and_the_first_are_named(
    prepare, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from proseg.data import npc as module
    from proseg.data.source import Skipped

    source, skipped = module.source, tuple(Skipped(f"slice {n}", "it is damaged") for n in range(8))
    monkeypatch.setattr(module, "source", lambda *a, **k: replace(source(*a, **k), skipped=skipped))
    shown = prepare().stdout
    assert "8 skipped:" in shown
    assert "slice 4: it is damaged" in shown
    assert "slice 5" not in shown
    assert f"and 3 more, all of them in {home / 'prepared/mr/manifest.json'}" in shown


def test_data_prepared_from_other_files_are_not_overwritten(prepare, tmp_path: Path, home: Path):
    prepare()
    before = tree(home)
    write_npc(tmp_path / "files", 6)
    assert "choose another name" in refused(prepare())
    assert tree(home) == before


def test_a_preparation_that_is_interrupted_says_that_it_goes_on(prepare, home: Path, monkeypatch: pytest.MonkeyPatch):
    from proseg.data import npc as module

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(module, "read_part", interrupted)
        result = prepare()
    assert result.exit_code == 130
    assert "interrupted; the same command goes on with mr where it stopped" in result.stderr
    assert {entry["name"]: entry["state"] for entry in answer("data", "list", "--json")}["mr"] == "unfinished"
    assert prepare().exit_code == 0


@pytest.mark.parametrize("volume", ["training/Sample_0.h5", "training/Sample_3.h5", "validation/Sample_4.h5"])
def test_a_preparation_from_a_corrupt_file_leaves_nothing(prepare, tmp_path: Path, nothing_written, volume: str):
    file = tmp_path / "files" / volume
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    nothing_written()
    assert f"{Path(volume).name}: not an HDF5 file, or cut short" in refused(prepare())


def test_data_that_are_intact_are_said_to_be(prepare, home: Path):
    prepare()
    result = run("data", "check", "mr")
    assert result.exit_code == 0, result.output
    assert "10 slices" in result.stdout
    assert "intact: every byte is as it was written" in result.stdout
    found = answer("data", "check", "mr", "--json")
    assert (found["intact"], found["slices"], found["folder"]) == (True, 10, str(home / "prepared/mr"))


def test_data_of_which_a_byte_has_changed_are_not(prepare, home: Path):
    prepare()
    arrow = home / "prepared/mr/slices.arrow"
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)
    assert f"{arrow} is damaged" in refused(run("data", "check", "mr"))


def test_a_window_may_begin_below_zero(prepare, tmp_path: Path):
    said = refused(prepare("mr", "--window", "-1000,400"))
    assert "data prepare npc does not take --window" in said


# A study that does not run


def test_explain_tells_why_a_trial_ended(study: Study):
    decision = {"rung": 1, "value": [0.5], "cutoff": 0.4, "rank": 3, "of": 4, "kept": 2}
    reason = "ASHA: rank 3 of 4 at epoch 1 (ged 0.5000, cut-off 0.4000), the best 2 go on"
    add_trial(study, 3, 0.5, "stopped early", reason=reason, decision=decision, origin="the paper")
    found = answer("explain", "t003", "s1", "--json")
    assert (found["reason"], found["decision"], found["place"], found["scored"]) == (reason, decision, 3, 3)
    assert [epoch["value"] for epoch in found["epochs"]] == [0.5]
    shown = run("explain", "3").stdout
    for part in ("t003 of s1: stopped early after 1 of 2 epochs, place 3 of 3", reason, "the paper", "optim.lr"):
        assert part in shown


def test_explain_tells_where_the_traceback_of_a_failure_is(study: Study):
    folder = study.trial_folder(2)
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"reason": "the loss is not finite", "traceback": "..."}))
    found = answer("explain", "2", "--json")
    assert (found["state"], found["place"], found["traceback"]) == ("failed", None, str(folder / "failure.json"))
    shown = run("explain", "t2").stdout
    for part in ("t002 of s1: failed", "why: the loss is not finite", f"traceback: {folder / 'failure.json'}"):
        assert part in shown


def test_explain_follows_a_trial_that_runs(home: Path, store: Store):
    study = make_study(home, store)
    add_trial(study, 0, 0.4, "running", retries=("a training process was lost",))
    write_epochs(study.trial_folder(0), [0.5, 0.4])
    assert [epoch["best"] for epoch in answer("explain", "t0", "--json")["epochs"]] == [0.5, 0.4]
    with running(study):
        shown = run("explain", "t0").stdout
    assert "t000 of s1: running after 2 of 2 epochs, place 1 of 1" in shown
    assert "went on from its last checkpoint: a training process was lost" in shown


def test_explain_of_a_study_without_trials(home: Path, store: Store):
    make_study(home, store)
    assert "no trial t000; it has no trial yet" in refused(run("explain", "0"))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["explain"], ["TRIAL"]),
        (["explain", "-1"], ["-1"]),
        (["explain", "t001", "x"], ["no study 'x'"]),
        (["explain", "t009"], ["no trial t009", "t000 to t002"]),
        (["explain", "best"], ["'best' is not a trial"]),
        (["stop"], ["s1 is not running: it is finished"]),
        (["stop", "x"], ["no study 'x'"]),
        (["resume", "x"], ["no study 'x'"]),
        (["resume", "--budget", "3h"], ["'3h' is not a budget"]),
        (["resume", "--concurrent", "0"], ["'0' is not a number of at least 1"]),
    ],
)
def test_what_cannot_be_done_with_a_study(study: Study, words: list[str], parts: list[str]):
    said = refused(run(*words))
    assert [part for part in parts if part not in said] == []


def test_a_finished_study_stays_as_it_is_when_it_is_resumed(study: Study):
    before = tree(study.folder)
    result = run("resume", "s1")
    assert result.exit_code == 0, result.output
    assert "there is nothing to go on with" in result.stdout
    assert answer("resume", "s1", "--json")["trial"] == 1
    assert tree(study.folder) == before


@pytest.mark.parametrize("options", [["--max-time", "9h"], ["--trials", "2"], ["--budget", "9cpuh"]])
def test_a_finished_study_that_has_tried_all_is_not_searched_further(study: Study, options: list[str]):
    write_study(study.model_copy(update={"trials": 3}))
    assert "s1 has tried 3 trials already: --trials 4, or more, goes on" in refused(run("resume", "s1", *options))
    assert read_state(study) == "finished"


def test_stop_leaves_word_for_the_process_that_runs_it(study: Study):
    with running(study):
        assert run("stop", "s1").exit_code == 0
    assert (study.folder / "stop").exists()


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_a_study_that_does_not_run_cannot_be_stopped(study: Study, state):
    write_state(study, state)
    assert f"s1 is not running: it is {state}" in refused(run("stop", "s1"))
    assert not (study.folder / "stop").exists()


@pytest.fixture
def unfinished(study: Study, monkeypatch: pytest.MonkeyPatch) -> Study:
    """It was interrupted; MLflow, whose store takes seconds to make, is not asked whether it answers."""
    monkeypatch.setattr("orchestrator.launch.check_store", lambda home: None)
    write_state(study, "interrupted")
    return study


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--gpu-share", "0.5"], "without GPUs"),
        (["--concurrent", "99"], "--concurrent 99"),
        (["--budget", "1gpuh"], "write 1cpuh"),
        (["--max-time", "soon"], "'soon' is not a duration"),
        (["--trials", "0"], "--trials"),
        (["--trials", "3"], "s1 has tried 3 trials already: --trials 4, or more, goes on"),
    ],
)
def test_wrong_options_of_resume(unfinished: Study, monkeypatch: pytest.MonkeyPatch, options: list[str], part: str):
    monkeypatch.setattr("orchestrator.resources._count_gpus", lambda: 0)
    before = tree(unfinished.folder)
    assert part in refused(run("resume", "s1", *options))
    after = tree(unfinished.folder)
    assert after | {".running": b""} == before | {".running": b""}


def test_a_study_that_runs_elsewhere_is_not_resumed(unfinished: Study):
    with alone(unfinished):
        assert "s1 is running already" in refused(run("resume", "s1"))


def test_a_study_whose_data_have_changed_is_not_resumed(unfinished: Study):
    manifest = unfinished.data.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(unfinished.data.fingerprint, "0" * 64))
    assert "its fingerprint has changed" in refused(run("resume"))


def test_a_study_goes_on_with_the_limits_that_are_given_now(unfinished: Study, monkeypatch: pytest.MonkeyPatch):
    ran = []
    monkeypatch.setattr("orchestrator.launch.run", lambda study, *_, **__: ran.append(study))
    found = answer("resume", "s1", "--json", "--max-time", "2h", "--budget", "1.5cpuh", "--concurrent", "1")
    assert found["study"] == "s1"
    (study,) = ran
    assert (study.max_time, study.budget, study.resources.concurrent) == (7200, 1.5, 1)
    assert find_study(unfinished.folder.parent.parent, "s1") == study


# How a study ends


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Stopped(), 130, "error: stopped; `proseg-tune resume` goes on from what has been reached"),
        (KeyboardInterrupt(), 130, "error: interrupted; what has been reached is kept in the workspace"),
        (StudyFailed("every trial failed"), 1, "error: every trial failed"),
        (StudyError("it runs already"), 2, "error: it runs already"),
        (OSError(errno.ENOSPC, "No space left on device", "trials.jsonl"), 2, "error: trials.jsonl cannot be used"),
    ],
)
@pytest.mark.parametrize("command", ["launch", "resume"])
def test_the_exit_code_says_whose_fault_it_was(
    unfinished: Study, space, monkeypatch: pytest.MonkeyPatch, command: str, error: BaseException, code: int, said: str
):
    def run_it(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("orchestrator.launch.run", run_it)
    result = run("launch", space(), "--no-final") if command == "launch" else run("resume", "s1")
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_bug_keeps_its_traceback(unfinished: Study, monkeypatch: pytest.MonkeyPatch):
    def run_it(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("orchestrator.launch.run", run_it)
    assert isinstance(run("resume", "s1").exception, ZeroDivisionError)


def test_standard_output_belongs_to_the_json(unfinished: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.launch.run", lambda *_, **__: print("what Ray prints"))
    result = run("resume", "s1", "--json")
    assert json.loads(result.stdout)["trial"] == 1
    assert "what Ray prints" in result.stderr


def test_an_object_store_is_no_workspace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROSEG_HOME", "s3://bucket/runs")
    assert "s3://bucket/runs: an object store cannot be the workspace" in refused(run("status"))


# Help


def test_help_is_instant():
    """Whatever is slow to import is imported when it is needed."""
    code = (
        "import sys; from typer.testing import CliRunner; from cli.app import app\n"
        f"for command in {['', *COMMANDS]!r}:\n"
        "    result = CliRunner().invoke(app, [*command.split(), '--help'])\n"
        f"    print(command, result.exit_code, [name for name in {SLOW_IMPORTS!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [f"{command} 0 []" for command in ["", *COMMANDS]]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command: str):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_the_commands_are_those_of_the_documentation():
    text = run("--help").stdout
    assert [name for name in (*STUDIES, "data") if name not in text] == []


def test_launch_has_the_options_of_the_documentation():
    text = run("launch", "--help").stdout
    names = ("trials", "epochs", "study", "workers", "gpu-share", "concurrent", "data", "max-time", "budget", "seed",
             "sampler", "from", "confirm", "epoch-timeout", "storage", "address", "no-final", "dry-run", "json",
             "verbose")  # fmt: skip
    assert [name for name in names if f"--{name}" not in text] == []


@pytest.mark.parametrize(
    ("space", "data"), [("demo", "npc"), ("lidc", "npc"), ("npc", "lidc-contours"), ("demo", "mine"), ("npc", "mine")]
)
def test_other_data_take_the_place_of_the_spaces_own_and_no_set_stands_twice(space: str, data: str):
    from orchestrator.launch import _on_other_data
    from search_spaces import find_space

    found = find_space(space)
    moved = _on_other_data(found, data)
    names = [stage.data for stage in moved.final]
    assert moved.data == data
    assert data in names
    assert len(set(names)) == len(names)


def test_a_workspace_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path / "file" / "home"))
    result = run("data", "standin", "npc", "--subjects", "1,1,1")
    assert result.exit_code == 2
    assert re.search(r"^error: .*file/home.* cannot be used: Not a directory$", result.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--study", "s1"], "study 's1' already exists"),
        (["--study", "a/b"], "--study 'a/b' cannot name a folder"),
        (
            ["--address", "127.0.0.1:9"],
            "--address 127.0.0.1:9: no Ray cluster can be joined there (it cannot be reached",
        ),
        (["--address", "head"], "this is no host:port"),
        (["--storage", "sqlite:////dev/null/x.db"], "cannot be opened: /dev/null/x.db cannot be written"),
        (["--storage", "sqlite:///blobs/manifest.json"], "cannot be opened: (sqlite3.DatabaseError) file is not a "),
        (["--storage", "nobase://host/name"], "--storage nobase://host/name cannot be opened: Can't load plugin"),
        (["--data", "npc"], "the NPC files are not there"),
    ],
)
def test_a_dry_run_tells_what_would_stop_a_study(
    study: Study, space: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_written,
    options: list[str], part: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    file = space()
    nothing_written()
    assert part in refused(run("launch", file, "--dry-run", *options))


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        (
            "RAY_TMPDIR",
            f"{tempfile.gettempdir()}/{91 * 'x'}",
            "is too long a path for Ray's sockets; to mend it: export RAY_TMPDIR=/tmp",
        ),
        ("RAY_TMPDIR", "/dev/null", "/dev/null cannot be written"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", "MLFLOW_TRACKING_URI=http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_dry_run_tells_what_the_doctor_knows(
    home: Path, space: Callable[..., str], monkeypatch: pytest.MonkeyPatch, nothing_written, name: str, value: str,
    part: str,
):  # fmt: skip
    monkeypatch.setenv(name, value)
    file = space()
    nothing_written()
    assert part in refused(run("launch", file, "--dry-run"))


def test_a_dry_run_makes_no_workspace(home: Path, space: Callable[..., str], nothing_written):
    file = space()
    nothing_written()
    assert run("launch", file, "--dry-run", "--json").exit_code == 0


# What was moved


@pytest.fixture
def outside(unfinished: Study, tmp_path: Path) -> Path:
    """Where the data of the study lie now."""
    return unfinished.data.folder.rename(tmp_path / "outside")


def test_data_that_are_not_where_they_were_are_asked_for_and_told_once(
    unfinished: Study, outside: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = []
    monkeypatch.setattr("orchestrator.launch.run", lambda study, *_, **__: ran.append(study))
    assert "resume STUDY --data FOLDER" in refused(run("resume", "s1"))
    assert run("resume", "s1", "--data", str(outside), "--concurrent", "1").exit_code == 0
    assert run("resume", "s1").exit_code == 0
    assert [ref.folder for study in ran for ref in study.sets] == [outside] * 4


def test_data_of_an_export_that_are_not_where_they_were_are_asked_for(unfinished: Study, outside: Path, tmp_path: Path):
    export = ["best", "s1", "--export", str(tmp_path / "export")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proseg.checkpoint.load_checkpoint", lambda path: None)
        assert "--data" in refused(run(*export))
        assert "has another fingerprint" in refused(
            run(*export, "--data", str(make_store(tmp_path / "more", patients=9).folder))
        )
        assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("words", [["--out", "~/told"], ["--out=~/told"]])
def test_the_home_may_be_written_as_a_shell_writes_it(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PROSEG_HOME", "~/home")
    monkeypatch.chdir(tmp_path)
    assert answer("report", "s1", *words, "--json")["study"] == "s1"
    assert (tmp_path / "told" / "index.html").exists()
    assert not (tmp_path / "~").exists()


def test_the_data_of_a_space_may_lie_in_the_home(
    home: Path, store: Store, space: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = space(data="~/blobs", final=[{"data": "~/blobs", "epochs": 1}])
    assert answer("launch", path, "--dry-run", "--json")["data"]["name"] == "blobs"
