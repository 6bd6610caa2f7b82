"""Folds: no patient on two sides, the same everywhere and for ever."""

import hashlib
import json
import random
from itertools import combinations

import numpy as np
import pytest
import torch

from proseg.data.folds import Fold, make_folds
from proseg.data.render import Nodule

# sha256 of the folds of the embedded selections: results on other folds must not be compared with ours.
EMBEDDED = {
    "paper": "25ba23b988fc5ab42062a5ad4283021c4ac89e34793da623910431b2c9176857",
    "all4": "634656fa9186f1ff5fab41402fb559896465c5acb34464145a997eb6a77cd885",
}


@pytest.fixture(scope="module")
def sizes(all_nodules: list[Nodule]) -> dict[str, dict[str, float]]:
    """Mean area of all masks of a slice for every patient, by selection, as the store computes it."""
    areas: dict[str, dict[str, list[float]]] = {"paper": {}, "all4": {}}
    for nodule in all_nodules:
        area = np.bitwise_count(nodule.packed_masks).sum((1, 2), dtype=np.int64)
        for selection, chosen in (("paper", nodule.in_paper), ("all4", nodule.complete)):
            if chosen.any():
                areas[selection].setdefault(nodule.patient, []).extend(area[chosen].tolist())
    return {name: {p: sum(a) / len(a) for p, a in of.items()} for name, of in areas.items()}


def digest(folds: tuple[Fold, ...]) -> str:
    parts = [[fold.index, fold.train, fold.val, fold.test] for fold in folds]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def made_up(count: int) -> dict[str, float]:
    return {f"patient-{i:03}": float((i * 37) % 101) for i in range(count)}


@pytest.mark.parametrize("selection", ["paper", "all4"])
def test_folds_of_the_embedded_data_never_change(sizes: dict[str, dict[str, float]], selection: str):
    assert digest(make_folds(sizes[selection])) == EMBEDDED[selection]


@pytest.mark.parametrize("count", [8, 9, 15, 16, 101])
def test_parts_are_disjoint_and_every_patient_is_tested_once(count: int):
    sizes = made_up(count)
    folds = make_folds(sizes)
    assert [fold.index for fold in folds] == [0, 1, 2, 3]
    assert sorted(patient for fold in folds for patient in fold.test) == sorted(sizes)
    for fold in folds:
        parts = [set(fold.train), set(fold.val), set(fold.test)]
        assert set.union(*parts) == set(sizes)
        assert all(parts)
        assert not any(a & b for a, b in combinations(parts, 2))


def test_parts_of_the_embedded_data_are_alike_in_count_and_lesion_size(sizes: dict[str, dict[str, float]]):
    sizes = sizes["paper"]
    folds = make_folds(sizes)
    assert max(len(fold.test) for fold in folds) - min(len(fold.test) for fold in folds) <= 1
    overall = np.median(list(sizes.values()))
    for fold in folds:
        assert len(fold.val) / len(fold.train + fold.val) == pytest.approx(1 / 8, abs=0.01)
        for part in (fold.train, fold.val, fold.test):
            assert np.median([sizes[p] for p in part]) == pytest.approx(overall, rel=0.15)


def test_the_order_of_the_patients_does_not_matter():
    sizes = made_up(50)
    assert make_folds(dict(reversed(sizes.items()))) == make_folds(sizes)


def test_equal_sizes_are_no_obstacle():
    folds = make_folds(dict.fromkeys(made_up(40), 1.0))
    assert [len(fold.test) for fold in folds] == [10] * 4


@pytest.mark.usefixtures("global_rng")
def test_global_generators_are_neither_used_nor_moved():
    def seeded_folds(seed: int) -> tuple[tuple[Fold, ...], float, float, float]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return make_folds(made_up(30)), random.random(), np.random.rand(), torch.rand(()).item()

    one, other = seeded_folds(1), seeded_folds(2)
    assert one[0] == other[0]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert one[1:] == (random.random(), np.random.rand(), torch.rand(()).item())


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_any_number_of_folds(count: int):
    folds = make_folds(made_up(60), count)
    assert [len(fold.test) for fold in folds] == [60 // count] * count


@pytest.mark.parametrize("patients", [0, 1, 7])
def test_too_few_patients_are_refused(patients: int):
    with pytest.raises(ValueError, match=f"need at least 8 patients, there are {patients}"):
        make_folds(made_up(patients))
