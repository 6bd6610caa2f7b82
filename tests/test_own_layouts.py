"""Layouts that people have: patterns, tables in several forms, spellings, masks as programs write them."""

import csv
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from proseg.data import own
from proseg.data.case import Slice
from proseg.data.images import write_like
from proseg.data.kinds import Choices
from proseg.data.own.identities import key
from proseg.data.own.listing import listing
from proseg.data.own.masks import Meaning
from proseg.data.own.wildcards import Pattern
from proseg.data.raters import rare_raters
from proseg.data.source import prepare
from proseg.errors import ConfigError, DataError, ManyFaults
from tests.dicom import write_series
from tests.images import LPS, as_nobody

CASES, HEIGHT, WIDTH = 9, 20, 24
FAILING = Path(__file__).parents[1].parent / "shared" / "data" / "failing"

needs_failing = pytest.mark.skipif(not FAILING.is_dir(), reason="the small failing inputs are not on this machine")


def slices(path: Path, **options) -> list[Slice]:
    source = own.source(path, "mine", Choices(**options))
    parts = [source.read(part) for part in source.parts]
    assert [part.faults for part in parts if part.faults] == []
    return [one for part in parts for one in part.slices]


def refused(path: Path, **options) -> str:
    """All that is told, before or after pixels are read."""
    try:
        source = own.source(path, "mine", Choices(**options))
    except ManyFaults as error:
        return "\n".join(error.sentences)
    except DataError as error:
        return str(error)
    return "\n".join(fault for part in source.parts for fault in source.read(part).faults)


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def drawn(number: int, rater: int) -> np.ndarray:
    """An ellipse of the rater's own size, bool."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows - 10) / (4 + rater)) ** 2 + ((columns - 10 - number % 3) / 5) ** 2 < 1


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def black_and_white(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) * 255


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, object]]:
    """Rows of a manifest: nine images of one patient each, two raters."""
    found: list[dict[str, object]] = []
    for number in range(CASES):
        save(tmp_path / f"i{number}.png", image(number)[..., 0])
        for rater, name in enumerate("ab"):
            save(tmp_path / f"m{number}_{name}.png", black_and_white(drawn(number, rater)))
        found.append(
            {"image": f"i{number}.png", "mask_a": f"m{number}_a.png", "mask_b": f"m{number}_b.png",
             "patient": f"P{number + 1}"}
        )  # fmt: skip
    return found


def check_two(found: list[Slice]) -> None:
    """The images and masks of the first two raters of all cases."""
    assert len(found) == CASES
    for number, one in enumerate(found):
        np.testing.assert_array_equal(one.annotations[:2], [drawn(number, 0), drawn(number, 1)])


# Patterns: public sets as they come


def test_drive_is_prepared_by_one_command(tmp_path: Path):
    for number in range(CASES):
        save(tmp_path / f"training/images/{21 + number}_training.tif", image(number))
        save(tmp_path / f"training/mask/{21 + number}_training_mask.gif", np.full((HEIGHT, WIDTH), 255, np.uint8))
        for rater, name in enumerate(("1st", "2nd")):
            gif = tmp_path / f"training/{name}_manual/{21 + number}_manual{rater + 1}.gif"
            save(gif, black_and_white(drawn(number, rater)))
    masks = ("training/*_manual/{case}_{rater}.gif",)
    found = slices(tmp_path, images="training/images/{case}_training.tif", masks=masks)
    check_two(found)
    assert found[0].image.dtype == np.uint8
    np.testing.assert_array_equal(found[3].image, image(3).transpose(2, 0, 1))


def test_chase_is_prepared_by_one_command(tmp_path: Path):
    for number in range(CASES):
        save(tmp_path / f"Image_{number:02}L.jpg", image(number))
        for rater, name in enumerate(("1stHO", "2ndHO")):
            Image.fromarray(drawn(number, rater)).save(tmp_path / f"Image_{number:02}L_{name}.png")  # of 1 bit
    source = own.source(tmp_path, "chase", Choices(images="*.jpg", masks=("{stem}_{rater}.png",)))
    assert source.raters == ("1stHO", "2ndHO")
    check_two(slices(tmp_path, images="*.jpg", masks=("{stem}_{rater}.png",)))


def test_stare_is_prepared_by_one_command_and_images_without_masks_are_told(tmp_path: Path):
    for number in range(CASES):
        save(tmp_path / f"stare-images/im{number:04}.ppm", image(number))
        for rater, name in enumerate(("ah", "vk")):
            save(tmp_path / f"labels-{name}/im{number:04}.{name}.ppm", black_and_white(drawn(number, rater)))
    save(tmp_path / "stare-images/im0400.ppm", image(0))
    options = {"images": "stare-images/*.ppm", "masks": ("labels-{rater}/{stem}.{rater}.ppm",)}
    check_two(slices(tmp_path, **options))
    (left_out,) = own.source(tmp_path, "stare", Choices(**options)).skipped
    assert (left_out.what, left_out.why) == ("stare-images/im0400.ppm", "an image without a mask")


def test_black_on_white_masks_with_grey_edges_of_ten_raters(tmp_path: Path):
    for number in range(CASES):
        save(tmp_path / f"images/phase_{number}.png", image(number)[..., 0])
        for rater in range(10):
            size = (4 * WIDTH, 4 * HEIGHT)
            large = Image.fromarray(black_and_white(~drawn(number, rater % 3))).resize(size, Image.Resampling.NEAREST)
            edges = large.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert("RGB")
            path = tmp_path / f"annotations/rater {rater}/phase_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            edges.save(path)
    options = {"images": "images/*.png", "masks": ("annotations/{rater}/{stem}.png",)}
    found = slices(tmp_path, **options, invert=True, threshold=128)
    assert found[0].annotations.shape == (10, HEIGHT, WIDTH)
    check_two(found)


def test_a_stem_that_begins_another_is_not_taken_for_it(tmp_path: Path):
    for number in range(CASES):
        for name in (f"a{number}", f"a{number}_b"):
            save(tmp_path / f"{name}.bmp", image(number))
            for rater in "xy":
                save(tmp_path / f"masks/{name}_{rater}.png", black_and_white(drawn(number, 0)))
    source = own.source(tmp_path, "mine", Choices(images="*.bmp", masks=("masks/{stem}_{rater}.png",)))
    assert source.raters == ("x", "y")
    assert sum(map(len, source.parts)) == 2 * CASES


def test_masks_that_lie_beside_their_images(tmp_path: Path):
    for number in range(CASES):
        save(tmp_path / f"im{number}.png", image(number)[..., 0])
        for rater, name in enumerate("AB"):
            save(tmp_path / f"im{number}_{name}.png", black_and_white(drawn(number, rater)))
    check_two(slices(tmp_path, images="*.png", masks=("{stem}_{rater}.png",)))
    check_two(slices(tmp_path, images="im{n}.png", masks=("im{n}_{rater}.png",)))


def test_patterns_that_find_nothing_or_cannot_be_are_refused(tmp_path: Path, rows):
    assert "no file is called like --images '*.jpg'; there are i0.png" in refused(
        tmp_path, images="*.jpg", masks=("{rater}",)
    )
    assert "no file is called like --masks" in refused(tmp_path, images="i*.png", masks=("{stem}-{rater}.gif",))
    for masks, said in (("{stem}.png", "must hold {rater}"), ("{case}_{rater}.png", "{case}, which --images"),
                        ("m0_{rater}.png", "cannot tell the images apart")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            own.source(tmp_path, "mine", Choices(images="i*.png", masks=(masks,)))
    with pytest.raises(ConfigError, match="go together"):
        own.source(tmp_path, "mine", Choices(images="i*.png"))


@pytest.mark.parametrize("images", ["./i{n}.png", "{}/i{n}.png", "{}/link/i{n}.png", "sub/../i{n}.png", ".//i{n}.png"])
def test_patterns_may_be_absolute_or_begin_with_a_dot(tmp_path: Path, rows, images: str):
    (tmp_path / "link").symlink_to(tmp_path)
    images = images.replace("{}", str(tmp_path))
    check_two(slices(tmp_path, images=images, masks=("m{n}_{rater}.png",)))
    check_two(slices(tmp_path / "link", images=images, masks=(str(tmp_path / "m{n}_{rater}.png"),)))


def test_a_pattern_that_leads_out_of_the_folder_is_refused(tmp_path: Path, rows):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/out").symlink_to(tmp_path)
    for images in ("../i*.png", str(tmp_path / "i*.png"), "out/i*.png"):
        with pytest.raises(ConfigError, match=r"leads out of .*/set; name a folder above it with --from"):
            own.source(tmp_path / "set", "mine", Choices(images=images, masks=("{stem}_{rater}.png",)))


def test_what_differs_from_a_pattern_in_the_case_of_letters_is_named(tmp_path: Path, rows):
    two = {"images": "i{n}.png", "masks": ("m{n}_{rater}.png",)}
    assert refused(tmp_path, **two | {"images": "i{n}.PNG"}) == (
        f"{tmp_path}: no file is called like --images 'i{{n}}.PNG'; i0.png, i1.png, i2.png, i3.png, i4.png and 4 more "
        "differ from it in capitals and small letters alone"
    )
    assert "m0_a.png, m0_b.png, " in refused(tmp_path, **two | {"masks": ("M{n}_{rater}.png",)})
    (tmp_path / "i0.png").rename(tmp_path / "I0.png")
    (tmp_path / "m2_b.png").rename(tmp_path / "m2_b.PNG")
    assert [(one.what, one.why) for one in own.source(tmp_path, "mine", Choices(**two)).skipped] == [
        ("m0_a.png", "a mask by --masks 'm{n}_{rater}.png' of which there is no image"),
        ("m0_b.png", "a mask by --masks 'm{n}_{rater}.png' of which there is no image"),
        ("I0.png", "called like --images 'i{n}.png' but for capitals and small letters"),
        ("m2_b.PNG", "called like --masks 'm{n}_{rater}.png' but for capitals and small letters"),
    ]


def test_patterns_that_find_other_files_say_which(tmp_path: Path, rows):
    (tmp_path / "i0.txt").write_text("words")
    told = refused(tmp_path, images="*.txt", masks=("{stem}_{rater}.png",))
    assert "; i0.txt is, but its type is unknown; images" in told
    told = refused(tmp_path, images="i{n}.png", masks=("m{n}_{rater}.png", "n{n}_{rater}.png"))
    assert "no file is called like --masks 'n{n}_{rater}.png'; there are i0" in told
    for path in tmp_path.glob("m*.png"):
        path.rename(tmp_path / path.name.replace("m", "i").replace("_", "x_"))
    assert refused(tmp_path, images="i?.png", masks=("{stem}_{rater}.png",)) == (
        f"{tmp_path}: no image has a mask: i0x_a.png, i0x_b.png, i1x_a.png, i1x_b.png, i2x_a.png and 13 more are "
        "called like --masks '{stem}_{rater}.png', and the images are i0.png, i1.png, i2.png, i3.png, i4.png and 4 more"
    )


def test_folders_that_are_not_looked_into_are_told():
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for folder, mode in ((place, 0o755), (place / "here", 0o755), (place / "here/closed", 0)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        (place / "link").symlink_to("here")
        with as_nobody():
            assert [(one.what, one.why) for one in listing(place).skipped] == [
                ("link", "a link to a folder, which is not followed"),
                ("here/closed", "a folder that cannot be read: Permission denied"),
            ]
            with pytest.raises(DataError, match="closed: cannot be read: Permission denied"):
                listing(place / "here/closed")


@pytest.mark.parametrize("pattern", ["*", "*.hdr", "*.img", "*.hdr*", "*.img*", "*.gz"])
def test_of_a_pair_of_files_one_image_comes_out(tmp_path: Path, pattern: str):
    packed = ".gz" if "gz" in pattern or pattern[-1] == "*" else ""
    for number in range(CASES):
        each = {"images": image(number)[..., 0], "masks/a": drawn(number, 0), "masks/b": drawn(number, 1)}
        for folder, pixels in each.items():
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            pair = nibabel.Nifti1Pair(pixels.T.astype(np.uint8), LPS)
            nibabel.save(pair, tmp_path / folder / f"p{number}.hdr{packed}")
    check_two(slices(tmp_path, images=f"images/{pattern}", masks=("masks/{rater}/{stem}.*",)))
    check_two(slices(tmp_path))


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Nine DICOM series of two slices, the even ones in files with a suffix, and masks in NIfTI."""
    (tmp_path / "masks").mkdir()
    for number in range(CASES):
        folder = write_series(tmp_path / f"scans/P{number}/ct", np.stack([image(number)[..., 0]] * 2).astype(np.int16))
        for path in folder.iterdir() if number % 2 == 0 else ():
            path.rename(path.with_name(f"{path.name}.dcm"))
        for rater, name in enumerate("ab"):
            masks = np.stack([drawn(number, rater)] * 2).astype(np.uint8)
            write_like(tmp_path / f"masks/P{number}_{name}", masks[None], folder)
    return tmp_path


