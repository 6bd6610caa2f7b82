"""A study's folder: its name, what is read back from it, and how one is found."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.study import (
    Point,
    Study,
    StudyError,
    alone,
    claim_folder,
    died,
    find_study,
    located,
    read_state,
    read_study,
    studies_on,
    write_state,
    write_study,
)  # fmt: skip
from proseg.data.store import Store
from proseg.errors import DataError
from tests.studies import make_store, make_study

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


def test_what_is_given_to_a_study_is_read_back_too(study: Study):
    points = Point(values={"optim.lr": 0.002, "model.tau_size": 3}, origin="the paper"), Point(values={}, origin="")
    changes = {
        "points": points,
        "max_time": 60.0,
        "budget": 2.5,
        "epoch_timeout": 10.0,
        "storage": f"sqlite:///{study.folder}/there.db",
    }
    changed = study.model_copy(update=changes)
    write_study(changed)
    assert read_study(study.folder) == changed != study
    assert type(read_study(study.folder).points[0].values["model.tau_size"]) is int


# What is moved and renamed


@pytest.fixture
def whole(tmp_path: Path) -> Study:
    """A study on data of its own workspace, with a database there, as it is read back."""
    home = tmp_path / "home"
    store = make_store(home / "prepared" / "blobs")
    study = make_study(home, store, final=[{"data": "blobs", "epochs": 2}])
    write_study(study.model_copy(update={"storage": f"sqlite:///{home}/all.db?timeout=30"}))
    return read_study(study.folder)


def as_earlier_versions_kept_it(study: Study) -> None:
    """By whole paths."""
    kept = study.model_dump_json(indent=1, exclude={"begun_as"})
    (study.folder / "study.json").write_text(kept)


def test_what_lies_in_the_workspace_is_kept_by_its_place_there(whole: Study):
    kept = json.loads((whole.folder / "study.json").read_text())
    assert kept["data"]["folder"] == kept["finals"][0]["data"]["folder"] == "prepared/blobs"
    assert kept["storage"] == "sqlite:///all.db?timeout=30"


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_a_workspace_that_was_moved_goes_on(whole: Study, tmp_path: Path, earlier: bool, copied: bool):
    if earlier:
        as_earlier_versions_kept_it(whole)
    home = tmp_path / "a %20 place?" / "new"
    shutil.copytree(whole.home, home)
    if not copied:
        shutil.rmtree(whole.home)
    study = find_study(home, "s1")
    assert [ref.folder for ref in study.sets] == [home / "prepared" / "blobs"] * 2
    assert study.storage == f"sqlite:///{home}/all.db?timeout=30"
    assert study.sets[1].store().manifest.slices == 16
    write_study(study)
    assert read_study(study.folder) == study
    assert studies_on(home, [home / "prepared" / "blobs"]) == [study]
    newer = home.rename(tmp_path / "newer")
    assert find_study(newer, "s1").data.folder == newer / "prepared" / "blobs", "and once more"


def test_a_study_that_was_moved_alone_keeps_its_data_and_its_database(whole: Study, tmp_path: Path):
    (whole.home / "all.db").touch()
    there = tmp_path / "other" / "studies" / "s1"
    there.parent.mkdir(parents=True)
    whole.folder.rename(there)
    study = find_study(tmp_path / "other", "s1")
    assert (study.folder, study.sets, study.storage) == (there, whole.sets, whole.storage)


def test_a_study_that_was_renamed_has_its_new_name_and_is_known_by_its_first(whole: Study):
    renamed = whole.folder.rename(whole.folder.with_name("night"))
    study = find_study(whole.home, "night")
    assert (study.name, study.key, study.folder) == ("night", "s1", renamed)
    write_study(study)
    renamed.rename(renamed.with_name("day"))
    assert (find_study(whole.home, None).name, find_study(whole.home, None).key) == ("day", "s1")
    with pytest.raises(StudyError, match=r"study day was begun as 's1'.*choose another --study"):
        claim_folder(whole.home, "demo", "s1")
    (whole.folder.with_name("day")).rename(whole.folder)
    assert read_study(whole.folder) == whole


def test_data_that_were_renamed_in_the_workspace_are_found(whole: Study):
    there = whole.home / "prepared" / "others"
    whole.data.folder.rename(there)
    assert [ref.folder for ref in find_study(whole.home, "s1").sets] == [there] * 2


def test_data_that_lie_outside_are_asked_for_and_named(whole: Study, tmp_path: Path):
    outside = whole.data.folder.rename(tmp_path / "outside")
    study = find_study(whole.home, "s1")
    with pytest.raises(DataError, match=r"blobs, are not in .*/prepared/blobs any more: .*resume STUDY --data FOLDER"):
        study.data.store()
    assert [ref.folder for ref in located(study, [str(outside)]).sets] == [outside] * 2
    other = make_store(tmp_path / "other", patients=9)
    with pytest.raises(StudyError, match=r"--data .*other has another fingerprint than the data of study s1 \(blobs\)"):
        located(study, [str(other.folder)])
    with pytest.raises(DataError, match="there is no data set 'nowhere'"):
        located(study, ["nowhere"])


def test_a_database_that_an_earlier_version_kept_relative_is_not_made_a_second_time(
    whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    as_earlier_versions_kept_it(whole.model_copy(update={"storage": "sqlite:///mine.db"}))
    monkeypatch.chdir(tmp_path)
    assert read_study(whole.folder).storage == f"sqlite:///{whole.home}/mine.db", "a new one lies in the workspace"
    (tmp_path / "mine.db").touch()
    assert read_study(whole.folder).storage == f"sqlite:///{tmp_path}/mine.db"


def test_objectives_are_as_many_as_the_space_names(tmp_path: Path, store: Store, study: Study):
    assert [(one.metric, one.maximize) for one in study.criteria] == [("ged", False)]
    two = make_study(tmp_path, store, name="s2", second_objective={"metric": "dice_mean"})
    assert [(one.metric, one.maximize) for one in two.criteria] == [("ged", False), ("dice_mean", True)]
    assert two.second == two.criteria[1]


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


def test_of_a_process_on_another_machine_nothing_is_known(study: Study):
    record = {"state": "running", "pid": 2**22 + 1, "host": "another machine"}
    (study.folder / "state.json").write_text(json.dumps(record))
    assert read_state(study) == "running"


# One process at a time

HOLD = """
import sys
from pathlib import Path
from orchestrator.study import alone, read_study
with alone(read_study(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(study: Study) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs the study."""
    command = [sys.executable, "-c", HOLD, str(study.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_study_is_run_by_one_process_at_a_time(study: Study, holder: subprocess.Popen[str]):
    refused = pytest.raises(StudyError, match=r"s1 is running already; .*status s1.*stop s1")
    with refused, alone(study):
        raise AssertionError("both run it")
    holder.communicate("end")
    with alone(study):
        pass


def test_a_process_that_was_killed_does_not_stand_in_the_way(study: Study, holder: subprocess.Popen[str]):
    """Nor does another that has got its number since: the lock tells, whatever the record says."""
    write_state(study, "running")  # with the number of this process, which lives
    assert read_state(study) == "running"
    assert not died(study)
    holder.kill()
    holder.wait()
    assert read_state(study) == "interrupted"
    assert died(study)
    with alone(study):
        assert read_state(study) == "running"


def test_where_files_have_no_locks_the_number_of_the_process_has_to_do(study: Study, monkeypatch: pytest.MonkeyPatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with alone(study):
        write_state(study, "running")
        monkeypatch.setattr("orchestrator.study.fcntl.flock", flock)
        assert read_state(study) == "running"
        monkeypatch.setattr("psutil.pid_exists", lambda pid: False)
        assert read_state(study) == "interrupted"
        monkeypatch.undo()


def test_a_study_is_let_go_after_an_error(study: Study):
    with pytest.raises(ZeroDivisionError), alone(study):
        raise ZeroDivisionError
    with alone(study), pytest.raises(StudyError, match="running already"), alone(study):
        pass


def test_a_study_without_a_state_was_interrupted(study: Study):
    os.remove(study.folder / "state.json")
    assert read_state(study) == "interrupted"
