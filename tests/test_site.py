"""The site of the documentation: its contents by the sources, and the built pages in a real browser.

The site is built once, strictly, as `make docs` does: a broken link or anchor, a page outside the nav and a public name
without documentation fail the build. That takes about 15 seconds of a processor, so it belongs to the fast tests.
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import bpfree
from tests.lab.chromium import CHROMIUM, Browser
from tests.mesh.helpers import made_once
from tests.test_docs import fill_script

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WISHES = {  # what a newcomer looks for: the page that has it, and words of the answer
    "ResNet": ("own_net.html", "bpfree.fit(MyResNet()"),
    "CSV": ("own_data.html", "Give a CSV file"),
    "GPU": ("gpu.html", "device: auto"),
    "cite": ("cite.html", "@software{bpfree"),
}


def nav_pages():
    """The pages in the nav of mkdocs.yml."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!relative", lambda loader, node: loader.construct_scalar(node))
    found, left = [], yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]
    while left:
        entry = left.pop()
        if isinstance(entry, str):
            found.append(entry)
        else:
            left += [part for value in entry.values() for part in (value if isinstance(value, list) else [value])]
    return found


def test_every_page_and_notebook_has_one_place_in_the_nav():
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    pages += [f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")]
    pages += ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
    assert sorted(nav_pages()) == sorted(pages), "give each page one place in the nav of mkdocs.yml"


def literals():
    """The text of every string in the source code; values that are filled in become "\\0"."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_errors_that_the_page_on_troubleshooting_quotes_exist():
    source = "\1".join(literals())
    quotes = re.findall(r"^> (`+)(.*)\1$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert len(quotes) > 20
    for _, quote in quotes:
        for part in quote.split("..."):
            text = part.strip(" .,:;'\"`()[]")
            assert not text or text in source, f"no error says {text!r}: {quote}"


def test_the_tables_of_the_page_on_choosing_are_those_of_the_results():
    """`python docs/fill.py` writes them."""
    page = (DOCS / "choose.md").read_text("utf-8")
    results = (DOCS / "results.md").read_text("utf-8")
    assert fill_script().choice(page, results) == page
    assert fill_script().choice(page, results.replace("| 99.09 ± 0.02 | 3 |", "| 12.34 ± 0.02 | 3 |")) != page


def test_the_citation_has_the_present_version():
    assert f"version = {{{bpfree.__version__}}}" in (DOCS / "cite.md").read_text("utf-8")


def test_the_python_of_the_first_page_runs(capsys):
    (python,) = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL)
    exec(compile(python.replace("epochs=10", "epochs=1"), "index.md", "exec"), {})
    assert "'accuracy': 0." in capsys.readouterr().out


def test_a_newcomer_finds_everything_from_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in ("own_net", "own_data", "gpu"):
        assert f"(docs/{page}.md" in readme
    assert "(CITATION.cff)" in readme


def hooks():
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_public_name_without_documentation_fails_the_build(tmp_path):
    build = hooks()
    names = sorted({name for name, _ in build.public_names()})
    assert {"bpfree.fit", "bpfree.Run.predict", "bpfree.rules.DFA", "bpfree.compare"} <= set(names)

    def write(listed):
        lines = "\n".join(f"{name} py:function 1 api.html#$ -" for name in listed)
        (tmp_path / "objects.inv").write_bytes(b"# 1\n# 2\n# 3\n# 4\n" + zlib.compress(lines.encode()))
        build.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))

    write(names)
    with pytest.raises(Exception, match=r"found no entry for bpfree\.fit\. Give the name a docstring"):
        write([name for name in names if name != "bpfree.fit"])


@pytest.mark.parametrize(
    ("page", "link", "place"),
    [
        ("docs/rules/dfa.md", "../../src/bpfree/rules/dfa.py", "../files/src/bpfree/rules/dfa.py.md"),
        ("docs/gpu.md", "../README.md", "index.md"),
        ("docs/sequences.md", "../examples/sequences.ipynb", "examples/sequences.md"),
        ("CONTRIBUTING.md", "docs/architecture.md#trackers", "docs/architecture.md#trackers"),
    ],
)
def test_a_link_between_files_leads_to_their_pages(page, link, place):
    build = hooks()
    src_uri = build.place_of(ROOT / page)
    assert build.source_of(src_uri) == ROOT / page
    page = SimpleNamespace(file=SimpleNamespace(src_uri=src_uri), meta={})
    moved = build.on_page_markdown(f"[a]({link}) [b](https://x.y/z.md)", page, None, None)
    assert moved == f"[a]({place.removeprefix('docs/')}) [b](https://x.y/z.md)"


def test_headings_have_the_anchors_of_github():
    config = SimpleNamespace(mdx_configs={"toc": {"permalink": True}})
    hooks().on_config(config)
    assert config.mdx_configs["toc"]["slugify"]("Weights & Biases, or `x_y`: why?", "-") == "weights--biases-or-x_y-why"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, built strictly."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    return made_once(tmp_path_factory, "site", build)


def build(out, config=ROOT / "mkdocs.yml"):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out, "--config-file", config],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_mistakes_fail_the_build(tmp_path):
    """A small site with the settings of the whole one has a broken link, a broken anchor, a page outside the nav."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Page\n\n[a](gone.md) [b](#gone)\n")
    (docs / "lonely.md").write_text("# Page\n")
    settings = {"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": str(docs), "nav": ["index.md"], "theme": "mkdocs"}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings | {"hooks": [], "plugins": [], "watch": []}))
    with pytest.raises(AssertionError, match="Aborted with 3 warnings") as failed:
        build(tmp_path / "out", tmp_path / "mkdocs.yml")
    for complaint in (
        "lonely.md",
        "a link 'gone.md', but the target is not found",
        "'#gone', but there is no such anchor",
    ):
        assert complaint in str(failed.value)


