"""How many trials run at the same time, and what each of them holds."""

import os

from pydantic import BaseModel, ConfigDict

from proseg.errors import ProSegError


class ResourceError(ProSegError):
    """The machine is smaller than what a trial asks for."""


class Resources(BaseModel):
    """What the study uses of this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int
    """Of the machine, as this process may use them."""
    gpus: int
    workers: int
    """DDP ranks of one trial."""
    gpu_share: float
    """Share of one GPU that each rank holds; 0 without GPUs."""
    concurrent: int
    """Trials at the same time."""

    @property
    def cpus_per_trial(self) -> int:
        return max(self.workers, self.cpus // self.concurrent)

    @property
    def gpus_per_trial(self) -> float:
        return round(self.workers * self.gpu_share, 4)

    @property
    def threads_per_rank(self) -> int:
        return max(1, self.cpus_per_trial // self.workers)


def plan_resources(
    *, workers: int, gpu_share: float | None, concurrent: int | None, trials: int,
    cpus: int | None = None, gpus: int | None = None,
) -> Resources:  # fmt: skip
    """Fit trials onto the machine; what is None is chosen.

    Raises:
        ResourceError: a trial, or so many of them, does not fit; the message says what would.
    """
    cpus = len(os.sched_getaffinity(0)) if cpus is None else cpus
    gpus = _count_gpus() if gpus is None else gpus
    share = _gpu_share(gpu_share, gpus)
    _check_gpus(workers, share, gpus)
    if workers > cpus:
        raise ResourceError(f"--workers {workers} needs as many CPU cores, this machine has {cpus}: use at most {cpus}")
    fit = _fit(cpus, gpus, workers, share)
    if concurrent is not None and concurrent > fit:
        raise ResourceError(
            f"--concurrent {concurrent} trials of {workers} worker(s) do not fit onto {cpus} cores and {gpus} GPUs: "
            f"use at most {fit}"
        )
    return Resources(cpus=cpus, gpus=gpus, workers=workers, gpu_share=share, concurrent=concurrent or min(fit, trials))


def _fit(cpus: int, gpus: int, workers: int, share: float) -> int:
    """Trials that find room at the same time; a fraction of a GPU is never split over two."""
    if not gpus:
        return cpus // workers
    wanted = workers * share
    fit = gpus * int(1 / wanted + 1e-6) if wanted <= 1 else gpus // round(wanted)
    return min(cpus // workers, fit)


def _gpu_share(asked: float | None, gpus: int) -> float:
    if not gpus:
        if asked is not None:
            raise ResourceError("--gpu-share has no meaning on a machine without GPUs: leave it out")
        return 0.0
    return 1.0 if asked is None else asked


def _check_gpus(workers: int, share: float, gpus: int) -> None:
    wanted = workers * share
    if wanted > gpus:
        raise ResourceError(
            f"--workers {workers} with --gpu-share {share} needs {wanted:g} GPUs, there are {gpus}: "
            f"use at most {int(gpus / share)} workers"
        )
    if wanted > 1 and wanted != int(wanted):
        raise ResourceError(
            f"--workers {workers} with --gpu-share {share} makes {wanted:g} GPUs a trial, which must be a whole number "
            "above one: use --gpu-share 1, or a share with workers x share at most 1"
        )


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
