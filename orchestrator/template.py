"""A search space to begin with, written for a data set that was prepared."""

from pathlib import Path

from proseg.data.store import Store


def write_template(store: Store, name: str, folder: Path) -> Path | None:
    """Write NAME.toml, a space that searches the data set of this name; None, and nothing, where that file exists."""
    from search_spaces.template import template_space

    m = store.manifest
    text = template_space(name, slices=m.slices, height=m.height, width=m.width, classes=m.classes, raters=m.raters)
    path = folder / f"{name}.toml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return None
    return path
