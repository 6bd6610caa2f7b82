"""The quality of a data set: what one pass over a store says of its raters, its images and its splits, and a report.

Conventions: d(a, b) = 1 - IoU(a, b); with several classes the mean over them. Two empty masks agree (distance 0), as in
the evaluation; the published code has them at distance 1 in every slice, so that its numbers for volumes are mostly a
count of empty slices. Both are given. A rater who is missing is in no pair.

Letters: N slices, n of them at a time, V volumes, R raters, K classes, H x W pixels.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from proseg.data.reading import Track, silent
from proseg.data.store import Manifest, Store
from proseg.data.suspicions import Facts, Suspicion, suspicions

BYTES_AT_ONCE = 2**24
"""Of masks, or of an image's pixels, that are looked at together."""
REPORTING = 1
"""Raise it when the report changes: those that were kept before are then written anew."""
NORMALISED = (-10.0, 10.0)
"""What intensities are expected to lie in where a data set came normalised."""


@dataclass(frozen=True, eq=False)
class Distances:
    """How far the raters are apart: means over cases in which both annotated."""

    case: str
    """What a case is, and how far two empty masks are apart."""
    mean: np.ndarray
    """[R, R]; 0 on the diagonal, NaN where two raters never annotated the same case."""
    d_aa: float
    """Eq. 20: mean over all ordered pairs, each rater with himself included (0); then over cases."""
    between: float
    """The same without the pairs of a rater with himself."""
    cases: int
    """Those with two raters or more, of which `d_aa` and `between` are means."""


@dataclass(frozen=True, eq=False)
class Quality:
    """What is known of a data set once all of it has been read."""

    manifest: Manifest
    areas: np.ndarray
    """[N, R, K] pixels; 0 where the rater is missing."""
    present: np.ndarray
    """[N, R] bool: who annotated the slice."""
    spacing: np.ndarray
    """[N, 3] (z, y, x) in mm."""
    distances: tuple[Distances, ...]
    """By slice in the published and in our convention, and by volume where the evaluation is: the last is its own."""
    parts: tuple[dict[str, tuple[int, int]], ...]
    """Of every fold {part: (patients, slices)}."""
    suspicions: tuple[Suspicion, ...]

    @property
    def raters(self) -> tuple[str, ...]:
        """Names of the raters; A1, A2, ... where they have none."""
        return self.manifest.rater_labels

    @property
    def drawn(self) -> np.ndarray:
        """[slices with an outline, R] foreground in pixels, NaN where the rater is missing."""
        areas = np.where(self.present, self.areas.sum(2, dtype=np.float64), np.nan)
        return areas[self.areas.any((1, 2))]


def measure(store: Store, track: Track = silent) -> Quality:
    """Read the whole store once, some slices at a time; where that takes a while, `track` shows how far it is."""
    m = store.manifest
    published, ours = _Sums(m.raters), _Sums(m.raters)
    volumes = _Volumes(store) if m.unit == "volume" else None
    found: list[dict[str, np.ndarray]] = []
    chunks = [*_chunks(m)]
    for rows in track(chunks, len(chunks), f"Looking at {m.name}") if len(chunks) > 1 else chunks:
        labels = np.stack([store.annotations(row) for row in rows])
        present = np.stack([store.rater_mask(row) for row in rows])
        both = overlaps(labels, m.classes)
        published.add(distances(both, empty=1), present)
        ours.add(distances(both, empty=0), present)
        if volumes is not None:
            volumes.add(rows, both, present)
        spacing = np.array([store.spacing(row) for row in rows])
        looks = _of_masks(labels, both) | _of_images(store, rows)
        found.append({"present": present, "spacing": spacing, **looks})
    facts = Facts(store, **{name: np.concatenate([each[name] for each in found]) for name in found[0]})
    tables = [published.means("slice, two empty masks 1 apart"), ours.means("slice, two empty masks 0 apart")]
    tables += [volumes.means()] if volumes is not None else []
    return Quality(m, facts.areas, facts.present, facts.spacing, tuple(tables), _parts(store), suspicions(facts))


def report(store: Store, folder: Path) -> Path:
    """Write report.md and its pictures into a folder, which is made; files of the same names are replaced.

    Returns the path of report.md. It is written last: where it stands, the pictures stand.
    """
    from proseg.data.quality_page import write_page  # matplotlib takes its time to import

    return write_page(measure(store), store, folder)


