"""The winner of a study in MLflow's registry: a version of `proseg-<space>`, loaded and served without a pickle.

A version is the export folder (safetensors and JSON), the source of the package `proseg`, without its data, and the
MLmodel file that names `proseg.served` as the loader. The same weights of the same run are one version, however often
they are registered.

The alias `champion` says which version to use. It goes to the first version of a name; to a later one of the same
study; and to one of another study if its weights are better by the same metric, measured on the same validation
patients with as many samples (`MEASURED`). Numbers that cannot be compared move nothing: there a person decides. Test
patients choose no champion. What was decided, and why, is a tag of the version, and is not decided again.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.export import export, winner
from orchestrator.pages import experiment_name
from orchestrator.stores import check_store, first_line, store_name, tracking_uri
from orchestrator.study import Study, StudyError
from orchestrator.words import slug
from proseg.config import TrainConfig, parse
from proseg.errors import CheckpointError, ConfigError, DataError
from proseg.records import CONFIG, DATA, GRAPHS, METRICS, WEIGHTS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CHAMPION = "champion"
LOADER = "proseg.served"
REQUIREMENTS = ("mlflow", "numpy", "pyarrow", "pydantic", "safetensors", "scipy", "torch")
"""What `LOADER` imports, by the name of the package to install."""
EXAMPLE_SIDE = 8
"""Of the image in the example of a request, pixels: it shows the form, not a case."""
DIGEST, MEASURED, VALUE, GOAL, DECISION = (
    "proseg.weights", "proseg.measured_on", "proseg.validation", "proseg.goal", "proseg.champion",
)  # fmt: skip
"""Tags of a version."""


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: str
    champion: bool
    reason: str
    """Why it is the champion, or why another one is."""

    @property
    def uri(self) -> str:
        """As MLflow takes it."""
        return f"models:/{self.name}@{CHAMPION}" if self.champion else f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class _Winner:
    """What is told of an export."""

    folder: Path
    run_id: str
    config: TrainConfig
    data: dict[str, Any]
    tags: dict[str, str]


def model_name(study: Study) -> str:
    """Of the registered model; MLflow takes no slash and no colon."""
    return f"proseg-{slug(study.space.name)}"


def promote(study: Study, home: Path) -> Registered:
    """Register a study's winner and make it the champion, as somebody asks for it.

    Raises:
        StudyError: there is nothing to register, or MLflow does not do it.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    check_store(home)
    client = MlflowClient(tracking_uri(home))
    try:
        return register_winner(client, _run_of(client, study), study, champion=True)
    except (MlflowException, OSError) as error:
        raise StudyError(f"MLflow at {store_name(home)} did not register the model: {first_line(error)}") from None


def _run_of(client: "MlflowClient", study: Study) -> str:
    experiment = client.get_experiment_by_name(experiment_name(study))
    query = f"tags.`proseg.uid` = '{study.key}/study'"
    runs = client.search_runs([experiment.experiment_id], query, max_results=1) if experiment else []
    if not runs:
        raise StudyError(f"study {study.name} has no run in MLflow; `proseg-tune sync {study.name}` makes it")
    return runs[0].info.run_id


def register_winner(client: "MlflowClient", run_id: str, study: Study, *, champion: bool = False) -> Registered:
    """Export a study's winner to a temporary folder and register it. As `register`."""
    with tempfile.TemporaryDirectory(prefix="proseg-") as temporary:
        folder = Path(temporary) / "export"
        try:
            export(study, folder, remember=False)
        except (CheckpointError, DataError) as error:
            raise StudyError(f"the winner of {study.name} cannot be exported: {error}") from None
        return register(client, run_id, study, folder, champion=champion)


def register(client: "MlflowClient", run_id: str, study: Study, folder: Path, *, champion: bool = False) -> Registered:
    """Make an exported winner a version of the space's registered model, and decide who is its champion.

    May be repeated after any failure: what is there is not made twice.

    Args:
        client: of a store or a server; `orchestrator.stores.quieten` has made its waits short.
        run_id: of the study's run.
        folder: the export of the winner.
        champion: it becomes the champion whatever the numbers say.

    Raises:
        StudyError: the folder is not a whole export.
        MlflowException, OSError: MLflow does not answer or refuses.
    """
    found, name = _read(study, run_id, folder), model_name(study)
    _open(client, name, study)
    version = _version_of(client, name, found) or _add(client, name, found)
    return _decide(client, name, version, asked=champion)


