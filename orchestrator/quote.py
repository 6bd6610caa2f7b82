"""What a study is expected to cost, from a few measured training steps."""

from pydantic import BaseModel, ConfigDict


class Stage(BaseModel):
    """One stage, between its least and its most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    """Seconds, if early stopping ends as many trials as it can; the same as `high` where nothing is stopped."""
    high: float
    """Seconds, if every training runs to its last epoch."""


class Quote(BaseModel):
    """Times are wall times with as many trainings at a time as the study runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: float
    """Seconds of a training step of the largest configuration."""
    epoch: float
    """Seconds of an epoch of it, with its validation."""
    spread: float
    """Of the steps that were timed: (slowest - fastest) / median."""
    search: Stage
    confirm: Stage
    final: Stage
    unit: str
    """GPU-hours, or core-hours."""
    rate: float
    """Units per hour while all places are taken."""
    memory: int
    """Bytes that one rank of the largest configuration needs: of its GPU, or of the machine."""
    checkpoint: int
    """Bytes of a checkpoint that resumes."""
    disk: int
    """Bytes of the study's folder at most, artifacts in the workspace's MLflow store included."""

    @property
    def low(self) -> float:
        return self.search.low + self.confirm.low + self.final.low

    @property
    def high(self) -> float:
        return self.search.high + self.confirm.high + self.final.high

    @property
    def after_search(self) -> float:
        """Seconds that confirmation and final stage take."""
        return self.confirm.high + self.final.high

    def units(self, seconds: float) -> float:
        return self.rate * seconds / 3600
