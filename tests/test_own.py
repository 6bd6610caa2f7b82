"""Data of one's own: what is read from a manifest and from a folder, and what is refused, in one sentence."""

import csv
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proseg.data import frame, intensities, own
from proseg.data.case import Slice
from proseg.data.kinds import Choices
from proseg.data.source import Source
from proseg.data.store import write
from proseg.errors import ConfigError, DataError, ManyFaults
from tests.images import LPS, RAS, as_nobody, write_image, write_nifti

PATIENTS, SIDE = 8, 12
RATERS = ("anna", "ben", "cem")
Row = dict[str, str]
Change = Callable[[list[Row]], object]


def source(path: Path, **changes: Any) -> Source:
    return own.source(path, "mine", Choices(**changes))


def slices(path: Path, **changes: Any) -> list[Slice]:
    """All of them, read as another process would read them."""
    found = pickle.loads(pickle.dumps(source(path, **changes)))
    return [one for part in found.parts for one in found.read(part).slices]


def refused(path: Path, **changes: Any) -> str:
    """The first sentence before any pixel is read."""
    with pytest.raises(DataError) as error:
        source(path, **changes)
    return error.value.sentences[0] if isinstance(error.value, ManyFaults) else one_sentence(error.value)


def refused_later(path: Path, **changes: Any) -> str:
    """The sentence when the pixels are read; the headers gave nothing away."""
    found = source(path, **changes)
    faults = [fault for part in found.parts for fault in found.read(part).faults]
    assert len(faults) == 1
    return faults[0]


def one_sentence(error: Exception) -> str:
    assert "\n" not in str(error)
    return str(error)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 1000, (SIDE, SIDE)).astype(np.int16)


def mask(number: int, rater: int) -> np.ndarray:
    """A square that grows with the rater's number."""
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    drawn[2 : 4 + rater, 2 : 5 + number % 3] = 1
    return drawn


