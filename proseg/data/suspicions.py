"""What is odd in a data set: what a person should look at before trusting a number that rests on it.

Nothing here is an error, for each of it can be right: a lesion at the edge of the image, two experts who agree to the
pixel. What cannot be right, as a slice that stands twice or a pixel that is no number, the writer of a store refuses.

Letters: N slices, R raters (two or more), K classes, C channels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice

import numpy as np

from proseg.data.store import Store

EXAMPLES = 8
"""Cases of each kind that are named; all are counted."""
UNEQUAL = 0.01
"""Share by which spacings of one volume, or steps between its slices, may differ."""
ANISOTROPY = 20.0
"""Largest side of a voxel over its smallest."""
AREA_RATIO = 20.0
"""Largest mask of an image over its smallest that is not empty."""
MOSTLY = 0.9
"""Share of an image's border that the background takes in, at least."""
BEYOND = 0.01
"""Share of an image's pixels that may lie far outside of the window."""


@dataclass(frozen=True)
class Suspicion:
    """One kind of oddity, and where it is."""

    what: str
    """For people, in the plural: "images in which all pixels are equal"."""
    count: int
    of: int
    """How many could have been so."""
    examples: tuple[str, ...]
    """The first of them."""
    note: str = ""
    """What it may come from, or why it matters."""
    told: bool = False
    """Whether it is so rarely right that `data prepare` tells it."""

    @property
    def summary(self) -> str:
        return f"{self.what}: {self.count} of {self.of}"


@dataclass(frozen=True, eq=False)
class Facts:
    """What one pass has seen of every slice of a store."""

    store: Store
    present: np.ndarray
    """[N, R] bool: who annotated it."""
    spacing: np.ndarray
    """[N, 3] (z, y, x) in mm."""
    areas: np.ndarray
    """[N, R, K] pixels; 0 where the rater is missing, whose mask counts as empty below, too."""
    same: np.ndarray
    """[N, R, R] bool: the masks of the two are identical."""
    frame: np.ndarray
    """[N, R] share of the border's pixels that the mask takes in."""
    apart: np.ndarray
    """[N, R] bool: the mask has no pixel in common with any other, though others are not empty."""
    constant: np.ndarray
    """[N, C] bool: all pixels of the channel are equal."""
    beyond: np.ndarray
    """[N] share of the pixels that are far outside of the window."""
    digest: np.ndarray
    """[N] hash of the image, 16 bytes."""

    @cached_property
    def foreground(self) -> np.ndarray:
        """[N, R] pixels of any class; 0 where the rater is missing."""
        return self.areas.sum(2)

    @cached_property
    def volumes(self) -> list[np.ndarray]:
        """The rows of every volume, in file order."""
        return _alike(self.store.volumes)

    @property
    def raters(self) -> tuple[str, ...]:
        """Names of the raters."""
        return self.store.manifest.rater_labels

    def name(self, row: int) -> str:
        return f"{self.store.volumes[row]} at z = {self.store.z[row]:g}"


def suspicions(facts: Facts) -> tuple[Suspicion, ...]:
    """All that is odd, the gravest first."""
    found = (one for look in LOOKS for one in look(facts))
    return tuple(one for one in found if one.count)


# Images


def _duplicates(facts: Facts) -> Iterator[Suspicion]:
    """Images that are constant are all alike and say nothing of where they come from."""
    patients, blank = facts.store.patients, np.all(facts.constant, axis=1)
    images = int((~blank).sum())
    groups = [rows for rows in _alike(facts.digest) if len(rows) > 1 and not blank[rows[0]]]
    across = [rows for rows in groups if len(set(patients[rows])) > 1]
    within = [rows for rows in groups if len(set(patients[rows])) == 1]
    leaks = [(rows, sides) for rows in across if (sides := _sides(facts, rows))]
    yield _suspicion(
        "images that stand under several patients, on two sides of a split",
        len(leaks),
        images,
        (f"{_rows(facts, rows)}: {sides}" for rows, sides in leaks),
        "a leak: what is learned in training is asked again in validation or test",
        told=True,
    )
    yield _suspicion(
        "images that stand under several patients",
        len(across),
        images,
        (_rows(facts, rows) for rows in across),
        "one person under two names, or a file that was copied",
        told=True,
    )
    yield _suspicion(
        "images that stand several times under one patient",
        len(within),
        images,
        (_rows(facts, rows) for rows in within),
        "they count as often as they stand there",
        told=True,
    )


