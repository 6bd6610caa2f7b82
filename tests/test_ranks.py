"""Who sits where in a real Ray: on GPUs that are pretended, and on several nodes of one machine."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, *words: str, **more: str) -> list[str]:
    """Run code in a process of its own: each needs a Ray that is set up in another way."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PROSEG_"))}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *words], cwd=ROOT, env=environment | more, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


PLACED = """
import json, sys
import ray
from orchestrator import session
from orchestrator.ranks import Keeper
from orchestrator.resources import Node, plan_resources

class Seated:
    "Tells where it sits, and does nothing else."
    def __init__(self, threads, share):
        pass
    def where(self):
        return "here", "pretended", [int(n) for n in ray.get_gpu_ids()]

session.environment(local=True, verbose=False)
ray.init(address="local", num_cpus=80, num_gpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=128 * 2**20)
for share in (0.2, 0.25, 0.34, 0.5, 1.0):
    for workers in (1, 2, 4):
        resources = plan_resources(workers=workers, gpu_share=share, concurrent=None, trials=99,
                                   nodes=[Node(cpus=80, gpus=4)])
        keeper = ray.remote(Keeper).options(num_cpus=0, max_concurrency=100).remote(resources, Seated)
        assert ray.get(keeper.ready.remote()) == 4
        count = resources.concurrent
        taken = [keeper.take.remote(str(n), workers, resources.share) for n in range(count)]
        crews = [[gpus for _, _, gpus in crew.places] for crew in ray.get(taken, timeout=120)]
        one_more = keeper.take.remote("one more", workers, resources.share)
        waits = not ray.wait([one_more], timeout=0.3)[0]
        ray.get(keeper.give.remote("0", warm=False))
        seated = bool(ray.wait([one_more], timeout=60)[0])
        print(json.dumps({"share": share, "workers": workers, "crews": crews, "waits": waits, "then": seated}))
        ray.get(keeper.close.remote())
        ray.kill(keeper)
ray.shutdown()
"""


@pytest.fixture(scope="module")
def table() -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in run(PLACED) if line.startswith("{")]


def test_the_ranks_of_a_trial_sit_on_different_gpus_which_trials_share(table: list[dict[str, Any]]):
    assert len(table) == 15
    for row in table:
        on_each_gpu = {0.2: 5, 0.25: 4, 0.34: 2, 0.5: 2, 1.0: 1}[row["share"]]
        assert len(row["crews"]) == on_each_gpu * 4 // row["workers"], row
        seats = [gpu for crew in row["crews"] for (gpu,) in crew]
        assert all(seats.count(gpu) == on_each_gpu for gpu in range(4)), row
        for crew in row["crews"]:
            assert len({gpu for (gpu,) in crew}) == row["workers"], row


def test_a_trial_too_many_waits_until_another_has_ended(table: list[dict[str, Any]]):
    assert all(row["waits"] and row["then"] for row in table)
