"""Addresses of databases, as people write them and as SQLAlchemy, MLflow and Optuna read them.

The address of a SQLite file is its path behind three slashes. People write the path as it is, and some libraries take
`%20`, `?`, `#` or braces in it for something else: what they are given is a URI then, which all of them read alike.
"""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

ODD = set("%?#{}")
"""What is more than itself in a path: to SQLAlchemy, or to Optuna, which fills in what stands in braces."""


def sqlite_address(file: Path, options: str = "") -> str:
    """As a person would write it.

    Args:
        options: of the driver, as in timeout=30.
    """
    return f"sqlite:///{file}{'?' * bool(options)}{options}"


def sqlite_file(address: str) -> Path | None:
    """The file of a SQLite database, relative to the current folder; None where the address is of something else."""
    found = _parts(address)
    return found and found[0]


def settled(address: str) -> str:
    """The address as it may be kept: it means the same from whatever folder it is read."""
    return with_file(address, Path.resolve)


def with_file(address: str, change: Callable[[Path], Path]) -> str:
    """The address of another file; as it is where it is of something else."""
    found = _parts(address)
    return sqlite_address(change(found[0]), found[1]) if found else address


def for_libraries(address: str) -> str:
    """The address as SQLAlchemy, MLflow and Optuna read it."""
    from sqlalchemy.engine import URL, make_url

    found = _parts(address)
    if found is None:
        return address
    file, options = found[0].resolve(), found[1]
    if ODD.isdisjoint(str(file)):
        return sqlite_address(file, options)
    query = {**make_url(sqlite_address(Path("any"), options)).query, "uri": "true"}
    # With the name of the driver, as MLflow makes the folder of whatever stands behind sqlite:///.
    return URL.create("sqlite+pysqlite", database=file.as_uri(), query=query).render_as_string()


def _parts(address: str) -> tuple[Path, str] | None:
    """The file of SQLite and the driver's options; None where the address is of something else."""
    scheme, mark, rest = address.partition(":///")
    if not mark or scheme.partition("+")[0] != "sqlite" or rest in ("", ":memory:"):
        return None
    path, mark, options = rest.rpartition("?")
    if not (mark and re.fullmatch(r"\w+=[^/]*", options)):  # a folder's name may hold a question mark
        path, options = rest, ""
    if re.search(r"\buri=", options):
        return _of_uri(address)
    written, unquoted = Path(path).expanduser(), Path(unquote(path)).expanduser()
    return unquoted if unquoted.parent.is_dir() and not written.parent.is_dir() else written, options


def _of_uri(address: str) -> tuple[Path, str] | None:
    from sqlalchemy.engine import make_url

    url = make_url(address)
    parts = urlsplit(url.database or "")
    options = "&".join(f"{name}={value}" for name, value in url.query.items() if name != "uri")
    return (Path(url2pathname(parts.path)), options) if parts.scheme == "file" else None
