"""The ledger: its page is up to date, no run is repeated or lost, and wrong entries are refused."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import bpfree
from bpfree import UserError
from bpfree.cli import app
from bpfree.lab.ledger.entries import LEDGER, Entry, read_entries
from bpfree.lab.ledger.page import FAMILIES, MISSING, render
from bpfree.lab.ledger.results import RESULTS, Measured, this_machine
from bpfree.lab.ledger.status import Status, Verdict, compare_with_published
from bpfree.lab.ledger.update import PAGE, RUNS
from bpfree.rules import RULES
from bpfree.runs.train import train

ROOT = Path(__file__).parents[2]
ENTRY = {
    "name": "digits-mono",
    "rule": "mono_forward",
    "data": "digits",
    "net": "MLP of 16",
    "config": "digits/mono_forward",
    "overrides": ["train.epochs=2", "net.hidden=[16]"],
    "seeds": [0, 1],
    "published": 99.9,
    "source": "Somebody 2020",
    "url": "https://example.org/paper",
    "setting": "other digits",
}
OTHER = {**ENTRY, "name": "digits-dfa", "rule": "dfa", "config": "digits/dfa", "seeds": [0], "published": None}


def shell(*args):
    return CliRunner().invoke(app, ["ledger", *[str(arg) for arg in args]])


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [ENTRY, OTHER])
    return tmp_path


def write(root, entries):
    (root / LEDGER).parent.mkdir(exist_ok=True)
    (root / LEDGER).write_text(yaml.safe_dump(entries))


def status_of(score=None, **changes):
    entry = Entry.model_validate({**ENTRY, **changes})
    run = Measured(
        seed=0,
        score=score or 0,
        cpu_seconds=2,
        wall_seconds=3,
        step_memory_bytes=1_500_000,
        parameters=10,
        rule_parameters=1,
        epochs=2,
        precision="float32",
        threads=1,
        date=date(2026, 1, 2),
        machine=this_machine(),
        versions={"bpfree": "0", "torch": "2"},
    )
    return Status(entry, [] if score is None else [run])


def test_the_page_is_what_the_sources_give():
    """`bpfree ledger` writes docs/ledger.md."""
    entries = read_entries(ROOT / LEDGER)
    assert (ROOT / PAGE).read_text() == render([compare_with_published(entry, ROOT / RESULTS) for entry in entries])


def test_every_rule_has_an_entry_and_every_results_file_belongs_to_one():
    entries = read_entries(ROOT / LEDGER)
    assert {entry.rule for entry in entries} == set(RULES)
    assert {path.stem for path in (ROOT / RESULTS).iterdir()} <= {entry.name for entry in entries}
    assert {rule for rules in FAMILIES.values() for rule in rules} <= set(RULES)  # rules without a family are "Others"
    assert not [e.name for e in entries if compare_with_published(e, ROOT / RESULTS).outdated], (
        "their configs have changed since"
    )


def test_no_path_of_a_machine_is_in_the_results():
    for path in (ROOT / RESULTS).iterdir():
        config = json.loads(path.read_text())["config"]
        assert "dir" not in config["data"]
        assert "/tmp" not in path.read_text()


@pytest.mark.parametrize(
    ("score", "changes", "verdict", "difference"),
    [
        (99.9, {}, Verdict.REACHED, 0),
        (99.8, {}, Verdict.REACHED, -0.1),
        (99.79, {}, Verdict.NOT_REACHED, -0.11),
        (99.79, {"tolerance": 0.2}, Verdict.REACHED, -0.11),
        (99.9, {"published": None}, Verdict.UNCOMPARED, None),
        (None, {}, Verdict.UNMEASURED, None),
        (0.5, {"metric": "loss", "published": 0.45, "tolerance": 0.01}, Verdict.NOT_REACHED, 0.05),
        (0.4, {"metric": "loss", "published": 0.45, "tolerance": 0.01}, Verdict.REACHED, -0.05),
    ],
)
def test_verdicts(score, changes, verdict, difference):
    status = status_of(score, **changes)
    assert status.verdict is verdict
    assert status.difference == difference


def test_a_row_says_all_there_is():
    page = render([status_of(99.5, setting="", about="Not\nfar."), status_of(None, name="digits-other", net="a|b")])
    assert "2 entries: 0 🟢 reached, 1 🔴 not reached, 0 ⚪ no published value, 1 ⚪ not measured yet." in page
    first, second = (line.split(" | ") for line in page.splitlines() if line.startswith("| [`mono"))
    assert first[:3] == ["| [`mono_forward`](#digits-mono)", "digits, MLP of 16", "[99.90](https://example.org/paper)"]
    assert first[3:9] == ["99.50 (n = 1 of 2)", "-0.40", "🔴 not reached", "2", "1.5", "2026-01-02"]
    assert first[9] == f"{this_machine()} |"
    assert second[1] == r"digits, a\|b"
    assert second[3:7] == [MISSING, MISSING, "⚪ not measured yet", MISSING]
    assert "\n\nNot far.\n\n" in page
    assert "bpfree train digits/mono_forward train.epochs=2 'net.hidden=[16]' train.seed=0\n" in page


def test_an_entry_is_run_once_and_the_page_rewritten(root):
    assert shell().exit_code == 0
    assert "0 🟢 reached, 0 🔴 not reached, 0 ⚪ no published value, 2 ⚪ not measured yet" in (root / PAGE).read_text()
    done = shell("--run", "digits-mono", "--jobs", 1)
    assert done.exit_code == 0, done.output
    assert "digits-mono: " in done.stdout
    assert done.stdout.endswith("Page: docs/ledger.md\n")
    results = json.loads((root / RESULTS / "digits-mono.json").read_text())
    assert [run["seed"] for run in results["runs"]] == [0, 1]
    for run in results["runs"]:
        result = json.loads((root / RUNS / f"digits-mono-{run['seed']}" / "result.json").read_text())
        assert run["score"] == 100 * result["test"]["accuracy"]
        assert run["cpu_seconds"] == result["cpu_seconds"]
        assert run["threads"] == 1
    page = (root / PAGE).read_text()
    assert "🔴 not reached, other setting" in page
    assert "(n = 2) |" in page

    runs = root / RUNS
    runs.rename(root / "elsewhere")
    assert shell("--run", "digits-mono").exit_code == 0
    assert not runs.exists(), "nothing was run again"
    assert (root / PAGE).read_text() == page

    write(root, [{**ENTRY, "overrides": ["train.epochs=1", "net.hidden=[16]"]}, OTHER])
    assert shell().exit_code == 0
    assert "The config has changed since the results were measured" in (root / PAGE).read_text()
    write(root, [{**ENTRY, "seeds": [0, 1, 2]}, OTHER])
    assert shell("--all", "--jobs", 1).exit_code == 0
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == ["digits-dfa-0", "digits-mono-2"]
    assert "1 🔴 not reached, 1 ⚪ no published value, 0 ⚪ not measured yet" in (root / PAGE).read_text()


def test_a_run_that_fails_is_reported_and_the_others_count(root):
    write(root, [{**ENTRY, "overrides": ["train.epochs=1", "net.activation=sign"]}, OTHER])
    done = shell("--all", "--jobs", 1)
    assert done.exit_code == 1
    assert "failed: digits-mono-0: net: its act1 (Sign) has no derivative" in done.stderr
    assert not (root / RESULTS / "digits-mono.json").exists()
    assert (root / RESULTS / "digits-dfa.json").exists()


@pytest.mark.slow  # test_compare.py has this for the same queue of jobs
def test_ctrl_c_keeps_what_was_trained_and_the_same_command_goes_on(root):
    write(root, [{**OTHER, "overrides": ["train.epochs=15"], "seeds": [0]}])
    command = [sys.executable, "-m", "bpfree", "ledger", "--run", "digits-dfa", "--jobs", "1"]
    run = root / RUNS / "digits-dfa-0"
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as first:
        while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text()):
            time.sleep(0.02)
        first.send_signal(signal.SIGINT)
        _, message = first.communicate()
    assert first.returncode == 130
    assert message.endswith("interrupted. Finished and begun runs are kept. The same command goes on\n")
    assert not (root / RESULTS).exists()
    subprocess.run(command, check=True, capture_output=True)
    (entry,) = read_entries(root / LEDGER)
    assert compare_with_published(entry, root / RESULTS).verdict is Verdict.UNCOMPARED
    stopped, whole = bpfree.load(run).net, train(entry.training(0)).net
    for a, b in zip(stopped.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "dfaa"}, "entry 1 (digits-mono): unknown rule 'dfaa'. Did you mean 'dfa'"),
        ({"config": "digits/mono_forwar"}, "unknown config 'digits/mono_forwar'. Did you mean 'digits/mono_forward'"),
        ({"rule": "dfa"}, "rule: found 'dfa', allowed: 'mono_forward' as in the config digits/mono_forward"),
        ({"data": "mnist"}, "data: found 'mnist', allowed: 'digits' as in the config digits/mono_forward"),
        ({"overrides": ["train.epoch=2"]}, "unknown key 'train.epoch'. Did you mean 'train.epochs'"),
        ({"publised": 1}, "unknown key 'publised'. Did you mean 'published'"),
        ({"published": "many"}, "published: found 'many', allowed: a valid number"),
        ({"url": None}, "allowed: a url for every published value"),
        ({"url": "example.org"}, "url: found 'example.org'"),
        ({"seeds": []}, "seeds: found []"),
        ({"seeds": [1, 1]}, "seeds: found [1, 1], allowed: different numbers, 0 or larger"),
        ({"name": "../x"}, "name: found '../x'"),
        ({"metric": "f1"}, "metric: found 'f1', allowed: 'accuracy' or 'loss'"),
        ({"tolerance": -1}, "tolerance: found -1"),
    ],
)
def test_entries_that_do_not_hold(root, changes, message):
    write(root, [{**ENTRY, **changes}])
    done = shell()
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: benchmarks/ledger.yaml: entry 1 (")
    assert message in line
    assert not (root / PAGE).exists()


def test_files_that_do_not_hold(root, tmp_path_factory, monkeypatch):
    write(root, [{key: value for key, value in ENTRY.items() if key != "published"}])
    assert "published: found no value, allowed: a value, or null if there is none" in shell().stderr
    write(root, [ENTRY, ENTRY])
    assert "name: found 'digits-mono' twice" in shell().stderr
    write(root, {"entries": []})
    assert "found dict, allowed: a list of entries" in shell().stderr
    write(root, ["x"])
    assert "entry 1: found 'x', allowed: keys such as name" in shell().stderr
    (root / LEDGER).write_text("- {")
    assert "benchmarks/ledger.yaml: not YAML" in shell().stderr
    write(root, [ENTRY])
    assert "unknown entry 'digits-mon'. Did you mean 'digits-mono'" in shell("--run", "digits-mon").stderr
    (root / RESULTS).mkdir(parents=True)
    for damage in ('{"runs"', '{"command": "x", "config": {}, "runs": [{}]}', "[]"):
        (root / RESULTS / "digits-mono.json").write_text(damage)
        done = shell()
        assert done.exit_code == 2
        assert "digits-mono.json: damaged: " in done.stderr
        assert "Delete it, and train again with `bpfree ledger --run digits-mono`" in done.stderr
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    done = shell()
    assert done.exit_code == 2
    assert "found no benchmarks/ledger.yaml in this folder. Run it in the root of the bpfree repository" in done.stderr


def test_a_metric_that_the_test_split_does_not_have(tmp_path):
    """Runs on arrays do not have a test split."""
    from bpfree.lab.ledger.results import measure

    (tmp_path / "result.json").write_text(
        json.dumps({"test": None, "weights": "last", "rule": "dfa", "dataset": "x", "wall_seconds": 1})
    )
    with pytest.raises(UserError, match="metric: found no accuracy of a test split"):
        measure(Entry.model_validate(ENTRY), 0, tmp_path)
