"""An export evaluated again: equal to the bit as long as nothing was changed, and what was changed is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.app import app
from orchestrator import rescore as rescoring
from orchestrator import verify as verifying
from orchestrator.export import export
from orchestrator.retrain import evaluate_fold
from orchestrator.scored import read_columns, write_cases
from orchestrator.stored import Stored, read_stored
from orchestrator.study import Study, StudyError
from orchestrator.verify import Verification, in_fresh_process, notes, rows, sentence, to_json, verify
from proseg.checkpoint import load_checkpoint, save_checkpoint
from proseg.data.store import Store
from proseg.errors import ProSegError
from tests.studies import LABEL, make_store, make_study, train_fold, train_trial, tree

PROSES = {"README.md", "verify.json"}


def in_this_process(model: Path, store: Path, record: Stored, out: Path) -> None:
    """As the fresh one does it, without its seconds of imports."""
    e, d, threads = record.evaluation, record.data, torch.get_num_threads()
    try:
        rescoring.main([str(model), str(store), str(e.prior_samples), d.part, str(d.fold), str(e.threads), str(out)])
    finally:
        torch.set_num_threads(threads)


def check(folder: Path, home: Path, **named: Any) -> Verification:
    return verify(folder, home, **{"rescore": in_this_process} | named)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("data") / "blobs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Study:
    """A study whose winner was retrained on fold 0 and evaluated, as the final stage does it."""
    study = make_study(tmp_path_factory.mktemp("home"), store, final=[{"data": str(store.folder), "epochs": 2}])
    train_fold(study, train_trial(study), 0)
    evaluate_fold(str(study.folder), str(study.final_folder("blobs", 0)), "blobs", 0)
    return study


@pytest.fixture(scope="module")
def home(finished: Study) -> Path:
    return finished.folder.parent.parent


@pytest.fixture(scope="module")
def exported(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests must not change it."""
    folder = tmp_path_factory.mktemp("out") / "model"
    export(finished, folder)
    return folder


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(exported, tmp_path / "model")


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


# Nothing was changed


def test_the_numbers_are_equal_to_the_bit(exported: Path, home: Path):
    found = check(exported, home)
    assert (found.verified, found.equal) == (True, True)
    assert {c.metric for c in found.checks} >= {"ged", "prior_ged", "prior_ged_unbiased", "dice_a1", "dice_mean"}
    assert [c for c in found.checks if c.difference != 0 or c.largest != 0 or c.differing != 0] == []
    assert sentence(found).endswith("metrics of 4 test cases are equal to the stored ones to the bit, overall and case "
                                    "by case")  # fmt: skip


def test_the_record_has_what_it_takes(exported: Path, finished: Study, store: Store):
    record = read_stored(exported)
    result = json.loads((finished.final_folder("blobs", 0) / "result.json").read_text())
    assert record.means == result["metrics"]
    assert (record.data.name, record.data.fingerprint, record.data.part) == (
        "blobs",
        store.manifest.fingerprint,
        "test",
    )
    assert (record.data.label, record.data.fold, record.data.patients) == (LABEL, 0, 2)
    assert (record.cases.count, record.cases.file) == (4, "cases.parquet")
    e = record.evaluation
    assert (e.seed, e.samples, e.prior_samples, e.device, e.threads) == (0, 2, 50, "cpu", torch.get_num_threads())
    assert set(record.files) == {path.name for path in exported.iterdir()} - PROSES
    assert record.versions == finished.environment
    assert "TF32" in record.tolerance.reason
    names = [str(name) for name in store.patients]
    assert [name for name in names if name in (exported / "verify.json").read_text()] == [], "nobody is named"


def test_it_works_in_another_place_with_the_data_named(model: Path, store: Store, tmp_path: Path):
    found = check(model, tmp_path / "empty", data=str(store.folder))
    assert found.equal
    assert found.data == store.folder


def test_data_are_found_in_the_workspace_by_fingerprint_under_any_name(model: Path, store: Store, tmp_path: Path):
    shutil.copytree(store.folder, tmp_path / "home/prepared/another-name")
    found = check(model, tmp_path / "home")
    assert found.equal
    assert found.data == tmp_path / "home/prepared/another-name"


def test_it_says_on_what_and_with_how_many_samples(exported: Path, home: Path):
    said: list[str] = []
    text = "\n".join(notes(check(exported, home, say=said.append)))
    assert said == ["evaluating 4 test cases of blobs, fold 0"]
    assert f"blobs: {LABEL}; fold 0, S = 2 and 50 from the prior" in text
    assert "python 3.11 -> " in text, "the versions that differ"


