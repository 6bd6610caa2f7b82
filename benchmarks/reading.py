"""Slices at random and batches for training out of the mapped store, against the same slices in NPY files.

All is warm: what is measured is not the disk. The rival of the batches is a torch DataLoader whose worker processes
load, normalise and augment item by item, as a folder of NPY files is usually read. The memory is what one more process
takes for itself (anonymous memory, Linux): the pages of the map belong to all, arrays that were loaded do not.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.loading import epochs, naive_turn
from benchmarks.timing import Row, command
from orchestrator.workspace import workspace
from proseg.data import batches
from proseg.data.catalog import open_data
from proseg.data.store import Store

GOAL_SLICES, GOAL_MEMORY = 20_000, 20.0
"""A second; MB."""


def measure(
    repeats: int = 5, batch_size: int = 12, workers: int = 2, slices: int = 5000, data: str = "lidc-contours"
) -> list[Row]:
    store = open_data(data, workspace())
    rows = np.random.default_rng(0).permutation(store.manifest.slices)[:slices]
    with tempfile.TemporaryDirectory() as folder:
        write_files(store, rows, Path(folder))
        files = Files(Path(folder), rows, store.manifest.window)
        check(store, files, rows[:batch_size])
        return [
            _random_access(store, files, repeats),
            *epochs(store, rows, files, f"epoch of {len(rows)} slices of NPY files", repeats, batch_size, workers),
            Row(f"memory of a process that reads {len(rows)} slices", [private(store.folder) for _ in range(repeats)],
                [private(files.folder) for _ in range(repeats)], "MB", GOAL_MEMORY, "beside what is shared"),
        ]  # fmt: skip


def _random_access(store: Store, files: "Files", repeats: int) -> Row:
    image, masks = store.image(0).copy(), store.annotations(0).copy()

    def ours() -> None:
        for row in files.rows:
            np.copyto(image, store.image(row))
            np.copyto(masks, store.annotations(row))

    def naive() -> None:
        for row in files.rows:
            files.load(row)

    ours(), naive()
    mine, rival = zip(*((_wall(ours), _wall(naive)) for _ in range(repeats)), strict=True)
    each = 1e6 / len(files.rows)
    note = f"{len(files.rows) / sorted(mine)[repeats // 2]:.0f} slices a second"
    return Row("a slice at random, copied", [each * one for one in mine], [each * one for one in rival], "wall us",
               1e6 / GOAL_SLICES, note)  # fmt: skip


def _wall(job) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def write_files(store: Store, rows: np.ndarray, folder: Path) -> None:
    for row in rows:
        np.save(folder / f"{row}.image.npy", store.image(row))
        np.save(folder / f"{row}.masks.npy", store.annotations(row))


class Files(Dataset):
    """Two NPY files a slice."""

    def __init__(self, folder: Path, rows: np.ndarray, window: tuple[float, float] | None):
        self.folder, self.rows, self.window = folder, rows, window

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return np.load(self.folder / f"{row}.image.npy"), np.load(self.folder / f"{row}.masks.npy")

    def item(self, row: int, coins: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = self.load(row)
        image = torch.from_numpy(pixels).float()
        if self.window:
            low, high = self.window
            image = (2 * (image - low) / (high - low) - 1).clip(-1, 1)
        return naive_turn(image, coins), naive_turn(torch.from_numpy(labels), coins)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.item(int(self.rows[place]), torch.randint(0, 2, (3,)).bool().tolist())


def check(store: Store, files: Files, rows: np.ndarray) -> None:
    """With the same coins the batch is the same."""
    torch.manual_seed(0)
    ours = batches.augment(batches.load(store, rows), flip=True)
    torch.manual_seed(0)
    coins = torch.randint(0, 2, (3, len(rows))).bool().T.tolist()
    items = [files.item(int(row), its) for row, its in zip(rows, coins, strict=True)]
    images, masks = (torch.stack(x) for x in zip(*items, strict=True))
    torch.testing.assert_close((ours.image, ours.annotations), (images, masks))


READ_ALL = """
import re, sys
from pathlib import Path
import numpy as np
from proseg.data.store import MANIFEST, Store

def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

folder, before = Path(sys.argv[1]), private()
if (folder / MANIFEST).exists():
    kept = Store(folder)
    kept.rows(kept.patients)
    total = sum(int(kept.image(row).sum()) + int(kept.annotations(row).sum()) for row in range(kept.manifest.slices))
else:
    kept = [np.load(path) for path in folder.glob("*.npy")]
print(private() - before)
"""
"""A process that reads a whole store, or loads a folder of NPY files; it says by how many MB it grew."""


def private(folder: Path) -> float:
    root = Path(__file__).resolve().parent.parent
    words = [sys.executable, "-c", READ_ALL, str(folder)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True, cwd=root).stdout)


if __name__ == "__main__":
    command(__doc__, measure)
