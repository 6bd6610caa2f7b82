"""The figures: what stands in them is what was given, and a wrong array is told in a sentence."""

from functools import cache

import numpy as np
import pytest
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from proseg.errors import DataError
from proseg.figures import (
    RATER_COLOURS,
    area_ranks,
    outlines,
    pair_distances,
    pairwise_distances,
    rank_shares,
    rater_matrix,
    save,
    tau_map,
    uncertainty,
)

LABEL = "real contours, simulated intensities"
SIDE = 32


def squares(cases: int, raters: int) -> np.ndarray:
    """[N, R, H, W]; that of rater r has side 6 + r and the same corner in all cases."""
    masks = np.zeros((cases, raters, SIDE, SIDE), bool)
    for rater in range(raters):
        masks[:, rater, 10 : 16 + rater, 10 : 16 + rater] = True
    return masks


def images(cases: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(cases, SIDE, SIDE))


def maps() -> list[np.ndarray]:
    mean = squares(1, 1)[0, 0] * 0.8
    return [mean, mean * 0.1, mean * 0.2]


def dirichlet(raters: int, draws: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(size), (raters, draws))


def distances(cases: int, pairs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((cases, pairs))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def contours(axis) -> list[QuadContourSet]:
    return [drawn for drawn in axis.collections if isinstance(drawn, QuadContourSet)]


def colours(axis) -> list[str]:
    return [to_hex(drawn.get_edgecolor()[0]) for drawn in contours(axis)]


def rendered(figure: Figure) -> Figure:
    figure.draw_without_rendering()
    return figure


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Texts of a drawn figure that lie over each other."""
    of_axes = [axis.title for axis in figure.axes] + [text for axis in figure.axes for text in axis.texts]
    of_axes += [axis.xaxis.label for axis in figure.axes]
    of_figure = [*figure.texts, *([figure._suptitle] if figure._suptitle else [])]  # type: ignore[attr-defined]
    of_legend = [text for legend in figure.legends for text in legend.get_texts()]
    shown = [text for text in [*of_axes, *of_figure, *of_legend] if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in dict.fromkeys(shown)]
    return [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)]


def outside(figure: Figure) -> list[str]:
    """Texts that a drawn figure cuts off."""
    shown = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    shown += [figure._suptitle] if figure._suptitle else []  # type: ignore[attr-defined]
    width, height = figure.bbox.width, figure.bbox.height
    boxes = {text.get_text(): text.get_window_extent() for text in shown}
    return [text for text, box in boxes.items() if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]


def matrix(raters: int) -> np.ndarray:
    """[R, R], its numbers in the order of their places."""
    return np.linspace(0, 0.999, raters**2).reshape(raters, raters) * ~np.eye(raters, dtype=bool)


@cache
def every_figure(raters: int, label: str = LABEL) -> dict[str, Figure]:
    masks, pairs = squares(2, raters), raters * (raters - 1) // 2
    areas = np.random.default_rng(0).random((9, raters))
    names = {name: distances(20, pairs, seed) for seed, name in enumerate(("gold", "ProSeg", "CM global"))}
    figures = {
        "outlines": outlines(images(2), masks, {"ProSeg": masks, "prior": squares(2, raters + 1)}, label=label),
        "tau_map": tau_map(dirichlet(raters, 4), label=label),
        "pair_distances": pair_distances(names, label=label),
        "rater_matrix": rater_matrix({name: matrix(raters) for name in names}, counts="20 slices", label=label),
        "area_ranks": area_ranks({"gold": areas, "ProSeg": areas, "CM global": areas}, label=label),
        "uncertainty": uncertainty(images(1)[0], masks[0], *maps(), label=label, draws=64),
    }
    return {name: rendered(figure) for name, figure in figures.items()}


# All of them


@pytest.mark.parametrize("raters", [2, 4, 8])
def test_every_figure_is_readable(raters: int):
    for name, figure in every_figure(raters).items():
        assert overlaps(figure) == [], name
        assert outside(figure) == [], name


def test_every_figure_shows_its_label_and_what_it_is_made_of():
    found = {name: title(figure) for name, figure in every_figure(4).items()}
    assert all(LABEL in text for text in found.values())
    assert "2 slices, 4 raters" in found["outlines"]
    assert "4 draws of each of 4 raters" in found["tau_map"]
    assert "20 slices, 4 raters" in found["pair_distances"]
    assert "20 slices" in found["rater_matrix"]
    assert "9 slices, 4 raters" in found["area_ranks"]
    assert "1 slice, 4 raters, 64 draws" in found["uncertainty"]


def test_a_long_label_is_wrapped_and_none_leaves_no_colon():
    long = "real contours of the first half of the patients, simulated intensities, " * 3
    assert all(outside(figure) == [] for figure in every_figure(2, long).values())
    assert title(area_ranks(np.eye(2))) == "Rank by area\n2 slices, 2 raters"


def test_figures_name_every_rater():
    for name in ("outlines", "tau_map", "uncertainty"):
        named = texts(every_figure(8)[name])
        assert {f"A{rater}" for rater in range(1, 9)} <= set(named)


# Outlines


def test_outlines_have_a_row_a_case_and_a_column_a_method():
    masks = squares(3, 4)
    figure = rendered(outlines(images(3), masks, {"ProSeg": masks, "TAB": masks}))
    assert len(figure.axes) == 9
    assert [axis.get_title() for axis in figure.axes[:3]] == ["raters", "ProSeg", "TAB"]
    assert all(colours(axis) == list(RATER_COLOURS[:4]) for axis in figure.axes)


def test_an_outline_goes_around_its_mask():
    masks = squares(1, 2)
    figure = outlines(images(1), masks, {})
    for rater, contour in enumerate(contours(figure.axes[0])):
        points = np.concatenate([path.vertices for path in contour.get_paths()])
        assert points.min(0).tolist() == [9.5, 9.5]
        assert points.max(0).tolist() == [15.5 + rater, 15.5 + rater]


def test_an_outline_at_the_edge_of_the_image_is_closed():
    masks = np.ones((1, 2, SIDE, SIDE), bool)
    (path,) = contours(outlines(images(1), masks, {}).axes[0])[0].get_paths()
    assert path.vertices[0].tolist() == path.vertices[-1].tolist()


def test_draws_of_another_number_wear_no_raters_colour():
    figure = outlines(images(1), squares(1, 4), {"prior": squares(1, 7)})
    drawn = colours(figure.axes[1])
    assert len(drawn) == 7
    assert not set(drawn) & set(RATER_COLOURS)
    assert figure.axes[1].get_title() == "prior\n7 draws"
    assert "a draw, of no rater" in texts(figure)


def test_raters_beyond_the_colours_are_dashed():
    figure = outlines(images(1), squares(1, 14), {})
    lines = [contour.get_linestyle()[0][1] for contour in contours(figure.axes[0])]
    assert [dashes is not None for dashes in lines] == [False] * 12 + [True] * 2


def test_missing_raters_and_empty_masks_are_not_drawn_but_told():
    masks = squares(1, 4)
    masks[0, 1] = False
    figure = outlines(images(1), masks, {"ProSeg": masks * 0, "TAB": masks}, rater_mask=np.array([[1, 1, 0, 1]]))
    gold, proseg, tab = rendered(figure).axes
    assert colours(gold) == [RATER_COLOURS[0], RATER_COLOURS[3]]
    assert gold.get_xlabel() == "A3 missing; A2 empty"
    assert contours(proseg) == []
    assert proseg.get_xlabel() == "A1, A2, A3, A4 empty"
    assert (len(contours(tab)), tab.get_xlabel()) == (3, "A2 empty")


def test_nobody_has_drawn_anything():
    nothing = np.zeros((1, 2, SIDE, SIDE), bool)
    (axis,) = rendered(outlines(np.zeros((1, SIDE, SIDE)), nothing, {})).axes
    assert axis.get_xlim() == (-0.5, SIDE - 0.5)


def test_the_zoom_is_on_the_raters_and_tells_what_lies_outside():
    masks = np.zeros((1, 2, 128, 128), bool)
    masks[..., 90:100, 20:30] = True
    astray = masks.copy()
    astray[..., 3, 100] = True
    image = np.zeros((1, 128, 128))
    gold, proseg = outlines(image, masks, {"ProSeg": astray}).axes
    assert gold.get_xlim() == proseg.get_xlim() == (12.5, 36.5)
    assert gold.get_ylim() == proseg.get_ylim() == (106.5, 82.5)
    assert (gold.get_xlabel(), proseg.get_xlabel()) == ("", "more outside")
    whole = outlines(image, masks, {"ProSeg": astray}, zoom=False).axes[1]
    assert (whole.get_xlim(), whole.get_xlabel()) == ((-0.5, 127.5), "")


def test_the_window_is_that_of_the_intensities():
    (axis,) = outlines(images(1), squares(1, 2), {}, window=(-1000, 400)).axes
    assert axis.images[0].get_clim() == (-1000, 400)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": images(2)[0]}, "images must be numbers"),
        ({"annotations": squares(3, 4)}, r"annotations must be masks \[2, any, 32, 32\]"),
        ({"annotations": squares(2, 4) * 0.3}, "annotations must be masks .* of bool, but are float64"),
        ({"predictions": {"TAB": squares(2, 4)[..., :9]}}, "predictions of 'TAB' must be masks"),
        ({"predictions": {"raters": squares(2, 4)}}, "must not be named 'raters'"),
        ({"rater_mask": np.ones((2, 3))}, "rater_mask is 2 x 3, but 2 cases have 4 raters"),
    ],
)
def test_outlines_of_wrong_arrays(change: dict, message: str):
    given = {"images": images(2), "annotations": squares(2, 4), "predictions": {}} | change
    with pytest.raises(DataError, match=message):
        outlines(**given)


# The map of tau


def placed(figure: Figure) -> dict[str, np.ndarray]:
    """By colour: [N, 2]"""
    found: dict[str, list[np.ndarray]] = {}
    for drawn in figure.axes[0].collections:
        assert isinstance(drawn, PathCollection)
        if len(drawn.get_offsets()):
            found.setdefault(to_hex(drawn.get_facecolor()[0]), []).append(np.asarray(drawn.get_offsets()))
    return {colour: np.concatenate(parts) for colour, parts in found.items()}


def test_the_map_of_tau_shows_every_draw_and_keeps_unlike_raters_apart():
    apart = np.stack([np.random.default_rng(r).dirichlet(np.eye(8)[r] * 80 + 1, 30) for r in range(3)])
    found = placed(tau_map(apart))
    assert list(sorted(found)) == sorted(RATER_COLOURS[:3])
    assert all(len(places) == 30 for places in found.values())
    centres = np.stack([places.mean(0) for places in found.values()])
    within = max(np.linalg.norm(places - places.mean(0), axis=1).max() for places in found.values())
    between = min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert between > within


@pytest.mark.parametrize("tau", [dirichlet(2, 10), np.full((2, 5, 4), 0.25)], ids=["spread", "alike"])
def test_the_map_of_tau_is_the_same_for_the_same_seed(tau: np.ndarray):
    first, again = (placed(tau_map(tau, seed=3)) for _ in range(2))
    assert len(first) == 2
    assert all(np.array_equal(first[colour], again[colour]) for colour in first)


@pytest.mark.parametrize(("raters", "draws", "size"), [(2, 2, 2), (4, 1, 8), (8, 3, 3)])
def test_the_map_of_few_draws(raters: int, draws: int, size: int):
    found = placed(tau_map(dirichlet(raters, draws, size)))
    assert sum(map(len, found.values())) == raters * draws


def test_the_map_of_raters_who_are_all_alike():
    found = placed(tau_map(np.full((2, 5, 4), 0.25)))
    assert all(np.isfinite(places).all() for places in found.values())


@pytest.mark.parametrize(
    ("tau", "message"),
    [
        (dirichlet(2, 4)[0], "tau must be numbers"),
        (dirichlet(1, 3), "at least 4 samples of size 2 or more, but tau is 1 x 3 x 8"),
        (np.ones((2, 4, 1)), "at least 4 samples"),
        (dirichlet(2, 4) * 2, "non-negative and sum to 1"),
        (np.full((2, 4, 8), np.nan), "non-negative and sum to 1"),
    ],
)
def test_a_map_of_what_is_no_tau(tau: np.ndarray, message: str):
    with pytest.raises(DataError, match=message):
        tau_map(tau)


# Distances


def test_the_distance_is_one_minus_the_iou():
    found = pairwise_distances(squares(2, 3))
    wanted = [1 - 36 / 49, 1 - 36 / 64, 1 - 49 / 64]
    np.testing.assert_allclose(found, [wanted, wanted])


def test_the_distance_of_empty_masks_and_missing_raters():
    masks = squares(2, 3)
    masks[0, :2] = False
    mask = np.array([[True, True, True], [True, False, True]])
    found = pairwise_distances(masks, mask)
    np.testing.assert_allclose(found, [[0, 1, 1], [np.nan, 1 - 36 / 64, np.nan]])


def test_the_distances_of_what_is_no_mask():
    with pytest.raises(DataError, match="masks must be masks"):
        pairwise_distances(squares(1, 2)[0])
    with pytest.raises(DataError, match="of bool, but are float64"):
        pairwise_distances(squares(1, 2) * 0.5)


def test_the_matrix_of_raters_holds_the_numbers_it_was_given():
    given = matrix(4)
    given[1, 3] = np.nan
    first, second, _ = rater_matrix({"ours": given, "published": given / 2}).axes
    assert (first.get_title(), second.get_title()) == ("ours", "published")
    for axis, values in ((first, given), (second, given / 2)):
        written = {text.get_position(): text.get_text() for text in axis.texts}
        assert len(written) == 15, "what is not known is left out"
        assert written[2, 0] == f"{values[0, 2]:.3f}".lstrip("0")
        assert written[0, 0] == "0"
        np.testing.assert_array_equal(axis.images[0].get_array().filled(np.nan), values)
        assert axis.images[0].get_clim() == (0, 1), "one scale for all panels"
    assert [label.get_text() for label in first.get_xticklabels()] == ["A1", "A2", "A3", "A4"]


def test_the_colours_of_a_matrix_run_to_its_largest_number():
    assert rater_matrix({"a": matrix(2) * 0.4}).axes[0].images[0].get_clim() == (0, 0.3)
    assert rater_matrix({"alike": np.zeros((2, 2))}).axes[0].images[0].get_clim() == (0, 0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing to draw"),
        ({"a": np.zeros(3)}, "distances 'a' must be numbers"),
        ({"a": np.zeros((2, 3))}, "distances 'a' are 2 x 3, where 2 x 2 is wanted"),
        ({"a": np.zeros((2, 2)), "b": np.zeros((3, 3))}, "distances 'b' are 3 x 3, where 2 x 2 is wanted"),
        ({"a": np.full((2, 2), 1.5)}, "distances 'a' must lie between 0 and 1"),
    ],
)
def test_a_matrix_of_what_is_no_distance(given: dict[str, np.ndarray], message: str):
    with pytest.raises(DataError, match=message):
        rater_matrix(given)


def means(axis) -> list[float]:
    return [float(line.get_ydata()[0]) for line in axis.lines if line.get_label() == "mean"]


def violins(axis) -> list[PolyCollection]:
    return [drawn for drawn in axis.collections if isinstance(drawn, PolyCollection)]


def test_all_pairs_and_every_pair_have_their_panel():
    given = {"ProSeg": distances(50, 6, 1), "gold": distances(50, 6) / 2}
    figure = pair_distances(given)
    names = [axis.get_title() for axis in figure.axes]
    assert [name.replace("\N{EN DASH}", "-") for name in names] == [
        "all pairs, mean:", "A1 - A2", "A1 - A3", "A1 - A4", "A2 - A3", "A2 - A4", "A3 - A4"
    ]  # fmt: skip
    assert texts(figure) == ["gold (50 slices)", "ProSeg (50 slices)", "mean", "middle half"]
    np.testing.assert_allclose(means(figure.axes[0]), [given["gold"].mean(), given["ProSeg"].mean()])
    for pair, axis in enumerate(figure.axes[1:]):
        np.testing.assert_allclose(means(axis), [given["gold"][:, pair].mean(), given["ProSeg"][:, pair].mean()])
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{mean:.3f}" for mean in means(figure.axes[0])]


def test_a_violin_spans_what_was_given_and_gold_is_hatched():
    given = {"gold": distances(50, 1), "ProSeg": 0.2 + 0.1 * distances(50, 1, 1)}
    (axis,) = pair_distances(given).axes
    gold, proseg = violins(axis)
    for body, values in zip((gold, proseg), given.values(), strict=True):
        heights = body.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((values.min(), values.max()))
    assert gold.get_hatch()
    assert not proseg.get_hatch()


def test_pairs_without_a_rater_are_left_out():
    gold = distances(10, 3)
    gold[:4, 0] = np.nan
    gold[:, 1] = np.nan
    figure = rendered(pair_distances({"gold": gold, "ProSeg": distances(10, 3, 1)}, unit="volumes"))
    assert "10 volumes, 3 raters, a rater missing in 10" in title(figure)
    whole, first, second, _ = figure.axes
    assert means(whole)[0] == pytest.approx(np.nanmean(gold))
    assert means(first)[0] == pytest.approx(gold[4:, 0].mean())
    assert len(violins(second)) == 1
    assert [text.get_text() for text in second.texts] == ["none"]


def test_distances_that_are_all_alike_or_only_one():
    rendered(pair_distances({"gold": np.zeros((5, 1)), "TAB": np.ones((1, 1)), "CM": np.full((3, 1), np.nan)}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ProSeg": distances(5, 1)}, "hold no 'gold' to compare with: they hold ProSeg"),
        ({}, "they hold nothing"),
        ({"gold": distances(5, 1)[0]}, "distances of 'gold' must be numbers"),
        ({"gold": distances(5, 4)}, "4 columns are no number of pairs"),
        ({"gold": distances(5, 3), "TAB": distances(5, 6)}, "'TAB' have 6 pairs of raters, those of 'gold' 3"),
        ({"gold": distances(5, 3) + 1}, "distances of 'gold' must lie between 0 and 1"),
    ],
)
def test_wrong_distances(given: dict, message: str):
    with pytest.raises(DataError, match=message):
        pair_distances(given)


# Ranks


def test_the_shares_of_ranks():
    areas = np.array([[1, 2, 3], [2, 1, 3], [5, 5, 9], [4, 4, 4]])
    third = 1 / 3
    wanted = np.array([[1.5 + third, 1.5 + third, third], [1.5 + third, 1.5 + third, third], [third, third, 3 + third]])
    np.testing.assert_allclose(rank_shares(areas), wanted / 4)


def test_the_shares_of_ranks_with_missing_raters():
    areas = np.array([[3, 2, 1], [3, np.nan, 5]])
    found = rank_shares(areas, np.array([[True, True, False], [True, True, True]]))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [1, 0, 0], [0, 1, 0]])
    assert np.isnan(rank_shares(areas, np.array([[1, 0, 1]] * 2))[1]).all()


def heights(axis) -> np.ndarray:
    """[R raters, R ranks]"""
    return np.array([[bar.get_height() for bar in bars] for bars in axis.containers]).T


def test_the_bars_are_the_shares():
    generator = np.random.default_rng(0)
    given = {"gold": np.sort(generator.random((20, 4)), 1), "ProSeg": generator.random((20, 4))}
    figure = area_ranks(given)
    assert [axis.get_title() for axis in figure.axes] == ["gold (20 slices)", "ProSeg (20 slices)"]
    for axis, values in zip(figure.axes, given.values(), strict=True):
        np.testing.assert_allclose(heights(axis), rank_shares(values))
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["A1", "A2", "A3", "A4"]
        tops = [bar.get_y() + bar.get_height() for bar in axis.containers[-1]]
        np.testing.assert_allclose(tops, 1)
    np.testing.assert_allclose(heights(figure.axes[0]), np.eye(4))
    assert texts(figure) == ["rank 1 (smallest)", "rank 2", "rank 3", "rank 4 (largest)"]


def test_ranks_tell_of_missing_raters():
    areas = np.array([[1.0, 2, np.nan], [1, 2, np.nan]])
    figure = rendered(area_ranks(areas, rater_mask=np.array([[1, 1, 1], [0, 1, 1]])))
    assert "2 slices, 3 raters, a rater missing in 2" in title(figure)
    assert "missing" in [text.get_text() for text in figure.axes[0].texts]
    np.testing.assert_allclose(heights(figure.axes[0]), [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]])


def test_wrong_areas():
    with pytest.raises(DataError, match="areas must be numbers"):
        area_ranks(np.ones(4))
    with pytest.raises(DataError, match="areas hold nothing to draw"):
        area_ranks({})
    with pytest.raises(DataError, match="areas of 'TAB' have 3 raters, those of 'gold' 4"):
        area_ranks({"gold": np.ones((5, 4)), "TAB": np.ones((5, 3))})
    with pytest.raises(DataError, match="rater_mask is 5 x 3"):
        area_ranks(np.ones((5, 4)), rater_mask=np.ones((5, 3)))


# Uncertainty


def test_the_two_variances_share_their_scale():
    mean, from_z, from_tau = maps()
    figure = rendered(uncertainty(images(1)[0], squares(1, 4)[0], mean, from_z, from_tau))
    image, raters, middle, z, tau, *bars = figure.axes
    assert z.images[0].get_clim() == tau.images[0].get_clim() == (0, from_tau.max())
    assert [bar.get_xlabel() for bar in bars] == ["probability", "variance of the probability"]
    for axis, values in zip((middle, z, tau), (mean, from_z, from_tau), strict=True):
        assert np.array_equal(axis.images[0].get_array(), values)
    assert contours(image) == []
    assert len(contours(raters)) == 4
    assert len(contours(middle)) == 1
    assert len({axis.get_xlim() for axis in figure.axes[:5]}) == 1


def test_a_slice_without_any_uncertainty_or_outline():
    nothing = np.zeros((SIDE, SIDE))
    present = np.array([True, False])
    figure = rendered(uncertainty(nothing, np.zeros((2, SIDE, SIDE), bool), *[nothing] * 3, rater_mask=present))
    assert figure.axes[1].get_xlabel() == "A2 missing; A1 empty"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": images(1)}, "image must be numbers"),
        ({"raters": squares(1, 4)}, "raters must be masks"),
        ({"from_z": np.zeros((4, 4))}, "from_z is 4 x 4, the image 32 x 32"),
        ({"mean": images(1)[0]}, "mean must lie between 0 and 1"),
        ({"rater_mask": np.ones(3)}, "rater_mask is 1 x 3, but 1 cases have 4 raters"),
    ],
)
def test_the_uncertainty_of_wrong_arrays(change: dict, message: str):
    mean, from_z, from_tau = maps()
    given = {"image": images(1)[0], "raters": squares(1, 4)[0], "mean": mean, "from_z": from_z, "from_tau": from_tau}
    with pytest.raises(DataError, match=message):
        uncertainty(**(given | change))


# Files


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_figure_is_saved_by_its_suffix_and_twice_alike(tmp_path, suffix: str, start: bytes):
    paths = [save(area_ranks(np.eye(3)), tmp_path / f"{name}{suffix}") for name in "ab"]
    assert paths == [tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"]
    assert paths[0].read_bytes().startswith(start)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_figure_that_cannot_be_saved(tmp_path):
    figure = area_ranks(np.eye(2))
    with pytest.raises(DataError, match=r"saved as \.png, \.svg, \.pdf"):
        save(figure, tmp_path / "figure.txt")
    with pytest.raises(DataError, match=r"the folder .*/nowhere does not exist"):
        save(figure, tmp_path / "nowhere" / "figure.png")
    assert not list(tmp_path.iterdir())
