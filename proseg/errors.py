"""The errors a user can act on. Everything else is a bug and keeps its traceback.

ProSegError
├── ConfigError      a value of a configuration or a search space is not allowed
├── DataError        a data set is missing, damaged, or not what it claims to be
├── CheckpointError  a checkpoint or an exported model cannot be read
│   └── DamagedCheckpoint  it was written by this program and is not whole
├── GraphError       a model cannot be written as a graph
└── TrainingError    training cannot go on (the loss is no longer a finite number)
"""


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


class GraphError(ProSegError):
    """A model cannot be written as a graph."""


class TrainingError(ProSegError):
    """Training cannot go on."""

    exit_code = 1
