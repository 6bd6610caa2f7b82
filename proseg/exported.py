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
from proseg.generate import mean_maps, sample_prior
from proseg.model import ProSeg
from proseg.records import DATA, WEIGHTS
from proseg.train import model_of


@dataclass(frozen=True)
class Segmentation:
    """What the model says of one image; probabilities in [0, 1]."""

    raters: np.ndarray
    """[R, H, W], the map made for each rater."""
    mean: np.ndarray
    """[H, W], the mean over the raters."""
    samples: np.ndarray
    """[S, H, W], what any rater might draw (the paper's "prior" samples)."""


class ExportedModel:
    """A trained ProSeg and what it must be given."""

    def __init__(self, model: ProSeg, config: TrainConfig, data: dict[str, Any]):
        self.model, self.config, self.data = model.eval(), config, data

    def predict(self, image: np.ndarray, *, samples: int = 16, seed: int = 0) -> Segmentation:
        """Segment one image.

        Args:
            image: [H, W] or [C, H, W], in the intensities of the data it was trained on (`data["window"]` is applied
                here: Hounsfield units for LIDC; already normalised where there is no window).
            samples: number of draws, at least one.
            seed: the same seed gives the same draws.

        Raises:
            DataError: the image has another number of channels, or holds values that are not finite.
        """
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or len(pixels) != self.model.channels:
            raise DataError(
                f"the image has shape {np.shape(image)}; the model takes {self.model.channels} channel(s), "
                "[H, W] or [C, H, W]"
            )
        if samples < 1:
            raise DataError(f"samples = {samples} must be at least 1")
        if not np.isfinite(pixels).all():
            raise DataError("the image holds values that are not finite")
        device = self.model.embedding.device
        batch = normalise(torch.from_numpy(pixels.copy()), self.data["window"])[None].to(device)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            posterior = self.model.posterior(batch)
            raters = mean_maps(self.model, posterior)[0]
            drawn = sample_prior(self.model, posterior, samples, generator)[0]
        return Segmentation(raters.cpu().numpy(), raters.mean(0).cpu().numpy(), drawn.cpu().numpy())


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
