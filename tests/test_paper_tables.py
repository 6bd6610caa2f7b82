"""The paper's tables and figures with a study's own numbers; what is published is marked, and stands beside them."""

import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.report import cost, figures, paper_tables, published
from orchestrator.report.parts import Figure, Section, Table
from orchestrator.results import FoldResult, read_results
from orchestrator.study import Study, StudyError, write_study
from orchestrator.tables import final_markdown
from proseg.checkpoint import load_checkpoint
from proseg.data.store import Store
from proseg.records import BEST, write_atomically
from proseg.train import model_of
from tests.studies import (
    LABEL,
    add_trial,
    confirm,
    fold_result,
    make_store,
    make_study,
    train_fold,
    train_trial,
    write_epochs,
)  # fmt: skip

SIMULATED, STANDIN = "real contours, simulated intensities", "NPC stand-in: synthetic volumes, no patient, no expert"
SWITCHES = {"model.use_tau": {"kind": "choice", "values": [True, False]},
            "model.use_z": {"kind": "choice", "values": [True, False]}}  # fmt: skip


def like_the_paper(fold: int, label: str = SIMULATED, **changes) -> FoldResult:
    """A fold of data that are like one of the paper's, with four raters."""
    result = fold_result(fold, label=label, samples=4, **changes)
    return FoldResult(**{**vars(result), "metrics": result.metrics | {"dice_a3": 0.9, "dice_a4": 0.9}})


def tables(section: Section) -> list[Table]:
    return [part for part in section.parts if isinstance(part, Table)]


def rows(table: Table) -> list[dict]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def words(section: Section) -> str:
    return " ".join(section.text)


# What is published


def test_the_published_decomposition_adds_up():
    for row in published.DECOMPOSED["npc"].rows:
        m = row.metrics
        assert 2 * m["d_pa"] - m["d_pp"] - m["d_aa"] == pytest.approx(m["ged"], abs=3e-4), row.method


@pytest.mark.parametrize("kind", ["lidc", "npc"])
def test_the_published_mean_is_that_of_the_raters(kind: published.Kind):
    for row in published.FINAL[kind].rows:
        if "dice_a1" in row.metrics and (kind, row.method) != ("npc", "CM-Global"):  # whose row the paper gets wrong
            raters = [row.metrics[f"dice_a{rater}"] for rater in (1, 2, 3, 4)]
            assert np.mean(raters) == pytest.approx(row.metrics["dice_mean"], abs=1.5e-4), row.method


def test_published_tables_agree_with_each_other():
    final = {row.method: row.metrics for row in published.FINAL["npc"].rows}
    for row in published.DECOMPOSED["npc"].rows:
        assert final[row.method]["ged"] == row.metrics["ged"]
    both = next(row for row in published.ABLATION["npc"].rows if row.method == "both").metrics
    assert {name: final["ProSeg"][name] for name in both} == both


def test_known_published_numbers():
    lidc = {row.method: row for row in published.FINAL["lidc"].rows}
    assert lidc["ProSeg (prior)"].metrics == pytest.approx(
        {"ged": 0.1077, "dice_soft": 0.9162, "dice_max": 0.9146, "dice_match": 0.9143}
    )
    assert lidc["U-Net (A3)"].metrics["ged"] == 0.2436
    assert "dice_max" not in lidc["U-Net (A3)"].metrics
    assert [len(published.FINAL[kind].rows) for kind in ("lidc", "npc")] == [13, 13]
    same = [row.metrics["dice_mean"] == row.metrics["dice_match"] for table in published.FINAL.values()
            for row in table.rows if row.samples == published.EACH]  # fmt: skip
    assert (sum(same), len(same)) == (10, 12)


def test_data_are_known_by_the_labels_that_their_sources_give_them():
    from proseg.data import lidc_contours, lidc_dicom, lidc_pickle, npc

    labels = {lidc_contours.LABEL, lidc_dicom.LABEL, lidc_pickle.LABEL, npc.LABEL, npc.STANDIN_LABEL}
    assert set(published.LIKE) == labels
    assert published.LIKE[npc.STANDIN_LABEL].differs == "other data"
    assert "other images" in published.LIKE[lidc_contours.LABEL].differs


