"""One image file: the same pixels from every format, the right way round; and what is refused, in one sentence."""

import gzip
import os
import pickle
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from proseg import sizes
from proseg.data import images
from proseg.data.images import picture
from proseg.data.images.dicom_series import find_series
from proseg.errors import ConfigError, DataError
from tests.images import LPS, RAS, as_nobody, failing, write_image, write_nifti, write_pages, write_scaling

FORMATS_2D = [
    "a.npy",
    "a.npz",
    "a.nii",
    "a.nii.gz",
    "a.nrrd",
    "a.png",
    "a.tif",
    "a.tiff",
    "A.PNG",
    "a.mha",
    "a.mhd",
    "a.nhdr",
]
FORMATS_3D = ["a.npy", "a.npz", "a.nii", "a.nii.gz", "a.nrrd", "a.tif", "a.mha", "a.mhd", "a.nhdr"]
TYPES = [np.uint8, np.uint16]

VOLUME = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
"""[z, y, x]"""


def refused(path: Path, *, look: bool | None = None) -> str:
    """The sentence about a file; `look`: whether its header alone gives it away (None: either)."""
    with pytest.raises(DataError) as error:
        images.read(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence
    if look is not None:
        assert looks_well(path) is not look
    return sentence


def looks_well(path: Path) -> bool:
    try:
        images.look(path)
    except DataError:
        return False
    return True


def read(path: Path) -> images.Picture:
    """The picture, which is what the header said."""
    header, found = images.look(path), images.read(path)
    depth = [] if header.depth is None else [header.depth]
    assert found.pixels.shape == (header.channels, *depth, header.height, header.width)
    assert found.kind == ("slice" if header.depth is None else "volume")
    assert found.pixels.dtype.isnative
    assert header.whole == (found.pixels.dtype.kind in "iub")
    return found


# Every format


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", FORMATS_2D)
def test_a_slice_is_read_from_every_format(tmp_path: Path, name: str, dtype: type):
    values = np.arange(12, dtype=dtype).reshape(3, 4) * 20
    found = read(write_image(tmp_path / name, values))
    np.testing.assert_array_equal(found.pixels, values[None])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", FORMATS_3D)
def test_a_volume_is_read_from_every_format(tmp_path: Path, name: str, dtype: type):
    found = read(write_image(tmp_path / name, VOLUME.astype(dtype)))
    np.testing.assert_array_equal(found.pixels, VOLUME[None])


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.nii.gz", "a.nrrd"])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_numbers_of_any_type_are_read(tmp_path: Path, name: str, dtype: type):
    values = np.array([[[-3, 2], [0, 1]]] if np.dtype(dtype).kind != "u" else [[[3, 2], [0, 1]]], dtype)
    path = write_image(tmp_path / name, values)
    np.testing.assert_array_equal(read(path).pixels, values[None])


def test_only_files_that_say_so_have_a_spacing(tmp_path: Path):
    found = {name: images.read(write_image(tmp_path / name, VOLUME.astype(np.uint8))).spacing for name in FORMATS_3D}
    silent = ("a.npy", "a.npz", "a.tif")
    assert found == {name: None if name in silent else (1, 1, 1) for name in FORMATS_3D}
    assert images.read(write_image(tmp_path / "a.png", np.zeros((2, 2), np.uint8), dpi=(300, 300))).spacing is None


def test_the_names_of_images_are_known():
    assert [images.is_image(name) for name in ("a.nii.gz", "a.b.TIF", "a.raw", "npy", "a.gz", ".npz")] == [
        True, True, False, False, False, True,
    ]  # fmt: skip
    assert [images.stem(name) for name in ("a.b.nii.gz", "a.png", "a", "im0001.ah.ppm", "a.IMG.gz")] == [
        "a.b", "a", "a", "im0001.ah", "a",
    ]  # fmt: skip


# The right way round


def test_a_nifti_volume_is_turned_to_slices_from_the_feet_up_rows_to_the_back_columns_to_the_left(tmp_path: Path):
    values = VOLUME.T  # [x, y, z]
    found = read(write_nifti(tmp_path / "a.nii", values, RAS))
    np.testing.assert_array_equal(found.pixels[0], VOLUME[:, ::-1, ::-1])
    assert found.spacing == (4, 3, 2)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_however_a_nifti_lies_the_same_tissue_is_at_the_same_place(tmp_path: Path, axes, flips):
    upright = nibabel.Nifti1Image(VOLUME.T, LPS)
    turned = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], list(zip(axes, flips, strict=True)))
    nibabel.save(upright.as_reoriented(turned), tmp_path / "turned.nii.gz")
    found = read(tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(found.pixels[0], VOLUME)
    assert found.spacing == (4, 3, 2)
    np.testing.assert_allclose(found.grid, [[0, 0, 2, 0], [0, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1]])


def test_an_oblique_volume_keeps_its_true_spacing(tmp_path: Path):
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0, 5], [np.sin(angle), np.cos(angle), 0, 6], [0, 0, 1, 7],
                     [0, 0, 0, 1]])  # fmt: skip
    found = read(write_nifti(tmp_path / "a.nii", VOLUME.T, turn @ LPS))
    np.testing.assert_array_equal(found.pixels[0], VOLUME)
    assert found.spacing == pytest.approx((4, 3, 2), rel=1e-6)


