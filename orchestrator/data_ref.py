"""The data that a study was begun on: where they lie, and what they must be."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from proseg.data.store import MANIFEST, Manifest, Store
from proseg.errors import DataError


class DataRef(BaseModel):
    """A prepared data set, by where it lies and what it must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    fingerprint: str
    folder: Path
    slices: int
    patients: int
    raters: int
    unit: str

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "DataRef":
        return cls(folder=folder.resolve(), **{name: getattr(manifest, name) for name in
                   ("name", "label", "fingerprint", "slices", "patients", "raters", "unit")})  # fmt: skip

    @property
    def is_there(self) -> bool:
        return (self.folder / MANIFEST).exists()

    def store(self) -> Store:
        """Raises DataError where it is not there, or is another one."""
        told = "`proseg-tune resume STUDY --data FOLDER` tells the study where they lie now, as --data of `best` does"
        if not self.is_there:
            raise DataError(f"the data of the study, {self.name}, are not in {self.folder} any more: {told}")
        store = Store(self.folder)
        if store.manifest.fingerprint != self.fingerprint:
            raise DataError(f"{self.folder} no longer holds the data that {self.name} was, its fingerprint has "
                            f"changed: {told}")  # fmt: skip
        return store
