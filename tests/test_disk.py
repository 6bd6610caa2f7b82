"""A disk that is full: what is used, what is lacking, and waiting."""

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from orchestrator import disk
from orchestrator.disk import MARGIN, is_full, lacking, patiently, used, wait_for_space

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(disk.time, "sleep", found.append)
    return found


def with_free(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """The disk has so many bytes free, one after another."""
    left = list(free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, left.pop(0) if len(left) > 1 else left[0]))


def no_space(name: str | None = "trials.jsonl", number: int = errno.ENOSPC) -> OSError:
    return OSError(number, "No space left on device", name)


def writing(*outcomes: Exception | str):
    left = list(outcomes)

    def write() -> str:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return write


def test_what_a_folder_uses_is_the_size_of_its_files(tmp_path: Path):
    assert used(tmp_path) == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 32)
    assert used(tmp_path) == 42
    assert used(tmp_path / "gone") == 0


def test_a_file_that_is_replaced_this_moment_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "stays").write_bytes(b"x" * 10)
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [self / "gone", self / "stays"])
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    assert used(tmp_path) == 10


@pytest.mark.parametrize(
    ("free", "need", "short"),
    [(MARGIN, 0, 0), (MARGIN - 1, 0, 1), (0, 0, MARGIN), (MARGIN + 5, 5, 0), (MARGIN + 5, 7, 2), (2**50, 2**40, 0)],
)
def test_a_little_is_always_left_to_logs(monkeypatch: pytest.MonkeyPatch, free: int, need: int, short: int):
    with_free(monkeypatch, free)
    assert lacking(Path(), need) == short


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (no_space(), True),
        (no_space(number=errno.EDQUOT), True),
        (no_space(number=errno.EACCES), False),
        (ValueError(errno.ENOSPC), False),
        (OSError("no number"), False),
    ],
)
def test_a_full_disk_is_told_from_other_faults(error: Exception, full: bool):
    assert is_full(error) == full


def test_a_write_waits_until_there_is_space_and_says_so_once(looks: list[float]):
    said: list[str] = []
    quota = no_space(number=errno.EDQUOT)
    assert patiently(writing(no_space(), quota, no_space(), "written"), said.append) == "written"
    assert said == ["trials.jsonl: no space left; the study waits until there is"]
    assert looks == [disk.SECONDS_BETWEEN_LOOKS] * 3


def test_a_write_that_succeeds_is_not_told(looks: list[float]):
    said: list[str] = []
    assert patiently(writing("written"), said.append) == "written"
    assert (said, looks) == ([], [])


def test_a_fault_without_a_file_is_of_the_disk():
    said: list[str] = []
    patiently(writing(no_space(None), "written"), said.append)
    assert said == ["the disk: no space left; the study waits until there is"]


@pytest.mark.parametrize("error", [no_space(number=errno.EACCES), ValueError("a bug")])
def test_any_other_fault_is_raised(looks: list[float], error: Exception):
    with pytest.raises(type(error)):
        patiently(writing(error, "written"), print)
    with pytest.raises(type(error)):
        patiently(writing(no_space(), error, "written"), lambda text: None)
    assert len(looks) == 1


def test_a_training_waits_until_its_checkpoints_have_room(monkeypatch: pytest.MonkeyPatch, looks: list[float]):
    with_free(monkeypatch, 0, MARGIN + 99, MARGIN + 100)
    assert wait_for_space(Path(), 100) >= 0
    assert len(looks) == 2


def test_it_does_not_wait_where_there_is_room(monkeypatch: pytest.MonkeyPatch, looks: list[float]):
    with_free(monkeypatch, MARGIN)
    wait_for_space(Path(), 0)
    assert looks == []
