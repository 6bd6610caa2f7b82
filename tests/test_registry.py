"""The winner in MLflow's registry: what a version holds, and who is champion; loaded and served for real."""

import ast
import json
import os
import pickletools
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import proseg
from cli.app import app
from orchestrator import registry, stores
from orchestrator.export import export
from orchestrator.registry import CHAMPION, DECISION, GOAL, MEASURED, VALUE, register, write_model
from orchestrator.server import SETTINGS, LocalServer
from orchestrator.shipper import sync
from orchestrator.study import Study, StudyError
from orchestrator.tracking import SpoolTracker
from proseg.data.store import Store
from tests.studies import LABEL, SIDE, add_trial, make_store, make_study, train_trial, tree

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose store all tests of this module share: it takes seconds to make one."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def store(home: Path) -> Store:
    return make_store(home / "blobs")


@pytest.fixture(scope="module")
def trained(home: Path, store: Store) -> Study:
    study = make_study(home, store, name="trained")
    train_trial(study)
    return study


@pytest.fixture(scope="module")
def exported(trained: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    export(trained, folder, remember=False)
    return folder


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


# What a version holds


@pytest.fixture(scope="module")
def written(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as MLflow's folder; an export that was made with graphs is none the larger."""
    source = shutil.copytree(exported, tmp_path_factory.mktemp("graphs") / "export")
    (source / "model.pt2").write_bytes(b"a graph")
    target = tmp_path_factory.mktemp("written") / "model"
    write_model(target, source)
    return target


def test_no_file_of_a_version_is_a_pickle(written: Path):
    for name, content in tree(written).items():
        assert Path(name).suffix in {".py", ".json", ".md", ".yaml", ".txt", ".parquet", ".safetensors", ""}, name
        assert not _is_pickle(content), name
        assert content[:2] not in (b"\x80\x02", b"PK"), name


def _is_pickle(content: bytes) -> bool:
    try:
        return bool(list(pickletools.genops(content)))
    except (ValueError, IndexError):
        return False


def test_a_version_is_small_and_whole(written: Path, exported: Path):
    files = tree(written)
    assert {name.removeprefix("data/export/") for name in files if name.startswith("data/")} == set(tree(exported))
    code = {name for name in files if name.startswith("code/")}
    assert {Path(name).suffix for name in code} == {".py"}, "no data set lies in it"
    assert sum(len(files[name]) for name in code) < 2**20


def test_a_version_tells_nothing_of_this_machine(written: Path, store: Store):
    everything = b"".join(tree(written).values())
    for place in (str(ROOT), str(written.parent), str(store.folder), "/tmp/proseg-"):
        assert place.encode() not in everything


@pytest.mark.slow
def test_what_must_be_installed_is_what_the_loader_imports(written: Path):
    """Of the modules that are loaded with it, as they are written, not only as far as one call comes."""
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
import proseg.served
print(json.dumps([m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "proseg"]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code, str(written / "code")], cwd=written, env=_alone(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    files = json.loads(answer.stdout)
    assert all(Path(file).is_relative_to(written) for file in files)
    imported = {name for file in files for name in _imports(Path(file))} - set(sys.stdlib_module_names) - {"proseg"}
    asked = [line.split("==")[0] for line in (written / "requirements.txt").read_text().splitlines()]
    assert imported | {"mlflow"} == set(asked)
    assert not [line for line in (written / "requirements.txt").read_text().splitlines() if "+" in line]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_the_files_of_a_project_that_we_are_started_in_stay_there(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("uv.lock", "pyproject.toml"):
        (tmp_path / name).write_text("[project]\nname = 'mine'\n")
    write_model(tmp_path / "model", exported)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "MLmodel", "code", "conda.yaml", "data", "python_env.yaml", "requirements.txt", "input_example.json",
        "serving_input_example.json",
    }  # fmt: skip


# Who is champion


def version(number: int, study: str = "a", **tags: str) -> Any:
    basis = {"proseg.study": study, MEASURED: "ged of fold 0", GOAL: "minimize", VALUE: "0.2"}
    return SimpleNamespace(version=number, run_id=f"run of {study}", tags=basis | tags)


def verdict(new: dict[str, str], old: dict[str, str], *, same_study: bool = False) -> tuple[bool, str]:
    return registry._verdict(version(2, "a" if same_study else "b", **new), version(1, **old))


def test_the_first_of_a_name_is_champion():
    assert registry._verdict(version(1), None) == (True, "there was no other champion")


@pytest.mark.parametrize(("goal", "value", "wins"), [
    ("minimize", "0.1", True), ("minimize", "0.3", False), ("maximize", "0.3", True), ("maximize", "0.1", False),
    ("minimize", "0.2", False), ("maximize", "nan", False),
])  # fmt: skip
def test_the_better_by_the_same_measure_is_champion(goal: str, value: str, wins: bool):
    won, reason = verdict({VALUE: value, GOAL: goal}, {GOAL: goal})
    assert won == wins
    assert f"{float(value):.4f} against 0.2000 of version 1, ged of fold 0" in reason


def test_a_later_winner_of_the_same_study_is_its_champion():
    assert verdict({VALUE: "0.3"}, {}, same_study=True) == (True, "it takes the place of version 1 of the same study")


@pytest.mark.parametrize("old", [{MEASURED: "ged of fold 1"}, {GOAL: "maximize"}])
def test_numbers_of_different_things_are_not_compared(old: dict[str, str]):
    won, reason = verdict({VALUE: "0.0001"}, old)
    assert not won
    assert "version 1 stays champion: the two cannot be compared" in reason


def test_a_champion_of_somebody_elses_making_is_left_alone():
    foreign: Any = SimpleNamespace(version=7, run_id="", tags={})
    won, reason = registry._verdict(version(8), foreign)
    assert not won
    assert "nothing that is known" in reason


def test_what_was_measured_names_all_that_two_numbers_must_share(trained: Study, exported: Path, store: Store):
    measured = registry._read(trained, "r", exported).tags[MEASURED]
    fingerprint = store.manifest.fingerprint[:12]
    assert measured == (
        f"ged of 2 samples, one a rater, of 16x16 pixels; validation patients of fold 0 of blobs {fingerprint}"
    )


def test_names_are_such_as_mlflow_takes(trained: Study):
    def of(name: str) -> str:
        return registry.model_name(
            trained.model_copy(update={"space": trained.space.model_copy(update={"name": name})})
        )

    assert of("npc") == "proseg-npc"
    assert of("a/b: c'").startswith("proseg-a-b-c-")
    assert of("größe") == of("gro\u0308ße") == "proseg-größe", "spelt in two ways that look the same"
    assert len({of(name) for name in ("a b", "a-b", "a/b", "測試", "画像", "/", ":")}) == 7, "different stay different"
    assert not any(sign in of(name) for name in ("a/b", ":", "c:/d") for sign in "/:")


# In a store


class Workshop:
    """Exports under a name of their own in the store of this module, and the runs they belong to."""

    def __init__(self, home: Path, study: Study, exported: Path, folder: Path):
        from mlflow import MlflowClient

        stores.check_store(home)
        self.client = MlflowClient(stores.local_uri(home))
        self.exported, self.folder, self.study = exported, folder, study
        self.name = f"proseg-{folder.name}"
        self.experiment = self.client.create_experiment(folder.name, artifact_location=(folder / "artifacts").as_uri())
        self.run("a")

    def run(self, study: str) -> None:
        """What follows belongs to a study of this name."""
        space = self.study.space.model_copy(update={"name": self.folder.name})
        self.study = self.study.model_copy(update={"name": study, "space": space})
        self.run_id = self.client.create_run(self.experiment).info.run_id

    def register(self, weights: str, value: float, **options: Any) -> registry.Registered:
        """An export with these weights, as far as a digest goes, and this value in the validation."""
        folder = self.folder / f"{weights}-{value}"
        if not folder.exists():
            shutil.copytree(self.exported, folder)
            (folder / WEIGHTS).write_bytes(weights.encode())
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics["validation"]["val/ged"] = value
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return register(self.client, self.run_id, self.study, folder, **options)

    def versions(self) -> dict[str, Any]:
        return {str(one.version): one for one in self.client.search_model_versions(f"name = '{self.name}'")}

    def champion(self) -> str:
        return str(self.client.get_registered_model(self.name).aliases[CHAMPION])


@pytest.fixture
def workshop(home: Path, trained: Study, exported: Path, tmp_path: Path) -> Workshop:
    return Workshop(home, trained, exported, tmp_path)


def test_a_winner_is_one_version_and_says_what_it_is(workshop: Workshop, store: Store):
    first = workshop.register("w", 0.25)
    assert (first.name, first.version, first.champion) == (workshop.name, "1", True)
    assert first.uri == f"models:/{workshop.name}@champion"
    assert workshop.register("w", 0.25) == first
    (one,) = workshop.versions().values()
    model = workshop.client.get_registered_model(workshop.name)
    for tags in (one.tags, model.tags):
        assert (tags["proseg.study"], tags["proseg.data_label"], tags[VALUE]) == ("a", LABEL, "0.25")
        assert (tags["proseg.data_digest"], tags["proseg.metric"]) == (store.manifest.fingerprint[:12], "ged")
    for text in (one.description, model.description):
        assert LABEL in text
        assert "0.2500" in text
    assert one.run_id == workshop.run_id
    (logged,) = workshop.client.search_logged_models([workshop.experiment])
    assert [output.model_id for output in workshop.client.get_run(workshop.run_id).outputs.model_outputs] == [
        logged.model_id
    ]
    assert json.loads(logged.tags["mlflow.modelVersions"])[0]["name"] == workshop.name


def test_the_champion_changes_for_the_better_only_and_says_why(workshop: Workshop):
    workshop.register("first", 0.25)
    workshop.run("b")
    worse = workshop.register("worse", 0.3)
    assert (worse.champion, worse.uri, workshop.champion()) == (False, f"models:/{workshop.name}/2", "1")
    workshop.run("c")
    better = workshop.register("better", 0.2)
    assert (better.champion, workshop.champion()) == (True, "3")
    assert workshop.client.get_registered_model(workshop.name).tags["proseg.study"] == "c"
    reasons = {number: one.tags[DECISION] for number, one in workshop.versions().items()}
    assert "there was no other" in reasons["1"]
    assert "version 1 stays champion: it is not better, 0.3000 against 0.2500" in reasons["2"]
    assert "it is better: 0.2000 against 0.2500 of version 1" in reasons["3"]


def test_what_a_person_asked_for_stays(workshop: Workshop):
    workshop.register("first", 0.2)
    first = workshop.run_id
    workshop.run("b")
    workshop.register("second", 0.3)
    assert workshop.register("second", 0.3, champion=True).reason == "it was asked for"
    assert workshop.champion() == "2"
    workshop.run_id = first
    again = workshop.register("first", 0.2)
    assert (again.version, again.champion, workshop.champion()) == ("1", False, "2")
    assert len(workshop.versions()) == 2


@pytest.mark.parametrize("step", [
    "log_model_artifacts", "finalize_logged_model", "create_model_version", "set_logged_model_tags",
    "set_registered_model_alias", "set_model_version_tag",
])  # fmt: skip
def test_after_a_failure_at_any_step_the_next_attempt_makes_it_whole(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, step: str
):
    from mlflow.entities import LoggedModelStatus

    workshop.register("first", 0.25)
    workshop.run("b")
    with monkeypatch.context() as broken:

        def fail(*args: Any, **options: Any) -> None:
            raise OSError("the server has gone")

        broken.setattr(workshop.client, step, fail)
        with pytest.raises(OSError, match="has gone"):
            workshop.register("better", 0.2)
    found = workshop.register("better", 0.2)
    assert (found.version, found.champion, workshop.champion()) == ("2", True, "2")
    assert DECISION in workshop.versions()["2"].tags
    models = workshop.client.search_logged_models([workshop.experiment], f"source_run_id = '{workshop.run_id}'")
    assert [model.status for model in models] == [LoggedModelStatus.READY]


@pytest.mark.parametrize("damage", ["model.safetensors", "data.json", "metrics.json", "config.json"])
def test_a_folder_that_is_no_export_is_refused_before_anything_is_made(
    workshop: Workshop, exported: Path, tmp_path: Path, damage: str
):
    folder = shutil.copytree(exported, tmp_path / "damaged")
    (folder / damage).unlink()
    with pytest.raises(StudyError, match=f"damaged is not a whole export of a: .*{damage}"):
        register(workshop.client, workshop.run_id, workshop.study, folder)
    (folder / damage).write_text("[]")
    if damage != "model.safetensors":
        with pytest.raises(StudyError, match="damaged is not a whole export"):
            register(workshop.client, workshop.run_id, workshop.study, folder)
    assert workshop.versions() == {}


# On request


def test_a_study_without_a_run_or_without_a_winner_is_one_sentence(home: Path, store: Store):
    study = make_study(home, store, name="unknown")
    with pytest.raises(StudyError, match="unknown has no run in MLflow; `proseg-tune sync unknown` makes it"):
        registry.promote(study, home)
    SpoolTracker(study)
    sync(study, home)
    with pytest.raises(StudyError, match="no finished trial"):
        registry.promote(study, home)
    add_trial(study, 0, 0.2)
    with pytest.raises(StudyError, match=r"the winner of unknown cannot be exported: .*best\.safetensors"):
        registry.promote(study, home)


def test_mlflow_that_refuses_is_one_sentence(trained: Study, home: Path, monkeypatch: pytest.MonkeyPatch):
    from mlflow.exceptions import MlflowException

    def fail(*args: Any, **options: Any) -> None:
        raise MlflowException("no space left\nand a traceback")

    monkeypatch.setattr(registry, "register_winner", fail)
    monkeypatch.setattr(registry, "_run_of", lambda *args: "a run")
    with pytest.raises(StudyError, match=r"^MLflow at workspace did not register the model: no space left$"):
        registry.promote(trained, home)


def test_the_command_registers_and_tells_where(trained: Study, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROSEG_HOME", str(home))
    SpoolTracker(trained)
    sync(trained, home)
    told = CliRunner().invoke(app, ["best", "trained", "--champion", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["registered"] == {
        "name": "proseg-test", "version": "1", "uri": "models:/proseg-test@champion",
    }  # fmt: skip
    told = CliRunner().invoke(app, ["best", "trained", "--champion"])
    assert told.stdout.splitlines()[-1] == "champion: models:/proseg-test@champion, version 1"
    assert json.loads(CliRunner().invoke(app, ["best", "trained", "--json"]).stdout)["export"] is None


# Loaded and served


def _alone(**changes: str) -> dict[str, str]:
    """The environment of somebody who has no code of ours: only what is installed."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "MLFLOW", "PROSEG"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **stores.DEFAULTS, "PATH": path, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", **changes}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _serving(command: list[str], cwd: Path, env: dict[str, str], port: int, path: str) -> Iterator[str]:
    """A server of our own until the end of the block; its address."""
    address = f"http://127.0.0.1:{port}"
    with (cwd / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            _await(server, address + path, cwd / "server.log")
            yield address
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def _await(server: subprocess.Popen, address: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError), urllib.request.urlopen(address, timeout=2):
            return
        time.sleep(0.3)
    raise AssertionError(f"no answer: {log.read_text(encoding='utf-8')}")


@contextmanager
def _shared(folder: Path) -> Iterator[str]:
    """The address of a server that keeps its artifacts to itself."""
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
               "--artifacts-destination", (folder / "artifacts").as_uri()]  # fmt: skip
    with _serving(command, folder, _alone(**SETTINGS), port, "/health") as address:
        yield address


@contextmanager
def _own(home: Path) -> Iterator[str]:
    """The address of the server that a study starts over the workspace's own store."""
    stores.check_store(home)
    server = LocalServer(home)
    try:
        while (address := server.address()) is None:
            time.sleep(0.3)
        yield address
    finally:
        server.stop()


LOAD = """
import sys
sys.meta_path = [one for one in sys.meta_path if "editable" not in getattr(one, "__module__", repr(one))]
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
import proseg
assert "/code/proseg/" in proseg.__file__, proseg.__file__
assert not [name for name in sys.modules if name.split(".")[0] in ("orchestrator", "cli", "ray", "optuna")]
found = model.predict(np.load("images.npy"), params={"samples": 3, "seed": 5, "outputs": ["raters", "samples"]})
np.savez("found.npz", **found)
"""


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    """Also in a file."""
    drawn = np.random.default_rng(0).uniform(-1000, 400, (2, 1, SIDE, SIDE)).astype(np.float32)
    np.save(tmp_path / "images.npy", drawn)
    return drawn


def _check_loaded(uri: str, images: np.ndarray, exported: Path, folder: Path) -> None:
    """A fresh process in a folder with nothing of ours, and the same answers as from the export."""
    env = _alone(MLFLOW_TRACKING_URI=uri)
    subprocess.run([sys.executable, "-c", LOAD, "models:/proseg-test@champion"], cwd=folder, env=env, check=True)
    expected = [proseg.load(exported).predict(image, samples=3, seed=5) for image in images]
    with np.load(folder / "found.npz") as found:
        np.testing.assert_allclose(found["raters"], [one.raters for one in expected], atol=1e-6)
        np.testing.assert_allclose(found["samples"], [one.samples for one in expected], atol=1e-6)


@pytest.mark.slow
def test_the_champion_on_a_shared_server_is_loaded_without_our_package(
    trained: Study, exported: Path, tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    with _shared(tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        SpoolTracker(trained)
        sync(trained, tmp_path)
        registered = registry.promote(trained, tmp_path)
        assert registered == registry.promote(trained, tmp_path)
        assert (registered.uri, registered.version) == ("models:/proseg-test@champion", "1")
        _check_loaded(uri, images, exported, tmp_path)


@pytest.mark.slow
def test_the_champion_of_the_workspace_is_loaded_and_served_without_our_package(
    trained: Study, exported: Path, tmp_path: Path, images: np.ndarray
):
    from mlflow import MlflowClient

    home = tmp_path / "home"
    home.mkdir()
    with _own(home) as address:
        SpoolTracker(trained)
        sync(trained, home)
        client = MlflowClient(address)
        registered = registry.register_winner(client, registry._run_of(client, trained), trained)
        assert (registered.uri, registered.reason) == ("models:/proseg-test@champion", "there was no other champion")
    uri, port = stores.local_uri(home), _free_port()
    _check_loaded(uri, images, exported, tmp_path)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", registered.uri, "--env-manager", "local",
               "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    expected = [proseg.load(exported).predict(image) for image in images]
    with _serving(command, tmp_path, _alone(MLFLOW_TRACKING_URI=uri), port, "/ping") as address:
        answer = _post(address, {"inputs": images.tolist(), "params": {"outputs": ["masks", "mean"]}})["predictions"]
        np.testing.assert_allclose(answer["mean"], [one.mean for one in expected], atol=1e-6)
        np.testing.assert_array_equal(answer["masks"], [one.raters > 0.5 for one in expected])
        refused = _post(address, {"inputs": images[:, 0].tolist()}, status=400)
        assert "does not match expected shape (-1, 1, -1, -1)" in refused["message"]
        refused = _post(address, {"inputs": images.tolist(), "params": {"samples": 0}}, status=400)
        assert "samples = 0 must be between 1 and 1000" in refused["stack_trace"]


def _post(address: str, body: dict[str, Any], *, status: int = 200) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/invocations", json.dumps(body).encode(), headers)
    try:
        answer = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        text = answer.read()
    assert answer.status == status, text
    return json.loads(text)
