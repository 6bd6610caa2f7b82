"""The doctor: what it says of machines and services that are not at hand, and of the one it runs on."""

import http.server
import json
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from cli.app import app
from orchestrator.doctor import data, gpus, machine, packages, services
from orchestrator.doctor.findings import Finding, problem, warning
from orchestrator.doctor.gpus import Driver, Gpu, Torch
from orchestrator.doctor.machine import GIB, Space
from orchestrator.doctor.services import Answer, Process, Schema
from orchestrator.server import free_port, port_is_free
from orchestrator.study import write_state
from proseg.data.catalog import Listing
from tests.studies import make_store, make_study

MIB = 2**20


def levels(found: list[Finding]) -> list[str]:
    return [finding.level for finding in found]


# Versions


INSTALLED = {"ray": "2.60.0", "torch": "2.13.0+cpu", "mlflow": "3.17.2"}


def test_packages_that_fit_are_told_with_their_versions():
    found = packages.packages(["ray[tune]~=2.60", "torch>=2.10", "pydicom~=3.0; extra == 'lidc'"], INSTALLED.get)
    assert (found.level, found.fix) == ("ok", "")
    assert "all 2 as they should be: torch 2.13.0+cpu, ray 2.60.0" in found.text


def test_packages_that_do_not_fit_or_are_missing_are_installed_by_one_command():
    found = packages.packages(["ray[tune]~=2.61", "torch>=2.10", "optuna~=5.0", "rich"], INSTALLED.get)
    assert found.level == "problem"
    assert found.text == "ray 2.60.0 (needs ~=2.61), optuna is missing (needs ~=5.0), rich is missing (needs any)"
    assert found.fix == f"{sys.executable} -m pip install 'ray[tune]~=2.61' 'optuna~=5.0' 'rich'"


@pytest.mark.parametrize(("running", "level"), [("3.11.7", "ok"), ("3.12.0rc1", "ok"), ("3.10.2", "problem")])
def test_an_old_python(running: str, level: str):
    assert packages.python(running, ">=3.11", "0.1.0").level == level


def test_what_is_not_installed_cannot_be_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packages, "NAME", "no-such-package-of-ours")
    (found,) = packages.check()
    assert (found.level, found.fix) == ("unchecked", f"{sys.executable} -m pip install -e .")


# GPUs

A100 = Gpu(0, "NVIDIA A100-SXM4-40GB", 40960.0, 3.0)
DRIVER = Driver("570.86.15", "12.8", (A100,))
WITH_CUDA = Torch("2.13.0", "12.8", (("NVIDIA A100-SXM4-40GB", 40 * GIB),))


def test_a_gpu_that_driver_and_torch_see():
    (found,) = gpus.gpus(WITH_CUDA, DRIVER, None)
    assert found.level == "ok"
    assert found.text == "1 GPU(s): NVIDIA A100-SXM4-40GB (40 GiB); driver 570.86.15"


def test_no_gpu_is_fine_and_slow():
    for driver in (None, Driver("570")):
        (found,) = gpus.gpus(Torch("2.13.0+cpu"), driver, None)
        assert (found.level, found.text) == ("ok", "no GPU: everything works, and is slow beyond the demo")


@pytest.mark.parametrize(
    ("torch", "driver", "hidden", "level", "text", "fix"),
    [
        (Torch("2.13.0+cpu"), DRIVER, None, "problem", "is built without CUDA: 1 GPU(s) lie idle", "pip uninstall -y"),
        (replace(WITH_CUDA, devices=()), replace(DRIVER, version="470.57", cuda="11.4"), None, "problem",
         "the driver 470.57 serves CUDA 11.4, torch 2.13.0 needs 12.8", "sudo apt-get install nvidia-driver-525"),
        (replace(WITH_CUDA, devices=()), DRIVER, "", "warning", "CUDA_VISIBLE_DEVICES='' hides 1 GPU(s)",
         "unset CUDA_VISIBLE_DEVICES"),
        (replace(WITH_CUDA, devices=(), said="CUDA unknown error"), DRIVER, None, "problem",
         "torch sees none of 1 GPU(s): CUDA unknown error", "torch.cuda.init()"),
        (WITH_CUDA, Driver(error="Failed to initialize NVML: Driver/library version mismatch"), None, "problem",
         "Driver/library version mismatch", "sudo reboot"),
        (Torch(error="ImportError: libcudnn.so.9"), DRIVER, None, "unchecked", "torch cannot be asked", ""),
    ],
)  # fmt: skip
def test_gpus_that_cannot_be_used(torch, driver, hidden, level: str, text: str, fix: str):
    (found,) = gpus.gpus(torch, driver, hidden)
    assert found.level == level
    assert text in found.text
    assert fix in found.fix


