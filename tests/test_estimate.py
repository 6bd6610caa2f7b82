"""What a study is expected to cost: from what was measured, by hand; and the measuring itself."""

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import estimate
from orchestrator.estimate import (
    CUDA_CONTEXT,
    _epochs_if_halved,
    fit_of,
    free_memory,
    largest_config,
    measure,
    probe,
    quote,
    share_of,
)  # fmt: skip
from orchestrator.quote import Quote, Stage
from orchestrator.resources import Node, ResourceError, plan_resources
from orchestrator.study import Study
from proseg.data.store import Store
from proseg.errors import DataError
from tests.studies import make_study, probe_of

GIB = 2**30


@pytest.fixture
def planned(tmp_path: Path, store: Store) -> Callable[..., Study]:
    """Makes a study of so many trials and epochs on pretended machines; other changes are those of its space."""

    def make(*, trials: int = 4, epochs: int = 8, concurrent: int = 2, gpus: int = 0, share: float | None = None,
             **changes: Any) -> Study:  # fmt: skip
        space = {"budget": {"trials": trials, "epochs": epochs}, "scheduler": {"grace_epochs": 1}, **changes}
        study = make_study(tmp_path, store, **space)
        resources = plan_resources(
            workers=1, gpu_share=share, concurrent=concurrent, trials=trials, nodes=[Node(cpus=8, gpus=gpus)]
        )
        return study.model_copy(update={"resources": resources})

    return make


# What early stopping leaves


@pytest.mark.parametrize(
    ("scheduler", "epochs", "mean"),
    [
        ({"grace_epochs": 1}, 8, 1 + 1 / 2 + 2 / 4 + 4 / 8),
        ({"grace_epochs": 2}, 8, 2 + 2 / 2 + 4 / 4),
        ({"grace_epochs": 3}, 8, 3 + 3 / 2 + 2 / 4),
        ({"grace_epochs": 1, "reduction": 3}, 9, 1 + 2 / 3 + 6 / 9),
        ({"grace_epochs": 6, "reduction": 3}, 60, 6 + 12 / 3 + 36 / 9 + 6 / 27),
        ({"grace_epochs": 8}, 8, 8),
        ({"grace_epochs": 9}, 8, 8),
        ({"kind": "none"}, 8, 8),
    ],
)
def test_epochs_of_a_trial_if_as_many_as_can_be_are_stopped(planned, scheduler: dict, epochs: int, mean: float):
    assert _epochs_if_halved(planned(epochs=epochs, scheduler=scheduler)) == pytest.approx(mean)


# The quote, by hand: an epoch takes 10 s, a test part 5 s


def test_a_search_alone(planned):
    study = planned()
    found = quote(study, probe_of(study))
    assert found.search == Stage(low=8 * 10, high=2 * 8 * 10), "4 x 2.5 epochs by two would be less than one training"
    assert found.confirm == found.final == Stage(low=0, high=0)
    assert (found.low, found.high, found.after_search) == (80, 160, 0)
    assert (found.step, found.epoch, found.spread, found.memory) == (0.1, 10, 0.2, 2**20)


def test_trials_that_do_not_share_out_equally_take_as_many_rounds(planned):
    study = planned(trials=5, scheduler={"kind": "none"})
    assert quote(study, probe_of(study)).search == Stage(low=5 * 8 * 10 / 2, high=3 * 8 * 10)


def test_confirmation_and_final_stage(planned, store: Store):
    study = planned(final=[{"data": str(store.folder), "epochs": 3}], confirm={"top": 3, "repeats": 2})
    found = quote(study, probe_of(study))
    assert found.confirm.high == 3 * 2 * 8 * 10 / 2
    assert found.final.high == 4 * (3 * 10 + 5) / 2, "four folds, two at a time"
    assert found.after_search == 240 + 70
    assert (found.low, found.high) == (80 + 310, 160 + 310)
    assert found.confirm.low == found.confirm.high, "nothing is stopped early there"


@pytest.mark.parametrize(
    ("trials", "confirm", "seconds"),
    [(4, {"top": 0}, 0), (4, {"top": 1}, 0), (1, {"top": 3}, 0), (2, {"top": 3, "repeats": 1}, 2 * 80 / 2)],
)
def test_a_confirmation_compares_two_at_least_and_not_more_than_there_are(
    planned, store: Store, trials: int, confirm: dict, seconds: float
):
    final = [{"data": str(store.folder), "epochs": 3}]
    study = planned(trials=trials, concurrent=2, confirm=confirm, final=final)
    assert quote(study, probe_of(study)).confirm.high == seconds


def test_without_a_final_stage_nothing_is_confirmed(planned):
    study = planned(confirm={"top": 3})
    assert quote(study, probe_of(study)).confirm.high == 0


def test_a_stage_takes_at_least_as_long_as_its_longest_training(planned, store: Store):
    study = planned(trials=9, concurrent=8, final=[{"data": str(store.folder), "epochs": 3}], confirm={"top": 0})
    assert quote(study, probe_of(study)).final.high == 3 * 10 + 5


def test_data_that_are_missing_cost_nothing(planned, store: Store):
    final = [{"data": str(store.folder), "epochs": 3}, {"data": "npc", "epochs": 99}]
    study = planned(final=final)
    there, gone = study.finals
    missing = gone.model_copy(update={"data": None, "folds": 0, "missing": "no files"})
    study = study.model_copy(update={"finals": (there, missing)})
    assert quote(study, probe_of(study)).final.high == 4 * (3 * 10 + 5) / 2


