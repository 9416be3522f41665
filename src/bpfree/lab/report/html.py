"""The parts of a self-contained HTML page. The page loads nothing from elsewhere, and all text in it is escaped.

`page` joins sections; the other functions make the parts of a section, and `tables` makes tables. Every part is a
`Markup`: text that is HTML already, so jinja2 does not escape it again. Everything else is escaped, because names of
runs, layers and classes may come from anybody.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup
from PIL import Image

from bpfree._version import __version__
from bpfree.disk.atomic import make_folder, write_text
from bpfree.disk.paths import open_regular
from bpfree.lab.report.markup import block, file, templates
from bpfree.lab.report.svg import inline_svg
from bpfree.lab.report.tables import Cell, Column, Heading, table

__all__ = [
    "Cell",
    "Column",
    "Heading",
    "Section",
    "beside",
    "code",
    "details",
    "facts",
    "gallery",
    "heading",
    "image",
    "page",
    "paragraph",
    "picture",
    "table",
    "warning",
    "write_page",
]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONTENTS_FROM = 4  # a page with so many sections begins with a table of contents
_WIDE = 6.5  # inches; such a picture takes the whole width of the page
_WIDE_PIXELS = 700  # an image with more pixels in a row takes the whole width of the page
_STARTS = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpeg"}


class Section(NamedTuple):
    """A section of a page.

    Attributes:
        title: the heading, also in the table of contents.
        parts: the content, in order.
        note: a sentence below the title.
    """

    title: str
    parts: Sequence[Markup]
    note: str = ""


def picture(figure: "Figure", *, alt: str, caption: str = "") -> Markup:
    """Return a matplotlib figure as inline SVG, in the colours of the page's light and dark scheme.

    Args:
        figure: the figure, which is not changed. Black becomes the colour of the text and white that of the page; other
            colours keep their hue.
        alt: a description for readers who cannot see the figure.
        caption: a line below it.
    """
    # The XML library has escaped the texts in the SVG. If it were escaped again, the page would show its source.
    svg = Markup(inline_svg(figure, alt=alt))
    return block("figure", svg, caption, figure.get_figwidth() > _WIDE)


def image(png: Path | bytes, *, alt: str, caption: str = "") -> Markup:
    """Return a PNG, GIF or JPEG image whose bytes are part of the page.

    Args:
        png: the file, or its content.
        alt: a description for readers who cannot see the image.
        caption: a line below it.

    Raises:
        UserError: the file is not a regular file.
    """
    content = png if isinstance(png, bytes) else _read(png)
    with Image.open(io.BytesIO(content)) as opened:  # reads the header only
        wide = opened.width > _WIDE_PIXELS
    return block("image", _data(content), alt, caption, wide)


def _read(path: Path) -> bytes:
    """Return the content of a regular file."""
    with open_regular(path) as file:
        return file.read()


def _data(content: bytes) -> str:
    """Return a data URL that holds an image."""
    # The first bytes decide, because the name of a file in a run folder may be wrong.
    kind = next((kind for start, kind in _STARTS.items() if content.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def gallery(items: Sequence[tuple[bytes, str, str]]) -> Markup:
    """Return small images side by side; they are enlarged with sharp pixels.

    Args:
        items: for each image its PNG, a description for readers who cannot see it, and the text below it.
    """
    return block("gallery", [(_data(png), alt, caption) for png, alt, caption in items])


def heading(text: str) -> Markup:
    """Return a heading within a section."""
    return block("heading", text)


def paragraph(text: str) -> Markup:
    """Return a paragraph of text."""
    return block("paragraph", text)


def facts(pairs: Mapping[str, str]) -> Markup:
    """Return names with their values, as a definition list in several columns.

    Args:
        pairs: values by their names, in order.

    >>> "<dt>Seed</dt><dd>0</dd>" in facts({"Seed": "0"})
    True
    """
    return block("facts", pairs)


def code(text: str) -> Markup:
    """Return a command or the text of a file, with a button that copies it.

    Args:
        text: shown as it is, with its lines.
    """
    return block("code", text)


def warning(text: str) -> Markup:
    """Return a highlighted paragraph that the reader should not overlook."""
    return block("warning", text)


def beside(*parts: Markup) -> Markup:
    """Return parts side by side, or one below the other on a narrow screen.

    Args:
        parts: from left to right.
    """
    return block("beside", parts)


def details(summary: str, parts: Sequence[Markup]) -> Markup:
    """Return parts that stay hidden until the reader opens them.

    Args:
        summary: the line that is always visible; a click on it shows or hides the parts.
        parts: the hidden parts.
    """
    return block("details", summary, parts)


def page(title: str, *, lead: str, sections: Sequence[Section]) -> str:
    """Return a whole HTML document. With four sections or more it begins with a table of contents.

    Args:
        title: the title of the page and of its browser tab.
        lead: one or two sentences below the title.
        sections: the content, in order.

    >>> page("My runs", lead="", sections=[Section("A", [paragraph("x < y")])]).count("x &lt; y")
    1
    """
    names = list(_names(sections))
    html = (
        templates()
        .get_template("page.html.j2")
        .render(
            title=title,
            lead=lead,
            sections=list(zip(names, sections, strict=True)),
            contents=len(sections) >= _CONTENTS_FROM,
            version=__version__,
            style=file("style.css"),
            scripts=[file("sort.js"), file("scroll.js"), file("copy.js")],
        )
    )
    # A surrogate, as from a file name that is not UTF-8, cannot be written: it becomes a question mark.
    return _number_pictures(html).encode("utf-8", "replace").decode()


def write_page(path: Path, html: str) -> Path:
    """Write a page to a file, whole or not at all; a missing folder is made.

    Args:
        path: the file.
        html: the document, as `page` returns it.

    Returns:
        The path of the file.

    Raises:
        UserError: the file cannot be written.
    """
    make_folder(path.parent)
    write_text(path, html)
    return path


def _names(sections: Sequence[Section]) -> Iterator[str]:
    """Yield the name of each section for links: its title in small letters, with a number if the name is taken."""
    taken: set[str] = set()
    for section in sections:
        # The prefix keeps these ids apart from those of pictures, which begin with "p1-", "p2-", ...
        plain = "s-" + (re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section")
        # The other sections take at most len(sections) - 1 names, so one of these is free.
        tried = (plain if n == 1 else f"{plain}-{n}" for n in range(1, len(sections) + 2))
        name = next(name for name in tried if name not in taken)
        taken.add(name)
        yield name


def _number_pictures(html: str) -> str:
    """Number the pictures of a page: ids of the first begin with "p1-", of the second with "p2-".

    `inline_svg` begins the ids of every picture with "p0-". Two elements of one page must not share an id: the second
    picture would be clipped as the first.
    """
    numbers = iter(range(1, html.count("<svg") + 1))

    def renamed(svg: re.Match[str]) -> str:
        number = next(numbers)
        # Three places hold an id: the attribute itself, a link to it, and the "url(...)" of a clip path.
        return re.sub(r'((?: id="|="#|="url\(#))p0-', rf"\g<1>p{number}-", svg[0])

    # The shortest match is one picture, because matplotlib puts no <svg> inside another one.
    return re.sub(r'<svg class="plot".*?</svg>', renamed, html, flags=re.DOTALL)
