"""Ranks: what rank 0 says is heard, what any of them suffers is raised, and none outlives its reader."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Dirichlet

from proseg import latents
from proseg.checkpoint import load_checkpoint
from proseg.config import TrainConfig, parse
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.distributed import (
    derive_seed,
    device_name,
    gather_objects,
    join_group,
    leave_group,
    rank,
    seed_everything,
    sum_over_ranks,
    world_size,
)  # fmt: skip
from proseg.errors import ConfigError, ProSegError, TrainingError
from proseg.evaluate import evaluate
from proseg.fit import fit
from proseg.model import ProSeg
from proseg.records import BEST, EPOCHS, LAST, Criterion, read_epochs
from proseg.train import TrainState, train
from tests.groups import run_ranks


def count(upto: int) -> Iterator[tuple[int, int, int]]:
    for number in range(upto):
        yield number, rank(), world_size()


def talk() -> Iterator[tuple[list[int], list[float]]]:
    yield gather_objects(rank() + 10), sum_over_ranks(torch.tensor([1.0, float(rank())])).tolist()


def fail(who: int, kind: str) -> Iterator[int]:
    yield 1
    if rank() == who:
        if kind == "user":
            raise TrainingError(f"rank {who} cannot go on")
        if kind == "bug":
            raise KeyError("unheard of")
        os._exit(7)
    gather_objects(0)


def for_ever(folder: Path) -> Iterator[int]:
    (folder / str(rank())).write_text(str(os.getpid()))
    gather_objects(0)
    while True:
        time.sleep(0.05)
        yield os.getpid()


def train_and_compare(config: str, data: Path, fold: Fold) -> Iterator[tuple[dict[str, float], list[str]]]:
    for report in train(parse(config), Store(data), fold):
        yield report.metrics, gather_objects(digest(report.state.model))


def train_without_noise(config: str, data: Path, fold: Fold) -> Iterator[dict[str, list[float]]]:
    """Every z at its mean, every tau at its rater's, all in double precision; the weights after each epoch.

    Patched in here, because each rank is a process of its own; one rank is the process of the tests.
    """
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng(), double_precision(patched):
        patched.setattr(latents, "grid_noise", lambda shape, grid, device, generator=None: torch.zeros(shape))
        patched.setattr(Dirichlet, "rsample", lambda self, sample_shape=(): self.mean)
        patched.setattr(ProSeg, "_prior_of_each", _preferences)
        patched.setattr(torch, "multinomial", lambda weights, count: weights.argmax(-1, keepdim=True))
        for report in train(parse(config), Store(data), fold):
            weights = report.state.best_guess.state_dict()
            yield {"loss": [report.metrics["train/loss"]], **{n: w.flatten().tolist() for n, w in weights.items()}}


@contextmanager
def double_precision(patched: pytest.MonkeyPatch) -> Iterator[None]:
    """In single precision Adam makes of a tiny gradient's rounding a step that can be seen."""
    read, before = torch.from_numpy, torch.get_default_dtype()

    def read_double(array: np.ndarray) -> torch.Tensor:
        return read(array.astype(np.float64) if array.dtype == np.float32 else array)

    patched.setattr(torch, "from_numpy", read_double)
    patched.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _preferences(model: ProSeg, shape: tuple[int, int, int]) -> torch.Tensor:
    """The same on any number of ranks; the draws of a rater differ."""
    draws = torch.eye(shape[2], model.config.model.tau_size)
    return (model.alpha().detach().softmax(1)[:, None] + draws).expand(*shape, -1) / 2


