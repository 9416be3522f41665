"""What is built: the page for PyPI, the source distribution, the wheel, and the recipes of packaging/."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import bpfree

hatchling = pytest.importorskip("hatchling", reason="the package that builds bpfree is for developers")
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the source distribution, unpacked too, and the wheel that is built from it."""
    dist = tmp_path_factory.mktemp("dist")
    with tarfile.open(next(SdistBuilder(str(ROOT)).build(directory=str(dist)))) as archive:
        archive.extractall(dist, filter="data")
    next(WheelBuilder(str(dist / f"bpfree-{bpfree.__version__}")).build(directory=str(dist), versions=["standard"]))
    return dist


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


def in_git(*folders):
    """The files that a checkout has in some folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_source_distribution_has_what_its_tests_make_and_the_readme_name(built):
    folder = built / f"bpfree-{bpfree.__version__}"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {
        "Makefile",
        "constraints.txt",
        "constraints-lowest.txt",
        "README.md",
        "CITATION.cff",
        "LICENSE",
        ".ci/run",
    }
    wanted |= in_git("src", "tests", "docs", "examples", "benchmarks", "packaging")
    wanted |= {
        target.partition("#")[0] for target in links((ROOT / "README.md").read_text("utf-8")) if ":" not in target
    }
    assert wanted - files - {""} == set()
    assert not [file for file in files if "__pycache__" in file or file.startswith(".venv")]


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"bpfree-{bpfree.__version__}.dist-info/")}
        about = Parser().parsestr(archive.read(f"bpfree-{bpfree.__version__}.dist-info/METADATA").decode())
    assert names == {name.removeprefix("src/") for name in in_git("src")}
    assert {"bpfree/py.typed", "bpfree/configs/digits/dfa.yaml"} <= names
    assert about["License-Expression"] == "MIT"
    assert about["Requires-Python"] == ">=3.11"
    assert "without end-to-end backpropagation" in about["Summary"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(about.get_all("Provides-Extra")) == set(extras)


@pytest.mark.slow  # the workflow of a release does the same with a fresh environment
def test_the_wheel_runs_by_itself(wheel, tmp_path):
    """As `pipx run bpfree` does: the script of the wheel, in a folder that is no checkout."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    if subprocess.run([*pip, "--target", tmp_path / "here", wheel], capture_output=True).returncode:
        pytest.skip("no pip")
    (script,) = (path for path in (tmp_path / "here" / "bin").iterdir() if path.stem == "bpfree")
    run = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(tmp_path / "here")}, "text": True}
    train = [script, "train", "digits/dfa", "train.epochs=1", "net.hidden=[8]", "--out", "run"]
    done = subprocess.run(train, capture_output=True, **run)
    assert done.returncode == 0, done.stderr
    assert "Run: run" in done.stdout


def test_with_an_address_the_project_has_urls_and_absolute_links(tmp_path):
    """What the workflow of a release does before it builds."""
    spec = importlib.util.spec_from_file_location("address", ROOT / "packaging" / "address.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name in ("README.md", "LICENSE", "src/bpfree/_version.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    text = script.addressed((ROOT / "pyproject.toml").read_text("utf-8"), "https://github.com/someone/bpfree")
    assert script.addressed(text, "https://example.org/other/name") == text, "the first address stays"
    (tmp_path / "pyproject.toml").write_text(text, "utf-8")
    about = ProjectMetadata(str(tmp_path), PluginManager()).core
    assert set(about.urls) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith("https://github.com/someone/bpfree") for url in about.urls.values())
    own = [target for target in links(about.readme) if target.startswith("https://github.com/someone/bpfree/")]
    assert len(own) > 40
    assert f"https://github.com/someone/bpfree/blob/v{bpfree.__version__}/docs/runs.md" in own
    for wrong in ("github.com/someone/bpfree", "https://github.com", 'https://a.b/c"d'):
        with pytest.raises(SystemExit, match="address: found"):
            script.addressed((ROOT / "pyproject.toml").read_text("utf-8"), wrong)


def test_the_recipe_for_conda_asks_for_what_the_project_does():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text("utf-8"))
    assert recipe["context"]["version"] == bpfree.__version__
    assert f">={recipe['context']['python_min']}" == project["requires-python"]
    other_names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    wanted = {re.sub(r"^[\w-]+", lambda m: other_names.get(m[0], m[0]), each) for each in project["dependencies"]}
    assert {each.replace(" ", "") for each in recipe["requirements"]["run"][1:]} == wanted
    assert recipe["build"]["python"]["entry_points"] == [f"bpfree = {project['scripts']['bpfree']}"]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_images_run_without_rights_and_copy_what_exists(name):
    lines = (ROOT / "packaging" / f"Dockerfile.{name}").read_text("utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [rest for word, rest in steps if word == "USER"] == ["bpfree"]
    assert steps[-2:] == [["ENTRYPOINT", '["bpfree"]'], ["CMD", '["--help"]']]
    copied = [source for word, rest in steps if word == "COPY" and "--from" not in rest for source in rest.split()[:-1]]
    assert copied
    assert all((ROOT / source).exists() for source in copied)
    assert all(":" in rest for word, rest in steps if word == "FROM"), "an image without a version changes by itself"


def test_a_release_is_built_checked_attested_and_published_without_a_password():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    steps = [step.get("uses", step.get("run", "")) for job in jobs.values() for step in job["steps"]]
    order = [
        "address.py",
        "python -m build",
        "twine check --strict",
        "attest-build-provenance",
        "gh-action-pypi-publish",
    ]
    places = [next(i for i, step in enumerate(steps) if word in step) for word in order]
    assert places == sorted(places)
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text
    for file in re.findall(r"python (\S+\.py)", text):
        assert (ROOT / file).is_file()
