"""Cores, memory, disks and limits of the machine: whether they suffice."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.disk import MARGIN
from orchestrator.doctor.findings import Finding, ok, problem, unchecked, warning
from orchestrator.surroundings import too_long

GIB = 2**30
MEMORY_LEAST, MEMORY_ENOUGH = 2 * GIB, 4 * GIB
"""Ray and one training of the demo take the first; two trainings at a time the second."""
SHARED_MEMORY_ENOUGH = 256 * 2**20
"""Ray's object store takes 128 MiB; what NCCL needs for the ranks of one machine comes on top."""
DISK_LEAST, DISK_ENOUGH = 2 * MARGIN, 10 * GIB
FULL_FOR_RAY = 0.95
"""Of the disk with Ray's files, above which Ray moves no object there from memory (`local_fs_capacity_threshold`)."""
FILES_ENOUGH = 4096
NETWORK = ("nfs", "cifs", "smb", "lustre", "beegfs", "gpfs", "ceph", "glusterfs", "fuse.sshfs", "fuse.gcsfuse",
           "fuse.s3fs", "fuse.mountpoint-s3", "9p", "afs")  # fmt: skip
"""How the types of file systems begin on which several machines lock files, more or less."""


# --- what there is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """Of a disk, or of shared memory, in bytes."""

    total: int
    free: int


