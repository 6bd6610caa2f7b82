"""Options that several commands share, and what the words after them are read as."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

import typer

from cli.complete import data_sets, offer, studies


def duration(text: str) -> float:
    """Seconds of "90s", "30m", "8h" or "2d"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not match or float(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a duration: write 90s, 30m, 8h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def share(text: str) -> float:
    """A share of one GPU, above 0 and at most 1; 0 for auto, which the probe decides."""
    if text == "auto":
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{text!r} is not a share: it must be above 0 and at most 1, or auto")
    return value


def count_or_auto(text: str) -> int:
    """A number of at least 1; 0 for auto, which the probe decides."""
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a number of at least 1, nor auto")
    return int(text)


@dataclass(frozen=True)
class Hours:
    """Of GPUs ("gpuh"), or of cores ("cpuh")."""

    amount: float
    unit: str


def hours(text: str) -> Hours:
    """40 of "gpuh" of "40gpuh"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(gpuh|cpuh)", text.strip())
    if not match or float(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a budget: write 40gpuh, or 12cpuh where there are no GPUs")
    return Hours(float(match[1]), match[2])


def pair(budget: Hours | None) -> tuple[float, str] | None:
    return budget and (budget.amount, budget.unit)


def trial_number(text: str) -> int:
    """3 of "t003" or "3"."""
    match = re.fullmatch(r"t?(\d+)", text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r} is not a trial: write t003 or 3")
    return int(match[1])


@dataclass(frozen=True)
class Size:
    """Of slices, in pixels."""

    height: int
    width: int


def size(text: str) -> Size:
    """128 and 96 of "128x96"."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r} is not a size: write HEIGHTxWIDTH in pixels, as in 128x128")
    return Size(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Window:
    """Of intensities."""

    low: float
    high: float


def window(text: str) -> Window:
    """-1000 and 400 of "-1000,400"."""
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise typer.BadParameter(f"{text!r} is not a window: write LOW,HIGH, as in -1000,400")
    return Window(low, high)


@dataclass(frozen=True)
class Lengths:
    """Size of a pixel."""

    mm: tuple[float, ...]
    """(y, x) or (z, y, x)"""


def lengths(text: str) -> Lengths:
    """Millimetres of "0.5,0.5" or "3,0.5,0.5"."""
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in (2, 3) or not all(0 < length < math.inf for length in found):
        raise typer.BadParameter(f"{text!r} is not the size of a pixel: write Y,X or Z,Y,X in mm, as in 0.5,0.5")
    return Lengths(found)


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
GpuShare = Annotated[
    float | None,
    typer.Option(parser=share, metavar="SHARE", help="Share of a GPU that each rank holds; auto: measured."),
]
Concurrent = Annotated[
    int | None,
    typer.Option(parser=count_or_auto, metavar="N", help="Trials at the same time; auto: by cores and memory."),
]
MaxTime = Annotated[
    float | None,
    typer.Option(parser=duration, metavar="TIME", help="Be done after 30m, 8h, ...: the search ends early enough."),
]
Budget = Annotated[
    Hours | None,
    typer.Option(parser=hours, metavar="HOURS", help="As --max-time, in 40gpuh, or 12cpuh without GPUs."),
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", metavar="ADDRESS", help="Join this Ray cluster: auto, or its head's host:port."),
]
StudyName = Annotated[
    str | None, typer.Argument(help="Name of a study; the latest without one.", autocompletion=offer(studies))
]
Located = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="DATA", autocompletion=offer(data_sets),
        help="Where data of the study lie now, by name or folder, if not where they were; repeat it for several.",
    ),
]  # fmt: skip
DataName = Annotated[str, typer.Argument(help="A data set or a folder.", autocompletion=offer(data_sets))]
