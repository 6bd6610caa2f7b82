"""Peak memory, each number in a process of its own: growth of the resident set over what stood there before.

Rivals: the loops of `step` and `samples`, and for many samples all maps at once through the predictor.
"""

import torch

from benchmarks.samples import naive_prior
from benchmarks.step import make_step, model_like, random_batch
from benchmarks.timing import Job, Row, command, peak
from proseg.config import TrainConfig
from proseg.generate import sample_prior
from proseg.losses import probabilities
from proseg.recipes import MODERN

SMALL = 16
"""Side of the images of the run that goes before, pixels."""


def measure(
    repeats: int = 1, batch: int = 12, side: int = 128, samples: int = 50, many: int = 500, depth: int = 56
) -> list[Row]:
    wanted = [
        ("training step", "loop over raters", prepare_step, {"batch": batch}),
        (f"{samples} samples of one image", "one at a time", prepare_samples, {"images": 1, "samples": samples}),
        (f"{many} samples of one image", "all at once", prepare_samples, {"images": 1, "samples": many}),
        (f"{samples} samples of {depth} slices", "all at once", prepare_samples, {"images": depth, "samples": samples}),
    ]
    rows = []
    for name, rival, prepare, sizes in wanted:
        kinds = ("ours", rival)
        small, full = {"batch": 1} if prepare is prepare_step else {"images": 1, "samples": 1}, {**sizes, "side": side}
        pairs = [[peak(prepare, {**small, "side": SMALL}, full, kind) for kind in kinds] for _ in range(repeats)]
        ours, theirs = map(list, zip(*pairs, strict=True))
        rows.append(Row(f"peak memory, {name}", ours, theirs, unit="MB", note=f"rival: {rival}"))
    return rows


def prepare_step(kind: str, *, batch: int, side: int) -> Job:
    return make_step(TrainConfig().with_values(MODERN), random_batch(batch, 3, 4, side), naive=kind != "ours")


def prepare_samples(kind: str, *, images: int, samples: int, side: int) -> Job:
    batch = random_batch(images, 3, 4, side)
    naive = kind == "one at a time"
    model = model_like(TrainConfig().with_values(MODERN), batch, naive=naive).eval()
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def at_once() -> torch.Tensor:
        draws = model.prior(images, samples, generator)
        flat = type(draws)(draws.who.flatten(), draws.tau.flatten(0, 1), generator)
        place = torch.arange(images).repeat_interleave(samples)
        return probabilities(model.decode(model.encode(batch.image), place, flat))

    return {
        "ours": lambda: sample_prior(model, batch.image, samples, generator),
        "one at a time": lambda: naive_prior(model, batch.image, samples, generator),
        "all at once": at_once,
    }[kind]


if __name__ == "__main__":
    command(__doc__, measure)
