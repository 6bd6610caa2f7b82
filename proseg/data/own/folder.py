"""A data set of one's own in a folder: images/ and masks/<rater>/.

The mask of a rater bears the name of its image; their types may differ. patients.csv beside them (columns image,
patient; the image by its file's name) says whose they are; without it, every image is taken for a patient of its own.
With train/, val/ and test/, each of these folders holds its images/ and masks/, and one patients.csv lies beside them.
A name may stand for one image only, in whichever folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from proseg.data.images import pixels_among, stem
from proseg.data.own.entries import PARTS, Entry, Files, Inventory, PartName, check_file, near_miss
from proseg.data.own.manifest import named_columns
from proseg.data.tables import read_table
from proseg.errors import DataError, Faults

PATIENTS = "patients.csv"


def inventory(folder: Path) -> Inventory:
    """The files that a folder holds, by name.

    Raises:
        DataError: naming the folder or the files.
    """
    parts: list[PartName] = [part for part in PARTS if (folder / part / "images").is_dir()]
    if (folder / "images").is_dir() == bool(parts):
        raise DataError(
            f"{folder}: expected either images/ and masks/<rater>/, or train/, val/ and test/ with these in each; "
            f"{'found both' if parts else 'found neither'}; other layouts are named with --images and --masks"
        )
    layouts: list[tuple[PartName | None, Path]] = [(part, folder / part) for part in parts] or [(None, folder)]
    files = Files(folder, "--from")
    raters = sorted({rater for _, place in layouts for rater in _raters(place / "masks")})
    entries, faults = [], Faults()
    for part, place in layouts:
        entries += _part_entries(place, part, raters, files, faults)
    faults.check()
    if not entries:
        raise DataError(f"{folder}: holds no images")
    _check_names(entries)
    table = folder / PATIENTS
    known = table.exists()
    return Inventory(
        source=folder,
        root=folder,
        raters=tuple(raters),
        entries=tuple(_with_patients(entries, table) if known else entries),
        tables=(table,) if known else (),
        patients_known=known,
    )


def _raters(masks: Path) -> list[str]:
    if not masks.is_dir():
        raise DataError(f"{masks}: there is no such folder; masks lie in masks/<rater>/")
    stray = next((path for path in _visible(masks) if not path.is_dir()), None)
    if stray is not None:
        raise DataError(f"{stray}: is no folder; masks lie in masks/<rater>/")
    return [path.name for path in _visible(masks)]


def _part_entries(
    folder: Path, part: PartName | None, raters: Sequence[str], files: Files, faults: Faults
) -> list[Entry]:
    images = _by_stem(folder / "images", files, faults)
    masks = {rater: _by_stem(folder / "masks" / rater, files, faults) for rater in raters}
    for rater, found in masks.items():
        for path in (path for name, path in found.items() if name not in images):
            near = near_miss(folder / "images" / path.name)
            faults.add(f"{path}: a mask of rater {rater!r}, but {folder / 'images'} has no image of this name{near}")
    return [
        Entry(str(path), (path,), tuple(masks[rater].get(name) for rater in raters), name, name, part=part)
        for name, path in images.items()
    ]


def _by_stem(folder: Path, files: Files, faults: Faults) -> dict[str, Path]:
    """The files of a folder by their name without the type, in alphabetical order; none where there is no folder."""
    found: dict[str, Path] = {}
    there = _visible(folder) if folder.is_dir() else []
    pixels = pixels_among(folder, (path.name for path in there))
    for path in (path for path in there if path.name not in pixels):
        with faults.caught():
            files.check(path, str(path.parent))
            name = stem(path.name)
            if name in found:
                raise DataError(f"{path}: has the name of {found[name].name}, which lies beside it; keep one of them")
            found[name] = path
    return found


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None


def _check_names(entries: Sequence[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.volume, entry)
        if other is not entry:
            raise DataError(f"{entry.where}: has the name of {other.where}; one image must not be in two parts")


def _with_patients(entries: Sequence[Entry], table: Path) -> Iterable[Entry]:
    check_file(table, str(table))
    columns, rows = named_columns(table, *read_table(table))
    for needed in ("image", "patient"):
        if needed not in columns:
            raise DataError(f"{table}: the column {needed!r} is missing; found {', '.join(map(repr, columns))}")
    patients: dict[str, str] = {}
    for number, row in rows.items():
        if row["image"] in patients:
            raise DataError(f"{table}, row {number}: {row['image']} is named twice")
        if not row["patient"]:
            raise DataError(f"{table}, row {number}: the patient is not named")
        patients[row["image"]] = row["patient"]
    images = {entry.images[0].name for entry in entries}
    unknown = next((image for image in patients if image not in images), None)
    if unknown is not None:
        near = near_miss(entries[0].images[0].with_name(unknown))
        raise DataError(f"{table}: names {unknown}, but there is no image of this name{near}")
    return [_of_patient(entry, patients, table) for entry in entries]


def _of_patient(entry: Entry, patients: Mapping[str, str], table: Path) -> Entry:
    name = entry.images[0].name
    if name not in patients:
        raise DataError(f"{table}: does not name {name}; it must say of every image whose it is")
    return replace(entry, patient=patients[name])
