"""The benchmarks: their rivals, written independently, compute what the library computes; every command runs."""

import importlib
import json
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    __main__,
    efficiency,
    evaluation,
    loading,
    many,
    metrics,
    overhead,
    quality,
    rendered_vs_real,
    samples,
    step,
    studies,
    timing,
)
from orchestrator.control import stop_requested
from orchestrator.results import Trial, TrialLog, read_trials
from orchestrator.study import Study, read_study
from proseg.config import TrainConfig
from proseg.data import catalog
from proseg.data.batches import Batch
from proseg.data.case import Slice
from proseg.data.lidc_contours import rank_by_area
from proseg.data.lidc_slices import embedded
from proseg.data.store import Store
from proseg.generate import sample_prior
from proseg.metrics import set_metrics
from proseg.recipes import MODERN
from proseg.records import append_line
from search_spaces import find_space
from search_spaces.space import parse_space

pytestmark = pytest.mark.usefixtures("global_rng")


def some_missing(batch: Batch) -> Batch:
    present = batch.rater_mask.clone()
    present[0, 0] = present[1, 1:] = False
    masks = batch.annotations * present[:, :, None, None]
    return Batch(batch.image, masks, present)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.z_grid": None, "loss.w_es": 0.0, "loss.segmentation": "ce"},
        {"model.patch": 2, "loss.w_es": 0.7, "loss.segmentation": "ce_dice", "model.concentration": 0.6},
        {"model.z_grid": 3, "loss.w_es": 0.7, "loss.segmentation": "dice", "model.tau_size": 5},
        {"method": "multihead_unet", "model.patch": 2, "loss.segmentation": "ce_dice"},
    ],
)
def test_the_rivals_loss_and_gradients_are_ours(tiny_config: TrainConfig, changes: dict):
    step.check(tiny_config.with_values(changes), some_missing(step.random_batch(3, 2, 4, 16)))


def test_the_check_notices_another_loss(tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step, "LOG_VARIANCE_BOUND", 5.0)
    with pytest.raises(AssertionError, match="not close"):
        step.check(tiny_config, step.random_batch(2, 1, 4, 16))


@pytest.mark.parametrize("changes", [{}, {"model.z_grid": None}, {"model.patch": 2, "model.concentration": 0.6}])
def test_the_rivals_samples_are_ours(tiny_config: TrainConfig, changes: dict):
    config = tiny_config.with_values({"model.z_channels": 4, **changes})
    batch = step.random_batch(1, 1, 4, 16)
    model = step.model_like(config, batch).eval()
    ours = sample_prior(model, batch.image, 9, torch.Generator().manual_seed(3))
    rival = samples.naive_prior(model, batch.image, 9, torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours[0, :, 0], rival, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 12), (3, 8, 8)])
def test_the_rivals_metrics_are_ours(size: tuple[int, ...]):
    torch.manual_seed(0)

    def column(*values: float) -> torch.Tensor:
        return torch.tensor(values).view(-1, *[1] * len(size))

    probabilities, annotations = torch.rand(4, *size), torch.rand(3, *size) < column(0.0, 0.3, 0.6)
    masks = probabilities > column(0.3, 0.5, 0.7, 1.0)  # one sample and one rater are empty
    ours = set_metrics(masks[None], probabilities[None], annotations[None])
    rival = metrics.naive_metrics(masks, probabilities, annotations)
    assert {name: float(ours[name]) for name in rival} == pytest.approx(rival, abs=1e-9)


def test_the_rival_loads_what_we_load(tiny_store: Store):
    loading.check(tiny_store, np.arange(12))
    items = list(loading.Naive(tiny_store, np.arange(4)))
    assert [tuple(part.shape) for part in items[0]] == [(1, 32, 32), (4, 32, 32), (4,)]


def test_the_rivals_evaluation_is_ours(tiny_store: Store, monkeypatch: pytest.MonkeyPatch):
    for module in ("proseg.evaluate", "benchmarks.evaluation"):
        monkeypatch.setattr(f"{module}.SLICES_AT_ONCE", 4)
    evaluation.measure(repeats=1, slices=10, samples=5, data=str(tiny_store.folder))  # compares all scores