@pytest.mark.parametrize(
    ("machine", "unit", "rate"),
    [({"gpus": 2, "share": 0.5}, "GPU-hours", 2 * 0.5), ({"gpus": 2}, "GPU-hours", 2), ({}, "CPU-hours", 2 * 4)],
)
def test_hours_are_those_of_the_places_that_are_held(planned, machine: dict[str, Any], unit: str, rate: float):
    study = planned(**machine)
    found = quote(study, probe_of(study))
    assert (found.unit, found.rate) == (unit, rate)
    assert found.units(1800) == rate / 2


def test_the_disk_that_is_needed_at_most(planned, store: Store):
    study = planned(final=[{"data": str(store.folder), "epochs": 3}], confirm={"top": 3, "repeats": 2})
    found = quote(study, probe_of(study, weights=1000))
    trainings, epochs = 4 + 6 + 4, 4 * 8 + 6 * 8 + 4 * 3
    assert found.checkpoint == 3000, "the weights, and two moments of Adam for each"
    assert found.disk == 2 * trainings * 1000 + 3 * 2 * 3000 + 2 * epochs * 4096


def test_a_quote_is_kept_with_its_study(planned):
    study = planned()
    found = quote(study, probe_of(study))
    assert Quote.model_validate_json(found.model_dump_json()) == found
    assert Study.model_validate_json(study.model_copy(update={"quote": found}).model_dump_json()).quote == found


# How many fit


@pytest.mark.parametrize(
    ("gib", "share"), [(10, 0.25), (15, 0.25), (20, 0.3333), (30, 0.5), (40, 1.0), (70, 1.0), (1, 0.25)]
)
def test_a_rank_gets_as_much_of_a_gpu_as_it_needs_with_some_to_spare(planned, gib: int, share: float):
    found = probe_of(planned(), gpu=True, memory=gib * GIB, room=80 * GIB)
    assert share_of(found, asked=None) == share
    assert share_of(found, asked=0.7) == 0.7, "what was asked for stands"


def test_shares_that_are_measured_fill_a_gpu_and_no_more():
    from orchestrator.placement import WHOLE, units

    for count in (1, 2, 3, 4):
        memory = int(80 * GIB / (count * estimate.MEMORY_TO_SPARE)) - 1
        found = estimate.Probe(None, (), memory=memory, room=80 * GIB, gpu=True, weights=0)  # type: ignore[arg-type]
        share = share_of(found, asked=None)
        assert WHOLE // units(share or 0) == count


def test_without_gpus_there_is_nothing_to_share(planned):
    assert share_of(probe_of(planned()), asked=None) is None


@pytest.mark.parametrize(("workers", "trials"), [(1, 13), (2, 6), (99, 1)])
def test_trials_that_fit_into_the_memory_of_a_machine(planned, workers: int, trials: int):
    study = planned()
    assert fit_of(probe_of(study, memory=GIB, room=20 * GIB), workers=workers) == trials
    assert fit_of(probe_of(study, memory=GIB, room=20 * GIB, gpu=True), workers=workers) is None, "GPUs decide"


def test_memory_that_is_free_is_less_than_there_is():
    total = int(Path("/proc/meminfo").read_text(encoding="utf-8").split("MemTotal:")[1].split()[0]) * 1024
    assert 0 < free_memory() < total


@pytest.mark.parametrize(("text", "number"), [("1234\n", 1234), ("max\n", None), ("", None), (None, None)])
def test_a_limit_of_a_container_may_be_none(tmp_path: Path, text: str | None, number: int | None):
    if text is not None:
        (tmp_path / "memory.max").write_text(text)
    assert estimate._number(tmp_path / "memory.max") == number


# Measuring


def test_the_largest_configuration_has_the_largest_of_every_size(planned):
    search = {
        "model.tau_size": {"kind": "int", "low": 2, "high": 5},
        "model.z_channels": {"kind": "choice", "values": [4, 2, 3]},
        "model.patch": {"kind": "fixed", "value": 1},
        "model.use_tau": {"kind": "choice", "values": [True, False]},
        "optim.lr": {"kind": "float", "low": 0.001, "high": 0.01},
    }
    study = planned(search=search)
    config = largest_config(study)
    assert (config.model.tau_size, config.model.z_channels, config.model.patch) == (5, 4, 1)
    assert config.model.use_tau == study.base.model.use_tau
    assert config.optim == study.base.optim


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads", "global_rng")
def test_a_probe_measures_every_data_set_that_is_at_hand(planned, store: Store):
    final = [{"data": str(store.folder), "epochs": 3, "base": {"batch_size": 2}}]
    found = measure(planned(final=final).model_dump_json())
    assert len(found.finals) == 1
    for timed in (found.search, *found.finals):
        assert 0 < timed.step < timed.epoch
        assert timed.test > 0
        assert timed.spread >= 0
    assert found.weights > 1000
    assert found.memory > (CUDA_CONTEXT if found.gpu else 2**26)
    assert found.room > found.memory


class Here:
    """In the place of a process of its own."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.result = lambda: function(*arguments)
        return self


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate\nmore"), ResourceError, "does not fit into a whole GPU"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
        (
            BrokenProcessPool("A process in the process pool was terminated abruptly"),
            ResourceError,
            r"was killed, most likely as memory ran out \(.* GiB are free now\): lower batch_size",
        ),
        (DataError("out of memory, it says"), DataError, "out of memory, it says"),
    ],
)
def test_a_configuration_for_which_there_is_no_memory_is_one_sentence(
    planned, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception], words: str
):
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr(estimate, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(estimate, "measure", fail)
    with pytest.raises(expected, match=words) as found:
        probe(planned(), remotely=False)
    assert "\n" not in str(found.value)
