"""Studies for the benchmarks of the search: random blobs, a study on disk without the CLI, CPU time of many processes.

Imports neither torch nor Ray: `CpuClock` must begin before any other thread does.
"""

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
RATERS = 2
TINY = {
    "model.width": 4, "model.levels": 2, "model.z_channels": 2, "model.predictor_width": 4, "batch_size": 4,
    "patience": 1000,
}  # fmt: skip
"""A model of next to nothing, which trains to its last epoch."""


def make_blobs(folder: Path, *, slices: int = 16, side: int = 16):
    """A prepared store of discs in noise, two raters; fold 0 trains on 5 of its 8 patients and validates on 1."""
    from proseg.data.store import Description, write

    description = Description(
        name="blobs", label="random blobs, no patient", licence="none needed: made by a benchmark", unit="slice",
        sorted_raters=True, window=(-1000.0, 400.0),
    )  # fmt: skip
    return write(folder, _blobs(slices, side), description)


def _blobs(slices: int, side: int) -> Iterator[Any]:
    import numpy as np

    from proseg.data.case import Slice

    rng, grid = np.random.default_rng(0), np.indices((side, side))
    for number in range(slices):
        patient = f"p{number * 8 // slices}"
        distance = np.hypot(*(grid - rng.uniform(0.4 * side, 0.6 * side, (2, 1, 1))))
        masks = np.stack([distance < radius for radius in np.sort(rng.uniform(side / 8, side / 3, RATERS))])
        image = (800 * masks.mean(0) - 900 + rng.normal(0, 30, (side, side)))[None].astype(np.int16)
        yield Slice(image, masks, np.ones(RATERS, bool), patient, patient, float(number), (1.0, 1.0, 1.0))


def make_study(
    folder: Path, store: Any, space: dict[str, Any], *, workers: int = 1, concurrent: int = 1, seed: int = 0,
    sampler_seed: int | None = None,
):  # fmt: skip
    """A study with its folder, on this machine's cores without its GPUs, one thread a rank; nothing is tried first.

    Args:
        space: what the file of a space holds.
        seed: of the trainings, and of the proposals if `sampler_seed` does not say otherwise.
    """
    from orchestrator.environment import environment
    from orchestrator.resources import Node, Resources, this_node
    from orchestrator.study import DataRef, Study, base_config, write_state, write_study
    from search_spaces.space import parse_space

    parsed = parse_space({"data": str(store.folder), **space}, file="benchmark.toml", name="benchmark")
    study = Study(
        name=folder.name, folder=folder, created=0.0, space=parsed, finals=(), trials=parsed.budget.trials,
        base=base_config(parsed, epochs=parsed.budget.epochs, seed=seed), data=DataRef.of(store.folder, store.manifest),
        seed=seed if sampler_seed is None else sampler_seed, environment=environment(),
        resources=Resources(
            nodes=(Node(cpus=this_node().cpus, gpus=0),), workers=workers, gpu_share=0.0, concurrent=concurrent,
            threads_per_rank=1,
        ),
    )  # fmt: skip
    folder.mkdir(parents=True)
    write_study(study)
    write_state(study, "running")
    return study


class Nobody:
    """A tracker and a watcher who hears everything and keeps nothing."""

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **options: None


def in_process(module: str, request: dict[str, Any]) -> Any:
    """What `main` of a benchmark prints last for `--one REQUEST`, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", "--one", json.dumps(request)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def publish(name: str, text: str, record: dict[str, Any]) -> None:
    """Print a table, and keep its numbers, with machine and date."""
    from datetime import UTC, datetime

    from benchmarks.timing import machine

    where, when = machine("cpu"), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    print(f"{where}; {when}\n\n{text}")
    keep(name, {"machine": where, "date": when, **record})


def keep(name: str, record: dict[str, Any]) -> None:
    """Append to `results/NAME.jsonl`."""
    from proseg.records import append_line

    RESULTS.mkdir(exist_ok=True)
    append_line(RESULTS / f"{name}.jsonl", record)


def read(name: str) -> list[dict[str, Any]]:
    """What has been kept in `results/NAME.jsonl`."""
    from proseg.records import read_lines

    return read_lines(RESULTS / f"{name}.jsonl")


def machine_seconds() -> float:
    """CPU seconds of everything on this machine since it began."""
    user, nice, system, _, _, interrupts, soft, *_ = map(
        int, Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:]
    )
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}


class CpuClock:
    """CPU seconds, user and system, of this process and of all that come from it, the ended ones included.

    One of Linux's performance counters, the task clock, which every new thread and process inherits: whoever started
    it, whatever became its parent, and whether or not anybody waited for its end. `getrusage` is not complete here:
    Ray's raylet ignores the end of its children, whose times are then lost, and Ray's daemons outlive their parents.
    """

    _SOFTWARE, _TASK_CLOCK, _SIZE = 1, 1, 112
    _INHERIT, _WITHOUT_KERNEL = 1 << 1, 1 << 5
    """Without the second flag a kernel may ask for more rights; a task clock counts system time all the same."""

    def __init__(self) -> None:
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads > 1:
            raise RuntimeError(f"{threads - 1} threads are there already and would not be counted")
        fields = (self._SOFTWARE, self._SIZE, self._TASK_CLOCK, 0, 0, 0, self._INHERIT | self._WITHOUT_KERNEL)
        attributes = struct.pack("=IIQQQQQ", *fields).ljust(self._SIZE, b"\0")
        libc = ctypes.CDLL(None, use_errno=True)
        self._file = libc.syscall(PERF_EVENT_OPEN[platform.machine()], attributes, 0, -1, -1, 8)  # 8: close on exec
        if self._file < 0:
            reason = os.strerror(ctypes.get_errno())
            raise OSError(f"no performance counter ({reason}): see /proc/sys/kernel/perf_event_paranoid, at most 2")

        self._machine = machine_seconds()

    @property
    def others(self) -> float:
        """CPU seconds that everything else on this machine has had since the clock began."""
        return max(0.0, machine_seconds() - self._machine - self.seconds())

    def seconds(self) -> float:
        return struct.unpack("=Q", os.read(self._file, 8))[0] / 1e9
