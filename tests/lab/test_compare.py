"""Comparisons: their runs and their numbers, and that no run is repeated or lost."""

import json
import signal
import threading
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
from bpfree.runs.config_file import load_config
from bpfree.runs.train import train
from tests.lab.chromium import CHROMIUM, Browser, check_page

SMALL = ["train.epochs=1", "net.hidden=[16]", "data.fraction=0.3"]


def named(group):
    return {entry.name: entry for entry in group.entries}


def test_rules_share_net_data_and_epochs_and_bring_their_recipe():
    (group,) = plan(["digits/mlp"], ["dfa", "noprop_dt", "eggroll"], ["train.epochs=7"])
    entries = named(group)
    for entry in group.entries:
        assert entry.config.train.epochs == 7
        assert entry.config.data == group.config.data
    assert entries["eggroll"].config.net == group.config.net
    assert entries["eggroll"].config.optimizer == load_config("digits/eggroll").optimizer
    assert entries["noprop_dt"].config.net["name"] == "denoiser"
    assert entries["noprop_dt"].net == "denoiser (mlp), 5 blocks"
    assert entries["backprop, checkpointed"].config.rule == {"name": "backprop", "checkpoint": True}


def test_each_row_stands_beside_the_baseline_of_its_own_net():
    (group,) = plan(["digits/mlp"], ["noprop_dt", "dfa", "noprop_hybrid", "noprop_ct", "noprop_linear"])
    assert [(entry.net, entry.kind, entry.name) for entry in group.entries] == [
        ("mlp [256, 256]", "baseline", "backprop"),
        ("mlp [256, 256]", "baseline", "backprop, checkpointed"),
        ("mlp [256, 256]", "baseline", "backprop, accumulated"),
        ("mlp [256, 256]", "control", "shallow"),
        ("mlp [256, 256]", "rule", "dfa"),
        ("denoiser (mlp), 5 blocks, trunk: own", "baseline", "backprop (net of noprop_dt)"),
        ("denoiser (mlp), 5 blocks, trunk: own", "rule", "noprop_dt"),
        ("denoiser (mlp), 5 blocks, trunk: own", "rule", "noprop_linear"),
        ("denoiser (mlp), 5 blocks, trunk: shared", "rule", "noprop_hybrid"),
        ("denoiser (mlp), 1 block", "baseline", "backprop (net of noprop_ct)"),
        ("denoiser (mlp), 1 block", "rule", "noprop_ct"),
    ]
    entries = named(group)
    for entry in group.entries:
        baseline = entries.get(entry.baseline)
        if baseline is None:  # the first row of its net, or a net whose blocks do not give scores
            assert entry.name.startswith("backprop") or entry.name == "noprop_hybrid"
        else:
            assert baseline.config.net == entry.config.net
            assert baseline.config.rule == {"name": "backprop"}
    assert entries["backprop (net of noprop_dt)"].config.optimizer == load_config("digits/backprop_denoiser").optimizer
    assert "no difference: backprop cannot train this net as a whole" in entries["noprop_hybrid"].notes


def test_a_table_without_rules_on_the_net_of_the_config_trains_backprop_alone_on_it():
    (group,) = plan(["digits/mlp"], ["noprop_dt"])
    assert [entry.name for entry in group.entries] == ["backprop", "backprop (net of noprop_dt)", "noprop_dt"]
    (group,) = plan(["digits/noprop_dt"], [])
    assert [entry.name for entry in group.entries] == ["backprop", "noprop_dt"]
    assert group.entries[0].config.net == group.entries[1].config.net


def test_a_net_of_its_own_is_of_the_kind_of_the_others():
    """mnist/noprop_dt has convolutions."""
    (group,) = plan(["mnist/mlp"], ["noprop_dt"])
    for entry in group.entries[-2:]:
        assert entry.config.net["name"] == "denoiser"
        assert entry.config.net["backbone"] == "mlp"


def test_forward_gradients_get_as_many_forward_passes_as_the_black_box_rule_with_the_most():
    rules = [{"name": "es", "population": 6}, {"name": "snes", "population": 10}, "spsa", "forward_gradient"]
    (group,) = plan(["digits/mlp"], rules)
    control = named(group)["forward_gradient, equal queries"]
    assert control.config.rule == {"name": "forward_gradient", "directions": 10}
    assert control.kind == "control"
    assert named(group)["forward_gradient"].kind == "rule"
    (group,) = plan(["digits/mlp"], [*rules, {"name": "forward_gradient", "directions": 10}])
    assert [entry.config.rule for entry in group.entries].count(control.config.rule) == 1


def test_deep_supervision_has_the_heads_of_each_local_rule_of_the_table():
    (group,) = plan(["digits/mlp"], ["mono_forward", "dfa", {"name": "predsim", "beta": 0.5}, "deep_supervision"])
    entries = named(group)
    for name in ("mono_forward", "predsim (beta: 0.5)"):
        control = entries[f"deep supervision ({name})"]
        inner = control.config.rule["rule"]
        assert ({"name": inner} if isinstance(inner, str) else inner) == entries[name].config.rule
        assert control.config.optimizer == entries[name].config.optimizer
        assert control.kind == "control"
    assert [entry.config.rule["name"] for entry in group.entries].count("deep_supervision") == 2  # one was asked for
    assert not entries["deep supervision (mono_forward)"].added


