"""What the tests share: real outlines, small stores made of them, and a configuration that trains in seconds."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.study import Study
from proseg.config import TrainConfig, parse
from proseg.data.case import Slice
from proseg.data.folds import Fold
from proseg.data.lidc_contours import load_nodules, rank_by_area
from proseg.data.render import Nodule, render
from proseg.data.store import Description, Store, write
from tests.studies import make_store, make_study

PATIENTS = 20
SIDE = 32
MIDDLE = slice(64 - SIDE // 2, 64 + SIDE // 2)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def global_rng() -> Iterator[None]:
    """Puts the global generators back as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@pytest.fixture(scope="session")
def all_nodules() -> list[Nodule]:
    return load_nodules()


@pytest.fixture(scope="session")
def nodule_of_each(all_nodules: list[Nodule]) -> list[Nodule]:
    """One nodule of at least three slices of each of the first patients."""
    by_patient = {nodule.patient: nodule for nodule in all_nodules if len(nodule.z) >= 3}
    return [by_patient[patient] for patient in sorted(by_patient)[:PATIENTS]]


@pytest.fixture(scope="session")
def real_slices(nodule_of_each: list[Nodule]) -> list[Slice]:
    """The lowest slice of every nodule, where some raters are missing, and the one in its middle."""
    return [one for nodule in nodule_of_each for one in _rendered(nodule)]


def _rendered(nodule: Nodule) -> Iterator[Slice]:
    wanted = np.zeros(len(nodule.z), bool)
    wanted[[0, len(wanted) // 2]] = True
    for k, image in zip(np.flatnonzero(wanted), render(nodule, wanted), strict=True):
        yield _slice(nodule, k, image[None], rank_by_area(nodule.masks[k]))


def _slice(nodule: Nodule, k: int, image: np.ndarray, masks: np.ndarray) -> Slice:
    return Slice(
        image=np.ascontiguousarray(image[:, MIDDLE, MIDDLE]),
        annotations=np.ascontiguousarray(masks[:, MIDDLE, MIDDLE]),
        rater_mask=masks.any((1, 2)),
        patient=nodule.patient,
        volume="/".join(map(str, nodule.ids)),
        z=float(nodule.z[k]),
        spacing=(nodule.slice_spacing, nodule.pixel_spacing, nodule.pixel_spacing),
    )


@pytest.fixture(scope="session")
def description() -> Description:
    return Description(
        name="tiny", label="real contours, simulated intensities", licence="CC BY 3.0", unit="slice",
        sorted_raters=True, window=(-1000.0, 400.0),
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory, real_slices: list[Slice], description: Description) -> Store:
    """40 slices of 20 patients, 32 x 32; tests must not change it."""
    return write(tmp_path_factory.mktemp("tiny") / "store", real_slices, description)


@pytest.fixture(scope="session")
def volume_store(
    tmp_path_factory: pytest.TempPathFactory, nodule_of_each: list[Nodule], description: Description
) -> Store:
    """Ten volumes of three slices in three channels, float32; a patient with two volumes is among them."""
    rng = np.random.default_rng(0)
    patients = {nodule.patient: nodule.patient for nodule in nodule_of_each[:10]}
    first, second = list(patients)[:2]
    patients[second] = first

    def slices() -> Iterator[Slice]:
        for nodule in nodule_of_each[:10]:
            middle = len(nodule.z) // 2
            for k in (middle - 1, middle, middle + 1):
                masks = nodule.masks[k]
                image = masks.mean(0) + 0.1 * rng.normal(size=(3, *masks.shape[1:]))
                one = _slice(nodule, k, image.astype(np.float32), masks)
                yield Slice(**{**vars(one), "patient": patients[nodule.patient]})

    names = sorted(set(patients.values()))
    fold = Fold(0, tuple(names[3:]), (first, names[2]), (names[1],))
    volumes = description.model_copy(update={"unit": "volume", "window": None, "sorted_raters": False})
    return write(tmp_path_factory.mktemp("volumes") / "store", slices(), volumes, (fold,))


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    return parse({
        "model": {"width": 4, "levels": 2, "z_channels": 2, "z_grid": 4, "tau_size": 3, "predictor_width": 8},
        "loss": {"beta_z": 0.01, "beta_tau": 0.01},
        "optim": {"lr": 1e-2, "schedule": "onecycle", "grad_clip": 5.0},
        "data": {"noise": 0.05},
        "epochs": 3,
        "batch_size": 6,
    })  # fmt: skip


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Store], Path]:
    """Copies a store to a folder that a test may damage."""

    def copy(store: Store) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        for file in store.folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return copy


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A small store of blobs; modules with other needs have their own."""
    return make_store(tmp_path_factory.mktemp("data") / "blobs")


@pytest.fixture
def study(tmp_path: Path, store: Store) -> Study:
    """A study that has been created, without trials."""
    return make_study(tmp_path, store)