def parsed(page):
    bs4 = pytest.importorskip("bs4", reason="the extra docs is not installed")
    return bs4.BeautifulSoup(page.read_text("utf-8"), "html.parser")


def links_of(page):
    """The links of a page as (file, text around the link): that of its row or paragraph, else its own."""
    for link in parsed(page).find_all("a", href=True):
        target = link["href"].partition("#")[0]
        if target and "://" not in target:
            around = link.find_parent(["tr", "p"]) or link
            yield (page.parent / target).resolve(), " ".join(around.get_text(" ").split())


@pytest.mark.parametrize("wish", WISHES)
def test_a_newcomer_finds_it_in_three_clicks(site, wish):
    """A newcomer follows only links beside which the word stands that they look for."""
    page, answer = WISHES[wish]
    seen = [site / "index.html"]
    for _ in range(3):
        seen += {target for at in seen for target, text in links_of(at) if wish in text and target.suffix == ".html"}
    assert site / page in seen
    assert answer in parsed(site / page).get_text()


def test_examples_of_docstrings_are_code(site):
    page = parsed(site / "api" / "train.html")
    assert "bpfree.fit" in [each.get("id") for each in page.find_all("h2")]
    assert [each for each in page.select(".highlight .gp") if each.parent.get_text().startswith(">>> run = fit(")]
    assert not page.find_all("blockquote")


def test_the_search_index_has_the_pages(site):
    entries = json.loads((site / "search" / "search_index.json").read_text("utf-8"))["docs"]
    assert {"config.html", "api/train.html#bpfree.fit", "examples/noprop.html"} <= {
        each["location"] for each in entries
    }
    assert not [each for each in entries if each["location"].startswith("files/")]


@pytest.fixture(scope="module")
def browser(site):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with Browser() as browser:
        yield browser


@pytest.mark.parametrize("name", ["index", "own_data", "rules/dfa", "api/base", "config", "examples/noprop"])
def test_a_page_in_a_browser(site, browser, name):
    """It opens from the disk, loads nothing from elsewhere, and fits a phone in both colours."""
    page = browser.open(site / f"{name}.html")
    assert not page.errors
    inside = site.resolve().as_uri()
    assert not [url for url in page.requests if not url.startswith((inside, "blob:", "about:"))]
    for width in (1280, 390):
        page.set_width(width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"scrolls sideways at {width} px"
    for dark in (False, True):
        page.set_dark(dark)
        page.evaluate("new Promise((done) => setTimeout(done, 300))")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", background)[:3])) < 80) == dark
    page.close()


SEARCH = """(async () => {
  const box = document.querySelector("[data-md-component=search-query]");
  document.querySelector("[data-md-toggle=search]").click();
  box.focus();
  box.value = "%s";
  box.dispatchEvent(new KeyboardEvent("keyup"));
  for (let tries = 0; tries < 400; tries += 1) {
    await new Promise((done) => setTimeout(done, 50));
    const found = [...document.querySelectorAll(".md-search-result__item > a")];
    if (found.length) return found.map((e) => e.pathname);
  }
  return [];
})()"""


@pytest.mark.parametrize("wish", WISHES)
def test_search_finds_it_without_a_network(site, browser, wish):
    page = browser.open(site / "index.html")
    assert WISHES[wish][0] in [path.rpartition("/")[2] for path in page.evaluate(SEARCH % wish)[:3]]
    page.close()
