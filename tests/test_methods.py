"""The methods by name, and the baseline among them: a head a rater, nothing drawn."""

from typing import Any

import pytest
import torch

from proseg.config import TrainConfig
from proseg.data.batches import Batch
from proseg.generate import maps, mean_maps, sample_personal, sample_prior
from proseg.losses import segmentation
from proseg.method import Method
from proseg.methods import METHODS, build
from proseg.model import ProSeg
from proseg.multihead import MultiHeadUNet

R = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(method: str = "multihead_unet", channels: int = 1, raters: int = R, classes: int = 1, **changes: Any):
    values = {"method": method, "model.width": 8, "model.levels": 2, "model.predictor_width": 4} | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(TrainConfig().with_values(values), channels=channels, raters=raters, classes=classes)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded())


def batch_for(model: Method, *size: int, present: torch.Tensor | None = None) -> Batch:
    masks = torch.randint(1 + model.classes, (2, model.raters, *size), generator=seeded(1), dtype=torch.uint8)
    everyone = torch.ones(2, model.raters, dtype=torch.bool)
    return Batch(images(2, model.channels, *size), masks, everyone if present is None else present)


def of_rater(parameter: torch.Tensor, rater: int) -> torch.Tensor:
    return parameter.unflatten(0, (R, -1))[rater]


def test_a_method_is_built_by_its_name():
    assert {name: type(small(name)) for name in METHODS} == {"proseg": ProSeg, "multihead_unet": MultiHeadUNet}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_knows_what_it_was_built_for(method: str):
    model = small(method, channels=3, raters=2, classes=4)
    assert (model.channels, model.raters, model.classes) == (3, 2, 4)
    assert model.config.method == method
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize(("method", "w_es"), [("proseg", 0.0), ("proseg", 0.5), ("multihead_unet", 0.0)])
@pytest.mark.usefixtures("global_rng")
def test_a_step_lowers_the_loss(method: str, w_es: float):
    model = small(method, classes=2, **{"loss.w_es": w_es, "model.patch": 2})
    batch, optimizer, totals = batch_for(model, 16, 16), torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(20):
        torch.manual_seed(0)
        loss = model(batch)
        assert ("es" in loss.parts) == bool(w_es)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        totals.append(loss.total.item())
    assert totals[-1] < totals[0]


# The baseline


@pytest.mark.parametrize("size", [(16, 16), (19, 30), (17, 17), (1, 1)], ids=str)
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize(
    ("encoder", "channels", "raters", "classes"), [("shared", 1, 5, 1), ("separate", 3, 2, 3), ("separate", 1, 1, 1)]
)
def test_shapes(size: tuple[int, int], patch: int, encoder: str, channels: int, raters: int, classes: int):
    model = small(channels=channels, raters=raters, classes=classes,
                  **{"model.encoder": encoder, "model.patch": patch})  # fmt: skip
    image = images(2, channels, *size)
    assert mean_maps(model, image).shape == (2, raters, classes, *size)
    assert sample_personal(model, image, 3, seeded()).shape == (2, raters, 3, classes, *size)
    assert sample_prior(model, image, 5, seeded()).shape == (2, 5, classes, *size)
    assert model(batch_for(model, *size)).total.isfinite()


def test_its_loss_is_the_segmentation_of_each_rater_alone():
    model = small(classes=2)
    batch = batch_for(model, 9, 8)
    loss = model(batch)
    assert set(loss.parts) == {"seg"}
    expected = segmentation(model.encode(batch.image), batch.annotations, "ce").mean()
    torch.testing.assert_close(loss.total, expected)


def test_its_samples_are_its_maps():
    model, image = small(), images(4, 1, 9, 8)
    each = mean_maps(model, image)
    personal = sample_personal(model, image, 3, seeded())
    assert torch.equal(personal, each[:, :, None].expand_as(personal))
    draws = model.prior(4, 40, seeded())
    (prior,) = maps(model, image, draws)
    assert torch.equal(prior, each[torch.arange(4)[:, None], draws.who])
    assert set(draws.who.flatten().tolist()) == set(range(R))


@pytest.mark.parametrize("encoder", ["shared", "separate"])
@pytest.mark.parametrize("rater", range(R))
def test_a_head_is_its_raters_alone(encoder: str, rater: int):
    model = small(classes=2, **{"model.encoder": encoder})
    model.encode(images(2, 1, 9, 8))[:, rater].square().sum().backward()
    own = ["heads.0.weight", "heads.0.bias", "heads.2.weight", "heads.2.bias"]
    own += [name for name, _ in model.named_parameters() if name.startswith("trunk")] if encoder == "separate" else []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        touched = [(of_rater(parameter.grad, other) != 0).any().item() for other in range(R)] if name in own else None
        assert touched in (None, [other == rater for other in range(R)]), name
        assert (parameter.grad != 0).any(), name


def test_separate_is_one_unet_a_rater():
    together, image = small(channels=3, classes=2, **{"model.encoder": "separate"}), images(2, 3, 11, 14)
    weights = dict(together.named_parameters())
    with torch.no_grad():
        for rater in range(R):
            alone = small(channels=3, raters=1, classes=2)
            for name, parameter in alone.named_parameters():
                parameter.copy_(of_rater(weights[name], rater))
            expected = alone.encode(image)[:, 0]
            torch.testing.assert_close(together.encode(image)[:, rater], expected, rtol=1e-4, atol=1e-5)


def test_a_missing_rater_learns_nothing_and_says_nothing():
    model = small()
    present = torch.tensor([True, False, True]).expand(2, R)
    batch = batch_for(model, 9, 8, present=present)
    loss = model(batch)
    loss.total.backward()
    for parameter in model.heads.parameters():
        assert parameter.grad is not None
        assert [(of_rater(parameter.grad, r) != 0).any().item() for r in range(R)] == [True, False, True]
    masks = batch.annotations.clone()
    masks[:, 1] = 1 - masks[:, 1]
    torch.testing.assert_close(model(Batch(batch.image, masks, present)).total, loss.total, rtol=0, atol=0)
