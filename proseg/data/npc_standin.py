"""A synthetic stand-in for the NPC data set, in exactly its layout (see `npc`), for when the real one cannot be had.

Each volume is a drawn head: muscle, fat, airway, bone and brain as in T1, contrast-enhanced T1 and T2, with one
lobulated tumour beside the airway. Four experts outline it, each with habits of their own, and disagree about as much
as the real ones do (see EXPERTS). A volume depends on its index alone.

Coordinates are voxel indices; "px" is an in-plane pixel. Shapes: D slices, H rows, W columns.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from proseg.data import npc
from proseg.data.npc import NpcVolume
from proseg.errors import DataError

VERSION = 1
"""Counts up when the volumes change."""

MARKER = "STANDIN.json"
"""Written last: where it lies, the set is complete."""

NOTE = "synthetic volume written by proseg-tune; no patient, no expert"
PARTS = ("training", "validation", "testing")
SEED = 20240618


@dataclass(frozen=True)
class Contrast:
    """Mean signal of each tissue in one modality, in arbitrary units (air is 0.03)."""

    muscle: float
    tumour: float
    fat: float
    bone: float
    brain: float


CONTRASTS = {
    "t1": Contrast(muscle=0.55, tumour=0.62, fat=0.95, bone=0.15, brain=0.60),
    "t1c": Contrast(muscle=0.60, tumour=0.95, fat=0.80, bone=0.25, brain=0.72),
    "t2": Contrast(muscle=0.45, tumour=0.78, fat=0.70, bone=0.30, brain=0.85),
}
AIR_SIGNAL, OUTSIDE_SIGNAL = 0.03, 0.02
NOISE = 0.030


@dataclass(frozen=True)
class Expert:
    """The habits of one annotator."""

    margin: float
    """px by which the outline lies outside the tumour's."""
    wobble: float
    """Standard deviation of the outline about that, px."""
    mood: float
    """Standard deviation of the margin from case to case, px."""
    reach: float
    """Slices marked beyond the tumour's ends."""


# Chosen so that the distance 1 - IoU of two experts, by volume and averaged over all ordered pairs, those with
# oneself included, is about that of the real four (0.2951 in the paper).
EXPERTS = (
    Expert(margin=0.8, wobble=1.3, mood=0.6, reach=0.3),
    Expert(margin=-0.1, wobble=1.9, mood=1.1, reach=-0.2),
    Expert(margin=0.3, wobble=1.9, mood=1.1, reach=0.5),
    Expert(margin=-1.0, wobble=1.7, mood=1.0, reach=-0.5),
)
END_STEEPNESS = 1.6
"""px by which an outline shrinks for every slice beyond the expert's reach."""


@dataclass(frozen=True)
class Anatomy:
    """Where the tissues are: bool, broadcastable to [D, H, W]."""

    body: np.ndarray
    fat: np.ndarray
    air: np.ndarray
    bone: np.ndarray
    brain: np.ndarray
    muscle: np.ndarray
    """[D, H, W] in 0..1: muscle as opposed to the paler tissue between."""
    texture: np.ndarray
    """[D, H, W] unit variance."""


@dataclass(frozen=True)
class Tumour:
    """One lobulated blob."""

    depth: np.ndarray
    """[D, H, W]: px inside its surface, negative outside."""
    centre: float
    """Slice of its centre."""
    half_length: float
    """Slices from its centre to either end."""


# Writing


def write(folder: Path, subjects: tuple[int, int, int] = (80, 20, 20)) -> Iterator[Path]:
    """Write the stand-in to `folder`, one volume (for training also its slices) for each path that is yielded.

    `subjects` counts the volumes of training, validation and testing. What a run that was cut off has written is
    kept, and a complete set yields nothing. The checks are made at once, before the first path is asked for: files
    that are not of this stand-in are never touched.
    """
    if len(subjects) != len(PARTS) or min(subjects) < 1:
        raise DataError(f"--subjects {subjects}: expected three counts (training validation testing), each 1 or more")
    if _is_complete(folder, subjects):
        return iter(())
    planned = _plan(folder, subjects)
    _check_only_planned(folder, planned)
    return _write_missing(folder, subjects, planned)


def _plan(folder: Path, subjects: Sequence[int]) -> list[Path]:
    """The volume files, in the order of their index: numbering goes on from one part to the next."""
    parts = [part for part, count in zip(PARTS, subjects, strict=True) for _ in range(count)]
    return [folder / part / f"Sample_{index}.h5" for index, part in enumerate(parts)]


