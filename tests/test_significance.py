"""Whether two runs differ: which scores are matched, what is refused, the tests, and the command that tells it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner, Result

from cli.app import app
from orchestrator.export import export
from orchestrator.retrain import evaluate_fold
from orchestrator.scored import Pair, Part, find_run, matched
from orchestrator.significance import compare_pair, goal, holm, interval, metric_order, wilcoxon
from orchestrator.study import Study
from proseg.data.store import Store
from proseg.errors import DataError
from tests.studies import LABEL, make_store, make_study, score_fold, train_trial

PATIENTS, SLICES, CASES_OF_A_FOLD = 32, 2, 16
UNITS = [0.031, -0.012, 0.024, 0.052, -0.023, 0.044, 0.015, 0.027, 0.038, -0.004]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("data") / "blobs", patients=PATIENTS, slices=SLICES)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def scores(seed: int = 0, fold: int = 0, ged: float = 0.0) -> dict[str, Any]:
    """Of the cases of one fold, all runs alike but for noise; `ged` is added to both GEDs."""
    rng = np.random.default_rng([seed, fold])
    noise = rng.normal(0, 0.01, (5, CASES_OF_A_FOLD))
    difficulty = np.random.default_rng(99).normal(0, 0.1, CASES_OF_A_FOLD)
    return {
        "ged": 0.4 + difficulty + noise[0] + ged, "d_pp": 0.2 + noise[1], "d_aa": 0.3 + difficulty,
        "dice_match": 0.7 + noise[2], "dice_a1": 0.7 + noise[3], "prior_ged": 0.5 + difficulty + noise[4] + ged,
    }  # fmt: skip


def study_of(
    home: Path, store: Store, name: str, seed: int = 2, *, ged: float = 0.0, folds: Any = range(4), **changes: Any
):
    study = make_study(home, store, name=name, final=[{"data": str(store.folder), "epochs": 2}])
    for fold in folds:
        score_fold(study, fold, scores(seed, fold, ged), **changes)
    return study


@pytest.fixture
def better(home: Path, store: Store) -> tuple[Study, Study]:
    """Two studies: the GED of the second is clearly smaller, its Dice is not other than by chance."""
    return study_of(home, store, "s1", 1), study_of(home, store, "s2", 2, ged=-0.05)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["compare", *words])


def told(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def refused(*words: str) -> str:
    """The one sentence of a command that ended with a user's mistake."""
    result = run(*words)
    assert not isinstance(result.exception, Exception), repr(result.exception)
    assert (result.exit_code, result.stdout) == (2, "")
    text = " ".join(result.stderr.split())
    assert text.count("error:") == 1
    return text


def pair(patients: list[str], a: dict[str, Any], b: dict[str, Any]) -> Pair:
    count = len(patients)
    cases = np.array([f"c{i}" for i in range(count)])

    def part(values: dict[str, Any]) -> Part:
        arrays = {name: np.array(one, float) for name, one in values.items()}
        return Part("blobs", LABEL, "f" * 64, (2, 50), np.zeros(count, int), np.array(patients), cases, arrays)

    return Pair(part(a), part(b))


