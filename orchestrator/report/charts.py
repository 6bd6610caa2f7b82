"""The charts: drawn in lines for a page, as PNG beside it, and told in words. No state outside of the functions.

Colours are Okabe and Ito's, which people who see colours differently tell apart; states differ by shape and lines by
width and lightness as well, so that a print in grey says the same. In a page's SVG each colour of `COLOURS` may be
replaced by what suits its background.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib.figure
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from orchestrator.report.parts import Cell, Figure, Table
from orchestrator.words import count, listed

INK, MUTED, FAINT, PAPER = "#1d2127", "#6b7280", "#c9ced6", "#fefefe"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa5c8f"
COLOURS = {"ink": INK, "muted": MUTED, "faint": FAINT, "paper": PAPER, "blue": BLUE, "vermilion": VERMILION,
           "green": GREEN, "purple": PURPLE}  # fmt: skip
WIDTH, DPI, SIZE = 5.2, 160, 9
"""Inches of a chart in a column of text; dots an inch of the PNG; points of the letters."""
STATES = {
    "complete": ("o", BLUE, True), "stopped early": ("v", VERMILION, False), "running": ("s", GREEN, False),
    "interrupted": ("D", PURPLE, False),
}  # fmt: skip
"""How a state is drawn: marker, colour, filled."""
FENCE = 3.0
"""Values worse than the upper quartile by so many interquartile ranges would press all others together."""
BACK = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
"""Behind letters that lie on lines."""
NOT_SEARCHED = -0.13
"""Height at which a line passes an axis whose value was not searched; the axis is 0 to 1 high."""


@dataclass(frozen=True)
class Point:
    """A trial."""

    name: str
    x: float
    y: float
    state: str


@dataclass(frozen=True)
class Curve:
    """A trial over its epochs."""

    name: str
    state: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Axis:
    """Of parallel coordinates: numbers between two ends, the first below, or a few choices."""

    name: str
    ends: tuple[float, float] | None = None
    log: bool = False
    choices: tuple[object, ...] = ()

    def place(self, value: object) -> float:
        """Its height, 0 to 1."""
        if value is None:
            return NOT_SEARCHED
        if self.ends is None:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high, here = (math.log(v) if self.log else v for v in (*self.ends, float(value)))  # type: ignore[arg-type]
        return 0.5 if low == high else (here - low) / (high - low)

    def marks(self) -> list[tuple[float, str]]:
        """What is written beside it."""
        shown = self.choices if self.ends is None else self.ends
        return [(self.place(value), _short(value)) for value in dict.fromkeys(shown)]


@dataclass(frozen=True)
class Line:
    """A trial across all axes."""

    name: str
    values: tuple[Cell, ...]
    strong: bool


# --- the charts -------------------------------------------------------------------------------------------------------


def bars(
    name: str, rows: Sequence[tuple[str, float, float]], *, caption: str, alternative: str, axis: str, label: str,
    table: Table,
) -> Figure:  # fmt: skip
    """Horizontal bars, the first on top, each with the mark of what chance alone gives: (name, value, chance)."""
    figure, axes = _blank(0.9 + 0.3 * len(rows))
    places = range(len(rows), 0, -1)
    for place, (_, value, chance) in zip(places, rows, strict=True):
        beyond = value > chance
        axes.barh(place, value, height=0.62, color=BLUE if beyond else FAINT)
        axes.plot([chance, chance], [place - 0.42, place + 0.42], color=INK, linewidth=1.4)
    axes.set_yticks(places, [row[0] for row in rows])
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xlim(0, 1.06 * max(max(row[1:]) for row in rows))
    axes.set_xlabel(axis)
    axes.tick_params(axis="y", length=0)
    handles = [Line2D([], [], color=BLUE, linewidth=6, label="more than chance"),
               Line2D([], [], color=FAINT, linewidth=6, label="not more"),
               Line2D([], [], color=INK, marker="|", markersize=9, linestyle="", label="chance reaches this"),
               ]  # fmt: skip
    _legend(figure, handles)
    return _finished(figure, name, caption, alternative, label, table)


def history(
    points: Sequence[Point], best: Sequence[float | None], *, metric: str, maximize: bool, chosen: str | None,
    label: str, table: Table,
) -> Figure:  # fmt: skip
    """Every trial over its number, and the best until then as steps."""
    figure, axes = _blank(3.4)
    beyond = _limit(axes, [point.y for point in points], maximize)
    _marks(axes, points)
    known = [(point.x, value) for point, value in zip(points, best, strict=True) if value is not None]
    if known:
        axes.step(*zip(*known, strict=True), where="post", color=INK, linewidth=1.4, zorder=2)
    _star(axes, points, chosen)
    axes.set_xlabel("trial")
    axes.set_ylabel(_better(metric, maximize))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steps = [Line2D([], [], color=INK, linewidth=1.4, label="best so far")] if known else []
    _legend(figure, [*_state_handles(point.state for point in points), *steps, *_star_handles(points, chosen)])
    values = [point.y for point in points]
    first, last = (known[0][1], known[-1][1]) if known else (None, None)
    course = f" Of those that ran to their end the best went from {first:.4f} to {last:.4f}." if known else ""
    ends = f"{metric} from {min(values):.4f} to {max(values):.4f}"
    alternative = f"{count(len(points), 'trial')} over their number; {ends}.{course}"
    return _finished(figure, "history", f"{metric} of every trial, and the best so far.{_edge(beyond)}", alternative,
                     label, table)  # fmt: skip


def scatter(
    points: Sequence[Point], front: Sequence[Point], *, metrics: tuple[str, str], maximize: tuple[bool, bool],
    chosen: str | None, label: str, table: Table,
) -> Figure:  # fmt: skip
    """Two scores of every trial; the members of a front are joined by a line."""
    figure, axes = _blank(3.8)
    beyond = _limit(axes, [point.y for point in points], maximize[1])
    _marks(axes, points)
    ordered = sorted(front, key=lambda point: point.x)
    if ordered:
        xs, ys = [point.x for point in ordered], [point.y for point in ordered]
        axes.plot(xs, ys, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2)
        axes.plot(xs, ys, "o", markersize=10, markerfacecolor="none", markeredgecolor=INK, zorder=4)
    _star(axes, points, chosen)
    axes.set_xlabel(_better(metrics[0], maximize[0]))
    axes.set_ylabel(_better(metrics[1], maximize[1]))
    ring = Line2D([], [], color=INK, linestyle=(0, (4, 2)), marker="o", markersize=9, markerfacecolor="none",
                  label="front")  # fmt: skip
    _legend(figure, [*_state_handles(point.state for point in points), *([ring] if ordered else []),
                     *_star_handles(points, chosen)])  # fmt: skip
    both = ([point.x for point in points], [point.y for point in points])
    spans = [f"{name} from {min(some):.4f} to {max(some):.4f}" for name, some in zip(metrics, both, strict=True)]
    told = f" On the front: {listed([f'{p.name} ({p.x:.4f}, {p.y:.4f})' for p in ordered])}." if ordered else ""
    alternative = f"{count(len(points), 'trial')}; {' and '.join(spans)}.{told}"
    caption = f"{metrics[1]} against {metrics[0]} of every trial with both.{_edge(beyond)}"
    return _finished(figure, "trade-off", caption, alternative, label, table)


def curves(
    lines: Sequence[Curve], *, metric: str, maximize: bool, rungs: Sequence[int], chosen: str | None, label: str
) -> Figure:
    """The objective over the epochs; each curve ends where its trial did, rungs are upright lines."""
    figure, axes = _blank(3.4)
    beyond = _limit(axes, [value for line in lines for _, value in line.points], maximize)
    for rung in rungs:
        axes.axvline(rung, color=FAINT, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    for line in sorted(lines, key=lambda one: one.state == "complete"):
        marker, colour, _ = STATES.get(line.state, ("x", MUTED, False))
        whole, mine = line.state == "complete", line.name == chosen
        width = 2.4 if mine else 1.2 if whole else 0.7
        axes.plot(*zip(*line.points, strict=True), color=INK if mine else colour, linewidth=width,
                  alpha=1.0 if whole or mine else 0.6, zorder=3 if mine else 2)  # fmt: skip
        axes.plot(*line.points[-1], marker, color=INK if mine else colour, markersize=4, zorder=3,
                  markerfacecolor=colour if whole else PAPER)  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel(_better(metric, maximize))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    named = [Line2D([], [], color=INK, linewidth=2.4, label=f"{chosen}, chosen")] if chosen in {
        line.name for line in lines} else []  # fmt: skip
    rung = [Line2D([], [], color=FAINT, linestyle=(0, (2, 2)), label="where trials were stopped")] if rungs else []
    _legend(figure, [*_state_handles(line.state for line in lines), *named, *rung])
    ends = {state: sum(line.state == state for line in lines) for state in dict.fromkeys(line.state for line in lines)}
    stopped = f" Trials were stopped after epoch {listed([str(rung) for rung in rungs])}." if rungs else ""
    alternative = f"One curve a trial: {', '.join(f'{n} {state}' for state, n in ends.items())}.{stopped}"
    return _finished(figure, "curves", f"{metric} on validation patients after every epoch.{_edge(beyond)}",
                     alternative, label, None)  # fmt: skip


def parallel(axes_of: Sequence[Axis], lines: Sequence[Line], *, chosen: str | None, label: str, table: Table) -> Figure:
    """Every trial a line across all axes, the best drawn strongly."""
    figure, axes = _blank(4.0, width=max(WIDTH, 0.8 * len(axes_of)))
    xs = range(len(axes_of))
    for line in sorted(lines, key=lambda one: (one.name == chosen, one.strong)):
        ys = [axis.place(value) for axis, value in zip(axes_of, line.values, strict=True)]
        mine = line.name == chosen
        colour, width = (VERMILION, 2.6) if mine else (BLUE, 1.5) if line.strong else (FAINT, 0.7)
        axes.plot(xs, ys, color=colour, linewidth=width, zorder=4 if mine else 3 if line.strong else 2,
                  solid_joinstyle="round")  # fmt: skip
    skipped = any(value is None for line in lines for value in line.values)
    for x, axis in zip(xs, axes_of, strict=True):
        axes.plot([x, x], [0, 1], color=MUTED, linewidth=1, zorder=1)
        axes.text(x, 1.07, axis.name.split(".")[-1], rotation=28, ha="left", va="bottom", fontsize=SIZE, color=INK)
        for place, text in axis.marks():
            axes.plot([x - 0.04, x + 0.04], [place, place], color=MUTED, linewidth=1, zorder=1)
            axes.text(
                x + 0.07, place, text, ha="left", va="center", fontsize=SIZE - 1.5, color=INK, zorder=5, bbox=BACK
            )
        if any(line.values[x] is None for line in lines):
            axes.text(x + 0.07, NOT_SEARCHED, "not searched", va="center", fontsize=SIZE - 1.5, color=MUTED, zorder=5,
                      bbox=BACK)  # fmt: skip
    axes.set_xlim(-0.3, len(axes_of) - 0.45)
    axes.set_ylim(NOT_SEARCHED - 0.05 if skipped else -0.05, 1.08)
    axes.set_axis_off()
    strong = [line.name for line in lines if line.strong]
    handles = [Line2D([], [], color=VERMILION, linewidth=2.6, label=f"{chosen}, chosen"),
               Line2D([], [], color=BLUE, linewidth=1.5, label=f"best {len(strong)}"),
               Line2D([], [], color=FAINT, linewidth=1, label="all others")]  # fmt: skip
    _legend(figure, handles[0 if chosen in {line.name for line in lines} else 1 :])
    last = axes_of[-1].name
    alternative = (f"{count(len(lines), 'line')} across {len(axes_of)} axes: "
                   f"{', '.join(axis.name for axis in axes_of)}. Drawn strongly are {listed(strong)}.")  # fmt: skip
    caption = f"Every trial a line through its values; on the last axis {last}, the best on top."
    return _finished(figure, "parallel", caption, alternative, label, table)


# --- what they share --------------------------------------------------------------------------------------------------


def _blank(height: float, width: float = WIDTH) -> tuple[matplotlib.figure.Figure, Axes]:
    figure = matplotlib.figure.Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=SIZE, color=MUTED, labelcolor=INK)
    axes.xaxis.label.set(size=SIZE, color=INK)
    axes.yaxis.label.set(size=SIZE, color=INK)
    return figure, axes


def _limit(axes: Axes, values: Sequence[float], maximize: bool) -> int:
    """Set the limits of y so that a few bad values do not press all others together; how many lie beyond them."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    room = FENCE * (upper - lower)
    low, high = (max(low, lower - room), high) if maximize else (low, min(high, upper + room))
    edge = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - edge, high + edge)
    return sum(not low <= value <= high for value in values)