@pytest.mark.parametrize("images", ["scans/{patient}/ct", "scans/{patient}/*", "scans/{patient}/**/*"])
def test_a_folder_of_dicom_files_is_one_image(series: Path, images: str):
    found = slices(series, images=images, masks=("masks/{patient}_{rater}.nii.gz",))
    check_two(found[::2])
    assert [(one.patient, one.volume) for one in found[:3:2]] == [("P0", "scans/P0/ct"), ("P1", "scans/P1/ct")]
    np.testing.assert_array_equal(found[3].image[0], found[2].image[0])


@pytest.mark.parametrize(
    ("images", "masks", "said"),
    [
        ("scans/{patient}/ct/*.dcm", "masks/{patient}_{rater}.nii.gz", "of each instead, as in {--images}"),
        ("scans/P0/ct/*.dcm", "masks/P0_{rater}.nii.gz", "put each series into a folder of its own, and name that"),
        ("scans/{patient}/ct/IM000?", "masks/{patient}_{rater}.nii.gz", "of each instead, as in {--images}"),
        ("masks/{patient}_a.nii.gz", "{rater}/{patient}/ct/*.dcm", "of each instead, as in {--masks}"),
    ],
)
def test_the_files_of_a_dicom_series_are_no_images(series: Path, images: str, masks: str, said: str):
    with pytest.raises(ConfigError, match="names the files of DICOM series one by one") as error:
        own.source(series, "mine", Choices(images=images, masks=(masks,)))
    for option, folder in (("--images", "scans/{patient}/ct"), ("--masks", "{rater}/{patient}/ct")):
        said = said.replace(f"{{{option}}}", f"{option} {folder!r}")
    assert str(error.value).endswith(said)