def test_a_gpu_that_others_use_and_one_that_is_hidden():
    busy = replace(A100, index=1, used=20480.0)
    unknown = replace(A100, index=2, used=None)
    seen, used = gpus.gpus(WITH_CUDA, replace(DRIVER, gpus=(A100, busy, unknown)), "0")
    assert seen.text.endswith("CUDA_VISIBLE_DEVICES='0' hides 2")
    assert (used.level, used.text.startswith("of GPU 1 ")) == ("warning", True)


def test_a_torch_that_cannot_be_imported():
    found = gpus.torch_installed(Torch(error="ImportError: libcudnn.so.9: cannot open shared object file"))
    assert found.level == "problem"
    assert "libcudnn" in found.text
    assert "--force-reinstall torch" in found.fix


def test_what_nvidia_smi_prints_is_read():
    listed = "0, NVIDIA H100 80GB HBM3, 81559, 4, 550.54.15\n1, NVIDIA GH200, [N/A], [N/A], 550.54.15\n"
    driver = gpus.read_driver(listed, "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4 |")
    assert (driver.version, driver.cuda) == ("550.54.15", "12.4")
    assert driver.gpus == (Gpu(0, "NVIDIA H100 80GB HBM3", 81559.0, 4.0), Gpu(1, "NVIDIA GH200", None, None))


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a script in the place of nvidia-smi."""

    def put(script: str) -> None:
        file = tmp_path / "bin" / "nvidia-smi"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def test_the_driver_is_asked_by_its_own_tool(tool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    tool('[ -n "$1" ] && echo "0, NVIDIA T4, 15360, 2, 535.1" || echo "CUDA Version: 12.2"')
    assert gpus.ask_driver() == Driver("535.1", "12.2", (Gpu(0, "NVIDIA T4", 15360.0, 2.0),))
    tool("echo 'NVIDIA-SMI has failed'; exit 9")
    assert gpus.ask_driver() == Driver(error="NVIDIA-SMI has failed")
    monkeypatch.setattr(gpus, "SECONDS", 0.2)
    tool("exec sleep 20")
    driver = gpus.ask_driver()
    assert driver is not None
    assert "did not answer" in driver.error
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert gpus.ask_driver() is None


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "ASK_TORCH", "import warnings, os; warnings.warn('CUDA initialization: too old')\n"
                        "print('{\"version\": \"2.13.0\", \"cuda\": \"13.0\", \"devices\": []}')")  # fmt: skip
    assert gpus.ask_torch() == Torch("2.13.0", "13.0", (), said="CUDA initialization: too old")
    monkeypatch.setattr(gpus, "ASK_TORCH", "raise ImportError('libcudnn.so.9: cannot open')")
    assert gpus.ask_torch() == Torch(error="ImportError: libcudnn.so.9: cannot open")
    monkeypatch.setattr(gpus, "ASK_TORCH", "import os; os.abort()")
    assert "ended with code -6" in gpus.ask_torch().error


# The machine


@pytest.mark.parametrize(
    ("usable", "allowed", "level", "fix"),
    [
        (16, None, "ok", ""),
        (16, 16.0, "ok", ""),
        (16, 2.5, "warning", "taskset -c 0-1 proseg-tune launch ..."),
        (16, 0.5, "warning", "taskset -c 0-0 "),
        (1, None, "warning", "--trials 4"),
    ],
)
def test_cores(usable: int, allowed: float | None, level: str, fix: str):
    found = machine.cores(usable, allowed)
    assert found.level == level
    assert fix in found.fix


def test_limits_of_a_container_are_read(tmp_path: Path):
    assert machine.cores_allowed(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cores_allowed(tmp_path) is None
    (tmp_path / "own").mkdir()
    (tmp_path / "own/cpu.max").write_text("250000 100000\n")
    assert machine.cores_allowed(tmp_path, "/own") == 2.5
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    names = ("memory.max", "memory/memory.limit_in_bytes")
    assert machine.group_limit(tmp_path, names) is None, "version 1 says nothing is limited by a huge number"
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    assert machine.group_limit(tmp_path, names) == 4 * GIB


@pytest.mark.parametrize(("available", "level"), [(1, "problem"), (3, "warning"), (8, "ok")])
def test_memory(available: int, level: str):
    assert machine.memory(16 * GIB, available * GIB).level == level


def test_a_containers_shared_memory():
    docker = Space(64 * MIB, 64 * MIB)
    assert machine.shared_memory(Space(16 * GIB, 15 * GIB), 4).level == "ok"
    for cards, level in ((0, "warning"), (1, "warning"), (2, "problem")):
        found = machine.shared_memory(docker, cards)
        assert found.level == level
        assert found.fix.startswith("docker run --shm-size=2g")
    assert machine.shared_memory(Space(16 * GIB, 10 * MIB), 0).fix.startswith("ls -l /dev/shm")
    assert machine.shared_memory(None, 0).level == "unchecked"


@pytest.mark.parametrize(
    ("free", "writable", "level"),
    [(100, True, "ok"), (0.5, True, "warning"), (0.05, True, "problem"), (100, False, "problem")],
)  # fmt: skip
def test_the_disk_of_the_workspace(free: float, writable: bool, level: str):
    found = machine.workspace_disk(Space(200 * GIB, int(free * GIB)), Path("/w"), writable=writable)
    assert found.level == level
    assert (found.fix == "") == (level == "ok")


def test_the_disk_of_ray():
    space = Space(100 * GIB, 50 * GIB)
    assert machine.ray_disk(space, Path("/tmp")).level == "ok"
    crowded = machine.ray_disk(replace(space, free=4 * GIB), Path("/tmp"))
    assert (crowded.level, "96 % full" in crowded.text) == ("warning", True)
    assert machine.ray_disk(replace(space, free=50 * MIB), Path("/tmp")).level == "problem"
    assert machine.ray_disk(space, Path("/tmp"), writable=False).level == "problem"
    long = machine.ray_disk(space, Path("/scratch/local/jobs/12345678/some-user/tmp"))
    assert (long.level, long.fix) == ("problem", "export RAY_TMPDIR=/tmp")
    assert machine.ray_disk(None, Path("/gone")).level == "problem"


@pytest.mark.parametrize(
    ("soft", "hard", "level", "fix"),
    [
        (-1, -1, "ok", ""),
        (20000, 20000, "ok", ""),
        (1024, -1, "warning", "ulimit -n 65536"),
        (1024, 8192, "warning", "ulimit -n 8192"),
        (1024, 1024, "warning", "/etc/security/limits.conf"),
    ],
)
def test_open_files(soft: int, hard: int, level: str, fix: str):
    found = machine.open_files(soft, hard)
    assert found.level == level
    assert fix in found.fix


@pytest.mark.parametrize(
    ("kind", "level"),
    [("ext4", "ok"), ("nfs4", "warning"), ("fuse.sshfs", "warning"), ("overlay", "warning"), ("tmpfs", "warning"),
     (None, "unchecked")],
)  # fmt: skip
def test_the_file_system_of_the_workspace(kind: str | None, level: str):
    assert machine.file_system(kind, Path("/w")).level == level


def test_a_folder_that_is_not_there_yet_lies_where_its_parent_does(tmp_path: Path):
    here, below = machine.space(tmp_path), machine.space(tmp_path / "a" / "b")
    assert here is not None
    assert below is not None
    assert here.total == below.total
    assert machine.file_system_of(tmp_path / "a" / "b") == machine.file_system_of(tmp_path)


# MLflow


@pytest.mark.parametrize(
    ("answer", "level", "part"),
    [
        (Answer(200), "ok", "answers"),
        (Answer(error="Connection refused"), "problem", "does not answer: Connection refused"),
        (Answer(401), "problem", "does not let this user in"),
        (Answer(403), "problem", "mlflow server --allowed-hosts mlflow.lab"),
        (Answer(404), "problem", "curl -i http://mlflow.lab:5000/health"),
        (Answer(502), "problem", "answers with 502"),
    ],
)
def test_an_mlflow_server(answer: Answer, level: str, part: str):
    found = services.server("http://mlflow.lab:5000", answer)
    assert found.level == level
    assert part in f"{found.text} {found.fix}"


@pytest.mark.parametrize(("date", "said"), [(None, []), (1000.0, ["ok"]), (1090.0, ["warning"]), (800.0, ["warning"])])
def test_two_clocks(date: float | None, said: list[str]):
    assert levels(services.clock("http://s", Answer(200, date=date), 1000.0)) == said


class Handler(http.server.BaseHTTPRequestHandler):
    """A server that wants a password."""

    def do_GET(self) -> None:
        asked = self.path.startswith("/api/2.0/mlflow/experiments/search")
        known = self.headers.get("Authorization") == "Basic YW5uYTpzZWNyZXQ="  # anna:secret
        self.send_response(200 if asked and known else 401 if asked else 404)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Nothing on the console of the tests."""


