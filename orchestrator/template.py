"""A search space to begin with, written for a data set that was prepared."""

from pathlib import Path

from proseg.data.store import Store
from proseg.errors import DataError


def write_template(store: Store, name: str, folder: Path) -> Path | None:
    """Write NAME.toml, a space that searches the data set of this name; None, and nothing, where that file exists.

    Raises:
        DataError: it cannot be written.
    """
    from search_spaces.template import template_space

    m = store.manifest
    text = template_space(name, slices=m.slices, height=m.height, width=m.width, classes=m.classes, raters=m.raters)
    path = folder / f"{name}.toml"
    try:
        return path if _write_new(path, text) else None
    except OSError as error:
        raise DataError(
            f"{name} is prepared, but a search space for it cannot be written to {path} ({error.strerror}); give the "
            "same command again in another folder"
        ) from None


def _write_new(path: Path, text: str) -> bool:
    """Whole or not at all; False where the file exists."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError:
        path.unlink()
        raise
    return True
