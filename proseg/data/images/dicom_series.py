"""A DICOM series as one volume: which files of a folder are its images, in which order, and where they lie.

File names say nothing. Images are put in order by where they lie along the normal of their plane, whatever the number
they bear; they must be alike, and evenly spaced in one line, which may be oblique to the plane (a tilted gantry). What
is stored is scaled as the header says and by nothing else, so that a NIfTI file made of the series has the same pixels.

The volume's own axes are column, row and image, in this order, the last one along the normal (row direction x column
direction): they are those of the NIfTI files that are written for it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proseg.data.images import nifti, orientation
from proseg.data.images.dicom_images import (
    Unusable,
    check_plain,
    is_dicom,
    opened,
    pixel_spacing,
    rescaling,
    walk,
)
from proseg.data.images.picture import Header, Picture, check_claim, header_of, scaled, scaled_dtype
from proseg.errors import DataError, listed

if TYPE_CHECKING:
    from pydicom import Dataset

HEADER = (
    "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "RescaleSlope", "RescaleIntercept", "LossyImageCompression", "ModalityLUTSequence", "BitsAllocated",
    "PixelRepresentation", "SliceThickness", "SpacingBetweenSlices",
)  # fmt: skip
DAMAGE: tuple[type[Exception], ...] = ()
"""Nothing: what pydicom raises is caught here."""
NO_SCANS = ("SEG", "RTDOSE")
"""Modalities of what is made from images, and has pixels too."""
SUFFIXES = (".dcm", ".dicom", ".ima")

SAME = 0.01
"""mm: images that are no further apart lie at the same place."""
UNEVEN = 0.1
"""Of the distance between two slices: so far an image may lie from where it should."""
TURNED, RESIZED = 1e-3, 1e-3
"""So far the directions of two images may differ, and, relatively, their spacings."""
FARTHEST = 1e5
"""mm from the origin."""


@dataclass(frozen=True)
class _Image:
    """What the header of one file says."""

    path: Path
    uid: str
    series: str
    about: str
    flaw: str | None
    """Why its pixels cannot be used; the rest is then empty."""
    damaged: bool = False
    """The file must be mended or taken away, even where it may belong to another series."""
    shape: tuple[int, int] = (0, 0)
    """(H, W)"""
    position: tuple[float, ...] = ()
    """Of the middle of the first pixel, mm left, posterior, superior."""
    directions: tuple[float, ...] = ()
    """Along a row, and along a column."""
    spacing: tuple[float, float] = (1.0, 1.0)
    """(y, x) in mm"""
    thickness: float = np.nan
    """mm from a slice to the next, as the header says; NaN where it does not."""
    dtype: np.dtype | None = None
    """Type of its numbers, once they are scaled."""

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.directions[:3], self.directions[3:])

    @property
    def height(self) -> float:
        """mm along the normal."""
        return float(np.dot(self.normal, self.position))


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one series, looked at but not read."""

    path: Path
    """The folder, or the only file."""
    images: tuple[_Image, ...]
    """In ascending height."""
    place: np.ndarray
    """[4, 4], from (column, row, image, 1) to mm left, posterior, superior."""
    spacing: np.ndarray
    """[3], mm along these axes; the last one is NaN for a single image of unknown thickness."""
    notes: tuple[str, ...]

    @property
    def uid(self) -> str:
        return self.images[0].series

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(W, H, images)"""
        height, width = self.images[0].shape
        return width, height, len(self.images)

    def look(self) -> Header:
        dtype = np.result_type(*{image.dtype for image in self.images if image.dtype})
        return header_of(orientation.shape(self.sizes, 1, self.place), dtype, self.notes)

    def read(self) -> Picture:
        """The volume, of one slice where there is one image.

        Raises:
            DataError: naming the file that is damaged or cannot be decoded.
        """
        values = np.stack([*map(_pixels, self.images)])  # [images, H, W]
        return orientation.picture(values.T[..., None], self.place, self.spacing)

    def write_like(self, target: Path, maps: np.ndarray, *, classes: int = 1) -> Path:
        """Write maps of the picture as NIfTI in the series' own axes; arguments as `proseg.data.images.write_like`."""
        return nifti.write(target, maps, self.sizes, self.place)


def is_dicom_file(path: Path) -> bool:
    """Whether a file is one by its name, or by its first bytes where its name tells nothing; false where none is."""
    if not path.is_file():  # reading a pipe would wait for ever
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with opened(path) as file:
            return is_dicom(file, path)
    except Unusable:
        return True


