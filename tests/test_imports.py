"""The moment of imports: a command imports only what it needs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bpfree

HEAVY = {
    "fastapi",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "pandas",
    "prometheus_client",
    "requests",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "tensorboard",
    "uvicorn",
}
WATCHED = """
import json, sys
import bpfree.cli
start = {name.partition(".")[0] for name in sys.modules}
from bpfree.lab.jobs.fork_server import import_everything
import_everything()
before = set(sys.modules)
sys.argv = ["bpfree", "train", "digits/mlp", "train.epochs=1"]
try:
    bpfree.cli.main()
finally:
    further = {name.partition(".")[0] for name in set(sys.modules) - before}
    slow = {"torch._dynamo", "torch._inductor", "sklearn", "scipy", "pandas"} & set(sys.modules)
    print(json.dumps([sorted(start), sorted(further), sorted(slow)]))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> tuple[set[str], set[str], set[str]]:
    """What the command line imports at its start, what a training in a fork imports later, and what is slow of both."""
    command = [sys.executable, "-c", WATCHED]
    done = subprocess.run(command, cwd=tmp_path_factory.mktemp("cwd"), capture_output=True, text=True)
    start, further, slow = json.loads(done.stdout.splitlines()[-1])
    assert "test accuracy" in done.stdout
    return set(start), set(further), set(slow)


def test_the_command_line_starts_without_packages_that_only_some_commands_need(imported):
    start, _, _ = imported
    assert {"bpfree", "torch", "typer"} <= start
    assert not start & HEAVY


def test_a_training_in_a_fork_finds_everything_imported(imported):
    _, further, _ = imported
    assert not further & (HEAVY | {"bpfree"}), "import it in lab/jobs/fork_server.py, once for all"


def test_a_training_does_without_the_slowest_imports(imported):
    """Each of them takes seconds: torch's compiler, and what only scikit-learn needs."""
    assert imported[2] == set()


def test_every_name_is_there_when_asked_for():
    assert set(bpfree.__all__) <= set(dir(bpfree))
    assert all(getattr(bpfree, name) is not None for name in bpfree.__all__)
    assert bpfree.compare.__module__ == "bpfree.lab.compare.compare"
    with pytest.raises(AttributeError, match="module 'bpfree' has no attribute 'nothing'"):
        _ = bpfree.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from bpfree import nothing")


def test_no_check_of_a_module_against_a_protocol():
    """Since Python 3.12 `isinstance` with a protocol looks attributes up in a way that misses a module's submodules."""
    package = Path(bpfree.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "runtime_checkable" in path.read_text("utf-8")] == []


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("bpfree.config", "parse", "bpfree.runs.config"),
        ("bpfree.feedback", "FEEDBACKS", "bpfree.local.feedback"),
        ("bpfree.lab.html", "Section", "bpfree.lab.report.html"),
        ("bpfree.locality", "LOCAL", "bpfree.rule"),
        ("bpfree.run", "Run", "bpfree.runs.run"),
    ],
)
def test_modules_that_the_documentation_named_are_found_by_their_earlier_names(monkeypatch, old, name, new):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        module = importlib.import_module(old)
    assert getattr(module, name) is getattr(importlib.import_module(new), name)
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from {old} import nothing")