def test_what_has_two_axes_stays_as_it_lies(tmp_path: Path):
    found = read(write_nifti(tmp_path / "a.nii", VOLUME[0].T, RAS))
    np.testing.assert_array_equal(found.pixels, VOLUME[:1])
    turned = np.array([[0, -0.5, 0, 0], [0.25, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "b.nii", VOLUME[0].T, turned)
    content = bytearray(path.read_bytes())
    content[80:88] = np.array([7, 7], "<f4").tobytes()  # pixdim, which the sform overrules
    path.write_bytes(content)
    assert read(path).spacing == pytest.approx((1, 0.5, 0.25))


AXES = {"axial": 2, "coronal": 1, "sagittal": 0}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)], ids=str)
@pytest.mark.parametrize("plane", AXES)
def test_a_volume_of_one_slice_lies_as_dicom_shows_it(tmp_path: Path, plane: str, order: tuple, flips: tuple):
    """The marked voxels lie to the left, to the back and to the feet of the middle, whatever the axes of the file."""
    size = [5, 5, 5]
    size[AXES[plane]] = 1
    body = np.zeros(size, np.int16)  # [left, back, up]
    middle = tuple(length // 2 for length in size)
    for value, (axis, step) in enumerate([(0, 1), (1, 1), (2, -1)], 1):
        place = list(middle)
        if size[axis] > 1:
            place[axis] += step
            body[tuple(place)] = value
    upright = nibabel.Nifti1Image(body, np.diag([-1.0, -1.0, 3.0, 1.0]))
    turned = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], list(zip(order, flips, strict=True)))
    nibabel.save(upright.as_reoriented(turned), tmp_path / "a.nii.gz")
    found = read(tmp_path / "a.nii.gz")
    assert found.pixels.shape == (1, 1, 5, 5)
    shown = found.pixels[0, 0]
    right_of_middle, below_middle = {"axial": (1, 2), "coronal": (1, 3), "sagittal": (2, 3)}[plane]
    assert (shown[2, 3], shown[3, 2]) == (right_of_middle, below_middle)
    assert found.spacing == {"axial": (3, 1, 1), "coronal": (1, 3, 1), "sagittal": (1, 3, 1)}[plane]


def test_a_slice_of_a_volume_and_a_volume_of_that_slice_lie_the_same_way(tmp_path: Path):
    whole = read(write_nifti(tmp_path / "a.nii", VOLUME.T, RAS))
    one = read(write_nifti(tmp_path / "b.nii", VOLUME.T[:, :, 1:], RAS))
    np.testing.assert_array_equal(one.pixels, whole.pixels[:, 1:])


@pytest.mark.parametrize(("space", "rows", "columns"), [("LPS", 1, 1), ("right-anterior-superior", -1, -1),
                                                        ("left-anterior-superior", -1, 1)])  # fmt: skip
def test_an_nrrd_volume_is_turned_by_its_space(tmp_path: Path, space: str, rows: int, columns: int):
    header = {"space": space, "space directions": np.diag([2.0, 3.0, 4.0]), "space origin": [1, 2, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME.T, header)
    found = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(found.pixels[0], VOLUME[:, ::rows, ::columns])
    assert found.spacing == (4, 3, 2)


def test_an_nrrd_whose_axes_are_permuted_is_put_upright(tmp_path: Path):
    header = {"space": "LPS", "space directions": [[0, 0, 4], [2, 0, 0], [0, -3, 0]], "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME.transpose(0, 2, 1), header)  # [z, x, y]
    found = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(found.pixels[0], VOLUME[:, ::-1])
    assert found.spacing == (4, 3, 2)


def test_nifti_and_nrrd_of_the_same_volume_lie_at_the_same_place(tmp_path: Path):
    nifti = read(write_nifti(tmp_path / "a.nii", VOLUME.T, np.array(RAS) + np.outer([9, 8, 7, 0], [0, 0, 0, 1])))
    header = {"space": "RAS", "space directions": np.diag([2.0, 3.0, 4.0]), "space origin": [9, 8, 7]}
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME.T, header)
    other = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(nifti.pixels, other.pixels)
    np.testing.assert_allclose(nifti.grid, other.grid)


def test_an_nrrd_of_no_anatomical_space_keeps_its_spacing(tmp_path: Path):
    header = {"space": "scanner-xyz", "space directions": np.diag([2.0, 3.0, 4.0])}
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME.T, header)
    nrrd.write(str(tmp_path / "b.nrrd"), VOLUME.T, {"spacings": [2.0, 3.0, 4.0]})
    for name in ("a.nrrd", "b.nrrd"):
        found = read(tmp_path / name)
        np.testing.assert_array_equal(found.pixels[0], VOLUME)
        assert (found.spacing, found.grid) == ((4, 3, 2), None)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("meter", 1000), ("micron", 0.001)])
def test_the_unit_of_a_nifti_is_heeded(tmp_path: Path, unit: str, factor: float):
    found = read(write_nifti(tmp_path / "a.nii", VOLUME.T, LPS, units=unit))
    assert found.spacing == pytest.approx((4 * factor, 3 * factor, 2 * factor))
    assert np.linalg.norm(found.grid[:3, 0]) == pytest.approx(4 * factor)


# What the stored numbers mean


def test_the_slope_of_a_nifti_is_applied(tmp_path: Path):
    found = read(write_nifti(tmp_path / "a.nii", VOLUME.T, LPS, slope=0.5, inter=-3))
    assert found.pixels.dtype == np.float32
    np.testing.assert_array_equal(found.pixels[0], VOLUME * 0.5 - 3)


def test_scaled_whole_numbers_stay_whole(tmp_path: Path):
    found = read(write_nifti(tmp_path / "a.nii", VOLUME.T.astype(np.uint8), LPS, slope=1, inter=-1024))
    assert found.pixels.dtype == np.int32
    np.testing.assert_array_equal(found.pixels[0], VOLUME.astype(int) - 1024)


