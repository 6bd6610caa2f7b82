"""Pictures of data and of what a model makes of them: functions that return a matplotlib figure and show nothing.

Letters: N cases (slices or volumes), R raters, S samples, P pairs of raters, K size of tau, H x W pixels. A rater is
missing where `rater_mask` [N, R] is False: neither drawn nor counted.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path, PurePath

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from proseg.colours import RATER_COLOURS, rater_colour
from proseg.data.images import is_image
from proseg.data.store import Store
from proseg.errors import DataError
from proseg.overlay import View, legend, outlined

RATER_MARKERS = "os^DvPX*"
GOLD_COLOUR = "#3a3a3a"
METHOD_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito's, for people who see colours differently; against the grey of the gold standard."""
DRAW_COLOUR = "#f5f5f5"
"""Of samples that belong to no rater."""
FORMATS = (".png", ".svg", ".pdf")
SMALL, NORMAL, LARGE = 7, 8, 9.5
LONGEST = 22
"""Letters of a title above a small picture."""
MOST_SLICES = 6
"""Slices of a volume that are drawn large."""


def contact_sheet(store: Store, count: int) -> Figure:
    """Slices spread over the data set, each with the masks of its raters; the label stands in the title."""
    m = store.manifest
    rows = _spread(store, count)
    if not len(rows):
        raise DataError(f"data set {m.name!r} holds no outline to draw")
    columns = min(8, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(1.6 * columns, 1.75 * lines + 1.2), dpi=130, layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, row in zip(axes, rows, strict=False):
        outlined(axis, _view(store, row), m.window)
        axis.set_title(_short(str(store.volumes[row])), fontsize=6, pad=2, parse_math=False)
    _entitle(figure, store, columns * 13)
    return figure


def _entitle(figure: Figure, store: Store, width: int) -> None:
    m = store.manifest
    order = "sorted by area, A1 smallest" if m.sorted_raters else "the data set's own"
    counts = f"{m.slices} slices, {m.patients} patients, {m.raters} raters ({order})"
    title = [*textwrap.wrap(f"{m.name}: {m.label}", width), *textwrap.wrap(counts, width)]
    figure.suptitle("\n".join(title), fontsize=9, parse_math=False)
    legend(figure, m.rater_labels)


def case_sheet(store: Store, rows: Sequence[int], name: str) -> Figure:
    """Slices of one volume or patient, large: the image, it with all masks, and the mask of each rater beside.

    Args:
        rows: the slices, in file order; at most MOST_SLICES of them, those with the largest masks, are drawn.
        name: the volume's or patient's, for the title.
    """
    m = store.manifest
    areas = [np.count_nonzero(store.annotations(row)) for row in rows]
    shown = sorted(np.argsort(areas)[::-1][:MOST_SLICES].tolist())
    columns = 2 + m.raters
    figure = Figure(figsize=(2.4 * columns, 2.5 * len(shown) + 1.2), dpi=110, layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for line, place in zip(axes, shown, strict=True):
        row = rows[place]
        view, present = _view(store, row), store.rater_mask(row)
        alone = [np.where(np.arange(m.raters)[:, None, None] == rater, view.experts, 0) for rater in range(m.raters)]
        volume = "" if len({store.volumes[one] for one in rows}) == 1 else f"{_end(str(store.volumes[row]))}\n"
        titles = [f"{volume}z = {store.z[row]:g}", "all", *m.rater_labels]
        for axis, title, masks in zip(line, titles, [0 * view.experts, view.experts, *alone], strict=True):
            outlined(axis, replace(view, experts=masks), m.window)
            axis.set_axis_off()
            missing = title in m.rater_labels and not present[m.rater_labels.index(title)]
            axis.set_title(title + " (missing)" * missing, fontsize=8, parse_math=False)
    more = f", {len(shown)} of its {len(rows)} slices" if len(shown) < len(rows) else ""
    figure.suptitle("\n".join(textwrap.wrap(f"{name} of {m.name}: {m.label}{more}", 28 * columns)), fontsize=9,
                    parse_math=False)  # fmt: skip
    return figure


def _view(store: Store, row: int) -> View:
    """A slice as it is kept, in colours where it has three channels of 8 bits."""
    image, (_, y, x) = store.image(row), store.spacing(row)
    colours = image.dtype == np.uint8 and len(image) == len("RGB")
    aspect = y / x if y / x > 0 else 1.0
    return View("", np.moveaxis(image, 0, -1) if colours else image[0], store.annotations(row), {}, aspect)


def _short(name: str) -> str:
    """The end of a long name: what tells one image from the next stands there."""
    return _end(PurePath(name).name if is_image(name) else name.removeprefix("LIDC-IDRI-"))


def _end(name: str) -> str:
    return name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}"


def _spread(store: Store, count: int) -> np.ndarray:
    """Rows evenly through the file, among those that somebody outlined."""
    drawn = [row for row in range(store.manifest.slices) if store.annotations(row).any()]
    places = np.linspace(0, len(drawn) - 1, min(count, len(drawn))).round().astype(int)
    return np.array(drawn)[places]


def outlines(
    images: np.ndarray,
    annotations: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    *,
    rater_mask: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
    zoom: bool = True,
    unit: str = "slices",
    label: str = "",
) -> Figure:
    """The raters' outlines beside those of every method, a row a case (Fig. 9-12 of the paper).

    What has R masks is drawn in the raters' colours; what has another number belongs to no rater and is drawn white.
    Outlines that coincide show as stripes, for the later rater's line is thinner. What cannot be seen is written below.

    Args:
        images: [N, H, W].
        annotations: [N, R, H, W] bool.
        predictions: of every method, [N, R, H, W] or [N, S, H, W] bool.
        window: of the intensities; None takes it from each image.
        zoom: show the square around the raters' outlines of a case instead of the whole image.

    Raises:
        DataError: an array has not the shape or type said here.
    """
    images = _shaped("images", images, "N H W")
    cases, height, width = images.shape
    gold = _masks("annotations", annotations, (cases, None, height, width))
    raters = gold.shape[1]
    present = _present(rater_mask, cases, raters)
    columns = {"raters": gold, **{name: _masks(f"predictions of {name!r}", masks, (cases, None, height, width))
                                  for name, masks in predictions.items()}}  # fmt: skip
    if "raters" in predictions:
        raise DataError("predictions must not be named 'raters': this is the column of the annotations")
    figure = Figure(figsize=(max(5.0, 2.2 * len(columns)), 2.4 * cases + 1.1), dpi=130, layout="constrained")
    axes = figure.subplots(cases, len(columns), squeeze=False)
    for row in range(cases):
        square = _square([masks[row].any(0) for masks in columns.values()]) if zoom else None
        for axis, (name, masks) in zip(axes[row], columns.items(), strict=True):
            _show(axis, images[row], window)
            _draw(axis, masks[row], raters, present[row] if name == "raters" else None, square)
    for axis, (name, masks) in zip(axes[0], columns.items(), strict=True):
        of_nobody = "" if masks.shape[1] == raters else f"\n{masks.shape[1]} draws"
        axis.set_title(textwrap.fill(name, 24) + of_nobody, fontsize=NORMAL)
    handles = _rater_handles(raters)
    if any(masks.shape[1] != raters for masks in columns.values()):
        handles.append(Line2D([], [], color=DRAW_COLOUR, label="a draw, of no rater"))
    _legend(figure, handles, dark=True)
    _title(figure, "Outlines", label, f"{_count(cases, unit)}, {raters} raters")
    return figure


def tau_map(tau: np.ndarray, *, seed: int = 0, label: str = "") -> Figure:
    """t-SNE of samples of q(tau | r), a colour and a marker a rater (Fig. 6 of the paper).

    Args:
        tau: [R, N, K], N samples of every rater, on the simplex; from 4 samples in all.
        seed: of the order in which samples lie over each other, and of what t-SNE draws.

    Raises:
        DataError: tau has another shape, too few samples, or does not lie on the simplex.
    """
    tau = _shaped("tau", tau, "R N K").astype(np.float64)
    raters, draws, size = tau.shape
    if raters * draws < 4 or size < 2:
        raise DataError(f"a map of tau needs at least 4 samples of size 2 or more, but tau is {_times(tau.shape)}")
    if not (np.isfinite(tau).all() and (tau >= 0).all() and np.allclose(tau.sum(-1), 1, atol=1e-3)):
        raise DataError("every sample of tau must be non-negative and sum to 1")
    perplexity = min(30.0, (raters * draws - 1) / 3)
    places = _embed(tau.reshape(-1, size), perplexity, seed).reshape(raters, draws, 2)
    figure = Figure(figsize=(5.4, 5.2), dpi=130, layout="constrained")
    axis = figure.subplots()
    order = np.random.default_rng(seed).permutation(raters * draws)  # so that no rater lies on top of all others
    size_of_marker = float(np.clip(9000 / (raters * draws), 9, 60))
    for turn, part in enumerate(np.array_split(order, min(len(order), 20))):
        for rater in range(raters):
            chosen = part[part // draws == rater] % draws
            name = {"label": f"A{rater + 1}"} if turn == 0 else {}
            axis.scatter(
                *places[rater, chosen].T, s=size_of_marker, c=_colour(rater), alpha=0.85, **name, zorder=2 + turn,
                marker=RATER_MARKERS[rater % len(RATER_MARKERS)], edgecolors="#222222", linewidths=0.3,
            )  # fmt: skip
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(f"t-SNE, perplexity {perplexity:.3g}: near is alike, the axes have no unit", fontsize=NORMAL)
    _legend(figure, _rater_handles(raters, markers=True))
    counts = f"{_count(draws, 'draws')} of each of {raters} raters, K = {size}"
    _title(figure, "Preferences q(\N{GREEK SMALL LETTER TAU} | r)", label, counts)
    return figure


def pairwise_distances(masks: np.ndarray, rater_mask: np.ndarray | None = None) -> np.ndarray:
    """1 - IoU of every two raters (Eq. 22 of the paper): [N, R, H, W] bool -> [N, P].

    Pairs come in the order A1-A2, A1-A3, ..., A2-A3, ... Two empty masks are alike (0), an empty and a non-empty one
    have nothing in common (1); NaN where one of the two is missing.
    """
    masks = _masks("masks", masks, (None, None, None, None))
    present = _present(rater_mask, *masks.shape[:2])
    flat = masks.reshape(*masks.shape[:2], -1)
    pairs = list(combinations(range(masks.shape[1]), 2))
    distances = np.full((len(masks), len(pairs)), np.nan)
    for place, (a, b) in enumerate(pairs):
        union = (flat[:, a] | flat[:, b]).sum(1)
        common = (flat[:, a] & flat[:, b]).sum(1)
        iou = np.where(union > 0, common / np.maximum(union, 1), 1.0)
        distances[:, place] = np.where(present[:, a] & present[:, b], 1 - iou, np.nan)
    return distances


def pair_distances(
    distances: Mapping[str, np.ndarray], *, gold: str = "gold", unit: str = "slices", label: str = ""
) -> Figure:
    """How far two raters are apart: all pairs, and each pair on its own (Fig. 1, 7 and 8 of the paper).

    The gold standard comes first, hatched, and a dashed line shows its mean to all others.

    Args:
        distances: of the gold standard and of every method, [N, P] in [0, 1], NaN where a rater is missing, as from
            `pairwise_distances`. Give the methods the same `rater_mask`, so that all speak of the same pairs.
        gold: the name of the gold standard among them.

    Raises:
        DataError: there is no gold standard, or an array has not the shape or values said here.
    """
    if gold not in distances:
        raise DataError(f"distances hold no {gold!r} to compare with: they hold {', '.join(distances) or 'nothing'}")
    found = {
        name: _shaped(f"distances of {name!r}", distances[name], "N P") for name in sorted(distances, key=gold.__ne__)
    }
    pairs = found[gold].shape[1]
    raters = math.isqrt(2 * pairs) + 1
    if pairs != math.comb(raters, 2):
        raise DataError(f"{pairs} columns are no number of pairs of raters (1, 3, 6, 10, ...)")
    for name, values in found.items():
        if values.shape[1] != pairs:
            raise DataError(f"distances of {name!r} have {values.shape[1]} pairs of raters, those of {gold!r} {pairs}")
        if np.nanmin(values, initial=0) < 0 or np.nanmax(values, initial=0) > 1:
            raise DataError(f"distances of {name!r} must lie between 0 and 1")
    columns = 0 if pairs == 1 else raters - 1 + raters % 2  # leaves no place empty
    lines = pairs // columns if columns else 1
    wide = 1.6 + 0.55 * len(found)
    narrow = 0.55 + 0.28 * len(found)
    size = (max(5.0, wide + narrow * columns), max(3.4, 1.25 * lines) + 1.2)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.add_gridspec(lines, columns + 1, width_ratios=[wide / narrow] + [1] * columns if columns else None)
    whole = figure.add_subplot(grid[:, 0])
    _violins(whole, {name: values.ravel() for name, values in found.items()}, gold, numbers=True)
    whole.set_title(("all pairs" if columns else "A1 \N{EN DASH} A2") + ", mean:", fontsize=NORMAL, pad=16)
    whole.set_ylabel("distance, 1 \N{MINUS SIGN} IoU", fontsize=NORMAL)
    for place, (a, b) in enumerate(combinations(range(raters), 2) if columns else ()):
        axis = figure.add_subplot(grid[place // columns, 1 + place % columns], sharey=whole)
        _violins(axis, {name: values[:, place] for name, values in found.items()}, gold, numbers=False)
        axis.set_title(f"A{a + 1} \N{EN DASH} A{b + 1}", fontsize=NORMAL, pad=3)
        axis.tick_params(labelleft=place % columns == 0)
    handles: list[Patch | Line2D] = [
        Patch(label=f"{name} ({_count(len(values), unit)})", **_violin_style(place, name == gold))
        for place, (name, values) in enumerate(found.items())
    ]
    handles.append(Line2D([], [], marker="D", color="white", markeredgecolor="black", markersize=5, label="mean"))
    handles.append(Line2D([], [], color="black", linewidth=3, label="middle half"))
    _legend(figure, handles)
    missing = np.isnan(found[gold]).any(1).sum()
    without = f", a rater missing in {missing}" if missing else ""
    _title(figure, "Distance between two raters", label, f"{_count(len(found[gold]), unit)}, {raters} raters{without}")
    return figure


def rater_matrix(distances: Mapping[str, np.ndarray], *, counts: str = "", label: str = "") -> Figure:
    """Mean distance of every two raters, a panel a name, with the numbers in it (Table 5 of the paper).

    Args:
        distances: [R, R] in [0, 1], NaN where two raters never annotated the same case.
            The colours of all panels run from 0 to the largest number.
        counts: what the means were taken over, for the title.

    Raises:
        DataError: there is none, or an array has not the shape or values said here.
    """
    if not distances:
        raise DataError("distances hold nothing to draw")
    found = {name: _shaped(f"distances {name!r}", values, "R R") for name, values in distances.items()}
    raters = len(next(iter(found.values())))
    for name, values in found.items():
        if values.shape != (raters, raters):
            raise DataError(f"distances {name!r} are {_times(values.shape)}, where {raters} x {raters} is wanted")
        if np.nanmin(values, initial=0) < 0 or np.nanmax(values, initial=0) > 1:
            raise DataError(f"distances {name!r} must lie between 0 and 1")
    top = max(float(np.nanmax(values, initial=0)) for values in found.values())
    top = max(math.ceil(10 * top) / 10, 0.1)
    side = max(2.3 if len(found) > 1 else 3.6, 0.48 * raters + 0.5)
    figure = Figure(figsize=(max(5.4, side * len(found) + 0.9), side + 1.3), dpi=130, layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    drawn = [_cells(axis, values, top) for axis, values in zip(axes, found.values(), strict=True)]
    for axis, name in zip(axes, found, strict=True):
        axis.set_title(textwrap.fill(name, int(11 * side)), fontsize=NORMAL)
    bar = figure.colorbar(drawn[0], ax=axes, shrink=0.9)
    bar.set_label("distance between two raters, 1 \N{MINUS SIGN} IoU", fontsize=NORMAL)
    bar.ax.tick_params(labelsize=SMALL)
    _title(figure, "Mean distance", label, counts)
    return figure


def rank_shares(areas: np.ndarray, rater_mask: np.ndarray | None = None) -> np.ndarray:
    """How often each rater (row) has each rank by area (column), rank 1 the smallest: [N, R] -> [R, R].

    Ranks that raters of equal area hold together are split evenly among them. A case with missing raters ranks those
    who are there, from 1. Rows sum to 1, or are NaN for a rater who is always missing.
    """
    areas = _shaped("areas", areas, "N R").astype(np.float64)
    cases, raters = areas.shape
    present = _present(rater_mask, cases, raters) & ~np.isnan(areas)
    known = np.where(present, areas, np.inf)
    smaller = ((known[:, None, :] < known[:, :, None]) & present[:, None, :]).sum(2)
    equal = ((known[:, None, :] == known[:, :, None]) & present[:, None, :]).sum(2)
    ranks = np.arange(raters)
    holds = (ranks >= smaller[..., None]) & (ranks < (smaller + equal)[..., None]) & present[..., None]
    total = (holds / np.maximum(equal, 1)[..., None]).sum(0)
    counts = present.sum(0)[:, None]
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def area_ranks(
    areas: np.ndarray | Mapping[str, np.ndarray],
    *,
    rater_mask: np.ndarray | None = None,
    unit: str = "slices",
    label: str = "",
) -> Figure:
    """How often each rater draws the smallest, ..., the largest area; a panel a name (Fig. 4 of the paper).

    Args:
        areas: [N, R], any unit, NaN where a rater is missing; by name, to see a model beside the gold standard.
        rater_mask: [N, R], for all of them.

    Raises:
        DataError: an array has not the shape said here, or its raters are not as many as those of the others.
    """
    named = areas if isinstance(areas, Mapping) else {"raters": areas}
    if not named:
        raise DataError("areas hold nothing to draw")
    shares = {name: rank_shares(values, rater_mask) for name, values in named.items()}
    raters = len(next(iter(shares.values())))
    for name, share in shares.items():
        if len(share) != raters:
            raise DataError(f"areas of {name!r} have {len(share)} raters, those of {next(iter(shares))!r} {raters}")
    columns = min(len(shares), 3 if raters <= 5 else 2)
    lines = math.ceil(len(shares) / columns)
    size = (max(5.0, (0.55 * raters + 0.9) * columns), 2.8 * lines + 1.2)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axis in axes[len(shares) :]:
        axis.set_axis_off()
    for axis, (name, share) in zip(axes, shares.items(), strict=False):
        _stack(axis, share)
        axis.set_title(f"{textwrap.fill(name, 28)} ({_count(len(named[name]), unit)})", fontsize=NORMAL)
    for axis in axes[::columns]:
        axis.set_ylabel(f"share of {unit}", fontsize=NORMAL)
    names = {0: " (smallest)", raters - 1: " (largest)"}
    handles = [
        Patch(facecolor=_rank_colour(rank, raters), edgecolor="white", label=f"rank {rank + 1}{names.get(rank, '')}")
        for rank in range(raters)
    ]
    _legend(figure, handles)
    first = np.asarray(next(iter(named.values())))
    missing = (~_present(rater_mask, *first.shape) | np.isnan(first)).any(1).sum()
    without = f", a rater missing in {missing} (the others are ranked)" if missing else ""
    _title(figure, "Rank by area", label, f"{_count(len(first), unit)}, {raters} raters{without}")
    return figure


def uncertainty(
    image: np.ndarray,
    raters: np.ndarray,
    mean: np.ndarray,
    from_z: np.ndarray,
    from_tau: np.ndarray,
    *,
    rater_mask: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
    zoom: bool = True,
    draws: int | None = None,
    label: str = "",
) -> Figure:
    """One slice: the image, the raters, the mean map, and its variance from the scan (z) and from the raters (tau).

    The two variances share a scale. The line on the mean map is where it is 1/2.

    Args:
        image: [H, W].
        raters: [R, H, W] bool.
        mean, from_z, from_tau: [H, W], the mean probability and the two parts of its variance.
        rater_mask: [R].
        zoom: show the square around the outlines and the highest variances instead of the whole image.
        draws: how many samples the maps are made of, for the title.

    Raises:
        DataError: an array has not the shape, type or values said here.
    """
    image = _shaped("image", image, "H W")
    masks = _masks("raters", np.asarray(raters)[None], (1, None, *image.shape))[0]
    present = _present(None if rater_mask is None else np.asarray(rater_mask)[None], 1, len(masks))[0]
    maps = {"mean": mean, "from_z": from_z, "from_tau": from_tau}
    for name, values in maps.items():
        maps[name] = values = _shaped(name, values, "H W")
        if values.shape != image.shape:
            raise DataError(f"{name} is {_times(values.shape)}, the image {_times(image.shape)}")
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise DataError(f"{name} must lie between 0 and 1 in every pixel")
    top = max(float(maps["from_z"].max()), float(maps["from_tau"].max()), 1e-6)
    figure = Figure(figsize=(11.5, 3.8), dpi=130, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09)  # type: ignore[union-attr]
    grid = figure.add_gridspec(2, 5, height_ratios=[1, 0.05])
    axes = [figure.add_subplot(grid[0, column]) for column in range(5)]
    titles = ("image", "raters", "mean (line: 1/2)", "variance from the scan, z",
              "variance from the raters, \N{GREEK SMALL LETTER TAU}")  # fmt: skip
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=NORMAL)
        _bare(axis)
    high = np.maximum(maps["from_z"], maps["from_tau"]) > 0.25 * top
    square = _square([masks[present].any(0) | (maps["mean"] > 0.5) | high]) if zoom else None
    _show(axes[0], image, window)
    _show(axes[1], image, window)
    _draw(axes[1], masks, len(masks), present, square)
    probability = axes[2].imshow(maps["mean"], cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    _contour(axes[2], maps["mean"] > 0.5, colors="white", linewidths=1)
    variance, _ = (
        axis.imshow(maps[name], cmap="magma", vmin=0, vmax=top, interpolation="nearest")
        for axis, name in zip(axes[3:], ("from_z", "from_tau"), strict=True)
    )
    for axis in axes:
        _look_at(axis, square)
    bars = ((probability, grid[1, 2], "probability"), (variance, grid[1, 3:], "variance of the probability"))
    for drawn, place, text in bars:
        bar = figure.colorbar(drawn, cax=figure.add_subplot(place), orientation="horizontal")
        bar.set_label(text, fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    _legend(figure, _rater_handles(len(masks)), dark=True)
    made_of = "" if draws is None else f", {_count(draws, 'draws')}"
    _title(figure, "Uncertainty", label, f"1 slice, {len(masks)} raters{made_of}")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, SVG or PDF, by the suffix; the same figure gives the same bytes.

    Raises:
        DataError: the suffix is another, or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path} cannot be written: a figure is saved as {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be written: the folder {path.parent} does not exist")
    stamp = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
    with rc_context({"svg.hashsalt": "proseg"}):
        figure.savefig(path, metadata=stamp)
    return path


# What the arrays must be


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _shaped(name: str, array: np.ndarray, axes: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != len(axes.split()) or not array.size or array.dtype.kind not in "buif":
        raise DataError(
            f"{name} must be numbers [{', '.join(axes.split())}], but are {array.dtype} {_times(array.shape)}"
        )
    return array


def _masks(name: str, masks: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """Whole numbers pass as labels; fractions are probabilities, of which nobody knows the threshold."""
    masks = np.asarray(masks)
    fits = masks.ndim == len(shape) and all(want in (None, size) for want, size in zip(shape, masks.shape, strict=True))
    if not fits or not masks.size or masks.dtype.kind not in "bui":
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(f"{name} must be masks [{wanted}] of bool, but are {masks.dtype} {_times(masks.shape)}")
    return masks != 0


def _present(rater_mask: np.ndarray | None, cases: int, raters: int) -> np.ndarray:
    if rater_mask is None:
        return np.ones((cases, raters), bool)
    if np.shape(rater_mask) != (cases, raters):
        raise DataError(f"rater_mask is {_times(np.shape(rater_mask))}, but {cases} cases have {raters} raters")
    return np.asarray(rater_mask, bool)


# What the figures are made of


def _count(number: int, plural: str) -> str:
    return f"{number} {plural.removesuffix('s') if number == 1 else plural}"


def _title(figure: Figure, title: str, label: str, counts: str) -> None:
    """Wrapped to the figure, so that a long label is not cut off."""
    room = int(figure.get_figwidth() * 13)
    first = textwrap.fill(f"{title}: {label}" if label else title, room)
    figure.suptitle(f"{first}\n{textwrap.fill(counts, room)}", fontsize=LARGE)


def _legend(figure: Figure, handles: list, dark: bool = False) -> None:
    """Below the figure, in as few lines as fit, which are read from left to right."""
    widths = [0.065 * len(handle.get_label()) + 0.5 for handle in handles]  # inches, about
    fitting = (n for n in range(len(handles), 1, -1)
               if sum(max(widths[column::n]) for column in range(n)) < figure.get_figwidth())  # fmt: skip
    lines = math.ceil(len(handles) / next(fitting, 1))
    columns = math.ceil(len(handles) / lines)
    ordered = [handle for column in range(columns) for handle in handles[column::columns]]
    box = {"facecolor": "#404040", "labelcolor": "white", "framealpha": 1} if dark else {"frameon": False}
    place = "outside lower center"
    figure.legend(handles=ordered, loc=place, ncols=columns, columnspacing=1.2, fontsize=NORMAL, **box)


def _colour(rater: int) -> str:
    return rater_colour(rater)


def _line(rater: int) -> str:
    """A repeated colour is told apart by its dashes."""
    return "-" if rater < len(RATER_COLOURS) else "--"


def _rater_handles(raters: int, markers: bool = False) -> list[Line2D]:
    return [
        Line2D([], [], color=_colour(rater), label=f"A{rater + 1}", **(
            {"marker": RATER_MARKERS[rater % len(RATER_MARKERS)], "linestyle": "", "markersize": 6,
             "markeredgecolor": "#222222", "markeredgewidth": 0.4}
            if markers else {"linestyle": _line(rater), "linewidth": 1.8}))
        for rater in range(raters)
    ]  # fmt: skip


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _show(axis: Axes, image: np.ndarray, window: tuple[float, float] | None) -> None:
    low, high = window or np.percentile(image, (1, 99))
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    _bare(axis)


def _contour(axis: Axes, mask: np.ndarray, **style) -> None:
    """With a border of nothing, so that what touches the edge of the image is closed; an empty mask is no contour."""
    if mask.any():
        height, width = mask.shape
        axis.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1), [0.5], **style)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _draw(
    axis: Axes, masks: np.ndarray, raters: int, present: np.ndarray | None, square: tuple[int, int, int] | None
) -> None:
    """[R or S, H, W], inside the square; what cannot be seen there is written below."""
    of_raters = len(masks) == raters
    empty, missing = [], []
    for place, mask in enumerate(masks):
        name = f"A{place + 1}"
        if present is not None and not present[place]:
            missing.append(name)
        elif not mask.any():
            empty.append(name)
        elif of_raters:
            width = np.linspace(2.2, 0.9, max(raters, 2))[place]
            _contour(axis, mask, colors=_colour(place), linestyles=_line(place), linewidths=width)
        else:
            shade = withStroke(linewidth=1.8, foreground="black")  # white on bone is not seen
            _contour(axis, mask, colors=DRAW_COLOUR, linewidths=0.7, path_effects=[shade])
    _look_at(axis, square)
    notes = [f"{', '.join(missing)} missing"] if missing else []
    if empty:
        notes.append(f"{', '.join(empty)} empty" if of_raters else f"{len(empty)} of {len(masks)} empty")
    if square:
        y, x, side = square
        shown = masks if present is None else masks[present]
        if shown.sum() > shown[:, y : y + side, x : x + side].sum():
            notes.append("more outside")
    axis.set_xlabel(textwrap.fill("; ".join(notes), 30), fontsize=SMALL, labelpad=2)


def _square(masks: list[np.ndarray]) -> tuple[int, int, int] | None:
    """(top, left, side) of a square inside the image, around the first mask that is not empty, with a margin."""
    shown = next((mask for mask in masks if mask.any()), None)
    if shown is None:
        return None
    (top, bottom), (left, right) = ((int(found.min()), int(found.max()) + 1) for found in np.nonzero(shown))
    side = min(max(math.ceil(1.8 * max(bottom - top, right - left)), 24), *shown.shape)
    corner = ((low + high - side) // 2 for low, high in ((top, bottom), (left, right)))
    y, x = (min(max(place, 0), size - side) for place, size in zip(corner, shown.shape, strict=True))
    return y, x, side


def _look_at(axis: Axes, square: tuple[int, int, int] | None) -> None:
    if square:
        y, x, side = square
        axis.set(xlim=(x - 0.5, x + side - 0.5), ylim=(y + side - 0.5, y - 0.5))


def _embed(samples: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """[N, K] -> [N, 2]"""
    from sklearn.manifold import TSNE  # takes seconds to import

    # From the principal axes, which keep what lies far apart; samples that are all alike have none.
    start = "pca" if np.ptp(samples, 0).max() > 0 else "random"
    return TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(samples)


def _violin_style(place: int, is_gold: bool) -> dict:
    if is_gold:
        return {"facecolor": "#c8c8c8", "edgecolor": GOLD_COLOUR, "hatch": "///", "linewidth": 1.2}
    return {"facecolor": METHOD_COLOURS[(place - 1) % len(METHOD_COLOURS)], "edgecolor": "#222222", "linewidth": 0.6}


def _violins(axis: Axes, values: Mapping[str, np.ndarray], gold: str, *, numbers: bool) -> None:
    """A violin a name, from the smallest to the largest value, with its middle half and its mean."""
    axis.set(xlim=(-0.6, len(values) - 0.4), ylim=(0, 1), xticks=[])
    axis.tick_params(labelsize=SMALL)
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    for place, (name, all_values) in enumerate(values.items()):
        known = all_values[~np.isnan(all_values)]
        if not len(known):
            axis.text(place, 0.5, "none", rotation=90, ha="center", va="center", fontsize=SMALL)
            continue
        (body,) = axis.violinplot(known, [place], widths=0.85, showextrema=False)["bodies"]  # type: ignore[misc]
        body.set(alpha=1, label=name, **_violin_style(place, name == gold))
        axis.vlines(place, *np.percentile(known, (25, 75)), color="black", linewidth=3)
        mean = known.mean()
        axis.plot(place, mean, "D", color="white", markeredgecolor="black", markersize=4.5, zorder=4, label="mean")
        if name == gold:
            axis.axhline(mean, color=GOLD_COLOUR, linestyle="--", linewidth=0.9, zorder=1.5)
        if numbers:
            axis.text(place, 1.01, f"{mean:.3f}", ha="center", va="bottom", fontsize=SMALL)


def _cells(axis: Axes, values: np.ndarray, top: float) -> AxesImage:
    """A square a number, coloured from 0 to `top`; what is not known is left grey."""
    raters = len(values)
    drawn = axis.imshow(values, cmap="cividis", vmin=0, vmax=top)
    axis.set_facecolor("#dddddd")
    for a, b in np.argwhere(~np.isnan(values)).tolist():
        ink = _ink(to_hex(colormaps["cividis"](values[a, b] / top)))
        axis.text(b, a, f"{values[a, b]:.3f}".lstrip("0") if a != b else "0", color=ink, ha="center", va="center",
                  fontsize=SMALL)  # fmt: skip
    names = [f"A{rater + 1}" for rater in range(raters)]
    axis.set_xticks(range(raters), names, fontsize=NORMAL)
    axis.set_yticks(range(raters), names, fontsize=NORMAL)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return drawn


def _ink(colour: str) -> str:
    """What can be read on this colour."""
    return "white" if np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.5 else "black"


def _rank_colour(rank: int, raters: int) -> str:
    return to_hex(colormaps["cividis"](rank / max(raters - 1, 1)))


def _stack(axis: Axes, share: np.ndarray) -> None:
    """A bar a rater, a part a rank."""
    raters = len(share)
    bottom = np.zeros(raters)
    known = np.nan_to_num(share)
    for rank in range(raters):
        colour = _rank_colour(rank, raters)
        axis.bar(range(raters), known[:, rank], 0.82, bottom, color=colour, edgecolor="white", linewidth=0.6)
        ink = _ink(colour)
        for rater in np.flatnonzero(known[:, rank] >= 0.06).tolist():
            middle = bottom[rater] + known[rater, rank] / 2
            axis.text(rater, middle, f"{known[rater, rank]:.0%}", color=ink, ha="center", va="center", fontsize=SMALL)
        bottom += known[:, rank]
    for rater in np.flatnonzero(np.isnan(share).any(1)).tolist():
        axis.text(rater, 0.5, "missing", rotation=90, ha="center", va="center", fontsize=SMALL)
    axis.set(xlim=(-0.6, raters - 0.4), ylim=(0, 1), xticks=range(raters))
    axis.set_xticklabels([f"A{rater + 1}" for rater in range(raters)])
    axis.tick_params(labelsize=NORMAL)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
