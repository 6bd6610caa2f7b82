"""The trunk: a U-Net that turns an image into features of the same size, or several U-Nets side by side."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from proseg.config import ModelConfig


def norm(channels: int, copies: int = 1) -> nn.GroupNorm:
    """Up to eight groups for each copy. Statistics that do not depend on the batch: one process and several ranks train
    the same model."""
    return nn.GroupNorm(math.gcd(8, channels) * copies, channels * copies)


def fewest_pixels(config: ModelConfig) -> int:
    """Least length of the longer side of an image. A group norm needs two values a group: where its groups are single
    channels, two cells."""
    groups = [norm(config.width * 2**level) for level in range(config.levels)]
    alone = [level for level, each in enumerate(groups) if each.num_groups == each.num_channels]
    return 2 ** max(alone) * config.patch + 1 if alone else 1


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each normalised. The copies never exchange anything: their convolutions are grouped."""

    def __init__(self, inputs: int, outputs: int, copies: int = 1, *, shared_input: bool = False):
        wide = outputs * copies
        # An image that every copy sees needs no repeating: without groups, all outputs read all of its channels.
        first = (inputs, 1) if shared_input else (inputs * copies, copies)
        super().__init__(
            nn.Conv2d(first[0], wide, 3, padding=1, bias=False, groups=first[1]), norm(outputs, copies),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False, groups=copies), norm(outputs, copies),
            nn.LeakyReLU(0.1, inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    """Encoder and decoder with skip connections; takes any height and width.

    Coarse features are projected to the channels of the finer level BEFORE they are upsampled, and added to the skip
    instead of concatenated: about half the work of the full-resolution level for the same receptive field.

    `copies` U-Nets with weights of their own run as one network of grouped convolutions; their features lie side by
    side along the channels.
    """

    def __init__(self, channels: int, width: int, levels: int, copies: int = 1):
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            ConvBlock(a, b, copies, shared_input=level == 0)
            for level, (a, b) in enumerate(zip([channels, *widths[:-1]], widths, strict=True))
        )
        self.project = nn.ModuleList(
            nn.Conv2d(b * copies, a * copies, 1, groups=copies)
            for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.up = nn.ModuleList(ConvBlock(a, a, copies) for a in widths[-2::-1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, copies * width, H, W]"""
        skips = []
        x = image
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2, ceil_mode=True))
            skips.append(x)
        for block, project, skip in zip(self.up, self.project, skips[-2::-1], strict=True):
            x = block(skip + F.interpolate(project(x), skip.shape[-2:], mode="nearest"))
        return x


class Trunk(nn.Module):
    """The U-Net over cells of `patch` x `patch` pixels, one for all raters or one for each."""

    def __init__(self, channels: int, config: ModelConfig, raters: int = 1):
        super().__init__()
        self.patch, self.copies = config.patch, raters if config.encoder == "separate" else 1
        self.width = config.width * self.copies
        self.unet = UNet(channels * self.patch**2, config.width, config.levels, self.copies)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, width, h, w]"""
        return self.unet(to_cells(image, self.patch).contiguous(memory_format=torch.channels_last))


def to_cells(image: torch.Tensor, patch: int) -> torch.Tensor:
    """The pixels of a cell become channels; the last cells are filled up with the border. -> [B, C * patch^2, h, w]"""
    height, width = image.shape[-2:]
    missing = (0, -width % patch, 0, -height % patch)
    return F.pixel_unshuffle(F.pad(image, missing, mode="replicate") if any(missing) else image, patch)


def from_cells(cells: torch.Tensor, patch: int, size: torch.Size) -> torch.Tensor:
    """The inverse: [B, C * patch^2, h, w] -> [B, C, *size]"""
    return F.pixel_shuffle(cells, patch)[..., : size[0], : size[1]]
