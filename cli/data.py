"""The commands for data sets: prepare them, check them, list them, look at them, write a stand-in."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import render
from cli.complete import offer, sources
from cli.errors import INTERRUPTED, user_errors
from cli.options import DataName, Json, Lengths, Size, Window, lengths, size, window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from proseg.data.catalog import Prepared
    from proseg.data.quality import Quality
    from proseg.data.store import Store

Selection = Literal["paper", "all4", "any"]  # of proseg.data.kinds, whose import would cost --help
Fit = Literal["crop", "zoom"]

PICTURES = (".png", ".svg", ".pdf", ".jpg")
SKIPPED_SHOWN = 5

data_app = typer.Typer(
    help="Data sets: prepare, check, list and remove them, look at them, write a stand-in.", no_args_is_help=True
)


@data_app.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Argument(help="What it is: lidc-dicom, lidc-pickle, lidc-slices, npc or own.",
                                          autocompletion=offer(sources))],
    path: Annotated[Path, typer.Option("--from", metavar="PATH", readable=False, help="Where it lies: a folder, or a "
                                                                                      "file.")],
    name: Annotated[str, typer.Option(help="What it will be called.")],
    selection: Annotated[Selection | None, typer.Option(help="LIDC's slices: the paper's (default), those of all "
                                                             "four raters, or of any.")] = None,
    outline: Annotated[Literal["in", "out"] | None, typer.Option(help="Whether LIDC's outlines belong to the masks "
                                                                      "(default: in).")] = None,
    to_size: Annotated[Size | None, typer.Option("--size", parser=size, metavar="HxW",
                                                 help="Pixels of the slices.")] = None,
    fit: Annotated[Fit | None, typer.Option(help="How slices come to that size: cut about the centre (default), or "
                                                 "zoomed.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, max=255, help="Classes of foreground in the masks.")] = None,
    to_window: Annotated[Window | None, typer.Option("--window", parser=window, metavar="LO,HI",
                                                     help="Intensities that become -1 and 1.")] = None,
    sorted_raters: Annotated[bool, typer.Option("--sorted-raters", help="Raters are nobody in particular: sort them "
                                                                        "by area in every image.")] = False,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder below which the files of a manifest lie, "
                                                                  "where that is not its own.")] = None,
    images: Annotated[str | None, typer.Option(metavar="PATTERN", help="Images of a folder without a manifest, as in "
                                                                       "'images/{case}_training.tif'.")] = None,
    masks: Annotated[list[str] | None, typer.Option(metavar="PATTERN",
                                                    help="Their masks, as in 'manual/{stem}_{rater}.png', where {stem} "
                                                         "is the image's name without its type; may be "
                                                         "repeated.")] = None,
    write_manifest: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was found as a manifest "
                                                                             "(CSV).")] = None,
    axes: Annotated[str | None, typer.Option(metavar="AXES", help="Order of the axes of arrays that can be read in two "
                                                                  "ways, as in yxc or zyx.")] = None,
    spacing: Annotated[Lengths | None, typer.Option(parser=lengths, metavar="[Z,]Y,X",
                                                    help="Size of a pixel in mm, where files do not say it.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Value of a mask from which on a pixel belongs to the "
                                                         "object.")] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Exchange object and background of the masks.")] = False,
    empty_is_missing: Annotated[bool, typer.Option("--empty-is-missing", help="An empty mask says that its rater did "
                                                                              "not annotate the image.")] = False,
    drop_rater: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave a rater out; may be "
                                                                              "repeated.")] = None,
    as_written: Annotated[bool, typer.Option("--as-written", help="Patients, raters and volumes whose names differ in "
                                                                  "spelling alone are different.")] = False,
    label: Annotated[str | None, typer.Option(help="What tables and model cards say of the data.")] = None,
    licence: Annotated[str | None, typer.Option(help="Under which the data may be used.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes that read; as many as cores without.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make a data set of files where they lie, once; then `launch` searches on it."""
    with user_errors():
        from orchestrator.workspace import workspace
        from proseg.data.catalog import prepare_named
        from proseg.data.kinds import Choices

        choices = Choices(
            selection=selection, outline=outline, size=to_size and (to_size.height, to_size.width), fit=fit,
            classes=classes, window=to_window and (to_window.low, to_window.high), sorted_raters=sorted_raters,
            label=label, licence=licence, root=root, images=images, masks=tuple(masks or ()), axes=axes,
            write_manifest=write_manifest, spacing=spacing and spacing.mm, threshold=threshold, invert=invert,
            empty_is_missing=empty_is_missing, drop_rater=tuple(drop_rater or ()), as_written=as_written,
        )  # fmt: skip
        try:
            prepared = prepare_named(source, path, name, workspace(), choices, jobs=jobs or os.cpu_count() or 1,
                                     track=render.track(quiet=as_json))  # fmt: skip
        except KeyboardInterrupt:
            render.error(f"interrupted; the same command goes on with {name} where it stopped")
            raise typer.Exit(INTERRUPTED) from None
        _tell(prepared, source, name, as_json=as_json)


