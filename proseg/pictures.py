"""Sample pictures of a training: image, raters, what the model draws for each of them, uncertainty; needs no torch.

A training keeps the arrays (`proseg.samples`); whoever wants to see them, another process, draws them with Pillow.
Letters: N slices, R raters, H x W pixels.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proseg.colours import rater_colour
from proseg.errors import DataError
from proseg.records import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_DEVIATION = 0.5
"""Of a probability."""
TILE = 160
"""Pixels of a tile's longer side, whatever the size of the slices."""
GAP, STRIP, FONT = 4, 18, 13
PAPER, INK = "#ffffff", "#1a1a1a"
HEAT = np.array([[0, 0, 4], [80, 18, 123], [182, 54, 121], [251, 136, 97], [252, 253, 191]], float)
"""From certain to uncertain, evenly spaced: also in grey from dark to light."""
FILLED = 0.22
"""How much of its rater's colour the inside of a mask takes on."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A few slices; labels are 0 for the background, then the classes."""

    label: str
    """Of the data, their name before it."""
    epoch: int
    """Of the weights."""
    draws: int
    """From the prior, of which the uncertainty was computed."""
    image: np.ndarray
    """[N, H, W] uint8"""
    annotations: np.ndarray
    """[N, R, H, W] uint8 labels."""
    present: np.ndarray
    """[N, R] bool, whether the rater annotated the slice."""
    predictions: np.ndarray
    """[N, R, H, W] uint8 labels, the map made for each rater."""
    uncertainty: np.ndarray
    """[N, H, W] uint8, the standard deviation of the probability, 255 for LARGEST_DEVIATION."""

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        write_atomically(path, buffer.getvalue())


def read_samples(path: Path) -> Samples:
    """Raises DataError where the file is missing or damaged; reading it executes nothing."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            arrays = {field.name: found[field.name] for field in fields(Samples)}
        return _checked(arrays)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: this training has kept no sample pictures") from None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _checked(arrays: dict[str, np.ndarray]) -> Samples:
    slices, raters, *size = arrays["annotations"].shape
    shapes = {"image": (slices, *size), "annotations": (slices, raters, *size), "present": (slices, raters),
              "predictions": (slices, raters, *size), "uncertainty": (slices, *size)}  # fmt: skip
    for name, shape in shapes.items():
        if arrays[name].shape != shape or arrays[name].dtype != (bool if name == "present" else np.uint8):
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}, not {shape}")
    label, epoch, draws = (arrays[name].item() for name in ("label", "epoch", "draws"))
    return Samples(str(label), int(epoch), int(draws), **{name: arrays[name] for name in shapes})


def picture(samples: Path) -> "Image":
    """The sample picture of a training, from the file `SAMPLES` in its folder.

    Two rows a slice: the image and what each rater drew; the uncertainty and what the model draws in the name of each.
    `image.info` holds the epoch.

    Raises:
        DataError: the file is missing or damaged.
    """
    return draw(read_samples(samples))


def draw(samples: Samples) -> "Image":
    """As `picture`, of samples at hand."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT)
    slices, raters = samples.present.shape
    width, height = _tile_size(*samples.image.shape[1:])
    across, down = width + GAP, height + STRIP + GAP
    canvas_width = (raters + 1) * across + GAP
    heading = _wrapped(_heading(samples), canvas_width - 2 * GAP, font)
    top = len(heading) * STRIP + GAP
    canvas = Image.new("RGB", (canvas_width, top + slices * (2 * down + 2 * GAP)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for line, text in enumerate(heading):
        pen.text((GAP, line * STRIP + 2), text, INK, font)
    for number in range(slices):
        for row, tiles in enumerate(_tiles(samples, number, (width, height))):
            y = top + number * (2 * down + 2 * GAP) + row * down
            for column, (name, tile) in enumerate(tiles):
                x = GAP + column * across
                pen.text((x, y), name, INK, font)
                canvas.paste(Image.fromarray(tile), (x, y + STRIP))
    canvas.info["epoch"] = samples.epoch
    return canvas


def _tile_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of a tile."""
    scale = TILE / max(height, width)
    return max(1, round(scale * width)), max(1, round(scale * height))


def _heading(samples: Samples) -> str:
    return (f"{samples.label}. Validation slices, epoch {samples.epoch}. A: the raters; P: what the model draws in the "
            f"name of each; uncertainty: deviation of {samples.draws} draws from the prior, 0 (dark) to "
            f"{LARGEST_DEVIATION:g}.")  # fmt: skip


def _wrapped(text: str, width: int, font) -> list[str]:
    """Lines that fit into so many pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _tiles(samples: Samples, number: int, size: tuple[int, int]) -> list[list[tuple[str, np.ndarray]]]:
    """The two rows of a slice: names, and pixels [h, w, 3] uint8."""
    from PIL import Image

    smooth = Image.fromarray(samples.image[number]).resize(size, Image.Resampling.BICUBIC)
    grey = np.repeat(np.asarray(smooth)[..., None], 3, 2)
    above, below = [("image", grey)], [("uncertainty", _heat(samples.uncertainty[number], size))]
    for rater, there in enumerate(samples.present[number]):
        drawn, made = samples.annotations[number, rater], samples.predictions[number, rater]
        name = f"{rater + 1}" + ("" if there else " (missing)")
        above.append((f"A{name}" + _if_empty(drawn, there), _outlined(grey, drawn, rater, size)))
        below.append((f"P{rater + 1}" + _if_empty(made, True), _outlined(grey, made, rater, size)))
    return [above, below]


def _if_empty(mask: np.ndarray, there: bool) -> str:
    return " (empty)" if there and not mask.any() else ""


def _heat(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    enlarged = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    stops = np.linspace(0, 255, len(HEAT))
    return np.stack([np.interp(enlarged, stops, channel) for channel in HEAT.T], -1).round().astype(np.uint8)


def _outlined(grey: np.ndarray, labels: np.ndarray, rater: int, size: tuple[int, int]) -> np.ndarray:
    """The image with a mask of labels: a line of two pixels around each class, a tint inside."""
    from PIL import Image, ImageColor

    mask = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    colour = np.array(ImageColor.getrgb(rater_colour(rater)), float)
    tinted = np.where((mask > 0)[..., None], (1 - FILLED) * grey + FILLED * colour, grey)
    return np.where(_border(mask)[..., None], colour, tinted).round().astype(np.uint8)


def _border(labels: np.ndarray) -> np.ndarray:
    """Pixels of a class within two of another; what touches the edge of the image is not closed there."""
    border = np.zeros(labels.shape, bool)
    padded = np.pad(labels, 2, mode="edge")
    height, width = labels.shape
    for step in (-2, -1, 1, 2):
        border |= padded[2 + step : 2 + step + height, 2:-2] != labels
        border |= padded[2:-2, 2 + step : 2 + step + width] != labels
    return border & (labels > 0)
