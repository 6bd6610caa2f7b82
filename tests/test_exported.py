"""An exported model: a folder, two files that matter, and what it predicts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import proseg
from proseg.checkpoint import load_checkpoint, save_checkpoint
from proseg.config import TrainConfig
from proseg.data import batches
from proseg.data.store import Store
from proseg.errors import CheckpointError, DataError
from proseg.exported import DATA, WEIGHTS, ExportedModel
from proseg.generate import mean_maps
from proseg.train import TrainState
from tests.studies import make_store


def export(folder: Path, config: TrainConfig, store: Store) -> Path:
    folder.mkdir()
    with torch.random.fork_rng():
        state = TrainState.fresh(config, store, torch.device("cpu"))
    save_checkpoint(folder / WEIGHTS, state.checkpoint(config, {}, resumable=False))
    window = store.manifest.window
    (folder / DATA).write_text(json.dumps({"name": "tiny", "window": window}))
    return folder


@pytest.fixture
def folder(tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store) -> Path:
    return export(tmp_path / "model", tiny_config, tiny_store)


@pytest.fixture
def model(folder: Path) -> ExportedModel:
    return proseg.load(folder)


def test_it_predicts_maps_of_the_images_size(model: ExportedModel, tiny_store: Store):
    found = model.predict(tiny_store.image(3), samples=5)
    assert found.raters.shape == (4, 32, 32)
    assert found.mean.shape == (32, 32)
    assert found.samples.shape == (5, 32, 32)
    for maps in (found.raters, found.mean, found.samples):
        assert maps.dtype == np.float32
        assert maps.min() >= 0
        assert maps.max() <= 1
    np.testing.assert_allclose(found.mean, found.raters.mean(0), atol=1e-6)


def test_a_path_may_be_text_and_the_configuration_comes_along(folder: Path, tiny_config: TrainConfig):
    model = proseg.load(str(folder))
    assert model.config == tiny_config
    assert not model.model.training


@pytest.mark.parametrize("size", [(32, 48), (33, 17), (5, 5)], ids=str)
def test_other_sizes_than_in_training(model: ExportedModel, size: tuple[int, int]):
    found = model.predict(np.zeros(size, np.int16), samples=2)
    assert found.raters.shape == (4, *size)
    assert found.samples.shape == (2, *size)


def test_the_window_is_applied(model: ExportedModel, tiny_store: Store):
    image = tiny_store.image(3)
    expected = mean_maps(model.model, batches.load(tiny_store, [3]).image)[0, :, 0]
    np.testing.assert_allclose(model.predict(image).raters, expected, atol=1e-6)
    np.testing.assert_array_equal(
        model.predict(image.clip(-1000, 400)).raters, model.predict(image.astype(float)).raters
    )


def test_the_same_seed_gives_the_same_draws(model: ExportedModel, tiny_store: Store):
    image = tiny_store.image(0)
    one, again, other = (model.predict(image, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.samples, again.samples)
    np.testing.assert_array_equal(one.raters, other.raters)
    assert not np.array_equal(one.samples, other.samples)
    assert one.samples.shape == (16, 32, 32)


def test_the_image_may_lack_its_channel_axis_and_is_not_changed(model: ExportedModel, tiny_store: Store):
    image = tiny_store.image(0).astype(np.float32)
    before = image.copy()
    with_axis, without = model.predict(image), model.predict(image[0])
    np.testing.assert_array_equal(with_axis.samples, without.samples)
    np.testing.assert_array_equal(image, before)


def test_several_channels_without_a_window(tmp_path: Path, tiny_config: TrainConfig, volume_store: Store):
    model = proseg.load(export(tmp_path / "model", tiny_config, volume_store))
    assert model.predict(volume_store.image(0)).raters.shape == (4, 32, 32)
    with pytest.raises(DataError, match=r"3 channel\(s\)"):
        model.predict(volume_store.image(0)[0])


@pytest.mark.parametrize("method", ["proseg", "multihead_unet"])
def test_several_classes_have_an_axis_of_their_own(tmp_path: Path, tiny_config: TrainConfig, method: str):
    store = make_store(tmp_path / "labels", classes=3)
    model = proseg.load(export(tmp_path / "model", tiny_config.with_values({"method": method}), store))
    found, unsure = model.predict(store.image(0), samples=5), model.uncertainty(store.image(0))
    assert found.raters.shape == (2, 3, 16, 16)
    assert found.mean.shape == unsure.from_z.shape == unsure.from_tau.shape == (3, 16, 16)
    assert found.samples.shape == (5, 3, 16, 16)
    for maps in (found.raters, found.mean, found.samples):
        assert maps.min() >= 0
        assert maps.sum(-3).max() <= 1 + 1e-6
    np.testing.assert_allclose(found.mean, found.raters.mean(0), atol=1e-6)


def test_uncertainty_comes_in_two_parts_of_the_images_size(model: ExportedModel, tiny_store: Store):
    image = tiny_store.image(3)
    found, again, other = (model.uncertainty(image, seed=seed) for seed in (0, 0, 1))
    for name in ("from_z", "from_tau"):
        part = getattr(found, name)
        assert part.shape == (32, 32)
        assert part.dtype == np.float32
        assert part.min() >= 0
        np.testing.assert_array_equal(part, getattr(again, name))
        assert not np.array_equal(part, getattr(other, name))
    assert found.from_z.max() > 0
    np.testing.assert_array_equal(found.from_z, model.uncertainty(image.clip(-1000, 400)[0]).from_z)


def test_uncertainty_refuses_what_prediction_refuses(model: ExportedModel):
    with pytest.raises(DataError, match="the image has shape"):
        model.uncertainty(np.zeros((2, 32, 32)))
    with pytest.raises(DataError, match="no pixels"):
        model.uncertainty(np.zeros((0, 5)))
    with pytest.raises(DataError, match="not finite"):
        model.uncertainty(np.full((32, 32), np.nan))


@pytest.mark.parametrize("samples", [0, -1])
def test_no_sample_is_refused(model: ExportedModel, samples: int):
    with pytest.raises(DataError, match=f"samples = {samples} must be at least 1"):
        model.predict(np.zeros((32, 32)), samples=samples)


@pytest.mark.parametrize(
    "changes", [{"model.encoder": "separate", "model.patch": 2}, {"model.use_z": False}, {"model.use_tau": False}],
    ids=str,
)  # fmt: skip
def test_every_model_can_be_taken_away(tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, changes: dict):
    model = proseg.load(export(tmp_path / "model", tiny_config.with_values(changes), tiny_store))
    assert model.predict(np.zeros((17, 33)), samples=3).samples.shape == (3, 17, 33)


def test_weights_that_are_not_the_configurations_are_refused(folder: Path, tiny_config: TrainConfig):
    weights = load_checkpoint(folder / WEIGHTS)
    save_checkpoint(folder / WEIGHTS, replace(weights, config=tiny_config.with_values({"model.patch": 2})))
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        proseg.load(folder)


@pytest.mark.parametrize("shape", [(2, 32, 32), (32,), (1, 1, 32, 32), (32, 32, 1)], ids=str)
def test_an_image_of_another_shape_is_refused(model: ExportedModel, shape: tuple[int, ...]):
    with pytest.raises(DataError, match="the image has shape") as caught:
        model.predict(np.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_refused(model: ExportedModel, value: float):
    image = np.zeros((32, 32))
    image[3, 4] = value
    with pytest.raises(DataError, match="not finite"):
        model.predict(image)


@pytest.mark.parametrize("name", [WEIGHTS, DATA])
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        proseg.load(folder)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere"):
        proseg.load(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{}", b"[]", b'{"window": 3}'])
def test_data_that_cannot_be_understood_is_refused_when_it_is_loaded(folder: Path, content: bytes):
    (folder / DATA).write_bytes(content)
    with pytest.raises(CheckpointError, match=DATA):
        proseg.load(folder)


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, proseg; print(*{'torch', 'numpy', 'ray', 'mlflow', 'pydantic'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_loading_a_model_imports_no_tool_that_runs_searches(folder: Path):
    code = (
        f"import sys, proseg; proseg.load({str(folder)!r});"
        "print(*{'ray', 'mlflow', 'optuna', 'typer', 'orchestrator', 'cli'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
