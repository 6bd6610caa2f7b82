"""The model as a graph: it says what the model says, carries nothing of this machine, and is whole or not there."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import proseg
from cli.app import app
from orchestrator.export import export
from orchestrator.study import Study
from proseg import graph
from proseg.config import TrainConfig
from proseg.errors import CheckpointError, GraphError
from proseg.exported import ExportedModel
from proseg.generate import maps, mean_maps
from proseg.latents import grid_noise, noise_cells, upsampled
from proseg.method import Draws
from proseg.methods import build
from proseg.model import ProSeg
from tests.studies import add_trial, awake, train_trial, tree

HEIGHT, WIDTH, RATERS = 20, 16, 3
WINDOW = (-1000.0, 400.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {}, "without z": {"model.use_z": False}, "without tau": {"model.use_tau": False},
    "without both": {"model.use_z": False, "model.use_tau": False}, "baseline": {"method": "multihead_unet"},
    "cells of pixels": {"model.patch": 3}, "noise in every cell": {"model.z_grid": None},
    "trunks of their own": {"model.encoder": "separate"},
}  # fmt: skip


def exported(config: TrainConfig, *, channels: int = 1, classes: int = 1, **data: Any) -> ExportedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = awake(build(config, channels=channels, raters=RATERS, classes=classes))
    return ExportedModel(model, config, {"window": WINDOW, "height": HEIGHT, "width": WIDTH, **data})


@pytest.fixture(scope="module")
def model(tiny_config: TrainConfig) -> ExportedModel:
    return exported(tiny_config)


@pytest.fixture(scope="module")
def pt2(model: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    graph.write(model, folder, ["pt2"])
    return folder / "model.pt2"


def image_of(size: tuple[int, int], count: int = 1) -> torch.Tensor:
    return torch.empty(count, 1, *size).uniform_(*WINDOW, generator=torch.Generator().manual_seed(1))


# The function


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_says_what_the_model_says(tiny_config: TrainConfig, variant: str):
    made = graph.Graph(exported(tiny_config.with_values(VARIANTS[variant]), channels=2, classes=2)).eval()
    given = graph._inputs(made, images=2, samples=4, seed=3)
    expected = graph._expected(made, given)
    with torch.no_grad():
        for found, one in zip(made(*given.tensors), expected, strict=True):
            torch.testing.assert_close(found, one, atol=1e-5, rtol=0)


def test_its_inputs_are_the_chance_that_the_model_has(tiny_config: TrainConfig):
    def inputs(variant: str) -> tuple[str, ...]:
        return graph.Graph(exported(tiny_config.with_values(VARIANTS[variant]))).inputs

    assert inputs("full") == ("image", "tau", "noise")
    assert inputs("without z") == ("image", "tau")
    assert inputs("without tau") == ("image", "who", "noise")
    assert inputs("without both") == inputs("baseline") == ("image", "who")


def test_noise_of_zero_is_the_mean_of_z(model: ExportedModel):
    made, proseg_model = graph.Graph(model).eval(), model.model
    assert isinstance(proseg_model, ProSeg)
    draws = proseg_model.prior(1, 6, torch.Generator().manual_seed(4))
    assert draws.tau is not None
    low, high = WINDOW
    image = image_of((HEIGHT, WIDTH))
    expected = maps(proseg_model, (image - low) * (2 / (high - low)) - 1, Draws(draws.who, draws.tau))[0]
    with torch.no_grad():
        _, samples = made(image, draws.tau, torch.zeros(1, 6, *made.noise))
    torch.testing.assert_close(samples, expected, atol=1e-5, rtol=0)
    assert samples.std(1).max() > 1e-3, "tau is heard"


def test_it_is_as_large_as_the_training_images(tiny_config: TrainConfig):
    assert graph.Graph(exported(tiny_config)).size == (HEIGHT, WIDTH)
    assert graph.Graph(exported(tiny_config.with_values({"data.crop": 18}))).size == (18, WIDTH)
    with pytest.raises(CheckpointError, match="what size"):
        graph.Graph(exported(tiny_config, height=None))


@pytest.mark.parametrize(("size", "grid"), [((8, 6), 3), ((8, 6), None), ((8, 6), 8), ((3, 9), 2), ((1, 9), 4)])
def test_noise_from_outside_is_the_noise_that_is_drawn(size: tuple[int, int], grid: int | None):
    drawn = grid_noise(torch.Size((5, 2, *size)), grid, torch.device("cpu"), torch.Generator().manual_seed(2))
    cells = noise_cells(*size, grid)
    coarse = torch.randn(5, 2, *cells, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(upsampled(coarse, *size), drawn, atol=0, rtol=0)


# The files


def test_the_file_runs_without_this_package(pt2: Path, model: ExportedModel, tmp_path: Path):
    image = image_of((HEIGHT, WIDTH), 3)
    noise = graph.Graph(model).noise
    torch.save(image, tmp_path / "image.pt")
    code = f"""
