"""How much of a data set each rater annotated."""

from collections.abc import Iterable

import numpy as np

from proseg.data.store import Store

RARE = 0.1
"""Share of the training slices of a fold below which a rater is rare."""


def cases_of_raters(store: Store, patients: Iterable[str]) -> np.ndarray:
    """[R] int: the cases of these patients that each rater annotated, of a volume all slices."""
    present = [np.all([store.rater_mask(row) for row in case], axis=0) for case in store.cases(patients)]
    return np.sum(present, axis=0, dtype=int) if present else np.zeros(store.manifest.raters, int)


def rare_raters(store: Store) -> list[str]:
    """A sentence for every rater who annotated few of the training slices of a fold, naming the fold with the fewest.

    Ranks of raters who are nobody in particular are passed over.
    """
    m = store.manifest
    if m.sorted_raters or not m.folds:
        return []
    present = np.stack([store.rater_mask(row) for row in range(m.slices)])
    trained = [present[store.rows(fold.train)] for fold in m.folds]
    counts = np.stack([rows.sum(0) for rows in trained])  # [folds, R]
    shares = counts / np.array([[max(1, len(rows))] for rows in trained])
    return [
        f"rater {name!r} annotated {counts[fold, rater]} of the {len(trained[fold])} training slices of fold "
        f"{m.folds[fold].index}: little can be learnt of them"
        for rater, name in enumerate(m.rater_labels)
        if shares[fold := int(shares[:, rater].argmin()), rater] < RARE
    ]
