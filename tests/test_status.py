"""How studies stand: one that is watched while another process runs it, and all of a workspace."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from cli.app import app
from cli.live import JsonLines, Watch
from orchestrator.follow import follow, stage_of
from orchestrator.overview import overview
from orchestrator.results import Trial, TrialLog
from orchestrator.study import Study, StudyError, read_state, write_state
from proseg.data.store import Store
from proseg.records import append_line, write_atomically
from tests import studies
from tests.studies import add_trial, confirm, fold_result, make_store, make_study, write_epochs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "blobs")


@pytest.fixture
def running(home: Path, store: Store) -> Iterator[Study]:
    """A study that this process seems to run, with one trial that has ended."""
    study = make_study(home, store, final=[{"data": str(store.folder), "epochs": 2}])
    add_trial(study, 0, 0.4)
    with studies.running(study):
        yield study


def run(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


class Told:
    """A watcher: what it was told."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.heard.append((name, *arguments))


def followed(study: Study, *happenings: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """What a watcher hears where one thing happens between two looks; the last must end the study."""
    told, coming = Told(), iter(happenings)
    follow(study, told, every=1.0, wait=lambda seconds: next(coming)())  # type: ignore[arg-type]
    return told.heard


def ends(study: Study, state: Any = "finished") -> Callable[[], None]:
    return lambda: write_state(study, state)


# Following a study's folder


def test_what_stands_there_at_first_is_not_told(running: Study):
    assert followed(running, ends(running)) == []


def test_epochs_of_a_running_trial_are_told_as_its_folder_says(running: Study):
    started = Trial(1, {"optim.lr": 0.002, "model.tau_size": 2})
    heard = followed(
        running,
        lambda: TrialLog(running.folder).append(started),
        lambda: write_epochs(running.trial_folder(1), [0.5]),
        lambda: None,
        lambda: TrialLog(running.folder).append(replace(started, state="complete", epoch=2, objective=0.3)),
        ends(running),
    )
    assert [(name, trial.number, trial.state, trial.epoch, trial.objective) for name, trial in heard] == [
        ("trial", 1, "running", 0, None), ("trial", 1, "running", 1, 0.5), ("trial", 1, "complete", 2, 0.3),
    ]  # fmt: skip


def test_stages_and_trainings_are_told_by_the_names_that_launch_uses(running: Study):
    repeat, fold = running.confirm_folder(0, 1), running.final_folder("blobs", 2)
    heard = followed(
        running,
        lambda: write_epochs(repeat, [0.4]),
        lambda: write_epochs(fold, [0.4]),
        lambda: write_atomically(fold / "result.json", b"{}"),
        ends(running),
    )
    assert heard == [
        ("stage", "confirmation"), ("training", "confirm t000 repeat 1", 1, 2),
        ("stage", "final"), ("training", "final blobs fold 2", 1, 2),
        ("training", "final blobs fold 2", 2, 2),
    ]  # fmt: skip


def test_the_stage_is_that_of_the_last_folder(home: Path, store: Store):
    study = make_study(home, store)
    assert stage_of(study) == "starting"
    add_trial(study, 0, 0.4)
    assert stage_of(study) == "search"


def test_a_study_whose_process_is_gone_ends_the_watch(home: Path, store: Store):
    study = make_study(home, store)
    write_state(study, "running")
    assert followed(study) == []
    assert read_state(study) == "interrupted"


# The command


@pytest.fixture
def happening(running: Study, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Any]]:
    """What happens between two looks of the command, one after the other; then the study ends."""
    coming: list[Callable[[], Any]] = []

    def wait(seconds: float) -> None:
        coming.pop(0)() if coming else write_state(running, "finished")

    monkeypatch.setattr("orchestrator.follow.follow", partial(follow, wait=wait))
    return coming


def test_a_pipe_gets_a_line_for_every_change(happening: list, running: Study):
    happening += [lambda: add_trial(running, 1, 0.3), lambda: None]
    result = run("status", "--watch", "--every", "0.5")
    assert result.exit_code == 0, result.output
    first, standing, change, end = result.stdout.splitlines()
    assert first.startswith("study s1: 4 trials of 2 epochs on blobs (random blobs, no patient)")
    assert standing.startswith("s1 · search · 1/4 trials (1 complete)")
    assert change == "t001 complete after 2 epochs best ged 0.3000"
    assert end == "study s1 is finished; `proseg-tune status s1` shows what has been reached"


