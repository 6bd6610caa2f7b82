"""Placement of trials on machines that are pretended."""

from itertools import product

import pytest

from orchestrator.placement import capacity
from orchestrator.resources import Node, ResourceError, Resources, plan_resources


def placed(
    *machines: tuple[int, int], workers: int = 1, share: float | None = None, concurrent: int | None = None,
    trials: int = 100, fit: int | None = None,
) -> Resources:  # fmt: skip
    """On machines of (cores, GPUs)."""
    nodes = [Node(cpus=cpus, gpus=gpus) for cpus, gpus in machines]
    return plan_resources(
        workers=workers, gpu_share=share, concurrent=concurrent, trials=trials, nodes=nodes, fit=fit
    )  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "asked", "concurrent", "cpus", "gpus", "threads"),
    [
        ((2, 0), {}, 2, 1, 0, 1),
        ((8, 0), {"concurrent": 2}, 2, 4, 0, 4),
        ((8, 0), {"workers": 2}, 4, 2, 0, 1),
        ((8, 0), {"workers": 2, "concurrent": 1}, 1, 8, 0, 4),
        ((7, 0), {"workers": 3}, 2, 3, 0, 1),
        ((16, 4), {}, 4, 4, 1, 4),
        ((16, 4), {"share": 0.5}, 8, 2, 0.5, 2),
        ((16, 4), {"workers": 2}, 2, 8, 2, 4),
        ((16, 4), {"workers": 2, "share": 0.5}, 4, 4, 1, 2),
        ((4, 8), {}, 4, 1, 1, 1),
        ((16, 1), {"share": 0.1}, 10, 1, 0.1, 1),
        ((16, 1), {"share": 0.3}, 3, 5, 0.3, 5),
        ((12, 3), {"share": 0.34}, 6, 2, 0.34, 2),
    ],
)
def test_trials_are_fitted_onto_the_machine(
    machine: tuple[int, int], asked: dict, concurrent: int, cpus: int, gpus: float, threads: int
):
    found = placed(machine, **asked)
    assert (found.concurrent, found.cpus_per_trial, found.gpus_per_trial) == (concurrent, cpus, gpus)
    assert found.threads_per_rank == threads


@pytest.mark.parametrize(
    ("machine", "asked", "concurrent"),
    [
        ((8, 2), {"workers": 3, "share": 0.5}, 1),  # 1.5 GPUs: what is left of the second is not enough for another
        ((16, 4), {"workers": 3, "share": 0.5}, 2),
        ((16, 4), {"workers": 2, "share": 0.75}, 2),
        ((16, 4), {"workers": 4, "share": 0.3}, 3),
        ((8, 1), {"workers": 2, "share": 0.5}, 1),  # fewer GPUs than ranks: they share
        ((8, 2), {"workers": 4, "share": 0.5}, 1),
    ],
)
def test_what_a_trial_holds_need_not_be_whole_gpus(machine: tuple[int, int], asked: dict, concurrent: int):
    found = placed(machine, **asked)
    assert found.concurrent == concurrent
    assert found.gpus_per_trial == asked["workers"] * asked["share"]


@pytest.mark.parametrize(("share", "fit"), [(0.6, 2), (0.4, 4), (0.51, 2)])
def test_a_share_never_spans_two_gpus(share: float, fit: int):
    """Two cards of which each holds one trial of 0.6 hold two of them, not three: Ray does not split a fraction."""
    assert placed((16, 2), share=share).concurrent == fit


@pytest.mark.parametrize(
    ("machines", "asked", "concurrent", "threads"),
    [
        ([(4, 0), (4, 0)], {}, 8, 1),
        ([(3, 0), (3, 0)], {"concurrent": 2}, 2, 3),
        ([(5, 0), (3, 0)], {"concurrent": 2}, 2, 3),  # 4 cores each would leave the smaller machine without a seat
        ([(3, 0), (3, 0)], {"workers": 2}, 3, 1),
        ([(8, 2), (8, 2)], {"workers": 4}, 1, 4),
        ([(8, 2), (4, 2)], {}, 4, 2),  # the narrower GPU decides for all
        ([(4, 0), (8, 2)], {}, 2, 4),  # a machine without GPUs has no place where others have some
    ],
)
def test_trials_are_fitted_onto_several_machines(
    machines: list[tuple[int, int]], asked: dict, concurrent: int, threads: int
):
    found = placed(*machines, **asked)
    assert (found.concurrent, found.threads_per_rank) == (concurrent, threads)
    assert (found.cpus, found.gpus) == (sum(m[0] for m in machines), sum(m[1] for m in machines))


