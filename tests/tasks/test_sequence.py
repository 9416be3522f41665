"""Sequences: the data, rollouts, and what each kind of rule is on a net that goes on in time."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bpfree
from bpfree import Batch, Noise, UserError
from bpfree.api import resume
from bpfree.data import DATASETS, Dataset, Preprocess
from bpfree.data.sets.lorenz import LYAPUNOV, lorenz, runge_kutta, trajectories, velocity
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.tasks import Sequence
from bpfree.tasks.sequence import Rollouts, closed_loop
from tests.helpers import autograd_of, bound, gradients, same, zero_grad
from tests.runs.test_run import power_cut, weights
from tests.test_cli import refused, shell

SMALL = {"windows": 80, "test_windows": 20, "steps": 24}
NET = {"name": "gru", "hidden": [10, 8], "each_step": True}


@cache
def generated():
    return lorenz(None, **SMALL)


@pytest.fixture
def small():
    return generated()


@pytest.fixture
def windows(small):
    return Batch(small.train.x[:6].double(), small.train.y[:6].double())


def net_of(name="gru", **options):
    torch.manual_seed(0)
    return NETS[name]((24, 3), 3, **{"hidden": [10, 8], "each_step": True, **options}).double()


def fit(rule="backprop", net=NET, data=None, **options):
    """On small windows, given as arrays unless named."""
    options = {"epochs": 1, "task": "sequence", "batch_size": 16, **options}
    return bpfree.fit(net, data or tuple(generated().train), rule, **options)


# The data


def test_runge_kutta_is_of_fourth_order():
    start = torch.tensor([1.0, 2.0, 20.0], dtype=torch.float64)
    exact = runge_kutta(velocity, start, 1 / 2048, 1024)
    errors = [float((runge_kutta(velocity, start, 1 / n, n // 2) - exact).norm()) for n in (64, 128, 256)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.2)
    decay = runge_kutta(lambda x: -x, torch.ones(1, dtype=torch.float64), 0.01, 100)
    assert float(decay) == pytest.approx(0.36787944117, abs=1e-10)


def test_windows_follow_the_system(small):
    x, y = small.train
    assert x.shape == y.shape == (80, 24, 3)
    assert torch.equal(y[:, :-1], x[:, 1:])
    torch.testing.assert_close(torch.cat([x[:, :1], y], 1).mean((0, 1)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([x[:, :1], y], 1).std((0, 1)), torch.ones(3), atol=1e-3, rtol=0)
    assert not {tuple(row) for row in x[:, 0].tolist()} & {tuple(row) for row in small.test.x[:, 0].tolist()}
    assert small.labels.time_step == pytest.approx(0.05 * LYAPUNOV)


def test_options_of_the_data(small):
    assert torch.equal(lorenz(None, **SMALL).train.x, small.train.x), "the same values every time"
    assert not torch.equal(lorenz(None, **SMALL, key=1).train.x, small.train.x)
    alone = lorenz(None, **SMALL, observe="x")
    assert torch.equal(alone.train.x, small.train.x[..., :1])
    noisy = lorenz(None, **SMALL, noise=0.1)
    assert float((noisy.train.x - small.train.x).std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(noisy.train.y[:, :-1], noisy.train.x[:, 1:]), "a measurement is one, as input and as target"
    assert torch.equal(noisy.test.x, small.test.x)
    for options, message in (
        ({"dt": 0.0}, "data.dt: found 0.0"),
        ({"noise": -1.0}, "data.noise"),
        ({"observe": "y"}, "data.observe: found 'y', allowed: xyz, x"),
    ):
        with pytest.raises(UserError, match=message):
            lorenz(None, **options)


# Rollouts


class Perfect(nn.Module):
    """The system itself, in the units of the data."""

    def __init__(self, small):
        super().__init__()
        raw = trajectories(Noise(0).fold("lorenz").fold("train"), 80, 25, 0.05, 10)
        self.mean, self.std = raw.mean((0, 1)), raw.std((0, 1))

    def step(self, x, state):
        out = runge_kutta(velocity, x.double() * self.std + self.mean, 0.005, 10)
        return (out - self.mean) / self.std, state

    def forward(self, x):
        return self.step(x, None)[0]


class Copy(nn.Module):
    """Nothing moves."""

    def step(self, x, state):
        return x, state

    def forward(self, x):
        return x


def judged(net, small, **options):
    task = Sequence.of(Preprocess.of(small, small.train), **options)
    rollouts = Rollouts(task, net)
    batch = Batch(*small.test)
    rollouts.add(net(batch.x), batch)
    return float(task.loss(net(batch.x), batch)), rollouts.metrics()


def test_a_perfect_predictor_has_no_error_and_is_valid_to_the_end(small):
    loss, metrics = judged(Perfect(small), small)
    assert loss < 1e-10
    assert metrics["rollout"] < 1e-4
    steps = 24 - 6 + 1
    assert metrics["valid_time"] == pytest.approx(steps * 0.05 * LYAPUNOV)


def test_who_copies_is_judged_by_hand(small):
    x, y = small.test
    loss, metrics = judged(Copy(), small, warmup=10)
    assert loss == pytest.approx(float((x - y).square().mean()), rel=1e-5)
    errors = (x[:, 9:10] - y[:, 9:]).double().square().mean(2)
    assert metrics["rollout"] == pytest.approx(float(errors.mean().sqrt()))
    valid = [next((k for k, e in enumerate(row) if e**0.5 > 0.4), len(row)) for row in errors.tolist()]
    assert metrics["valid_time"] == pytest.approx(sum(valid) / len(valid) * small.labels.time_step)


def test_valid_times_end_at_the_first_error_that_is_too_large():
    rollouts = Rollouts(Sequence(1, time_step=0.5), Copy())
    errors = torch.tensor([[0.1, 0.39, 0.41, 0.1], [0.5, 0.0, 0.0, 0.0], [0.0, torch.nan, 0.0, 0.0], [0.1] * 4])
    assert rollouts.valid_times(errors.double().square()).tolist() == [1.0, 0.0, 0.5, 2.0]


def test_a_closed_loop_is_the_whole_pass_over_its_own_predictions(windows):
    net = net_of("lstm").train()
    predicted = closed_loop(net, windows.x[:, :5], 6)
    assert net.training
    seen = windows.x[:, :5]
    for k in range(6):
        torch.testing.assert_close(predicted[:, k], net(seen)[:, -1])
        seen = torch.cat([seen, predicted[:, k : k + 1]], 1)


# The rules


@pytest.mark.parametrize("detach", [False, True])
def test_dfa_delivers_the_error_of_each_step_to_that_step(windows, detach):
    net, task = net_of(detach=detach), Sequence(3)
    rule = bound(RULES["dfa"](), net, windows, task)
    assert [rule.B0.shape, rule.B1.shape] == [(3, 10), (3, 8)]
    rule.gradients(net, task, windows, Noise())
    h1 = net.rnn1(windows.x)
    h2 = net.rnn2(h1.detach())
    out = net.fc(h2.detach())
    error = torch.autograd.grad(task.loss(out, windows), out, retain_graph=True)[0]  # [B, T, D]
    pulled = task.loss(out, windows) + (h1 * (error @ rule.B0)).sum() + (h2 * (error @ rule.B1)).sum()
    for name, expected in autograd_of(pulled, net).items():
        torch.testing.assert_close(net.get_parameter(name).grad, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["local", "mono_forward"])
def test_local_errors_are_those_of_each_step(windows, name):
    net, task = net_of(detach=True), Sequence(3)
    rule = bound(RULES[name](), net, windows, task)
    scalars = rule.gradients(net, task, windows, Noise())
    read = rule.C0 if name == "local" else rule.heads[0].weight
    h = net.rnn1(windows.x)
    loss = F.mse_loss(h @ read.T, windows.y)
    torch.testing.assert_close(scalars["loss/rnn1"], loss.detach())
    for p, expected in zip(net.rnn1.parameters(), torch.autograd.grad(loss, list(net.rnn1.parameters())), strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["dfa", "local", "mono_forward", "shallow"])
def test_a_later_step_reaches_an_earlier_one_through_the_layer_or_not_at_all(windows, name):
    """Targets are changed at the last step alone: what the first layer learns from it differs with `detach`."""
    changed = Batch(windows.x, windows.y.clone())
    changed.y[:, -1] += 1
    found = {}
    for detach in (False, True):
        both = []
        for batch in (windows, changed):
            net, task = net_of(detach=detach), Sequence(3)
            rule = bound(RULES[name](), net, batch, task)
            rule.gradients(net, task, batch, Noise())
            both.append(gradients(net.rnn1))
        found[detach] = [both[1][key] - both[0][key] for key in both[0]]
    if name == "shallow":
        assert found == {False: [], True: []}
        return
    assert all(bool(g.abs().sum() > 0) for g in found[True])
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(found[False], found[True], strict=True))


def test_flat_equals_fast(windows):
    found = []
    for memory in ("fast", "flat"):
        net, task = net_of(), Sequence(3)
        rule = bound(RULES["dfa"](memory=memory), net, windows, task)
        rule.gradients(net, task, windows, Noise())
        found.append(gradients(net))
    assert same(*found)


def test_checkpointed_and_accumulated_backprop_through_time_is_backprop_through_time(windows):
    expected = None
    for options in ({}, {"checkpoint": True}, {"accumulate": 2}):
        net = net_of()
        zero_grad(net)
        RULES["backprop"](**options).gradients(net, Sequence(3), windows, Noise())
        found = gradients(net)
        expected = expected or found
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-14)


def test_feedback_alignment_takes_the_steps_of_linear_layers(windows):
    """A net of one's own that answers at each step; and a GRU, of which CUDA computes a step in one kernel."""
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))
    for rule in ("fa", "dfa", "mono_forward"):
        run = fit(rule, net, epochs=2)
        assert set(run.metrics[-1]["validation"]) == {"loss"}, "it cannot go on by itself"
    if torch.cuda.is_available():  # where `fit` trains
        with pytest.raises(UserError, match="an operation that takes no feedback"):
            fit("fa")
    else:
        assert fit("fa", epochs=1).metrics[-1]["validation"]["loss"] < 2


