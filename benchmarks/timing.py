"""What the benchmarks share: paired timing, peak memory, the machine's name, the table and the command line."""

import argparse
import importlib
import inspect
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

Job = Callable[[], object]
SHORTEST = 0.1
"""Seconds that one repetition takes at least."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what ours cost in each repetition, and the rival beside it."""

    name: str
    ours: list[float]
    rival: list[float]
    """In the same order; empty where there is none."""
    unit: str = "CPU-s"
    goal: float | None = None
    """Ours is to cost no more."""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """The rival in units of ours, pair by pair."""
        return [rival / ours for ours, rival in zip(self.ours, self.rival, strict=False)]


def paired(
    name: str, ours: Job, rival: Job, repeats: int, *, device: str = "cpu", goal: float | None = None, note: str = "",
    warm: bool = False,
) -> Row:  # fmt: skip
    """Seconds of one call of each, run alternately: CPU seconds of this process, or a GPU's.

    Before, each runs once or twice, if the caller has not warmed them up. What takes less than a tenth of a second is
    called as often as fills it, one call after the other: what stands in the cache does not depend on the rival.
    """
    jobs = ours, rival
    calls = [1 if warm else _calls(job, device) for job in jobs]
    pairs = [[seconds(job, device, n) for job, n in zip(jobs, calls, strict=True)] for _ in range(repeats)]
    mine, theirs = map(list, zip(*pairs, strict=True))
    cuda = device == "cuda"
    return Row(name, mine, theirs, "GPU-s" if cuda else "CPU-s", None if cuda else goal, note)


def _calls(job: Job, device: str) -> int:
    if seconds(job, device) > 2 * SHORTEST:
        return 1
    return max(1, round(SHORTEST / max(seconds(job, device), 1e-6)))


def seconds(job: Job, device: str = "cpu", calls: int = 1) -> float:
    """Of one call: CPU seconds of this process; on a GPU, seconds between two events in its queue."""
    if device != "cuda":
        began = time.process_time()
        for _ in range(calls):
            job()
        return (time.process_time() - began) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        job()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000 / calls


def peak(prepare: Callable[..., Job], small: dict, sizes: dict, *arguments: object) -> float:
    """MB by which the job that `prepare(*arguments, **sizes)` returns raises the memory of a process of its own.

    The job of the small sizes runs first, so that code which is loaded once does not count.
    """
    module = sys.modules[prepare.__module__].__spec__.name  # its true name, also where it runs as __main__
    request = json.dumps([module, prepare.__name__, arguments, small, sizes])
    command = [sys.executable, "-m", "benchmarks.timing", request]
    root = Path(__file__).resolve().parent.parent
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=one_thread)
    return float(done.stdout.splitlines()[-1])


def _growth(request: str) -> float:
    module, function, arguments, small, sizes = json.loads(request)
    torch.set_num_threads(1)
    prepare = getattr(importlib.import_module(module), function)
    prepare(*arguments, **small)()
    job = prepare(*arguments, **sizes)
    before = _resident(reset=True)
    job()
    return _resident() - before


def _resident(*, reset: bool = False) -> float:
    """Highest resident memory of this process so far, or since the last reset where the system (Linux) can; MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 2**10)
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**10


def machine(device: str) -> str:
    """The kind of machine, not which one."""
    return f"{_processor() if device == 'cpu' else torch.cuda.get_device_name()}, torch {torch.__version__}, 1 thread"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows: list[Row]) -> str:
    """Markdown: medians, and the rival in units of ours as the median of the pairs (their range)."""
    lines = ["| what | unit | ours | rival | rival / ours | goal | repeats | note |", "|---" * 8 + "|"]
    for row in rows:
        ours = statistics.median(row.ours)
        rival = _short(statistics.median(row.rival)) if row.rival else ""
        ratio = ""
        if row.rival:
            ratio = f"**{_short(statistics.median(row.ratios))}**"
        if len(row.rival) > 1:
            ratio += f" ({_short(min(row.ratios))} to {_short(max(row.ratios))})"
        goal = "" if row.goal is None else f"≤ {row.goal:g}: {'met' if ours <= row.goal else 'missed'}"
        cells = (row.name, row.unit, _short(ours), rival, ratio, goal, len(row.ours), row.note)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def publish(rows: list[Row], device: str, file: Path | None) -> None:
    """Print the table with machine and date; keep every repetition in a JSON file if one is named."""
    where, when = machine(device), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    print(f"{where}; {when}\n\n{table(rows)}")
    if file:
        content = {"machine": where, "date": when, "rows": [asdict(row) for row in rows]}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def command(about: str | None, measure: Callable[..., list[Row]], argv: list[str] | None = None) -> None:
    """The command line of one benchmark: its options are the arguments of `measure`, all of which have defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, argument in inspect.signature(measure).parameters.items():
        kind, default = type(argument.default), argument.default
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default {default}")
    parser.add_argument("--json", type=Path, help="keep every repetition in this file")
    options = vars(parser.parse_args(argv))
    file = options.pop("json")
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # or on a GPU ours and the rival differ by more than rounding
    publish(measure(**options), options.get("device", "cpu"), file)


if __name__ == "__main__":
    print(_growth(sys.argv[1]))
