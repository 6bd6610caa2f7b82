"""What is written lies on its image in every reader: SimpleITK and nibabel open it, and agree."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK

from proseg.data import images
from tests.dicom import OBLIQUE, STRAIGHT, places, write_series
from tests.images import LPS, RAS, failing, write_nifti

VOLUME = np.random.default_rng(0).integers(-900, 900, (4, 6, 7)).astype(np.int16)
"""[z, y, x]"""
SAGITTAL, CORONAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SHEARED = np.array([[-2.0, 0, 0, 9], [0, -3, 0.9, 8], [0, 0, 4, 7], [0, 0, 0, 1]])
ANGLE = np.deg2rad(20)
TURNED = RAS @ [[np.cos(ANGLE), -np.sin(ANGLE), 0, 5], [np.sin(ANGLE), np.cos(ANGLE), 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]]
"""An affine of axes that are upright in voxels, not in mm: sheared too."""


def nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    return write_nifti(path / "a.nii.gz", values, affine)


def oblique(path: Path) -> Path:
    row, column = np.array(OBLIQUE).reshape(2, 3)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * 2, column * 3, np.cross(row, column) * 4, (9, 8, 7)])
    return nifti(path, VOLUME.T, affine)


def pair(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Pair(VOLUME.T, RAS), path / "a.hdr")
    return path / "a.hdr"


def second(path: Path) -> Path:
    nibabel.save(nibabel.Nifti2Image(VOLUME.T, RAS), path / "a.nii")
    return path / "a.nii"


def itk(path: Path, name: str, values: np.ndarray = VOLUME) -> Path:
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing((2.0, 3.0, 4.0))
    image.SetOrigin((9.0, 8.0, 7.0))
    row, column = np.array(OBLIQUE).reshape(2, 3)
    image.SetDirection(np.column_stack([row, column, np.cross(row, column)]).ravel().tolist())
    SimpleITK.WriteImage(image, str(path / name))
    return path / name


def ras_nrrd(path: Path) -> Path:
    header = {
        "space": "RAS",
        "space directions": np.array([[0, 0, 4.0], [2, 0, 0], [0, -3, 0]]),
        "space origin": [9, 8, 7],
    }
    nrrd.write(str(path / "a.nrrd"), VOLUME.T, header)
    return path / "a.nrrd"


def dicom(path: Path, directions: tuple, count: int = 4) -> Path:
    values = np.random.default_rng(0).integers(-900, 900, (count, 6, 7)).astype(np.int16)
    return write_series(path / "ct", values, directions=directions, origin=(9, 8, 7), PixelSpacing=[0.5, 0.75],
                        SliceThickness=2.5)  # fmt: skip


def tilted(path: Path) -> Path:
    positions = places(4, STRAIGHT, 2.5, (0, 0, 0)) + np.arange(4)[:, None] * (0, 0.9, 0)
    return write_series(path / "ct", VOLUME, positions=positions)


FILES: dict[str, Callable[[Path], Path]] = {
    "nifti LPS": lambda path: nifti(path, VOLUME.T, LPS),
    "nifti RAS": lambda path: nifti(path, VOLUME.T, RAS),
    "nifti permuted": lambda path: nifti(path, VOLUME.T, RAS[[2, 0, 1, 3]]),
    "nifti one slice": lambda path: nifti(path, VOLUME.T[:, :, :1], RAS),
    "nifti one slice, sagittal": lambda path: nifti(path, VOLUME.T[:1], RAS),
    "nifti one slice, coronal, last": lambda path: nifti(path, VOLUME.T[:, :, :1], RAS[[0, 2, 1, 3]]),
    "nifti sheared": lambda path: nifti(path, VOLUME.T, SHEARED),
    "nifti turned and sheared": lambda path: nifti(path, VOLUME.T, TURNED),
    "nifti oblique": oblique,
    "nifti pair": pair,
    "nifti 2": second,
    "nrrd": lambda path: itk(path, "a.nrrd"),
    "nhdr": lambda path: itk(path, "a.nhdr"),
    "nrrd RAS, permuted": ras_nrrd,
    "nrrd one slice": lambda path: itk(path, "a.nrrd", VOLUME[:1]),
    "mha": lambda path: itk(path, "a.mha"),
    "mhd": lambda path: itk(path, "a.mhd"),
    "mha one slice": lambda path: itk(path, "a.mha", VOLUME[:, :, :1]),
    "dicom axial": lambda path: dicom(path, STRAIGHT),
    "dicom sagittal": lambda path: dicom(path, SAGITTAL),
    "dicom coronal": lambda path: dicom(path, CORONAL),
    "dicom oblique": lambda path: dicom(path, OBLIQUE),
    "dicom one axial": lambda path: dicom(path, STRAIGHT, 1),
    "dicom one sagittal": lambda path: dicom(path, SAGITTAL, 1),
    "dicom one coronal": lambda path: dicom(path, CORONAL, 1),
    "dicom tilted": tilted,
}


def itk_image(path: Path) -> SimpleITK.Image:
    if not path.is_dir():
        return SimpleITK.ReadImage(str(path))
    return SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))


def corners_itk(image: SimpleITK.Image) -> np.ndarray:
    ends = [(0, length - 1) for length in image.GetSize()]
    return np.array([image.TransformIndexToPhysicalPoint((x, y, z)) for x in ends[0] for y in ends[1] for z in ends[2]])


def corners_nibabel(image: nibabel.Nifti1Image) -> np.ndarray:
    ends = [(0, length - 1) for length in image.shape[:3]]
    points = np.array([(x, y, z, 1) for x in ends[0] for y in ends[1] for z in ends[2]])
    return (points @ image.affine.T @ np.diag([-1.0, -1, 1, 1]))[:, :3]


@pytest.mark.parametrize("kind", FILES)
def test_a_mask_lies_on_its_image_in_both_readers(tmp_path: Path, kind: str):
    path = FILES[kind](tmp_path)
    picture = images.read(path)
    assert picture.kind == "volume"
    mask = (picture.pixels == picture.pixels.max()).astype(np.uint8)  # one voxel
    written = images.write_like(tmp_path / "mask", mask, path)
    sheared = "sheared" in kind or "tilted" in kind
    if not sheared and kind != "nifti 2":  # which ITK does not open
        image, found = itk_image(path), itk_image(written)
        assert found.GetSize() == image.GetSize()
        np.testing.assert_allclose(corners_itk(found), corners_itk(image), atol=1e-4)
        stored, marked = SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(found)
        np.testing.assert_array_equal(marked, stored == stored.max())
    if written.name.endswith(".nii.gz"):
        theirs = nibabel.load(written)
        upright = itk_image(written)
        assert theirs.shape == upright.GetSize()
        np.testing.assert_array_equal(np.asarray(theirs.dataobj).T, SimpleITK.GetArrayFromImage(upright))
        if not sheared:
            np.testing.assert_allclose(corners_nibabel(theirs), corners_itk(upright), atol=1e-4)
        elif kind.startswith("nifti"):
            image = nibabel.load(path)
            np.testing.assert_allclose(theirs.affine, image.affine, atol=1e-6)
            np.testing.assert_array_equal(theirs.dataobj, np.asarray(image.dataobj) == np.asarray(image.dataobj).max())
        else:
            np.testing.assert_allclose(theirs.affine[:3, 2], (0, -0.9, 2.5), atol=1e-6)
    again = images.read(written)
    np.testing.assert_array_equal(again.pixels, mask)
    np.testing.assert_allclose(again.grid, picture.grid, atol=1e-4)


@pytest.mark.parametrize("kind", ["nifti RAS", "nrrd", "mha", "mhd", "dicom oblique"])
def test_several_maps_lie_on_their_image(tmp_path: Path, kind: str):
    path = FILES[kind](tmp_path)
    picture = images.read(path)
    maps = np.stack([picture.pixels[0], -picture.pixels[0]]).astype(np.float32)
    written = images.write_like(tmp_path / "maps", maps, path)
    again = images.read(written)
    np.testing.assert_array_equal(again.pixels, maps)
    np.testing.assert_allclose(again.grid, picture.grid, atol=1e-4)


@pytest.mark.parametrize("name", ["axial_slice.dcm", "sagittal_slice.dcm"])
def test_a_mask_of_a_single_dicom_image_opens_over_it(tmp_path: Path, name: str):
    path = failing(name)
    picture = images.read(path)
    written = images.write_like(tmp_path / "mask", (picture.pixels > 0).astype(np.uint8), path)
    image, found = itk_image(path), itk_image(written)
    assert found.GetSize() == (64, 64, 1)
    assert found.GetSpacing() == pytest.approx((0.7, 0.7, 2.5))
    np.testing.assert_allclose(corners_itk(found), corners_itk(image), atol=1e-4)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), SimpleITK.GetArrayFromImage(image) > 0)
    np.testing.assert_array_equal(picture.pixels[0], SimpleITK.GetArrayFromImage(image), "as the DICOM shows it")


def test_a_ct_and_the_nifti_that_itk_makes_of_it_have_the_same_pixels(tmp_path: Path):
    stored = VOLUME.copy()
    stored[:, 0], stored[0, 1, 1] = -2000, 32767
    path = write_series(tmp_path / "ct", stored, RescaleSlope=1, RescaleIntercept=-1024, PixelPaddingValue=-2000)
    SimpleITK.WriteImage(itk_image(path), str(tmp_path / "a.nii.gz"))
    series, file = images.read(path), images.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(series.pixels, file.pixels)
    np.testing.assert_allclose(series.grid, file.grid, atol=1e-4)
