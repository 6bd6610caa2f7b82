"""The shared MLflow server of the folder mlflow/: its files agree with each other, and a study runs against it."""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.results import Trial, read_trials
from orchestrator.study import Study, find_study, read_state
from proseg.records import read_epochs
from tests.places import Place, mlflow_runs, wait_for_epoch
from tests.shared_server import (
    BUCKET,
    FOLDER,
    HOST,
    INSTALLED,
    Missing,
    Postgres,
    SharedServer,
    auth_databases,
    make_certificate,
    make_secrets,
    nginx_configuration,
    postgres,
    program,
    running,
    shared_server,
    unit,
    variables,
)  # fmt: skip
from tests.studies import make_store

ROOT = FOLDER.parent
SECRETS = {"PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD"}
"""What MLflow's server needs; its other settings may be read by anybody."""


def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]


# Both ways run the same server


def test_both_ways_run_the_same_command():
    (line,) = unit()["ExecStart"]
    there = re.sub(r":\?[^}]*}", "}", compose()["services"]["mlflow"]["command"])
    assert shlex.split(there) == shlex.split(line)


def test_both_ways_have_the_same_settings():
    here = compose()["services"]["mlflow"]
    assert here["env_file"] == "server.env"
    assert unit()["EnvironmentFile"] == [f"{INSTALLED}/server.env", f"{INSTALLED}/site.env"]
    places = {"MLFLOW_HOST", "PGHOST", "MLFLOW_S3_ENDPOINT_URL", "CREDENTIALS_DIRECTORY"}
    assert set(here["environment"]) == places, "a setting of the server belongs into server.env"


def test_both_ways_hand_over_the_same_secrets():
    assert {line.split(":")[0] for line in unit()["LoadCredential"]} == SECRETS
    assert set(compose()["services"]["mlflow"]["secrets"]) == SECRETS


def test_no_file_holds_a_secret():
    settings = variables(FOLDER / "server.env") | variables(FOLDER / "example.env")
    assert SECRETS & set(settings) == set()
    for address in auth_databases():
        assert re.fullmatch(r"postgresql\+psycopg2:///\w+", address), "no host, no password; and psycopg2 by name"
    for service in compose()["services"].values():
        assert SECRETS & set(service.get("environment", {})) == set()


@pytest.mark.parametrize("name", [".env", "secrets/PGPASSWORD", "tls/server.key"])
def test_git_ignores_what_must_not_be_committed(name: str):
    done = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", f"mlflow/{name}"], check=False)
    if done.returncode == 128:
        pytest.skip("this is no git checkout: run the test in a clone")
    assert done.returncode == 0


def test_postgres_admits_as_many_connections_as_the_workers_may_open():
    settings = variables(FOLDER / "server.env")
    pool = int(settings["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"]) + int(settings["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"])
    admitted = re.search(r"max_connections=(\d+)", compose()["services"]["postgres"]["command"])
    assert admitted is not None
    assert int(admitted[1]) > int(settings["MLFLOW_WORKERS"]) * pool
    assert f"max_connections = {admitted[1]}" in (FOLDER / "README.md").read_text()


# The containers


def test_only_nginx_is_published_and_only_with_tls():
    ports = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert ports == {"nginx": ["443:443"]}
    inside = {name for name, service in compose()["services"].items() if service["networks"] == ["inside"]}
    assert inside == {"postgres", "s3", "mlflow"}
    assert compose()["networks"]["inside"] == {"internal": True}


@pytest.mark.parametrize("name", ["postgres", "s3", "mlflow", "nginx"])
def test_every_container_restarts_is_watched_and_is_of_one_version(name: str):
    service = compose()["services"][name]
    assert service["restart"] == "unless-stopped"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"]
    assert re.search(r":v?\d+\.\d+\.?\d*", service["image"]), "a tag that says a version, never latest"


