"""The versions that are installed, against those that this version was written for."""

import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from orchestrator.doctor.findings import Finding, ok, problem, unchecked

NAME = "proseg-tune"
TOLD = ("torch", "ray", "optuna", "mlflow", "numpy", "pyarrow", "typer")
"""Whose versions are of interest where all is well."""


def installed(name: str) -> str | None:
    """The version of a package; None where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check() -> list[Finding]:
    """Python and every package that this one asks for."""
    ours = installed(NAME)
    if ours is None:
        return [unchecked("packages", f"{NAME} itself is not installed: what it needs is not known",
                          f"{sys.executable} -m pip install -e .")]  # fmt: skip
    running = ".".join(map(str, sys.version_info[:3]))
    return [python(running, metadata(NAME)["Requires-Python"] or "", ours), packages(requires(NAME) or (), installed)]


def python(running: str, required: str, ours: str) -> Finding:
    if running not in SpecifierSet(required, prereleases=True):
        return problem("python", f"Python {running} runs this, {NAME} {ours} needs {required}",
                       "make setup PYTHON=python3.11")  # fmt: skip
    return ok("python", f"Python {running}, {NAME} {ours}")


def packages(required: Iterable[str], installed: Callable[[str], str | None]) -> Finding:
    """Args: requirements as a package's metadata state them, and what gives the version of each."""
    asked = [one for one in map(Requirement, required) if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [(one, found) for one in asked if not _fits(one, found := installed(one.name))]
    if wrong:
        said = ", ".join(f"{one.name} {found or 'is missing'} (needs {one.specifier or 'any'})" for one, found in wrong)
        words = " ".join(f"'{one.name}{_extras(one)}{one.specifier}'" for one, _ in wrong)
        return problem("packages", said, f"{sys.executable} -m pip install {words}")
    versions = ", ".join(f"{name} {found}" for name in TOLD if (found := installed(name)))
    return ok("packages", f"all {len(asked)} as they should be: {versions}")


def _fits(one: Requirement, found: str | None) -> bool:
    return found is not None and one.specifier.contains(found, prereleases=True)


def _extras(one: Requirement) -> str:
    return f"[{','.join(sorted(one.extras))}]" if one.extras else ""
