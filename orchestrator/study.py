"""A Study: what is searched, on what data, for how long, with what machines; and its folder on disk.

Everything that can be known is checked here, before anything is started or written. `study.json` in the folder is the
whole of it: every other process reads it from there.
"""

import fcntl
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.addresses import with_file
from orchestrator.data_ref import DataRef
from orchestrator.quote import Quote
from orchestrator.resources import Resources
from proseg.config import TrainConfig
from proseg.errors import ConfigError, ProSegError
from proseg.recipes import RECIPES
from proseg.records import Criterion, write_atomically
from search_spaces.space import FinalStage, SearchSpace, SpaceError

DIED = "the process of the study died"
MANIFEST, STATE, LOCK = "study.json", "state.json", ".running"
SECONDS_OF_A_LOOK = 1.0
"""More than another process needs to see whether the study runs."""
State = Literal["running", "finished", "interrupted", "failed"]


class StudyError(ProSegError):
    """A study is not there, is damaged, or cannot be run as asked."""


class StudyFailed(StudyError):
    """A study was rightly asked for and did not succeed."""

    exit_code = 1


class Final(BaseModel):
    """One data set of the final stage, and why it is left out if it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: FinalStage
    data: DataRef | None
    folds: int
    missing: str | None = None
    shared_patients: int = 0
    """Patients it shares with the data that is searched on, where it is another set with other folds."""


class Point(BaseModel):
    """Values to try before anything is sampled; what it leaves out is sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: dict[str, Any]
    origin: str
    """Where they come from, for people: the paper, the space, another study."""


class Study(BaseModel):
    """Frozen; the folder bears its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    folder: Path
    created: float
    """Seconds since the epoch."""
    space: SearchSpace
    base: TrainConfig
    """What every trial shares: the space's recipe with its changes and the budget's epochs."""
    data: DataRef
    finals: tuple[Final, ...]
    resources: Resources
    trials: int
    seed: int
    points: tuple[Point, ...] = ()
    max_time: float | None = None
    """Seconds in which all of it must be done: the search ends early enough to leave the rest its time."""
    budget: float | None = None
    """GPU-hours, weighted by the shares that are held, or without GPUs core-hours; as `max_time`."""
    epoch_timeout: float = 3600.0
    """Seconds without an epoch after which a training is taken for hanging."""
    storage: str | None = None
    """Of Optuna, as SQLAlchemy names it; a SQLite file in the folder without."""
    quote: Quote | None = None
    """What it was expected to cost."""
    environment: dict[str, str]
    begun_as: str | None = None
    """The name that it began with, where its folder has been renamed since."""

    @property
    def key(self) -> str:
        """What MLflow and a database that studies share know it by."""
        return self.begun_as or self.name

    @property
    def home(self) -> Path:
        """The workspace that it lies in."""
        return self.folder.parent.parent

    @property
    def sets(self) -> list[DataRef]:
        """The data that it searches on and ends with."""
        return [self.data, *(final.data for final in self.finals if final.data is not None)]

    def with_sets(self, change: Callable[[DataRef], DataRef]) -> "Study":
        """The study on the same data, which lie elsewhere."""
        finals = tuple(final.model_copy(update={"data": final.data and change(final.data)}) for final in self.finals)
        return self.model_copy(update={"data": change(self.data), "finals": finals})

    @property
    def criterion(self) -> Criterion:
        objective = self.space.objective
        return Criterion(objective.metric, maximize=objective.direction == "maximize")

    @property
    def second(self) -> Criterion | None:
        objective = self.space.second_objective
        return objective and Criterion(objective.metric, maximize=objective.direction == "maximize")

    @property
    def criteria(self) -> list[Criterion]:
        """The objectives: one, or two."""
        return [self.criterion, *([self.second] if self.second else [])]

    @property
    def space_digest(self) -> str:
        return hashlib.sha256(self.space.model_dump_json(exclude={"file"}).encode()).hexdigest()[:12]

    def config_of(self, values: dict[str, Any]) -> TrainConfig:
        """The configuration of a trial with these values."""
        return self.base.with_values(values)

    @property
    def identity(self) -> Callable[[Mapping[str, Any]], Hashable]:
        """As `identity_of`."""
        return identity_of(self.space, self.base)

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"t{number:03d}"

    def confirm_folder(self, number: int, repeat: int) -> Path:
        return self.folder / "confirm" / f"t{number:03d}" / f"repeat{repeat}"

    def final_folder(self, data: str, fold: int) -> Path:
        return self.folder / "final" / data / f"fold{fold}"

    @property
    def earlier_finals(self) -> list[Path]:
        """The final stages of other winners, before the search went on (`orchestrator.earlier`)."""
        return sorted(self.folder.glob("earlier/*/final"))


def identity_of(space: SearchSpace, base: TrainConfig) -> Callable[[Mapping[str, Any]], Hashable]:
    """A function that is equal for values that come to the same configuration: a field that is not searched where they
    stand has the base's value, which other values may give it as well."""
    unsearched = base.flat()
    return lambda values: tuple(values.get(name, unsearched[name]) for name in space.search)


