"""The notebooks in examples/ run from top to bottom, and are stored as a reader should find them."""

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

LEARNED = {
    "black_box": {"by_loss": 0.8, "by_accuracy": 0.6, "smooth": 0.9},
    "noprop": {"dt": 0.9, "ct": 0.9, "fm": 0.9},
    "sequences": {"through_time": 0.6, "detached": 0.4, "local": 0.2, "black_box": 0.1},
}
"""Accuracy; of sequences, for how many Lyapunov times predictions are valid."""
NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.fixture
def off_screen(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before, threads = mpl.get_backend(), torch.get_num_threads()
    mpl.use("Agg")
    yield
    plt.close("all")
    mpl.use(before)
    torch.set_num_threads(threads)


def code_of(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == list(LEARNED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_cells_run_in_one_go(path, off_screen, capsys):
    names = {"__name__": "__main__"}
    for number, code in enumerate(code_of(json.loads(path.read_text(encoding="utf-8")))):
        exec(compile(code, f"{path.name}, code cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    for run, least in LEARNED[path.stem].items():
        test = names[run].result["test"]
        assert test.get("accuracy", test.get("valid_time")) > least, printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs_as_nbformat_4_5(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        else:
            assert "outputs" not in cell
