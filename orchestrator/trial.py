"""What Ray calls in a trial of the search, in a process that holds the trial's cores and GPUs already."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.study import read_study
from proseg.errors import ProSegError
from proseg.records import write_atomically

FAILURE = "failure.json"


def run_trial(suggestion: dict[str, Any], study_folder: str) -> None:
    """Train one configuration, reporting to Ray Tune after every epoch."""
    import torch
    from ray import tune

    from proseg.data.store import Store
    from proseg.distributed import run_ranks
    from proseg.fit import fit

    study = read_study(Path(study_folder))
    folder, criterion, workers = study.trial_folder(suggestion["number"]), study.criterion, study.resources.workers
    torch.set_num_threads(study.resources.threads_per_rank * workers)
    with failure_recorded(folder):
        config = study.config_of(suggestion["values"])
        fold = Store(study.data.folder).manifest.folds[study.space.fold]
        for record in run_ranks(fit, config, study.data.folder, fold, folder, criterion, ranks=workers):
            value = criterion.of(record["metrics"])
            tune.report({criterion.metric: value, **{key: record[key] for key in ("epoch", "best", "finished")}})


@contextmanager
def failure_recorded(folder: Path) -> Iterator[None]:
    """Keep why a training failed, whatever it was, where the driver finds it: the study goes on without it.

    One sentence for the tables, the traceback for the developer; the error goes on to Ray.
    """
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, ProSegError) else f"{type(error).__name__}: {error}"
        record = {"reason": " ".join(reason.split()), "traceback": traceback.format_exc()}
        write_atomically(folder / FAILURE, json.dumps(record, indent=1).encode())
        raise


def failure_of(folder: Path) -> str:
    """Why the training of this folder failed."""
    path = folder / FAILURE
    return json.loads(path.read_text())["reason"] if path.exists() else "its process ended without a word"