def base_config(space: SearchSpace, *, epochs: int, seed: int) -> TrainConfig:
    """The configuration that the trials of a space share.

    Raises:
        SpaceError: the space names an unknown field, or a value that its field does not allow.
    """
    reserved = {"epochs": "budget.epochs", "seed": "the option --seed"}
    for section, names in (("base", space.base), ("search", space.search)):
        for name in reserved.keys() & names:
            raise SpaceError(f"{space.file}: {section}.{name} is set by {reserved[name]}")
    if space.recipe not in RECIPES:
        raise SpaceError(f"{space.file}: recipe {space.recipe!r} is none of {', '.join(RECIPES)}")
    start = TrainConfig().with_values(RECIPES[space.recipe])
    base = _with(start, space.base, space.file, "base").with_values({"epochs": epochs, "seed": seed})
    variants(space, base)
    for stage in space.final:
        _with(base, stage.base, space.file, f"final ({stage.data})")
    return base


def variants(space: SearchSpace, base: TrainConfig) -> list[TrainConfig]:
    """The base, and the base with each value that stands for a dimension: what must be allowed for all to be.

    Raises:
        SpaceError: a dimension has an unknown name, or a value that its field does not allow.
    """
    probes = ((name, value) for name, dimension in space.search.items() for value in dimension.probes())
    return [base, *(_with(base, {name: value}, space.file, "search") for name, value in probes)]


def _with(config: TrainConfig, values: dict[str, Any], file: str, section: str) -> TrainConfig:
    try:
        return config.with_values(values)
    except ConfigError as error:
        raise SpaceError(f"{file}: {section}: {error}") from None


# --- the folder -------------------------------------------------------------------------------------------------------


def studies_folder(home: Path) -> Path:
    return home / "studies"


def check_name(home: Path, name: str | None) -> None:
    """Raises StudyError where a study cannot bear this name."""
    if name is None:
        return
    if name != _sanitised(name) or name.startswith((".", "-")) or not 0 < len(name) <= 100:
        raise StudyError(f"--study {name!r} cannot name a folder: use letters, digits, '.', '_' and '-', at most 100")
    if (studies_folder(home) / name).exists():
        raise StudyError(f"study {name!r} already exists in {studies_folder(home)}; choose another --study")
    for study in readable_studies(home):
        if study.key == name:
            raise StudyError(f"study {study.name} was begun as {name!r}, and MLflow knows it by that; choose another "
                             "--study")  # fmt: skip


