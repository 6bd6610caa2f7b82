"""Batches: the rows of a store, normalised; and augmentation, which moves image and masks as one."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from proseg.data import batches
from proseg.data.batches import Batch, augment
from proseg.data.store import Store

SQUARE, OBLONG = (6, 6), (4, 6)


def test_a_batch_is_the_rows_normalised(tiny_store: Store):
    batch = batches.load(tiny_store, [7, 3])
    assert len(batch) == 2
    assert batch.image.shape == (2, 1, 32, 32)
    assert batch.image.dtype == torch.float32
    assert batch.annotations.dtype == torch.uint8
    hounsfield = tiny_store.image(7).astype(float)
    expected = ((hounsfield + 1000) / 1400 * 2 - 1).clip(-1, 1)
    np.testing.assert_allclose(batch.image[0], expected, atol=1e-6)
    np.testing.assert_array_equal(batch.annotations[1], tiny_store.annotations(3))
    assert batch.rater_mask.tolist() == [tiny_store.rater_mask(7).tolist(), tiny_store.rater_mask(3).tolist()]


def test_without_a_window_the_image_is_left_alone(volume_store: Store):
    np.testing.assert_array_equal(batches.load(volume_store, [4]).image[0], volume_store.image(4))


@pytest.mark.parametrize(
    ("crop", "kept"), [(8, slice(12, 20)), (7, slice(12, 19)), (32, slice(None)), (99, slice(None))]
)
def test_the_crop_is_central(tiny_store: Store, crop: int, kept: slice):
    whole, cut = batches.load(tiny_store, [2]), batches.load(tiny_store, [2], crop)
    assert torch.equal(cut.image, whole.image[..., kept, kept])
    assert torch.equal(cut.annotations, whole.annotations[..., kept, kept])


# Augmentation


@pytest.fixture(autouse=True)
def seeded(global_rng: None) -> None:
    torch.manual_seed(0)


def itself(count: int, size: tuple[int, int], labels: int = 256) -> Batch:
    """Images of labels whose masks are the image: two channels, three raters, everything different."""
    values = torch.randint(labels, (count, 1, *size), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
    return Batch(values.float().repeat(1, 2, 1, 1), values.repeat(1, 3, 1, 1), torch.ones(count, 3, dtype=torch.bool))


def blob(size: tuple[int, int]) -> torch.Tensor:
    """A smooth ellipse off the centre, between 0 and 1, that stays in the image however it is turned."""
    y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    radius = min(size) / 2
    return torch.sigmoid(8 - 8 * torch.hypot((x / radius - 0.2) / 0.6, (y / radius + 0.1) / 0.4))


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a & b).sum() / (a | b).sum()).item()


@pytest.mark.parametrize("size", [SQUARE, OBLONG, (1, 5)], ids=str)
def test_image_and_masks_are_mirrored_and_turned_together(size: tuple[int, int]):
    batch = itself(40, size)
    moved = augment(batch, flip=True)
    assert moved.image.shape == batch.image.shape
    assert moved.annotations.shape == batch.annotations.shape
    assert moved.annotations.dtype == torch.uint8
    for channel in range(2):
        for rater in range(3):
            assert torch.equal(moved.image[:, channel], moved.annotations[:, rater].float())
    assert not torch.equal(moved.image, batch.image)
    assert moved.rater_mask is batch.rater_mask


@pytest.mark.parametrize(("size", "symmetries"), [(SQUARE, 8), (OBLONG, 4)], ids=str)
def test_each_image_has_a_symmetry_of_its_own_and_all_occur(size: tuple[int, int], symmetries: int):
    one = itself(1, size).annotations[0, 0]
    image = one.float().expand(400, 1, *size)
    moved = augment(Batch(image, one.expand(400, 1, *size), torch.ones(400, 1, dtype=torch.bool)), flip=True)
    possible = [turned for square in ((one, one.T) if size[0] == size[1] else (one,))
                for flipped in (square, square.flip(0)) for turned in (flipped, flipped.flip(1))]  # fmt: skip
    found = [[torch.equal(mask[0], one) for one in possible] for mask in moved.annotations]
    assert all(sum(which) == 1 for which in found)
    assert len(possible) == symmetries
    assert min(np.sum(found, 0)) > 400 / symmetries / 2, "each about equally often"


@pytest.mark.parametrize("size", [(32, 32), (20, 32)], ids=str)
@pytest.mark.parametrize("rotate", [5.0, 180.0])
def test_labels_stay_labels(size: tuple[int, int], rotate: float):
    batch = itself(8, size, labels=4)
    moved = augment(batch, flip=True, rotate=rotate, noise=0.1)
    assert moved.annotations.dtype == torch.uint8
    assert moved.annotations.shape == batch.annotations.shape
    assert set(moved.annotations.unique().tolist()) == {0, 1, 2, 3}
    assert not torch.equal(moved.annotations, batch.annotations)


@pytest.mark.parametrize("size", [(96, 96), (65, 65), (60, 96), (97, 61)], ids=str)
@pytest.mark.parametrize("angle", [-170.0, -90.0, -33.0, 10.0, 45.0, 90.0])
def test_a_rotation_is_by_its_angle(size: tuple[int, int], angle: float, monkeypatch: pytest.MonkeyPatch):
    """Against scipy, on an ellipse that is the image and, cut at a half, the mask."""
    soft = blob(size)
    batch = Batch(soft[None, None], (soft > 0.5).to(torch.uint8)[None, None], torch.ones(1, 1, dtype=torch.bool))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 1.0 if angle > 0 else 0.0))
    moved = augment(batch, flip=False, rotate=abs(angle))
    expected = torch.from_numpy(ndimage.rotate(soft.numpy(), angle, reshape=False, order=1)) > 0.5
    assert iou(moved.annotations[0, 0].bool(), expected) > 0.95
    assert iou(moved.image[0, 0] > 0.5, expected) > 0.95
    assert iou(soft > 0.5, expected) < 0.9, "it could be seen if nothing had turned"


def test_turns_go_both_ways_up_to_the_largest_angle_and_each_image_has_its_own():
    soft = blob((48, 48))
    image = soft.expand(300, 1, 48, 48)
    masks = (image > 0.5).to(torch.uint8)
    moved = augment(Batch(image, masks, torch.ones(300, 1, dtype=torch.bool)), flip=False, rotate=30)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, 48),) * 2, indexing="ij")
    weight = moved.image[:, 0] / moved.image.sum((1, 2, 3))[:, None, None]
    angle = torch.atan2((weight * y).sum((1, 2)), (weight * x).sum((1, 2)))
    weight = soft / soft.sum()
    turned = torch.rad2deg(angle - torch.atan2((weight * y).sum(), (weight * x).sum()))
    assert -31 < turned.min() < -25
    assert 25 < turned.max() < 31
    assert abs(turned.mean()) < 4
    assert len(turned.unique()) > 290


def test_what_a_rotation_brings_into_view_is_border_and_background():
    image = torch.full((4, 1, 16, 16), -1.0)
    moved = augment(Batch(image, torch.ones(4, 2, 16, 16, dtype=torch.uint8), torch.ones(4, 2, dtype=torch.bool)),
                    flip=False, rotate=45)  # fmt: skip
    torch.testing.assert_close(moved.image, image)
    assert (moved.annotations == 0).any()
    assert (moved.annotations[:, :, 6:10, 6:10] == 1).all()


@pytest.mark.parametrize("rotate", [0.0, 20.0])
def test_noise_is_added_to_the_image_alone(tiny_store: Store, rotate: float):
    batch = batches.load(tiny_store, [0, 1])
    torch.manual_seed(3)
    still = augment(batch, flip=False, rotate=rotate)
    torch.manual_seed(3)
    noisy = augment(batch, flip=False, rotate=rotate, noise=0.2)
    assert (noisy.image - still.image).std().item() == pytest.approx(0.2, rel=0.1)
    assert torch.equal(noisy.annotations, still.annotations)


def test_without_any_of_it_nothing_changes(tiny_store: Store):
    batch, state = batches.load(tiny_store, [0, 1]), torch.get_rng_state()
    same = augment(batch, flip=False, rotate=0, noise=0)
    assert torch.equal(same.image, batch.image)
    assert torch.equal(same.annotations, batch.annotations)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_callers_batch_is_not_changed():
    batch, before = itself(6, SQUARE), itself(6, SQUARE)
    augment(batch, flip=True, rotate=90, noise=1)
    assert torch.equal(batch.image, before.image)
    assert torch.equal(batch.annotations, before.annotations)


def test_the_global_generator_decides():
    def moved(seed: int) -> Batch:
        torch.manual_seed(seed)
        return augment(itself(6, SQUARE), flip=True, rotate=30, noise=0.1)

    one, again, other = moved(1), moved(1), moved(2)
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.annotations, again.annotations)
    assert not torch.equal(one.image, other.image)
    assert not torch.equal(one.annotations, other.annotations)
