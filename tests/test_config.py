"""The configuration of a training: complete, frozen, and strict about what it is given."""

import pydantic
import pytest

from proseg.config import LossConfig, ModelConfig, TrainConfig, field_names, parse
from proseg.errors import ConfigError


def test_the_defaults_are_the_paper():
    flat = TrainConfig().flat()
    paper = {
        "optim.name": "adam", "optim.lr": 1e-4, "batch_size": 12, "epochs": 100, "model.tau_size": 8,
        "model.z_channels": 16, "model.z_grid": None, "model.concentration": 1.0, "loss.segmentation": "ce",
        "method": "proseg", "model.patch": 1, "model.use_z": True, "model.use_tau": True, "loss.w_es": 0.0,
    }  # fmt: skip
    assert {name: flat[name] for name in paper} == paper


def test_flat_names_are_the_field_names():
    assert tuple(TrainConfig().flat()) == field_names()
    assert "optim.lr" in field_names()
    assert "optim" not in field_names()


def test_with_values_changes_only_what_is_named():
    before = TrainConfig()
    after = before.with_values({"optim.lr": 1e-3, "model.z_grid": 16, "epochs": 7})
    changed = {name: value for name, value in after.flat().items() if value != before.flat()[name]}
    assert changed == {"optim.lr": 1e-3, "model.z_grid": 16, "epochs": 7}
    assert before == TrainConfig()


def test_with_its_own_flat_values_nothing_changes(tiny_config: TrainConfig):
    assert TrainConfig().with_values(tiny_config.flat()) == tiny_config


def test_json_and_nested_values_round_trip(tiny_config: TrainConfig):
    assert parse(tiny_config.model_dump_json()) == tiny_config
    assert parse(tiny_config.model_dump()) == tiny_config


def test_it_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        TrainConfig().epochs = 3
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        TrainConfig().optim.lr = 3.0


@pytest.mark.parametrize("name", ["optim.rl", "optim", "lr", "", "model.width.x"])
def test_an_unknown_field_is_named_beside_the_known_ones(name: str):
    with pytest.raises(ConfigError, match="unknown field") as caught:
        TrainConfig().with_values({name: 1})
    assert repr(name) in str(caught.value)
    assert "optim.lr" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim.lr", 0), ("optim.lr", -1e-3), ("optim.lr", float("nan")), ("optim.lr", float("inf")),
        ("optim.lr", "fast"), ("optim.name", "sgd"), ("optim.schedule", "linear"), ("optim.grad_clip", 0),
        ("model.width", 0), ("model.levels", 0), ("model.levels", 8), ("model.tau_size", 1), ("model.z_grid", 0),
        ("model.concentration", 0), ("loss.segmentation", "focal"), ("loss.w_rec", -1), ("data.crop", 0),
        ("method", "unet"), ("model.encoder", "both"), ("model.patch", 0), ("model.use_z", 1), ("model.use_tau", "no"),
        ("loss.w_es", -0.1), ("optim.ema", 0.0), ("optim.ema", 1.0), ("optim.ema", 1.5), ("optim.tau_lr_factor", 0.0),
        ("optim.bf16", "yes"), ("optim.compile", 1), ("data.rotate", -1), ("data.rotate", 181), ("patience", 0),
        ("deterministic", 1), ("data.noise", -0.1), ("epochs", 0), ("epochs", 2.5), ("batch_size", 0), ("seed", -1),
        ("seed", 2**31),
    ],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_named_with_its_full_path(name: str, value: object):
    with pytest.raises(ConfigError) as caught:
        TrainConfig().with_values({name: value})
    assert f"{name} = {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "multihead_unet"), ("model.encoder", "separate"), ("model.patch", 4), ("model.use_z", False),
        ("loss.w_es", 0.5), ("optim.schedule", "cosine"), ("optim.ema", 0.999), ("optim.ema", None),
        ("optim.tau_lr_factor", 40), ("data.rotate", 180), ("patience", None), ("patience", 1), ("deterministic", True),
    ],
)  # fmt: skip
def test_a_value_that_is_allowed_comes_back_from_json(name: str, value: object):
    config = TrainConfig().with_values({name: value})
    assert config.flat()[name] == value
    assert parse(config.model_dump_json()) == config


def test_all_faults_are_reported_together():
    with pytest.raises(ConfigError, match=r"optim\.lr = -1.*epochs = 0"):
        TrainConfig().with_values({"optim.lr": -1, "epochs": 0})


@pytest.mark.parametrize("values", [{"optim": {"momentum": 0.9}}, {"learning_rate": 1}, '{"optim": {"momentum": 1}}'])
def test_a_surplus_field_is_refused(values: dict | str):
    with pytest.raises(ConfigError, match="Extra inputs"):
        parse(values)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_text_that_is_no_configuration_is_refused(text: str):
    with pytest.raises(ConfigError):
        parse(text)


@pytest.mark.parametrize("part", [ModelConfig, LossConfig], ids=lambda part: part.__name__)
def test_every_field_of_a_part_is_documented(part: type[pydantic.BaseModel]):
    without = [name for name, field in part.model_fields.items() if not field.description]
    assert without == []