def claim_folder(home: Path, space: str, name: str | None) -> Path:
    """Make the folder of a new study; its name is then taken.

    Raises:
        StudyError: the name is taken or cannot be a folder's.
    """
    while True:
        check_name(home, name)
        folder = studies_folder(home) / (name or f"{_sanitised(space)[:60]}-{_readable()}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue  # somebody took it this moment: a given name is refused now, another is made up
        return folder


def write_study(study: Study) -> None:
    """What lies in the workspace is kept by its place there: a workspace may be moved, and a study be renamed."""

    def kept(path: Path) -> Path:
        return path.relative_to(study.home) if path.is_relative_to(study.home) else path

    text = _placed(study, kept, kept).model_dump_json(indent=1)
    write_atomically(study.folder / MANIFEST, (text + "\n").encode())


def read_study(folder: Path) -> Study:
    """Raises StudyError where the folder is not that of a study."""
    try:
        return _here(Study.model_validate_json((folder / MANIFEST).read_bytes()), Path(os.path.abspath(folder)))
    except FileNotFoundError:
        raise StudyError(f"{folder} is not the folder of a study: it has no {MANIFEST}") from None
    except ValidationError as error:
        raise StudyError(f"{folder / MANIFEST} is damaged or of another version: {error.errors()[0]['msg']}") from None


def _here(study: Study, folder: Path) -> Study:
    """A study that was read, as it lies now: maybe in a workspace that has been moved, or alone in another one."""
    before, key = study.home, study.key
    here = study.model_copy(update={"name": folder.name, "folder": folder,
                                    "begun_as": key if key != folder.name else None})  # fmt: skip

    def place(path: Path, *others: Path) -> Path:
        if path.is_absolute() and not path.is_relative_to(before):
            return path
        within = path.relative_to(before) if path.is_absolute() else path
        places = [home / within for home in (here.home, before, *others)]
        return next((place for place in places if place.exists()), places[0])

    # Earlier versions kept a relative address of a database as it was given.
    return _placed(here, place, lambda path: place(path, Path.cwd()))


def _placed(study: Study, data: Callable[[Path], Path], storage: Callable[[Path], Path]) -> Study:
    """With other paths of the data and of the database."""
    changed = study.with_sets(lambda ref: ref.model_copy(update={"folder": data(ref.folder)}))
    return changed.model_copy(update={"storage": study.storage and with_file(study.storage, storage)})


def located(study: Study, given: Sequence[str] = ()) -> Study:
    """The study on its data wherever they lie now: where they are told to, or anywhere in its workspace.

    Args:
        given: names or folders of data sets.

    Raises:
        StudyError, DataError: one of them is not there, or is none of the study's.
    """
    from proseg.data.catalog import open_data, stores

    found: dict[str, Path] = {}
    for name in given:
        store = open_data(name, study.home)
        if store.manifest.fingerprint not in {ref.fingerprint for ref in study.sets}:
            names = ", ".join(dict.fromkeys(ref.name for ref in study.sets))
            raise StudyError(f"--data {name} has another fingerprint than the data of study {study.name} ({names})")
        found[store.manifest.fingerprint] = store.folder.resolve()
    lost = {ref.fingerprint for ref in study.sets if not ref.is_there} - found.keys()
    if lost:
        found |= {m.fingerprint: folder for folder, m in stores(study.home) if m.fingerprint in lost}
    return study.with_sets(lambda ref: ref.model_copy(update={"folder": found.get(ref.fingerprint, ref.folder)}))


def find_study(home: Path, name: str | None) -> Study:
    """A study by its name, or the latest.

    Raises:
        StudyError: there is none; the message lists those there are.
    """
    folders = {path.parent.name: path.parent for path in studies_folder(home).glob(f"*/{MANIFEST}")}
    if not folders:
        raise StudyError(
            f"there is no study in {home} yet: `proseg-tune launch demo` makes one "
            "(PROSEG_HOME names another workspace)"
        )
    if name is not None:
        if name not in folders:
            raise StudyError(f"there is no study {name!r} in {home}; there are {', '.join(sorted(folders))}")
        return located(read_study(folders[name]))
    return located(_latest(list(folders.values())))


def readable_studies(home: Path) -> list[Study]:
    """Those of a workspace that are neither damaged nor of another version, by name."""
    found = []
    for path in sorted(studies_folder(home).glob(f"*/{MANIFEST}")):
        with suppress(StudyError):
            found.append(read_study(path.parent))
    return found


def studies_on(home: Path, folders: Collection[Path]) -> list[Study]:
    """The readable studies of a workspace that search on, or end with, the data in one of its folders."""
    places = {folder.resolve() for folder in folders}
    return [study for study in readable_studies(home) if places & {ref.folder.resolve() for ref in study.sets}]


def _latest(folders: list[Path]) -> Study:
    """A study that is damaged, or of another version, does not stand in the way of the others."""
    readable: list[Study] = []
    reasons: list[StudyError] = []
    for folder in folders:
        try:
            readable.append(read_study(folder))
        except StudyError as error:
            reasons.append(error)
    if not readable:
        raise reasons[0]
    return max(readable, key=lambda study: study.created)


@contextmanager
def alone(study: Study) -> Iterator[None]:
    """No other process runs this study at the same time; a process that is killed holds nothing any more.

    Raises:
        StudyError: one does.
    """
    lock = FileLock(study.folder / LOCK)
    try:
        lock.acquire(timeout=SECONDS_OF_A_LOOK, poll_interval=0.05)
    except Timeout:
        raise StudyError(
            f"study {study.name} is running already; `proseg-tune status {study.name}` shows it, "
            f"`proseg-tune stop {study.name}` ends it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _held(study: Study, pid: int) -> bool:
    """Whether a process is `alone` with the study; also where nothing can be written. The operating system takes the
    lock from a process that dies, and no other process, nor a changed clock, can seem to have it.

    Args:
        pid: that of the process, which has to do where the file system knows no locks.
    """
    try:
        file = os.open(study.folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment: `alone` has the patience
    except BlockingIOError:
        return True
    except OSError:
        import psutil

        return psutil.pid_exists(pid)
    finally:
        os.close(file)
    return False


def write_state(study: Study, state: State, reason: str = "") -> None:
    record = {"state": state, "reason": reason, "time": time.time(), "pid": os.getpid(), "host": platform.node()}
    write_atomically(study.folder / STATE, json.dumps(record).encode())


def read_state(study: Study) -> str:
    """running, finished, interrupted or failed; a study whose process is gone is interrupted, whatever it wrote."""
    record = _state_record(study)
    # A lock of another machine's may not be seen here: a study that runs there is believed to.
    here = record.get("host", platform.node()) == platform.node()
    dead = record["state"] == "running" and here and not _held(study, record["pid"])
    return "interrupted" if dead else record["state"]


def died(study: Study) -> bool:
    """Whether the process that ran it is gone and has not written how it ended."""
    return _state_record(study)["state"] == "running" and read_state(study) != "running"


def reason_of(study: Study) -> str:
    """Why it failed or was interrupted, as far as that is known."""
    return DIED if died(study) else _state_record(study).get("reason", "")


def running_since(study: Study) -> float:
    """Seconds since the epoch at which the process began, or went on, that runs the study; or at which it ended."""
    return _state_record(study)["time"]


def _state_record(study: Study) -> dict[str, Any]:
    path = study.folder / STATE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"time": study.created} | record | {name: record[name] for name in ("state", "pid")}
    except FileNotFoundError:
        return {"state": "interrupted", "pid": 0, "time": study.created}
    except (ValueError, TypeError, KeyError):
        raise StudyError(f"{path} is damaged: delete it, and `proseg-tune resume {study.name}` goes on") from None


def _sanitised(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)


def _readable() -> str:
    adjectives = [
        "amber",
        "brisk",
        "calm",
        "clear",
        "eager",
        "fair",
        "gentle",
        "keen",
        "lively",
        "lucid",
        "mellow",
        "nimble",
        "patient",
        "quiet",
        "steady",
        "warm",
    ]
    nouns = [
        "alder",
        "birch",
        "cedar",
        "crane",
        "finch",
        "grove",
        "harbor",
        "heron",
        "lark",
        "maple",
        "meadow",
        "otter",
        "reed",
        "river",
        "sparrow",
        "wren",
    ]
    return f"{secrets.choice(adjectives)}-{secrets.choice(nouns)}-{secrets.randbelow(90) + 10}"
