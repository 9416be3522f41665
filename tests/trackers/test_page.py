"""The recipes of docs/callbacks.md do what the page says."""

import re
from pathlib import Path

import pytest

from bpfree.runs.config import parse
from bpfree.trackers import OTHER_NAMES

PAGE = Path(__file__).parents[2] / "docs" / "callbacks.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


@pytest.mark.usefixtures("undrawn")
def test_the_recipes_run(capsys):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(compile(block, "callbacks.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "early stopping: no better epoch for 3 epochs" in printed
    assert "90 % is enough" in printed
    assert "['epoch_2.pt', 'epoch_4.pt']" in printed
    assert names["run"].result["test"]["accuracy"] > 0.5


def test_the_table_has_every_name_of_others():
    page = PAGE.read_text("utf-8")
    rows = {row[1]: row[0] for row in re.findall(r"^(\| `(on_\w+)\(.*)$", page, re.MULTILINE)}
    for other, name in OTHER_NAMES.items():
        assert f"`{other}`" in rows[name], other


def test_the_overrides_of_the_page_are_allowed():
    from bpfree.runs.config_file import load_config

    for override in re.findall(r"^bpfree train digits/dfa '?(trackers=.*?)'?$", PAGE.read_text("utf-8"), re.MULTILINE):
        assert load_config("digits/dfa", [override]).trackers


def test_the_yaml_of_the_page_is_a_config():
    import yaml

    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(parse(yaml.safe_load(text)).data.augment.transforms) == 2
