"""What is decided before a study runs: what is tried first, what it may cost, how it goes on. Nothing is started."""

import errno
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from orchestrator import earlier, launch
from orchestrator.confirm import read_verdict
from orchestrator.control import Stopped, request_stop, stop_requested
from orchestrator.follow import stage_of
from orchestrator.launch import Options, conclude, create, first_points, plan, resumed, told_first
from orchestrator.resources import Node, ResourceError
from orchestrator.results import Trial, read_results, read_trials
from orchestrator.spool import SPOOL, Spool
from orchestrator.study import (
    Study,
    StudyError,
    StudyFailed,
    alone,
    base_config,
    read_state,
    read_study,
    reason_of,
    write_state,
)
from orchestrator.tracking import SpoolTracker
from proseg.data.store import Store
from proseg.errors import DataError
from search_spaces import find_space
from search_spaces.space import SpaceError
from tests.studies import add_trial, confirm, make_space, make_store, make_study, probe_of, score_fold

ONE = [Node(cpus=8, gpus=0)]
GPUS = [Node(cpus=8, gpus=2)]


@pytest.fixture(autouse=True)
def neither_a_probe_nor_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "probe", probe_of)
    monkeypatch.setattr(launch, "check_store", lambda home: None)


@pytest.fixture
def planned(tmp_path: Path, store: Store) -> Callable[..., Study]:
    """Plans a study; `asked` are options, changes those of the space."""

    def make(asked: dict[str, Any] | None = None, *, nodes: list[Node] = ONE, **changes: Any) -> Study:
        return plan(make_space(str(store.folder), **changes), Options(**asked or {}), tmp_path, nodes=nodes)

    return make


def of(*values: float, key: str = "optim.lr") -> list[dict[str, Any]]:
    return [{key: value} for value in values]


# What is tried first


@pytest.mark.parametrize("name", ["demo", "lidc", "npc"])
def test_the_papers_configuration_comes_first_as_near_as_the_space_comes(name: str):
    space = find_space(name)
    (paper,) = first_points(space, base_config(space, epochs=1, seed=0))
    assert set(paper.values) == set(space.search)
    assert all(space.search[key].admits(value) for key, value in paper.values.items())
    assert (paper.values["model.tau_size"], paper.values["model.concentration"]) == (8, 1.0), "as in the paper"
    assert paper.values["loss.w_es"] == 0.1, "as near as it comes to none"
    assert paper.origin.startswith("the paper (")
    assert "loss.w_es 0.0 -> 0.1" in paper.origin
    assert "tau_size" not in paper.origin


def test_noise_in_every_pixel_is_the_finest_grid():
    space = find_space("demo")
    (paper,) = first_points(space, base_config(space, epochs=1, seed=0))
    assert paper.values["model.z_grid"] == 32
    assert "model.z_grid 64 -> 32" in paper.origin


def test_a_space_that_holds_the_papers_values_needs_no_note(planned):
    search = {"optim.lr": {"kind": "float", "low": 1e-5, "high": 1e-2, "log": True}}
    assert [(point.values, point.origin) for point in planned(search=search).points] == [
        ({"optim.lr": 0.0001}, "the paper")
    ]


def test_then_come_the_points_of_the_space_then_the_best_of_an_earlier_study(planned, tmp_path: Path, store: Store):
    earlier = make_study(tmp_path, store, name="earlier")
    for number, objective in enumerate([0.5, 0.3, 0.4]):
        add_trial(earlier, number, objective)
    study = planned({"start_from": "earlier"}, points_to_try=of(0.002, 0.003))
    assert [point.origin.split(" (")[0] for point in study.points] == [
        "the paper", "the space", "the space", "earlier t001", "earlier t002", "earlier t000",
    ]  # fmt: skip
    assert [point.values.get("optim.lr") for point in study.points[1:]] == [0.002, 0.003, 0.002, 0.003, 0.001]


