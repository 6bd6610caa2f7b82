"""What is put right before anything else: proxies, HOME, the user's name, and the folder of Ray's sockets."""

import getpass
import os
import stat
import tempfile
from pathlib import Path

import pytest
import requests

from orchestrator import surroundings
from orchestrator.surroundings import CACHES, LOOPBACK, settle

LONG = f"{tempfile.gettempdir()}/{91 * 'x'}"
"""A folder that can be made, below which Ray's sockets have too long a path."""

PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of somebody with a HOME, a TMPDIR and a name, and without a proxy; what is changed is put back."""
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in (*PROXIES, *CACHES, "RAY_TMPDIR", "TMPDIR"):
        os.environ.pop(name, None)
    os.environ.update(HOME=str(tmp_path / "home"), LOGNAME="ada")


def test_where_nothing_is_amiss_nothing_is_changed():
    before = dict(os.environ)
    settle()
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_no_proxy_stands_between_this_machine_and_itself(name: str):
    os.environ |= {name: "http://proxy:3128", "NO_PROXY": "corp.example"}
    settle()
    settle()  # a child of ours does it again
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == f"corp.example,{LOOPBACK}"
    for host in ("127.0.0.1:5000", "localhost", "127.0.1.1", "[::1]:80", "a.corp.example"):
        assert requests.utils.should_bypass_proxies(f"http://{host}/", None), host
    assert not requests.utils.should_bypass_proxies("http://example.org/", None)


def test_what_keeps_everything_from_the_proxy_is_kept():
    os.environ |= {"http_proxy": "http://proxy:3128", "no_proxy": "*"}
    settle()
    assert os.environ["no_proxy"] == "*"


def test_another_folder_takes_the_place_of_a_home_that_is_not_there(tmp_path: Path):
    os.environ["HOME"] = str(tmp_path / "gone")
    settle()
    home = Path(os.environ["HOME"])
    assert home.parent == tmp_path
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    os.environ["HOME"] = str(tmp_path / "gone")
    settle()
    assert Path(os.environ["HOME"]) == home, "caches last"


def test_the_name_of_a_folder_that_another_has_taken_is_not_used(tmp_path: Path):
    os.environ["HOME"] = str(tmp_path / "gone")
    (tmp_path / f"proseg-tune-{os.getuid()}").symlink_to(tmp_path)
    settle()
    assert Path(os.environ["HOME"]).parent == tmp_path
    assert not Path(os.environ["HOME"]).is_symlink()


def test_of_a_home_that_is_read_only_the_files_are_read_and_the_caches_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = os.environ["HOME"]
    monkeypatch.setattr(surroundings, "writable", lambda folder: str(folder) != home)
    os.environ["XDG_CACHE_HOME"] = "/mine"
    settle()
    assert os.environ["HOME"] == home
    assert os.environ["XDG_CACHE_HOME"] == "/mine"
    assert Path(os.environ["MPLCONFIGDIR"]).parent.parent == tmp_path


def test_a_user_without_a_name_has_one(monkeypatch: pytest.MonkeyPatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setitem(os.environ, name, "")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    settle()
    assert getpass.getuser() == "uid4000000000"


@pytest.mark.parametrize("folder", ["", "relative", LONG, "/dev/null/below"])
def test_ray_has_another_folder_where_its_sockets_do_not_fit(folder: str):
    os.environ["TMPDIR"] = folder
    settle()
    chosen = os.environ.get("RAY_TMPDIR", "/tmp")
    assert surroundings.takes_ray(Path(chosen))
    assert not surroundings.too_long(Path(chosen))


def test_the_folder_that_ray_was_given_stays_as_it_is():
    os.environ["RAY_TMPDIR"] = LONG
    settle()
    assert os.environ["RAY_TMPDIR"] == LONG