COMMANDS = {
    "step": "--batch 2 --side 16 --raters 2",
    "samples": "--samples 3 --side 16",
    "metrics": "--samples 3 --side 16 --depth 0",
    "loading": "--slices 8 --batch-size 4 --workers 0 --data DATA",
    "reading": "--slices 8 --batch-size 4 --workers 0 --data DATA",
    "evaluation": "--slices 2 --samples 2 --data DATA",
    "data": "--slices 9 --side 8 --raters 2 --jobs 1",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_a_table_and_keeps_its_numbers(
    name: str, tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture
):
    module = importlib.import_module(f"benchmarks.{name}")
    words = COMMANDS[name].replace("DATA", str(tiny_store.folder)).split()
    timing.command(module.__doc__, module.measure, [*words, "--repeats", "2", "--json", str(tmp_path / "kept.json")])
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["machine"] in printed
    assert kept["date"] in printed
    for row in kept["rows"]:
        assert len(row["ours"]) == len(row["rival"]) == 2
        assert row["name"] in printed


def test_time_to_quality_says_what_was_not_reached(tiny_store: Store, capsys: pytest.CaptureFixture):
    words = ["--limit", "0.01", "--samples", "2", "--goal", "0", "--epochs", "1", "--data", str(tiny_store.folder)]
    timing.command(quality.__doc__, quality.measure, words)
    assert "MODERN did NOT reach it, best GED" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_and_all_of_them_at_once(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = importlib.import_module("benchmarks.memory").measure(batch=1, side=32, samples=2, many=4, depth=2)
    assert len(rows) == 4
    __main__.main(["--only", "samples", "metrics", "--repeats", "1"])
    assert "volumes of 56 slices" in capsys.readouterr().out


def test_what_there_is_can_be_listed(capsys: pytest.CaptureFixture):
    __main__.main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(__main__.QUICK)


def test_medians_and_ratios_stand_in_the_table():
    row = timing.Row("a", [1.0, 2.0, 4.0], [3.0, 8.0, 8.0], goal=1.5)
    assert row.ratios == [3.0, 4.0, 2.0]
    assert timing.table([row]).splitlines()[-1] == "| a | CPU-s | 2 | 8 | **3** (2 to 4) | ≤ 1.5: missed | 3 |  |"


def test_the_recipe_that_is_measured_is_the_one_there_is():
    assert step.CONFIGS["MODERN"] == MODERN


# Of the search


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return overhead._planned(tmp_path / "s", studies.make_blobs(tmp_path / "blobs"), epochs=2, trials=2)


def trained(study: Study, number: int, times: list[float], values: list[float], state: Any = "complete") -> Trial:
    """A trial as the log and its folder have it; each epoch took 3 s."""
    for epoch, (time, value) in enumerate(zip(times, values, strict=True), start=1):
        record = {"epoch": epoch, "time": time, "seconds": 3.0, "best": min(values[:epoch]), "finished": False,
                  "metrics": {"val/ged": value}}  # fmt: skip
        study.trial_folder(number).mkdir(parents=True, exist_ok=True)
        append_line(study.trial_folder(number) / "epochs.jsonl", record)
    trial = Trial(number, {"optim.lr": 0.002}, state, len(times), min(values))
    TrialLog(study.folder).append(trial)
    return trial


def test_the_study_of_a_benchmark_is_what_every_process_reads(study: Study):
    assert read_study(study.folder) == study
    assert (study.resources.threads_per_rank, study.resources.gpus) == (1, 0)


def test_nobody_hears_everything_and_is_pickled_as_any_other():
    nobody = pickle.loads(pickle.dumps(studies.Nobody()))
    assert nobody.trial_ended("t", reason=1) is None


def test_the_clock_counts_an_orphan_for_whose_end_nobody_waits():
    code = """
import subprocess, sys, time
from benchmarks.studies import CpuClock
try:
    clock = CpuClock()
except (OSError, KeyError) as error:
    print(f"none: {error}"), sys.exit()
burn = "import time\\nwhile time.process_time() < 0.5: pass"
subprocess.run(["sh", "-c", f"'{sys.executable}' -c '{burn}' &"])
time.sleep(0.1)
deadline = time.monotonic() + 60
while clock.seconds() < 0.5 and time.monotonic() < deadline:
    time.sleep(0.1)
print(clock.seconds())
"""
    root = Path(__file__).resolve().parent.parent
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    if said.startswith("none"):
        pytest.skip(f"this system has no performance counters: {said}")
    assert 0.5 <= float(said) < 5


def test_a_trial_costs_what_one_more_of_them_costs():
    assert overhead.costs([[5.0, 11.0], [4.0, 12.0]], few=2, many=6) == [1.5, 2.0]
    row = timing.Row("a", [1.0, 2.0], [11.0, 24.0])
    assert overhead._note(row, 10.0, 0.1).endswith("rival / ours ≥ 10, met")
    assert overhead._note(row, 12.0, 0.1).endswith("rival / ours ≥ 12, missed")


def test_a_space_goes_to_its_file_and_back():
    values = {"data": "blobs", **overhead._space(3, 5)}
    assert tomllib.loads(overhead.toml(values)) == values
    assert parse_space(values, file="benchmark.toml", name="benchmark").budget.trials == 5


def test_the_spans_of_a_study_are_seen_in_its_records(study: Study):
    trained(study, 0, [105.0, 108.0], [0.5, 0.4])
    trained(study, 1, [106.0, 110.0], [0.5, 0.4])
    assert overhead.spans(study, 100.0, 111.0) == {"wall": 11.0, "trainings": 12.0, "before": 2.0, "after": 1.0}
    TrialLog(study.folder).append(Trial(1, {}, "failed", reason="lost"))
    with pytest.raises(RuntimeError, match="lost"):
        overhead.spans(study, 100.0, 111.0)


def test_many_trials_are_marked_at_every_tenth():
    listener = many.Listener(20)
    listener.begin()
    for number in range(20):
        listener.trial(Trial(number, {}, "running"))
        listener.trial(Trial(number, {}, "complete", 4, 0.5))
    record = {"trials": 20, "concurrent": 1, "sampler": "tpe", "mlflow": False, "profiled": False, **listener.end()}
    assert [mark["trials"] for mark in record["marks"]] == list(range(0, 21, 2))
    assert "| 19 to 20 |" in many.table(record)
    assert "20 trials (tpe, 1 at a time, no MLflow)" in many.table(record)


def test_the_longest_silence_is_found():
    assert many.longest_gap([0.0, 1.0, 4.0, 5.0]) == 3.0
    assert many.longest_gap([1.0]) == 0.0


def test_the_trivial_objective_has_its_lowest_point_inside_of_the_space():
    search = find_space("demo").search
    ends = [many.objective({name: dimension.probes()[i] for name, dimension in search.items()}) for i in (0, -1)]
    best = many.objective(dict.fromkeys(search, 0.1))
    assert best == 0.1 < min(ends) < 10


def test_the_course_of_a_search_is_in_the_order_of_time(study: Study):
    trials = [trained(study, 0, [1.0, 4.0], [0.9, 0.3]), trained(study, 1, [2.0, 3.0], [0.8, 0.95])]
    assert trials == read_trials(study)
    assert efficiency.course(study, trials) == [0.9, 0.8, 0.95, 0.3]
    assert efficiency.used_until([0.9, float("nan"), 0.3], 0.3) == 3
    assert efficiency.used_until([0.9, 0.4], 0.3) is None
    assert efficiency.best([float("nan"), 0.4]) == 0.4


def test_a_study_is_stopped_when_its_epochs_are_used_up(tmp_path: Path):
    meter = efficiency.Meter(tmp_path, 4)
    for number, epoch in [(0, 0), (0, 1), (1, 1), (0, 2)]:
        meter.trial(Trial(number, {}, "running", epoch))
        assert not stop_requested(tmp_path)
    meter.trial(Trial(1, {}, "complete", 2))
    assert stop_requested(tmp_path)


def test_the_table_of_the_search_says_what_was_reached():
    setting = {"epochs": 3, "configurations": 2, "patients": 8, "data": "d"}
    about = {"label": "blobs", "slices": 16, **setting}
    records = [
        {"seed": seed, "arm": arm, "values": values, **about}
        for seed, arm, values in [
            (0, "random", [0.9, 0.5, 0.4, 0.8, 0.6, 0.5]), (0, "search", [0.7, 0.4]),
            (1, "random", [0.9, 0.5, 0.4, 0.8, 0.6, 0.3]), (1, "search", [0.7, 0.4]), (2, "random", [0.1]),
        ]
    ]  # fmt: skip
    lines = efficiency.table([*records, {**records[0], "seed": 3, "epochs": 4}], setting).splitlines()
    assert lines[-2:] == [
        "| 0 | 0.4000 | 6 | 2 | **0.33** | ≤ 1/3: met | 0.4000 |",
        "| 1 | 0.3000 | 6 | not in 2 |  | ≤ 1/3: missed | 0.4000 |",
    ]
    assert lines[0].startswith("blobs; 16 slices of 8 patients; 2 random")


def test_some_patients_keep_their_pixels(tiny_store: Store, tmp_path: Path):
    some = efficiency.subset(tiny_store, tmp_path / "some", 8)
    assert some.manifest.patients == 8
    for row, patient in enumerate(some.patients):
        (there,) = [r for r in tiny_store.rows([patient]) if tiny_store.z[r] == some.z[row]
                    and tiny_store.volumes[r] == some.volumes[row]]  # fmt: skip
        np.testing.assert_array_equal(some.image(row), tiny_store.image(there))
        np.testing.assert_array_equal(some.annotations(row), tiny_store.annotations(there))


@pytest.mark.long
def test_the_cost_of_a_trial_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    overhead.main(["--workers", "1", "--few", "1", "--many", "2"])
    assert "| a trial beyond its training, 1 rank(s) | CPU-s |" in capfd.readouterr().out
    (record,) = studies.read("overhead")
    assert record["rows"][0]["rival"] > record["rows"][0]["ours"]


@pytest.mark.long
def test_whole_studies_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    overhead.main(["--study", "--trials", "2", "--seconds", "1"])
    many.main(["--trials", "10", "--mlflow"])
    assert "10 trials (tpe, 1 at a time, MLflow)" in capfd.readouterr().out
    assert [len(record["rows"]) for record in studies.read("overhead")] == [2]


@pytest.mark.long
def test_the_search_is_compared_with_random_configurations(tmp_path: Path):
    """In a process of its own: Ray has one session a process."""
    store = studies.make_blobs(tmp_path / "blobs")
    words = ["--seeds", "1", "--epochs", "3", "--configurations", "2", "--limit", "8", "--data", str(store.folder)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.efficiency", *words, "--out", str(tmp_path / "kept")]
    root = Path(__file__).resolve().parent.parent
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    lines = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["values"]) for line in lines] == [6, 2]
    assert "2 random configurations of 3 epochs" in said


# Rendered and real


def test_grey_levels_are_stretched_as_those_of_the_real_crops_are():
    image = np.array([[[-1000, -300, 400]]], np.int16)
    assert rendered_vs_real.stretch(image).tolist() == [[[0, 128, 255]]]
    assert rendered_vs_real.stretch(np.full((1, 2, 2), 7, np.int16)).max() == 0


def test_a_rendered_image_lies_where_the_real_masks_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What stands for the rendering is bright inside the outlines: so it must be inside the moved masks."""
    (nodule, k) = next(
        place for places in embedded().values() for place in places.values() if place and place[0].in_paper[place[1]]
    )

    def one_slice(image: np.ndarray, masks: np.ndarray, volume: str) -> Any:
        one = Slice(image, masks, masks.any((1, 2)), nodule.patient, volume, float(nodule.z[k]), (1.0, 1.0, 1.0))
        return SimpleNamespace(
            manifest=SimpleNamespace(slices=1), slice=lambda row: one, image=lambda row: one.image,
            volumes=np.array([volume]), z=np.array([one.z]),
        )  # fmt: skip

    masks = rank_by_area(nodule.masks[k])
    drawn = one_slice(masks.any(0)[None].astype(np.int16), masks, "/".join(map(str, nodule.ids)))
    monkeypatch.setattr(catalog, "open_data", lambda *_, **__: drawn)
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path))
    moved = np.roll(masks, (4, -3), (1, 2))
    (found,) = rendered_vs_real.rendered(one_slice(np.zeros((1, 128, 128), np.uint8), moved, "x/nodule-0"))
    assert np.array_equal(found.image[0] > 0, moved.any(0))
    assert np.array_equal(found.annotations, moved)


def test_rendered_and_real_are_compared_in_pairs():
    def record(arm: str, fold: int, own: float, other: float) -> dict[str, Any]:
        on = {tested: dict.fromkeys(rendered_vs_real.COLUMNS, own if tested == arm else other)
              for tested in rendered_vs_real.ARMS}  # fmt: skip
        facts = {"label": rendered_vs_real.LABELS[arm], "train_slices": 9, "test_slices": 3, "cpu": 1.0}
        return {"arm": arm, "fold": fold, "seed": 0, "on": on, **facts}

    records = [record("real", 0, 0.2, 0.3), record("rendered", 0, 0.1, 0.5), record("real", 1, 0.4, 0.5)]
    table = rendered_vs_real.table([*records, record("rendered", 1, 0.3, 0.7)])
    assert "| real CT | real CT | 2 | 0.300 ± 0.100 |" in table
    assert "| real CT minus simulated intensities, each on its own | 2 | +0.100 ± 0.000 |" in table
    assert "| on real CT: trained on simulated intensities minus trained on real CT | 2 | +0.300 ± 0.000 |" in table
