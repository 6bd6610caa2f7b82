"""The report of a study: what it says of any study, that its numbers are those of the other commands, and its files."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from benchmarks import report as made_up
from cli.app import app
from orchestrator.report import importance, scores
from orchestrator.report.build import build
from orchestrator.report.facts import read_facts
from orchestrator.report.markdown import markdown, plain
from orchestrator.report.page import inline, page, policy
from orchestrator.report.parts import Figure, Listing, Report, Section, Table
from orchestrator.report.write import target, write
from orchestrator.results import Trial, read_trials
from orchestrator.study import Study, StudyError, write_state, write_study
from proseg.data.store import Store
from proseg.records import Criterion, best_epoch
from tests.studies import add_trial, confirm, make_study, running, score_fold, tree

EVIL = '<script>alert("x")</script> & | [a](javascript:b) `c`'
NOW = 1.8e9
VOID = ("meta", "img", "wbr", "br", "link")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def searched(home: Path, store: Store) -> Study:
    """Four trials of different ends, the best two compared, two folds of a final stage."""
    study = make_study(home, store, final=[{"data": str(store.folder), "epochs": 2}])
    add_trial(study, 0, 0.412345678, cost=0.5, seconds=100.0)
    add_trial(study, 1, 0.312345678, cost=0.25, origin="the paper (all of it)")
    decision = {"rung": 1, "value": [0.51], "cutoff": 0.4, "rank": 2, "of": 2, "kept": 1}
    add_trial(study, 2, 0.51, "stopped early", reason="ASHA: rank 2 of 2", decision=decision)
    add_trial(study, 3, None, "failed", reason="the loss is not finite", epoch=0)
    confirm(study, leader=1, chosen=0)
    for fold in range(2):
        score_fold(study, fold, {"ged": 0.2 + 0.1 * fold, "dice_match": 0.8, "dice_a1": 0.8, "dice_mean": 0.8})
    return study


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A hundred trials; tests must not change it."""
    return made_up.make(tmp_path_factory.mktemp("large"), 100)


@pytest.fixture(scope="module")
def large_report(large: Study) -> Report:
    return found_by(large)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def found_by(study: Study) -> Report:
    return build(study, study.folder.parent.parent, NOW)


def section(report: Report, title: str) -> Section:
    return next(one for one in report.sections if one.title.startswith(title))


def table(report: Report, name: str) -> Table:
    every = [part.table if isinstance(part, Figure) else part for one in report.sections for part in one.parts]
    return next(one for one in every if isinstance(one, Table) and one.name == name)


def column(one: Table, head: str) -> list[Any]:
    return [row[one.columns.index(head)] for row in one.rows]


