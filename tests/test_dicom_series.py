"""A DICOM series as one volume: the order of its images, where they lie, and what is refused."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
    RTStructureSetStorage,
    generate_uid,
)

from proseg.data import images
from proseg.data.images.dicom_series import find_series
from proseg.errors import DataError
from tests.dicom import OBLIQUE, STRAIGHT, image, places, series_uid, write_series
from tests.images import LPS, write_nifti

VOLUME = np.random.default_rng(0).integers(-900, 900, (5, 6, 7)).astype(np.int16)
"""[n, H, W]"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_series(tmp_path / "ct", VOLUME)


def rewrite(path: Path, **changes: Any) -> None:
    header = dcmread(path)
    for name, value in changes.items():
        setattr(header, name, value)
    header.save_as(path)


def refused(path: Path, match: str, *wanted: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        find_series(path, wanted).read()
    assert len(str(caught.value).splitlines()) == 1


# What is read


@pytest.mark.parametrize("backwards", [False, True])
def test_a_straight_series_lies_as_the_store_has_it(tmp_path: Path, backwards: bool):
    write_series(tmp_path / "ct", VOLUME, backwards=backwards, PixelSpacing=[0.5, 0.75], origin=(3, 4, 5))
    found = find_series(tmp_path / "ct")
    picture = found.read()
    np.testing.assert_array_equal(picture.pixels, VOLUME[None])
    assert picture.pixels.dtype == np.int16
    assert (picture.spacing, picture.kind) == ((2.5, 0.5, 0.75), "volume")
    assert picture.grid is not None
    np.testing.assert_allclose(picture.grid @ (2, 1, 3, 1), (3 + 3 * 0.75, 4 + 0.5, 5 + 5, 1))
    header = found.look()
    assert (header.channels, header.depth, header.height, header.width, header.whole) == (1, 5, 6, 7, True)


def test_an_axis_of_the_patient_that_the_image_runs_against_is_turned(tmp_path: Path):
    prone = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    write_series(tmp_path / "ct", VOLUME, directions=prone)
    np.testing.assert_array_equal(find_series(tmp_path / "ct").read().pixels, VOLUME[None, :, ::-1, ::-1])


def test_a_sagittal_series_is_cut_into_axial_slices(tmp_path: Path):
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # along a row to the back, along a column to the feet
    write_series(tmp_path / "mr", VOLUME, directions=sagittal, Modality="MR")
    found = find_series(tmp_path / "mr")
    # The normal points to the right: images from the patient's left to the right.
    np.testing.assert_array_equal(found.read().pixels[0], VOLUME.transpose(1, 2, 0)[::-1, :, ::-1])
    assert (found.look().depth, found.look().height, found.look().width) == (6, 7, 5)


def test_numbers_are_scaled_and_nothing_else(tmp_path: Path):
    """As a NIfTI file made of the series has them: padding stays, and what int16 cannot hold is no fault."""
    stored = VOLUME.copy()
    stored[:, 0, 0], stored[:, 0, 1] = -2000, 32767
    write_series(tmp_path / "ct", stored, RescaleSlope=2, RescaleIntercept=-24, PixelPaddingValue=-2000)
    expected = stored.astype(np.int32) * 2 - 24
    write_nifti(tmp_path / "ct.nii", stored.T, LPS, slope=2, inter=-24)
    for found in (find_series(tmp_path / "ct").read(), images.read(tmp_path / "ct.nii")):
        np.testing.assert_array_equal(found.pixels[0], expected)
        assert found.pixels.dtype == np.int32


@pytest.mark.parametrize(("slope", "whole"), [(None, True), (0.5, False)])
def test_an_mr_is_scaled_where_it_asks_for_it(tmp_path: Path, slope: float | None, whole: bool):
    intercept = None if slope is None else 3
    write_series(tmp_path / "mr", VOLUME, Modality="MR", RescaleSlope=slope, RescaleIntercept=intercept)
    found = find_series(tmp_path / "mr")
    assert found.look().whole == whole
    np.testing.assert_allclose(found.read().pixels[0], VOLUME if slope is None else VOLUME * 0.5 + 3)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless], ids=str)
