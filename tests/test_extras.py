"""A part whose package is missing ends with one line that says how to install it."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import bpfree
from bpfree import UserError, hub
from bpfree.serve.packages import require_packages

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
pytestmark = pytest.mark.skipif(not PROJECT.is_file(), reason="not in a checkout")
NO_DOOR = {"dev", "test", "docs", "notebooks", "energy"}
"""Extras that no function asks for: tools for this repository, and the meter, without which energy is not measured."""


def fit(**options):
    return bpfree.fit(**{"net": "mlp", "data": "digits", "verbose": False, **options})


SEARCH, DATABASE = ["optimizer.lr={search: log, low: 1e-4, high: 1e-1}"], "postgresql+psycopg://host/name"
DOORS = {
    "postgres": (
        ["psycopg", "psycopg2"],
        lambda folder: bpfree.tune("digits/dfa", SEARCH, storage=DATABASE, out=folder / "study"),
    ),
    "slurm": (["submitit"], lambda folder: bpfree.compare(["digits/dfa"], launcher="submitit", out=folder / "runs")),
    "liquid": (["ncps"], lambda folder: fit(net="liquid", data="lorenz", task="sequence")),
    "webdataset": (["braceexpand"], lambda folder: fit(data={"name": "webdataset", "path": f"{folder}/{{0..1}}.tar"})),
    "parquet": (["pyarrow"], lambda folder: fit(data={"name": "parquet", "path": shard(folder)})),
    "text": (["tokenizers"], lambda folder: fit(data={"name": "text", "path": page(folder), "vocabulary": 300})),
    "mlflow": (["mlflow"], lambda folder: fit(trackers=["mlflow"])),
    "wandb": (["wandb"], lambda folder: fit(trackers=["wandb"])),
    "export": (["onnx"], lambda folder: fit(epochs=1).export(folder / "model.onnx")),
    "hub": (["huggingface_hub"], lambda folder: hub.load("user/name")),
    "serve": (["fastapi"], lambda folder: require_packages()),
}


def page(folder):
    (folder / "a.txt").write_text("a page " * 1000)
    return str(folder)


def shard(folder):
    (folder / "a.parquet").write_bytes(b"")
    return str(folder)


@pytest.mark.parametrize("extra", DOORS)
def test_a_missing_extra_is_named(extra, tmp_path, monkeypatch):
    packages, door = DOORS[extra]
    for package in packages:
        for module in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'bpfree\[{extra}\]'") as raised:
        door(tmp_path)
    assert "\n" not in str(raised.value)


def test_every_extra_is_here_and_on_the_page_of_installation():
    extras = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(extras) == set(DOORS) | NO_DOOR
    page = (PROJECT.parent / "docs" / "install.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(extras) - {"dev", "test"}
