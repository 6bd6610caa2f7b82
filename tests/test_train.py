"""Training: it learns, it resumes to the bit, it fails with a name, and what it says is the same everywhere."""

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch

from proseg import evaluate as evaluation
from proseg import fit as fitting
from proseg import train as training
from proseg.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from proseg.config import OptimConfig, TrainConfig
from proseg.data import batches
from proseg.data.case import Slice
from proseg.data.folds import Fold
from proseg.data.store import ARROW, Description, Store, write
from proseg.errors import CheckpointError, ConfigError, TrainingError
from proseg.evaluate import Scores, evaluate, metric_names
from proseg.fit import fit
from proseg.generate import binarise, mean_maps
from proseg.method import Method
from proseg.multihead import MultiHeadUNet
from proseg.records import BEST, CONFIG, EPOCHS, LAST, PREVIOUS, SAMPLES, Criterion, drop_resumable, read_epochs
from proseg.train import EpochReport, TrainState, make_optimizer, model_of, set_learning_rate, train, train_step
from tests.studies import make_store

pytestmark = pytest.mark.usefixtures("global_rng")

GED = Criterion("ged")


@pytest.fixture(scope="module")
def fold(tiny_store: Store) -> Fold:
    return tiny_store.manifest.folds[1]


@pytest.fixture
def reports(tiny_config: TrainConfig, tiny_store: Store, fold: Fold) -> list[EpochReport]:
    return run(tiny_config, tiny_store, fold)


def run(config: TrainConfig, store: Store, fold: Fold, resume: Checkpoint | None = None) -> list[EpochReport]:
    return list(train(config, store, fold, resume=resume))


def assert_same_bits(one: TrainState, other: TrainState) -> None:
    pairs = [(one.model.state_dict(), other.model.state_dict()), (momenta(one), momenta(other))]
    assert (one.average is None) == (other.average is None)
    if one.average is not None and other.average is not None:
        pairs.append((one.average.state_dict(), other.average.state_dict()))
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def momenta(state: TrainState) -> dict[str, torch.Tensor]:
    saved = state.optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in saved.items() for name, value in entry.items()}


# What training does


def test_reports_come_once_an_epoch_with_every_metric(reports: list[EpochReport]):
    assert [report.epoch for report in reports] == [1, 2, 3]
    validation = {f"val/{name}" for name in metric_names(4)}
    losses = {f"train/{name}" for name in ("loss", "seg", "rec", "cls", "kl_z", "kl_tau")}
    for report in reports:
        assert validation | losses <= set(report.metrics)
        assert np.isfinite(list(report.metrics.values())).all()


@pytest.mark.parametrize("segmentation", ["ce", "dice", "ce_dice"])
def test_the_loss_falls(tiny_config: TrainConfig, tiny_store: Store, fold: Fold, segmentation: str):
    config = tiny_config.with_values({"loss.segmentation": segmentation, "epochs": 20})
    losses = [report.metrics["train/seg"] for report in run(config, tiny_store, fold)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny_config: TrainConfig, tiny_store: Store, fold: Fold, name: str
):
    config = tiny_config.with_values({"epochs": 1, "optim.name": name, "optim.weight_decay": 0.01})
    one, again = (run(config, tiny_store, fold)[-1] for _ in range(2))
    assert_same_bits(one.state, again.state)
    assert one.metrics == again.metrics
    other = run(config.with_values({"seed": 1}), tiny_store, fold)[-1]
    weights, others = one.state.model.state_dict(), other.state.model.state_dict()
    assert all(not torch.equal(weights[name], others[name]) for name in weights if "weight" in name)


def test_the_callers_random_numbers_do_not_matter(
    tiny_config: TrainConfig, tiny_store: Store, fold: Fold, reports: list[EpochReport]
):
    for report in train(tiny_config, tiny_store, fold):
        torch.manual_seed(report.epoch)
        torch.randn(1000)
        np.random.seed(1)
        last = report
    assert_same_bits(last.state, reports[-1].state)
    assert last.metrics == reports[-1].metrics


