"""A study's folder: its name, what is read back from it, and how one is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.study import (
    Study,
    StudyError,
    claim_folder,
    find_study,
    read_state,
    read_study,
    write_state,
)  # fmt: skip
from proseg.data.store import Store
from tests.studies import make_study

# Names


def test_a_name_that_is_made_up_is_readable_and_unique(tmp_path: Path):
    names = {claim_folder(tmp_path, "demo", None).name for _ in range(20)}
    assert len(names) == 20
    for name in names:
        space, adjective, noun, number = name.split("-")
        assert space == "demo"
        assert adjective.isalpha()
        assert noun.isalpha()
        assert number.isdigit()


def test_a_spaces_name_is_made_fit_for_a_folder(tmp_path: Path):
    folder = claim_folder(tmp_path, "my spáce/1", None)
    assert folder.is_dir()
    assert folder.parent == tmp_path / "studies"
    assert folder.name.startswith("my-sp-ce-1-")


def test_a_name_that_is_given_is_kept(tmp_path: Path):
    assert claim_folder(tmp_path, "demo", "night_1.b").name == "night_1.b"


@pytest.mark.parametrize("name", ["", "..", ".hidden", "-x", "a/b", "a b", "ü", "a\n", "x" * 300])
def test_a_name_that_cannot_be_a_folders_is_refused(tmp_path: Path, name: str):
    with pytest.raises(StudyError, match=r"--study"):
        claim_folder(tmp_path, "demo", name)
    assert not list(tmp_path.glob("studies/*"))


def test_a_name_that_is_taken_is_refused(tmp_path: Path, study: Study):
    before = (study.folder / "study.json").read_bytes()
    with pytest.raises(StudyError, match=r"'s1' already exists.*--study"):
        claim_folder(tmp_path, "demo", "s1")
    assert (study.folder / "study.json").read_bytes() == before


# Reading back


def test_a_study_is_read_back_as_it_was(study: Study):
    assert read_study(study.folder) == study


def test_values_of_a_trial_make_its_configuration(study: Study):
    config = study.config_of({"optim.lr": 0.005})
    assert config.optim.lr == 0.005
    assert config.model.width == 4
    assert config.epochs == 2


def test_the_digest_is_that_of_the_content_of_a_space(tmp_path: Path, store: Store, study: Study):
    elsewhere = study.space.model_copy(update={"file": "other/test.toml"})
    assert study.model_copy(update={"space": elsewhere}).space_digest == study.space_digest
    assert make_study(tmp_path, store, name="s2", fold=1).space_digest != study.space_digest


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"name": 1}', b"\xff"])
def test_a_damaged_manifest_is_named(tmp_path: Path, study: Study, content: bytes):
    (study.folder / "study.json").write_bytes(content)
    for attempt in (lambda: read_study(study.folder), lambda: find_study(tmp_path, "s1")):
        with pytest.raises(StudyError, match=r"study\.json is damaged") as error:
            attempt()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff"])
def test_a_damaged_study_does_not_stand_in_the_way_of_the_latest(
    tmp_path: Path, store: Store, study: Study, content: bytes
):
    damaged = make_study(tmp_path, store, name="damaged")
    (damaged.folder / "study.json").write_bytes(content)
    assert find_study(tmp_path, None).name == "s1"
    with pytest.raises(StudyError, match=r"damaged.*study\.json"):
        find_study(tmp_path, "damaged")
    (study.folder / "study.json").write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.json"):
        find_study(tmp_path, None)


def test_a_folder_without_a_manifest_is_no_study(tmp_path: Path):
    with pytest.raises(StudyError, match=r"not the folder of a study.*study\.json"):
        read_study(tmp_path)


# Finding


def test_the_latest_is_found_without_a_name(tmp_path: Path, store: Store):
    for name, created in (("b", 2.0), ("c", 3.0), ("a", 1.0)):
        make_study(tmp_path, store, name=name, created=created)
    assert find_study(tmp_path, None).name == "c"
    assert find_study(tmp_path, "a").name == "a"


def test_an_unknown_study_lists_those_there_are(tmp_path: Path, store: Store):
    for name in ("b", "a"):
        make_study(tmp_path, store, name=name)
    with pytest.raises(StudyError, match=r"no study 'x'.*there are a, b"):
        find_study(tmp_path, "x")


@pytest.mark.parametrize("name", [None, "x"])
def test_an_empty_workspace_says_how_to_begin(tmp_path: Path, name: str | None):
    with pytest.raises(StudyError, match=r"no study.*launch demo.*PROSEG_HOME"):
        find_study(tmp_path, name)


# State


@pytest.mark.parametrize("state", ["finished", "interrupted", "failed"])
def test_a_state_that_was_written_is_read(study: Study, state):
    write_state(study, state)
    assert read_state(study) == state


def test_a_study_runs_as_long_as_its_process(study: Study):
    write_state(study, "running")
    assert read_state(study) == "running"
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (study.folder / "state.json").write_text(json.dumps({"state": "running", "pid": int(ended.stdout)}))
    assert read_state(study) == "interrupted"


def test_a_study_without_a_state_was_interrupted(study: Study):
    os.remove(study.folder / "state.json")
    assert read_state(study) == "interrupted"