def test_a_card_may_be_edited(model: Path, home: Path):
    (model / "README.md").write_text("our own words")
    assert check(model, home).equal


@pytest.mark.parametrize("unit", ["slice", "volume"])
def test_without_a_final_stage_the_validation_is_verified(tmp_path: Path, unit: str):
    study = make_study(tmp_path / "home", make_store(tmp_path / "blobs", unit=unit))
    train_trial(study)
    export(study, tmp_path / "out")
    found = check(tmp_path / "out", tmp_path / "home")
    assert found.equal
    assert (found.record.data.part, found.record.cases.file, found.record.evaluation.prior_samples) == (
        "validation",
        None,
        0,
    )
    count = 2 if unit == "slice" else 1
    assert sentence(found).endswith(f"metrics of {count} validation cases are equal to the stored ones to the bit")
    assert any("only means are compared" in note for note in notes(found))


def test_volumes_of_several_classes(tmp_path: Path):
    store = make_store(tmp_path / "blobs", unit="volume", classes=2)
    study = make_study(tmp_path / "home", store, final=[{"data": str(store.folder), "epochs": 2}])
    train_fold(study, train_trial(study), 0)
    evaluate_fold(str(study.folder), str(study.final_folder("blobs", 0)), "blobs", 0)
    export(study, tmp_path / "out")
    assert check(tmp_path / "out", tmp_path / "home").equal


# Something was


def change_weights(model: Path, factor: float) -> None:
    checkpoint = load_checkpoint(model / "model.safetensors")
    weights = {name: value * factor for name, value in checkpoint.model.items()}
    save_checkpoint(model / "model.safetensors", replace(checkpoint, model=weights))


def test_changed_weights_give_other_numbers(model: Path, home: Path):
    change_weights(model, -1.0)
    found = check(model, home)
    assert not found.verified
    off = [c.metric for c in found.checks if not c.ok]
    assert "ged" in off
    assert "d_aa" not in off, "a constant of the data"
    told = sentence(found)
    assert told.startswith("NOT verified: model.safetensors is no longer the file that was exported; ")
    (ged,) = [c for c in found.checks if c.metric == "ged"]
    assert f"ged differs by {ged.difference:+.4g}" in told
    assert [row[-1] for row in rows(found) if row[0] == "ged"] == ["DIFFERS"]


def test_weights_whose_change_no_number_shows_are_told_by_their_digest(model: Path, home: Path):
    change_weights(model, 1 + 1e-6)
    found = check(model, home)
    assert [c for c in found.checks if not c.ok] == []
    assert not found.verified
    assert sentence(found) == "NOT verified: model.safetensors is no longer the file that was exported"


def test_another_configuration_in_the_weights(model: Path, home: Path):
    checkpoint = load_checkpoint(model / "model.safetensors")
    config = checkpoint.config.with_values({"seed": 7})
    save_checkpoint(model / "model.safetensors", replace(checkpoint, config=config))
    told = sentence(check(model, home))
    assert "config.json is not the configuration that the weights carry" in told


def test_a_changed_configuration(model: Path, home: Path):
    edit(model / "config.json", lambda config: config["model"].update(width=99))
    told = sentence(check(model, home))
    assert told == ("NOT verified: config.json is no longer the file that was exported; "
                    "config.json is not the configuration that the weights carry")  # fmt: skip


def test_a_number_that_was_embellished(model: Path, home: Path):
    edit(model / "metrics.json", lambda metrics: metrics["folds"][0]["metrics"].update(ged=0.01))
    assert "metrics.json says ged is 0.01, verify.json " in sentence(check(model, home))
    stored = json.loads((model / "verify.json").read_text())["means"]["ged"]
    edit(model / "verify.json", lambda record: record["means"].update(ged=0.01))
    told = sentence(check(model, home))
    assert f"cases.parquet says ged is {stored}, verify.json 0.01" in told
    assert "ged differs by" in told


def test_a_case_that_was_changed(model: Path, home: Path):
    columns = read_columns(model / "cases.parquet")
    columns["ged"][1] += 0.2
    write_cases(model / "cases.parquet", columns)
    found = check(model, home)
    (ged,) = [c for c in found.checks if c.metric == "ged"]
    assert (ged.ok, ged.differing, ged.beyond) == (False, 1, 1)
    assert ged.largest == pytest.approx(0.2)
    assert "ged differs by more than 0.05 in 1 cases" in sentence(found)
    assert [c for c in found.checks if c.metric != "ged" and not c.ok] == []


# Another machine


