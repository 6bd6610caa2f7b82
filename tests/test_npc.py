"""The NPC layout and its stand-in: what is written, what is read back, and what is refused."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from proseg.data import npc, npc_standin
from proseg.data.case import Slice
from proseg.data.folds import Fold
from proseg.data.source import prepare
from proseg.errors import DataError

KEYS = {"t1", "t1c", "t2", "label_a1", "label_a2", "label_a3", "label_a4"}
SUBJECTS = (2, 1, 1)
VOLUMES = ["training/Sample_0.h5", "training/Sample_1.h5", "validation/Sample_2.h5", "testing/Sample_3.h5"]


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete small stand-in; tests must not change it."""
    folder = tmp_path_factory.mktemp("npc") / "standin"
    written = [path.relative_to(folder).as_posix() for path in npc_standin.write(folder, SUBJECTS)]
    assert written == VOLUMES
    return folder


def write_volume(path: Path, **changes: np.ndarray | None) -> Path:
    """A small valid volume, apart from `changes`: arrays to replace or add, None to leave out."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {key: rng.normal(size=(3, 8, 10)) for key in npc.CHANNELS}
    arrays |= {f"label_a{rater}": rng.integers(0, 2, (3, 8, 10)) for rater in (1, 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in (arrays | changes).items():
            if array is not None:
                file.create_dataset(key, data=array)
    return path


def touch_volumes(folder: Path, count: int) -> None:
    """A part of `count` volumes that can be opened, but hold nothing."""
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"Sample_{index}.h5").touch()
    h5py.File(folder / "Sample_0.h5", "w").close()


def with_pixel(value: float) -> np.ndarray:
    array = np.zeros((3, 8, 10))
    array[1, 2, 3] = value
    return array


# What the stand-in writes


def test_standin_has_the_published_layout(standin: Path):
    with h5py.File(standin / "training/Sample_0.h5") as volume:
        assert set(volume) == KEYS | {"voxel_spacing"}
        assert {volume[key].shape for key in KEYS} == {(14, 141, 167)}
        assert [volume[key].dtype for key in ("t1", "label_a1", "voxel_spacing")] == [np.float32, np.uint8, np.float32]
        assert volume["voxel_spacing"].shape == (3,)
        assert volume["t1"].compression == "gzip"
        assert volume.attrs["standin"] == "synthetic volume written by proseg-tune; no patient, no expert"
        for key in npc.CHANNELS:
            assert volume[key][()].mean() == pytest.approx(0, abs=1e-4)
            assert volume[key][()].std() == pytest.approx(1, abs=1e-4)


def test_training_2d_holds_the_training_volumes_slice_by_slice(standin: Path):
    assert len(list((standin / "training_2d").iterdir())) == 14 + 22
    with (
        h5py.File(standin / "training/Sample_0.h5") as volume,
        h5py.File(standin / "training_2d/Sample_0_slice_13.h5") as cut,
    ):
        assert set(cut) == KEYS
        assert "standin" in cut.attrs
        assert all(np.array_equal(cut[key], volume[key][13]) for key in KEYS)


def rater_distance(masks: np.ndarray) -> float:
    """d_aa by volume: mean of 1 - IoU over all ordered pairs of raters, those with oneself included."""
    return float(np.mean([1 - (a & b).sum() / (a | b).sum() for a in masks for b in masks]))


def test_a_volume_depends_on_its_index_alone(standin: Path):
    volume = npc.read_volume(standin / "training/Sample_0.h5")
    rounded = np.rint(volume.images * 1000).astype("<i4")  # so that the last bit of exp() on another CPU is no matter
    digest = hashlib.sha256(rounded.tobytes() + volume.labels.tobytes()).hexdigest()
    assert digest == "706501b51ff6d91ffc2803bac37c5b087039305f34603e53ef2457b6a6e9a511"


# Writing again


def test_a_complete_standin_is_left_alone(standin: Path):
    marker = json.loads((standin / "STANDIN.json").read_text(encoding="utf-8"))
    assert marker["subjects"] == {"training": 2, "validation": 1, "testing": 1}
    assert marker["label"] == npc.STANDIN_LABEL
    assert list(npc_standin.write(standin, SUBJECTS)) == []
    with pytest.raises(DataError, match=r"other subjects.*choose another folder"):
        npc_standin.write(standin, (3, 1, 1))


def test_an_incomplete_standin_is_completed(standin: Path, tmp_path: Path):
    folder = shutil.copytree(standin, tmp_path / "standin")
    (folder / "STANDIN.json").unlink()
    (folder / "testing/Sample_3.h5").unlink()
    with pytest.raises(DataError, match=r"Sample_2\.h5: left by a stand-in of other subjects"):
        npc_standin.write(folder, (3, 1, 1))
    assert list(npc_standin.write(folder, SUBJECTS)) == [folder / "testing/Sample_3.h5"]
    assert (folder / "testing/Sample_3.h5").read_bytes() == (standin / "testing/Sample_3.h5").read_bytes()
    assert (folder / "STANDIN.json").is_file()
    assert not list(folder.rglob("*.partial"))


def test_slices_of_what_is_no_longer_a_training_volume_are_refused(standin: Path, tmp_path: Path):
    (tmp_path / "training_2d").mkdir()
    shutil.copy(standin / "training_2d/Sample_1_slice_0.h5", tmp_path / "training_2d")
    with pytest.raises(DataError, match=r"Sample_1_slice_0\.h5: .*other subjects"):
        npc_standin.write(tmp_path, (1, 1, 1))


@pytest.mark.parametrize("name", ["training/Sample_0.h5", "MMIS2024TASK1/validation/Sample_7.h5", "mine.h5"])
def test_files_of_the_user_are_never_touched(tmp_path: Path, name: str):
    foreign = write_volume(tmp_path / name)
    before = foreign.read_bytes()
    with pytest.raises(DataError, match=rf"{foreign.name}: not written by the stand-in generator"):
        npc_standin.write(tmp_path, SUBJECTS)
    assert foreign.read_bytes() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [foreign]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(npc_standin.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        next(npc_standin.write(tmp_path, SUBJECTS))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("subjects", [(0, 1, 1), (2, 1, -1), (2, 1)])
def test_subjects_must_be_three_positive_counts(tmp_path: Path, subjects: tuple[int, ...]):
    with pytest.raises(DataError, match="--subjects"):
        npc_standin.write(tmp_path, subjects)


def test_a_damaged_marker_or_a_file_in_the_way_is_refused(tmp_path: Path):
    marker = tmp_path / "STANDIN.json"
    marker.write_text("{", encoding="utf-8")
    for folder in (tmp_path, marker):
        with pytest.raises(DataError, match=r"STANDIN\.json: .*choose another folder"):
            npc_standin.write(folder, SUBJECTS)


# Finding


def test_find_takes_the_parts_as_they_are_where_there_is_testing(standin: Path, tmp_path: Path):
    files = npc.find(standin)
    names = [path.relative_to(standin).as_posix() for path in (*files.train, *files.val, *files.test)]
    assert (files.folder, names, files.standin) == (standin, VOLUMES, True)

    shutil.copytree(standin / "training", tmp_path / "MMIS2024TASK1/training")
    shutil.copytree(standin / "validation", tmp_path / "MMIS2024TASK1/validation")
    assert npc.find(tmp_path).folder == tmp_path / "MMIS2024TASK1"


def test_find_splits_the_public_release_80_20_20(tmp_path: Path):
    touch_volumes(tmp_path / "training", 100)
    touch_volumes(tmp_path / "validation", 20)
    touch_volumes(tmp_path / "training_2d", 3)
    (tmp_path / "training/._Sample_5.h5").touch()  # what macOS leaves when it unpacks an archive
    files = npc.find(tmp_path)
    assert [path.name for path in files.train] == [f"Sample_{index}.h5" for index in range(80)]
    assert [path.name for path in files.val] == [f"Sample_{index}.h5" for index in range(80, 100)]
    assert [path.parent.name for path in files.test] == ["validation"] * 20
    assert not files.standin


def test_find_says_what_is_missing(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        npc.find(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected training/"):
        npc.find(tmp_path)
    (tmp_path / "training").mkdir()
    with pytest.raises(DataError, match=r"training: expected volumes Sample_<i>\.h5"):
        npc.find(tmp_path)
    touch_volumes(tmp_path / "more/training", 1)
    with pytest.raises(DataError, match=r"validation: expected volumes Sample_<i>\.h5"):
        npc.find(tmp_path / "more")
    touch_volumes(tmp_path / "more/validation", 1)
    with pytest.raises(DataError, match="training: expected at least 2 volumes"):
        npc.find(tmp_path / "more")


# Reading


def test_read_volume_gives_back_what_was_drawn(standin: Path):
    read, drawn = npc.read_volume(standin / "testing/Sample_3.h5"), npc_standin.draw(3)
    assert np.array_equal(read.images, drawn.images)
    assert np.array_equal(read.labels, drawn.labels)
    assert (read.images.dtype, read.labels.dtype) == (np.float32, np.bool_)
    assert (read.voxel_spacing, read.standin) == (drawn.voxel_spacing, True)


@pytest.mark.parametrize(("image", "label"), [("f2", "i8"), ("f8", "f4"), ("i2", "?"), ("u1", "u1")])
def test_read_volume_accepts_any_numeric_type(tmp_path: Path, image: str, label: str):
    ones = np.ones((3, 8, 10))
    path = write_volume(tmp_path / "Sample_0.h5", t1c=ones.astype(image), label_a2=ones.astype(label))
    volume = npc.read_volume(path)
    assert volume.images.dtype == np.float32
    assert (volume.images[1] == 1).all()
    assert volume.labels[1].all()
    assert (volume.voxel_spacing, volume.standin) == ((1.0, 1.0, 1.0), False)


def test_read_volume_takes_as_many_raters_as_there_are(tmp_path: Path):
    zeros = np.zeros((3, 8, 10))
    more = {f"label_a{rater}": zeros for rater in range(3, 12)}
    assert len(npc.read_volume(write_volume(tmp_path / "Sample_0.h5")).labels) == 2
    assert len(npc.read_volume(write_volume(tmp_path / "Sample_1.h5", **more)).labels) == 11


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"t2": None}, "no key 't2'"),
        ({"label_a2": None}, "no key 'label_a2'"),
        ({"label_a4": np.zeros((3, 8, 10))}, "no key 'label_a3'"),
        ({"t1c": np.zeros((3, 8, 9))}, "'t1c' has shape"),
        ({"label_a1": np.zeros((2, 8, 10))}, "'label_a1' has shape"),
        ({"t1": np.zeros((8, 10))}, "'t1' has shape"),
        ({"label_a1": with_pixel(2)}, "'label_a1' has 1 pixels other than 0 and 1"),
        ({"label_a2": with_pixel(0.5)}, "'label_a2' has 1 pixels other than 0 and 1"),
        ({"t1": with_pixel(np.nan)}, "'t1' has 1 pixels that are NaN or infinite"),
        ({"t2": with_pixel(np.inf)}, "'t2' has 1 pixels that are NaN or infinite"),
        ({"t2": with_pixel(1e300)}, "'t2' has 1 pixels that are NaN or infinite"),
        ({"t1c": np.bytes_(b"pixels")}, "'t1c' is not an array of numbers"),
        ({"voxel_spacing": np.array([4.0, 0.0, 1.0])}, "'voxel_spacing' is"),
        ({"voxel_spacing": np.array([4.0, 1.0])}, "'voxel_spacing' is"),
    ],
)
def test_a_bad_volume_is_refused_by_file_and_key(tmp_path: Path, changes: dict, complaint: str):
    path = write_volume(tmp_path / "Sample_12.h5", **changes)
    with pytest.raises(DataError, match=rf"Sample_12\.h5: {complaint}"):
        npc.read_volume(path)


def test_a_group_in_place_of_an_array_is_refused(tmp_path: Path):
    path = write_volume(tmp_path / "Sample_12.h5", t1=None)
    with h5py.File(path, "a") as file:
        file.create_group("t1")
    with pytest.raises(DataError, match=r"Sample_12\.h5: 't1' is not an array of numbers"):
        npc.read_volume(path)


@pytest.mark.parametrize(
    "link",
    [h5py.ExternalLink("other.h5", "t1"), h5py.ExternalLink("gone.h5", "t1"), h5py.SoftLink("/t1c")],
    ids=["external", "dangling", "soft"],
)
def test_a_link_in_place_of_an_array_is_refused(tmp_path: Path, link: object):
    write_volume(tmp_path / "other.h5")
    path = write_volume(tmp_path / "Sample_12.h5", t1=None)
    with h5py.File(path, "a") as file:
        file["t1"] = link
    with pytest.raises(DataError, match=r"Sample_12\.h5: 't1' is a link, or leads to another file"):
        npc.read_volume(path)


def test_pixels_that_lie_in_another_file_are_refused(tmp_path: Path):
    (tmp_path / "secret").write_bytes(bytes(240 * 4))
    raw, virtual = (write_volume(tmp_path / f"Sample_{number}.h5", t1=None) for number in (1, 2))
    with h5py.File(raw, "a") as file:
        file.create_dataset("t1", (3, 8, 10), "f4", external=[(str(tmp_path / "secret"), 0, 240 * 4)])
    layout = h5py.VirtualLayout((3, 8, 10), "f8")
    layout[...] = h5py.VirtualSource(str(write_volume(tmp_path / "other.h5")), "t1", (3, 8, 10))
    with h5py.File(virtual, "a") as file:
        file.create_virtual_dataset("t1", layout)
    for path in (raw, virtual):
        with pytest.raises(DataError, match=rf"{path.name}: 't1' is a link, or leads to another file"):
            npc.read_volume(path)


@pytest.mark.parametrize(
    ("shape", "chunks"), [((2000, 4000, 4000), (1, 1000, 1000)), ((3, 8, 10), (64, 4000, 4000))], ids=["all", "piece"]
)
def test_a_volume_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path: Path, shape: tuple, chunks: tuple):
    nothing: dict[str, None] = dict.fromkeys(("t1", "t1c", "t2", "label_a1", "label_a2"))
    path = write_volume(tmp_path / "Sample_12.h5", **nothing)
    with h5py.File(path, "a") as file:
        for key in nothing:
            file.create_dataset(key, shape, "f4", chunks=chunks, maxshape=(None, None, None), compression="gzip")
    with pytest.raises(DataError, match=r"Sample_12\.h5: claims [\d.]+ GiB of pixels"):
        npc.read_volume(path)


def test_a_file_that_is_not_hdf5_or_cut_short_is_refused(standin: Path, tmp_path: Path):
    whole = (standin / "training/Sample_0.h5").read_bytes()
    for content in (b"", b"not HDF5", whole[: len(whole) // 2]):
        path = tmp_path / "Sample_0.h5"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"Sample_0\.h5: not an HDF5 file, or cut short"):
            npc.read_volume(path)
    with pytest.raises(DataError, match=r"Sample_1\.h5: no such file"):
        npc.read_volume(tmp_path / "Sample_1.h5")


def test_a_damaged_table_of_contents_is_refused(tmp_path: Path):
    path = write_volume(tmp_path / "Sample_0.h5")
    path.write_bytes(path.read_bytes().replace(b"SNOD", b"DONS"))  # signature of the nodes that list the keys
    with pytest.raises(DataError, match=r"Sample_0\.h5: the file is damaged"):
        npc.read_volume(path)


def test_damaged_pixels_are_refused_by_file_and_key(standin: Path, tmp_path: Path):
    path = Path(shutil.copy(standin / "training/Sample_0.h5", tmp_path))
    with h5py.File(path) as file:
        chunk = file["t1c"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    with pytest.raises(DataError, match=r"Sample_0\.h5: 't1c' cannot be read, the file is damaged"):
        npc.read_volume(path)


# Slices


def slices_of(path: Path, size: tuple[int, int] = (128, 128), **more: Any) -> tuple[Slice, ...]:
    options = {"fit": "crop", "standin": npc.is_standin(path), "raters": 4 if npc.is_standin(path) else 2, **more}
    return npc.read_part(path, size=size, **options).slices


def test_slices_are_the_centre_of_every_slice(standin: Path):
    source = npc.source(standin)
    cuts = [one for path in source.parts for one in source.read(path).slices]
    volume = npc.read_volume(source.parts[0])
    patients = ["training/Sample_0"] * 14 + ["training/Sample_1"] * 22
    assert [cut.patient for cut in cuts][:36] == patients
    assert [cut.volume for cut in cuts] == [cut.patient for cut in cuts]
    assert any(not cut.annotations.any() for cut in cuts)

    fourth = cuts[3]
    assert np.array_equal(fourth.image, volume.images[:, 3, 6:134, 19:147])  # of 141 x 167
    assert np.array_equal(fourth.annotations, volume.labels[:, 3, 6:134, 19:147])
    assert (fourth.image.dtype, fourth.annotations.dtype) == (np.float32, np.bool_)
    assert fourth.rater_mask.tolist() == [True] * 4
    assert fourth.z == 3 * volume.voxel_spacing[0]
    assert fourth.spacing == volume.voxel_spacing


def test_small_slices_are_padded_with_background(tmp_path: Path):
    path = write_volume(tmp_path / "Sample_0.h5", label_a1=np.ones((3, 8, 10)))
    volume, cuts = npc.read_volume(path), slices_of(path, (9, 9))
    image, annotations = cuts[1].image, cuts[1].annotations
    assert np.array_equal(image[:, :8, :], volume.images[:, 1, :, :9])
    assert np.array_equal(image[:, 8, 0], volume.images.min(axis=(1, 2, 3)))
    assert annotations[0, :8].all()
    assert not annotations[:, 8].any()


def test_zoomed_slices_are_whole_and_know_their_new_spacing(tmp_path: Path):
    path = write_volume(tmp_path / "Sample_0.h5", voxel_spacing=np.array([4.0, 1.0, 2.0]))
    volume, cuts = npc.read_volume(path), slices_of(path, (16, 5), fit="zoom")
    assert [cut.image.shape for cut in cuts] == [(3, 16, 5)] * 3
    for of_volume, of_slice in ((volume.images, cuts[1].image), (volume.labels, cuts[1].annotations)):
        for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # corners meet corners, images and labels alike
            assert np.array_equal(of_slice[:, row, column], of_volume[:, 1, row, column])
        assert set(of_slice.ravel()) <= set(of_volume[:, 1].ravel())
    assert cuts[1].spacing == (4.0, 1.0 * 8 / 16, 2.0 * 10 / 5)
    assert [cut.z for cut in cuts] == [0.0, 4.0, 8.0]


def test_standin_and_real_volumes_do_not_mix(standin: Path, tmp_path: Path):
    real = write_volume(tmp_path / "Sample_9.h5")
    with pytest.raises(DataError, match=r"Sample_9\.h5: stand-in and real volumes are mixed"):
        slices_of(real, standin=True)
    with pytest.raises(DataError, match=r"Sample_0\.h5: stand-in and real volumes are mixed"):
        slices_of(standin / "training/Sample_0.h5", standin=False)


# As a source


@pytest.mark.parametrize(
    ("raters", "told"), [(3, "no key 'label_a3', but"), (1, "a key 'label_a2', but")], ids=["fewer", "more"]
)
def test_a_volume_of_other_raters_is_refused_by_file_and_key(tmp_path: Path, raters: int, told: str):
    path = write_volume(tmp_path / "training" / "Sample_7.h5")
    with pytest.raises(DataError, match=rf"Sample_7\.h5: has {told} the first training volume has {raters} raters"):
        slices_of(path, raters=raters)


def test_the_source_knows_split_raters_and_channels(standin: Path):
    source = npc.source(standin)
    assert source.description.label == npc.STANDIN_LABEL
    assert (source.raters, source.channels) == (("a1", "a2", "a3", "a4"), ("t1", "t1c", "t2"))
    assert source.folds == (
        Fold(0, ("training/Sample_0", "training/Sample_1"), ("validation/Sample_2",), ("testing/Sample_3",)),
    )  # fmt: skip


def test_the_identity_changes_with_options_and_files(tmp_path: Path):
    for index in range(4):
        write_volume(tmp_path / ("training" if index < 3 else "validation") / f"Sample_{index}.h5")
    first = npc.source(tmp_path)
    assert npc.source(tmp_path).identity == first.identity
    others = [npc.source(tmp_path, size=(64, 64)), npc.source(tmp_path, fit="zoom")]
    write_volume(tmp_path / "training/Sample_1.h5", t1=np.zeros((3, 8, 10)))
    others.append(npc.source(tmp_path))
    assert len({one.identity for one in (first, *others)}) == 4


def test_a_prepared_standin_differs_by_volume_as_the_real_raters_do(standin: Path, tmp_path: Path):
    store = prepare(npc.source(standin), tmp_path / "npc")
    fold = store.manifest.folds[0]
    cases = store.cases((*fold.train, *fold.val, *fold.test))
    volumes = [np.stack([store.annotations(row).astype(bool) for row in case], 1) for case in cases]
    volumes += [npc_standin.draw(index).labels for index in range(4, 8)]
    assert np.mean([rater_distance(masks) for masks in volumes]) == pytest.approx(0.29, abs=0.03)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything: run the tests as another user")
@pytest.mark.parametrize("place", ["training/Sample_0.h5", "training"])
def test_what_must_not_be_read_is_named(tmp_path: Path, place: str):
    for name in ("training/Sample_0.h5", "training/Sample_1.h5", "validation/Sample_2.h5"):
        write_volume(tmp_path / name)
    (tmp_path / place).chmod(0)
    with pytest.raises(DataError, match=rf"{place}: no permission"):
        npc.source(tmp_path)
    (tmp_path / place).chmod(0o700)


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write_volume(tmp_path / "training/Sample_0.h5")
    with monkeypatch.context() as context:
        context.setattr(npc.h5py, "File", denied)
        with pytest.raises(DataError, match=r"Sample_0\.h5: no permission to read it"):
            npc.read_volume(path)
    with monkeypatch.context() as context:
        context.setattr(Path, "iterdir", denied)
        with pytest.raises(DataError, match="training: no permission to list it"):
            npc.find(tmp_path)
