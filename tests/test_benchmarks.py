"""The benchmarks: their rivals, written independently, compute what the library computes; every command runs."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__, evaluation, loading, metrics, quality, samples, step, timing
from proseg.config import TrainConfig
from proseg.data.batches import Batch
from proseg.data.store import Store
from proseg.generate import sample_prior
from proseg.metrics import set_metrics
from proseg.recipes import MODERN

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
    "evaluation": "--slices 2 --samples 2 --data DATA",
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
