"""LIDC-IDRI as the public "LIDC-IDRI-slices" has it: real CT pixels as PNG, one crop of 128 x 128 a slice of a nodule.

    PATIENT/nodule-N/images/slice-K.png     8 bits, grey levels stretched for each crop: no Hounsfield units
    PATIENT/nodule-N/mask-R/slice-K.png     R from 0 to 3; all zero where that radiologist drew nothing

The files know neither z nor spacing. Both are those of the embedded outlines where all four masks are the same there,
but for the crops' places: the inside of the outlines, as pylidc has it. Selections: `paper`, the papers' slices that
are found so (1381 of 1608); `all4`, slices in which all four drew; `any`, slices in which at least one did.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from proseg.data import images
from proseg.data.case import Slice
from proseg.data.kinds import Selection
from proseg.data.lidc_contours import load_nodules, rank_by_area, read_columns
from proseg.data.lidc_database import RATERS
from proseg.data.render import Nodule
from proseg.data.source import Part, Skipped, Source, identity_of
from proseg.data.store import Description
from proseg.errors import DataError

LABEL = "real contours, real CT (8 bit, stretched per crop)"
LICENCE = "CC BY 3.0 (LIDC-IDRI)"

TOP = "LIDC-IDRI-slices"
FOLDERS = ("images", *(f"mask-{rater}" for rater in range(RATERS)))
UNKNOWN = (np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Patient:
    """The files of one patient, read at once."""

    folder: Path
    slices: tuple[tuple[str, str], ...]
    """(nodule, file name) of each, by number."""


Key = tuple[tuple[int, ...], tuple[bytes, ...]]
Place = tuple[Nodule, int]
"""A nodule among the embedded outlines, and which of its slices."""


def source(folder: Path, *, selection: Selection) -> Source:
    """The slices below a folder of patients, or below the folder LIDC-IDRI-slices in it.

    Raises:
        DataError: there are none in this layout, or none of the papers' patients where these were asked for.
    """
    folder = folder / TOP if (folder / TOP).is_dir() else folder
    files = [path for path in folder.glob("*/nodule-*/*/slice-*.png") if path.parent.name in FOLDERS]
    if not files:
        raise DataError(
            f"{folder} holds no slices: expected PATIENT/nodule-0/images/slice-0.png and mask-0/ to mask-3/ beside "
            f"images/, as in the public {TOP}"
        )
    patients: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in files:
        patients[path.parts[-4]].add((path.parts[-3], path.name))
    if selection == "paper" and patients.keys().isdisjoint(read_columns(("patient",))["patient"].tolist()):
        raise DataError(
            f"{folder} holds no patient of LIDC-IDRI, such as LIDC-IDRI-0001, and so none of the papers' slices: keep "
            "the names of the folders, or ask for --selection all4 or any"
        )
    return Source(
        description=Description(
            name="lidc", label=LABEL, licence=LICENCE, unit="slice", sorted_raters=True, window=(0.0, 255.0)
        ),
        parts=tuple(Patient(folder / name, tuple(sorted(some, key=_order))) for name, some in sorted(patients.items())),
        read=partial(read, selection=selection),
        identity=identity_of(sorted(files), selection=selection),
        framing="lesion",
    )


def _order(names: tuple[str, str]) -> tuple[list[int], tuple[str, str]]:
    return _numbers("/".join(names)), names


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def read(patient: Patient, *, selection: Selection) -> Part:
    """The selection's slices of one patient, each [1, H, W] uint8 with four raters sorted by area, the smallest first.

    Where all chosen slices of a nodule are found among the embedded outlines, `z` is in mm; otherwise it is the number
    in the file's name. A slice whose files are missing or damaged, that is there twice, or in which nobody drew is left
    out.
    """
    name, skipped = patient.folder.name, []
    places, seen = embedded().get(name, {}), {}
    found: dict[str, list[tuple[Slice, Place | None]]] = defaultdict(list)
    for nodule, file in patient.slices:
        where = f"{name}/{nodule}/{file}"
        try:
            image, masks = _pixels(patient.folder / nodule, file)
        except DataError as error:
            skipped.append(Skipped(where, str(error)))
            continue
        twin = seen.setdefault((image.tobytes(), masks.tobytes()), where)
        if twin != where or not masks.any():
            skipped.append(Skipped(where, "nobody drew in it" if twin == where else f"is the same as {twin}"))
            continue
        place = places.get(key_of(masks))
        if _chosen(masks, place, selection):
            found[nodule].append((_slice(name, nodule, file, image, masks, place), place))
    return Part(tuple(one for slices in found.values() for one in _in_order(slices)), tuple(skipped))


def _pixels(nodule: Path, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Image [1, H, W] uint8 and masks [4, H, W] bool; raises DataError where a file is missing, damaged or no such."""
    image, *masks = (images.read(nodule / one / file, mask=one != FOLDERS[0]).pixels for one in FOLDERS)
    if image.dtype != np.uint8 or image.ndim != 3 or len(image) != 1:
        raise DataError(f"{nodule / FOLDERS[0] / file}: is no grey image of 8 bits")
    for folder, mask in zip(FOLDERS[1:], masks, strict=True):
        if mask.shape != image.shape:
            raise DataError(f"{nodule / folder / file}: has shape {mask.shape}, but its image {image.shape}")
        if len(values := np.unique(mask)) > 2 or (values[0] != 0 and len(values) > 1):
            raise DataError(
                f"{nodule / folder / file}: is no mask of black and white, it has {len(values)} grey levels"
            )
    return image, np.concatenate(masks) > 0


def _chosen(masks: np.ndarray, place: Place | None, selection: Selection) -> bool:
    if selection == "paper":
        return place is not None and bool(place[0].in_paper[place[1]])
    return selection == "any" or bool(masks.any(axis=(1, 2)).all())


def _slice(patient: str, nodule: str, file: str, image: np.ndarray, masks: np.ndarray, place: Place | None) -> Slice:
    annotations = rank_by_area(masks)
    return Slice(
        image=image,
        annotations=annotations,
        rater_mask=np.any(annotations, axis=(1, 2)),
        patient=patient,
        volume=f"{patient}/{nodule}",
        z=float(_numbers(file)[0]),
        spacing=(place[0].slice_spacing, place[0].pixel_spacing, place[0].pixel_spacing) if place else UNKNOWN,
    )


def _in_order(slices: Sequence[tuple[Slice, Place | None]]) -> list[Slice]:
    """By ascending z: in mm where the embedded outlines tell all of these slices apart."""
    found = {float(place[0].z[place[1]]): one for one, place in slices if place}
    if len(found) < len(slices):
        return [one for one, _ in slices]
    return [replace(found[z], z=z) for z in sorted(found)]


# The embedded outlines


@cache
def embedded() -> Mapping[str, Mapping[Key, Place | None]]:
    """Where the slices of each patient lie, by the `key_of` their masks; None where two slices have the same."""
    places: dict[str, dict[Key, Place | None]] = defaultdict(dict)
    for nodule in load_nodules("inner"):
        for k, masks in enumerate(nodule.masks):
            if masks.any():
                known, key = places[nodule.patient], key_of(masks)
                known[key] = None if key in known else (nodule, k)
    return places


def key_of(masks: np.ndarray) -> Key:
    """The same for masks [R, H, W] that differ in the place of their crop and the order of their raters alone."""
    drawn = np.argwhere(masks.any(axis=0))
    (top, left), (bottom, right) = drawn.min(axis=0), drawn.max(axis=0)
    tight = masks[:, top : bottom + 1, left : right + 1]
    return tight.shape, tuple(sorted(np.packbits(mask).tobytes() for mask in tight))