def test_of_an_earlier_study_only_complete_trials_and_admitted_values_are_taken_over(
    planned, tmp_path: Path, store: Store
):
    earlier = make_study(tmp_path, store, name="earlier")
    for number in range(9):
        add_trial(earlier, number, 0.1 * (9 - number))
    add_trial(earlier, 9, 0.01, "stopped early")
    add_trial(earlier, 10, None, "failed")
    search = {
        "optim.lr": {"kind": "float", "low": 0.001, "high": 0.0075},
        "loss.beta_z": {"kind": "fixed", "value": 1.0},
    }
    points = planned({"start_from": "earlier"}, search=search).points[1:]
    assert [(point.origin, point.values) for point in points] == [
        ("earlier t006", {"optim.lr": 0.007}), ("earlier t005", {"optim.lr": 0.006}),
        ("earlier t004", {"optim.lr": 0.005}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("trials", "changes", "words"),
    [
        ([], {}, "--from earlier has no complete trial with a value that test.toml admits"),
        ([0.5], {"search": {"loss.beta_z": {"kind": "float", "low": 0.1, "high": 1.0}}}, "has no complete trial"),
        ([0.5], {"objective": {"metric": "dice_mean"}}, "--from earlier searched for ged, this space for dice_mean"),
    ],
)
def test_an_earlier_study_that_says_nothing_here_is_refused(
    planned, tmp_path: Path, store: Store, trials: list[float], changes: dict[str, Any], words: str
):
    earlier = make_study(tmp_path, store, name="earlier")
    for number, objective in enumerate(trials):
        add_trial(earlier, number, objective)
    with pytest.raises(StudyError, match=words):
        planned({"start_from": "earlier"}, **changes)


def test_an_earlier_study_that_is_not_there_lists_those_that_are(planned, tmp_path: Path, store: Store):
    make_study(tmp_path, store, name="other")
    with pytest.raises(StudyError, match=r"no study 'earlier'.*there are other"):
        planned({"start_from": "earlier"})


# What the options say instead of the space


def test_options_take_the_place_of_the_spaces_own(planned, store: Store):
    asked = {"sampler": "qmc", "confirm": 5, "trials": 7, "epochs": 3, "seed": 4, "storage": "sqlite:///there.db",
             "epoch_timeout": 30.0, "max_time": 7200.0, "budget": (2.0, "cpuh")}  # fmt: skip
    study = planned(asked, confirm={"top": 2, "repeats": 1})
    assert (study.space.sampler, study.space.confirm.top, study.space.confirm.repeats) == ("qmc", 5, 1)
    assert (study.trials, study.base.epochs, study.seed, study.base.seed) == (7, 3, 4, 4)
    assert (study.storage, study.epoch_timeout) == (f"sqlite:///{Path.cwd()}/there.db", 30.0), "the same from anywhere"
    assert (study.max_time, study.budget) == (7200.0, 2.0)


def test_the_space_stands_where_nothing_is_said(planned):
    study = planned(sampler="random")
    assert (study.space.sampler, study.space.confirm.top) == ("random", 3)
    assert (study.max_time, study.budget, study.storage) == (None, None, None)
    assert study.epoch_timeout == 600, "at least ten minutes"


def test_a_slow_epoch_is_not_taken_for_one_that_hangs(planned, monkeypatch: pytest.MonkeyPatch):
    def slow(study: Study, **how: Any) -> Any:
        found = probe_of(study)
        return replace(found, search=replace(found.search, epoch=100.0))

    monkeypatch.setattr(launch, "probe", slow)
    assert planned().epoch_timeout == 2000


def test_a_grid_that_would_never_be_trained_is_refused(planned):
    search = {f"loss.{name}": {"kind": "float", "low": 0.1, "high": 1.0, "grid": 50}
              for name in ("beta_z", "beta_tau", "w_es", "w_rec")}  # fmt: skip
    assert planned(search=search).space.sampler == "tpe"
    with pytest.raises(SpaceError, match="more than 100000 points"):
        planned({"sampler": "grid"}, search=search)


def test_a_batch_that_ranks_cannot_share_is_refused(planned):
    with pytest.raises(SpaceError, match="batch_size = 4 cannot be shared equally by --workers 3"):
        planned({"workers": 3})


# The machine, as it was measured


def measured(**changes: Any) -> Callable[..., Any]:
    return lambda study, **how: probe_of(study, **changes)


def test_memory_decides_how_many_trials_run_at_a_time(planned, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "probe", measured(memory=2**30, room=4 * 2**30))
    assert planned({"trials": 9}).resources.concurrent == 2
    assert planned({"trials": 9, "concurrent": 5}).resources.concurrent == 5, "what is asked for stands"


def test_the_probe_decides_the_share_of_a_gpu(planned, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "probe", measured(memory=30 * 2**30, room=80 * 2**30, gpu=True))
    study = planned({"trials": 9}, nodes=GPUS)
    assert (study.resources.gpu_share, study.resources.concurrent) == (0.5, 4)
    assert (study.quote.unit, study.quote.rate) == ("GPU-hours", 2)  # type: ignore[union-attr]
    asked = planned({"trials": 9, "gpu_share": 1.0}, nodes=GPUS)
    assert (asked.resources.gpu_share, asked.resources.concurrent) == (1.0, 2)


@pytest.mark.parametrize(("nodes", "remotely"), [(None, False), (ONE, True)])
def test_the_probe_runs_where_the_trials_will(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, nodes: list[Node] | None, remotely: bool
):
    asked = []

    def probed(study: Study, *, remotely: bool, meanwhile: Any) -> Any:
        asked.append(remotely)
        return probe_of(study)

    monkeypatch.setattr(launch, "probe", probed)
    plan(make_space(str(store.folder)), Options(), tmp_path, nodes=nodes)
    assert asked == [remotely]


# What does not suffice


def test_a_budget_is_counted_in_what_there_is(planned):
    assert planned({"budget": (3.0, "gpuh")}, nodes=GPUS).budget == 3.0
    with pytest.raises(StudyError, match="counted in gpuh here, as there are GPUs: write 3gpuh"):
        planned({"budget": (3.0, "cpuh")}, nodes=GPUS)
    with pytest.raises(StudyError, match=r"counted in cpuh here, as there are no GPUs: write 0[.]5cpuh"):
        planned({"budget": (0.5, "gpuh")})


FINAL_SECONDS = 4 * (3 * 10 + 5) + 2 * 1 * 2 * 10
"""Of the final stage and the confirmation below, one trial at a time."""


@pytest.mark.parametrize(
    ("limit", "enough"),
    [
        ({"max_time": FINAL_SECONDS}, False),
        ({"max_time": FINAL_SECONDS + 1}, True),
        ({"budget": (8 * FINAL_SECONDS / 3600, "cpuh")}, False),
        ({"budget": (8 * FINAL_SECONDS / 3600 + 0.01, "cpuh")}, True),
        ({"max_time": 1, "final": False}, True),
        ({"budget": (0.01, "cpuh"), "final": False}, True),
    ],
)
def test_time_and_budget_must_leave_something_for_the_search(planned, store: Store, limit: dict, enough: bool):
    changes = {"final": [{"data": str(store.folder), "epochs": 3}], "confirm": {"top": 2, "repeats": 1}}
    asked = {"concurrent": 1, **limit}
    if enough:
        assert planned(asked, **changes).quote is not None
        return
    with pytest.raises(StudyError, match=r"is less than confirmation and final stage take .*--no-final"):
        planned(asked, **changes)


def test_a_disk_that_is_too_small_is_refused(planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "probe", measured(weights=2**60))
    with pytest.raises(StudyError, match=r"the study may need .* GiB in .*, where .* GiB are free.*PROSEG_HOME"):
        planned()


def test_a_part_of_the_final_stage_that_is_missing_is_told(planned, store: Store):
    study = planned(final=[{"data": str(store.folder), "epochs": 1}, {"data": "npc", "epochs": 1}])
    (told,) = told_first(study)
    assert told.startswith("the final stage leaves out npc: ")


def test_an_objective_that_is_undefined_where_it_decides_is_refused(planned, tmp_path: Path, store: Store):
    validated = make_store(tmp_path / "validated", without=store.manifest.folds[0].val)
    with pytest.raises(SpaceError, match=r"objective.metric = 'dice_a2' is undefined on the validation part of fold 0"):
        planned({"data": str(validated.folder)}, objective={"metric": "dice_a2"})
    tested = make_store(tmp_path / "other", without=store.manifest.folds[1].val)
    final = [{"data": str(tested.folder), "epochs": 1}]
    (told,) = told_first(planned({"data": str(tested.folder)}, objective={"metric": "dice_a2"}, final=final))
    assert told.startswith("in the final stage the epoch of fold 1 of blobs is chosen by dice_mean: dice_a2 is undef")


@pytest.mark.parametrize(("sampler", "trials", "told"), [
    ("tpe", 40, "the 10 trials are all configurations that the space has, each tried once"),
    ("grid", 40, "the 6 trials are all configurations that the space has, each tried once"),
    ("grid", 4, "4 of the 6 configurations of the grid are tried; --trials 6 tries all"),
    ("tpe", 9, ""),
])  # fmt: skip
def test_a_space_that_has_fewer_configurations_than_trials_is_told(planned, sampler: str, trials: int, told: str):
    search = {
        "optim.name": {"kind": "choice", "values": ["adam", "adamw"]},
        "batch_size": {"kind": "int", "low": 2, "high": 6, "grid": 3},
    }
    study = planned({"trials": trials}, sampler=sampler, search=search)
    assert told_first(study) == [told][: bool(told)]
    assert study.trials == (int(told.split()[1]) if told.startswith("the") else trials)


# A study that goes on


@pytest.fixture
def begun(planned, tmp_path: Path) -> Study:
    return create(planned({"concurrent": 4, "max_time": 100.0, "budget": (9.0, "cpuh")}), tmp_path, "s1", 1.0)


def test_a_study_goes_on_as_it_was(begun: Study, tmp_path: Path):
    again = resumed(begun, tmp_path, Options(), ONE)
    assert again == begun == read_study(begun.folder)


def test_what_is_said_now_takes_the_place_of_what_was_said_then(begun: Study, tmp_path: Path):
    asked = Options(concurrent=2, max_time=5.0, budget=(1.0, "cpuh"))
    again = resumed(begun, tmp_path, asked, ONE)
    assert (again.resources.concurrent, again.max_time, again.budget) == (2, 5.0, 1.0)
    assert read_study(begun.folder) == again, "every process of the study reads it from there"
    same = {"resources", "max_time", "budget"}
    assert again.model_dump(exclude=same) == begun.model_dump(exclude=same)


@pytest.mark.parametrize(("cpus", "concurrent", "threads"), [(3, 3, 1), (1, 1, 1), (8, 4, 2), (64, 4, 16)])
def test_a_smaller_machine_runs_fewer_at_a_time_and_a_larger_one_no_more(
    begun: Study, tmp_path: Path, cpus: int, concurrent: int, threads: int
):
    again = resumed(begun, tmp_path, Options(), [Node(cpus=cpus, gpus=0)])
    assert (again.resources.concurrent, again.resources.threads_per_rank) == (concurrent, threads)
    assert again.resources.nodes == (Node(cpus=cpus, gpus=0),)


def test_a_share_of_a_gpu_is_kept(planned, tmp_path: Path):
    study = create(planned({"gpu_share": 0.5, "trials": 9}, nodes=GPUS), tmp_path, "s1", 1.0)
    again = resumed(study, tmp_path, Options(), [Node(cpus=8, gpus=1)])
    assert (again.resources.gpu_share, again.resources.concurrent) == (0.5, 2)
    other = resumed(study, tmp_path, Options(gpu_share=1.0), GPUS)
    assert (other.resources.gpu_share, other.resources.concurrent) == (1.0, 2)


def test_a_machine_that_is_too_small_is_refused_and_nothing_is_written(planned, tmp_path: Path):
    study = create(planned({"workers": 4}), tmp_path, "s1", 1.0)
    before = (study.folder / "study.json").read_bytes()
    with pytest.raises(ResourceError, match="--workers 4 needs as many CPU cores, there are 2"):
        resumed(study, tmp_path, Options(), [Node(cpus=2, gpus=0)])
    assert (study.folder / "study.json").read_bytes() == before


def test_data_that_have_changed_are_refused(begun: Study, tmp_path: Path, store: Store):
    other = begun.model_copy(update={"data": begun.data.model_copy(update={"fingerprint": "0" * 64})})
    with pytest.raises(DataError, match="no longer holds the data that blobs was, its fingerprint has changed"):
        resumed(other, tmp_path, Options(), ONE)


def test_a_budget_of_another_kind_is_refused(begun: Study, tmp_path: Path):
    with pytest.raises(StudyError, match="write 2cpuh"):
        resumed(begun, tmp_path, Options(budget=(2.0, "gpuh")), ONE)


# How a study is run: its state and its folder say how it ended, whatever happens


class Deaf:
    """A tracker and a watcher that take everything."""

    def __init__(self, *_: Any):
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.heard.append((name, *arguments))


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Deaf:
    @contextmanager
    def keeper(*_: Any, **__: Any):
        yield None

    found = Deaf()
    monkeypatch.setattr(launch, "SpoolTracker", lambda *_, **__: found)
    monkeypatch.setattr("orchestrator.shipper.Shipper", Deaf)
    monkeypatch.setattr("orchestrator.session.keeper", keeper)
    monkeypatch.setattr("proseg.data.quality.report", brief_report)
    return found


def brief_report(store: Store, folder: Path) -> Path:
    """In the place of one with pictures, which take their time."""
    folder.mkdir()
    (folder / "report.md").write_text(store.manifest.name)
    return folder / "report.md"


def searching(monkeypatch: pytest.MonkeyPatch, search: Callable[[Study], Trial]) -> None:
    monkeypatch.setattr("orchestrator.search.run_search", lambda study, *_, **__: search(study))


def test_a_study_that_was_asked_to_stop_before_is_not_stopped_now(
    begun: Study, tmp_path: Path, tracker: Deaf, monkeypatch: pytest.MonkeyPatch
):
    def search(study: Study) -> Trial:
        assert not stop_requested(study.folder)
        assert read_state(study) == "running"
        with pytest.raises(StudyError, match="is running already"), alone(study):
            pass
        return add_trial(study, 0, 0.5)

    request_stop(begun.folder)
    searching(monkeypatch, search)
    launch.run(begun, tmp_path, Deaf())  # type: ignore[arg-type]
    assert read_state(begun) == "finished"
    assert [name for name, *_ in tracker.heard] == ["data_report", "winner", "study_ended"]
    with alone(begun):
        pass  # it has let go


@pytest.mark.parametrize(
    ("error", "state"),
    [(Stopped(), "interrupted"), (KeyboardInterrupt(), "interrupted"), (StudyFailed("all failed"), "failed"),
     (ZeroDivisionError(), "failed")],
)  # fmt: skip
def test_a_study_says_how_it_ended_and_leaves_no_trial_running(
    begun: Study, tmp_path: Path, tracker: Deaf, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str
):
    def search(study: Study) -> Trial:
        add_trial(study, 0, 0.5)
        add_trial(study, 1, None, "running", epoch=0)
        raise error

    searching(monkeypatch, search)
    with pytest.raises(type(error)):
        launch.run(begun, tmp_path, Deaf())  # type: ignore[arg-type]
    assert read_state(begun) == state
    assert [trial.state for trial in read_trials(begun)] == ["complete", "interrupted"]
    assert [name for name, *_ in tracker.heard] == ["data_report", "trial_ended", "study_ended"]
    assert tracker.heard[-1][1] == state


def test_the_report_on_the_data_is_made_once_and_copied_into_each_study(
    planned, tmp_path: Path, tracker: Deaf, monkeypatch: pytest.MonkeyPatch
):
    searching(monkeypatch, lambda study: add_trial(study, 0, 0.5))
    for name in ("s1", "s2"):
        study = create(planned(), tmp_path, name, 1.0)
        launch.run(study, tmp_path, Deaf())  # type: ignore[arg-type]
        monkeypatch.setattr("proseg.data.quality.report", lambda *_: pytest.fail("it was made twice"))
        assert ("data_report", study.folder / "data") in tracker.heard
        assert (study.folder / "data" / "report.md").read_text() == "blobs"


def test_a_full_disk_delays_the_report_on_the_data(
    begun: Study, tmp_path: Path, tracker: Deaf, monkeypatch: pytest.MonkeyPatch
):
    attempts = []

    def twice_full(store: Store, folder: Path) -> Path:
        attempts.append(folder)
        if len(attempts) < 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return brief_report(store, folder)

    monkeypatch.setattr("orchestrator.disk.SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr("proseg.data.quality.report", twice_full)
    searching(monkeypatch, lambda study: add_trial(study, 0, 0.5))
    watcher = Deaf()
    launch.run(begun, tmp_path, watcher)  # type: ignore[arg-type]
    assert len(attempts) == 3
    assert len([text for name, text in watcher.heard if name == "note" and "no space left" in text]) == 1
    assert read_state(begun) == "finished"


@pytest.mark.parametrize("options", [Options(trials=9), Options(max_time=3600.0)])
def test_the_search_of_a_finished_study_goes_on_if_it_is_given_more(tmp_path: Path, store: Store, options: Options):
    final = [{"data": str(store.folder), "epochs": 1}]
    study = make_study(tmp_path, store, final=final)
    add_trial(study, 0, 0.5)
    add_trial(study, 1, 0.4)
    confirm(study, leader=1, chosen=0)
    score_fold(study, 0, {"ged": 0.3})
    fold = study.final_folder("blobs", 0)
    planned = study.config_of(read_trials(study)[0].values).with_values({"epochs": 1})
    (fold / "config.json").write_text(planned.model_dump_json())
    again = resumed(study, tmp_path, options, ONE)
    assert (read_state(study), again.trials, stage_of(again)) == ("interrupted", options.trials or 4, "search")
    assert read_verdict(again) is None
    assert read_results(again) == []
    assert "another configuration wins than before" in earlier.take_up(again, read_trials(study)[1].values)
    assert "taken up again" in earlier.take_up(again, read_trials(study)[0].values)
    assert len(read_results(again)) == 1
    assert earlier.take_up(again, read_trials(study)[1].values) == "", "a study that goes on within its final stage"


def test_the_end_of_a_study_whose_process_died_is_written_down_once(tmp_path: Path, store: Store):
    study = make_study(tmp_path, store)
    add_trial(study, 0, 0.5)
    add_trial(study, 1, 0.4, "running")
    SpoolTracker(study).trial_started(Trial(1, {"optim.lr": 0.002, "model.tau_size": 2}))
    write_state(study, "running")
    conclude(study)
    assert read_state(study) == "interrupted"
    assert [trial.state for trial in read_trials(study)] == ["complete", "interrupted"]
    ended = {r["key"]: r["status"] for r in Spool(study.folder).records() if r["op"] == "status"}
    assert ended == {"t000": "FINISHED", "t001": "KILLED", "study": "KILLED"}
    written = (study.folder / SPOOL).read_bytes()
    conclude(study)
    assert (study.folder / SPOOL).read_bytes() == written


def test_a_study_that_failed_says_why(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    study = make_study(tmp_path, store)
    monkeypatch.setattr(launch.session, "keeper", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no room")))
    with pytest.raises(RuntimeError):
        launch._all_stages(study, tmp_path, SpoolTracker(study), Mock(), address=None, verbose=False)
    assert (read_state(study), reason_of(study)) == ("failed", "RuntimeError: no room")
