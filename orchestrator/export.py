"""Take a model away: a self-contained folder with its weights, its numbers and a card that says what it rests on."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.confirm import read_verdict
from orchestrator.results import FoldResult, Trial, front, read_results, read_trials, winner_of
from orchestrator.retrain import planned
from orchestrator.rivals import sentence, to_json
from orchestrator.scored import anonymous_cases, write_cases
from orchestrator.stored import VERIFY, write_stored
from orchestrator.study import Study, StudyError
from orchestrator.tables import final_markdown
from proseg.config import TrainConfig
from proseg.records import (
    BEST,
    CARD,
    CASES,
    CONFIG,
    DATA,
    ENVIRONMENT,
    GRAPHS,
    METRICS,
    WEIGHTS,
    read_json,
    whole_folder,
    write_atomically,
)

if TYPE_CHECKING:
    from orchestrator.prefer import Preference

RECORD = "export.json"
OURS = {WEIGHTS, CONFIG, DATA, METRICS, ENVIRONMENT, CARD, CASES, VERIFY, *GRAPHS.values()}


def winner(study: Study) -> Trial:
    """The trial that the comparison of the best chose; without one the best of the search.

    Raises:
        StudyError: no trial has come to a score yet.
    """
    found = winner_of(read_trials(study), read_verdict(study), study.criterion)
    if found is None:
        raise StudyError(f"study {study.name} has no finished trial yet")
    return found


def best_record(study: Study, preferred: Trial | None = None) -> dict[str, Any]:
    """What `best --json` prints: of the winner, or of the trial that is preferred to it."""
    trial = preferred or winner(study)
    return {
        "study": study.name, "trial": trial.number, "values": trial.values,
        "config": study.config_of(trial.values).model_dump(),
        "final_configs": {data.name: config.model_dump() for data, fold, config in planned(study, trial.values)},
        "objective": {"metric": study.criterion.metric, "goal": study.space.objective.direction,
                      "value": trial.objective, "part": "validation"},
        "confirmation": _confirmation(study),
        "front": [{"trial": t.number, "objectives": [t.objective, t.second]}
                  for t in (front(read_trials(study), study.criteria) if study.second else [])],
        "data": {"name": study.data.name, "label": study.data.label, "fingerprint": study.data.fingerprint},
        "folds": [asdict(result) for result in _results(study, trial)],
        "export": exported_to(study),
    }  # fmt: skip


def _results(study: Study, trial: Trial) -> list[FoldResult]:
    """Of the final stage, which retrains the winner and nobody else."""
    return read_results(study) if trial.number == winner(study).number else []


def _confirmation(study: Study) -> dict[str, Any] | None:
    verdict = read_verdict(study)
    return verdict and {**to_json(verdict), "sentence": sentence(verdict, study.criterion.metric)}


def exported_to(study: Study) -> str | None:
    """Where this study's model was last exported to."""
    path = study.folder / RECORD
    known = read_json(path, "delete it, as it only says where the model was exported to") if path.exists() else {}
    folder = study.home / known["folder"] if "folder" in known else None
    return str(folder) if folder and (folder / WEIGHTS).exists() else None


def export(
    study: Study, folder: Path, *, force: bool = False, choice: "Preference | None" = None, graphs: Sequence[str] = (),
    remember: bool = True,
) -> bool:  # fmt: skip
    """Write the export folder, whole or not at all.

    The weights are those of the final stage on the fold that was searched on, whose test patients played no part in
    the search; without a final stage, or for a trial that is preferred to the winner, those of the trial itself.

    Args:
        choice: a trial that is preferred to the winner.
        graphs: formats of `proseg.graph` to write beside the weights.
        remember: note in the study where the export lies.

    Returns whether it is noted there: a study of somebody else, whose folder cannot be written, is exported as well.

    Raises:
        StudyError: there is nothing to export, or the folder exists.
        GraphError: the model cannot be written in one of the formats.
    """
    trial = choice.trial if choice else winner(study)
    folder = folder.resolve()
    check_target(folder, force)
    results = _results(study, trial)
    source = study.final_folder(study.data.name, study.space.fold) / BEST
    retrained = any((r.data, r.fold) == (study.data.name, study.space.fold) for r in results)
    if not retrained:
        source = study.trial_folder(trial.number) / BEST
    try:
        with whole_folder(folder) as partial:
            _write(study, trial, source, partial, retrained, choice, graphs)
    except OSError as error:
        raise StudyError(f"--export {folder} cannot be written: {error.strerror or error}") from None
    noted = remember and os.access(study.folder, os.W_OK)
    if noted:
        kept = folder.relative_to(study.home) if folder.is_relative_to(study.home) else folder
        write_atomically(study.folder / RECORD, json.dumps({"folder": str(kept)}).encode())
    return noted


