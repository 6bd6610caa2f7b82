"""Image files in, masks and maps out: an exported model segments them, in the geometry of each file.

What a model is given is what its training data were made of: intensities as they are where the data have a window, each
channel of each file brought to zero mean and unit variance where they have none; volumes slice by slice, turned as
they were for training (`proseg.data.formats.orientation`). Nothing is resampled: where the training images had been
zoomed, so must these be.

An image larger than those of the training is cut into overlapping tiles of their size (`proseg.tiles` says why). In all
tiles and slices a sample has the same preference and the same noise: it is one expert's reading of the whole image, and
does not flicker from slice to slice.

In memory are the image, once as it is read and once as float32, the rows of one band of tiles, and one map while it is
written; all masks and maps grow in files.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from proseg.data import images
from proseg.data.formats.picture import Picture
from proseg.data.own import standardised
from proseg.data.reading import Track, silent
from proseg.errors import CheckpointError, DataError
from proseg.exported import ExportedModel, labels
from proseg.records import whole_folder
from proseg.tiles import tiled

RECORD = "prediction.json"
MEAN, SCAN, RATERS = "mean", "uncertainty_scan", "uncertainty_raters"
"""The maps, beside the masks."""
TITLES = {MEAN: "mean of the experts", SCAN: "variance: the scan", RATERS: "variance: the raters"}
MM3_A_ML = 1000


@dataclass(frozen=True)
class Task:
    """A model, and what is asked of it."""

    model: ExportedModel
    samples: int
    seed: int
    tile: tuple[int, int]
    """(height, width) of its training images."""
    experts: Mapping[str, str]
    """By the name of a file: what the expert is called."""

    @property
    def classes(self) -> int:
        return self.model.model.classes

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the files: of the experts, then of the samples."""
        digits = len(str(self.samples))
        return (*self.experts, *(f"sample_{number:0{digits}}" for number in range(1, self.samples + 1)))


@dataclass(frozen=True, eq=False)
class Found:
    """What a model said of one image; files that are mapped into memory."""

    masks: np.ndarray
    """[experts + samples, D, H, W] uint8 labels."""
    maps: np.ndarray
    """[MEAN and SCAN and RATERS, K, D, H, W] float32."""


def predict(
    model: ExportedModel, inputs: Sequence[Path], out: Path, *, samples: int = 16, seed: int = 0, force: bool = False,
    origin: str = "", track: Track = silent,
) -> dict[str, Any]:  # fmt: skip
    """Segment image files into a folder, whole or not at all.

    For each input the folder `out` gets one of its name with a mask of each expert, of each sample, the mean of the
    experts' maps, the variance of what anyone might draw in its two parts (`proseg.generate.uncertainty`), and
    overlay.png.

    Args:
        inputs: files that `proseg.data.images` reads; all channels in one file.
        samples: draws of what any expert might say, at least one.
        seed: the same seed gives the same files.
        force: replace an earlier prediction in `out`.
        origin: where the model comes from, for the record.
        track: shows the progress, by slices.

    Returns:
        What prediction.json holds: areas in pixels and mm2, volumes in ml, of each mask a list with an entry a class.

    Raises:
        CheckpointError: the model does not say what it was trained on.
        DataError: naming the input that cannot be segmented, or why `out` cannot be written.
    """
    task = _task(model, samples, seed)
    names = _names(inputs)
    for path in inputs:
        _check_channels(path, images.look(path).channels, model)
    _check_out(out, inputs, force)
    record: dict[str, Any] = {
        "model": origin, "data": {key: model.data.get(key) for key in ("name", "label", "fingerprint")},
        "samples": samples, "seed": seed, "tile": list(task.tile), "experts": dict(task.experts), "inputs": [],
    }  # fmt: skip
    out = out.resolve()
    try:
        with whole_folder(out) as folder:
            for name, path in names.items():
                record["inputs"].append(_segment(task, path, folder / name, track))
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror or error}") from None
    return record


# Before anything is computed