def test_the_files_and_volumes_that_containers_name_exist():
    known, secrets = set(compose()["volumes"]), compose()["secrets"]
    for service in compose()["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in known or source == "./tls" or (FOLDER / source).exists(), volume
        for secret in service.get("secrets", []):
            assert (secret if isinstance(secret, str) else secret["source"]) in secrets
        assert set(service["networks"]) <= set(compose()["networks"])
        assert set(service.get("depends_on", {})) <= set(compose()["services"])
    assert {secret["file"] for secret in secrets.values()} == {f"./secrets/{name}" for name in secrets}


def test_the_secrets_that_are_used_are_those_the_readme_makes():
    (names,) = re.findall(r"^for name in (.*); do$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert set(names.split()) == set(compose()["secrets"])


def test_the_image_has_the_versions_that_are_tested():
    file = (FOLDER / "Dockerfile").read_text()
    (packages,) = re.findall(r"--constraint \S+ (.*) \\$", file, re.MULTILINE)
    names = [re.sub(r"\[.*\]", "", word) for word in shlex.split(packages)]
    assert names == ["mlflow", "psycopg2-binary", "boto3"]
    assert all(pinned(name) for name in names)
    assert compose()["services"]["mlflow"]["image"] == f"proseg-mlflow:{pinned('mlflow')}"
    copied = [word for line in re.findall(r"^COPY (.*)$", file, re.MULTILINE) for word in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    admitted = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert admitted == ["*", *(f"!{name}" for name in copied)]


def test_compose_itself_finds_no_fault(tmp_path: Path):
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no `docker compose` on this machine: apt-get install docker-compose-v2 or the plugin")
    command = ["docker", "compose", "--file", str(FOLDER / "compose.yaml"), "config", "--quiet"]
    there = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PUBLIC_NAME": "mlflow.example.org"}
    done = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# The unit, nginx, the secrets


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze on this machine: apt-get install systemd")
    (line,) = unit()["ExecStart"]
    file = tmp_path / "mlflow-server.service"
    text = (FOLDER / file.name).read_text()
    file.write_text(text.replace(line.split()[0], str(FOLDER / "with-secrets")))  # it is not installed here
    done = subprocess.run([analyze, "verify", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    exposure = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(file)]  # of 100
    assert subprocess.run(exposure, capture_output=True, check=False).returncode == 0


def test_nginx_finds_no_fault_in_its_configuration(tmp_path: Path):
    try:
        nginx, _ = program("nginx", "nginx-light"), program("openssl", "openssl")
    except Missing as missing:
        pytest.skip(str(missing))
    make_secrets(tmp_path)
    make_certificate(tmp_path)
    main = nginx_configuration(tmp_path, secure=8443, plain=8080, upstream=5000)
    command = [nginx, "-t", "-q", "-p", str(tmp_path), "-c", str(main)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def with_secrets(folder: Path | None, *command: str) -> subprocess.CompletedProcess[str]:
    given = {} if folder is None else {"CREDENTIALS_DIRECTORY": str(folder)}
    there = {"PATH": os.environ["PATH"]} | given
    return subprocess.run(
        [str(FOLDER / "with-secrets"), *command], env=there, capture_output=True, text=True, check=False
    )


def test_secrets_become_variables_of_the_command(tmp_path: Path):
    (tmp_path / "PGPASSWORD").write_text('two words, $x `y` "z"\n')
    (tmp_path / "OTHER").write_text("b")
    done = with_secrets(tmp_path, "printenv", "PGPASSWORD", "OTHER")
    assert (done.returncode, done.stdout) == (0, 'two words, $x `y` "z"\nb\n')
    assert with_secrets(tmp_path, "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "CREDENTIALS_DIRECTORY: is not set"), ({}, "there is no secret in"),
        ({"PGPASSWORD": "\n"}, "PGPASSWORD is empty"),
    ],
)  # fmt: skip
def test_without_its_secrets_nothing_is_started(tmp_path: Path, files: dict[str, str] | None, words: str):
    for name, content in (files or {}).items():
        (tmp_path / name).write_text(content)
    done = with_secrets(None if files is None else tmp_path, "echo", "started")
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_no_process_of_these_tests_is_left(tmp_path: Path):
    """What starts the servers ends their children too, and says why one did not start."""
    with running(["sh", "-c", "sleep 600 & sleep 600"], tmp_path / "log", ready=lambda: True) as process:
        while not (children := psutil.Process(process.pid).children()):
            time.sleep(0.01)
    deadline = time.monotonic() + 30
    while any(map(runs, children)):
        assert time.monotonic() < deadline, children
        time.sleep(0.01)
    with (
        pytest.raises(AssertionError, match="ended with code 3:\nno such place"),
        running(["sh", "-c", "echo no such place; exit 3"], tmp_path / "other", ready=lambda: False),
    ):
        pass


# A study against it

TRIALS, EPOCHS = 4, 3
USER, COLLEAGUE = "ada", "grace"
PASSWORD = "a password of ada's"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    try:
        with shared_server(tmp_path_factory.mktemp("server")) as server:
            for user in (USER, COLLEAGUE):
                add_user(server, user, PASSWORD)
            server.database.psql("--command", "CREATE DATABASE optuna OWNER mlflow")
            yield server
    except Missing as missing:
        pytest.skip(str(missing))


def add_user(server: SharedServer, name: str, password: str) -> None:
    """As README.md does it with curl."""
    body = json.dumps({"username": name, "password": password}).encode()
    path = "/api/2.0/mlflow/users/create"
    assert path in (FOLDER / "README.md").read_text()
    code, _ = server.answer(path, method="POST", data=body, Content_Type="application/json", **as_user(server, "admin"))
    assert code == 200


def as_user(server: SharedServer, name: str) -> dict[str, str]:
    password = server.password if name == "admin" else PASSWORD
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.fixture
def client(server: SharedServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's, of whom did not run the study."""
    from mlflow import MlflowClient

    for name, value in server.client_environment(COLLEAGUE, PASSWORD).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return MlflowClient(server.address)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(folder, make_store(folder / "blobs"))


def launch(place: Place, study: str, *words: str, epochs: int = EPOCHS) -> list[str]:
    space = place.space(budget={"trials": TRIALS, "epochs": epochs}, sampler="random")
    return ["launch", space, "--study", study, "--no-final", "--concurrent", "1", *words]


def storage(database: Postgres) -> str:
    return f"postgresql+psycopg2://mlflow@{HOST}:{database.port}/optuna"


def database_password(server: SharedServer) -> str:
    return (server.certificate.parents[1] / "secrets" / "PGPASSWORD").read_text().strip()


@pytest.fixture(scope="module")
def study(server: SharedServer, place: Place) -> Study:
    """One that ada ran against the server, with Optuna's database in its PostgreSQL too."""
    there = server.client_environment(USER, PASSWORD) | {"PGPASSWORD": database_password(server)}
    done = place.run(*launch(place, "shared", "--storage", storage(server.database)), **there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not answer" not in done.stderr
    assert "not kept up to date" not in done.stderr
    return find_study(place.home, "shared")


def written(study: Study, trial: Trial) -> dict[str, list[tuple[int, float, int]]]:
    """{metric: (epoch, value, milliseconds) of each} in a trial's folder."""
    found: dict[str, list[tuple[int, float, int]]] = {}
    for record in read_epochs(study.trial_folder(trial.number)):
        for name, value in (record["metrics"] | {"objective/ged": record["best"]}).items():
            found.setdefault(name, []).append((record["epoch"], value, int(1000 * record["time"])))
    return found


@pytest.mark.slow
def test_every_metric_of_every_epoch_is_there_once(client: Any, server: SharedServer, study: Study):
    trials, runs = read_trials(study), mlflow_runs(server.address, study.name)
    assert len(trials) == TRIALS
    assert set(runs) >= {"study", *(trial.name for trial in trials)}
    for trial in trials:
        expected, run = written(study, trial), runs[trial.name]
        assert set(expected) <= set(run.data.metrics)
        for metric, points in expected.items():
            kept = client.get_metric_history(run.info.run_id, metric)
            assert [(point.step, point.value, point.timestamp) for point in kept] == points, (trial.name, metric)
    assert any(trial.epoch == EPOCHS for trial in trials)


@pytest.mark.slow
def test_files_lie_in_the_store_and_come_back_through_the_server(
    client: Any, server: SharedServer, study: Study, tmp_path: Path
):
    runs = mlflow_runs(server.address, study.name)
    trial = next(trial for trial in read_trials(study) if trial.epoch == EPOCHS)
    folder, run = study.trial_folder(trial.number), runs[trial.name]
    for name in ("config.json", "best.safetensors"):
        file = client.download_artifacts(run.info.run_id, name, str(tmp_path))
        assert Path(file).read_bytes() == (folder / name).read_bytes()
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/"), "the user needs no key of the store"
    kept = objects(server)
    assert any(key.endswith(f"{run.info.run_id}/artifacts/best.safetensors") for key in kept)
    assert all(key.startswith("artifacts/") for key in kept)


def objects(server: SharedServer) -> list[str]:
    import boto3

    client = boto3.client("s3", endpoint_url=server.store, region_name="us-east-1", aws_access_key_id="mlflow",
                          aws_secret_access_key="anything")  # fmt: skip
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    finally:
        client.close()


@pytest.mark.slow
def test_runs_and_users_lie_in_postgres(server: SharedServer, study: Study):
    points = server.database.psql("--dbname", "mlflow", "--command", "SELECT count(*) FROM metrics")
    assert int(points) >= sum(trial.epoch for trial in read_trials(study)) * len(written(study, read_trials(study)[0]))
    users = server.database.psql("--dbname", "mlflow_auth", "--command", "SELECT username FROM users ORDER BY username")
    assert users.splitlines() == ["ada", "admin", "grace"]


@pytest.mark.slow
def test_optunas_database_is_a_copy_of_the_log(server: SharedServer, study: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGPASSWORD", database_password(server))
    check_copy(study, server.database)


@pytest.mark.slow
@pytest.mark.parametrize(("user", "password"), [(USER, "not ada's password"), ("nobody", PASSWORD)])
def test_a_wrong_password_is_refused_in_one_sentence(server: SharedServer, place: Place, user: str, password: str):
    before = sorted((place.home / "studies").glob("*"))
    done = place.run(*launch(place, "refused"), **server.client_environment(user, password))
    assert done.returncode == 2, done.stdout + done.stderr
    said = " ".join(done.stderr.split())
    assert f"MLflow at {server.address} cannot be used" in said
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
    assert "Traceback" not in done.stderr
    assert sorted((place.home / "studies").glob("*")) == before, "nothing has been written"


@pytest.mark.slow
def test_a_certificate_that_nobody_here_trusts_is_named(server: SharedServer, place: Place):
    untrusting = {
        name: value for name, value in server.client_environment(USER, PASSWORD).items() if "CERT" not in name
    }
    done = place.run(*launch(place, "untrusted"), **untrusting)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/api/2.0/mlflow/experiments/search?max_results=1"), ("GET", "/version"),
        ("POST", "/api/2.0/mlflow/runs/create"), ("POST", "/ajax-api/2.0/mlflow/experiments/create"),
        ("POST", "/graphql"), ("POST", "/v1/traces"), ("GET", "/metrics"), ("GET", "/signup"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts"), ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/x"),
        ("GET", "/get-artifact?path=x&run_uuid=y"), ("POST", "/api/2.0/mlflow/users/create"),
    ],
)  # fmt: skip
def test_who_gives_no_password_gets_nothing(server: SharedServer, method: str, path: str):
    data = b"{}" if method != "GET" else None
    assert server.status(path, method=method, data=data, Content_Type="application/json") == 401


@pytest.mark.slow
def test_http_leads_to_https_and_every_answer_bears_the_headers(server: SharedServer):
    code, headers = server.answer("/api/x?y=z", address=server.redirects)
    assert (code, headers["Location"]) == (301, f"https://{HOST}/api/x?y=z")
    for path in ("/health", "/version", "/v1/traces"):
        _, headers = server.answer(path)
        assert headers["Strict-Transport-Security"] == "max-age=31536000"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Server"] == "nginx", "without its version"


@pytest.mark.slow
def test_other_names_and_other_pages_are_refused(server: SharedServer):
    search, user = "/ajax-api/2.0/mlflow/runs/search", as_user(server, USER)
    asked = {"method": "POST", "data": b'{"experiment_ids": ["0"]}', "Content_Type": "application/json"}
    assert server.status(search, Host="evil.example", **asked, **user) == 403
    assert server.status(search, Origin="https://evil.example", **asked, **user) == 403
    assert server.status(search, Origin=f"https://{HOST}", **asked, **user) == 200, (
        "a browser on the server's own pages"
    )


@pytest.mark.slow
def test_a_large_file_passes(client: Any, tmp_path: Path):
    run = client.create_run("0")
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(2**20) * 24)
    client.log_artifact(run.info.run_id, str(file))
    there = client.download_artifacts(run.info.run_id, file.name, str(tmp_path / "back"))
    assert Path(there).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_many_writers_at_a_time_do_not_wait_for_each_other(client: Any):
    """With MLflow's own pools fifteen simultaneous requests in a worker wait until they time out."""
    from mlflow.entities import Metric

    run = client.create_run("0")
    write = lambda step: client.log_batch(run.info.run_id, [Metric("x", float(step), 1000 + step, step)])  # noqa: E731
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(write, range(256)))
    assert [point.step for point in client.get_metric_history(run.info.run_id, "x")] == list(range(256))


@pytest.mark.slow
def test_a_colleague_may_write_but_not_delete(client: Any, server: SharedServer, study: Study):
    from mlflow.exceptions import MlflowException

    run = mlflow_runs(server.address, study.name)["study"]
    client.set_tag(run.info.run_id, "seen by", COLLEAGUE)
    with pytest.raises(MlflowException, match="Permission denied"):
        client.delete_experiment(run.info.experiment_id)


@pytest.mark.slow
def test_the_upgrade_of_the_readme_runs(server: SharedServer, study: Study):
    (line,) = re.findall(r"^docker compose run --rm mlflow (.*)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    words = shlex.split(line)
    words[:2] = [str(FOLDER / Path(words[0]).name), str(Path(sys.executable).parent / Path(words[1]).name)]
    there = {"PATH": os.environ["PATH"], "PGHOST": HOST, "PGPORT": str(server.database.port), "PGUSER": "mlflow",
             "CREDENTIALS_DIRECTORY": str(server.certificate.parents[1] / "credentials")}  # fmt: skip
    done = subprocess.run(words, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_backup_of_the_readme_can_be_restored(server: SharedServer, study: Study, tmp_path: Path):
    text, database = (FOLDER / "README.md").read_text(), server.database
    (dump,) = re.findall(r"postgres (pg_dump .*) mlflow > mlflow.dump$", text, re.MULTILINE)
    (restore,) = re.findall(r"postgres (pg_restore .*) mlflow < mlflow.dump$", text, re.MULTILINE)
    database.psql("--command", "CREATE DATABASE restored")
    with open(tmp_path / "dump", "wb") as sink:
        subprocess.run([*shlex.split(dump), "mlflow"], env=database.environment, stdout=sink, check=True)
    with open(tmp_path / "dump", "rb") as source:
        command = [*shlex.split(restore), "restored"]
        done = subprocess.run(command, env=database.environment, stdin=source, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    counts = [database.psql("--dbname", name, "--command", "SELECT count(*), sum(step) FROM metrics WHERE value > 0")
              for name in ("mlflow", "restored")]  # fmt: skip
    assert counts[0] == counts[1]


# Optuna's database goes away


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stopped", "hanging"])
def test_a_study_outlives_its_database_and_resume_writes_it_anew(
    place: Place, fault: str, monkeypatch: pytest.MonkeyPatch
):
    there = {"PGPASSWORD": "secret"}
    try:
        with postgres(there["PGPASSWORD"]) as database:
            with database.started() as process:
                database.psql("--command", "CREATE ROLE mlflow LOGIN PASSWORD 'secret'")
                database.psql("--command", "CREATE DATABASE optuna OWNER mlflow")
                words = launch(place, fault, "--storage", storage(database), epochs=20)
                out, err = run_through(fault, process, place.begin(*words, **there))
            study = find_study(place.home, fault)
            assert read_state(study) == "finished"
            assert [trial.number for trial in read_trials(study)] == list(range(TRIALS))
            assert "is not kept up to date any more" in " ".join(err.split())
            assert there["PGPASSWORD"] not in out + err
            with database.started():
                done = place.run("resume", fault, **there)
                assert done.returncode == 0, done.stdout + done.stderr
                monkeypatch.setenv("PGPASSWORD", there["PGPASSWORD"])
                check_copy(study, database)
    except Missing as missing:
        pytest.skip(str(missing))


def run_through(
    fault: str, database: subprocess.Popen[Any], study: subprocess.Popen[str], seconds: float = 200
) -> tuple[str, str]:
    """What a study says whose database is stopped, or does not answer any more, from its first epoch on."""
    hanging: list[int] = []
    try:
        wait_for_epoch(study, "t000", 1)
        if fault == "stopped":
            database.send_signal(signal.SIGINT)
        else:
            children = psutil.Process(database.pid).children(recursive=True)  # one serves the study's connection
            hanging = [database.pid, *(child.pid for child in children)]
        for pid in hanging:
            os.kill(pid, signal.SIGSTOP)
        out, err = study.communicate(timeout=seconds)
    finally:
        study.kill()
        for pid in hanging:
            os.kill(pid, signal.SIGCONT)
    assert study.returncode == 0, out + err
    return out, err


def check_copy(study: Study, database: Postgres) -> None:
    """Optuna's database, in PostgreSQL, says what the log says."""
    import optuna

    trials = read_trials(study)
    kept = optuna.load_study(study_name=study.name, storage=storage(database)).trials
    words = {"complete": "COMPLETE", "stopped early": "PRUNED", "failed": "FAIL"}
    assert [trial.state.name for trial in kept] == [words[trial.state] for trial in trials]
    assert [trial.params for trial in kept] == [trial.values for trial in trials]
    values = [trial.values for trial in kept if trial.state.name != "FAIL"]
    assert values == [[trial.objective] for trial in trials if trial.state != "failed"]
    assert [trial.user_attrs["trial"] for trial in kept] == [trial.name for trial in trials]