def test_a_script_gets_a_json_line_for_every_change(happening: list, running: Study):
    happening += [lambda: add_trial(running, 1, float("nan")), ends(running, "failed")]
    result = run("status", "s1", "--watch", "--json")
    assert result.exit_code == 0, "the watch came to its end, whatever the study came to"
    first, change, end = [json.loads(line, parse_constant=pytest.fail) for line in result.stdout.splitlines()]
    assert (first["event"], first["study"], first["state"], first["trials_planned"]) == ("study", "s1", "running", 4)
    assert (change["event"], change["trial"]["number"], change["trial"]["objective"]) == ("trial", 1, None)
    assert (end["event"], end["state"]) == ("ended", "failed")


def test_ctrl_c_ends_the_watch_without_a_word(happening: list, running: Study):
    def interrupt() -> None:
        raise KeyboardInterrupt

    happening.append(interrupt)
    result = run("status", "--watch")
    assert result.exit_code == 130
    assert result.stderr == ""
    assert read_state(running) == "running", "the study goes on"


def test_a_study_that_does_not_run_is_shown_once(home: Path, store: Store):
    add_trial(make_study(home, store), 0, 0.4)
    assert run("status", "--watch").stdout == run("status").stdout
    events = [json.loads(line)["event"] for line in run("status", "--watch", "--json").stdout.splitlines()]
    assert events == ["study", "ended"]


@pytest.mark.parametrize(
    ("words", "part"),
    [(["--every", "1"], "add --watch"), (["--watch", "--every", "0"], "--every"), (["x", "--watch"], "no study 'x'")],
)
def test_what_cannot_be_watched(running: Study, words: list[str], part: str):
    result = run("status", *words)
    assert result.exit_code == 2
    assert part in result.stderr


# The display


def drawn(watch: Watch) -> str:
    said = io.StringIO()
    Console(file=said, width=120, force_terminal=True, color_system=None).print(watch.picture())
    return said.getvalue()


def test_a_line_from_the_tracking_server_is_shown_while_it_lasts(running: Study):
    said = io.StringIO()
    watch = Watch(running, Console(file=said, width=120))
    for text in ("MLflow offline, 9 points queued", "MLflow offline, 12 points queued", None, None):
        watch.tracking(text)
        assert ("points queued" in drawn(watch)) == (text is not None)
        assert ("12 points queued" in drawn(watch)) == (text is not None and "12" in text)
    assert said.getvalue().splitlines()[1:] == ["MLflow offline, 9 points queued"]


def test_a_line_from_the_tracking_server_goes_to_scripts_as_well(capsys: pytest.CaptureFixture[str]):
    JsonLines().tracking("MLflow offline, 12 points queued")
    record = json.loads(capsys.readouterr().out)
    assert (record["event"], record["text"]) == ("tracking", "MLflow offline, 12 points queued")


def test_a_watched_study_has_run_as_long_as_its_process(running: Study):
    watch = Watch(running, Console(file=io.StringIO(), width=120), stage="search", age=600)
    assert "1/4 trials (1 complete) · 10 min" in drawn(watch)
    assert "left" not in drawn(watch), "nothing has ended since it is watched"


# All studies


def test_studies_are_listed_newest_first(home: Path, store: Store):
    now = time.time()
    old, new = (make_study(home, store, name=name, created=now - age) for name, age in (("old", 7200), ("new", 60)))
    add_trial(old, 0, 0.4)
    add_trial(old, 1, 0.3)
    add_trial(old, 2, 0.2, "running")
    confirm(old, leader=1, chosen=0)
    with studies.running(new):
        found, unreadable = overview(home, now)
    assert [one.name for one in found] == ["new", "old"]
    assert unreadable == []
    running, finished = found
    assert (running.state, running.ended, running.best, running.trial) == ("running", 0, None, None)
    assert running.seconds == pytest.approx(60)
    assert (finished.ended, finished.planned, finished.best, finished.trial) == (2, 4, 0.4, 0), "as `best` says"
    assert finished.seconds == pytest.approx(7200, abs=60), "it wrote its end just now"
    assert finished.bytes == sum(path.stat().st_size for path in old.folder.rglob("*") if path.is_file())


def test_a_killed_study_took_as_long_as_it_was_heard_of(home: Path, store: Store):
    study = make_study(home, store, created=1000.0)
    (study.folder / "state.json").unlink()
    add_trial(study, 0, 0.4)
    line = json.loads((study.folder / "trials.jsonl").read_text())
    (study.folder / "trials.jsonl").unlink()
    append_line(study.folder / "trials.jsonl", line | {"time": 1600.0})
    (one,), _ = overview(home, 1e9)
    assert (one.state, one.seconds) == ("interrupted", 600)


