"""Data sets by name: prepared once, by whoever comes first, and every dead end names the ways on."""

import errno
import json
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from filelock import FileLock
from typer.testing import CliRunner, Result

from cli.app import app
from proseg.data import catalog
from proseg.data.case import Slice
from proseg.data.catalog import NAMES, Prepared, listing, missing, npc_folder, open_data, prepare_named
from proseg.data.kinds import Choices
from proseg.data.reading import silent
from proseg.data.store import ARROW, MANIFEST, Description, Store, write
from proseg.errors import DataError
from proseg.figures import case_sheet
from tests.studies import make_store, make_study, running


@pytest.fixture
def preparations(
    monkeypatch: pytest.MonkeyPatch, real_slices: list[Slice], description: Description
) -> list[tuple[str, int]]:
    """Every preparation of an embedded data set, which here takes a quarter of a second."""
    calls: list[tuple[str, int]] = []

    def contours(name: str, folder: Path, jobs: int, track: catalog.Track) -> Store:
        calls.append((name, jobs))
        time.sleep(0.25)
        slices = track(real_slices, len(real_slices), "Rendering")
        return write(folder, slices, description.model_copy(update={"name": name}))

    monkeypatch.setattr(catalog, "_contours", contours)
    return calls


def write_npc(folder: Path, count: int = 5) -> None:
    """The public release's layout in small: volumes for training and validation, no test part."""
    rng = np.random.default_rng(0)
    for index in range(count + 2):
        path = folder / ("training" if index < count else "validation") / f"Sample_{index}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for key in ("t1", "t1c", "t2"):
                file.create_dataset(key, data=rng.normal(size=(3, 8, 10)))
            for rater in (1, 2):
                file.create_dataset(f"label_a{rater}", data=rng.integers(0, 2, (3, 8, 10)))


def test_a_data_set_is_prepared_on_first_use_and_then_opened(tmp_path: Path, preparations: list):
    first = open_data("lidc-contours", tmp_path, jobs=3)
    second = open_data("lidc-contours", tmp_path)
    assert preparations == [("lidc-contours", 3)]
    assert first.folder == second.folder
    assert first.folder.parent == tmp_path / "data"
    assert second.manifest.name == "lidc-contours"


def test_those_who_ask_at_once_prepare_it_once(tmp_path: Path, preparations: list):
    start, opened = threading.Barrier(4), []

    def ask() -> None:
        start.wait()
        opened.append(open_data("lidc-contours", tmp_path).manifest.fingerprint)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert len(set(opened)) == 1
    assert len(preparations) == 1


def test_a_failed_preparation_is_tried_again(tmp_path: Path, preparations: list, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as context:
        context.setattr(catalog, "_contours", lambda name, folder, *_: write(folder, [], _description(name)))
        with pytest.raises(DataError, match="is empty"):
            open_data("lidc-contours", tmp_path)
    assert open_data("lidc-contours", tmp_path).manifest.slices == 40
    assert len(preparations) == 1


def _description(name: str) -> Description:
    return Description(name=name, label="", licence="", unit="slice", sorted_raters=True, window=None)


def test_a_prepared_folder_that_lost_its_manifest_is_prepared_again(tmp_path: Path, preparations: list):
    (open_data("lidc-contours", tmp_path).folder / MANIFEST).unlink()
    assert open_data("lidc-contours", tmp_path).manifest.slices == 40


def test_progress_is_shown_of_the_whole_preparation(tmp_path: Path, preparations: list):
    shown = []

    def track(items, total, what):
        for item in items:
            shown.append((total, what))
            yield item

    open_data("lidc-contours-all", tmp_path, track=track)
    assert shown == [(40, "Rendering")] * 40


def test_a_path_opens_a_prepared_store(tiny_store: Store, tmp_path: Path):
    assert open_data(str(tiny_store.folder), tmp_path).manifest == tiny_store.manifest
    assert missing(str(tiny_store.folder), tmp_path) is None


@pytest.mark.parametrize("name", ["lidc", "no/such/folder"])
def test_an_unknown_name_is_refused_beside_the_known_ones(tmp_path: Path, name: str):
    with pytest.raises(DataError, match="there is no data set") as caught:
        open_data(name, tmp_path)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in NAMES)
    assert missing(name, tmp_path) == str(caught.value)


def test_a_folder_of_neither_kind_is_refused_by_name(tmp_path: Path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "picture.png").touch()
    with pytest.raises(DataError, match="holiday"):
        open_data(str(folder), tmp_path)