def test_the_time_for_patterns_grows_with_the_number_of_files_alone():
    """What a file is compared with branches where known names differ; to try one name after the other took long."""
    known = [f"{number:06}" for number in range(0, 60_000, 3)]
    pattern = Pattern("--masks", "", "{stem}_{rater}.png").regex_of({"stem": known})
    assert len(pattern.pattern) < 5 * len(known)
    assert [bool(pattern.fullmatch(f"{number:06}_a.png")) for number in range(6)] == [True, False, False] * 2


def test_the_longest_of_known_texts_that_fits_is_taken():
    known = {"a": ["x", "x_y", "x_y_z", "(+", "(", ""], "b": ["1", "12"]}
    pattern = Pattern("--masks", "", "{a}_{rater}{b}.png").regex_of(known)
    for name, found in (("x_y_r1.png", ("x_y", "r", "1")), ("x_q12.png", ("x", "q", "12")), ("_r1.png", ("", "r", "1")),
                        ("(+_r1.png", ("(+", "r", "1")), ("x_y_z_1.png", ("x_y", "z_", "1"))):  # fmt: skip
        assert (match := pattern.fullmatch(name))
        assert match.group("a", "rater", "b") == found
    assert not pattern.fullmatch("q_r1.png")


def test_progress_is_shown_where_there_are_many_images(tmp_path: Path, rows, monkeypatch: pytest.MonkeyPatch):
    told = []

    def track(items: Iterable, total: int, what: str) -> Iterable:
        told.append((total, what))
        return items

    path = table(tmp_path / "m.csv", rows)
    own.source(path, "mine", Choices(), track)
    monkeypatch.setattr(own, "MANY", CASES - 1)
    own.source(path, "mine", Choices(), track)
    assert told == [(CASES, "Looking at the images"), (CASES, "Looking at their masks")]


