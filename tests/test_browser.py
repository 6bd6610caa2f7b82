"""What a person sees: MLflow's pages of a study and the HTML report, opened in a real browser without a window.

The pictures of what was seen are kept in build/screenshots/.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.browser import PATIENCE, ROOT, browser, lacking, mlflow_pages
from cli.app import app
from orchestrator import pages
from orchestrator.results import Trial, TrialLog, ranked, read_trials
from orchestrator.study import Study
from proseg.data.store import Store
from tests.recorded import record, write_samples
from tests.studies import LABEL, add_trial, make_study, running, write_epochs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

pytestmark = [pytest.mark.slow, pytest.mark.skipif(lacking() is not None, reason=lacking() or "")]

SCREENSHOTS = ROOT / "build" / "screenshots"
NOISE = (re.compile("Failed to load resource: .* 404 "), "/ajax-api/2.0/mlflow/users/current")
"""MLflow's pages ask who is logged in, which a server without accounts does not know: the words, and the address."""
STATES = ("complete", "stopped early", "complete", "failed", "complete", "stopped early", "interrupted", "complete",
          "stopped early", "running")  # fmt: skip
SCORES = (0.31, 0.42, 0.22, None, 0.27, 0.45, 0.35, 0.25, 0.39, 0.33)
REASONS = {"stopped early": "ASHA: rank 3 of 4 at epoch 1", "failed": "the loss is not finite | at step 7"}


@dataclass
class Seen:
    """A page, and what went wrong on it."""

    page: "Page"
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._asked)

    def _heard(self, message: "ConsoleMessage") -> None:
        words, address = NOISE
        if message.type != "error" or (words.match(message.text) and message.location["url"].endswith(address)):
            return
        self.errors.append(f"{message.text} ({message.location['url']})")

    def _asked(self, request: "Request") -> None:
        self.requests.append(request.url)

    def keep(self, name: str, **more: Any) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", timeout=PATIENCE, **more)


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    with browser() as opened:
        yield opened


@pytest.fixture
def window(chromium: "Browser", request: pytest.FixtureRequest) -> Iterator[Seen]:
    """A fresh one, as a person's who has never been here; `request.param` is its size."""
    width, height = getattr(request, "param", (1600, 1100))
    context = chromium.new_context(viewport={"width": width, "height": height})
    yield Seen(context.new_page())
    context.close()


# MLflow's pages


@dataclass(frozen=True)
class Served:
    """A study of ten trials on MLflow's server."""

    study: Study
    address: str
    experiment: str
    run: str

    @property
    def trials(self) -> list[Trial]:
        return read_trials(self.study)

    @property
    def pictured(self) -> int:
        """Trials that have ended and had weights to make a picture with."""
        return sum(trial.state != "running" and trial.objective is not None for trial in self.trials)

    def by_score(self) -> list[Trial]:
        """As MLflow orders them, which knows nothing of states; those without a score stand last."""
        return sorted(self.trials, key=lambda trial: (trial.objective is None, trial.objective))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    study = make_study(home, store, name="seen", budget={"trials": len(STATES), "epochs": 2})
    for number, (state, score) in enumerate(zip(STATES, SCORES, strict=True)):
        trial = add_trial(study, number, score, state, reason=REASONS.get(state, ""), cost=0.01 * number)
        TrialLog(study.folder).append(replace(trial, values={**trial.values, "model.tau_size": 2 + number % 3}))
        if score is not None:
            scores = [score + 0.02 * left for left in reversed(range(trial.epoch))]
            write_epochs(study.trial_folder(number), scores, **{"val/dice_match": 1 - score})
            write_samples(study.trial_folder(number), label=f"blobs: {LABEL}", epoch=trial.epoch, seed=number)
    with running(study):
        experiment, run = record(study, home, read_trials(study))
        with mlflow_pages(home, study.name) as address:
            yield Served(study, address, experiment, run)


def rows(page: "Page") -> list[dict[str, str]]:
    """The table of runs from top to bottom, {column: what stands there}."""
    page.locator(".ag-row a").first.wait_for()
    found: dict[int, dict[str, str]] = {}
    for index, column, text in page.eval_on_selector_all(".ag-row [col-id]", CELLS):
        found.setdefault(int(index), {})[column] = text
    return [found[index] for index in sorted(found)]


CELLS = """cells => cells.map(cell => {
    const link = cell.querySelector("a");
    const row = cell.closest(".ag-row").getAttribute("row-index");
    return [row, link ? "name" : cell.getAttribute("col-id"), (link ?? cell).innerText.trim()];
})"""
NAME, STATE = "name", "tags.`proseg.state`"
PICTURES = "img[src*='get-artifact']"


def check_quiet(seen: Seen, served: Served) -> None:
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith((served.address, "data:", "blob:"))] == []


def test_the_saved_view_opens_as_a_sorted_leaderboard_with_states_in_words(window: Seen, served: Served):
    window.page.goto(pages.view_page(served.address, served.experiment, served.study))
    window.page.get_by_text("matching runs").wait_for()
    shown = rows(window.page)
    window.keep("saved-view")
    order = served.by_score()
    assert [row[NAME] for row in shown] == [pages.run_name(trial) for trial in order]
    assert [row[STATE] for row in shown] == [trial.state for trial in order]
    assert shown[0]["metrics.`objective/ged`"].startswith("0.22")
    assert shown[0]["metrics.`objective/dice_match`"].startswith("0.78")
    assert {row["tags.`proseg.data_label`"] for row in shown} == {LABEL}
    assert window.page.get_by_text("stopped early", exact=True).first.is_visible()
    assert window.page.get_by_role("button", name=served.study.name).is_visible(), "the view bears the study's name"
    check_quiet(window, served)


