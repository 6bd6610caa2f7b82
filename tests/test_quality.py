"""The quality of a data set: numbers against published ones and by hand, every suspicion in a store made for it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proseg import metrics
from proseg.data import quality
from proseg.data.case import Slice
from proseg.data.folds import Fold
from proseg.data.lidc_contours import load_nodules, rank_by_area
from proseg.data.quality import Quality, distances, highlights, kept, measure, overlaps, report
from proseg.data.quality_page import page
from proseg.data.source import Skipped
from proseg.data.store import Description, Store, write
from proseg.data.suspicions import EXAMPLES, Suspicion

SIDE = 20
LABEL = "squares drawn by a test"
PATIENTS = ("p0", "p1", "p2", "p3")
FOLD = Fold(0, ("p0", "p1"), ("p2",), ("p3",))
DESCRIPTION = Description(
    name="squares", label=LABEL, licence="none needed: synthetic", unit="slice", sorted_raters=False,
    window=(-1000.0, 400.0),
)  # fmt: skip


def squares(*sides: int, corner: int = 4) -> np.ndarray:
    """[R, 20, 20] bool: rater r draws a square of this side; 0 draws nothing."""
    masks = np.zeros((len(sides), SIDE, SIDE), bool)
    for mask, side in zip(masks, sides, strict=True):
        mask[corner : corner + side, corner : corner + side] = True
    return masks


def a_slice(patient: str, z: float = 0.0, **changes: Any) -> Slice:
    """Three raters who differ, and an image that no other slice has."""
    seed = [*patient.encode(), int(1000 * z) % 2**31]
    image = np.random.default_rng(seed).normal(-300, 50, (1, SIDE, SIDE)).astype(np.int16)
    common = {"image": image, "annotations": squares(6, 7, 8), "rater_mask": np.ones(3, bool), "patient": patient,
              "volume": f"{patient}-v", "z": z, "spacing": (2.0, 0.5, 0.5)}  # fmt: skip
    return Slice(**common | changes)


def four(**changes: Any) -> list[Slice]:
    """Two slices of each of four patients; the changes are those of the first slice."""
    slices = [a_slice(patient, z) for patient in PATIENTS for z in (0.0, 2.0)]
    return [replace(slices[0], **changes), *slices[1:]]


def made(folder: Path, slices: list[Slice], folds: tuple[Fold, ...] = (FOLD,), **changes: Any) -> Store:
    return write(folder / "store", slices, DESCRIPTION.model_copy(update=changes), folds)


def of_masks(folder: Path, *masks: np.ndarray, **changes: Any) -> Quality:
    """Of a store with a slice for each of these [R, H, W]."""
    slices = [a_slice(PATIENTS[place % 4], float(place), annotations=mask, rater_mask=np.ones(len(mask), bool))
              for place, mask in enumerate(masks)]  # fmt: skip
    return measure(made(folder, slices, (), **changes))


# The embedded outlines, against what is published of them


def outlined() -> Iterator[Slice]:
    """The 1597 slices of the papers that all four radiologists outlined; the images are noise, as nobody looks."""
    rng = np.random.default_rng(0)
    for nodule in load_nodules():
        for k in np.flatnonzero(nodule.in_paper & nodule.complete):
            yield Slice(
                image=rng.integers(-900, 0, (1, 128, 128), np.int16),
                annotations=rank_by_area(nodule.masks[k]),
                rater_mask=np.ones(4, bool),
                patient=nodule.patient,
                volume=f"{nodule.patient}/{nodule.scan}/{nodule.nodule}",
                z=float(nodule.z[k]),
                spacing=(nodule.slice_spacing, nodule.pixel_spacing, nodule.pixel_spacing),
            )


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Quality:
    folder = tmp_path_factory.mktemp("paper") / "store"
    lidc = DESCRIPTION.model_copy(update={"name": "lidc", "sorted_raters": True})
    return measure(write(folder, outlined(), lidc))


def test_ranks_of_lidc_disagree_as_published(paper: Quality):
    published = [[0, 0.190, 0.233, 0.299], [0.190, 0, 0.181, 0.241], [0.233, 0.181, 0, 0.201], [0.299, 0.241, 0.201, 0]]
    own = paper.distances[-1]
    np.testing.assert_allclose(own.mean, published, atol=0.0006)
    assert (own.d_aa, own.between, own.cases) == pytest.approx((0.1682, 0.2242, 1597), abs=0.0001)


def test_ranks_of_lidc_are_as_large_as_published(paper: Quality):
    areas = paper.areas[:, :, 0]
    np.testing.assert_allclose(areas.mean(0), [393, 436, 476, 540], atol=0.6)
    np.testing.assert_allclose(np.percentile(areas[:, 0], (5, 25, 50, 75, 95)), [175, 237, 334, 501, 790], atol=1)
    np.testing.assert_allclose(np.percentile(areas[:, 3], (5, 25, 50, 75, 95)), [271, 344, 464, 675, 1044], atol=1)
    in_mm = areas * (paper.spacing[:, 1] * paper.spacing[:, 2])[:, None]
    np.testing.assert_allclose(in_mm.mean(0), [184, 204, 222, 253], atol=0.6)


def test_lidc_without_an_empty_mask_is_the_same_in_both_conventions(paper: Quality):
    published, ours = paper.distances
    np.testing.assert_array_equal(published.mean, ours.mean)
    assert published.d_aa == ours.d_aa


def test_two_radiologists_drew_the_same_in_some_slices_of_lidc(paper: Quality):
    (found,) = (one for one in paper.suspicions if one.what == "images in which two raters are identical")
    assert found.of == 1597
    assert found.count / found.of == pytest.approx(0.037, abs=0.001)
    assert not any("every image" in one.what or "several patients" in one.what for one in paper.suspicions)


# Distances, by hand


def test_empty_masks_agree_or_do_not(tmp_path: Path):
    """Of three slices one is empty for both, one for one of them; in the third IoU is 1/4."""
    found = of_masks(tmp_path, squares(0, 0), squares(0, 4), squares(4, 8))
    published, ours = found.distances
    assert published.mean[0, 1] == pytest.approx((1 + 1 + 0.75) / 3)
    assert ours.mean[0, 1] == pytest.approx((0 + 1 + 0.75) / 3)
    assert ours.between == pytest.approx(ours.mean[0, 1])
    assert ours.d_aa == pytest.approx(ours.mean[0, 1] / 2), "half of the four ordered pairs are of a rater with himself"
    assert (ours.mean.diagonal() == 0).all()


def test_a_volume_is_compared_as_a_whole(tmp_path: Path):
    slices = [a_slice("p0", 0.0, annotations=squares(4, 8, 8)), a_slice("p0", 2.0, annotations=squares(8, 8, 0)),
              *four()[2:]]  # fmt: skip
    *_, volume = measure(made(tmp_path, slices, unit="volume")).distances
    others = [1 - 36 / 49, 1 - 36 / 64, 1 - 49 / 64]
    of_first = [1 - 80 / 128, 1 - 16 / 128, 1 - 64 / 128]
    wanted = [(first + 3 * other) / 4 for first, other in zip(of_first, others, strict=True)]
    np.testing.assert_allclose(volume.mean[np.triu_indices(3, 1)], wanted)
    assert volume.cases == 4


def test_a_rater_who_misses_a_slice_is_not_compared_in_its_volume(tmp_path: Path):
    masks = squares(4, 8, 0)
    slices = [a_slice("p0", 0.0, annotations=masks, rater_mask=np.array([True, True, False])), a_slice("p0", 2.0)]
    published, ours, volume = measure(made(tmp_path, slices, (), unit="volume")).distances
    assert volume.case.startswith("volume")
    assert volume.mean[0, 1] == pytest.approx(1 - (16 + 36) / (64 + 49))
    assert np.isnan(volume.mean[0, 2])
    assert ours.mean[0, 2] == pytest.approx(1 - 36 / 64), "in the slice that he annotated"
    assert (published.cases, ours.cases, volume.cases) == (2, 2, 1)


def test_d_aa_is_that_of_the_evaluation(tiny_store: Store):
    rows = range(tiny_store.manifest.slices)
    masks = torch.from_numpy(np.stack([tiny_store.annotations(row) for row in rows])).bool()
    present = torch.from_numpy(np.stack([tiny_store.rater_mask(row) for row in rows]))
    several = present.sum(1) > 1
    wanted = metrics.ged(masks[several], masks[several], present[several]).d_aa
    found = measure(tiny_store).distances[-1]
    assert found.d_aa == pytest.approx(float(wanted.mean()), rel=1e-9)
    assert found.cases == int(several.sum()) < len(rows)


def test_several_classes_are_compared_one_by_one(tmp_path: Path):
    labels = np.zeros((2, SIDE, SIDE), np.uint8)
    labels[0, :4, :4], labels[1, :4, :8] = 1, 1
    labels[:, 10:12] = 2
    found = of_masks(tmp_path, labels, classes=3)
    assert found.areas[0].tolist() == [[16, 40, 0], [32, 40, 0]]
    published, ours = found.distances
    assert ours.mean[0, 1] == pytest.approx((0.5 + 0 + 0) / 3)
    assert published.mean[0, 1] == pytest.approx((0.5 + 0 + 1) / 3), "the third class is empty for both"


def test_overlaps_are_counts_of_pixels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (5, 3, 13, 7), np.uint8)
    found = overlaps(labels, 2)
    for k in (1, 2):
        masks = (labels == k).reshape(5, 3, -1).astype(int)
        np.testing.assert_array_equal(found[:, k - 1], masks @ masks.swapaxes(1, 2))
    assert distances(found, empty=0).shape == (5, 3, 3)


@pytest.mark.parametrize("at_once", [1, 3 * SIDE * SIDE * 3])
def test_how_many_slices_are_read_at_once_does_not_matter(
    volume_store: Store, monkeypatch: pytest.MonkeyPatch, at_once: int
):
    whole = measure(volume_store)
    monkeypatch.setattr(quality, "BYTES_AT_ONCE", at_once)
    parts = measure(volume_store)
    assert parts.suspicions == whole.suspicions
    np.testing.assert_array_equal(parts.areas, whole.areas)
    for one, other in zip(parts.distances, whole.distances, strict=True):
        np.testing.assert_allclose(one.mean, other.mean)
        assert one.d_aa == pytest.approx(other.d_aa)


def test_the_parts_of_every_fold_are_counted(tmp_path: Path):
    slices = [*four(), a_slice("p3", 4.0)]
    other = Fold(1, ("p3",), ("p0", "p2"), ("p1", "nobody"))
    assert measure(made(tmp_path, slices, (FOLD, other))).parts == (
        {"train": (2, 4), "val": (1, 2), "test": (1, 3)},
        {"train": (1, 3), "val": (2, 4), "test": (2, 2)},
    )


# Suspicions


def suspicious(store: Store) -> dict[str, Suspicion]:
    return {one.what: one for one in measure(store).suspicions}


@pytest.mark.parametrize("unit", ["slice", "volume"])
def test_a_sound_data_set_is_not_suspicious(tmp_path: Path, unit: str):
    assert suspicious(made(tmp_path, four(), unit=unit)) == {}


def beyond(share: float, value: int) -> np.ndarray:
    """[1, 20, 20] whose first pixels have this value."""
    image = a_slice("p0").image.copy()
    image.reshape(-1)[: int(share * image.size)] = value
    return image


INVERTED = np.stack([*squares(6, 7), np.ones((SIDE, SIDE), bool)])
COPIED = a_slice("p3", 2.0).image


@pytest.mark.parametrize(
    ("changes", "what", "count", "of", "example"),
    [
        ({"annotations": INVERTED}, "masks that cover the whole image", 1, 24, "p0-v at z = 0: A3"),
        ({"annotations": squares(6, 7, 8, corner=12)}, "masks that reach the border of the image", 1, 24,
         "p0-v at z = 0: A3"),
        ({"annotations": squares(6, 7, 8, corner=0)}, "masks that reach the border of the image", 3, 24,
         "p0-v at z = 0: A1, A2, A3"),
        ({"annotations": np.stack([*squares(6, 7), *squares(5, corner=13)])},
         "masks that have no pixel in common with another rater's", 1, 24, "p0-v at z = 0: A3"),
        ({"annotations": squares(6, 7, 6)}, "images in which two raters are identical", 1, 8, "p0-v at z = 0: A1 = A3"),
        ({"annotations": squares(0, 7, 8)}, "empty masks where the others' are large", 1, 1, "p0-v at z = 0: A1"),
        ({"annotations": squares(1, 4, 5)}, "images whose largest mask is more than 20 times the smallest", 1, 8,
         "p0-v at z = 0: 25 times"),
        ({"image": np.full((1, SIDE, SIDE), 7, np.int16)}, "images with a channel in which all pixels are equal", 1, 8,
         "p0-v at z = 0"),
        ({"image": beyond(0.05, -3024)}, "images of which more than 1% lies far outside of the window -1000 to 400", 1,
         8, "p0-v at z = 0: 5%"),
        ({"image": beyond(0.05, 1200)}, "images of which more than 1% lies far outside of the window -1000 to 400", 1,
         8, "p0-v at z = 0: 5%"),
        ({"spacing": (2.0, 0.5, 0.6)}, "volumes whose slices differ in spacing by more than 1%", 1, 4,
         "p0-v: 2 x 0.5 x 0.5 to 0.6 mm (z, y, x)"),
        ({"image": COPIED, "patient": "p2", "volume": "p2-w"}, "images that stand under several patients", 1, 8,
         "p2-w at z = 0 (p2) = p3-v at z = 2 (p3)"),
        ({"image": a_slice("p0", 2.0).image}, "images that stand several times under one patient", 1, 8,
         "p0-v at z = 0 (p0) = p0-v at z = 2 (p0)"),
    ],
)  # fmt: skip
def test_what_is_odd_is_named_and_counted(
    tmp_path: Path, changes: dict[str, Any], what: str, count: int, of: int, example: str
):
    found = suspicious(made(tmp_path, four(**changes)))
    one = found.pop(what)
    assert (one.count, one.of) == (count, of)
    assert one.examples[0].startswith(example)
    allowed = (
        {"images that stand under several patients, on two sides of a split"} if "several patients" in what else {}
    )
    assert set(found) <= set(allowed)


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": squares(0, 0, 8)},
        {"annotations": squares(0, 2, 2), "rater_mask": np.array([False, True, True])},
        {"annotations": squares(0, 3, 4)},
        {"annotations": squares(2, 4, 8)},
        {"annotations": squares(0, 0, 0)},
        {"annotations": squares(0, 0, 3)},
        {"image": beyond(0.005, -3024)},
        {"image": beyond(0.05, -1600)},
        {"spacing": (2.01, 0.5, 0.5)},
    ],
    ids=["most empty", "missing", "small", "ratio 16", "all empty", "one alone", "few pixels", "air", "rounding"],
)
def test_what_is_usual_is_not_odd(tmp_path: Path, changes: dict[str, Any]):
    found = suspicious(made(tmp_path, four(**changes)))
    found.pop("images in which two raters are identical", None)
    assert found == {}


def test_an_image_of_two_patients_on_two_sides_of_a_split_is_a_leak(tmp_path: Path):
    beside = Fold(1, ("p0", "p3"), ("p1",), ("p2",))
    found = suspicious(made(tmp_path, four(image=COPIED), (FOLD, beside)))
    leak = found["images that stand under several patients, on two sides of a split"]
    assert leak.examples == ("p0-v at z = 0 (p0) = p3-v at z = 2 (p3): training and test of fold 0",)
    assert next(iter(found)) == leak.what, "the gravest comes first"


def test_an_image_of_two_patients_on_one_side_is_no_leak(tmp_path: Path):
    found = suspicious(made(tmp_path, four(image=a_slice("p1", 2.0).image)))
    assert list(found) == ["images that stand under several patients"]


def test_empty_images_are_no_copies_of_each_other(tmp_path: Path):
    blank = np.zeros((1, SIDE, SIDE), np.int16)
    slices = [replace(one, image=blank) for one in four()]
    assert list(suspicious(made(tmp_path, slices))) == ["images with a channel in which all pixels are equal"]


def test_a_copy_is_found_though_one_of_its_channels_is_empty(tmp_path: Path):
    empty = np.zeros((1, SIDE, SIDE), np.int16)
    slices = [replace(one, image=np.concatenate([one.image, empty])) for one in four(image=a_slice("p1", 2.0).image)]
    found = suspicious(made(tmp_path, slices))
    assert found["images that stand under several patients"].count == 1
    assert found["images with a channel in which all pixels are equal"].count == 8


def test_a_rater_who_is_another_everywhere(tmp_path: Path):
    slices = [replace(one, annotations=squares(6, 8, 8)) for one in four()]
    found = suspicious(made(tmp_path, slices))
    one = found["pairs of raters who are identical in every image"]
    assert (one.count, one.of, one.examples) == (1, 3, ("A2 and A3, in 8 images",))
    assert found["images in which two raters are identical"].count == 8
    slices[3] = four()[3]
    assert "pairs of raters who are identical in every image" not in suspicious(made(tmp_path / "again", slices))


def test_raters_who_did_nothing(tmp_path: Path):
    masks = np.array([True, True, False])
    slices = [replace(one, annotations=squares(8, 0, 0), rater_mask=masks) for one in four()]
    found = suspicious(made(tmp_path, slices, sorted_raters=True))
    assert found["raters who annotated no slice"].examples == ("A3",)
    assert found["raters who drew nothing"].examples == ("A2",)


@pytest.mark.parametrize(("z", "steps"), [((0, 1, 5), "1 to 4"), ((4, 2, 0), "-2 to -2"), ((0, 8, 5), "-3 to 8")])
def test_steps_that_are_unequal(tmp_path: Path, z: tuple[int, ...], steps: str):
    images = [a_slice("p0", 100.0 + turn).image for turn in range(3)]
    slices = [a_slice("p0", float(at), image=image) for at, image in zip(z, images, strict=True)] + four()[2:]
    (one,) = suspicious(made(tmp_path, slices, unit="volume")).values()
    assert one.what == "volumes with unequal steps between their slices"
    assert (one.count, one.of, one.examples) == (1, 4, (f"p0-v: {steps} mm",))
    assert suspicious(made(tmp_path / "slices", slices)) == {}, "a selection of slices has gaps"


def test_a_spacing_that_files_did_not_say(tmp_path: Path):
    slices = [replace(one, spacing=(1.0, 1.0, 1.0)) if one.patient == "p1" else one for one in four()]
    (found,) = suspicious(made(tmp_path, slices)).values()
    assert found.what == "volumes whose voxels are 1 mm in all directions"
    assert (found.count, found.of, found.examples) == (1, 4, ("p1-v: 1 x 1 x 1 mm (z, y, x)",))


def test_a_class_that_nobody_drew(tmp_path: Path):
    slices = [replace(one, annotations=one.annotations * np.uint8(2)) for one in four()]
    (found,) = suspicious(made(tmp_path, slices, classes=3)).values()
    assert (found.what, found.count, found.of) == ("classes that nobody drew", 2, 3)
    assert found.examples == ("class 1", "class 3")


def test_steps_of_another_length_than_the_spacing(tmp_path: Path):
    slices = [replace(one, spacing=(1.0, 0.5, 0.5)) if one.patient == "p1" else one for one in four()]
    found = suspicious(made(tmp_path, slices, unit="volume"))
    (one,) = found.values()
    assert one.what == "volumes whose slices do not lie as far apart as their spacing says"
    assert (one.count, one.examples) == (1, ("p1-v: steps of 2 mm, spacing 1",))


def test_voxels_that_are_far_too_long(tmp_path: Path):
    slices = [replace(one, spacing=(20.0, 0.5, 0.5)) if one.patient == "p1" else one for one in four()]
    found = suspicious(made(tmp_path, slices))
    assert list(found) == ["volumes whose voxels are more than 20 times as long as wide"]


def test_intensities_that_were_not_normalised(tmp_path: Path):
    slices = [replace(one, image=one.image.astype(np.float32) / 50) for one in four()]
    assert suspicious(made(tmp_path / "sound", slices, window=None)) == {}
    slices[0] = replace(slices[0], image=slices[0].image * 50)
    found = suspicious(made(tmp_path, slices, window=None))
    assert list(found) == ["images of which more than 1% lies far outside of what is usual of normalised intensities"]


def test_examples_are_bounded_and_all_are_counted(tmp_path: Path):
    slices = [a_slice(PATIENTS[k % 4], float(k), annotations=squares(6, 6, 8)) for k in range(3 * EXAMPLES)]
    one = suspicious(made(tmp_path, slices))["images in which two raters are identical"]
    assert (one.count, len(one.examples)) == (3 * EXAMPLES, EXAMPLES)


# The report


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_store: Store) -> Path:
    folder = tmp_path_factory.mktemp("report") / "quality"
    assert report(tiny_store, folder) == folder / "report.md"
    return folder


def test_a_report_is_a_page_and_its_pictures(written: Path):
    pictures = {"samples.png", "distances.png", "ranks.png"}
    assert {path.name for path in written.iterdir()} == {"report.md", *pictures}
    text = (written / "report.md").read_text()
    for name in pictures:
        assert (written / name).read_bytes()[:4] == b"\x89PNG"
        assert f"]({name})" in text


def test_every_title_of_a_report_says_what_is_simulated(written: Path, tiny_store: Store):
    titles = [line for line in (written / "report.md").read_text().splitlines() if line.startswith("#")]
    assert len(titles) >= 8
    assert [line for line in titles if tiny_store.manifest.label not in line] == []


def test_every_picture_of_a_report_says_what_is_simulated(tiny_store: Store):
    from proseg.data.quality_page import _figures

    figures = _figures(measure(tiny_store), tiny_store)
    titles = [figure.get_suptitle().replace("\n", " ") for figure in figures.values()]
    assert len(titles) == 3
    assert [title for title in titles if tiny_store.manifest.label not in title] == []


def rows_of(text: str, section: str) -> list[list[str]]:
    """The cells of the tables of a section."""
    part = text.split(f"## {section} ")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]


def test_a_report_says_what_the_data_are(written: Path, tiny_store: Store):
    m = tiny_store.manifest
    text = (written / "report.md").read_text()
    facts = dict(row for row in rows_of(text, "What it is") if len(row) == 2)
    assert facts["fingerprint"] == f"`{m.fingerprint}`"
    assert (facts["slices"], facts["patients"], facts["licence"], facts["label"]) == ("40", "20", m.licence, m.label)
    assert facts["raters"].startswith("4, ranks, not people")
    assert facts["raters who annotated"].startswith("4 in ")
    assert facts["window"] == "-1000 to 400"


def test_a_report_gives_the_numbers_of_the_measurement(written: Path, tiny_store: Store):
    found, text = measure(tiny_store), (written / "report.md").read_text()
    raters = rows_of(text, "Raters")[2:]
    assert [row[0] for row in raters[:4]] == ["**A1**", "**A2**", "**A3**", "**A4**"]
    assert [int(row[1]) for row in raters[:4]] == found.present.sum(0).tolist()
    area, present = found.areas[:, 0, 0], found.present[:, 0]
    assert float(raters[0][3]) == pytest.approx(area[present].mean(), abs=0.5)
    pixel = found.spacing[:, 1] * found.spacing[:, 2]
    in_mm = raters[raters.index(rows_of(text, "Raters")[0]) + 2]
    assert float(in_mm[3]) == pytest.approx((area * pixel)[present].mean(), abs=0.5)
    assert f"**d_aa {found.distances[-1].d_aa:.4f}**" in text
    assert f"{found.distances[-1].mean[0, 1]:.3f}" in rows_of(text, "Distance between raters")[2]
    splits = rows_of(text, "Splits")[2:]
    assert [row[0] for row in splits] == ["0", "1", "2", "3"]
    assert sum(int(row[3].split("/")[1]) for row in splits) == 40, "every slice is tested once"
    assert "sorted by area" in text


def test_a_report_lists_what_is_suspicious(tmp_path: Path):
    slices = [a_slice(PATIENTS[k % 4], float(k), annotations=squares(6, 6, 8)) for k in range(3 * EXAMPLES)]
    text = report(made(tmp_path, slices), tmp_path / "out").read_text()
    part = text.split("## Suspicious")[1]
    assert f"**images in which two raters are identical: {3 * EXAMPLES} of {3 * EXAMPLES}** (100.0%)" in part
    assert part.count("- p") == EXAMPLES
    assert "- ...\n" in part
    assert f"- suspicious: images in which two raters are identical: {3 * EXAMPLES} of {3 * EXAMPLES}" in text


def test_a_report_tells_the_names_and_what_was_left_out(tmp_path: Path):
    found = measure(made(tmp_path, four()))
    skipped = tuple(Skipped(f"slice {number}.dcm", "it is damaged") for number in range(60))
    names = {"rater_names": ("anna", "bert", "carl"), "channel_names": ("ct",)}
    text = page(replace(found, manifest=found.manifest.model_copy(update={"skipped": skipped, **names})), set())
    facts = dict(row for row in rows_of(text, "What it is") if len(row) == 2)
    assert (facts["their names"], facts["channels"]) == ("anna, bert, carl", "1 (ct)")
    left_out = rows_of(text, "Left out")[2:]
    assert left_out[0] == ["slice 0.dcm", "it is damaged"]
    assert len(left_out) == 50
    assert "60 left out. The first 50:" in text
    assert "Left out" not in page(found, set())


def test_names_cannot_break_a_table(tmp_path: Path):
    text = report(made(tmp_path, four(), label="drawn | by\n# nobody"), tmp_path / "out").read_text()
    assert ["label", "drawn \\", "by # nobody"] in rows_of(text, "What it is")
    assert [line for line in text.splitlines() if line.startswith("# nobody")] == []


@pytest.mark.parametrize(("sides", "pictures"), [((0, 0, 0), 1), ((0, 4), 3)])
def test_a_report_of_next_to_nothing(tmp_path: Path, sides: tuple[int, ...], pictures: int):
    """Nobody drew, or only one of two: the report says what there is."""
    masks = {"annotations": squares(*sides), "rater_mask": np.ones(len(sides), bool)}
    slices = [replace(one, **masks) for one in four()]
    text = report(made(tmp_path, slices), tmp_path / "out").read_text()
    assert "nan" not in text
    assert text.count("](") == len(list((tmp_path / "out").glob("*.png"))) == pictures


def test_a_report_of_raters_who_never_meet(tmp_path: Path):
    masks = squares(6, 0), squares(0, 7)
    slices = [replace(one, annotations=masks[turn % 2], rater_mask=masks[turn % 2].any((1, 2)))
              for turn, one in enumerate(four())]  # fmt: skip
    text = report(made(tmp_path, slices), tmp_path / "out").read_text()
    assert "- no two raters annotated the same case; no mask is empty\n" in text
    assert "0 with two raters or more (squares drawn by a test): nothing to compare." in text
    assert rows_of(text, "Distance between raters")[2:] == [["**A1**", "0.000", ""], ["**A2**", "", "0.000"]]
    assert "nan" not in text


def test_a_report_of_a_volume_set_with_several_classes(tmp_path: Path):
    labels = squares(6, 7, 8).astype(np.uint8)
    labels[:, 5:7, 5:7] = 2
    slices = [replace(one, annotations=labels) for one in four()]
    text = report(made(tmp_path, slices, unit="volume", classes=2), tmp_path / "out").read_text()
    raters = rows_of(text, "Raters")
    assert raters[0][:2] == ["rater", "class"]
    assert [row[:2] for row in raters[2:8]] == [[f"**A{r}**", str(k)] for k in (1, 2) for r in (1, 2, 3)]
    assert "By slice, none with two empty masks, 8 with" in text
    assert "By volume, two empty masks 0 apart, 4 with two raters or more" in text


def test_a_report_that_was_not_finished_has_no_page(tmp_path: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("proseg.data.quality_page.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        report(tiny_store, tmp_path / "out")
    assert not (tmp_path / "out" / "report.md").exists()


def test_highlights_are_the_few_lines_to_print(tmp_path: Path):
    lines = highlights(measure(made(tmp_path, four())))
    assert lines[0] == f"squares: {LABEL}. 8 slices, 4 volumes, 4 patients, 3 raters"
    assert "two raters are 0.312 apart" in lines[1]
    assert lines[2] == "nothing suspicious was found"
    assert len(lines) == 3


# Kept in the workspace


def test_a_report_is_made_once_for_each_data_set(tmp_path: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch):
    made_of = []

    def write_one(store: Store, folder: Path) -> Path:
        made_of.append(store.manifest.label)
        folder.mkdir()
        (folder / "report.md").write_text("a report")
        return folder / "report.md"

    monkeypatch.setattr(quality, "report", write_one)
    folder = kept(tiny_store, tmp_path)
    assert kept(tiny_store, tmp_path) == folder
    assert (folder / "report.md").read_text() == "a report"
    other = made(tmp_path, four())
    assert kept(other, tmp_path) != folder
    assert made_of == [tiny_store.manifest.label, LABEL]
    relabelled = made(tmp_path / "again", four(), label="another label")
    assert relabelled.manifest.fingerprint == other.manifest.fingerprint
    assert kept(relabelled, tmp_path) != kept(other, tmp_path), "the label stands in the report"


def test_a_report_that_failed_is_made_anew(tmp_path: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch):
    def broken(store: Store, folder: Path) -> Path:
        folder.mkdir()
        (folder / "half.png").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quality, "report", broken)
        with pytest.raises(KeyboardInterrupt):
            kept(tiny_store, tmp_path)
    assert [path for path in (tmp_path / "quality").iterdir() if path.is_dir()] == []
    assert (kept(tiny_store, tmp_path) / "report.md").is_file()


def test_masks_of_the_background_look_swapped(tmp_path: Path):
    holes = ~squares(8, 0, 0).astype(bool)
    holes[1:] = squares(8, 6, 4)[1:]
    slices = [replace(one, annotations=holes) for one in four()]
    found = suspicious(made(tmp_path, slices))["raters whose masks look swapped, object for background"]
    assert (found.count, found.of, found.told) == (1, 3, True)
    assert found.examples[0].startswith("A1: 8 of 8 masks")
    assert "--invert" in found.note
    labels = [replace(one, annotations=one.annotations.astype(np.uint8)) for one in slices]
    found = suspicious(made(tmp_path / "labels", labels, classes=2))[found.what]
    assert found.told
    assert "--invert" not in found.note  # which does not go with --classes


def test_an_unknown_spacing_is_said_and_nothing_is_measured_in_mm(tmp_path: Path):
    unknown = (np.nan, np.nan, np.nan)
    quality = measure(made(tmp_path, [replace(one, spacing=unknown) for one in four()]))
    text = page(quality, set())
    assert "z not known, y not known, x not known" in text
    assert "mm²" not in text
    assert not any("1 mm" in one.what for one in quality.suspicions)
