"""The embedded data set: real LIDC-IDRI outlines of lung nodules, with simulated intensities.

Two selections of the file's 6922 slices: "paper", the 1608 (of 1609) that the papers use, 1597 of them outlined by all
four radiologists; and "all4", the 5200 that all four outlined. Who the four are changes from nodule to nodule, so
raters are virtual: in every image they are sorted by area, A1 the smallest.
"""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proseg.data.case import Slice
from proseg.data.reading import in_order
from proseg.data.render import Nodule, render
from proseg.errors import ConfigError, DataError

LABEL = "real contours, simulated intensities"
LICENCE = "CC BY 3.0 (LIDC-IDRI annotations)"

CONTOURS = Path(__file__).parent / "lidc_contours.parquet"
"""Written by `build_contours`, which describes it."""

Selection = Literal["paper", "all4"]
LOOK_AHEAD = 4
"""Nodules that each worker may be ahead of the reader."""

COLUMNS = (
    "patient", "scan", "nodule", "z", "pixel_spacing", "slice_thickness",
    "centre", "characteristics", "present", "paper_n",
)  # fmt: skip


def load_nodules(masks: Literal["masks", "inner"] = "masks") -> list[Nodule]:
    """All nodules by patient, scan and number, with all of their slices.

    Args:
        masks: the masks with the outlines' own pixels, or without (`inner`).

    Raises:
        DataError: the package's file is missing or damaged.
    """
    columns = read_columns((*COLUMNS, masks))
    columns["masks"] = columns.pop(masks)
    first = np.flatnonzero(columns["nodule"][1:] != columns["nodule"][:-1]) + 1
    starts = np.union1d(first, np.flatnonzero(columns["scan"][1:] != columns["scan"][:-1]) + 1)
    rows = np.split(np.arange(len(columns["nodule"])), starts)
    return [_nodule({name: values[of] for name, values in columns.items()}) for of in rows]


def count(selection: Selection) -> int:
    """Slices of a selection.

    Raises:
        ConfigError: there is no such selection.
        DataError: the package's file is missing or damaged.
    """
    _check(selection)
    columns = read_columns(("present", "paper_n"))
    chosen = columns["paper_n"] > 0 if selection == "paper" else columns["present"].all(axis=1)
    return int(chosen.sum())


def slices(selection: Selection, jobs: int = 1) -> Iterator[Slice]:
    """Render a selection, in the order patient, scan, nodule, ascending z.

    Images are [1, 128, 128] int16, HU. The raters who drew in a slice come first, sorted by area (ties keep the order
    of the annotations); the others have empty masks and are marked absent.

    Args:
        jobs: processes that render; 1 renders in this one. The slices are the same.

    Raises:
        ConfigError: there is no such selection.
        DataError: the package's file is missing or damaged.
    """
    _check(selection)
    nodules = [nodule for nodule in load_nodules() if _chosen(nodule, selection).any()]
    return _rendered(nodules, selection, jobs)


def _check(selection: str) -> None:
    if selection not in get_args(Selection):
        raise ConfigError(
            f"there is no selection {selection!r} of the LIDC-IDRI outlines; there are 'paper' and 'all4'"
        )


def _chosen(nodule: Nodule, selection: Selection) -> np.ndarray:
    """[k] bool"""
    return nodule.in_paper if selection == "paper" else nodule.complete


def _rendered(nodules: list[Nodule], selection: Selection, jobs: int) -> Iterator[Slice]:
    with closing(in_order(partial(_nodule_slices, selection=selection), nodules, jobs, LOOK_AHEAD)) as found:
        for some in found:
            yield from some


def _nodule_slices(nodule: Nodule, selection: Selection) -> list[Slice]:
    chosen, masks = _chosen(nodule, selection), nodule.masks
    spacing = (nodule.slice_spacing, nodule.pixel_spacing, nodule.pixel_spacing)
    found = []
    for k, image in zip(np.flatnonzero(chosen), render(nodule, chosen), strict=True):
        annotations = rank_by_area(masks[k])
        found.append(
            Slice(
                image=image[None],
                annotations=annotations,
                rater_mask=np.any(annotations, axis=(1, 2)),
                patient=nodule.patient,
                volume=f"{nodule.patient}/{nodule.scan}/{nodule.nodule}",
                z=float(nodule.z[k]),
                spacing=spacing,
            )
        )
    return found


def rank_by_area(masks: np.ndarray) -> np.ndarray:
    """Masks [R, H, W] by ascending area, ties in the given order, empty ones last."""
    area = masks.sum(axis=(1, 2))
    return masks[np.lexsort((area, area == 0))]


# The file


def _nodule(columns: dict[str, np.ndarray]) -> Nodule:
    """One nodule from its rows, which lie by descending z in the file."""
    up = {name: values[::-1] for name, values in columns.items()}
    return Nodule(
        patient=str(up["patient"][0]),
        scan=int(up["scan"][0]),
        nodule=int(up["nodule"][0]),
        pixel_spacing=float(up["pixel_spacing"][0]),
        slice_thickness=float(up["slice_thickness"][0]),
        characteristics=up["characteristics"][0].reshape(4, -1).astype(np.int64),
        z=up["z"],
        centres=up["centre"].astype(np.int64),
        packed_masks=up["masks"].reshape(len(up["z"]), 4, -1),
        in_paper=up["paper_n"] > 0,
    )


def read_columns(columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of the file, which `build_contours` describes; lists as [n, length].

    Raises:
        DataError: the package's file is missing or damaged.
    """
    advice = "install proseg-tune again, or rebuild the file with `python -m proseg.data.build_contours`"
    if not CONTOURS.is_file():
        raise DataError(f"{CONTOURS} is missing; {advice}")
    try:
        table = pq.ParquetFile(CONTOURS, page_checksum_verification=True).read(columns=list(columns))
        return {name: _array(table[name]) for name in columns}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{CONTOURS} is damaged ({reason}); {advice}") from None


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """[n], or [n, length] of fixed-size lists; fixed-size binary as uint8."""
    values = column.combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
    if pa.types.is_fixed_size_binary(values.type):
        return np.frombuffer(values.buffers()[1], np.uint8).reshape(len(values), -1)
    return values.to_numpy(zero_copy_only=False)
