"""Ray and MLflow: whether they can be reached, and whether something stands in their way."""

import contextlib
import os
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path

import psutil

from orchestrator.addresses import for_libraries, sqlite_address, sqlite_file
from orchestrator.doctor.findings import Finding, ok, problem, unchecked, warning
from orchestrator.stores import first_line, quieten, without_password

SECONDS = 3.0
"""That a server has to answer."""
CLOCK_SECONDS = 60.0
"""By which two clocks may differ: points of curves are dated by the machine that measured them."""
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
"""What needs a user's rights."""
RAY_SECONDS = 120.0
LOOPBACK = "127.0.0.1"
UI_PORT = 5000
PACKAGES = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""That hold a database's driver, where their name is another."""
RAYS = ("raylet", "gcs_server")
START_RAY = """
from orchestrator.session import environment
environment(local=True, verbose=False)
import ray
ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=128 * 2**20)
assert ray.get(ray.remote(lambda: "well").remote()) == "well"
ray.shutdown()
"""


# --- MLflow -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Of a server to one request."""

    status: int = 0
    """0: none came."""
    error: str = ""
    """Why none came."""
    date: float | None = None
    """The server's clock, seconds since the epoch."""
    unasked: str = ""
    """Why it could not even be asked."""


def ask(uri: str) -> Answer:
    """One request of MLflow's own client, which knows where names, passwords and certificates lie: seconds at most."""
    try:
        quieten()
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of certificates, which the user does not want looked at
            reply = http_request(get_default_host_creds(uri), SEARCH, "GET", max_retries=0, timeout=SECONDS,
                                 raise_on_status=False)  # fmt: skip
    except ImportError as error:
        return Answer(unasked=first_line(error))
    except Exception as error:  # MLflow's own, of requests, of plug-ins that sign requests: foreign code has no limit
        return Answer(error=_reason(error))
    assert reply is not None, "only what asks Databricks may come back without an answer"
    return Answer(reply.status_code, date=_date(reply.headers))


def _reason(error: Exception) -> str:
    """What began it: who passes it on repeats the whole address, and more."""
    while isinstance(earlier := error.__cause__ or error.__context__, Exception):
        error = earlier
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def _date(headers: Mapping[str, str]) -> float | None:
    """The clock of a server, where it tells it."""
    text = headers.get("Date")
    return parsedate_to_datetime(text).timestamp() if text else None


def tracking(uri: str | None, home: Path) -> list[Finding]:
    """Whether the store that MLflow's client would use is there and usable."""
    if not uri:
        return [store(home / "mlflow" / "mlflow.db", schema_known())]
    try:
        parts = urllib.parse.urlsplit(uri)
        _ = parts.port  # is looked at only now
    except ValueError:  # its words may hold half of a password
        return [problem("MLflow", "MLFLOW_TRACKING_URI is no address: its host or port cannot be read",
                        "export MLFLOW_TRACKING_URI=http://HOST:5000    # an IPv6 address stands in [ ]")]  # fmt: skip
    if parts.scheme in ("http", "https"):
        shown, answer = without_password(uri), ask(uri)
        return [server(shown, answer), *clock(shown, answer, time.time())]
    if file := sqlite_file(uri):
        return [store(file, schema_known())]
    if "sql" in parts.scheme:
        return [database(uri, reach)]
    return [other(uri, parts.scheme)]


def server(uri: str, answer: Answer) -> Finding:
    """Args: the answer to a request that needs a user's rights."""
    if answer.unasked:
        return unchecked("MLflow", f"{uri} was not asked, MLflow's client cannot be imported: {answer.unasked}")
    if "CERTIFICATE_VERIFY_FAILED" in answer.error:
        return problem("MLflow", f"the certificate of {uri} is not trusted here: {answer.error}",
                       "export MLFLOW_TRACKING_SERVER_CERT_PATH=...    # the file of who signed it")  # fmt: skip
    if answer.error:
        fix = "unset MLFLOW_TRACKING_URI    # to use the workspace's own store; or start that server"
        return problem("MLflow", f"MLFLOW_TRACKING_URI={uri} does not answer: {answer.error}", fix)
    if answer.status == 401:
        return problem("MLflow", f"{uri} does not let this user in",
                       "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=...")  # fmt: skip
    if answer.status == 403:
        host = urllib.parse.urlsplit(uri).hostname
        return problem("MLflow", f"{uri} refuses: either this user may not, or it does not know the name {host}",
                       f"mlflow server --allowed-hosts {host} ...    # where it runs")  # fmt: skip
    if answer.status != 200:
        return problem("MLflow", f"{uri} answers with {answer.status}: no MLflow, or one that is ill",
                       f"curl -i {uri.rstrip('/')}/health")  # fmt: skip
    return ok("MLflow", f"{uri} answers")