def moved(by: float, cases: int, metric: str = "ged") -> Callable[..., None]:
    """What a machine might compute whose rounding moves so many cases by so much."""

    def rescore(model: Path, store: Path, record: Stored, out: Path) -> None:
        in_this_process(model, store, record, out)
        columns = read_columns(out / rescoring.SCORES)
        columns[metric][:cases] += by
        write_cases(out / rescoring.SCORES, columns)
        edit(out / rescoring.FOUND, lambda found: found["means"].update({metric: float(np.nanmean(columns[metric]))}))

    return rescore


def test_what_rounding_does_is_within_the_tolerance(exported: Path, home: Path):
    found = check(exported, home, rescore=moved(1e-4, 2))
    assert (found.verified, found.equal) == (True, False)
    assert "within the tolerance; the largest difference of a mean is 5e-05 (ged)" in sentence(found)
    (ged,) = [c for c in found.checks if c.metric == "ged"]
    assert (ged.differing, ged.beyond, ged.ok) == (2, 0, True)
    assert ged.largest == pytest.approx(1e-4)


def test_what_rounding_does_not_do_is_not(exported: Path, home: Path):
    found = check(exported, home, rescore=moved(1e-3, 4))
    assert sentence(found) == "NOT verified: ged differs by +0.001"


def test_numbers_that_differ_since_the_evaluation_is_another_say_so(
    exported: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("proseg.evaluate.SLICES_AT_ONCE", 1)  # other slices share their noise
    found = check(exported, home)
    because = "evaluated otherwise than at the export: slices_at_once 32 -> 1"
    assert sentence(found).startswith("NOT verified: ged differs by ")
    assert sentence(found).endswith(f"; {because}")
    assert because in notes(found)
    assert to_json(found)["otherwise"] == ["slices_at_once 32 -> 1"]


def test_another_evaluation_with_the_same_numbers_is_a_note(model: Path, home: Path):
    edit(model / "verify.json", lambda record: record["evaluation"].update(crop=64, seed=5))
    found = check(model, home)
    assert found.equal
    assert "evaluated otherwise than at the export: seed 5 -> 0, crop 64 -> None" in notes(found)


def test_how_slices_share_their_noise_is_nothing_to_volumes(exported: Path, home: Path):
    found = check(exported, home)
    record = found.record.model_copy(update={
        "data": found.record.data.model_copy(update={"unit": "volume"}),
        "evaluation": found.record.evaluation.model_copy(update={"slices_at_once": 8, "samples": 3}),
    })  # fmt: skip
    here = verifying.Found([], {}, {}, {}, {"samples": 2, "slices_at_once": 32}, "cpu", 1, {})
    assert verifying._otherwise(record, here) == ("samples 3 -> 2",)


def test_a_case_that_is_defined_only_here_differs(exported: Path, home: Path):
    found = check(exported, home, rescore=moved(float("nan"), 1))
    (ged,) = [c for c in found.checks if c.metric == "ged"]
    assert (ged.ok, ged.largest) == (False, np.inf)
    json.dumps(to_json(found), allow_nan=False)


def test_a_metric_that_is_no_longer_computed(model: Path, home: Path):
    edit(model / "verify.json", lambda record: record["means"].update(another=0.5))
    assert "another is not defined here" in sentence(check(model, home))


# It cannot be verified


@pytest.mark.parametrize("name", ["model.safetensors", "verify.json", "metrics.json", "config.json", "data.json",
                                  "cases.parquet"])  # fmt: skip
def test_a_file_that_was_cut_short_is_named(model: Path, home: Path, name: str):
    content = (model / name).read_bytes()
    (model / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ProSegError, match=name.replace(".", r"\.")) as found:
        check(model, home)
    assert (found.value.exit_code, "\n" in str(found.value)) == (2, False)


@pytest.mark.parametrize("name", ["model.safetensors", "cases.parquet", "environment.json"])
def test_a_file_that_is_missing_is_named(model: Path, home: Path, name: str):
    (model / name).unlink()
    with pytest.raises(StudyError, match=rf"model is not whole: {name} is missing; export the model again"):
        check(model, home)


def test_an_export_of_an_earlier_version_says_so(model: Path, home: Path):
    (model / "verify.json").unlink()
    with pytest.raises(StudyError, match=r"exported by an earlier version; .*--force"):
        check(model, home)


def test_a_record_of_a_later_version_says_so(model: Path, home: Path):
    edit(model / "verify.json", lambda record: record.update(format=2))
    with pytest.raises(StudyError, match=r"verify\.json is damaged or of another version \(format"):
        check(model, home)


def test_a_wrong_folder_is_told(tmp_path: Path, finished: Study, home: Path):
    with pytest.raises(StudyError, match="there is no such folder"):
        check(tmp_path / "gone", home)
    with pytest.raises(StudyError, match="is not an exported model"):
        check(finished.folder, home)


def test_data_that_are_not_there(model: Path, tmp_path: Path):
    with pytest.raises(StudyError, match=r"blobs with the fingerprint [0-9a-f]{12}, are not in the workspace .*--data"):
        check(model, tmp_path)


def test_data_that_were_changed(model: Path, tmp_path: Path):
    other = make_store(tmp_path / "home/prepared/blobs", patients=9)
    with pytest.raises(StudyError, match=rf"its blobs has another fingerprint, {other.manifest.fingerprint[:12]}"):
        check(model, tmp_path / "home")
    with pytest.raises(StudyError, match=r"--data .* is not the data that the model was scored on"):
        check(model, tmp_path / "home", data=str(other.folder))


def test_data_of_which_a_pixel_was_changed(model: Path, store: Store, tmp_path: Path, copy_of):
    copy = copy_of(store)
    path = copy / "slices.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(store.image(0).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r"slices\.arrow is damaged: its content no longer has the fingerprint"):
        check(model, tmp_path / "empty", data=str(copy))


def test_data_with_other_folds(model: Path, store: Store, tmp_path: Path, copy_of):
    copy = copy_of(store)
    edit(copy / "manifest.json", lambda m: m["folds"].reverse())
    with pytest.raises(StudyError, match=r"fold 0 of .* has other test cases \(4\) than the 4 the model was scored on"):
        check(model, tmp_path / "empty", data=str(copy))


# The fresh process


def program(folder: Path, lines: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("kill -9 $$", "was killed, as the system does where memory runs out"),
        ("kill -11 $$", "was ended by SIGSEGV"),
        ("echo 'RuntimeError: no kernel' >&2; exit 1", "failed with exit code 1: RuntimeError: no kernel"),
        ("exit 3", "failed with exit code 3: it said nothing"),
    ],
)
def test_a_process_that_does_not_come_to_its_end_is_one_sentence(
    exported: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, told: str
):
    monkeypatch.setattr(verifying.sys, "executable", program(tmp_path, lines))
    with pytest.raises(StudyError, match=told) as found:
        in_fresh_process(exported, store.folder, read_stored(exported), tmp_path)
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_the_fresh_process_finds_the_same_and_leaves_nothing(exported: Path, home: Path, tmp_path: Path):
    before = tree(exported)
    found = verify(exported, home)
    assert found.equal
    assert tree(exported) == before
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong torch')")
    words = [sys.executable, "-c", "from cli.app import main; main()", "best", "--verify", str(exported), "--json"]
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PROSEG_HOME": str(home)}
    done = subprocess.run(
        [words[0], "-P", *words[1:]], cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["equal"]) == (0, True), done.stderr


