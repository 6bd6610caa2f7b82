"""The GPUs: what the driver says of them, what torch says, and whether the two agree."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.doctor.findings import Finding, ok, problem, unchecked, warning

SECONDS = 60
"""After which a driver, or the import of torch, hangs."""
BUSY = 0.2
"""Of a GPU's memory, from which on others use it."""
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""NVIDIA's driver that serves each major version of CUDA."""
ASK = "index,name,memory.total,memory.used,driver_version"
ASK_TORCH = """
import json, sys, torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] \
    if torch.cuda.is_available() else []
json.dump({"version": torch.__version__, "cuda": torch.version.cuda,
           "devices": [[one.name, one.total_memory] for one in devices]}, sys.stdout)
"""


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi lists it; memory in MiB, None where it is not told."""

    index: int
    name: str
    total: float | None
    used: float | None


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver."""

    version: str = ""
    cuda: str = ""
    """The newest CUDA it serves."""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""
    """Why it does not answer."""


@dataclass(frozen=True)
class Torch:
    """torch, as a process of its own sees it: an import that crashes must not end this one."""

    version: str = ""
    cuda: str | None = None
    """That it was built for; None: without."""
    devices: tuple[tuple[str, int], ...] = field(default=())
    """(name, bytes of memory) of those it can use."""
    error: str = ""
    said: str = ""
    """Its last warning, which tells why it sees no device."""


# --- what there is ----------------------------------------------------------------------------------------------------


def ask_driver() -> Driver | None:
    """None where NVIDIA's tool is not installed."""
    try:
        listed = _run(["nvidia-smi", f"--query-gpu={ASK}", "--format=csv,noheader,nounits"])
        if listed.returncode:
            return Driver(error=_last_line(listed.stdout + listed.stderr))
        return read_driver(listed.stdout, _run(["nvidia-smi"]).stdout)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return Driver(error=f"nvidia-smi did not answer within {SECONDS} s")


def read_driver(listed: str, shown: str) -> Driver:
    """Args: what nvidia-smi answers to ASK, and its own table, which alone names the version of CUDA."""
    rows = [[word.strip() for word in line.split(",")] for line in listed.splitlines() if line.strip()]
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", shown)
    return Driver(
        version=rows[0][-1] if rows else "", cuda=cuda[1] if cuda else "",
        gpus=tuple(Gpu(int(row[0]), row[1], _number(row[2]), _number(row[3])) for row in rows),
    )  # fmt: skip


def ask_torch() -> Torch:
    try:
        answer = _run([sys.executable, "-c", ASK_TORCH])
    except subprocess.TimeoutExpired:
        return Torch(error=f"its import did not end within {SECONDS} s")
    if answer.returncode:
        return Torch(error=_last_line(answer.stderr) or f"its import ended with code {answer.returncode}")
    found = json.loads(answer.stdout)
    devices = tuple((name, total) for name, total in found["devices"])
    return Torch(found["version"], found["cuda"], devices, said=_warning(answer.stderr))


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=SECONDS
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _warning(text: str) -> str:
    """Of Python's warnings the line with the message, not the one with the code."""
    lines = [line.split("Warning:", 1)[1].strip() for line in text.splitlines() if "Warning:" in line]
    return lines[-1][:300] if lines else ""


def _number(word: str) -> float | None:
    return float(word) if re.fullmatch(r"\d+(\.\d+)?", word) else None


# --- whether they can be used -----------------------------------------------------------------------------------------


def torch_installed(torch: Torch) -> Finding:
    if torch.error:
        return problem("torch", f"torch cannot be imported: {torch.error}",
                       f"{sys.executable} -m pip install --force-reinstall torch")  # fmt: skip
    return ok("torch", f"torch {torch.version}, built " + (f"for CUDA {torch.cuda}" if torch.cuda else "without CUDA"))


def gpus(torch: Torch, driver: Driver | None, hidden: str | None) -> list[Finding]:
    """Whether every GPU that the driver lists can be trained on.

    Args:
        hidden: CUDA_VISIBLE_DEVICES, None where it is not set.
    """
    if torch.error:
        return [unchecked("GPUs", "torch cannot be asked for them")]
    if driver is None or (not driver.gpus and not driver.error):
        if torch.devices:  # of another maker
            return [ok("GPUs", f"{len(torch.devices)} GPU(s): {', '.join(name for name, _ in torch.devices)}")]
        return [ok("GPUs", "no GPU: everything works, and is slow beyond the demo")]
    if driver.error:
        fix = "sudo reboot    # after an update of the driver; a container needs: docker run --gpus all"
        return [problem("GPUs", f"NVIDIA's driver does not answer: {driver.error}", fix)]
    if torch.devices:
        return [_seen(torch, driver, hidden), *(_busy(gpu) for gpu in driver.gpus if _is_busy(gpu))]
    return [_unseen(torch, driver, hidden)]


def _unseen(torch: Torch, driver: Driver, hidden: str | None) -> Finding:
    count = len(driver.gpus)
    if torch.cuda is None:
        fix = f"{sys.executable} -m pip uninstall -y torch && {sys.executable} -m pip install torch"
        return problem("GPUs", f"torch {torch.version} is built without CUDA: {count} GPU(s) lie idle", fix)
    if hidden is not None:
        return warning("GPUs", f"CUDA_VISIBLE_DEVICES={hidden!r} hides {count} GPU(s)", "unset CUDA_VISIBLE_DEVICES")
    if driver.cuda and _major(driver.cuda) < _major(torch.cuda):
        least = OLDEST_DRIVER.get(_major(torch.cuda))
        fix = f"sudo apt-get install nvidia-driver-{least}    # or newer, then reboot" if least else "update the driver"
        return problem("GPUs", f"the driver {driver.version} serves CUDA {driver.cuda}, torch {torch.version} needs "
                               f"{torch.cuda}: {count} GPU(s) lie idle", fix)  # fmt: skip
    why = f": {torch.said}" if torch.said else ""
    return problem(
        "GPUs", f"torch sees none of {count} GPU(s){why}", f"{sys.executable} -c 'import torch; torch.cuda.init()'"
    )


def _seen(torch: Torch, driver: Driver, hidden: str | None) -> Finding:
    names = ", ".join(f"{name} ({total / 2**30:.0f} GiB)" for name, total in torch.devices)
    said = f"{len(torch.devices)} GPU(s): {names}; driver {driver.version}"
    if len(torch.devices) < len(driver.gpus) and hidden is not None:
        return ok("GPUs", f"{said}; CUDA_VISIBLE_DEVICES={hidden!r} hides {len(driver.gpus) - len(torch.devices)}")
    return ok("GPUs", said)


def _is_busy(gpu: Gpu) -> bool:
    return bool(gpu.total and gpu.used and gpu.used / gpu.total > BUSY)


def _busy(gpu: Gpu) -> Finding:
    return warning("GPUs", f"of GPU {gpu.index} ({gpu.name}) {gpu.used:.0f} of {gpu.total:.0f} MiB are in use already",
                   "nvidia-smi    # shows by whom; CUDA_VISIBLE_DEVICES leaves a GPU out")  # fmt: skip


def _major(version: str) -> int:
    return int(version.split(".")[0])
