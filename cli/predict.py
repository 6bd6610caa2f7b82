"""The command that segments image files with an exported model."""

from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.errors import INTERRUPTED, user_errors
from cli.options import Json

TILED = (
    "it is larger than the {} x {} pixels that the model was trained on, and was cut into such tiles; a model of crops "
    "about lesions sees a lesion in each of them"
)


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that `best --export` wrote.")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT",
                                                 help="Image files: NIfTI, NRRD, PNG, TIFF or NPY.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Write into this folder, a folder for each input.")],
    samples: Annotated[int, typer.Option(min=1, help="Draws of what any expert might say.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same draws.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a prediction that stands there.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Segment image files with an exported model: a mask of each expert, samples, mean and uncertainty."""
    with user_errors():
        import proseg
        from proseg.predict import RECORD
        from proseg.predict import predict as segment

        try:
            record = segment(
                proseg.load(model), inputs, out, samples=samples, seed=seed, force=force, origin=str(model.resolve()),
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
            if one["tiled"]:
                render.line(f"  note: {TILED.format(*record['tile'])}")
        render.line(f"in {out}, areas and volumes in {out / RECORD}")


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
