"""What a user's mistake comes to: one sentence and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cli import render

USER_MISTAKE = 2
INTERRUPTED = 130


@contextmanager
def user_errors() -> Iterator[None]:
    """Print an error the user can act on, exit 2; let a bug keep its traceback."""
    from orchestrator.control import Stopped
    from proseg.errors import ProSegError
    from search_spaces import SpaceError

    try:
        yield
    except (ProSegError, SpaceError) as error:
        render.error(str(error))
        raise typer.Exit(error.exit_code if isinstance(error, ProSegError) else USER_MISTAKE) from None
    except OSError as error:
        if error.errno is None:  # of a library, not of the operating system
            raise
        what = f"{error.filename} cannot be used" if error.filename else "the operating system refused what was asked"
        render.error(f"{what}: {error.strerror}")
        raise typer.Exit(USER_MISTAKE) from None
    except MemoryError:
        render.error("this machine has not enough memory for it: end other programs, or ask for less at a time")
        raise typer.Exit(USER_MISTAKE) from None
    except Stopped:
        render.error("stopped; `proseg-tune resume` goes on from what has been reached")
        raise typer.Exit(INTERRUPTED) from None
    except KeyboardInterrupt:
        render.error("interrupted; what has been reached is kept in the workspace")
        raise typer.Exit(INTERRUPTED) from None
