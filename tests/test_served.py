"""An exported model as a server calls it: batches of images in, named arrays that become JSON out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proseg import served
from proseg.config import TrainConfig
from proseg.errors import DataError
from proseg.exported import ExportedModel, labels
from proseg.methods import build
from proseg.served import OUTPUTS, ServedModel
from tests.studies import awake

SIDE, RATERS = 16, 3
SHAPE = (SIDE, SIDE)


def exported(config: TrainConfig, *, channels: int = 1, classes: int = 1) -> ExportedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = awake(build(config, channels=channels, raters=RATERS, classes=classes))
    return ExportedModel(model, config, {"window": (-1000.0, 400.0)})


def images(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1000, 400, (count, channels, *SHAPE)).astype(np.float32)


@pytest.fixture
def model(tiny_config: TrainConfig) -> ExportedModel:
    return exported(tiny_config)


def test_every_output_is_what_the_model_says_of_each_image(model: ExportedModel):
    batch = images(2)
    found = ServedModel(model).predict(batch, {"samples": 5, "seed": 7, "outputs": list(OUTPUTS)})
    for number, image in enumerate(batch):
        said, unsure = model.predict(image, samples=5, seed=7), model.uncertainty(image, seed=7)
        np.testing.assert_array_equal(found["raters"][number], said.raters)
        np.testing.assert_array_equal(found["mean"][number], said.mean)
        np.testing.assert_array_equal(found["samples"][number], said.samples)
        np.testing.assert_array_equal(found["masks"][number], said.raters > 0.5)
        np.testing.assert_array_equal(found["uncertainty_scan"][number], unsure.from_z)
        np.testing.assert_array_equal(found["uncertainty_raters"][number], unsure.from_tau)
    assert found["samples"].shape == (2, 5, *SHAPE)
    assert found["masks"].dtype == np.uint8


def test_a_request_without_parameters_gets_masks_and_mean(model: ExportedModel):
    found = ServedModel(model).predict(images(1))
    assert {name: maps.shape for name, maps in found.items()} == {"masks": (1, RATERS, *SHAPE), "mean": (1, *SHAPE)}


def test_what_json_brings_and_takes_is_the_same(model: ExportedModel):
    batch = images(2)
    given = json.loads(json.dumps(batch.tolist()))
    found = ServedModel(model).predict(given, {"outputs": np.array(["masks"])})
    np.testing.assert_array_equal(found["masks"], ServedModel(model).predict(batch)["masks"])
    assert json.loads(json.dumps({name: maps.tolist() for name, maps in found.items()})).keys() == {"masks"}


def test_one_channel_needs_no_axis(model: ExportedModel):
    batch, asked = images(2), {"outputs": ["raters"]}
    without, with_axis = (ServedModel(model).predict(one, asked)["raters"] for one in (batch[:, 0], batch))
    np.testing.assert_array_equal(without, with_axis)


def test_several_classes_have_an_axis_and_masks_are_labels(tiny_config: TrainConfig):
    model, batch = exported(tiny_config, channels=2, classes=3), images(1, 2)
    found = ServedModel(model).predict(batch, {"samples": 2, "outputs": list(OUTPUTS)})
    shapes = {name: maps.shape[1:] for name, maps in found.items()}
    assert shapes["masks"] == (RATERS, *SHAPE)
    assert shapes["raters"] == (RATERS, 3, *SHAPE)
    assert shapes["samples"] == (2, 3, *SHAPE)
    assert shapes["mean"] == shapes["uncertainty_scan"] == (3, *SHAPE)
    np.testing.assert_array_equal(found["masks"][0], labels(model.predict(batch[0]).raters))
    assert found["masks"].max() > 1


@pytest.mark.parametrize(
    ("batch", "channels", "message"),
    [
        (images(1, 2), 1, r"shape \(1, 2, 16, 16\); the model takes \[N, C, H, W\] with C = 1"),
        (images(1)[:, 0], 2, "with C = 2"),
        (images(1)[0, 0], 1, "with C = 1"),
        (images(0), 1, "none of them 0"),
        ([[[1.0, 2.0], [3.0]]], 1, "nested lists of equal lengths"),
        ([[["a"]]], 1, "not numbers"),
        (np.full((1, *SHAPE), np.nan), 1, "not finite"),
    ],
)
def test_other_images_are_refused(tiny_config: TrainConfig, batch: Any, channels: int, message: str):
    with pytest.raises(DataError, match=message):
        ServedModel(exported(tiny_config, channels=channels)).predict(batch)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"samples": 0}, "between 1 and 1000"),
        ({"samples": 10**9}, "between 1 and 1000"),
        ({"samples": "many"}, "whole numbers"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "between 0 and"),
        ({"outputs": []}, "must be some of masks"),
        ({"outputs": ["mask"]}, "must be some of masks"),
        ({"outputs": 3}, "list of names"),
        ({"threshold": 0.3}, "no parameter threshold; there are samples, seed, outputs"),
    ],
)
def test_other_parameters_are_refused(model: ExportedModel, params: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        ServedModel(model).predict(images(1), params)


def test_the_way_in_loads_an_export(model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(served, "load", lambda folder: asked.append(folder) or model)
    assert served._load_pyfunc(str(tmp_path)).predict(images(1))["mean"].shape == (1, *SHAPE)
    assert asked == [str(tmp_path)]
