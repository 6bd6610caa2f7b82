"""Image files in, masks and maps out: an exported model segments them, in the geometry of each file.

What a model is given is what its training data were made of: intensities as they are where the data have a window, each
channel of each file brought to zero mean and unit variance where they have none; volumes slice by slice, turned as
they were for training (`proseg.data.images.orientation`).

An image larger than those of the training is cut into overlapping tiles of their size, or zoomed to it where they had
been (`proseg.tiles` says why). A model of crops about lesions sees one in every tile: it may be given a point, about
which one crop is segmented. In all tiles and slices a sample has the same preference and the same noise: it is one
expert's reading of the whole image, and does not flicker from slice to slice.

In memory are the image, once as it is read and once as float32, the features of one slice's rows of tiles, the maps of
a band of its rows, and one map while it is written; all masks and maps grow in files.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proseg import sizes
from proseg.data.images.channels import with_depth
from proseg.data.images.dicom_series import Series
from proseg.data.images.picture import Header, Picture
from proseg.data.intensities import as_float32, clipped, standardised
from proseg.data.reading import Track, silent
from proseg.errors import CheckpointError, DataError
from proseg.exported import DRAWS, Asked, ExportedModel, labels
from proseg.records import whole_folder
from proseg.scans import Scan, Target, find
from proseg.tiles import Crop, Field, crop_about

RECORD = "prediction.json"
MOST_DRAWN = 1024
"""Pixels of an overlay along its longer side, about; of larger images each second, third ... is shown."""
MEAN, SCAN, RATERS = "mean", "uncertainty_scan", "uncertainty_raters"
"""The maps, beside the masks."""
TITLES = {MEAN: "mean of the experts", SCAN: "variance: the scan", RATERS: "variance: the raters"}
DEEPEST = "int16"
"""Type of the training data whose images were clipped to it, and so are those that are segmented."""


@dataclass(frozen=True)
class Task:
    """A model, and what is asked of it."""

    model: ExportedModel
    asked: Asked
    field: Field
    """What it was trained to look at."""
    experts: Mapping[str, str]
    """By the name of a file: what the expert is called."""

    @property
    def classes(self) -> int:
        return self.model.model.classes

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the files: of the experts, then of the samples."""
        digits = len(str(self.asked.samples))
        return (*self.experts, *(f"sample_{number:0{digits}}" for number in range(1, self.asked.samples + 1)))

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the files of the maps."""
        return tuple(TITLES) if self.asked.draws else (MEAN,)


@dataclass(frozen=True, eq=False)
class Found:
    """What a model said of one image; files that are mapped into memory."""

    masks: np.ndarray
    """[experts + samples, D, H, W] uint8 labels."""
    maps: np.ndarray
    """[maps, K, D, H, W] float32."""


def predict(
    model: ExportedModel, inputs: Sequence[str | Path], out: Path, *, samples: int = 16, seed: int = 0,
    draws: int = DRAWS, at: str | None = None, series: Sequence[str] = (), axes: str | None = None, force: bool = False,
    origin: str = "", track: Track = silent,
) -> dict[str, Any]:  # fmt: skip
    """Segment images into a folder, whole or not at all.

    For each image the folder `out` gets one of its name with a mask of each expert, of each sample, the mean of the
    experts' maps, overlay.png, and unless `draws` is 0 the variance of what anyone might draw in its two parts
    (`proseg.generate.uncertainty`).

    Args:
        inputs: files that `proseg.data.images` reads, folders or files of a DICOM series, several of these (one a
            channel, in the model's order) joined by commas, or tables of them (`proseg.scans`).
        samples: draws of what any expert might say, at least one.
        seed: the same seed gives the same files.
        draws: segmentations that the uncertainty is estimated from (`proseg.exported.Asked`); 0: no uncertainty.
        at: a point of the one image, as `proseg.scans.POINT` says: only a crop about it is segmented, and the rest is
            left empty.
        series: UIDs that say which series is meant in DICOM folders with several.
        axes: what the axes of arrays and TIFF pages are (`proseg.data.images.look`), where they do not say.
        force: replace an earlier prediction in `out`.
        origin: where the model comes from, for the record.
        track: shows the progress, by slices of all images.

    Returns:
        What prediction.json holds: areas in pixels and mm2, volumes in ml, of each mask a list with an entry a class.

    Raises:
        CheckpointError: the model does not say what it was trained on.
        DataError: naming the input that cannot be segmented, or why `out` cannot be written.
    """
    task = _task(model, Asked(samples, seed, draws))
    scans = find(inputs, model.data.get("channel_names") or (), series=series, at=at, axes=axes)
    names = _names(scans)
    headers = [scan.look() for scan in scans]
    for scan, header in zip(scans, headers, strict=True):
        _check_channels(scan, header.channels, model)
        _check_point(scan, task)
        if scan.point is None:  # the crop about a point has the size of the training images
            model.check_size(header.height, header.width, scan)
    _check_out(out, scans, force)
    record: dict[str, Any] = {
        "model": origin, "data": {key: model.data.get(key) for key in ("name", "label", "fingerprint", "framing")},
        "device": str(model.model.device), "samples": samples, "seed": seed, "uncertainty_draws": draws,
        "tile": list(task.field.tile), "experts": dict(task.experts), "inputs": [],
    }  # fmt: skip
    total = sum(
        scan.point.slices if scan.point else header.depth or 1 for scan, header in zip(scans, headers, strict=True)
    )
    out = out.resolve()
    try:
        with whole_folder(out) as folder:
            images = zip(names.items(), headers, strict=True)
            slices = (
                number
                for (name, scan), header in images
                for number in _segment(task, scan, header, folder / name, record["inputs"])
            )
            for _ in track(slices, total, "Segmenting slices"):
                pass
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror or error}") from None
    except torch.OutOfMemoryError:
        raise DataError(f"{model.model.device} has too little memory for this model; choose another device") from None
    return record


# Before anything is computed


def _task(model: ExportedModel, asked: Asked) -> Task:
    if model.field is None:
        raise CheckpointError("the model does not say what size its training images had; export it again")
    return Task(model, asked, model.field, _experts(model))


def _experts(model: ExportedModel) -> dict[str, str]:
    """Names of files, and what the raters are called: A1, A2 ... where they are nobody in particular."""
    named = model.data.get("rater_names") or [f"A{number + 1}" for number in range(model.model.raters)]
    return {f"expert_{number}_{re.sub(r'[^A-Za-z0-9-]+', '-', name)}": name for number, name in enumerate(named, 1)}


def _names(scans: Sequence[Scan]) -> dict[str, Scan]:
    """Of the images' folders; also on a disk that takes a.png and A.png for one."""
    names: dict[str, Scan] = {}
    for scan in scans:
        name = scan.paths[0].name if scan.name in ("", ".", "..", RECORD) else scan.name
        other = next((names[one] for one in names if one.casefold() == name.casefold()), None)
        if other is not None:
            raise DataError(
                f"{other} and {scan} would both be written to a folder {name}; predict them one by one, or give them "
                "names in a table with the columns image and name"
            )
        names[name] = scan
    return names


def _check_channels(scan: Scan, channels: int, model: ExportedModel) -> None:
    wanted = model.model.channels
    if channels != wanted:
        named = model.data.get("channel_names") or ()
        which = f" ({', '.join(named)})" if named else ""
        how = ", in one file, or in a file each, joined by commas" if wanted > 1 else ""
        raise DataError(f"{scan}: has {channels} channel(s); the model takes {wanted}{which}{how}")


def _check_point(scan: Scan, task: Task) -> None:
    if scan.point is not None and task.field.zoom is not None:
        raise DataError(
            f"{scan}: a crop about {scan.point} is asked for, but the model was trained on images that had been zoomed "
            "as a whole; segment it without a point"
        )


def _check_out(out: Path, scans: Sequence[Scan], force: bool) -> None:
    """An empty folder may be there; what else is there goes only if it is a prediction, and is asked for."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise DataError(f"--out {out} exists; choose another folder, or add --force to replace it")
    if not out.is_dir() or {path.name for path in out.iterdir()} - _ours(out):
        raise DataError(f"--out {out} holds files that are no prediction of this program; --force replaces those only")
    paths = [path for scan in scans for path in scan.paths]
    within = [path for path in paths if out.resolve() in (path.resolve(), *path.resolve().parents)]
    if within:
        raise DataError(f"{within[0]}: lies in --out {out}, which --force would delete; choose another folder")


def _ours(out: Path) -> set[str]:
    """What an earlier prediction wrote into its folder; nothing where there is no record of one."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        return {RECORD, *(one["name"] for one in record["inputs"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set()


# One image


@dataclass(frozen=True, eq=False)
class Sight:
    """What of an image is looked at: all of it, or a crop about a point."""

    slices: range
    crop: Crop | None = None
    fill: np.ndarray | float = 0.0
    """[C, 1, 1], intensities of what lies beyond the image."""


def _segment(task: Task, scan: Scan, header: Header, folder: Path, records: list[dict[str, Any]]) -> Iterator[int]:
    """Write all that is found in one image, and append its part of the record. Yields each slice that is done."""
    picture = scan.read()
    _check_channels(scan, len(picture.pixels), task.model)
    target = None if scan.point is None else scan.point.within(picture, str(scan))
    folder.mkdir()
    work = folder / ".maps"
    work.mkdir()
    pixels, beyond = _intensities(scan, picture, task.model.data)
    sight = _sight(task, pixels, target)
    found = _new(task, pixels.shape[1:], work)
    for number in sight.slices:
        _fill(task, pixels[:, number], found, number, sight)
        yield number
    for name, mask in zip(task.masks, found.masks, strict=True):
        scan.write_like(folder / name, _as_read(mask[None], picture), classes=task.classes)
    for name, maps in zip(task.maps, found.maps, strict=True):
        scan.write_like(folder / name, _as_read(maps, picture))
    counts = _counts(task, found)
    _draw(task, scan, picture, found, sight, folder)
    records.append({
        "name": folder.name, **_origin(task, scan), **_measures(task, picture, counts), **_seen(scan, sight),
        "clipped": beyond, "notes": list(header.notes),
    })  # fmt: skip
    del found, pixels
    shutil.rmtree(work)


def _intensities(scan: Scan, picture: Picture, data: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """[C, D, H, W] float32, as the model takes them, and how many pixels were clipped as those of the training were."""
    pixels, beyond = with_depth(picture.pixels), 0
    if pixels.dtype.kind in "iu" and data.get("dtype") == DEEPEST:
        pixels, beyond = clipped(pixels)
    image = as_float32(pixels, scan)
    return standardised(image) if data["window"] is None else image, beyond


def _sight(task: Task, pixels: np.ndarray, target: Target | None) -> Sight:
    if target is None:
        return Sight(range(pixels.shape[1]))
    crop = crop_about(target.row, target.column, task.field.tile)
    return Sight(target.slices, crop, pixels.min((1, 2, 3))[:, None, None])


def _new(task: Task, shape: tuple[int, ...], work: Path) -> Found:
    """To be filled, for slices of a shape [D, H, W]."""
    masks, maps = (len(task.masks), *shape), (len(task.maps), task.classes, *shape)
    return Found(_mapped(work / "masks.npy", np.uint8, masks), _mapped(work / "maps.npy", np.float32, maps))


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("r+b") as file:  # a full disk must say so now: to write into a hole of a file would kill us
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _fill(task: Task, image: np.ndarray, found: Found, number: int, sight: Sight) -> None:
    """One slice, [C, H, W]."""
    crop, drawn = sight.crop or Crop(0, 0, *image.shape[1:]), len(task.masks)
    for top, maps in task.model.bands(crop.of(image, sight.fill), task.asked):
        band = replace(crop, top=crop.top + top, height=maps.shape[-2])
        band.onto(found.masks[:, number], labels(maps[:drawn]))
        band.onto(found.maps[:, :, number], maps[drawn:])


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


def _origin(task: Task, scan: Scan) -> dict[str, Any]:
    """Where the image comes from."""
    channels = task.model.data.get("channel_names") or range(1, len(scan.pieces) + 1)
    record: dict[str, Any] = {"file": str(scan)}
    if len(scan.pieces) > 1:
        record["channels"] = {str(name): str(path) for name, path in zip(channels, scan.paths, strict=True)}
    series = [piece.uid for piece in scan.pieces if isinstance(piece, Series)]
    return record | ({"series": series} if series else {})


def _seen(scan: Scan, sight: Sight) -> dict[str, Any]:
    """What of it was looked at, where that is not all."""
    if sight.crop is None:
        return {"at": None}
    return {"at": {"point": str(scan.point), "crop": [sight.crop.height, sight.crop.width],
                   "slices": len(sight.slices)}}  # fmt: skip


def _measures(task: Task, picture: Picture, counts: np.ndarray) -> dict[str, Any]:
    each = [[sizes.measure(picture, one) for one in mask] for mask in counts]
    experts, samples = each[: len(task.experts)], each[len(task.experts) : -1]
    return {
        "shape": list(picture.pixels.shape[1:]), "spacing_mm": sizes.spacing(picture),
        "tiled": task.field.smaller_than(picture.pixels.shape[-2:]),
        "experts": dict(zip(task.experts, experts, strict=True)), "mean": each[-1],
        "samples_mean": [sizes.over([sample[k] for sample in samples], np.mean) for k in range(task.classes)],
        "samples_std": [sizes.over([sample[k] for sample in samples], np.std) for k in range(task.classes)],
    }  # fmt: skip


def _draw(task: Task, scan: Scan, picture: Picture, found: Found, sight: Sight, folder: Path) -> None:
    """Of a crop, what was looked at."""
    from proseg.figures import save
    from proseg.overlay import View, overlay

    experts, file = len(task.experts), scan.paths[0].name or scan.name
    views = []
    height, width = picture.pixels.shape[-2:]
    seen = (sight.crop or Crop(0, 0, height, width)).seen((height, width))
    for number in _shown(np.count_nonzero(found.masks[:experts], (0, 2, 3)), sight):
        pixels = with_depth(picture.pixels)[:, number]
        # Three channels of 8 bits are taken for colours; of several others the first is shown.
        image = np.moveaxis(pixels, 0, -1) if len(pixels) == 3 and pixels.dtype == np.uint8 else pixels[0]
        name = file if picture.kind == "slice" else f"slice {number + 1} of {found.masks.shape[1]}"
        name += "" if scan.point is None else f" about {scan.point}"
        # The classes together: of the mean, any; of the variances, all.
        maps = {TITLES[name]: one[:, number].sum(0)[seen] for name, one in zip(task.maps, found.maps, strict=True)}
        masks = found.masks[:experts, number]
        # A figure needs many times the memory of what it shows, and has no room for more.
        step = math.ceil(max(image[seen[1:]].shape[:2]) / MOST_DRAWN)
        maps = {title: one[::step, ::step] for title, one in maps.items()}
        few = image[seen[1:]][::step, ::step], masks[seen][:, ::step, ::step]
        views.append(View(name, *few, maps, _aspect(picture)))
    data = task.model.data
    title = f"{scan.name}: model of {data.get('name')} ({data.get('label')}). Not a medical device."
    save(overlay(views, list(task.experts.values()), window=data["window"], title=title), folder / "overlay.png")


def _aspect(picture: Picture) -> float:
    """Height of a pixel in its widths."""
    ratio = 1.0 if picture.spacing is None else picture.spacing[1] / picture.spacing[2]
    return ratio if ratio > 0 else 1.0  # not known along an axis: NaN


def _shown(areas: np.ndarray, sight: Sight) -> list[int]:
    """The middle slice of those that were looked at, and that in which the experts see most."""
    middle = sight.slices[len(sight.slices) // 2]
    return sorted({middle, int(areas.argmax())} if areas.any() else {middle})
