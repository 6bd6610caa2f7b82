"""`python -m orchestrator.rescore MODEL DATA PRIOR_SAMPLES PART FOLD THREADS OUT`: an exported model scored anew.

Run in a fresh process by `orchestrator.verify`, so that nothing in memory stands for what lies on the disk. OUT is a
folder; what was found is written there as JSON, and the scores of all cases as Parquet.
"""

import json
import sys
from pathlib import Path

from orchestrator.environment import environment
from orchestrator.scored import write_cases
from orchestrator.stored import terms
from orchestrator.study import StudyError
from proseg.errors import ProSegError

FOUND, SCORES = "found.json", "scores.parquet"


def rescore(model: Path, data: Path, *, prior_samples: int, part: str, fold: int, threads: int, out: Path) -> None:
    """Load a model as its user does, read all of the data, and score it on a part of a fold.

    Raises:
        CheckpointError, DataError, StudyError: model or data are damaged, or do not fit each other.
    """
    import torch

    import proseg
    from proseg.data.store import Store
    from proseg.distributed import device_kind
    from proseg.evaluate import score
    from proseg.train import channels_last

    torch.set_num_threads(threads)
    exported, store = proseg.load(model), Store(data)
    store.verify()
    m = exported.model
    if (m.channels, m.raters, m.classes) != (store.manifest.channels, store.manifest.raters, store.manifest.classes):
        raise StudyError(f"the weights in {model} are those of a model of other data than {data} holds")
    if fold >= len(store.manifest.folds):
        raise StudyError(f"{data} has no fold {fold}")
    where = store.manifest.folds[fold]
    # As in training: where a computation rounds differently in another layout, the numbers are equal all the same.
    m = m if part == "test" else channels_last(m)
    scores = score(m, store, store.cases(where.test if part == "test" else where.val), prior_samples=prior_samples)
    write_cases(out / SCORES, {"case": scores.cases, **scores.values})
    found = {
        "config": exported.config.model_dump(), "means": scores.means(), "device": device_kind(),
        "terms": terms(exported.config, m.raters, prior_samples), "threads": torch.get_num_threads(),
        "versions": environment(),
    }  # fmt: skip
    (out / FOUND).write_text(json.dumps(found), encoding="utf-8")


def main(words: list[str]) -> int:
    model, data, prior_samples, part, fold, threads, out = words
    try:
        rescore(Path(model), Path(data), prior_samples=int(prior_samples), part=part, fold=int(fold),
                threads=int(threads), out=Path(out))  # fmt: skip
    except ProSegError as error:
        (Path(out) / FOUND).write_text(json.dumps({"error": str(error)}), encoding="utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
