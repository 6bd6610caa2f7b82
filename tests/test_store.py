"""The prepared data set: what is written is read, without a copy; what is damaged is refused by name."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from proseg.data import writer
from proseg.data.case import Slice
from proseg.data.folds import Fold, make_folds
from proseg.data.store import ARROW, FORMAT, MANIFEST, Description, Store, write
from proseg.data.writer import ROWS_PER_BATCH
from proseg.errors import DataError
from tests.images import as_nobody

CopyOf = Callable[[Store], Path]


def test_everything_written_is_read(tiny_store: Store, real_slices: list[Slice]):
    m = tiny_store.manifest
    assert (m.slices, m.patients, m.volumes, m.raters) == (40, 20, 20, 4)
    assert (m.channels, m.height, m.width, m.dtype) == (1, 32, 32, "int16")
    for row, one in enumerate(real_slices):
        np.testing.assert_array_equal(tiny_store.image(row), one.image)
        np.testing.assert_array_equal(tiny_store.annotations(row), one.annotations)
        np.testing.assert_array_equal(tiny_store.rater_mask(row), one.rater_mask)
    assert tiny_store.patients.tolist() == [one.patient for one in real_slices]
    assert tiny_store.volumes.tolist() == [one.volume for one in real_slices]
    assert tiny_store.z.tolist() == [one.z for one in real_slices]


def test_the_data_hold_missing_raters(tiny_store: Store):
    present = [tiny_store.rater_mask(row).sum() for row in range(40)]
    assert 0 < min(present) < max(present) == 4


def test_the_description_comes_back(tiny_store: Store, description: Description):
    assert Description.model_validate(tiny_store.manifest.model_dump(include=set(Description.model_fields))) == (
        description
    )


def test_rows_beyond_one_record_batch(tmp_path: Path, real_slices: list[Slice], description: Description):
    many = [
        replace(one, patient=f"{one.patient}-{turn}", volume=f"{one.volume}-{turn}")
        for turn in range(4) for one in real_slices
    ]  # fmt: skip
    assert len(many) > 2 * ROWS_PER_BATCH
    store = write(tmp_path / "store", iter(many), description)
    for row in (0, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, 2 * ROWS_PER_BATCH, len(many) - 1):
        np.testing.assert_array_equal(store.image(row), many[row].image)
        np.testing.assert_array_equal(store.annotations(row), many[row].annotations)
        assert store.patients[row] == many[row].patient
    store.verify()


def test_reading_copies_nothing(tiny_store: Store):
    for view in (tiny_store.image, tiny_store.annotations, tiny_store.rater_mask):
        one = view(5)
        assert not one.flags.owndata
        assert not one.flags.writeable
        assert np.shares_memory(one, view(5))
        assert not np.shares_memory(one, view(6))


def test_the_fingerprint_depends_on_the_content_alone(
    tmp_path: Path, tiny_store: Store, real_slices: list[Slice], description: Description
):
    again = write(tmp_path / "again", real_slices, description.model_copy(update={"name": "other"}))
    assert again.manifest.fingerprint == tiny_store.manifest.fingerprint
    assert again.manifest.folds == tiny_store.manifest.folds
    changed = [replace(real_slices[0], image=real_slices[0].image + 1), *real_slices[1:]]
    assert write(tmp_path / "changed", changed, description).manifest.fingerprint != again.manifest.fingerprint


def test_folds_are_dealt_by_mean_area_or_taken_as_given(
    tmp_path: Path, tiny_store: Store, real_slices: list[Slice], description: Description
):
    areas: dict[str, list[int]] = {}
    for one in real_slices:
        areas.setdefault(one.patient, []).append(int(one.annotations.sum()))
    assert tiny_store.manifest.folds == make_folds({p: float(np.mean(a)) for p, a in areas.items()})
    first, second, *others = sorted(areas)
    given = (Fold(0, tuple(others), (first,), (second,)),)
    assert write(tmp_path / "given", real_slices, description, given).manifest.folds == given


def test_cases_of_slices_are_slices(tiny_store: Store):
    patients = sorted(set(tiny_store.patients))[3:6]
    cases = tiny_store.cases(patients)
    assert [len(case) for case in cases] == [1] * 6
    assert {str(tiny_store.patients[case[0]]) for case in cases} == set(patients)
    assert np.concatenate(cases).tolist() == tiny_store.rows(patients).tolist()


def test_cases_of_volumes_are_whole_volumes_in_file_order(volume_store: Store):
    fold = volume_store.manifest.folds[0]
    cases = volume_store.cases(fold.val)
    assert [len(case) for case in cases] == [3, 3, 3]
    assert all(len(set(volume_store.volumes[case])) == 1 for case in cases)
    assert all((np.diff(volume_store.z[case]) > 0).all() for case in cases)
    assert np.concatenate(cases).tolist() == sorted(np.concatenate(cases).tolist())


def test_cases_of_nobody(tiny_store: Store):
    assert tiny_store.cases([]) == []
    assert tiny_store.rows(["nobody"]).tolist() == []


# Labels


def labelled(slices: list[Slice], annotations: np.ndarray) -> list[Slice]:
    """The slices with other masks in the sixth of them."""
    return [*slices[:5], replace(slices[5], annotations=annotations), *slices[6:]]


def test_labels_of_several_classes_are_read_as_they_were_written(
    tmp_path: Path, real_slices: list[Slice], description: Description
):
    rng = np.random.default_rng(0)
    slices = [
        replace(one, annotations=rng.integers(0, 4, one.annotations.shape, np.uint8) * one.rater_mask[:, None, None])
        for one in real_slices
    ]
    store = write(tmp_path / "store", slices, description.model_copy(update={"classes": 3}))
    assert store.manifest.classes == 3
    for row in (0, 7, 39):
        np.testing.assert_array_equal(store.annotations(row), slices[row].annotations)
        assert store.annotations(row).dtype == np.uint8
    store.verify()


def test_a_binary_store_is_one_class_and_its_masks_are_labels(tiny_store: Store):
    assert tiny_store.manifest.classes == 1
    assert tiny_store.annotations(0).dtype == np.uint8
    assert set(np.unique(tiny_store.annotations(0))) == {0, 1}


@pytest.mark.parametrize(
    ("annotations", "classes", "told"),
    [
        (np.full((4, 32, 32), 2, np.uint8), 1, "from 0 to 1, but are uint8 up to 2"),
        (np.full((4, 32, 32), 255, np.uint8), 3, "from 0 to 3, but are uint8 up to 255"),
        (np.zeros((4, 32, 32), np.float32), 1, "but are float32 up to 0"),
        (np.full((4, 32, 32), 0.5), 3, "but are float64 up to 0.5"),
        (np.zeros((4, 32, 32), np.int64), 1, "but are int64 up to 0"),
    ],
)
def test_masks_that_are_no_labels_are_refused_by_name(
    tmp_path: Path, real_slices: list[Slice], description: Description, annotations: np.ndarray, classes: int, told: str
):
    slices = labelled(real_slices, annotations)
    with pytest.raises(DataError, match=told) as caught:
        write(tmp_path / "store", slices, description.model_copy(update={"classes": classes}))
    assert f"the masks of {slices[5].volume} at z = {slices[5].z}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [0, -1, 256])
def test_a_number_of_classes_that_labels_cannot_hold_is_refused(description: Description, classes: int):
    with pytest.raises(ValidationError, match="classes"):
        Description(**{**description.model_dump(), "classes": classes})


def test_a_store_that_was_written_before_there_were_classes_is_binary(tiny_store: Store, copy_of: CopyOf):
    folder = copy_of(tiny_store)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["classes"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert Store(folder).manifest.classes == 1
    Store(folder).verify()


# Damage


def test_an_intact_store_verifies(tiny_store: Store, volume_store: Store):
    tiny_store.verify()
    volume_store.verify()


def flip_byte(file: Path, inside: bytes) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(inside) + len(inside) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("column", ["image", "annotations", "rater_mask", "patient", "volume", "z"])
def test_verify_detects_one_flipped_bit(volume_store: Store, copy_of: CopyOf, column: str):
    folder, row = copy_of(volume_store), 13
    content = {
        "image": volume_store.image(row).tobytes(),
        "annotations": volume_store.annotations(row).tobytes(),
        "rater_mask": b"".join(volume_store.rater_mask(r).tobytes() for r in range(volume_store.manifest.slices)),
        "patient": str(volume_store.patients[row]).encode(),
        "volume": str(volume_store.volumes[row]).encode(),
        "z": volume_store.z[row : row + 2].tobytes(),
    }  # fmt: skip
    flip_byte(folder / ARROW, content[column])
    with pytest.raises(DataError, match="damaged"):
        Store(folder).verify()


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_file_is_refused_when_it_is_opened(tiny_store: Store, copy_of: CopyOf, kept: int):
    folder = copy_of(tiny_store)
    content = (folder / ARROW).read_bytes()
    (folder / ARROW).write_bytes(content[:kept])
    with pytest.raises(DataError, match="damaged") as caught:
        Store(folder)
    assert str(folder / ARROW) in str(caught.value)


def test_a_file_of_the_right_size_that_is_no_arrow_file_is_refused(tiny_store: Store, copy_of: CopyOf):
    folder = copy_of(tiny_store)
    (folder / ARROW).write_bytes(bytes((folder / ARROW).stat().st_size))
    with pytest.raises(DataError, match="damaged"):
        Store(folder)


@pytest.mark.parametrize("file", [ARROW, MANIFEST])
def test_a_missing_file_is_named(tiny_store: Store, copy_of: CopyOf, file: str):
    folder = copy_of(tiny_store)
    (folder / file).unlink()
    with pytest.raises(DataError, match=file) as caught:
        Store(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        Store(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 99}, f"format 99, this version reads {FORMAT}"), ({"slices": 39}, "does not hold 39 slices"),
     ({"dtype": "float16"}, "cannot be read as a manifest"), ({"surplus": 1}, "cannot be read as a manifest")],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_is_refused(tiny_store: Store, copy_of: CopyOf, change: dict, message: str):
    folder = copy_of(tiny_store)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(DataError, match=message):
        Store(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_manifest_that_is_no_manifest_is_named(tiny_store: Store, copy_of: CopyOf, text: bytes):
    folder = copy_of(tiny_store)
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(DataError, match=MANIFEST):
        Store(folder)


# Writing


def test_an_empty_source_is_refused_and_leaves_nothing(tmp_path: Path, description: Description):
    with pytest.raises(DataError, match="'tiny' is empty"):
        write(tmp_path / "store", [], description)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "odd",
    [{"image": np.zeros((1, 32, 31), np.int16)}, {"image": np.zeros((1, 32, 32), np.float32)},
     {"annotations": np.zeros((3, 32, 32), bool)}],
)  # fmt: skip
def test_slices_that_differ_are_refused_by_name(
    tmp_path: Path, real_slices: list[Slice], description: Description, odd: dict
):
    slices = [*real_slices[:5], replace(real_slices[5], **odd), *real_slices[6:]]
    with pytest.raises(DataError, match=real_slices[5].volume):
        write(tmp_path / "store", slices, description)
    assert list(tmp_path.iterdir()) == []


def test_too_few_patients_for_folds_are_refused(tmp_path: Path, real_slices: list[Slice], description: Description):
    with pytest.raises(DataError, match="'tiny': 4 folds need at least 8 patients, there are 3"):
        write(tmp_path / "store", real_slices[:6], description)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, real_slices: list[Slice], description: Description, error: type[BaseException]
):
    def interrupted() -> Iterator[Slice]:
        yield from real_slices
        raise error

    with pytest.raises(error):
        write(tmp_path / "store", interrupted(), description)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_write_do_not_matter(tmp_path: Path, real_slices: list[Slice], description: Description):
    leftover = tmp_path / ".store.partial"
    leftover.mkdir()
    (leftover / ARROW).write_bytes(b"half")
    (leftover / "more").write_bytes(b"")
    store = write(tmp_path / "store", real_slices, description)
    store.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert sorted(path.name for path in store.folder.iterdir()) == [MANIFEST, ARROW]


FLIP = """
import sys
from pathlib import Path
from proseg.data.store import Store
from proseg.errors import DataError

