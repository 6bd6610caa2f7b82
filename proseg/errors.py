"""The errors a user can act on. Everything else is a bug and keeps its traceback.

ProSegError
├── ConfigError      a value of a configuration or a search space is not allowed
├── DataError        a data set is missing, damaged, or not what it claims to be
│   └── ManyFaults   several things are wrong with it
├── CheckpointError  a checkpoint or an exported model cannot be read
│   └── DamagedCheckpoint  it was written by this program and is not whole
├── RecordError      a file that a training or a study wrote is damaged
├── GraphError       a model cannot be written as a graph
└── TrainingError    training cannot go on (the loss is no longer a finite number)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class ProSegError(Exception):
    """Base of all errors whose message tells the user what is wrong and what to do."""

    exit_code = 2
    """Of a command that ends with it: 2, a mistake in what was asked for; 1, what was asked for did not succeed."""


class ConfigError(ProSegError):
    """A value of a configuration or a search space is not allowed."""


class DataError(ProSegError):
    """A data set is missing, damaged, or not what it claims to be."""


class CheckpointError(ProSegError):
    """A checkpoint or an exported model cannot be read."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not whole; an older one may be."""


class RecordError(ProSegError):
    """A file that a training or a study wrote is damaged."""


class GraphError(ProSegError):
    """A model cannot be written as a graph."""


class TrainingError(ProSegError):
    """Training cannot go on."""

    exit_code = 1


class ManyFaults(DataError):
    """Several faults of one data set, told at once."""

    SHOWN = 10

    def __init__(self, sentences: Sequence[str]):
        self.sentences = sentences
        more = len(sentences) - self.SHOWN
        last = [f"and {more} more"] if more > 0 else []
        super().__init__("\n  ".join([f"{len(sentences)} faults were found:", *sentences[: self.SHOWN], *last]))

    def __reduce__(self):
        return ManyFaults, (self.sentences,)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class Faults:
    """What is wrong with a user's data, collected so that all of it is told at once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, *sentences: str) -> None:
        self.sentences += sentences

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take a DataError for one of the faults, and go on."""
        try:
            yield
        except DataError as error:
            self.add(*(error.sentences if isinstance(error, ManyFaults) else [str(error)]))

    def check(self) -> None:
        """Raises DataError with all that was found, if anything was."""
        if len(self.sentences) == 1:
            raise DataError(self.sentences[0])
        if self.sentences:
            raise ManyFaults(self.sentences)