def find_series(path: Path, wanted: Sequence[str] = ()) -> Series:
    """The series in a folder, whatever lies below it; or a single image.

    Args:
        wanted: series instance UIDs, one of which is meant where the folder holds several series.

    Raises:
        DataError: there is none, or it is not clear which one; a file is damaged; an image cannot be used (several
            frames, colours, packed in a way that cannot be unpacked); the images are not alike, not evenly spaced, or
            several lie at the same place.
    """
    images = [image for file in _files(path) if (image := _header(file)) is not None]
    if not images:
        what = "folder holds no CT or MR image in DICOM files" if path.is_dir() else "file holds no CT or MR image"
        raise DataError(f"{path}: the {what}; give an image file, or the folder of a DICOM series")
    chosen = _chosen(path, images, wanted)
    for image in chosen:
        if image.flaw is not None:
            raise DataError(f"{image.path}: {image.flaw}")
    _check_alike(chosen)
    ordered = _in_order(chosen)
    place, spacing = _place(ordered)
    beside = [image.path.name for image in images if image.damaged]
    notes = (f"{len(beside)} damaged file(s) beside the series were left out, {beside[0]} the first",) if beside else ()
    series = Series(path, ordered, place, spacing, notes)
    orientation.check(path, place, spacing)
    check_claim(path, series.sizes, series.look().dtype)
    return series


claim = find_series
"""By the name that all formats have in common."""


# The files


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for file in walk(path):
        if not file.name.startswith("."):  # what macOS leaves beside files bears their suffix
            yield file


def _header(path: Path) -> _Image | None:
    """None where the file holds no image."""
    from pydicom import dcmread

    series = ""
    try:
        with opened(path) as file:
            if not is_dicom(file, path):
                return None
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER))
            series = _printable(header.get("SeriesInstanceUID", ""))
            return _image(path, series, header)
    except Unusable as error:
        flaw = f"{_printable(error)}; mend the file, or take it out of the folder"
        return _Image(path, "", series, "", flaw, damaged=True)


def _image(path: Path, series: str, header: "Dataset") -> _Image | None:
    modality = _printable(header.get("Modality", ""))
    if header.get("Rows") is None:
        if _is_scan(header):
            raise Unusable("its header has no Rows, or was cut short")
        return None
    if modality in NO_SCANS:
        return None
    if not series:
        raise Unusable("its header has no SeriesInstanceUID, or was cut short")
    about = " ".join(f"{modality} {_printable(header.get('SeriesDescription') or '')}".split())
    names = path, str(header.get("SOPInstanceUID", "")), series, about
    try:
        _check_usable(header)
        slope, intercept = rescaling(header)
    except Unusable as error:
        return _Image(*names, _printable(error))
    stored = np.dtype(f"{'i' if header.get('PixelRepresentation') else 'u'}{int(header.BitsAllocated) // 8}")
    return _Image(
        *names,
        None,
        shape=(int(header.Rows), int(header.Columns)),
        position=_numbers(header, "ImagePositionPatient", 3),
        directions=_numbers(header, "ImageOrientationPatient", 6),
        spacing=pixel_spacing(header),
        thickness=_thickness(header),
        dtype=scaled_dtype(stored, slope, intercept),
    )


def _thickness(header: "Dataset") -> float:
    said = [abs(float(header.get(name) or 0)) for name in ("SpacingBetweenSlices", "SliceThickness")]
    return next((mm for mm in said if 0 < mm < FARTHEST), np.nan)


def _is_scan(header: "Dataset") -> bool:
    from pydicom.uid import CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

    kind = header.file_meta.get("MediaStorageSOPClassUID")
    return kind in (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)


def _check_usable(header: "Dataset") -> None:
    from pydicom.uid import UID

    if int(header.get("NumberOfFrames") or 1) != 1:
        raise Unusable("it holds several frames (enhanced DICOM), which are not read: convert it to NIfTI first")
    check_plain(header)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if header.get(name) is None:
            raise Unusable(f"it has no {name}, so where its pixels lie is not known")
    directions = np.array(_numbers(header, "ImageOrientationPatient", 6)).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=0.01):
        raise Unusable(f"its ImageOrientationPatient makes no sense: {directions.ravel().tolist()}")
    if header.get("LossyImageCompression") == "01":
        raise Unusable("it was compressed with loss, so its pixels no longer are what was measured")
    if header.get("ModalityLUTSequence"):
        raise Unusable("its numbers are to be looked up in a table (ModalityLUTSequence), which is not done here")
    packed = UID(str(header.file_meta.get("TransferSyntaxUID", "")))
    if packed.is_transfer_syntax and packed.is_compressed and not _can_be_unpacked(packed):
        raise Unusable(
            f"its pixels are compressed ({packed.name}), which cannot be decoded here: store the series without "
            "compression (gdcmconv --raw), or install the package pylibjpeg with its plug-ins"
        )


def _can_be_unpacked(packed: str) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return get_decoder(packed).is_available
    except NotImplementedError:
        return False


def _numbers(header: "Dataset", name: str, count: int) -> tuple[float, ...]:
    value = header.get(name)
    numbers = tuple(map(float, value if isinstance(value, Sequence) else ()))
    if len(numbers) != count or not all(abs(number) < FARTHEST for number in numbers):
        raise Unusable(f"its {name} is no {count} plausible numbers")
    return numbers