def each(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (data,) = record["data"]
    return {one["metric"]: one for one in data["metrics"]}


# The tests


def test_p_is_wilcoxons_exact_one():
    """By hand: of the 2^10 ways to give the ranks a sign, those whose smaller sum is at most the one found."""
    ranks = stats.rankdata(np.abs(UNITS))
    smaller = min(ranks[np.array(UNITS) > 0].sum(), ranks[np.array(UNITS) < 0].sum())
    sums = [sum(r for i, r in enumerate(ranks) if bits >> i & 1) for bits in range(2**10)]
    assert wilcoxon(UNITS) == pytest.approx(2 * sum(s <= smaller for s in sums) / 2**10)


def test_p_of_six_equal_differences_is_one_of_the_two_most_extreme_of_64():
    assert wilcoxon([0.1] * 6) == pytest.approx(2 / 64)


def test_rounding_does_not_break_ties():
    """0.3 - 0.2 and 0.4 - 0.3 are not the same to the last bit."""
    assert wilcoxon([0.3 - 0.2, -(0.4 - 0.3), 0.5, 0.6]) == wilcoxon([0.1, -0.1, 0.5, 0.6])


@pytest.mark.parametrize("units", [[0.0] * 8, [1e-17, -1e-17, 0.0], [0.0], [0.4]])
def test_nothing_that_differs_has_a_p_of_1(units: list[float]):
    assert wilcoxon(units) == 1


def test_the_interval_holds_the_middle_of_the_resampled_means():
    rng = np.random.default_rng(5)
    means = rng.choice(UNITS, (20000, len(UNITS))).mean(1)
    assert interval(UNITS, 0.95) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.001)
    assert interval(UNITS, 0.95) == interval(UNITS, 0.95)


def test_one_patient_has_no_interval():
    assert interval([0.3], 0.95) == (None, None)


def test_holms_correction_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_cases_of_one_patient_are_one_unit():
    patients = ["p0", "p0", "p0", "p1"]
    found = compare_pair(pair(patients, {"ged": [0.1, 0.2, 0.3, 0.5]}, {"ged": [0.2, 0.3, 0.4, 0.9]}), "a", "b")
    (ged,) = found.metrics
    assert (found.cases, found.patients, ged.cases, ged.patients) == (4, 2, 4, 2)
    assert (ged.a, ged.b, ged.difference) == pytest.approx((0.35, 0.6, 0.25))


def test_a_case_that_is_undefined_for_one_is_left_out_for_both():
    nan = float("nan")
    values = {"dice_a1": [0.5, nan, 0.7]}, {"dice_a1": [0.6, 0.1, nan]}
    (one,) = compare_pair(pair(["p0", "p1", "p2"], *values), "a", "b").metrics
    assert (one.cases, one.patients, one.difference) == (1, 1, pytest.approx(0.1))
    assert one.low is None
    assert not one.distinguishable


def test_a_metric_that_is_undefined_everywhere_is_no_test():
    values = {"ged": [0.1, 0.2], "dice_a1": [float("nan")] * 2}
    assert [one.metric for one in compare_pair(pair(["p0", "p1"], values, values), "a", "b").metrics] == ["ged"]


def test_few_patients_tell_nothing_apart_and_it_says_so():
    patients = [f"p{i}" for i in range(5)]
    values = {"ged": [0.1, 0.2, 0.3, 0.4, 0.5]}, {"ged": [0.6, 0.7, 0.8, 0.9, 1.1]}
    found = compare_pair(pair(patients, *values), "a", "b")
    assert not found.metrics[0].distinguishable
    assert found.metrics[0].p == pytest.approx(2 / 32)
    assert any("With 5 patients no p can fall below 0.0625" in note for note in found.notes)


def test_a_patient_in_several_test_parts_counts_once_and_it_says_so():
    one = pair(["p0", "p1", "p0"], {"ged": [0.1, 0.2, 0.3]}, {"ged": [0.2, 0.2, 0.5]})
    for part in (one.a, one.b):
        part.folds[2] = 1
    found = compare_pair(one, "a", "b")
    assert (found.folds, found.patients) == ((0, 1), 2)
    assert found.metrics[0].difference == pytest.approx((0.15 + 0.0) / 2)
    assert any(note.startswith("1 patient(s) are in the test parts of several folds") for note in found.notes)


def test_it_says_where_the_search_knew_the_patients_from_other_data():
    one = pair(["p0", "p1"], {"ged": [0.1, 0.2]}, {"ged": [0.2, 0.2]})
    found = compare_pair(replace(one, b=replace(one.b, shared="lidc")), "s1", "s2")
    assert found.notes[0].startswith("s2: blobs has patients of lidc, which was searched on")