@pytest.mark.parametrize("order", [">", "<"])
def test_the_order_of_bytes_does_not_matter(tmp_path: Path, order: str):
    values = VOLUME.astype(f"{order}i2")
    np.save(tmp_path / "a.npy", values)
    image = nibabel.Nifti1Image(values.T, LPS, nibabel.Nifti1Header(endianness=order))
    nibabel.save(image, tmp_path / "a.nii")
    nrrd.write(str(tmp_path / "a.nrrd"), values.T, {"endian": "big" if order == ">" else "little"})
    for name in ("a.npy", "a.nii", "a.nrrd"):
        np.testing.assert_array_equal(read(tmp_path / name).pixels[0], VOLUME)


def test_arrays_in_columns_first_are_read(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.asfortranarray(VOLUME))
    np.testing.assert_array_equal(read(tmp_path / "a.npy").pixels[0], VOLUME)


def test_a_nifti_2_is_read(tmp_path: Path):
    nibabel.save(nibabel.Nifti2Image(VOLUME.T, LPS), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz").pixels[0], VOLUME)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_every_encoding_of_an_nrrd_is_read(tmp_path: Path, encoding: str):
    np.testing.assert_array_equal(read(write_image(tmp_path / "a.nrrd", VOLUME, encoding=encoding)).pixels[0], VOLUME)


def test_one_bit_is_false_and_true(tmp_path: Path):
    mask = np.eye(3, dtype=bool)
    for name in ("a.png", "a.tif"):
        Image.fromarray(mask).save(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / name).pixels[0], mask)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_tiff_may_hold_32_bits(tmp_path: Path, dtype: type):
    values = np.array([[-1.0, 2**20]], dtype)
    np.testing.assert_array_equal(read(write_image(tmp_path / "a.tif", values)).pixels[0], values)


# Channels


def test_colours_are_channels(tmp_path: Path):
    colours = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for name in ("a.png", "a.tif"):
        found = read(write_image(tmp_path / name, colours) if name == "a.png" else
                     write_pages(tmp_path / name, [colours]))  # fmt: skip
        np.testing.assert_array_equal(found.pixels, colours.transpose(2, 0, 1))
    found = read(write_pages(tmp_path / "b.tif", [colours, colours + 1]))
    np.testing.assert_array_equal(found.pixels[:, 1], colours.transpose(2, 0, 1) + 1)


def test_an_alpha_channel_that_hides_nothing_is_left_out(tmp_path: Path):
    pixels = np.full((2, 2, 4), 255, np.uint8)
    pixels[..., 0] = 7
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png").pixels, pixels[..., :3].transpose(2, 0, 1))
    pixels[1, 1, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert "transparent in places" in refused(tmp_path / "a.png", look=False)


def test_the_last_axis_of_a_nifti_and_the_axis_without_direction_of_an_nrrd_are_channels(tmp_path: Path):
    channels = np.stack([VOLUME, VOLUME + 100])  # [C, z, y, x]
    found = read(write_nifti(tmp_path / "a.nii", channels.T, LPS))
    np.testing.assert_array_equal(found.pixels, channels)
    found = read(write_nifti(tmp_path / "b.nii", channels.T[..., None, :], LPS))
    np.testing.assert_array_equal(found.pixels, channels)
    header = {"space": "LPS", "space directions": np.vstack([np.full(3, np.nan), np.diag([2, 3, 4])]),
              "kinds": ["list", "domain", "domain", "domain"], "space origin": np.zeros(3)}  # fmt: skip
    nrrd.write(str(tmp_path / "a.nrrd"), channels.transpose(0, 3, 2, 1), header)
    found = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(found.pixels, channels)
    assert found.spacing == (4, 3, 2)


def test_the_first_of_four_axes_of_an_array_is_channels(tmp_path: Path):
    channels = np.stack([VOLUME, VOLUME + 100])
    np.save(tmp_path / "a.npy", channels)
    np.testing.assert_array_equal(read(tmp_path / "a.npy").pixels, channels)


def test_pages_are_channels_where_imagej_says_so(tmp_path: Path):
    pages = [np.full((2, 3), number, np.uint8) for number in range(6)]
    said = {"description": "ImageJ=1.53t\nimages=6\nchannels=2\nslices=3\n"}
    found = read(write_pages(tmp_path / "a.tif", pages, **said))
    assert found.pixels[:, :, 0, 0].tolist() == [[0, 2, 4], [1, 3, 5]]
    found = read(write_pages(tmp_path / "b.tif", pages[:2], description="ImageJ=1.53t\nimages=2\nchannels=2\n"))
    assert (found.kind, found.pixels[:, 0, 0].tolist()) == ("slice", [0, 1])
    assert "has 5 page(s), but says that it consists of 2 channel(s) of 3 slice(s)" in refused(
        write_pages(tmp_path / "c.tif", pages[:5], **said), look=True
    )
    times = write_pages(tmp_path / "d.tif", pages, description="ImageJ=1.53t\nimages=6\nframes=6\n")
    assert "holds 6 points in time, which are not supported" in refused(times, look=True)
    assert images.read(times, axes="zyx").pixels[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("XYCZT", [[0, 2, 4], [1, 3, 5]]), ("XYZCT", [[0, 1, 2], [3, 4, 5]]), ("XYTZC", [[0, 1, 2], [3, 4, 5]])],
)
def test_pages_are_what_ome_says(tmp_path: Path, order: str, expected: list):
    pages = [np.full((2, 3), number, np.uint8) for number in range(6)]
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="{order}" Type="uint8" SizeX="3" SizeY="2" SizeC="{{c}}" SizeZ="{{z}}" '
        'SizeT="{t}"></Pixels></Image></OME>'
    )
    found = read(write_pages(tmp_path / "a.ome.tif", pages, description=text.format(c=2, z=3, t=1)))
    assert found.pixels[:, :, 0, 0].tolist() == expected
    times = write_pages(tmp_path / "b.ome.tif", pages, description=text.format(c=2, z=1, t=3))
    assert "holds 3 points in time" in refused(times, look=True)
    parts = write_pages(tmp_path / "c.ome.tif", pages, description=text.format(c=2, z=6, t=1))
    assert "if the others lie in other files" in refused(parts, look=True)
    colours = write_pages(
        tmp_path / "d.ome.tif", [np.zeros((2, 3, 3), np.uint8)] * 2, description=text.format(c=3, z=2, t=1)
    )
    assert read(colours).pixels.shape == (3, 2, 2, 3)


