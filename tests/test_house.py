"""The repository itself: what it promises about its folders, its texts and its dependencies."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from orchestrator.objective import check_objective
from orchestrator.study import base_config
from search_spaces.space import parse_space

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a Markdown text."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for its_language, block in found if its_language == language]


def tracked() -> list[Path]:
    result = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip("this is no git checkout: run the test in a clone")
    return [ROOT / name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


# The name mlflow

WHERE_MLFLOW_IS = "import mlflow, json; print(json.dumps([mlflow.__file__, hasattr(mlflow, 'MlflowClient')]))"


def is_the_library(file: str | None, has_client: bool) -> bool:
    return bool(file) and has_client and "site-packages" in Path(str(file)).parts


def test_mlflow_is_the_library_here():
    import mlflow

    assert is_the_library(mlflow.__file__, hasattr(mlflow, "MlflowClient"))


def test_mlflow_is_the_library_from_the_repositorys_root():
    found = subprocess.run(
        [sys.executable, "-c", WHERE_MLFLOW_IS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert is_the_library(*json.loads(found.stdout))


@pytest.mark.slow
def test_mlflow_is_the_library_in_a_ray_worker_that_starts_at_the_root():
    code = """
import json, os
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=80 * 2**20)
@ray.remote
def where():
    import mlflow, os
    return mlflow.__file__, hasattr(mlflow, "MlflowClient"), os.getcwd()
print(json.dumps(ray.get(where.remote())))
ray.shutdown()
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    file, has_client, folder = json.loads(found.stdout.splitlines()[-1])
    assert Path(folder) == ROOT
    assert is_the_library(file, has_client)


def test_the_folder_mlflow_holds_no_python():
    assert [path for path in (ROOT / "mlflow").rglob("*") if path.suffix.startswith(".py")] == []


# Packages


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_that_is_listed_exists_and_every_one_that_exists_is_listed():
    listed = {name.replace(".", "/") for name in pyproject()["tool"]["setuptools"]["packages"]}
    tops = {name.split("/")[0] for name in listed}
    found = {path.parent.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("__init__.py")}
    assert listed == found


def test_package_data_names_files_that_exist():
    for package, patterns in pyproject()["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / package.replace(".", "/")).glob(pattern)), f"{package}: {pattern}"


def test_dependencies_point_one_way():
    program = Path(sys.executable).parent / "lint-imports"
    if not program.exists():
        pytest.skip("import-linter is not installed: pip install -c constraints.txt -e '.[dev]'")
    result = subprocess.run([str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_dependency_is_pinned_by_version_alone():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!_]+", line)] == []
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = pyproject()["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9._-]+", one)[0].lower().replace("_", "-") for one in asked}  # type: ignore[index]
    assert names - pinned == set()


# Texts


def test_no_text_names_a_place_of_one_machine():
    places = re.compile("(?<![A-Za-z0-9.])/(?:" + "|".join(["work", "root", "home"]) + ")/[a-z]", re.IGNORECASE)
    hosts = re.compile(r"https?://[^/\s]*(?:artifactory|nexus|registry|mirror|pypi)[^/\s]*", re.IGNORECASE)
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m[0]}" for pattern in (places, hosts) for m in pattern.finditer(text)]
    assert found == []


def test_the_readmes_slurm_script_is_a_script():
    (script,) = [block for block in blocks(README, "sh") if "#SBATCH" in block]
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for option in re.findall(r"ray start (.*?)(?: &)?$", script.replace("\\\n", " "), re.MULTILINE):
        words = [word.split("=")[0] for word in shlex.split(option)]
        assert set(words) <= {"--head", "--port", "--address", "--block"}


def test_the_readmes_kuberay_job_is_one():
    import yaml

    (job,) = (yaml.safe_load(block) for block in blocks(README, "yaml"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    home = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["PROSEG_HOME"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == [home], "every node sees the workspace"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    words = shlex.split(job["spec"]["entrypoint"])
    options = CliRunner().invoke(app, [words[1], "--help"]).stdout
    assert [word for word in words if word.startswith("--") and word not in options] == []


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ([a-z]+)", "\n".join(blocks(README, "sh")), re.M))))
def test_the_readmes_make_targets_exist(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_two_commands_come_first():
    first = blocks(README, "sh")
    assert first, "README has no commands yet"
    assert [line.split("#")[0].strip() for line in first[0].splitlines()] == ["make demo", "make test"]


def file_tree() -> list[str]:
    """The first word of every line of the README's file tree."""
    trees = [block for block in blocks(README, "") if re.search(r"^\S+\.py\s", block, re.MULTILINE)]
    return [line.split()[0] for block in trees for line in block.splitlines() if line.strip()]


def test_the_readmes_file_tree_names_what_exists():
    if not file_tree():
        pytest.skip("README has no file tree yet: list the files in a code block, one a line")
    assert [name for name in file_tree() if not (ROOT / name).exists()] == []


def test_the_readmes_file_tree_is_complete():
    if not file_tree():
        pytest.skip("README has no file tree yet: list the files in a code block, one a line")
    named = [ROOT / name for name in file_tree()]
    modules = [path for package in ("cli", "orchestrator", "search_spaces", "proseg") for path in
               (ROOT / package).rglob("*.py") if not path.name.startswith("__")]  # fmt: skip
    missing = [path for path in modules if not any(name == path or name in path.parents for name in named)]
    assert [path.relative_to(ROOT).as_posix() for path in missing] == []


@pytest.mark.parametrize("block", blocks(README, "toml"))
def test_the_readmes_space_can_be_searched(block: str):
    space = parse_space(tomllib.loads(block), file="README.md", name="readme")
    base_config(space, epochs=space.budget.epochs, seed=0)
    check_objective(space, raters=4)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_the_readmes_links_lead_somewhere(target: str):
    if "://" not in target:
        assert (ROOT / target).exists()


def test_the_readme_is_finished():
    assert re.findall(r"@@\w+@@|TODO|FIXME|TBD", README) == []


def test_the_makefile_is_a_menu():
    if shutil.which("make") is None:
        pytest.skip("there is no make on this machine: install it")
    found = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = {line.split()[0] for line in found.splitlines() if line.strip()}
    assert named >= {"setup", "demo", "test", "check", "slow", "format", "ui"}


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt", ".ci/run"])
def test_what_a_repository_must_have_is_there(name: str):
    assert (ROOT / name).stat().st_size > 0