def _edge(beyond: int) -> str:
    return f" {count(beyond, 'value')} beyond the axis: at its edge." if beyond else ""


def _marks(axes: Axes, points: Sequence[Point]) -> None:
    """A mark a trial, by its state; one beyond the axis stands at its edge."""
    low, high = axes.get_ylim()
    for state in dict.fromkeys(point.state for point in points):
        marker, colour, filled = STATES.get(state, ("x", MUTED, False))
        here = [(point.x, min(max(point.y, low), high)) for point in points if point.state == state]
        axes.plot(*zip(*here, strict=True), marker, color=colour, markersize=5, markeredgewidth=1.1, zorder=3,
                  markerfacecolor=colour if filled else PAPER, linestyle="", clip_on=False)  # fmt: skip


def _star(axes: Axes, points: Sequence[Point], chosen: str | None) -> None:
    for point in points:
        if point.name == chosen:
            axes.plot(point.x, point.y, "*", color=INK, markersize=12, markeredgecolor=PAPER, zorder=5)
            axes.annotate(point.name, (point.x, point.y), (6, 6), textcoords="offset points", fontsize=SIZE,
                          color=INK)  # fmt: skip


def _star_handles(points: Sequence[Point], chosen: str | None) -> list[Line2D]:
    there = any(point.name == chosen for point in points)
    return [Line2D([], [], color=INK, marker="*", markersize=10, linestyle="", label="chosen")] if there else []