# Axes that can be taken in two ways


def test_an_array_whose_last_axis_may_be_channels_is_asked_about(tmp_path: Path):
    values = np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3)
    path = write_image(tmp_path / "a.npy", values)
    assert "can be read in two ways; say --axes yxc if the last one is channels, or --axes zyx" in refused(
        path, look=True
    )
    np.testing.assert_array_equal(images.read(path, axes="yxc").pixels, values.transpose(2, 0, 1))
    assert images.look(path, axes="yxc").depth is None
    np.testing.assert_array_equal(images.read(path, axes="zyx").pixels, values[None])
    np.testing.assert_array_equal(images.read(path, axes="xyz").pixels, values.T[None])
    np.save(tmp_path / "b.npy", np.zeros((5, 6, 7, 3), np.uint8))
    assert "--axes zyxc if the last one is channels, or --axes czyx" in refused(tmp_path / "b.npy", look=True)
    assert images.read(tmp_path / "b.npy", axes="zyxc").pixels.shape == (3, 5, 6, 7)
    mask = write_image(tmp_path / "m.npy", values[..., 0])
    assert images.read(mask, axes="yxc", mask=True).pixels.shape == (1, 6, 7)


def test_what_was_read_in_one_of_two_ways_is_told(tmp_path: Path):
    path = write_image(tmp_path / "a.npy", np.zeros((3, 5, 7), np.uint8))
    note = "read as 3 slices of 5 x 7; --axes cyx would make them channels"
    assert read(path).pixels.shape == (1, 3, 5, 7)
    assert images.look(path).notes == (note,)
    assert images.look(path, axes="zyx").notes == ()
    assert images.look(write_pages(tmp_path / "a.tif", [np.zeros((5, 7), np.uint8)] * 3)).notes == (note,)
    assert images.read(tmp_path / "a.tif", axes="cyx").pixels.shape == (3, 5, 7)
    path = write_nifti(tmp_path / "a.nii", np.zeros((5, 6, 7, 3), np.uint8), LPS)
    assert images.look(path).notes == ("the fourth axis, which may be time, is read as 3 channels",)
    assert images.look(write_image(tmp_path / "b.npy", np.zeros((5, 5, 7), np.uint8))).notes == ()


@pytest.mark.parametrize(
    ("name", "axes", "match"),
    [("a.npy", "yx", "has 3 axes of the sizes"), ("a.npy", "tyx", "holds 3 points in time"), ("a.tif", "yx", "3 page"),
     ("a.tif", "czyx", "not possible for a TIFF"), ("a.nii", "zyx", "says by"), ("a.png", "yxc", "says by"),
     ("a.npy", "zzz", "one letter"), ("a.npy", "zy", "one letter"), ("a.npy", "", "one letter")],
)  # fmt: skip
def test_axes_that_are_not_those_of_the_file_are_refused(tmp_path: Path, name: str, axes: str, match: str):
    values = np.zeros((3, 5, 7), np.uint8)
    path = write_image(tmp_path / name, values[0] if name == "a.png" else values)
    with pytest.raises((DataError, ConfigError), match=match):
        images.read(path, axes=axes)


# What is refused


def test_a_file_that_is_not_there_or_no_file_or_of_another_type_is_refused(tmp_path: Path):
    assert refused(tmp_path / "a.png", look=True).endswith("no such file")
    (tmp_path / "folder.png").mkdir()
    assert "the folder holds no CT or MR image" in refused(tmp_path / "folder.png", look=True)
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(tmp_path / "pipe.png", look=True).endswith("is no file")
    (tmp_path / "a.txt").write_bytes(b"")
    assert "images and masks must be NIfTI" in refused(tmp_path / "a.txt", look=True)


