"""Sample pictures: which slices, what is kept of them, by whom, and how they are drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proseg.checkpoint import load_checkpoint
from proseg.config import TrainConfig
from proseg.data.case import Slice
from proseg.data.folds import Fold
from proseg.data.store import Store
from proseg.errors import DataError
from proseg.fit import fit
from proseg.generate import binarise, mean_maps
from proseg.pictures import GAP, TILE, Samples, picture, read_samples
from proseg.pictures import draw as drawn
from proseg.records import BEST, EPOCHS, LAST, SAMPLES, Criterion, read_epochs
from proseg.samples import SLICES, choose, take
from proseg.train import TrainState, model_of
from tests.groups import run_ranks
from tests.studies import make_store

GED, CPU = Criterion("ged"), torch.device("cpu")


@pytest.fixture
def fold(tiny_store: Store) -> Fold:
    return tiny_store.manifest.folds[0]


def made(slices: int = 1, raters: int = 2, side: int = 32, **changes) -> Samples:
    """A square in the middle that every rater drew and the model found; certain everywhere."""
    masks = np.zeros((slices, raters, side, side), np.uint8)
    masks[:, :, side // 4 : -side // 4, side // 4 : -side // 4] = 1
    values = {
        "label": "blobs: random blobs, no patient", "epoch": 3, "draws": 16,
        "image": np.full((slices, side, side), 90, np.uint8), "annotations": masks, "predictions": masks.copy(),
        "present": np.ones((slices, raters), bool), "uncertainty": np.zeros((slices, side, side), np.uint8),
    }  # fmt: skip
    return Samples(**values | changes)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((pixels(image) == colour).all(-1).any())


# Which slices


def test_the_fullest_slice_of_each_of_the_first_patients_is_shown(tiny_store: Store, fold: Fold):
    cases = tiny_store.cases(fold.val)
    rows = choose(tiny_store, cases, None)
    patients = list(dict.fromkeys(str(tiny_store.patients[case[0]]) for case in cases))
    assert [str(tiny_store.patients[row]) for row in rows] == patients[:SLICES]
    for row in rows:
        theirs = tiny_store.rows([str(tiny_store.patients[row])])
        assert tiny_store.annotations(row).sum() == max(tiny_store.annotations(other).sum() for other in theirs)
    assert choose(tiny_store, cases, None) == rows


def test_volumes_show_the_slice_with_most_in_it(volume_store: Store):
    cases = volume_store.cases(volume_store.manifest.folds[0].train)
    rows = choose(volume_store, cases, None)
    assert len({str(volume_store.patients[row]) for row in rows}) == len(rows) == SLICES
    areas = [int(volume_store.annotations(row).sum()) for row in cases[0]]
    assert rows[0] == cases[0][int(np.argmax(areas))]


@pytest.fixture
def corners(tmp_path: Path) -> Store:
    """Eight patients with a slice each: the odd ones' annotations lie in a corner."""
    from proseg.data.store import Description, write

    def slices():
        for number in range(8):
            masks = np.zeros((2, 16, 16), bool)
            masks[:, *((slice(0, 3),) * 2 if number % 2 else (slice(6, 10),) * 2)] = True
            yield Slice(np.zeros((1, 16, 16), np.int16), masks, np.ones(2, bool), f"p{number}", f"v{number}", 0.0,
                        (1.0, 1.0, 1.0))  # fmt: skip

    about = Description(name="corners", label="made by a test", licence="none", unit="slice", sorted_raters=False,
                        window=(-1000.0, 400.0))  # fmt: skip
    return write(tmp_path / "corners", slices(), about)


def test_a_patient_with_nothing_annotated_within_the_crop_is_passed_over(corners: Store):
    cases = corners.cases([f"p{number}" for number in range(8)])
    assert [str(corners.patients[row]) for row in choose(corners, cases, 8)] == ["p0", "p2", "p4"]
    assert [str(corners.patients[row]) for row in choose(corners, cases, None)] == ["p0", "p1", "p2"]
    nothing = corners.cases(["p1", "p3", "p5", "p7"])
    assert [str(corners.patients[row]) for row in choose(corners, nothing, 8)] == ["p1", "p3", "p5"], "nothing better"


# What a training keeps


def test_a_training_keeps_what_its_best_weights_make(
    tiny_store: Store, fold: Fold, tiny_config: TrainConfig, tmp_path: Path
):
    records = list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    best = load_checkpoint(tmp_path / BEST)
    found = read_samples(tmp_path / SAMPLES)
    assert found.epoch == best.epoch == min(records, key=lambda record: record["metrics"]["val/ged"])["epoch"]
    rows = choose(tiny_store, tiny_store.cases(fold.val), tiny_config.data.crop)
    again = take(model_of(best), tiny_store, rows, best.epoch)
    for name in ("image", "annotations", "present", "predictions", "uncertainty"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name), err_msg=name)
    np.testing.assert_array_equal(found.annotations, [tiny_store.annotations(row) for row in rows])
    np.testing.assert_array_equal(found.present, [tiny_store.rater_mask(row) for row in rows])
    assert "simulated intensities" in found.label


