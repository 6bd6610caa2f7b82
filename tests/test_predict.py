"""Prediction on image files: a fake model whose answer is known voxel by voxel, and a real one."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

import proseg
from cli.app import app
from proseg.config import TrainConfig
from proseg.data import images
from proseg.data.store import Store
from proseg.errors import CheckpointError, DataError
from proseg.exported import Asked, ExportedModel
from proseg.figures import save
from proseg.generate import binarise
from proseg.methods import build
from proseg.overlay import View, overlay
from proseg.predict import RECORD, labels, predict
from proseg.records import DATA
from proseg.tiles import cover, tiled
from proseg.unet import fewest_pixels
from tests.images import as_nobody, load, values, write_image, write_nifti, write_pages
from tests.studies import random_export, tree

THRESHOLDS = (10.0, 20.0)
"""Of the two experts of the fake model."""
SAMPLE_THRESHOLD = 15.0
TILE = 16


class Thresholds(ExportedModel):
    """Expert r draws what is brighter than its threshold; so does every sample. Several classes: the second one is
    what is brighter by 100."""

    def bands(self, image: np.ndarray, asked: Asked) -> Iterator[tuple[int, np.ndarray]]:
        maps = self.drawn(image, asked.samples)
        yield 0, np.concatenate([maps, self.spread(image)]) if asked.draws else maps

    def drawn(self, tile: np.ndarray, samples: int) -> np.ndarray:
        experts = np.stack([self._above(tile[0], threshold) for threshold in THRESHOLDS])
        return np.stack([*experts, *[self._above(tile[0], SAMPLE_THRESHOLD)] * samples, experts.mean(0)])

    def spread(self, tile: np.ndarray) -> np.ndarray:
        maps = self._above(tile[0], 0.0)
        return np.stack([tile[0] / 1000 * np.ones_like(maps), 0.25 * np.ones_like(maps)])

    def _above(self, image: np.ndarray, threshold: float) -> np.ndarray:
        """[K, h, w]"""
        first = (image > threshold).astype(np.float32)
        if self.model.classes == 1:
            return first[None]
        second = (image > threshold + 100).astype(np.float32)
        return np.stack([first - second, second])


Fake = Callable[..., Thresholds]


@pytest.fixture
def fake(tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Makes a model whose answers are known; no picture is drawn of them, which would take longer than all the rest."""
    monkeypatch.setattr("proseg.predict._draw", lambda *_: None)

    def make(*, channels: int = 1, classes: int = 1, window: Any = (-1000.0, 400.0), **data: Any) -> Thresholds:
        facts = {"name": "dim", "label": "made by a test", "fingerprint": "f", "window": window, "height": TILE,
                 "width": TILE, "rater_names": ["Anna", "B/ü"], "channel_names": [], **data}  # fmt: skip
        return Thresholds(build(tiny_config, channels=channels, raters=2, classes=classes), tiny_config, facts)

    return make


@pytest.fixture
def folder(tmp_path: Path, tiny_config: TrainConfig, store: Store) -> Path:
    return random_export(tmp_path / "model", tiny_config, store)


def header(path: Path) -> Any:
    return nibabel.load(path).header  # type: ignore[attr-defined]


# Geometry

ODD = (0.71, 1.3, 2.25)
"""mm along x, y, z of the patient."""


