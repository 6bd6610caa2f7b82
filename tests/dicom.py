"""Writers of small DICOM series for tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Along a row to the patient's left, along a column to the back."""
OBLIQUE = (0.96, 0.28, 0.0, -0.168, 0.576, 0.8)
"""Two directions of length one, upright to each other, along none of the patient's axes."""


def series_uid(name: str) -> UID:
    return generate_uid(entropy_srcs=["series", name])


def image(pixels: np.ndarray, position: Sequence[float], *, series: str = "a", **changes: object) -> FileDataset:
    """One slice [H, W] of a CT or MR series, with elements replaced, or left out where they are None."""
    modality = changes.get("Modality", "CT")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    uid = generate_uid(entropy_srcs=[series, repr([float(one) for one in position])])
    meta.MediaStorageSOPInstanceUID = uid
    found = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    elements = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": uid, "Modality": modality,
        "SeriesInstanceUID": series_uid(series), "SeriesDescription": f"series {series}",
        "ImagePositionPatient": [f"{one:.10g}" for one in position], "ImageOrientationPatient": list(STRAIGHT),
        "PixelSpacing": [1.0, 1.0], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0], "Columns": pixels.shape[1], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
        "PixelRepresentation": 1, "RescaleSlope": 1, "RescaleIntercept": 0, "PixelData": pixels.astype("<i2").tobytes(),
    }  # fmt: skip
    for name, value in (elements | changes).items():
        if value is not None:
            setattr(found, name, value)
    return found


def places(count: int, directions: Sequence[float], step: float, origin: Sequence[float]) -> np.ndarray:
    """[count, 3] mm, along the normal."""
    normal = np.cross(directions[:3], directions[3:])
    return np.asarray(origin, float) + np.arange(count)[:, None] * step * normal


def write_series(
    folder: Path, volume: np.ndarray, *, directions: Sequence[float] = STRAIGHT, step: float = 2.5,
    origin: Sequence[float] = (0.0, 0.0, 0.0), positions: np.ndarray | None = None, backwards: bool = False,
    **changes: object,
) -> Path:  # fmt: skip
    """[n, H, W], one after the other along the normal; `backwards` gives the last one the first name and number."""
    folder.mkdir(parents=True, exist_ok=True)
    found = places(len(volume), directions, step, origin) if positions is None else positions
    for index, (pixels, position) in enumerate(zip(volume, found, strict=True)):
        number = len(volume) - index if backwards else index + 1
        one = {"InstanceNumber": number, "ImageOrientationPatient": list(directions)} | changes
        image(pixels, position, **one).save_as(folder / f"IM{number:04}", enforce_file_format=True)  # type: ignore[arg-type]
    return folder
