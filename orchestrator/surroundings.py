"""What this process and its children find around them, put right where it would only stand in their way: a proxy before
this machine itself, a HOME or a TMPDIR that cannot be used, a user without a name.

What a user has said is kept. It imports nothing slow: it comes before everything else.
"""

import contextlib
import getpass
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

LOOPBACK = "localhost,127.0.0.1,127.0.0.0/8,::1"
"""As a list of what no proxy is asked for; not every library reads a range."""
CACHES = {"MPLCONFIGDIR": "matplotlib", "XDG_CACHE_HOME": "cache", "CUDA_CACHE_PATH": "cuda"}
"""What libraries keep in HOME: the variable that names another place, and the folder there."""
SOCKET_LONGEST, SOCKET_BELOW_RAY = 107, 67
"""Bytes: what Linux allows for a socket's path, and what Ray puts below its folder
(/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store)."""
SHORT = Path("/tmp")


def settle() -> None:
    """Change the environment of this process, and with it that of its children."""
    _spare_loopback()
    _name_the_user()
    with contextlib.suppress(OSError):  # nothing at all can be written here: a question does not need to
        _find_home()
        _find_place_for_ray()


def ray_folder(environ: Mapping[str, str]) -> Path:
    """Below which Ray makes its own, `ray`."""
    return Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or SHORT)


def too_long(folder: Path) -> bool:
    """Whether the paths of Ray's sockets would be, below this folder."""
    return len(os.fsencode(folder)) + SOCKET_BELOW_RAY > SOCKET_LONGEST


def writable(folder: Path) -> bool:
    """Whether files can be made there, or the folder itself."""
    existing = next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def takes_ray(folder: Path) -> bool:
    """Whether Ray can make its own folder there, or use the one that another user has made."""
    return folder.is_absolute() and writable(folder / "ray")


def _spare_loopback() -> None:
    """What MLflow, Ray and we ourselves say on this machine stays on it."""
    if not any(value and name.lower().endswith("_proxy") for name, value in os.environ.items()):
        return
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    for name, value in before.items():
        listed = value or next(filter(None, before.values()), "")  # a new one would hide the other
        if listed.strip() != "*" and LOOPBACK not in listed:
            listed = f"{listed}{',' * bool(listed)}{LOOPBACK}"
        os.environ[name] = listed


def _name_the_user() -> None:
    """torch and MLflow ask for the name, which a container's user may not have."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def _find_home() -> None:
    """Where HOME is not there, another takes its place; where it is read only, its files are read and caches lie
    elsewhere."""
    home = Path(os.path.expanduser("~"))  # Path.expanduser raises where nobody knows
    if not (home.is_absolute() and home.is_dir() and os.access(home, os.R_OK | os.X_OK)):
        os.environ["HOME"] = str(_stand_in())
    elif not writable(home):
        folder = _stand_in()
        for name, below in CACHES.items():
            os.environ.setdefault(name, str(folder / below))


def _find_place_for_ray() -> None:
    """A folder that Ray was given by name is not changed."""
    given = ray_folder(os.environ)
    if os.environ.get("RAY_TMPDIR") or (takes_ray(given) and not too_long(given)):
        return
    others = (place for place in (SHORT, _stand_in()) if takes_ray(place) and not too_long(place))
    os.environ["RAY_TMPDIR"] = str(next(others, given))


def _stand_in() -> Path:
    """A folder of this user's for what belongs into HOME: the same one every time, unless another has taken its name.

    Raises:
        OSError: no folder for temporary files can be written.
    """
    folder = Path(tempfile.gettempdir()) / f"proseg-tune-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if ours else Path(tempfile.mkdtemp(prefix="proseg-tune-"))
