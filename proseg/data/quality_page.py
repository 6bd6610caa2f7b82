"""The quality report as a page: Markdown and pictures. What is simulated says so in every title."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from proseg.data.manifest import Manifest, Skipped
from proseg.data.quality import Distances, Quality, highlights
from proseg.data.raters import rare_raters
from proseg.data.store import Store
from proseg.data.suspicions import Suspicion
from proseg.figures import area_ranks, contact_sheet, rank_shares, rater_matrix
from proseg.records import write_atomically

REPORT, SAMPLES, DISTANCES, RANKS = "report.md", "samples.png", "distances.png", "ranks.png"
SAMPLE_SLICES = 24
SKIPPED_SHOWN = 50
PERCENTILES = (5, 25, 50, 75, 95)


def write_page(quality: Quality, store: Store, folder: Path) -> Path:
    """Write the pictures into a folder, and then the page that shows them."""
    figures = _figures(quality, store)
    for name, figure in figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        write_atomically(folder / name, picture.getvalue())
    write_atomically(folder / REPORT, page(quality, set(figures), rare_raters(store)).encode())
    return folder / REPORT


def _figures(quality: Quality, store: Store) -> dict[str, Figure]:
    """The pictures by file name; where nobody drew anything there are no outlines and no ranks to show."""
    m = quality.manifest
    label = f"{m.name}, {m.label}"
    kind = "raters are ranks, sorted by area" if m.sorted_raters else "raters as they are, not sorted"
    figures = {}
    if quality.areas.any():
        figures[SAMPLES] = contact_sheet(store, SAMPLE_SLICES)
        figures[RANKS] = area_ranks({kind: quality.drawn}, unit="slices", label=label)
    named = {f"by {each.case}": each.mean for each in _shown(quality)}
    counts = f"{m.slices} slices, {m.patients} patients; {kind}"
    figures[DISTANCES] = rater_matrix(named, counts=counts, label=label)
    return figures


def _shown(quality: Quality) -> tuple[Distances, ...]:
    """The conventions where they differ, which they do where two masks of a slice are both empty."""
    published, ours, *volume = quality.distances
    if np.array_equal(published.mean, ours.mean, equal_nan=True):
        return replace(ours, case="slice, none with two empty masks"), *volume
    return quality.distances


def page(quality: Quality, pictures: set[str], rare: Sequence[str] = ()) -> str:
    """report.md, with those of the pictures that there are, and what is said of rare raters."""
    m = quality.manifest
    sections = [
        _line(f"# Quality of {m.name}: {m.label}"),
        "\n".join(f"- {_line(text)}" for text in highlights(quality)),
        _section("What it is", m, _facts(quality, rare)),
        _section("Samples", m, _picture(SAMPLES, pictures)),
        _section("Raters", m, _areas(quality)),
        _section("Distance between raters", m, _distances(quality, pictures)),
        _section("Rank by area", m, _ranks(quality, pictures)),
        _section("Splits", m, _splits(quality)),
        _section("Suspicious", m, _suspicious(quality.suspicions)),
    ]
    if m.skipped:
        sections.append(_section("Left out", m, _left_out(m.skipped)))
    return _blocks(*sections) + "\n"


def _section(title: str, m: Manifest, content: str) -> str:
    return _blocks(_line(f"## {title} ({m.name}: {m.label})"), content)


# What it is


def _facts(quality: Quality, rare: Sequence[str]) -> str:
    m = quality.manifest
    sides = zip("zyx", quality.spacing.T, strict=True)
    there = quality.present.sum(1)
    annotated = ", ".join(f"{n} in {_count((there == n).sum(), 'slice')}" for n in np.unique(there)[::-1])
    window = "none: each channel of each image has zero mean and unit variance"
    window = f"{m.window[0]:g} to {m.window[1]:g}" if m.window else window
    rows = [
        ("label", m.label), ("licence", m.licence), ("slices", m.slices), ("volumes", m.volumes),
        ("patients", m.patients), ("a case of the evaluation is", f"a {m.unit}"),
        ("raters", f"{m.raters}, {_order(m)}"), 
        ("their names", ", ".join(m.rater_labels)), ("raters who annotated", annotated),
        ("image", f"{m.height} x {m.width} pixels, {m.dtype}"),
        ("channels", _named(m.channels, m.channel_names)), ("classes", m.classes), ("window", window),
        ("spacing, mm", ", ".join(f"{axis} {_range(values)}" for axis, values in sides)),
        *(("note", note) for note in (*m.notes, *rare)),
        ("fingerprint", f"`{m.fingerprint}`"),
    ]  # fmt: skip
    return _table(("what", "value"), rows)


def _order(m: Manifest) -> str:
    return ("ranks, not people: sorted by area in every image" if m.sorted_raters
            else "not sorted: each is the same rater everywhere")  # fmt: skip


def _named(count: int, names: Sequence[object]) -> str:
    return f"{count} ({', '.join(map(str, names))})" if names else str(count)


def _range(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "not known" if np.isnan(values).all() else f"not known of {np.isnan(values).sum()} slices"
    low, middle, high = np.percentile(values, (0, 50, 100))
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g} (median {middle:.4g})"


# Raters


def _areas(quality: Quality) -> str:
    m = quality.manifest
    square = quality.spacing[:, 1] * quality.spacing[:, 2]
    units = {"pixels": np.ones(m.slices), **({} if np.isnan(square).any() else {"mm²": square})}
    tables = (_blocks(_line(f"Areas in {unit} ({m.label}):"), _areas_in(quality, size)) for unit, size in units.items())
    return _blocks("Means and percentiles are those of masks that are not empty.", *tables)


def _areas_in(quality: Quality, size: np.ndarray) -> str:
    """A row for each rater and class.

    Args:
        size: [N] of a pixel.
    """
    classes, rows = quality.manifest.classes, []
    for k in range(classes):
        for rater, name in enumerate(quality.raters):
            there, area = quality.present[:, rater], quality.areas[:, rater, k]
            drawn = there & (area > 0)
            counts = (there.sum(), (there & ~drawn).sum())
            rows.append((f"**{name}**", *([k + 1] if classes > 1 else []), *counts, *_spread((area * size)[drawn])))
    spread = ("mean", *(f"{share} %" for share in PERCENTILES))
    head = ("rater", *(["class"] if classes > 1 else []), "annotated slices", "empty masks", *spread)
    return _table(head, rows)


def _spread(values: np.ndarray) -> list[str]:
    if not len(values):
        return [""] * (1 + len(PERCENTILES))
    numbers = (values.mean(), *np.percentile(values, PERCENTILES))
    return [f"{number:.0f}" if number >= 100 else f"{number:.3g}" for number in numbers]


def _distances(quality: Quality, pictures: set[str]) -> str:
    ranks = "The raters are ranks, sorted by area in every image: they say nothing of persons."
    return _blocks(
        "1 - IoU of two raters, mean over the cases that both annotated; with several classes the mean over them. "
        "Where two empty masks lie 1 apart, as in the published code, the numbers are partly a count of empty slices.",
        _picture(DISTANCES, pictures),
        *(_matrix(each, quality) for each in _shown(quality)),
        "d_aa (eq. 20) is the mean over all ordered pairs of raters, each with himself included, which lies 0 apart; "
        "the last table is that of the evaluation.",
        ranks if quality.manifest.sorted_raters else "",
    )


def _matrix(distances: Distances, quality: Quality) -> str:
    rows = [
        (f"**{name}**", *("" if np.isnan(value) else f"{value:.3f}" for value in values))
        for name, values in zip(quality.raters, distances.mean, strict=True)
    ]
    m = quality.manifest
    found = (f"**d_aa {distances.d_aa:.4f}**, between two raters {distances.between:.4f}" if distances.cases
             else "nothing to compare")  # fmt: skip
    title = _line(f"By {distances.case}, {distances.cases} with two raters or more ({m.label}): {found}.")
    return _blocks(title, _table(("", *quality.raters), rows))


def _ranks(quality: Quality, pictures: set[str]) -> str:
    m, drawn = quality.manifest, quality.drawn
    if not len(drawn):
        return "Nobody drew anything."
    said = ("They are sorted: each holds his own rank, but for ties, which are shared." if m.sorted_raters
            else "An empty mask is the smallest; ties are shared.")  # fmt: skip
    rows = [
        (f"**{name}**", *("" if np.isnan(share) else f"{share:.1%}" for share in shares))
        for name, shares in zip(quality.raters, rank_shares(drawn), strict=True)
    ]
    head = ("", *(f"rank {rank + 1}" for rank in range(m.raters)))
    text = (f"How often each rater draws the smallest (rank 1) to the largest mask, in {_count(len(drawn), 'slice')} "
            f"that somebody outlined. {said}")  # fmt: skip
    return _blocks(text, _picture(RANKS, pictures), _table(head, rows))


# Splits, and what is odd


def _splits(quality: Quality) -> str:
    rows = [
        (fold.index, *(f"{patients} / {slices}" for patients, slices in parts.values()))
        for fold, parts in zip(quality.manifest.folds, quality.parts, strict=True)
    ]
    return _blocks("Patients / slices of every part.", _table(("fold", "train", "validation", "test"), rows))


def _suspicious(found: Sequence[Suspicion]) -> str:
    if not found:
        return "Nothing was found."
    return _blocks("What to look at; each of it can be right.", *map(_told, found))


def _told(one: Suspicion) -> str:
    told = f"**{one.summary}** ({one.count / one.of:.1%}): {one.note}."
    lines = [told, "", *(f"- {_line(text)}" for text in one.examples)]
    if one.count > len(one.examples):
        lines.append("- ...")
    return "\n".join(lines)


def _left_out(skipped: Sequence[Skipped]) -> str:
    rows = [(one.what, one.why) for one in skipped[:SKIPPED_SHOWN]]
    more = "" if len(skipped) <= SKIPPED_SHOWN else f" The first {SKIPPED_SHOWN}:"
    return _blocks(f"{len(skipped)} left out.{more}", _table(("what", "why"), rows))


# Markdown


def _blocks(*blocks: str) -> str:
    """One below the other, those that are not empty."""
    return "\n\n".join(filter(None, blocks))


def _picture(name: str, pictures: set[str]) -> str:
    return f"![{name.removesuffix('.png')}]({name})" if name in pictures else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_plain(str(cell)) for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """A cell's text, which must not end the cell."""
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    """Names and labels come from elsewhere: they must not end a line."""
    return " ".join(text.split())
