"""Real contours, simulated intensities: a CT-like image for every slice of an outlined lung nodule.

No outline of one rater goes into the picture. What is taken from the annotations is symmetric in the raters: the mean
of their scores, how many drew in the slice, and two maps per slice,

    mean    the mean of the signed distances to their outlines (px, negative inside), lightly smoothed;
    spread  the standard deviation of those distances near the edge, smoothed (px).

The lesion's density falls off across `mean` + a fixed offset + a smooth random displacement that grows with `spread`,
so no rater's outline is a level set of the image; its edge is wider where raters disagree or scored the margin as poor.
Tissue that only one or two of them took in gets one random density per connected piece.

All else is drawn: scanner (per patient), anatomy and lesion (per nodule, in three dimensions, so that its slices fit
together), edge and noise (per slice). Each draw is seeded by these ids alone, and everything is computed in float64:
a slice looks the same on every machine, whatever else is rendered. The constants were calibrated on real slices.

Maps are [128, 128], pixels of the crop in the order (row, column); HU are Hounsfield units. Positions in the thorax are
mm from its axis: `down` from front to back, `across` from the image's left to its right.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, label
from scipy.special import ndtr

SIZE = 128
CENTRE = SIZE // 2
ROW = np.arange(SIZE, dtype=np.float64)[:, None]
COLUMN = np.arange(SIZE, dtype=np.float64)[None, :]
DOWN, ACROSS = ROW - CENTRE, COLUMN - CENTRE
"""px from the middle of the crop."""

AIR, FAT, FLUID = -995.0, -102.0, 8.0
BLOOD = 28.0
SUBTLETY, STRUCTURE, CALCIFICATION, MARGIN, SPICULATION, TEXTURE = 0, 1, 2, 4, 6, 7
"""Columns of the raters' scores."""
NOT_CALCIFIED = 6
RIB_DEPTH = 7.2
"""mm outside the pleura"""


@dataclass(frozen=True, eq=False)
class Nodule:
    """All slices of one nodule that four annotations describe."""

    patient: str
    scan: int
    nodule: int
    """Number within the scan."""
    pixel_spacing: float
    """mm"""
    slice_thickness: float
    """mm"""
    characteristics: np.ndarray
    """[4, 9] int, each rater's scores, in the order of `lidc_database.SCORES`."""
    z: np.ndarray
    """[k] float, ascending, mm."""
    centres: np.ndarray
    """[k, 2] int, (row, column) in the 512 x 512 slice of the pixel (64, 64) of the crop."""
    packed_masks: np.ndarray
    """[k, 4, 2048] uint8, the bits of `masks`."""
    in_paper: np.ndarray
    """[k] bool: the papers use this slice."""

    @property
    def ids(self) -> tuple[str, int, int]:
        return self.patient, self.scan, self.nodule

    @property
    def masks(self) -> np.ndarray:
        """[k, 4, 128, 128] bool, outline included, in the order of the annotations' ids."""
        return np.unpackbits(self.packed_masks, axis=-1).reshape(-1, 4, SIZE, SIZE).astype(bool)

    @property
    def complete(self) -> np.ndarray:
        """[k] bool: all four raters drew in this slice."""
        return np.all(self.packed_masks.any(axis=-1), axis=-1)

    @property
    def slice_spacing(self) -> float:
        """mm between neighbouring slices; the thickness where there is only one."""
        return float(np.median(np.diff(self.z))) if len(self.z) > 1 else self.slice_thickness


def render(nodule: Nodule, wanted: np.ndarray | None = None) -> np.ndarray:
    """The images of a nodule's slices, [n, 128, 128] int16, HU.

    Args:
        wanted: [k] bool, which slices; None: all. A slice looks the same whichever others are wanted.
    """
    masks = nodule.masks  # [k, 4, 128, 128], unpacked once
    scanner = draw_scanner(nodule.patient, nodule.pixel_spacing, nodule.slice_thickness)
    lesion = draw_lesion(nodule, scanner)
    middle = int(np.argmax(masks.sum(axis=(1, 2, 3))))
    anatomy = draw_anatomy(nodule, scanner, middle)
    wanted = np.ones(len(masks), bool) if wanted is None else wanted
    edges = {k: _edge(nodule, k, masks[k]) for k in _with_adjacent(wanted)}
    images = []
    for k in np.flatnonzero(wanted).tolist():
        rng = generator("slice", *nodule.ids, f"{nodule.z[k]:.2f}")
        surroundings = cut(anatomy, nodule.z[k] - nodule.z[middle])
        background, solid = (_shifted(each, nodule.centres[k] - nodule.centres[middle]) for each in surroundings)
        hu = compose(background, solid, edges[k].mean, _with_neighbours(nodule, edges, k), lesion, rng)
        images.append(np.clip(np.rint(scan(hu, scanner, rng)), -1024, 3071).astype(np.int16))
    return np.stack(images)


def _with_adjacent(wanted: np.ndarray) -> np.ndarray:
    """Indices of the wanted slices and of those above and below."""
    padded = np.pad(wanted, 1)
    return np.flatnonzero(padded[:-2] | wanted | padded[2:])


