"""Each rule of the table has what users look for: a config, a page, rows in two tables, and an entry in the ledger."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import bpfree
from bpfree.rules import RULES

ROOT = Path(__file__).parents[2]
CONFIGS = Path(bpfree.__file__).parent / "configs"
PAGE = ("## The rule", "## Use it", "## What it is good for", "## What it costs", "## Limits", "## Figures")


def missing(name):
    """What a rule of the table still needs, each with how to add it."""
    source = import_module(RULES[name].__module__)
    if "https://" not in (source.__doc__ or ""):
        yield f"{source.__file__}: its docstring names no source. Begin with title, authors, year, https link, equation"
    config = CONFIGS / "digits" / f"{name}.yaml"
    if not config.exists():
        yield f"{config}: missing. Copy digits/shallow.yaml, and set `rule: {{name: {name}}}` and its optimiser"
    elif yaml.safe_load(config.read_text())["rule"]["name"] != name:
        yield f"{config}: it trains by another rule. Set `rule: {{name: {name}}}`"
    page = ROOT / "docs" / "rules" / f"{name}.md"
    text = page.read_text() if page.exists() else ""
    if not text:
        yield f"{page}: missing. Copy docs/rules/shallow.md, rewrite it, and run `python docs/fill.py`"
    elif parts := [part for part in PAGE if part not in text]:
        yield f"{page}: the parts {parts} are missing. See docs/rules/shallow.md"
    for table in (ROOT / "README.md", ROOT / "docs" / "rules" / "README.md"):
        if not re.search(rf"^\|[^|]*`{name}`[^|]*\|", table.read_text(), re.MULTILINE):
            yield f"{table}: the rule has no row in the table of rules. Add one that begins with `{name}`"
    ledger = ROOT / "benchmarks" / "ledger.yaml"
    if name not in {entry["rule"] for entry in yaml.safe_load(ledger.read_text())}:
        yield f"{ledger}: no entry has `rule: {name}`. Add its published figure, or `published: null` and why"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_a_config_a_page_and_its_rows(name):
    assert not (gaps := list(missing(name))), "\n".join(gaps)


def test_what_a_new_rule_lacks_is_said(monkeypatch):
    monkeypatch.setitem(RULES, "mine", type("Mine", (RULES["shallow"],), {"__module__": "tests.rules.test_complete"}))
    said = "\n".join(missing("mine"))
    for gap in ("names no source", "digits/mine.yaml: missing", "rules/mine.md: missing", "no row", "`rule: mine`"):
        assert gap in said