def test_a_file_that_may_not_be_read_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = write_image(Path(folder) / "a.npy", VOLUME)
        path.chmod(0)
        with as_nobody():
            assert refused(path, look=True).endswith("cannot be read: Permission denied")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.nii", "a.nii.gz", "a.nrrd", "a.tif", "a.mha", "a.png"])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, name: str):
    noise = np.random.default_rng(0).integers(0, 255, (9, 40, 50)).astype(np.uint8)
    path = write_image(tmp_path / name, noise if name in FORMATS_3D else noise[0])
    whole = path.read_bytes()
    tail = 40 if name in ("a.png", "a.tif") else 1  # at the very end of these stands nothing of the pixels
    for length in (0, 3, 100, len(whole) // 2, len(whole) - tail):
        path.write_bytes(whole[:length])
        assert refused(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.nii", "a.nii.gz", "a.nrrd", "a.tif", "a.mha", "a.png"])
def test_whatever_byte_is_damaged_nothing_but_a_sentence_comes_of_it(tmp_path: Path, name: str):
    rng = np.random.default_rng(1)
    values = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    path = write_image(tmp_path / name, values if name in FORMATS_3D else values[0])
    whole = path.read_bytes()
    for place in rng.integers(0, min(len(whole), 420), 120):
        damaged = bytearray(whole)
        damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            images.read(path)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz", "a.nrrd"])
def test_a_packed_file_whose_sum_is_wrong_is_refused(tmp_path: Path, name: str):
    path = write_image(tmp_path / name, np.zeros((4, 30, 30), np.uint8))
    content = bytearray(path.read_bytes())
    place = content.rindex(struct.pack("<L", zlib.crc32(gzip_or_zip_content(path))))
    content[place] ^= 1
    path.write_bytes(content)
    assert "damaged" in refused(path)


def gzip_or_zip_content(path: Path) -> bytes:
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            return archive.read(archive.namelist()[0])
    content = path.read_bytes()
    return gzip.decompress(content[content.index(b"\x1f\x8b") :])


def test_a_pickle_is_never_loaded(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    assert "Python objects (a pickle)" in refused(tmp_path / "a.npy", look=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps([1, 2]))
    assert "not what its name says" in refused(tmp_path / "b.npy", look=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a.npy", "a.nii.gz", "a.nrrd", "a.tif"])
def test_pixels_that_are_no_finite_number_are_refused(tmp_path: Path, name: str, value: float):
    values = np.zeros((2, 3, 4), np.float32)
    values[1, 2, 3] = value
    assert refused(write_image(tmp_path / name, values), look=False).endswith("has 1 pixels that are NaN or infinite")


@pytest.mark.parametrize("dtype", [np.complex64, "U3", [("r", "u1"), ("g", "u1")]])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, dtype):
    np.save(tmp_path / "a.npy", np.zeros((2, 2), dtype))
    assert "expected integers or floating point numbers" in refused(tmp_path / "a.npy", look=True)


def test_complex_and_coloured_niftis_are_refused(tmp_path: Path):
    for dtype in (np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]):
        path = write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), dtype), LPS)
        assert "expected integers or floating point numbers" in refused(path, look=True)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (2, 0, 3, 4)])
def test_a_file_without_pixels_is_refused(tmp_path: Path, shape: tuple[int, ...]):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    assert "holds no pixels" in refused(tmp_path / "a.npy", look=True)


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 1, 2, 1)])
def test_too_few_or_too_many_axes_are_refused(tmp_path: Path, shape: tuple[int, ...]):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    refused(tmp_path / "a.npy", look=True)
    if shape:
        nrrd.write(str(tmp_path / "a.nrrd"), np.zeros(shape))
        assert "axes" in refused(tmp_path / "a.nrrd", look=True)


def with_palette(path: Path, indices: np.ndarray, colours: list[tuple[int, int, int]]) -> Path:
    image = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)
    return path