def clock(uri: str, answer: Answer, now: float) -> list[Finding]:
    """Nothing where the server does not tell its time."""
    if answer.date is None:
        return []
    apart = abs(answer.date - now)
    if apart > CLOCK_SECONDS:
        return [warning("clock", f"this machine's clock and that of {uri} are {apart:.0f} s apart",
                        "sudo timedatectl set-ntp true")]  # fmt: skip
    return [ok("clock", f"within {apart + 1:.0f} s of that of {uri}")]


def database(uri: str, reachable: "Reach") -> Finding:
    """A database that is used without a server, by the driver alone."""
    parts = urllib.parse.urlsplit(uri)
    driver = {"postgresql": "psycopg", "mysql": "MySQLdb"}.get(parts.scheme, parts.scheme.partition("+")[2])
    if driver and find_spec(driver) is None:
        return problem("MLflow", f"MLFLOW_TRACKING_URI needs the package {driver}, which is not installed",
                       f"{sys.executable} -m pip install {PACKAGES.get(driver, driver)}")  # fmt: skip
    host, port = parts.hostname or "localhost", parts.port or (3306 if "mysql" in parts.scheme else 5432)
    if why := reachable(host, port):
        return problem("MLflow", f"the database at {host}:{port} (MLFLOW_TRACKING_URI) cannot be reached: {why}",
                       f"pg_isready -h {host} -p {port}")  # fmt: skip
    return ok("MLflow", f"the database at {host}:{port} can be reached")


def other(uri: str, scheme: str) -> Finding:
    if scheme in ("", "file") and not uri.startswith("databricks"):
        folder = urllib.parse.urlsplit(uri).path
        return problem("MLflow", f"MLFLOW_TRACKING_URI={uri} is a folder, which MLflow does not write any more",
                       f"mlflow migrate-filestore --source {folder} --target sqlite:///mlflow.db")  # fmt: skip
    return unchecked("MLflow", f"whether {uri} can be used is not known here", "mlflow doctor --mask-envs")


def store(path: Path, known: "Schema | None") -> Finding:
    """A SQLite store, which is opened for reading only."""
    if not path.exists():
        return ok("MLflow", f"the first study makes its store, {path}")
    try:
        revision = schema_of(path)
    except sqlite3.Error as error:
        return problem("MLflow", f"{path} cannot be read: {error}",
                       f"mv {path} {path}.damaged    # `proseg-tune sync STUDY` fills a new one")  # fmt: skip
    if known is None or revision == known.head:
        return ok("MLflow", f"its store {path} can be read" + (", its schema is current" if known else ""))
    if revision in known.all:
        address = shlex.quote(for_libraries(sqlite_address(path)))
        return problem("MLflow", f"{path} was written by an earlier MLflow", f"mlflow db upgrade {address}")
    return problem("MLflow", f"{path} was written by a newer MLflow than is installed",
                   f"{sys.executable} -m pip install --upgrade mlflow")  # fmt: skip


def schema_of(path: Path) -> str:
    """The revision of an MLflow database; raises sqlite3.Error where it is none, or is damaged."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=SECONDS)
    try:
        row = connection.execute("select version_num from alembic_version").fetchone()
    finally:
        connection.close()
    if row is None:
        raise sqlite3.DatabaseError("it says of no version that it is of")
    return row[0]


@dataclass(frozen=True)
class Schema:
    """What the MLflow that is installed knows of its database's versions."""

    head: str
    all: frozenset[str]


def schema_known() -> Schema | None:
    """None where MLflow, or its migrations, cannot be found."""
    found = find_spec("mlflow")
    for folder in (found and found.submodule_search_locations) or ():
        files = sorted((Path(folder) / "store" / "db_migrations" / "versions").glob("*.py"))
        if files:
            return read_schema(path.read_text(encoding="utf-8") for path in files)
    return None


def read_schema(scripts: Iterable[str]) -> Schema | None:
    """The last of Alembic's scripts, which form a chain; None where they do not."""
    chain: dict[str, str | None] = {}
    for text in scripts:
        own = re.search(r"^revision\b[^=\n]*=\s*[\"'](\w+)", text, re.MULTILINE)
        before = re.search(r"^down_revision\b[^=\n]*=\s*[\"'](\w+)", text, re.MULTILINE)
        if own:
            chain[own[1]] = before[1] if before else None
    heads = chain.keys() - set(chain.values())
    return Schema(heads.pop(), frozenset(chain)) if len(heads) == 1 else None


# --- Ray --------------------------------------------------------------------------------------------------------------


Reach = Callable[[str, int], str]
"""Tells why nobody answers at a host and port; nothing where somebody does."""


def reach(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=SECONDS):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def reach_ray(host: str, port: int) -> str:
    """As `reach`; and whether it is Ray who answers: gRPC greets with the settings of HTTP/2 (RFC 9113, 3.4)."""
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as peer:
            if os.environ.get("RAY_USE_TLS") == "1":
                return ""
            peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
            frame = peer.recv(9)
    except OSError as error:
        return error.strerror or str(error)
    return "" if frame[3:4] == b"\x04" else "what answers there is no Ray"


