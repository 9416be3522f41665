"""The benchmarks that a device needs run on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bpfree.nets import mlp

ROOT = Path(__file__).parents[1]


def test_the_device_benchmark_runs_in_miniature(tmp_path):
    parts = ["correct", "mlp_small", "noprop", "population", "loop", "profile"]
    options = ["--device", "cpu", "--quick", "--rules", "backprop", "dfa", "--out", str(tmp_path / "found.json")]
    command = [sys.executable, "benchmarks/device.py", *options, "--parts", *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["parts"]) == parts
    assert {"device", "torch", "commit", "date"} <= found["about"].keys()
    tables = {title: rows for part in found["parts"].values() for title, rows in part["tables"].items()}
    for title, rows in tables.items():
        for name, row in rows.items():
            assert "failed" not in row or name.startswith("JAX"), f"{title}: {name}: {row}"
            assert title in done.stdout
            assert row.get("right", True)
    steps = found["parts"]["mlp_small"]["tables"]["float32, batch 8"]
    assert list(steps) == ["torch eager", "backprop", "dfa"]
    assert steps["dfa"]["of torch eager"] == steps["dfa"]["ms"] / steps["torch eager"]["ms"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_local_rules_move_no_more_bytes_than_backprop(precision, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from device_parts import Workload
    from traffic import counted

    wide = Workload(lambda _: mlp(512, 10, hidden=[512] * 3), (512,), (512,), 512, (precision,))
    moved = {
        rule: sum(each.moved for each in counted(rule, wide, precision, quick=False))
        for rule in ("backprop", "dfa", "drtp", "local", "mono_forward")
    }
    unit = moved.pop("backprop")
    assert max(moved.values()) < 1.1 * unit, {rule: each / unit for rule, each in moved.items()}