def test_what_patterns_matched_is_written_as_a_manifest_that_is_read_back(tmp_path: Path, rows):
    options = {"images": "i{case}.png", "masks": ("m{case}_{rater}.png",)}
    written = tmp_path / "elsewhere" / "found.csv"
    written.parent.mkdir()
    expected = slices(tmp_path, **options, write_manifest=written)
    found = slices(written, root=tmp_path)
    assert [(one.patient, one.volume) for one in found] == [(one.patient, one.volume) for one in expected]
    check_two(found)
    assert "there is no file" in refused(written)
    check_two(slices(tmp_path, **options, write_manifest=written))
    assert "exists" in refused(tmp_path, **options, write_manifest=tmp_path)
    written.write_text("mine")
    assert "exists" in refused(tmp_path, **options, write_manifest=written)
    assert written.read_text() == "mine"


@pytest.mark.parametrize("layout", ["patterns", "folder"])
def test_a_written_manifest_gives_the_same_data_and_says_that_patients_are_not_known(tmp_path: Path, rows, layout: str):
    if layout == "folder":
        for number in range(CASES):
            for old, new in ((f"i{number}", "images"), (f"m{number}_a", "masks/a"), (f"m{number}_b", "masks/b")):
                (tmp_path / "set" / new).mkdir(parents=True, exist_ok=True)
                (tmp_path / f"{old}.png").rename(tmp_path / "set" / new / f"{number}.png")
    folder = tmp_path / ("set" if layout == "folder" else "")
    options = {} if layout == "folder" else {"images": "i{case}.png", "masks": ("m{case}_{rater}.png",)}
    written, again = tmp_path / "found.csv", tmp_path / "again.csv"
    first = prepare(own.source(folder, "mine", Choices(write_manifest=written, **options)), tmp_path / "one").manifest
    other = prepare(own.source(written, "mine", Choices(root=folder, write_manifest=again)), tmp_path / "two").manifest
    assert first.label == "images of one's own; each image taken for a patient of its own"
    assert (other.label, other.fingerprint, other.folds) == (first.label, first.fingerprint, first.folds)
    assert again.read_bytes() == written.read_bytes()


