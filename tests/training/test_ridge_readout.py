"""The ridge read-out: its formula, what it gains, and that it outlives the process."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bpfree
from bpfree import UserError
from bpfree.api import resume
from bpfree.data import Batches, Preprocess
from bpfree.runs.config import parse
from bpfree.runs.train import train
from bpfree.training.ridge_readout import Ridge
from bpfree.training.trainer import Trainer
from tests.helpers import TASK, same

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_closed_form(bias, digits_data, device):
    """On frozen random features, against numpy."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.Tanh(), nn.Dropout(0.5), nn.Linear(50, 10, bias=bias))
    net = net.double().to(device)
    before = {name: value.clone() for name, value in net.state_dict().items() if not name.startswith("4.")}
    split = digits_data.train
    batches = Batches(split, Preprocess.of(digits_data, split), 100, device=device, dtype=torch.float64)
    trainer = Trainer(net, "shallow", TASK)
    trainer.bind(next(batches.epoch()))
    Ridge(batches, 0.01).fit(trainer)
    x = torch.cat([batch.x for batch in batches.epoch()])
    h = torch.tanh(net[1](x.flatten(1))).detach().cpu().numpy()
    y = np.eye(10)[split.y.numpy()]
    if bias:  # which goes free: regress what is centred, and let the bias carry the means
        mean_h, mean_y = h.mean(0), y.mean(0)
        h, y = h - mean_h, y - mean_y
    expected = np.linalg.solve(h.T @ h + 0.01 * len(h) * np.eye(50), h.T @ y).T
    np.testing.assert_allclose(net[4].weight.detach().cpu().numpy(), expected, rtol=0, atol=1e-9)
    if bias:
        np.testing.assert_allclose(net[4].bias.detach().cpu().numpy(), mean_y - expected @ mean_h, rtol=0, atol=1e-9)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("rule", ["shallow", "dfa", "pepita"])
def test_it_improves_a_short_run(rule):
    options = {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.05}}
    plain, solved = (bpfree.fit("mlp", "digits", rule, **options, readout=kind) for kind in ("none", "ridge"))
    assert solved.result["test"]["accuracy"] > plain.result["test"]["accuracy"] + 0.02
    hidden = [{k: v for k, v in run.net.state_dict().items() if "fc3" not in k} for run in (plain, solved)]
    assert same(*hidden)


@pytest.mark.parametrize("early_stopping", [None, {"patience": 1}])
def test_it_is_what_is_saved_loaded_and_evaluated(early_stopping, tmp_path, digits_data):
    options = {"epochs": 3, "readout": "ridge", "ridge": 0.01, "early_stopping": early_stopping}
    done = bpfree.fit("mlp", "digits", "dfa", out=tmp_path / "run", **options)
    name = f"{done.result['weights']}.ckpt"
    assert same(done.net.state_dict(), load_file(tmp_path / "run" / name / "weights.safetensors"))
    loaded = bpfree.load(tmp_path / "run")
    x = digits_data.test.x
    assert torch.equal(done.predict_proba(x), loaded.predict_proba(x))
    assert loaded.evaluate((x, digits_data.test.y)) == done.result["test"]
    assert same(done.net.state_dict(), bpfree.fit("mlp", "digits", "dfa", **options).net.state_dict())
    saved = bpfree.fit("mlp", "digits", "dfa", **options).save(tmp_path / "saved")
    assert torch.equal(bpfree.load(saved).predict_proba(x), done.predict_proba(x))


@pytest.mark.parametrize("when", ["in training", "before the result"])
def test_an_interrupted_run_comes_to_the_same(when, tmp_path, monkeypatch):
    config = parse({"data": "digits", "rule": "dfa", "train": {"epochs": 3, "readout": "ridge"}})
    train(config, out=tmp_path / "whole")
    owner, method = (bpfree.Trainer, "step") if when == "in training" else (bpfree.runs.keeper.RunWriter, "finish")
    real = getattr(owner, method)

    def fail(self, *args):
        if when != "in training" or self.progress.step == 30:
            raise RuntimeError("power cut")
        return real(self, *args)

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(RuntimeError):
        train(config, out=tmp_path / "torn")
    monkeypatch.undo()
    resume(tmp_path / "torn")
    files = [load_file(tmp_path / run / "last.ckpt" / "weights.safetensors") for run in ("whole", "torn")]
    assert same(*files)
    tests = [json.loads((tmp_path / run / "result.json").read_text())["test"] for run in ("whole", "torn")]
    assert tests[0] == tests[1]


@pytest.mark.parametrize(
    ("net", "rule"), [("mlp", "forward_forward"), ({"name": "denoiser", "blocks": 2}, "noprop_dt")]
)
def test_a_rule_that_predicts_otherwise_is_refused_before_it_trains(net, rule, monkeypatch):
    monkeypatch.setattr(Trainer, "step", None)
    with pytest.raises(
        UserError, match="readout: found 'ridge', but the prediction of .* is not the output of a Linear layer"
    ):
        bpfree.fit(net, "digits", rule, epochs=1, readout="ridge")


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match="readout: found 'ridge' for the task reconstruct"):
        bpfree.fit("mlp", "digits", "dfa", epochs=1, task="reconstruct", readout="ridge")
    with pytest.raises(UserError, match="train.readout: found 'lasso', allowed: 'none' or 'ridge'"):
        bpfree.fit("mlp", "digits", "dfa", readout="lasso")
    with pytest.raises(UserError, match="train.ridge: found 0"):
        bpfree.fit("mlp", "digits", "dfa", ridge=0)