@pytest.mark.parametrize(
    "changes",
    [{"optim.name": "adam"}, {"optim.name": "adamw", "optim.ema": 0.9}, {"optim.schedule": "cosine", "optim.ema": 0.5},
     {"loss.w_es": 1.0, "data.rotate": 10.0}, {"model.encoder": "separate", "model.patch": 2, "optim.ema": 0.99},
     {"model.use_z": False}, {"model.use_tau": False}, {"method": "multihead_unet", "optim.ema": 0.9}],
    ids=str,
)  # fmt: skip
def test_a_resumed_training_equals_one_that_never_stopped(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, changes: dict
):
    config = tiny_config.with_values({"optim.weight_decay": 0.01} | changes)
    whole = run(config, tiny_store, fold)
    first = next(train(config, tiny_store, fold))
    save_checkpoint(tmp_path / "c", first.state.checkpoint(config, first.metrics))
    torch.manual_seed(99)
    rest = run(config, tiny_store, fold, resume=load_checkpoint(tmp_path / "c"))
    assert [report.epoch for report in rest] == [2, 3]
    assert_same_bits(rest[-1].state, whole[-1].state)
    assert [report.metrics for report in rest] == [report.metrics for report in whole[1:]]


def test_resuming_a_finished_training_yields_nothing(
    tiny_config: TrainConfig, tiny_store: Store, fold: Fold, reports: list[EpochReport]
):
    finished = reports[-1].state.checkpoint(tiny_config, {})
    assert run(tiny_config, tiny_store, fold, resume=finished) == []


def test_a_batch_larger_than_the_data_is_all_of_it(tiny_config: TrainConfig, tiny_store: Store, fold: Fold):
    config = tiny_config.with_values({"batch_size": 1000, "epochs": 1})
    assert len(run(config, tiny_store, fold)) == 1


def test_one_training_slice_is_enough(
    tmp_path: Path, tiny_config: TrainConfig, real_slices: list[Slice], description: Description
):
    first, second = real_slices[0], real_slices[2]
    fold = Fold(0, (first.patient,), (second.patient,), ())
    store = write(tmp_path / "store", [first, second], description, (fold,))
    assert len(run(tiny_config, store, fold)) == 3


def test_the_baseline_is_trained_like_any_other(tiny_config: TrainConfig, tiny_store: Store, fold: Fold):
    reports = run(tiny_config.with_values({"method": "multihead_unet", "epochs": 4}), tiny_store, fold)
    assert isinstance(reports[-1].state.model, MultiHeadUNet)
    assert {name for name in reports[0].metrics if name.startswith("train/")} == {"train/loss", "train/seg"}
    assert {f"val/{name}" for name in metric_names(4)} <= set(reports[0].metrics)
    assert reports[-1].metrics["train/seg"] < 0.9 * reports[0].metrics["train/seg"]


@pytest.mark.parametrize("changes", [{}, {"loss.segmentation": "ce_dice", "loss.w_es": 1.0},
                                     {"method": "multihead_unet", "loss.segmentation": "dice"}], ids=str)  # fmt: skip
