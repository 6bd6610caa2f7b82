"""Addresses of databases: what people write names the file that they mean, whatever its folder is called."""

from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from orchestrator import stores
from orchestrator.addresses import for_libraries, settled, sqlite_address, sqlite_file, with_file

NAMES = ("plain", "a b", "50%20off", "why?", "q?a=b", "no#1", "{x}", "Größe")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing may appear where the program happens to be started."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("options", ["", "timeout=30"])
@pytest.mark.parametrize("name", NAMES)
def test_libraries_open_the_file_that_is_meant(name: str, options: str, tmp_path: Path, elsewhere: Path):
    file = tmp_path / name / "x.db"
    file.parent.mkdir()
    address = for_libraries(sqlite_address(file, options))
    engine = create_engine(address)
    with engine.begin() as connection:
        connection.execute(text("create table t (a)"))
    engine.dispose()
    optuna.create_study(storage=address)._storage.remove_session()
    assert file.stat().st_size
    assert sqlite_file(address) == file
    assert settled(address) == sqlite_address(file, options)
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, file.parent])
    assert not any(elsewhere.iterdir())


def test_an_address_means_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "two words").mkdir()
    monkeypatch.chdir(tmp_path / "real")
    assert settled("sqlite:///x.db") == f"sqlite:///{tmp_path}/real/x.db"
    assert settled("sqlite:///../link/x.db") == f"sqlite:///{tmp_path}/real/x.db"
    assert settled(f"sqlite:///{tmp_path}/link/x.db") == f"sqlite:///{tmp_path}/real/x.db"
    assert settled("sqlite:///~/x.db?timeout=30") == f"sqlite:///{tmp_path}/x.db?timeout=30"
    assert settled(f"sqlite:///{tmp_path}/two%20words/x.db") == f"sqlite:///{tmp_path}/two words/x.db", "it was quoted"


@pytest.mark.parametrize(
    "address", ["postgresql+psycopg2://me@host/db", "http://[::1", "sqlite://", "sqlite:///:memory:", "nonsense", ""]
)
def test_what_is_no_file_stays_as_it_is(address: str):
    assert (settled(address), for_libraries(address), sqlite_file(address)) == (address, address, None)
    assert with_file(address, lambda file: file / "other") == address


@pytest.mark.parametrize("name", NAMES)
def test_another_file_takes_the_place_of_one(name: str, tmp_path: Path):
    address = sqlite_address(tmp_path / name / "x.db", "timeout=30")
    kept = with_file(address, lambda file: file.relative_to(tmp_path / name))
    assert kept == "sqlite:///x.db?timeout=30"
    assert with_file(kept, lambda file: tmp_path / name / file) == address


# MLflow's store


@pytest.mark.parametrize("name", ["plain", "a b%20c?d#e{f}"])
def test_the_store_of_a_workspace_lies_in_it(name: str, tmp_path: Path, elsewhere: Path):
    home = tmp_path / name
    stores.check_store(home)
    client = MlflowClient(stores.tracking_uri(home))
    folder = stores.artifact_folder(home)
    assert folder is not None
    run = client.create_run(client.create_experiment("x", artifact_location=folder.as_uri()))
    client.log_text(run.info.run_id, "told", "said.txt")
    assert (home / "mlflow" / "mlflow.db").stat().st_size
    assert (home / "mlflow" / "artifacts" / run.info.run_id / "artifacts" / "said.txt").read_text() == "told"
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, home])
    assert not any(elsewhere.iterdir())


@pytest.mark.parametrize("way", ["{home}", "{link}", "../home", "~/home"])
def test_the_own_store_is_known_by_any_path(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home, link = tmp_path / "home", tmp_path / "link"
    link.symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{way.format(home=home, link=link)}/mlflow/mlflow.db")
    assert stores.is_own(home)
    assert (stores.tracking_uri(home), stores.store_name(home)) == (stores.local_uri(home), "workspace")
    assert stores.artifact_folder(home) == home / "mlflow" / "artifacts"


def test_another_store_keeps_its_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///../team/runs.db")
    assert not stores.is_own(tmp_path / "home")
    assert stores.artifact_folder(tmp_path / "home") == tmp_path / "team" / "artifacts"
    assert stores.store_name(tmp_path / "home") == f"sqlite:///{tmp_path}/team/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert stores.artifact_folder(tmp_path / "home") is None