@contextmanager
def served(context: ssl.SSLContext | None = None) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def lab() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture(autouse=True)
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a person whose environment and files say nothing of MLflow."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "person"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def test_a_server_is_asked_as_mlflows_client_would_ask(lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refused, *_ = services.tracking(lab, tmp_path)
    assert (refused.level, "MLFLOW_TRACKING_USERNAME" in refused.fix) == ("problem", True)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert levels(services.tracking(lab, tmp_path)) == ["ok", "ok"], "the server, and its clock"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of an earlier login")
    assert levels(services.tracking(lab, tmp_path)) == ["ok", "ok"], "a password goes before a token"


def test_a_password_may_lie_in_mlflows_own_file(lab: str, tmp_path: Path, user_home: Path):
    file = user_home / ".mlflow" / "credentials"
    file.parent.mkdir()
    file.write_text("[mlflow]\nmlflow_tracking_username = anna\nmlflow_tracking_password = secret\n")
    assert levels(services.tracking(lab, tmp_path)) == ["ok", "ok"]


def test_a_password_in_an_address_is_sent_and_not_shown(lab: str, tmp_path: Path):
    found, _ = services.tracking(lab.replace("//", "//anna:secret@"), tmp_path)
    assert (found.level, found.text) == ("ok", f"{lab.replace('//', '//anna@')} answers")
    (found,) = services.tracking("http://anna:secret@127.0.0.1:9/", tmp_path)
    said = "MLFLOW_TRACKING_URI=http://anna@127.0.0.1:9/ does not answer: Connection refused"
    assert (found.level, found.text) == ("problem", said)
    assert "secret" not in found.text + found.fix


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server with a certificate that it has signed itself, and the certificate."""
    files = tmp_path / "server.crt", tmp_path / "server.key"
    write_certificate(*files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    with served(context) as address:
        yield address.replace("//", "//anna:secret@"), files[0]


def write_certificate(certificate: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    alias = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(
        name, name, secret.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1)
    )
    signed = builder.add_extension(alias, critical=False).sign(secret, hashes.SHA256())
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                         serialization.NoEncryption()))  # fmt: skip


def test_a_certificate_is_trusted_where_it_is_named(secure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    address, certificate = secure
    (found,) = services.tracking(address, tmp_path)
    assert (found.level, "is not trusted here" in found.text) == ("problem", True)
    assert found.fix.startswith("export MLFLOW_TRACKING_SERVER_CERT_PATH=")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    assert levels(services.tracking(address, tmp_path)) == ["ok", "ok"]
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "gone.crt")
    (found,) = services.tracking(address, tmp_path)
    assert "gone.crt" in found.text


def test_a_certificate_is_not_looked_at_where_the_user_says_so(secure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    address, _ = secure
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert levels(services.tracking(address, tmp_path)) == ["ok", "ok"]


def test_a_server_is_not_judged_where_mlflow_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "mlflow.utils.rest_utils", None)
    (found,) = services.tracking("http://127.0.0.1:9", tmp_path)
    assert (found.level, "MLflow's client cannot be imported" in found.text) == ("unchecked", True)


@pytest.mark.parametrize(
    "uri",
    [
        "http://[::1",
        "http://u:secret@h:x",
        "postgresql://u:secret@h:x/d",
        "http://u:sec/ret@h",
        "mysql://u:secret@[h/d",
    ],
)
def test_an_address_that_is_none_is_a_finding_without_its_password(uri: str, tmp_path: Path):
    (found,) = services.tracking(uri, tmp_path)
    assert (found.level, "MLFLOW_TRACKING_URI is no address" in found.text) == ("problem", True)
    assert "sec" not in found.text + found.fix


@pytest.mark.parametrize(
    ("uri", "level", "part"),
    [
        ("mysql+nosuchdriver://u:secret@h/d", "problem", "pip install nosuchdriver"),
        ("postgresql+sqlite3://u:secret@127.0.0.1:9/d", "problem", "pg_isready -h 127.0.0.1 -p 9"),
        ("./mlruns", "problem", "mlflow migrate-filestore"),
        ("file:///tmp/mlruns", "problem", "--source /tmp/mlruns"),
        ("databricks", "unchecked", "databricks"),
        ("uc:catalog", "unchecked", "uc:"),
        ("http://", "problem", "does not answer"),
    ],
)
def test_other_stores(uri: str, level: str, part: str, tmp_path: Path):
    (found,) = services.tracking(uri, tmp_path)
    assert found.level == level
    assert part in f"{found.text} {found.fix}"
    assert "secret" not in found.text + found.fix


def test_a_database_that_can_be_reached():
    assert services.database("postgresql+sqlite3://h/d", lambda host, port: "" if port == 5432 else "no").level == "ok"
    assert services.database("mysql+sqlite3://h/d", lambda host, port: "" if port == 3306 else "no").level == "ok"


def write_database(path: Path, revision: str | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("create table alembic_version (version_num text)")
    if revision:
        connection.execute("insert into alembic_version values (?)", (revision,))
    connection.commit()
    connection.close()
    return path


KNOWN = Schema("c", frozenset("abc"))


@pytest.mark.parametrize(
    ("revision", "level", "part"),
    [
        ("c", "ok", "its schema is current"),
        ("b", "problem", "mlflow db upgrade sqlite:///"),
        ("x", "problem", "pip install --upgrade mlflow"),
        (None, "problem", "it says of no version"),
    ],
)
def test_the_workspaces_own_store(tmp_path: Path, revision: str | None, level: str, part: str):
    found = services.store(write_database(tmp_path / "mlflow.db", revision), KNOWN)
    assert found.level == level
    assert part in f"{found.text} {found.fix}"


def test_a_store_that_is_none_and_one_that_is_not_there(tmp_path: Path):
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be taken for one" * 10)
    found = services.store(tmp_path / "mlflow.db", KNOWN)
    assert (found.level, found.fix.startswith("mv ")) == ("problem", True)
    assert "`proseg-tune sync STUDY`" in found.fix, "which also sends what belongs to a finished study"
    assert services.store(tmp_path / "gone.db", KNOWN).level == "ok"
    assert not (tmp_path / "gone.db").exists(), "looking makes nothing"


def test_a_store_that_the_variable_names(tmp_path: Path):
    path = write_database(tmp_path / "other.db", "x")
    (found,) = services.tracking(f"sqlite:///{path}", tmp_path)
    assert str(path) in found.text


def test_the_chain_of_migrations_is_read():
    chain = ["revision = 'a'\ndown_revision = None\n", 'revision: str = "b"\ndown_revision: str | None = "a"\n']
    assert services.read_schema(chain) == Schema("b", frozenset("ab"))
    assert services.read_schema([*chain, "revision = 'x'\ndown_revision = None\n"]) is None, "two ends"
    assert services.read_schema([]) is None


def test_mlflows_own_chain_has_one_end():
    known = services.schema_known()
    assert known is not None
    assert len(known.all) > 50


# Ray


def test_a_cluster_that_is_named(tmp_path: Path):
    def cluster(address: str | None, why: str = "") -> Finding:
        return services.ray_cluster(address, tmp_path, lambda host, port: why)

    assert cluster(None).level == "ok"
    assert cluster("head:6379").level == "ok"
    assert "cannot be reached: timed out" in cluster("head:6379", "timed out").text
    assert "no host:port" in cluster("head").text
    assert "no cluster runs on this machine" in cluster("auto").text
    (tmp_path / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert cluster("auto").text == "auto can be reached"


def test_what_answers_at_an_address_must_be_ray():
    def answer(words: bytes) -> str:
        """What is thought of a server that says this to whoever calls."""

        def greet() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(words)

        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=greet)
            thread.start()
            found = services.reach_ray("127.0.0.1", server.getsockname()[1])
            thread.join()
        return found

    assert answer(bytes((0, 0, 6, 4, 0, 0, 0, 0, 0))) == ""
    assert answer(b"HTTP/1.1 505 HTTP Version Not Supported") == "what answers there is no Ray"


def test_nobody_answers_at_a_port_that_nobody_holds():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        assert services.reach("127.0.0.1", port) != ""
        held.listen()
        assert services.reach("127.0.0.1", port) == ""
    assert services.reach("no-such-host.invalid", 1) != ""


def test_processes_that_were_left_behind():
    orphan, child = Process(7, "raylet", True), Process(8, "raylet", False)
    found = services.leftovers([orphan, Process(9, "gcs_server", True), child], cluster=False)
    assert (found.level, found.fix) == ("warning", "kill 7 9")
    assert services.leftovers([orphan, child], cluster=True).level == "ok"
    assert services.leftovers([child], cluster=False).text.startswith("1 Ray(s) of this user run")
    assert services.leftovers([], cluster=False).text == "none was left behind"


@pytest.mark.parametrize(
    ("code", "said", "part"),
    [(0, "", "starts, does a task"), (1, "a\nOSError: no ports\n", "does not start: OSError: no ports"),
     (-9, "", "code -9")],
)  # fmt: skip
def test_what_became_of_a_ray(code: int, said: str, part: str):
    assert part in services.started(code, said, 7.0).text


@pytest.mark.slow
def test_a_ray_that_does_not_start_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(services, "RAY_SECONDS", 10.0)
    note = tmp_path / "pid"
    code = "import pathlib, subprocess, time\nchild = subprocess.Popen(['sleep', '60'])\n"
    code += f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\ntime.sleep(60)"
    monkeypatch.setattr(services, "START_RAY", code)
    found = services.start_ray()
    assert (found.level, "did not start within 10 s" in found.text) == ("problem", True)
    pid = int(note.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_ray_starts_here():
    found = services.start_ray()
    assert found.level == "ok", found.text


def test_loopback_ports_and_proxies():
    assert services.loopback(services.try_loopback()).level == "ok"
    assert services.loopback("Cannot assign requested address").level == "problem"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not port_is_free(taken.getsockname()[1])
    assert port_is_free(free_port())
    assert services.ui_port(False, 5001).fix == "proseg-tune ui --port 5001"
    assert "http://me@proxy:3128 is asked" in services.proxy({"no": "*", "http": "http://me:secret@proxy:3128"}).text
    assert "none stands" in services.proxy({}).text


# Data


def test_data_sets_in_every_state(tmp_path: Path):
    store = make_store(tmp_path / "blobs")
    found = data.data_sets(
        [
            Listing("blobs", "", "prepared", str(store.folder)),
            Listing("ill", "its manifest is cut short", "damaged", str(tmp_path / "ill")),
            Listing("half", "", "unfinished", ""),
            Listing("npc", "", "missing", ""),
            Listing("lidc-contours", "", "on first use", "embedded"),
        ],
        tmp_path,
    )
    assert levels(found) == ["ok", "problem", "warning", "ok", "ok"]
    assert "random blobs, no patient" in found[0].text
    assert found[3].fix == "proseg-tune data standin npc"


def test_data_that_were_cut_short(tmp_path: Path):
    store = make_store(tmp_path / "blobs")
    arrow = store.folder / "slices.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-10])
    found = data.prepared("blobs", store.folder)
    assert (found.level, "slices.arrow is damaged" in found.text) == ("problem", True)
    assert str(store.folder) in found.fix


def test_a_study_whose_data_are_gone_or_others(tmp_path: Path):
    store = make_store(tmp_path / "blobs")
    assert data.searched("s1", store.folder, store.manifest.fingerprint) == []
    assert levels(data.searched("s1", store.folder, "another")) == ["warning"]
    assert levels(data.searched("s1", tmp_path / "gone", "any")) == ["warning"]


# The command


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace, and no import of torch in a process of its own, which takes seconds."""
    monkeypatch.setenv("PROSEG_HOME", str(tmp_path / "home"))
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "ask_torch", lambda: Torch("2.13.0+cpu"))
    monkeypatch.setattr(gpus, "ask_driver", lambda: None)
    return tmp_path / "home"