def _tell(prepared: "Prepared", source: str, name: str, *, as_json: bool) -> None:
    """What was prepared, and the command that comes next; where no shipped space fits, one is written beside."""
    from orchestrator.template import write_template
    from proseg.data.catalog import NAMES
    from proseg.data.kinds import find_kind
    from proseg.data.quality import measure

    store, shipped = prepared.store, name if name in NAMES else find_kind(source).space
    odd = [one for one in measure(store, render.track(quiet=as_json)).suspicions if one.told]
    template = None if shipped else write_template(store, name, Path.cwd())
    space = f"{name}.toml" if shipped is None else shipped if shipped == name else f"{shipped} --data {name}"
    if as_json:
        m = store.manifest
        counts = {key: getattr(m, key) for key in ("slices", "patients", "volumes", "raters", "channels", "height",
                                                   "width", "classes", "label", "licence", "fingerprint")}  # fmt: skip
        render.json({"name": name, "folder": str(store.folder), "anew": prepared.anew, **counts,
                     "skipped": [vars(one) for one in m.skipped], "notes": m.notes,
                     "suspicions": [one.summary for one in odd], "space": template and str(template),
                     "next": f"proseg-tune launch {space}"})  # fmt: skip
        return
    if not prepared.anew:
        render.line(f"{name} had been prepared from these files already; nothing was done")
    for text in [*_summary(store), *(f"suspicious: {one.summary} ({one.examples[0]}): {one.note}" for one in odd)]:
        render.line(text)
    if template is None and not shipped:
        render.line(f"{space} is there already and was left alone")
    elif template is not None:
        render.line(f"a search space to begin with was written to {template}")
    render.line(f"next: proseg-tune launch {space}")


def _summary(store: "Store") -> list[str]:
    from proseg.data.raters import rare_raters

    m = store.manifest
    raters = f"{m.raters} raters" + (f" ({', '.join(m.rater_names)})" if m.rater_names else "")
    lines = [
        f"{m.name}: {m.label}",
        f"{m.slices} slices of {m.height} x {m.width} in {m.channels} channel(s), of {m.volumes} volumes of "
        f"{m.patients} patients, by {raters}",
    ]
    lines += (*m.notes, *rare_raters(store))
    if m.clipped:
        lines.append(f"{m.clipped} pixels beyond -32768 to 32767 were clipped")
    if m.skipped:
        lines.append(f"{len(m.skipped)} skipped:")
        lines += [f"  {one.what}: {one.why}" for one in m.skipped[:SKIPPED_SHOWN]]
    if len(m.skipped) > SKIPPED_SHOWN:
        lines.append(f"  and {len(m.skipped) - SKIPPED_SHOWN} more, all of them in {store.folder / 'manifest.json'}")
    return [*lines, f"in {store.folder}, {m.bytes / 1e6:.1f} MB"]