def generator(*ids: object) -> np.random.Generator:
    """Random numbers that depend on these ids alone."""
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in ids])


def smooth_noise(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Gaussian noise of unit variance, correlated over `scale` px."""
    border = int(4 * scale) + 2
    white = rng.standard_normal((SIZE + 2 * border, SIZE + 2 * border))
    return gaussian_filter(white, scale)[border:-border, border:-border] * (2 * scale * np.sqrt(np.pi))


def blend(below: np.ndarray | float, above: np.ndarray | float, weight: np.ndarray) -> np.ndarray:
    return below * (1 - weight) + above * weight


def _shifted(values: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The map seen from a crop that lies `shift` px further; its border is repeated."""
    rows, columns = (np.clip(np.arange(SIZE) + by, 0, SIZE - 1) for by in shift.astype(int))
    return values[np.ix_(rows, columns)]


# The scanner: one per patient


@dataclass(frozen=True)
class Scanner:
    """How a patient is built and scanned."""

    pixel: float
    """mm"""
    thickness: float
    """of a slice, mm"""
    parenchyma: float
    """HU"""
    gravity: float
    """HU by which the parenchyma gets denser from the top of the crop to its bottom."""
    sharp: bool
    """A sharp reconstruction kernel: overshoots at edges, more and finer noise."""
    blur: float
    """Standard deviation of the point spread function, px."""
    noise: float
    """Standard deviation, HU."""
    cutoff: float
    """Frequency at which the noise rolls off, cycles per px."""
    emphysema: bool
    fat: float
    """Under the skin, mm."""
    half_width: float
    """of the thorax, mm"""
    half_depth: float
    """of the thorax, mm"""
    axis: tuple[float, float]
    """(row, column) of the thorax's axis in the 512 x 512 slice."""


def draw_scanner(patient: str, pixel: float, thickness: float) -> Scanner:
    rng = generator("scanner", patient)
    parenchyma = float(np.clip(rng.normal(-838, 36), -905, -740))
    gravity = rng.uniform(15, 70)
    sharp = bool(rng.random() < 0.25)
    blur = (rng.uniform(0.42, 0.58) if sharp else rng.uniform(0.52, 0.72)) / pixel
    noise = (17 if sharp else 12) * np.exp(rng.normal(0, 0.30)) * np.sqrt(2.0 / max(thickness, 0.6))
    return Scanner(
        pixel=pixel,
        thickness=thickness,
        parenchyma=parenchyma,
        gravity=gravity,
        sharp=sharp,
        blur=float(np.clip(blur, 0.55, 1.25)),
        noise=float(np.clip(noise, 5, 48)),
        cutoff=rng.uniform(0.22, 0.30) if sharp else rng.uniform(0.13, 0.20),
        emphysema=bool(rng.random() < 0.18),
        fat=rng.uniform(5, 28),
        half_width=rng.normal(132, 9),
        half_depth=rng.normal(92, 8),
        axis=(rng.normal(248, 8), rng.normal(256, 7)),
    )


def scan(hu: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """What the scanner makes of the true densities, HU."""
    unresolved = 33 * smooth_noise(rng, 1.0) + 18 * smooth_noise(rng, 3.0)
    image = gaussian_filter(hu + unresolved, scanner.blur)
    if scanner.sharp:
        image = image + 0.45 * (image - gaussian_filter(image, 1.2))
    soft_tissue = ndtr((gaussian_filter(image, 3) + 500) / 150)
    return image + scanner.noise * _scan_noise(rng, scanner.cutoff) * (1 + 0.35 * soft_tissue)


def _scan_noise(rng: np.random.Generator, cutoff: float) -> np.ndarray:
    """Unit-variance noise as filtered backprojection leaves it: power rises with the frequency f, then rolls off."""
    shape = (2 * SIZE, 2 * SIZE)  # twice the crop, so that its borders are not neighbours
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    amplitude = np.sqrt((frequency + 0.012) * np.exp(-((frequency / cutoff) ** 2)))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * amplitude, s=shape)[:SIZE, :SIZE]
    return noise / noise.std()


# The anatomy around a nodule: drawn once, cut at any height


@dataclass(frozen=True)
class Rib:
    angle: float
    """around the thorax's axis, rad"""
    half_length: float
    """rad"""
    half_width: float
    """mm"""


@dataclass(frozen=True)
class Wall:
    """The pleura is a superellipse about the thorax's axis; outside it lie muscle, ribs, fat and skin."""

    half_width: float
    """mm"""
    half_depth: float
    """mm"""
    exponent: float
    ribs: tuple[Rib, ...]
    rib_slope: float
    """rad by which ribs turn per mm of height"""


@dataclass(frozen=True)
class Mediastinum:
    """A disc on the patient's midline side, with a wavy edge."""

    side: int
    """1 if the nodule is in the image's right half, else -1."""
    radius: float
    """mm"""
    down: float
    """Its middle, mm."""
    reach: float
    """How far its edge comes from the axis towards the nodule's side, mm."""


@dataclass(frozen=True)
class Fissure:
    """A parabola of thin bright tissue: down = slope * across + bend * across^2 + offset + drift * height, px."""

    slope: float
    offset: float
    bend: float
    contrast: float
    """HU"""
    drift: float


@dataclass(frozen=True)
class Bulla:
    """A hole in emphysematous lung, px."""

    row: float
    column: float
    radius: float


@dataclass(frozen=True)
class Airway:
    """A bronchus cut across, px."""

    row: float
    column: float
    radius: float
    wall: float
    slant: tuple[float, float]
    """(row, column) by which it moves per px of height"""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The surroundings of one nodule; the middle of its largest slice is the origin."""

    scanner: Scanner
    position: tuple[float, float]
    """(down, across) of the nodule, mm from the thorax's axis."""
    wall: Wall
    mediastinum: Mediastinum
    vessels: np.ndarray
    """[n, 4] points of the vessel tree: row and column in the crop, height, radius; px."""
    fissure: Fissure | None
    bullae: tuple[Bulla, ...]
    airways: tuple[Airway, ...]
    texture: np.ndarray
    """Unit-variance noise, correlated over 7 px."""
    shading: np.ndarray
    """The same over 26 px."""
    phases: tuple[float, float]
    """of the waves in muscle and mediastinum, rad"""


def draw_anatomy(nodule: Nodule, scanner: Scanner, middle: int) -> Anatomy:
    """Walls and mediastinum lie where the nodule's true place in the slice has them, but never within the lesion.

    Args:
        middle: index of the slice that becomes the origin.
    """
    rng = generator("anatomy", *nodule.ids)
    reach = _reach(nodule.masks[middle]) * scanner.pixel
    row, column = nodule.centres[middle]
    down, across = (row - scanner.axis[0]) * scanner.pixel, (column - scanner.axis[1]) * scanner.pixel
    half_width, half_depth, exponent = _pleura(rng, scanner, down, across, reach)
    mediastinum = _draw_mediastinum(rng, down, across, reach)
    ribs, rib_slope = _draw_ribs(rng)
    hilum = np.array([-down * 0.5, mediastinum.reach * mediastinum.side - across])
    return Anatomy(
        scanner=scanner,
        position=(down, across),
        wall=Wall(half_width, half_depth, exponent, ribs, rib_slope),
        mediastinum=mediastinum,
        vessels=grow_vessels(rng, 0.7 / scanner.pixel, hilum / (np.linalg.norm(hilum) + 1e-6)),
        fissure=_draw_fissure(rng),
        bullae=_draw_bullae(rng, scanner.emphysema),
        airways=_draw_airways(rng),
        texture=smooth_noise(rng, 7),
        shading=smooth_noise(rng, 26),
        phases=(rng.standard_normal(), rng.standard_normal()),
    )


def _reach(masks: np.ndarray) -> float:
    """px from the crop's middle to the farthest pixel that two raters took in (or one, if no two agree)."""
    votes = masks.sum(axis=0)
    rows, columns = np.nonzero(votes >= min(2, votes.max()))
    return max(2.0, float(np.hypot(rows - CENTRE, columns - CENTRE).max()))


def _pleura(
    rng: np.random.Generator, scanner: Scanner, down: float, across: float, reach: float
) -> tuple[float, float, float]:
    """Half width, half depth (mm) and exponent of the superellipse, widened where the lesion needs room."""
    exponent = rng.uniform(2.1, 2.6)
    touching = rng.random() < 0.22
    room = reach + (rng.uniform(0, 1.0) if touching else rng.uniform(3, 14))
    width, depth = scanner.half_width, scanner.half_depth
    level = (abs(across / width) ** exponent + abs(down / depth) ** exponent) ** (1 / exponent)
    distance = np.hypot(across, down) + 1e-6
    scale = max(1.0, level * (distance + room) / distance)
    return width * scale, depth * scale, exponent


def _draw_mediastinum(rng: np.random.Generator, down: float, across: float, reach: float) -> Mediastinum:
    radius, middle, edge = rng.uniform(38, 75), rng.normal(-12, 22), rng.uniform(18, 42)
    touching = rng.random() < 0.12
    room = reach + (rng.uniform(0, 2) if touching else rng.uniform(4, 16))
    distance = np.hypot(abs(across) - (edge - radius), down - middle) - radius
    return Mediastinum(
        side=1 if across >= 0 else -1, radius=radius, down=middle, reach=edge - max(0.0, room - distance)
    )


def _draw_ribs(rng: np.random.Generator) -> tuple[tuple[Rib, ...], float]:
    angles = np.arange(0, 2 * np.pi, rng.uniform(0.30, 0.42))
    ribs = tuple(
        Rib(angle=angle + rng.normal(0, 0.05), half_length=rng.uniform(0.09, 0.24), half_width=rng.uniform(3.2, 4.6))
        for angle in angles
    )
    return ribs, rng.uniform(0.010, 0.02) * (1 if rng.random() < 0.5 else -1)


def _draw_fissure(rng: np.random.Generator) -> Fissure | None:
    if rng.random() >= 0.3:
        return None
    return Fissure(
        slope=rng.uniform(-0.9, 0.9),
        offset=rng.uniform(-45, 45),
        bend=rng.uniform(-0.004, 0.004),
        contrast=rng.uniform(60, 170),
        drift=rng.uniform(-0.6, 0.6),
    )


def _draw_bullae(rng: np.random.Generator, emphysema: bool) -> tuple[Bulla, ...]:
    if not emphysema:
        return ()
    return tuple(
        Bulla(row=rng.uniform(0, SIZE), column=rng.uniform(0, SIZE), radius=rng.uniform(3, 11))
        for _ in range(rng.poisson(7))
    )


def _draw_airways(rng: np.random.Generator) -> tuple[Airway, ...]:
    return tuple(
        Airway(
            row=rng.uniform(8, 120),
            column=rng.uniform(8, 120),
            radius=rng.uniform(1.6, 3.6),
            wall=rng.uniform(0.6, 1.2),
            slant=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)),
        )
        for _ in range(rng.poisson(0.25))
    )