def test_assumed_patients_that_are_known_are_refused(tmp_path: Path, rows):
    for row in rows:
        row["assumed_patient"] = row["patient"]
    assert "columns 'patient' and 'assumed_patient'; keep the one" in refused(table(tmp_path / "m.csv", rows))
    for row in rows:
        del row["patient"]
    assert own.source(table(tmp_path / "m.csv", rows), "mine", Choices()).description.label.endswith("of its own")
    rows[4]["assumed_patient"] = "P2"
    assert refused(table(tmp_path / "m.csv", rows)) == (
        f"{tmp_path}/m.csv, row 6: assumed_patient 'P2' stands there a second time, after {tmp_path}/m.csv, row 3; "
        "call the column 'patient' if it says whose the images are"
    )


# Tables


def test_columns_in_any_case_and_whole_numbers_written_as_floats(tmp_path: Path, rows):
    for number, row in enumerate(rows):
        row |= {"patient": f"{number + 1}.0", "slice": "13.0"}
    path = table(tmp_path / "m.csv", [{name.upper(): cell for name, cell in row.items()} for row in rows])
    source = own.source(path, "mine", Choices())
    assert source.raters == ("A", "B")
    assert [entry.patient for part in source.parts for entry in part] == [str(n + 1) for n in range(CASES)]
    assert {entry.number for part in source.parts for entry in part} == {13}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_long_table_has_a_row_for_each_mask(tmp_path: Path, rows, suffix: str):
    long = [
        {"image": row["image"], "rater": name, "mask": row[f"mask_{name}"], "patient": row["patient"]}
        for row in rows for name in "ab" if not (name == "b" and row["patient"] == "P3")
    ]  # fmt: skip
    path = tmp_path / f"long{suffix}"
    if suffix == ".csv":
        table(path, long)
    else:
        pq.write_table(pa.Table.from_pylist(long), path)
    found = slices(path)
    assert len(found) == CASES
    assert [one.rater_mask.tolist() for one in found[1:4]] == [[True, True], [True, False], [True, True]]
    for number, row in enumerate(long):
        row["area"] = str(number)  # another column may differ from mask to mask
    assert len(slices(table(tmp_path / "other.csv", long))) == CASES
    long[1] |= {"patient": "Q"}
    assert "row 3: patient is 'Q', but 'P1' in row 2" in refused(table(tmp_path / "bad.csv", long))
    assert "second mask" in refused(table(tmp_path / "bad.csv", [*long[:1], *long[:1], *long[2:]]))


def test_files_below_another_root(tmp_path: Path, rows):
    (tmp_path / "lists").mkdir()
    path = table(tmp_path / "lists/m.csv", rows)
    check_two(slices(path, root=tmp_path))
    assert "there is no such folder" in refused(path, root=tmp_path / "nowhere")
    rows[0]["image"] = "../i0.png"
    assert "leads out of" in refused(table(path, rows), root=tmp_path)


def test_absolute_paths_are_those_of_a_folder_that_is_called_through_a_link(tmp_path: Path, rows):
    link = tmp_path / "link"
    real, other = tmp_path / "real", tmp_path / "other"
    real.mkdir()
    other.mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(real / path.name)
    link.symlink_to(real)
    for folder, root in ((real, link), (link, real), (real, real), (link, link)):
        path = table(tmp_path / "m.csv", [row | {c: folder / str(row[c]) for c in [*row][:3]} for row in rows])
        check_two(slices(path, root=root))
        (tmp_path / "found.csv").unlink(missing_ok=True)
        own.source(path, "mine", Choices(root=root, write_manifest=tmp_path / "found.csv"))
        assert f"\n{rows[0]['image']}," in (tmp_path / "found.csv").read_text()
    assert f"leads out of {other}" in refused(path, root=other)
    (other / "loop").symlink_to(other / "loop")
    rows[0]["image"] = other / "loop/i0.png"
    assert f"loop/i0.png leads out of {link}" in refused(table(path, [rows[0]]), root=link)


def test_a_link_out_of_a_folder_proposes_the_option_that_names_it(tmp_path: Path, rows):
    (tmp_path / "set").mkdir()
    for path in tmp_path.glob("*.png"):
        (tmp_path / "set" / path.name).symlink_to(path)
    patterns = {"images": "i{n}.png", "masks": ("m{n}_{rater}.png",)}
    assert "name the folder where it lies with --from" in refused(tmp_path / "set", **patterns)
    assert "name the folder where it lies with --root" in refused(table(tmp_path / "set/m.csv", rows))