def test_a_folder_of_neither_kind_is_said_to_be_unusable(tmp_path: Path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    assert "holiday" in (missing(str(folder), tmp_path) or "")


def test_npc_without_its_files_names_both_ways_on(tmp_path: Path):
    reason = missing("npc", tmp_path)
    assert reason is not None
    assert str(npc_folder(tmp_path)) in reason
    assert "proseg-tune data standin npc" in reason
    with pytest.raises(DataError, match="npc"):
        open_data("npc", tmp_path)


def test_npc_files_become_a_store_of_volumes(tmp_path: Path):
    write_npc(npc_folder(tmp_path))
    assert missing("npc", tmp_path) is None
    store = open_data("npc", tmp_path)
    m = store.manifest
    assert (m.unit, m.window, m.sorted_raters) == ("volume", None, False)
    assert (m.slices, m.patients, m.volumes, m.raters, m.channels) == (21, 7, 7, 2, 3)
    (fold,) = m.folds
    assert sorted((*fold.train, *fold.val, *fold.test)) == sorted(set(store.patients))
    assert set(fold.test) == {"validation/Sample_5", "validation/Sample_6"}
    assert [len(case) for case in store.cases(fold.test)] == [3, 3]
    store.verify()


def test_npc_is_prepared_anew_when_its_files_change(tmp_path: Path):
    write_npc(npc_folder(tmp_path))
    before = open_data("npc", tmp_path)
    assert open_data("npc", tmp_path).folder == before.folder
    write_npc(npc_folder(tmp_path), count=6)
    after = open_data("npc", tmp_path)
    assert after.folder != before.folder
    assert after.manifest.patients > before.manifest.patients


def test_the_listing_says_what_is_at_hand(tmp_path: Path, preparations: list):
    assert {line.name: line.state for line in listing(tmp_path)} == {
        "lidc-contours": "on first use", "lidc-contours-all": "on first use", "npc": "missing",
    }  # fmt: skip
    folder = open_data("lidc-contours", tmp_path).folder
    write_npc(npc_folder(tmp_path))
    lines = {line.name: line for line in listing(tmp_path)}
    assert tuple(lines) == NAMES
    assert {name: line.state for name, line in lines.items()} == {
        "lidc-contours": "prepared", "lidc-contours-all": "on first use", "npc": "files found",
    }  # fmt: skip
    assert lines["lidc-contours"].where == str(folder)


@pytest.mark.parametrize("name", ["lidc-contours", "lidc-contours-all"])
def test_the_embedded_data_are_never_missing(tmp_path: Path, name: str):
    assert missing(name, tmp_path) is None


def test_a_damaged_store_is_refused_and_not_prepared_over(tmp_path: Path, preparations: list):
    folder = open_data("lidc-contours", tmp_path).folder
    (folder / ARROW).write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        open_data("lidc-contours", tmp_path)
    assert len(preparations) == 1


# Prepared under a name


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Files in the layout of NPC, where a user has them."""
    write_npc(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def prepare_npc(volumes: Path, name: str, home: Path, **choices: Any) -> Prepared:
    return prepare_named("npc", volumes, name, home, Choices(**{"size": (8, 8), **choices}))


def test_a_data_set_is_prepared_under_a_name_and_opened_by_it(volumes: Path, home: Path):
    prepared = prepare_npc(volumes, "my-mr.2", home)
    assert prepared.anew
    assert prepared.store.folder == home / "prepared/my-mr.2"
    assert missing("my-mr.2", home) is None
    store = open_data("my-mr.2", home)
    assert store.manifest == prepared.store.manifest
    assert (store.manifest.name, store.manifest.label) == ("my-mr.2", "NPC (MMIS-2024 task 1)")
    assert (store.manifest.height, store.manifest.width, store.manifest.slices) == (8, 8, 21)


def test_a_store_says_how_its_images_came_to_their_size_and_one_that_does_not_is_read(volumes: Path, home: Path):
    crop = prepare_npc(volumes, "crop", home).store.manifest
    zoom = prepare_npc(volumes, "zoom", home, fit="zoom").store
    assert (crop.framing, zoom.manifest.framing) == ("crop", "zoom_nearest")
    path = zoom.folder / MANIFEST
    facts = json.loads(path.read_text())
    del facts["framing"]
    path.write_text(json.dumps(facts))
    older = open_data("zoom", home)
    older.verify()
    assert older.manifest == zoom.manifest.model_copy(update={"framing": None})
    assert not prepare_npc(volumes, "zoom", home, fit="zoom").anew


def test_the_same_again_does_nothing_and_something_else_is_refused(volumes: Path, home: Path):
    first = prepare_npc(volumes, "mr", home)
    again = prepare_npc(volumes, "mr", home)
    assert not again.anew
    assert again.store.manifest == first.store.manifest
    with pytest.raises(DataError, match="from other files, or with other options: choose another name"):
        prepare_npc(volumes, "mr", home, fit="zoom")
    write_npc(volumes, 6)
    with pytest.raises(DataError, match="from other files, or with other options: choose another name"):
        prepare_npc(volumes, "mr", home)
    assert open_data("mr", home).manifest == first.store.manifest


def test_a_relative_path_is_the_same_as_an_absolute_one(volumes: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    prepare_npc(volumes, "mr", home)
    monkeypatch.chdir(volumes.parent)
    assert not prepare_npc(Path("mine"), "mr", home).anew


def test_npc_that_was_prepared_is_the_npc_of_the_search(volumes: Path, home: Path):
    assert missing("npc", home) is not None
    prepared = prepare_npc(volumes, "npc", home)
    assert missing("npc", home) is None
    assert open_data("npc", home).manifest == prepared.store.manifest
    assert {line.name: line.where for line in listing(home)}["npc"] == str(prepared.store.folder)
    assert [line.name for line in listing(home)] == list(NAMES)


@pytest.mark.parametrize(
    "name", ["", ".mr", "a/b", "../mr", "a b", "mr\n", "mué", "-mr", "m" * 65, "lidc-contours", "lidc-contours-all"]
)
def test_a_name_that_cannot_be_or_is_taken_is_refused(volumes: Path, home: Path, name: str):
    with pytest.raises(DataError, match="--name"):
        prepare_npc(volumes, name, home)
    assert not home.exists()


def test_only_npc_is_called_npc(volumes: Path, home: Path):
    with pytest.raises(DataError, match="--name npc: this is the name of a data set that there is already"):
        prepare_named("own", volumes, "npc", home, Choices())


def test_an_unknown_source_is_refused_beside_the_known_ones(volumes: Path, home: Path):
    with pytest.raises(DataError, match="there is no source 'dicom'") as caught:
        prepare_named("dicom", volumes, "mr", home, Choices())
    assert all(name in str(caught.value) for name in ("lidc-dicom", "lidc-pickle", "npc", "own"))


def test_a_path_that_is_not_there_is_refused(tmp_path: Path, home: Path):
    with pytest.raises(DataError, match=r"--from .*gone: there is no such file or folder"):
        prepare_npc(tmp_path / "gone", "mr", home)


def test_the_listing_knows_what_was_prepared_begun_and_damaged(volumes: Path, home: Path):
    prepare_npc(volumes, "mr", home)
    prepare_npc(volumes, "old", home)
    (home / "prepared/old" / MANIFEST).write_text("{")
    (home / "prepared/.next.partial").mkdir()
    lines = {line.name: line for line in listing(home)}
    assert {name: lines[name].state for name in ("mr", "old", "next")} == {
        "mr": "prepared", "old": "damaged", "next": "unfinished",
    }  # fmt: skip
    assert "21 slices, 7 patients, 2 raters" in lines["mr"].about
    assert "cannot be read as a manifest" in lines["old"].about
    assert "the same `data prepare` goes on" in lines["next"].about
    with pytest.raises(DataError, match=r"there is no data set 'new': use one of .*npc, mr, old, or the path"):
        open_data("new", home)


def test_a_store_that_may_not_be_read_does_not_hide_the_others(
    volumes: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    def read_text(path: Path, *how: Any, **more: Any) -> str:
        if path.parent.name == "old":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return as_it_is(path, *how, **more)

    prepare_npc(volumes, "mr", home)
    prepare_npc(volumes, "old", home)
    as_it_is = Path.read_text
    monkeypatch.setattr(Path, "read_text", read_text)
    lines = {line.name: line for line in listing(home)}
    assert lines["mr"].state == "prepared"
    assert lines["old"].about == f"{home}/prepared/old/manifest.json cannot be read (Permission denied)"


def test_a_name_comes_before_a_folder_of_that_name(volumes: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    store = prepare_npc(volumes, "mine", home).store
    monkeypatch.chdir(volumes.parent)
    assert open_data("mine", home).folder == store.folder


# Kinds of source


class Asked(Exception):
    """What a source was asked for."""

    def __init__(self, *args: object, **options: object):
        super().__init__()
        self.args_and_options = args, options


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the sources that read other files."""

    def source(*args: object, **options: object) -> None:
        raise Asked(*args, **options)

    for name in ("lidc_dicom", "lidc_pickle", "own"):
        module = types.ModuleType(f"proseg.data.{name}")
        module.source = source  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"proseg.data.{name}", module)