# Tables 1 and 3


def test_the_numbers_are_those_of_the_final_table(study: Study):
    results = [like_the_paper(0, ged=0.1, dice=0.8), like_the_paper(1, ged=0.3, dice=0.9)]
    (table,) = tables(paper_tables.final(study, results))
    personal, prior = (row for row in rows(table) if row["numbers"] == "this study")
    assert personal["GED"] == prior["GED"] == "0.2000 ± 0.1000"
    assert personal["D_mean"] == "85.00 ± 5.00"
    assert (prior["GED_U"], prior["D_mean"]) == ("0.1000 ± 0.0500", None)
    markdown = final_markdown(study, results)
    for row in (personal, prior):
        for name in ("GED", "D_soft", "D_max", "D_match"):
            assert f"| {row[name]} |" in markdown


def test_what_is_published_is_marked_and_stands_with_rows_of_equal_s(study: Study):
    (table,) = tables(paper_tables.final(study, [like_the_paper(0)]))
    found = rows(table)
    assert [row["S"] for row in found] == ["4 (one a rater)"] * 7 + ["50 (prior)"] * 4 + ["1 (one U-Net)"] * 4
    assert [row["numbers"] == "this study" for row in found] == [True, *[False] * 6, True, *[False] * 7]
    for row in found:
        assert row["numbers"] in ("this study", "published: other images, other split")
    ours, theirs = found[0], next(row for row in found if row["method"] == "ProSeg")
    assert (theirs["GED"], theirs["D_soft"], theirs["D_A1"], theirs["GED_U"]) == ("0.1152", "91.53", "89.49", None)
    assert ours["GED"] == "0.2000"
    assert SIMULATED in table.caption
    notes = " ".join(table.notes)
    for said in ("Table 1", "LIDC-IDRI", "by slice", "Not measured here", "the paper states 50 only", "4 of 6 rows"):
        assert said in notes


def test_another_number_of_samples_stands_apart(study: Study):
    """Two raters: no published row was sampled twice."""
    (table,) = tables(paper_tables.final(study, [fold_result(0, label=STANDIN)]))
    alone = [row for row in rows(table) if row["S"] == "2 (one a rater)"]
    assert [row["numbers"] for row in alone] == ["this study"]
    assert {row["numbers"] for row in rows(table)} == {"this study", "published: other data"}
    assert "Table 3" in " ".join(table.notes)


def test_nothing_published_stands_beside_data_of_ones_own(study: Study):
    (table,) = tables(paper_tables.final(study, [fold_result(0)]))
    assert {row["numbers"] for row in rows(table)} == {"this study"}
    assert "none of the paper's data sets" in table.notes[0]
    assert LABEL in table.caption


def test_every_data_set_has_its_table(study: Study):
    results = [like_the_paper(0), like_the_paper(0, label=STANDIN, data="npc_1.5")]
    found = tables(paper_tables.final(study, results))
    assert [table.name for table in found] == ["final-blobs", "final-npc_1.5"]


def test_without_a_final_stage_it_says_so(study: Study):
    section = paper_tables.final(study, [])
    assert section.parts == ()
    assert words(section).startswith("Not run: no fold of a final stage has been evaluated")


# Table 2


def arm(study: Study, number: int, value: float, **values) -> None:
    """A trial with these switches, whose best epoch is its first."""
    from orchestrator.results import Trial, TrialLog

    searched = {"optim.lr": 0.001, "model.tau_size": 2} | values
    TrialLog(study.folder).append(Trial(number, searched, "complete", 2, value))
    scores = {"val/dice_soft": 0.7, "val/dice_max": 0.8, "val/dice_match": 0.6}
    write_epochs(study.trial_folder(number), [value, value + 0.1], **scores)


