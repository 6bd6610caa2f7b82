"""The raters' colours can be told apart."""

import numpy as np
from PIL import ImageColor

from proseg.colours import RATER_COLOURS, rater_colour


def lab(colours: tuple[str, ...]) -> np.ndarray:
    """CIELAB of sRGB colours (D65), [N, 3]."""
    coded = np.array([ImageColor.getrgb(colour) for colour in colours]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                       [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
    ratio = linear @ to_xyz.T / [0.95047, 1.0, 1.08883]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def test_twelve_colours_are_apart_from_each_other_and_from_grey():
    found = lab(RATER_COLOURS)
    apart = np.linalg.norm(found[:, None] - found, axis=2)[np.triu_indices(len(found), 1)]
    assert len(RATER_COLOURS) >= 12
    assert apart.min() > 40, "a difference of 2.3 can just be seen"
    assert np.hypot(found[:, 1], found[:, 2]).min() > 35


def test_further_raters_repeat_them():
    assert rater_colour(len(RATER_COLOURS) + 2) == RATER_COLOURS[2]