SAID = {"size": (64, 96), "fit": "zoom", "classes": 3, "window": (-1.0, 2.0), "sorted_raters": True, "label": "mine",
        "licence": "CC0"}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "choices", "options"),
    [
        ("lidc-dicom", {}, {"selection": "paper", "outline": True, "track": silent}),
        ("lidc-dicom", {"selection": "any", "outline": "out"}, {"selection": "any", "outline": False, "track": silent}),
        ("lidc-dicom", {"outline": "in"}, {"selection": "paper", "outline": True, "track": silent}),
        ("lidc-pickle", {}, {}),
    ],
)
@pytest.mark.usefixtures("asked")
def test_a_source_is_asked_for_what_was_said(tmp_path: Path, home: Path, kind: str, choices: dict, options: dict):
    with pytest.raises(Asked) as caught:
        prepare_named(kind, tmp_path, "mr", home, Choices(**choices))
    assert caught.value.args_and_options == ((tmp_path,), options)


@pytest.mark.usefixtures("asked")
def test_own_data_are_asked_for_all_that_was_said(tmp_path: Path, home: Path):
    with pytest.raises(Asked) as caught:
        prepare_named("own", tmp_path, "mr", home, Choices(**SAID))
    assert caught.value.args_and_options == ((tmp_path, "mr", Choices(**SAID)), {"track": silent})


