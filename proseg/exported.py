"""An exported model: a folder that needs nothing but this package, and loading it executes nothing from the folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proseg.checkpoint import load_checkpoint
from proseg.config import TrainConfig
from proseg.data.batches import normalise
from proseg.errors import CheckpointError, DataError
from proseg.generate import maps, uncertainty
from proseg.method import Method
from proseg.records import DATA, WEIGHTS
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

    def predict(self, image: np.ndarray, *, samples: int = 16, seed: int = 0) -> Segmentation:
        """Segment one image.

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
        generator = torch.Generator().manual_seed(seed)
        batch, m = self._batch(image), self.model
        with torch.no_grad():
            raters, drawn = maps(m, batch, m.each_rater(), m.prior(1, samples, generator))
        return Segmentation(_array(raters[0]), _array(raters[0].mean(0)), _array(drawn[0]))

    def uncertainty(self, image: np.ndarray, *, seed: int = 0) -> UncertaintyMaps:
        """Where the model is unsure of one image, and why (`proseg.generate.uncertainty`). Arguments as `predict`."""
        found = uncertainty(self.model, self._batch(image), torch.Generator().manual_seed(seed))
        return UncertaintyMaps(_array(found.from_z[0]), _array(found.from_tau[0]))

    def _batch(self, image: np.ndarray) -> torch.Tensor:
        """[1, C, H, W] on the model's device, normalised."""
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
        return normalise(torch.from_numpy(pixels.copy()), self.data["window"])[None].to(self.model.device)


def _array(maps: torch.Tensor) -> np.ndarray:
    """Without the axis of the classes where there is only one."""
    return (maps.squeeze(-3) if maps.shape[-3] == 1 else maps).cpu().numpy()


def labels(probabilities: np.ndarray) -> np.ndarray:
    """The likeliest class of every pixel, as `proseg.generate.binarise`; background where none is likelier.
    [..., K, H, W] -> [..., H, W] uint8"""
    background = 1 - probabilities.sum(-3, keepdims=True)
    return np.concatenate([background, probabilities], -3).argmax(-3).astype(np.uint8)


def load(folder: str | Path) -> ExportedModel:
    """Load an exported model.

    Raises:
        CheckpointError: the folder is not a whole export.
    """
    folder = Path(folder)
    checkpoint = load_checkpoint(folder / WEIGHTS)
    try:
        data = json.loads((folder / DATA).read_text())
        if data["window"] is not None:
            low, high = map(float, data["window"])
            data["window"] = (low, high)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / DATA} cannot be read: {error}") from None
    return ExportedModel(model_of(checkpoint), checkpoint.config, data)
