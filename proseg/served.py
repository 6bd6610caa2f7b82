"""An exported model behind MLflow's `python_function` flavour: a batch of images in, named arrays out.

MLflow calls `_load_pyfunc` with the folder of the export, and `predict` of what that returns. Nothing here knows
MLflow, and a machine that serves needs this package's code and a few libraries, nothing of what searches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from proseg.errors import DataError
from proseg.exported import ExportedModel, labels, load

DEFAULTS: dict[str, Any] = {"samples": 16, "seed": 0, "outputs": ["masks", "mean"]}
"""What a request need not say."""
MOST_SAMPLES = 1000
"""Of one request: a server must not be brought down by a number."""
UNCERTAINTY = ("uncertainty_scan", "uncertainty_raters")
OUTPUTS = ("masks", "raters", "mean", "samples", *UNCERTAINTY)


class ServedModel:
    """What MLflow serves."""

    def __init__(self, model: ExportedModel):
        self._model = model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Segment a batch of images, in the intensities of the data that the model was trained on.

        Args:
            model_input: [N, C, H, W], or [N, H, W] for a model of one channel; an array or nested lists.
            params: of DEFAULTS what is to differ. samples: draws of what any rater might say. seed: every image is
                given the same, so that a sample is one person's view of all of them, as of the slices of a volume.
                outputs: names of OUTPUTS.

        Returns:
            By the name of each output: masks [N, R, H, W], a label in every pixel for each rater; raters, the
            probabilities that they come from, [N, R, H, W]; mean [N, H, W]; samples [N, S, H, W]; uncertainty_scan
            and uncertainty_raters, variances [N, H, W]. Several classes: all but masks have an axis K before H.

        Raises:
            DataError: saying what is wrong with the images or the parameters.
        """
        samples, seed, outputs = _parameters(params or {})
        images = _images(model_input, self._model.model.channels)
        found = [self._segment(image, samples, seed, outputs) for image in images]
        return {name: np.stack([one[name] for one in found]) for name in outputs}

    def _segment(self, image: np.ndarray, samples: int, seed: int, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """At least what is asked for."""
        said = self._model.predict(image, samples=samples if "samples" in outputs else 1, seed=seed)
        maps = said.raters.reshape(len(said.raters), -1, *image.shape[-2:])  # with its axis of classes
        found = {"masks": labels(maps), "raters": said.raters, "mean": said.mean, "samples": said.samples}
        if set(UNCERTAINTY) & set(outputs):
            unsure = self._model.uncertainty(image, seed=seed)
            found |= dict(zip(UNCERTAINTY, (unsure.from_z, unsure.from_tau), strict=True))
        return found


def _parameters(given: Mapping[str, Any]) -> tuple[int, int, list[str]]:
    """Samples, seed and outputs."""
    unknown = given.keys() - DEFAULTS.keys()
    if unknown:
        raise DataError(f"there is no parameter {', '.join(sorted(unknown))}; there are {', '.join(DEFAULTS)}")
    asked = {**DEFAULTS, **given}
    try:
        samples, seed, outputs = int(asked["samples"]), int(asked["seed"]), [str(name) for name in asked["outputs"]]
    except (TypeError, ValueError):
        raise DataError("samples and seed must be whole numbers, and outputs a list of names") from None
    if not 1 <= samples <= MOST_SAMPLES:
        raise DataError(f"samples = {samples} must be between 1 and {MOST_SAMPLES}")
    if not 0 <= seed < 2**63:
        raise DataError(f"seed = {seed} must be between 0 and 2^63 - 1")
    if not outputs or set(outputs) - set(OUTPUTS):
        raise DataError(f"outputs = {outputs} must be some of {', '.join(OUTPUTS)}")
    return samples, seed, outputs


def _images(given: Any, channels: int) -> np.ndarray:
    """[N, C, H, W], or [N, H, W] of one channel."""
    try:
        images = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        raise DataError("the images are not numbers in nested lists of equal lengths, [N, C, H, W]") from None
    right = (images.ndim == 4 and images.shape[1] == channels) or (images.ndim == 3 and channels == 1)
    if not right or not images.size:
        raise DataError(
            f"the batch has shape {images.shape}; the model takes [N, C, H, W] with C = {channels}, none of them 0"
        )
    return images


def _load_pyfunc(path: str) -> ServedModel:
    """MLflow's way in; `path` is the export."""
    return ServedModel(load(path))
