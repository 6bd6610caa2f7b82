"""Placement of trials on machines that are pretended."""

import pytest

from orchestrator.resources import ResourceError, Resources, plan_resources


def placed(cpus: int, gpus: int = 0, *, workers: int = 1, share: float | None = None, concurrent: int | None = None):
    return plan_resources(
        workers=workers, gpu_share=share, concurrent=concurrent, trials=100, cpus=cpus, gpus=gpus
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
    ],
)
def test_trials_are_fitted_onto_the_machine(
    machine: tuple[int, int], asked: dict, concurrent: int, cpus: int, gpus: float, threads: int
):
    found = placed(*machine, **asked)
    assert (found.concurrent, found.cpus_per_trial, found.gpus_per_trial) == (concurrent, cpus, gpus)
    assert found.threads_per_rank == threads


@pytest.mark.parametrize("cpus", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("gpus", [0, 1, 2, 4])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("share", [None, 0.5])
def test_what_is_planned_never_exceeds_the_machine(cpus: int, gpus: int, workers: int, share: float | None):
    try:
        found = placed(cpus, gpus, workers=workers, share=share)
    except ResourceError:
        return
    assert found.concurrent >= 1
    assert found.concurrent * found.cpus_per_trial <= cpus
    assert found.concurrent * found.gpus_per_trial <= gpus


@pytest.mark.parametrize(("share", "fit"), [(0.6, 2), (0.4, 4), (0.51, 2)])
def test_a_share_never_spans_two_gpus(share: float, fit: int):
    """Two cards of which each holds one trial of 0.6 hold two of them, not three: Ray does not split a fraction."""
    assert placed(16, 2, share=share).concurrent == fit


def test_no_more_trials_at_a_time_than_there_are():
    assert plan_resources(workers=1, gpu_share=None, concurrent=None, trials=3, cpus=16, gpus=0).concurrent == 3


@pytest.mark.parametrize(
    ("machine", "asked", "parts"),
    [
        ((2, 0), {"workers": 3}, ["--workers 3", "2", "use at most 2"]),
        ((2, 0), {"concurrent": 3}, ["--concurrent 3", "use at most 2"]),
        ((8, 0), {"workers": 4, "concurrent": 3}, ["--concurrent 3", "4 worker", "use at most 2"]),
        ((8, 0), {"share": 0.5}, ["--gpu-share", "without GPUs"]),
        ((8, 2), {"share": 0.5, "concurrent": 5}, ["--concurrent 5", "use at most 4"]),
        ((8, 2), {"share": 0.6, "concurrent": 3}, ["--concurrent 3", "use at most 2"]),
        ((8, 2), {"workers": 3}, ["--workers 3", "use at most 2"]),
        ((8, 2), {"workers": 5, "share": 0.5}, ["--workers 5", "--gpu-share 0.5", "use at most 4"]),
        ((8, 2), {"workers": 3, "share": 0.5}, ["--workers 3", "--gpu-share 0.5", "whole number"]),
    ],
)
def test_a_refusal_names_the_option_and_the_largest_that_fits(machine: tuple[int, int], asked: dict, parts: list[str]):
    with pytest.raises(ResourceError) as error:
        placed(*machine, **asked)
    assert [part for part in parts if part not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_this_machine_is_asked_where_nothing_is_pretended():
    found = plan_resources(workers=1, gpu_share=None, concurrent=1, trials=1)
    assert isinstance(found, Resources)
    assert found.cpus >= 1
