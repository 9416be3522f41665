"""What the README shows, runs."""

import importlib.util
import re
from pathlib import Path

import pytest

import bpfree
from bpfree.rules import RULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def fill_script():
    spec = importlib.util.spec_from_file_location("fill", ROOT / "docs" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    return fill


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
    exec(compile(python, f"{name}.md", "exec"), {})
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
