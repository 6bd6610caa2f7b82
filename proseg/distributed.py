"""One process or many: what training needs to know of its process group.

World size is asked, never configured; every function here works without a process group.
"""

import hashlib
import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

T = TypeVar("T")

GLOO_INTERFACE, LOOPBACK = "GLOO_SOCKET_IFNAME", "lo"


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_device() -> torch.device:
    """The GPU of this rank, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank() % torch.cuda.device_count())


def device_kind() -> str:
    """What this rank computes on, for people: cpu, or the name of its GPU."""
    device = local_device()
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def seed_everything(*parts: object) -> None:
    """Seed torch from (seed, epoch, rank, ...): each rank has its own noise, and an epoch can be entered afresh."""
    torch.manual_seed(derive_seed(*parts))


def derive_seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_objects(value: T) -> list[T]:
    """The value of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def join_group(number: int, ranks: int, *, meeting: str, backend: str) -> None:
    """Make this process rank `number` of a group of `ranks`.

    Args:
        meeting: where the ranks find each other: file:// and a path, as it is (one machine, or a shared file system
            that locks), or tcp://address:port of rank 0.
        backend: nccl or gloo.
    """
    if meeting.startswith("file:"):
        os.environ.setdefault(GLOO_INTERFACE, LOOPBACK)  # all ranks live on this machine
    elif os.environ.get(GLOO_INTERFACE) == LOOPBACK:
        del os.environ[GLOO_INTERFACE]  # of an earlier group of this process
    place: dict[str, Any] = {"init_method": meeting}
    if meeting.startswith("file:"):  # torch would cut the path at a ? or #
        place = {"store": dist.FileStore(meeting.removeprefix("file://"), ranks)}  # type: ignore[attr-defined]
        place["store"].set_timeout(default_pg_timeout)
    dist.init_process_group(backend, rank=number, world_size=ranks, **place)


def leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def device_name() -> str:
    """What tells this process's device from those of others: the UUID of its GPU, or cpu."""
    device = local_device()
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"
