"""The trunk: a U-Net that turns an image into features of the same size."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each with group normalisation: its statistics do not depend on the batch, so that one
    process and several ranks train the same model."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.LeakyReLU(0.1, inplace=True),
        )  # fmt: skip


def norm(channels: int) -> nn.GroupNorm:
    """Up to eight groups; a single one is cheaper on a CPU, but learnt less in a first comparison (one seed)."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


class UNet(nn.Module):
    """Encoder and decoder with skip connections; takes any height and width.

    Coarse features are projected to the channels of the finer level BEFORE they are upsampled, and added to the skip
    instead of concatenated: about half the work of the full-resolution level for the same receptive field.
    """

    def __init__(self, channels: int, width: int, levels: int):
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(ConvBlock(a, b) for a, b in zip([channels, *widths[:-1]], widths, strict=True))
        self.project = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.up = nn.ModuleList(ConvBlock(a, a) for a in widths[-2::-1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, width, H, W]"""
        skips = []
        x = image
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2, ceil_mode=True))
            skips.append(x)
        for block, project, skip in zip(self.up, self.project, skips[-2::-1], strict=True):
            x = block(skip + F.interpolate(project(x), skip.shape[-2:], mode="nearest"))
        return x
