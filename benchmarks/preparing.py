"""One preparation in a process of its own, as a user starts one: `python -m benchmarks.preparing KIND FOLDER OUT JOBS`.

It loads no more than `data prepare` needs, for its memory is measured, and its workers load what it loads.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from proseg.data import own
from proseg.data.kinds import Choices
from proseg.data.source import prepare

WINDOW = (-1000.0, 400.0)


def write_files(folder: Path, slices: int, side: int, raters: int) -> Path:
    """NPY files in the layout of a folder: images of noise, and squares that grow with the rater."""
    rng = np.random.default_rng(0)
    places = [folder / "images", *(folder / f"masks/r{rater}" for rater in range(raters))]
    for place in places:
        place.mkdir(parents=True)
    for number in range(slices):
        np.save(places[0] / f"s{number:05}.npy", rng.integers(-1000, 400, (side, side)).astype(np.int16))
        for rater, place in enumerate(places[1:]):
            mask = np.zeros((side, side), np.uint8)
            mask[side // 4 : side // 2 + rater, side // 4 : side // 2 + number % 8] = 1
            np.save(place / f"s{number:05}.npy", mask)
    return folder


def ours(folder: Path, out: Path, jobs: int) -> None:
    source = own.source(folder, "benchmark", Choices(window=WINDOW, label="noise", licence="none needed"))
    prepare(source, out, jobs=jobs)


def naive(folder: Path, out: Path, jobs: int) -> None:
    """Loads every file, checks nothing, and saves two arrays that have stood in memory as a whole."""
    names = sorted(path.name for path in (folder / "images").iterdir())
    raters = sorted((folder / "masks").iterdir())
    out.mkdir()
    np.save(out / "images.npy", np.stack([np.load(folder / "images" / name)[None] for name in names]))
    np.save(out / "masks.npy", np.stack([[np.load(rater / name) for rater in raters] for name in names]))


def cost(job, jobs: int) -> dict[str, float]:
    """Wall and CPU seconds, and MB: the peak of this process, and of each worker the peak of the largest."""
    began = time.perf_counter()
    job()
    wall = time.perf_counter() - began
    used = {who: resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)}
    cpu = sum(one.ru_utime + one.ru_stime for one in used.values())
    unit = 2**20 if sys.platform == "darwin" else 2**10
    most, largest = (one.ru_maxrss / unit for one in used.values())
    return {"wall": wall, "cpu": cpu, "memory": most + jobs * largest}


def main(kind: str, folder: str, out: str, jobs: str) -> None:
    prepared = {"ours": ours, "naive": naive}[kind]
    print(json.dumps(cost(lambda: prepared(Path(folder), Path(out), int(jobs)), int(jobs))))


if __name__ == "__main__":
    main(*sys.argv[1:])