def test_spacing_is_what_the_row_or_the_option_says_and_otherwise_unknown(tmp_path: Path, rows):
    assert np.isnan(slices(table(tmp_path / "m.csv", rows))[0].spacing).all()
    known = slices(table(tmp_path / "m.csv", rows), spacing=(0.5, 0.25))[0].spacing
    assert np.isnan(known[0])
    assert known[1:] == (0.5, 0.25)
    for row in rows:
        row |= {"spacing_x": 0.7, "spacing_y": 0.8}
    assert slices(table(tmp_path / "m.csv", rows), spacing=(3, 0.5, 0.25))[0].spacing == (3, 0.8, 0.7)
    rows[2]["spacing_x"] = "-1"
    assert "row 4: spacing_x is '-1'" in refused(table(tmp_path / "m.csv", rows))


def test_all_faults_are_told_at_once_ten_by_name(tmp_path: Path, rows):
    for row in rows[:7]:
        row |= {"image": "nothing.png", "mask_a": "nothing_a.png"}
    with pytest.raises(ManyFaults) as error:
        own.source(table(tmp_path / "m.csv", rows), "mine", Choices())
    lines = str(error.value).splitlines()
    assert (lines[0], lines[-1].strip(), len(lines)) == ("14 faults were found:", "and 4 more", 12)


def test_faults_of_masks_in_several_parts_are_told_at_once(tmp_path: Path, rows):
    for number in (1, 8):
        save(tmp_path / f"m{number}_b.png", np.full((HEIGHT, WIDTH), 7, np.uint8))
    source = own.source(table(tmp_path / "m.csv", rows), "mine", Choices())
    split = type(source)(**vars(source) | {"parts": tuple((entry,) for part in source.parts for entry in part)})
    with pytest.raises(ManyFaults, match=r"m1_b.png(.|\n)*m8_b.png"):
        prepare(split, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("I3.png", "i3.png"), ("i3.jpg", "i3.png"), ("sub\\i3.png", "sub/i3.png: write / for"), ("i03.png", "i3.png")],
)
def test_a_missing_file_names_what_was_meant(tmp_path: Path, rows, wrong: str, meant: str):
    save(tmp_path / "sub/i3.png", image(3)[..., 0])
    rows[3]["image"] = wrong
    assert f"; there is {tmp_path}/{meant}" in refused(table(tmp_path / "m.csv", rows))


# Identities


@pytest.mark.parametrize(
    ("one", "other"),
    [("P1", "p1"), ("007", "7"), ("P 1", " p  1"), ("7.0", "7"), ("é", "e\u0301"), ("A-01", "a-1"), ("\uff11", "1")],
)
def test_spellings_of_one_name(one: str, other: str):
    assert key(one) == key(other)


@pytest.mark.parametrize(("one", "other"), [("P1", "P10"), ("P1", "P2"), ("0", "00a"), ("1.5", "15"), ("a", "b")])
def test_names_that_are_two(one: str, other: str):
    assert key(one) != key(other)


def test_one_name_in_two_spellings_is_refused_unless_it_is_said_to_be_two(tmp_path: Path, rows):
    rows[1]["patient"] = "p01"
    path = table(tmp_path / "m.csv", rows)
    assert refused(path) == (
        f"{path}, row 3: patient 'p01' is spelt 'P1' in {path}, row 2: spell them alike, or add --as-written if they "
        "are two"
    )
    assert len({one.patient for one in slices(path, as_written=True)}) == CASES
    rows[1]["patient"] = "P2"
    for row in rows:
        row["mask_B"] = row["mask_a"]
    for number, row in enumerate(rows):
        row["mask_B"] = str(save(tmp_path / f"B{number}.png", black_and_white(drawn(number, 1))).name)
    assert "rater 'B' is spelt 'b'" in refused(table(path, rows))


@pytest.mark.parametrize("volumes", [("P1", "p01"), ("one", "one"), ("", "")])
def test_a_spelling_is_told_once(tmp_path: Path, rows, volumes: tuple[str, str]):
    """Whether the volume is called like the patient, has another name, or is named after the patient here."""
    for number, row in enumerate(rows):
        row |= {"volume": row["patient"] if volumes[0] else "", "slice": str(number)}
    rows[1]["patient"] = "p01"
    rows[0]["volume"], rows[1]["volume"] = volumes
    assert refused(table(tmp_path / "m.csv", rows)).startswith(f"{tmp_path}/m.csv, row 3: patient 'p01' is spelt 'P1'")
    assert refused(tmp_path / "m.csv").count("\n") == 0