def test_the_best_trial_of_each_choice_of_latents_is_in_the_ablation(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store, search={**SWITCHES, "optim.lr": {"kind": "float", "low": 1e-3, "high": 1e-2},
                                                "model.tau_size": {"kind": "int", "low": 2, "high": 4}})  # fmt: skip
    arm(study, 0, 0.30, **{"model.use_tau": True, "model.use_z": True})
    arm(study, 1, 0.25, **{"model.use_tau": True, "model.use_z": True})
    arm(study, 2, 0.40, **{"model.use_tau": False, "model.use_z": True})
    arm(study, 3, 0.50, **{"model.use_tau": False, "model.use_z": False})
    section = paper_tables.ablation(study)
    (table,) = tables(section)
    found = {row["latents"]: (row["GED"], row["D_soft"], row["trial"], row["of trials"]) for row in rows(table)}
    assert found == {
        "neither": ("0.5000", "70.00", "t003", 1), "z": ("0.4000", "70.00", "t002", 1),
        "both": ("0.2500", "70.00", "t001", 2),
    }  # fmt: skip
    assert "Not run: tau." in words(section)
    assert "chosen by what is shown" in words(section)
    assert "validation patients" in table.caption
    assert LABEL in table.caption


@pytest.mark.parametrize(("label", "beside"), [(STANDIN, 4), (SIMULATED, 0), (LABEL, 0)])
def test_the_published_ablation_stands_beside_data_like_npc_only(tmp_path: Path, store: Store, label: str, beside: int):
    study = make_study(tmp_path, store, search={**SWITCHES, "optim.lr": {"kind": "float", "low": 1e-3, "high": 1e-2}})
    study = study.model_copy(update={"data": study.data.model_copy(update={"label": label})})
    write_study(study)
    arm(study, 0, 0.30, **{"model.use_tau": True})
    arm(study, 1, 0.40, **{"model.use_tau": False})
    (table,) = tables(paper_tables.ablation(study))
    assert len([row for row in rows(table) if row["numbers"] != "this study"]) == beside


def test_a_search_without_switches_has_no_ablation(study: Study):
    assert "Not run: no trial has a score yet." in words(paper_tables.ablation(study))
    add_trial(study, 0, 0.2)
    section = paper_tables.ablation(study)
    assert "every trial with a score has the same latents (both)" in words(section)
    assert section.parts == ()


# Table 9


def with_parts(result: FoldResult) -> FoldResult:
    parts = {"ged": 0.2, "d_pp": 0.1, "d_pa": 0.25, "d_aa": 0.2}
    prior = {f"prior_{name}": value for name, value in parts.items()}
    return FoldResult(**{**vars(result), "metrics": result.metrics | parts | prior})


def test_ged_is_decomposed(study: Study):
    (table,) = tables(paper_tables.decomposed(study, [with_parts(like_the_paper(fold)) for fold in (0, 1)]))
    personal, prior = rows(table)
    assert [personal[name] for name in ("GED", "d_pp", "d_pa", "d_aa")] == [
        "0.2000 ± 0.0000", "0.1000 ± 0.0000", "0.2500 ± 0.0000", "0.2000 ± 0.0000",
    ]  # fmt: skip
    assert (personal["S"], prior["S"]) == ("4 (one a rater)", "50 (prior)")
    assert table.notes == ("The paper has no such table for data like blobs.",)


def test_the_published_decomposition_stands_beside_data_like_npc(study: Study):
    (table,) = tables(paper_tables.decomposed(study, [with_parts(like_the_paper(0, label=STANDIN))]))
    theirs = next(row for row in rows(table) if row["method"] == "D-Persona (I)")
    assert (theirs["S"], theirs["d_pp"], theirs["numbers"]) == ("50 (prior)", "0.2212", "published: other data")


def test_parts_that_were_not_recorded_are_missed(study: Study):
    section = paper_tables.decomposed(study, [fold_result(0)])
    assert section.parts == ()
    assert "not recorded" in words(section)