def affine(axes: tuple[int, ...], flips: tuple[int, ...], tilt: float = 0.0) -> np.ndarray:
    """File axis i runs along patient axis axes[i], backwards where flips[i] is -1; turned by `tilt` about z."""
    place = np.eye(4)
    place[:3, :3] = 0
    for axis, (along, sign) in enumerate(zip(axes, flips, strict=True)):
        place[along, axis] = sign * ODD[along]
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    place[:3, :3] = turn @ place[:3, :3]
    place[:3, 3] = (-31.5, 17.25, 400.125)
    return place


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("axes", "flips", "tilt"),
    [((0, 1, 2), (1, 1, 1), 0.0), ((0, 1, 2), (-1, 1, -1), 0.0), ((2, 0, 1), (-1, -1, 1), 0.0),
     ((1, 2, 0), (1, -1, -1), 0.2), ((2, 1, 0), (1, 1, -1), -0.3)],
)  # fmt: skip
def test_a_nifti_volume_is_segmented_in_its_own_axes(
    tmp_path: Path, fake: Fake, axes: tuple[int, ...], flips: tuple[int, ...], tilt: float, kind: Any
):
    image = values((23, 18, 5))
    place = affine(axes, flips, tilt)
    source = kind(image, place)
    source.header.set_xyzt_units("mm")
    source.set_sform(place, 2)
    source.set_qform(place, 1)
    nibabel.save(source, tmp_path / "scan.nii.gz")
    predict(fake(), [tmp_path / "scan.nii.gz"], tmp_path / "out", samples=2)
    found = tmp_path / "out" / "scan"
    for name, threshold in (("expert_1_Anna", 10), ("expert_2_B-", 20), ("sample_1", 15), ("sample_2", 15)):
        mask = load(found / f"{name}.nii.gz")
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, image > threshold)
    np.testing.assert_allclose(load(found / "mean.nii.gz"), ((image > 10) * 0.5 + (image > 20) * 0.5), atol=1e-6)
    np.testing.assert_allclose(load(found / "uncertainty_scan.nii.gz"), image / 1000, atol=1e-6)
    np.testing.assert_allclose(load(found / "uncertainty_raters.nii.gz"), 0.25, atol=1e-6)
    written = header(tmp_path / "scan.nii.gz")
    for name in ("expert_1_Anna", "mean"):
        ours = header(found / f"{name}.nii.gz")
        assert type(ours) is nibabel.Nifti1Header, "every reader opens NIfTI-1"
        np.testing.assert_allclose(ours.get_sform(), written.get_sform(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.get_qform(), written.get_qform(), rtol=1e-6, atol=1e-6)
        for field in ("dim", "sform_code", "qform_code", "pixdim", "xyzt_units"):
            np.testing.assert_allclose(ours[field], written[field], rtol=1e-6, err_msg=field)
    assert load(found / "mean.nii.gz").dtype == np.float32


def test_a_large_nifti_volume_with_odd_spacing_and_a_flipped_axis(tmp_path: Path, fake: Fake):
    image = np.zeros((512, 512, 3), np.int16)
    image[100:111, 300:321, 1], image[400:500, 7:9, 2] = 12, 25
    path = write_nifti(tmp_path / "ct.nii", image, affine((0, 1, 2), (1, -1, 1)))
    record = predict(fake(height=128, width=128), [path], tmp_path / "out", samples=1)
    np.testing.assert_array_equal(load(tmp_path / "out/ct/expert_1_Anna.nii.gz"), image > 10)
    np.testing.assert_array_equal(load(tmp_path / "out/ct/expert_2_B-.nii.gz"), image > 20)
    (of,) = record["inputs"]
    (first,), (second,) = of["experts"].values()
    assert first["pixels"] == 231 + 200
    assert first["area_px"] == 231
    assert first["area_mm2"] == pytest.approx(231 * 0.71 * 1.3)
    assert first["volume_ml"] == pytest.approx(431 * 0.71 * 1.3 * 2.25 / 1000)
    assert second["pixels"] == 200
    assert of["shape"] == [3, 512, 512]
    assert (of["tiled"], record["tile"]) == (True, [128, 128])
    assert of["spacing_mm"] == pytest.approx([2.25, 1.3, 0.71])


def test_a_nifti_file_of_the_other_byte_order_and_without_a_place_of_its_own(tmp_path: Path, fake: Fake):
    image = values((9, 8, 4)).astype(">i2")
    source = nibabel.Nifti1Image(image, None, nibabel.Nifti1Header(endianness=">"))
    source.header.set_data_dtype(">i2")
    source.header.set_zooms((0.5, 0.75, 2.0))
    nibabel.save(source, tmp_path / "a.nii")
    written = header(tmp_path / "a.nii")
    assert (written.endianness, written["sform_code"], written["qform_code"]) == (">", 0, 0)
    predict(fake(), [tmp_path / "a.nii"], tmp_path / "out", samples=1)
    np.testing.assert_array_equal(load(tmp_path / "out/a/expert_1_Anna.nii.gz"), image > 10)
    ours = header(tmp_path / "out/a/expert_1_Anna.nii.gz")
    assert (ours["sform_code"], ours["qform_code"]) == (0, 0)
    np.testing.assert_array_equal(ours.get_best_affine(), written.get_best_affine())


@pytest.mark.parametrize("shape", [(20, 31), (20, 31, 1)], ids=str)
def test_a_nifti_slice_stays_one(tmp_path: Path, fake: Fake, shape: tuple[int, ...]):
    image = values(shape)
    path = write_nifti(tmp_path / "slice.nii", image, affine((1, 0, 2), (-1, 1, 1)))
    record = predict(fake(), [path], tmp_path / "out", samples=1)
    np.testing.assert_array_equal(load(tmp_path / "out/slice/expert_1_Anna.nii.gz"), image > 10)
    (measure,) = record["inputs"][0]["experts"]["expert_1_Anna"]
    assert measure["area_px"] == (image > 10).sum()


def test_channels_of_a_nifti_volume_make_one_mask(tmp_path: Path, fake: Fake):
    image = values((9, 8, 4, 3))
    path = write_nifti(tmp_path / "mr.nii.gz", image, affine((2, 0, 1), (1, -1, 1)))
    predict(fake(channels=3), [path], tmp_path / "out", samples=1)
    np.testing.assert_array_equal(load(tmp_path / "out/mr/expert_1_Anna.nii.gz"), image[..., 0] > 10)


def test_scaled_numbers_of_a_nifti_file_do_not_scale_the_masks(tmp_path: Path, fake: Fake):
    image = values((9, 8, 4))
    path = write_nifti(tmp_path / "a.nii", image, affine((0, 1, 2), (1, 1, 1)), slope=2.0, inter=-3.0)
    predict(fake(), [path], tmp_path / "out", samples=1)
    np.testing.assert_array_equal(load(tmp_path / "out/a/expert_1_Anna.nii.gz"), 2.0 * image - 3.0 > 10)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", None])
def test_an_nrrd_volume_is_segmented_in_its_own_axes(tmp_path: Path, fake: Fake, space: str | None):
    image = values((12, 19, 4))
    directions = affine((1, 2, 0), (1, -1, 1))[:3, :3].T
    header = {"spacings": [1.5, 2.5, 3.5]} if space is None else {
        "space": space, "space directions": directions, "space origin": [1.25, -2, 3], "space units": ["mm"] * 3,
    }  # fmt: skip
    nrrd.write(str(tmp_path / "a.nrrd"), image, dict(header))
    predict(fake(), [tmp_path / "a.nrrd"], tmp_path / "out", samples=1)
    mask, found = nrrd.read(str(tmp_path / "out/a/expert_2_B-.nrrd"))
    np.testing.assert_array_equal(mask, image > 20)
    assert mask.dtype == np.uint8
    for key, value in header.items():
        np.testing.assert_array_equal(found[key], value)
    mean, _ = nrrd.read(str(tmp_path / "out/a/mean.nrrd"))
    assert mean.dtype == np.float32


def test_several_classes_are_labels_and_maps_of_each(tmp_path: Path, fake: Fake):
    image = values((12, 19, 4))
    image[3:6, 2:9, 1:3] = 500
    place = affine((1, 2, 0), (1, -1, 1))
    source = write_nifti(tmp_path / "a.nii", image, place)
    space = {"space": "left-posterior-superior", "space directions": place[:3, :3].T, "space origin": place[:3, 3]}
    nrrd.write(str(tmp_path / "b.nrrd"), image, space)
    flat = write_image(tmp_path / "c.png", image[:, :, 0].astype(np.uint16))
    record = predict(fake(classes=2), [source, tmp_path / "b.nrrd", flat], tmp_path / "out", samples=1)
    expected = np.where(image > 110, 2, np.where(image > 10, 1, 0))
    np.testing.assert_array_equal(load(tmp_path / "out/a/expert_1_Anna.nii.gz"), expected)
    assert load(tmp_path / "out/a/mean.nii.gz").shape == (12, 19, 4, 2)
    np.testing.assert_array_equal(nrrd.read(str(tmp_path / "out/b/expert_1_Anna.nrrd"))[0], expected)
    maps, header = nrrd.read(str(tmp_path / "out/b/mean.nrrd"))
    np.testing.assert_allclose(maps[..., 1], expected == 2, atol=1e-6)
    assert np.isnan(header["space directions"][3]).all()
    reread = images.read(tmp_path / "out/b/mean.nrrd")
    assert reread.pixels.shape[0] == 2
    mask = np.asarray(Image.open(tmp_path / "out/c/expert_1_Anna.png"))
    assert set(np.unique(mask)) <= {0, 1, 2}
    _, second = record["inputs"][0]["experts"]["expert_1_Anna"]
    assert second["pixels"] == 3 * 7 * 2


def test_plain_files_give_png_and_npy(tmp_path: Path, fake: Fake):
    flat, deep = np.abs(values((21, 40))).astype(np.uint8), values((3, 20, 17))
    inputs = [
        write_image(tmp_path / "a.png", flat), write_image(tmp_path / "b.tif", flat.astype(np.uint16)),
        write_image(tmp_path / "c.npy", deep), write_pages(tmp_path / "d.tiff", [flat, flat.max() - flat]),
    ]  # fmt: skip
    record = predict(fake(), inputs, tmp_path / "out", samples=1)
    for name in ("a", "b"):
        mask = np.asarray(Image.open(tmp_path / "out" / name / "expert_1_Anna.png"))
        np.testing.assert_array_equal(mask, np.where(flat > 10, 255, 0))
        assert np.load(tmp_path / "out" / name / "mean.npy").shape == (21, 40)
    np.testing.assert_array_equal(np.load(tmp_path / "out/c/expert_1_Anna.npy"), deep > 10)
    np.testing.assert_array_equal(np.load(tmp_path / "out/d/sample_1.npy")[1], flat.max() - flat > 15)
    (measure,) = record["inputs"][2]["experts"]["expert_1_Anna"]
    assert measure == {"pixels": (deep > 10).sum(), "area_px": (deep > 10).sum((1, 2)).max(), "area_mm2": None,
                       "volume_ml": None}  # fmt: skip


# A real model


def test_a_slice_gets_what_the_loaded_model_says(tmp_path: Path, folder: Path, store: Store):
    image = store.image(3)[0]
    write_image(tmp_path / "a.npy", image)
    record = predict(proseg.load(folder), [tmp_path / "a.npy"], tmp_path / "out", samples=3, seed=5)
    said = proseg.load(folder).predict(image, samples=3, seed=5)
    unsure = proseg.load(folder).uncertainty(image, seed=5)
    found = tmp_path / "out/a"
    np.testing.assert_array_equal(np.load(found / "mean.npy"), said.mean)
    np.testing.assert_array_equal(np.load(found / "uncertainty_scan.npy"), unsure.from_z)
    np.testing.assert_array_equal(np.load(found / "uncertainty_raters.npy"), unsure.from_tau)
    for number in range(2):
        mask = np.asarray(Image.open(found / f"expert_{number + 1}_A{number + 1}.png"))
        np.testing.assert_array_equal(mask > 0, said.raters[number] > 0.5)
    areas = []
    for number in range(3):
        mask = np.asarray(Image.open(found / f"sample_{number + 1}.png"))
        np.testing.assert_array_equal(mask > 0, said.samples[number] > 0.5)
        areas.append(int((mask > 0).sum()))
    (summary,) = record["inputs"][0]["samples_mean"]
    assert summary["area_px"] == pytest.approx(np.mean(areas))
    assert record == json.loads((tmp_path / "out" / RECORD).read_text())


def test_without_a_window_a_file_is_standardised_as_for_training(
    tmp_path: Path, folder: Path, store: Store
):  # fmt: skip
    facts = json.loads((folder / DATA).read_text())
    (folder / DATA).write_text(json.dumps(facts | {"window": None}))
    image = store.image(3)[0].astype(np.float64)
    write_image(tmp_path / "a.npy", image * 7 + 300)
    predict(proseg.load(folder), [tmp_path / "a.npy"], tmp_path / "out", samples=1)
    said = proseg.load(folder).predict((image - image.mean()) / image.std(), samples=1)
    np.testing.assert_allclose(np.load(tmp_path / "out/a/mean.npy"), said.mean, atol=1e-4)


def test_the_same_seed_gives_the_same_files(tmp_path: Path, folder: Path, store: Store):
    write_image(tmp_path / "a.npy", np.tile(store.image(3)[0], (1, 2)))
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        predict(proseg.load(folder), [tmp_path / "a.npy"], tmp_path / name, samples=2, seed=seed)
    one, two, three = (np.load(tmp_path / name / "a/uncertainty_scan.npy") for name in ("one", "two", "three"))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, three)