@pytest.mark.slow
def test_what_is_wrong_in_the_fresh_process_is_one_sentence(model: Path, home: Path):
    (model / "data.json").write_text("[]")
    with pytest.raises(StudyError, match=r"data\.json cannot be read"):
        verify(model, home)


# The command


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("PROSEG_HOME", str(home))
    monkeypatch.setattr(verifying, "in_fresh_process", in_this_process)
    return lambda *words: CliRunner().invoke(app, ["best", *map(str, words)])


def test_the_command_prints_the_table_and_the_outcome(exported: Path, run):
    result = run("--verify", exported)
    assert result.exit_code == 0, result.output
    assert "verified: " in result.output
    assert "cases that differ" in result.output


def test_the_command_as_json(exported: Path, run, store: Store):
    result = run("--verify", exported, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["verified"], found["equal"]) == (0, True, True)
    assert {m["metric"]: m["here"] for m in found["metrics"]} == read_stored(exported).means
    assert found["data"]["fingerprint"] == store.manifest.fingerprint
    assert found["here"]["device"] == "cpu"


def test_what_differs_is_exit_code_1_and_what_cannot_be_is_2(model: Path, run):
    change_weights(model, -1.0)
    result = run("--verify", model)
    assert result.exit_code == 1
    assert "NOT verified" in result.output
    assert json.loads(run("--verify", model, "--json").stdout)["verified"] is False
    (model / "verify.json").unlink()
    assert run("--verify", model).exit_code == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["s1", "--verify", "x"], "leave out a study"),
        (["--verify", "x", "--prefer", "cheap"], "leave out --prefer"),
        (["--verify", "x", "--export", "y", "--force"], "leave out --export and --force"),
        (["--data", "x"], "--data goes with --verify, --export or --champion"),
    ],
)
def test_options_that_do_not_go_together(run, words: list[str], told: str):
    result = run(*words)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