# Runs


def test_a_run_predicts_resumes_and_loads(small, tmp_path, monkeypatch, undrawn, at_once):
    options = {"epochs": 2, "out": tmp_path / "whole"}
    whole = fit("dfa", **options)
    with power_cut(monkeypatch, 6, by_ctrl_c=True), pytest.raises(KeyboardInterrupt):
        fit("dfa", **options | {"out": tmp_path / "torn"})
    fit("dfa", **options | {"out": tmp_path / "torn"}, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))
    assert whole.predict(small.test.x).shape == (20, 24, 3)
    loaded = bpfree.load(tmp_path / "torn")
    assert torch.equal(loaded.predict(small.test.x), whole.predict(small.test.x))
    metrics = whole.evaluate(tuple(small.test))
    assert set(metrics) == {"loss", "rollout", "valid_time"}
    assert loaded.evaluate(tuple(small.test)) == metrics


def test_the_shell_trains_on_lorenz(tmp_path, small):
    folder = tmp_path / "run"
    options = ["train.epochs=1", *(f"data.{key}={value}" for key, value in SMALL.items()), "net.hidden=[8]"]
    result = shell("train", "lorenz/backprop", *options, "--out", folder)
    assert result.stdout.startswith("backprop on lorenz: test loss "), result.output
    assert "valid_time" in shell("eval", folder).stdout
    resume(folder)
    np.save(tmp_path / "x.npy", small.test.x[:2].numpy())
    lines = shell("predict", folder, tmp_path / "x.npy").stdout.splitlines()
    expected = bpfree.load(folder).predict(small.test.x[:2])[:, -1]
    assert [float(v) for v in lines[1].split("\t")[1].split()] == pytest.approx(expected[1].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": {**NET, "each_step": False}}, r"has a target for each step, \[16, 24, 3\]. Use net.name=gru"),
        ({"net": {**NET, "each_step": False}, "rule": "dfa"}, "nets do with net.each_step=true"),
        ({"net": "mlp"}, "has a target for each step"),
        (
            {"rule": "pepita"},
            "rule 'pepita' is for the tasks classify, multilabel, reconstruct, regress, so it cannot predict seq",
        ),
        ({"rule": "drtp"}, "rule 'drtp' learns from class labels, so it cannot predict sequences"),
        ({"rule": "noprop_dt"}, "rule 'noprop_dt' is for the tasks classify, reconstruct, so it cannot"),
        ({"rule": {"name": "dfa", "feedback": "aligned"}}, "feedback: found 'aligned' with a target at each step"),
        ({"task": {"name": "sequence", "warmup": 25}}, "task.warmup: found 25, allowed: 1 to 24"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        fit(**options)
    assert "\n" not in str(caught.value)


def test_a_tap_that_mixes_the_steps_is_refused(windows):
    net = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(96, 96), nn.Unflatten(1, (24, 4)), nn.Linear(4, 3)
    ).double()
    with pytest.raises(UserError, match=r"tap '3': its output has the shape \[96\], .* allowed: \[24, ...\]"):
        bpfree.Trainer(net, {"name": "dfa", "taps": ["3"]}, Sequence(3)).step(windows)


def test_forward_mode_through_an_lstm_is_refused(small):
    with pytest.raises(UserError, match="no forward-mode derivative of one of its operations"):
        fit("forward_gradient", {**NET, "name": "lstm"})


def test_refusals_come_before_the_data(tmp_path):
    assert "cannot predict sequences" in refused("train", "lorenz/dfa", "rule=cwcomp", "--out", tmp_path / "run")
    assert "classify" in refused("train", "lorenz/dfa", "task=classify", "--out", tmp_path / "run")


def test_the_table_has_the_data_set(small):
    assert isinstance(small, Dataset)
    assert DATASETS["lorenz"] is lorenz
