"""What a model makes of an image, drawn on it: every expert's outline, the mean, and where it is unsure."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from proseg.colours import rater_colour

FEWEST_PIXELS = 2
"""Along an axis, of a mask that has a contour."""
FILLED = 0.3
"""Opacity of all experts' masks together."""


@dataclass(frozen=True, eq=False)
class View:
    """One slice of an image, and what was found in it."""

    name: str
    image: np.ndarray
    """[H, W], or uint8 colours [H, W, 3]."""
    experts: np.ndarray
    """[R, H, W] labels; 0 is background."""
    maps: Mapping[str, np.ndarray]
    """[H, W] each, from 0; by what they are called."""
    aspect: float = 1.0
    """Height of a pixel in its widths."""


def overlay(views: Sequence[View], experts: Sequence[str], *, window: tuple[float, float] | None, title: str) -> Figure:
    """A row a view: the image with the outlines of the experts, then its maps on a scale that all views share.

    Args:
        views: one at least, with the same maps.
        experts: their names.
        window: of the intensities; None takes it from each image, which is shown as it is where it has colours.
        title: above everything.
    """
    maps = list(views[0].maps)
    columns = 1 + len(maps)
    figure = Figure(figsize=(2.9 * columns, 2.8 * len(views) + 1.1), dpi=110, layout="constrained")
    axes = figure.subplots(len(views), columns, squeeze=False)
    for row, view in zip(axes, views, strict=True):
        for axis in row:
            axis.set_axis_off()
        outlined(row[0], view, window)
        row[0].set_title(view.name, fontsize=8, parse_math=False)
    for axes_of, name in zip(axes.T[1:], maps, strict=True):
        top = max(1e-6, *(float(view.maps[name].max()) for view in views))
        drawn = [axis.imshow(view.maps[name], cmap="magma", vmin=0, vmax=top, interpolation="nearest",
                             aspect=view.aspect)
                 for axis, view in zip(axes_of, views, strict=True)]  # fmt: skip
        axes_of[0].set_title(name, fontsize=8)
        figure.colorbar(drawn[0], ax=axes_of.tolist(), shrink=0.7).ax.tick_params(labelsize=7)
    figure.suptitle("\n".join(textwrap.wrap(title, 38 * columns)), fontsize=9, parse_math=False)
    legend(figure, experts)
    return figure


def legend(figure: Figure, raters: Sequence[str]) -> None:
    """The raters' names and colours, below everything."""
    handles = [Line2D([], [], color=rater_colour(number), label=name) for number, name in enumerate(raters)]
    drawn = figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8)
    for text in drawn.get_texts():
        text.set_parse_math(False)  # a name may hold a dollar


def outlined(axis, view: View, window: tuple[float, float] | None) -> None:
    """Draw a view: its image, the masks lightly filled, their outlines."""
    colours = (0, 255) if view.image.ndim == 3 else None
    low, high = colours or window or np.percentile(view.image, (1, 99))
    shown = ((view.image.astype(np.float32) - low) / max(high - low, 1e-6)).clip(0, 1)
    axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=view.aspect)
    for number, mask in enumerate(view.experts):
        if mask.any() and min(mask.shape) >= FEWEST_PIXELS:
            colour, levels = rater_colour(number), np.arange(mask.max()) + 0.5  # between one label and the next
            axis.contourf(mask, [0.5, np.inf], colors=[colour], alpha=FILLED / len(view.experts))
            axis.contour(mask, levels, colors=colour, linewidths=1.0)
