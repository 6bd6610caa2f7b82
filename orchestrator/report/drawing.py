"""Drawing with a model: the figures of experts from one checkpoint on a few slices, on the CPU. Slow to import.

Letters: N slices, R raters, S draws, P pairs of raters, K size of tau, H x W pixels.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.report.figures import png_of
from orchestrator.report.parts import Figure, Table
from proseg import figures
from proseg.checkpoint import load_checkpoint
from proseg.data import batches
from proseg.data.store import Store
from proseg.errors import DataError
from proseg.generate import binarise, mean_maps, sample_personal, sample_prior, uncertainty
from proseg.latents import draw_dirichlet
from proseg.method import Method
from proseg.model import ProSeg
from proseg.train import model_of

SLICES, SHOWN = 24, 4
"""Of the statistics; of the outlines."""
MORE, TAUS, TIMED_DRAWS = 2, 50, 50
"""Draws of the prior in the outlines, more than there are raters: in their number they would look like the raters' own;
draws of tau for each rater; of the prior where its time is taken."""
REPEATS = 3
MEAN_MAP, PERSONAL, PRIOR = "mean map of each", "one draw of each", "draws from the prior"


@dataclass(frozen=True)
class Drawn:
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    inference: dict[str, float]
    """CPU seconds for one image, by what was drawn of it."""


@dataclass(frozen=True, eq=False)
class _Shown:
    """The slices, what raters drew in them and what the model draws; several classes are one."""

    image: torch.Tensor
    """[N, C, H, W], normalised."""
    window: tuple[float, float] | None
    gold: np.ndarray
    """[N, R, H, W] bool."""
    present: np.ndarray
    """[N, R] bool."""
    mine: Mapping[str, np.ndarray]
    """[N, R or S, H, W] bool."""
    label: str

    @property
    def few(self) -> np.ndarray:
        """Those whose outlines are shown: spread evenly, away from the ends."""
        return _evenly(len(self.gold), SHOWN)


def draw(checkpoint: Path, store: Store, patients: Iterable[str], slug: str, cases: str) -> Drawn:
    """All figures.

    Args:
        patients: whose slices are shown.
        slug: begins the name of every figure.
        cases: the patients in words, for the captions.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        DataError: nobody outlined anything in these patients, or the data are not those the model was trained for.
    """
    with _one_thread():
        return _draw(model_of(load_checkpoint(checkpoint)).eval(), checkpoint, store, patients, slug, cases)


@contextmanager
def _one_thread() -> Iterator[None]:
    """So little is computed here that on a busy machine threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _draw(model: Method, checkpoint: Path, store: Store, patients: Iterable[str], slug: str, cases: str) -> Drawn:
    if (model.channels, model.raters) != (store.manifest.channels, store.manifest.raters):
        raise DataError(f"{checkpoint} is a model of {model.channels} channel(s) and {model.raters} raters, the data "
                        f"in {store.folder} have {store.manifest.channels} and {store.manifest.raters}")  # fmt: skip
    shown = _shown(model, store, patients)
    where = f"{cases}; {len(shown.gold)} slices"
    found = [_outlines(shown, slug, cases), _distances(shown, slug, where), _ranks(shown, slug, where)]
    notes = ["Several classes are shown as one."] if model.classes > 1 else []
    if isinstance(model, ProSeg) and model.config.model.use_tau:
        found.append(_taus(model, slug, shown.label))
    else:
        notes.append("No map of the raters' preferences (Fig. 6): this model has no tau.")
    found.append(_uncertainty(model, shown, slug, cases))
    return Drawn(tuple(found), tuple(notes), _inference(model, shown.image[:1]))


