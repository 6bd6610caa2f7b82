"""A shared MLflow server as the folder mlflow/ configures it, on loopback: PostgreSQL, an S3-compatible store, MLflow
and nginx.

What is started is the unit's own command line with server.env, basic_auth.ini, databases.sql, with-secrets and
nginx.conf; only places, ports and names are put in their stead. moto plays the store: it speaks S3, in memory.
"""

import configparser
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "mlflow"
HOST = "127.0.0.1"
INSTALLED = "/etc/proseg-mlflow"
"""Where the unit and the containers look for the folder's files."""
BUCKET = "mlflow"
SECONDS_TO_START = 180


class Missing(Exception):
    """A program that this machine has not got, and how it comes by it."""


# --- the folder's files -----------------------------------------------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """What the unit sets under [Service], each name with all its values."""
    text = (FOLDER / "mlflow-server.service").read_text()
    lines = text.split("[Service]")[1].split("[Install]")[0].splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def variables(file: Path) -> dict[str, str]:
    """A file of NAME=VALUE, as systemd and compose both read it."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


def make_secrets(folder: Path) -> dict[str, str]:
    """Run what README.md says makes them, and the folder for the certificate; {name: secret}."""
    (block,) = [block for block in _blocks(FOLDER / "README.md") if "install -d -m 700 secrets" in block]
    subprocess.run(["sh", "-euc", block], cwd=folder, check=True, capture_output=True)
    return {file.name: file.read_text().strip() for file in (folder / "secrets").iterdir()}


def credentials(folder: Path, secrets: dict[str, str]) -> Path:
    """Those that systemd would hand to the unit, in a folder as it makes one."""
    there = folder / "credentials"
    there.mkdir(exist_ok=True)
    for line in unit()["LoadCredential"]:
        name, source = line.split(":")
        assert source == f"{INSTALLED}/secrets/{name}", line
        (there / name).write_text(secrets[name] + "\n")
    return there


def _blocks(file: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


# --- processes --------------------------------------------------------------------------------------------------------


def program(name: str, package: str, *places: str) -> str:
    """The path of a program.

    Raises:
        Missing: it is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *places]))
    if found is None:
        raise Missing(f"there is no {name} on this machine: apt-get install {package}")
    return found


def postgres_program(name: str) -> str:
    places = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    return program(name, "postgresql", *places)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], log: Path, *, ready: Callable[[], bool], end: int = signal.SIGTERM, **more: Any
) -> Iterator[subprocess.Popen[Any]]:
    """A process in a group of its own, from when it is ready until the block ends; then the whole group is ended.

    Raises:
        AssertionError: it ended or did not become ready; with the end of its log.
    """
    with open(log, "ab") as sink:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True, **more
        )
    try:
        _wait(process, ready, log)
        yield process
    finally:
        _end(process, end)


