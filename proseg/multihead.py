"""The baseline: a U-Net with one deterministic head a rater, on the trunk that ProSeg has."""

import torch
from torch import nn

from proseg.config import TrainConfig
from proseg.data.batches import Batch
from proseg.losses import Loss, Prediction, objective
from proseg.method import Draws, Method
from proseg.unet import Trunk, from_cells


class MultiHeadUNet(Method):
    """Every rater's head is two 3x3 convolutions, as wide as ProSeg's predictor."""

    reach = 2

    def __init__(self, config: TrainConfig, *, channels: int, raters: int, classes: int = 1):
        super().__init__(config, channels=channels, raters=raters, classes=classes)
        m = config.model
        self.trunk = Trunk(channels, m, raters)
        copies, hidden = self.trunk.copies, raters * m.predictor_width
        self.heads = nn.Sequential(
            nn.Conv2d(self.trunk.width, hidden, 3, padding=1, groups=copies), nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(hidden, raters * classes * m.patch**2, 3, padding=1, groups=raters),
        )  # fmt: skip

    def forward(self, batch: Batch) -> Loss:
        return objective(Prediction(self.encode(batch.image)), batch, self.config.loss)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return self.trunk(image)

    def encoding(self, features: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Logits [B, R, classes, H, W]."""
        logits = from_cells(self.heads(features), self.config.model.patch, size)
        return logits.unflatten(1, (self.raters, self.classes))

    def each_rater(self) -> Draws:
        return Draws(torch.arange(self.raters, device=self.device)[None])

    def personal(self, images: int, count: int, generator: torch.Generator) -> Draws:
        return Draws(torch.arange(self.raters, device=self.device).repeat_interleave(count)[None])

    def prior(self, images: int, count: int, generator: torch.Generator) -> Draws:
        return Draws(
            torch.randint(self.raters, (images, count), generator=generator, device=generator.device).to(self.device)
        )

    def decode(self, encoding: torch.Tensor, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        return encoding[image, draws.who]