def test_other_ways_of_storing_the_same_numbers(folder: Path, syntax: Any):
    for path in folder.iterdir():
        header = dcmread(path)
        if syntax == RLELossless:
            header.compress(syntax)
            header.save_as(path)
            continue
        if syntax == ExplicitVRBigEndian:
            header.PixelData = header.pixel_array.astype(">i2").tobytes()
        header.file_meta.TransferSyntaxUID = syntax
        dcmwrite(path, header, implicit_vr=syntax == ImplicitVRLittleEndian,
                 little_endian=syntax != ExplicitVRBigEndian, force_encoding=True)  # fmt: skip
    np.testing.assert_array_equal(find_series(folder).read().pixels[0], VOLUME)


def test_a_tilted_gantry_gives_oblique_axes(tmp_path: Path):
    tilted = places(5, STRAIGHT, 2.5, (0, 0, 0)) + np.arange(5)[:, None] * (0, 0.9, 0)
    found = find_series(write_series(tmp_path / "ct", VOLUME, positions=tilted))
    np.testing.assert_allclose(found.place[:3, 2], (0, 0.9, 2.5))
    np.testing.assert_array_equal(found.read().pixels[0], VOLUME)


@pytest.mark.parametrize(
    ("said", "thickness"),
    [({}, np.nan), ({"SliceThickness": 3}, 3), ({"SliceThickness": 3, "SpacingBetweenSlices": 2.5}, 2.5),
     ({"SliceThickness": "", "SpacingBetweenSlices": 0}, np.nan)],
)  # fmt: skip
def test_a_single_image_is_a_volume_of_one_slice(tmp_path: Path, said: dict, thickness: float):
    write_series(tmp_path / "ct", VOLUME[2:3], **said)
    picture = images.read(tmp_path / "ct/IM0001")
    np.testing.assert_array_equal(picture.pixels, VOLUME[2][None, None])
    np.testing.assert_equal((picture.kind, picture.spacing), ("volume", (thickness, 1.0, 1.0)))
    assert images.look(tmp_path / "ct").depth == 1


def test_what_lies_beside_the_images_does_not_disturb(folder: Path, tmp_path: Path):
    (folder / "notes.txt").write_text("text")
    (folder / "._IM0001.dcm").write_bytes(b"of a Mac")
    (folder / "deeper").mkdir()
    for name, changes in (
        ("dose", {"Modality": "RTDOSE"}), ("seg", {"Modality": "SEG"}),
        ("structures", {"Modality": "RTSTRUCT", "Rows": None, "SOPClassUID": RTStructureSetStorage}),
        ("report", {"series": "report", "ImagePositionPatient": None, "SamplesPerPixel": 3}),
    ):  # fmt: skip
        header = image(VOLUME[0], (0, 0, 0), **changes)
        header.save_as(folder / "deeper" / name, enforce_file_format=True)
    (folder / "copy").write_bytes((folder / "IM0003").read_bytes())
    np.testing.assert_array_equal(find_series(folder).read().pixels[0], VOLUME)


# Several series


def test_a_description_cannot_command_the_terminal(folder: Path):
    write_series(folder / "other", VOLUME, series="b", SeriesDescription="a\x1b[2Jb")
    refused(folder, r"CT a \[2Jb, 5 images")


def test_of_several_series_one_is_chosen_by_its_uid(folder: Path):
    write_series(folder / "other", VOLUME[:3] + 1, series="b")
    refused(folder, "holds 2 series; choose one with --series UID: .*5 images.*series b, 3 images")
    np.testing.assert_array_equal(find_series(folder, [series_uid("b")]).read().pixels[0], VOLUME[:3] + 1)
    refused(folder, r"holds no series 1\.2\.3; it holds", "1.2.3")
    refused(folder, "holds 2 of the series that --series names", series_uid("a"), series_uid("b"))


def test_a_series_that_is_named_is_read_whatever_lies_beside_it(folder: Path):
    damaged = image(VOLUME[0], (0, 0, 0), series="b", Rows=None)
    damaged.save_as(folder / "bad.dcm", enforce_file_format=True)
    (folder / "worse.dcm").write_bytes(b"")
    refused(folder, "bad.dcm: its header has no Rows, or was cut short; mend the file")
    found = find_series(folder, [series_uid("a")])
    np.testing.assert_array_equal(found.read().pixels[0], VOLUME)
    assert found.look().notes == ("2 damaged file(s) beside the series were left out, bad.dcm the first",)
    refused(folder, "bad.dcm: its header has no Rows", series_uid("b"))


# What is refused