def _wait(process: subprocess.Popen[Any], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not ready():
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        assert process.poll() is None, f"{process.args} ended with code {process.returncode}:\n{tail}"
        assert time.monotonic() < deadline, f"{process.args} was not ready in {SECONDS_TO_START} s:\n{tail}"
        time.sleep(0.2)


def _end(process: subprocess.Popen[Any], end: int) -> None:
    """The parent is asked first; what has not ended then, its children included, is killed."""
    process.send_signal(end)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
    with suppress(ProcessLookupError):  # nothing was left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Postgres:
    """A cluster of databases in a folder of its own, whose superuser is `postgres` with this password."""

    folder: Path
    port: int
    password: str
    user: str | None
    """Whom its process belongs to where these tests are run by root, which PostgreSQL refuses."""
    options: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PGHOST": HOST, "PGPORT": str(self.port), "PGUSER": "postgres",
                "PGPASSWORD": self.password, "LC_ALL": "C.UTF-8"}  # fmt: skip

    def psql(self, *words: str, **more: str) -> str:
        command = [
            program("psql", "postgresql-client"),
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            *words,
        ]
        done = subprocess.run(command, env=self.environment | more, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[Any]]:
        settings = {"listen_addresses": HOST, "port": self.port, "unix_socket_directories": self.folder, "fsync": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [postgres_program("postgres"), "-D", str(self.folder / "data"), *words, *self.options]
        ready = [postgres_program("pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]
        with running(
            command, self.folder / "log", end=signal.SIGINT, ready=lambda: subprocess.call(ready) == 0,
            env=self.environment, cwd=self.folder, **_as_user(self.user),
        ) as process:  # fmt: skip
            yield process


@contextmanager
def postgres(password: str, options: Sequence[str] = ()) -> Iterator[Postgres]:
    """A fresh cluster, not started yet, in a folder that goes with the block.

    Raises:
        Missing: PostgreSQL is not installed.
    """
    initdb = postgres_program("initdb")
    user = _unprivileged() if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="proseg-postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        words = ["--auth=scram-sha-256", "--username=postgres", f"--pwfile={folder / 'password'}", "--no-sync"]
        subprocess.run(
            [initdb, *words, "-E", "UTF8", "--locale=C.UTF-8", "-D", str(folder / "data")], cwd=folder, check=True,
            capture_output=True, **_as_user(user),
        )  # fmt: skip
        yield Postgres(folder, free_port(), password, user, tuple(options))


def _unprivileged() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in names:
            return name
    raise Missing("PostgreSQL does not run as root, and there is no user postgres: apt-get install postgresql")


def _as_user(user: str | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedServer:
    address: str
    """https://127.0.0.1:PORT, nginx's."""
    redirects: str
    """http://127.0.0.1:PORT, nginx's too."""
    certificate: Path
    password: str
    """Of `admin`."""
    database: Postgres
    store: str
    """http://127.0.0.1:PORT of the S3-compatible store."""

    def client_environment(self, user: str = "admin", password: str | None = None) -> dict[str, str]:
        """What README.md says that a user sets."""
        return {
            "MLFLOW_TRACKING_URI": self.address, "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password or self.password,
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.certificate),
        }  # fmt: skip

    def status(self, path: str, *, address: str | None = None, **more: Any) -> int:
        """The code that a request without a user is answered with."""
        return self.answer(path, address=address, **more)[0]

    def answer(
        self, path: str, *, address: str | None = None, method: str = "GET", data: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str]]:
        """The code and the headers of an answer; redirects are not followed."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request((address or self.address) + path, data, named, method=method)
        trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.certificate)))
        try:
            with urllib.request.build_opener(trust, _NoRedirects).open(request, timeout=60) as found:
                return found.status, dict(found.headers)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, dict(refused.headers)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@contextmanager
def shared_server(folder: Path) -> Iterator[SharedServer]:
    """Everything, in this folder, until the block ends.

    Raises:
        Missing: a program is not installed.
    """
    nginx, _ = program("nginx", "nginx-light"), program("openssl", "openssl")
    secrets = make_secrets(folder)
    options = shlex.split(_compose_command("postgres"))[1:]
    with ExitStack() as stack:
        database = stack.enter_context(postgres(secrets["POSTGRES_PASSWORD"], options))
        stack.enter_context(database.started())
        database.psql("--file", str(FOLDER / "databases.sql"), CREDENTIALS_DIRECTORY=str(folder / "secrets"))
        store = stack.enter_context(_store(folder, secrets))
        port = stack.enter_context(_mlflow(folder, database, store, credentials(folder, secrets)))
        secure, plain = stack.enter_context(_nginx(nginx, folder, port))
        yield SharedServer(
            f"https://{HOST}:{secure}", f"http://{HOST}:{plain}", folder / "tls" / "server.crt",
            secrets["MLFLOW_AUTH_ADMIN_PASSWORD"], database, store,
        )  # fmt: skip


def _compose_command(service: str) -> str:
    import yaml

    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"][service]["command"]


@contextmanager
def _store(folder: Path, secrets: dict[str, str]) -> Iterator[str]:
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    with running(command, folder / "store.log", ready=lambda: listens(port)):
        address = f"http://{HOST}:{port}"
        client = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="mlflow",
            aws_secret_access_key=secrets["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield address


def server_environment(folder: Path, database: Postgres, store: str, port: int) -> dict[str, str]:
    """server.env and a site's own file, with the places and ports of this test."""
    settings = variables(FOLDER / "server.env") | variables(FOLDER / "example.env")
    shutil.copy(FOLDER / "basic_auth.ini", folder)
    changed = {
        "PUBLIC_NAME": HOST, "PGHOST": HOST, "PGPORT": str(database.port), "MLFLOW_S3_ENDPOINT_URL": store,
        "MLFLOW_PORT": str(port), "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
    }  # fmt: skip
    assert set(changed) <= set(settings), "what is put in its stead is in the files"
    return settings | changed


@contextmanager
def _mlflow(folder: Path, database: Postgres, store: str, given: Path) -> Iterator[int]:
    port = free_port()
    settings = server_environment(folder, database, store, port)
    (line,) = unit()["ExecStart"]
    words = shlex.split(re.sub(r"\$\{(\w+)\}", lambda found: settings[found[1]], line))
    assert words[0].startswith(INSTALLED), words
    words[:2] = [str(FOLDER / Path(words[0]).name), str(Path(sys.executable).parent / Path(words[1]).name)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "CREDENTIALS_DIRECTORY": str(given)}
    with running(
        words, folder / "mlflow.log", ready=lambda: _healthy(port), env=environment | settings, cwd=folder
    ):  # fmt: skip
        yield port


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def nginx_configuration(folder: Path, *, secure: int, plain: int, upstream: int) -> Path:
    """nginx.conf with this test's ports and certificate, in the http block of a main file; the latter's path."""
    text = (FOLDER / "nginx.conf").read_text()
    for old, new in (
        ("listen 80;", f"listen {HOST}:{plain};"), ("listen 443 ssl;", f"listen {HOST}:{secure} ssl;"),
        ("/etc/nginx/tls/", f"{folder}/tls/"),
    ):  # fmt: skip
        assert old in text, f"nginx.conf has no {old!r} any more"
        text = text.replace(old, new)
    site = {"PUBLIC_NAME": HOST, "UPSTREAM": f"{HOST}:{upstream}"}
    (folder / "site.conf").write_text(re.sub(r"\$\{(\w+)\}", lambda found: site[found[1]], text))
    places = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    main = folder / "nginx.conf"
    main.write_text(
        f"{user} daemon off; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ {places} access_log off; include {folder}/site.conf; }}\n"
    )
    return main


def make_certificate(folder: Path) -> None:
    """Self-signed, for 127.0.0.1, as README.md makes one for a name."""
    (block,) = [block for block in _blocks(FOLDER / "README.md") if "openssl req -x509" in block]
    command = block.replace("DNS:", "IP:").replace("mlflow.example.org", HOST)
    subprocess.run(["sh", "-euc", command], cwd=folder, check=True, capture_output=True)


@contextmanager
def _nginx(nginx: str, folder: Path, upstream: int) -> Iterator[tuple[int, int]]:
    """(port of https, port of http)."""
    make_certificate(folder)
    secure, plain = free_port(), free_port()
    main = nginx_configuration(folder, secure=secure, plain=plain, upstream=upstream)
    with running([nginx, "-p", str(folder), "-c", str(main)], folder / "nginx.log", ready=lambda: listens(secure)):
        yield secure, plain


def auth_databases() -> tuple[str, str]:
    """The addresses of the databases of runs and of users."""
    ini = configparser.ConfigParser()
    ini.read(FOLDER / "basic_auth.ini")
    return variables(FOLDER / "server.env")["MLFLOW_BACKEND_STORE_URI"], ini["mlflow"]["database_uri"]