def write_manifest(path: Path, rows: list[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A manifest of eight patients with a 2-D image each and three raters, its rows changed by a function."""

    def make(change: Change = lambda rows: None, suffix: str = ".npy") -> Path:
        rows = []
        for number in range(PATIENTS):
            row = {"image": f"images/p{number}{suffix}"}
            write_image(tmp_path / row["image"], picture(number).astype(np.uint16))
            for place, rater in enumerate(RATERS):
                row[f"mask_{rater}"] = f"{rater}/p{number}{suffix}"
                write_image(tmp_path / row[f"mask_{rater}"], mask(number, place))
            rows.append(row | {"patient": f"{number:03}"})
        change(rows)
        return write_manifest(tmp_path / "manifest.csv", rows)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same data as a folder."""
    for number in range(PATIENTS):
        write_image(tmp_path / "own" / f"images/p{number}.png", picture(number).astype(np.uint16))
        for place, rater in enumerate(RATERS):
            write_image(tmp_path / "own" / f"masks/{rater}/p{number}.png", mask(number, place) * 255)
    return tmp_path / "own"


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A manifest of eight volumes of three slices in NIfTI, 4 x 3 x 2 mm, stored from left to right."""
    rows = []
    for number in range(PATIENTS):
        stack = np.stack([picture(number) + 1000 * z for z in range(3)])
        write_nifti(tmp_path / f"v{number}.nii.gz", stack.T, RAS)
        row = {"image": f"v{number}.nii.gz", "patient": f"p{number}"}
        for place, rater in enumerate(RATERS[:2]):
            masks = np.stack([mask(number, place) * (z != 1) for z in range(3)])
            write_nifti(tmp_path / f"v{number}-{rater}.nii.gz", masks.T, RAS)
            row[f"mask_{rater}"] = f"v{number}-{rater}.nii.gz"
        rows.append(row)
    return write_manifest(tmp_path / "volumes.csv", rows)


# A manifest


@pytest.mark.parametrize("suffix", [".npy", ".png", ".tif", ".nii.gz", ".nrrd"])
def test_a_manifest_of_slices_is_read(make: Callable[..., Path], suffix: str):
    path = make(suffix=suffix)
    found = source(path, window=(0, 1000))
    assert found.description.unit == "slice"
    assert (found.raters, found.channels, found.folds, found.skipped) == (RATERS, (), None, ())
    read = slices(path, window=(0, 1000))
    for number, one in enumerate(read):
        np.testing.assert_array_equal(one.image, picture(number)[None])
        assert one.image.dtype == np.int16
        np.testing.assert_array_equal(one.annotations, [mask(number, rater) for rater in range(3)])
        assert one.annotations.dtype == bool
        assert (one.patient, one.volume, one.z) == (f"{number:03}", f"images/p{number}{suffix}", 0)
        assert one.rater_mask.tolist() == [True, True, True]
    assert len(read) == PATIENTS


def test_a_parquet_manifest_is_the_same(make: Callable[..., Path], tmp_path: Path):
    path = make(lambda rows: rows[3].update(mask_ben=""))
    with path.open(newline="") as file:
        rows = [{name: cell or None for name, cell in row.items()} for row in csv.DictReader(file)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    for ours, theirs in zip(slices(path), slices(tmp_path / "manifest.parquet"), strict=True):
        np.testing.assert_array_equal(ours.annotations, theirs.annotations)
        assert (ours.patient, ours.volume) == (theirs.patient, theirs.volume)


def test_a_manifest_may_have_a_byte_order_mark_blank_lines_and_spaces(make: Callable[..., Path]):
    path = make()
    lines = path.read_text().replace(",", " , ").splitlines()
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    assert len(slices(path)) == PATIENTS
    path.write_text(path.read_text().replace("p3", "p9"), encoding="utf-8")
    assert refused(path).startswith(f"{path}, row 9, image: ")  # blank lines count, as in an editor


def test_an_empty_cell_is_a_missing_rater(make: Callable[..., Path]):
    one = slices(make(lambda rows: rows[1].update(mask_ben="")))[1]
    assert one.rater_mask.tolist() == [True, False, True]
    assert not one.annotations[1].any()


def test_slices_of_a_volume_come_together_and_ascend(make: Callable[..., Path]):
    places = [("a", "2"), ("b", "1"), ("a", "-0.5"), ("c", ""), ("d", ""), ("c", ""), ("b", "0"), ("a", "1")]
    parts = {"a": "train", "b": "train", "c": "val", "d": "test"}

    def change(rows: list[Row]) -> None:
        for row, (volume, number) in zip(rows, places, strict=True):
            row.update(patient=f"patient {volume}", volume=volume, slice=number, split=parts[volume])

    read = slices(make(change), window=(0, 1000))
    assert [(one.volume, one.z) for one in read] == [
        ("a", -0.5), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("c", 0), ("c", 1), ("d", 0),
    ]  # fmt: skip
    np.testing.assert_array_equal(read[0].image[0], picture(2))


def test_a_slice_number_without_a_volume_counts_within_the_patient(make: Callable[..., Path]):
    one = slices(make(lambda rows: [row.update(slice=str(n)) for n, row in enumerate(rows)]))[3]
    assert (one.volume, one.z) == ("003", 3)


def test_the_split_becomes_the_fold(make: Callable[..., Path]):
    parts = ["train"] * 5 + ["val", "test", "test"]
    path = make(lambda rows: [row.update(split=part) for row, part in zip(rows, parts, strict=True)])
    (fold,) = source(path).folds or ()
    assert fold.index == 0
    assert (fold.train, fold.val, fold.test) == (("000", "001", "002", "003", "004"), ("005",), ("006", "007"))


def test_channels_may_lie_in_files_of_their_own(make: Callable[..., Path], tmp_path: Path):
    def change(rows: list[Row]) -> None:
        for number, row in enumerate(rows):
            row["image_t1"] = row.pop("image")
            row["image_t2"] = f"t2/p{number}.npy"
            write_image(tmp_path / row["image_t2"], picture(number + 50))

    path = make(change)
    assert source(path).channels == ("t1", "t2")
    one = slices(path, window=(0, 1000))[2]
    np.testing.assert_array_equal(one.image, [picture(2), picture(52)])
    write_image(tmp_path / "t2/p4.npy", picture(4)[1:])
    assert refused(path).endswith(f"t2/p4.npy is 11 x 12, but {tmp_path}/images/p4.npy is 12 x 12")


def test_colours_are_channels(make: Callable[..., Path], tmp_path: Path):
    path = make(suffix=".png")
    for number in range(PATIENTS):
        write_image(tmp_path / f"images/p{number}.png", np.stack([picture(number).astype(np.uint8)] * 3, axis=2))
    assert [one.image.shape for one in slices(path)] == [(3, SIDE, SIDE)] * PATIENTS
    write_image(tmp_path / "images/p5.png", picture(5).astype(np.uint8))
    assert refused(path).endswith(f"p5.png: has 1 channels, but {tmp_path}/images/p0.png has 3")


# A folder


def test_a_folder_is_read_and_says_that_patients_are_not_known(folder: Path):
    found = source(folder, label="eyes")
    assert found.raters == RATERS
    assert found.description.label == "eyes; each image taken for a patient of its own"
    for number, one in enumerate(slices(folder, window=(0, 1000))):
        np.testing.assert_array_equal(one.image, picture(number)[None])
        np.testing.assert_array_equal(one.annotations, [mask(number, rater) for rater in range(3)])
        assert (one.patient, one.volume) == (f"p{number}", f"p{number}")


def test_a_folder_may_say_whose_the_images_are(folder: Path):
    write_manifest(folder / "patients.csv", [{"image": f"p{n}.png", "patient": f"{n:02}"} for n in range(8)])
    assert source(folder, label="eyes").description.label == "eyes"
    assert [one.patient for one in slices(folder)][:2] == ["00", "01"]
    rows = [{"image": f"p{n}.png", "patient": "x"} for n in range(9)]
    assert refused(write_manifest(folder / "patients.csv", rows).parent).endswith(
        "names p8.png, but there is no image of this name"
    )
    write_manifest(folder / "patients.csv", rows[:-2])
    assert "does not name p7.png" in refused(folder)
    write_manifest(folder / "patients.csv", [*rows[:8], rows[0]])
    assert "row 10: p0.png is named twice" in refused(folder)
    write_manifest(folder / "patients.csv", [row | {"patient": ""} for row in rows[:8]])
    assert "row 2: the patient is not named" in refused(folder)
    write_manifest(folder / "patients.csv", [{"file": "p0.png", "patient": "x"}])
    assert "the column 'image' is missing; found 'file', 'patient'" in refused(folder)


def test_a_mask_may_be_missing_or_of_another_type(folder: Path):
    (folder / "masks/ben/p1.png").unlink()
    (folder / "masks/ben/p2.png").unlink()
    np.save(folder / "masks/ben/p2.npy", mask(2, 1))
    read = slices(folder)
    assert read[1].rater_mask.tolist() == [True, False, True]
    np.testing.assert_array_equal(read[2].annotations[1], mask(2, 1))


def test_a_folder_for_each_part_becomes_the_fold(folder: Path):
    for number in range(PATIENTS):
        part = {6: "val", 7: "test"}.get(number, "train")
        for place in ("images", *(f"masks/{rater}" for rater in RATERS)):
            (folder / part / place).mkdir(parents=True, exist_ok=True)
            (folder / place / f"p{number}.png").rename(folder / part / place / f"p{number}.png")
    for place in (*(f"masks/{rater}" for rater in RATERS), "masks", "images"):
        (folder / place).rmdir()
    (fold,) = source(folder).folds or ()
    assert (fold.train, fold.val, fold.test) == (tuple(f"p{n}" for n in range(6)), ("p6",), ("p7",))
    twin = folder / "test/images/p1.png"
    write_image(twin, picture(1).astype(np.uint16))
    assert refused(folder).startswith(f"{twin}: has the name of {folder}/train/images/p1.png")
    twin.rename(folder / "test/images/p7.npy")
    assert "has the name of p7.npy" in refused(folder)


def test_files_that_are_hidden_do_not_count(folder: Path):
    (folder / "images/.DS_Store").write_bytes(b"")
    (folder / "masks/.DS_Store").write_bytes(b"")
    assert len(slices(folder)) == PATIENTS


# Volumes


def test_volumes_are_sliced_from_the_feet_up_and_keep_their_spacing(volumes: Path):
    found = source(volumes, window=(0, 3000))
    assert found.description.unit == "volume"
    assert len(found.parts) == PATIENTS
    read = slices(volumes, window=(0, 3000))
    assert len(read) == 3 * PATIENTS
    for z, one in enumerate(read[3:6]):
        np.testing.assert_array_equal(one.image[0], (picture(1) + 1000 * z)[::-1, ::-1])
        np.testing.assert_array_equal(one.annotations[1], (mask(1, 1) * (z != 1))[::-1, ::-1])
        assert one.rater_mask.tolist() == [True, True], "nothing drawn is not missing"
        assert (one.z, one.spacing, one.volume) == (4 * z, (4, 3, 2), "v1.nii.gz")


def test_volumes_become_a_store_that_is_evaluated_by_volume(volumes: Path, tmp_path: Path):
    found = source(volumes)
    read = (one for part in found.parts for one in found.read(part).slices)
    store = write(tmp_path / "store", read, found.description, found.folds)
    assert (store.manifest.slices, store.manifest.volumes, store.manifest.dtype) == (24, 8, "float32")
    assert [len(case) for case in store.cases(["p0", "p5"])] == [3, 3]


def test_a_mask_that_lies_elsewhere_in_space_is_refused(volumes: Path, tmp_path: Path):
    drawn = np.stack([mask(2, 0)] * 3).T
    path = write_nifti(tmp_path / "v2-anna.nii.gz", drawn, LPS)  # left and right exchanged
    sentence = refused_later(volumes)
    assert sentence.startswith(f"{path}: the mask of rater 'anna' in {volumes}, row 4 lies up to ")
    assert sentence.endswith(f"mm away from {tmp_path}/v2.nii.gz, by what both files say")
    shifted = np.array(RAS)
    shifted[0, 3] += 0.9  # less than half a pixel: rounding
    write_nifti(path, drawn, shifted)
    assert len(slices(volumes)) == 24


def test_a_mask_that_does_not_say_where_it_lies_is_refused_on_an_image_that_does(volumes: Path, tmp_path: Path):
    np.save(tmp_path / "v2-anna.npy", np.stack([mask(2, 0)] * 3))
    volumes.write_text(volumes.read_text(encoding="utf-8").replace("v2-anna.nii.gz", "v2-anna.npy"), encoding="utf-8")
    assert "as it does not say where in space it lies; use files of one type" in refused_later(volumes)


def test_slices_and_volumes_are_not_mixed(volumes: Path, tmp_path: Path):
    np.save(tmp_path / "flat.npy", picture(0))
    volumes.write_text(volumes.read_text(encoding="utf-8").replace("v2.nii.gz", "flat.npy"), encoding="utf-8")
    assert refused(volumes).endswith("flat.npy: is 2-D, while other images are volumes; prepare them as two data sets")


def test_a_volume_has_no_slice_number_and_comes_once(volumes: Path):
    with volumes.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    write_manifest(volumes, [row | {"slice": "1"} for row in rows])
    assert "is a volume and has a slice number" in refused(volumes)
    rows[1]["volume"] = rows[2]["volume"] = "same"
    rows[2]["patient"] = rows[1]["patient"]
    rows.append({"image": "v8.nii.gz", "mask_anna": "v8-anna.nii.gz", "patient": "p8", "volume": ""})
    for name in ("v8", "v8-anna"):
        write_nifti(volumes.with_name(f"{name}.nii.gz"), np.zeros((SIDE, SIDE, 3), np.int16), RAS)
    write_manifest(volumes, rows)
    assert refused(volumes).endswith(f"volume 'same' stands there a second time, after {volumes}, row 3")


def test_a_file_with_one_slice_is_a_slice(volumes: Path):
    for path in volumes.parent.glob("*.nii.gz"):
        first = nibabel.load(path).slicer[:, :, :1]  # type: ignore[union-attr]
        nibabel.save(first, path.with_name(f"one-{path.name}"))
        path.with_name(f"one-{path.name}").replace(path)
    assert source(volumes).description.unit == "slice"
    assert slices(volumes)[1].spacing == (4, 3, 2)


# Intensities


def test_without_a_window_each_channel_of_each_file_has_zero_mean_and_unit_variance(volumes: Path):
    read = slices(volumes)
    stack = np.stack([one.image for one in read[:3]])
    assert stack.dtype == np.float32
    assert stack.mean() == pytest.approx(0, abs=1e-6)
    assert stack.std() == pytest.approx(1, abs=1e-6)
    assert abs(read[0].image.mean()) > 0.5, "a volume is normalised as a whole"


def test_an_image_of_one_value_becomes_zero(make: Callable[..., Path], tmp_path: Path):
    path = make()
    np.save(tmp_path / "images/p0.npy", np.full((SIDE, SIDE), 7))
    assert not slices(path)[0].image.any()


def test_whole_numbers_beyond_16_bits_are_clipped_where_the_window_ends_before(
    make: Callable[..., Path], tmp_path: Path
):
    path = make()
    values = np.full((SIDE, SIDE), 60_000, np.uint16)
    np.save(tmp_path / "images/p0.npy", values)
    assert slices(path, window=(0, 1000))[0].image.max() == 32767
    kept = slices(path, window=(0, 50_000))[0].image
    assert (kept.dtype, kept.max()) == (np.float32, 60_000)


def test_fractions_stay_as_they_are_with_a_window(make: Callable[..., Path], tmp_path: Path):
    path = make()
    np.save(tmp_path / "images/p0.npy", np.full((SIDE, SIDE), 0.25))
    read = slices(path, window=(0, 1000))
    assert {one.image.dtype for one in read} == {np.dtype(np.float32)}, "one type for all"
    assert read[0].image.max() == 0.25
    np.save(tmp_path / "images/p0.npy", np.full((SIDE, SIDE), 1e300))
    assert "too large for 32 bits" in refused_later(path, window=(0, 1000))


# Masks


def test_the_labels_of_several_classes_are_kept(make: Callable[..., Path], tmp_path: Path):
    path = make()
    labels = np.repeat(np.arange(4), 3)[None].repeat(SIDE, 0)
    np.save(tmp_path / "anna/p0.npy", labels.astype(np.float64))
    one = slices(path, classes=3)[0]
    assert one.annotations.dtype == np.uint8
    np.testing.assert_array_equal(one.annotations[0], labels)
    sentence = refused_later(path, classes=2)
    assert sentence == (
        f"{tmp_path}/anna/p0.npy: the mask of rater 'anna' in {path}, row 2 holds the labels 0, 1, 2, 3, where the "
        "labels 0 to 2 are expected: --classes 3, if there are so many"
    )


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (2, np.uint8, "the labels 0, 1, 2, where 0 and 1, or 0 and 255 are expected: --classes 2, if there are so"),
        (255, np.uint8, "the values 0, 1, 255, where 0 and 1, or 0 and 255 are expected: write labels from 0 up, or "
                        "choose with --threshold 128"),
        (-1, np.int16, "the values -1, 0, 1, where"),
        (0.5, np.float32, "0, 1 and 1 value between, where 0 and 1, or 0 and 255 are expected: --threshold 0.5, if it "
                          "shows an object in grey levels"),
        (300, np.int32, "the values 0, 1, 300, where"),
    ],
)  # fmt: skip
def test_values_that_are_no_label_are_refused(make, tmp_path: Path, value: float, dtype: type, said: str):
    path = make()
    drawn = mask(3, 1).astype(dtype)
    drawn[0, 0] = value
    np.save(tmp_path / "ben/p3.npy", drawn)
    expected = f"{tmp_path}/ben/p3.npy: the mask of rater 'ben' in {path}, row 5 holds {said}"
    assert refused_later(path).startswith(expected)


def test_a_mask_of_another_shape_is_refused(make: Callable[..., Path], tmp_path: Path):
    path = make()
    np.save(tmp_path / "cem/p7.npy", mask(7, 2)[:, 1:])
    assert refused(path) == (
        f"{tmp_path}/cem/p7.npy: the mask of rater 'cem' in {path}, row 9 is 12 x 11, but "
        f"{tmp_path}/images/p7.npy is 12 x 12; a mask has the size of its image"
    )


def test_a_volume_and_masks_that_do_not_go_with_it_are_never_unpacked(volumes: Path, tmp_path: Path, monkeypatch):
    """A small file can claim gigabytes of zeros."""
    write_nifti(tmp_path / "v3-ben.nii.gz", np.zeros((9, 8, 7), np.uint8), RAS)
    read: list[Path] = []
    monkeypatch.setattr(own.images, "read", lambda path: read.append(path))
    assert "is 7 x 8 x 9, but" in refused(volumes, size=(SIDE, SIDE))
    assert read == []


def test_normalising_a_volume_takes_little_more_than_its_memory():
    volume = np.random.default_rng(0).normal(7, 3, (2, 40, 64, 64)).astype(np.float32)
    expected = (volume - volume.mean((1, 2, 3), keepdims=True)) / volume.std((1, 2, 3), keepdims=True)
    tracemalloc.start()
    try:
        found = intensities.standardised(volume)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert peak < volume.nbytes / 4


def test_a_coloured_mask_is_refused(make: Callable[..., Path], tmp_path: Path):
    path = make(suffix=".png")
    write_image(tmp_path / "cem/p7.png", np.stack([mask(7, 2), mask(7, 1), mask(7, 0)], axis=2))
    assert "is a mask in 4 colours" in refused_later(path)


def test_pixels_that_are_nan_are_refused(make: Callable[..., Path], tmp_path: Path):
    path = make()
    values = np.zeros((SIDE, SIDE))
    values[4, 5] = np.nan
    np.save(tmp_path / "images/p6.npy", values)
    assert refused_later(path) == f"{tmp_path}/images/p6.npy: has 1 pixels that are NaN or infinite"


def test_virtual_raters_are_sorted_by_area_missing_ones_last(make: Callable[..., Path], tmp_path: Path):
    path = make(lambda rows: rows[1].update(mask_anna=""))
    np.save(tmp_path / "ben/p0.npy", np.ones((SIDE, SIDE), np.uint8))
    np.save(tmp_path / "ben/p2.npy", np.zeros((SIDE, SIDE), np.uint8))
    read = slices(path, sorted_raters=True)
    assert source(path, sorted_raters=True).raters == (), "they are nobody"
    areas = [one.annotations.sum((1, 2)).tolist() for one in read[:3]]
    assert areas == [[6, 12, 144], [12, 16, 0], [0, 10, 20]]
    assert [one.rater_mask.tolist() for one in read[:3]] == [[True] * 3, [True, True, False], [True] * 3]


# Size


def test_images_of_different_sizes_need_one(make: Callable[..., Path], tmp_path: Path):
    path = make()
    np.save(tmp_path / "images/p2.npy", picture(2)[:, :10])
    assert refused(path) == (
        f"{tmp_path}/images/p2.npy: is 12 x 10, but {tmp_path}/images/p0.npy is 12 x 12; say what all shall have, "
        "as in --size 12x12, which cuts nothing off"
    )


def test_a_crop_is_about_the_centre_and_filled_with_the_least_value(make: Callable[..., Path], tmp_path: Path):
    path = make()
    one = slices(path, size=(8, 16), window=(0, 1000))[0]
    np.testing.assert_array_equal(one.image[0, :, 2:14], picture(0)[2:10])
    np.testing.assert_array_equal(one.annotations[2, :, 2:14], mask(0, 2)[2:10])
    assert (one.image[0, :, :2] == picture(0).min()).all()
    assert not one.annotations[:, :, 14:].any()
    assert np.isnan(one.spacing).all()


def test_a_zoom_is_linear_for_images_and_nearest_for_masks_and_changes_the_spacing(volumes: Path):
    one = slices(volumes, size=(6, 24), fit="zoom", window=(0, 3000))[0]
    assert one.image.shape == (1, 6, 24)
    assert one.image.dtype == np.int16
    np.testing.assert_array_equal(
        one.image[0, [0, 0, -1, -1], [0, -1, 0, -1]], picture(0)[[-1, -1, 0, 0], [-1, 0, -1, 0]]
    )
    assert set(np.unique(one.annotations)) == {False, True}
    assert one.spacing == (4, 6, 1)
    assert source(volumes, size=(6, 24), fit="zoom").framing == "zoom_linear"
    assert source(volumes, size=(6, 24)).framing == "crop"
    assert source(volumes).framing is None


def test_linear_zoom_of_known_values():
    ramp = np.array([[0.0, 10.0], [20.0, 30.0]])
    np.testing.assert_allclose(frame.zoom_linear(ramp, 3, 3), [[0, 5, 10], [10, 15, 20], [20, 25, 30]])
    np.testing.assert_allclose(frame.zoom_linear(ramp[None], 2, 2)[0], ramp)
    np.testing.assert_allclose(frame.zoom_linear(np.arange(5.0)[None], 1, 3), [[0, 2, 4]])
    assert frame.zoom_linear(np.full((2, 1, 1), 7, np.int16), 3, 2).tolist() == [[[7, 7]] * 3] * 2


# What is refused before a pixel is read


def test_a_path_that_is_neither_is_refused(tmp_path: Path):
    assert "there is no file" in refused(tmp_path / "nothing.csv")
    assert "there is no file" in refused(tmp_path / "nothing")
    (tmp_path / "a.xlsx").write_bytes(b"")
    assert "expected a manifest (.csv, .parquet), or a folder" in refused(tmp_path / "a.xlsx")


CHANGES: dict[str, tuple[Change, str]] = {
    "a file that is not there": (
        lambda rows: rows[2].update(image="images/p9.npy"), "{m}, row 4, image: there is no file {d}/images/p9.npy"),
    "a mask that is not there": (
        lambda rows: rows[2].update(mask_ben="ben/p9.npy"), "{m}, row 4, mask_ben: there is no file {d}/ben/p9.npy"),
    "another type": (
        lambda rows: rows[2].update(image="manifest.csv"),
        "{m}, row 4, image: {d}/manifest.csv is of an unknown type; images"),
    "an empty image cell": (lambda rows: rows[2].update(image=""), "{m}, row 4: the cell of column 'image' is empty"),
    "no patient": (lambda rows: rows[2].update(patient=" "), "{m}, row 4: the patient is not named"),
    "a climb": (
        lambda rows: rows[2].update(image="images/../../a.npy"),
        "{m}, row 4, image: images/../../a.npy leads out of {d}; name files by their path below this folder"),
    "an absolute path": (lambda rows: rows[2].update(image="/etc/a.npy"), "{m}, row 4, image: /etc/a.npy leads out of"),
    "a zero byte": (lambda rows: rows[2].update(image="a\0.npy"), "{m}, row 4, image: a\0.npy leads out of"),
    "the same image twice": (
        lambda rows: rows[2].update(image=rows[0]["image"]),
        "{m}, row 4: {d}/images/p0.npy is named a second time, after {m}, row 2"),
    "the same mask twice": (
        lambda rows: rows[2].update(mask_ben=rows[2]["mask_anna"]),
        "{m}, row 4: {d}/anna/p2.npy is named a second time, after {m}, row 4"),
    "the same slice twice": (
        lambda rows: [row.update(volume=f"v{n // 2}", patient=f"p{n // 2}", slice="5") for n, row in enumerate(rows)],
        "{m}, row 3: slice 5 of volume 'v0' stands there a second time, after {m}, row 2"),
    "numbers for some slices only": (
        lambda rows: [row.update(volume=f"v{n // 2}", slice=str(n or "")) for n, row in enumerate(rows)],
        "{m}, row 3: volume 'v0' has slices with and without a number; see {m}, row 2"),
    "a volume of two patients": (
        lambda rows: [row.update(volume=f"v{n // 2}") for n, row in enumerate(rows)],
        "{m}, row 3: volume 'v0' belongs to patient '001', but to '000' in {m}, row 2"),
    "no number": (
        lambda rows: [row.update(slice="top") for row in rows], "{m}, row 2: slice is 'top'; expected a number"),
    "a number that is none": (lambda rows: [row.update(slice="nan") for row in rows], "{m}, row 2: slice is 'nan'"),
    "another part": (
        lambda rows: [row.update(split="dev") for row in rows],
        "{m}, row 2: split is 'dev'; expected train, val or test"),
    "a patient in two parts": (
        lambda rows: [row.update(patient="x", split=("train", "val", "test")[n % 3]) for n, row in enumerate(rows)],
        "{m}, row 3: patient 'x' is in val, but in train in {m}, row 2; all images of a patient must be in one part"),
    "no validation": (
        lambda rows: [row.update(split="train" if n < 6 else "test") for n, row in enumerate(rows)],
        "{m}: nothing is in the part 'val'; train, val and test need a patient each"),
    "an image nobody drew on": (
        lambda rows: rows[2].update({f"mask_{rater}": "" for rater in RATERS}),
        "{m}, row 4: the image {d}/images/p2.npy is annotated by no rater; leave it out"),
    "a rater who drew nothing": (
        lambda rows: [row.update(mask_ben="") for row in rows],
        "{m}: rater 'ben' has no mask at all; leave the rater out"),
    "one rater": (
        lambda rows: [row.pop(f"mask_{rater}") for row in rows for rater in RATERS[1:]],
        "{m}: has 1 rater (anna); the method learns how raters differ and needs at least 2"),
    "no raters": (lambda rows: [row.pop(f"mask_{rater}") for row in rows for rater in RATERS], "{m}: has 0 raters ("),
    "no image column": (
        lambda rows: [row.update(scan=row.pop("image")) for row in rows], "{m}: the column 'image' is missing; found"),
    "no patient column": (
        lambda rows: [row.pop("patient") for row in rows], "{m}: the column 'patient' is missing; found 'image',"),
    "both kinds of image": (
        lambda rows: [row.update(image_t2="x.npy") for row in rows], "{m}: has a column 'image' and columns 'image_<"),
    "a column nearly named": (
        lambda rows: [row.update({"Spilt": "train"}) for row in rows], "{m}: unknown column 'Spilt'; the columns are"),
    "a mask column nearly named": (
        lambda rows: [row.update({"mask-dora": "x.npy"}) for row in rows], "{m}: unknown column 'mask-dora'; the"),
    "a rater without a name": (
        lambda rows: [row.update({"mask_": "x.npy"}) for row in rows], "{m}: unknown column 'mask_'; the columns are"),
    "too few patients": (lambda rows: rows.pop(), "{m}: has 7 patients; 4 folds need at least 8, so say yourself"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_a_wrong_manifest_is_refused(make: Callable[..., Path], case: str):
    change, expected = CHANGES[case]
    path = make(change)
    assert refused(path).startswith(expected.format(m=path, d=path.parent))


def test_a_path_may_be_absolute_as_long_as_it_leads_into_the_folder(make: Callable[..., Path], tmp_path: Path):
    expected = [one.image.tolist() for one in slices(make())]
    path = make(lambda rows: [row.update(image=f"{tmp_path}/{row['image']}") for row in rows[:2]])
    assert [one.image.tolist() for one in slices(path)] == expected
    climb = f"{tmp_path}/images/../../p2.npy"
    assert f"{climb} leads out of" in refused(make(lambda rows: rows[2].update(image=climb)))
    assert "a second time" in refused(make(lambda rows: rows[2].update(image=f"{tmp_path}/images/p1.npy")))


def test_a_column_that_says_something_else_is_ignored(make: Callable[..., Path]):
    assert len(slices(make(lambda rows: [row.update(age="7", site="x") for row in rows]))) == PATIENTS


@pytest.mark.parametrize(("text", "expected"), [
    ("", "{m}: the file is empty"),
    ("image,mask_a,mask_b,patient\n", "{m}: the manifest has no rows"),
    ("image,mask_a,mask_b,patient\na.npy,b.npy\n", "{m}, row 2: has 2 cells, the header has 4"),
    ("image,image,mask_a,mask_b,patient\na,b,c,d,e\n", "{m}: the column 'image' stands there twice"),
    ('image,mask_a,mask_b,patient\n"a', "{m}: cannot be read as a table: unexpected end of data"),
    ("image;mask_a;mask_b;patient\n", "{m}: its cells are divided by ';'; save it with commas"),
    ("image\tmask_a\tpatient\na,x\tb\tc\n", "{m}: its cells are divided by '\\t'; save it with commas"),
])  # fmt: skip
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "manifest.csv"
    path.write_text(text)
    assert refused(path).startswith(expected.format(m=path))


def test_a_table_in_another_encoding_and_a_damaged_parquet_are_refused(tmp_path: Path):
    path = tmp_path / "manifest.csv"
    path.write_bytes("image,mask_ä\n".encode("latin-1"))
    assert "cannot be read as a table: it is not in UTF-8" in refused(path)
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image": ["a"]}), path)
    assert "the column 'patient' is missing" in refused(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read as Parquet" in refused(path)


def test_a_parquet_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image": ["a" * 10_000 + str(n) for n in range(20)]}), path, use_dictionary=False)
    monkeypatch.setattr("proseg.data.tables.MOST_BYTES", 100_000)
    assert "which no table needs" in refused(path)


def test_links_out_of_the_folder_are_refused_links_within_are_not(make: Callable[..., Path], tmp_path: Path):
    path = make()
    with tempfile.TemporaryDirectory() as elsewhere:
        outside = write_image(Path(elsewhere) / "p0.npy", picture(0))
        link = tmp_path / "images/p0.npy"
        link.unlink()
        link.symlink_to(outside)
        assert refused(path) == (
            f"{path}, row 2, image: {link} is a link out of {tmp_path}, to {outside.resolve()}; put the file "
            "itself there, or name the folder where it lies with --root"
        )
        link.unlink()
        (tmp_path / "anna").rename(tmp_path / "real")
        (tmp_path / "anna").symlink_to(tmp_path / "real")
        link.symlink_to(write_image(tmp_path / "kept/p0.npy", picture(0)))
        assert len(slices(path)) == PATIENTS
        (tmp_path / "anna").unlink()
        (tmp_path / "anna").symlink_to(elsewhere)
        for number in range(PATIENTS):
            write_image(Path(elsewhere) / f"p{number}.npy", mask(number, 0))
        assert "row 2, mask_anna" in refused(path)


def test_a_manifest_in_a_folder_that_is_a_link_is_read(make: Callable[..., Path], tmp_path: Path):
    make()
    with tempfile.TemporaryDirectory() as elsewhere:
        (Path(elsewhere) / "here").symlink_to(tmp_path)
        assert len(slices(Path(elsewhere) / "here/manifest.csv")) == PATIENTS


def test_a_file_that_may_not_be_read_is_refused_before_anything_is_read():
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        rows = []
        for number in range(PATIENTS):
            rows.append({"image": f"{number}.npy", "patient": str(number)})
            write_image(place / f"{number}.npy", picture(number))
            for rater in RATERS[:2]:
                rows[-1][f"mask_{rater}"] = f"{rater}{number}.npy"
                write_image(place / f"{rater}{number}.npy", mask(number, 0))
        path = write_manifest(place / "manifest.csv", rows)
        (place / "ben4.npy").chmod(0)
        with as_nobody():
            assert refused(path) == f"{path}, row 6, mask_ben: there is no permission to read {place}/ben4.npy"
        path.chmod(0)
        with as_nobody():
            assert refused(path) == f"the manifest: there is no permission to read {path}"


def test_a_wrong_folder_is_refused(folder: Path):
    stray = write_image(folder / "masks/ben/p9.png", mask(9, 1))
    assert refused(folder) == f"{stray}: a mask of rater 'ben', but {folder}/images has no image of this name"
    stray.rename(folder / "masks/p9.png")
    assert refused(folder) == f"{folder}/masks/p9.png: is no folder; masks lie in masks/<rater>/"
    (folder / "masks/p9.png").rename(folder / "images/notes.txt")
    assert "notes.txt is of an unknown type" in refused(folder)
    (folder / "images/notes.txt").unlink()
    (folder / "images/p3.npy").write_bytes(b"")
    assert "p3.png: has the name of p3.npy, which lies beside it" in refused(folder)
    (folder / "images/p3.npy").unlink()
    (folder / "train/images").mkdir(parents=True)
    assert "found both" in refused(folder)
    assert "found neither" in refused(folder / "images")


def test_an_empty_folder_and_one_rater_are_refused(folder: Path, tmp_path: Path):
    for rater in RATERS[1:]:
        (folder / f"masks/{rater}").rename(tmp_path / rater)
    assert refused(folder).startswith(f"{folder}: has 1 rater (anna); the method learns how raters differ")
    (folder / "masks").rename(tmp_path / "masks")
    assert refused(folder) == f"{folder}/masks: there is no such folder; masks lie in masks/<rater>/"
    (tmp_path / "empty/images").mkdir(parents=True)
    (tmp_path / "empty/masks").mkdir()
    assert refused(tmp_path / "empty") == f"{tmp_path}/empty: holds no images"


@pytest.mark.parametrize("option", [{"size": (0, 8)}, {"classes": 0}, {"classes": 256}, {"window": (5.0, 5.0)}])
def test_options_that_are_not_possible_are_refused(make: Callable[..., Path], option: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"not possible|is empty"):
        source(make(), **option)


# Parts and identity


def test_slices_are_read_some_tens_at_a_time_fewer_if_they_are_large(make: Callable[..., Path], monkeypatch):
    path = make()
    assert [len(part) for part in source(path).parts] == [8]
    monkeypatch.setattr(own, "SLICES_AT_ONCE", 3)
    assert [len(part) for part in source(path).parts] == [3, 3, 2]
    monkeypatch.setattr(own, "BYTES_AT_ONCE", 2 * SIDE * SIDE * 7)
    assert [len(part) for part in source(path).parts] == [2, 2, 2, 2]
    assert [len(part) for part in source(path, size=(600, 600)).parts] == [1] * 8


def test_the_identity_changes_with_every_file_and_option(make: Callable[..., Path], tmp_path: Path):
    path = make()
    seen = [source(path).identity, source(path).identity]
    for changes in ({"size": (8, 8)}, {"size": (8, 8), "fit": "zoom"}, {"classes": 2}, {"window": (0, 9)},
                    {"sorted_raters": True}, {"label": "x"}):  # fmt: skip
        seen.append(source(path, **changes).identity)
    np.save(tmp_path / "cem/p7.npy", mask(7, 1))
    seen.append(source(path).identity)
    assert len(set(seen)) == len(seen) - 1


def test_nothing_is_read_or_written_when_a_source_is_looked_at(make: Callable[..., Path], tmp_path: Path):
    path = make()
    np.save(tmp_path / "images/p0.npy", np.full((SIDE, SIDE), np.nan))
    np.save(tmp_path / "anna/p0.npy", np.full((SIDE, SIDE), 7))
    before = sorted(tmp_path.rglob("*"))
    assert len(source(path).parts) == 1
    assert sorted(tmp_path.rglob("*")) == before
