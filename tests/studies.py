"""Small studies for tests: a store of random blobs, a space that searches it, and a study's folder as it is left."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from orchestrator.confirm import VERDICT
from orchestrator.estimate import Probe, Timed
from orchestrator.resources import Node, Resources
from orchestrator.results import FoldResult, Trial, TrialLog
from orchestrator.rivals import Score, compare, to_json
from orchestrator.scored import write_cases
from orchestrator.study import DataRef, Final, Study, alone, base_config, write_state, write_study
from proseg.checkpoint import save_checkpoint
from proseg.config import TrainConfig
from proseg.data.case import Slice
from proseg.data.store import Description, Store, write
from proseg.fit import fit
from proseg.records import CASES, DATA, WEIGHTS, write_atomically
from proseg.train import TrainState
from search_spaces.space import SearchSpace, parse_space

M = TypeVar("M", bound=torch.nn.Module)

LABEL, LICENCE = "random blobs, no patient", "none needed: made by a test"
RATERS, SIDE = 2, 16
ONE_TRIAL = Resources(nodes=(Node(cpus=2, gpus=0),), workers=1, gpu_share=0, concurrent=1, threads_per_rank=2)
ENVIRONMENT = {"proseg-tune": "0.1.0", "git": "0123456789ab", "python": "3.11"}


def make_store(
    folder: Path, *, patients: int = 8, slices: int = 2, classes: int = 1, unit: Any = "slice",
    without: Collection[str] = (),
) -> Store:  # fmt: skip
    """A prepared data set; fold 0 trains on 5 of 8 patients, validates on 1 and tests on 2. The last rater annotated
    nothing of the patients `without`."""
    description = Description(
        name="blobs", label=LABEL, licence=LICENCE, unit=unit, sorted_raters=True, window=(-1000.0, 400.0),
        classes=classes,
    )  # fmt: skip
    blobs = _blobs(patients, slices, classes)
    return write(folder, (_without_last_rater(one) if one.patient in without else one for one in blobs), description)


def _without_last_rater(one: Slice) -> Slice:
    present = np.arange(RATERS) < RATERS - 1
    return replace(one, rater_mask=present, annotations=one.annotations * present[:, None, None])


def _blobs(patients: int, slices: int, classes: int) -> Iterator[Slice]:
    """Several classes are rings about the centre of the blob, 1 the outermost."""
    rng, grid = np.random.default_rng(0), np.indices((SIDE, SIDE))
    for patient in range(patients):
        for z in range(slices):
            distance = np.hypot(*(grid - rng.uniform(6, 10, (2, 1, 1))))
            radii = np.sort(rng.uniform(2, 5, RATERS))
            masks = np.stack([distance < radius for radius in radii])
            if classes > 1:
                rings = [np.ceil(classes * (1 - distance / radius).clip(0)) for radius in radii]
                masks = np.stack(rings).clip(0, classes).astype(np.uint8)
            image = (800 * masks.mean(0) / classes - 900 + rng.normal(0, 30, (SIDE, SIDE)))[None].astype(np.int16)
            yield Slice(image, masks, np.ones(RATERS, bool), f"p{patient}", f"p{patient}-n0", float(z), (1.0, 1.0, 1.0))


def space_values(data: str, **changes: Any) -> dict[str, Any]:
    """What a space's file holds: one dimension, two epochs, a model of nothing."""
    return {
        "about": "A test.", "data": data, "budget": {"trials": 4, "epochs": 2},
        "base": {"model.width": 4, "model.levels": 2, "model.z_channels": 2, "model.predictor_width": 4,
                 "batch_size": 4, "optim.grad_clip": 5.0},
        "search": {"optim.lr": {"kind": "float", "low": 0.001, "high": 0.01, "log": True},
                   "model.tau_size": {"kind": "int", "low": 2, "high": 4}},
    } | changes  # fmt: skip


def make_space(data: str = "blobs", **changes: Any) -> SearchSpace:
    return parse_space(space_values(data, **changes), file="test.toml", name="test")


def make_study(home: Path, store: Store, *, name: str = "s1", created: float = 1.0, **changes: Any) -> Study:
    """A study with its folder, finished, without any trial. `changes` are keys of the space."""
    space = make_space(str(store.folder), **changes)
    data = DataRef.of(store.folder, store.manifest)
    study = Study(
        name=name, folder=home / "studies" / name, created=created, space=space,
        base=base_config(space, epochs=space.budget.epochs, seed=0), data=data,
        finals=tuple(Final(stage=stage, data=data, folds=len(store.manifest.folds)) for stage in space.final),
        resources=ONE_TRIAL, trials=space.budget.trials, seed=0, environment=ENVIRONMENT,
    )  # fmt: skip
    study.folder.mkdir(parents=True)
    write_study(study)
    write_state(study, "finished")
    return study


@contextmanager
def running(study: Study) -> Iterator[None]:
    """As another process that runs it keeps it."""
    with alone(study):
        write_state(study, "running")
        yield


def add_trial(study: Study, number: int, objective: float | None, state: Any = "complete", **more: Any) -> Trial:
    """A trial in the study's log, with the records of its epochs; without weights."""
    epoch = more.pop("epoch", study.base.epochs if state == "complete" else 1)
    values = more.pop("values", {"optim.lr": 0.001 * (number + 1), "model.tau_size": 2})
    trial = Trial(number, values, state, epoch, objective, **more)
    TrialLog(study.folder).append(trial)
    if objective is not None:
        write_epochs(study.trial_folder(number), [objective + 0.01 * left for left in reversed(range(epoch))])
    return trial