def test_what_cannot_be_read_is_named_and_hides_nothing(home: Path, store: Store):
    add_trial(make_study(home, store, name="good"), 0, 0.4)
    for name, file in (("a", "study.json"), ("b", "trials.jsonl"), ("c", "state.json"), ("d", "confirm.json")):
        (make_study(home, store, name=name).folder / file).write_text('{"x": 1\n')
    (home / "studies" / "e").mkdir()
    result = run("list")
    assert result.exit_code == 0
    assert re.search(r"^good .* finished .*ged 0\.4000 \(t000\)", result.stdout, re.MULTILINE)
    assert "blobs: random blobs, no patient" in result.stdout
    found = json.loads(run("list", "--json").stdout)
    assert [one["name"] for one in found["studies"]] == ["good"]
    files = ["study.json", "trials.jsonl", "state.json", "confirm.json", "study.json"]
    for one, part in zip(found["unreadable"], files, strict=True):
        assert part in one["why"]
        assert f"{one['name']} cannot be read: {one['why']}" in result.stdout


def test_a_workspace_without_studies(home: Path):
    assert "there is no study in" in run("list").stdout
    assert json.loads(run("list", "--json").stdout)["studies"] == []
    assert not home.exists(), "looking makes nothing"


def test_a_damaged_log_is_one_sentence(running: Study):
    append_line(running.folder / "trials.jsonl", {"number": 1, "colour": "red"})
    result = run("status")
    assert result.exit_code == 2
    assert "trials.jsonl is damaged or of another version" in result.stderr


def test_a_damaged_state_says_what_to_do(running: Study):
    (running.folder / "state.json").write_text("{}")
    with pytest.raises(StudyError, match=r"state\.json is damaged: delete it"):
        read_state(running)


def test_numbers_that_are_none_are_null_for_scripts(running: Study):
    folder = running.final_folder("blobs", 0)
    folder.mkdir(parents=True)
    result = fold_result(0)
    record = vars(replace(result, metrics=result.metrics | {"dice_a1": float("nan")}))
    (folder / "result.json").write_text(json.dumps(record))
    found = json.loads(run("status", "--json").stdout, parse_constant=pytest.fail)
    assert found["folds"][0]["metrics"]["dice_a1"] is None


# Colour: only on a terminal, and only where it is wanted

COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-7]|9[0-7])[0-9;]*m")
ANY_CODE = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(home: Path, *words: str, hear: Callable[[str], None] = lambda shown: None, **environment: str) -> str:
    """What the command writes to a terminal of 100 columns; `hear` is told all of it whenever there is more."""
    pty = pytest.importorskip("pty", reason="terminals are tested on Unix")
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = subprocess.Popen(
        [sys.executable, "-m", "cli", *words], stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env={**inherited, "PROSEG_HOME": str(home), "TERM": "xterm-256color", "COLUMNS": "100", **environment},
        cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    os.close(theirs)
    written = bytearray()
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's way to say that nobody holds the other end any more
            break
        if not part:
            break
        written += part
        hear(written.decode(errors="ignore"))
    assert command.wait() == 0, written.decode()
    os.close(ours)
    return written.decode()


@pytest.fixture
def finished(home: Path, store: Store) -> Study:
    study = make_study(home, store)
    add_trial(study, 0, 0.4)
    add_trial(study, 1, None, "failed", reason="the loss is not finite")
    return study


def test_a_terminal_gets_colour(finished: Study, home: Path):
    assert COLOUR.search(on_a_terminal(home, "status"))


def test_a_terminal_whose_user_wants_none_gets_no_colour(finished: Study, home: Path):
    shown = on_a_terminal(home, "status", NO_COLOR="1")
    assert "complete" in shown
    assert not COLOUR.search(shown)


def test_a_dumb_terminal_gets_no_codes_at_all(finished: Study, home: Path):
    shown = on_a_terminal(home, "status", TERM="dumb")
    assert "complete" in shown
    assert not ANY_CODE.search(shown)


@pytest.mark.parametrize("words", [["status"], ["list"], ["explain", "t001"], ["best"], ["data", "list"], ["--help"]])
def test_a_pipe_gets_no_codes_at_all(finished: Study, words: list[str]):
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output


def test_a_watch_on_a_terminal_redraws_and_ends_with_the_study(running: Study, home: Path):
    def end_when_drawn_twice(shown: str) -> None:
        if shown.count("s1 · search") == 2:
            write_state(running, "finished")

    shown = on_a_terminal(home, "status", "--watch", "--every", "0.2", hear=end_when_drawn_twice)
    assert "study s1 is finished" in shown