def _printable(words: object) -> str:
    """What a file says may hold control characters, which a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in str(words))


# The series


def _chosen(path: Path, images: Sequence[_Image], wanted: Sequence[str]) -> list[_Image]:
    """The images of one series."""
    series: dict[str, list[_Image]] = {}
    for image in images:
        series.setdefault(image.series, []).append(image)
    named = [uid for uid in dict.fromkeys(wanted) if uid in series]
    if len(named) > 1:
        raise DataError(f"{path}: holds {len(named)} of the series that --series names; name one of each folder")
    if named:
        return series[named[0]]
    if damaged := next((image for image in images if image.damaged), None):
        raise DataError(f"{damaged.path}: {damaged.flaw}")
    # A series of which nothing can be used (a report that was photographed) is none to choose from.
    usable = {uid: found for uid, found in series.items() if any(image.flaw is None for image in found)} or series
    if wanted and (len(usable) > 1 or path.is_file()):
        raise DataError(f"{path}: holds no series {wanted[0]}; it holds {_list(usable)}")
    if len(usable) > 1:
        raise DataError(f"{path}: holds {len(usable)} series; choose one with --series UID: {_list(usable)}")
    return next(iter(usable.values()))


def _list(series: Mapping[str, Sequence[_Image]]) -> str:
    named = [f"{uid} ({found[0].about or 'no description'}, {len(found)} images)" for uid, found in series.items()]
    return listed(named)


def _check_alike(images: Sequence[_Image]) -> None:
    """That the images lie in parallel planes and have pixels of one size; the odd one is the one to name."""
    usual, _ = Counter(map(_kind, images)).most_common(1)[0]
    common = next(image for image in images if _kind(image) == usual)
    for image in images:
        difference = _difference(common, image)
        if difference is not None:
            raise DataError(
                f"{image.path}: has {difference} than {common.path} of the same series; take what does not belong "
                "to the volume (a scout, a second reconstruction) out of the folder"
            )


def _kind(image: _Image) -> tuple:
    return image.shape, *np.round((*image.directions, *image.spacing), 2).tolist()


def _difference(one: _Image, other: _Image) -> str | None:
    if one.shape != other.shape:
        return f"another size ({other.shape[0]} x {other.shape[1]} pixels)"
    if not np.allclose(one.directions, other.directions, rtol=0, atol=TURNED):
        return "another orientation"
    if not np.allclose(one.spacing, other.spacing, rtol=RESIZED):
        return f"another PixelSpacing ({other.spacing[0]:g} x {other.spacing[1]:g} mm)"
    return None


def _in_order(images: Sequence[_Image]) -> tuple[_Image, ...]:
    """By height; of files with the same image, the first."""
    ordered: list[_Image] = []
    for image in sorted(images, key=lambda one: (one.height, one.path)):
        if not ordered or image.height - ordered[-1].height > SAME:
            ordered.append(image)
        elif image.uid != ordered[-1].uid:
            raise DataError(
                f"{image.path}: lies at the same place as {ordered[-1].path.name} of the same series; keep one image "
                "of each place (the series holds several times, echoes or reconstructions)"
            )
    return tuple(ordered)


def _place(images: Sequence[_Image]) -> tuple[np.ndarray, np.ndarray]:
    """Where the volume lies, and its spacing; the images are alike and in order."""
    first, last = images[0], images[-1]
    (y, x), directions = first.spacing, np.array(first.directions)
    if len(images) == 1:
        step = first.normal * (0 if np.isnan(first.thickness) else first.thickness)
    else:
        step = np.subtract(last.position, first.position) / (len(images) - 1)
        _check_even(images, step)
    return orientation.place_of([directions[:3] * x, directions[3:] * y, step], first.position)


def _check_even(images: Sequence[_Image], step: np.ndarray) -> None:
    positions = np.array([image.position for image in images])
    expected = positions[0] + np.arange(len(images))[:, None] * step
    apart = np.linalg.norm(positions - expected, axis=1)
    if apart.max() <= UNEVEN * float(np.dot(step, images[0].normal)):
        return
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # of two steps, the one without a gap
    odd = int(np.abs(steps - usual).argmax())
    raise DataError(
        f"{images[odd].path}: lies {steps[odd]:.4g} mm from the next image of the series, {images[odd + 1].path.name}, "
        f"where {usual:.4g} mm are usual: an image is missing there, or the images are not evenly spaced in one line"
    )


# The pixels


def _pixels(image: _Image) -> np.ndarray:
    """[H, W], scaled as the header asks."""
    from pydicom import dcmread

    try:
        with opened(image.path) as file:
            header = dcmread(file)
            if header.get("PixelData") is None:
                raise Unusable("it has no PixelData, or was cut short")
            values = scaled(header.pixel_array, *rescaling(header))
    except Unusable as error:
        raise DataError(f"{image.path}: {_printable(error)}") from None
    if values.shape != image.shape:
        raise DataError(f"{image.path}: has pixels of shape {values.shape}, where its header says {image.shape}")
    return values