def test_only_a_better_epoch_writes_them(tiny_store: Store, fold: Fold, tiny_config: TrainConfig, tmp_path: Path):
    """Of an objective that never moves the first epoch is the best."""
    list(fit(tiny_config, tiny_store.folder, fold, tmp_path, Criterion("d_aa")))
    assert read_samples(tmp_path / SAMPLES).epoch == 1


def test_the_predictions_are_the_maps_made_for_each_rater(tiny_store: Store, tiny_config: TrainConfig, fold: Fold):
    from proseg.data.batches import load

    model = TrainState.fresh(tiny_config, tiny_store, CPU).model.eval()
    rows = choose(tiny_store, tiny_store.cases(fold.val), None)
    expected = binarise(mean_maps(model, load(tiny_store, rows).image))[:, :, 0]
    np.testing.assert_array_equal(take(model, tiny_store, rows, 1).predictions, expected.numpy())


def test_several_classes_are_kept_as_labels(tmp_path: Path, tiny_config: TrainConfig):
    store = make_store(tmp_path / "classes", classes=3)
    model = TrainState.fresh(tiny_config, store, CPU).model
    found = take(model, store, [0, 1], 1)
    assert found.annotations.max() == 3
    expected = binarise(mean_maps(model, _images(store, [0, 1])))  # [B, R, K, H, W]
    for label in (1, 2, 3):
        np.testing.assert_array_equal(found.predictions == label, expected[:, :, label - 1].numpy())


def _images(store: Store, rows: list[int]) -> torch.Tensor:
    from proseg.data.batches import load

    return load(store, rows).image


def test_taking_them_leaves_the_training_as_it_was(
    tiny_store: Store, fold: Fold, tiny_config: TrainConfig, tmp_path: Path, global_rng: None
):
    model = TrainState.fresh(tiny_config, tiny_store, CPU).model
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    take(model, tiny_store, [0, 1], 1).write(tmp_path / SAMPLES)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_resumed_training_writes_them_again_and_an_old_folder_needs_none(
    tiny_store: Store, fold: Fold, tiny_config: TrainConfig, tmp_path: Path
):
    training = fit(tiny_config, tiny_store.folder, fold, tmp_path, GED)
    next(training)
    next(training)
    training.close()
    (tmp_path / SAMPLES).unlink()  # of a version that kept none
    list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    better_since = read_epochs(tmp_path)[-1]["best"] < read_epochs(tmp_path)[1]["best"]
    assert (tmp_path / SAMPLES).exists() == better_since
    assert load_checkpoint(tmp_path / LAST).epoch == tiny_config.epochs


def test_another_rank_writes_nothing(
    tiny_store: Store, fold: Fold, tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("proseg.fit.rank", lambda: 1)
    list(fit(tiny_config, tiny_store.folder, fold, tmp_path, GED))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_ranks_keep_what_rank_0_sees_of_slices_that_the_other_one_validates(
    volume_store: Store, tiny_config: TrainConfig, tmp_path: Path
):
    fold = volume_store.manifest.folds[0]
    several = Fold(0, fold.train, (*fold.val, *fold.test), fold.test)  # a volume each: group 1 is rank 1's
    config = tiny_config.with_values({"epochs": 1})
    list(run_ranks(fit, config, volume_store.folder, several, tmp_path, GED, ranks=2))
    found = read_samples(tmp_path / SAMPLES)
    rows = choose(volume_store, volume_store.cases(several.val), None)
    assert len(found.image) == len(rows) > 1
    np.testing.assert_array_equal(found.annotations, [volume_store.annotations(row) for row in rows])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([BEST, "config.json", EPOCHS, LAST, SAMPLES]), (
        "nothing half-written"
    )


# The file


def test_what_is_written_is_read(tmp_path: Path):
    made(slices=2, raters=3).write(tmp_path / SAMPLES)
    found = read_samples(tmp_path / SAMPLES)
    assert (found.label, found.epoch, found.draws) == ("blobs: random blobs, no patient", 3, 16)
    assert found.annotations.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(found.annotations, made(slices=2, raters=3).annotations)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"samples\.npz does not exist: this training has kept no sample pictures"):
        picture(tmp_path / SAMPLES)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY", b"text"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / SAMPLES).write_bytes(content)
    with pytest.raises(DataError, match=r"samples\.npz is damaged"):
        picture(tmp_path / SAMPLES)


