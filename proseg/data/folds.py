"""Patient-disjoint folds, the same on every machine: they rest on hashes of patient ids, not on a random generator.

Patients are sorted by the size of their lesions and dealt to the folds in blocks, so that every fold sees small and
large ones; who of a block goes where is decided by a hash. The validation part of a fold is taken from its training
patients in the same way, so that nothing is ever chosen on test data.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

SEED = "proseg-tune/folds/1"
VALIDATION_SHARE = 8
"""One training patient of this many validates (12.5 %)."""


@dataclass(frozen=True)
class Fold:
    """A numbered partition of the patients."""

    index: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def make_folds(lesion_size: Mapping[str, float], count: int = 4) -> tuple[Fold, ...]:
    """Deal patients into `count` folds.

    Args:
        lesion_size: mean lesion area of every patient, any unit.
        count: number of folds; every patient is in the test part of exactly one.

    Raises:
        ValueError: fewer patients than one per part.
    """
    if len(lesion_size) < 2 * count:
        raise ValueError(f"{count} folds need at least {2 * count} patients, there are {len(lesion_size)}")
    parts = _deal(lesion_size, sorted(lesion_size), count, "test")
    folds = []
    for index, test in enumerate(parts):
        others = sorted(set(lesion_size) - set(test))
        val = _deal(lesion_size, others, min(VALIDATION_SHARE, len(others)), f"val {index}")[0]
        train = sorted(set(others) - set(val))
        folds.append(Fold(index, tuple(train), tuple(val), tuple(test)))
    return tuple(folds)


def check_folds(folds: Sequence[Fold], patients: Iterable[str]) -> None:
    """Whether each of the folds that came with the data is a partition of its patients.

    Raises:
        ValueError: a patient is in two parts or in none.
    """
    known = set(patients)
    for fold in folds:
        parts = {"train": set(fold.train), "val": set(fold.val), "test": set(fold.test)}
        for (one, some), (other, more) in combinations(parts.items(), 2):
            if some & more:
                raise ValueError(f"patient {min(some & more)} is in two parts of fold {fold.index}: {one} and {other}")
        if left_out := known - set().union(*parts.values()):
            raise ValueError(f"patient {min(left_out)} is in no part of fold {fold.index}")


def check_parts(folds: Sequence[Fold], patients: Iterable[str]) -> None:
    """Whether there is somebody to train, to validate and to test on; raises ValueError where there is not."""
    known = set(patients)
    for fold in folds:
        for name, part in (("train", fold.train), ("val", fold.val), ("test", fold.test)):
            if known.isdisjoint(part):
                raise ValueError(f"no patient with a slice is in the {name} part of fold {fold.index}")


def _deal(size: Mapping[str, float], patients: Sequence[str], count: int, salt: str) -> list[list[str]]:
    """Split patients into `count` groups of like size distribution."""
    by_size = sorted(patients, key=lambda patient: (size[patient], patient))
    groups: list[list[str]] = [[] for _ in range(count)]
    for start in range(0, len(by_size), count):
        block = sorted(by_size[start : start + count], key=lambda patient: _hash(f"{salt}:{patient}"))
        # A short last block must not always fall to the first groups: start at a hashed one.
        shift = int(_hash(f"{salt}:{start}")[:8], 16) if len(block) < count else 0
        for place, patient in enumerate(block):
            groups[(place + shift) % count].append(patient)
    return [sorted(group) for group in groups]


def _hash(text: str) -> str:
    return hashlib.sha256(f"{SEED}:{text}".encode()).hexdigest()
