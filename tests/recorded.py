"""A study as MLflow's store holds it, for tests of its pages: told by the tracker and sent by the shipper, as launch
does it, from the folders that a study leaves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from orchestrator.results import Trial, best_trial
from orchestrator.shipper import Shipping
from orchestrator.stores import check_store, local_uri
from orchestrator.study import Study
from orchestrator.tracking import SpoolTracker
from proseg.pictures import Samples
from proseg.records import SAMPLES
from tests.studies import RATERS, SIDE


def record(study: Study, home: Path, trials: Sequence[Trial]) -> tuple[str, str]:
    """Send a study that was interrupted while some of its trials ran into the workspace's own store.

    Returns: the experiment, and the study's run.
    """
    tracker = SpoolTracker(study)
    for trial in trials:
        tracker.trial_started(trial)
        tracker.trial_epochs(trial)
        if trial.state != "running":
            tracker.trial_ended(trial)
    tracker.study_ended("interrupted", best_trial(trials, study.criterion), {}, "")
    ship(study, home)
    client = MlflowClient(local_uri(home))
    experiment = client.get_experiment_by_name(f"proseg-tune/{study.space.name}")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`proseg.uid` = '{study.name}/study'")
    return experiment.experiment_id, run.info.run_id


def ship(study: Study, home: Path) -> Shipping:
    """Send all there is into the workspace's own store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        check_store(home)
        shipping = Shipping(study, home)
        while shipping.ship(local_uri(home)):
            pass
    return shipping


def write_samples(folder: Path, *, label: str = "blobs", epoch: int = 1, seed: int = 0) -> None:
    """What a training keeps for the picture of its best weights: one slice with a square of each rater."""
    image = np.random.default_rng(seed).integers(0, 200, (1, SIDE, SIDE), np.uint8)
    masks = np.zeros((1, RATERS, SIDE, SIDE), np.uint8)
    for rater in range(RATERS):
        masks[0, rater, 4 : 9 + rater, 4 : 9 + rater] = 1
    samples = Samples(label, epoch, 16, image, masks, np.ones((1, RATERS), bool), masks, 255 * masks[:, 0])
    samples.write(folder / SAMPLES)
