"""The search space that is written for a data set of one's own: it can be launched as it is."""

import re

import pytest

from orchestrator.objective import check_objective
from orchestrator.study import base_config, variants
from proseg.config import TrainConfig
from proseg.evaluate import metric_names
from search_spaces.space import SearchSpace, read_space
from search_spaces.template import template_space

SIZES = [
    {"slices": 40, "height": 16, "width": 16, "classes": 1, "raters": 2},
    {"slices": 300, "height": 96, "width": 64, "classes": 3, "raters": 3},
    {"slices": 1608, "height": 128, "width": 128, "classes": 1, "raters": 4},
    {"slices": 5000, "height": 512, "width": 512, "classes": 2, "raters": 12},
    {"slices": 200_000, "height": 256, "width": 320, "classes": 255, "raters": 40},
    {"slices": 8, "height": 3, "width": 2, "classes": 1, "raters": 2},
]


@pytest.fixture
def load(tmp_path):
    def load(data: str = "mine", **size: int) -> tuple[SearchSpace, TrainConfig]:
        """The space as `launch` reads it, and its base; every value of every dimension has been tried."""
        file = tmp_path / "my.toml"
        file.write_text(template_space(data, **size), encoding="utf-8")
        space = read_space(file)
        base = base_config(space, epochs=space.budget.epochs, seed=0)
        variants(space, base)
        check_objective(space, size["raters"])
        return space, base

    return load


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size['slices']}-{size['height']}x{size['width']}")
def test_it_can_be_launched(load, size: dict[str, int]):
    space, base = load(**size)
    assert space.data == "mine"
    assert [stage.data for stage in space.final] == ["mine"]
    assert base.batch_size % 2 == 0
    assert space.scheduler.grace_epochs < space.budget.epochs


def test_of_as_many_slices_as_lidc_it_is_nearly_that_space(load):
    space, base = load(**SIZES[2])
    assert (base.batch_size, base.model.levels) == (12, 5)
    assert 50 <= space.budget.epochs <= 65
    assert space.budget.trials == 40


def test_few_slices_get_small_batches_and_many_epochs(load):
    few, many = load(**SIZES[0]), load(**SIZES[4])
    assert few[1].batch_size < many[1].batch_size or few[1].batch_size == 2
    assert few[0].budget.epochs == 200
    assert many[0].budget.epochs == 10
    assert many[0].budget.trials < few[0].budget.trials


def test_large_images_come_fewer_at_a_time(load):
    assert load(**SIZES[3])[1].batch_size == 2


def test_the_lowest_level_keeps_some_cells(load):
    assert [load(**size)[1].model.levels for size in SIZES[:4]] == [2, 4, 5, 5]


def test_tau_has_a_place_for_each_rater(load):
    assert load(**SIZES[4])[0].search["model.tau_size"].high >= 40  # type: ignore[union-attr]


@pytest.mark.parametrize("data", ["C:\\data\\mine", 'with "quotes"', "Läsionen", "tab\tand line\n", "{braces}", "\x7f"])
def test_any_name_comes_back(load, data: str):
    space, _ = load(data, **SIZES[1])
    assert space.data == data
    assert space.about == "96 x 64, 3 raters, 3 classes, around the modern recipe."


def test_the_metrics_that_it_names_exist():
    text = template_space("mine", **SIZES[0])
    named = set(re.findall(r"\bdice_\w+", text))
    assert len(named) == 6
    assert named <= set(metric_names(2))


def test_every_line_fits_the_screen():
    text = template_space("mine", **SIZES[4])
    assert max(map(len, text.splitlines())) <= 120
