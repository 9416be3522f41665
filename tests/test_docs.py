"""The code in the documentation runs, its links and paths exist, and its tables are up to date."""

import importlib.util
import json
import os
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import bpfree
from bpfree.rules import RULES
from bpfree.runs.config import Config, parse
from tests.test_house import FLOOR

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *(ROOT / "docs").rglob("*.md")]
FILES_OF_USERS = {"sklearn.py"}  # a page warns of a file with this name in the user's folder


def test_the_python_of_the_readme_runs_in_one_go(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "'accuracy': 0.9" in printed


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_in_the_readme_and_cites_its_source(name):
    assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", README, re.MULTILINE)
    module = __import__(RULES[name].__module__, fromlist=["x"])
    assert "https://" in module.__doc__


def test_links_of_the_docs_lead_somewhere():
    for page in PAGES:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_python_of_the_page_on_several_processes_runs(capsys):
    """Lightning and accelerate are not installed."""
    page = (ROOT / "docs" / "mesh.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        code = compile(block, "mesh.md", "exec")
        if not re.search("import pytorch_lightning|from accelerate", block):
            exec(code, {})
    assert "'accuracy': 0.8" in capsys.readouterr().out


def code_spans(page):
    """The text of each inline code span of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


@cache  # environments hold tens of thousands of files, so their folders are not entered
def files_of_python():
    """The files of Python in the repository, relative to its root."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") or name == ".ci"]
        found += [str((Path(folder) / name).relative_to(ROOT)) for name in files if name.endswith(".py")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    """A name is that of a file from the root, or the end of one: `rules/dfa.py`, `trainer.py`."""
    files = files_of_python()
    for span in code_spans(page):
        for name in re.findall(r"(?<![\w<>*./-])[\w./-]+\.py\b", span):
            assert name in FILES_OF_USERS or any(f"/{file}".endswith(f"/{name}") for file in files), f"{name} is gone"
        if re.match(r"(src|docs|tests|benchmarks|examples|\.ci)/[\w./-]+$", span):
            assert (ROOT / span).exists(), f"{span} is gone"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_bpfree_that_a_page_uses_exist(page):
    for name in re.findall(r"(?<![\w./-])bpfree((?:\.[A-Za-z_]\w*)+)", page.read_text()):
        thing, path = bpfree, "bpfree"
        for part in name.split(".")[1:]:
            path = f"{path}.{part}"
            thing = getattr(thing, part) if hasattr(thing, part) else import_module(path)


def test_architecture_lists_the_rooms_in_their_order():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = re.search(r"^## The rooms\n.*?((?:^\|[^\n]*\n)+)", page, re.MULTILINE | re.DOTALL)[1]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    names = [name for cell in cells for name in re.findall(r"`(\w+)(?:/|\.py)`", cell) if name != "configs"]
    assert set(names) == set(FLOOR) - {"_version", "__init__", "__main__"}
    assert [FLOOR[name] for name in names] == sorted(FLOOR[name] for name in names)
    for folder in re.findall(r"`([\w/]+/)`", table):
        assert (ROOT / "src" / "bpfree" / folder).is_dir(), folder


def test_citation_is_valid_and_has_the_version():
    """The fields that the Citation File Format 1.2 requires, and those that we promise."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == "bpfree"
    assert citation["version"] == bpfree.__version__
    assert citation["authors"] == [{"name": "The bpfree authors"}]
    assert citation["type"] == "software"


def fill_script():
    spec = importlib.util.spec_from_file_location("fill", ROOT / "docs" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    return fill


def test_the_reference_of_configs_is_of_today(capsys):
    """`python docs/fill.py` writes it."""
    page = (ROOT / "docs" / "config.md").read_text()
    pinned = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    if torch.__version__.partition("+")[0] == pinned:  # the options of optimisers differ between versions
        assert fill_script().reference(page) == page
    (python,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(python, "config.md", "exec"), {})
    assert "'accuracy': 0." in capsys.readouterr().out
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert set(yaml.safe_load(text)) == set(Config.model_fields)
    parse(yaml.safe_load(text))


def test_tables_of_comparisons_are_what_was_printed():
    """`python docs/fill.py` writes them, and README's comparison is that of `make demo`."""
    fill = fill_script()
    for name, page in fill.COMPARISONS.items():
        text = page.read_text()
        assert fill.with_comparison(text, name) == text
    command = json.loads((ROOT / "docs" / "results" / "demo.json").read_text())["command"]
    assert command in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_page_that_runs_and_is_of_today(name, capsys):
    """`python docs/fill.py` writes options and figures."""
    fill = fill_script()
    page = (ROOT / "docs" / "rules" / f"{name}.md").read_text()
    assert fill.filled(page, name, fill.measured((ROOT / "docs" / "results.md").read_text())) == page
    for part in ("## The rule", "## Use it", "## What it is good for", "## What it costs", "## Limits", "## Figures"):
        assert part in page
    assert f"`{name}`" in (ROOT / "docs" / "rules" / "README.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    one_epoch = re.sub(r"epochs=\d+", "epochs=1", python)  # whether rules learn is tested elsewhere
    exec(compile(one_epoch, f"{name}.md", "exec"), {})
    assert "'accuracy': 0." in capsys.readouterr().out


def test_the_page_that_explains_black_box_rules_runs(capsys):
    page = (ROOT / "docs" / "rules" / "black_box.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "black_box.md", "exec"), {})
    printed = capsys.readouterr().out
    assert float(re.search(r"'accuracy': ([\d.]+)", printed)[1]) > 0.7
    assert "'a': tensor(" in printed


def test_a_page_without_its_marks_does_not_count_as_filled():
    page = (ROOT / "docs" / "rules" / "dfa.md").read_text()
    for mark in ("options", "figures"):
        with pytest.raises(LookupError, match=f"found 0 places between <!-- {mark} -->"):
            fill_script().filled(page.replace(f"<!-- {mark} -->", ""), "dfa", [])


def test_every_measured_row_is_on_the_page_of_a_rule():
    fill = fill_script()
    rows = fill.measured((ROOT / "docs" / "results.md").read_text())
    assert rows
    for data, config, accuracy, seeds in rows:
        (owner,) = [name for name in RULES if fill.belongs(config, name)]
        page = (ROOT / "docs" / "rules" / f"{owner}.md").read_text()
        assert f"| {data} | {config} | {accuracy} | {seeds} |" in page


def test_every_public_name_is_documented():
    for name in bpfree.__all__:
        thing = getattr(bpfree, name)
        if name not in ("Scalars", "__version__"):
            assert thing.__doc__, name


def test_the_rules_of_the_page_for_authors_learn(capsys):
    page = (ROOT / "docs" / "new_rule.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "new_rule.md", "exec"), names)
    printed = capsys.readouterr().out
    accuracies = dict(re.findall(r"^(\w+) .*'accuracy': ([\d.]+)", printed, re.MULTILINE))
    assert set(accuracies) == {"Sanger", "Elite", "OneLayer"}
    assert all(float(accuracy) > 0.6 for accuracy in accuracies.values()), accuracies
    assert "Sanger True 1\nOneLayer True 5" in printed