class Reader(HTMLParser):
    """What a page consists of: elements with their attributes, and whether each is closed where it must be."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_leaderboard_is_sorted_and_names_states_in_words(searched: Study):
    board = table(found_by(searched), "leaderboard")
    assert column(board, "trial") == ["t001", "t000", "t002"]
    assert column(board, "state") == ["complete", "complete", "stopped early"]
    assert column(board, "remarks") == ["values from the paper", "chosen", ""]
    assert "chosen trial is not the first" in " ".join(board.notes)


def test_numbers_are_those_of_the_other_commands(searched: Study):
    assert run("report").exit_code == 0
    status = json.loads(run("status", "--json").stdout)
    best = json.loads(run("best", "--json").stdout)
    folder = searched.folder / "report"
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [(row["trial"], row["state"], row["ged (val)"], row["CPU-hours"]) for row in rows] == [
        (f"t{t['number']:03d}", t["state"], t["objective"], t["cost"]) for t in status["trials"]
    ]
    board = {row["trial"]: row for row in pq.read_table(folder / "leaderboard.parquet").to_pylist()}
    chosen = board[f"t{best['trial']:03d}"]
    assert (chosen["remarks"], chosen["ged (val)"]) == ("chosen", best["objective"]["value"])
    text, drawn = (folder / "report.md").read_text(), (folder / "index.html").read_text()
    assert "| t001 | 1 | 0.3123 |" in text
    assert '<td class="number" data-value="0.312345678">0.3123</td>' in drawn
    assert best["confirmation"]["sentence"] in " ".join(json.loads((folder / "report.json").read_text())["answer"])
    assert "0.2500 ± 0.0500" in drawn, "GED over the folds, as `best` prints it"


def test_what_was_stopped_says_by_which_comparison(searched: Study):
    report = found_by(searched)
    assert table(report, "stopped").rows == (("t002", 1, 0.51, 0.4, 2, 2, 1),)
    assert table(report, "rungs").rows == ((1, 3, 1, 0.4, 0.4),)
    assert column(table(report, "ended"), "reason") == ["the loss is not finite"]
    assert "5 of the 8 epochs" in " ".join(section(report, "What was stopped").text)


def test_the_comparison_of_the_best_is_told(searched: Study):
    report = found_by(searched)
    one = table(report, "confirmation")
    assert column(one, "taken") == ["no", "yes"]
    assert column(one, "trial") == ["t001", "t000"]
    assert one.rows[0][2:6] == (None, None, None, None), "the first is not compared with itself"
    assert column(one, "relative cost") == [2.0, 1.0]


def test_every_table_and_chart_says_what_the_data_are(searched: Study):
    report = found_by(searched)
    label = "blobs: random blobs, no patient"
    assert report.label == label
    for one in report.sections:
        for part in one.parts:
            if isinstance(part, Figure):
                assert label in str(part.svg)
    for name in ("leaderboard", "trials", "stopped", "rungs", "confirmation", "history", "space"):
        assert label in table(report, name).caption


def test_how_to_do_it_again_can_be_typed(searched: Study):
    lines = [part.text for part in section(found_by(searched), "How to").parts if isinstance(part, Listing)]
    assert "git checkout 0123456789ab" in lines[0]
    command = lines[0].split("proseg-tune ")[1].replace("\\\n", " ").split()
    known = run("launch", "--help").stdout
    assert [word for word in command if word.startswith("--") and word not in known] == []
    assert json.loads(lines[2]) == searched.config_of({"optim.lr": 0.001, "model.tau_size": 2}).model_dump()


# --- studies of any kind ----------------------------------------------------------------------------------------------


def nothing(study: Study) -> None:
    """It has just begun."""


def failed(study: Study) -> None:
    add_trial(study, 0, None, "failed", reason="out of memory")
    add_trial(study, 1, None, "failed", reason="out of memory")
    write_state(study, "failed")


def one(study: Study) -> None:
    add_trial(study, 0, 0.4)


def under_way(study: Study) -> None:
    add_trial(study, 0, 0.4, "running", epoch=1)


def interrupted(study: Study) -> None:
    add_trial(study, 0, 0.4)
    add_trial(study, 1, 0.3, "interrupted", reason="the study was stopped: epoch 1 of 2")
    write_state(study, "interrupted")


@pytest.mark.parametrize(
    ("happened", "said"),
    [
        (nothing, ["The study is running: 0 of 4 trials", "There is no winner yet", "No trial has a score yet."]),
        (failed, ["The study is failed", "No trial has a score yet (2 failed).", "out of memory"]),
        (one, ["t000 is the chosen trial", "1 trial with a score, fewer than 20", "not been evaluated on held-out"]),
        (
            under_way,
            ["There is no winner yet: no trial has ended with a score.", "no trial that has ended has a score"],
        ),
        (interrupted, ["The study is interrupted: 2 of 4 trials", "the study was stopped: epoch 1 of 2"]),
    ],
)
def test_a_study_of_any_kind_has_an_honest_report(study: Study, happened: Callable[[Study], None], said: list[str]):
    happened(study)
    with running(study) if happened in (nothing, under_way) else nullcontext():
        report = found_by(study)
    Reader(page(report))
    text = markdown(report)
    for words in said:
        assert plain(words) in text
    assert all(one.text or one.parts for one in report.sections), "what does not apply says so"


def test_without_records_of_epochs_the_curves_are_left_out(study: Study):
    add_trial(study, 0, 0.4)
    shutil.rmtree(study.trial_folder(0))
    report = found_by(study)
    assert "no trial has both" in section(report, "ged against").text[0]
    assert not any(isinstance(part, Figure) for part in section(report, "What was stopped").parts)


def test_two_objectives_have_a_front(home: Path, store: Store):
    study = make_study(home, store, second_objective={"metric": "dice_match"})
    for number, (ged, dice) in enumerate([(0.3, 0.8), (0.2, 0.7), (0.4, 0.75)]):
        add_trial(study, number, ged, second=dice)
    report = found_by(study)
    front = section(report, "Pareto front")
    assert front.text == ("The trials that no other beats in both objectives, among those that ran to their end: "
                          "t001 and t000.",)  # fmt: skip
    assert column(table(report, "trade-off"), "on the front") == ["yes", "yes", "no"]
    assert column(table(report, "leaderboard"), "dice_match (val)") == [0.7, 0.8, 0.75]


def test_a_metric_that_is_maximised_is_drawn_the_other_way(home: Path, store: Store):
    study = make_study(home, store, objective={"metric": "dice_match"})
    for number, dice in enumerate([0.7, 0.6, 0.8]):
        add_trial(study, number, dice)
    assert column(table(found_by(study), "history"), "best so far") == [0.7, 0.7, 0.8]


def test_the_best_epoch_is_the_first_that_reached_the_best():
    epochs = [{"metrics": {"val/ged": value, "val/d_pp": place}} for place, value in enumerate([0.5, 0.3, 0.4, 0.3])]
    assert best_epoch(epochs, Criterion("ged"))["val/d_pp"] == 1
    assert best_epoch([{"metrics": {}}], Criterion("ged")) == {}


def test_an_epoch_whose_score_is_no_number_does_not_stay_the_best():
    epochs = [
        {"metrics": {"val/ged": value, "val/d_pp": place}} for place, value in enumerate([math.nan, 0.4, math.nan])
    ]
    assert best_epoch(epochs, Criterion("ged"))["val/d_pp"] == 1


def test_a_report_outlives_a_comparison_whose_trial_is_not_in_the_log(home: Path, store: Store):
    study = make_study(home, store)
    add_trial(study, 0, 0.3)
    confirm(study, leader=4, chosen=5)
    found = read_facts(study, 0.0).winner
    assert found is not None
    assert found.number == 0


def test_a_trial_over_a_limit_is_never_the_best_so_far():
    some = [Trial(0, {}, "complete", 2, 0.4), Trial(1, {}, "complete", 2, 0.2, over=("gpu_memory",)),
            Trial(2, {}, "stopped early", 1, 0.1)]  # fmt: skip
    assert scores.best_so_far(some, Criterion("ged")) == [0.4, 0.4, 0.4]


# --- what mattered ----------------------------------------------------------------------------------------------------


def test_the_importance_finds_what_decides(large: Study):
    facts = read_facts(large, NOW)
    decided = [
        replace(trial, objective=abs(trial.values["model.tau_size"] - 8.0), state="complete")
        for trial in facts.trials if trial.objective is not None
    ]  # fmt: skip
    names, _ = importance.measurable(large, decided)
    first, *others = importance.measure(large, Criterion("ged"), decided, names)
    assert first.name == "model.tau_size"
    assert first.share > max(first.chance, 0.5)
    assert sum(one.share > one.chance for one in others) <= 2, "of eleven one in twenty passes"
    assert sum(one.share for one in (first, *others)) == pytest.approx(1)
    (largest, *_) = importance.measure(large, Criterion("ged", maximize=True), decided, names)
    assert largest.name == "model.tau_size", "the largest distance lies at the other ends of the same dimension"


def test_what_cannot_be_measured_says_why(large: Study):
    some = [trial for trial in read_trials(large) if trial.objective is not None]
    same = [replace(trial, values=trial.values | {"model.tau_size": 8}) for trial in some]
    rare = [replace(trial, values={k: v for k, v in trial.values.items() if k != "optim.weight_decay"})
            for trial in same]  # fmt: skip
    names, silent = importance.measurable(large, rare)
    assert "optim.lr" in names
    assert silent == [
        "model.tau_size (every trial had 8)",
        "optim.weight_decay (it was searched in 0 trials only, for it depends on other values)",
    ]
    assert importance.measurable(large, some[:19])[0] == []


def test_a_value_that_depends_on_another_is_measured_where_it_was_searched(large: Study, large_report: Report):
    found = table(large_report, "importance-ged")
    known = dict(zip(column(found, "dimension"), column(found, "trials"), strict=True))
    with_it = sum("optim.weight_decay" in t.values for t in read_trials(large) if t.objective is not None)
    assert known["optim.weight_decay"] == with_it < known["optim.name"]


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(large_report: Report) -> str:
    return page(large_report)


def test_a_hundred_trials_stay_small(drawn: str):
    assert len(drawn.encode()) < 5e6


def test_nothing_comes_from_elsewhere(drawn: str):
    reader = Reader(drawn)
    addresses = [value for _, attributes in reader.elements for name, value in attributes.items()
                 if name in ("src", "href", "action", "srcset", "data", "poster")]  # fmt: skip
    assert [value for value in addresses if not str(value).startswith(("#", "data:image/"))] == []
    assert reader.all("link") == []
    assert re.findall(r"url\((?!#)|@import|https?://", drawn) == []
    (script,) = re.findall(r"<script>(.*?)</script>", drawn, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (said,) = [a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert f"'sha256-{digest}'" in str(said)
    assert str(said).startswith("default-src 'none'")
    assert "eval" not in script


def test_it_can_be_read_without_eyes(drawn: str):
    reader = Reader(drawn)
    assert reader.all("html")[0]["lang"] == "en"
    ids = Counter(attributes["id"] for _, attributes in reader.elements if attributes.get("id"))
    assert [name for name, times in ids.items() if times > 1] == []
    assert len(reader.all("table")) == len(reader.all("caption"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in reader.all("th"))
    assert all(attributes.get("aria-label") and attributes.get("role") == "img" for attributes in reader.all("svg"))
    assert all(attributes.get("alt") for attributes in reader.all("img"))
    named = {attributes["aria-labelledby"] for attributes in reader.all("section")}
    assert named <= set(ids)
    pointed = {str(a["href"])[1:] for a in reader.all("a")} | {str(a["href"])[1:] for a in reader.all("use")}
    assert pointed <= set(ids), "nothing points to what is not there"
    assert set(re.findall(r"url\(#([^)]+)\)", drawn)) <= set(ids)
    assert [tag for tag, _ in reader.elements if tag in ("h1", "h2")][:2] == ["h1", "h2"]


def test_the_leaderboard_is_the_first_table_and_is_not_folded(drawn: str):
    assert drawn.index('id="table-leaderboard"') < drawn.index("<details")
    assert drawn.index("<table") == drawn.index('<table id="table-leaderboard"')


def test_what_a_person_named_is_only_ever_text(study: Study):
    space = study.space.model_copy(update={"about": EVIL})
    data = study.data.model_copy(update={"label": EVIL})
    evil = study.model_copy(update={"space": space, "data": data})
    write_study(evil)
    add_trial(evil, 0, 0.4, origin=EVIL)
    add_trial(evil, 1, None, "failed", reason=EVIL)
    report = found_by(evil)
    drawn = page(report)
    assert len(Reader(drawn).all("script")) == 1
    assert "alert(" in drawn
    text = markdown(report)
    assert re.findall(r"(?<!\\)<script|(?<!\\)\]\(javascript", text) == []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, "no cell ends early"


def test_a_chart_from_elsewhere_brings_nothing_but_drawing():
    svg = ('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 100 50" '
           'onload="x()"><script>x()</script><style>*{}</style><g id="a"><path d="M0 0" style="fill: #0072b2" '
           'clip-path="url(#a)"/><use xlink:href="#a"/><use xlink:href="http://x/y.svg#z"/><foreignObject/>'
           "</g></svg>")  # fmt: skip
    found = str(inline(svg, "one", 'a "chart" <b>'))
    assert re.findall("script|style>|onload|http|foreignObject", found) == []
    assert 'id="one-a"' in found
    assert 'href="#one-a"' in found
    assert "url(#one-a)" in found
    assert "var(--blue)" in found
    assert 'aria-label="a &quot;chart&quot; &lt;b' in found


def test_a_figure_without_lines_is_shown_as_a_picture():
    figure = Figure("photo", "A photo.", "Grey.", b"\x89PNG")
    report = Report("s", "finished", "now", "l", (), (), (Section("One", parts=(figure,)), Section("One")))
    drawn = page(report)
    assert f'<img src="data:image/png;base64,{base64.b64encode(figure.png).decode()}" alt="Grey.">' in drawn
    assert Counter(re.findall(r'<h2 id="([^"]+)"', drawn)) == {"one": 1, "one-": 1}


def test_the_policy_names_the_script_by_its_digest():
    assert policy("a") != policy("b")


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("a_b _c_", r"a_b \_c\_"),
        ("1. one", r"1\. one"),
        ("0.17 and -1.5", "0.17 and -1.5"),
        ("# head", r"\# head"),
        ("two\nlines", "two lines"),
        ("a|b <i> &lt;", r"a\|b \<i> &amp;lt;"),
    ],
)
def test_words_are_not_taken_for_markdown(words: str, written: str):
    assert plain(words) == written


def test_a_listing_cannot_end_its_block_early():
    report = Report("s", "finished", "now", "l", (), (), (Section("One", parts=(Listing("c", "```\nx\n````"),)),))
    assert "`````\n```\nx\n````\n`````" in markdown(report)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_whole_folder_and_says_where(searched: Study):
    said = run("report")
    folder = searched.folder / "report"
    assert said.exit_code == 0
    assert str(folder / "index.html") in said.stdout
    names = {path.name for path in folder.iterdir()}
    assert {"index.html", "report.md", "report.json", "history.png", "leaderboard.parquet"} <= names
    linked = re.findall(r"\]\(([^)]+\.png)\)", (folder / "report.md").read_text())
    assert set(linked) == {name for name in names if name.endswith(".png")}
    named = re.findall(r"\b([a-z-]+\.parquet)\b", (folder / "report.md").read_text())
    assert set(named) == {name for name in names if name.endswith(".parquet")}


def test_json_lists_what_was_written(searched: Study, tmp_path: Path):
    out = tmp_path / "elsewhere"
    record = json.loads(run("report", searched.name, "--out", out, "--json").stdout)
    assert record["folder"] == str(out)
    assert {name: (out / name).stat().st_size for name in record["files"]} == record["files"]
    assert not (searched.folder / "report").exists()


def test_a_report_is_replaced_and_nothing_else_is(searched: Study, tmp_path: Path):
    out = tmp_path / "out"
    assert run("report", "--out", out).exit_code == 0
    assert run("report", "--out", out).exit_code == 0
    (out / "mine.txt").write_text("notes")
    before = tree(out)
    refused = run("report", "--out", out)
    assert refused.exit_code == 2
    assert "holds mine.txt, which is no part of a report" in " ".join(refused.output.split())
    assert tree(out) == before


@pytest.mark.parametrize("content", ["{}", "no json", '{"made by": "proseg-tune report"}', "[]"])
def test_a_folder_with_a_strange_list_is_not_taken_for_a_report(study: Study, tmp_path: Path, content: str):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(content)
    with pytest.raises(StudyError, match=r"holds report\.json"):
        target(study, tmp_path / "out")


def test_a_file_is_no_folder(study: Study, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="is a file"):
        target(study, tmp_path / "file")


def test_a_place_that_cannot_be_written_is_one_sentence(study: Study, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot be written into"):
        write(Report("s", "finished", "now", "l", (), (), (Section("One"),)), tmp_path / "file" / "out")


def test_tables_keep_their_numbers_and_say_what_they_are(large: Study, large_report: Report, tmp_path: Path):
    write(large_report, tmp_path / "out")
    read = pq.read_table(tmp_path / "out" / "trials.parquet")
    assert {str(read.schema.field(name).type) for name in ("optim.lr", "ged (val)", "seconds")} == {"double"}
    assert str(read.schema.field("model.tau_size").type) == "int64"
    assert b"random blobs, no patient" in read.schema.metadata[b"caption"]
    by_name = {trial.name: trial for trial in read_trials(large)}
    for row in read.to_pylist():
        assert row["optim.weight_decay"] == by_name[row["trial"]].values.get("optim.weight_decay")


# --- against another --------------------------------------------------------------------------------------------------


def test_against_another_gives_the_numbers_of_compare(searched: Study, home: Path, store: Store):
    other = make_study(home, store, name="s2", created=0.0, final=[{"data": str(store.folder), "epochs": 2}])
    for fold in range(2):
        score_fold(other, fold, {"ged": 0.4, "dice_match": 0.7, "dice_a1": 0.8, "dice_mean": 0.8})
    assert run("report", searched.name, "--against", "s2").exit_code == 0
    compared = json.loads(run("compare", searched.name, "s2", "--json").stdout)["data"][0]
    rows = pq.read_table(searched.folder / "report" / "against-blobs.parquet").to_pylist()
    assert [(r["metric"], r["A"], r["B"], r["p Holm"], r["differ"]) for r in rows] == [
        (m["metric"], m["a"], m["b"], m["p_holm"], "yes" if m["distinguishable"] else "no") for m in compared["metrics"]
    ]
    assert plain(compared["sentence"]) in (searched.folder / "report" / "report.md").read_text()


@pytest.mark.parametrize(("other", "said"), [("nobody", "neither a study"), ("s0", "no scores of test cases")])
def test_what_cannot_be_compared_is_one_sentence_and_nothing_is_written(
    searched: Study, home: Path, store: Store, other: str, said: str
):
    make_study(home, store, name="s0", created=0.0)
    refused = run("report", searched.name, "--against", other)
    assert refused.exit_code == 2
    assert said in " ".join(refused.output.split())
    assert not (searched.folder / "report").exists()


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tables_are_sorted_by_their_heads(drawn: str, tmp_path: Path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium on this machine: install the package chromium")
    (tmp_path / "index.html").write_text(drawn)
    (tmp_path / "test.html").write_text("""<iframe src="index.html"></iframe><script>