def cut(anatomy: Anatomy, height: float) -> tuple[np.ndarray, np.ndarray]:
    """The anatomy in a slab of one slice's thickness, as seen from the nodule's largest slice.

    Args:
        height: middle of the slab, mm above the nodule's largest slice.

    Returns:
        HU without the lesion, and the share of each pixel that is wall or mediastinum (0 to 1).
    """
    scanner = anatomy.scanner
    height_px = height / scanner.pixel
    hu = _parenchyma(anatomy, height_px)
    thickness_px = max(scanner.thickness / scanner.pixel, 0.8)
    hu = blend(hu, BLOOD, draw_vessels(anatomy.vessels, height_px, thickness_px))
    for airway in anatomy.airways:
        hu = _add_airway(hu, airway, height_px)

    down = DOWN * scanner.pixel + anatomy.position[0]
    across = ACROSS * scanner.pixel + anatomy.position[1]
    mediastinum = ndtr(_depth_in_mediastinum(anatomy, down, across) / 0.6)
    beyond_pleura = _beyond_pleura(anatomy, down, across)
    wall = ndtr(beyond_pleura / 0.35)
    angle = np.arctan2(down, across) + anatomy.wall.rib_slope * height
    fatty = gaussian_filter(anatomy.texture, 2) > 0.35
    hu = blend(hu, np.where(fatty, -85.0, 42.0), mediastinum)
    return blend(hu, _wall_hu(anatomy, beyond_pleura, angle), wall), np.maximum(wall, mediastinum)


