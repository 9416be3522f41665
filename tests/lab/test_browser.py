"""Reports in a real browser."""

import re
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import bpfree
from bpfree.lab.compare.page import write_comparison
from bpfree.lab.report.html import Cell, Column, Section, code, page, picture, table, write_page
from tests.lab.chromium import CHROMIUM, Browser, check_page, check_pictures
from tests.lab.records import record
from tests.lab.test_report import trained  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def one(trained):  # noqa: F811
    return bpfree.report(trained)


@pytest.fixture(scope="module")
def many(browser, tmp_path_factory):
    """The page of a comparison of every rule, with all columns that a table can have."""
    made = record()
    made["groups"][0]["config"]["data"]["skew"] = 10
    opened = browser.open(write_comparison(made, tmp_path_factory.mktemp("many") / "report.html"))
    yield opened
    opened.close()


def test_a_comparison_of_all_rules(many):
    check_page(many)
    check_pictures(many)
    assert many.evaluate("document.querySelectorAll('svg.plot').length") > 15


@pytest.mark.parametrize("width", [1280, 1440, 1900])
def test_the_whole_table_of_a_comparison_is_in_sight(many, width):
    many.set_width(width)
    last = "document.querySelector('thead tr').lastElementChild.getBoundingClientRect().right"
    assert many.evaluate(last) <= width
    assert many.evaluate("[...document.querySelectorAll('.scroll')].every((e) => e.scrollWidth <= e.clientWidth + 1)")
    assert many.evaluate("document.querySelector('.hint').hidden")
    titles = many.evaluate("[...document.querySelectorAll('thead button')].map((e) => e.textContent)")
    assert titles[:2] == ["rule", "parameters"]
    assert {"queries", "energy"} <= set(titles)


def test_a_comparison_on_a_phone(many):
    """The table says that it can be scrolled, and then still shows the names of the rules. Pictures are not cut."""
    many.set_width(390)
    many.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert not many.evaluate("document.querySelector('.hint').hidden")
    box = "document.querySelector('.hint').nextElementSibling"
    many.evaluate(f"{box}.scrollLeft = 500")
    left = many.evaluate(f"{box}.querySelector('td').getBoundingClientRect().left")
    assert left == many.evaluate(f"{box}.getBoundingClientRect().left")
    right = "Math.max(...[...document.querySelectorAll('svg.plot')].map((e) => e.getBoundingClientRect().right))"
    assert many.evaluate(right) <= 390
    many.evaluate(f"{box}.scrollLeft = 0")


def test_rows_are_sorted_within_their_net(many):
    names = "[...document.querySelectorAll('table')[0].tBodies].map((body) => body.rows[1].cells[0].textContent)"
    assert many.evaluate(names) == ["backprop", "backprop (net of noprop_dt)"]
    heads = "[...document.querySelectorAll('tr.group')].map((row) => row.textContent.trim())"
    assert len(many.evaluate(heads)) == 2


def test_only_what_is_shown_is_coloured(many):
    colored = "[...document.querySelectorAll('td.good, td.bad')].map((cell) => cell.textContent)"
    assert all(text.endswith("*") for text in many.evaluate(colored))
    marked = "[...document.querySelectorAll('td')].filter((cell) => cell.textContent.endsWith('*')).length"
    assert 0 < many.evaluate(marked) == len(many.evaluate(colored))
    assert many.evaluate("document.querySelectorAll('td.best').length") == 0


def test_a_report_of_one_run(browser, one):
    opened = browser.open(one)
    check_page(opened)
    check_pictures(opened)
    assert opened.evaluate("document.querySelectorAll('svg.plot').length") == 9
    lost = "[...document.querySelectorAll('img')].filter((e) => !e.complete || !e.naturalWidth).length"
    assert opened.evaluate(lost) == 0
    opened.close()


def test_a_report_of_several_runs_folded_and_unfolded(browser, trained):  # noqa: F811
    opened = browser.open(bpfree.report(trained.folder.parent))
    check_page(opened)
    opened.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    check_page(opened)
    check_pictures(opened)
    opened.close()


