"""Preparing data of one's own: 5000 slices of 128 x 128 with four raters from NPY files, on two cores.

Seconds, CPU seconds and memory of all processes together, each preparation in processes of its own. The rival loads the
files one by one, checks nothing, holds everything in memory and saves two arrays.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import preparing
from benchmarks.timing import Row, command
from proseg.data.store import Store

SLICES_A_SECOND = 500
"""At least."""
MOST_MEMORY = 1024
"""MB, on two cores."""


def measure(repeats: int = 1, slices: int = 5000, side: int = 128, raters: int = 4, jobs: int = 2) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = preparing.write_files(folder / "files", slices, side, raters)
        runs = []
        for number in range(repeats):
            outs = folder / f"ours-{number}", folder / f"naive-{number}"
            runs.append([_cost(kind, files, out, jobs) for kind, out in zip(("ours", "naive"), outs, strict=True)])
            check(*outs)
    name = f"preparing {slices} slices, {jobs} jobs"
    wanted = (
        ("wall", "wall s", slices / SLICES_A_SECOND, ""),
        ("cpu", "CPU-s", None, "children included"),
        ("memory", "MB", MOST_MEMORY, "all processes, each at its peak"),
    )
    return [
        Row(name, [mine[key] for mine, _ in runs], [rival[key] for _, rival in runs], unit, goal, note)
        for key, unit, goal, note in wanted
    ]


def _cost(kind: str, files: Path, out: Path, jobs: int) -> dict[str, float]:
    line = [
        sys.executable,
        "-m",
        "benchmarks.preparing",
        kind,
        str(files),
        str(out),
        str(jobs if kind == "ours" else 0),
    ]
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def check(ours: Path, naive: Path) -> None:
    """Both hold the same slices."""
    store = Store(ours)
    images, masks = np.load(naive / "images.npy", mmap_mode="r"), np.load(naive / "masks.npy", mmap_mode="r")
    assert store.manifest.slices == len(images)
    for row in range(store.manifest.slices):
        np.testing.assert_array_equal(store.image(row), images[row])
        np.testing.assert_array_equal(store.annotations(row), masks[row])


if __name__ == "__main__":
    command(__doc__, measure)
