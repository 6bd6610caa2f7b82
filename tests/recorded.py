"""A study as MLflow's store holds it, for tests of its pages: the runs, with all that `orchestrator.pages` says."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from orchestrator import pages
from orchestrator.results import Trial
from orchestrator.stores import artifact_folder, local_uri, quieten
from orchestrator.study import Study
from proseg.records import read_epochs

STATUS = {"running": "RUNNING", "failed": "FAILED", "interrupted": "KILLED"}


def record(study: Study, home: Path, trials: Sequence[Trial], pictures: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """Write the study into the workspace's store, which is new.

    Args:
        pictures: {trial's name: its sample picture, [H, W, 3] uint8}.

    Returns: the experiment, and the study's run.
    """
    quieten()
    (home / "mlflow").mkdir(parents=True, exist_ok=True)
    client = MlflowClient(local_uri(home))
    experiment = client.create_experiment(
        f"proseg-tune/{study.space.name}", artifact_location=(artifact_folder(home) / study.space.name).as_uri(),
        tags={"mlflow.experimentKind": "custom_model_development"},
    )  # fmt: skip
    common = {"proseg.study": study.name, "proseg.data_label": study.data.label}
    parent = client.create_run(experiment, run_name=study.name, tags=common | {"proseg.kind": "study"}).info.run_id
    runs: dict[str, str] = {}
    for trial in trials:
        tags = common | {"proseg.kind": "trial", "mlflow.parentRunId": parent}
        run = client.create_run(experiment, run_name=pages.run_name(trial), tags=tags).info.run_id
        _record_trial(client, run, study, trial)
        if trial.name in pictures:
            step = pages.SAMPLES_STEP
            client.log_image(run, pictures[trial.name], key=pages.SAMPLES, step=step, synchronous=True)
        runs[trial.name] = run
    client.set_tag(parent, pages.NOTE, pages.note(study, trials, experiment=experiment, runs=runs))
    client.set_terminated(parent)
    client.set_experiment_tag(experiment, *pages.saved_view(study))
    return experiment, parent


def _record_trial(client: MlflowClient, run: str, study: Study, trial: Trial) -> None:
    epochs = read_epochs(study.trial_folder(trial.number))
    params = pages.trial_params(study, trial, study.config_of(trial.values))
    points = [
        Metric(name, value, int(1000 * record["time"]), record["epoch"])
        for record in epochs
        for name, value in (record["metrics"] | {pages.objective(study): record["best"]}).items()
    ]
    now = int(1000 * (epochs[-1]["time"] if epochs else study.created))
    if trial.state != "running":
        summary = pages.trial_summary(study, trial, epochs)
        points += [Metric(name, value, now, trial.epoch) for name, value in summary.items()]
    tags = [RunTag(name, value) for name, value in pages.trial_tags(trial).items()]
    client.log_batch(run, metrics=points, params=[Param(k, str(v)) for k, v in params.items()], tags=tags)
    client.update_run(run, status=STATUS.get(trial.state, "FINISHED"))