def write_epochs(folder: Path, objectives: list[float], **metrics: float) -> None:
    """What a training leaves in its folder: one record an epoch, a second apart."""
    records = [
        {"epoch": number, "time": 1000.0 + number, "best": min(objectives[:number]),
         "finished": number == len(objectives), "metrics": {"train/loss": 1.0 / number, "val/ged": value, **metrics}}
        for number, value in enumerate(objectives, start=1)
    ]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_atomically(folder / "epochs.jsonl", lines.encode())
    write_atomically(folder / "config.json", b"{}\n")
    write_atomically(folder / "best.safetensors", b"weights")


def train_trial(study: Study, number: int = 0) -> Trial:
    """A trial that was really trained."""
    values = {"optim.lr": 0.001 * (number + 1), "model.tau_size": 2}
    _train(study, study.trial_folder(number), fold=study.space.fold, values=values)
    record = json.loads((study.trial_folder(number) / "epochs.jsonl").read_text().splitlines()[-1])
    trial = Trial(number, values, "complete", record["epoch"], record["best"])
    TrialLog(study.folder).append(trial)
    return trial


def train_fold(study: Study, trial: Trial, fold: int) -> FoldResult:
    """A fold of the final stage that was really trained; its scores are made up."""
    folder = study.final_folder(study.data.name, fold)
    _train(study, folder, fold=fold, values=trial.values)
    result = fold_result(fold)
    write_atomically(folder / "result.json", json.dumps(vars(result)).encode())
    return result


def score_fold(study: Study, fold: int, values: dict[str, Any], *, patients: bool = True, **changes: Any) -> FoldResult:
    """A fold of the final stage that was evaluated on its test part, with these scores of its cases; without weights.

    Without `patients` as earlier versions left it.
    """
    final = next(final.data for final in study.finals if final.data is not None)
    store, folder = Store(final.folder), study.final_folder(final.name, fold)
    cases = store.cases(store.manifest.folds[fold].test)
    names = [f"{store.volumes[case[0]]}/{store.z[case[0]]:.2f}" for case in cases]
    columns = {name: np.broadcast_to(np.asarray(scores, float), len(cases)) for name, scores in values.items()}
    known = {"patient": [str(store.patients[case[0]]) for case in cases]} if patients else {}
    write_cases(folder / CASES, {**known, "case": names, **columns})
    means = {name: float(np.nanmean(scores)) for name, scores in columns.items() if not np.isnan(scores).all()}
    result = fold_result(fold, data=final.name, label=final.label, cases=len(cases), metrics=means, **changes)
    write_atomically(folder / "result.json", json.dumps(vars(result)).encode())
    return result


def _train(study: Study, folder: Path, *, fold: int, values: dict[str, Any]) -> None:
    part = Store(study.data.folder).manifest.folds[fold]
    list(fit(study.config_of(values), study.data.folder, part, folder, study.criterion))


def confirm(study: Study, *, leader: int, chosen: int) -> None:
    """A comparison of two trials of which the cheaper is taken, as they do not differ."""
    patients = ["a", "b", "c"]
    scores = [Score(leader, 0, patients, [0.3, 0.3, 0.3], 2.0), Score(chosen, 0, patients, [0.3, 0.4, 0.3], 1.0)]
    verdict = compare(scores, maximize=False)
    assert (verdict.leader, verdict.chosen) == (leader, chosen)
    write_atomically(study.folder / VERDICT, json.dumps(to_json(verdict)).encode())


def fold_result(fold: int, ged: float = 0.2, dice: float = 0.9, **changes: Any) -> FoldResult:
    """The scores of one fold: GED as given, every Dice the same."""
    names = ["dice_soft", "dice_max", "dice_match"]
    metrics = {"ged": ged, **dict.fromkeys(names, dice)}
    metrics |= {"prior_ged_unbiased": ged / 2, **{f"prior_{name}": value for name, value in metrics.items()}}
    metrics |= {"dice_a1": dice, "dice_a2": dice, "dice_mean": dice}
    values: dict[str, Any] = {"data": "blobs", "label": LABEL, "fold": fold, "cases": 4, "patients": 2,
              "samples": RATERS, "prior_samples": 50, "epoch": 2, "metrics": metrics}  # fmt: skip
    return FoldResult(**values | changes)


def probe_of(study: Study, *, remotely: bool = False, meanwhile: Any = None, **changes: Any) -> Probe:
    """What a probe might measure, in the place of one: 10 s an epoch and 5 s on a test part, whatever the data."""
    timed = Timed(step=0.1, spread=0.2, epoch=10.0, test=5.0)
    finals = tuple(timed for final in study.finals if final.data is not None)
    known = {"memory": 2**20, "room": 2**30, "gpu": False, "weights": 1000}
    return Probe(search=timed, finals=finals, **known | changes)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def awake(model: M) -> M:
    """The predictor of a fresh model does not hear tau yet; this one does."""
    if hasattr(model, "from_tau"):
        torch.nn.init.normal_(model.from_tau[-1].weight)
    return model


def random_export(folder: Path, config: TrainConfig, store: Store) -> Path:
    """The folder of an exported model of a store, with random weights; made here."""
    folder.mkdir()
    with torch.random.fork_rng():
        state = TrainState.fresh(config, store, torch.device("cpu"))
    save_checkpoint(folder / WEIGHTS, state.checkpoint(config, {}, resumable=False))
    (folder / DATA).write_text(json.dumps(store.manifest.model_dump(mode="json", exclude={"folds"})))
    return folder
