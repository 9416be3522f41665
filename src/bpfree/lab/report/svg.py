"""A matplotlib figure as SVG within a page: small, reproducible, and readable on light and on dark paper."""

import re
import warnings
from io import BytesIO
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import matplotlib as mpl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {"light": "#fcfcfa", "dark": "#16181c"}  # as in style.css
_DPI = 160  # of images within a figure
_CONTRAST, _CONTRAST_OF_GREY = 3.0, 1.4  # smallest contrast of a line with the paper; grey frames may be faint
_CONTRAST_OF_TEXT = 4.5  # the least that the WCAG allow (AA)
_GRID = "#b0b0b0"  # the colour of matplotlib's grid
_NUMBERS = ("d", "x", "y", "width", "height")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # characters that XML does not allow


def inline_svg(figure: "Figure", *, alt: str) -> str:
    """Return an `<svg>` element in the colours of the page. Ids that are needed begin with "p0-".

    The same figure always gives the same text.

    Args:
        figure: the figure, which is not changed.
        alt: a description for readers who cannot see the figure.
    """
    root = ET.fromstring(_draw(figure))
    _strip(root)
    parts = list(root.iter())
    # matplotlib gives an id to every group. Most of them are never used and would only make the page longer.
    used = {name for part in parts for value in part.attrib.values() for name in _references(value)}
    for part in parts:
        _rename(part, used)
        if "style" in part.attrib:
            part.set("style", _restyled(part.tag, part.attrib["style"]))
        for key in _NUMBERS:
            if key in part.attrib:
                # Six decimals of a pixel make a page twice as long, and nobody sees them.
                part.set(key, re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}", part.attrib[key]))
    width = root.attrib["viewBox"].split()[2]
    attributes = {"class": "plot", "viewBox": root.attrib["viewBox"], "width": width, "role": "img", "aria-label": alt}
    # The other attributes of matplotlib, such as sizes in points, have no use within a page.
    root.attrib.clear()
    root.attrib.update(attributes)
    return ET.tostring(root, encoding="unicode")


def _draw(figure: "Figure") -> str:
    """Return a figure as an SVG document; its text stays text, and the same figure gives the same bytes."""
    buffer = BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # matplotlib makes ids from a random salt, and writes the date, unless it is told not to.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bpfree"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has more letters than the font
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=_DPI)
    return _CONTROLS.sub("\ufffd", buffer.getvalue().decode())


def _strip(root: ET.Element) -> None:
    """Remove namespaces, which HTML does not need, metadata, and a style that would change the whole page."""
    for part in root.iter():
        part.tag = part.tag.rpartition("}")[2]
        for key in [key for key in part.attrib if "}" in key]:
            part.set(key.rpartition("}")[2], part.attrib.pop(key))
        # A copy of the list, because `remove` would make the loop skip a sibling. `iter` visits children later, so
        # their tags still have the namespace.
        for child in list(part):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                part.remove(child)


def _references(value: str) -> list[str]:
    """Return the ids that the value of an attribute points to."""
    return [plain or by_url for plain, by_url in re.findall(r"^#(.+)$|^url\(#(.+)\)$", value)]


def _rename(part: ET.Element, used: set[str]) -> None:
    """Remove an id that nothing points to; give the others, and the references to them, the prefix "p0-"."""
    if part.attrib.get("id") in used:
        part.set("id", "p0-" + part.attrib["id"])  # `html.page` replaces the 0 by the number of the picture
    else:
        part.attrib.pop("id", None)
    for key, value in part.attrib.items():
        for name in _references(value):
            part.set(key, value.replace(f"#{name}", f"#p0-{name}"))


def _restyled(tag: str, style: str) -> str:
    """Return a `style` attribute with each colour replaced by a colour of the page."""
    # The values that matplotlib writes have no ";" in them, so a parser for CSS is not needed.
    pairs = (declaration.partition(":") for declaration in style.split(";"))
    return "; ".join(_recoloured(tag, name.strip(), value.strip()) for name, _, value in pairs if value)


def _recoloured(tag: str, name: str, value: str) -> str:
    """Return one declaration of a style in the page's colours.

    Areas keep their colour: they may be the cells of a heat map, whose colours are numbers.
    """
    if name not in ("fill", "stroke") or not value.startswith("#"):
        return f"{name}: {value}"
    # `currentColor` is the colour of the text of the page. So it follows a switch between light and dark at once.
    if value == "#000000":
        return f"{name}: currentColor"
    is_text = tag in ("text", "tspan")
    # White text stands on a coloured area, as in a confusion matrix. Its colour belongs to the area.
    if is_text and value == "#ffffff":
        return f"{name}: {value}"
    if value in ("#ffffff", _GRID):
        return f"{name}: var({'--grid' if value == _GRID else '--paper'})"
    needed = _CONTRAST_OF_TEXT if is_text else None
    by_day, by_night = (readable(value, on=paper, needed=needed) for paper in PAPER.values())
    # matplotlib draws the markers of a line by <use>. They must stand out like their line, although they are filled.
    if (name == "fill" and tag != "use" and not is_text) or by_day == by_night:
        return f"{name}: {value}"
    # A browser that does not know `light-dark` (before 2024) drops the second declaration and keeps the first.
    return f"{name}: {by_day}; {name}: light-dark({by_day}, {by_night})"


def readable(color: str, *, on: str, needed: float | None = None) -> str:
    """Return a colour, mixed with so much black or white that it stands out from the paper.

    Args:
        color: a colour "#rrggbb".
        on: the colour of the paper, "#rrggbb".
        needed: the smallest contrast; default: 3.0, or 1.4 for a grey, since frames may be faint.

    >>> readable("#fde725", on="#16181c"), readable("#fde725", on="#fcfcfa")
    ('#fde725', '#988b16')
    """
    channels = _channels(color)
    if needed is None:  # channels that differ by less than a tenth of 255 make a grey
        needed = _CONTRAST_OF_GREY if max(channels) - min(channels) < 26 else _CONTRAST
    end = 0 if _luminance(on) > 0.5 else 255
    for share in range(0, 101, 5):  # in percent; at 100 the colour is black or white, which always stands out
        mixed = "#" + "".join(f"{round(c + (end - c) * share / 100):02x}" for c in channels)
        if contrast(mixed, on) >= needed:
            break
    return mixed


def contrast(a: str, b: str) -> float:
    """Return the contrast of two colours "#rrggbb": from 1 for equal colours to 21 for black and white.

    Reference: Web Content Accessibility Guidelines (WCAG) 2.1, "contrast ratio".

    >>> round(contrast("#000000", "#ffffff"), 2)
    21.0
    """
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    """Return the relative luminance of a colour as WCAG 2.1 defines it: 0 for black, 1 for white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> list[int]:
    """Return red, green and blue of a colour "#rrggbb", each from 0 to 255."""
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]
