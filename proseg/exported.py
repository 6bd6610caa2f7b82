"""An exported model: a folder that needs nothing but this package, and loading it executes nothing from the folder."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proseg.checkpoint import load_checkpoint
from proseg.config import TrainConfig
from proseg.data.batches import normalise
from proseg.errors import CheckpointError, ConfigError, DataError
from proseg.generate import maps, uncertainty
from proseg.method import Method
from proseg.records import DATA, WEIGHTS
from proseg.tiles import MapsOf, field_of
from proseg.train import model_of


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
            DataError: the image has another number of channels, no pixels, or values that are not finite.
        """
        if samples < 1:
            raise DataError(f"samples = {samples} must be at least 1")
        found = self._looked_at(lambda tile: self.drawn(tile, samples, seed), self._checked(image))
        return Segmentation(found[: -samples - 1], found[-1], found[-samples - 1 : -1])

    def uncertainty(self, image: np.ndarray, *, seed: int = 0) -> UncertaintyMaps:
        """Where the model is unsure of one image, and why (`proseg.generate.uncertainty`). Arguments as `predict`."""
        return UncertaintyMaps(*self._looked_at(lambda tile: self.spread(tile, seed), self._checked(image)))

    def drawn(self, tile: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """The maps of each rater, of the samples, and the raters' mean, of one tile as it is.
        [C, h, w] -> [R + S + 1, K, h, w]"""
        m, generator = self.model, torch.Generator().manual_seed(seed)
        with torch.no_grad():
            raters, samples_ = maps(m, self._batch(tile), m.each_rater(), m.prior(1, samples, generator))
        return torch.cat([raters[0], samples_[0], raters[0].mean(0, keepdim=True)]).cpu().numpy()

    def spread(self, tile: np.ndarray, seed: int) -> np.ndarray:
        """The variance over z and that over tau, of one tile as it is. [C, h, w] -> [2, K, h, w]"""
        found = uncertainty(self.model, self._batch(tile), torch.Generator().manual_seed(seed))
        return torch.cat([found.from_z, found.from_tau]).cpu().numpy()

    def _looked_at(self, maps_of: MapsOf, image: np.ndarray) -> np.ndarray:
        """[C, H, W] -> [N, H, W], with more than one class [N, K, H, W]"""
        if self.field is None or self.field.holds(image):
            found = maps_of(image)
        else:
            found = np.concatenate([band for _, band in self.field.bands(maps_of, image)], -2)
        return found[:, 0] if self.model.classes == 1 else found

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
        return pixels

    def _batch(self, tile: np.ndarray) -> torch.Tensor:
        """[1, C, h, w] on the model's device, normalised."""
        return normalise(torch.from_numpy(tile.copy()), self.data["window"])[None].to(self.model.device)


def labels(probabilities: np.ndarray) -> np.ndarray:
    """The likeliest class of every pixel, as `proseg.generate.binarise`; background where none is likelier.
    [..., K, H, W] -> [..., H, W] uint8"""
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
    folder = Path(folder)
    checkpoint = load_checkpoint(folder / WEIGHTS)
    try:
        data = json.loads((folder / DATA).read_text())
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
