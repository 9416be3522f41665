"""Building blocks of a page: what they escape, and that they need nothing else."""

import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
from matplotlib.figure import Figure
from PIL import Image

import bpfree
from bpfree.lab.report.html import (
    Cell,
    Column,
    Heading,
    Section,
    code,
    details,
    facts,
    gallery,
    image,
    page,
    paragraph,
    picture,
    table,
    warning,
    write_page,
)
from bpfree.lab.report.svg import PAPER, contrast, readable
from bpfree.pictures.plots import plain

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'x' </style> \ud800"


class Reader(HTMLParser):
    """Checks that tags are balanced, and keeps them and the text."""

    VOID = frozenset(("meta", "link", "img", "br"))

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def lines(**options):
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.4)
    axes.plot([1, 2, 3], [1.0, 4.0, 2.0], label=options.pop("label", "a line"), **options)
    axes.legend()
    return figure


def png(width=8):
    buffer = BytesIO()
    Image.new("L", (width, 8)).save(buffer, format="PNG")
    return buffer.getvalue()


def everything(text):
    parts = [
        table([Column(text, text), Column("n")], [[Cell(text, note=text), "1"]], caption=text),
        picture(lines(label=plain(text)), alt=text, caption=text),
        image(png(), alt=text, caption=text),
        gallery([(png(), text, text)]),
        *(paragraph(text), facts({text: text}), code(text), warning(text), details(text, [paragraph(text)])),
    ]
    return page(text, lead=text, sections=[Section(text, parts, text)] * 4)


def test_all_text_is_escaped_and_stays_as_it_was():
    html = everything(HOSTILE)
    harmless = Reader(everything("x"))
    read = Reader(html)
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in harmless.tags], "no tag comes from the text"
    shown = HOSTILE.replace("\ud800", "?")
    assert sum(text.strip() == shown for text in read.text) > 60
    assert all(attrs["alt"] == shown for attrs in read.of("img"))
    assert all(attrs["aria-label"] == shown for attrs in read.of("svg"))
    html.encode("utf-8")


def test_a_page_asks_for_nothing_and_says_what_it_is():
    html = everything("x")
    read = Reader(html)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "@import" not in html
    assert "url(" not in re.sub(r"url\(#", "", html)
    policy = next(attrs["content"] for attrs in read.of("meta") if "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    assert f"bpfree {bpfree.__version__}" in read.text
    assert len(read.of("h1")) == 1
    assert any(attrs.get("name") == "viewport" for attrs in read.of("meta"))


def test_contents_from_four_sections_on_with_links_that_hold():
    section = Section("What & why", [paragraph("x")])
    assert "<nav" not in page("x", lead="", sections=[section] * 3)
    read = Reader(page("x", lead="", sections=[section] * 4))
    ids = [attrs["id"] for attrs in read.of("section")]
    assert ids == ["s-what-why", "s-what-why-2", "s-what-why-3", "s-what-why-4"]
    assert [attrs["href"] for attrs in read.of("a")] == [f"#{name}" for name in ids]


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        ("1,234.5", "1234.5"),
        ("95.8%", "95.8"),
        ("\u2013", ""),
        ("", ""),
        ("diverged", ""),
        (Cell("12 min", 720), "720.0"),
        (Cell("nan", float("nan")), ""),
        (Cell("inf", float("inf")), "Infinity"),
        (Cell("x", "3e-4"), "0.0003"),
    ],
)
def test_what_numbers_are_sorted_by(cell, key):
    html = table([Column("n")], [[cell]])
    assert Reader(html).of("td")[0]["data-sort"] == key


def test_what_texts_are_sorted_by():
    html = table([Column("t", numeric=False)] * 3, [["B\u00e4r", Cell("x", 7), "-"]])
    assert [attrs["data-sort"] for attrs in Reader(html).of("td")] == ["B\u00e4r", "7", ""]
    assert "number" not in "".join(attrs["class"] for attrs in Reader(html).of("td"))
    with pytest.raises(ValueError, match="argument 2 is longer|argument 2 is shorter"):
        table([Column("t")], [["a", "b"]])