def test_three_classes_are_trained_and_validated(
    tiny_config: TrainConfig, labels: Store, changes: dict, tmp_path: Path
):
    config = tiny_config.with_values({"data.rotate": 15.0, "epochs": 15} | changes)
    reports = run(config, labels, labels.manifest.folds[0])
    assert reports[-1].state.model.classes == 3
    assert reports[-1].metrics["train/seg"] < 0.9 * reports[0].metrics["train/seg"]
    assert {f"val/{name}" for name in metric_names(2)} <= set(reports[-1].metrics)
    save_checkpoint(tmp_path / "c", reports[-1].state.checkpoint(config, {}, resumable=False))
    assert model_of(load_checkpoint(tmp_path / "c")).classes == 3


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Random blobs whose two raters mark three classes: rings about a centre."""
    return make_store(tmp_path_factory.mktemp("labels") / "store", classes=3)


def test_volumes_are_trained_by_slice_and_validated_by_volume(tiny_config: TrainConfig, volume_store: Store):
    config = tiny_config.with_values({"epochs": 1, "data.crop": 24})
    (report,) = run(config, volume_store, volume_store.manifest.folds[0])
    assert report.state.model.channels == 3
    assert 0 <= report.metrics["val/dice_mean"] <= 1


def test_the_one_cycle_schedule_rises_and_falls():
    config = OptimConfig(lr=2.0, schedule="onecycle")
    optimizer = make_optimizer(torch.nn.Linear(1, 1), config)
    rates = []
    for progress in np.linspace(0, 1, 101):
        set_learning_rate(optimizer, config, float(progress))
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] > 0
    assert np.argmax(rates) == 15
    assert max(rates) == pytest.approx(2)
    assert (np.diff(rates[15:]) < 0).all()
    assert rates[-1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [2, 2, 2, 2, 2]), ("cosine", [2, 1.70711, 1, 0.29289, 0])]
)
def test_the_other_schedules(schedule: str, expected: list[float]):
    config = OptimConfig(lr=2.0, schedule=schedule)
    optimizer = make_optimizer(torch.nn.Linear(1, 1), config)
    rates = []
    for progress in (0, 0.25, 0.5, 0.75, 1):
        set_learning_rate(optimizer, config, progress)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"method": "multihead_unet"}, {"model.use_tau": False}], ids=str)
def test_taus_embedding_has_a_rate_of_its_own_and_everything_is_optimised_once(
    tiny_config: TrainConfig, tiny_store: Store, changes: dict
):
    config = tiny_config.with_values({"optim.tau_lr_factor": 40.0, "optim.weight_decay": 0.1} | changes)
    state = TrainState.fresh(config, tiny_store, torch.device("cpu"))
    set_learning_rate(state.optimizer, config.optim, 0.15)
    held = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, state.model.parameters()))
    rates = {id(weight): (group["lr"], group["weight_decay"])
             for group in state.optimizer.param_groups for weight in group["params"]}  # fmt: skip
    for name, weight in state.model.named_parameters():
        expected = (0.4, 0.0) if name == "embedding" else (0.01, 0.1)
        assert rates[id(weight)] == pytest.approx(expected), name


# The moving average


def test_the_average_follows_the_weights(tiny_config: TrainConfig, tiny_store: Store, fold: Fold):
    """Against the recurrence itself: the first step copies, then the decay rises to its value."""
    config = tiny_config.with_values({"optim.ema": 0.3, "epochs": 1})
    state, expected = TrainState.fresh(config, tiny_store, torch.device("cpu")), {}
    rows = tiny_store.rows(fold.train)[:6]
    for step in range(6):
        train_step(state.model, state.optimizer, batches.load(tiny_store, rows), config.optim)
        state.average.update_parameters(state.model)
        decay = 0 if step == 0 else min(0.3, (1 + step) / (10 + step))
        now = {name: weight.detach().double() for name, weight in state.model.named_parameters()}
        expected = now if step == 0 else {
            name: decay * expected[name] + (1 - decay) * weight for name, weight in now.items()
        }  # fmt: skip
    for name, weight in state.best_guess.named_parameters():
        torch.testing.assert_close(weight.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_average_is_what_is_validated_and_kept_and_it_does_not_touch_the_training(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, reports: list[EpochReport]
):
    config = tiny_config.with_values({"optim.ema": 0.9})
    records = list(fit(config, tiny_store.folder, fold, tmp_path, Criterion("ged")))
    last, best = load_checkpoint(tmp_path / LAST), load_checkpoint(tmp_path / BEST)
    torch.testing.assert_close(last.model, reports[-1].state.model.state_dict(), rtol=0, atol=0)
    for record, report in zip(records, reports, strict=True):
        assert record["metrics"]["train/loss"] == report.metrics["train/loss"]
        assert record["metrics"]["val/dice_soft"] != report.metrics["val/dice_soft"]
    assert last.average.keys() == {"n_averaged", *(f"module.{name}" for name in last.model)}
    assert best.average == {}
    scores = evaluate(model_of(best), tiny_store, tiny_store.cases(fold.val), crop=None, seed=config.seed).means()
    assert {f"val/{name}": value for name, value in scores.items()} == pytest.approx(
        {name: value for name, value in best.metrics.items() if name.startswith("val/")}, abs=1e-6
    )


# The same bits


@pytest.fixture
def determinism() -> Iterator[None]:
    """Puts torch's settings back as they were."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    name = "CUBLAS_WORKSPACE_CONFIG"
    workspace = os.environ.get(name)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    os.environ.pop(name, None)
    if workspace is not None:
        os.environ[name] = workspace


@pytest.mark.usefixtures("determinism")
@pytest.mark.parametrize("changes", [{}, {"method": "multihead_unet"}, {"model.patch": 2, "loss.w_es": 1.0}], ids=str)
def test_deterministic_algorithms_are_asked_for_and_suffice(
    tiny_config: TrainConfig, tiny_store: Store, fold: Fold, changes: dict
):
    config = tiny_config.with_values({"epochs": 1, "data.rotate": 10.0} | changes)
    (free,) = run(config, tiny_store, fold)
    assert not torch.are_deterministic_algorithms_enabled()
    (strict,) = run(config.with_values({"deterministic": True}), tiny_store, fold)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    assert_same_bits(free.state, strict.state)  # a CPU gives the same bits anyway