def _alike(values: np.ndarray) -> list[np.ndarray]:
    """The rows of each value of [N], in file order, as are the groups."""
    _, value_of, counts = np.unique(values, return_inverse=True, return_counts=True)
    groups = np.split(np.argsort(value_of, kind="stable"), np.cumsum(counts)[:-1])
    return sorted(groups, key=lambda rows: int(rows[0]))


def _sides(facts: Facts, rows: np.ndarray) -> str:
    """On which sides of a fold these rows lie, where on more than one."""
    patients = set(facts.store.patients[rows].tolist())
    told = []
    for fold in facts.store.manifest.folds:
        parts = {"training": fold.train, "validation": fold.val, "test": fold.test}
        sides = [part for part, names in parts.items() if not patients.isdisjoint(names)]
        if len(sides) > 1:
            told.append(f"{' and '.join(sides)} of fold {fold.index}")
    return ", ".join(told)


def _intensities(facts: Facts) -> Iterator[Suspicion]:
    m = facts.store.manifest
    constant, beyond = np.flatnonzero(facts.constant.any(1)).tolist(), np.flatnonzero(facts.beyond > BEYOND).tolist()
    yield _suspicion(
        "images with a channel in which all pixels are equal",
        len(constant),
        m.slices,
        map(facts.name, constant),
        "there is nothing to learn from it",
    )
    window = f"the window {m.window[0]:g} to {m.window[1]:g}" if m.window else "what is usual of normalised intensities"
    yield _suspicion(
        f"images of which more than {BEYOND:.0%} lies far outside of {window}",
        len(beyond),
        m.slices,
        (f"{facts.name(row)}: {facts.beyond[row]:.0%}" for row in beyond),
        "another unit or scale, or padding",
    )


# Masks


def _classes(facts: Facts) -> Iterator[Suspicion]:
    pixels = np.where(facts.present[..., None], facts.areas, 0).sum((0, 1))
    never = np.flatnonzero(pixels == 0).tolist()
    yield _suspicion(
        "classes that nobody drew",
        len(never),
        len(pixels),
        (f"class {one + 1}" for one in never),
        "more classes were asked for than there are, or a mask was read as another class",
        told=True,
    )


def _places(facts: Facts) -> Iterator[Suspicion]:
    m, masks = facts.store.manifest, int((facts.foreground > 0).sum())
    whole = facts.foreground == m.height * m.width
    border = (facts.frame > 0) & ~whole
    yield _suspicion(
        "masks that cover the whole image",
        int(whole.sum()),
        masks,
        _masks(facts, whole),
        "an inverted mask, or one that was read as another class",
    )
    yield _suspicion(
        "masks that reach the border of the image",
        int(border.sum()),
        masks,
        _masks(facts, border),
        "what lies beyond is cut off",
    )
    yield _suspicion(
        "masks that have no pixel in common with another rater's",
        int(facts.apart.sum()),
        masks,
        _masks(facts, facts.apart),
        "another image's mask, or one that was shifted",
    )


def _swapped(facts: Facts) -> Iterator[Suspicion]:
    """A mask of the background covers most of the image and, unlike that of a large object, all of its border."""
    m, drawn = facts.store.manifest, facts.foreground > 0
    swapped = (facts.foreground > m.height * m.width / 2) & (facts.frame > MOSTLY)
    of_rater = (swapped.sum(0) > drawn.sum(0) / 2) & drawn.any(0)
    yield _suspicion(
        "raters whose masks look swapped, object for background",
        int(of_rater.sum()),
        m.raters,
        (
            f"{facts.raters[rater]}: {swapped[:, rater].sum()} of {drawn[:, rater].sum()} masks cover most of the "
            "image and nearly all of its border"
            for rater in np.flatnonzero(of_rater)
        ),
        "black objects on white: prepare the data anew with --invert, or without it if it was given"
        if m.classes == 1
        else "the background was drawn as an object: it is 0, and the labels count from 1",
        told=True,
    )