def check_target(folder: Path, force: bool) -> None:
    """Raises StudyError where a folder is there that an export may not take the place of."""
    if not folder.exists():
        return
    if not force:
        raise StudyError(f"--export {folder} exists; choose another folder, or add --force to replace it")
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - OURS:
        raise StudyError(
            f"--export {folder} holds files that are not an export of this program; --force replaces exports only"
        )


def _write(
    study: Study, trial: Trial, source: Path, folder: Path, retrained: bool, choice: "Preference | None",
    graphs: Sequence[str],
) -> None:  # fmt: skip
    from proseg.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(source)
    store = study.data.store()
    results = _results(study, trial)
    data = store.manifest.model_dump(mode="json", exclude={"folds", "bytes", "format"})
    metrics = {
        "study": study.name, "trial": trial.number, "validation": checkpoint.metrics, "epoch": checkpoint.epoch,
        "fold": study.space.fold, "retrained": retrained, "folds": [asdict(result) for result in results],
        "preferred": choice and choice.sentences,
    }  # fmt: skip
    shutil.copyfile(source, folder / WEIGHTS)
    here = (study.data.name, study.space.fold)
    fold = next(r for r in results if (r.data, r.fold) == here) if retrained else None
    if fold and (source.parent / CASES).exists():
        write_cases(folder / CASES, anonymous_cases(study, fold))
    for name, content in ((CONFIG, checkpoint.config.model_dump()), (DATA, data), (METRICS, metrics),
                          (ENVIRONMENT, study.environment)):  # fmt: skip
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(
        _card(study, trial, checkpoint.config, data, results, retrained, choice), encoding="utf-8"
    )
    if graphs:
        _write_graphs(folder, graphs)
    write_stored(folder, study, trial.number, checkpoint, store, fold)


def _write_graphs(folder: Path, formats: Sequence[str]) -> None:
    from proseg.exported import load
    from proseg.graph import described, write

    model = load(folder)
    write(model, folder, formats)
    with open(folder / CARD, "a", encoding="utf-8") as card:
        card.write(described(model, formats))


def _card(
    study: Study, trial: Trial, config: TrainConfig, data: dict[str, Any], results: list[FoldResult], retrained: bool,
    choice: "Preference | None",
) -> str:  # fmt: skip
    shape = f"[{data['channels']}, {config.data.crop or data['height']}, {config.data.crop or data['width']}]"
    intensities = f"mapped from {data['window']} to -1..1 by the model" if data["window"] else "already normalised"
    training = (
        f"Retrained on the training patients of fold {study.space.fold}; its validation patients chose the epoch, its "
        "test patients played no part in search or training."
        if retrained
        else f"A trial of the search, trained on fold {study.space.fold}; NOT evaluated on held-out patients."
    )
    chosen = f"by {study.criterion.metric} on validation patients ({trial.objective:.4f})."
    if choice:
        chosen += f" Preferred for {choice.word}: {' '.join(choice.sentences)}"
    raters = "virtual (sorted by area in each image, 1 the smallest)" if data["sorted_raters"] else "the data set's own"
    fields = "\n".join(f"| {name} | {value} |" for name, value in config.flat().items())
    versions = ", ".join(f"{name} {value}" for name, value in study.environment.items())
    return f"""# ProSeg model of study {study.name}

> **{data["name"]}: {data["label"]}.** Not a medical device; for research only.

```python
import proseg
model = proseg.load("path/of/this/folder")
result = model.predict(image)   # image: {shape}; result.raters [R, H, W], .mean [H, W], .samples [S, H, W]
```

Needs the package proseg-tune {study.environment["proseg-tune"]} or newer. Loading executes no code from this folder:
weights are safetensors, the rest is JSON.

- **Input**: {data["channels"]} channel(s), intensities {intensities}. Trained on
  {shape}; other sizes are accepted, but z's noise is drawn on a grid that stretches with the image: samples were
  measured at this size only.
- **Raters**: {data["raters"]}, {raters}.
- **Training**: {training}
- **Chosen** as trial {trial.number} {chosen}
- **Data**: {data["slices"]} slices of {data["patients"]} patients, licence {data["licence"]}, fingerprint
  `{data["fingerprint"]}`.

{final_markdown(study, results) if results else "No fold of a final stage was trained with this configuration."}
## Configuration

| field | value |
|---|---|
{fields}

Made with {versions}.
"""