@pytest.mark.parametrize(("cut", "xor"), [(0.5, 0), (0.9, 0), (1.0, 0xFF)])
def test_a_file_that_was_cut_or_overwritten_is_named(tmp_path: Path, cut: float, xor: int):
    made(image=np.random.default_rng(0).integers(0, 255, (1, 32, 32)).astype(np.uint8)).write(tmp_path / SAMPLES)
    content = bytearray((tmp_path / SAMPLES).read_bytes())
    content = content[: int(cut * len(content))]
    for place in range(300, 400):
        content[place] ^= xor
    (tmp_path / SAMPLES).write_bytes(content)
    with pytest.raises(DataError, match=r"samples\.npz is damaged"):
        picture(tmp_path / SAMPLES)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": np.zeros((1, 32, 31), np.uint8)},
        {"predictions": np.zeros((1, 3, 32, 32), np.uint8)},
        {"present": np.ones((1, 2), np.uint8)},
        {"uncertainty": np.zeros((1, 32, 32))},
        {"annotations": np.zeros(5, np.uint8)},
        {"epoch": np.arange(3)},
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path, changes: dict):
    made(**changes).write(tmp_path / SAMPLES)
    with pytest.raises(DataError, match=r"samples\.npz is damaged"):
        read_samples(tmp_path / SAMPLES)


def test_reading_executes_nothing(tmp_path: Path):
    np.savez(tmp_path / SAMPLES, **{**vars(made()), "label": np.array([object()], object)}, allow_pickle=True)
    with pytest.raises(DataError, match="damaged"):
        read_samples(tmp_path / SAMPLES)


# The picture


@pytest.mark.parametrize("side", [16, 64, 512])
def test_every_slice_is_shown_at_a_size_that_can_be_seen(side: int):
    image = drawn(made(slices=2, raters=4, side=side))
    assert image.width == 5 * (TILE + GAP) + GAP
    assert image.height > 4 * TILE, "two rows a slice"
    assert image.info["epoch"] == 3


def test_an_oblong_slice_keeps_its_shape():
    oblong = {"image": np.zeros((1, 16, 64), np.uint8), "uncertainty": np.zeros((1, 16, 64), np.uint8)}
    masks = {name: np.zeros((1, 2, 16, 64), np.uint8) for name in ("annotations", "predictions")}
    image = drawn(made(**oblong, **masks))
    assert image.width == 3 * (TILE + GAP) + GAP
    assert image.height < 4 * TILE


def test_raters_have_their_colours_and_the_model_those_of_the_rater_it_speaks_for():
    blue, yellow = (0, 165, 255), (255, 208, 0)
    both = drawn(made())
    assert has_colour(both, blue)
    assert has_colour(both, yellow)
    nothing = np.zeros((1, 2, 32, 32), np.uint8)
    only_model = made(annotations=nothing)
    only_model.predictions[0, 1] = 0
    image = drawn(only_model)
    assert has_colour(image, blue), "P1 has drawn"
    assert not has_colour(image, yellow)
    assert not has_colour(drawn(made(annotations=nothing, predictions=nothing)), blue)


def test_classes_are_parted_by_a_line():
    one, two = made(raters=1), made(raters=1)
    two.annotations[0, 0, 8:24, 8:16] = 2
    blue = [(pixels(drawn(samples)) == (0, 165, 255)).all(-1).sum() for samples in (one, two)]
    assert blue[1] > blue[0]


def test_uncertainty_is_dark_where_there_is_none_and_light_where_it_is_largest():
    certain, torn = drawn(made()), drawn(made(uncertainty=np.full((1, 32, 32), 255, np.uint8)))
    differing = pixels(torn).sum(-1) - pixels(certain).sum(-1)
    assert (differing > 500).sum() == TILE * TILE, "one tile, light instead of dark"
    assert (differing < 0).sum() == 0


def test_what_is_missing_or_empty_is_not_shown_as_drawn(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    from PIL import ImageDraw

    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda pen, place, text, *rest: [said.append(text), write(pen, place, text, *rest)]
    )
    samples = made(raters=3)
    samples.present[0, 1] = False
    samples.annotations[0, 1:] = 0
    samples.predictions[0, 2] = 0
    drawn(samples)
    assert said[-8:] == ["image", "A1", "A2 (missing)", "A3 (empty)", "uncertainty", "P1", "P2", "P3 (empty)"]
    heading = " ".join(said[:-8])
    assert "blobs: random blobs, no patient" in heading
    assert "Validation slices, epoch 3." in heading


def test_more_raters_than_colours_can_be_drawn():
    assert drawn(made(raters=9)).width == 10 * (TILE + GAP) + GAP


def test_drawing_needs_neither_torch_nor_matplotlib():
    import subprocess
    import sys

    code = "import sys, proseg.pictures as p; print([n for n in ('torch', 'matplotlib', 'PIL') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