import sys, torch
image = torch.load({str(tmp_path / "image.pt")!r})
run = torch.export.load({str(pt2)!r}).module()
raters, samples = run(image, torch.full((3, 1, 3), 1 / 3), torch.zeros(3, 1, *{noise}))
assert not [name for name in sys.modules if name.split(".")[0] == "proseg"]
assert samples.shape == (3, 1, 1, {HEIGHT}, {WIDTH})
torch.save(raters.detach(), {str(tmp_path / "raters.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    low, high = WINDOW
    expected = mean_maps(model.model, (image - low) * (2 / (high - low)) - 1)
    np.testing.assert_allclose(torch.load(tmp_path / "raters.pt"), expected, atol=1e-5)


def test_the_file_tells_nothing_of_this_machine_and_holds_no_pickle(pt2: Path):
    with zipfile.ZipFile(pt2) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    places = [str(Path(proseg.__file__).parent.parent), sys.prefix, "site-packages"]
    assert [name for name, data in content.items() if any(place.encode() in data for place in places)] == []
    assert [name for name, data in content.items() if data[:2] == b"\x80\x02" or data[:2] == b"PK"] == []


def test_a_graph_that_differs_is_not_kept(model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(made: graph.Graph, program: Any, path: Path) -> graph.Run:
        path.write_bytes(b"a graph")
        return lambda *given: [
            maps.numpy() + 0.01 for maps in graph._expected(made, graph._inputs(made, images=1, samples=5, seed=1))
        ]

    monkeypatch.setattr(graph, "_trace", lambda made: None)
    monkeypatch.setitem(graph.WRITERS, "pt2", write)
    with pytest.raises(GraphError, match=r"written as pt2 differs from the model by 0\.01 in raters"):
        graph.write(model, tmp_path, ["pt2"])
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_says_nan_is_not_kept(model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(made: graph.Graph, program: Any, path: Path) -> graph.Run:
        path.write_bytes(b"a graph")
        return lambda *given: [np.full(1, np.nan), np.full(1, np.nan)]

    monkeypatch.setattr(graph, "_trace", lambda made: None)
    monkeypatch.setitem(graph.WRITERS, "pt2", write)
    with pytest.raises(GraphError, match="differs from the model by nan"):
        graph.write(model, tmp_path, ["pt2"])
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_graph_cannot_be_traced_is_one_sentence(
    tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = exported(tiny_config)

    def encode(image: torch.Tensor) -> torch.Tensor:
        return image if image.sum() > 0 else -image  # what is computed depends on the pixels

    monkeypatch.setattr(model.model, "encode", encode)
    with pytest.raises(GraphError, match=r"^the model cannot be written as a graph: .+"):
        graph.write(model, tmp_path, ["pt2"])
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_says_what_to_install(
    model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(graph, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(GraphError, match=r"pip install onnxscript$"):
        graph.write(model, tmp_path, ["pt2", "onnx"])
    assert list(tmp_path.iterdir()) == []


# In an export


def test_an_export_that_cannot_have_its_graph_is_not_written(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train_trial(study)
    monkeypatch.setattr(graph, "find_spec", lambda name: None)
    before = tree(study.folder)
    with pytest.raises(GraphError, match="pip install onnx"):
        export(study, tmp_path / "out", graphs=["onnx"])
    assert not (tmp_path / "out").exists()
    assert tree(study.folder) == before


def test_a_graph_without_a_folder_is_a_mistake(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path))
    add_trial(study, 0, 0.2)
    told = CliRunner().invoke(app, ["best", "--onnx"])
    assert told.exit_code == 2
    assert "--onnx goes with --export DIR" in told.stderr


@pytest.mark.slow
def test_an_export_with_graphs_is_whole_and_its_card_says_how_to_use_them(study: Study, tmp_path: Path):
    train_trial(study)
    export(study, tmp_path / "out", graphs=["pt2", "onnx"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert {"model.pt2", "model.onnx", "model.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}
    for fact in ("`model.pt2` and `model.onnx`", "| tau | [B, S, 2] float32", "| noise | [B, S, 2, ", "16 x 16"):
        assert fact in card
    export(study, tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "model.onnx").exists(), "an old graph does not outlive its weights"


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_method_can_be_written(tiny_config: TrainConfig, tmp_path: Path, variant: str):
    model = exported(tiny_config.with_values(VARIANTS[variant]), channels=2, classes=2)
    graph.write(model, tmp_path, ["pt2", "onnx"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "model.onnx"}
    assert b"site-packages" not in (tmp_path / "model.onnx").read_bytes()


@pytest.mark.slow
def test_an_onnx_file_is_run_by_name(model: ExportedModel, tmp_path: Path):
    import onnxruntime

    graph.write(model, tmp_path, ["onnx"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    made = graph.Graph(model)
    given = graph._inputs(made, images=4, samples=2, seed=9)
    named = dict(zip(("image", "tau", "noise"), (tensor.numpy() for tensor in given.tensors), strict=True))
    for found, expected in zip(session.run(["raters", "samples"], named), graph._expected(made, given), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
