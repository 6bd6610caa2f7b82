"""The format of a prepared data set: its manifest, and the columns of its Arrow files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from proseg.data.folds import Fold
from proseg.errors import DataError

FORMAT = 3
READABLE = (1, 2, 3)
"""Format 1 had one Arrow file and said nothing of where the data came from; before 3 no pixels had 8 bits, and every
spacing was known."""
Framing = Literal["crop", "zoom_linear", "zoom_nearest", "lesion"]
"""How images came to their size: cut or filled up about their centre, zoomed as a whole, or cut out about a lesion."""
ARROW, MANIFEST = "slices.arrow", "manifest.json"


def arrow_name(number: int) -> str:
    """slices.arrow, slices-0001.arrow, ..."""
    return f"slices-{number:04}.arrow" if number else ARROW


@dataclass(frozen=True)
class Skipped:
    """Something of the source that is not in the store."""

    what: str
    """A file, a slice, a rater: named as the user would look for it."""
    why: str


class ArrowFile(BaseModel):
    """One of the files that hold the slices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^slices(-\d{4,})?\.arrow$")]
    bytes: int
    slices: int
    fingerprint: str
    """As the store's, over all slices up to the last one of this file."""


class Description(BaseModel):
    """What a source says of itself; carried into every table, tag and model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    """What the reader must know: "real contours, simulated intensities"."""
    licence: str
    unit: Literal["slice", "volume"]
    """What one case of the evaluation is."""
    sorted_raters: bool
    """Raters are virtual: sorted by area in every image, A1 the smallest."""
    window: tuple[float, float] | None
    """Intensities mapped to -1..1 (and clipped) when a batch is made; None: already normalised."""
    classes: int = Field(default=1, ge=1, le=255)
    """Of foreground: annotations hold the labels 0 (background) to this."""


class Manifest(Description):
    """What is known of a store without its slices."""

    format: int
    fingerprint: str
    """sha256 over all pixels, masks and ids; into how many files they are divided does not matter."""
    bytes: int
    """Size of all Arrow files."""
    slices: int
    patients: int
    volumes: int
    raters: int
    channels: int
    height: int
    width: int
    dtype: Literal["uint8", "int16", "float32"]
    folds: tuple[Fold, ...]
    files: tuple[ArrowFile, ...] = ()
    """In the order of the slices."""
    identity: str | None = None
    """Of the files and options it was prepared from; None where it was not prepared from files."""
    skipped: tuple[Skipped, ...] = ()
    clipped: int = 0
    """Pixels whose value lay beyond int16 and was clipped."""
    notes: tuple[str, ...] = ()
    """Sentences about what of the files was taken in one of two ways or repaired."""
    rater_names: tuple[str, ...] = ()
    """In the order of the annotations; empty where the raters have no names."""
    channel_names: tuple[str, ...] = ()
    framing: Framing | None = None
    """How the images came to their size; None where nothing is known of it, as in older stores, or nothing was done."""

    @property
    def rater_labels(self) -> tuple[str, ...]:
        """What raters are called: their names, or A1, A2 ... where they have none."""
        return self.rater_names or tuple(f"A{number + 1}" for number in range(self.raters))

    @property
    def standardised(self) -> bool:
        """Whether pixels are kept in 8 bits and brought to zero mean and unit variance when they are used."""
        return self.window is None and self.dtype == "uint8"

    @property
    def arrow_files(self) -> tuple[ArrowFile, ...]:
        """As `files`; in format 1 there was one, which was not named."""
        whole = ArrowFile(name=ARROW, bytes=self.bytes, slices=self.slices, fingerprint=self.fingerprint)
        return self.files or (whole,)

    @property
    def description(self) -> Description:
        return Description(**{name: getattr(self, name) for name in Description.model_fields})


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; raises DataError if it is missing, may not be read, is damaged or of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = content.get("format") if isinstance(content, dict) else None
        if isinstance(written, int) and written not in READABLE:
            raise DataError(f"{path} has format {written}, this version reads {FORMAT}; prepare the data again")
        return Manifest.model_validate(content)
    except FileNotFoundError:
        raise DataError(f"{path.parent} is not a prepared data set: it has no {path.name}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a manifest ({reason}); prepare the data again") from None


def schema(m: Manifest) -> pa.Schema:
    """The columns of every Arrow file; arrays are flat, in lists of one length."""
    pixels = {"uint8": pa.uint8(), "int16": pa.int16(), "float32": pa.float32()}[m.dtype]
    moments = {"moments": pa.list_(pa.float32(), 2 * m.channels)} if m.standardised else {}
    return pa.schema({
        "image": pa.list_(pixels, m.channels * m.height * m.width),
        "annotations": pa.list_(pa.uint8(), m.raters * m.height * m.width),
        "rater_mask": pa.list_(pa.uint8(), m.raters),
        "patient": pa.string(), "volume": pa.string(), "z": pa.float64(), "spacing": pa.list_(pa.float64(), 3),
        **moments,
    })  # fmt: skip