def test_the_doctor_of_a_new_workspace_finds_no_problem_and_writes_nothing(quick: Path):
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert [finding for finding in found["findings"] if finding["level"] == "problem"] == []
    assert (result.exit_code, found["well"]) == (0, True)
    checks = {finding["check"] for finding in found["findings"]}
    assert checks >= {"python", "packages", "torch", "GPUs", "cores", "memory", "shared memory", "workspace",
                      "open files", "file system", "Ray's folder", "Ray", "Ray's cluster", "MLflow", "port",
                      "data"}  # fmt: skip
    assert not quick.exists()


def test_everything_that_is_not_well_comes_with_a_fix(quick: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("RAY_TMPDIR", str(quick / ("a" * 60)))
    (quick / "studies" / "ill").mkdir(parents=True)
    (quick / "studies" / "ill" / "study.json").write_text("{")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("warning", "problem")):
            assert lines[number + 1].startswith("          "), f"no fix follows: {line}"
    for part in ("http://127.0.0.1:9 does not answer", "RAY_ADDRESS=127.0.0.1:9: it cannot be reached", "study.json"):
        assert part in result.stdout
    assert lines[-1].startswith("3 problem(s), ")


def test_a_study_that_cannot_go_on_is_named(quick: Path, tmp_path: Path):
    store = make_store(tmp_path / "blobs")
    study = make_study(quick, store)
    write_state(study, "interrupted")
    manifest = store.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(store.manifest.fingerprint, "0" * 64))
    assert "study s1 cannot go on" in CliRunner().invoke(app, ["doctor"]).stdout


def test_findings_say_what_they_are():
    assert (warning("a", "b", "c").level, problem("a", "b", "c").fix) == ("warning", "c")


@pytest.mark.slow
def test_the_doctor_asks_torch_here():
    found = gpus.ask_torch()
    assert (found.error, found.version != "") == ("", True)


def test_looking_imports_nothing_slow():
    slow = ("torch", "ray", "mlflow", "optuna", "scipy")
    code = f"import orchestrator.doctor, sys; print([name for name in {slow} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