@pytest.mark.parametrize("window", [(1800, 2800)], indirect=True)
def test_the_saved_view_has_its_charts(window: Seen, served: Served):
    page = window.page
    page.goto(pages.view_page(served.address, served.experiment, served.study, charts=True))
    for title in ("Parallel Coordinates", "objective/ged vs. objective/dice_match", "val/ged", "val/dice_match",
                  "train/loss", pages.SAMPLES, "By run"):  # fmt: skip
        page.locator(f'h4[title="{title}"]').first.wait_for(state="attached")
    page.locator(PICTURES).nth(served.pictured - 1).wait_for(state="attached")
    page.locator(".js-plotly-plot .main-svg .xtitle").nth(3).wait_for(state="attached")
    page.wait_for_timeout(2000)  # lines are drawn after their axes
    window.keep("saved-view-charts")
    assert page.locator("svg text.label").all_text_contents() == ["optim/log10_lr", "model/tau_size", "objective/ged"]
    loaded = page.eval_on_selector_all(PICTURES, "all => all.map(one => one.naturalWidth)")
    assert len(loaded) == served.pictured == 8
    assert min(loaded) > 0
    assert page.get_by_text(LABEL, exact=True).first.is_visible()
    assert [row[NAME] for row in rows(page)] == [pages.run_name(trial) for trial in served.by_score()]
    check_quiet(window, served)


@pytest.mark.parametrize("window", [(2000, 1200)], indirect=True)  # where it is narrower the description stands below
def test_the_studys_page_says_who_leads_without_a_click(window: Seen, served: Served):
    from playwright.sync_api import expect

    page = window.page
    page.goto(pages.run_page(served.address, served.experiment, served.run))
    first = page.locator("p", has_text=LABEL).first
    expect(first).to_be_in_viewport(timeout=PATIENCE)
    window.keep("study")
    leaders = ranked(served.trials, served.study.criterion)[: pages.LEADERS]
    assert [trial.state for trial in leaders] == ["complete"] * 4 + ["running"]
    text = first.inner_text()
    places = [text.index(f"{trial.name} {trial.objective:.4f} {trial.state}") for trial in leaders]
    assert places == sorted(places)
    check_quiet(window, served)


def test_the_studys_page_leads_to_its_best_trial_and_to_the_saved_view(window: Seen, served: Served):
    page = window.page
    page.goto(pages.run_page(served.address, served.experiment, served.run))
    page.get_by_text("Show more").first.click()
    assert page.get_by_text("failed: the loss is not finite | at step 7").is_visible()
    window.keep("study-unfolded")
    best = pages.run_name(served.by_score()[0])
    opened_by(page, best.split()[0]).get_by_text(best, exact=True).first.wait_for()
    view = opened_by(page, "Leaderboard")
    view.get_by_text("matching runs").wait_for()
    assert [row[STATE] for row in rows(view)] == [trial.state for trial in served.by_score()]
    check_quiet(window, served)


def opened_by(page: "Page", link: str) -> "Page":
    """The window that a link opens."""
    with page.expect_popup() as popup:
        page.get_by_role("link", name=link, exact=True).first.click()
    popup.value.set_default_timeout(PATIENCE)
    return popup.value


def test_where_views_are_not_known_the_filter_shows_the_same_order(window: Seen, served: Served):
    window.page.goto(pages.filter_page(served.address, served.experiment, served.study))
    window.page.get_by_text("matching runs").wait_for()
    shown = rows(window.page)
    window.keep("filter")
    assert [row[NAME] for row in shown] == [pages.run_name(trial) for trial in served.by_score()]
    check_quiet(window, served)


# The report

needs_report = pytest.mark.skipif(
    "report" not in {command.name or command.callback.__name__ for command in app.registered_commands
                     if command.callback is not None},
    reason="there is no command `report` yet",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that `proseg-tune report` writes."""
    folder = tmp_path_factory.mktemp("report") / "out"
    home = served.study.folder.parent.parent
    command = [sys.executable, "-m", "cli", "report", served.study.name, "--out", str(folder)]
    environment = os.environ | {"PROSEG_HOME": str(home)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    return folder / "index.html"


@needs_report
@pytest.mark.parametrize("window", [(1400, 900), (390, 844)], indirect=True, ids=["desk", "phone"])
def test_the_report_reads_at_a_desk_and_on_a_phone(window: Seen, report: Path, request: pytest.FixtureRequest):
    page = window.page
    page.goto(report.as_uri())
    window.keep(f"report-{request.node.callspec.id}", full_page=True)
    table = page.locator("table").first
    assert table.is_visible()
    assert {"complete", "stopped early"} <= set(table.locator("td").all_inner_texts())
    assert page.get_by_text(LABEL).first.is_visible()
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "the page itself is never wider than the window"
    assert window.errors == []
    assert [url for url in window.requests if not url.startswith(("file:", "data:"))] == []


@needs_report
def test_the_report_is_used_by_keyboard(window: Seen, report: Path):
    page = window.page
    page.goto(report.as_uri())
    tab_to(page, "table thead button")
    head = page.locator("th:has(button:focus)")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "one sees where one is"
    for direction in ("ascending", "descending"):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        names = column(page)
        assert names == sorted(names, reverse=direction == "descending")
        assert len(names) > 3


def tab_to(page: "Page", selector: str) -> None:
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no {selector} is reached by Tab")


def column(page: "Page") -> list[str]:
    """The cells below the head that has the focus."""
    return page.evaluate(
        "() => { const head = document.activeElement.closest('th');"
        " return [...head.closest('table').tBodies[0].rows].map(row => row.cells[head.cellIndex].innerText.trim()) }"
    )
