"""What Ray calls: one trial of the search, one fold of the final stage. Both hold their cores and GPUs already."""

import json
import traceback
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
    folder = study.trial_folder(suggestion["number"])
    torch.set_num_threads(study.resources.threads_per_rank * study.resources.workers)
    try:
        config = study.config_of(suggestion["values"])
        fold = Store(study.data.folder).manifest.folds[study.space.fold]
        criterion = study.criterion
        for record in run_ranks(fit, config, study.data.folder, fold, folder, criterion, ranks=study.resources.workers):
            value = criterion.of(record["metrics"])
            tune.report({"epoch": record["epoch"], criterion.metric: value, "best": record["best"]})
    except Exception as error:  # one trial of many: its reason is kept, Ray is told, the study goes on
        record_failure(folder, error)
        raise


def record_failure(folder: Path, error: Exception) -> None:
    """Write why a training failed: one sentence for the tables, the traceback for the developer."""
    reason = str(error) if isinstance(error, ProSegError) else f"{type(error).__name__}: {error}"
    record = {"reason": " ".join(reason.split()), "traceback": traceback.format_exc()}
    write_atomically(folder / FAILURE, json.dumps(record, indent=1).encode())


def failure_of(folder: Path) -> str:
    path = folder / FAILURE
    return json.loads(path.read_text())["reason"] if path.exists() else "its process ended without a word"