@pytest.mark.parametrize(
    ("kind", "choices", "told"),
    [
        ("npc", {"selection": "any"}, "data prepare npc does not take --selection; its options are: --size, --fit"),
        ("lidc-pickle", {"fit": "crop"}, "data prepare lidc-pickle does not take --fit; its options are: none"),
        ("lidc-dicom", {"sorted_raters": True, "label": ""}, "does not take --sorted-raters, --label; its options are"),
        ("own", {"outline": "in"}, "data prepare own does not take --outline"),
    ],
)
def test_an_option_of_another_source_is_refused(tmp_path: Path, home: Path, kind: str, choices: dict, told: str):
    with pytest.raises(DataError, match=told):
        prepare_named(kind, tmp_path, "mr", home, Choices(**choices))


# Removing


# One case of a data set


CASES = {"ct/1.png": "P1", "ct/2.png": "P1", "mr/1.png": "P1", "mr/30.png": "P30", "us/40.png": "us/4", "us/4.png": "Q"}
CASES |= {f"x/{number:02}.nii": f"X{number}" for number in range(8)}


@pytest.fixture
def cases(tmp_path: Path, description: Description) -> Store:
    """A slice of each volume in CASES, of the patient that stands there."""
    pixels, masks = np.zeros((1, 16, 16), np.uint8), np.zeros((4, 16, 16), bool)
    slices = [
        Slice(pixels, masks, np.ones(4, bool), patient, volume, 0.0, (1.0, 1.0, 1.0))
        for volume, patient in CASES.items()
    ]
    return write(tmp_path / "cases", slices, description)


@pytest.mark.parametrize(
    ("case", "name", "volumes"),
    [
        ("ct/2.png", "ct/2.png", ["ct/2.png"]),
        ("T/2.PNG", "ct/2.png", ["ct/2.png"]),
        ("P1", "P1", ["ct/1.png", "ct/2.png", "mr/1.png"]),
        ("p30", "P30", ["mr/30.png"]),
        ("us/4", "us/4", ["us/40.png"]),
    ],
)
def test_a_case_is_a_volume_or_a_patient_by_its_name_or_its_end(cases: Store, case: str, name: str, volumes: list[str]):
    found, rows = catalog.rows_of_case(cases, case)
    assert found == name
    assert [cases.volumes[row] for row in rows] == volumes


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("/1.png", "2 are called so; there are ct/1.png, mr/1.png"),
        (".nii", "8 are called so; there are x/00.nii, x/01.nii, x/02.nii, x/03.nii, x/04.nii and 3 more"),
        ("P31", "no volume, image or patient of this name; similar are P1, P30"),
        ("#", "of this name; there are ct/1.png, ct/2.png, mr/1.png, mr/30.png, us/40.png and 9 more"),
    ],
)
def test_a_case_that_is_not_clear_is_refused_and_a_list_that_is_cut_says_so(cases: Store, case: str, said: str):
    with pytest.raises(DataError) as error:
        catalog.rows_of_case(cases, case)
    assert str(error.value).endswith(said)


