"""What pyproject.toml promises of other packages is what was run."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = ROOT / "pyproject.toml"


@pytest.mark.skipif(not PROJECT.is_file(), reason="not in a checkout")
def test_the_lower_bounds_are_the_pins_of_make_lowest():
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    (own,) = (line for line in extras["test"] if line.startswith("bpfree["))
    installed = own.removeprefix("bpfree[").removesuffix("]").split(",")
    asked = [*project["dependencies"], *extras["test"], *(line for extra in installed for line in extras[extra])]
    bounds = dict(re.split(r"\[.*\]>=|>=", line) for line in asked if ">=" in line)
    lines = (ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines()
    pins = {name.lower(): pin for name, _, pin in (line.partition("==") for line in lines if line and line[0] != "#")}
    assert bounds
    for name, bound in bounds.items():
        assert (pins[name] + ".0").startswith(bound + "."), name


@pytest.mark.skipif(not PROJECT.is_file(), reason="not in a checkout")
def test_every_python_that_the_project_names_is_run():
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    named = [kind.rpartition(" ")[2] for kind in project["classifiers"] if re.search(r":: 3\.\d+$", kind)]
    (line,) = (line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if line.startswith("VERSIONS"))
    assert line.split()[2:] == named
    assert named[0] == project["requires-python"].removeprefix(">=")