def test_a_report_of_a_run_that_came_to_nothing(browser, trained, tmp_path):  # noqa: F811
    folder = shutil.copytree(trained.folder, tmp_path / "<b>&")
    for name in ("metrics.jsonl", "result.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "last.ckpt")
    opened = browser.open(bpfree.report(folder))
    check_page(opened)
    assert opened.evaluate("document.querySelector('h1').textContent") == "<b>&"
    opened.close()


def test_a_table_sorts_by_click_and_by_key(browser, tmp_path):
    columns = [Column("name", numeric=False), Column("value")]
    values = {"b": "10", "a10": "9", "a9": "\u2013", "c": "1,000", "d": Cell("tiny", 1e-9)}
    html = page("x", lead="", sections=[Section("t", [table(columns, [[k, v] for k, v in values.items()])])])
    opened = browser.open(write_page(tmp_path / "x.html", html))
    names = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent).join()"
    button = "document.querySelectorAll('th button')[1]"
    for expected in ("d,a10,b,c,a9", "c,b,a10,d,a9", "b,a10,a9,c,d"):
        opened.evaluate(f"{button}.click()")
        assert opened.evaluate(names) == expected
    opened.evaluate(f"{button}.focus()")
    opened.press("Enter")
    assert opened.evaluate(names) == "d,a10,b,c,a9"
    opened.evaluate("document.querySelectorAll('th button')[0].click()")
    assert opened.evaluate(names) == "a9,a10,b,c,d"
    assert opened.evaluate("document.querySelectorAll('th[aria-sort]').length") == 1
    check_page(opened)
    opened.close()


def test_code_is_copied_by_a_button(browser, tmp_path):
    command = "bpfree train 'a b' <x> && y"
    html = page("x", lead="", sections=[Section("t", [code(command)])])
    opened = browser.open(write_page(tmp_path / "x.html", html))
    opened.evaluate("document.querySelector('button.copy').focus()")
    opened.press("Enter")
    assert (
        opened.evaluate(
            "new Promise((done) => setTimeout(() => done(document.querySelector('.copy').textContent), 200))"
        )
        == "Copied"
    )
    assert opened.errors == []
    opened.close()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda html: html.replace("</main>", "<script>nonsense()</script></main>"), "nonsense is not defined"),
        (lambda html: html.replace("</main>", "<img alt=x src='https://example.org/x.png'></main>"), "example.org"),
        (lambda html: html.replace("</main>", "<div style='width:3000px'>wide</div></main>"), "sideways"),
        (lambda html: html.replace("</main>", "<p style='color:#aaa'>pale</p></main>"), "pale text"),
        (lambda html: html.replace("</main>", "<img src='data:,'></main>"), "pictures without words"),
    ],
)
def test_what_is_checked_would_be_found(browser, tmp_path, spoil, what):
    html = page("x", lead="y", sections=[Section("t", [code("x")])])
    opened = browser.open(write_page(tmp_path / "x.html", spoil(html)))
    with pytest.raises(AssertionError, match=what):
        check_page(opened)
    opened.close()


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        ([(0.5, 0.5, "first", "black"), (0.52, 0.5, "second", "black")], "first | second"),
        ([(0.99, 0.5, "a long label", "black")], "a long label is cut off"),
    ],
)
def test_what_is_checked_in_pictures_would_be_found(browser, tmp_path, texts, what):
    figure = Figure(figsize=(4, 3))
    for x, y, text, color in texts:
        figure.text(x, y, text, color=color)
    html = page("x", lead="y", sections=[Section("t", [picture(figure, alt="z")])])
    opened = browser.open(write_page(tmp_path / "x.html", html))
    with pytest.raises(AssertionError, match=re.escape(what)):
        check_pictures(opened)
    opened.close()
    pale = write_page(
        tmp_path / "pale.html",
        html.replace("fill: currentColor", "fill: #aaaaaa").replace("<text", "<text style='fill: #aaaaaa'"),
    )
    opened = browser.open(pale)
    with pytest.raises(AssertionError, match="pale text in pictures"):
        check_pictures(opened)
    opened.close()


def test_the_page_that_the_docs_build(browser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docs = Path(__file__).parents[2] / "docs" / "reports.md"
    (python,) = re.findall(r"```python\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(python, "reports.md", "exec"), {})
    opened = browser.open("mine.html")
    check_page(opened)
    opened.close()


def test_a_screenshot(browser, one, tmp_path):
    opened = browser.open(one)
    opened.set_dark(True)
    opened.set_width(360)
    assert opened.screenshot(tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    opened.close()
