"""ProSeg: a probabilistic model of multi-rater medical image segmentation.

Importing this package imports neither torch nor anything else that is slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proseg.exported import ExportedModel

__all__ = ["load"]


def load(folder: str | Path, *, device: str = "cpu") -> ExportedModel:
    """Load a model that `proseg-tune best --export` wrote. See `proseg.exported`."""
    from proseg.exported import load

    return load(folder, device=device)