onload = () => {
  const page = frames[0].document, head = page.querySelectorAll("#table-trials thead th")[2];
  const names = () => [...page.querySelectorAll("#table-trials tbody th")].map((cell) => cell.textContent);
  const found = [];
  for (const turn of [1, 2]) {
    head.querySelector("button").click();
    found.push([head.getAttribute("aria-sort"), names(), page.getElementById("said").textContent]);
  }
  document.body.replaceChildren(JSON.stringify(found));
};</script>""")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
               (tmp_path / "test.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    (body,) = re.findall(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    (rising, first, said), (falling, last, _) = json.loads(body)
    assert (rising, falling, said) == ("ascending", "descending", "Sorted by ged (val), ascending.")
    failures = ["t032", "t065", "t098"]
    assert first[-3:] == last[-3:] == failures, "empty cells stand last in both"
    assert first[:-3] == last[-4::-1]


def test_values_of_all_kinds_stand_in_every_table(home: Path, store: Store):
    """Truth values are words, beside whole numbers, others, names, and nothing where a value was not searched."""
    search = {
        "model.use_tau": {"kind": "choice", "values": [True, False]},
        "model.tau_size": {"kind": "int", "low": 2, "high": 4, "when": {"model.use_tau": True}},
        "optim.weight_decay": {"kind": "choice", "values": [0, 0.1]},
        "optim.name": {"kind": "choice", "values": ["adam", "adamw"]},
    }
    study = make_study(home, store, search=search)
    for number in range(24):
        values = {"model.use_tau": number % 2 == 0, "optim.weight_decay": (0, 0.1)[number % 3 == 0],
                  "optim.name": ("adam", "adamw")[number % 5 == 0]}  # fmt: skip
        size = {"model.tau_size": 3} if values["model.use_tau"] else {}
        add_trial(study, number, 0.1 + 0.01 * (number * 7 % 24), values=values | size)
    report = found_by(study)
    assert column(table(report, "trials"), "model.use_tau")[:2] == ["true", "false"]
    assert column(table(report, "trials"), "model.tau_size")[:2] == [3, None]
    assert run("report", "--out", home / "out").exit_code == 0
    for command in (["status"], ["explain", "0"], ["best"], ["list"]):
        assert run(*command).exit_code == 0