INDICES = np.array([[0, 1, 2], [2, 1, 0]])


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.tif"])
def test_a_palette_is_indices_in_a_mask_and_colours_in_an_image(tmp_path: Path, name: str):
    colours = [(0, 0, 0), (255, 0, 0), (9, 8, 7)]
    path = with_palette(tmp_path / name, INDICES, colours)
    np.testing.assert_array_equal(images.read(path, mask=True).pixels, INDICES[None])
    np.testing.assert_array_equal(read(path).pixels, np.array(colours)[INDICES].transpose(2, 0, 1))
    path = with_palette(tmp_path / name, INDICES, [(0, 0, 0), (70, 70, 70), (9, 9, 9)])
    np.testing.assert_array_equal(read(path).pixels, np.array([0, 70, 9])[INDICES][None])
    shades = np.array([0, 70, 9]) if name == "a.gif" else np.arange(3)
    np.testing.assert_array_equal(images.read(path, mask=True).pixels, shades[INDICES][None])
    path = with_palette(tmp_path / name, INDICES // 2, [(255, 255, 255), (0, 0, 0)])
    np.testing.assert_array_equal(images.read(path, mask=True).pixels, np.array([255, 0])[INDICES // 2][None])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_mask_in_colours_that_are_all_grey_is_one_channel(tmp_path: Path, name: str, mode: str):
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    Image.fromarray(mask).convert(mode).save(tmp_path / name)
    assert images.look(tmp_path / name, mask=True).channels == 1
    found = images.read(tmp_path / name, mask=True).pixels
    np.testing.assert_array_equal(found, (mask > 0)[None] if mode == "1" else mask[None])


def test_masks_that_are_not_clear_or_lossy_are_refused(tmp_path: Path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = 255, 0, 0, 255
    Image.fromarray(pixels[..., :3]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a mask in 2 colours, of which it does not say"):
        images.read(tmp_path / "a.png", mask=True)
    pixels[0, 0] = 0, 0, 0, 255
    Image.fromarray(pixels).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="a mask that is transparent in places"):
        images.read(tmp_path / "b.png", mask=True)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "c.png")
    assert images.read(tmp_path / "c.png", mask=True).pixels.tolist() == [[[255, 0, 0], [0, 0, 0]]]
    Image.new("L", (8, 8)).save(tmp_path / "a.jpg")
    Image.new("L", (8, 8)).save(tmp_path / "b.tif", compression="jpeg")
    (tmp_path / "c.jpg.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    for name in ("a.jpg", "b.tif", "c.jpg.png"):
        assert read(tmp_path / name).pixels.shape == (1, 8, 8)
        with pytest.raises(DataError, match="a mask compressed as JPEG, which changes values along edges"):
            images.look(tmp_path / name, mask=True)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.bmp", "a.gif", "a.ppm", "a.pgm", "a.pnm"])
def test_other_pictures_are_read(tmp_path: Path, name: str):
    grey = np.full((4, 6), 70, np.uint8)
    found = read(write_image(tmp_path / name, grey))
    np.testing.assert_array_equal(found.pixels, grey[None])
    assert (found.spacing, found.kind) == (None, "slice")
    if name not in ("a.gif", "a.pgm"):
        found = read(write_image(tmp_path / name, np.stack([grey, grey, grey], -1)))
        np.testing.assert_array_equal(found.pixels, np.stack([grey] * 3))


@pytest.mark.parametrize("most", [1, 3, 254, 255, 300, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_the_numbers_of_a_pgm_are_its_own(tmp_path: Path, most: int, plain: bool):
    values = np.unique(np.linspace(0, most, 50).astype(int))
    head = f"P{2 if plain else 5}\n# a comment\n{len(values)} 1\n{most}\n".encode()
    body = " ".join(map(str, values)).encode() if plain else values.astype(">u2" if most > 255 else "u1").tobytes()
    (tmp_path / "a.pgm").write_bytes(head + body)
    np.testing.assert_array_equal(read(tmp_path / "a.pgm").pixels[0, 0], values)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_levels_of_few_bits_are_their_own_numbers(tmp_path: Path, bits: int):
    path = write_png(tmp_path / "a.png", bits=bits, colours=0, row=b"\0\x1b", width=8 // bits)
    expected = [0, 1, 2, 3] if bits == 2 else [1, 11]
    assert read(path).pixels.tolist() == [[expected]]
    assert images.read(path, mask=True).pixels.tolist() == [[expected]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tag_does_not_turn_an_image(tmp_path: Path, orientation: int, compression: str | None):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = write_image(tmp_path / "a.tif", values, tiffinfo={274: orientation}, compression=compression)
    np.testing.assert_array_equal(read(path).pixels, values[None])
    notes = images.look(path).notes
    assert len(notes) == (orientation > 1)
    exif = Image.Exif()
    exif[274] = orientation
    write_image(tmp_path / "a.jpg", np.zeros((2, 3), np.uint8), exif=exif)
    assert read(tmp_path / "a.jpg").pixels.shape == (1, 2, 3)
    assert images.look(tmp_path / "a.jpg").notes == notes


@pytest.mark.parametrize("bits", ["float64", "int64", "uint64"])
def test_a_tiff_that_is_not_supported_is_not_called_damaged(tmp_path: Path, bits: str):
    values, kind = np.zeros((2, 3), bits), {"f": 3, "i": 2, "u": 1}[np.dtype(bits).kind]
    tags = {256: 3, 257: 2, 258: 64, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 48, 339: kind}
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHLL", tag, 4, 1, n) for tag, n in tags.items())
    content = b"II*\0" + struct.pack("<L", 8 + 48) + values.tobytes() + directory + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    sentence = refused(tmp_path / "a.tif", look=True)
    assert "not supported: 64-bit TIFF" in sentence
    assert "damaged" not in sentence
    (tmp_path / "a.tif").write_bytes(content[:60])
    assert "damaged" in refused(tmp_path / "a.tif", look=True)


def test_what_pillow_would_read_as_other_numbers_is_refused(tmp_path: Path):
    path = write_png(tmp_path / "a.png", bits=16, colours=2, row=b"\0" + bytes(range(12)))
    assert "colours of 16 bits" in refused(path, look=True)
    path = write_png(tmp_path / "b.png", bits=16, colours=4, row=b"\0" + bytes(range(8)))
    assert "colours of 16 bits" in refused(path, look=True)
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[262] == 0
    assert "0 as white" in refused(tmp_path / "a.tif", look=True)
    Image.new("CMYK", (2, 2)).save(tmp_path / "b.tif")
    assert "of the mode CMYK" in refused(tmp_path / "b.tif", look=True)


def write_png(path: Path, *, bits: int, colours: int, row: bytes, width: int = 2, height: int = 1) -> Path:
    """With any header: the rows are whatever they are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    head = struct.pack(">LLBBBBB", width, height, bits, colours, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )
    return path


def test_an_animation_and_pages_of_different_sizes_are_refused(tmp_path: Path):
    frames = [Image.new("L", (3, 3), shade) for shade in (0, 9)]
    for name in ("a.png", "a.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert "animation of 2 pictures" in refused(tmp_path / name, look=True)
    path = write_pages(tmp_path / "a.tif", [np.zeros((3, 3), np.uint8), np.zeros((3, 4), np.uint8)])
    assert "page 2 is" in refused(path, look=False)


DETACHED = {
    "a.nhdr": "NRRD0004\ntype: uint8\ndimension: 2\nsizes: 4 6\nencoding: raw\n{skip}data file: {name}\n",
    "a.mhd": "NDims = 2\nDimSize = 4 6\nElementType = MET_UCHAR\n{skip}ElementDataFile = {name}\n",
}


@pytest.mark.parametrize("header", DETACHED)
def test_pixels_that_lie_in_another_file(tmp_path: Path, header: str):
    folder, text = tmp_path / "data", DETACHED[header]
    (folder / "deeper").mkdir(parents=True)
    path, values = folder / header, np.arange(24, dtype=np.uint8).reshape(6, 4)
    (folder / "deeper/a.raw").write_bytes(b"head" + values.tobytes())
    for skip in (
        ("byte skip: 4\n", "byte skip: -1\n") if header == "a.nhdr" else ("HeaderSize = 4\n", "HeaderSize = -1\n")
    ):
        path.write_text(text.format(skip=skip, name="deeper/a.raw"))
        np.testing.assert_array_equal(read(path).pixels, values[None])
        assert images.files(path) == [path, folder / "deeper/a.raw"]
    (folder / "deeper/a.raw").write_bytes(bytes(23))
    assert "asks for 24 bytes of pixels" in refused(path, look=True)
    (folder / "deeper/a.raw").unlink()
    assert "its pixels lie in deeper/a.raw, which is not there" in refused(path, look=True)
    (tmp_path / "secret").write_bytes(bytes(24))
    (folder / "link").symlink_to(tmp_path / "secret")
    for name in (tmp_path / "secret", "../secret", "link"):
        path.write_text(text.format(skip="", name=name))
        assert "in another folder" in refused(path, look=True)
    for name in ("LIST", "a%02d.raw 1 2 1"):
        path.write_text(text.format(skip="", name=name))
        assert "lie in several files, which is not supported" in refused(path, look=True)
    os.mkfifo(folder / "pipe")
    path.write_text(text.format(skip="", name="pipe"))
    with pytest.raises(DataError, match="pipe: is no file"):
        images.read(path)


def test_directions_and_spacings_that_make_no_sense_are_refused(tmp_path: Path):
    affine = LPS.copy()
    affine[:, 2] = affine[:, 1]
    path = write_nifti(tmp_path / "a.nii", VOLUME.T, affine)
    assert "directions of its axes make no sense" in refused(path, look=True)
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME.T, {"spacings": [1.0, -1.0, 1.0]})
    assert "expected positive numbers, in mm" in refused(tmp_path / "a.nrrd", look=True)


@pytest.mark.parametrize("value", [-1.0, 0.0, np.nan])
def test_a_pixdim_that_is_no_size_is_refused_or_told_where_the_sform_says_all(tmp_path: Path, value: float):
    path = write_nifti(tmp_path / "a.nii", VOLUME.T, LPS)
    content = bytearray(path.read_bytes())
    content[80:84] = np.array([value], "<f4").tobytes()
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path).pixels[0], VOLUME)
    assert "is taken from its sform alone" in images.look(path).notes[0]
    written = images.write_like(tmp_path / "b", VOLUME[None].astype(np.uint8), path)
    np.testing.assert_allclose(nibabel.load(written).header["pixdim"][1:4], (2, 3, 4))
    for forms in ((0, 0), (1, 0)):
        content[252:256] = struct.pack("<hh", *forms)
        path.write_bytes(content)
        assert "its pixdim, the size of a voxel, is" in refused(path, look=True)


def test_two_forms_of_a_nifti_that_differ_are_told(tmp_path: Path):
    image = nibabel.Nifti1Image(VOLUME.T, LPS)
    for form, told in ((LPS, False), (RAS, True)):
        image.set_qform(form, 1)
        nibabel.save(image, tmp_path / "a.nii")
        assert [note.startswith("its sform and its qform differ by 6 mm") for note in
                images.look(tmp_path / "a.nii").notes] == [True] * told  # fmt: skip


def test_the_thickness_of_a_single_slice_may_be_unknown(tmp_path: Path):
    path = write_nifti(tmp_path / "a.nii", VOLUME.T[:, :, :1], LPS)
    content = bytearray(path.read_bytes())
    content[88:92], content[252:256] = bytes(4), struct.pack("<hh", 1, 0)
    path.write_bytes(content)
    found = read(path)
    np.testing.assert_equal(found.spacing, (np.nan, 3, 2))
    assert sizes.spacing(found) == [None, 3, 2]
    assert sizes.measure(found, np.array([5])) == {"pixels": 5, "area_px": 5, "area_mm2": 30, "volume_ml": None}


@pytest.mark.parametrize("names", [("a.hdr", "a.img"), ("a.hdr.gz", "a.img.gz"), ("A.HDR", "A.IMG")])
def test_a_pair_of_files_is_read_by_either_name(tmp_path: Path, names: tuple[str, str]):
    header, pixels = (tmp_path / name for name in names)
    nibabel.save(nibabel.Nifti1Pair(VOLUME.T, LPS), tmp_path / f"w{'.hdr.gz' if '.gz' in names[0] else '.hdr'}")
    for path in tmp_path.glob("w*"):
        path.rename(header if ".hdr" in path.name else pixels)
    for path in (header, pixels):
        np.testing.assert_array_equal(read(path).pixels[0], VOLUME)
        assert images.files(path) == [header, pixels]
        assert images.write_like(tmp_path / "out", VOLUME[None].astype(np.uint8), path).name == "out.nii.gz"
    pixels.unlink()
    assert f"its pixels lie in {pixels.name}, which is not there" in refused(header, look=True)


def test_half_of_a_pair_of_files_is_refused(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Pair(VOLUME.T, LPS), tmp_path / "a.hdr")
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    assert "pair of files" in refused(tmp_path / "a.nii", look=True)
    assert "its header, a.hdr, is not there" in refused(tmp_path / "a.img", look=True)
    nibabel.save(nibabel.AnalyzeImage(VOLUME.T, LPS), tmp_path / "b.hdr")
    assert "is an Analyze file, which does not say" in refused(tmp_path / "b.hdr", look=True)


def test_an_archive_of_several_arrays_is_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", image=VOLUME, mask=VOLUME)
    assert "must hold one array, it holds 2 (image.npy, mask.npy)" in refused(tmp_path / "a.npz", look=True)


# Bombs


def peak(path: Path) -> int:
    """Bytes that refusing a file takes at most."""
    refused(path)  # loads what is loaded once
    tracemalloc.start()
    refused(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_a_header_that_claims_too_much_is_refused_before_anything_is_unpacked(tmp_path: Path):
    nifti = nibabel.Nifti1Header()
    nifti.set_data_dtype(np.int16)
    nifti.set_data_shape((30_000, 30_000, 3_000))
    nifti["vox_offset"], nifti["magic"] = 352, b"n+1"
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti.binaryblock + bytes(1000)))
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: double\ndimension: 3\nsizes: 9999 9999 9999\nencoding: gzip\n\n" + gzip.compress(bytes(99))
    )
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999, 99999), }"
    npy = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header
    (tmp_path / "a.npy").write_bytes(npy)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy + bytes(1000))
    (tmp_path / "a.mha").write_bytes(
        b"NDims = 3\nDimSize = 9999 9999 9999\nElementType = MET_INT\nCompressedData = True\nElementDataFile = LOCAL\n"
        + zlib.compress(bytes(99))
    )
    for name in ("a.nii.gz", "a.nrrd", "a.npy", "a.npz", "a.mha"):
        assert "its header claims" in refused(tmp_path / name, look=True)
        assert peak(tmp_path / name) < 2**20


def test_pictures_that_claim_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_png(tmp_path / "a.png", bits=8, colours=0, row=bytes(10), width=50_000, height=50_000)
    assert "its header claims 2.3 GiB" in refused(path, look=True)
    pages = write_pages(tmp_path / "a.tif", [np.zeros((10, 10), np.uint8)] * 12, compression="tiff_deflate")
    monkeypatch.setattr(picture, "MOST_BYTES", 1000)
    assert "its header claims" in refused(pages, look=True)


def test_a_file_that_unpacks_to_more_than_its_header_says_is_refused_in_little_memory(tmp_path: Path):
    small, bomb = np.zeros((4, 4, 4), np.uint8), bytes(2**24)
    path = write_image(tmp_path / "a.nii.gz", small)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bomb, 1))
    assert "it has more" in refused(path, look=False)
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: gzip\n\n"
    (tmp_path / "a.nrrd").write_bytes(head + gzip.compress(bomb, 1))
    assert "it has more" in refused(tmp_path / "a.nrrd", look=False)
    (tmp_path / "a.mha").write_bytes(
        b"NDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nCompressedData = True\nElementDataFile = LOCAL\n"
        + zlib.compress(bomb)
    )
    assert "it has more" in refused(tmp_path / "a.mha", look=False)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.npy", write_image(tmp_path / "b.npy", small).read_bytes() + bomb)
    assert "its header says" in refused(tmp_path / "a.npz", look=True)
    for name in ("a.nii.gz", "a.nrrd", "a.npz"):
        assert peak(tmp_path / name) < 2**21


def test_an_extension_of_gigabytes_is_not_unpacked(tmp_path: Path):
    path = write_image(tmp_path / "a.nii", VOLUME)
    content = bytearray(path.read_bytes())
    content[108:112] = struct.pack("<f", 2.0**31)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    assert "said to begin at byte" in refused(tmp_path / "a.nii.gz", look=True)


def test_scaling_is_part_of_what_a_header_says(tmp_path: Path):
    path = write_nifti(tmp_path / "a.nii", VOLUME.T, LPS)
    assert images.look(path).whole
    write_scaling(path, 0.1, 0.0)
    assert not images.look(path).whole


# Inputs that were once taken wrongly


def test_a_picture_of_90_megapixels_is_read():
    assert read(failing("p90M.png")).pixels.shape == (1, 9500, 9500)


def test_a_tiff_of_64_bits_is_not_supported():
    sentence = refused(failing("float64.tif"), look=True)
    assert "not supported: 64-bit TIFF of floating point numbers" in sentence
    assert "damaged" not in sentence


def test_an_array_of_rows_columns_and_colours_is_asked_about():
    path = failing("hwc.npy")
    assert "say --axes yxc if the last one is channels" in refused(path, look=True)
    assert images.read(path, axes="yxc").pixels.shape == (3, 36, 44)


def test_a_turned_tiff_lies_as_the_masks_beside_it():
    for path in sorted(failing("i_tif_orient3").glob("i*.tif")):
        np.testing.assert_array_equal(read(path).pixels, read(path.with_suffix(".png")).pixels)
        assert "its orientation tag (3) asks viewers to turn it" in images.look(path).notes[0]


def test_the_indices_of_palette_masks_are_labels():
    for path in sorted(failing("m_pal").glob("m*_*.png")):
        assert set(np.unique(images.read(path, mask=True).pixels)) <= {0, 1}


def test_slices_of_thick_and_thin_volumes_lie_the_same_way():
    """Both are stored with columns to the right and rows to the front."""
    for name in ("depth1_ras/i0.nii.gz", "depth1_ras/i1.nii.gz"):
        path = failing(name)
        stored = np.asarray(nibabel.load(path).dataobj)
        np.testing.assert_array_equal(read(path).pixels[0, 0], stored[::-1, ::-1, 0].T)


def test_a_saturated_ct_is_read():
    found = read(failing("ct_saturated.dcm"))
    assert (found.pixels.min(), found.pixels.max()) == (-1023, 65535 - 1024)


def test_a_named_series_is_read_beside_a_broken_file():
    folder = failing("bad_beside")
    assert find_series(folder, ["1.2.3.4.5"]).read().pixels.shape == (1, 3, 64, 64)
    with pytest.raises(DataError, match=r"bad\.dcm: its header has no Rows"):
        images.look(folder)
