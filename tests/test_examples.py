"""The notebooks in examples/ run from top to bottom, and are stored with the outputs of such a run."""

import importlib.util
import json
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

CLAIMS = {
    "black_box": [
        "by_loss.result['test']['accuracy'] > 0.8",
        "by_accuracy.result['test']['accuracy'] > 0.6",
        "smooth.result['test']['accuracy'] > 0.9",
    ],
    "feedback_alignment": [
        "min(accuracies['feedback alignment']) > max(accuracies['nothing'])",
        "ends.max() < 87",  # degrees
        "zero_ends.mean(0).max() < ends.mean(0).max()",
        "min(accuracy for accuracy, _ in from_zero['feedback alignment']) > 0.95",
        "max(accuracy for accuracy, _ in from_zero['backprop']) < 0.2",
        "min(last['fa']['fc1'], last['fa']['fc2'], last['dfa']['fc1'], last['dfa']['fc2']) > 0.2",
        "min(conv_accuracies['backprop']) > max(conv_accuracies['fa'] + conv_accuracies['dfa'])",
        "all(values['conv1'] < values['fc1'] for values in cosines.values())",
    ],
    "figures": [
        "rows['shallow']['interval'][1] < 0 and rows['shallow']['mean'] < rows['dfa']['mean'] - 0.1",
        "[certificates[rule].chain for rule in ('backprop', 'dfa', 'mono_forward')] == [6, 1, 1]",
        "memory['mono_forward, fused'][-1] < 1.05 * memory['mono_forward, fused'][0] < memory['backprop'][-1] / 2",
        "b'/FontFile2' in pdf and b'/Type3' not in pdf and (round(width, 2), round(height, 2)) == (3.3, 2.0)",
    ],
    "local_learning": [
        "run.result['test']['accuracy'] > 0.9",
        "(answers.argmax(2) == y_test).float().mean(1).min() > 0.85",
        "memory['local, fused'][-1] < 1.02 * memory['local, fused'][1]",
        "abs((memory['backprop'][-1] - memory['backprop'][-2]) / 16 / activation - 1) < 0.1",
        "min(spiral_accuracies['backprop']) > max(spiral_accuracies['mono_forward'])",
        "min(spiral_accuracies['mono_forward']) > max(spiral_accuracies['shallow'])",
        "depth['backprop']['act3'] > depth['mono_forward']['act3'] + 0.05",
        "depth['mono_forward']['act1'] < depth['shallow']['act1'] + 0.01",
        "depth['shallow']['act1'] > depth['shallow']['act4'] + 0.1",
    ],
    "many_processes": [
        "two.result['test']['accuracy'] > 0.9",
        "pipeline.result['test']['accuracy'] > 0.85",
        "population.result['test']['accuracy'] > 0.8",
    ],
    "noprop": [
        *(f"{run}.result['test']['accuracy'] > 0.9" for run in ("dt", "ct", "fm")),
        "right[0] < 0.3 and right[-1] > 0.9",
    ],
    "sequences": [
        "through_time.result['test']['valid_time'] > 0.6",  # Lyapunov times for which predictions are valid
        "detached.result['test']['valid_time'] > 0.4",
        "local.result['test']['valid_time'] > 0.2",
        "black_box.result['test']['valid_time'] > 0.1",
    ],
}
"""What the text of each notebook says about its outputs, as expressions of the names that its cells define."""
QUICK = {
    "feedback_alignment": range(6),
    "figures": (0, 6, 9, 10),
    "local_learning": range(7),
    "many_processes": range(1),
    "noprop": range(5),
    "sequences": range(2),
}
"""The code cells of long notebooks that each test runs. All cells run in a slow test."""
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
    assert [path.stem for path in NOTEBOOKS] == list(CLAIMS)


def run(path, capsys, only=None):
    """Run code cells of a notebook in one go, and return the names that they define."""
    names = {"__name__": "__main__", "display": lambda *shown: None}
    for number, cell in enumerate(code_cells(json.loads(path.read_text(encoding="utf-8")))):
        if only is not None and number not in only:
            continue
        exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), names)
        printed = capsys.readouterr().out
        assert words(printed) == words(stored(cell)), f"code cell {number}: run examples/fill.py {path.stem}"
    return names


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in QUICK else []) for p in NOTEBOOKS],
)
def test_its_cells_run_in_one_go_and_show_what_the_text_says(path, off_screen, capsys):
    names = run(path, capsys)
    for claim in CLAIMS[path.stem]:
        assert eval(claim, names), claim


@pytest.mark.parametrize(("name", "only"), QUICK.items(), ids=list(QUICK))
def test_the_quick_cells_of_a_long_notebook_print_what_is_stored(name, only, off_screen, capsys):
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    run(path, capsys, only)


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