def test_all_images_of_a_patient_are_drawn(cases: Store, tmp_path: Path):
    command = ["data", "show", str(cases.folder), "--case", "P1", "--out", str(tmp_path / "p1.png"), "--json"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["slices"] == 3
    assert (tmp_path / "p1.png").read_bytes()[:4] == b"\x89PNG"
    titles = [axis.get_title() for axis in case_sheet(cases, [0, 2], "P1").axes]
    assert [title for title in titles if "z" in title] == ["ct/1.png\nz = 0", "mr/1.png\nz = 0"]


def data_of(home: Path, name: str) -> Path:
    """A prepared data set, and what an interrupted preparation of that name would leave."""
    store = make_store(home / "prepared" / name)
    (home / "prepared" / f".{name}.partial").mkdir()
    return store.folder


def test_a_data_set_is_removed_with_its_remains_and_nothing_else(tmp_path: Path):
    folder, other = data_of(tmp_path, "eyes"), data_of(tmp_path, "eyes-2")
    unfinished = tmp_path / "prepared" / ".eyes.partial"
    assert catalog.folders_of("eyes", tmp_path) == [folder, unfinished]
    catalog.remove("eyes", tmp_path)
    assert not folder.exists()
    assert not unfinished.exists()
    assert other.exists()
    assert (tmp_path / "prepared" / ".eyes-2.partial").exists()
    with pytest.raises(DataError, match=r"no prepared data set 'eyes' in .*; there are: eyes-2"):
        catalog.remove("eyes", tmp_path)


def test_what_was_rendered_is_rendered_anew_after_it_was_removed(tmp_path: Path, preparations: list):
    for name in ("lidc-contours", "lidc-contours-all", "lidc-contours"):
        open_data(name, tmp_path)
    catalog.remove("lidc-contours", tmp_path)
    with pytest.raises(DataError, match="nothing to remove: lidc-contours has not been prepared"):
        catalog.remove("lidc-contours", tmp_path)
    for name in ("lidc-contours", "lidc-contours-all"):
        open_data(name, tmp_path)
    assert [name for name, _ in preparations] == ["lidc-contours", "lidc-contours-all", "lidc-contours"]


def test_removing_npc_leaves_its_files(tmp_path: Path):
    write_npc(npc_folder(tmp_path))
    store = open_data("npc", tmp_path)
    catalog.remove("npc", tmp_path)
    assert not store.folder.exists()
    assert missing("npc", tmp_path) is None


@pytest.mark.parametrize("name", ["..", "../prepared/eyes", "*", ".eyes.partial", ""])
def test_only_a_name_can_be_removed(tmp_path: Path, name: str):
    folder = data_of(tmp_path, "eyes")
    with pytest.raises(DataError, match="no prepared data set"):
        catalog.remove(name, tmp_path)
    assert folder.exists()


def test_what_is_being_prepared_is_not_removed(tmp_path: Path):
    folder = data_of(tmp_path, "eyes")
    with FileLock(tmp_path / "prepared" / ".eyes.lock"), pytest.raises(DataError, match="is being prepared"):
        catalog.remove("eyes", tmp_path)
    assert folder.exists()


def test_the_studies_that_use_a_data_set_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path))
    folder = data_of(tmp_path, "eyes")
    studies = [make_study(tmp_path, Store(folder), name=name) for name in ("s1", "s2")]
    make_study(tmp_path, Store(data_of(tmp_path, "other")), name="s3")

    def remove(*options: str) -> Result:
        return CliRunner().invoke(app, ["data", "remove", "eyes", *options])

    refused = remove()
    assert refused.exit_code == 2
    assert "used by s1, s2" in refused.stderr
    with running(studies[1]):
        refused = remove("--force")
    assert refused.exit_code == 2
    assert "running study (s2)" in refused.stderr
    assert folder.exists()
    size = sum(path.stat().st_size for path in folder.iterdir())
    removed = remove("--force", "--json")
    assert removed.exit_code == 0, removed.output
    assert not folder.exists()
    told = json.loads(removed.stdout)
    assert (told["bytes"], told["studies"]) == (size, ["s1", "s2"])