def test_mixed_precision_is_for_gpus_that_have_it(tiny_config: TrainConfig, tiny_store: Store, fold: Fold):
    config = tiny_config.with_values({"epochs": 1})
    (plain,) = run(config, tiny_store, fold)
    assert not training.mixed_precision(torch.device("cpu"), wanted=True)._enabled
    (mixed,) = run(config.with_values({"optim.bf16": True}), tiny_store, fold)
    assert_same_bits(plain.state, mixed.state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, of its Dirichlet
@pytest.mark.parametrize(
    "changes", [{"loss.w_es": 1.0, "model.z_grid": 4, "model.patch": 2}, {"method": "multihead_unet"}]
)
def test_a_compiled_model_learns_the_same(
    tiny_config: TrainConfig, tiny_store: Store, fold: Fold, changes: dict, monkeypatch: pytest.MonkeyPatch
):
    """Traced forward and backward and run as traced: a C++ compiler's part is not ours to test."""
    config = tiny_config.with_values({"epochs": 1} | changes)
    (plain,) = run(config, tiny_store, fold)
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    (compiled,) = run(config.with_values({"optim.compile": True}), tiny_store, fold)
    torch._dynamo.reset()
    assert compiled.metrics == pytest.approx(plain.metrics, rel=1e-3)
    torch.testing.assert_close(compiled.state.model.state_dict(), plain.state.model.state_dict(), rtol=1e-3, atol=1e-4)


# What goes wrong


@pytest.mark.parametrize("batch_size", [6, 1000], ids=["several steps", "one step"])
def test_an_image_with_nan_stops_the_training_by_epoch_and_step(
    tmp_path: Path, tiny_config: TrainConfig, real_slices: list[Slice], description: Description, batch_size: int
):
    pixels = [replace(one, image=one.image.astype(np.float32)) for one in real_slices]
    store = write(tmp_path / "store", pixels, description)
    fold = store.manifest.folds[0]
    broken = int(store.rows(fold.train)[0])
    content, image = (store.folder / ARROW).read_bytes(), pixels[broken].image.tobytes()
    spoilt = np.full(5, np.nan, np.float32).tobytes() + image[20:]  # after it was written, which refuses it
    (store.folder / ARROW).write_bytes(content.replace(image, spoilt))
    store = Store(store.folder)
    with pytest.raises(TrainingError, match=r"not finite in epoch 1, step \d of \d"):
        run(tiny_config.with_values({"batch_size": batch_size}), store, fold)


@pytest.mark.parametrize("changes", [{"optim.lr": 1e30}, {"optim.lr": 1e5, "optim.schedule": "constant"}], ids=str)
def test_a_huge_learning_rate_stops_the_training_by_epoch_and_step(
    tiny_config: TrainConfig, tiny_store: Store, fold: Fold, changes: dict
):
    config = tiny_config.with_values({"optim.grad_clip": None, "epochs": 20} | changes)
    with pytest.raises(TrainingError, match=r"not finite in epoch \d+, step \d+ of \d+.*optim\.lr"):
        run(config, tiny_store, fold)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_weights_that_the_last_step_of_an_epoch_spoils_are_not_kept(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, monkeypatch: pytest.MonkeyPatch,
    ema: float | None,
):  # fmt: skip
    """Its own loss was computed before the step, and masks of NaN are merely empty."""
    step, steps = training.train_step, []

    def spoiling(model: torch.nn.Module, *args: object) -> dict[str, torch.Tensor]:
        loss = step(model, *args)
        steps.append(loss)
        if len(steps) == 2 * (len(tiny_store.rows(fold.train)) // tiny_config.batch_size):
            with torch.no_grad():
                next(model.parameters()).fill_(torch.nan)
        return loss

    monkeypatch.setattr(training, "train_step", spoiling)
    with pytest.raises(TrainingError, match="weights are not finite after the last step of epoch 2"):
        list(fit(tiny_config.with_values({"optim.ema": ema}), tiny_store.folder, fold, tmp_path, GED))
    assert load_checkpoint(tmp_path / LAST).epoch == 1


@pytest.mark.parametrize(("batch_size", "named"), [(5, 5), (7, 7)])
def test_a_batch_that_ranks_cannot_share_is_refused(
    tiny_config: TrainConfig, tiny_store: Store, fold: Fold, batch_size: int, named: int,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(training, "world_size", lambda: 2)
    config = tiny_config.with_values({"batch_size": batch_size})
    with pytest.raises(ConfigError, match=f"batch_size = {named} cannot be shared equally by 2 ranks"):
        next(train(config, tiny_store, fold))


# A folder


def test_fit_leaves_checkpoints_records_and_configuration(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, reports: list[EpochReport]
):
    records = list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([LAST, PREVIOUS, BEST, EPOCHS, CONFIG, SAMPLES])
    assert read_epochs(tmp_path) == records
    assert [record["metrics"] for record in records] == [report.metrics for report in reports]
    last, best = load_checkpoint(tmp_path / LAST), load_checkpoint(tmp_path / BEST)
    assert last.epoch == 3
    assert last.optimizer
    assert last.config == best.config == tiny_config
    assert best.optimizer == {}
    torch.testing.assert_close(last.model, reports[-1].state.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("criterion", [Criterion("ged"), Criterion("dice_mean", maximize=True), Criterion("d_aa")])
def test_best_is_the_best_epoch_of_the_criterion(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, criterion: Criterion
):
    records = list(fit(tiny_config, tiny_store.folder, fold, tmp_path, criterion))
    values = [record["metrics"][f"val/{criterion.metric}"] for record in records]
    sign = -1 if criterion.maximize else 1
    assert [record["best"] for record in records] == [
        sign * min(sign * value for value in values[: i + 1]) for i in range(3)
    ]
    best = load_checkpoint(tmp_path / BEST)
    assert best.epoch == 1 + min(range(3), key=lambda i: (sign * values[i], i))
    assert best.metrics == records[best.epoch - 1]["metrics"]


def without_time(records: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in record.items() if name not in ("time", "seconds", "cpu")} for record in records
    ]


@pytest.fixture
def interrupted(tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold) -> Path:
    """The folder of a training that ended after its first epoch."""
    folder = tmp_path / "interrupted"
    next(fit(tiny_config, tiny_store.folder, fold, folder, GED))
    return folder


def test_fit_goes_on_from_its_own_folder(
    tmp_path: Path, interrupted: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold
):
    whole = list(fit(tiny_config, tiny_store.folder, fold, tmp_path / "whole", GED))
    rest = list(fit(tiny_config, tiny_store.folder, fold, interrupted, GED))
    assert without_time(rest) == without_time(whole[1:])
    assert without_time(read_epochs(interrupted)) == without_time(whole)
    for name in (LAST, BEST):
        one, other = load_checkpoint(tmp_path / "whole" / name), load_checkpoint(interrupted / name)
        assert (one.epoch, one.metrics, one.extra) == (other.epoch, other.metrics, other.extra)
        torch.testing.assert_close((one.model, one.optimizer), (other.model, other.optimizer), rtol=0, atol=0)


def test_fit_of_a_finished_folder_yields_nothing_and_changes_nothing(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold
):
    list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED)) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fit_refuses_the_folder_of_another_configuration_and_leaves_it_alone(
    interrupted: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold
):
    before = {path.name: path.read_bytes() for path in interrupted.iterdir()}
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        next(fit(tiny_config.with_values({"seed": 5}), tiny_store.folder, fold, interrupted, GED))
    assert {path.name: path.read_bytes() for path in interrupted.iterdir()} == before


@pytest.mark.parametrize("damage", [-10, 100, 0])
def test_a_damaged_last_checkpoint_costs_an_epoch_and_a_damaged_pair_all_of_them(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, damage: int
):
    whole = list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    best = (tmp_path / BEST).read_bytes()
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:damage])
    rest = list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    assert without_time(rest) == without_time(whole[2:]), "it went on from the one before"
    assert [record["time"] for record in read_epochs(tmp_path)] == [record["time"] for record in whole]
    assert (tmp_path / BEST).read_bytes() == best
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"")
    assert without_time(list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))) == without_time(whole)


