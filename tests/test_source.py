"""Preparing a source: in any number of processes the same, whole or not at all, and going on where it was killed."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from proseg.data import source as source_module
from proseg.data import writer
from proseg.data.folds import Fold
from proseg.data.manifest import MANIFEST, Manifest
from proseg.data.reading import in_order
from proseg.data.source import PROGRESS, Part, identity_of, prepare, unfinished
from proseg.data.store import Store
from proseg.errors import DataError
from tests.sources import make_slice, make_source

ROOT = Path(__file__).resolve().parent.parent
FILE_SIZE = 6000
"""Bytes after which a file is ended here: three parts."""

SCRIPT = f"""
import sys
from pathlib import Path
from proseg.data import writer
from proseg.data.source import prepare
from tests.sources import make_source

if __name__ == "__main__":
    writer.BYTES_PER_FILE = {FILE_SIZE}
    folder = Path(sys.argv[1])
    source = make_source(40, events={{-1: "slow"}}, log=folder.with_name("log"))
    print(prepare(source, folder, jobs=int(sys.argv[2])).manifest.fingerprint)
"""


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BYTES_PER_FILE", FILE_SIZE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Of the source of twelve parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BYTES_PER_FILE", FILE_SIZE)
        return prepare(make_source(), tmp_path_factory.mktemp("data") / "blobs").manifest


def start(folder: Path, jobs: int, code: str = SCRIPT) -> subprocess.Popen:
    """A preparation of forty slow parts in a process of its own, and of its own group."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", code, folder, str(jobs)], cwd=folder.parent, env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def kill(child: subprocess.Popen) -> None:
    """As the kernel does it; what the process started may live on a moment, which is waited for."""
    readers = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    psutil.wait_procs(readers, timeout=60)
    for pipe in (child.stdout, child.stderr):
        assert pipe is not None
        pipe.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"a minute has passed, and not yet: {what}")


def parts_read(log: Path) -> list[int]:
    return [int(line.split()[0]) for line in log.read_text(encoding="utf-8").splitlines()]