def _is_complete(folder: Path, subjects: Sequence[int]) -> bool:
    """Whether `folder` holds this very set; a complete set of another kind is an error."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{marker}: not valid JSON ({error}); choose another folder") from error
    if found != _description(subjects):
        raise DataError(f"{folder}: holds a stand-in of other subjects or another version; choose another folder")
    return True


def _check_only_planned(folder: Path, planned: Sequence[Path]) -> None:
    """Stop at the first .h5 file which is not ours, or which would end up in another part than planned."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; choose another folder")
    volumes = set(planned)
    for path in sorted(folder.rglob("*.h5")):
        if not _is_ours(path):
            raise DataError(f"{path}: not written by the stand-in generator, left untouched; choose another folder")
        if _volume_of(path, folder) not in volumes:
            raise DataError(f"{path}: left by a stand-in of other subjects; choose another folder")


def _volume_of(path: Path, folder: Path) -> Path:
    """The volume that a slice in training_2d was cut from; a volume is its own."""
    if path.parent != folder / "training_2d":
        return path
    return folder / "training" / f"{path.stem.partition('_slice_')[0]}.h5"


def _is_ours(path: Path) -> bool:
    try:
        return npc.is_standin(path)
    except DataError:  # not HDF5 at all
        return False


def _write_missing(folder: Path, subjects: Sequence[int], planned: Sequence[Path]) -> Iterator[Path]:
    for index, path in enumerate(planned):
        if path.exists():
            continue
        drawn = draw(index)
        if path.parent.name == PARTS[0]:  # before the volume, whose presence says that the subject is complete
            _write_slices(folder / "training_2d", path.stem, drawn)
        _write_h5(path, _arrays(drawn) | {npc.SPACING: np.array(drawn.voxel_spacing, dtype=np.float32)})
        yield path
    marker = folder / MARKER
    partial = marker.with_name(f".{MARKER}.partial")
    partial.write_text(json.dumps(_description(subjects), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, marker)


def _description(subjects: Sequence[int]) -> dict[str, object]:
    return {"label": npc.STANDIN_LABEL, "version": VERSION, "subjects": dict(zip(PARTS, subjects, strict=True))}


def _arrays(volume: NpcVolume) -> dict[str, np.ndarray]:
    """The arrays of a volume by their HDF5 keys, each [D, H, W]."""
    labels = {f"label_a{rater}": mask.astype(np.uint8) for rater, mask in enumerate(volume.labels, start=1)}
    return dict(zip(npc.CHANNELS, volume.images, strict=True)) | labels


def _write_slices(folder: Path, name: str, volume: NpcVolume) -> None:
    arrays = _arrays(volume)
    for index in range(volume.images.shape[1]):
        _write_h5(folder / f"{name}_slice_{index}.h5", {key: array[index] for key, array in arrays.items()})


def _write_h5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one file whole or not at all; without times in it, the same arrays make the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with h5py.File(partial, "w") as file:
            file.attrs[npc.STANDIN] = NOTE
            for key, array in arrays.items():
                compression = "gzip" if array.ndim > 1 else None
                file.create_dataset(key, data=array, compression=compression, track_times=False)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# Drawing


def draw(index: int) -> NpcVolume:
    """The volume of this index: computed in float64, and cast to float32 at the very end."""
    rng = np.random.default_rng([SEED, index])
    shape = (int(np.clip(rng.normal(24.3, 4.2), 14, 31)), int(rng.integers(124, 165)), int(rng.integers(150, 200)))
    spacing_z, spacing_in_plane = rng.uniform(3.5, 5.0), rng.uniform(0.85, 1.1)

    anatomy = _draw_anatomy(rng, shape)
    tumour = _draw_tumour(rng, shape)
    images = [_draw_image(rng, CONTRASTS[channel], anatomy, tumour) for channel in npc.CHANNELS]
    labels = [_draw_outline(rng, expert, anatomy, tumour) for expert in EXPERTS]

    z, y, x = np.array([spacing_z, spacing_in_plane, spacing_in_plane], dtype=np.float32).tolist()
    return NpcVolume(np.stack(images).astype(np.float32), np.stack(labels), (z, y, x), standin=True)


def _draw_anatomy(rng: np.random.Generator, shape: tuple[int, int, int]) -> Anatomy:
    depth, height, width = shape
    z, y, x = np.ogrid[:depth, :height, :width]
    level = (z - depth / 2) / (depth / 2)  # -1 at the lowest slice, towards 1 at the highest
    middle = width * 0.5

    # Radius squared in an ellipse that fills the picture: 1 is the skin.
    head = ((y - height * 0.52) / (height * 0.46)) ** 2 + ((x - middle) / (width * 0.44)) ** 2
    body = head < 1 + 0.03 * _smooth_noise(rng, shape, (3, 14, 14))
    texture = _smooth_noise(rng, shape, (2, 9, 9))
    muscle = gaussian_filter((np.abs(texture) < 0.5).astype(float), (0, 1, 1))

    airway = ((y - height * 0.40) / (6 + 3 * level)) ** 2 + ((x - middle) / (9 + 4 * np.abs(level))) ** 2
    air = airway + 0.2 * _smooth_noise(rng, shape, (2, 4, 4)) < 1
    bone = ((y - height * 0.68) / 13) ** 2 + ((x - middle) / 17) ** 2 < 1
    brain = body & (level > 0.45) & (y > height * 0.5) & (head < 0.7)
    return Anatomy(body, body & (head > 0.84), air, bone, brain, muscle, texture)


def _draw_tumour(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tumour:
    """A blob behind and to one side of the airway, on some of the slices."""
    depth, height, width = shape
    z, y, x = np.ogrid[:depth, :height, :width]
    side = rng.choice([-1, 1])
    centre = (
        depth * rng.uniform(0.38, 0.58),
        height * 0.47 + rng.normal(0, 3),
        width * 0.5 + side * rng.uniform(0, 13),
    )
    radius = (depth * rng.uniform(0.17, 0.27), rng.uniform(8, 15), rng.uniform(10, 19))

    ellipsoid = ((z - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
    ellipsoid = ellipsoid + ((x - centre[2]) / radius[2]) ** 2
    lobes = 2.6 * _smooth_noise(rng, shape, (1.2, 5, 5))
    return Tumour((1 - np.sqrt(ellipsoid)) * radius[1] + lobes, centre[0], radius[0])


def _draw_image(rng: np.random.Generator, contrast: Contrast, anatomy: Anatomy, tumour: Tumour) -> np.ndarray:
    """[D, H, W] float64, zero mean and unit variance: tissues, blurred, under a receive field and Rician noise."""
    shape = tumour.depth.shape
    share = anatomy.body * ~anatomy.air / (1 + np.exp(-tumour.depth / 1.6))  # tumour in the voxel; a soft edge
    tumour_signal = contrast.tumour + 0.07 * _smooth_noise(rng, shape, (0.8, 2, 2))

    image = _healthy(contrast, anatomy) * (1 - share) + tumour_signal * share
    image = gaussian_filter(image, (0.25, 0.8, 0.8))
    image = image * np.exp(0.14 * _smooth_noise(rng, shape, (9, 38, 38)))
    real, imaginary = image + NOISE * rng.standard_normal(shape), NOISE * rng.standard_normal(shape)
    magnitude = np.hypot(real, imaginary)
    return (magnitude - magnitude.mean()) / magnitude.std()


def _healthy(contrast: Contrast, anatomy: Anatomy) -> np.ndarray:
    """[D, H, W] signal without the tumour. The order matters: the later tissue lies over the earlier."""
    soft = contrast.muscle * (0.75 + 0.35 * anatomy.muscle) + 0.05 * anatomy.texture
    image = np.where(anatomy.body, soft, OUTSIDE_SIGNAL)
    image = np.where(anatomy.fat, contrast.fat, image)
    image = np.where(anatomy.bone, contrast.bone + 0.1 * np.abs(anatomy.texture), image)
    image = np.where(anatomy.brain, contrast.brain + 0.06 * anatomy.texture, image)
    return np.where(anatomy.air, AIR_SIGNAL, image)


def _draw_outline(rng: np.random.Generator, expert: Expert, anatomy: Anatomy, tumour: Tumour) -> np.ndarray:
    """[D, H, W] bool: the tumour as this expert sees it today."""
    wobble = expert.wobble * _smooth_noise(rng, tumour.depth.shape, (1.3, 6, 6))
    margin = expert.margin + expert.mood * rng.normal()
    reach = expert.reach + 0.6 * rng.normal()

    z = np.arange(len(tumour.depth)).reshape(-1, 1, 1)
    beyond = np.maximum(0, np.abs(z - tumour.centre) - tumour.half_length - reach)  # slices
    inside = tumour.depth + wobble + margin - END_STEEPNESS * beyond > 0
    return inside & anatomy.body & ~anatomy.air


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: tuple[float, ...]) -> np.ndarray:
    """Gaussian noise of this correlation length (voxels, by axis) and unit variance.

    What is smooth is drawn on a coarser grid and stretched, which makes the receive field three times as quick.
    """
    step = [max(1, int(length / 2.5)) for length in scale]
    coarse_shape = [int(np.ceil(size / each)) + 2 for size, each in zip(shape, step, strict=True)]
    coarse = rng.standard_normal(coarse_shape)
    noise = gaussian_filter(coarse, [length / each for length, each in zip(scale, step, strict=True)])
    if max(step) > 1:
        noise = zoom(noise, step, order=1)
    noise = np.asarray(noise)[tuple(slice(size) for size in shape)]
    return noise / noise.std()
