"""Checkpoints: whole or not at all, read without executing anything, and refused by name when damaged."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from proseg import checkpoint as module
from proseg.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from proseg.config import TrainConfig
from proseg.data import batches
from proseg.data.store import Store
from proseg.errors import CheckpointError, DamagedCheckpoint
from proseg.records import write_atomically
from proseg.train import TrainState, train, train_step
from tests.studies import make_store


@pytest.fixture(scope="module")
def saved(tiny_config: TrainConfig, tiny_store: Store) -> Checkpoint:
    with torch.random.fork_rng():
        config = tiny_config.with_values({"epochs": 1, "optim.ema": 0.9})
        report = next(train(config, tiny_store, tiny_store.manifest.folds[0]))
    return report.state.checkpoint(config, {"val/ged": 0.1 + 0.2, "nan": float("inf")}, extra={"best": 0.5, "who": "ü"})


@pytest.fixture
def file(tmp_path: Path, saved: Checkpoint) -> Path:
    save_checkpoint(tmp_path / "last.safetensors", saved)
    return tmp_path / "last.safetensors"


def test_everything_comes_back_to_the_bit(file: Path, saved: Checkpoint):
    loaded = load_checkpoint(file)
    for name in ("config", "epoch", "metrics", "channels", "raters", "classes", "extra"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert loaded.optimizer.keys() == saved.optimizer.keys()
    assert saved.optimizer[0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert saved.average.keys() == {"n_averaged", *(f"module.{name}" for name in saved.model)}
    parts = ((one.model, one.optimizer, one.average) for one in (loaded, saved))
    torch.testing.assert_close(*parts, rtol=0, atol=0)


def test_the_restored_state_steps_as_the_saved_one_would(file: Path, saved: Checkpoint):
    restored = TrainState.restored(load_checkpoint(file), torch.device("cpu"))
    again = restored.checkpoint(saved.config, saved.metrics, extra=saved.extra)
    assert again.epoch == saved.epoch
    parts = ((one.model, one.optimizer, one.average) for one in (again, saved))
    torch.testing.assert_close(*parts, rtol=0, atol=0)
    assert restored.optimizer.param_groups[0]["lr"] == saved.config.optim.lr


def test_weights_to_keep_are_those_of_the_average(saved: Checkpoint):
    kept = TrainState.restored(saved, torch.device("cpu")).checkpoint(saved.config, {}, resumable=False)
    assert (kept.optimizer, kept.average) == ({}, {})
    assert kept.model.keys() == saved.model.keys()
    for name, value in kept.model.items():
        assert torch.equal(value, saved.average[f"module.{name}"]), name
    assert not torch.equal(kept.model["from_z.weight"], saved.model["from_z.weight"])


@pytest.mark.usefixtures("global_rng")
def test_the_number_of_classes_comes_along(tmp_path: Path, tiny_config: TrainConfig):
    store = make_store(tmp_path / "labels", classes=3)
    state = TrainState.fresh(tiny_config, store, torch.device("cpu"))
    save_checkpoint(tmp_path / "c", state.checkpoint(tiny_config, {}))
    loaded = load_checkpoint(tmp_path / "c")
    assert (loaded.channels, loaded.raters, loaded.classes, loaded.average) == (1, 2, 3, {})
    assert TrainState.restored(loaded, torch.device("cpu")).model.classes == 3


@pytest.mark.usefixtures("global_rng")
def test_a_saved_state_does_not_change_when_training_goes_on(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store
):
    state = TrainState.fresh(tiny_config, tiny_store, torch.device("cpu"))
    save_checkpoint(tmp_path / "c", state.checkpoint(tiny_config, {}))
    before = (tmp_path / "c").read_bytes()
    train_step(state.model, state.optimizer, batches.load(tiny_store, [0, 1]), tiny_config.optim)
    assert (tmp_path / "c").read_bytes() == before
    assert not torch.equal(load_checkpoint(tmp_path / "c").model["embedding"], state.model.embedding)


def test_a_file_that_is_not_for_resuming_holds_no_optimizer(tmp_path: Path, file: Path, saved: Checkpoint):
    save_checkpoint(tmp_path / "best", Checkpoint(**{**vars(saved), "optimizer": {}, "average": {}}))
    loaded = load_checkpoint(tmp_path / "best")
    assert (loaded.optimizer, loaded.average) == ({}, {})
    assert (tmp_path / "best").stat().st_size < 0.5 * file.stat().st_size


def test_nothing_in_the_file_can_be_executed(file: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was unpickled")

    for owner, name in ((torch, "load"), (torch.serialization, "load")):
        monkeypatch.setattr(owner, name, forbidden)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", forbidden)
    load_checkpoint(file)
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    assert all(isinstance(text, str) for text in header["__metadata__"].values())
    assert sum(e["data_offsets"][1] - e["data_offsets"][0] for e in tensors) == len(content) - 8 - (
        int.from_bytes(content[:8], "little")
    )
    assert b"__reduce__" not in content
    assert not content.startswith((b"PK", b"\x80"))


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused_by_name(file: Path, kept: float):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(DamagedCheckpoint, match=r"last\.safetensors is damaged"):
        load_checkpoint(file)


@pytest.mark.parametrize("content", [b"hello", bytes(1000), b"\x80\x04pickle" * 50, b"\xff" * 64])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, content: bytes):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="other is damaged"):
        load_checkpoint(tmp_path / "other")


@pytest.mark.parametrize("header", [None, {}, {"format": "proseg-checkpoint/1"}, {"format": "pt"}], ids=str)
def test_safetensors_of_others_are_refused_by_name(tmp_path: Path, header: dict[str, str] | None):
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign", header)
    with pytest.raises(CheckpointError, match="foreign is not a checkpoint of this program") as error:
        load_checkpoint(tmp_path / "foreign")
    assert not isinstance(error.value, DamagedCheckpoint), "an older one would not do either"


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_path_without_a_file_is_refused_by_name(tmp_path: Path, path: str):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("config", "{"), ("config", '{"epochs": 0}'), ("epoch", "two"), ("metrics", ""), ("channels", None),
     ("raters", "x"), ("classes", None), ("classes", "many"), ("extra", "]")],
)  # fmt: skip
def test_a_damaged_header_is_refused_by_name(file: Path, name: str, value: str | None):
    with module.safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    changed = {key: text for key, text in (header | {name: value}).items() if text is not None}
    save_file(load_file(file), file, changed)
    with pytest.raises(DamagedCheckpoint, match=r"last\.safetensors has a damaged header"):
        load_checkpoint(file)


# Whole or not at all


class Crash(BaseException):
    """Ends a write as the death of the process would."""


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [Crash, OSError])
def test_a_crash_leaves_the_file_that_was_there(
    file: Path, saved: Checkpoint, monkeypatch: pytest.MonkeyPatch, function: str, error: type[BaseException]
):
    before = file.read_bytes()

    def crash(*_: object) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr(os, function, crash)
        with pytest.raises(error):
            save_checkpoint(file, Checkpoint(**{**vars(saved), "epoch": 9}))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert load_checkpoint(file).epoch == saved.epoch


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_crash_leaves_no_file_where_none_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str):
    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as context:
        context.setattr(os, function, crash)
        with pytest.raises(Crash):
            write_atomically(tmp_path / "new", b"content")
    assert list(tmp_path.iterdir()) == []


def test_the_content_is_on_the_disk_before_it_replaces_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, steps = tmp_path / "new", []
    fsync, replace = os.fsync, os.replace

    def on_disk(descriptor: int) -> None:
        steps.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def in_place(source: Path, target: Path) -> None:
        steps.append(("replace", Path(source).stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", on_disk)
    monkeypatch.setattr(os, "replace", in_place)
    write_atomically(path, b"content")
    assert steps[:2] == [("fsync", 7), ("replace", 7)]
    assert path.read_bytes() == b"content"


def test_folders_are_made_on_the_way(tmp_path: Path):
    write_atomically(tmp_path / "a" / "b" / "c", b"content")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"content"