def digest(model: torch.nn.Module) -> str:
    values = [value.detach().contiguous().numpy().tobytes() for value in model.state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


def score(config: str, data: Path) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
    store = Store(data)
    model = TrainState.fresh(parse(config), store, torch.device("cpu")).model
    scores = evaluate(model, store, store.cases(sorted(set(store.patients))), crop=None, seed=3, prior_samples=3)
    yield scores.cases, scores.values


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Without a process group


def test_one_rank_runs_in_this_process():
    assert list(run_ranks(count, 3, ranks=1)) == [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
    assert multiprocessing.active_children() == []


def test_an_error_of_one_rank_keeps_its_kind():
    with pytest.raises(KeyError):
        list(run_ranks(fail, 0, "bug", ranks=1))


def test_alone_everything_works_without_a_process_group():
    assert list(talk()) == [([10], [1.0, 0.0])]
    assert (rank(), world_size()) == (0, 1)


def test_derived_seeds_are_fixed_and_differ():
    assert derive_seed(0, "epoch", 1, 0) == 8710713083957717
    parts = [(seed, "epoch", epoch, rank) for seed in range(3) for epoch in range(5) for rank in range(4)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)


@pytest.mark.usefixtures("global_rng")
def test_seeding_repeats_the_noise():
    def noise(*parts: object) -> torch.Tensor:
        seed_everything(*parts)
        return torch.randn(4)

    assert torch.equal(noise(0, 1), noise(0, 1))
    assert not torch.equal(noise(0, 1), noise(1, 0))


# With one

slow = pytest.mark.slow


@slow
def test_what_rank_0_yields_is_heard_and_nothing_else():
    assert list(run_ranks(count, 3, ranks=2)) == [(0, 0, 2), (1, 0, 2), (2, 0, 2)]
    assert multiprocessing.active_children() == []


@slow
def test_ranks_hear_each_other():
    assert list(run_ranks(talk, ranks=3)) == [([10, 11, 12], [3.0, 3.0])]


@slow
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("user", TrainingError, "cannot go on"),
        ("bug", RuntimeError, "unheard of"),
        ("death", ProSegError, "exit code 7"),
    ],
)
def test_an_error_in_any_rank_is_raised_here(who: int, kind: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        list(run_ranks(fail, who, kind, ranks=2))
    assert multiprocessing.active_children() == []


@slow
def test_the_traceback_of_the_rank_comes_along():
    with pytest.raises(TrainingError) as caught:
        list(run_ranks(fail, 1, "user", ranks=2))
    assert "in fail" in str(caught.value.__cause__)


@slow
def test_closing_the_iterator_ends_the_ranks(tmp_path: Path):
    numbers = run_ranks(for_ever, tmp_path, ranks=2)
    next(numbers)
    ranks = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(ranks) == 2
    assert all(alive(pid) for pid in ranks)
    numbers.close()
    assert not any(alive(pid) for pid in ranks)


@slow
def test_scores_are_the_same_on_one_rank_and_on_two(tiny_config: TrainConfig, tiny_store: Store):
    arguments = tiny_config.model_dump_json(), tiny_store.folder
    with torch.random.fork_rng():
        ((cases, values),) = run_ranks(score, *arguments, ranks=1)
    ((cases_of_two, values_of_two),) = run_ranks(score, *arguments, ranks=2)
    assert cases == cases_of_two
    assert values.keys() == values_of_two.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, values_of_two[name], err_msg=name)


@slow
def test_ranks_keep_the_same_weights_and_the_loss_falls(tiny_config: TrainConfig, tiny_store: Store):
    fold = tiny_store.manifest.folds[0]
    epochs = list(run_ranks(train_and_compare, tiny_config.model_dump_json(), tiny_store.folder, fold, ranks=2))
    assert len(epochs) == 3
    for metrics, digests in epochs:
        assert len(set(digests)) == 1
        assert np.isfinite(list(metrics.values())).all()
    assert epochs[0][1] != epochs[-1][1]
    assert epochs[-1][0]["train/seg"] < epochs[0][0]["train/seg"]


@slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"loss.w_es": 1.0, "optim.ema": 0.5}, {"model.encoder": "separate", "loss.segmentation": "ce_dice"},
     {"model.use_z": False}, {"model.use_tau": False}, {"method": "multihead_unet"}],
    ids=str,
)  # fmt: skip
def test_two_ranks_train_as_one_with_the_whole_batch(tiny_config: TrainConfig, tiny_store: Store, changes: dict):
    """But for the noise, of which each rank has its own, they are the same training; raters are missing in it."""
    values = {"data.flip": False, "data.noise": 0.0, "epochs": 2, "optim.schedule": "constant", "optim.lr": 1e-3}
    config = tiny_config.with_values(values | changes).model_dump_json()
    arguments = config, tiny_store.folder, tiny_store.manifest.folds[0]
    alone, together = (list(run_ranks(train_without_noise, *arguments, ranks=ranks)) for ranks in (1, 2))
    assert len(alone) == len(together) == 2
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-9, atol=1e-10, err_msg=name)
    moved = max(np.abs(np.subtract(alone[1][name], alone[0][name])).max() for name in alone[0] if name != "loss")
    assert moved > 1e-3, "they did train"


@slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"optim.ema": 0.9, "optim.schedule": "cosine", "loss.w_es": 1.0, "data.rotate": 10.0},
     {"method": "multihead_unet", "optim.ema": 0.9}],
    ids=str,
)  # fmt: skip
def test_two_ranks_fit_into_one_folder_and_resume_to_the_bit(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, changes: dict
):
    config = tiny_config.with_values(changes)

    def fitted(folder: str) -> Iterator[dict]:
        fold = tiny_store.manifest.folds[0]
        return run_ranks(fit, config, tiny_store.folder, fold, tmp_path / folder, Criterion("ged"), ranks=2)

    whole = list(fitted("whole"))
    interrupted = fitted("interrupted")
    next(interrupted)
    interrupted.close()
    list(fitted("interrupted"))
    records = read_epochs(tmp_path / "interrupted")
    assert [record["metrics"] for record in records] == [record["metrics"] for record in whole]
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {LAST, BEST, EPOCHS} < names
    assert {path.name for path in (tmp_path / "interrupted").iterdir()} == names
    one, other = (load_checkpoint(tmp_path / folder / LAST) for folder in ("whole", "interrupted"))
    parts = ((c.model, c.optimizer, c.average) for c in (one, other))
    torch.testing.assert_close(*parts, rtol=0, atol=0)
    assert bool(one.average) == ("optim.ema" in changes)


@slow
def test_patience_ends_all_ranks(tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store):
    """The agreement of the raters is a constant of the data, so that no epoch is better than the first."""
    arguments = tiny_config.with_values({"epochs": 9, "patience": 2}), tiny_store.folder, tiny_store.manifest.folds[0]
    records = list(run_ranks(fit, *arguments, tmp_path, Criterion("d_aa"), ranks=2))
    assert [record["finished"] for record in records] == [False, False, True]
    assert multiprocessing.active_children() == []


@slow
def test_a_batch_that_cannot_be_shared_is_refused_in_every_rank(tiny_config: TrainConfig, tiny_store: Store):
    config = tiny_config.with_values({"batch_size": 5}).model_dump_json()
    with pytest.raises(ConfigError, match="cannot be shared equally by 2 ranks"):
        list(run_ranks(train_and_compare, config, tiny_store.folder, tiny_store.manifest.folds[0], ranks=2))


@pytest.mark.slow
def test_ranks_end_with_a_parent_that_is_killed(tmp_path: Path):
    """Ray and the kernel kill without a word; ranks that trained on would write into a folder that is in use again."""
    program = tmp_path / "ranks.py"
    program.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from proseg.distributed import rank\n"
        "from tests.groups import run_ranks\n"
        "def forever(folder):\n"
        "    (Path(folder) / f'{rank()}.pid').write_text(str(os.getpid()))\n"
        "    yield 1\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(run_ranks(forever, sys.argv[1], ranks=2))\n"
    )
    root = {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, str(program), str(tmp_path)], env=os.environ | root)
    pids = [tmp_path / f"{number}.pid" for number in (0, 1)]
    wait_for(lambda: all(path.exists() and path.read_text() for path in pids))
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(Path("/proc", path.read_text()).exists() for path in pids))


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


# Groups that are joined


def test_a_device_without_gpus_is_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_name() == "cpu"


def test_a_group_is_left_and_joined_anew_at_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One process runs one training after another."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    leave_group()
    for name in ("one", "why? no#2 %20"):
        join_group(0, 1, meeting=f"file://{tmp_path / name}", backend="gloo")
        try:
            assert (rank(), world_size()) == (0, 1)
            assert torch.distributed.is_initialized()
            assert gather_objects("here") == ["here"]
            assert (tmp_path / name).exists()
        finally:
            leave_group()
        assert not torch.distributed.is_initialized()
