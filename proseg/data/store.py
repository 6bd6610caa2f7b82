"""The prepared data set: one Arrow IPC file, uncompressed and memory-mapped, with a manifest beside it.

All trials on a node map the same pages; a batch is a gather of rows. A store is written whole or not at all: it is made
in a folder beside its place and moved there when it is complete.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proseg.data.case import Slice
from proseg.data.folds import Fold, make_folds
from proseg.errors import DataError

FORMAT = 1
ROWS_PER_BATCH = 64
ARROW, MANIFEST = "slices.arrow", "manifest.json"


class Description(BaseModel):
    """What a source says of itself; carried into every table, tag and model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    """What the reader must know: "real contours, simulated intensities"."""
    licence: str
    unit: Literal["slice", "volume"]
    """What one case of the evaluation is."""
    sorted_raters: bool
    """Raters are virtual: sorted by area in every image, A1 the smallest."""
    window: tuple[float, float] | None
    """Intensities mapped to -1..1 (and clipped) when a batch is made; None: already normalised."""
    classes: int = Field(default=1, ge=1, le=255)
    """Of foreground: annotations hold the labels 0 (background) to this."""


class Manifest(Description):
    format: int
    fingerprint: str
    """sha256 over all pixels, masks and ids."""
    bytes: int
    """Size of the Arrow file."""
    slices: int
    patients: int
    volumes: int
    raters: int
    channels: int
    height: int
    width: int
    dtype: Literal["int16", "float32"]
    folds: tuple[Fold, ...]


