"""What a method is: it can be built from a configuration, gives the loss of a batch, and draws segmentations.

Training, generation, evaluation and export know nothing else of a model. `proseg.methods` lists the methods there are;
`proseg.multihead` is the shortest, and the one to start a new one from.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from proseg.config import TrainConfig
from proseg.data.batches import Batch
from proseg.latents import Lattice
from proseg.losses import Loss


@dataclass(frozen=True)
class Draws:
    """S segmentations to draw of every image: in whose name, with which preference, with what noise."""

    who: torch.Tensor
    """[N, S] long, a rater's number. N = 1: the same for all images, otherwise N = B."""
    tau: torch.Tensor | None = None
    """[N, S, K], the preference; None where the method has none."""
    generator: torch.Generator | None = None
    """Of the remaining noise; None: none, the mean is taken."""
    lattice: Lattice | None = None
    """Where the images are parts of larger ones: how the noise lies over those."""


class Method(nn.Module, ABC):
    """A segmentation model of several raters."""

    reach: int
    """Cells in each direction whose features a pixel of a map depends on, beside those of its own cell."""

    def __init__(self, config: TrainConfig, *, channels: int, raters: int, classes: int = 1):
        """Args:
        config: everything that decides the outcome.
        channels: of the image.
        raters: whose annotations are learnt.
        classes: of foreground; 1 is binary.
        """
        super().__init__()
        self.config, self.channels, self.raters, self.classes = config, channels, raters, classes

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The loss of one batch."""

    def encode(self, image: torch.Tensor) -> Any:
        """All that depends on the images alone, computed once however many maps are drawn. [B, C, H, W] -> anything"""
        return self.encoding(self.features(image), image.shape[-2:])

    @abstractmethod
    def features(self, image: torch.Tensor) -> torch.Tensor:
        """The trunk's features of the images; those of overlapping tiles of one image may be blended into its own.
        [B, C, H, W] -> [B, F, h, w], in cells of `config.model.patch` pixels"""

    @abstractmethod
    def encoding(self, features: torch.Tensor, size: torch.Size) -> Any:
        """An encoding of images of `size` (H, W), from their features."""

    @abstractmethod
    def each_rater(self) -> Draws:
        """The deterministic map of every rater: S = R."""

    @abstractmethod
    def personal(self, images: int, count: int, generator: torch.Generator) -> Draws:
        """`count` draws in the name of every rater (eq. 10): S = R * count, rater by rater."""

    @abstractmethod
    def prior(self, images: int, count: int, generator: torch.Generator) -> Draws:
        """Draws of what any rater might say (eq. 11): S = count."""

    @abstractmethod
    def decode(self, encoding: Any, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Logits of M maps. image [M], the place of each map's image in the encoding; draws with N = M and no axis S
        (who [M], tau [M, K]) -> [M, classes, H, W]"""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