def no_cluster(address: str, folder: Path, reachable: Reach = reach_ray) -> str:
    """Why no cluster can be joined at an address; nothing where one can.

    Args:
        folder: Ray's own, where a cluster on this machine leaves its address.
    """
    if address in ("auto", "local"):
        file = folder / "ray_current_cluster"
        if address == "local" or not file.exists():
            return "no cluster runs on this machine"
        address = file.read_text(encoding="utf-8").strip()
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return "this is no host:port"
    why = reachable(host.strip("[]"), int(port))
    return why and f"it cannot be reached: {why}"


def ray_cluster(address: str | None, folder: Path, reachable: Reach = reach_ray) -> Finding:
    """Whether the cluster that RAY_ADDRESS names is there.

    Args:
        folder: as of `no_cluster`.
    """
    if not address:
        return ok("Ray's cluster", "none is named (RAY_ADDRESS): a study starts a Ray of its own on loopback")
    if why := no_cluster(address, folder, reachable):
        return problem("Ray's cluster", f"RAY_ADDRESS={address}: {why}", "unset RAY_ADDRESS    # or: ray start --head")
    return ok("Ray's cluster", f"{address} can be reached")


def loopback(error: str) -> Finding:
    """Args: why no port of loopback can be had; empty where one can."""
    if error:
        return problem("loopback", f"no port on {LOOPBACK} can be opened: {error}", "sudo ip link set lo up")
    return ok("loopback", f"ports on {LOOPBACK} can be opened")


def try_loopback() -> str:
    try:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            return ""
    except OSError as error:
        return error.strerror or str(error)


@dataclass(frozen=True)
class Process:
    """A process of this user."""

    pid: int
    name: str
    orphan: bool
    """Nobody who started it is there any more."""


def processes() -> list[Process]:
    """Those that belong to Ray and to this user."""
    found = []
    me = os.getuid() if hasattr(os, "getuid") else None
    for process in psutil.process_iter(["pid", "ppid", "name", "uids"]):
        info = process.info
        if info["name"] in RAYS and (me is None or (info["uids"] and info["uids"].real == me)):
            found.append(Process(info["pid"], info["name"], info["ppid"] in (0, 1)))
    return found


def leftovers(found: Iterable[Process], *, cluster: bool) -> Finding:
    """Ray's processes that no study holds any more. Those of a cluster on this machine have no parent either.

    Args:
        cluster: such a cluster runs here.
    """
    found = list(found)
    orphans = [one for one in found if one.orphan]
    if orphans and not cluster:
        pids = " ".join(str(one.pid) for one in orphans)
        return warning("Ray's processes", f"{len(orphans)} process(es) of Ray were left behind and hold memory",
                       f"kill {pids}")  # fmt: skip
    running = len([one for one in found if one.name == RAYS[0]])
    return ok("Ray's processes", f"{running} Ray(s) of this user run, none was left behind" if running
              else "none was left behind")  # fmt: skip


def start_ray() -> Finding:
    """Start a Ray as a study would, give it one task, and end it: a quarter of a minute."""
    began = time.monotonic()
    command = subprocess.Popen([sys.executable, "-c", START_RAY], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               encoding="utf-8", errors="replace", cwd=Path(__file__).resolve().parents[2],
                               start_new_session=True)  # fmt: skip
    try:
        said, _ = command.communicate(timeout=RAY_SECONDS)
    except subprocess.TimeoutExpired:
        _end(command)
        return problem("Ray", f"a Ray on this machine did not start within {RAY_SECONDS:.0f} s",
                       "RAY_BACKEND_LOG_LEVEL=debug proseg-tune launch demo --trials 1 --verbose")  # fmt: skip
    return started(command.returncode, said, time.monotonic() - began)


def started(code: int, said: str, seconds: float) -> Finding:
    if code:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return problem("Ray", f"a Ray on this machine does not start: {lines[-1][:300] if lines else f'code {code}'}",
                       "proseg-tune launch demo --trials 1 --verbose    # shows Ray's log")  # fmt: skip
    return ok("Ray", f"starts, does a task and ends in {seconds:.0f} s")


def _end(command: subprocess.Popen[str]) -> None:
    """With all that it has started."""
    family = psutil.Process(command.pid).children(recursive=True)
    command.kill()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=SECONDS)
    command.communicate()


# --- ports and proxies ------------------------------------------------------------------------------------------------


def ui_port(free: bool, another: int) -> Finding:
    """Args: whether the port that `ui` takes is free, and one that is."""
    if free:
        return ok("port", f"{UI_PORT}, which `proseg-tune ui` takes, is free")
    return warning("port", f"{UI_PORT}, which `proseg-tune ui` takes, is taken", f"proseg-tune ui --port {another}")


def proxy(proxies: Mapping[str, str]) -> Finding:
    """Args: those of the environment. What goes to this machine itself is kept from them (`surroundings.settle`)."""
    named = [address for kind, address in proxies.items() if kind != "no"]
    if named:
        return ok("proxy", f"{without_password(named[0])} is asked for what lies elsewhere, never for {LOOPBACK}")
    return ok("proxy", "none stands between this machine and others")
