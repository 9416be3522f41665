"""Type checkers find wrong calls in a user's file, and accept right ones."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import bpfree

USER = """
from typing import Any

import numpy as np
import torch
from torch import nn

import bpfree
from bpfree import Batch, Run, Trainer
from bpfree.rules import DFA, RULES
from bpfree.tasks import TASKS, Classify

net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
x, y = np.zeros((20, 4), dtype=np.float32), np.arange(20) % 10

task: Classify = TASKS["classify"](10)
rule: DFA = RULES["dfa"](feedback="orthogonal", connection="dense")
run: Run = bpfree.fit(net, (x, y), rule, epochs=2, batch_size=8, validation=0.2, augment={"shift": 1}, clip=1.0)
run = bpfree.fit("mlp", "digits", "dfa", optimizer={"name": "sgd", "lr": 0.1}, classes=[0, 1], update="fused")
run = bpfree.fit({"name": "mlp", "hidden": [64]}, "digits", early_stopping={"patience": 3}, schedule="cosine")
for name in RULES:
    made = RULES[name]().locality().through
trainer = Trainer(net, rule, task, "sgd", schedule={"name": "cosine", "total_steps": 10}, seed=1)
loss: torch.Tensor = trainer.step((x, y))["loss"]
trainer.step(Batch(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)))
state: dict[str, Any] = trainer.state_dict()
trainer.load_state_dict(state)
predicted: torch.Tensor = run.predict(x)
resumed: Run = bpfree.resume("runs/mine")
rows = bpfree.compare("digits/mlp", rules=["dfa"], seeds=2).record

bpfree.fit("mlp", "digits", epoch=3)  # wrong
bpfree.fit("mlp", "digits", lr=0.1)  # wrong
bpfree.fit("mlp", "digits", epochs="3")  # wrong
bpfree.fit("mlp", "digits", batch_size="64")  # wrong
bpfree.fit("mlp", "digits", update="fusd")  # wrong
bpfree.fit("mlp", "digits", augment={"flp": True})  # wrong
bpfree.fit("mlp", "digits", early_stopping={"patience": "3"})  # wrong
bpfree.fit(net, (x, y), 3)  # wrong
RULES["dfa"](feedbak="orthogonal")  # wrong
RULES["dfa"](feedback="orthogonl")  # wrong
RULES["es"](populaton=8)  # wrong
TASKS["classify"]("ten")  # wrong
TASKS["regress"](10, label_smoothing=0.1)  # wrong
Trainer(net, "dfa", "classify")  # wrong
Trainer(net, "dfa", nn.CrossEntropyLoss())  # wrong
trainer.step(x)  # wrong
trainer.load_state_dict([1])  # wrong
bpfree.compare("digits/mlp", rules=["dfa"], seeds="2")  # wrong
"""


SOURCE = Path(bpfree.__file__).parents[1]
WRONG = {number for number, line in enumerate(USER.splitlines(), 1) if line.endswith("# wrong")}


@pytest.mark.slow  # mypy reads torch, which takes a minute without its cache
def test_mypy_finds_exactly_the_wrong_calls(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    cache = Path(tempfile.gettempdir()) / f"bpfree-mypy-{os.getuid() if hasattr(os, 'getuid') else 0}"
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), "--no-pretty", "user.py"]
    environment = {**os.environ, "MYPYPATH": str(SOURCE)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = {int(line) for line in re.findall(r"^user\.py:(\d+): error", done.stdout, re.MULTILINE)}
    assert found == WRONG, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_finds_exactly_the_wrong_calls(tmp_path):
    """basedpyright is pyright with its own Node.js. It takes 280 MB, so `make` does not install it."""
    pytest.importorskip("basedpyright")
    (tmp_path / "user.py").write_text(USER)
    settings = {"include": ["user.py"], "extraPaths": [str(SOURCE)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    errors = [each for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    assert {each["range"]["start"]["line"] + 1 for each in errors} == WRONG, done.stdout