@torch.no_grad()
def _shown(model: Method, store: Store, patients: Iterable[str]) -> _Shown:
    rows = np.array([row for row in store.rows(patients) if store.annotations(row).any()], int)
    if not len(rows):
        raise DataError(f"nobody outlined anything in the slices of {store.folder} that would be shown")
    rows = rows[_evenly(len(rows), SLICES)]
    batch = batches.load(store, rows, model.config.data.crop)
    generator = torch.Generator().manual_seed(0)
    mine = {
        MEAN_MAP: _masks(mean_maps(model, batch.image)),
        PERSONAL: _masks(sample_personal(model, batch.image, 1, generator).flatten(1, 2)),
        PRIOR: _masks(sample_prior(model, batch.image, model.raters + MORE, generator)),
    }
    window = (-1.0, 1.0) if store.manifest.window else None
    label = f"{store.manifest.name}: {store.manifest.label}"
    return _Shown(batch.image, window, batch.annotations.bool().numpy(), batch.rater_mask.numpy(), mine, label)


def _evenly(count: int, wanted: int) -> np.ndarray:
    """Places among so many, at most as many as wanted."""
    return np.unique(((np.arange(wanted) + 0.5) * count / wanted).astype(int)) if count > wanted else np.arange(count)


def _masks(maps: torch.Tensor) -> np.ndarray:
    """Any class of foreground. [N, S, K, H, W] -> [N, S, H, W] bool"""
    return binarise(maps).any(-3).numpy()


def _outlines(shown: _Shown, slug: str, cases: str) -> Figure:
    few = shown.few
    drawn = figures.outlines(
        shown.image[few, 0].numpy(), shown.gold[few], {name: masks[few] for name, masks in shown.mine.items()},
        rater_mask=shown.present[few], window=shown.window, label=shown.label,
    )  # fmt: skip
    return Figure(
        f"{slug}-outlines",
        f"Outlines (Fig. 9 to 12) of the raters, and of the model in the name of each and from the prior; {len(few)} "
        f"slices of {cases}",
        f"{len(few)} slices, a row each: outlines of {shown.gold.shape[1]} raters, the model's mean map for each of "
        f"them, a draw for each, and {shown.mine[PRIOR].shape[1]} draws that belong to no rater, on the image.",
        png_of(drawn),
    )


def _distances(shown: _Shown, slug: str, where: str) -> Figure:
    found = {
        "raters": figures.pairwise_distances(shown.gold, shown.present),
        f"model, {PERSONAL}": figures.pairwise_distances(shown.mine[PERSONAL], shown.present),
        f"model, {PRIOR}": figures.pairwise_distances(shown.mine[PRIOR][:, : shown.gold.shape[1]], shown.present),
    }
    pairs = [f"A{a + 1}-A{b + 1}" for a, b in combinations(range(shown.gold.shape[1]), 2)]
    rows = tuple((name, _mean(values), *map(_mean, values.T)) for name, values in found.items())
    caption = f"Mean distance between two raters (1 - IoU); {where}"
    table = Table(f"{slug}-distances", caption, ("who", "all pairs", *pairs), rows,
                  ("The prior's draws belong to no rater: their pairs are interchangeable.",))  # fmt: skip
    said = "; ".join(f"{name} {row[1]:.3f}" for name, row in zip(found, rows, strict=True) if row[1] is not None)
    return Figure(
        f"{slug}-distances", f"Distance between two raters, and between two draws (Fig. 1, 7, 8); {where}",
        f"Violins of the distance between two raters, for all pairs and each pair. Means over all pairs: {said}.",
        png_of(figures.pair_distances(found, gold="raters", label=shown.label)), table=table,
    )  # fmt: skip


