"""What a model is asked to segment: DICOM series beside the NIfTI of the same voxels, files of one channel each,
tables, and points about which a crop is segmented."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import proseg
from cli.app import app
from proseg.config import TrainConfig
from proseg.data.store import Store
from proseg.errors import ConfigError, DataError
from proseg.exported import Asked, ExportedModel
from proseg.methods import build
from proseg.predict import RECORD, predict
from proseg.records import DATA
from tests.dicom import OBLIQUE, places, series_uid, write_series
from tests.images import LPS, RAS, load, values, write_image, write_nifti, write_pages
from tests.studies import random_export

TILE = 16
THRESHOLD = 10.0
FAILING = Path(__file__).parents[1] / ".." / "shared" / "data" / "failing"


class Bright(ExportedModel):
    """Both experts draw what is brighter than a threshold; the maps are the intensities of the last channel."""

    def bands(self, image: np.ndarray, asked: Asked) -> Iterator[tuple[int, np.ndarray]]:
        maps = self.drawn(image, asked.samples)
        yield 0, np.concatenate([maps, self.spread(image)]) if asked.draws else maps

    def drawn(self, tile: np.ndarray, samples: int) -> np.ndarray:
        return np.stack([(tile[:1] > THRESHOLD).astype(np.float32)] * (samples + 3))

    def spread(self, tile: np.ndarray) -> np.ndarray:
        return np.stack([tile[-1:]] * 2)


Fake = Callable[..., Bright]


@pytest.fixture
def fake(tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr("proseg.predict._draw", lambda *_: None)

    def make(*, channels: int = 1, window: Any = (-1000.0, 400.0), **data: Any) -> Bright:
        facts = {"name": "bright", "label": "made by a test", "window": window, "height": TILE, "width": TILE,
                 "rater_names": ["ann", "bob"], "channel_names": [], **data}  # fmt: skip
        return Bright(build(tiny_config, channels=channels, raters=2), tiny_config, facts)

    return make


@pytest.fixture
def folder(tmp_path: Path, tiny_config: TrainConfig, store: Store) -> Path:
    return random_export(tmp_path / "model", tiny_config, store)


def affine_of(path: Path) -> np.ndarray:
    return nibabel.load(path).affine  # type: ignore[attr-defined]


def refused(model: ExportedModel, inputs: list, out: Path, match: str, **options: Any) -> None:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(DataError, match=match) as caught:
        predict(model, inputs, out, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(out.parent.rglob("*")) == before, "nothing was written, nothing deleted"


# DICOM series


def test_an_oblique_series_in_reversed_order_gives_what_the_nifti_of_its_voxels_gives(tmp_path: Path, folder: Path):
    volume = np.random.default_rng(1).normal(0, 2, (4, 11, 9)).astype(np.int16)  # [n, H, W]
    spacing, step, origin = (0.71, 1.3), 2.25, (-31.5, 17.25, 400.125)
    write_series(tmp_path / "ct", volume, directions=OBLIQUE, step=step, origin=origin, backwards=True,
                 PixelSpacing=list(spacing))  # fmt: skip
    # The same voxels as another program would store them: [images from the last, rows, columns from the last].
    stored = volume[::-1, :, ::-1]
    row, column = np.array(OBLIQUE).reshape(2, 3)
    corner = places(4, OBLIQUE, step, origin)[-1] + row * spacing[1] * 8
    place = np.eye(4)
    place[:3] = np.column_stack([-np.cross(row, column) * step, column * spacing[0], -row * spacing[1], corner])
    write_nifti(tmp_path / "same.nii.gz", stored, np.diag([-1, -1, 1, 1]) @ place)

    model = proseg.load(folder)
    record = predict(model, [tmp_path / "ct", tmp_path / "same.nii.gz"], tmp_path / "out", samples=2)
    ours, theirs = tmp_path / "out/ct", tmp_path / "out/same"
    assert record["inputs"][0]["series"] == [series_uid("a")]
    names = sorted(path.name for path in theirs.glob("*.nii.gz"))
    assert names == sorted(path.name for path in ours.glob("*.nii.gz"))
    assert len(names) == 2 + 2 + 3
    for name in names:
        there, here = load(theirs / name), load(ours / name)
        assert here.shape == (9, 11, 4)
        # Every voxel of one, at the place in the world where it lies, has the value of the other.
        index = np.indices(here.shape).reshape(3, -1)
        world = affine_of(ours / name) @ np.vstack([index, np.ones(index.shape[1])])
        other = np.linalg.inv(affine_of(theirs / name)) @ world
        np.testing.assert_allclose(other[:3], other[:3].round(), atol=1e-3)
        np.testing.assert_array_equal(here[tuple(index)], there[tuple(other[:3].round().astype(int))])
    assert len(np.unique(load(ours / "mean.nii.gz"))) > 100
    first, second = (one["experts"] for one in record["inputs"])
    for expert, (measure,) in first.items():
        assert measure == pytest.approx(second[expert][0])


def test_a_masks_voxels_lie_where_the_headers_of_the_series_say(tmp_path: Path, fake: Fake):
    volume = np.zeros((5, 20, 30), np.int16)
    volume[3, 7, 11] = 50
    write_series(tmp_path / "mr", volume, directions=OBLIQUE, step=3, origin=(1, 2, 3), backwards=True, Modality="MR",
                 PixelSpacing=[0.5, 0.75])  # fmt: skip
    record = predict(fake(), [tmp_path / "mr"], tmp_path / "out", samples=1)
    path = tmp_path / "out/mr/expert_1_ann.nii.gz"
    (voxel,) = np.argwhere(load(path))
    row, column = np.array(OBLIQUE).reshape(2, 3)
    expected = np.array((1, 2, 3)) + 11 * 0.75 * row + 7 * 0.5 * column + 3 * 3 * np.cross(row, column)
    np.testing.assert_allclose(affine_of(path) @ (*voxel, 1), (-expected[0], -expected[1], expected[2], 1), atol=1e-4)
    header = nibabel.load(path).header  # type: ignore[attr-defined]
    assert (int(header["sform_code"]), int(header["qform_code"]), header.get_xyzt_units()[0]) == (1, 1, "mm")
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    (measure,) = record["inputs"][0]["experts"]["expert_1_ann"]
    assert measure["volume_ml"] == pytest.approx(0.5 * 0.75 * 3 / 1000)


def test_a_tilted_gantry_is_kept_and_does_not_add_volume(tmp_path: Path, fake: Fake):
    positions = places(4, (1, 0, 0, 0, 1, 0), 2, (0, 0, 0)) + np.arange(4)[:, None] * (0, 1, 0)
    write_series(tmp_path / "ct", np.full((4, 16, 16), 20, np.int16), positions=positions)
    record = predict(fake(), [tmp_path / "ct"], tmp_path / "out", samples=1)
    (measure,) = record["inputs"][0]["mean"]
    assert measure["volume_ml"] == pytest.approx(4 * 256 * 2 / 1000)
    path = tmp_path / "out/ct/mean.nii.gz"
    np.testing.assert_allclose(affine_of(path)[:3, 2], (0, -1, 2), atol=1e-6)
    header = nibabel.load(path).header  # type: ignore[attr-defined]
    assert int(header["qform_code"]) == 1
    np.testing.assert_allclose(np.abs(header.get_qform()[:3, :3].T @ header.get_qform()[:3, :3]).round(4),
                               np.diag(np.square(header["pixdim"][1:4])).round(4), atol=1e-3)  # fmt: skip


def test_one_image_of_a_series_is_a_volume_of_one_slice(tmp_path: Path, fake: Fake):
    volume = values((3, 20, 30))
    write_series(tmp_path / "ct", volume)
    shutil.copy(tmp_path / "ct/IM0002", tmp_path / "b.dcm")
    record = predict(fake(), [tmp_path / "ct/IM0002", tmp_path / "b.dcm"], tmp_path / "out", samples=1)
    for name in ("IM0002", "b"):
        np.testing.assert_array_equal(
            load(tmp_path / "out" / name / "expert_1_ann.nii.gz"), volume[1].T[..., None] > THRESHOLD
        )
    (measure,) = record["inputs"][0]["experts"]["expert_1_ann"]
    assert measure["area_mm2"] == (volume[1] > THRESHOLD).sum()
    assert measure["volume_ml"] is None


def test_a_series_is_chosen_by_its_uid(tmp_path: Path, fake: Fake):
    write_series(tmp_path / "ct", values((3, 20, 30)))
    write_series(tmp_path / "ct/more", values((4, 20, 30)), series="b")
    refused(fake(), [tmp_path / "ct"], tmp_path / "out", "holds 2 series; choose one with --series UID")
    record = predict(fake(), [tmp_path / "ct"], tmp_path / "out", samples=1, series=[series_uid("b")])
    assert record["inputs"][0]["shape"] == [4, 20, 30]


def test_a_series_that_no_input_has_is_refused(tmp_path: Path, fake: Fake):
    write_series(tmp_path / "ct", values((3, 20, 30)))
    write_nifti(tmp_path / "mr.nii.gz", values((9, 8, 4)), LPS)
    a, b = series_uid("a"), series_uid("b")
    inputs, said = [tmp_path / "ct", tmp_path / "mr.nii.gz"], "no input holds that series; the inputs are"
    refused(fake(), inputs, tmp_path / "out", rf"--series {b}: {said} {a} \({tmp_path / 'ct'}\)", series=[a, b])
    refused(fake(), inputs, tmp_path / "out", rf"--series {b}, 1\.2: {said} {a} ", series=[b, b, "1.2"])
    refused(fake(), inputs[1:], tmp_path / "out", rf"--series {a}: {said} no DICOM series$", series=[a])
    record = predict(fake(), inputs, tmp_path / "out", samples=1, series=[a])
    assert len(record["inputs"]) == 2


def test_a_series_with_a_damaged_image_leaves_nothing_behind(tmp_path: Path, fake: Fake):
    write_series(tmp_path / "ct", values((3, 20, 30)))
    path = tmp_path / "ct/IM0002"
    path.write_bytes(path.read_bytes()[:-9])
    refused(fake(), [tmp_path / "ct"], tmp_path / "out", "IM0002: damaged")


# Channels in several files


def mr_files(folder: Path, suffix: str = ".nii.gz") -> tuple[list[Path], np.ndarray]:
    """t1, t1c and t2, and their values [C, x, y, z]."""
    volumes = np.stack([values((9, 8, 4), seed) for seed in range(3)])
    names = [folder / f"case_7_{name}{suffix}" for name in ("t1", "t1c", "t2")]
    for path, volume in zip(names, volumes, strict=True):
        write_nifti(path, volume, LPS)
    return names, volumes


NAMES = ["t1", "t1c", "t2"]


def test_channels_of_several_files_make_one_image(tmp_path: Path, fake: Fake):
    files, volumes = mr_files(tmp_path)
    both = np.stack(volumes, -1)
    write_nifti(tmp_path / "one.nii.gz", both, LPS)
    model = fake(channels=3, channel_names=NAMES, window=None)
    inputs = [",".join(map(str, files)), tmp_path / "one.nii.gz"]
    record = predict(model, inputs, tmp_path / "out", samples=1)
    for path in (tmp_path / "out/one").glob("*.nii.gz"):
        np.testing.assert_array_equal(load(path), load(tmp_path / "out/case_7_t1" / path.name))
    first = record["inputs"][0]
    assert first["channels"] == {"t1": str(files[0]), "t1c": str(files[1]), "t2": str(files[2])}
    t2 = load(tmp_path / "out/one/uncertainty_scan.nii.gz")
    np.testing.assert_allclose(t2, (volumes[2] - volumes[2].mean()) / volumes[2].std(), atol=1e-4)


def test_channels_may_be_dicom_series(tmp_path: Path, fake: Fake):
    for number, name in enumerate(("t1", "t2")):
        write_series(tmp_path / name, values((3, 9, 8), number), series=name, Modality="MR")
    predict(fake(channels=2), [f"{tmp_path / 't1'},{tmp_path / 't2'}"], tmp_path / "out", samples=1)
    np.testing.assert_array_equal(load(tmp_path / "out/t1/uncertainty_scan.nii.gz"), values((3, 9, 8), 1).T)


def test_channels_that_do_not_belong_together_are_refused(tmp_path: Path, fake: Fake):
    (t1, t1c, t2), volumes = mr_files(tmp_path)
    out, model = tmp_path / "out", fake(channels=3, channel_names=NAMES)
    refused(model, [f"{t1},{t1c}"], out, r"has 2 channel\(s\); the model takes 3 \(t1, t1c, t2\), in one file, or in a")
    refused(model, [f"{t1},{t2},{t1c}"], out, "t2.nii.gz: stands where the model takes t1c.* order is t1, t1c, t2")
    refused(model, [f"{t1},,{t2}"], out, "leaves a name empty")
    refused(model, [f"{t1},{t1c},{tmp_path / 'none.nii'}"], out, r"none\.nii: no such file")
    write_nifti(t2, volumes[2], RAS)
    refused(model, [f"{t1},{t1c},{t2}"], out, "t2.nii.gz lies up to .* mm away from .*t1.nii.gz")
    write_nifti(t2, volumes[2][:, :, :3], LPS)
    refused(model, [f"{t1},{t1c},{t2}"], out, "t2.nii.gz is 3 x 8 x 9, but .*t1.nii.gz is 4 x 8 x 9")
    write_nifti(t2, np.stack(volumes, -1), LPS)
    refused(model, [f"{t1},{t1c},{t2}"], out, "t2.nii.gz has 3 channels; a file of one channel has one")


def test_a_file_with_a_comma_in_its_name_is_one_file(tmp_path: Path, fake: Fake):
    path = write_image(tmp_path / "a,b.npy", values((12, 12)))
    assert predict(fake(), [path], tmp_path / "out", samples=1)["inputs"][0]["name"] == "a,b"


# Tables


def test_a_table_names_images_channels_and_points(tmp_path: Path, fake: Fake):
    files, volumes = mr_files(tmp_path)
    names = [path.name for path in files]
    table = tmp_path / "list.csv"
    table.write_text(
        "image_t2,image_t1,image_t1c,name,patient,x,y,z\n"
        f"{names[2]},{names[0]},{names[1]},whole,p1,,,\n{names[2]},{names[0]},{names[1]},lesion,p1,4,3,1:2\n"
    )
    model = fake(channels=3, channel_names=NAMES)
    record = predict(model, [table], tmp_path / "out", samples=1)
    assert [one["name"] for one in record["inputs"]] == ["whole", "lesion"]
    np.testing.assert_array_equal(load(tmp_path / "out/whole/expert_1_ann.nii.gz"), volumes[0] > THRESHOLD)
    crop = load(tmp_path / "out/lesion/expert_1_ann.nii.gz")
    np.testing.assert_array_equal(crop[..., 1:3], volumes[0][..., 1:3] > THRESHOLD)
    assert not crop[..., [0, 3]].any()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_as_pandas_writes_it(tmp_path: Path, fake: Fake, suffix: str):
    write_nifti(tmp_path / "a.nii.gz", values((40, 30, 4)).clip(11), LPS)
    write_nifti(tmp_path / "b.nii.gz", values((20, 20, 2)), LPS)
    table = tmp_path / f"list.{suffix}"
    columns = {"Image": ["a.nii.gz", "b.nii.gz"], "NAME": ["001", "2"],
               **{axis: [place, None] for axis, place in (("X", 13.0), ("y", 22.0), ("z", 2.0))}}  # fmt: skip
    if suffix == "parquet":
        pq.write_table(pa.table(columns), table)
    else:
        table.write_text("Image,NAME,X,y,z\na.nii.gz,001,13.0,22.0,2.0\nb.nii.gz,2,,,\n")
    record = predict(fake(), [table], tmp_path / "out", samples=1)
    first, second = record["inputs"]
    assert (first["name"], first["at"]["point"], second["name"], second["at"]) == ("001", "13,22,2", "2", None)
    mask = load(tmp_path / "out/001/expert_1_ann.nii.gz")
    assert mask[13 - 8 : 13 + 8, 22 - 8 : 22 + 8, 2].all()
    assert mask.sum() == 16 * 16


@pytest.mark.skipif(not FAILING.is_dir(), reason="the shared folder of small inputs is not here")
def test_small_inputs_that_were_refused_wrongly_or_ended_in_a_traceback(tmp_path: Path, fake: Fake, folder: Path):
    record = predict(fake(), [FAILING / "points_float.csv"], tmp_path / "out", samples=1)
    assert [one["name"] for one in record["inputs"]] == ["001", "2"]
    assert record["inputs"][0]["at"] == {"point": "13,22,2", "crop": [16, 16], "slices": 1}
    model = proseg.load(folder)
    model.config = model.config.with_values({"model.width": 8, "model.patch": 2})
    refused(model, [FAILING / "tiny_2x2.nii.gz"], tmp_path / "none", "has 2 x 2 pixels, .* must have at least 3")


def test_columns_of_channels_may_be_in_capitals(tmp_path: Path, fake: Fake):
    files, volumes = mr_files(tmp_path)
    names = ",".join(path.name for path in files)
    (tmp_path / "list.csv").write_text(f"IMAGE_T1,Image_T1c,image_t2\n{names}\n")
    predict(fake(channels=3, channel_names=NAMES), [tmp_path / "list.csv"], tmp_path / "out", samples=1)
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    np.testing.assert_array_equal(load(folder / "expert_1_ann.nii.gz"), volumes[0] > THRESHOLD)


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "the file is empty"), ("image\n", "has no rows"), ("picture\na.npy\n", "expected a column 'image'"),
     ("image,name\n,b\n", "row 2: the cell of column 'image' is empty"),
     ("image\nnone.npy\n", r"none\.npy: no such file"), ("image,name\na.npy,../b\n", "is no name of a folder"),
     ("image,x,y\na.npy,1,\n", "row 2: a point has x and y"), ("image,x,y\na.npy,1,b\n", "row 2: '1,b' is no point"),
     ("image,x,y\na.npy,1,99\n", "the point 1,99 lies outside of its 12 x 12 voxels"),
     ("image,IMAGE\na.npy,a.npy\n", "the column 'image' stands there twice"),
     ("image,x,y\na.npy,1.5,2\n", "row 2: '1.5,2' is no point: .* in whole voxels"),
     ("image\na.npy\na.npy\n", "would both be written to a folder a"), ("image_t1,image_t2\na.npy,a.npy\n", "channel"),
     ("image\na.npy,b\n", "row 2: has 2 cells"), ("image;x\na.npy;1\n", "divided by ';'")],
    ids=str,
)  # fmt: skip
def test_tables_with_mistakes_are_refused(tmp_path: Path, fake: Fake, text: str, match: str):
    write_image(tmp_path / "a.npy", values((12, 12)))
    (tmp_path / "list.csv").write_text(text)
    refused(fake(), [tmp_path / "list.csv"], tmp_path / "out", match)


def test_the_columns_of_a_table_must_be_the_models_channels(tmp_path: Path, fake: Fake):
    (tmp_path / "list.csv").write_text("image_t1,image_flair\na.npy,b.npy\n")
    model = fake(channels=2, channel_names=["t1", "t2"])
    refused(model, [tmp_path / "list.csv"], tmp_path / "out", "image_flair; the model takes image_t1, image_t2")


# A crop about a point


def test_a_crop_is_what_the_model_says_of_it_and_the_rest_is_empty(tmp_path: Path, folder: Path, store: Store):
    image = np.tile(store.image(3)[0], (3, 4))
    write_image(tmp_path / "a.npy", image)
    model = proseg.load(folder)
    record = predict(model, [tmp_path / "a.npy"], tmp_path / "out", samples=2, at="30,21")
    rows, columns = slice(21 - 8, 21 + 8), slice(30 - 8, 30 + 8)
    said, unsure = model.predict(image[rows, columns], samples=2), model.uncertainty(image[rows, columns])
    for name, expected in (("mean", said.mean), ("uncertainty_scan", unsure.from_z)):
        found = np.load(tmp_path / "out/a" / f"{name}.npy")
        assert found.shape == image.shape
        np.testing.assert_array_equal(found[rows, columns], expected)
        found[rows, columns] = 0
        assert not found.any()
    (one,) = record["inputs"]
    assert one["at"] == {"point": "30,21", "crop": [16, 16], "slices": 1}


@pytest.mark.parametrize("point", [(0, 0), (24, 0), (24, 20), (3, 19)], ids=str)
def test_a_crop_at_the_border_is_filled_up_as_for_training(tmp_path: Path, folder: Path, point: tuple[int, int]):
    image = np.random.default_rng(2).normal(0, 1, (21, 25)).astype(np.float32)
    write_image(tmp_path / "a.npy", image)
    model = proseg.load(folder)
    x, y = point
    predict(model, [tmp_path / "a.npy"], tmp_path / "out", samples=1, at=f"{x},{y}")
    padded = np.pad(image, 8, constant_values=image.min())
    expected = model.predict(padded[y : y + 16, x : x + 16], samples=1).mean
    found = np.pad(np.load(tmp_path / "out/a/mean.npy"), 8)
    inside = np.pad(np.ones(image.shape, bool), 8)[y : y + 16, x : x + 16]
    np.testing.assert_array_equal(found[y : y + 16, x : x + 16], np.where(inside, expected, 0))


@pytest.mark.parametrize(
    ("axes", "at", "slices"),
    [((0, 1, 2), "20,9,1:2", 2), ((2, 0, 1), "1:2,20,9", 0), ((1, 2, 0), "9,1:2,20", 1)],
    ids=str,
)  # fmt: skip
def test_a_point_is_counted_in_the_files_own_axes(
    tmp_path: Path, fake: Fake, axes: tuple[int, ...], at: str, slices: int
):  # fmt: skip
    place, sizes = np.eye(4), (40, 30, 4)
    place[:3, :3] = 0
    for axis, along in enumerate(axes):
        place[along, axis] = (1.5, -1.0, 2.0)[along]
    image = values(tuple(sizes[along] for along in axes)).clip(11)  # all of it is bright
    write_nifti(tmp_path / "a.nii", image, place)
    predict(fake(), [tmp_path / "a.nii"], tmp_path / "out", samples=1, at=at)
    mask = load(tmp_path / "out/a/expert_1_ann.nii.gz")
    assert mask.sum() == 16 * 16 * 2
    assert mask.take((1, 2), slices).sum() == mask.sum()
    middle = np.argwhere(mask).mean(0)
    expected = [sum(map(int, word.split(":"))) / len(word.split(":")) for word in at.split(",")]
    assert np.abs(middle - expected).max() <= 0.5


def test_points_in_pages_and_series(tmp_path: Path, fake: Fake):
    pages = np.full((3, 20, 30), 20, np.uint8)
    write_pages(tmp_path / "a.tif", list(pages))
    write_series(tmp_path / "ct", pages.astype(np.int16), backwards=True)
    for name in ("a.tif", "ct"):
        predict(fake(), [tmp_path / name], tmp_path / f"out-{name}", samples=1, at="29,0,2")
    mask = load(tmp_path / "out-ct/ct/expert_1_ann.nii.gz")
    np.testing.assert_array_equal(np.load(tmp_path / "out-a.tif/a/expert_1_ann.npy"), mask.T)
    assert mask[21:, :8, 2].all()
    assert mask.sum() == 9 * 8


@pytest.mark.parametrize(
    ("at", "match"),
    [("", "--at '' is no point: write X,Y"), ("5", "is no point"), ("5,x", "is no point"), ("-1,5,0", "is no point"),
     ("1.5,2,0", "is no point"), ("1,2,3,4", "is no point"), ("5,5,3:2", "is no point"), ("5,5", "has 3 axes, but"),
     ("5,5,4", "lies outside of its 9 x 8 x 4 voxels"), ("9,5,0", "outside"), ("1:3,5,0", "several voxels along"),
     ("5,5,0:9", "outside")],
    ids=str,
)  # fmt: skip
def test_points_that_are_none_are_refused(tmp_path: Path, fake: Fake, at: str, match: str):
    write_nifti(tmp_path / "a.nii", values((9, 8, 4)), LPS)
    refused(fake(), [tmp_path / "a.nii"], tmp_path / "out", match, at=at)


def test_a_point_is_for_one_image_and_for_models_of_crops(tmp_path: Path, fake: Fake):
    one, other = (write_image(tmp_path / f"{name}.npy", values((12, 12))) for name in "ab")
    refused(fake(), [one, other], tmp_path / "out", "a point in one image, but 2 are given; name the points in a table",
            at="1,1")  # fmt: skip
    refused(fake(framing="zoom_linear"), [one], tmp_path / "out", "zoomed as a whole; segment it without", at="1,1")


# How the training images came to their size


@pytest.mark.parametrize("framing", ["zoom_linear", "zoom_nearest"])
def test_where_training_images_were_zoomed_so_is_the_image(tmp_path: Path, folder: Path, framing: str):
    from proseg.data import frame

    facts = json.loads((folder / DATA).read_text())
    (folder / DATA).write_text(json.dumps(facts | {"framing": framing}))
    model = proseg.load(folder)
    image = np.random.default_rng(3).normal(0, 1, (40, 25)).astype(np.float32)
    write_image(tmp_path / "a.npy", image)
    record = predict(model, [tmp_path / "a.npy"], tmp_path / "out", samples=1)
    small = {"zoom_linear": frame.zoom_linear, "zoom_nearest": frame.zoom_nearest}[framing](image, 16, 16)
    expected = frame.zoom_linear(model.predict(small, samples=1).mean, 40, 25)
    np.testing.assert_allclose(np.load(tmp_path / "out/a/mean.npy"), expected, atol=1e-6)
    assert not record["inputs"][0]["tiled"]
    assert record["data"]["framing"] == framing


@pytest.mark.parametrize("framing", [None, "zoom_linear"])
def test_python_says_what_the_command_writes(tmp_path: Path, folder: Path, framing: str | None):
    facts = json.loads((folder / DATA).read_text())
    (folder / DATA).write_text(json.dumps(facts | {"framing": framing}))
    image = np.random.default_rng(4).normal(0, 1, (21, 40)).astype(np.float32)
    write_image(tmp_path / "a.npy", image)
    command = ["predict", str(folder), str(tmp_path / "a.npy"), "--out", str(tmp_path / "out"), "--samples", "2"]
    assert CliRunner().invoke(app, command).exit_code == 0
    model = proseg.load(folder)
    said, unsure = model.predict(image, samples=2), model.uncertainty(image)
    for name, expected in (("mean", said.mean), ("uncertainty_scan", unsure.from_z),
                           ("uncertainty_raters", unsure.from_tau)):  # fmt: skip
        np.testing.assert_array_equal(np.load(tmp_path / "out/a" / f"{name}.npy"), expected)
    assert said.samples.shape == (2, 21, 40)


# Axes


def test_axes_that_are_named_are_those_of_the_image_and_the_record_says_how_it_was_read(tmp_path: Path, fake: Fake):
    path = write_image(tmp_path / "a.npy", values((20, 24, 3)))
    refused(fake(channels=3), [path], tmp_path / "out", "--axes yxc")
    record = predict(fake(channels=3), [path], tmp_path / "out", samples=1, axes="yxc")
    assert record["inputs"][0]["shape"] == [20, 24]
    write_series(tmp_path / "ct", values((3, 9, 8)))
    write_image(tmp_path / "b.png", np.abs(values((9, 8))).astype(np.uint8))
    for one in ("ct", "b.png"):
        refused(fake(), [tmp_path / one], tmp_path / "none", "--axes zyx: all files say by themselves", axes="zyx")


def test_axes_are_those_of_the_inputs_that_do_not_say_them(tmp_path: Path, fake: Fake):
    write_image(tmp_path / "v.npy", values((3, 9, 8)))
    write_image(tmp_path / "a.png", np.abs(values((9, 8))).astype(np.uint8))
    write_series(tmp_path / "ct", values((3, 9, 8)))
    record = predict(
        fake(), [tmp_path / name for name in ("v.npy", "a.png", "ct")], tmp_path / "out", samples=1, axes="zyx"
    )
    assert [one["shape"] for one in record["inputs"]] == [[3, 9, 8], [9, 8], [3, 9, 8]]


def test_what_was_taken_in_one_of_two_ways_is_noted(tmp_path: Path, folder: Path):
    write_image(tmp_path / "a.npy", values((3, 20, 24)))
    command = ["predict", str(folder), str(tmp_path / "a.npy"), "--samples", "1", "--draws", "8"]
    run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    (note,) = json.loads((tmp_path / "out" / RECORD).read_text())["inputs"][0]["notes"]
    assert f"  note: {note}" in run.stdout


# The command


def test_the_command_says_what_it_left_out(tmp_path: Path, folder: Path):
    write_image(tmp_path / "a.npy", values((40, 40)))
    command = ["predict", str(folder), str(tmp_path / "a.npy"), "--samples", "1", "--device", "cpu"]
    run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "whole")])
    assert run.exit_code == 0, run.output
    assert "cut into such tiles; a model of crops about lesions" in run.stdout
    run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "crop"), "--at", "20,20"])
    assert run.exit_code == 0, run.output
    assert "only the 16 x 16 pixels about 20,20 were segmented, in 1 slice(s)" in run.stdout
    assert json.loads((tmp_path / "crop" / RECORD).read_text())["device"] == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "", "cuda:999", "mps"])
def test_devices_that_are_not_there_are_refused(folder: Path, tmp_path: Path, device: str):
    with pytest.raises(ConfigError, match=r"the device .* is not (known|there)"):
        proseg.load(folder, device=device)
    command = ["predict", str(folder), "x.npy", "--out", str(tmp_path / "out"), "--device", device]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 2
    assert run.stderr.startswith("error: the device")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_says_what_the_cpu_says(folder: Path, store: Store):
    image = store.image(3)
    here, there = (proseg.load(folder, device=device).predict(image) for device in ("cpu", "auto"))
    np.testing.assert_allclose(there.samples, here.samples, atol=1e-2)
