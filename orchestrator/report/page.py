"""The report as one HTML file: no network, no file beside it, readable without its script.

Jinja escapes whatever a person has named; only charts, the style and the script go in as they are. Charts are parsed
and written anew, so that nothing but drawing is in them.
"""

import base64
import hashlib
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from orchestrator.report.charts import COLOURS
from orchestrator.report.parts import Cell, Figure, Listing, Report, Table

FOLDED = 20
"""Tables with more rows are folded: they are there to look things up."""
WIDE, DENSE = 15, 10
"""Tables with more columns than the first are printed across the page, than the second in small letters."""
THREE, TWO = 5, 8
"""Folded tables with at most so few columns are printed in three columns of the page, or two."""
LONG = 40
"""Characters: a cell with more is given room, and lines; with fewer it is one line."""
SHORT = 10
"""Characters of a name that is never broken."""
POINT = 96 / 72
"""Pixels of the page in a point of a chart."""
BROAD = 700
"""Pixels: a wider chart is not pressed together on a phone."""
SVG_NAMESPACE = "{http://www.w3.org/2000/svg}"
DRAWING = {"svg", "g", "path", "defs", "use", "clipPath", "rect", "text", "tspan", "image", "circle", "line",
           "polyline", "polygon", "ellipse", "linearGradient", "stop"}  # fmt: skip
"""Elements that draw; others (metadata, style, whatever could act) are left out."""
REFERENCE = re.compile(r"url\(#([^)]+)\)")


def page(report: Report) -> str:
    """The whole file."""
    import jinja2
    from markupsafe import Markup

    shelf = jinja2.Environment(
        loader=jinja2.FunctionLoader(_own), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    shelf.filters["breakable"] = breakable
    script = _own("page.js")
    return shelf.get_template("page.html").render(
        report=report, chapters=_chapters(report), version=version("proseg-tune"), policy=policy(script),
        style=Markup(_own("page.css")), script=Markup(script),
    )  # fmt: skip


@cache
def _own(name: str) -> str:
    return (files("orchestrator.report") / name).read_text(encoding="utf-8")


def policy(script: str) -> str:
    """What a browser may do with the page: show it, with its own style and this very script, and ask nobody."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
            "base-uri 'none'; form-action 'none'")  # fmt: skip


# --- what the template draws ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    text: str
    value: str | None
    """A number in full, to sort by."""
    css: str


def _chapters(report: Report) -> list[dict[str, Any]]:
    """The sections, each with an anchor of its own."""
    chapters, seen = [], set[str]()
    for section in report.sections:
        anchor = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        while anchor in seen:
            anchor += "-"
        seen.add(anchor)
        chapters.append({"id": anchor, "title": section.title, "text": section.text,
                         "parts": [_part(part) for part in section.parts]})  # fmt: skip
    return chapters


def _part(part: Table | Figure | Listing) -> dict[str, Any]:
    match part:
        case Table():
            return _table(part)
        case Figure():
            return _figure(part)
        case Listing():
            return {"kind": "listing", "caption": part.caption, "text": part.text}


def _table(table: Table) -> dict[str, Any]:
    numbers = [_numeric(table, column) for column in range(len(table.columns))]
    folded = len(table.rows) > FOLDED
    return {
        "kind": "table", "name": table.name, "caption": table.caption, "notes": table.notes,
        "folded": folded, "css": f"table {_on_paper(len(table.columns), folded)}".rstrip(),
        "heads": [{"text": text, "number": number and place > 0}
                  for place, (text, number) in enumerate(zip(table.columns, numbers, strict=True))],
        "rows": [[_cell(cell, text, number) for cell, text, number in
                  zip(row, table.words(row), numbers, strict=True)] for row in table.rows],
    }  # fmt: skip


def _on_paper(columns: int, folded: bool) -> str:
    if columns > DENSE:
        return "wide" if columns > WIDE else "dense"
    return "" if not folded else "three" if columns <= THREE else "two" if columns <= TWO else ""


def _numeric(table: Table, column: int) -> bool:
    """Numbers, or words that begin like one ("0.17 ± 0.01"), and nothing else."""
    cells = [row[column] for row in table.rows if row[column] not in (None, "")]
    return bool(cells) and all(not isinstance(cell, str) or re.match(r"[-+]?\d[\d.]*( ± |$)", cell) for cell in cells)


def _cell(cell: Cell, text: str, number: bool) -> _Cell:
    value = repr(cell) if isinstance(cell, int | float) and math.isfinite(cell) else None
    return _Cell(text, value, "number" if number else "long" if len(text) > LONG else "short")


def _figure(figure: Figure) -> dict[str, Any]:
    svg = None if figure.svg is None else inline(figure.svg, figure.name, figure.alternative)
    return {
        "kind": "figure", "name": figure.name, "caption": figure.caption, "alternative": figure.alternative, "svg": svg,
        "png": base64.b64encode(figure.png).decode() if svg is None else "",
        "table": figure.table and _table(figure.table),
    }  # fmt: skip


def breakable(text: str) -> Any:
    """A name whose line may be broken behind its dots and underscores."""
    from markupsafe import Markup, escape

    if len(text) <= SHORT:
        return text
    return Markup("<wbr>").join(escape(piece) for piece in re.split(r"(?<=[._])(?=\w)", text))


# --- charts inside of the page ----------------------------------------------------------------------------------------


def inline(svg: str, name: str, alternative: str):
    """A chart as a part of the page: its letters are the page's letters, its colours those of the page's background.

    Args:
        name: made part of every id in it, for the page holds several charts.
    """
    from markupsafe import Markup

    root = ElementTree.fromstring(svg)
    _, _, width, _ = (float(number) for number in root.attrib["viewBox"].split())
    _clean(root, name)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    natural = width * POINT
    root.attrib.update({"role": "img", "aria-label": alternative, "style": f"--natural: {natural:.0f}px"})
    if natural > BROAD:
        root.set("class", "broad")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element, name: str) -> None:
    """Without namespaces, which HTML does not need, and without anything that does not draw."""
    element.tag = element.tag.removeprefix(SVG_NAMESPACE)
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        plain = key.rpartition("}")[2]
        if not plain.startswith("on"):
            element.set(plain, _own_reference(plain, value, name))
    for child in list(element):
        if isinstance(child.tag, str) and child.tag.removeprefix(SVG_NAMESPACE) in DRAWING:
            _clean(child, name)
        else:
            element.remove(child)


def _own_reference(key: str, value: str, name: str) -> str:
    """Ids and what points to them, with the chart's name; nothing from elsewhere; colours as the page has them."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value[1:]}" if value.startswith("#") else value if value.startswith("data:image/") else "#"
    value = REFERENCE.sub(rf"url(#{name}-\1)", value)
    if key == "style":
        for colour, code in COLOURS.items():
            value = value.replace(code, f"var(--{colour})")
    return value
