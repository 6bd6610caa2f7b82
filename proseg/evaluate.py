"""All metrics over a part of a data set: by slice or by volume, every case exactly once, on any number of ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proseg import metrics
from proseg.data import batches
from proseg.data.store import Store
from proseg.distributed import derive_seed, gather_objects, local_device, rank, world_size
from proseg.generate import binarise, maps
from proseg.losses import planes
from proseg.method import Method

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
    model: Method, store: Store, cases: Sequence[np.ndarray], *, crop: int | None, seed: int, prior_samples: int = 0
) -> Scores:
    """Score a model on cases (rows of the store, as `Store.cases` gives them).

    `ged` and the other set metrics use S = R samples, one for each rater (the missing ones too); `dice_a1` ..
    `dice_mean` the deterministic map made for each rater. With `prior_samples` the set metrics are given a second
    time, under `prior_`, for that many samples from the prior of tau (eq. 11), and with them `prior_ged_unbiased`.
    A volume counts the raters that annotated all of its slices; a sample of it keeps its tau through the slices, while
    z is drawn for each. The noise depends on the seed and the place in the list of cases,
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
    return Scores([case_name(store, case) for case in cases], values)


def score(model: Method, store: Store, cases: Sequence[np.ndarray], *, prior_samples: int = 0) -> Scores:
    """Score a trained model on this rank's device, with the crop and the seed of its own configuration.

    Both the final stage and `best --verify` call this, so that on the same device the same numbers come out.
    """
    config = model.config
    return evaluate(model.to(local_device()), store, cases, crop=config.data.crop, seed=config.seed,
                    prior_samples=prior_samples)  # fmt: skip


def _groups(cases: Sequence[np.ndarray], unit: str) -> Iterator[np.ndarray]:
    """Rows that are evaluated together: one volume, or a handful of slices."""
    if unit == "volume":
        yield from cases
        return
    rows = np.concatenate(list(cases)) if cases else np.zeros(0, int)
    for start in range(0, len(rows), SLICES_AT_ONCE):
        yield rows[start : start + SLICES_AT_ONCE]


def _score(
    model: Method, store: Store, rows: np.ndarray, crop: int | None, generator: torch.Generator, prior_samples: int
) -> dict[str, np.ndarray]:
    batch = batches.load(store, rows, crop).to(model.device)
    whole_volume = store.manifest.unit == "volume"
    cases = 1 if whole_volume else len(rows)

    def by_case(sets: torch.Tensor) -> torch.Tensor:
        """[B, S, K, H, W] -> [B * K, S, H, W], a case for each class; slices of one volume: [K, S, B, H, W]."""
        return sets.permute(2, 1, 0, 3, 4) if whole_volume else sets.transpose(1, 2).flatten(0, 1)

    present = batch.rater_mask.all(0, keepdim=True) if whole_volume else batch.rater_mask
    annotations = by_case(planes(batch.annotations, model.classes).bool())
    present = present.repeat_interleave(model.classes, 0)
    asked = [model.each_rater(), model.personal(cases, 1, generator)]
    if prior_samples:
        asked.append(model.prior(cases, prior_samples, generator))
    means, *sets = maps(model, batch.image, *asked)
    scores: dict[str, torch.Tensor] = {}
    for prefix, found in zip(("", "prior_"), sets, strict=False):
        of_set = metrics.set_metrics(by_case(binarise(found)), by_case(found), annotations, present)
        if not prefix:  # one draw a rater is no independent draw of the whole: it would flatter
            del of_set["ged_unbiased"]
        scores |= {prefix + name: value for name, value in of_set.items()}
    identity = metrics.dice_per_rater(by_case(binarise(means)), annotations, present)
    scores |= {f"dice_a{r + 1}": identity[:, r] for r in range(identity.shape[1])}
    scores["dice_mean"] = identity.nanmean(1)
    # A case's score is the mean over its classes.
    return {name: value.double().unflatten(0, (cases, -1)).nanmean(1).cpu().numpy() for name, value in scores.items()}


def case_name(store: Store, case: np.ndarray) -> str:
    """A volume's name, or that of a slice of it: unique in a store."""
    volume = str(store.volumes[case[0]])
    return volume if store.manifest.unit == "volume" else f"{volume}/{store.z[case[0]]:.2f}"


def metric_names(raters: int) -> tuple[str, ...]:
    """The names an objective may bear: what a validation reports, less d_aa, which is a constant of the data."""
    sets = (name for name in DIVERSITY if name != "d_aa")
    return (*sets, *(f"dice_a{r + 1}" for r in range(raters)), "dice_mean")