def test_a_checkpoint_of_another_version_is_not_taken_for_damaged(
    interrupted: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("proseg.checkpoint.FORMAT", "proseg-checkpoint/99")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        next(fit(tiny_config, tiny_store.folder, fold, interrupted, GED))


def test_what_resumes_is_dropped_and_the_weights_stay(interrupted: Path):
    drop_resumable(interrupted)
    drop_resumable(interrupted)
    assert {path.name for path in interrupted.iterdir()} == {BEST, EPOCHS, CONFIG, SAMPLES}


def test_a_diverging_fit_keeps_the_checkpoints_of_the_epochs_before(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, monkeypatch: pytest.MonkeyPatch
):
    means = training._mean_losses

    def diverging(steps: list[dict[str, torch.Tensor]], epoch: int) -> dict[str, float]:
        return means([{"loss": torch.tensor(torch.nan)}] if epoch == 3 else steps, epoch)

    monkeypatch.setattr(training, "_mean_losses", diverging)
    with pytest.raises(TrainingError, match="epoch 3"):
        list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    assert load_checkpoint(tmp_path / LAST).epoch == 2
    assert [record["epoch"] for record in read_epochs(tmp_path)] == [1, 2]


# Patience


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """The validation says these values of GED, epoch by epoch."""
    real = fitting.train

    def told(*args: object, **more: object) -> Iterator[EpochReport]:
        for report in real(*args, **more):
            yield replace(report, metrics=report.metrics | {"val/ged": values[report.epoch - 1]})

    monkeypatch.setattr(fitting, "train", told)


@pytest.mark.parametrize(
    ("values", "patience", "ends"),
    [
        ([5, 4, 3, 2, 1, 0], 1, 6), ([5, 5, 5, 5, 5, 5], 1, 2), ([5, 5, 5, 5, 5, 5], 3, 4),
        ([5, 6, 4, 6, 5, 9], 2, 5), ([5, 6, 7, 8, 9, 1], None, 6), ([5, 4, 4.5, 3.9, 4, 4], 2, 6),
    ],
)  # fmt: skip
def test_training_stops_when_nothing_has_improved_for_long_enough(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, monkeypatch: pytest.MonkeyPatch,
    values: list[float], patience: int | None, ends: int,
):  # fmt: skip
    scripted(monkeypatch, values)
    config = tiny_config.with_values({"epochs": 6, "patience": patience})
    records = list(fit(config, tiny_store.folder, fold, tmp_path, GED))
    assert [record["finished"] for record in records] == [False] * (ends - 1) + [True]
    assert read_epochs(tmp_path) == records
    assert load_checkpoint(tmp_path / BEST).epoch == 1 + min(range(ends), key=lambda i: (values[i], i))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert list(fit(config, tiny_store.folder, fold, tmp_path, GED)) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_patience_counts_on_over_an_interruption(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, monkeypatch: pytest.MonkeyPatch
):
    scripted(monkeypatch, [3, 5, 5, 1, 1, 1])
    config = tiny_config.with_values({"epochs": 6, "patience": 2})
    first = fit(config, tiny_store.folder, fold, tmp_path, GED)
    assert [next(first)["finished"] for _ in range(2)] == [False, False]
    first.close()
    assert [(r["epoch"], r["finished"]) for r in fit(config, tiny_store.folder, fold, tmp_path, GED)] == [(3, True)]


def test_without_patience_only_the_last_epoch_is_finished(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold
):
    config = tiny_config.with_values({"patience": None})
    records = list(fit(config, tiny_store.folder, fold, tmp_path, GED))
    assert [record["finished"] for record in records] == [False, False, True]


# Crashes


def test_a_line_that_was_not_finished_is_ignored(interrupted: Path):
    before = read_epochs(interrupted)
    with open(interrupted / EPOCHS, "a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "ti')
    assert read_epochs(interrupted) == before


def test_fit_goes_on_after_a_line_that_was_not_finished(
    interrupted: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold
):
    with open(interrupted / EPOCHS, "a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "ti')
    list(fit(tiny_config, tiny_store.folder, fold, interrupted, GED))
    assert [record["epoch"] for record in read_epochs(interrupted)] == [1, 2, 3]


@pytest.mark.parametrize("step", ["save_checkpoint", "append_line"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_crash_between_any_two_writes_loses_no_epoch(
    tmp_path: Path, tiny_config: TrainConfig, tiny_store: Store, fold: Fold, monkeypatch: pytest.MonkeyPatch,
    step: str, call: int,
):  # fmt: skip
    calls, real = [], getattr(fitting, step)

    def crashing(*args: object) -> None:
        calls.append(args)
        if len(calls) == call:
            raise SystemExit
        real(*args)

    with monkeypatch.context() as context:
        context.setattr(fitting, step, crashing)
        try:
            list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
        except SystemExit:
            list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    records = read_epochs(tmp_path)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert load_checkpoint(tmp_path / BEST).metrics["val/ged"] == min(r["metrics"]["val/ged"] for r in records)


def test_an_epoch_that_was_trained_twice_counts_once_as_trained_last(tmp_path: Path):
    lines = [{"epoch": 2, "best": 1}, {"epoch": 1, "best": 2}, {"epoch": 2, "best": 3}]
    (tmp_path / EPOCHS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_epochs(tmp_path) == [{"epoch": 1, "best": 2}, {"epoch": 2, "best": 3}]


def test_a_folder_without_records_has_none(tmp_path: Path):
    assert read_epochs(tmp_path) == []


# Evaluation


@pytest.fixture(scope="module")
def trained(tiny_config: TrainConfig, tiny_store: Store, fold: Fold) -> Method:
    with torch.random.fork_rng():
        (report,) = run(tiny_config.with_values({"epochs": 1}), tiny_store, fold)
    return report.state.model


@pytest.fixture(scope="module")
def cases(tiny_store: Store) -> list[np.ndarray]:
    return tiny_store.cases(sorted(set(tiny_store.patients)))


def assert_same_scores(one: Scores, other: Scores) -> None:
    assert one.cases == other.cases
    assert one.values.keys() == other.values.keys()
    for name in one.values:
        np.testing.assert_array_equal(one.values[name], other.values[name], err_msg=name)


def test_evaluation_follows_its_seed_and_not_the_global_generator(
    trained: Method, tiny_store: Store, cases: list[np.ndarray]
):
    def scored(global_seed: int, seed: int) -> Scores:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        return evaluate(trained, tiny_store, cases, crop=None, seed=seed, prior_samples=3)

    assert_same_scores(scored(1, 7), scored(2, 7))
    one, other = scored(1, 7).values, scored(1, 8).values
    assert any(not np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def test_evaluation_does_not_move_the_global_generator(trained: Method, tiny_store: Store, cases: list[np.ndarray]):
    before = torch.get_rng_state()
    evaluate(trained, tiny_store, cases[:4], crop=None, seed=0, prior_samples=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("at_once", [1, 7, 40, 1000])
def test_every_case_is_scored_once(
    trained: Method, tiny_store: Store, cases: list[np.ndarray], at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluation, "SLICES_AT_ONCE", at_once)
    scores = evaluate(trained, tiny_store, cases, crop=None, seed=0, prior_samples=2)
    assert scores.cases == [f"{tiny_store.volumes[row]}/{tiny_store.z[row]:.2f}" for row in range(40)]
    assert len(set(scores.cases)) == 40
    expected = {*metric_names(4), "d_aa", "prior_ged_unbiased", *(f"prior_{name}" for name in evaluation.DIVERSITY)}
    assert set(scores.values) == expected
    assert {len(values) for values in scores.values.values()} == {40}
    for row in (0, 17, 39):
        alone = batches.load(tiny_store, [row])
        maps = binarise(mean_maps(trained, alone.image))[0, :, 0]
        for r in range(4):
            value = scores.values[f"dice_a{r + 1}"][row]
            if alone.rater_mask[0, r]:
                assert value == pytest.approx(dice(maps[r], alone.annotations[0, r].bool()))
            else:
                assert np.isnan(value)


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    areas = (a.sum() + b.sum()).item()
    return 2 * (a & b).sum().item() / areas if areas else 1.0


def test_means_leave_missing_raters_out(trained: Method, tiny_store: Store, cases: list[np.ndarray]):
    scores = evaluate(trained, tiny_store, cases, crop=None, seed=0)
    assert np.isnan(scores.values["dice_a4"]).any()
    defined = scores.values["dice_a4"][~np.isnan(scores.values["dice_a4"])]
    assert scores.means()["dice_a4"] == pytest.approx(defined.mean())
    nowhere = Scores(["x"], {"dice_a1": np.array([np.nan]), "ged": np.array([0.5])})
    assert nowhere.means() == {"ged": 0.5}


def test_a_volume_is_one_case(tiny_config: TrainConfig, volume_store: Store):
    fold = volume_store.manifest.folds[0]
    model = TrainState.fresh(tiny_config, volume_store, torch.device("cpu")).model
    volumes = volume_store.cases((*fold.val, *fold.test))
    scores = evaluate(model, volume_store, volumes, crop=24, seed=0, prior_samples=3)
    assert scores.cases == [str(volume_store.volumes[case[0]]) for case in volumes]
    assert {len(values) for values in scores.values.values()} == {len(volumes)}
    for number, case in enumerate(volumes):
        batch = batches.load(volume_store, case, 24)
        maps = binarise(mean_maps(model, batch.image))[:, :, 0]
        for r in range(4):
            value = scores.values[f"dice_a{r + 1}"][number]
            if batch.rater_mask[:, r].all():  # who left out a slice did not say that nothing is there
                assert value == pytest.approx(dice(maps[:, r], batch.annotations[:, r].bool()))
            else:
                assert np.isnan(value)


def test_no_case_no_score(trained: Method, tiny_store: Store):
    scores = evaluate(trained, tiny_store, [], crop=None, seed=0)
    assert scores.cases == []
    assert scores.means() == {}


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_number_of_ranks_does_not_matter(
    trained: Method, tiny_store: Store, cases: list[np.ndarray], ranks: int, monkeypatch: pytest.MonkeyPatch
):
    """Ranks one after another in this process: what each found is kept, and the last one gathers it."""
    monkeypatch.setattr(evaluation, "SLICES_AT_ONCE", 7)
    alone = evaluate(trained, tiny_store, cases, crop=None, seed=3, prior_samples=2)
    found: list[dict] = []
    monkeypatch.setattr(evaluation, "world_size", lambda: ranks)
    monkeypatch.setattr(evaluation, "gather_objects", lambda mine: (found.append(mine), found)[1])
    for rank in range(ranks - 1):
        monkeypatch.setattr(evaluation, "rank", lambda rank=rank: rank)
        with pytest.raises(KeyError):
            evaluate(trained, tiny_store, cases, crop=None, seed=3, prior_samples=2)
    monkeypatch.setattr(evaluation, "rank", lambda: ranks - 1)
    together = evaluate(trained, tiny_store, cases, crop=None, seed=3, prior_samples=2)
    assert sorted(number for part in found for number in part) == list(range(6))
    assert_same_scores(alone, together)


def test_the_model_of_a_checkpoint_predicts_the_same(trained: Method, tiny_config: TrainConfig, tiny_store: Store):
    state = TrainState(copy.deepcopy(trained), torch.optim.Adam(trained.parameters()), None)
    again = model_of(state.checkpoint(tiny_config, {}, resumable=False))
    image = batches.load(tiny_store, [0]).image
    torch.testing.assert_close(mean_maps(again, image), mean_maps(trained, image))


def test_weights_of_another_model_are_refused_in_one_sentence(
    trained: Method, tiny_config: TrainConfig, tiny_store: Store
):
    state = TrainState(trained, torch.optim.Adam(trained.parameters()), None)
    for changes in ({"method": "multihead_unet"}, {"model.patch": 2}, {"model.encoder": "separate"}):
        with pytest.raises(CheckpointError, match="do not fit its configuration"):
            model_of(state.checkpoint(tiny_config.with_values(changes), {}, resumable=False))


def test_the_baseline_is_scored_by_the_same_metrics(tiny_config: TrainConfig, tiny_store: Store, cases: list):
    config = tiny_config.with_values({"method": "multihead_unet"})
    model = TrainState.fresh(config, tiny_store, torch.device("cpu")).model
    scores = evaluate(model, tiny_store, cases, crop=None, seed=0, prior_samples=2)
    of_prior = {f"prior_{name}" for name in (*evaluation.DIVERSITY, "ged_unbiased")}
    assert set(scores.values) == {*metric_names(4), "d_aa", *of_prior}


@pytest.mark.parametrize("unit", ["slice", "volume"])
def test_scores_of_several_classes_are_their_means(tmp_path: Path, tiny_config: TrainConfig, unit: str):
    store = make_store(tmp_path / "labels", classes=3, unit=unit)
    model = TrainState.fresh(tiny_config, store, torch.device("cpu")).model
    cases = store.cases(sorted(set(store.patients)))
    scores = evaluate(model, store, cases, crop=None, seed=0, prior_samples=2)
    assert {len(values) for values in scores.values.values()} == {len(cases)} == {16 if unit == "slice" else 8}
    for number in (0, 5):
        batch = batches.load(store, cases[number])
        found = binarise(mean_maps(model, batch.image))  # [slices, R, K, H, W]
        for r in range(2):
            each = [dice(found[:, r, k], batch.annotations[:, r] == k + 1) for k in range(3)]
            assert scores.values[f"dice_a{r + 1}"][number] == pytest.approx(np.mean(each))