file = Path(sys.argv[1])
content = file.read_bytes()
refused, unnamed = 0, {}
for place in range(0, len(content), 3):
    file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
    try:
        Store(file.parent).verify()
    except DataError:
        refused += 1
    except Exception as error:
        unnamed[type(error).__name__] = place
file.write_bytes(content)
print(refused, unnamed)
"""


def test_no_flipped_bit_crashes_the_process_or_escapes_as_another_error(
    tmp_path: Path, real_slices: list[Slice], description: Description
):
    corner = [replace(one, image=one.image[:, :4, :4], annotations=one.annotations[:, :4, :4]) for one in real_slices]
    store = write(tmp_path / "store", corner, description)
    run = subprocess.run([sys.executable, "-c", FLIP, store.folder / ARROW], capture_output=True, text=True)
    assert run.returncode == 0, f"the process died of signal {-run.returncode}"
    refused, _, unnamed = run.stdout.strip().partition(" ")
    assert int(refused) > 100
    assert unnamed == "{}"
    store.verify()


def test_a_slice_that_nobody_annotated_is_refused(tmp_path: Path, real_slices: list[Slice], description: Description):
    nobody = replace(real_slices[1], rater_mask=np.zeros_like(real_slices[1].rater_mask))
    with pytest.raises(DataError, match="annotated by no rater"):
        write(tmp_path / "store", [real_slices[0], nobody], description)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (
            {"image": np.full((1, 32, 32), np.nan, np.float32)},
            "the image of {volume} at z = {z} has pixels that",
        ),
        ({"image": np.full((1, 32, 32), -np.inf, np.float32)}, "the image of {volume} at z = {z} has pixels that"),
        ({"z": float("nan")}, "a slice of {volume} at z = nan has no position"),
        ({"spacing": (1.0, 0.0, 1.0)}, "slice of {volume} at z = {z} has the spacing .*; expected three positive"),
        (
            {"annotations": np.ones((4, 32, 32), bool), "rater_mask": np.array([True, True, True, False])},
            "slice of {volume} at z = {z} has a mask of a rater who is said to be missing",
        ),
    ],
)
def test_what_no_image_holds_is_refused_by_name(
    tmp_path: Path, real_slices: list[Slice], description: Description, odd: dict, told: str
):
    slices = [replace(one, image=one.image.astype(np.float32)) for one in real_slices]
    slices[5] = replace(slices[5], **odd)
    with pytest.raises(DataError, match=told.format(volume=slices[5].volume, z=slices[5].z)):
        write(tmp_path / "store", slices, description)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "first",
    [{"image": np.zeros((32, 32), np.int16)}, {"image": np.zeros((1, 32, 32))},
     {"annotations": np.ones((4, 32, 31), bool)}, {"rater_mask": np.ones(3, bool)}],
)  # fmt: skip
def test_a_first_slice_that_does_not_fit_itself_is_refused(
    tmp_path: Path, real_slices: list[Slice], description: Description, first: dict
):
    with pytest.raises(DataError, match=r"where \[C, H, W\] uint8, int16 or float32 and \[R, H, W\] are expected"):
        write(tmp_path / "store", [replace(real_slices[0], **first)], description)


def test_one_rater_is_told_that_the_method_needs_two(
    tmp_path: Path, real_slices: list[Slice], description: Description
):
    alone = [replace(one, annotations=one.annotations[:1], rater_mask=np.ones(1, bool)) for one in real_slices]
    with pytest.raises(DataError, match=r"'tiny' has 1 rater; the method .* needs at least 2"):
        write(tmp_path / "store", alone, description)
    second = np.array([False, True, False, False])
    only = [replace(one, annotations=one.annotations & second[:, None, None], rater_mask=second) for one in real_slices]
    with pytest.raises(DataError, match=r"'tiny': all masks are of one of its 4 raters; the method .* at least 2"):
        write(tmp_path / "store", only, description)
    assert list(tmp_path.iterdir()) == []


def test_no_slice_comes_twice_and_no_volume_is_of_two_patients(
    tmp_path: Path, real_slices: list[Slice], description: Description
):
    one = real_slices[5]
    with pytest.raises(DataError, match=f"there are two slices of {one.volume} at z = {one.z}"):
        write(tmp_path / "store", [*real_slices, one], description)
    with pytest.raises(DataError, match=f"volume {one.volume} is one of patient {one.patient} and one of patient x"):
        write(tmp_path / "store", [*real_slices, replace(one, patient="x", z=-1.0)], description)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (("rest", "first", "second+first"), "patient {first} is in two parts of fold 0: val and test"),
        (("rest", "", "second"), "patient {first} is in no part"),
    ],
)
def test_given_folds_must_be_a_partition(
    tmp_path: Path, real_slices: list[Slice], description: Description, parts: tuple[str, ...], told: str
):
    first, second, *rest = sorted({one.patient for one in real_slices})
    names = {"first": [first], "second": [second], "rest": rest, "": []}
    train, val, test = (tuple(name for word in part.split("+") for name in names[word]) for part in parts)
    with pytest.raises(DataError, match=told.format(first=first)):
        write(tmp_path / "store", real_slices, description, (Fold(0, train, val, test),))


# Several files


@pytest.fixture
def divided(
    tmp_path: Path, real_slices: list[Slice], description: Description, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """The tiny store in five files of nine slices each, the last of four; in batches of four."""
    size = real_slices[0].image.nbytes + real_slices[0].annotations.nbytes
    monkeypatch.setattr(writer, "BYTES_PER_FILE", 9 * size)
    monkeypatch.setattr(writer, "BYTES_PER_BATCH", 4 * size)
    return write(tmp_path / "divided", real_slices, description)


def test_a_store_of_several_files_reads_as_one(divided: Store, tiny_store: Store):
    assert [file.name for file in divided.manifest.files] == [
        "slices.arrow", "slices-0001.arrow", "slices-0002.arrow", "slices-0003.arrow", "slices-0004.arrow",
    ]  # fmt: skip
    with pa.ipc.open_file(divided.folder / "slices-0001.arrow") as file:
        assert [file.get_batch(i).num_rows for i in range(file.num_record_batches)] == [4, 4, 1]
    for row in range(40):
        np.testing.assert_array_equal(divided.image(row), tiny_store.image(row))
        np.testing.assert_array_equal(divided.annotations(row), tiny_store.annotations(row))
        np.testing.assert_array_equal(divided.rater_mask(row), tiny_store.rater_mask(row))
        assert divided.spacing(row) == tiny_store.spacing(row)
    for name in ("patients", "volumes", "z"):
        np.testing.assert_array_equal(getattr(divided, name), getattr(tiny_store, name))
    assert divided.manifest.fingerprint == tiny_store.manifest.fingerprint
    assert not divided.image(20).flags.owndata
    divided.verify()


@pytest.mark.parametrize("row", [0, 17, 39])
def test_a_slice_comes_back_whole(divided: Store, real_slices: list[Slice], row: int):
    one, wanted = divided.slice(np.int64(row)), real_slices[row]
    assert (one.patient, one.volume, one.z, one.spacing) == (wanted.patient, wanted.volume, wanted.z, wanted.spacing)
    np.testing.assert_array_equal(one.annotations, wanted.annotations)


def test_verify_names_the_file_in_which_a_bit_was_flipped(divided: Store, copy_of: CopyOf):
    folder = copy_of(divided)
    flip_byte(folder / "slices-0002.arrow", divided.image(20).tobytes())
    with pytest.raises(DataError, match=r"slices-0002\.arrow is damaged: its content no longer has the fingerprint"):
        Store(folder).verify()


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_file_that_is_gone_or_cut_short_is_named(divided: Store, copy_of: CopyOf, spoil: Callable):
    folder = copy_of(divided)
    spoil(folder / "slices-0003.arrow")
    with pytest.raises(DataError, match=r"slices-0003\.arrow is"):
        Store(folder)


@pytest.mark.parametrize("name", ["../slices.arrow", "/elsewhere/slices.arrow", "slices-1.arrow", "slices.arrow\n"])
def test_a_manifest_cannot_name_files_elsewhere(divided: Store, copy_of: CopyOf, name: str):
    folder = copy_of(divided)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][1]["name"] = name
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="cannot be read as a manifest"):
        Store(folder)


def test_a_store_of_format_1_is_still_read(tiny_store: Store, copy_of: CopyOf):
    folder = copy_of(tiny_store)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in ("files", "identity", "skipped", "rater_names", "channel_names"):
        del manifest[name]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 1}))
    Store(folder).verify()
    assert Store(folder).manifest.fingerprint == "3fb776649a0a9cca512f6f743f7ecd8fccc9d7a06574289e317da4bbb7fe19aa"


@pytest.mark.parametrize("file", [ARROW, MANIFEST])
def test_what_may_not_be_read_is_not_called_damaged(tiny_store: Store, file: str):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        os.chmod(place, 0o755)
        shutil.copytree(tiny_store.folder, Path(place) / "store")
        (Path(place) / "store" / file).chmod(0)
        with as_nobody(), pytest.raises(DataError) as error:
            Store(Path(place) / "store")
    assert str(Path(place) / "store" / file) in str(error.value)
    assert "ermission" in str(error.value)
    assert "delete" not in str(error.value)


def test_a_disk_that_is_full_is_named(
    tmp_path: Path, real_slices: list[Slice], description: Description, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "open", full, raising=False)
    with pytest.raises(DataError, match=f"there is no room in {tmp_path} for the data set store"):
        write(tmp_path / "store", real_slices, description)
    assert list(tmp_path.iterdir()) == []