def left(folder: Path) -> list[str]:
    """What lies beside the test's locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# What is prepared


def test_a_store_holds_what_the_parts_held(tmp_path: Path, undisturbed: Manifest):
    store = prepare(make_source(), tmp_path / "blobs")
    m = store.manifest
    assert m == undisturbed
    assert (m.slices, m.patients, m.volumes, m.raters) == (24, 12, 12, 2)
    assert (m.identity, m.rater_names, m.channel_names) == ("blobs", ("ann", "bob"), ("grey",))
    assert [one.what for one in m.skipped] == ["slice 4", "slice 9", "readme.txt"]
    for row in range(m.slices):
        wanted = make_slice(row // 2, row % 2)
        np.testing.assert_array_equal(store.image(row), wanted.image)
        np.testing.assert_array_equal(store.annotations(row), wanted.annotations)
        assert (store.patients[row], store.volumes[row], store.z[row]) == (wanted.patient, wanted.volume, wanted.z)
    store.verify()


def test_a_store_of_several_files_is_one(tmp_path: Path, undisturbed: Manifest):
    store = prepare(make_source(), tmp_path / "blobs")
    assert [file.name for file in undisturbed.files] == [
        "slices.arrow", "slices-0001.arrow", "slices-0002.arrow", "slices-0003.arrow",
    ]  # fmt: skip
    assert [file.slices for file in undisturbed.files] == [6, 6, 6, 6]
    assert sum((store.folder / file.name).stat().st_size for file in undisturbed.files) == undisturbed.bytes
    assert left(store.folder) == [MANIFEST, *sorted(file.name for file in undisturbed.files)]


def test_the_fingerprint_does_not_depend_on_the_files(
    tmp_path: Path, undisturbed: Manifest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "BYTES_PER_FILE", 10**9)
    one = prepare(make_source(), tmp_path / "blobs").manifest
    assert len(one.files) == 1
    assert one.fingerprint == undisturbed.fingerprint


@pytest.mark.slow
def test_several_processes_prepare_the_same(tmp_path: Path, undisturbed: Manifest):
    log = tmp_path / "log"
    assert prepare(make_source(log=log), tmp_path / "blobs", jobs=2).manifest == undisturbed
    assert sorted(parts_read(log)) == list(range(12))
    assert str(os.getpid()) not in log.read_text()


def test_progress_is_shown_by_parts(tmp_path: Path):
    shown = []

    def track(items, total, what):
        for item in items:
            shown.append((total, what))
            yield item

    prepare(make_source(), tmp_path / "blobs", track=track)
    assert shown == [(12, "Reading blobs (once)")] * 12


def test_what_has_been_prepared_is_not_read_again(tmp_path: Path, undisturbed: Manifest):
    log = tmp_path / "log"
    prepare(make_source(log=log), tmp_path / "blobs")
    assert prepare(make_source(log=log), tmp_path / "blobs").manifest == undisturbed
    assert len(parts_read(log)) == 12


@pytest.mark.parametrize(
    "other", [{"identity": "others"}, {"description": make_source().description.model_copy(update={"label": "x"})}]
)
def test_another_source_is_not_written_over_what_is_there(tmp_path: Path, undisturbed: Manifest, other: dict):
    prepare(make_source(), tmp_path / "blobs")
    with pytest.raises(DataError, match="from other files, or with other options: choose another name"):
        prepare(make_source(**other), tmp_path / "blobs")
    assert Store(tmp_path / "blobs").manifest == undisturbed


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/mine.txt").write_text("mine")
    with pytest.raises(DataError, match="blobs is in the way and is no prepared data set"):
        prepare(make_source(), tmp_path / "blobs")
    assert (tmp_path / "blobs/mine.txt").read_text() == "mine"


# Killed, interrupted


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_preparation_leaves_nothing_ready_and_is_gone_on_with(tmp_path: Path, jobs: int):
    folder, log = tmp_path / "blobs", tmp_path / "log"
    child = start(folder, jobs)
    wait_until((unfinished(folder) / "slices-0002.arrow").exists, "a third file")
    kill(child)
    assert not folder.exists()
    with pytest.raises(DataError, match="is not a prepared data set"):
        Store(unfinished(folder))

    complete = json.loads((unfinished(folder) / PROGRESS).read_text())["parts"]
    assert complete >= 6
    log.unlink()
    resumed = prepare(make_source(40, log=log), folder)
    assert parts_read(log) == list(range(complete, 40))
    assert resumed.manifest == prepare(make_source(40), tmp_path / "undisturbed").manifest
    resumed.verify()
    assert left(tmp_path) == ["blobs", "log", "undisturbed"]
    assert PROGRESS not in left(folder)


@pytest.mark.slow
def test_the_processes_of_one_that_was_killed_leave(tmp_path: Path):
    child = start(tmp_path / "blobs", 2)
    wait_until(lambda: (tmp_path / "log").exists() and len(parts_read(tmp_path / "log")) > 6, "some parts")
    readers = {int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()}
    assert len(readers) == 2
    child.kill()
    try:
        child.communicate(timeout=60)  # its readers have its pipes, which end when the last of them has left
    finally:
        for reader in readers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(reader, signal.SIGKILL)


SLOWLY_TAKEN = SCRIPT.replace("{-1: \"slow\"}", "{}").replace("jobs=", "track=slowly, jobs=").replace("if __name__", """
import time
def slowly(items, total, what):
    for item in items:
        yield item
        time.sleep(0.3)