def _mean(values: np.ndarray) -> float | None:
    """Over what is known; None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _ranks(shown: _Shown, slug: str, where: str) -> Figure:
    areas = {"raters": shown.gold.sum((2, 3)), "model": shown.mine[MEAN_MAP].sum((2, 3))}
    raters = shown.gold.shape[1]
    rows = [
        (name, f"A{rater + 1}", *(None if np.isnan(share) else float(share) for share in shares))
        for name, values in areas.items()
        for rater, shares in enumerate(figures.rank_shares(values, shown.present))
    ]
    columns = ("who", "rater", *(f"rank {rank + 1}" for rank in range(raters)))
    caption = f"Share of slices in which a rater holds a rank by area; {where}"
    table = Table(f"{slug}-ranks", caption, columns, tuple(rows), ("Rank 1 is the smallest.",))
    firsts = [(f"{row[0]} {row[1]}", row[2]) for row in rows if isinstance(row[2], float)]
    said = ", ".join(f"{name} {share:.0%}" for name, share in firsts)
    return Figure(
        f"{slug}-ranks",
        f"How often each rater draws the smallest to the largest area, and the model for each (Fig. 4); {where}",
        f"Stacked bars, one a rater, for the raters and for the model's mean maps. Share of the smallest: {said}.",
        png_of(figures.area_ranks(areas, rater_mask=shown.present, label=shown.label)), table=table,
    )  # fmt: skip


@torch.no_grad()
def _taus(model: ProSeg, slug: str, label: str) -> Figure:
    alpha = model.alpha()
    tau = draw_dirichlet(alpha[:, None].expand(-1, TAUS, -1), torch.Generator().manual_seed(0))
    own = _nearest_is_own(tau)
    rows = tuple((f"A{rater + 1}", share) for rater, share in enumerate(own))
    caption = f"Share of a rater's draws of tau whose nearest other draw is the same rater's; {label}"
    table = Table(f"{slug}-tau", caption, ("rater", "nearest is the same rater's"), rows,
                  (f"Without any difference between the raters it would be about {1 / len(own):.2f}.",))  # fmt: skip
    said = ", ".join(f"A{rater + 1} {share:.0%}" for rater, share in enumerate(own))
    return Figure(
        f"{slug}-tau", f"Preferences of the raters: {TAUS} draws of q(tau | r) of each, t-SNE (Fig. 6); {label}",
        f"A scatter plot with a colour and a marker a rater. The nearest other draw is the same rater's for: {said}.",
        png_of(figures.tau_map(tau.numpy(), label=label)), table=table,
    )  # fmt: skip


def _nearest_is_own(tau: torch.Tensor) -> list[float]:
    """[R, N, K] -> for each rater, the share of draws whose nearest other draw, of all raters, is of the same rater."""
    raters, draws, size = tau.shape
    distances = torch.cdist(tau.reshape(-1, size), tau.reshape(-1, size)).fill_diagonal_(torch.inf)
    whose = distances.argmin(1) // draws
    return (whose.view(raters, draws) == torch.arange(raters)[:, None]).float().mean(1).tolist()


def _uncertainty(model: Method, shown: _Shown, slug: str, cases: str) -> Figure:
    place = max(shown.few.tolist(), key=lambda number: shown.gold[number].sum())
    found = uncertainty(model, shown.image[place : place + 1], torch.Generator().manual_seed(0))
    mean, from_z, from_tau = (part[0].sum(0).numpy().clip(0, 1) for part in (found.mean, found.from_z, found.from_tau))
    drawn = figures.uncertainty(
        shown.image[place, 0].numpy(), shown.gold[place], mean, from_z, from_tau, rater_mask=shown.present[place],
        window=shown.window, draws=64, label=shown.label,
    )  # fmt: skip
    total = float(from_z.sum() + from_tau.sum())
    share = f" {float(from_tau.sum()) / total:.0%} of it comes from the raters (tau)." if total > 0 else ""
    return Figure(
        f"{slug}-uncertainty",
        f"Where the model is unsure, and whether the scan or the raters are why; one slice of {cases}",
        f"One slice: the image, the raters' outlines, the mean probability, the variance from the scan (z) and from "
        f"the raters (tau).{share}",
        png_of(drawn),
    )  # fmt: skip


def _inference(model: Method, image: torch.Tensor) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"a map of each of {model.raters} raters": _seconds(lambda: mean_maps(model, image)),
        f"{TIMED_DRAWS} draws from the prior": _seconds(lambda: sample_prior(model, image, TIMED_DRAWS, generator)),
    }


def _seconds(job: Callable[[], Any]) -> float:
    """CPU seconds of one call: the median of a few."""
    job()
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        job()
        found.append(time.process_time() - began)
    return statistics.median(found)