def space(folder: Path) -> Space | None:
    """Of the file system that holds a folder, or would hold it; None where there is none."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is None:
        return None
    usage = shutil.disk_usage(existing)
    return Space(usage.total, usage.free)


def file_system_of(folder: Path) -> str | None:
    """The type of the file system that holds a folder, or would hold it, as the mount table names it."""
    parts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    return next((parts[str(path)] for path in (folder, *folder.parents) if str(path) in parts), None)


def group_limit(root: Path, names: tuple[str, ...], own: str = "") -> int | None:
    """The first number in a file of the control group (a container's limits); None where nothing is limited.

    Args:
        root: where the groups are mounted, /sys/fs/cgroup.
        names: the file's path in version 2 and in version 1 of control groups.
        own: the path of this process's group below the root.
    """
    for name in names:
        for folder in (root / own.lstrip("/"), root):
            path = folder / name
            if path.is_file():
                word = path.read_text(encoding="utf-8").split()[0]
                return int(word) if word.lstrip("-").isdigit() and 0 < int(word) < 2**60 else None
    return None


def cores_allowed(root: Path, own: str = "") -> float | None:
    """Cores' worth of time that a container may use; None where it is not limited."""
    quota = group_limit(root, ("cpu.max", "cpu/cpu.cfs_quota_us"), own)
    return quota and quota / 100_000  # the period, which nobody changes


def own_group() -> str:
    """The path of this process's control group (version 2), or nothing."""
    path = Path("/proc/self/cgroup")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


# --- whether it suffices ----------------------------------------------------------------------------------------------


def cores(usable: int, allowed: float | None) -> Finding:
    """Args: cores that this process may run on, and cores' worth of time that its container may use."""
    if allowed is not None and allowed + 0.5 < usable:
        count = max(1, int(allowed))
        return warning(
            "cores", f"{usable} cores are visible, but this container may use the time of {allowed:g}: trainings would "
            "crowd each other", f"taskset -c 0-{count - 1} proseg-tune launch ...",
        )  # fmt: skip
    if usable == 1:
        return warning(
            "cores", "1 core: a training and what drives it take turns", "proseg-tune launch demo --trials 4"
        )
    return ok("cores", f"{usable} cores")


def memory(total: int, available: int) -> Finding:
    said = f"{available / GIB:.1f} of {total / GIB:.1f} GiB of memory are available"
    if available < MEMORY_LEAST:
        return problem("memory", f"{said}: a study needs at least {MEMORY_LEAST / GIB:.0f}",
                       "ps aux --sort=-rss | head    # shows what holds it")  # fmt: skip
    if available < MEMORY_ENOUGH:
        return warning("memory", f"{said}: enough for one training at a time", "proseg-tune launch ... --concurrent 1")
    return ok("memory", said)


def shared_memory(found: Space | None, gpus: int) -> Finding:
    """Ray keeps its objects there, and NCCL what the ranks on one machine tell each other; containers get 64 MB."""
    if found is None:
        return unchecked("shared memory", "this system has no /dev/shm to look at")
    if found.free >= SHARED_MEMORY_ENOUGH:
        return ok("shared memory", f"{found.free / 2**20:.0f} MiB of shared memory are free")
    docker = "docker run --shm-size=2g ...    # Kubernetes: an emptyDir with medium: Memory on /dev/shm"
    fix = docker if found.total < SHARED_MEMORY_ENOUGH else "ls -l /dev/shm    # shows what fills it"
    said = f"{found.free / 2**20:.0f} of {found.total / 2**20:.0f} MiB of shared memory (/dev/shm) are free"
    if gpus > 1:
        return problem("shared memory", f"{said}: ranks on several GPUs (NCCL) fail without it", fix)
    return warning("shared memory", f"{said}: Ray falls back to files, which is slower", fix)


def workspace_disk(found: Space | None, folder: Path, *, writable: bool) -> Finding:
    elsewhere = "export PROSEG_HOME=/a/disk/with/room/proseg-runs"
    if found is None or not writable:
        return problem("workspace", f"{folder} cannot be written", elsewhere)
    said = f"{found.free / GIB:.1f} GiB are free for {folder}"
    if found.free < DISK_LEAST:
        return problem("workspace", f"the disk of {folder} is full: a study would wait for room", elsewhere)
    if found.free < DISK_ENOUGH:
        return warning("workspace", f"{said}: `launch --dry-run` tells what a study takes", elsewhere)
    return ok("workspace", said)


def ray_disk(found: Space | None, folder: Path, *, writable: bool = True) -> Finding:
    """Ray's sessions, logs and spilled objects."""
    if too_long(folder):
        return problem("Ray's folder", f"{folder} is too long a path for Ray's sockets", "export RAY_TMPDIR=/tmp")
    if found is None or not writable:
        return problem("Ray's folder", f"{folder} cannot be written, or its folder ray", "export RAY_TMPDIR=/tmp")
    used = 1 - found.free / found.total if found.total else 1.0
    elsewhere = "export RAY_TMPDIR=/a/disk/with/room"
    if found.free < DISK_LEAST:
        return problem("Ray's folder", f"the disk of {folder} is full: Ray does not start there", elsewhere)
    if used > FULL_FOR_RAY:
        return warning("Ray's folder", f"the disk of {folder} is {100 * used:.0f} % full: Ray moves nothing there when "
                                       "memory runs short", elsewhere)  # fmt: skip
    return ok("Ray's folder", f"{found.free / GIB:.1f} GiB are free for {folder}")


def open_files(soft: int, hard: int) -> Finding:
    """Args: the limits of this process; below 0 without one."""
    if soft < 0 or soft >= FILES_ENOUGH:
        return ok("open files", "as many as one likes" if soft < 0 else f"up to {soft} open files")
    may = hard < 0 or hard >= FILES_ENOUGH
    fix = "ulimit -n 65536" if hard < 0 or hard >= 65536 else f"ulimit -n {hard}"
    if not may:
        fix = "echo '* - nofile 65536' | sudo tee -a /etc/security/limits.conf    # then log in again"
    return warning("open files", f"at most {soft} open files: Ray needs about {FILES_ENOUGH} with many trials", fix)


def file_system(kind: str | None, folder: Path) -> Finding:
    """MLflow's and Optuna's SQLite files lie in the workspace: they need a disk whose locks hold."""
    if kind is None:
        return unchecked("file system", f"what kind of file system holds {folder} is not known")
    if kind.startswith(NETWORK):
        return warning(
            "file system", f"{folder} lies on {kind}: SQLite databases can break there when two machines write",
            "export MLFLOW_TRACKING_URI=http://SERVER:5000; proseg-tune launch ... --storage postgresql+psycopg2://...",
        )  # fmt: skip
    if kind in ("tmpfs", "ramfs"):
        return warning("file system", f"{folder} lies in memory ({kind}): it is gone after a restart",
                       "export PROSEG_HOME=$HOME/proseg-runs")  # fmt: skip
    if kind == "overlay":
        return warning("file system", f"{folder} lies inside of a container: it is gone with it",
                       "docker run -v $PWD/proseg-runs:/proseg-runs -e PROSEG_HOME=/proseg-runs ...")  # fmt: skip
    return ok("file system", f"{folder} lies on {kind}")
