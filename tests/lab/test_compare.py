"""Comparisons: their runs and their numbers, and that no run is repeated or lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

import bpfree
from bpfree import UserError
from bpfree.cli import app
from bpfree.lab.compare.answers import answers
from bpfree.lab.compare.plan import plan
from bpfree.rules import RULES
from bpfree.runs.train import train
from tests.lab.chromium import CHROMIUM, Browser, check_page

SMALL = ["train.epochs=2", "net.hidden=[16]"]


def test_rules_share_net_data_and_epochs_and_bring_their_recipe():
    (group,) = plan(["digits/mlp"], ["dfa", "noprop_dt", "eggroll"], ["train.epochs=7"])
    entries = {entry.name: entry for entry in group.entries}
    assert list(entries) == [
        *("backprop", "backprop, checkpointed", "backprop, accumulated", "backprop_denoiser"),
        *("dfa", "noprop_dt", "eggroll"),
    ]
    for entry in group.entries:
        assert entry.config.train.epochs == 7
        assert entry.config.data == group.config.data
    assert entries["eggroll"].config.net == group.config.net
    assert entries["eggroll"].config.optimizer == bpfree.runs.config_file.load_config("digits/eggroll").optimizer
    assert entries["noprop_dt"].config.net["name"] == "denoiser"
    assert entries["noprop_dt"].notes == ["on another net (denoiser, mlp)"]
    assert entries["backprop, checkpointed"].config.rule == {"name": "backprop", "checkpoint": True}


def test_a_net_of_its_own_is_of_the_kind_of_the_others():
    """mnist/noprop_dt has convolutions."""
    (group,) = plan(["mnist/mlp"], ["noprop_dt"])
    for entry in group.entries[-2:]:
        assert entry.config.net["name"] == "denoiser"
        assert entry.config.net["backbone"] == "mlp"


def test_all_rules_can_be_compared_on_digits():
    (group,) = plan(["digits/mlp"], ["all"])
    assert {entry.name for entry in group.entries} >= set(RULES)
    assert not [entry for entry in group.entries if entry.refused]


def test_configs_stand_for_themselves_and_are_grouped_by_what_they_share():
    groups = plan(["digits/dfa", "digits/mono_forward", "digits/eggroll"], [])
    assert [[entry.name for entry in group.entries][3:] for group in groups] == [["dfa", "mono_forward"], ["eggroll"]]


def test_what_cannot_be_compared():
    with pytest.raises(UserError, match="unknown rule 'dfaa'. Did you mean 'dfa'"):
        plan(["digits/mlp"], ["dfaa"])
    with pytest.raises(
        UserError, match="found noprop_ct, which needs a net 'denoiser', but no shipped config fashion_mnist"
    ):
        plan(["fashion_mnist/backprop"], ["noprop_ct"])
    with pytest.raises(UserError, match="'forward_forward' learns from class labels"):
        plan(["digits/mlp"], ["forward_forward"], ["task=reconstruct"])
    (group,) = plan(["digits/mlp"], ["dfa", "forward_forward"], ["task=reconstruct"])
    assert "learns from class labels" in group.entries[-1].refused
    for configs, found in ((torch.nn.Linear(2, 2), "Linear"), ([torch.nn.Linear(2, 2)], "list"), (None, "NoneType")):
        with pytest.raises(UserError, match=f"configs: found {found}, allowed: names of configs .*my_module:MyNet"):
            bpfree.compare(configs, rules=["dfa"])


def test_a_net_of_ones_own_is_compared_by_name_with_backprop_checkpointed_too(tmp_path, undrawn):
    overrides = ["net={name: 'tests.outside:Linear'}", "train.epochs=1"]
    done = bpfree.compare("digits/mlp", rules=["usf"], seeds=1, out=tmp_path / "c", overrides=overrides)
    assert not done.failed
    (group,) = done.record["groups"]
    assert [row["name"] for row in group["rows"]] == [
        "backprop",
        "backprop, checkpointed",
        "backprop, accumulated",
        "usf",
    ]


def shell(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_a_comparison_is_reported_and_not_run_again(tmp_path):
    out = tmp_path / "a <b> comparison"
    done = shell("digits/mlp", *SMALL, "--rules", "dfa,noprop_dt", "--seeds", 2, "--out", out)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "compare.json").read_text())
    (group,) = record["groups"]
    rows = {row["name"]: row for row in group["rows"]}
    for name in ("backprop", "backprop, checkpointed", "backprop_denoiser", "dfa", "noprop_dt"):
        scores = []
        for run in rows[name]["runs"]:
            result = json.loads((out / run["folder"] / "result.json").read_text())
            assert result["threads"] == 1
            scores.append(result["test"]["accuracy"])
        assert rows[name]["mean"] == pytest.approx(sum(scores) / 2)
        assert len(run["curve"]) == 2
    assert rows["backprop, checkpointed"]["mean"] == rows["backprop"]["mean"]
    for row in rows.values():
        for run in row["runs"]:
            assert answers(run).mean() == pytest.approx(run["score"])
    assert rows["dfa"]["difference"] == pytest.approx(rows["dfa"]["mean"] - rows["backprop"]["mean"])
    assert rows["dfa"]["verdict"] == "too few seeds"
    html = (out / "report.html").read_text()
    for text in ("noprop_dt", "peak memory", "bpfree compare digits/mlp", "on another net"):
        assert text in html
    if CHROMIUM is not None:
        with Browser() as browser:
            check_page(browser.open(out / "report.html"))

    times = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/result.json")}
    assert len(times) == 12
    again = shell("digits/mlp", *SMALL, "--rules", "dfa,noprop_dt", "--seeds", 2, "--out", out)
    assert again.exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times

    other = shell("digits/mlp", "train.epochs=2", "net.hidden=[17]", "--rules", "dfa", "--out", out)
    assert other.exit_code == 2
    assert "was run with net.hidden = [16], and now it is [17]. Choose another folder with --out" in other.stderr


def test_what_cannot_be_trained_is_shown_with_its_reason(tmp_path):
    done = shell(
        "digits/mlp", *SMALL, "net.activation=sign", "--rules", "es,dfa", "--seeds", 1, "--jobs", 1, "--out", tmp_path
    )
    assert done.exit_code == 1
    assert "failed: dfa seed 0: net: its act1 (Sign) has no derivative" in done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "compare.json").read_text())["groups"][0]["rows"]}
    assert rows["es"]["mean"] > 0.1
    assert not rows["backprop"]["runs"]
    assert "has no derivative" in rows["backprop"]["errors"][0]
    assert "not trained: net: its act1 (Sign) has no derivative" in (tmp_path / "report.html").read_text()


def test_ctrl_c_keeps_what_was_trained_and_the_same_command_goes_on(tmp_path):
    """The weights are those of a comparison that nobody interrupted."""
    arguments = ["digits/mlp", "train.epochs=30", "net.hidden=[16]", "--rules", "dfa", "--seeds", "1", "--jobs", "1"]
    command = [sys.executable, "-m", "bpfree", "compare", *arguments, "--out", str(tmp_path / "stopped")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as first:
        checkpoint = tmp_path / "stopped" / "runs" / "backprop-0" / "metrics.jsonl"
        while not (checkpoint.exists() and checkpoint.read_text()):
            time.sleep(0.02)
        first.send_signal(signal.SIGINT)
        _, message = first.communicate()
    assert first.returncode == 130
    assert message.endswith("interrupted. Finished and begun runs are kept. The same command goes on\n")
    assert not (tmp_path / "stopped" / "compare.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    for run in ("backprop-0", "dfa-0"):
        config = bpfree.runs.config_file.load_config(str(tmp_path / "stopped" / "runs" / f"{run}.yaml"))
        stopped, whole = bpfree.load(tmp_path / "stopped" / "runs" / run).net, train(config).net
        for a, b in zip(stopped.parameters(), whole.parameters(), strict=True):
            assert torch.equal(a, b)
