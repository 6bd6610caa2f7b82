"""Writes the files of a store step by step; whatever happens, a file that has been cut off is complete and on the disk.

Every slice is looked at on its way, and the first that does not fit is refused by its volume and position.
"""

import errno
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from proseg.data.case import Slice
from proseg.data.folds import Fold, check_folds, make_folds
from proseg.data.manifest import FORMAT, MANIFEST, ArrowFile, Description, Manifest, Skipped, arrow_name
from proseg.errors import DataError
from proseg.records import write_atomically

BYTES_PER_FILE = 64 * 2**20
"""A file is ended at the first chance after so many."""
ROWS_PER_BATCH = 64
BYTES_PER_BATCH = 16 * 2**20
"""Large slices come in smaller batches: one batch is what waits in memory to be written."""
MIN_RATERS = 2
PIXELS = (np.uint8, np.int16, np.float32)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Writer:
    """The files of a store under way in a folder of the caller's, who moves it to its place when it is finished."""

    def __init__(self, folder: Path, description: Description):
        self.folder = folder
        self.tally = Tally(description)
        self.files: list[ArrowFile] = []
        """Those that are complete."""
        self._waiting: list[Slice] = []
        self._sink: BinaryIO | None = None
        self._stream: pa.RecordBatchFileWriter | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._sink is not None:
            self._sink.close()

    def take_up(self, files: Sequence[ArrowFile], slices: Iterable[Slice]) -> None:
        """Go on after these files, which lie in the folder.

        Args:
            slices: those they hold, read back.

        Raises:
            DataError: they are not what was written.
        """
        for one in slices:
            self.tally.add(one)
        if self.tally.fingerprint != files[-1].fingerprint:
            raise DataError(f"{self.folder} is damaged: its files no longer hold what was written")
        self.files = list(files)

    def add(self, slices: Iterable[Slice]) -> None:
        """Slices of one file.

        Raises:
            DataError: one of them cannot be, or does not go with those before.
        """
        for one in slices:
            self.tally.add(one)
            self._waiting.append(one)
            if len(self._waiting) >= min(ROWS_PER_BATCH, max(1, BYTES_PER_BATCH // _size(one))):
                self._write_batch()

    @property
    def full(self) -> bool:
        """Whether the file under way has its size."""
        written = self._sink.tell() if self._sink else 0
        return written + sum(map(_size, self._waiting)) >= BYTES_PER_FILE

    def cut(self) -> None:
        """End the file under way, if there is one."""
        self._write_batch()
        if self._sink is None or self._stream is None:
            return
        self._stream.close()
        size = self._sink.tell()
        self._sink.flush()
        os.fsync(self._sink.fileno())
        self._sink.close()
        self._sink = self._stream = None
        sync_folder(self.folder)
        before = sum(file.slices for file in self.files)
        name, fingerprint = arrow_name(len(self.files)), self.tally.fingerprint
        self.files.append(
            ArrowFile(name=name, bytes=size, slices=self.tally.slices - before, fingerprint=fingerprint)
        )  # fmt: skip

    def finish(
        self, folds: tuple[Fold, ...] | None = None, *, skipped: Sequence[Skipped] = (), **origin: Any
    ) -> Manifest:
        """Write the rest and the manifest, which makes a store of the folder.

        Args:
            folds: the partition that came with the data; None deals patients into four.
            skipped: what of the source is not in the store.
            origin: further fields of the manifest: `identity`, `rater_names`, `channel_names`, `framing`, `clipped`.

        Raises:
            DataError: no slice came, the folds are no partition of the patients, fewer than two raters drew, or one of
                them drew nothing in the training part of a fold.
        """
        self.cut()
        self.tally.check_whole(skipped)
        manifest = self.manifest(folds=self.tally.folds(folds), skipped=tuple(skipped), **origin)
        self.tally.check_raters(manifest)
        write_atomically(self.folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
        return manifest

    def manifest(self, *, folds: tuple[Fold, ...] = (), **more: Any) -> Manifest:
        """Of the files that are complete."""
        return Manifest(
            **self.tally.facts(), format=FORMAT, folds=folds, files=tuple(self.files),
            bytes=sum(file.bytes for file in self.files), **more,
        )  # fmt: skip

    def _write_batch(self) -> None:
        if not self._waiting:
            return
        batch = _record_batch(self._waiting)
        if self._sink is None or self._stream is None:
            self._sink = open(self.folder / arrow_name(len(self.files)), "wb")  # noqa: SIM115, cut or __exit__ closes it
            self._stream = pa.ipc.new_file(self._sink, batch.schema)
        self._stream.write_batch(batch)
        self._waiting = []


class Tally:
    """What is known of the slices so far."""

    def __init__(self, description: Description):
        self.description = description
        self.slices = 0
        self._first: Slice | None = None
        self._digest = hashlib.sha256()
        self._areas: dict[str, tuple[float, int]] = {}
        """Of every patient: the sum over the slices of all raters' areas, and the number of slices."""
        self._volumes: dict[str, tuple[str, set[float]]] = {}
        """Of every volume: its patient, and where it has slices."""
        self._drew = np.zeros(0, bool)
        """[R], which raters annotated anything."""
        self._annotated: dict[str, np.ndarray] = {}
        """Of every patient: [R], which raters annotated a slice."""

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    @property
    def patients(self) -> Iterable[str]:
        return self._areas.keys()

    def add(self, one: Slice) -> None:
        """Count a slice; raises DataError where it cannot be, or does not go with those before."""
        self._first = self._first or one
        _check(one, self._first, self.description)
        self._place(one)
        ids = (one.patient, one.volume, float(one.z), tuple(map(float, one.spacing)))
        add_to_digest(self._digest, ids, one)
        area, slices = self._areas.get(one.patient, (0.0, 0))
        self._areas[one.patient] = (area + float(np.count_nonzero(one.annotations)), slices + 1)
        self._drew = one.rater_mask | self._drew if len(self._drew) else one.rater_mask.copy()
        self._annotated[one.patient] = one.rater_mask | self._annotated.get(one.patient, one.rater_mask)
        self.slices += 1

    def _place(self, one: Slice) -> None:
        patient, places = self._volumes.setdefault(one.volume, (one.patient, set()))
        if patient != one.patient:
            raise DataError(
                f"data set {self.description.name!r}: volume {one.volume} is one of patient {patient} and one of "
                f"patient {one.patient}; give every volume an id of its own"
            )
        if one.z in places:
            raise DataError(
                f"data set {self.description.name!r}: there are two slices of {one.volume} at z = {one.z}; every "
                "slice of a volume needs a position of its own"
            )
        places.add(float(one.z))

    def check_whole(self, skipped: Sequence[Skipped]) -> None:
        """Raises DataError where there is nothing, or nothing that raters could differ on."""
        name = self.description.name
        if not self.slices:
            why = f" ({len(skipped)} skipped, the first is {skipped[0].what}: {skipped[0].why})" if skipped else ""
            raise DataError(f"data set {name!r} is empty: no slice was found in its source{why}")
        if self._drew.sum() < MIN_RATERS:
            raise DataError(f"data set {name!r}: all masks are of one of its {len(self._drew)} raters; {_TWO_RATERS}")

    def folds(self, given: tuple[Fold, ...] | None) -> tuple[Fold, ...]:
        """Those that came with the data, checked, or patients dealt into four by the mean size of their lesions."""
        try:
            if given is None:
                return make_folds({patient: area / slices for patient, (area, slices) in self._areas.items()})
            check_folds(given, self._areas)
        except ValueError as error:
            raise DataError(f"data set {self.description.name!r}: {error}") from None
        return given

    def check_raters(self, m: Manifest) -> None:
        """Raises DataError where nothing could be learnt of a rater in one of the folds; ranks are nobody."""
        for fold in () if m.sorted_raters else m.folds:
            seen = np.any([self._annotated[patient] for patient in fold.train], axis=0)
            if not seen.all():
                name = m.rater_labels[int(seen.argmin())]
                raise DataError(
                    f"data set {m.name!r}: rater {name!r} has no mask in the training part of fold {fold.index}, so "
                    f"nothing is learnt of them there; leave the rater out with --drop-rater {name!r}"
                )

    def facts(self) -> dict[str, Any]:
        """Fields of the manifest; there must have been a slice."""
        assert self._first is not None
        channels, height, width = self._first.image.shape
        return {
            **self.description.model_dump(), "fingerprint": self.fingerprint, "slices": self.slices,
            "patients": len(self._areas), "volumes": len(self._volumes), "raters": len(self._first.annotations),
            "channels": channels, "height": height, "width": width, "dtype": str(self._first.image.dtype),
        }  # fmt: skip


_TWO_RATERS = (
    f"the method learns from how raters differ and needs at least {MIN_RATERS}: add the masks of another rater"
)


def _check(one: Slice, first: Slice, description: Description) -> None:
    name, where = description.name, f"{one.volume} at z = {one.z}"
    if not one.rater_mask.any():
        raise DataError(f"data set {name!r}: slice of {where} was annotated by no rater")
    if one.annotations.dtype not in (np.bool_, np.uint8) or one.annotations.max(initial=0) > description.classes:
        raise DataError(
            f"data set {name!r}: the masks of {where} must be bool, or uint8 labels from 0 to "
            f"{description.classes}, but are {one.annotations.dtype} up to {one.annotations.max(initial=0)}"
        )
    same = one.image.shape == first.image.shape and one.image.dtype == first.image.dtype
    if not same or one.annotations.shape != first.annotations.shape:
        raise DataError(
            f"data set {name!r}: slice of {where} has image {one.image.shape} "
            f"{one.image.dtype} and masks {one.annotations.shape}, where the first slice has "
            f"{first.image.shape} {first.image.dtype} and {first.annotations.shape}"
        )
    if one is first:
        _check_first(one, description)
    if not np.isfinite(one.image).all():
        raise DataError(f"data set {name!r}: the image of {where} has pixels that are NaN or infinite")
    if one.annotations[~one.rater_mask].any():
        raise DataError(f"data set {name!r}: slice of {where} has a mask of a rater who is said to be missing")
    if not all(math.isnan(length) or 0 < length < math.inf for length in one.spacing):
        raise DataError(
            f"data set {name!r}: slice of {where} has the spacing {one.spacing}; expected three positive numbers "
            "(z, y, x), in mm, or NaN for one that is not known"
        )
    if not math.isfinite(one.z):
        raise DataError(f"data set {name!r}: a slice of {where} has no position: z must be a number, in mm")


def _check_first(one: Slice, description: Description) -> None:
    """What holds of all if it holds of the first, whose shapes they share."""
    image, masks = one.image, one.annotations
    if len(masks) < MIN_RATERS:
        raise DataError(f"data set {description.name!r} has {len(masks)} rater; {_TWO_RATERS}")
    fits = image.ndim == masks.ndim == 3 and image.shape[1:] == masks.shape[1:] and len(one.rater_mask) == len(masks)
    if not fits or image.dtype not in PIXELS:
        raise DataError(
            f"data set {description.name!r}: slice of {one.volume} at z = {one.z} has image {image.shape} "
            f"{image.dtype} and masks {masks.shape}, where [C, H, W] uint8, int16 or float32 and [R, H, W] are expected"
        )
    wanted = (2, len(image)) if description.window is None and image.dtype == np.uint8 else None
    if (None if one.moments is None else one.moments.shape) != wanted:
        raise DataError(
            f"data set {description.name!r}: slice of {one.volume} at z = {one.z} must have the mean and deviation of "
            "each channel where 8 bits are kept without a window, and only there"
        )


def add_to_digest(digest: Any, ids: tuple, one: Slice) -> None:
    """Add what the fingerprint knows of a slice, whose (patient, volume, z, spacing) are `ids`."""
    digest.update(repr(ids).encode())
    for array in (one.image, one.annotations, one.rater_mask, *([] if one.moments is None else [one.moments])):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _size(one: Slice) -> int:
    return one.image.nbytes + one.annotations.nbytes


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
        **({} if slices[0].moments is None else {"moments": fixed([s.moments for s in slices])}),  # type: ignore[misc]
    })  # fmt: skip


@contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """Say where there was no room, if there is none."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DataError(
            f"there is no room in {folder.parent} for the data set {folder.name} ({error.strerror}), and nothing of it "
            "was left there: make room, or name another workspace in PROSEG_HOME"
        ) from None


def publish(partial: Path, folder: Path) -> None:
    """Let a finished store appear in its place, at once and whole."""
    sync_folder(partial)
    partial.rename(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """The names of its files are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
