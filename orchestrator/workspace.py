"""The workspace: the one folder in which everything is kept that this program writes."""

import os
from pathlib import Path


def workspace() -> Path:
    """`PROSEG_HOME`, or `proseg-runs` in the current folder."""
    return Path(os.environ.get("PROSEG_HOME") or "proseg-runs").resolve()
