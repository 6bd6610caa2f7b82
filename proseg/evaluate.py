"""All metrics over a part of a data set: by slice or by volume, every case exactly once, on any number of ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proseg import metrics
from proseg.data import batches
from proseg.data.store import Store
from proseg.distributed import derive_seed, gather_objects, rank, world_size
from proseg.generate import Maps, mean_maps, sample_personal, sample_prior
from proseg.model import ProSeg

SLICES_AT_ONCE = 32
DIVERSITY = ("ged", "d_pp", "d_pa", "d_aa", "dice_soft", "dice_max", "dice_match")


@dataclass(frozen=True)
class Scores:
    """Metrics of every case."""

    cases: list[str]
    values: dict[str, np.ndarray]
    """One value a case under each metric's name; NaN where it is not defined (a missing rater)."""

    def means(self) -> dict[str, float]:
        """Mean over cases of every metric; a metric that is defined nowhere is left out."""
        return {name: float(np.nanmean(v)) for name, v in self.values.items() if not np.isnan(v).all()}


def evaluate(
    model: ProSeg, store: Store, cases: Sequence[np.ndarray], *, crop: int | None, seed: int, prior_samples: int = 0
) -> Scores:
    """Score a model on cases (rows of the store, as `Store.cases` gives them).

    `ged` and the other set metrics use S = R samples, one for each rater; `dice_a1` .. `dice_mean` the deterministic
    map made for each rater. With `prior_samples` the set metrics are given a second time, under `prior_`, for that
    many samples from the prior of tau (eq. 11). The noise depends on the seed and the place in the list of cases,
    so that the numbers are the same on any number of ranks.
    """
    model.eval()
    groups = list(_groups(cases, store.manifest.unit))
    found: dict[int, dict[str, np.ndarray]] = {}
    with torch.no_grad():
        for number in range(rank(), len(groups), world_size()):
            generator = torch.Generator().manual_seed(derive_seed(seed, "evaluate", number))
            found[number] = _score(model, store, groups[number], crop, generator, prior_samples)
    everywhere = {number: scores for part in gather_objects(found) for number, scores in part.items()}
    ordered = [everywhere[number] for number in range(len(groups))]
    values = {name: np.concatenate([scores[name] for scores in ordered]) for name in ordered[0]} if ordered else {}
    return Scores([_name(store, case) for case in cases], values)


def _groups(cases: Sequence[np.ndarray], unit: str) -> Iterator[np.ndarray]:
    """Rows that are evaluated together: one volume, or a handful of slices."""
    if unit == "volume":
        yield from cases
        return
    rows = np.concatenate(list(cases)) if cases else np.zeros(0, int)
    for start in range(0, len(rows), SLICES_AT_ONCE):
        yield rows[start : start + SLICES_AT_ONCE]


def _score(
    model: ProSeg, store: Store, rows: np.ndarray, crop: int | None, generator: torch.Generator, prior_samples: int
) -> dict[str, np.ndarray]:
    device = model.embedding.device
    batch = batches.load(store, rows, crop).to(device)
    whole_volume = store.manifest.unit == "volume"
    posterior = model.posterior(batch.image)

    def by_case(maps: torch.Tensor) -> torch.Tensor:
        """[B, S, H, W] -> [1, S, B, H, W] where the slices are one volume."""
        return maps.transpose(0, 1)[None] if whole_volume else maps

    annotations = by_case(batch.annotations.bool())
    present = batch.rater_mask.any(0, keepdim=True) if whole_volume else batch.rater_mask
    personal = by_case(sample_personal(model, posterior, 1, generator, share_tau=whole_volume).flatten(1, 2))
    scores = _set_metrics(personal, annotations, present)
    identity = metrics.dice_per_rater(by_case(mean_maps(model, posterior)) > 0.5, annotations, present)
    scores |= {f"dice_a{r + 1}": identity[:, r] for r in range(identity.shape[1])}
    scores["dice_mean"] = identity.nanmean(1)
    if prior_samples:
        prior = by_case(sample_prior(model, posterior, prior_samples, generator, share_tau=whole_volume))
        scores |= {f"prior_{name}": value for name, value in _set_metrics(prior, annotations, present).items()}
    return {name: value.double().cpu().numpy() for name, value in scores.items()}


def _set_metrics(probabilities: Maps, annotations: torch.Tensor, present: torch.Tensor) -> dict[str, torch.Tensor]:
    samples = probabilities > 0.5
    distance = metrics.ged(samples, annotations, present)
    return {
        "ged": distance.ged, "d_pp": distance.d_pp, "d_pa": distance.d_pa, "d_aa": distance.d_aa,
        "dice_soft": metrics.dice_soft(probabilities, annotations, present),
        "dice_max": metrics.dice_max(samples, annotations, present),
        "dice_match": metrics.dice_match(samples, annotations, present),
    }  # fmt: skip


def _name(store: Store, case: np.ndarray) -> str:
    volume = str(store.volumes[case[0]])
    return volume if store.manifest.unit == "volume" else f"{volume}/{store.z[case[0]]:.2f}"


def metric_names(raters: int) -> tuple[str, ...]:
    """The names an objective may bear: what a validation reports, less d_aa, which is a constant of the data."""
    sets = (name for name in DIVERSITY if name != "d_aa")
    return (*sets, *(f"dice_a{r + 1}" for r in range(raters)), "dice_mean")