def _empty(facts: Facts) -> Iterator[Suspicion]:
    """Large is what is at least the median of all masks that are not empty."""
    drawn, empty = facts.foreground > 0, facts.present & (facts.foreground == 0)
    if not drawn.any():
        return
    large, odd = np.median(facts.foreground[drawn]), np.zeros_like(drawn)
    area = np.where(facts.present, facts.foreground, np.nan)
    for rater in range(area.shape[1]):
        others = np.delete(area, rater, axis=1)
        rows = np.flatnonzero(empty[:, rater] & ~np.isnan(others).all(1))
        odd[rows, rater] = np.nanmedian(others[rows], axis=1) >= large
    yield _suspicion(
        "empty masks where the others' are large",
        int(odd.sum()),
        int(empty.sum()),
        _masks(facts, odd),
        "a rater who did not look there (--empty-is-missing says so), or a file that was not read",
        told=True,
    )


def _ratios(facts: Facts) -> Iterator[Suspicion]:
    drawn = facts.foreground > 0
    several = np.flatnonzero(drawn.sum(1) > 1)
    smallest = np.where(drawn, facts.foreground, np.iinfo(np.int64).max)[several].min(1)
    ratio = facts.foreground[several].max(1) / smallest
    odd = ratio > AREA_RATIO
    found = zip(several[odd].tolist(), ratio[odd].tolist(), strict=True)
    texts = (f"{facts.name(row)}: {times:.0f} times" for row, times in found)
    yield _suspicion(
        f"images whose largest mask is more than {AREA_RATIO:g} times the smallest",
        int(odd.sum()),
        len(several),
        texts,
        "a stray click, or two things under one name",
    )


def _twins(facts: Facts) -> Iterator[Suspicion]:
    """Raters who drew the same to the pixel: in an image, and wherever both drew."""
    raters, names = facts.present.shape[1], facts.raters
    together = facts.present[:, :, None] & facts.present[:, None, :]
    something = (facts.foreground[:, :, None] > 0) | (facts.foreground[:, None, :] > 0)
    compared, alike = together & something, together & something & facts.same
    pairs = list(combinations(range(raters), 2))
    everywhere = [pair for pair in pairs if compared[:, *pair].sum() > 1 and (alike | ~compared)[:, *pair].all()]
    yield _suspicion(
        "pairs of raters who are identical in every image",
        len(everywhere),
        len(pairs),
        (f"{names[a]} and {names[b]}, in {compared[:, a, b].sum()} images" for a, b in everywhere),
        "one person's masks under two names",
        told=True,
    )
    upper = np.triu(np.ones((raters, raters), bool), 1)
    images = np.flatnonzero((alike & upper).any((1, 2))).tolist()
    several = int((compared & upper).any((1, 2)).sum())

    def text(row: int) -> str:
        found = zip(*np.nonzero(alike[row] & upper), strict=True)
        return f"{facts.name(row)}: " + ", ".join(f"{names[a]} = {names[b]}" for a, b in found)

    yield _suspicion(
        "images in which two raters are identical",
        len(images),
        several,
        map(text, images),
        "a mask that was copied, or corrected by one and kept by the other",
    )


def _silent(facts: Facts) -> Iterator[Suspicion]:
    """Raters of whom there is nothing."""
    m = facts.store.manifest
    absent, blank = ~facts.present.any(0), ~(facts.foreground > 0).any(0)
    for what, found in (("raters who annotated no slice", absent), ("raters who drew nothing", blank & ~absent)):
        yield _suspicion(
            what,
            int(found.sum()),
            m.raters,
            (facts.raters[rater] for rater in np.flatnonzero(found)),
            "a column or a folder that was not found",
            told=True,
        )


# Geometry