def kept(store: Store, home: Path) -> Path:
    """The folder of a report in the workspace: written when it is first asked for, and anew when the data change."""
    text = f"{REPORTING} {store.manifest.model_dump_json()}"
    folder = home / "quality" / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            try:
                report(store, partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def highlights(quality: Quality) -> list[str]:
    """The few lines that a person should see."""
    m, own = quality.manifest, quality.distances[-1]
    empty = (quality.present & ~quality.areas.any(2)).sum() / quality.present.sum()
    apart = (f"two raters are {own.between:.3f} apart (1 - IoU, mean over {own.cases} {m.unit}s), d_aa {own.d_aa:.3f}"
             if own.cases else "no two raters annotated the same case")  # fmt: skip
    lines = [
        f"{m.name}: {m.label}. {m.slices} slices, {m.volumes} volumes, {m.patients} patients, {m.raters} raters",
        f"{apart}; " + (f"{empty:.1%} of the masks are empty" if empty else "no mask is empty"),
        *(f"suspicious: {one.summary}" for one in quality.suspicions),
    ]
    return lines if quality.suspicions else [*lines, "nothing suspicious was found"]


def _chunks(m: Manifest) -> Iterator[range]:
    masks = m.raters * m.classes * m.height * m.width
    pixels = m.channels * m.height * m.width * np.dtype(m.dtype).itemsize
    count = max(1, BYTES_AT_ONCE // max(masks, pixels))
    for start in range(0, m.slices, count):
        yield range(start, min(start + count, m.slices))


# Masks


def overlaps(labels: np.ndarray, classes: int) -> np.ndarray:
    """The pixels that every two raters share, in every class: [n, R, H, W] labels -> [n, K, R, R]; areas on the
    diagonal."""
    count, raters = labels.shape[:2]
    both = np.empty((count, classes, raters, raters), np.int64)
    for k in range(classes):
        bits = np.packbits((labels == k + 1).reshape(count, raters, -1), axis=-1)
        for a in range(raters):
            for b in range(a, raters):
                both[:, k, a, b] = both[:, k, b, a] = np.bitwise_count(bits[:, a] & bits[:, b]).sum(-1, dtype=np.int64)
    return both


def distances(both: np.ndarray, *, empty: float) -> np.ndarray:
    """1 - IoU of every two raters, [n, K, R, R] -> [n, R, R], mean over the classes; 0 on the diagonal.

    Args:
        both: as from `overlaps`.
        empty: the distance of two empty masks.
    """
    areas = np.diagonal(both, axis1=2, axis2=3)
    either = areas[..., :, None] + areas[..., None, :] - both
    apart = np.where(either > 0, 1 - both / np.maximum(either, 1), empty).mean(1)
    return apart * ~np.eye(both.shape[-1], dtype=bool)


def _of_masks(labels: np.ndarray, both: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of `Facts` that masks tell."""
    areas = np.diagonal(both, axis1=2, axis2=3)  # [n, K, R]
    same = (both == areas[..., :, None]) & (both == areas[..., None, :])
    edges = (labels[..., 0, :], labels[..., -1, :], labels[..., 0], labels[..., -1])
    frame = (np.concatenate(edges, -1) > 0).mean(-1)
    shared, area = both.sum(1), areas.sum(1)  # [n, R, R], [n, R]
    others = shared.sum(2) - area
    apart = (area > 0) & (area.sum(1, keepdims=True) > area) & (others == 0)
    return {"areas": areas.swapaxes(1, 2).copy(), "same": same.all(1), "frame": frame, "apart": apart}


class _Sums:
    """The distances of many cases, added up."""

    def __init__(self, raters: int):
        self._apart, self._pairs = np.zeros((raters, raters)), np.zeros((raters, raters), np.int64)
        self._d_aa = self._between = 0.0
        self._cases = 0

    def add(self, apart: np.ndarray, present: np.ndarray) -> None:
        """[n, R, R] and who annotated, [n, R]."""
        pairs = present[:, :, None] & present[:, None, :]
        self._apart += (apart * pairs).sum(0)
        self._pairs += pairs.sum(0)
        several = present.sum(1) > 1
        raters = present[several].sum(1)
        total = (apart * pairs)[several].sum((1, 2))
        self._d_aa += float((total / raters**2).sum())
        self._between += float((total / (raters * (raters - 1))).sum())
        self._cases += int(several.sum())

    def means(self, case: str) -> Distances:
        mean = np.where(self._pairs > 0, self._apart / np.maximum(self._pairs, 1), np.nan)
        cases = self._cases or np.nan  # where nobody can be compared nothing is known
        return Distances(case, mean, self._d_aa / cases, self._between / cases, self._cases)


class _Volumes:
    """The overlaps of whole volumes: those of their slices, added up."""

    def __init__(self, store: Store):
        m = store.manifest
        names, self._volume_of = np.unique(store.volumes, return_inverse=True)
        self._both = np.zeros((len(names), m.classes, m.raters, m.raters), np.int64)
        self._present = np.ones((len(names), m.raters), bool)

    def add(self, rows: range, both: np.ndarray, present: np.ndarray) -> None:
        volumes = self._volume_of[rows.start : rows.stop]
        np.add.at(self._both, volumes, both)
        np.logical_and.at(self._present, volumes, present)  # as in the evaluation: who annotated all of its slices

    def means(self) -> Distances:
        sums = _Sums(self._present.shape[1])
        sums.add(distances(self._both, empty=0), self._present)
        return sums.means("volume, two empty masks 0 apart")


# Images and splits


def _of_images(store: Store, rows: range) -> dict[str, np.ndarray]:
    """The columns of `Facts` that images tell."""
    low, high = _plausible(store.manifest)
    images = store.pixels(rows).reshape(len(rows), store.manifest.channels, -1)
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
    return {
        "constant": (images == images[..., :1]).all(2),
        "beyond": ((images < low) | (images > high)).mean((1, 2)),
        "digest": np.array(digests, "V16"),
    }


def _plausible(m: Manifest) -> tuple[float, float]:
    """The window and half of its width on either side: room for bone and metal, none for another scale."""
    low, high = m.window or NORMALISED
    margin = (high - low) / 2
    return low - margin, high + margin


def _parts(store: Store) -> tuple[dict[str, tuple[int, int]], ...]:
    patients, slices = np.unique(store.patients, return_counts=True)
    counts = dict(zip(patients.tolist(), slices.tolist(), strict=True))

    def size(part: tuple[str, ...]) -> tuple[int, int]:
        return len(part), sum(counts.get(patient, 0) for patient in part)

    return tuple({"train": size(f.train), "val": size(f.val), "test": size(f.test)} for f in store.manifest.folds)