def test_a_spelling_in_patterns_and_of_a_volume_alone_is_told_once(tmp_path: Path, rows):
    for name in ("i1", "m1_a", "m1_b"):
        (tmp_path / f"{name}.png").rename(tmp_path / f"{name.replace('1', '00')}.png")
    told = refused(tmp_path, images="i{n}.png", masks=("m{n}_{rater}.png",))
    assert told.startswith(f"{tmp_path}/i00.png: patient 'i00' is spelt 'i0' in {tmp_path}/i0.png")
    assert told.count("spelt") == 1
    rows = [row | {"volume": row["patient"]} for row in rows if row["patient"] != "P2"]
    rows[1]["volume"] = "p01"
    assert "volume 'p01' is spelt 'P1'" in refused(table(tmp_path / "m.csv", rows))


# Raters in every part


def test_a_rater_without_a_training_mask_is_refused_or_dropped(tmp_path: Path, rows):
    for number, row in enumerate(rows):
        row |= {"split": "train" if number < 5 else "val" if number < 7 else "test", "mask_c": ""}
    rows[8]["mask_c"] = save(tmp_path / "c.png", black_and_white(drawn(8, 2))).name
    path = table(tmp_path / "m.csv", rows)
    assert refused(path) == (
        f"{path}: rater 'c' has no mask in the training part; leave the rater out with --drop-rater 'c'"
    )
    check_two(slices(path, drop_rater=("c",)))
    assert "there are a, b, c" in refused(path, drop_rater=("d",))
    rows[8] |= {"mask_a": "", "mask_b": ""}
    (left_out,) = own.source(table(path, rows), "mine", Choices(drop_rater=("c",))).skipped
    assert left_out.why == "annotated by none but c, who was dropped"


def test_a_rater_of_one_patient_alone_is_refused_and_one_that_a_fold_lacks(tmp_path: Path, rows):
    for row in rows[1:]:
        row["mask_c"] = ""
    rows[0]["mask_c"] = save(tmp_path / "c0.png", black_and_white(drawn(0, 2))).name
    path = table(tmp_path / "m.csv", rows)
    assert "rater 'c' has masks of one patient alone" in refused(path)
    # Two patients may be the test and the validation part of one fold, which is known when all has been read.
    refusals = [why for second in range(1, CASES) if (why := prepared_with(tmp_path, rows, second))]
    assert 0 < len(refusals) < CASES - 1
    assert all("rater 'c' has no mask in the training part of fold" in why for why in refusals)


def prepared_with(folder: Path, rows: list[dict[str, object]], second: int) -> str:
    """Why the data cannot be prepared where rater c annotated the first image and another one; "" where they can."""
    rows = [dict(row) for row in rows]
    rows[second]["mask_c"] = save(folder / f"c{second}.png", black_and_white(drawn(second, 2))).name
    source = own.source(table(folder / "m.csv", rows), "mine", Choices())
    try:
        store = prepare(source, folder / f"store{second}")
    except DataError as error:
        return str(error)
    trained = [[store.rater_mask(row)[2] for row in store.rows(fold.train)] for fold in store.manifest.folds]
    assert all(map(any, trained))
    return ""


def test_a_rater_who_annotated_little_is_told(tmp_path: Path, rows):
    many = []
    for number in range(30):
        row = dict(rows[number % CASES]) | {"patient": f"P{number}", "mask_c": ""}
        for column in ("image", "mask_a", "mask_b"):
            row[column] = f"{number}/{row[column]}"
            pixels = np.array(Image.open(tmp_path / rows[number % CASES][column]))
            save(tmp_path / row[column], pixels + np.uint8(number) if column == "image" else pixels)
        row["split"] = "train" if number < 24 else "val" if number < 27 else "test"
        many.append(row)
    many[3]["mask_c"] = save(tmp_path / "c.png", black_and_white(drawn(3, 2))).name
    store = prepare(own.source(table(tmp_path / "m.csv", many), "mine", Choices()), tmp_path / "store")
    assert rare_raters(store) == [
        "rater 'c' annotated 1 of the 24 training slices of fold 0: little can be learnt of them"
    ]


# Masks


@pytest.mark.parametrize(
    "values",
    [np.float64([0, 1 - 1e-7]), np.float32([0, 254.9995]), np.uint8([0, 255]), np.uint16([0, 65535]), np.array([0, 1])],
)
def test_ways_to_write_a_mask(values: np.ndarray):
    mask = values[drawn(0, 0).astype(int)][None]
    np.testing.assert_array_equal(Meaning().labels("m", mask)[0], drawn(0, 0))
    np.testing.assert_array_equal(Meaning(invert=True).labels("m", mask)[0], ~drawn(0, 0))


