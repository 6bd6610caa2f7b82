"""What a run was made with: versions of the code and of the libraries that decide its outcome."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "ray", "optuna", "mlflow", "numpy", "scipy", "pyarrow")


def environment() -> dict[str, str]:
    """Names and versions, for manifests, tags and model cards."""
    return {
        "proseg-tune": version("proseg-tune"),
        "git": git_revision() or "not a git checkout",
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        **{library: version(library) for library in LIBRARIES},
    }


def git_revision() -> str | None:
    """The commit of the checkout this code runs from, with a mark if files differ from it; None outside of one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return f"{commit}-modified" if _git(root, "status", "--porcelain") else commit
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here, or a repository without a commit


def _git(root: Path, *command: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *command], capture_output=True, encoding="utf-8", errors="replace", check=True
    )
    return result.stdout.strip()
