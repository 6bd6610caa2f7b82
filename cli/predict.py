"""The command that segments image files with an exported model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.errors import INTERRUPTED, user_errors
from cli.options import Json

TILED = "it is larger than the {} x {} pixels that the model was trained on, and was cut into such tiles"
LESIONS = "; a model of crops about lesions sees a lesion in each of them: name the place with --at"
FRAMINGS_WITHOUT_LESIONS = ("crop", "zoom_linear", "zoom_nearest")
CLIPPED = "{} pixel(s) beyond the 16 bits of the training data were clipped, as those were"
CROPPED = "only the {} x {} pixels about {} were segmented, in {} slice(s); everything else was left empty"


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that `best --export` wrote.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT",
                                                help="Images: NIfTI, NRRD, MHA, PNG, JPEG, TIFF, NPY files, DICOM "
                                                     "series; a file for each channel, joined by commas; or a CSV or "
                                                     "Parquet table of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Write into this folder, a folder for each input.")],
    samples: Annotated[int, typer.Option(min=1, help="Draws of what any expert might say.")] = 16,
    draws: Annotated[int | None, typer.Option(min=8, help="Segmentations that the uncertainty is estimated from, a "
                                                          "multiple of 4: N/4 preferences, with four draws of z each "
                                                          "(64 if not given). The time grows with it.")] = None,
    no_uncertainty: Annotated[bool, typer.Option("--no-uncertainty",
                                                 help="Neither compute nor write the two maps of the variance; "
                                                      "much faster.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same draws.")] = 0,
    at: Annotated[str | None, typer.Option(metavar="X,Y[,Z]",
                                           help="Segment only a crop about this voxel of the image, counted from 0; Z "
                                                "may be a range, as in 38:44.")] = None,
    series: Annotated[list[str] | None, typer.Option(metavar="UID",
                                                     help="Which series of a DICOM folder with several; may be "
                                                          "repeated.")] = None,
    axes: Annotated[str | None, typer.Option(metavar="WORD",
                                             help="What the axes of NPY files and TIFF pages are, a letter each: z, y, "
                                                  "x and c (channels), as in yxc.")] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a prediction that stands there.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Segment images with an exported model: a mask of each expert, samples, mean and uncertainty."""
    # The convolutions of tiles are short: threads that wait for each other must not burn what they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with user_errors():
        import proseg
        from proseg.errors import ConfigError
        from proseg.exported import DRAWS
        from proseg.predict import RECORD
        from proseg.predict import predict as segment

        if no_uncertainty and draws is not None:
            raise ConfigError("--draws is for the uncertainty, which --no-uncertainty leaves out; give one of the two")
        try:
            record = segment(
                proseg.load(model, device=device), inputs, out, samples=samples, seed=seed, at=at, series=series or (),
                axes=axes, draws=0 if no_uncertainty else draws or DRAWS, force=force, origin=str(model.resolve()),
                track=render.track(quiet=as_json),
            )  # fmt: skip
        except KeyboardInterrupt:
            render.error(f"interrupted; nothing was written to {out}")
            raise typer.Exit(INTERRUPTED) from None
        if as_json:
            render.json(record)
            return
        for one in record["inputs"]:
            render.line(f"{one['name']}: {_range(one)}")
            for note in _notes(one, record):
                render.line(f"  note: {note}")
        render.line(f"in {out}, areas and volumes in {out / RECORD}")


def _notes(one: dict, record: dict) -> Iterator[str]:
    """What must be known of how an image was read and looked at."""
    yield from one["notes"]
    if one["clipped"]:
        yield CLIPPED.format(one["clipped"])
    if (at := one["at"]) is not None:
        yield CROPPED.format(*at["crop"], at["point"], at["slices"])
    elif one["tiled"]:
        lesions = "" if record["data"]["framing"] in FRAMINGS_WITHOUT_LESIONS else LESIONS
        yield TILED.format(*record["tile"]) + lesions


def _range(record: dict) -> str:
    """From the smallest of the experts to the largest, of each class."""
    by_class = zip(*record["experts"].values(), strict=True)
    said = [_sizes(list(experts)) for experts in by_class]
    return said[0] if len(said) == 1 else "; ".join(f"class {k}: {one}" for k, one in enumerate(said, 1))


def _sizes(experts: list[dict]) -> str:
    for key, unit in (("volume_ml", "ml"), ("area_mm2", "mm2"), ("pixels", "pixels")):
        values = [one[key] for one in experts]
        if values[0] is not None:
            return f"the experts' masks have {min(values):.4g} to {max(values):.4g} {unit}"
    raise AssertionError("a mask always has pixels")
