"""Everything that a study needs of its surroundings, looked at; nothing is written, and nothing started unless asked.

The checks are functions of facts, so that what is rare can be tried; here the facts are found.
"""

import os
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from orchestrator.doctor import data, gpus, machine, packages, services
from orchestrator.doctor.findings import Finding, unchecked
from orchestrator.server import free_port, port_is_free
from orchestrator.stores import is_own
from orchestrator.study import StudyError, read_state, read_study, studies_folder
from orchestrator.surroundings import ray_folder, takes_ray, writable
from proseg.data.catalog import listing

GROUPS = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")


def examine(home: Path, environ: Mapping[str, str], *, deep: bool) -> Iterator[Finding]:
    """One finding after the other, each as soon as it is known.

    Args:
        home: the workspace, which may not be there yet.
        environ: the environment.
        deep: start a Ray, which takes seconds.
    """
    yield from packages.check()
    torch, driver = gpus.ask_torch(), gpus.ask_driver()
    yield gpus.torch_installed(torch)
    yield from gpus.gpus(torch, driver, environ.get("CUDA_VISIBLE_DEVICES"))
    yield from _machine()
    yield from needed(home, environ, gpus=len(torch.devices))
    yield machine.file_system(machine.file_system_of(home), home)
    yield from _services(home, environ, deep=deep)
    yield from _data(home)


def needed(home: Path, environ: Mapping[str, str], *, gpus: int, own_ray: bool = True) -> Iterator[Finding]:
    """That without which no study runs, of what takes no time to look at.

    Args:
        gpus: that ranks of one training may share the memory of this machine on.
        own_ray: Ray is started on this machine, and no cluster joined.
    """
    stubborn = next((path for path in _written(home) if not writable(path)), None)
    yield machine.workspace_disk(machine.space(home), stubborn or home, writable=stubborn is None)
    if own_ray:
        folder = ray_folder(environ)
        yield machine.ray_disk(machine.space(folder), folder, writable=takes_ray(folder))
        yield machine.shared_memory(machine.space(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None, gpus)
    yield services.loopback(services.try_loopback())


def mlflow(home: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Whether the runs of a study can be told to MLflow; nothing is made."""
    return services.tracking(environ.get("MLFLOW_TRACKING_URI"), home)


def _written(home: Path) -> Iterator[Path]:
    """Folders of the workspace that every study writes to; another user may have made some of them."""
    yield from (home, studies_folder(home), home / "quality")
    if is_own(home):
        yield home / "mlflow"


def _machine() -> Iterator[Finding]:
    group = machine.own_group()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield machine.cores(usable, machine.cores_allowed(GROUPS, group))
    yield machine.memory(*_memory(group))
    yield _open_files()


def _memory(group: str) -> tuple[int, int]:
    """(all, available) bytes: a container's limit counts where it has one."""
    found = psutil.virtual_memory()
    limit = machine.group_limit(GROUPS, ("memory.max", "memory/memory.limit_in_bytes"), group)
    if limit is None or limit >= found.total:
        return found.total, found.available
    used = machine.group_limit(GROUPS, ("memory.current", "memory/memory.usage_in_bytes"), group) or 0
    return limit, min(found.available, limit - used)


def _open_files() -> Finding:
    try:
        import resource
    except ImportError:
        return unchecked("open files", "this system has no such limit to look at")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return machine.open_files(soft, hard)


def _services(home: Path, environ: Mapping[str, str], *, deep: bool) -> Iterator[Finding]:
    ray = ray_folder(environ) / "ray"
    yield services.ray_cluster(environ.get("RAY_ADDRESS"), ray)
    cluster = bool(environ.get("RAY_ADDRESS")) or (ray / "ray_current_cluster").exists()
    yield services.leftovers(services.processes(), cluster=cluster)
    if deep:
        yield services.start_ray()
    else:
        yield unchecked("Ray", "whether it starts was not tried, as that takes seconds", "proseg-tune doctor --deep")
    yield from mlflow(home, environ)
    yield services.ui_port(port_is_free(services.UI_PORT), free_port())
    yield services.proxy(urllib.request.getproxies())


def _data(home: Path) -> Iterator[Finding]:
    yield from data.data_sets(listing(home), home)
    for folder in sorted(studies_folder(home).glob("*/study.json")):
        try:
            study = read_study(folder.parent)
            if read_state(study) != "finished":
                yield from data.searched(study.name, study.data.folder, study.data.fingerprint)
        except StudyError as error:
            yield unchecked("studies", str(error), f"mv {folder.parent} {folder.parent}.damaged")
