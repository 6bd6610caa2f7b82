"""The exported folder: whole, honest about what it rests on, and never in the place of something else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import proseg
from orchestrator import export as exporting
from orchestrator.export import best_record, export, winner
from orchestrator.study import Study, StudyError
from proseg.data.store import Store
from proseg.errors import ProSegError
from tests.studies import (
    ENVIRONMENT,
    LABEL,
    LICENCE,
    RATERS,
    SIDE,
    add_trial,
    confirm,
    make_store,
    make_study,
    train_fold,
    train_trial,
    tree,
)  # fmt: skip

FILES = {"model.safetensors", "config.json", "data.json", "metrics.json", "environment.json", "README.md",
         "verify.json"}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("data") / "blobs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Study:
    """A study with a trained winner and two folds of a final stage; tests must not change it."""
    study = make_study(tmp_path_factory.mktemp("home"), store)
    trial = train_trial(study)
    add_trial(study, 1, None, "failed", reason="the loss is not finite")
    for fold in (0, 1):
        train_fold(study, trial, fold)
    return study


@pytest.fixture
def study(finished: Study, tmp_path: Path) -> Study:
    """A copy that may be changed."""
    folder = shutil.copytree(
        finished.folder, tmp_path / "home/studies/s1", ignore=shutil.ignore_patterns("export.json")
    )
    return finished.model_copy(update={"folder": folder})


@pytest.fixture(scope="module")
def exported(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "deep" / "model"
    export(finished, folder)
    return folder


# What is in it


def test_the_folder_is_whole(exported: Path):
    assert {path.name for path in exported.iterdir()} == FILES
    assert list(exported.parent.iterdir()) == [exported], "nothing half-written beside it"


def test_the_card_says_what_the_model_rests_on(exported: Path, store: Store):
    card = (exported / "README.md").read_text()
    for fact in (LABEL, LICENCE, store.manifest.fingerprint, "study s1", "not a medical device", "trial 0",
                 "proseg.load", "safetensors", "optim.lr", "git 0123456789ab"):  # fmt: skip
        assert fact.lower() in card.lower()


def test_the_card_has_the_table_of_the_folds(exported: Path):
    assert "| blobs | 2 (one a rater) | 2 | 8 | 0.2000 ± 0.0000 |" in (exported / "README.md").read_text()


def test_numbers_data_and_versions_are_there(exported: Path, finished: Study, store: Store):
    metrics, data = (json.loads((exported / name).read_text()) for name in ("metrics.json", "data.json"))
    assert [fold["metrics"]["ged"] for fold in metrics["folds"]] == [0.2, 0.2]
    assert (metrics["study"], metrics["trial"], metrics["retrained"]) == ("s1", 0, True)
    assert (data["fingerprint"], data["label"]) == (store.manifest.fingerprint, LABEL)
    assert json.loads((exported / "environment.json").read_text()) == ENVIRONMENT
    config = json.loads((exported / "config.json").read_text())
    assert config == best_record(finished)["config"]


def test_it_says_no_machines_path(exported: Path, store: Store):
    everything = b"".join(tree(exported).values())
    assert str(store.folder).encode() not in everything


def test_it_loads_in_three_lines_in_another_place(exported: Path, tmp_path: Path):
    elsewhere = shutil.copytree(exported, tmp_path / "elsewhere")
    model = proseg.load(elsewhere)
    image = np.full((SIDE, SIDE), -500.0)
    result = model.predict(image, samples=3)
    assert result.raters.shape == (RATERS, SIDE, SIDE)
    assert result.mean.shape == (SIDE, SIDE)
    assert result.samples.shape == (3, SIDE, SIDE)
    for values in (result.raters, result.mean, result.samples):
        assert ((values >= 0) & (values <= 1)).all()
    np.testing.assert_array_equal(result.samples, model.predict(image, samples=3).samples)


def test_the_weights_are_those_of_the_fold_that_was_searched_on(exported: Path, finished: Study):
    weights = (exported / "model.safetensors").read_bytes()
    assert weights == (finished.final_folder("blobs", 0) / "best.safetensors").read_bytes()
    assert weights != (finished.trial_folder(0) / "best.safetensors").read_bytes()


def test_without_a_final_stage_the_trials_weights_are_taken_and_said_so(study: Study, tmp_path: Path):
    shutil.rmtree(study.folder / "final")
    export(study, tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert weights == (study.trial_folder(0) / "best.safetensors").read_bytes()
    assert "NOT evaluated on held-out patients" in (tmp_path / "out" / "README.md").read_text()
    assert proseg.load(tmp_path / "out").data["label"] == LABEL


def test_the_record_of_the_best_says_where_it_was_exported_to(study: Study, tmp_path: Path):
    assert best_record(study)["export"] is None
    export(study, tmp_path / "out")
    assert best_record(study)["export"] == str(tmp_path / "out")


# Who wins


@pytest.fixture
def searched(tmp_path: Path, store: Store) -> Study:
    """The second of its trials is the best of the search."""
    study = make_study(tmp_path / "home", store)
    train_trial(study, 0)
    train_trial(study, 1)
    add_trial(study, 1, 0.01)
    add_trial(study, 2, 0.001, "stopped early")
    return study


def test_the_best_of_the_search_wins_where_nothing_was_compared(searched: Study):
    assert winner(searched).number == 1
    assert best_record(searched)["confirmation"] is None


def test_a_choice_that_is_not_in_the_log_gives_way_to_the_best_of_the_search(searched: Study):
    confirm(searched, leader=7, chosen=8)
    assert winner(searched).number == 1


def test_the_one_that_the_comparison_chose_wins(searched: Study):
    confirm(searched, leader=1, chosen=0)
    assert winner(searched).number == 0
    record = best_record(searched)
    assert (record["trial"], record["values"]["optim.lr"]) == (0, 0.001)
    assert record["objective"]["value"] == winner(searched).objective
    assert (record["confirmation"]["leader"], record["confirmation"]["chosen"]) == (1, 0)
    assert "t000 is taken as the cheaper of equals" in record["confirmation"]["sentence"]
    json.dumps(record, allow_nan=False)


def test_the_weights_that_are_exported_are_the_winners(searched: Study, tmp_path: Path):
    confirm(searched, leader=1, chosen=0)
    export(searched, tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert weights == (searched.trial_folder(0) / "best.safetensors").read_bytes()
    assert "trial 0" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["trial"] == 0


def test_the_front_of_two_objectives_is_told(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store, second_objective={"metric": "dice_mean"})
    for number, (ged, dice) in enumerate([(0.3, 0.9), (0.2, 0.8), (0.4, 0.85)]):
        add_trial(study, number, ged, second=dice)
    record = best_record(study)
    assert record["front"] == [{"trial": 1, "objectives": [0.2, 0.8]}, {"trial": 0, "objectives": [0.3, 0.9]}]
    assert record["trial"] == 1, "the best in the first objective"


def test_without_a_second_objective_there_is_no_front(searched: Study):
    assert best_record(searched)["front"] == []


# What stands there already


@pytest.mark.parametrize("content", [{}, {"notes.txt": "mine"}])
def test_a_folder_that_exists_is_left_alone(study: Study, tmp_path: Path, content: dict[str, str]):
    target = tmp_path / "out"
    target.mkdir()
    for name, text in content.items():
        (target / name).write_text(text)
    before = tree(tmp_path)
    with pytest.raises(StudyError, match=r"--export .*out exists.*--force"):
        export(study, target)
    assert tree(tmp_path) == before


def test_force_replaces_an_export(study: Study, tmp_path: Path):
    export(study, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("an older one")
    export(study, tmp_path / "out", force=True)
    assert LABEL in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["notes.txt", "deep/notes.txt"])
def test_force_does_not_replace_what_is_no_export(study: Study, tmp_path: Path, name: str):
    export(study, tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(StudyError, match="not an export of this program"):
        export(study, tmp_path / "out", force=True)
    assert tree(tmp_path) == before


def test_force_does_not_replace_a_file(study: Study, tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StudyError, match="not an export of this program"):
        export(study, tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_one_sentence(study: Study, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ProSegError, match="--export"):
        export(study, tmp_path / "file" / "out")


# What can fail


@pytest.mark.parametrize("force", [False, True])
def test_an_export_that_fails_leaves_what_was_there(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
):
    if force:
        export(study, tmp_path / "out")
    before = tree(tmp_path)

    def fail(*args: object) -> str:
        raise OSError("no space left on the disk")

    monkeypatch.setattr(exporting, "_card", fail)
    with pytest.raises((OSError, ProSegError), match="no space"):
        export(study, tmp_path / "out", force=force)
    assert tree(tmp_path) == before


def test_a_study_without_a_finished_trial_has_nothing_to_export(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store)
    add_trial(study, 0, None, "failed", reason="the loss is not finite")
    with pytest.raises(StudyError, match="no finished trial"):
        export(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["best.safetensors", "data"])
def test_damaged_sources_are_named_and_nothing_is_written(study: Study, tmp_path: Path, damage: str):
    if damage == "data":
        study = study.model_copy(update={"data": study.data.model_copy(update={"folder": tmp_path / "gone"})})
    else:
        (study.final_folder("blobs", 0) / damage).write_bytes(b"\0" * 100)
    with pytest.raises(ProSegError, match=r"best\.safetensors|gone"):
        export(study, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
