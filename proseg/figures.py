"""Pictures of data: functions that return a matplotlib figure and show nothing."""

import math

import numpy as np
from matplotlib.figure import Figure

from proseg.data.store import Store
from proseg.errors import DataError

RATER_COLOURS = ("#00a5ff", "#ffd000", "#ff3b8d", "#3ddc6e", "#b08bff", "#ff8c3b")
"""Apart from each other on grey, also for most who see colours differently; further raters repeat them."""


def contact_sheet(store: Store, count: int) -> Figure:
    """Slices spread over the data set, each with the outlines of its raters; the label stands in the title."""
    m = store.manifest
    rows = _spread(store, count)
    if not len(rows):
        raise DataError(f"data set {m.name!r} holds no outline to draw")
    columns = min(8, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(1.6 * columns, 1.75 * lines + 1.0), dpi=130, layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, row in zip(axes, rows, strict=False):
        image, masks = store.image(row)[0], store.annotations(row)
        low, high = m.window or np.percentile(image, (1, 99))
        axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
        for rater, mask in enumerate(masks):
            if mask.any():
                axis.contour(mask, [0.5], colors=RATER_COLOURS[rater % len(RATER_COLOURS)], linewidths=0.8)
        axis.set_title(str(store.volumes[row]).removeprefix("LIDC-IDRI-"), fontsize=6, pad=2)
    order = "sorted by area, A1 smallest" if m.sorted_raters else "the data set's own"
    counts = f"{m.slices} slices, {m.patients} patients, {m.raters} raters ({order})"
    figure.suptitle(f"{m.name}: {m.label}\n{counts}", fontsize=9)
    for rater in range(m.raters):
        axes[0].plot([], [], color=RATER_COLOURS[rater % len(RATER_COLOURS)], label=f"A{rater + 1}")
    figure.legend(loc="outside lower center", ncols=m.raters, fontsize=7, frameon=False)
    return figure


def _spread(store: Store, count: int) -> np.ndarray:
    """Rows evenly through the file, among those that somebody outlined."""
    drawn = [row for row in range(store.manifest.slices) if store.annotations(row).any()]
    places = np.linspace(0, len(drawn) - 1, min(count, len(drawn))).round().astype(int)
    return np.array(drawn)[places]