def test_before_the_final_stage_the_parts_are_those_of_the_validation(study: Study):
    assert "no trial has come to a score" in words(paper_tables.decomposed(study, []))
    add_trial(study, 0, 0.3)
    write_epochs(study.trial_folder(0), [0.3, 0.4], **{"val/d_pp": 0.11, "val/d_pa": 0.22, "val/d_aa": 0.03})
    section = paper_tables.decomposed(study, [])
    (table,) = tables(section)
    assert [rows(table)[0][name] for name in ("method", "GED", "d_pp")] == ["t000", "0.3000", "0.1100"]
    assert "VALIDATION" in table.caption
    assert "no fold of a final stage" in words(section)


# Table 6


def test_the_cost_of_stages_and_trials_is_added_up(study: Study):
    add_trial(study, 0, 0.2, seconds=100.0, cost=0.5, memory=3 * 2**30, epoch_seconds=40.0)
    add_trial(study, 1, 0.3, seconds=50.5, cost=0.25, memory=2**30)
    confirm(study, leader=0, chosen=1)
    for number, flops in ((0, 2e9), (1, 1e9)):
        folder = study.confirm_folder(number, 0)
        write_epochs(folder, [0.2, 0.1])
        record = {"trial": number, "repeat": 0, "patients": [], "values": [], "cost": flops}
        write_atomically(folder / "result.json", json.dumps(record).encode())
    stages, trials = tables(cost.section(study, [], []))
    found = {row["stage"]: row for row in rows(stages)}
    assert found["search"]["training, s"] == 150  # to the even one
    assert found["search"]["CPU-hours"] == 0.75
    assert found["total"]["GPU memory, MiB"] == 3072
    assert (found["confirmation"]["trainings"], found["confirmation"]["epochs"]) == (2, 4)
    assert (found["total"]["trainings"], found["total"]["epochs"]) == (4, 8)
    assert "final stage" not in found
    assert [row["GFLOPs a slice"] for row in rows(trials)] == [2.0, 1.0]
    assert [row["weights"] for row in rows(trials)] == [None, None], "their files are no checkpoints"
    assert all(LABEL in table.caption for table in (stages, trials))


def test_what_was_not_recorded_is_said(study: Study):
    section = cost.section(study, [], [])
    assert "GPU memory was not recorded: this study ran on CPUs." in words(section)
    add_trial(study, 0, 0.2)
    assert "none was" in " ".join(tables(cost.section(study, [], []))[1].notes)


def test_published_costs_stand_apart_and_only_beside_data_like_the_papers(study: Study):
    assert "cost-published" not in {table.name for table in tables(cost.section(study, [fold_result(0)], []))}
    table = tables(cost.section(study, [like_the_paper(0)], []))[-1]
    assert table.name == "cost-published"
    assert {row["numbers"] for row in rows(table)} == {"published: other machine"}
    assert "RTX 4090" in table.notes[0]


# Figures


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, store: Store) -> tuple[Study, list[figures.Experts]]:
    """A study with a trained final fold, and its figures; tests must not change it."""
    study = make_study(tmp_path_factory.mktemp("home"), store)
    train_fold(study, train_trial(study), 0)
    return study, figures.experts(study)


@pytest.fixture
def copied(reported: tuple[Study, list[figures.Experts]], tmp_path: Path) -> Study:
    folder = shutil.copytree(reported[0].folder, tmp_path / "home/studies/s1")
    return reported[0].model_copy(update={"folder": folder})


def never(*arguments: object) -> None:
    raise AssertionError("drawn again")


def names(found: Iterable[Figure]) -> list[str]:
    return [figure.name for figure in found]


FIGURES = ["blobs-outlines", "blobs-distances", "blobs-ranks", "blobs-tau", "blobs-uncertainty"]


