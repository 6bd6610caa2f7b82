"""The prepared data set: Arrow IPC files, uncompressed and memory-mapped, with a manifest beside them.

All trials on a node map the same pages; a batch is a gather of rows. A store is written whole or not at all: it is made
in a folder beside its place and moved there when it is complete.
"""

import hashlib
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from proseg.data.case import Slice
from proseg.data.folds import Fold
from proseg.data.manifest import (
    ARROW,
    FORMAT,
    MANIFEST,
    ArrowFile,
    Description,
    Framing,
    Manifest,
    read_manifest,
    schema,
)
from proseg.data.writer import Writer, add_to_digest, publish, room_for
from proseg.errors import DataError

__all__ = ["ARROW", "FORMAT", "MANIFEST", "Description", "Manifest", "Store", "Writer", "write"]

WHOLE = (slice(None), slice(None))


class Store:
    """Read access to a prepared data set; cheap to open, safe to open in every process."""

    def __init__(self, folder: Path, manifest: Manifest | None = None):
        """Open a store.

        Args:
            manifest: in the place of the folder's, where that is not written yet.

        Raises:
            DataError: it is missing, incomplete or damaged.
        """
        self.folder = folder
        if not folder.is_dir():
            raise DataError(f"data folder {folder} does not exist")
        self.manifest = m = manifest or read_manifest(folder / MANIFEST)
        self._batches = [batch for file in m.arrow_files for batch in _map(folder / file.name, file, m)]
        rows = [batch.num_rows for batch in self._batches]
        if sum(rows) != m.slices:
            raise DataError(f"{folder} is damaged: it does not hold {m.slices} slices; {_advice(folder)}")
        self._starts = list(accumulate(rows, initial=0))[:-1]
        """The first row of every batch."""
        self._images = self._views("image", m.dtype, (m.channels, m.height, m.width))
        self._annotations = self._views("annotations", "uint8", (m.raters, m.height, m.width))
        self._rater_masks = self._views("rater_mask", "bool", (m.raters,))
        self._spacings = self._views("spacing", "float64", (3,))
        self._moments = self._views("moments", "float32", (2, m.channels)) if m.standardised else None

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
        return np.concatenate([_values(batch.column("z"), "float64") for batch in self._batches])

    def image(self, row: int) -> np.ndarray:
        """[C, H, W], a view of the mapped file."""
        return self._view(self._images, row)

    def pixels(self, rows: Sequence[int] | np.ndarray, part: tuple[slice, slice] = WHOLE) -> np.ndarray:
        """[B, C, h, w], this part of several images: float32 where they are standardised, otherwise as kept."""
        image = np.stack([self.image(row)[:, *part] for row in rows])
        if self._moments is None:
            return image
        mean, deviation = np.stack([self._view(self._moments, row) for row in rows], 1)[..., None, None]
        return (image.astype(np.float32) - mean) / deviation

    def moments(self, row: int) -> np.ndarray | None:
        """[2, C] float32, mean and deviation by which the image is standardised; None where it is used as it is."""
        return None if self._moments is None else self._view(self._moments, row)

    def annotations(self, row: int) -> np.ndarray:
        """[R, H, W] uint8 labels, 0 the background, a view of the mapped file."""
        return self._view(self._annotations, row)

    def rater_mask(self, row: int) -> np.ndarray:
        """[R] bool."""
        return self._view(self._rater_masks, row)

    def spacing(self, row: int) -> tuple[float, float, float]:
        """(z, y, x) in mm; NaN where it is not known."""
        z, y, x = self._view(self._spacings, row).tolist()
        return z, y, x

    def slice(self, row: int) -> Slice:
        """As it was written; the arrays are views of the mapped file."""
        return Slice(
            image=self.image(row), annotations=self.annotations(row), rater_mask=self.rater_mask(row),
            patient=str(self.patients[row]), volume=str(self.volumes[row]), z=float(self.z[row]),
            spacing=self.spacing(row), moments=self.moments(row),
        )  # fmt: skip

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
        digest, start = hashlib.sha256(), 0
        for file in self.manifest.arrow_files:
            for row in range(start, start + file.slices):
                one = self.slice(row)
                ids = (one.patient, one.volume, one.z, one.spacing)
                add_to_digest(digest, ids, one)
            if digest.hexdigest() != file.fingerprint:
                raise DataError(
                    f"{self.folder / file.name} is damaged: its content no longer has the fingerprint it was "
                    f"written with; {_advice(self.folder)}"
                )
            start += file.slices
        if digest.hexdigest() != self.manifest.fingerprint:
            raise DataError(f"{self.folder / MANIFEST} is damaged: its fingerprints differ; {_advice(self.folder)}")

    def _strings(self, column: str) -> np.ndarray:
        return np.array([text for batch in self._batches for text in batch.column(column).to_pylist()])

    def _views(self, column: str, dtype: str, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Of every batch [rows, *shape], without a copy."""
        columns = [batch.column(column).values for batch in self._batches]
        return [_values(one, dtype).reshape(-1, *shape) for one in columns]

    def _view(self, views: list[np.ndarray], row: int) -> np.ndarray:
        batch = bisect_right(self._starts, int(row)) - 1
        return views[batch][row - self._starts[batch]]


def write(
    folder: Path, slices: Iterable[Slice], description: Description, folds: tuple[Fold, ...] | None = None, *,
    framing: Framing | None = None,
) -> Store:  # fmt: skip
    """Write a store, whole or not at all; what stood in its place must have been removed by the caller.

    Args:
        slices: in the order in which they shall lie in the file; read once, never held together in memory.
        folds: the partition that came with the data; None deals patients into four.
        framing: how the images came to their size.

    Raises:
        DataError: no slice came, one of them cannot be or differs in shape or type, or there is no room.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with room_for(folder):
            partial.mkdir(parents=True)
            with Writer(partial, description) as writer:
                for one in slices:
                    writer.add([one])
                    if writer.full:
                        writer.cut()
                writer.finish(folds, framing=framing)
            publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Store(folder)


def _map(path: Path, file: ArrowFile, manifest: Manifest) -> list[pa.RecordBatch]:
    advice = _advice(path.parent)
    if not path.is_file():
        raise DataError(f"{path} is missing; {advice}")
    if path.stat().st_size != file.bytes:
        raise DataError(f"{path} is damaged: it has {path.stat().st_size} bytes instead of {file.bytes}; {advice}")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(schema(manifest)):
            raise DataError(f"{path} is damaged: its columns are not those of its manifest; {advice}")
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)  # a wrong offset would be read as a wild pointer
    except PermissionError:
        raise DataError(f"{path}: no permission to read it; ask its owner, or `chmod u+r` it") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); {advice}") from None
    if sum(batch.num_rows for batch in batches) != file.slices:
        raise DataError(f"{path} is damaged: it does not hold {file.slices} slices; {advice}")
    return batches


def _values(array: pa.Array, dtype: str) -> np.ndarray:
    """What an array of numbers holds, without a copy, and without its own `to_numpy`, which loads pandas (30 MB)."""
    start = array.offset * np.dtype(dtype).itemsize
    return np.frombuffer(array.buffers()[1], dtype, len(array), start)


def _advice(folder: Path) -> str:
    return f"delete the folder {folder} and prepare the data again"
