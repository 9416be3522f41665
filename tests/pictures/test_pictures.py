"""bpfree plots, as it is called."""

import shutil
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from torch import nn

import bpfree
from tests.runs.test_run import power_cut
from tests.test_cli import refused, shell


def test_plots_draws_the_pictures_of_a_run_anew_in_a_real_process(tmp_path):
    args = ["net.blocks=2", "net.width=16", "train.epochs=2", "--out", tmp_path / "run"]
    assert shell("train", "digits/noprop_dt", *args).exit_code == 0
    folder = tmp_path / "run" / "plots"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"training.png", "denoising.png", "denoising.gif", "embeddings.png", "schedule.png"} <= before.keys()
    shutil.rmtree(folder)
    command = [sys.executable, "-m", "bpfree", "plots", "run", "--data-dir", "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {Path(line) for line in done.stdout.splitlines()} == {Path("run", "plots", name) for name in before}
    for name in ("training.png", "loss_by_block.png", "accuracy_by_step.png", "schedule.png"):
        assert (folder / name).read_bytes() == before[name]
    assert done.stderr == ""


def test_plots_of_runs_that_are_not_over_or_whose_data_came_from_python(tmp_path, monkeypatch, digits_data):
    for name, at, data, drawn in (
        ("begun", 5, "digits", "accuracy_by_step confusion denoising denoising embeddings schedule training wrong"),
        (
            "torn",
            25,
            "digits",
            "accuracy_by_step confusion denoising denoising embeddings loss_by_block schedule training wrong",
        ),
        ("arrays", None, digits_data.train, "loss_by_block schedule training"),
    ):
        net = {"name": "denoiser", "blocks": 2, "width": 16}
        with nullcontext() if at is None else power_cut(monkeypatch, at), suppress(RuntimeError):
            bpfree.fit(net, data, "noprop_dt", epochs=2, out=tmp_path / name)
        assert (tmp_path / name / "result.json").exists() == (at is None)
        lines = shell("plots", tmp_path / name).stdout.splitlines()
        assert sorted(Path(line).stem for line in lines) == drawn.split()


def test_plots_refuses(tmp_path):
    assert "is not a run folder" in refused("plots", tmp_path)
    (tmp_path / "config.yaml").write_text("rule: dfa\n")
    assert "no checkpoint last.ckpt in it" in refused("plots", tmp_path)
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run = bpfree.fit(own, "digits", "backprop", epochs=1, out=tmp_path / "own")
    assert "its net was an object from Python" in refused("plots", run.folder)
    with pytest.raises(bpfree.UserError, match="plots: the run has no folder. Use save"):
        bpfree.fit(own, "digits", "backprop", epochs=1).plots()
    run = bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "mlp")
    plots = run.folder / "plots"
    shutil.rmtree(plots)
    plots.write_text("no folder")
    assert "plots: is a file, allowed: a folder" in refused("plots", run.folder)
    plots.unlink()
    drawn = [str(plots / name) for name in ("training.png", "confusion.png", "wrong.png")]
    assert shell("plots", run.folder).stdout.splitlines() == drawn