def test_labels_are_those_of_the_evaluation():
    rng = np.random.default_rng(0)
    for classes in (1, 3):
        maps = rng.dirichlet(np.ones(classes + 1), (5, 6, 7)).transpose(0, 3, 1, 2)[:, :classes].astype(np.float32)
        masks = binarise(torch.from_numpy(maps)).numpy()  # [5, K, 6, 7]
        found = labels(maps)
        for number in range(classes):
            np.testing.assert_array_equal(found == number + 1, masks[:, number])
    assert labels(np.full((1, 1, 1), 0.5, np.float32)).item() == 0


# Tiles


@pytest.mark.parametrize(("length", "tile"), [(16, 16), (5, 16), (17, 16), (512, 128), (300, 16), (7, 1), (9, 2)])
def test_tiles_cover_every_place_and_add_up_to_one(length: int, tile: int):
    found = cover(length, tile)
    total = np.zeros(length)
    for start, share in zip(found.starts, found.shares, strict=True):
        assert 0 <= start <= length - found.length
        total[start : start + found.length] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert found.length == min(length, tile)


def test_tiles_overlap_and_count_least_at_their_borders():
    found = cover(512, 128)
    assert max(np.diff(found.starts)) <= 64
    assert found.shares[1][:16].max() < 0.01
    assert found.shares[1][64] > 0.99
    assert found.shares[0][0] == 1, "where there is no other tile"