MACHINES = [(1, 0), (2, 0), (3, 0), (7, 0), (16, 0), (2, 1), (3, 2), (5, 2), (4, 8), (16, 4), (1, 2), (24, 3)]
CLUSTERS = [[one] for one in MACHINES] + [[MACHINES[i], MACHINES[-1 - i]] for i in range(len(MACHINES) // 2)]
SHARES = (None, 0.2, 0.34, 0.5, 0.6)


@pytest.mark.parametrize(
    ("machines", "share"),
    [(machines, share) for machines in CLUSTERS for share in (SHARES if any(g for _, g in machines) else [None])],
    ids=str,
)
def test_what_is_planned_never_exceeds_the_machines(machines: list[tuple[int, int]], share: float | None):
    planned = 0
    for workers, concurrent in product((1, 2, 3, 4), (None, 1, 2, 3)):
        try:
            found = placed(*machines, workers=workers, share=share, concurrent=concurrent)
        except ResourceError:
            continue
        planned += 1
        cards, bundles = found.cards(), found.bundles()
        for number, node in enumerate(found.nodes):
            here = [bundle for bundle, card in zip(bundles, cards, strict=True) if card.node == number]
            assert sum(bundle["CPU"] for bundle in here) <= node.cpus
            assert sum(bundle.get("GPU", 0) for bundle in here) <= node.gpus
        assert 1 <= found.concurrent <= capacity(cards, workers, found.share), "so many do find a seat"
        assert found.concurrent * found.cpus_per_trial <= found.cpus
        assert found.concurrent * found.gpus_per_trial <= found.gpus or not found.gpus
    assert planned


def test_ray_sets_aside_whole_gpus_and_no_more_cores_than_are_used():
    assert placed((16, 4), share=0.5).bundles() == 4 * [{"CPU": 4.0, "GPU": 1.0}]
    assert placed((16, 4), concurrent=1).bundles() == 4 * [{"CPU": 4.0, "GPU": 1.0}]
    assert placed((64, 4), share=0.5, concurrent=4).bundles() == 4 * [{"CPU": 16.0, "GPU": 1.0}]
    assert placed((7, 0), concurrent=2).bundles() == 2 * [{"CPU": 3.0}]


@pytest.mark.parametrize(("trials", "fit", "concurrent"), [(3, None, 3), (100, 5, 5), (3, 5, 3), (100, 99, 16)])
def test_no_more_trials_at_a_time_than_there_are_nor_than_memory_has_room_for(
    trials: int, fit: int | None, concurrent: int
):
    assert placed((16, 0), trials=trials, fit=fit).concurrent == concurrent


def test_what_is_asked_for_stands_where_memory_is_doubtful():
    assert placed((16, 0), concurrent=4, trials=2, fit=1).concurrent == 4


@pytest.mark.parametrize(
    ("machine", "asked", "unit", "rate"),
    [((16, 4), {"workers": 2, "share": 0.25}, "GPU-hours", 0.5), ((8, 0), {"concurrent": 2}, "CPU-hours", 4.0)],
)
def test_budgets_are_counted_in_gpus_or_without_them_in_cores(
    machine: tuple[int, int], asked: dict, unit: str, rate: float
):
    found = placed(machine, **asked)
    assert (found.unit, found.units_per_trial) == (unit, rate)


@pytest.mark.parametrize(
    ("machine", "asked", "parts"),
    [
        ((2, 0), {"workers": 3}, ["--workers 3", "2", "use at most 2"]),
        ((2, 0), {"concurrent": 3}, ["--concurrent 3", "use at most 2"]),
        ((8, 0), {"workers": 4, "concurrent": 3}, ["--concurrent 3", "4 worker", "use at most 2"]),
        ((8, 0), {"share": 0.5}, ["--gpu-share", "without GPUs"]),
        ((8, 2), {"share": 0.5, "concurrent": 5}, ["--concurrent 5", "use at most 4"]),
        ((8, 2), {"share": 0.6, "concurrent": 3}, ["--concurrent 3", "use at most 2"]),
        ((8, 2), {"workers": 3}, ["--workers 3", "--gpu-share 1", "2 GPU", "--workers 2 with this share"]),
        ((8, 2), {"workers": 5, "share": 0.5}, ["--workers 5", "--gpu-share 0.5", "--workers 4 with this share"]),
        ((8, 2), {"workers": 3, "share": 0.6}, ["--workers 3", "--gpu-share 0.6", "--workers 2 with this share"]),
        ((2, 4), {"workers": 4}, ["--workers 4", "CPU cores", "use at most 2"]),
    ],
)
def test_a_refusal_names_the_option_and_the_largest_that_fits(machine: tuple[int, int], asked: dict, parts: list[str]):
    with pytest.raises(ResourceError) as error:
        placed(machine, **asked)
    assert [part for part in parts if part not in str(error.value)] == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("machine", [(1, 0), (3, 0), (3, 2), (5, 2), (4, 8), (16, 4), (1, 2)], ids=str)
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_the_largest_that_is_named_does_fit_and_one_more_does_not(machine: tuple[int, int], share: float):
    shape = {"share": share if machine[1] else None}
    with pytest.raises(ResourceError) as error:
        placed(machine, workers=99, **shape)
    words = str(error.value).split()
    largest = int(words[words.index("--workers", 2) + 1]) if words.count("--workers") > 1 else int(words[-1])
    assert placed(machine, workers=largest, **shape).concurrent >= 1
    with pytest.raises(ResourceError):
        placed(machine, workers=largest + 1, **shape)


def test_this_machine_is_asked_where_nothing_is_pretended():
    found = plan_resources(workers=1, gpu_share=None, concurrent=1, trials=1)
    assert isinstance(found, Resources)
    assert len(found.nodes) == 1
    assert found.cpus >= 1
