"""The search spaces that ship with proseg-tune, by name, and the reader of a user's own."""

from pathlib import Path

from search_spaces.space import SearchSpace, SpaceError, read_space

__all__ = ["SearchSpace", "SpaceError", "find_space", "shipped"]

_FOLDER = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """The files that come with the package, by the name a user types."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def find_space(name: str) -> SearchSpace:
    """A shipped space by its name, or a file by its path (it ends in .toml).

    Raises:
        SpaceError: there is no such space, or its file is wrong.
    """
    if name in shipped():
        return read_space(shipped()[name])
    if not name.endswith(".toml"):
        raise SpaceError(
            f"there is no search space {name!r}: use one of {', '.join(shipped())}, or the path of a "
            ".toml file of your own"
        )
    return read_space(Path(name))