def test_equals_are_seldom_told_apart():
    """Six metrics without a difference: with Holm's correction 5 % of comparisons tell any of them apart."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(25):
        values = [{f"dice_a{i}": rng.normal(0, 1, 20) for i in range(1, 7)} for _ in range(2)]
        found = compare_pair(pair([f"p{i}" for i in range(20)], *values), "a", "b")
        wrong += any(one.distinguishable for one in found.metrics)
    assert wrong <= 4


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("ged", "smaller"), ("prior_ged_unbiased", "smaller"), ("prior_d_pa", "smaller"), ("d_pp", None),
     ("dice_a12", "larger"), ("prior_dice_match", "larger"), ("dice_mean", "larger")],
)  # fmt: skip
def test_which_values_are_good(metric: str, expected: str | None):
    assert goal(metric) == expected


def test_metrics_stand_in_the_papers_order_and_none_is_lost():
    names = ["new", "prior_ged", "dice_mean", "dice_a2", "d_aa", "d_pp", "dice_a1", "dice_match", "prior_d_aa", "ged"]
    expected = ["ged", "dice_match", "dice_a1", "dice_a2", "dice_mean", "d_pp", "prior_ged", "new"]
    assert metric_order(names) == expected


# The command


def test_a_difference_that_is_there_is_found(better, store: Store):
    record = told("s1", "s2")
    ged = each(record)["ged"]
    assert (ged["better"], ged["distinguishable"], ged["goal"]) == ("B", True, "smaller")
    assert ged["low"] < ged["difference"] < ged["high"] < 0
    assert ged["p"] <= ged["p_holm"] < 0.05
    assert each(record)["prior_ged"]["distinguishable"]
    (data,) = record["data"]
    assert (data["cases"], data["patients"], data["folds"]) == (PATIENTS * SLICES, PATIENTS, [0, 1, 2, 3])
    assert (data["label"], data["fingerprint"]) == (LABEL, store.manifest.fingerprint)
    assert (data["samples"], data["prior_samples"]) == (2, 50)
    assert "s2 is better in GED, GED (prior)" in data["sentence"]
    assert "in the other 3 they are not distinguishable" in data["sentence"]


def test_the_numbers_are_those_of_scipy_over_the_patients(better):
    """Made anew from the files, by position: every patient has two slices, one after the other."""
    one, other = (np.concatenate([pq.read_table(s.final_folder("blobs", f) / "cases.parquet")["ged"].to_numpy()
                                  for f in range(4)]) for s in better)  # fmt: skip
    units = (other - one).reshape(PATIENTS, SLICES).mean(1)
    ged = each(told("s1", "s2"))["ged"]
    assert ged["difference"] == pytest.approx(units.mean())
    assert (ged["a"], ged["b"]) == pytest.approx((one.mean(), other.mean()))
    assert ged["p"] == pytest.approx(stats.wilcoxon(units).pvalue)
    spread = units.std() / np.sqrt(PATIENTS)
    assert (ged["low"], ged["high"]) == pytest.approx(units.mean() + 1.96 * np.array([-spread, spread]), abs=spread / 4)


def test_what_differs_by_chance_is_not_distinguishable(home: Path, store: Store):
    study_of(home, store, "s1", 1)
    study_of(home, store, "s2", 2)
    record = told("s1", "s2")
    assert not any(one["distinguishable"] for one in each(record).values())
    expected = "s1 and s2 are not distinguishable: none of the 5 metrics differs beyond chance."
    assert record["data"][0]["sentence"] == expected


def test_a_run_is_equal_to_itself(better):
    for one in each(told("s1", "s1")).values():
        assert (one["difference"], one["low"], one["high"], one["p"], one["p_holm"]) == (0, 0, 0, 1, 1)
        assert one["better"] in ("neither", None)
        assert not one["distinguishable"]


def test_swapped_runs_swap_who_is_better(better):
    there, back = each(told("s1", "s2"))["ged"], each(told("s2", "s1"))["ged"]
    assert (back["better"], back["p"]) == ("A", there["p"])
    assert back["difference"] == pytest.approx(-there["difference"])


def test_the_terminal_shows_what_the_json_holds(better):
    result = run("s1", "s2")
    assert result.exit_code == 0, result.output
    (data,) = told("s1", "s2")["data"]
    ged = data["metrics"][0]
    row = next(line for line in result.stdout.splitlines() if line.startswith("GED"))
    shown = [f"{ged['a']:.4f}", f"{ged['b']:.4f}", f"{ged['difference']:+.4f}", f"{ged['low']:+.4f}", "to"]
    assert row.split() == ["GED", "2", *shown, f"{ged['high']:+.4f}", "<0.001", "<0.001", "B", "yes"]
    for text in (LABEL, data["sentence"], *data["notes"], "64 cases of 32 patients", "test part of fold 0, 1, 2, 3"):
        assert text in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if line.split()[:2] == ["GED", "2"]) <= 80


def test_markdown_holds_the_tables(better, tmp_path: Path):
    assert run("s1", "s2", "--markdown", "deep/report.md").exit_code == 0
    text = (tmp_path / "deep" / "report.md").read_text()
    (data,) = told("s1", "s2")["data"]
    assert f"### blobs: {LABEL}; 64 cases of 32 patients" in text
    assert data["sentence"] in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(data["metrics"])
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize("name", ["notes.md", "."])
def test_markdown_replaces_nothing(better, tmp_path: Path, name: str):
    (tmp_path / "notes.md").write_text("mine")
    assert f"--markdown {name} exists" in refused("s1", "s2", "--markdown", name)
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_one_fold_alone(better):
    (data,) = told("s1", "s2", "--fold", "2")["data"]
    assert (data["folds"], data["cases"], data["patients"]) == ([2], 16, 8)


def test_the_search_saw_other_folds_test_patients_and_it_says_so(better):
    notes = [note for note in told("s1", "s2")["data"][0]["notes"] if "those of the other folds did" in note]
    assert [note.split(":")[0] for note in notes] == ["s1 and s2"], "the same of both is said once"
    assert not any("other folds" in note for note in told("s1", "s2", "--fold", "0")["data"][0]["notes"])


def test_scores_of_an_earlier_version_have_their_patients_from_the_data(home: Path, store: Store):
    study_of(home, store, "s1", 1)
    study_of(home, store, "old", 2, ged=-0.05, patients=False)
    (data,) = told("s1", "old")["data"]
    assert data["patients"] == PATIENTS
    assert data["metrics"][0]["distinguishable"]


def test_dice_is_in_percent_and_a_map_has_no_samples(better):
    dice = each(told("s1", "s2"))["dice_a1"]
    row = next(line for line in run("s1", "s2").stdout.splitlines() if line.startswith("D_A1"))
    assert row.split()[1:4] == [f"{100 * dice['a']:.2f}", f"{100 * dice['b']:.2f}", f"{100 * dice['difference']:+.2f}"]


def test_the_final_stage_writes_who_the_patients_are(trained: Study, store: Store, tmp_path: Path):
    study = trained.model_copy(update={"folder": shutil.copytree(trained.folder, tmp_path / "study")})
    folder = study.final_folder("blobs", 0)
    folder.mkdir(parents=True)
    shutil.copy(study.trial_folder(0) / "best.safetensors", folder)
    evaluate_fold(str(study.folder), str(folder), "blobs", 0)
    table = pq.read_table(folder / "cases.parquet")
    assert sorted(set(table["patient"].to_pylist())) == sorted(store.manifest.folds[0].test)
    (part,) = find_run(str(study.folder), tmp_path).parts
    assert len(part.cases) == CASES_OF_A_FOLD
    (found,) = (compare_pair(one, "a", "b") for one in matched(*[find_run(str(study.folder), tmp_path)] * 2)[0])
    assert len(found.metrics) == len(table.column_names) - 4, "all but patient, case and how far the raters are apart"
    assert all(goal(one.metric) is not None or one.metric in ("d_pp", "prior_d_pp") for one in found.metrics)


def test_the_folder_of_a_study_is_as_good_as_its_name(better):
    record = told("s1", str(better[1].folder))
    assert record["b"] == {"name": str(better[1].folder), "kind": "study", "folder": str(better[1].folder)}
    assert each(record)["ged"] == each(told("s1", "s2"))["ged"]


# Exported models


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Study:
    """A study whose winner was trained; its final stage is not."""
    study = make_study(tmp_path_factory.mktemp("home"), store, final=[{"data": str(store.folder), "epochs": 2}])
    train_trial(study)
    return study


def exported(trained: Study, folder: Path, values: dict[str, Any] | None) -> Path:
    """An export of the study with these scores on its test cases; with None without a final stage."""
    copied = shutil.copytree(trained.folder, folder.with_name(f"{folder.name}-study"))
    study = trained.model_copy(update={"folder": copied})
    if values is not None:
        score_fold(study, 0, values)
        shutil.copy(study.trial_folder(0) / "best.safetensors", study.final_folder("blobs", 0) / "best.safetensors")
    export(study, folder)
    return folder


def test_two_models_are_compared_on_their_own_test_part(home: Path, trained: Study, tmp_path: Path):
    one = exported(trained, tmp_path / "one", scores(1))
    exported(trained, tmp_path / "other", scores(2, ged=-0.1))
    record = told(str(one), "other")
    (data,) = record["data"]
    assert (data["folds"], data["cases"], data["patients"]) == ([0], 16, 8)
    assert (record["a"]["kind"], record["b"]["kind"]) == ("model", "model")
    assert each(record)["ged"]["better"] == "B"
    assert data["label"] == LABEL


def test_a_model_is_compared_with_a_study_on_the_models_fold(better, trained: Study, tmp_path: Path):
    exported(trained, tmp_path / "model", scores(1))
    assert "of folds 0, 1, 2, 3 and of fold 0; `--fold 0` compares them where both were" in refused("s2", "model")
    record = told("s2", "model", "--fold", "0")
    backwards = each(told("s1", "s2", "--fold", "0"))
    assert each(record)["ged"]["difference"] == pytest.approx(-backwards["ged"]["difference"])


def test_an_export_names_no_patient(trained: Study, tmp_path: Path, store: Store):
    folder = exported(trained, tmp_path / "model", scores(1))
    table = pq.read_table(folder / "cases.parquet")
    assert table.num_rows == 16
    shipped = {*table["patient"].to_pylist(), *table["case"].to_pylist()}
    assert len(set(table["patient"].to_pylist())) == 8
    assert shipped.isdisjoint({*store.patients, *store.volumes})
    assert all(len(digest) == 16 for digest in shipped)


def test_force_replaces_an_export_with_scores(trained: Study, tmp_path: Path):
    exported(trained, tmp_path / "model", scores(1))
    export(trained, tmp_path / "model", force=True)
    assert not (tmp_path / "model" / "cases.parquet").exists(), "this one has no final stage"


def test_a_model_without_a_final_stage_is_refused(better, trained: Study, tmp_path: Path):
    exported(trained, tmp_path / "model", None)
    assert "exported without a final stage" in refused("s1", "model")


def test_a_model_of_an_earlier_version_is_refused(better, trained: Study, tmp_path: Path):
    (exported(trained, tmp_path / "model", scores(1)) / "cases.parquet").unlink()
    assert "has no cases.parquet: it was exported by an earlier version" in refused("model", "s1")


@pytest.mark.parametrize(
    ("name", "text"), [("metrics.json", "{"), ("data.json", "[]"), ("metrics.json", '{"retrained": 1}')]
)
def test_a_damaged_export_is_named(better, trained: Study, tmp_path: Path, name: str, text: str):
    (exported(trained, tmp_path / "model", scores(1)) / name).write_text(text)
    assert "model/" in refused("model", "s1")


# What is refused


def test_what_is_neither_a_study_nor_a_folder_is_refused(better, home: Path):
    assert "'s3' is neither a study in" in refused("s1", "s3")


def test_a_study_without_a_final_stage_is_refused(better, home: Path, store: Store):
    make_study(home, store, name="s3")
    assert "study s3 has no scores of test cases" in refused("s3", "s1")


def test_other_data_under_one_name_are_refused(better, home: Path, tmp_path: Path):
    other = make_store(tmp_path / "other" / "blobs")
    score_fold(make_study(home, other, name="s3", final=[{"data": str(other.folder), "epochs": 2}]), 0, {"ged": 0.1})
    assert "s1 and s3 cannot be compared on blobs: the data are not the same (fingerprints" in refused("s1", "s3")


def test_no_data_in_common_are_refused(better, home: Path):
    assert "not scored on the same data (s1: blobs; s2: blobs; asked for was npc)" in refused(
        "s1", "s2", "--data", "npc"
    )


def test_another_number_of_samples_is_refused(better, home: Path, store: Store):
    study_of(home, store, "s3", prior_samples=16)
    assert "number of samples S, which was 2 (50 from the prior) and 2 (16 from the prior)" in refused("s1", "s3")


def test_folds_that_only_one_has_are_refused(better, home: Path, store: Store):
    study_of(home, store, "s3", folds=[1, 2])
    assert "different cases, of folds 0, 1, 2, 3 and of folds 1, 2; `--fold 1` compares them" in refused("s1", "s3")
    assert "s3 was not scored on fold 0 of blobs, but on folds 1, 2" in refused("s1", "s3", "--fold", "0")


def test_other_cases_of_a_fold_are_refused(better, home: Path):
    for study, change in zip(better, ("p0", "somebody"), strict=True):
        path = study.final_folder("blobs", 0) / "cases.parquet"
        table = pq.read_table(path)
        names = [change, *table["patient"].to_pylist()[1:]]
        pq.write_table(table.set_column(0, "patient", [names]), path)
    assert "different cases (64 and 64, 63 in both)" in refused("s1", "s2")


def test_other_parts_of_the_masks_are_refused(better, home: Path, store: Store):
    study = study_of(home, store, "s3")
    cut = scores(2)
    score_fold(study, 0, {**cut, "d_aa": cut["d_aa"] + 0.1})
    assert "data.crop differs" in refused("s1", "s3")


@pytest.mark.parametrize("damage", ["missing", "bytes", "columns", "rows"])
def test_damaged_scores_are_named(better, damage: str):
    path = better[1].final_folder("blobs", 1) / "cases.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "bytes":
        path.write_bytes(path.read_bytes()[:100])
    else:
        table = pq.read_table(path)
        pq.write_table(table.drop_columns("case") if damage == "columns" else table.slice(1), path)
    assert "fold1/cases.parquet" in refused("s1", "s2")


def test_scores_of_an_earlier_version_whose_data_are_other_now_are_refused(home: Path, store: Store, tmp_path: Path):
    mine = make_store(tmp_path / "mine" / "blobs")
    study = make_study(home, mine, name="old", final=[{"data": str(mine.folder), "epochs": 2}])
    score_fold(study, 0, {"ged": 0.1}, patients=False)
    shutil.rmtree(mine.folder)
    make_store(mine.folder, patients=9)
    with pytest.raises(DataError, match="no longer holds the data"):
        find_run("old", home)


def test_data_that_only_one_run_has_are_left_out_and_named(better, home: Path):
    one, other = (find_run(name, home) for name in ("s1", "s2"))
    (part,) = other.parts
    more = Part("npc", LABEL, "e" * 64, part.samples, part.folds, part.patients, part.cases, part.values)
    both = type(other)(other.name, other.kind, other.folder, (*other.parts, more))
    pairs, left_out = matched(one, both)
    assert len(pairs) == 1
    assert left_out == ["npc is left out: only s2 was scored on it."]