class Store:
    """Read access to a prepared data set; cheap to open, safe to open in every process."""

    def __init__(self, folder: Path):
        """Open a store.

        Raises:
            DataError: it is missing, incomplete or damaged.
        """
        self.folder = folder
        if not folder.is_dir():
            raise DataError(f"data folder {folder} does not exist")
        self.manifest = _read_manifest(folder / MANIFEST)
        self._batches = _map(folder / ARROW, self.manifest)

    @cached_property
    def patients(self) -> np.ndarray:
        """[N] str, the patient of every slice."""
        return self._strings("patient")

    @cached_property
    def volumes(self) -> np.ndarray:
        """[N] str, the volume of every slice."""
        return self._strings("volume")

    @cached_property
    def z(self) -> np.ndarray:
        """[N] float, position along the volume's axis, mm."""
        return np.concatenate([batch.column("z").to_numpy() for batch in self._batches])

    def image(self, row: int) -> np.ndarray:
        """[C, H, W], a view of the mapped file."""
        m = self.manifest
        return self._view("image", row).reshape(m.channels, m.height, m.width)

    def annotations(self, row: int) -> np.ndarray:
        """[R, H, W] uint8 labels, 0 the background, a view of the mapped file."""
        m = self.manifest
        return self._view("annotations", row).reshape(m.raters, m.height, m.width)

    def rater_mask(self, row: int) -> np.ndarray:
        """[R] bool."""
        return self._view("rater_mask", row).view(bool)

    def spacing(self, row: int) -> tuple[float, float, float]:
        """(z, y, x) in mm."""
        z, y, x = self._view("spacing", row).tolist()
        return z, y, x

    def rows(self, patients: Iterable[str]) -> np.ndarray:
        """All slices of these patients, in file order."""
        return np.flatnonzero(np.isin(self.patients, list(patients)))

    def cases(self, patients: Iterable[str]) -> list[np.ndarray]:
        """The rows of every case of these patients: one slice each, or all slices of a volume."""
        rows = self.rows(patients)
        if self.manifest.unit == "slice":
            return [rows[i : i + 1] for i in range(len(rows))]
        volumes = self.volumes[rows]
        _, first = np.unique(volumes, return_index=True)
        return [rows[volumes == volumes[i]] for i in sorted(first)]

    def verify(self) -> None:
        """Read everything and compare with the fingerprint.

        Raises:
            DataError: a byte has changed since the store was written.
        """
        digest = hashlib.sha256()
        for row in range(self.manifest.slices):
            ids = (str(self.patients[row]), str(self.volumes[row]), float(self.z[row]), self.spacing(row))
            _add_to_digest(digest, ids, self.image(row), self.annotations(row), self.rater_mask(row))
        if digest.hexdigest() != self.manifest.fingerprint:
            raise DataError(
                f"{self.folder / ARROW} is damaged: its content no longer has the fingerprint it was "
                f"written with; delete the folder {self.folder} and prepare the data again"
            )

    def _strings(self, column: str) -> np.ndarray:
        return np.array([text for batch in self._batches for text in batch.column(column).to_pylist()])

    def _view(self, column: str, row: int) -> np.ndarray:
        batch, place = self._batches[row // ROWS_PER_BATCH], row % ROWS_PER_BATCH
        values = batch.column(column)
        size = values.type.list_size
        return values.values.to_numpy(zero_copy_only=True)[place * size : (place + 1) * size]


def write(
    folder: Path, slices: Iterable[Slice], description: Description, folds: tuple[Fold, ...] | None = None
) -> Store:
    """Write a store, whole or not at all; what stood in its place must have been removed by the caller.

    Args:
        slices: in the order in which they shall lie in the file; read once, never held together in memory.
        folds: the partition that came with the data; None deals patients into four.

    Raises:
        DataError: no slice came, or slices differ in shape or type.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        manifest = _write_files(partial, iter(slices), description, folds)
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Store(folder)


def _write_files(folder: Path, slices: Iterator[Slice], description: Description, folds) -> Manifest:
    digest, count = hashlib.sha256(), 0
    volumes: set[str] = set()
    areas: dict[str, list[float]] = {}
    first: Slice | None = None
    with pa.OSFile(str(folder / ARROW), "wb") as sink:
        writer = None
        while chunk := list(islice(slices, ROWS_PER_BATCH)):
            first = first or chunk[0]
            _check_alike(first, chunk, description)
            batch = _record_batch(chunk)
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch)
            count += len(chunk)
            for one in chunk:
                ids = (one.patient, one.volume, float(one.z), tuple(map(float, one.spacing)))
                _add_to_digest(digest, ids, one.image, one.annotations, one.rater_mask)
                volumes.add(one.volume)
                areas.setdefault(one.patient, []).append(float((one.annotations > 0).sum()))
        if writer is None or first is None:
            raise DataError(f"data set {description.name!r} is empty: no slice was found in its source")
        writer.close()
    if folds is None:
        try:
            folds = make_folds({patient: sum(area) / len(area) for patient, area in areas.items()})
        except ValueError as error:
            raise DataError(f"data set {description.name!r}: {error}") from None
    channels, height, width = first.image.shape
    return Manifest(
        **description.model_dump(),
        format=FORMAT,
        fingerprint=digest.hexdigest(),
        folds=folds,
        bytes=(folder / ARROW).stat().st_size,
        slices=count,
        patients=len(areas),
        volumes=len(volumes),
        raters=len(first.annotations),
        channels=channels,
        height=height,
        width=width,
        dtype=str(first.image.dtype),  # type: ignore[arg-type]
    )


def _schema(m: Manifest) -> pa.Schema:
    pixels = {"int16": pa.int16(), "float32": pa.float32()}[m.dtype]
    return pa.schema({
        "image": pa.list_(pixels, m.channels * m.height * m.width),
        "annotations": pa.list_(pa.uint8(), m.raters * m.height * m.width),
        "rater_mask": pa.list_(pa.uint8(), m.raters),
        "patient": pa.string(), "volume": pa.string(), "z": pa.float64(), "spacing": pa.list_(pa.float64(), 3),
    })  # fmt: skip


def _record_batch(slices: Sequence[Slice]) -> pa.RecordBatch:
    def fixed(arrays: list[np.ndarray]) -> pa.Array:
        stacked = np.stack([array.reshape(-1) for array in arrays])
        stacked = stacked.view(np.uint8) if stacked.dtype == bool else stacked
        return pa.FixedSizeListArray.from_arrays(pa.array(stacked.reshape(-1)), stacked.shape[1])

    return pa.record_batch({
        "image": fixed([s.image for s in slices]),
        "annotations": fixed([s.annotations for s in slices]),
        "rater_mask": fixed([s.rater_mask for s in slices]),
        "patient": pa.array([s.patient for s in slices]),
        "volume": pa.array([s.volume for s in slices]),
        "z": pa.array([s.z for s in slices], pa.float64()),
        "spacing": pa.array([s.spacing for s in slices], pa.list_(pa.float64(), 3)),
    })  # fmt: skip


def _check_alike(first: Slice, slices: Sequence[Slice], description: Description) -> None:
    name = description.name
    for one in slices:
        if not one.rater_mask.any():
            raise DataError(f"data set {name!r}: slice of {one.volume} at z = {one.z} was annotated by no rater")
        if one.annotations.dtype not in (np.bool_, np.uint8) or one.annotations.max(initial=0) > description.classes:
            raise DataError(
                f"data set {name!r}: the masks of {one.volume} at z = {one.z} must be bool, or uint8 labels from 0 to "
                f"{description.classes}, but are {one.annotations.dtype} up to {one.annotations.max(initial=0)}"
            )
        same = one.image.shape == first.image.shape and one.image.dtype == first.image.dtype
        if not same or one.annotations.shape != first.annotations.shape:
            raise DataError(
                f"data set {name!r}: slice of {one.volume} at z = {one.z} has image {one.image.shape} "
                f"{one.image.dtype} and masks {one.annotations.shape}, where the first slice has "
                f"{first.image.shape} {first.image.dtype} and {first.annotations.shape}"
            )


def _add_to_digest(digest, ids: tuple, *arrays: np.ndarray) -> None:
    digest.update(repr(ids).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise DataError(f"{path.parent} is not a prepared data set: it has no {MANIFEST}") from None
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a manifest ({reason}); prepare the data again") from None
    if manifest.format != FORMAT:
        raise DataError(f"{path} has format {manifest.format}, this version reads {FORMAT}; prepare the data again")
    return manifest


def _map(path: Path, manifest: Manifest) -> list[pa.RecordBatch]:
    advice = f"delete the folder {path.parent} and prepare the data again"
    if not path.is_file():
        raise DataError(f"{path} is missing; {advice}")
    if path.stat().st_size != manifest.bytes:
        raise DataError(f"{path} is damaged: it has {path.stat().st_size} bytes instead of {manifest.bytes}; {advice}")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(_schema(manifest)):
            raise DataError(f"{path} is damaged: its columns are not those of its manifest; {advice}")
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)  # a wrong offset would be read as a wild pointer
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); {advice}") from None
    if sum(batch.num_rows for batch in batches) != manifest.slices:
        raise DataError(f"{path} is damaged: it does not hold {manifest.slices} slices; {advice}")
    return batches
