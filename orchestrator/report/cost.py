"""What a study cost, stage by stage and trial by trial, and what its model costs to use (the paper's Table 6)."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.report.figures import Experts
from orchestrator.report.parts import Cell, Section, Table
from orchestrator.report.published import COST, COST_COLUMNS, LIKE
from orchestrator.results import EVALUATED_ANEW, FoldResult, Trial, read_trials
from orchestrator.study import Study
from orchestrator.trainings import RESULT
from proseg.records import BEST, CONFIG, read_epochs, read_json

MIB = 2**20
MODEL = "model."
"""How the names of a model's weights begin in a checkpoint (`proseg.checkpoint`, which loads torch)."""


@dataclass(frozen=True)
class _Stage:
    name: str
    trainings: int
    epochs: int
    seconds: float
    units: float
    """GPU-hours or CPU-hours."""
    memory: int | None
    """Bytes of GPU memory at most."""


def section(study: Study, results: Sequence[FoldResult], drawn: Sequence[Experts]) -> Section:
    """Three tables of this study, and the paper's beside them where its data are like the paper's."""
    trials = read_trials(study)
    parts = [_stages(study, trials), *([_trials(study, trials)] if trials else [])]
    parts += [table for table in (_inference(drawn),) if table is not None]
    if any(label in LIKE for label in {study.data.label, *(result.label for result in results)}):
        parts.append(_published())
    return Section("Cost (the paper's Table 6)", tuple(_said(study, trials)), tuple(parts))


def _said(study: Study, trials: Sequence[Trial]) -> list[str]:
    said = [f"{study.resources.unit} are weighted by the shares that were held. Seconds of trials are from begin to "
            "end, pauses left out; those of other trainings are of their epochs with validation, without the "
            "evaluation on test patients."]  # fmt: skip
    if all(trial.memory is None for trial in trials):
        said.append("GPU memory was not recorded: " + ("this study ran on CPUs." if not study.resources.gpus
                    else "no epoch has ended on a GPU."))  # fmt: skip
    if study.quote is not None:
        low, high = study.quote.low / 60, study.quote.high / 60
        said.append(f"One rank of the largest configuration needed {study.quote.memory / MIB:.0f} MiB when it was "
                    f"measured before the search; {low:.0f} to {high:.0f} minutes were quoted for all.")  # fmt: skip
    return said


# --- stages -----------------------------------------------------------------------------------------------------------


def _stages(study: Study, trials: Sequence[Trial]) -> Table:
    search = _Stage("search", len(trials), sum(trial.epoch for trial in trials), sum(trial.seconds for trial in trials),
                    sum(trial.cost for trial in trials), _most(trial.memory for trial in trials))  # fmt: skip
    others = (_trained(study, "confirmation", study.folder / "confirm"),
              _trained(study, "final stage", study.folder / "final"))  # fmt: skip
    stages = [search, *(stage for stage in others if stage.trainings)]
    total = _Stage(
        "total", sum(s.trainings for s in stages), sum(s.epochs for s in stages), sum(s.seconds for s in stages),
        sum(s.units for s in stages), _most(s.memory for s in stages),
    )  # fmt: skip
    rows = tuple(
        (s.name, s.trainings, s.epochs, round(s.seconds), s.units, _mebibytes(s.memory)) for s in (*stages, total)
    )
    columns = ("stage", "trainings", "epochs", "training, s", study.resources.unit, "GPU memory, MiB")
    return Table("cost-stages", f"What each stage took ({study.data.label})", columns, rows)


def _trained(study: Study, name: str, folder: Path) -> _Stage:
    """The trainings of a stage outside of the search."""
    trainings = sorted({path.parent for path in folder.glob(f"*/*/{CONFIG}")})
    epochs = [record for training in trainings for record in read_epochs(training)]
    seconds = sum(record.get("seconds", 0.0) for record in epochs)
    units = seconds * study.resources.units_per_trial / 3600
    return _Stage(name, len(trainings), len(epochs), seconds, units, _most(record.get("memory") for record in epochs))


def _most(numbers: Iterable[int | None]) -> int | None:
    """The largest that is known."""
    return max((number for number in numbers if number is not None), default=None)


def _mebibytes(number: int | None) -> int | None:
    return None if number is None else round(number / MIB)


# --- trials -----------------------------------------------------------------------------------------------------------


def _trials(study: Study, trials: Sequence[Trial]) -> Table:
    flops = _flops(study)
    rows = tuple(
        (trial.name, trial.state, trial.epoch, round(trial.seconds, 1), trial.epoch_seconds, trial.cost,
         _mebibytes(trial.memory), weights(study.trial_folder(trial.number) / BEST), flops.get(trial.number))
        for trial in trials
    )  # fmt: skip
    counted = "counted for trials that were confirmed only" if flops else "counted when trials are confirmed: none was"
    return Table(
        "cost-trials", f"What each trial took ({study.data.label})",
        ("trial", "state", "epochs", "seconds", "seconds an epoch", study.resources.unit, "GPU memory, MiB", "weights",
         "GFLOPs a slice"), rows, (f"FLOPs: of the forward and backward pass of one slice; {counted}.",),
    )  # fmt: skip


def weights(checkpoint: Path) -> int | None:
    """Numbers that a model consists of; None where the checkpoint is gone or not whole."""
    from safetensors import SafetensorError, safe_open

    if not checkpoint.is_file():
        return None
    try:
        with safe_open(checkpoint, framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(MODEL)]  # noqa: SIM118, it is no mapping
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except SafetensorError:
        return None


def _flops(study: Study) -> dict[int, float]:
    """GFLOPs of one slice's forward and backward pass, of the trials that were confirmed."""
    found: dict[int, list[float]] = {}
    for path in (study.folder / "confirm").glob(f"*/*/{RESULT}"):
        result = read_json(path, EVALUATED_ANEW)
        found.setdefault(result["trial"], []).append(result["cost"] / 1e9)
    return {number: statistics.fmean(costs) for number, costs in found.items()}


# --- use --------------------------------------------------------------------------------------------------------------


def _inference(drawn: Sequence[Experts]) -> Table | None:
    rows: list[tuple[Cell, ...]] = [
        (one.subject.data.name, one.subject.data.label, what, seconds, weights(one.subject.checkpoint))
        for one in drawn
        for what, seconds in (one.inference or {}).items()
    ]  # fmt: skip
    if not rows:
        return None
    return Table(
        "cost-inference", "What the model costs to use, on this machine", ("model for", "data", "of one image", "CPU-s",
        "weights"), tuple(rows),
        ("Measured when the figures were drawn: one thread of a CPU that other work may have shared, the median of "
         "three.",),
    )  # fmt: skip


def _published() -> Table:
    rows = tuple(("published: other machine", *row) for row in COST)
    return Table(
        "cost-published", "Published (ProSeg paper, Table 6)", ("numbers", "method", *COST_COLUMNS), rows,
        ("Not measured here: RTX 4090, on data that the paper does not name. It does not say of what these seconds are "
         "(an epoch, a volume, a slice): they can be compared with each other, not with the tables above.",),
    )  # fmt: skip
