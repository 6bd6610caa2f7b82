"""Ray: one of our own on this machine, or a cluster that is joined; always left as it was found."""

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from orchestrator.doctor.services import no_cluster
from orchestrator.interrupt import children_keep_running
from orchestrator.resources import Node, ResourceError, Resources
from orchestrator.stores import first_line
from orchestrator.study import StudyError
from orchestrator.surroundings import ray_folder

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 3.0
"""That a process of ours has to end by itself once Ray is gone."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: Tune would go on as if all were done
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # of Tune's own state, which nobody reads: ours is the log
}
EQUAL = {"RAY_worker_niceness": "0"}
"""Ray's processes give way to all others (nice 15): beside any other program a training would nearly come to a
standstill. Whoever wants that says `nice proseg-tune launch`."""
PATIENT = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "600"}
"""In the processes of the trials: where an ended trial has not let go in two seconds, its default, Tune drops the next
trial without a word to the searcher, and the search waits for ever."""


def environment(*, local: bool, verbose: bool) -> None:
    """What must be said to Ray before it is imported, unless the user has said otherwise."""
    for name, value in (QUIET | EQUAL | PATIENT).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "1" if verbose else "0")  # the new output has no way to be silent
    # A trial that fails is ours to report: Tune would print its traceback.
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "1" if verbose else "0")
    if local:
        # Ray's own switch for machines with a firewall: every port is bound to 127.0.0.1.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Ray would write a token into HOME, and leave it there.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # 20 of them take a quarter of an hour to give up
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.CRITICAL)


@contextmanager
def joined(address: str | None, home: Path, *, verbose: bool) -> Iterator[list[Node] | None]:
    """Join the cluster at an address, and leave it in the end; its nodes. Without an address nothing is done.

    Every node must see the workspace `home`.

    The token of the cluster is taken from where Ray looks for it (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH,
    ~/.ray/auth_token). Our code travels with the job, so the nodes need only the packages it depends on.

    Raises:
        StudyError: there is no cluster there, it does not let us in, or a node does not see the workspace.
    """
    if address is None:
        yield None
        return
    named = (address == "auto" and os.environ.get("RAY_ADDRESS")) or address  # as Ray reads it
    if why := no_cluster(named, ray_folder(os.environ) / "ray"):
        raise StudyError(f"--address {address}: no Ray cluster can be joined there ({why}); is it running?")
    environment(local=False, verbose=verbose)
    import ray

    import orchestrator
    import proseg
    import search_spaces

    level = logging.INFO if verbose else logging.ERROR
    modules = [str(Path(module.__path__[0])) for module in (orchestrator, proseg, search_spaces)]
    code = {"py_modules": modules, "env_vars": PATIENT}
    try:
        ray.init(address=address, runtime_env=code, log_to_driver=verbose, logging_level=level)
    except Exception as error:  # Ray has a different one for each way not to be there
        raise StudyError(
            f"--address {address}: no Ray cluster can be joined there ({first_line(error)}); "
            "is it running, and is its token in RAY_AUTH_TOKEN or ~/.ray/auth_token?"
        ) from None
    try:
        home.mkdir(parents=True, exist_ok=True)
        check_shared(home)
        yield [Node(cpus=int(node["Resources"].get("CPU", 0)), gpus=int(node["Resources"].get("GPU", 0)))
               for node in ray.nodes() if node["Alive"]]  # fmt: skip
    finally:
        ray.shutdown()


@contextmanager
def keeper(resources: Resources, *, address: str | None, verbose: bool, lost: Callable[[str], None]) -> Iterator[Any]:
    """The actor that seats trainings (`orchestrator.ranks`), in a Ray of our own or in the cluster that is joined.

    Args:
        lost: called, from another thread, should our own Ray die; this process ends after it.

    Raises:
        ResourceError: others hold what the study needs.
    """
    if address is None:
        with _own_ray(resources, verbose=verbose, lost=lost):
            yield _keeper(resources)
    else:
        yield _keeper(resources)


@contextmanager
def _own_ray(resources: Resources, *, verbose: bool, lost: Callable[[str], None]) -> Iterator[None]:
    environment(local=True, verbose=verbose)
    import ray

    level = logging.INFO if verbose else logging.ERROR
    with children_keep_running():
        ray.init(
            address="local", num_cpus=resources.cpus, num_gpus=resources.gpus, include_dashboard=False,
            log_to_driver=verbose, logging_level=level, configure_logging=True, object_store_memory=128 * 2**20,
        )  # fmt: skip
    ended = threading.Event()
    threading.Thread(target=_watch_head, args=(ended, lost), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        started = _descendants()
        ray.shutdown()
        _see_off(started)


def _head() -> list[subprocess.Popen[bytes]]:
    """The processes that Ray started with it on this machine."""
    from ray._private import worker

    node: Any = worker._global_node
    return [info.process for infos in node.all_processes.values() for info in infos]


def _descendants() -> list[psutil.Process]:
    """What runs below them: the trials and the ranks."""
    found: list[psutil.Process] = []
    for process in _head():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(process.pid).children(recursive=True)
    return found


def _see_off(processes: list[psutil.Process]) -> None:
    """Ray does not wait for what it ends: a rank in the middle of a step would outlive this program."""
    _, left = psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=SECONDS_TO_END)


def _watch_head(ended: threading.Event, lost: Callable[[str], None]) -> None:
    """Ray's client waits a minute for a head that is gone, then aborts this process without a word. We say it."""
    processes = _head()
    while not ended.wait(SECONDS_BETWEEN_LOOKS):
        dead = next((process for process in processes if process.poll() is not None), None)
        if dead is not None and not ended.is_set():
            lost(f"a process of Ray has died (exit code {dead.returncode})")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def _keeper(resources: Resources) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from orchestrator.ranks import Keeper

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000).remote(resources)
    if not ray.get(actor.ready.remote()):  # type: ignore[attr-defined]
        raise ResourceError("the cluster has no room: others hold all that this study needs; try again later")
    actor.hire.remote(resources.concurrent, resources.workers, resources.share)  # type: ignore[attr-defined]
    return actor


def check_shared(folder: Path) -> None:
    """Every node of the cluster must see the workspace, and write to it.

    Raises:
        StudyError: naming the node that does not.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = folder / f".seen-{os.getpid()}-{time.time_ns()}"
    mark.write_text("ours", encoding="utf-8")
    probe = ray.remote(num_cpus=0)(_sees)
    try:
        for node in [node for node in ray.nodes() if node["Alive"]]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                fault = ray.get(probe.options(scheduling_strategy=where).remote(str(mark)), timeout=120)
            except RayError as error:
                fault = first_line(error)
            if fault:
                raise StudyError(
                    f"node {node['NodeManagerAddress']} cannot use the workspace {folder} ({fault}): PROSEG_HOME must "
                    "be a folder that all nodes share, at the same path"
                )
    finally:
        for file in folder.glob(f"{mark.name}*"):
            file.unlink(missing_ok=True)


def _sees(mark: str) -> str:
    """What stands in the way of this node's use of the workspace; empty where nothing does."""
    try:
        if Path(mark).read_text(encoding="utf-8") != "ours":
            return "it sees another folder there"
        answer = Path(f"{mark}-{os.getpid()}")
        answer.write_text("seen", encoding="utf-8")
        answer.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""
