"""The notebooks in examples/ run from top to bottom, and are stored with the outputs of such a run."""

import importlib.util
import json
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

LEARNED = {
    "black_box": {"by_loss": 0.8, "by_accuracy": 0.6, "smooth": 0.9},
    "many_processes": {"two": 0.9, "pipeline": 0.85, "population": 0.8},
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


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def words(text):
    """A text without its numbers, which differ between machines in their last digits."""
    return re.sub(r"[-+]?\d+(\.\d+)?(e-?\d+)?", "#", " ".join(text.split()))


def stored(cell):
    """What a cell printed when the notebook was filled."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == list(LEARNED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_cells_run_in_one_go_and_print_what_is_stored(path, off_screen, capsys):
    names = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(code_cells(json.loads(path.read_text(encoding="utf-8")))):
        exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), names)
        printed.append(capsys.readouterr().out)
        assert words(printed[-1]) == words(stored(cell)), f"code cell {number}: run examples/fill.py {path.stem}"
    for run, least in LEARNED[path.stem].items():
        test = names[run].result["test"]
        assert test.get("accuracy", test.get("valid_time")) > least, printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_with_outputs_as_nbformat_4_5(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert all(cell["cell_type"] in ("code", "markdown") for cell in notebook["cells"])
    assert all("outputs" not in cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run from top to bottom"
    assert all(cell["metadata"] == {} for cell in cells), "no times"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}, "no errors"
    assert not [output for output in outputs if output.get("name") == "stderr"], "no warnings"
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert "ETA" in text, "a progress bar"
    assert not re.search(r"/(home|root|Users|tmp|work|usr|opt|private)/", text), "no paths of a machine"
    assert len(text) < 400_000


def test_the_script_that_fills_notebooks_refuses_paths_of_the_machine():
    spec = importlib.util.spec_from_file_location("fill", NOTEBOOKS[0].parent / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    output = fill.nbformat.v4.new_output("stream", text=f"wrote {Path.home()}/run\n")
    notebook = fill.nbformat.v4.new_notebook(cells=[fill.nbformat.v4.new_code_cell("...", outputs=[output])])
    with pytest.raises(SystemExit, match="an output holds the path"):
        fill.refuse_paths(notebook, NOTEBOOKS[0])
