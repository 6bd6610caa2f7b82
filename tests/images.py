"""Writers of small image files for tests, and a user who may not read them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from PIL import Image

RAS = np.diag([2.0, 3.0, 4.0, 1.0])
"""NIfTI's own directions: 2 mm to the right, 3 mm to the front, 4 mm up."""
LPS = np.diag([-2.0, -3.0, 4.0, 1.0])
"""As the store has it: nothing needs turning."""
NOBODY = 65534
FAILING = Path(__file__).parents[1] / ".." / "shared" / "data" / "failing"
"""Small inputs that were once taken wrongly; not part of the repository."""


def failing(name: str) -> Path:
    """One of them; skips the test where they are not there."""
    path = FAILING / name
    if not path.exists():
        pytest.skip("the small failing inputs are not here")
    return path


def write_image(path: Path, values: np.ndarray, **options: Any) -> Path:
    """[H, W] or [D, H, W] (raster also [H, W, bands]) in the format of the name; where it says so, in LPS, 1 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    if name.endswith(".npy"):
        np.save(path, values)
    elif name.endswith(".npz"):
        np.savez_compressed(path, values)
    elif name.endswith((".nii", ".nii.gz")):
        write_nifti(path, values.T, np.diag([-1.0, -1.0, 1.0, 1.0]))
    elif name.endswith((".mha", ".mhd")):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    elif name.endswith((".nrrd", ".nhdr")):
        directions = np.eye(values.ndim, 3)
        header = {"space": "left-posterior-superior", "space directions": directions, "space origin": np.zeros(3)}
        nrrd.write(str(path), values.T, header | options)
    elif values.ndim == 3 and name.endswith((".tif", ".tiff")):
        write_pages(path, list(values), **options)
    else:
        Image.fromarray(values).save(path, **options)
    return path


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray, **header: Any) -> Path:
    """[x, y, ...] with the fields `slope` and `inter`, `units` of the header where they are given."""
    image = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
    if "units" in header:
        image.header.set_xyzt_units(header["units"])
    nibabel.save(image, path)
    if "slope" in header:
        write_scaling(path, header["slope"], header["inter"])
    return path


def write_scaling(path: Path, slope: float, intercept: float) -> None:
    """Changes what the stored numbers of a .nii mean."""
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(content)


def write_pages(path: Path, pages: list[np.ndarray], **options: Any) -> Path:
    """A TIFF of several pages."""
    first, *others = (Image.fromarray(page) for page in pages)
    first.save(path, save_all=True, append_images=others, **options)
    return path


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything; who is not root needs no change."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Pixels of an image."""
    return np.random.default_rng(seed).integers(-5, 30, shape).astype(np.int16)


def load(path: Path) -> np.ndarray:
    """The voxels of a NIfTI file, in its own axes."""
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