def test_the_papers_figures_are_drawn_of_held_out_patients(reported: tuple[Study, list[figures.Experts]]):
    (one,) = reported[1]
    assert one.missing is None
    assert one.subject.held_out
    assert names(one.figures) == FIGURES
    for figure in one.figures:
        assert LABEL in figure.caption
        assert len(figure.alternative.split()) > 10
        with Image.open(io.BytesIO(figure.png)) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(2**24) or ()) > 20, "something is drawn"
    (section,) = figures.sections(list(reported[1]))
    assert "held-out test patients of fold 0 of blobs" in words(section)


def test_the_numbers_of_a_figure_are_those_of_the_raters(reported: tuple[Study, list[figures.Experts]], store: Store):
    """The blobs' raters are sorted by radius: A1 always draws the smallest."""
    tables_of = {figure.name: figure.table for figure in reported[1][0].figures if figure.table is not None}
    ranks = {(row["who"], row["rater"]): row["rank 1"] for row in rows(tables_of["blobs-ranks"])}
    assert ranks["raters", "A1"] > ranks["raters", "A2"]
    raters = next(row for row in rows(tables_of["blobs-distances"]) if row["who"] == "raters")
    test = store.rows(store.manifest.folds[0].test)
    masks = np.stack([store.annotations(row) for row in test]).astype(bool)
    common, union = (masks[:, 0] & masks[:, 1]).sum((1, 2)), (masks[:, 0] | masks[:, 1]).sum((1, 2))
    assert raters["all pairs"] == pytest.approx((1 - common / union).mean())
    assert all(0 <= row["nearest is the same rater's"] <= 1 for row in rows(tables_of["blobs-tau"]))


def test_they_are_kept_and_not_drawn_again(copied: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "_drawn", never)
    again = figures.experts(copied)[0]
    assert names(again.figures) == FIGURES
    assert again.inference is not None
    assert set(again.inference) == {"a map of each of 2 raters", "50 draws from the prior"}