def _spacings(facts: Facts) -> Iterator[Suspicion]:
    spacing, volumes = facts.spacing, facts.volumes
    differing = [rows for rows in volumes if _differ(spacing[rows])]
    yield _suspicion(
        f"volumes whose slices differ in spacing by more than {UNEQUAL:.0%}",
        len(differing),
        len(volumes),
        _spaced(facts, differing),
        "slices of two examinations under one name",
    )
    flat = [rows for rows in volumes if (spacing[rows].max(1) > ANISOTROPY * spacing[rows].min(1)).any()]
    yield _suspicion(
        f"volumes whose voxels are more than {ANISOTROPY:g} times as long as wide",
        len(flat),
        len(volumes),
        _spaced(facts, flat),
        "another unit, or axes in another order",
    )
    unit = [rows for rows in volumes if (spacing[rows] == 1).all()]
    yield _suspicion(
        "volumes whose voxels are 1 mm in all directions",
        len(unit),
        len(volumes),
        _spaced(facts, unit),
        "what programs write where they do not know: lengths and areas in mm then mean pixels",
    )


def _steps(facts: Facts) -> Iterator[Suspicion]:
    """Only where volumes are evaluated: elsewhere the slices of a volume are a selection."""
    if facts.store.manifest.unit != "volume":
        return
    several = [(rows, np.diff(facts.store.z[rows])) for rows in facts.volumes if len(rows) > 1]
    uneven = [(rows, steps) for rows, steps in several if _uneven(steps)]
    texts = (f"{facts.store.volumes[rows[0]]}: {steps.min():g} to {steps.max():g} mm" for rows, steps in uneven)
    yield _suspicion(
        "volumes with unequal steps between their slices",
        len(uneven),
        len(several),
        texts,
        "a slice that is missing or out of order",
    )
    # Where the steps are uneven this has been told already.
    off = [
        (rows, steps)
        for rows, steps in several
        if not _uneven(steps) and _apart(np.median(steps), np.median(facts.spacing[rows, 0]))
    ]
    texts = (
        f"{facts.store.volumes[rows[0]]}: steps of {np.median(steps):g} mm, spacing {facts.spacing[rows[0], 0]:g}"
        for rows, steps in off
    )
    yield _suspicion(
        "volumes whose slices do not lie as far apart as their spacing says",
        len(off),
        len(several),
        texts,
        "slices that were left out, or a thickness in the place of a distance",
    )


def _differ(spacing: np.ndarray) -> bool:
    return bool((spacing.max(0) > (1 + UNEQUAL) * spacing.min(0)).any())


def _uneven(steps: np.ndarray) -> bool:
    middle = np.median(steps)
    return bool((steps < 0).any() or (np.abs(steps - middle) > UNEQUAL * middle).any())


def _apart(step: np.floating, spacing: np.floating) -> bool:
    return bool(abs(step - spacing) > UNEQUAL * step)


LOOKS: tuple[Callable[[Facts], Iterator[Suspicion]], ...] = (
    _duplicates,
    _silent,
    _classes,
    _swapped,
    _places,
    _empty,
    _ratios,
    _twins,
    _intensities,
    _spacings,
    _steps,
)
"""The gravest first."""


# Words


def _suspicion(what: str, count: int, of: int, texts: Iterable[str], note: str, *, told: bool = False) -> Suspicion:
    return Suspicion(what, count, of, tuple(islice(texts, EXAMPLES)), note, told)


def _rows(facts: Facts, rows: np.ndarray) -> str:
    return " = ".join(f"{facts.name(row)} ({facts.store.patients[row]})" for row in rows[:3])


def _masks(facts: Facts, odd: np.ndarray) -> Iterator[str]:
    """Of [N, R] bool, a slice a time, with the raters in it."""
    for row in np.flatnonzero(odd.any(1)).tolist():
        yield f"{facts.name(row)}: " + ", ".join(facts.raters[rater] for rater in np.flatnonzero(odd[row]))


def _spaced(facts: Facts, volumes: Iterable[np.ndarray]) -> Iterator[str]:
    for rows in volumes:
        least, most = facts.spacing[rows].min(0), facts.spacing[rows].max(0)
        sides = (f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in zip(least, most, strict=True))
        yield f"{facts.store.volumes[rows[0]]}: {' x '.join(sides)} mm (z, y, x)"