if __name__""")  # fmt: skip
"""Its readers wait most of the time."""


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_quietly(tmp_path: Path):
    child = start(tmp_path / "blobs", 2, SLOWLY_TAKEN)
    wait_until((unfinished(tmp_path / "blobs") / PROGRESS).exists, "a first file")
    os.killpg(child.pid, signal.SIGINT)
    _, told = child.communicate()
    assert told.count("Traceback") == 1, "only of the process that was asked"
    assert "KeyboardInterrupt" in told
    assert left(tmp_path) == [".blobs.partial", "log"]


@pytest.mark.parametrize(("at", "begins"), [(7, 6), (9, 9), (2, 0)])
def test_an_interrupted_one_goes_on_after_the_last_complete_file(
    tmp_path: Path, undisturbed: Manifest, at: int, begins: int
):
    folder, log = tmp_path / "blobs", tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        prepare(make_source(events={at: "interrupted"}), folder)
    assert left(tmp_path) == [".blobs.partial"]
    (unfinished(folder) / f".{PROGRESS}.123.partial").write_text("what was being written")
    assert prepare(make_source(log=log), folder).manifest == undisturbed
    assert parts_read(log) == list(range(begins, 12))
    assert left(tmp_path) == ["blobs", "log"]
    assert left(folder) == [MANIFEST, *sorted(file.name for file in undisturbed.files)]


def test_it_goes_on_as_often_as_it_is_interrupted(tmp_path: Path, undisturbed: Manifest):
    for at in (4, 5, 8, 11):
        with pytest.raises(KeyboardInterrupt):
            prepare(make_source(events={at: "interrupted"}), tmp_path / "blobs")
    assert prepare(make_source(), tmp_path / "blobs").manifest == undisturbed


def test_one_that_was_interrupted_at_the_very_end_is_only_put_in_its_place(
    tmp_path: Path, undisturbed: Manifest, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    log = tmp_path / "log"
    with monkeypatch.context() as context:
        context.setattr(source_module, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(make_source(), tmp_path / "blobs")
    assert not (tmp_path / "blobs").exists()
    assert prepare(make_source(log=log), tmp_path / "blobs").manifest == undisturbed
    assert not log.exists()


def test_another_source_begins_anew(tmp_path: Path, undisturbed: Manifest):
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        prepare(make_source(events={7: "interrupted"}, identity="others"), tmp_path / "blobs")
    assert prepare(make_source(log=log), tmp_path / "blobs").manifest == undisturbed
    assert parts_read(log) == list(range(12))


def spoil_file(partial: Path) -> None:
    content = bytearray((partial / "slices.arrow").read_bytes())
    place = content.index(make_slice(1).image.tobytes()) + 100
    content[place] ^= 1
    (partial / "slices.arrow").write_bytes(content)


SPOILERS: list[Callable[[Path], Any]] = [
    spoil_file,
    lambda partial: (partial / "slices-0001.arrow").write_bytes(b"short"),
    lambda partial: (partial / "slices.arrow").unlink(),
    lambda partial: (partial / PROGRESS).unlink(),
    lambda partial: (partial / PROGRESS).write_text('{"parts": 6'),
    lambda partial: (partial / PROGRESS).write_text('{"parts": 6}'),
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_what_was_damaged_meanwhile_is_not_gone_on_with(
    tmp_path: Path, undisturbed: Manifest, spoil: Callable[[Path], Any]
):
    with pytest.raises(KeyboardInterrupt):
        prepare(make_source(events={7: "interrupted"}), tmp_path / "blobs")
    spoil(unfinished(tmp_path / "blobs"))
    store = prepare(make_source(), tmp_path / "blobs")
    assert store.manifest == undisturbed
    assert left(store.folder) == [MANIFEST, *sorted(file.name for file in undisturbed.files)]
    store.verify()


@pytest.mark.slow
def test_a_reader_that_is_killed_is_no_reason_to_begin_anew(tmp_path: Path, undisturbed: Manifest):
    log = tmp_path / "log"
    with pytest.raises(DataError, match=r"was killed, perhaps for want of memory: ask for fewer --jobs"):
        prepare(make_source(events={11: "killed"}), tmp_path / "blobs", jobs=2)
    assert prepare(make_source(log=log), tmp_path / "blobs").manifest == undisturbed
    assert len(parts_read(log)) < 12


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_too_little_memory_is_no_reason_to_begin_anew(tmp_path: Path, undisturbed: Manifest, jobs: int):
    with pytest.raises(DataError, match=r"^there is too little memory to read the parts of blobs: ask for"):
        prepare(make_source(events={11: "too large"}), tmp_path / "blobs", jobs=jobs)
    assert not (tmp_path / "blobs").exists()
    log = tmp_path / "log"
    assert prepare(make_source(log=log), tmp_path / "blobs").manifest == undisturbed
    assert len(parts_read(log)) < 12


@pytest.mark.slow
def test_two_processes_prepare_it_once(tmp_path: Path):
    both = [start(tmp_path / "blobs", 1) for _ in range(2)]
    answers = [child.communicate() for child in both]
    assert [child.returncode for child in both] == [0, 0], answers
    assert len({fingerprint for fingerprint, _ in answers}) == 1
    assert parts_read(tmp_path / "log") == list(range(40))


# What is refused leaves nothing


def refused(source: Any, folder: Path, kind: type[Exception] = DataError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        prepare(source, folder, **options)
    assert "\n" not in str(caught.value)
    assert left(folder.parent) == []
    return str(caught.value)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_spoilt_part_ends_it(tmp_path: Path, jobs: int):
    assert refused(make_source(events={8: "spoilt"}), tmp_path / "blobs", jobs=jobs) == "part 8 is spoilt"


def test_a_part_that_must_not_be_read_is_named(tmp_path: Path):
    assert "part-8.npy" in refused(make_source(events={8: "denied"}), tmp_path / "blobs", PermissionError)


def test_what_an_earlier_one_left_goes_with_it(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        prepare(make_source(events={7: "interrupted"}), tmp_path / "blobs")
    refused(make_source(events={8: "spoilt"}), tmp_path / "blobs")


def test_a_patient_in_two_parts_is_refused_before_anything_is_read(tmp_path: Path):
    fold = Fold(0, ("p0", "p1"), ("p2", "p1"), tuple(f"p{number}" for number in range(3, 12)))
    source = make_source(events={-1: "spoilt"}, folds=(fold,))
    assert "'blobs': patient p1 is in two parts of fold 0: train and val" in refused(source, tmp_path / "blobs")


@pytest.mark.parametrize(
    ("fold", "told"),
    [
        (Fold(0, ("p0",), ("p1",), ()), "is in the test part"),
        (Fold(0, ("p0",), ("p1",), ("p2",)), "patient p10 is in no part of fold 0"),
        (Fold(0, ("p0",), ("x",), tuple(f"p{n}" for n in range(1, 12))), "no patient with a slice is in the val part"),
    ],
)
def test_a_split_that_is_no_partition_is_refused(tmp_path: Path, fold: Fold, told: str):
    assert told in refused(make_source(folds=(fold,)), tmp_path / "blobs")


def read_changed(number: int, which: int, changes: dict) -> Part:
    if number != which:
        return Part((make_slice(number),))
    return Part((make_slice(number, **changes),))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image": np.zeros((1, 16, 8), np.int16)}, "slice of v5 at z = 0.0 has image (1, 16, 8)"),
        ({"volume": "v3"}, "volume v3 is one of patient p3 and one of patient p5"),
        ({"volume": "v3", "patient": "p3"}, "there are two slices of v3 at z = 0.0"),
    ],
)
def test_parts_that_do_not_go_together_are_named(tmp_path: Path, changes: dict, told: str):
    source = make_source(read=partial(read_changed, which=5, changes=changes))
    assert told in refused(source, tmp_path / "blobs")


def test_a_source_of_which_all_was_skipped_says_why(tmp_path: Path):
    fold = Fold(0, ("p0",), ("p1",), ("p2",))
    sentence = refused(make_source(0, folds=(fold,)), tmp_path / "blobs")
    assert "no slice was found in its source (1 skipped, the first is readme.txt: no image)" in sentence


# A full disk


class Full(io.FileIO):
    def write(self, content: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("after", [0, 2])
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int):
    opened = []

    def open_full(path: Path, mode: str) -> io.BufferedWriter:
        opened.append(path)
        return io.BufferedWriter(Full(path, mode) if len(opened) > after else io.FileIO(path, mode))

    monkeypatch.setattr(writer, "open", open_full, raising=False)
    sentence = refused(make_source(), tmp_path / "blobs")
    assert f"there is no room in {tmp_path} for the data set blobs (No space left on device)" in sentence
    assert len(opened) == after + 1


def test_a_disk_that_has_no_room_for_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(path))

    monkeypatch.setattr(writer, "write_atomically", full)
    assert "(Disk quota exceeded)" in refused(make_source(), tmp_path / "blobs")


def test_a_file_that_the_system_lets_grow_no_further(tmp_path: Path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
    child = start(tmp_path / "blobs", 1, limit + SCRIPT)
    _, told = child.communicate()
    assert f"proseg.errors.DataError: there is no room in {tmp_path}" in told
    assert left(tmp_path) == ["log"]


# Reading ahead


def work(number: int, log: Path) -> int:
    (log / str(number)).touch()
    return number


@pytest.mark.slow
def test_readers_do_not_run_far_ahead(tmp_path: Path):
    results = in_order(partial(work, log=tmp_path), range(50), jobs=2, ahead=3)
    assert next(results) == 0
    wait_until(lambda: len(left(tmp_path)) == 7, "those that may be read ahead")
    time.sleep(0.5)
    assert len(left(tmp_path)) == 7
    assert list(results) == list(range(1, 50))


def test_one_job_reads_here_and_only_what_is_asked_for(tmp_path: Path):
    results = in_order(partial(work, log=tmp_path), range(50), jobs=1)
    assert [next(results), next(results)] == [0, 1]
    assert left(tmp_path) == ["0", "1"]
    results.close()


# Identity


def test_the_identity_is_that_of_files_and_options(tmp_path: Path):
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    known = identity_of([first, second], size=(1, 2))
    assert identity_of([first, second], size=(1, 2)) == known
    others = [identity_of([first], size=(1, 2)), identity_of([first, second], size=(2, 2))]
    second.write_bytes(b"22")
    others.append(identity_of([first, second], size=(1, 2)))
    second.rename(tmp_path / "c.npy")
    others.append(identity_of([first, tmp_path / "c.npy"], size=(1, 2)))
    assert len({known, *others}) == 5


def test_parts_are_of_the_source(tmp_path: Path, undisturbed: Manifest):
    """A source whose parts are read in another order is another store."""
    turned = replace(make_source(), parts=tuple(reversed(range(12))))
    assert prepare(turned, tmp_path / "blobs").manifest.fingerprint != undisturbed.fingerprint
