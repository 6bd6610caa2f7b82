"""What a user's mistake comes to: one sentence and an exit code."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cli import render

USER_MISTAKE = 2
INTERRUPTED = 130
PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENOENT}
"""What the operating system says of a place that the user chose and that cannot be written or read."""


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
        if error.errno not in PLACES:
            raise
        render.error(f"{error.filename or 'a file'} cannot be used: {error.strerror}")
        raise typer.Exit(USER_MISTAKE) from None
    except Stopped:
        render.error("stopped; `proseg-tune resume` goes on from what has been reached")
        raise typer.Exit(INTERRUPTED) from None
    except KeyboardInterrupt:
        render.error("interrupted; what has been reached is kept in the workspace")
        raise typer.Exit(INTERRUPTED) from None
