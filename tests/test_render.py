"""What a person sees while a study runs: lines in a pipe, a picture on a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from cli import live, render
from cli.live import Watch
from orchestrator.estimate import quote
from orchestrator.quote import Quote, Stage
from orchestrator.results import Trial
from orchestrator.study import Study
from orchestrator.words import span
from tests.studies import probe_of

TRIAL = Trial(0, {"optim.lr": 0.001})


@pytest.fixture
def quoted(study: Study) -> Study:
    return study.model_copy(update={"quote": quote(study, probe_of(study))})


def piped(study: Study) -> tuple[Watch, io.StringIO]:
    said = io.StringIO()
    watch = Watch(study, Console(file=said, width=200))
    said.truncate(0)
    said.seek(0)
    return watch, said


def lines(said: io.StringIO) -> list[str]:
    return said.getvalue().splitlines()


# In a pipe


def test_a_study_says_at_first_what_it_does_and_what_that_will_take(quoted: Study):
    said = io.StringIO()
    Watch(quoted, Console(file=said, width=200))
    first, second = lines(said)
    assert first == "study s1: 4 trials of 2 epochs on blobs (random blobs, no patient), 1 at a time"
    assert second.startswith("expected: 80 s (0.044 CPU-hours), at most ")


def test_each_epoch_is_told_once_and_each_end(study: Study):
    watch, said = piped(study)
    watch.trial(TRIAL)
    for objective in (0.5, 0.5):
        watch.trial(replace(TRIAL, epoch=1, objective=objective))
    watch.trial(replace(TRIAL, epoch=2, objective=0.4))
    watch.trial(replace(TRIAL, epoch=2, objective=0.4, state="complete"))
    watch.trial(Trial(1, {}, "failed", reason="the loss is not [finite]"))
    assert lines(said) == [
        "t000 epoch 1/2 best ged 0.5000", "t000 epoch 2/2 best ged 0.4000",
        "t000 complete after 2 epochs best ged 0.4000", "t001 failed after 0 epochs  the loss is not [finite]",
    ]  # fmt: skip


def test_trainings_stages_and_notes_are_told(study: Study):
    watch, said = piped(study)
    watch.stage("confirmation")
    for epoch in (1, 1, 2):
        watch.training("confirm t000 repeat 0", epoch, 2)
    watch.note("the disk is full")
    assert lines(said) == [
        "confirmation: begun", "confirm t000 repeat 0 epoch 1/2", "confirm t000 repeat 0 epoch 2/2",
        "note: the disk is full",
    ]  # fmt: skip


def test_with_quiet_it_is_told_on_standard_error(study: Study, capsys: pytest.CaptureFixture[str]):
    with live.watching(study, quiet=True) as watch:
        watch.note("heard")
    assert capsys.readouterr().out == ""


# On a terminal


def pictured(watch: Watch) -> str:
    said = io.StringIO()
    Console(file=said, width=120, force_terminal=True, color_system=None).print(watch.picture())
    return said.getvalue()


def test_the_picture_holds_what_is_known(quoted: Study):
    said = io.StringIO()
    watch = Watch(quoted, Console(file=said, width=120, force_terminal=True))
    assert said.getvalue() == "", "it is drawn, not told line by line"
    watch.stage("search")
    watch.trial(replace(TRIAL, epoch=2, objective=0.4, state="complete"))
    watch.trial(Trial(1, {"optim.lr": 0.002}, epoch=1, objective=0.3))
    watch.trial(Trial(2, {"optim.lr": 0.003}))
    watch.training("final blobs fold 0", 1, 2)
    watch.training("final blobs fold 1", 2, 2)
    watch.note("something")
    shown = pictured(watch)
    for part in ("s1 · search · 1/4 trials (2 running, 1 complete)", "of search left", "expected: 80 s", "t000", "t001",
                 "t002", "0.4000", "0.3000", "final blobs fold 0: epoch 1/2", "note: something"):  # fmt: skip
        assert part in shown, part
    assert "fold 1" not in shown, "it is over"


def test_only_the_leaders_are_shown_and_those_that_have_no_score_yet(study: Study):
    watch, _ = piped(study)
    for number in range(9):
        watch.trial(Trial(number, {}, "complete", 2, 0.1 * (9 - number)))
    watch.trial(Trial(9, {}))
    shown = pictured(watch)
    assert [number for number in range(10) if f"t00{number}" in shown] == [4, 5, 6, 7, 8, 9]


# Numbers in words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (36000, "10.0 h")],
)
def test_a_duration_can_be_read(seconds: float, text: str):
    assert span(seconds) == text


def of(low: float, high: float) -> Quote:
    nothing = Stage(low=0, high=0)
    return Quote(step=1, epoch=1, spread=0, search=Stage(low=low, high=high), confirm=nothing, final=nothing,
                 unit="GPU-hours", rate=2, memory=1, checkpoint=1, disk=3 * 2**20)  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (3600, 7200, "60 min to 2.0 h (2 to 4 GPU-hours), at most 3 MB of disk"),
        (3600, 3600, "60 min (2 GPU-hours), at most 3 MB of disk"),
        (40.1, 40.2, "40 s (0.022 GPU-hours), at most 3 MB of disk"),
    ],
)
def test_a_cost_is_a_range_where_it_is_one(low: float, high: float, text: str):
    assert render.cost(of(low, high)) == text


# Long work


@pytest.mark.parametrize(("seconds", "said"), [(2.0, ["about 2 min for all 60"]), (0.9, [])])
def test_long_work_is_told_in_a_pipe_every_tenth_and_quoted_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], seconds: float, said: list[str]
):
    clock = iter(range(1000))
    monkeypatch.setattr("cli.render.time.monotonic", lambda: seconds * next(clock))
    monkeypatch.setattr(render, "err", Console(stderr=True, width=200))
    assert list(render.track()(iter(range(60)), 60, "Segmenting slices")) == list(range(60))
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "Segmenting slices: 60"
    assert [line for line in told if "about" in line] == said
    assert [line for line in told if "%" in line] == [
        f"Segmenting slices: {done} of 60 ({100 * done // 60} %)" for done in range(6, 61, 6)
    ]


@pytest.mark.parametrize("total", [1, 3, 7])
def test_short_work_is_told_to_its_end(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, total: int):
    monkeypatch.setattr(render, "err", Console(stderr=True, width=200))
    assert len(list(render.track()(range(total), total, "Reading"))) == total
    assert capfd.readouterr().err.splitlines()[-1] == f"Reading: {total} of {total} (100 %)"


def test_work_in_quiet_says_nothing(capfd: pytest.CaptureFixture[str]):
    assert list(render.track(quiet=True)(range(3), 3, "Reading")) == [0, 1, 2]
    assert capfd.readouterr().err == ""


def test_what_users_wrote_is_shown_as_they_wrote_it(capsys: pytest.CaptureFixture[str]):
    names = ["[bold]x[/]", "[/red]", ":smile:", ":1234:", "a [link=b]c[/link]", "\\[x]"]
    for name in names:
        render.line(name)
        render.marked("ok", "green", name)
        render.grid([name], [[name]])
        list(render._told([1], 1, name))
        render.error(name)
    said = capsys.readouterr()
    for name in names:
        assert said.out.count(name) == 4, name
        assert said.err.count(name) == 3, name
