"""Building blocks of one self-contained HTML document: no request leaves it, and all text is escaped."""

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from bpfree._version import __version__
from bpfree.disk.atomic import make_folder, write_text
from bpfree.disk.paths import open_regular
from bpfree.lab.report.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONTENTS_FROM = 4  # sections
_WIDE = 6.5  # inches; such a picture takes the whole width of the page
_WIDE_PIXELS = 700
_STARTS = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpeg"}
_MISSING = {"", "-", "\u2013", "\u2014"}  # dashes, short and long


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: shown.
        sort: the key to sort by; default: the text, in a numeric column the number that it is.
        note: shown small below it.
        kind: how it is set apart.
    """

    text: str
    sort: float | str | None = None
    note: str = ""
    kind: Literal["", "best", "good", "bad", "muted"] = ""


class Column(NamedTuple):
    """A column of a table: its title, a note small below that, and whether it holds numbers."""

    title: str
    note: str = ""
    numeric: bool = True


class Section(NamedTuple):
    """A section of a page: its title, what it is made of in order, and a note below the title."""

    title: str
    parts: Sequence[Markup]
    note: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]], *, caption: str = "") -> Markup:
    """A table that is sorted by a click on a column's title; missing values (no text, a dash, NaN) come last."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    keyed = [[(_key(cell, column), cell) for cell, column in zip(row, columns, strict=True)] for row in cells]
    return _block("table", columns, keyed, caption)


def _key(cell: Cell, column: Column) -> str:
    """What the browser sorts by; "" for a missing value."""
    key = cell.sort
    if key is None:
        key = "" if cell.text.strip() in _MISSING else cell.text.strip()
    if not column.numeric:
        return str(key)
    try:
        number = float(key.replace(",", "").removesuffix("%") if isinstance(key, str) else key)
    except ValueError:
        return ""
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return "" if math.isnan(number) else repr(number)


def picture(figure: "Figure", *, alt: str, caption: str = "") -> Markup:
    """A figure as inline SVG, in the colours of the page by day and by night.

    Args:
        figure: black becomes the colour of the text, white that of the paper; the rest keeps its hue.
        alt: what it shows, in words.
        caption: below it.
    """
    svg = Markup(inline_svg(figure, alt=alt))
    return _block("figure", svg, caption, figure.get_figwidth() > _WIDE)


def image(png: Path | bytes, *, alt: str, caption: str = "") -> Markup:
    """A PNG, GIF or JPEG within the page.

    Args:
        png: the file, or what is in it.
        alt: what it shows, in words.
        caption: below it.
    """
    content = png if isinstance(png, bytes) else _read(png)
    with Image.open(io.BytesIO(content)) as opened:
        wide = opened.width > _WIDE_PIXELS
    return _block("image", _data(content), alt, caption, wide)


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _data(content: bytes) -> str:
    """As an address that holds what is there."""
    kind = next((kind for start, kind in _STARTS.items() if content.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def gallery(items: Sequence[tuple[bytes, str, str]]) -> Markup:
    """Small images side by side, their pixels sharp.

    Args:
        items: of each the PNG, what it shows in words, and the text below it.
    """
    return _block("gallery", [(_data(png), alt, caption) for png, alt, caption in items])


def heading(text: str) -> Markup:
    """A heading within a section."""
    return _block("heading", text)


def paragraph(text: str) -> Markup:
    """A paragraph of text."""
    return _block("paragraph", text)


def facts(pairs: Mapping[str, str]) -> Markup:
    """Names and values, as a definition list."""
    return _block("facts", pairs)


def code(text: str) -> Markup:
    """A command or a file, with a button that copies it."""
    return _block("code", text)


def warning(text: str) -> Markup:
    """What the reader should not overlook."""
    return _block("warning", text)


def beside(*parts: Markup) -> Markup:
    """Parts side by side, where there is room."""
    return _block("beside", parts)


def details(summary: str, parts: Sequence[Markup]) -> Markup:
    """Parts that are folded away under one line."""
    return _block("details", summary, parts)


def page(title: str, *, lead: str, sections: Sequence[Section]) -> str:
    """The whole document; with more than three sections it begins with a table of contents.

    Args:
        title: of the document.
        lead: a sentence or two below it.
        sections: in order.
    """
    names = list(_names(sections))
    html = (
        _templates()
        .get_template("page.html.j2")
        .render(
            title=title,
            lead=lead,
            sections=list(zip(names, sections, strict=True)),
            contents=len(sections) >= _CONTENTS_FROM,
            version=__version__,
            style=_file("style.css"),
            scripts=[_file("sort.js"), _file("copy.js")],
        )
    )
    return _number_pictures(html).encode("utf-8", "replace").decode()


def write_page(path: Path, html: str) -> Path:
    """Write a page, whole or not at all; its folder is made."""
    make_folder(path.parent)
    write_text(path, html)
    return path


def _names(sections: Sequence[Section]) -> Iterator[str]:
    """Of each section, for links: its title in small letters, numbered where two would be the same."""
    taken: set[str] = set()
    for section in sections:
        plain = "s-" + (re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section")
        tried = (plain if n == 1 else f"{plain}-{n}" for n in range(1, len(sections) + 2))
        name = next(name for name in tried if name not in taken)
        taken.add(name)
        yield name


def _number_pictures(html: str) -> str:
    """Ids within pictures begin with "p0-": give each picture a number of its own."""
    numbers = iter(range(1, html.count("<svg") + 1))

    def renamed(found: re.Match[str]) -> str:
        number = next(numbers)
        return re.sub(r'((?: id="|="#|="url\(#))p0-', rf"\g<1>p{number}-", found[0])

    return re.sub(r'<svg class="plot".*?</svg>', renamed, html, flags=re.DOTALL)


def _block(name: str, *args: Any) -> Markup:
    made: Markup = getattr(_templates().get_template("blocks.html.j2").module, name)(*args)
    return made


@cache
def _templates() -> Environment:
    loader = PackageLoader("bpfree.lab.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _file(name: str) -> Markup:
    """A style or script of ours, as it is."""
    return Markup((resources.files("bpfree.lab.report") / "templates" / name).read_text(encoding="utf-8"))
