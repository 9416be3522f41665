"""What is built: the page for PyPI, and the files of the source distribution."""

import re
from pathlib import Path

import pytest

hatchling = pytest.importorskip("hatchling", reason="the package that builds bpfree is for developers")
from hatchling.builders.sdist import SdistBuilder
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout")


@pytest.fixture(scope="module")
def page():
    return ProjectMetadata(str(ROOT), PluginManager()).core.readme


def links(text):
    """The targets of all links outside code."""
    return re.findall(r"\]\(([^)]*)\)", re.sub(r"```.*?```|`[^`\n]*`", "`code`", text, flags=re.DOTALL))


def test_no_link_of_the_page_on_pypi_is_relative(page):
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len([target for target in links(readme) if not target.startswith(("http", "#"))]) > 40
    assert links(page)
    assert not [target for target in links(page) if not target.startswith(("https://", "http://", "#"))]


def test_text_and_code_of_the_readme_are_on_the_page(page):
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```.*?```", readme, re.DOTALL)
    assert blocks
    assert all(block in page for block in blocks)
    for word in set(re.findall(r"\w{4,}", re.sub(r"!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)", "", readme))):
        assert word in page


def test_the_source_distribution_has_what_its_tests_and_make_need():
    files = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    wanted = {"Makefile", "constraints.txt", "constraints-lowest.txt", "README.md", "CITATION.cff", "LICENSE"}
    wanted |= {"docs/config.md", "docs/fill.py", "src/bpfree/configs/digits/dfa.yaml", "tests/conftest.py", ".ci/run"}
    assert {name for name in wanted if not any(file.endswith(name) for file in files)} == set()
    assert not [file for file in files if "__pycache__" in file or file.startswith(".venv")]
