"""An epoch of augmented batches out of the mapped store, CPU seconds (children included) and wall time.

The rival is a torch DataLoader whose worker processes load, normalise and augment item by item.
"""

import resource
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Job, Row, command
from orchestrator.workspace import workspace
from proseg.data import batches
from proseg.data.catalog import open_data
from proseg.data.store import Store


def measure(
    repeats: int = 3, batch_size: int = 12, workers: int = 2, slices: int = 2000, data: str = "lidc-contours"
) -> list[Row]:
    store = open_data(data, workspace())
    rows = np.random.default_rng(0).permutation(store.manifest.slices)[:slices]
    check(store, rows[:batch_size])

    return epochs(store, rows, Naive(store, rows), f"epoch of {len(rows)} slices", repeats, batch_size, workers)


def epochs(
    store: Store, rows: np.ndarray, rival: Dataset, name: str, repeats: int, batch_size: int, workers: int
) -> list[Row]:
    """An epoch of augmented batches of these rows, against a DataLoader over the rival's data set."""

    def ours() -> None:
        for start in range(0, len(rows), batch_size):
            batches.augment(batches.load(store, rows[start : start + batch_size]), flip=True)

    def naive() -> None:
        for _ in DataLoader(rival, batch_size=batch_size, num_workers=workers):
            pass

    ours(), naive()
    measured = [(cost(ours), cost(naive)) for _ in range(repeats)]
    return [
        Row(name, [mine[i] for mine, _ in measured], [theirs[i] for _, theirs in measured], unit, note=note)
        for i, unit, note in ((0, "CPU-s", f"rival: {workers} workers, their seconds included"), (1, "wall s", ""))
    ]


def cost(job: Job) -> tuple[float, float]:
    began = _cpu(), time.perf_counter()
    job()
    return _cpu() - began[0], time.perf_counter() - began[1]


def _cpu() -> float:
    """Of this process and of all children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Naive(Dataset):
    def __init__(self, store: Store, rows: np.ndarray):
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, ...]:
        image, masks, present = naive_item(self.store, int(self.rows[place]))
        coins = torch.randint(0, 2, (3,)).bool().tolist()
        return naive_turn(image, coins), naive_turn(masks, coins), present


def naive_item(store: Store, row: int) -> tuple[torch.Tensor, ...]:
    image = torch.tensor(store.image(row)).float()
    if store.manifest.window:
        low, high = store.manifest.window
        image = (2 * (image - low) / (high - low) - 1).clip(-1, 1)
    return image, torch.tensor(store.annotations(row)), torch.tensor(store.rater_mask(row))


def naive_turn(picture: torch.Tensor, coins: list[bool]) -> torch.Tensor:
    """[..., H, W], square"""
    mirrored, flipped, turned = coins
    picture = picture.flip(-1) if mirrored else picture
    picture = picture.flip(-2) if flipped else picture
    return picture.transpose(-1, -2) if turned else picture


def check(store: Store, rows: np.ndarray) -> None:
    """With the same coins the batch is the same."""
    torch.manual_seed(0)
    ours = batches.augment(batches.load(store, rows), flip=True)
    torch.manual_seed(0)
    coins = torch.randint(0, 2, (3, len(rows))).bool().T.tolist()
    items = [naive_item(store, int(row)) for row in rows]
    images, masks, present = (torch.stack(x) for x in zip(*items, strict=True))
    images, masks = (torch.stack(list(map(naive_turn, x, coins))) for x in (images, masks))
    torch.testing.assert_close((ours.image, ours.annotations, ours.rater_mask), (images, masks, present))


if __name__ == "__main__":
    command(__doc__, measure)
