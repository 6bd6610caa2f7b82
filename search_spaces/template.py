"""A search space for a data set of one's own, scaled to its size: a file to start from, and to change."""

from math import ceil, log2

TRAINING_SHARE = 0.65
"""Of the slices, in one of four folds after its validation patients are taken out."""
STEPS = 5000
"""Optimiser steps of a trial that is not stopped early, about those of lidc.toml."""
EPOCHS = 10, 200
"""At least and at most, whatever the number of steps."""
BATCH = 12
PIXELS = 128 * 128
"""Of the images for which this batch is meant; larger ones come fewer at a time."""
STEPS_AN_EPOCH = 8
"""With fewer the average of a batch would be that of the data set."""
PATCH = 2
"""Pixels along the side of a cell of z, in the modern recipe."""
COARSEST = 4
"""Cells along the shorter side at the U-Net's lowest level, at least."""
LEVELS = 5
GRIDS = 4, 8, 16


def template_space(data: str, *, slices: int, height: int, width: int, classes: int, raters: int) -> str:
    """The text of a search space for `proseg-tune launch`.

    Args:
        data: the name under which the data were prepared.
        slices: all of them; about two thirds are trained on.
        classes: of foreground.
    """
    batch, epochs = _batch(slices, height, width), _epochs(slices, height, width)
    return TEMPLATE.format(
        data=_quoted(data), about=_quoted(_about(height, width, classes, raters)),
        slices=slices, height=height, width=width, raters=raters, classes=_classes(classes),
        batch=batch, epochs=epochs, steps=epochs * _steps(slices, batch),
        trials=_trials(slices), grace=max(1, epochs // 10), final=ceil(1.5 * epochs),
        levels=_levels(height, width), z_grid=_z_grid(height, width),
        tau_low=min(4, raters) if raters > 1 else 2, tau_high=max(16, 2 * raters),
    )  # fmt: skip


def _about(height: int, width: int, classes: int, raters: int) -> str:
    return f"{height} x {width}, {raters} raters, {_classes(classes)}, around the modern recipe."


def _classes(count: int) -> str:
    return "one class" if count == 1 else f"{count} classes"


def _batch(slices: int, height: int, width: int) -> int:
    """An even number from 2 to `BATCH`, so that two ranks can share it."""
    for_memory = BATCH * PIXELS / max(PIXELS, height * width)
    for_steps = slices * TRAINING_SHARE / STEPS_AN_EPOCH
    return 2 * max(1, int(min(for_memory, for_steps, BATCH) / 2))


def _steps(slices: int, batch: int) -> int:
    """Of an epoch."""
    return max(1, ceil(slices * TRAINING_SHARE / batch))


def _epochs(slices: int, height: int, width: int) -> int:
    epochs = STEPS / _steps(slices, _batch(slices, height, width))
    return round(min(max(epochs, EPOCHS[0]), EPOCHS[1]))


def _trials(slices: int) -> int:
    """Fewer where each is long."""
    return 40 if slices <= 10_000 else 24


def _levels(height: int, width: int) -> int:
    cells = min(height, width) / PATCH
    return max(1, min(LEVELS, 1 + int(log2(max(1.0, cells / COARSEST)))))


def _z_grid(height: int, width: int) -> str:
    """The line of the file, or none where z has too few cells for a choice."""
    cells = ceil(max(height, width) / PATCH)
    values = [*(grid for grid in GRIDS if grid < cells), cells]
    if len(values) < 2:
        return ""
    return f'"model.z_grid" = {{ kind = "choice", values = {values} }}\n'


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'


TEMPLATE = """\
# ProSeg on {data}: {slices} slices of {height} x {width}, {raters} raters, {classes}.
#
# Searches  the latent sizes (channels and grid of z, size of tau), the Dirichlet concentration, the loss weights and
#           the learning rate, around the modern recipe: batch {batch}, about {steps} steps a trial.
# Costs     what `proseg-tune launch FILE --dry-run` says, which starts nothing.
# Gave      nothing yet.
#
# It was written for the number and the size of your slices; change what you like. `launch` refuses what cannot be.

about = {about}
data = {data}
# The fold whose training patients are searched on; its test patients stay unseen. Where the data came with their own
# train, val and test, there is fold 0 only.
fold = 0

# What is compared on the validation patients: the generalised energy distance, the smaller the better. Also possible
# are dice_soft, dice_max, dice_match and dice_mean, or one rater's dice_a1, dice_a2, ..., with the goal "maximize".
[objective]
metric = "ged"
goal = "minimize"

# So many trials, each trained for so many epochs if it is not stopped early. `launch --max-time 8h` is a limit too.
[budget]
trials = {trials}
epochs = {epochs}

# At each rung the best third go on; none is stopped before {grace} epochs.
[scheduler]
kind = "asha"
grace_epochs = {grace}
reduction = 3

# What all trials share where it differs from the recipe (proseg/recipes.py). "data.crop" = 128 would train on the
# central 128 x 128 pixels of larger images, "data.rotate" = 15 turn them by up to 15 degrees.
[base]
batch_size = {batch}
"model.width" = 32
"model.levels" = {levels}

[search]
"model.z_channels" = {{ kind = "choice", values = [4, 8, 16] }}
{z_grid}"model.tau_size" = {{ kind = "int", low = {tau_low}, high = {tau_high} }}
"model.concentration" = {{ kind = "float", low = 0.1, high = 10.0, log = true }}
"loss.w_rec" = {{ kind = "float", low = 0.01, high = 1.0, log = true }}
"loss.w_cls" = {{ kind = "float", low = 0.01, high = 1.0, log = true }}
"loss.beta_z" = {{ kind = "float", low = 0.001, high = 1.0, log = true }}
"loss.beta_tau" = {{ kind = "float", low = 0.001, high = 1.0, log = true }}
"loss.w_es" = {{ kind = "float", low = 0.1, high = 3.0, log = true }}
"optim.lr" = {{ kind = "float", low = 0.0001, high = 0.005, log = true }}

# Before the final stage the best trials are trained anew with other seeds and other patients, and the best of them goes
# on. top = 0 turns it off.
[confirm]
top = 3
repeats = 2

# The best configuration, trained anew and evaluated once on the held-out patients of every fold.
[[final]]
data = {data}
epochs = {final}
"""
