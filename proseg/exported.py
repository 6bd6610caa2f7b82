"""An exported model: a folder that needs nothing but this package, and loading it executes nothing from the folder."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from proseg.checkpoint import load_checkpoint
from proseg.config import TrainConfig
from proseg.data.batches import normalise
from proseg.data.frame import zoom_linear
from proseg.errors import CheckpointError, ConfigError, DataError
from proseg.generate import at_once, decode, nested_draws, split_variance
from proseg.latents import Lattice
from proseg.method import Method
from proseg.records import DATA, WEIGHTS
from proseg.tiles import field_of, tiled
from proseg.train import model_of
from proseg.unet import fewest_pixels

DRAWS = 64
"""Segmentations that an uncertainty is estimated from, if nothing else is said."""
DRAWS_A_PREFERENCE = 4
DECODED_ROWS = 2**16
"""Pixels that the rows have whose maps are made together."""


@dataclass(frozen=True)
class Segmentation:
    """What the model says of one image; probabilities in [0, 1].

    With more than one class of foreground every array has an axis K before H: [R, K, H, W].
    """

    raters: np.ndarray
    """[R, H, W], the map made for each rater."""
    mean: np.ndarray
    """[H, W], the mean over the raters."""
    samples: np.ndarray
    """[S, H, W], what any rater might draw (the paper's "prior" samples)."""


@dataclass(frozen=True)
class UncertaintyMaps:
    """Variance of the probability in every pixel of one image, each [H, W] (several classes: [K, H, W])."""

    from_z: np.ndarray
    """What the scan leaves open: the variance over z."""
    from_tau: np.ndarray
    """What raters see differently: the variance over preferences."""


@dataclass(frozen=True)
class Asked:
    """What is to be said of an image."""

    samples: int = 16
    """Draws of what any rater might say."""
    seed: int = 0
    draws: int = DRAWS
    """Segmentations that the uncertainty is estimated from: for a fourth as many preferences, four draws of z each. 0:
    no uncertainty."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DataError(f"samples = {self.samples} must be at least 1")
        if self.draws and (self.draws < 2 * DRAWS_A_PREFERENCE or self.draws % DRAWS_A_PREFERENCE):
            raise DataError(
                f"draws = {self.draws} must be a multiple of {DRAWS_A_PREFERENCE} and at least "
                f"{2 * DRAWS_A_PREFERENCE}: of each preference there are {DRAWS_A_PREFERENCE}"
            )


class ExportedModel:
    """A trained model and what it must be given."""

    def __init__(self, model: Method, config: TrainConfig, data: dict[str, Any]):
        self.model, self.config, self.data = model.eval(), config, data
        self.field = field_of(data, config.data.crop)
        """What it knows how to look at; None where `data` do not say."""

    def predict(self, image: np.ndarray, *, samples: int = 16, seed: int = 0) -> Segmentation:
        """Segment one image.

        An image larger than those of the training is looked at in overlapping tiles, and where the training images had
        been zoomed, so is it (`proseg.tiles`): the maps are those that `proseg.predict` writes for a file of it.

        Args:
            image: [H, W] or [C, H, W], in the intensities of the data it was trained on (`data["window"]` is applied
                here: Hounsfield units for LIDC; already normalised where there is no window).
            samples: number of draws, at least one.
            seed: the same seed gives the same draws.

        Raises:
            DataError: the image has another number of channels, no pixels, too few of them, or values that are not
                finite.
        """
        found = self._whole(image, Asked(samples, seed, draws=0))
        return Segmentation(found[: -samples - 1], found[-1], found[-samples - 1 : -1])

    def uncertainty(self, image: np.ndarray, *, seed: int = 0, draws: int = DRAWS) -> UncertaintyMaps:
        """Where the model is unsure of one image, and why (`proseg.generate.uncertainty`), from `draws` segmentations
        (`Asked.draws`). Other arguments as `predict`."""
        return UncertaintyMaps(*self._whole(image, Asked(1, seed, draws))[-2:])

    def bands(self, image: np.ndarray, asked: Asked) -> Iterator[tuple[int, np.ndarray]]:
        """The maps of an image [C, H, W], from the top down, in bands of rows.

        Yields:
            The first row of a band, and its maps [N, K, rows, W] float32: of each rater, of the samples, the raters'
            mean, and where draws are asked for, the variance over z and that over tau.
        """
        size = image.shape[-2:]
        if self.field is None or self.field.zoom is None or size == self.field.whole:
            yield from self._bands(image, asked, size if self.field is None else self.field.tile)
            return
        zoomed = [maps for _, maps in self._bands(self.field.zoomed(image), asked, self.field.tile)]
        yield 0, zoom_linear(np.concatenate(zoomed, -2), *size)

    @torch.no_grad()
    def _bands(self, image: np.ndarray, asked: Asked, tile: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """As `bands`, of an image that is as large as the model is to see it."""
        cell, reach, (height, width) = self.config.model.patch, self.model.reach, image.shape[-2:]
        pixels = normalise(torch.from_numpy(image.copy()), self.data["window"]).to(self.model.device)
        padded = F.pad(pixels, (0, -width % cell, 0, -height % cell), mode="replicate")
        down, across = (min(n // cell, -(-m // cell)) for n, m in zip(padded.shape[1:], tile, strict=True))
        held, first, done = padded.new_empty(0), 0, 0  # features, the first row of them, and that which has no maps yet
        for top, band in tiled(self._features, padded, tile, cell):
            held = torch.cat([held, band], -2) if top else band
            end = first + held.shape[-2]
            last = end * cell >= height
            ready = end if last else end - reach
            if not last and (ready - done) * cell * width < DECODED_ROWS:
                continue
            size = torch.Size((min(end * cell, height) - first * cell, width))
            maps = self._decoded(held[None], size, Lattice((down, across), range(first, end)), asked)
            yield done * cell, maps[..., (done - first) * cell : (ready - first) * cell, :]
            above = max(first, ready - reach)
            held, first, done = held[..., above - first :, :], above, ready

    def _features(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.model.features(part) for part in tiles.split(at_once(tiles.shape[-2:]))])

    def _decoded(self, features: torch.Tensor, size: torch.Size, lattice: Lattice, asked: Asked) -> np.ndarray:
        """All maps of rows of an image, `size` pixels."""
        m, encoding = self.model, self.model.encoding(features, size)
        wanted = [m.each_rater(), m.prior(1, asked.samples, torch.Generator().manual_seed(asked.seed))]
        if asked.draws:
            preferences, generator = asked.draws // DRAWS_A_PREFERENCE, torch.Generator().manual_seed(asked.seed)
            wanted.append(nested_draws(m, 1, generator, preferences, DRAWS_A_PREFERENCE))
        found = [features.new_empty(1, draws.who.shape[1], m.classes, *size) for draws in wanted]
        for draws, out in zip(wanted, found, strict=True):
            decode(m, encoding, replace(draws, lattice=lattice), out)
        raters, samples, *spread = found
        maps = [raters[0], samples[0], raters.mean(1)]
        if spread:
            unsure = split_variance(spread[0], DRAWS_A_PREFERENCE)
            maps += [unsure.from_z, unsure.from_tau]
        return torch.cat(maps).cpu().numpy()

    def _whole(self, image: np.ndarray, asked: Asked) -> np.ndarray:
        """[C, H, W] -> [N, H, W], with more than one class [N, K, H, W]"""
        found = np.concatenate([maps for _, maps in self.bands(self._checked(image), asked)], -2)
        return found[:, 0] if self.model.classes == 1 else found

    def check_size(self, height: int, width: int, where: object) -> None:
        """Raises DataError, naming `where`, if an image has fewer pixels than the network takes."""
        least = fewest_pixels(self.config.model)
        if max(height, width) < least and (self.field is None or self.field.zoom is None):
            raise DataError(
                f"{where}: has {height} x {width} pixels, which are too few for this model: the longer side must have "
                f"at least {least}"
            )

    def _checked(self, image: np.ndarray) -> np.ndarray:
        """[C, H, W] float32"""
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or len(pixels) != self.model.channels:
            raise DataError(
                f"the image has shape {np.shape(image)}; the model takes {self.model.channels} channel(s), "
                "[H, W] or [C, H, W]"
            )
        if not pixels.size:
            raise DataError(f"the image has no pixels: its shape is {np.shape(image)}")
        if not np.isfinite(pixels).all():
            raise DataError("the image holds values that are not finite")
        self.check_size(pixels.shape[1], pixels.shape[2], "the image")
        return pixels


def labels(probabilities: np.ndarray) -> np.ndarray:
    """The likeliest class of every pixel, as `proseg.generate.binarise`; background where none is likelier.
    [..., K, H, W] -> [..., H, W] uint8"""
    if probabilities.shape[-3] == 1:
        return (probabilities[..., 0, :, :] > 0.5).astype(np.uint8)
    background = 1 - probabilities.sum(-3, keepdims=True)
    return np.concatenate([background, probabilities], -3).argmax(-3).astype(np.uint8)


def load(folder: str | Path, *, device: str = "cpu") -> ExportedModel:
    """Load an exported model.

    Args:
        device: cpu, cuda, cuda:1 ..., or auto: a GPU where there is one. Noise is always drawn on the CPU, so that a
            seed means the same draws everywhere.

    Raises:
        CheckpointError: the folder is not a whole export.
        ConfigError: there is no such device here.
    """
    place = device_named(device)
    folder = Path(folder).expanduser()
    checkpoint = load_checkpoint(folder / WEIGHTS)
    try:
        data = json.loads((folder / DATA).read_text(encoding="utf-8"))
        if data["window"] is not None:
            low, high = map(float, data["window"])
            data["window"] = (low, high)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / DATA} cannot be read: {error}") from None
    return ExportedModel(model_of(checkpoint).to(place), checkpoint.config, data)


def device_named(name: str) -> torch.device:
    """The device that a user means; raises ConfigError where there is none of this name here."""
    there = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if there else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ConfigError(f"the device {name!r} is not known; there are auto, cpu, cuda and cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not there:
        raise ConfigError(f"the device {name} is not there: torch finds no GPU that it can use; choose cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"the device {name} is not there: the last one is cuda:{torch.cuda.device_count() - 1}")
    return device
