"""Where MLflow keeps a study's runs: the workspace's own store, or wherever MLFLOW_TRACKING_URI points."""

import logging
import os
import re
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from filelock import FileLock

from orchestrator.addresses import for_libraries, settled, sqlite_address, sqlite_file
from orchestrator.study import StudyError
from orchestrator.surroundings import writable

OWN = "workspace"
"""What the workspace's own store is called in our files: its address is another one each time it is served."""
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}  # fmt: skip
"""The client's own defaults block for four minutes where nobody answers. Nor may it try again by itself: a server that
hung would make a run twice."""

SECONDS_TO_CONNECT = 10
"""To a database."""


PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("datasets", "dataset_source"),
          ("logged_models", "artifact_location"), ("model_versions", "source"),
          ("model_versions", "storage_location"))  # fmt: skip
"""Where MLflow's database keeps whole paths."""


def local_uri(home: Path) -> str:
    """The store in the workspace."""
    return for_libraries(sqlite_address(_own(home)))


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the store in the workspace, whose folder is made."""
    if is_own(home):
        (home / "mlflow").mkdir(parents=True, exist_ok=True)
        return local_uri(home)
    return for_libraries(os.environ["MLFLOW_TRACKING_URI"])


def is_own(home: Path) -> bool:
    """Whether runs are kept in the workspace's own store, by whatever path it is named."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    file = sqlite_file(named) if named else _own(home)
    return file is not None and file.resolve() == _own(home).resolve()


def artifact_folder(home: Path) -> Path | None:
    """Where the files of runs are kept: beside a SQLite store; None where a server decides."""
    if is_own(home):
        return own_artifacts(home)
    file = sqlite_file(os.environ["MLFLOW_TRACKING_URI"])
    return file and file.resolve().parent / "artifacts"


def own_artifacts(home: Path) -> Path:
    return _own(home).parent / "artifacts"


def _own(home: Path) -> Path:
    return home / "mlflow" / "mlflow.db"


def wants_server(home: Path) -> bool:
    """Whether a study serves its runs' pages: where nothing was said. An own store that is named in
    MLFLOW_TRACKING_URI is written to directly, which spares the half gigabyte that a server takes."""
    return is_own(home) and not os.environ.get("MLFLOW_TRACKING_URI")


def store_name(home: Path) -> str:
    """What a store is called in files, messages and logs: its address without a password."""
    return OWN if is_own(home) else without_password(settled(os.environ["MLFLOW_TRACKING_URI"]))


def without_password(uri: str) -> str:
    """An address that can be shown."""
    return re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1@", uri)


def local_lock(home: Path) -> AbstractContextManager:
    """Held by who makes or changes the workspace's own store; nothing where a server does its own locking."""
    return FileLock(home / "mlflow" / ".lock") if is_own(home) else nullcontext()


def check_store(home: Path) -> None:
    """Ask the store something, before anything is written.

    A fresh SQLite store is made here, under a lock: two processes that make it at the same time destroy it.

    Raises:
        StudyError: it cannot be used.
    """
    if is_own(home):
        _check_writable(home)
    quieten()
    try:
        with local_lock(home):
            from mlflow import MlflowClient

            MlflowClient(tracking_uri(home)).search_experiments(max_results=1)
            if is_own(home):
                _bring_along(home)
    except Exception as error:  # a driver that is not installed, a file that is no database: foreign code has no limit
        uri = without_password(tracking_uri(home))
        raise StudyError(f"MLflow at {uri} cannot be used: {_remedy(error, home)}") from None


def _bring_along(home: Path) -> None:
    """Tell the own store where its files lie, which it knows by whole paths, after the workspace was moved."""
    import sqlite3

    now, below = home.as_uri(), own_artifacts(home).relative_to(home).as_posix()
    with closing(sqlite3.connect(_own(home))) as database, database:
        found = database.execute("select artifact_location from experiments where artifact_location like 'file:%'")
        folders = {location.rpartition("/")[0] for (location,) in found}
        for before in {one.removesuffix(f"/{below}") for one in folders if one.endswith(f"/{below}")} - {now}:
            for table, column in PLACES:
                database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, len(before) + 1, f"{before}/"),
                )


def cannot_open(address: str) -> str:
    """Why a database cannot be opened; nothing where it can. A SQLite file is not made here."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import SQLAlchemyError

    waits = {} if address.startswith("sqlite") else {"connect_timeout": SECONDS_TO_CONNECT}
    if file := sqlite_file(address):
        there = file.exists()
        if not (os.access(file, os.W_OK) if there else file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            return f"{file} cannot be written"
        if not there:
            return ""
    try:
        engine = create_engine(for_libraries(address), connect_args=waits)
        try:
            inspect(engine).get_table_names()
        finally:
            engine.dispose()
    except ImportError as error:
        return f"the package {error.name} is not installed"
    except SQLAlchemyError as error:
        return first_line(error)
    return ""


def _check_writable(home: Path) -> None:
    database = _own(home)
    place = database if database.exists() and not os.access(database, os.W_OK) else database.parent
    if place == database or not writable(place):
        raise StudyError(
            f"{place} cannot be written, as MLflow's own store has to be even for its pages to be shown: copy the "
            "workspace to where you may write, and name the copy in PROSEG_HOME"
        )


def _remedy(error: Exception, home: Path) -> str:
    """What is wrong, and what to do."""
    text = str(error)
    if is_own(home):
        return f"{first_line(error)}; `proseg-tune doctor` tells what mends it"
    if "error code 401" in text:
        return ("it wants a user and a password, or others; give them in MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or change MLFLOW_TRACKING_URI")  # fmt: skip
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ("its certificate is not trusted on this machine; name the file of who signed it in "
                "MLFLOW_TRACKING_SERVER_CERT_PATH, or change MLFLOW_TRACKING_URI")  # fmt: skip
    return f"{first_line(error)}; mend MLFLOW_TRACKING_URI, or unset it to use the workspace's own store"


def quieten() -> None:
    """MLflow's telemetry off, its waits short and its log at warnings, unless the user has set it otherwise."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401, now: importing it sets its log to INFO

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def first_line(error: Exception) -> str:
    """What an error says, in short; a password in an address is left out."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return without_password(text)[:200]