def _state_handles(states: Iterable[str]) -> list[Line2D]:
    found = dict.fromkeys(states)
    known = [(state, *STATES.get(state, ("x", MUTED, False))) for state in (*STATES, *found) if state in found]
    return [
        Line2D([], [], color=colour, marker=marker, markersize=5, linestyle="", label=state,
               markerfacecolor=colour if filled else PAPER)
        for state, marker, colour, filled in dict.fromkeys(known)
    ]  # fmt: skip


def _legend(figure: matplotlib.figure.Figure, handles: Sequence[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside upper left", ncols=min(3, len(handles)), fontsize=SIZE, frameon=False,
                  labelcolor=INK, handletextpad=0.6, columnspacing=1.4, borderaxespad=0.2)  # fmt: skip


def _better(metric: str, maximize: bool) -> str:
    return f"{metric} (val), {'larger' if maximize else 'smaller'} is better"


def _short(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _finished(
    figure: matplotlib.figure.Figure, name: str, caption: str, alternative: str, label: str, table: Table | None
) -> Figure:
    """As SVG whose letters stay letters, and as PNG; both say what the data are."""
    figure.supxlabel(label, x=1.0, ha="right", fontsize=SIZE - 2, color=MUTED)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        figure.set_layout_engine("none")  # everything is in its place
        figure.savefig(png, format="png")
    return Figure(name, caption, alternative, png.getvalue(), svg.getvalue(), table)