# What is known of it


def _read(study: Study, run_id: str, folder: Path) -> _Winner:
    try:
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        config = parse((folder / CONFIG).read_text(encoding="utf-8"))
        data, metrics = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (DATA, METRICS))
        value = metrics["validation"].get(f"val/{study.criterion.metric}")
        tags = {
            "proseg.study": study.key, "proseg.space": study.space.name, "proseg.trial": str(metrics["trial"]),
            "proseg.data": data["name"], "proseg.data_label": data["label"],
            "proseg.data_digest": data["fingerprint"][:12], "proseg.metric": study.criterion.metric,
            "proseg.objective": repr(winner(study).objective), GOAL: study.space.objective.direction,
            MEASURED: _measured(study, config, data), DIGEST: digest,
        } | ({} if value is None else {VALUE: repr(value)})  # fmt: skip
    except (FileNotFoundError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise StudyError(f"{folder} is not a whole export of {study.name}: {error}") from None
    return _Winner(folder, run_id, config, data, tags)


def _measured(study: Study, config: TrainConfig, data: dict[str, Any]) -> str:
    """All that must be the same for two values to be compared."""
    crop = config.data.crop or max(data["height"], data["width"])
    size = f"{min(crop, data['height'])}x{min(crop, data['width'])}"
    return (f"{study.criterion.metric} of {data['raters']} samples, one a rater, of {size} pixels; validation patients "
            f"of fold {study.space.fold} of {data['name']} {data['fingerprint'][:12]}")  # fmt: skip


def _about(name: str, tags: dict[str, str]) -> str:
    """The description of a registered model and of a version: first of all what its numbers rest on."""
    value = f"{float(tags[VALUE]):.4f}" if VALUE in tags else "undefined"
    return (
        f"**{tags['proseg.data']}: {tags['proseg.data_label']}.** Not a medical device; for research only.\n\n"
        f"Winner of study {tags['proseg.study']}, trial {tags['proseg.trial']}. Validation {tags['proseg.metric']} of "
        f"these weights: {value} ({tags[MEASURED]}). Test scores are in its run and in "
        f"`data/export/{METRICS}`.\n\n"
        f'`mlflow.pyfunc.load_model("models:/{name}@{CHAMPION}")`; no file of it is a pickle.'
    )


# The registry


def _open(client: "MlflowClient", name: str, study: Study) -> None:
    """Make the registered model where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, {"proseg.space": study.space.name})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_of(client: "MlflowClient", name: str, found: _Winner) -> "ModelVersion | None":
    """The version that holds these weights already."""
    of_run = client.search_model_versions(f"name = '{name}' and run_id = '{found.run_id}'")
    return next((one for one in of_run if one.tags.get(DIGEST) == found.tags[DIGEST]), None)


def _add(client: "MlflowClient", name: str, found: _Winner) -> "ModelVersion":
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    model = _logged(client, found)
    # Its address and not models:/<id>, which a store without a server looks up wherever MLflow's global setting points.
    version = client.create_model_version(
        name, model.artifact_location, found.run_id, tags=found.tags, description=_about(name, found.tags),
        await_creation_for=0, model_id=model.model_id,
    )  # fmt: skip
    link = json.dumps([{"name": name, "version": version.version}])  # by which the model's page finds the version
    client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: link})
    return version


def _decide(client: "MlflowClient", name: str, version: "ModelVersion", *, asked: bool) -> Registered:
    current = client.get_registered_model(name).aliases.get(CHAMPION)
    ours = current is not None and str(current) == str(version.version)
    if DECISION in version.tags and (ours or not asked):
        return Registered(name, str(version.version), ours, version.tags[DECISION])
    rival = None if current is None or ours else client.get_model_version(name, str(current))
    wins, reason = (True, "it was asked for") if asked else _verdict(version, rival)
    if wins:
        client.set_registered_model_alias(name, CHAMPION, str(version.version))
        client.update_registered_model(name, _about(name, version.tags))
        for key, value in version.tags.items():
            if key != DECISION:
                client.set_registered_model_tag(name, key, value)
    client.set_model_version_tag(name, str(version.version), DECISION, reason)  # last: all before it has been done
    return Registered(name, str(version.version), wins, reason)


def _verdict(version: "ModelVersion", rival: "ModelVersion | None") -> tuple[bool, str]:
    """Whether a version takes the place of the champion that there is, and why."""
    if rival is None:
        return True, "there was no other champion"
    new, old, number = version.tags, rival.tags, rival.version
    if old.get("proseg.study") == new["proseg.study"] and rival.run_id == version.run_id:
        return True, f"it takes the place of version {number} of the same study"
    if (old.get(MEASURED), old.get(GOAL)) != (new[MEASURED], new[GOAL]) or VALUE not in old.keys() & new.keys():
        return False, (
            f"version {number} stays champion: the two cannot be compared, its value is one of "
            f"{old.get(MEASURED, 'nothing that is known')}"
        )
    value, other = float(new[VALUE]), float(old[VALUE])
    better = value > other if new[GOAL] == "maximize" else value < other
    said = f"{value:.4f} against {other:.4f} of version {number}, {new[MEASURED]}"
    return better, f"it is better: {said}" if better else f"version {number} stays champion: it is not better, {said}"


# The files


def _logged(client: "MlflowClient", found: _Winner) -> "LoggedModel":
    """The LoggedModel of the run that holds these weights."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment = client.get_run(found.run_id).info.experiment_id
    query = f"source_run_id = '{found.run_id}' AND tags.`{DIGEST}` = '{found.tags[DIGEST]}'"
    for model in client.search_logged_models([experiment], query):
        if model.status == LoggedModelStatus.READY:
            return model
        client.delete_logged_model(model.model_id)  # of an attempt that was cut short
    model = client.create_logged_model(
        experiment, "winner", found.run_id, tags=found.tags, model_type="segmentation",
        params={key: str(value) for key, value in found.config.flat().items()},
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="proseg-") as temporary:
        write_model(Path(temporary) / "model", found.folder, run_id=found.run_id, model_id=model.model_id)
        client.log_model_artifacts(model.model_id, str(Path(temporary) / "model"))
    client.log_outputs(found.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.finalize_logged_model(model.model_id, "READY")


def write_model(target: Path, folder: Path, *, run_id: str | None = None, model_id: str | None = None) -> None:
    """Write a folder that MLflow loads as `python_function`: an export, the code that reads it, and what to install."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model

    from proseg.served import DEFAULTS

    facts = json.loads((folder / DATA).read_text(encoding="utf-8"))
    request = np.zeros((1, facts["channels"], EXAMPLE_SIDE, EXAMPLE_SIDE), np.float32), DEFAULTS
    with tempfile.TemporaryDirectory(prefix="proseg-") as temporary:
        code, data = Path(temporary) / "proseg", Path(temporary) / "export"
        _copy_code(code)
        shutil.copytree(folder, data, ignore=shutil.ignore_patterns(*GRAPHS.values()))
        mlflow.pyfunc.save_model(
            target, loader_module=LOADER, data_path=str(data), code_paths=[str(code)],
            mlflow_model=Model(run_id=run_id, model_id=model_id), pip_requirements=requirements(),
            signature=_signature(facts), input_example=request,
            uv_project_path=temporary,  # or it would take the files of a uv project that we happen to be started in
        )  # fmt: skip


def _copy_code(target: Path) -> None:
    """The package's source; without its data, which no prediction needs."""
    import proseg

    source = Path(proseg.__file__).parent
    for path in sorted(source.rglob("*.py")):
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)


def requirements() -> list[str]:
    """The versions that are installed here, without the part that names a build (2.13.0 of 2.13.0+cpu)."""
    return [f"{name}=={installed(name).split('+')[0]}" for name in REQUIREMENTS]


def _signature(data: dict[str, Any]) -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    from proseg.served import DEFAULTS

    maps = (-1,) if data["classes"] == 1 else (-1, data["classes"])
    outputs = {"masks": ("uint8", (-1, data["raters"], -1, -1)), "mean": ("float32", (*maps, -1, -1))}
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, data["channels"], -1, -1))]),
        outputs=Schema([TensorSpec(np.dtype(kind), shape, name) for name, (kind, shape) in outputs.items()]),
        params=ParamSchema([
            ParamSpec("samples", DataType.long, DEFAULTS["samples"]),
            ParamSpec("seed", DataType.long, DEFAULTS["seed"]),
            ParamSpec("outputs", DataType.string, DEFAULTS["outputs"], shape=(-1,)),
        ]),
    )  # fmt: skip