def test_folders_and_files_without_images_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no CT or MR image in DICOM files")
    (tmp_path / "a.dcm").write_bytes(b"")
    refused(tmp_path / "a.dcm", "not a DICOM file, or cut short; mend the file")


def test_a_missing_image_is_named(folder: Path):
    (folder / "IM0003").unlink()
    refused(folder, r"IM0002: lies 5 mm from the next .* IM0004, where 2.5 mm are usual: an image is missing")


@pytest.mark.parametrize("shift", [(0, 0, 0.4), (0.9, 0, 0)], ids=str)
def test_an_image_out_of_line_is_named(tmp_path: Path, shift: tuple[float, ...]):
    positions = places(5, STRAIGHT, 2.5, (0, 0, 0))
    positions[2] += shift
    refused(write_series(tmp_path / "ct", VOLUME, positions=positions), "not evenly spaced in one line")


def test_several_images_of_a_place_are_refused(folder: Path):
    again = image(VOLUME[2] + 1, (0, 0, 5), SOPInstanceUID=generate_uid())
    again.save_as(folder / "again", enforce_file_format=True)
    refused(folder, "lies at the same place as .* keep one image of each place")


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"Rows": 7, "Columns": 6}, r"another size \(7 x 6 pixels\)"),
     ({"ImageOrientationPatient": list(OBLIQUE)}, "another orientation"),
     ({"PixelSpacing": [2, 2]}, r"another PixelSpacing \(2 x 2 mm\)")],
    ids=["size", "orientation", "spacing"],
)  # fmt: skip
def test_a_series_of_images_that_are_not_alike_is_refused(folder: Path, changes: dict, match: str):
    rewrite(folder / "IM0001", **changes)
    refused(folder, f"IM0001: has {match} than .*IM0002 of the same series")


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"NumberOfFrames": 2}, "several frames"), ({"SamplesPerPixel": 3}, "several frames or colours"),
     ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1"),
     ({"ImagePositionPatient": None}, "where its pixels"),
     ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "ImageOrientationPatient makes no sense"),
     ({"ImageOrientationPatient": [1, 0, 0]}, "is no 6 plausible"),
     ({"ImagePositionPatient": ["1e300", 0, 0]}, "is no 3 plausible"),
     ({"PixelSpacing": [0, 1]}, "PixelSpacing is 0"),
     ({"PixelSpacing": [1]}, "damaged"), ({"Rows": 0}, "0 x 7 pixels"), ({"RescaleSlope": 0}, "RescaleSlope is 0"),
     ({"LossyImageCompression": "01"}, "compressed with loss"), ({"SeriesInstanceUID": ""}, "no SeriesInstanceUID"),
     ({"Rows": None}, "no Rows"), ({"PixelData": None}, "no PixelData"), ({"PixelData": b"1234"}, "damaged")],
    ids=str,
)  # fmt: skip
def test_images_that_cannot_be_used_are_named(folder: Path, changes: dict, match: str):
    header = dcmread(folder / "IM0004")
    for name, value in changes.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(folder / "IM0004")
    refused(folder, rf"IM0004: .*{match}")


@pytest.mark.parametrize(
    ("syntax", "match"),
    [(JPEGLosslessSV1, r"compressed \(JPEG Lossless.*which cannot be decoded here: store"),
     (DeflatedExplicitVRLittleEndian, "deflated as a whole")],
    ids=["lossless", "deflated"],
)  # fmt: skip
def test_pixels_that_cannot_be_unpacked_are_refused_before_anything_is_read(folder: Path, syntax: Any, match: str):
    header = dcmread(folder / "IM0004")
    if syntax == JPEGLosslessSV1:
        header.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(folder / "IM0004", implicit_vr=False, little_endian=True)
    refused(folder, match)


def test_a_file_that_was_cut_short_anywhere_is_refused_or_read_whole(folder: Path):
    path = folder / "IM0003"
    content = path.read_bytes()
    for length in [*range(0, len(content) - 1, 37), len(content) - 1]:
        path.write_bytes(content[:length])
        refused(folder, "IM000|no CT or MR")
    rng = np.random.default_rng(0)
    for _ in range(60):  # damage somewhere in the header: a DataError, or an image
        broken = bytearray(content)
        for place in rng.integers(132, len(content) - 84, 4):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        with contextlib.suppress(DataError):
            find_series(folder).read()