@data_app.command("check")
def data_check(name: DataName, as_json: Json = False) -> None:
    """Read a data set from beginning to end and compare it with the fingerprint it was written with."""
    with user_errors():
        from orchestrator.workspace import workspace
        from proseg.data.catalog import open_data

        store = open_data(name, workspace(), jobs=os.cpu_count() or 1, track=render.track(quiet=as_json))
        store.verify()
        m = store.manifest
        if as_json:
            render.json({"name": m.name, "folder": str(store.folder), "slices": m.slices, "bytes": m.bytes,
                         "fingerprint": m.fingerprint, "intact": True})  # fmt: skip
            return
        for text in _summary(store):
            render.line(text)
        render.line(f"intact: every byte is as it was written (fingerprint {m.fingerprint[:12]})")


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """List the data sets and whether they are at hand."""
    with user_errors():
        from orchestrator.workspace import workspace
        from proseg.data.catalog import listing

        render.listing(listing(workspace()), as_json=as_json)


@data_app.command("remove")
def data_remove(
    name: DataName,
    force: Annotated[bool, typer.Option("--force", help="Even if studies were made on it.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a prepared data set from the workspace; the files it was prepared from stay."""
    with user_errors():
        from orchestrator.disk import used
        from orchestrator.study import read_state, studies_on
        from orchestrator.workspace import workspace
        from proseg.data.catalog import folders_of, remove
        from proseg.errors import DataError

        home = workspace()
        folders = folders_of(name, home)
        studies = studies_on(home, folders)
        if running := [study.name for study in studies if read_state(study) == "running"]:
            raise DataError(f"{name} is read by a running study ({', '.join(running)}): end it first with "
                            f"`proseg-tune stop {running[0]}`")  # fmt: skip
        if studies and not force:
            raise DataError(f"{name} is used by {', '.join(study.name for study in studies)}, which could no longer be "
                            "resumed, retrained or verified: add --force to remove it nevertheless")  # fmt: skip
        freed = sum(map(used, folders))
        remove(name, home)
        if as_json:
            render.json({"name": name, "removed": [str(folder) for folder in folders], "bytes": freed,
                         "studies": [study.name for study in studies]})  # fmt: skip
            return
        render.line(f"{name} was removed, {freed / 1e6:.1f} MB are free again; the files it was prepared from are as "
                    "they were")  # fmt: skip


@data_app.command("show")
def data_show(
    name: DataName,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the report goes, a folder of the workspace without; a .png, .svg, "
                                            ".pdf or .jpg: the samples alone."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=200, help="Slices shown, in a picture alone.")] = 24,
    case: Annotated[str | None, typer.Option(metavar="NAME",
                                             help="Draw one volume, image or patient large, by the end of its "
                                                  "name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what this command wrote there.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Report on a data set: samples with their raters' outlines, how far the raters agree, what is suspicious."""
    with user_errors():
        from orchestrator.workspace import workspace
        from proseg.data.catalog import open_data
        from proseg.errors import DataError

        home = workspace()
        picture = out is not None and out.suffix.lower() in PICTURES and not out.is_dir()
        if case is not None and out is not None and not picture:
            raise DataError(f"--out {out}: with --case it is a picture and must end in one of {', '.join(PICTURES)}")
        if out is not None:
            _check_place(out, picture=picture, force=force)
        store = open_data(name, home, jobs=os.cpu_count() or 1, track=render.track(quiet=as_json))
        store.verify()
        if case is not None:
            _draw_case(store, case, out, home, as_json=as_json)
            return
        if out is None:
            _tell_report(store, home, as_json=as_json)
            return
        with _writing(out):
            if picture:
                _draw_samples(store, out, count, as_json=as_json)
            else:
                _write_report(store, out, as_json=as_json)


def _check_place(out: Path, *, picture: bool, force: bool) -> None:
    """Before the data are opened, which may take a while."""
    from proseg.errors import DataError

    if not out.resolve().parent.is_dir():
        raise DataError(f"--out {out}: the folder {out.resolve().parent} does not exist")
    if not picture and not out.is_dir() and (out.exists() or out.suffix):
        raise DataError(f"--out {out} must be a folder, which may be new, or end in one of {', '.join(PICTURES)}")
    if not force and (out.exists() if picture else out.is_dir() and any(out.iterdir())):
        what = "exists; choose another file, or" if picture else "is not empty; choose another folder, or"
        raise DataError(f"--out {out} {what} add --force to replace what this command wrote there")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Errors of the file system name what the user typed, not a file that is written on the way."""
    from proseg.errors import DataError

    try:
        yield
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror or error}") from None


def _draw_case(store: "Store", case: str, out: Path | None, home: Path, *, as_json: bool) -> None:
    from orchestrator.words import slug
    from proseg.data.catalog import rows_of_case
    from proseg.figures import case_sheet

    name, rows = rows_of_case(store, case)
    if out is None:
        out = home / "quality" / f"{store.manifest.name}-{slug(name)}.png"
        out.parent.mkdir(parents=True, exist_ok=True)
    with _writing(out):
        _save(case_sheet(store, rows, name), out)
    if as_json:
        render.json({"name": store.manifest.name, "case": name, "slices": len(rows), "picture": str(out)})
        return
    render.line(f"{name}: {len(rows)} slice(s) of patient {store.patients[rows[0]]} -> {out}")


def _save(figure: "Figure", out: Path) -> None:
    from proseg.records import write_atomically

    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:].lower())
    write_atomically(out, picture.getvalue())


def _draw_samples(store: "Store", out: Path, count: int, *, as_json: bool) -> None:
    from proseg.figures import contact_sheet

    _save(contact_sheet(store, count), out)
    m = store.manifest
    if as_json:
        render.json({"name": m.name, "label": m.label, "picture": str(out)})
        return
    render.line(f"{m.name}: {m.label}. {m.slices} slices of {m.patients} patients, {m.raters} raters -> {out}")


def _tell_report(store: "Store", home: Path, *, as_json: bool) -> None:
    """The report that studies on these data log as well."""
    from proseg.data.quality import kept, measure

    _tell_quality(measure(store, render.track(quiet=as_json)), kept(store, home) / "report.md", as_json=as_json)


def _write_report(store: "Store", out: Path, *, as_json: bool) -> None:
    from proseg.data.quality import measure
    from proseg.data.quality_page import write_page

    quality = measure(store, render.track(quiet=as_json))
    _tell_quality(quality, write_page(quality, store, out), as_json=as_json)


def _tell_quality(quality: "Quality", report: Path, *, as_json: bool) -> None:
    from proseg.data.quality import highlights

    if as_json:
        m, own = quality.manifest, quality.distances[-1]
        render.json({"name": m.name, "label": m.label, "report": str(report), "cases": own.cases, "d_aa": own.d_aa,
                     "between_raters": own.between,
                     "suspicions": [one.summary for one in quality.suspicions]})  # fmt: skip
        return
    for text in highlights(quality):
        render.line(text)
    render.line(f"-> {report}")


@data_app.command("standin")
def data_standin(
    name: Annotated[str, typer.Argument(help="Only npc has a stand-in.")],
    subjects: Annotated[str, typer.Option(help="Volumes for training, validation, test.")] = "80,20,20",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the files go; `launch npc` looks in the "
                                                                     "workspace.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write synthetic volumes in the layout of a data set that cannot be had; they say so everywhere."""
    with user_errors():
        from orchestrator.workspace import workspace
        from proseg.data import npc, npc_standin
        from proseg.data.catalog import npc_folder
        from proseg.errors import DataError

        if name != "npc":
            raise DataError(f"there is no stand-in for {name!r}: only npc has one")
        counts = re.fullmatch(r"(\d+),(\d+),(\d+)", subjects)
        if not counts:
            raise DataError(f"--subjects {subjects!r} must be three numbers, as in 80,20,20")
        parts = (int(counts[1]), int(counts[2]), int(counts[3]))
        folder = out or npc_folder(workspace())
        written = list(
            render.track(quiet=as_json)(npc_standin.write(folder, parts), sum(parts), "Writing the NPC stand-in")
        )
        if as_json:
            render.json({"name": name, "label": npc.STANDIN_LABEL, "folder": str(folder), "written": len(written)})
            return
        state = f"{len(written)} volumes written to" if written else "already complete in"
        render.line(f"{npc.STANDIN_LABEL}: {state} {folder}")