def _task(model: ExportedModel, samples: int, seed: int) -> Task:
    if samples < 1:
        raise DataError(f"samples = {samples} must be at least 1")
    try:
        height, width = int(model.data["height"]), int(model.data["width"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError("the model does not say what size its training images had; export it again") from None
    crop = model.config.data.crop or max(height, width)
    return Task(model, samples, seed, (min(height, crop), min(width, crop)), _experts(model))


def _experts(model: ExportedModel) -> dict[str, str]:
    """Names of files, and what the raters are called: A1, A2 ... where they are nobody in particular."""
    named = model.data.get("rater_names") or [f"A{number + 1}" for number in range(model.model.raters)]
    return {f"expert_{number}_{re.sub(r'[^A-Za-z0-9-]+', '-', name)}": name for number, name in enumerate(named, 1)}


def _names(inputs: Sequence[Path]) -> dict[str, Path]:
    """Of the inputs' folders; also on a disk that takes a.png and A.png for one."""
    names: dict[str, Path] = {}
    for path in inputs:
        name = images.stem(path.name)
        name = path.name if name in ("", ".", "..", RECORD) else name
        other = next((names[one] for one in names if one.casefold() == name.casefold()), None)
        if other is not None:
            raise DataError(f"{other} and {path} would both be written to a folder {name}; predict them one by one")
        names[name] = path
    return names


def _check_channels(path: Path, channels: int, model: ExportedModel) -> None:
    wanted = model.model.channels
    if channels != wanted:
        named = model.data.get("channel_names") or ()
        which = f" ({', '.join(named)}), all in one file" if named else ""
        raise DataError(f"{path}: has {channels} channel(s); the model takes {wanted}{which}")


def _check_out(out: Path, inputs: Sequence[Path], force: bool) -> None:
    """An empty folder may be there; what else is there goes only if it is a prediction, and is asked for."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise DataError(f"--out {out} exists; choose another folder, or add --force to replace it")
    if not out.is_dir() or {path.name for path in out.iterdir()} - _ours(out):
        raise DataError(f"--out {out} holds files that are no prediction of this program; --force replaces those only")
    within = [path for path in inputs if out.resolve() in path.resolve().parents]
    if within:
        raise DataError(f"{within[0]}: lies in --out {out}, which --force would delete; choose another folder")


def _ours(out: Path) -> set[str]:
    """What an earlier prediction wrote into its folder; nothing where there is no record of one."""
    try:
        record = json.loads((out / RECORD).read_text())
        return {RECORD, *(one["name"] for one in record["inputs"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set()


# One image


def _segment(task: Task, path: Path, folder: Path, track: Track) -> dict[str, Any]:
    """Write all that is found in one image; returns its part of the record."""
    picture = images.read(path)
    _check_channels(path, len(picture.pixels), task.model)
    folder.mkdir()
    work = folder / ".maps"
    work.mkdir()
    pixels = _intensities(path, picture, task.model.data["window"])
    found = _new(task, pixels.shape[1:], work)
    for number in track(range(pixels.shape[1]), pixels.shape[1], f"Segmenting {path.name}"):
        _fill(task, pixels[:, number], found, number)
    for name, mask in zip(task.masks, found.masks, strict=True):
        images.write_like(folder / name, _as_read(mask[None], picture), path, classes=task.classes)
    for name, maps in zip(TITLES, found.maps, strict=True):
        images.write_like(folder / name, _as_read(maps, picture), path)
    counts = _counts(task, found)
    _draw(task, path, picture, found, counts, folder)
    record = _measures(task, picture, counts)
    del found, pixels
    shutil.rmtree(work)
    return {"name": folder.name, "file": str(path), **record}


def _intensities(path: Path, picture: Picture, window: tuple[float, float] | None) -> np.ndarray:
    """[C, D, H, W] float32, as the model takes them."""
    pixels = picture.pixels if picture.pixels.ndim == 4 else picture.pixels[:, None]
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which is reported below
        image = pixels.astype(np.float32)
    if not np.isfinite([image.min(), image.max()]).all():
        raise DataError(f"{path}: has intensities that are too large for 32 bits")
    return standardised(image) if window is None else image


def _new(task: Task, shape: tuple[int, ...], work: Path) -> Found:
    """To be filled, for slices of a shape [D, H, W]."""
    masks, maps = (len(task.masks), *shape), (len(TITLES), task.classes, *shape)
    return Found(_mapped(work / "masks.npy", np.uint8, masks), _mapped(work / "maps.npy", np.float32, maps))


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with path.open("r+b") as file:  # a disk that is full must say so now: to write into a hole of a file would kill us
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _fill(task: Task, image: np.ndarray, found: Found, number: int) -> None:
    """One slice, [C, H, W]."""
    for top, maps in tiled(lambda tile: _maps(task, tile), image, task.tile):
        rows, drawn = slice(top, top + maps.shape[-2]), len(task.masks)
        found.masks[:, number, rows] = labels(maps[:drawn])
        found.maps[:, :, number, rows] = maps[drawn:]


def _maps(task: Task, tile: np.ndarray) -> np.ndarray:
    """[experts + samples + 3, K, h, w], in the order of `Task.masks` and TITLES."""
    said = task.model.predict(tile, samples=task.samples, seed=task.seed)
    unsure = task.model.uncertainty(tile, seed=task.seed)
    maps = [*said.raters, *said.samples, said.mean, unsure.from_z, unsure.from_tau]
    return np.stack(maps).reshape(len(maps), -1, *tile.shape[-2:])


def _as_read(maps: np.ndarray, picture: Picture) -> np.ndarray:
    """[K, D, H, W], without the axis of the slices where the picture has none."""
    return maps if picture.pixels.ndim == 4 else maps[:, 0]


# What is said of it


def _counts(task: Task, found: Found) -> np.ndarray:
    """Pixels of every class in every slice: [experts + samples + mean, K, D]."""
    depth = found.masks.shape[1]
    counts = np.zeros((len(found.masks) + 1, task.classes, depth), np.int64)
    for number in range(depth):
        mean = labels(found.maps[0, :, number])
        for place, mask in enumerate([*found.masks[:, number], mean]):
            counts[place, :, number] = np.bincount(mask.ravel(), minlength=task.classes + 1)[1:]
    return counts


def _measures(task: Task, picture: Picture, counts: np.ndarray) -> dict[str, Any]:
    """Areas of a volume are those of the slice in which they are largest."""
    each = [[_measure(picture, one) for one in mask] for mask in counts]
    experts, samples = each[: len(task.experts)], each[len(task.experts) : -1]
    return {
        "shape": list(picture.pixels.shape[1:]), "spacing_mm": _spacing(picture), "tiled": _tiled(task, picture),
        "experts": dict(zip(task.experts, experts, strict=True)), "mean": each[-1],
        "samples_mean": [_over([sample[k] for sample in samples], np.mean) for k in range(task.classes)],
        "samples_std": [_over([sample[k] for sample in samples], np.std) for k in range(task.classes)],
    }  # fmt: skip


def _tiled(task: Task, picture: Picture) -> bool:
    height, width = picture.pixels.shape[-2:]
    return height > task.tile[0] or width > task.tile[1]


def _spacing(picture: Picture) -> list[float] | None:
    """(z, y, x), of a slice (y, x)."""
    axes = picture.pixels.ndim - 1
    return None if picture.spacing is None else list(picture.spacing[-axes:])


def _measure(picture: Picture, counts: np.ndarray) -> dict[str, float | int | None]:
    """Of one class in one mask, [D] pixels of each slice."""
    area, pixels = int(counts.max()), int(counts.sum())
    measure: dict[str, float | int | None] = {"pixels": pixels, "area_px": area, "area_mm2": None, "volume_ml": None}
    if picture.spacing is not None:
        z, y, x = picture.spacing
        measure["area_mm2"] = area * y * x
        measure["volume_ml"] = None if picture.kind == "slice" else pixels * z * y * x / MM3_A_ML
    return measure


def _over(measures: Sequence[Mapping[str, Any]], of) -> dict[str, float | None]:
    return {key: None if measures[0][key] is None else float(of([one[key] for one in measures])) for key in measures[0]}


def _draw(task: Task, path: Path, picture: Picture, found: Found, counts: np.ndarray, folder: Path) -> None:
    from proseg.figures import save
    from proseg.overlay import View, overlay

    experts = len(task.experts)
    views = []
    for number in _shown(counts[:experts].sum((0, 1))):
        channel = picture.pixels[0] if picture.pixels.ndim == 3 else picture.pixels[0, number]
        name = path.name if picture.kind == "slice" else f"slice {number + 1} of {counts.shape[-1]}"
        # The classes together: of the mean, any; of the variances, all.
        maps = {title: one[:, number].sum(0) for title, one in zip(TITLES.values(), found.maps, strict=True)}
        views.append(View(name, channel.astype(np.float32), found.masks[:experts, number], maps, _aspect(picture)))
    data = task.model.data
    title = f"{path.name}, by a model of {data.get('name')}: {data.get('label')}. Not a medical device."
    save(overlay(views, list(task.experts.values()), window=data["window"], title=title), folder / "overlay.png")


def _aspect(picture: Picture) -> float:
    """Height of a pixel in its widths."""
    return 1.0 if picture.spacing is None else picture.spacing[1] / picture.spacing[2]


def _shown(areas: np.ndarray) -> list[int]:
    """The middle slice, and that in which the experts see most."""
    return sorted({len(areas) // 2, int(areas.argmax())} if areas.any() else {len(areas) // 2})