def test_what_was_kept_is_the_same_as_what_was_drawn(
    copied: Study, reported: tuple[Study, list[figures.Experts]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(figures, "_drawn", never)
    assert figures.experts(copied)[0].figures == reported[1][0].figures


def test_kept_figures_need_the_data_no_more(copied: Study):
    gone = copied.model_copy(update={"data": copied.data.model_copy(update={"folder": Path("/nowhere")})})
    assert names(figures.experts(gone)[0].figures) == FIGURES


@pytest.mark.parametrize("spoil", ["figures.json", "blobs-ranks.png", "text"])
def test_what_was_not_kept_whole_is_drawn_anew(copied: Study, spoil: str, monkeypatch: pytest.MonkeyPatch):
    kept = copied.folder / "figures/blobs"
    if spoil == "text":
        (kept / "figures.json").write_text("[1, 2")
    else:
        (kept / spoil).unlink()
    monkeypatch.setattr(figures, "_drawn", never)
    with pytest.raises(AssertionError, match="drawn again"):
        figures.experts(copied)


def test_another_model_is_drawn_anew(copied: Study, monkeypatch: pytest.MonkeyPatch):
    with open(copied.final_folder("blobs", 0) / BEST, "ab") as file:
        file.write(b"\0")
    monkeypatch.setattr(figures, "_drawn", never)
    with pytest.raises(AssertionError, match="drawn again"):
        figures.experts(copied)


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [("data", "are not in"), ("other data", "no longer holds the data"), ("checkpoint", "cannot be read"),
     ("damaged checkpoint", "is damaged")],
)  # fmt: skip
def test_what_is_gone_is_said_in_one_sentence(copied: Study, tmp_path: Path, lost: str, sentence: str):
    shutil.rmtree(copied.folder / "figures")
    best, changes = copied.final_folder("blobs", 0) / BEST, {}
    if lost == "data":
        changes = {"folder": tmp_path / "moved"}
    if lost == "other data":
        changes = {"fingerprint": "0" * 64}
    if lost == "checkpoint":
        best.unlink()
    if lost == "damaged checkpoint":
        best.write_bytes(b"weights")
    study = copied.model_copy(update={"data": copied.data.model_copy(update=changes)})
    (one,) = figures.experts(study)
    (section,) = figures.sections([one])
    assert section.parts == ()
    assert words(section).startswith("No figure of blobs: ")
    assert sentence in words(section)
    assert not (copied.folder / "figures").exists()


def test_where_nothing_can_be_kept_it_says_so(copied: Study, monkeypatch: pytest.MonkeyPatch):
    from orchestrator.report.drawing import Drawn

    shutil.rmtree(copied.folder / "figures")
    (copied.folder / "figures").write_text("a file of somebody's")
    monkeypatch.setattr(figures, "_drawn", lambda subject: Drawn((), (), {}))
    with pytest.raises(StudyError, match=r"the figures cannot be written into .*figures"):
        figures.experts(copied)
    assert (copied.folder / "figures").read_text() == "a file of somebody's"


def test_without_a_final_stage_validation_patients_are_shown(study: Study):
    assert figures.subjects(study) == []
    assert "there is no model" in words(figures.sections(figures.experts(study))[0])
    add_trial(study, 0, 0.2)
    (subject,) = figures.subjects(study)
    assert not subject.held_out
    assert subject.checkpoint == study.trial_folder(0) / BEST
    assert "validation patients (no final stage was evaluated)" in subject.cases


@pytest.mark.parametrize(
    ("changes", "classes", "left_out"),
    [({"method": "multihead_unet"}, 1, "no tau"), ({"model.use_tau": False}, 3, "no tau"), ({}, 3, "shown as one")],
)
def test_models_without_tau_and_several_classes_can_be_drawn(
    tmp_path: Path, changes: dict, classes: int, left_out: str
):
    from orchestrator.report.drawing import draw
    from proseg.checkpoint import save_checkpoint
    from proseg.distributed import local_device
    from proseg.train import TrainState

    data = make_store(tmp_path / "data", classes=classes, patients=8)
    config = make_study(tmp_path, data).base.with_values(changes)
    state = TrainState.fresh(config, data, local_device())
    save_checkpoint(tmp_path / BEST, state.checkpoint(config, {}, resumable=False))
    drawn = draw(tmp_path / BEST, data, data.manifest.folds[0].test, "blobs", "test patients")
    assert left_out in " ".join(drawn.notes)
    assert ("blobs-tau" in names(drawn.figures)) == (changes == {})


def test_the_weights_of_a_checkpoint_are_counted_without_torch(reported: tuple[Study, list[figures.Experts]]):
    path = reported[1][0].subject.checkpoint
    model = model_of(load_checkpoint(path))
    assert cost.weights(path) == sum(value.numel() for value in model.state_dict().values())
    assert cost.weights(path.with_name("none")) is None


# All of it


def test_every_chapter_is_there_and_every_name_is_a_files(copied: Study, store: Store):
    made = paper_tables.sections(copied)
    assert [section.title.split(" (")[0] for section in made] == [
        "Final stage", "Ablation", "Decomposed GED", "Cost", "Experts",
    ]  # fmt: skip
    assert all(section.text for section in made)
    parts = [part for section in made for part in section.parts]
    everything = [part.name for part in parts] + [
        part.table.name for part in parts if isinstance(part, Figure) and part.table
    ]
    assert all(name.replace("-", "").isalnum() and name.isascii() for name in everything)
    assert len({(type(part), part.name) for part in parts}) == len(parts)
    for table in (part for part in parts if isinstance(part, Table)):
        assert all(len(row) == len(table.columns) for row in table.rows), table.name
    assert "cost-inference" in everything
    assert [result.fold for result in read_results(copied)] == [0]


def test_a_study_without_trials_has_every_chapter_too(study: Study):
    made = paper_tables.sections(study)
    assert len(made) == 5
    assert all(section.text for section in made)
    assert os.listdir(study.folder).count("figures") == 0