def _parenchyma(anatomy: Anatomy, height: float) -> np.ndarray:
    """Aerated lung with bullae and fissure, HU; height in px."""
    scanner, fissure = anatomy.scanner, anatomy.fissure
    texture = np.roll(anatomy.texture, int(height) % SIZE, axis=0)
    hu = scanner.parenchyma + scanner.gravity * DOWN / SIZE + 13 * texture + 15 * anatomy.shading
    for bulla in anatomy.bullae:
        distance = np.hypot(ROW - bulla.row, COLUMN - bulla.column - 0.3 * height)
        hu = hu - 70 * ndtr((bulla.radius - distance) / 1.3)
    if fissure is None:
        return hu
    line = fissure.slope * ACROSS + fissure.bend * ACROSS**2 + fissure.offset + fissure.drift * height
    visible = np.clip(1.1 - scanner.thickness / 6, 0.2, 1)
    return hu + fissure.contrast * visible * np.exp(-((DOWN - line) ** 2) / 2)


def _add_airway(hu: np.ndarray, airway: Airway, height: float) -> np.ndarray:
    down = ROW - airway.row - airway.slant[0] * height
    across = (COLUMN - airway.column - airway.slant[1] * height) * 1.1
    distance = np.hypot(down, across)
    wall = np.exp(-(((distance - airway.radius) / airway.wall) ** 2))
    lumen = ndtr((airway.radius - 0.3 * airway.wall - distance) / 0.5)
    return blend(blend(hu, -80.0, 0.65 * wall), -960.0, lumen)