def test_a_picture_is_the_same_each_time_and_its_ids_are_its_own():
    first, again = picture(lines(), alt="x"), picture(lines(), alt="x")
    assert first == again
    read = Reader(page("x", lead="", sections=[Section("s", [first, again, picture(lines(lw=3), alt="y")])]))
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 3
    pointed = [attrs["href"][1:] for attrs in read.of("use")]
    clipped = [attrs["clip-path"][5:-1] for _, attrs in read.tags if "clip-path" in attrs]
    assert pointed
    assert clipped
    assert {*pointed, *clipped} <= set(ids)


def test_a_picture_takes_the_colours_of_the_page():
    read = Reader(picture(lines(color="#440154"), alt="x"))
    styles = " ".join(attrs.get("style", "") for _, attrs in read.tags)
    assert "#000000" not in styles
    assert "#b0b0b0" not in styles
    assert "stroke: currentColor" in styles
    assert "stroke: var(--grid)" in styles
    dark = re.search(r"stroke: #440154; stroke: light-dark\(#440154, (#\w{6})\)", styles)[1]
    assert contrast(dark, PAPER["dark"]) >= 3
    assert "a line" in "".join(read.text), "text stays text"
    assert not {"width", "height", "viewbox"} - read.of("svg")[0].keys() - {"height"}


def test_names_that_are_no_formulas_and_no_letters_of_the_font():
    html = picture(lines(label="\u65e5\u672c \U0001f600 \x1b[0m <x>"), alt="x")
    assert "\u65e5\u672c \U0001f600 \ufffd[0m <x>" in "".join(Reader(html).text)


@pytest.mark.parametrize("paper", PAPER.values())
@pytest.mark.parametrize("color", ["#440154", "#fde725", "#0072b2", "#16181c", "#fcfcfa", "#1f77b4"])
def test_lines_stand_out(color, paper):
    grey = color in PAPER.values()
    assert contrast(readable(color, on=paper), paper) >= (1.4 if grey else 3.0)


def test_contrast_is_that_of_the_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_images_of_three_kinds(tmp_path):
    (tmp_path / "x.png").write_bytes(png())
    assert "data:image/png;base64," in image(tmp_path / "x.png", alt="x")
    for kind in ("gif", "jpeg"):
        buffer = BytesIO()
        Image.new("L", (8, 8)).save(buffer, format=kind)
        assert f"data:image/{kind};base64," in image(buffer.getvalue(), alt="x")
    assert 'class="image wide"' in image(png(900), alt="x")


def test_a_page_is_written_whole_into_a_new_folder(tmp_path):
    path = write_page(tmp_path / "new" / "page.html", page("x", lead="y", sections=[]))
    assert path.read_text(encoding="utf-8").endswith("</html>")
    assert [child.name for child in path.parent.iterdir()] == ["page.html"]


def test_groups_of_rows_have_headings():
    columns = [Column("rule", numeric=False), Column("accuracy")]
    rows = [["all", "1"], Heading("mlp", "128 units"), ["dfa", "0.98"], ["fa", "0.97"], Heading("conv"), ["usf", "0.9"]]
    html = table(columns, rows)
    assert [body.count("<tr") for body in html.split("<tbody>")[1:]] == [1, 3, 2]
    assert html.index("128 units") < html.index("dfa") < html.index("conv") < html.index("usf")
    assert html.count('colspan="2" scope="rowgroup"') == 2


def test_coloured_text_stands_out_on_both_papers():
    figure = Figure(figsize=(4, 3))
    figure.text(0.5, 0.5, "a label", color="#56B4E9")
    figure.text(0.5, 0.7, "on an area", color="white")
    styles = [attrs.get("style", "") for attrs in Reader(picture(figure, alt="x")).of("text")]
    day, night = re.search(r"light-dark\((#\w{6}), (#\w{6})\)", styles[0]).groups()
    assert contrast(day, PAPER["light"]) >= 4.5
    assert contrast(night, PAPER["dark"]) >= 4.5
    assert "fill: #ffffff" in styles[1]
