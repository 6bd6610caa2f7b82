"""The workspace: the one folder in which everything is kept that this program writes."""

import os
from pathlib import Path

from proseg.errors import ProSegError


def workspace() -> Path:
    """`PROSEG_HOME`, or `proseg-runs` in the current folder.

    Raises:
        ProSegError: it is the address of an object store.
    """
    given = os.environ.get("PROSEG_HOME") or "proseg-runs"
    if "://" in given:
        raise ProSegError(
            f"PROSEG_HOME={given}: an object store cannot be the workspace yet; mount it on every node (gcsfuse, "
            "mountpoint-s3, ...) and name the folder, or use a shared file system"
        )
    return Path(given).expanduser().resolve()