def _beyond_pleura(anatomy: Anatomy, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """mm outside the pleura (negative: in the lung), slightly uneven."""
    wall = anatomy.wall
    powers = np.abs(across / wall.half_width) ** wall.exponent + np.abs(down / wall.half_depth) ** wall.exponent
    level = powers ** (1 / wall.exponent)
    by_row, by_column = np.gradient(level, anatomy.scanner.pixel)  # per mm
    return (level - 1) / (np.hypot(by_row, by_column) + 1e-6) + 0.36 * anatomy.shading


def _wall_hu(anatomy: Anatomy, beyond: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """The chest wall from the pleura outwards: soft tissue with ribs, fat, muscle, fat, skin, air."""
    texture, fat = anatomy.texture, anatomy.scanner.fat
    hu = np.where(beyond < 2.2, 15.0, 52.0) + 14 * texture
    belt = np.abs(beyond - RIB_DEPTH) < 5  # where ribs can be
    marrow = 190 + 60 * texture[belt]
    for rib in anatomy.wall.ribs:
        turn = (angle[belt] - rib.angle + np.pi) % (2 * np.pi) - np.pi
        ellipse = np.hypot(turn / rib.half_length, (beyond[belt] - RIB_DEPTH) / rib.half_width)
        hu[belt] = np.where(ellipse < 1, np.where(ellipse > 0.72, 520, marrow), hu[belt])
    muscle = 15 + 3 * np.sin(3 * angle + anatomy.phases[0])
    outside = np.where(beyond < muscle + 6 + 3 * anatomy.shading, 48 + 12 * texture, FAT + 9 * texture)
    hu = np.where(beyond > muscle, outside, hu)
    skin = muscle + fat + 12
    return np.where(beyond > skin + 5, AIR, np.where(beyond > skin, 20.0, hu))


def _depth_in_mediastinum(anatomy: Anatomy, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """mm inside the mediastinum's edge (negative: outside)."""
    disc = anatomy.mediastinum
    distance = np.hypot(across * disc.side - (disc.reach - disc.radius), down - disc.down)
    return disc.radius - distance + 2.2 * np.sin(down / 17 + anatomy.phases[1]) + 1.5 * anatomy.shading


# Vessels: a tree of tubes in a box around the crop

VESSEL_BOX = 42
"""Half height of the box in which trees start, px."""
THINNEST = 0.27
"""Radius at which a branch ends, px of 0.7 mm."""
MOST_SEGMENTS = 16000
FINE = 2
"""Vessels are drawn on a grid this much finer than the pixels."""
MARGIN_PX = 14
"""Drawn around the crop, wide enough for the largest stamp of a vessel that starts outside."""
THIN = ((0.0, 0.5), (0.5, 0.75), (0.75, 1.0), (1.0, 1.3))
"""Ranges of radii (px) drawn together, as if all had the mean of theirs."""


def grow_vessels(rng: np.random.Generator, scale: float, hilum: np.ndarray) -> np.ndarray:
    """Points of a random vessel tree, [n, 4]: row, column, height, radius; px.

    Vessels come from the hilum, taper, wander and fork; at a fork the cubes of the radii add up (Murray's law).

    Args:
        scale: px in 0.7 mm, for which the radii were chosen.
        hilum: [2] unit vector towards it, (down, across).
    """
    start, direction, radius = _draw_roots(rng, scale, hilum)
    segments = []
    while len(start) and sum(map(len, segments)) <= MOST_SEGMENTS:
        length = rng.uniform(5, 15, len(start)) * (radius / scale) ** 0.3
        direction = _unit(direction + rng.normal(0, 0.10, direction.shape))
        end = start + length[:, None] * direction
        segments.append(np.c_[start, end, radius])
        inside = ((end[:, :2] > -30) & (end[:, :2] < SIZE + 30)).all(axis=1) & (np.abs(end[:, 2]) < VESSEL_BOX + 12)
        start, direction, radius = _fork(rng, end[inside], direction[inside], radius[inside])
        alive = radius >= THINNEST * scale
        start, direction, radius = start[alive], direction[alive], radius[alive]
    return _points_along(np.concatenate(segments))


def _draw_roots(rng: np.random.Generator, scale: float, hilum: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start points [n, 3] shifted towards the hilum, directions [n, 3] mostly away from it, radii [n]."""
    count = 95 + rng.poisson(20)
    start = np.c_[rng.uniform(-20, SIZE + 20, (count, 2)), rng.uniform(-VESSEL_BOX, VESSEL_BOX, count)]
    start[:, :2] += hilum * rng.uniform(-10, 70, (count, 1))
    away = np.c_[-hilum * rng.uniform(0.5, 1.2, (count, 1)), np.zeros(count)]
    direction = _unit(away + rng.normal(0, 0.55, (count, 3)))
    radius = scale * np.minimum(np.exp(rng.normal(0.24, 0.45, count)), 2.5)
    alive = radius >= THINNEST * scale
    return start[alive], direction[alive], radius[alive]


def _fork(
    rng: np.random.Generator, start: np.ndarray, direction: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What goes on from the ends of the branches: most fork into a thick and a thin one, the others taper."""
    forks = rng.random(len(start)) < 0.72
    share = rng.uniform(0.45, 0.80, len(start))
    sideways = rng.normal(0, 1, start.shape)
    sideways = _unit(sideways - (sideways * direction).sum(axis=1, keepdims=True) * direction)
    turn, other_turn = rng.uniform(0.2, 0.5, (len(start), 1)), rng.uniform(0.5, 1.0, (len(start), 1))
    main = np.where(forks[:, None], direction * np.cos(turn) + sideways * np.sin(turn), direction)
    main_radius = radius * np.where(forks, 0.96 * np.cbrt(share), 0.95)
    branch = (direction * np.cos(other_turn) - sideways * np.sin(other_turn))[forks]
    branch_radius = (radius * 0.96 * np.cbrt(1 - share))[forks]
    return (
        np.concatenate([start, start[forks]]),
        np.concatenate([main, branch]),
        np.concatenate([main_radius, branch_radius]),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _points_along(segments: np.ndarray) -> np.ndarray:
    """Segments [n, 7] (start, end, radius) as points [m, 4] about 0.6 px apart, slightly tapering."""
    start, end, radius = segments[:, :3], segments[:, 3:6], segments[:, 6]
    count = np.maximum(2, (np.linalg.norm(end - start, axis=1) / 0.6).astype(int))
    of = np.repeat(np.arange(len(segments)), count)
    place = (np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)) / (count[of] - 1)
    return np.c_[start[of] + place[:, None] * (end - start)[of], radius[of] * (1 - 0.07 * place)]


def draw_vessels(points: np.ndarray, height: float, thickness: float) -> np.ndarray:
    """Share of each pixel that vessels fill (0 to 1) in a slab at `height`, all in px."""
    z, radius = points[:, 2], points[:, 3]
    overlap = np.minimum(z + radius, height + thickness / 2) - np.maximum(z - radius, height - thickness / 2)
    filled = np.clip(overlap / np.maximum(thickness, 1.6 * radius), 0, 1)
    near = ((points[:, :2] > -8) & (points[:, :2] < SIZE + 8)).all(axis=1)
    seen = near & (filled > 0.04)
    place = np.rint(points[seen, :2] * FINE).astype(int) + FINE * MARGIN_PX  # [n, 2] on the fine grid
    radius, filled = radius[seen] * FINE, filled[seen]

    canvas = np.zeros((FINE * (SIZE + 2 * MARGIN_PX),) * 2)
    for low, high in THIN:
        chosen = (radius >= low * FINE) & (radius < high * FINE)
        if chosen.any():
            _stamp_thin(canvas, place[chosen], filled[chosen], radius[chosen].mean())
    for k in np.flatnonzero(radius >= THIN[-1][1] * FINE):
        _stamp_thick(canvas, place[k], filled[k], radius[k])
    inner = canvas[FINE * MARGIN_PX : -FINE * MARGIN_PX, FINE * MARGIN_PX : -FINE * MARGIN_PX]
    return inner.reshape(SIZE, FINE, SIZE, FINE).mean(axis=(1, 3))


STAMP_REACH = 11
_OFFSET = np.arange(-STAMP_REACH, STAMP_REACH + 1)
STAMP_DISTANCE = np.hypot(_OFFSET[:, None], _OFFSET[None, :])
"""From the middle of the largest stamp, fine px."""


def _stamp_thin(canvas: np.ndarray, place: np.ndarray, filled: np.ndarray, radius: float) -> None:
    """Discs of one small radius at many places: mark the points, then spread the marks by shifting the whole map."""
    marks = np.zeros_like(canvas)
    np.maximum.at(marks, (place[:, 0], place[:, 1]), filled * min(1.0, radius))
    n, border, size = int(radius), 3, len(canvas)
    target = canvas[border:-border, border:-border]
    for down, across in np.ndindex(2 * n + 1, 2 * n + 1):
        down, across = down - n, across - n
        if np.hypot(down, across) <= max(radius, 0.5):
            rows = slice(border + down, size - border + down)
            columns = slice(border + across, size - border + across)
            np.maximum(target, marks[rows, columns], out=target)


def _stamp_thick(canvas: np.ndarray, place: np.ndarray, filled: float, radius: float) -> None:
    """One disc."""
    n = min(int(radius), STAMP_REACH)
    target = canvas[place[0] - n : place[0] + n + 1, place[1] - n : place[1] + n + 1]
    middle = slice(STAMP_REACH - n, STAMP_REACH + n + 1)
    np.maximum(target, filled * (STAMP_DISTANCE[middle, middle] <= radius), out=target)


# The lesion: its density in a slice, its HU, and its spicules


@dataclass(frozen=True, eq=False)
class Edge:
    """The lesion in one slice, from what is symmetric in the raters."""

    density: np.ndarray
    """Share of each pixel that is lesion (0 to 1)."""
    mean: np.ndarray
    """Mean signed distance to the outlines, px, negative inside."""


def _edge(nodule: Nodule, k: int, masks: np.ndarray) -> Edge:
    rng = generator("edge", *nodule.ids, f"{nodule.z[k]:.2f}")
    scores = nodule.characteristics.mean(axis=0)
    return draw_edge(rng, masks[masks.any(axis=(1, 2))], margin=scores[MARGIN], texture=scores[TEXTURE])


def draw_edge(rng: np.random.Generator, masks: np.ndarray, *, margin: float, texture: float) -> Edge:
    """The lesion's density in one slice; `masks` [n, 128, 128] of the n raters who drew in it, mean scores 1 to 5."""
    mean, spread = consensus(masks)
    displacement = (0.40 + 0.55 * spread) * smooth_noise(rng, 4.5) + 0.22 * smooth_noise(rng, 2.0)
    poor_margin, diffuse = 0.38 + 0.27 * (5 - margin), 0.5 * max(0.0, 3.5 - texture)
    width = np.sqrt(poor_margin**2 + (0.55 * spread) ** 2 + 0.5 * diffuse**2)
    density = ndtr(-(mean + 0.76 + displacement) / width)
    density = np.maximum(density, gaussian_filter(_disputed(rng, masks), 0.7))
    halo = 0.10 * np.exp(-np.maximum(mean, 0) / 3.5) * (1 + 0.6 * smooth_noise(rng, 2.5))
    return Edge(np.maximum(density, halo) * (0.30 + 0.70 * len(masks) / 4), mean)


def consensus(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of the raters' signed distances, px."""
    distances = np.stack([np.clip(_signed_distance(mask), -40, 60) for mask in masks])
    distances.sort(axis=0)  # sums must not depend on the raters' order, not even in the last digit
    mean = gaussian_filter(distances.mean(axis=0), 0.7)
    near = (np.abs(mean) < 5).astype(np.float64)
    spread = gaussian_filter(np.minimum(distances.std(axis=0), 4.0) * near, 3)
    return mean, spread / np.maximum(gaussian_filter(near, 3), 0.05)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """px to the border between inside and outside, negative inside."""
    return np.where(mask, 0.5 - _distance(mask), _distance(~mask) - 0.5)


def _distance(mask: np.ndarray) -> np.ndarray:
    """px from each pixel of the mask to the nearest one outside it; 0 outside."""
    return np.asarray(distance_transform_edt(mask))


def _disputed(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """Tissue away from the core all agree on, that some took in: one random density for each connected piece."""
    votes = masks.sum(axis=0)
    core = votes >= max(2, len(masks) - 1)
    disputed = votes > 0
    if core.any():
        disputed &= _distance(~core) > 1.5
    pieces = np.empty(disputed.shape, np.int32)
    count = int(label(disputed, output=pieces))  # type: ignore[arg-type]
    density = np.zeros((SIZE, SIZE))
    for number in range(1, count + 1):
        piece = pieces == number
        if piece.sum() >= 5:
            density[piece] = rng.uniform(0.12, 0.72) * (0.6 + 0.2 * votes[piece].mean())
    return density


def _with_neighbours(nodule: Nodule, edges: Mapping[int, Edge], k: int) -> np.ndarray:
    """Density in slice k with its partial volume: what lies in the slices above and below shines through."""
    spacing = nodule.slice_spacing
    share = np.clip(0.10 + 0.10 * nodule.slice_thickness / max(spacing, 0.3), 0.08, 0.22)
    density = (1 - 2 * share) * edges[k].density
    for other in (k - 1, k + 1):
        adjacent = 0 <= other < len(nodule.z) and abs(abs(nodule.z[other] - nodule.z[k]) - spacing) < 0.6 * spacing
        if adjacent:
            shift = nodule.centres[other] - nodule.centres[k]
            density = density + share * np.roll(edges[other].density, tuple(shift.tolist()), axis=(0, 1))
    return density


@dataclass(frozen=True)
class Spicule:
    """A strand from the lesion's edge outwards."""

    angle: float
    length: float
    """px over which it fades"""
    width: float
    """px"""
    density: float
    bend: float


@dataclass(frozen=True)
class Calcification:
    pattern: int
    """1 popcorn, 2 laminated, 3 solid, 4 off centre, 5 central."""
    strength: float
    """HU added"""
    offset: tuple[float, float]
    """Where an off-centre one lies, as a part of the lesion's depth (down, across)."""


@dataclass(frozen=True)
class Lesion:
    """What the slices of one nodule share."""

    texture: float
    """Mean score: 1 ground glass, 5 solid."""
    solid: float
    """HU"""
    ground_glass: float
    """HU"""
    contrast: float
    """Of the lesion against the lung (0 to 1): low where it was found to be subtle."""
    calcification: Calcification | None
    structure: int
    """Inside: 1 soft tissue, 2 fluid, 3 fat, 4 air."""
    spicules: tuple[Spicule, ...]


def draw_lesion(nodule: Nodule, scanner: Scanner) -> Lesion:
    scores = nodule.characteristics
    rng = generator("lesion", *nodule.ids)
    mean = scores.mean(axis=0)
    return Lesion(
        texture=mean[TEXTURE],
        solid=rng.normal(22, 26),
        ground_glass=scanner.parenchyma + rng.uniform(170, 360),
        contrast=float(np.clip(0.62 + 0.085 * mean[SUBTLETY], 0.62, 1.0)),
        calcification=_draw_calcification(rng, scores[:, CALCIFICATION]),
        structure=_structure(scores[:, STRUCTURE]),
        spicules=_draw_spicules(generator("spicules", *nodule.ids), mean[SPICULATION]),
    )


def _draw_calcification(rng: np.random.Generator, scores: np.ndarray) -> Calcification | None:
    """The pattern most raters saw, if two or more saw any."""
    seen = scores[scores != NOT_CALCIFIED]
    if len(seen) < 2:
        return None
    return Calcification(
        pattern=int(np.bincount(seen).argmax()),
        strength=rng.uniform(180, 650),
        offset=(rng.normal(0, 0.4), rng.normal(0, 0.4)),
    )


def _structure(scores: np.ndarray) -> int:
    """What at least two raters saw inside, the most conspicuous first."""
    return next((structure for structure in (4, 3, 2) if (scores == structure).sum() >= 2), 1)


def _draw_spicules(rng: np.random.Generator, spiculation: float) -> tuple[Spicule, ...]:
    return tuple(
        Spicule(
            angle=rng.uniform(-np.pi, np.pi),
            length=rng.uniform(4, 13),
            width=rng.uniform(0.45, 0.8),
            density=rng.uniform(0.25, 0.75),
            bend=rng.normal(0, 0.02),
        )
        for _ in range(rng.poisson(max(0.35, 2.1 * (spiculation - 1.1))))
    )


def compose(
    background: np.ndarray,
    solid: np.ndarray,
    mean: np.ndarray,
    density: np.ndarray,
    lesion: Lesion,
    rng: np.random.Generator,
) -> np.ndarray:
    """Lay the lesion into its surroundings: HU before they are scanned.

    Args:
        background: HU of the surroundings.
        solid: share of each pixel that is wall or mediastinum; what sticks out of the lesion ends there.
        mean: as in `Edge`.
        density: share of each pixel that is lesion.
    """
    hu = lesion_hu(lesion, mean, rng)
    strands = spicule_density(lesion.spicules, mean) * (1 if lesion.texture > 2.5 else 0.5)
    share = np.clip(np.maximum(density, strands) * lesion.contrast, 0, 1)
    return blend(background, hu, share * (1 - solid * (mean > 1.5)))


def lesion_hu(lesion: Lesion, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """HU that the lesion's tissue would have at each pixel; `mean` as in `Edge`."""
    mottle = smooth_noise(rng, 1.8)
    thickness = max(1.0, -mean.min())
    depth = -mean / thickness  # 0 at the edge, 1 in the middle
    hu = _tissue_hu(lesion, depth, mottle, rng)
    if lesion.calcification is not None:
        hu = hu + lesion.calcification.strength * _calcified(lesion.calcification, depth, thickness, rng)
    if lesion.structure == 4:
        return np.where(depth > 0.5 + 0.12 * smooth_noise(rng, 3), -930.0, hu)
    if lesion.structure == 3:
        return np.where(depth > 0.35, -85.0, hu)
    if lesion.structure == 2:
        return np.where(depth > 0.3, FLUID + 5 * mottle, hu)
    return hu


def _tissue_hu(lesion: Lesion, depth: np.ndarray, mottle: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Solid, ground glass, or a solid core in ground glass."""
    if lesion.texture >= 4.4:
        return lesion.solid + 22 * mottle
    veil = lesion.ground_glass + 45 * mottle
    if lesion.texture <= 1.9:
        return veil
    solid_part = np.clip((lesion.texture - 1.4) / 3.0, 0.1, 0.95)
    core = ndtr((depth - (1 - solid_part) + 0.22 * smooth_noise(rng, 3.0)) / 0.16)
    return blend(veil, lesion.solid + 25 * mottle, core)


def _calcified(
    calcification: Calcification, depth: np.ndarray, thickness: float, rng: np.random.Generator
) -> np.ndarray:
    """How much of each pixel is calcified (0 to 1)."""
    match calcification.pattern:
        case 1:
            return (smooth_noise(rng, 2.2) > 0.5) & (depth > 0.1)
        case 2:
            return 0.8 * np.exp(-(((depth - 0.5) / 0.13) ** 2))
        case 3:
            return ndtr((depth - 0.12) / 0.08)
        case 5:
            return ndtr((depth - 0.55) / 0.10)
        case _:
            down, across = (part * thickness for part in calcification.offset)
            return np.exp(-((DOWN - down) ** 2 + (ACROSS - across) ** 2) / (0.35 * thickness) ** 2)


def spicule_density(spicules: Sequence[Spicule], mean: np.ndarray) -> np.ndarray:
    """Share of each pixel that strands fill (0 to 1); `mean` as in `Edge`."""
    density = np.zeros((SIZE, SIZE))
    angle, distance = np.arctan2(DOWN, ACROSS), np.hypot(DOWN, ACROSS)
    for spicule in spicules:
        turn = angle - spicule.angle
        sideways = distance * np.sin(turn - 0.2 * spicule.bend * distance)
        fading = np.clip(1 - np.maximum(mean, 0) / spicule.length, 0, 1)
        strand = spicule.density * np.exp(-((sideways / spicule.width) ** 2)) * fading
        density = np.maximum(density, strand * ((np.cos(turn) > 0.6) & (mean > -3)))
    return density