def smooth(top: int) -> np.ndarray:
    """A disc with edges in grey, in the integers up to `top`."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.rint(top * (8 - np.hypot(rows - 10, columns - 11)).clip(0, 3) / 3).astype(np.uint8)[None]


@pytest.mark.parametrize(
    ("mask", "classes", "said"),
    [
        (smooth(255), 1, "values between, on edges, where 0 and 1, or 0 and 255 are expected: --threshold 128"),
        (smooth(255), 255, "on edges, where the labels 0 to 255 are expected: --threshold 128 in place of --classes"),
        (smooth(6), 6, "holds 0, 6 and 5 values between, on edges"),
        (np.repeat([0, 2, 5], 8)[None, None].repeat(HEIGHT, 1), 1, "the labels 0, 2, 5, where 0 and 1, or 0 and 255"
         " are expected: --classes 5, if there are so many"),
        (np.repeat([0, 128, 255], 8)[None, None].repeat(HEIGHT, 1), 1, "holds the values 0, 128, 255, where"),
        (np.random.default_rng(0).uniform(0, 1, (1, HEIGHT, WIDTH)), 1, "if it shows an object in grey levels"),
    ],
)  # fmt: skip
def test_values_that_are_no_labels_are_told_with_what_they_look_like(mask: np.ndarray, classes: int, said: str):
    with pytest.raises(DataError) as error:
        Meaning(classes).labels("m.png", mask)
    assert str(error.value).startswith("m.png holds ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("mask", "meaning", "said"),
    [
        (np.repeat([0, 128, 255], 8)[None, None].repeat(HEIGHT, 1), Meaning(2), "--threshold 128 in place of"),
        (np.repeat([0, 2, 5], 8)[None, None].repeat(HEIGHT, 1), Meaning(invert=True), "--classes 5 in place of --inv"),
    ],
)
def test_what_is_proposed_goes_with_what_was_said(mask: np.ndarray, meaning: Meaning, said: str):
    with pytest.raises(DataError, match=said):
        meaning.labels("m.png", mask)


def test_a_threshold_makes_a_mask_of_grey_levels():
    np.testing.assert_array_equal(Meaning(threshold=128).labels("m", smooth(255)), smooth(255) >= 128)


def test_an_empty_mask_is_a_missing_rater_where_that_is_said(tmp_path: Path, rows):
    save(tmp_path / "m0_b.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    for name in "ab":
        save(tmp_path / f"m1_{name}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    path = table(tmp_path / "m.csv", rows)
    assert [one.rater_mask.tolist() for one in slices(path)[:2]] == [[True, True]] * 2
    assert slices(path, empty_is_missing=True)[0].rater_mask.tolist() == [True, False]
    store = prepare(own.source(path, "mine", Choices(empty_is_missing=True)), tmp_path / "store")
    assert [one.what for one in store.manifest.skipped] == [f"{tmp_path}/i1.png"]
    assert store.manifest.slices == CASES - 1


def test_options_that_do_not_go_together_are_refused(tmp_path: Path, rows):
    path = table(tmp_path / "m.csv", rows)
    for options in ({"invert": True}, {"threshold": 3.0}):
        with pytest.raises(ConfigError, match="do not go with --classes"):
            own.source(path, "mine", Choices(classes=2, **options))


# Small inputs that were taken or refused wrongly


@needs_failing
@pytest.mark.parametrize("name", ["spellings", "split_spell"])
def test_two_spellings_of_a_patient_of_a_failing_set(name: str):
    assert "--as-written" in refused(FAILING / name / "manifest.csv")


@needs_failing
def test_a_rater_of_the_test_part_alone_of_a_failing_set():
    assert "--drop-rater 'b'" in refused(FAILING / "rater_only_test" / "manifest.csv")


@needs_failing
@pytest.mark.parametrize("name", ["m_pal", "m_npy_float_noise"])
def test_masks_of_a_failing_set(name: str):
    found = slices(FAILING / name / "manifest.csv")
    assert len(found) == CASES
    assert all(one.annotations.any((1, 2)).all() for one in found)


def test_what_is_left_of_nothing_is_said(tmp_path: Path, rows):
    for row in rows:
        row |= {"mask_b": "", "mask_c": ""}
    assert "no image is left that a rater annotated" in refused(table(tmp_path / "m.csv", rows), drop_rater=("a",))
    with pytest.raises(ConfigError, match="no number that a mask can reach"):
        own.source(table(tmp_path / "m.csv", rows), "mine", Choices(threshold=float("nan")))
