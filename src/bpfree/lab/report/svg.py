"""A matplotlib figure as SVG within a page: small, reproducible, and readable by day and by night."""

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
_CONTRAST, _CONTRAST_OF_GREY = 3.0, 1.4  # of lines with the paper; frames are grey and meant to be faint
_GRID = "#b0b0b0"  # matplotlib's
_NUMBERS = ("d", "x", "y", "width", "height")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # no XML may hold them


def inline_svg(figure: "Figure", *, alt: str) -> str:
    """An `<svg>` element whose colours are those of the page; ids that are needed begin with "p0-".

    Args:
        figure: is not changed.
        alt: what it shows, in words.
    """
    root = ET.fromstring(_draw(figure))
    _strip(root)
    parts = list(root.iter())
    used = {name for part in parts for value in part.attrib.values() for name in _references(value)}
    for part in parts:
        _rename(part, used)
        if "style" in part.attrib:
            part.set("style", _restyled(part.tag, part.attrib["style"]))
        for key in _NUMBERS:
            if key in part.attrib:
                part.set(key, re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}", part.attrib[key]))
    width = root.attrib["viewBox"].split()[2]
    own = {"class": "plot", "viewBox": root.attrib["viewBox"], "width": width, "role": "img", "aria-label": alt}
    root.attrib.clear()
    root.attrib.update(own)
    return ET.tostring(root, encoding="unicode")


def _draw(figure: "Figure") -> str:
    """Text stays text; the same figure gives the same bytes."""
    buffer = BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bpfree"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has letters of its own
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=_DPI)
    return _CONTROLS.sub("\ufffd", buffer.getvalue().decode())


def _strip(root: ET.Element) -> None:
    """Drop namespaces, which HTML does not need, metadata, and a style that would reach the whole page."""
    for part in root.iter():
        part.tag = part.tag.rpartition("}")[2]
        for key in [key for key in part.attrib if "}" in key]:
            part.set(key.rpartition("}")[2], part.attrib.pop(key))
        for child in list(part):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                part.remove(child)


def _references(value: str) -> list[str]:
    """Names of what an attribute points to."""
    return [plain or by_url for plain, by_url in re.findall(r"^#(.+)$|^url\(#(.+)\)$", value)]


def _rename(part: ET.Element, used: set[str]) -> None:
    """Ids that nothing points to go; the others, and what points to them, get a prefix."""
    if part.attrib.get("id") in used:
        part.set("id", "p0-" + part.attrib["id"])
    else:
        part.attrib.pop("id", None)
    for key, value in part.attrib.items():
        for name in _references(value):
            part.set(key, value.replace(f"#{name}", f"#p0-{name}"))


def _restyled(tag: str, style: str) -> str:
    pairs = (declaration.partition(":") for declaration in style.split(";"))
    return "; ".join(_recoloured(tag, name.strip(), value.strip()) for name, _, value in pairs if value)


def _recoloured(tag: str, name: str, value: str) -> str:
    """A declaration in the page's colours. Areas keep theirs: they may be those of a map."""
    if name not in ("fill", "stroke") or not value.startswith("#"):
        return f"{name}: {value}"
    if value == "#000000":
        return f"{name}: currentColor"
    if tag == "text" or tag == "tspan":
        return f"{name}: {value}"
    if value in ("#ffffff", _GRID):
        return f"{name}: var({'--grid' if value == _GRID else '--paper'})"
    by_day, by_night = (readable(value, on=paper) for paper in PAPER.values())
    if (name == "fill" and tag != "use") or by_day == by_night:
        return f"{name}: {value}"
    return f"{name}: {by_day}; {name}: light-dark({by_day}, {by_night})"


def readable(color: str, *, on: str) -> str:
    """The colour "#rrggbb", mixed with black or white until it stands out from the paper it is on."""
    channels = _channels(color)
    needed = _CONTRAST_OF_GREY if max(channels) - min(channels) < 26 else _CONTRAST
    end = 0 if _luminance(on) > 0.5 else 255
    for share in range(0, 101, 5):
        mixed = "#" + "".join(f"{round(c + (end - c) * share / 100):02x}" for c in channels)
        if contrast(mixed, on) >= needed:
            break
    return mixed


def contrast(a: str, b: str) -> float:
    """Of two colours "#rrggbb", as the WCAG define it: 1 to 21."""
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]