@pytest.mark.parametrize("cell", [1, 2])
def test_tiles_give_pointwise_features_back(cell: int):
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 44, 38)).astype(np.float32))
    seen = set()

    def features_of(tiles: torch.Tensor) -> torch.Tensor:
        seen.add(tuple(tiles.shape[1:]))
        return 2 * tiles[..., ::cell, ::cell]

    whole = torch.cat([band for _, band in tiled(features_of, image, (16, 12), cell)], -2)
    torch.testing.assert_close(whole, 2 * image[..., ::cell, ::cell], rtol=0, atol=1e-5)
    assert seen == {(2, 16, 12)}, "every tile has the trained size"


def seams(model: ExportedModel, monkeypatch: pytest.MonkeyPatch, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All maps of an image, decoded in bands as low as can be, and at once."""
    found = []
    for pixels in (1, 2**30):
        monkeypatch.setattr("proseg.exported.DECODED_ROWS", pixels)
        bands = [*model.bands(image, Asked(samples=3, draws=8))]
        assert [top for top, _ in bands] == np.cumsum([0, *(maps.shape[-2] for _, maps in bands[:-1])]).tolist()
        assert (len(bands) > 1) == (pixels == 1)
        found.append(np.concatenate([maps for _, maps in bands], -2))
    return found[0], found[1]


@pytest.mark.parametrize(
    "changes",
    [{}, {"model.patch": 2}, {"model.z_grid": 3}, {"model.use_z": False}, {"method": "multihead_unet"}],
    ids=str,
)
def test_the_bands_of_an_image_have_no_seams(
    tmp_path: Path, tiny_config: TrainConfig, store: Store, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
):
    model = proseg.load(random_export(tmp_path / "model", tiny_config.with_values(changes), store))
    image = np.random.default_rng(0).normal(-300, 300, (1, 71, 37)).astype(np.float32)
    banded, whole = seams(model, monkeypatch, image)
    assert banded.shape == (2 + 3 + 1 + 2, 1, 71, 37)
    np.testing.assert_allclose(banded, whole, atol=2e-5)


def test_an_image_alike_everywhere_is_segmented_alike_in_every_tile(tmp_path: Path, folder: Path):
    image = np.tile(np.random.default_rng(0).normal(-300, 300, (8, 8)), (6, 6))  # its period is half a tile
    maps = proseg.load(folder).predict(image).raters
    np.testing.assert_allclose(maps[:, 16:24, 16:24], maps[:, 24:32, 24:32], atol=1e-5)


def test_each_tile_is_encoded_once(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    model, tiles = proseg.load(folder), []
    features = model.model.features
    monkeypatch.setattr(model.model, "features", lambda images: tiles.append(len(images)) or features(images))
    write_image(tmp_path / "a.npy", np.zeros((2, 32, 40), np.int16))
    predict(model, [tmp_path / "a.npy"], tmp_path / "out", samples=3, draws=8)
    assert sum(tiles) == 2 * 3 * 4


def test_without_uncertainty_its_maps_are_neither_computed_nor_written(
    tmp_path: Path, folder: Path, png: Path, monkeypatch: pytest.MonkeyPatch
):
    with_it = predict(proseg.load(folder), [png], tmp_path / "with", samples=2, draws=8)
    monkeypatch.setattr("proseg.exported.nested_draws", None)
    without = predict(proseg.load(folder), [png], tmp_path / "without", samples=2, draws=0)
    assert (with_it.pop("uncertainty_draws"), without.pop("uncertainty_draws")) == (8, 0)
    assert without == with_it
    names = [{path.name for path in (tmp_path / out / "a").iterdir()} for out in ("with", "without")]
    assert names[0] - names[1] == {"uncertainty_scan.npy", "uncertainty_raters.npy"}
    assert names[1] < names[0]


def test_more_draws_estimate_the_same_uncertainty_better(folder: Path, store: Store):
    model, image = proseg.load(folder), store.image(3)
    (few, more), truth = (
        (model.uncertainty(image, draws=n).from_z for n in (8, 64)),
        model.uncertainty(image, draws=800, seed=1).from_z,
    )
    assert np.abs(more - truth).mean() < 0.7 * np.abs(few - truth).mean()


# Errors


def refused(model: ExportedModel, inputs: list[Path], out: Path, match: str, **options: Any) -> None:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(DataError, match=match):
        predict(model, inputs, out, **options)
    assert sorted(out.parent.rglob("*")) == before, "nothing was written, nothing deleted"


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return write_image(tmp_path / "a.png", np.abs(values((12, 12))).astype(np.uint8))


@pytest.mark.parametrize("draws", [4, 10, -8])
def test_draws_of_which_no_variance_comes_are_refused(tmp_path: Path, fake: Fake, png: Path, draws: int):
    refused(fake(), [png], tmp_path / "out", f"draws = {draws} must be a multiple of 4 and at least 8", draws=draws)


@pytest.mark.parametrize("changes", [{"model.width": 8}, {"model.patch": 2}, {"model.width": 16}], ids=str)
def test_an_image_smaller_than_the_network_takes_is_refused_and_the_least_is_taken(
    tmp_path: Path, tiny_config: TrainConfig, store: Store, changes: dict[str, Any]
):
    config = tiny_config.with_values(changes)
    model = proseg.load(random_export(tmp_path / "model", config, store))
    least = fewest_pixels(config.model)
    for shape in {(1, least), (least, 1), (least, least), (1, 3 * 16)}:
        assert model.predict(np.zeros(shape), samples=1).mean.shape == shape
    if least > 1:
        side = least - 1
        small = write_nifti(tmp_path / "small.nii.gz", np.zeros((side, side, 1), np.int16), np.eye(4))
        words = (
            f"has {side} x {side} pixels, which are too few for this model: the longer side must have at least {least}"
        )
        refused(model, [small], tmp_path / "out", r"small\.nii\.gz: " + words)
        with pytest.raises(DataError, match=f"the image: {words}"):
            model.predict(np.zeros((side, side)))


@pytest.mark.parametrize("framing", ["zoom_linear", "crop"])
def test_a_tiny_image_is_no_obstacle_where_it_is_zoomed_or_filled_up(tmp_path: Path, folder: Path, framing: str):
    facts = json.loads((folder / DATA).read_text())
    (folder / DATA).write_text(json.dumps(facts | {"framing": framing}))
    small = write_image(tmp_path / "a.npy", np.zeros((2, 2), np.int16))
    at = "1,1" if framing == "crop" else None
    predict(proseg.load(folder), [small], tmp_path / "out", samples=1, draws=8, at=at)
    assert np.load(tmp_path / "out/a/mean.npy").shape == (2, 2)


def test_what_is_beyond_16_bits_is_clipped_as_for_training_and_counted(tmp_path: Path, fake: Fake):
    image = values((12, 12)).astype(np.int32)
    image[3, 4:6], image[0, 0] = 70_000, -40_000
    same = image.clip(-(2**15), 2**15 - 1).astype(np.int16)
    inputs = [write_image(tmp_path / "a.npy", image), write_image(tmp_path / "b.npy", same)]
    beyond, within = predict(fake(window=None, dtype="int16"), inputs, tmp_path / "out", samples=1)["inputs"]
    assert (beyond["clipped"], within["clipped"]) == (3, 0)
    for name in ("mean", "uncertainty_scan"):
        found = [np.load(tmp_path / "out" / one / f"{name}.npy") for one in "ab"]
        np.testing.assert_array_equal(*found)
    (other,) = predict(fake(window=None, dtype="float32"), inputs[:1], tmp_path / "other", samples=1)["inputs"]
    assert other["clipped"] == 0


def test_another_number_of_channels_is_refused(tmp_path: Path, fake: Fake, png: Path):
    model = fake(channels=2, channel_names=["t1", "t2"])
    refused(model, [png], tmp_path / "out", r"a\.png: has 1 channel\(s\); the model takes 2 \(t1, t2\)")


def test_a_damaged_second_input_leaves_nothing_behind(tmp_path: Path, fake: Fake, png: Path):
    damaged = tmp_path / "b.nii"
    write_nifti(damaged, values((9, 8, 4)), np.eye(4))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    refused(fake(), [png, damaged], tmp_path / "out", r"b\.nii: the file is damaged")


def test_inputs_that_cannot_be_read_are_refused(tmp_path: Path, fake: Fake, png: Path):
    refused(fake(), [tmp_path / "none.png"], tmp_path / "out", r"none\.png: no such file")
    (tmp_path / "a.txt").write_text("text")
    refused(fake(), [tmp_path / "a.txt"], tmp_path / "out", "must be NIfTI")
    (tmp_path / "b.png").write_text("text")
    refused(fake(), [tmp_path / "b.png"], tmp_path / "out", r"b\.png: the file is damaged")
    write_image(tmp_path / "c.npy", np.full((4, 4), 1e300))
    refused(fake(), [tmp_path / "c.npy"], tmp_path / "out", "too large for 32 bits")
    refused(fake(), [png], tmp_path / "out", "samples = 0", samples=0)


def test_inputs_of_one_name_are_refused(tmp_path: Path, fake: Fake, png: Path):
    other = write_image(tmp_path / "elsewhere" / "A.npy", values((12, 12)))
    refused(fake(), [png, other], tmp_path / "out", r"a\.png and .*A\.npy would both be written")


def test_names_that_are_only_a_suffix_or_that_of_the_record(tmp_path: Path, fake: Fake):
    inputs = [write_image(tmp_path / name, values((12, 12))) for name in (".npz", "...npy", f"{RECORD}.npy")]
    record = predict(fake(), inputs, tmp_path / "out", samples=1)
    assert [one["name"] for one in record["inputs"]] == [".npz", "...npy", f"{RECORD}.npy"]
    assert (tmp_path / "out" / RECORD).is_file()


def test_a_folder_that_exists_is_replaced_only_when_asked_and_only_a_prediction(
    tmp_path: Path, fake: Fake, png: Path
):  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    predict(fake(), [png], out, samples=1)  # an empty folder is no obstacle
    refused(fake(), [png], out, "exists; choose another folder, or add --force")
    other = write_image(tmp_path / "b.npy", values((12, 12)))
    predict(fake(), [other], out, samples=1, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["b", RECORD]
    (out / "thesis.txt").write_text("years of work")
    refused(fake(), [png], out, "no prediction of this program", force=True)
    (out / "thesis.txt").unlink()
    within = write_image(out / "b" / "mine.npy", values((12, 12)))
    refused(fake(), [within], out, "which --force would delete", force=True)
    refused(fake(), [other], png, "exists", samples=1)


def test_a_failed_replacement_keeps_the_earlier_prediction(tmp_path: Path, fake: Fake, png: Path):
    out = tmp_path / "out"
    predict(fake(), [png], out, samples=1)
    bad = write_image(tmp_path / "c.npy", np.full((4, 4), 1e300))
    refused(fake(), [png, bad], out, "too large", samples=1, force=True)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, fake: Fake, png: Path):
    tmp_path.chmod(0o755)
    (tmp_path / "locked").mkdir(mode=0o555)
    for folder in tmp_path.parents:
        if re.match("pytest|popen", folder.name):
            folder.chmod(0o755)
    with as_nobody():
        refused(fake(), [png], tmp_path / "locked" / "out", "cannot be written: Permission denied")


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, fake: Fake, png: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    refused(fake(), [png], tmp_path / "out", "cannot be written: No space left on device")


def test_a_system_that_cannot_ask_for_room_beforehand_predicts_the_same(
    tmp_path: Path, fake: Fake, png: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    predict(fake(), [png], tmp_path / "here", samples=1)
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    predict(fake(), [png], tmp_path / "mac", samples=1)
    assert tree(tmp_path / "mac") == tree(tmp_path / "here")


def test_a_model_that_does_not_know_its_size_is_refused(tmp_path: Path, fake: Fake, png: Path):
    with pytest.raises(CheckpointError, match="export it again"):
        predict(fake(height=None), [png], tmp_path / "out")


# The overlay


def test_the_overlay_shows_every_map_and_its_title_says_what_the_model_rests_on(tmp_path: Path):
    mask = np.zeros((2, 9, 12), np.uint8)
    mask[:, 3:6, 4:8] = (np.full((3, 4), 1), np.full((3, 4), 2))
    maps = {"mean": mask[0].astype(np.float32), "variance": np.zeros((9, 12), np.float32)}
    view = View("slice $1 of $2", mask[0], mask, maps, aspect=2.5)
    figure = overlay([view, view], ["A1", "a $ b $ c"], window=None, title="x$1$.nii, by a model of y: simulated")
    assert figure.get_suptitle() == "x$1$.nii, by a model of y: simulated"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A1", "a $ b $ c"]
    assert len(figure.axes) == 2 * 3 + 2, "two rows of an image and two maps, and a scale for each map"
    assert {axis.get_aspect() for axis in figure.axes[:6]} == {2.5}
    assert save(figure, tmp_path / "a.png").stat().st_size > 0


def test_the_overlay_shows_colours_as_they_are_and_fills_the_masks():
    colours = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    mask = np.zeros((2, 9, 12), np.uint8)
    mask[:, 3:6, 4:8] = 1
    figure = overlay([View("", colours, mask, {})], ["A1", "A2"], window=None, title="")
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    np.testing.assert_allclose(shown, colours / 255, atol=1e-6)
    assert len(figure.axes[0].collections) == 2 * 2, "of each expert the area and its outline"


def test_three_channels_of_8_bits_are_drawn_in_colours(
    tmp_path: Path, tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    views: list[View] = []
    monkeypatch.setattr("proseg.overlay.overlay", lambda given, *_, **__: views.extend(given) or Figure())
    facts = {"name": "dim", "label": "made by a test", "window": None, "height": TILE, "width": TILE}
    model = Thresholds(build(tiny_config, channels=3, raters=2), tiny_config, facts)
    colours = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    for out, at in (("whole", None), ("crop", "2,3")):
        predict(model, [write_image(tmp_path / "a.png", colours)], tmp_path / out, samples=1, at=at)
    np.testing.assert_array_equal(views[0].image, colours)
    np.testing.assert_array_equal(views[1].image, colours[:11, :10])
    assert views[1].experts.shape == (2, 11, 10)


def test_the_overlay_of_a_line_of_pixels_has_no_outlines():
    line = np.ones((1, 7))
    view = View("line", line, np.ones((2, 1, 7), np.uint8), {"mean": line})
    figure = overlay([view], ["A1", "A2"], window=(0.0, 2.0), title="")
    assert [len(axis.collections) for axis in figure.axes[:2]] == [0, 0]


# The command


def test_the_command(tmp_path: Path, folder: Path, png: Path):
    run = CliRunner().invoke(app, ["predict", str(folder), str(png), "--out", str(tmp_path / "out"), "--samples", "2"])
    assert run.exit_code == 0, run.output
    assert "a: the experts' masks have" in run.stdout
    with Image.open(tmp_path / "out/a/overlay.png") as overlay:
        assert min(overlay.size) > 200
    again = ["predict", str(folder), str(png), "--out", str(tmp_path / "out"), "--force", "--samples", "2", "--json"]
    run = CliRunner().invoke(app, again)
    assert run.exit_code == 0, run.output
    record = json.loads(run.stdout)
    assert record["model"] == str(folder.resolve())
    assert list(record["experts"].values()) == ["A1", "A2"]


def test_the_commands_choice_of_uncertainty(tmp_path: Path, folder: Path, png: Path):
    words = ["predict", str(folder), str(png), "--samples", "1"]
    run = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a"), "--draws", "8"])
    assert run.exit_code == 0, run.output
    assert "Segmenting slices: 1 of 1 (100 %)" in run.stderr
    assert json.loads((tmp_path / "a" / RECORD).read_text())["uncertainty_draws"] == 8
    run = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--no-uncertainty"])
    assert run.exit_code == 0, run.output
    assert not [*(tmp_path / "b").rglob("uncertainty*")]
    run = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "c"), "--no-uncertainty", "--draws", "8"])
    assert run.exit_code == 2
    assert "--no-uncertainty leaves out; give one of the two" in run.stderr


@pytest.mark.parametrize("wrong", ["model", "input", "out"])
def test_the_commands_mistakes_are_one_sentence(tmp_path: Path, folder: Path, png: Path, wrong: str):
    out = tmp_path / "out"
    words = {"model": str(folder), "input": str(png), "out": str(out)} | {wrong: str(tmp_path / "missing.png")}
    if wrong == "out":
        words["out"] = str(folder)
    run = CliRunner().invoke(app, ["predict", words["model"], words["input"], "--out", words["out"]])
    assert run.exit_code == 2
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.strip().splitlines()) == 1
    assert not out.exists()
