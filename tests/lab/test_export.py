"""Files for a paper: what they say is what the record says, and LaTeX takes them."""

import csv
import shutil
import subprocess

import pytest

from bpfree.lab.compare.compare import Comparison
from bpfree.lab.compare.export import as_csv, as_latex, latex
from tests.lab.records import record
from tests.test_cli import refused, shell

NASTY = '50 % of a_b & c#d {e} ~f^g $h$ \\i <j> |k| "l" \u00b1\u2013\u2026'
DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\begin{document}
\input{results.tex}
\end{document}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small comparison with a name that LaTeX would trip over, as files."""
    made = record(("dfa", "mono_forward", "noprop_dt", "es"))
    made["groups"][0]["rows"][-1]["name"] = NASTY
    folder = tmp_path_factory.mktemp("paper") / "new"
    return made, folder, Comparison(folder, made, {}).export(folder)


def test_the_csv_has_the_numbers_of_the_record(exported):
    made, folder, _ = exported
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = made["groups"][0]["rows"]
    assert [line["name"] for line in lines] == [row["name"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert float(line["mean"]) == row["mean"]
        assert line["net"] == row["net"]
        assert int(line["seeds"]) == len(row["runs"])
        if "interval" in row:
            assert [float(line["interval_low"]), float(line["interval_high"])] == row["interval"]
            assert line["verdict"] == row["verdict"]
        else:
            assert line["difference"] == line["p_holm"] == ""


def test_the_table_has_a_row_for_each_rule_and_a_heading_for_each_net(exported):
    made, folder, _ = exported
    text = (folder / "results.tex").read_text(encoding="utf-8")
    body = text.partition(r"\toprule")[2]
    columns = body.partition(r"\\")[0].count("&")
    lines = [line for line in body.splitlines() if "&" in line]
    assert len(lines) == 1 + len(made["groups"][0]["rows"])
    assert {line.replace(r"\&", "").count("&") for line in lines} == {columns}
    assert text.count(r"\multicolumn") == 2
    assert r"mono\_forward" in text
    assert latex(NASTY) in text


def test_figures_are_there_twice(exported):
    _, folder, paths = exported
    assert {path.name for path in paths} == {path.name for path in folder.iterdir()}
    stems = {path.stem for path in paths} - {"results"}
    assert any(stem.startswith("differences-mlp") for stem in stems)
    assert {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "svg")} <= {path.name for path in paths}
    for path in paths:
        start = {".pdf": b"%PDF", ".svg": b"<?xml"}.get(path.suffix, b"")
        assert path.read_bytes().startswith(start)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_takes_the_table(exported, tmp_path):
    shutil.copy(exported[1] / "results.tex", tmp_path)
    (tmp_path / "main.tex").write_text(DOCUMENT)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").read_bytes().startswith(b"%PDF")


def test_the_command_writes_them(tmp_path, monkeypatch):
    done = Comparison(tmp_path, record(("dfa",)), {})
    monkeypatch.setattr("bpfree.lab.compare.compare", lambda *_, **__: done)
    assert shell("compare", "digits/mlp", "--export", tmp_path / "paper").exit_code == 0
    assert {"results.csv", "results.tex", "score-by-cpu-seconds.pdf"} <= {
        p.name for p in (tmp_path / "paper").iterdir()
    }
    (tmp_path / "file").write_text("")
    assert "file" in refused("compare", "digits/mlp", "--export", tmp_path / "file")


def test_losses_few_seeds_and_rows_without_runs():
    made = record(("dfa",), seeds=1, metric="loss")
    (group,) = made["groups"]
    group["rows"].append({"name": "refused", "rule": "x", "net": "mlp", "kind": "rule", "runs": [], "notes": []})
    assert "\nmlp,mlp,refused,rule,x,," in as_csv([group])
    text = as_latex(group)
    assert "refused" not in text
    assert "1 seed is too few to compare rules" in text
    assert "no run was finished" in as_latex(group | {"rows": group["rows"][-1:]})
