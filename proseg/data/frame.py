"""Bringing slices to one size: a crop with a fill where there is nothing to show, or a zoom."""

import numpy as np


def crop_or_pad(stack: np.ndarray, height: int, width: int, fill: np.ndarray | float = 0) -> np.ndarray:
    """[..., H, W] to [..., height, width] about the centre; `fill` is broadcast to where there is nothing to show."""
    rows_from, rows_to = _overlap(stack.shape[-2], height)
    columns_from, columns_to = _overlap(stack.shape[-1], width)
    cut = np.empty((*stack.shape[:-2], height, width), dtype=stack.dtype)
    cut[...] = fill
    cut[..., rows_to, columns_to] = stack[..., rows_from, columns_from]
    return cut


def zoom_nearest(stack: np.ndarray, height: int, width: int) -> np.ndarray:
    """[..., H, W] to [..., height, width] by the nearest pixel, each axis by its own factor (corners meet corners)."""
    rows = np.rint(np.linspace(0, stack.shape[-2] - 1, height)).astype(int)
    columns = np.rint(np.linspace(0, stack.shape[-1] - 1, width)).astype(int)
    return stack[..., rows[:, None], columns]


def zoom_linear(stack: np.ndarray, height: int, width: int) -> np.ndarray:
    """[..., H, W] to [..., height, width] float32, linear between pixels, each axis by its own factor (corners meet
    corners, as in `zoom_nearest`). Nothing is smoothed before a reduction."""
    stack = stack.astype(np.float32, copy=False)
    above, below, share = _neighbours(stack.shape[-2], height)
    rows = _between(stack[..., above, :], stack[..., below, :], share[:, None])
    left, right, share = _neighbours(stack.shape[-1], width)
    return _between(rows[..., left], rows[..., right], share)


def zoomed_spacing(
    spacing: tuple[float, float, float], shape: tuple[int, int], height: int, width: int
) -> tuple[float, float, float]:
    """(z, y, x) in mm of what `zoom_nearest` or `zoom_linear` made of slices of `shape` (H, W)."""
    z, y, x = spacing
    return z, y * shape[0] / height, x * shape[1] / width


def _neighbours(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each wanted place along an axis: the pixels before and behind it, and how near it is to the latter."""
    places = np.linspace(0, length - 1, wanted)
    before = np.floor(places).astype(int)
    return before, np.minimum(before + 1, length - 1), (places - before).astype(np.float32)


def _between(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + (second - first) * share


def _overlap(length: int, wanted: int) -> tuple[slice, slice]:
    """Where an axis of `length` and one of `wanted` overlap when their centres meet, in the indices of either."""
    shared = min(length, wanted)
    start, target = (length - shared) // 2, (wanted - shared) // 2
    return slice(start, start + shared), slice(target, target + shared)