def test_controls_and_baselines_are_trained_once_and_can_be_left_out():
    (group,) = plan(["digits/mlp"], ["shallow", "backprop", "dfa", "dfa"])
    names = ["backprop", "backprop, checkpointed", "backprop, accumulated", "shallow", "dfa"]
    assert [entry.name for entry in group.entries] == names
    assert [entry.name for entry in group.entries if entry.added] == names[1:3]
    (group,) = plan(["digits/mlp"], ["dfa", "eggroll"], controls=False)
    assert [entry.name for entry in group.entries] == ["backprop", "dfa", "eggroll"]


def test_options_of_a_rule_replace_those_of_its_recipe():
    (group,) = plan(["digits/mlp"], ["eggroll", {"name": "eggroll", "population": 4}])
    first, second = group.entries[-2:]
    assert second.name == "eggroll (population: 4)"
    assert second.config.rule == first.config.rule | {"population": 4}


def test_all_rules_can_be_compared_on_digits():
    (group,) = plan(["digits/mlp"], ["all"])
    assert {entry.config.rule["name"] for entry in group.entries} == set(RULES)
    assert not [entry for entry in group.entries if entry.refused]


def test_configs_stand_for_themselves_and_are_grouped_by_what_they_share():
    groups = plan(["digits/dfa", "digits/mono_forward", "digits/eggroll"], [], controls=False)
    assert [[entry.name for entry in group.entries][1:] for group in groups] == [["dfa", "mono_forward"], ["eggroll"]]
    (group,) = plan(["digits/dfa", "digits/backprop"], [])
    assert [entry.name for entry in group.entries if not entry.added] == ["backprop", "dfa"]


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
        with pytest.raises(UserError, match=f"configs: found {found}, allowed: names of configs .* A net of your own"):
            bpfree.compare(configs, rules=["dfa"])


def shell(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_a_comparison_is_reported_and_not_run_again(tmp_path, trained_here, undrawn):
    out = tmp_path / "a <b> comparison"
    arguments = ["digits/mlp", *SMALL, "--rules", "dfa,noprop_dt", "--jobs", 1, "--out", out]
    done = shell(*arguments, "--seeds", 1)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "compare.json").read_text())
    (group,) = record["groups"]
    rows = {row["name"]: row for row in group["rows"]}
    for row in rows.values():
        (run,) = row["runs"]
        result = json.loads((out / run["folder"] / "result.json").read_text())
        assert row["mean"] == result["test"]["accuracy"]
        assert len(run["curve"]) == 1
        if row.get("baseline"):
            assert rows[row["baseline"]]["net"] == row["net"]
            assert row["difference"] == pytest.approx(row["mean"] - rows[row["baseline"]]["mean"], abs=1e-6)
    assert rows["backprop, checkpointed"]["mean"] == rows["backprop"]["mean"]
    for row in rows.values():
        for run in row["runs"]:
            assert answers(run).mean() == pytest.approx(run["score"])
    assert rows["dfa"]["verdict"] == "too few seeds"
    assert {row["kind"] for row in rows.values()} == {"baseline", "control", "rule"}
    html = (out / "report.html").read_text()
    for text in ("noprop_dt", "peak memory", "bpfree compare digits/mlp", "denoiser (mlp), 5 blocks"):
        assert text in html
    if CHROMIUM is not None:
        with Browser() as browser:
            check_page(browser.open(out / "report.html"))

    times = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/result.json")}
    assert len(times) == 7
    again = shell(*arguments, "--seeds", 1)
    assert again.exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times

    other = shell("digits/mlp", *SMALL, "net.hidden=[17]", "--rules", "dfa", "--out", out)
    assert other.exit_code == 2
    assert "was run with net.hidden = [16], and now it is [17]. Choose another folder with --out" in other.stderr


def test_what_cannot_be_trained_is_shown_with_its_reason(tmp_path, trained_here, undrawn):
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


def test_ctrl_c_keeps_what_was_trained_and_the_same_command_goes_on(tmp_path, request):
    """The weights are those of a comparison that nobody interrupted."""
    runs = tmp_path / "c" / "runs"
    small = ["train.epochs=30", "net.width=8", "data.fraction=0.3"]
    arguments = ["digits/backprop_denoiser", *small, "--seeds", 1, "--jobs", 1, "--out", tmp_path / "c"]

    def interrupt():
        metrics = runs / "backprop-0" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    stopped = shell(*arguments)
    watcher.join()
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("interrupted. Finished and begun runs are kept. The same command goes on\n")
    assert not (tmp_path / "c" / "compare.json").exists()
    assert not (runs / "backprop-0" / "result.json").exists()
    request.getfixturevalue("trained_here")
    resumed = shell(*arguments)
    assert resumed.exit_code == 0, resumed.output
    assert json.loads((runs / "backprop-0" / "result.json").read_text())["threads"] == 1
    config = load_config(str(runs / "backprop-0" / "config.yaml"))
    resumed, whole = bpfree.load(runs / "backprop-0").net, train(config).net
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
