"""Comparisons on the net and the data of a user, from Python and by name."""

import copy
import json
import signal

import pytest
import torch
from torch import nn

import bpfree
from bpfree import UserError
from bpfree.data.sets.readers import DATASETS
from bpfree.lab.compare.own import net_maker
from bpfree.rules import DFA
from bpfree.runs.config_file import load_config
from tests.nets_people_have import ResNet, TorchTransformer

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    split = DATASETS["digits"](tmp_path_factory.mktemp("data")).train
    return split.x[:200], split.y[:200]


def small(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("net", [ResNet, TorchTransformer])
def test_a_net_of_ones_own_gets_all_baselines_and_local_rules_find_their_taps(net, digits, tmp_path):
    done = bpfree.compare(net, digits, rules=["mono_forward"], test=digits, seeds=1, epochs=1, out=tmp_path / "c")
    assert not done.failed
    (group,) = done.record["groups"]
    rows = {row["name"]: row for row in group["rows"]}
    for name in ("backprop", "backprop, checkpointed", "backprop, accumulated", "shallow", "mono_forward"):
        assert rows[name]["net"] == net.__name__
        assert rows[name]["runs"], rows[name]
    assert rows["backprop, checkpointed"]["mean"] == rows["backprop"]["mean"]
    difference = rows["mono_forward"]["mean"] - rows["backprop"]["mean"]
    assert rows["mono_forward"]["difference"] == pytest.approx(difference, abs=1e-6)
    assert rows["deep supervision (mono_forward)"]["runs"]
    assert done.page.exists()


def test_each_rule_starts_from_the_same_weights_and_each_seed_from_others(digits, tmp_path):
    made = []

    def make():
        net = small()
        made.append(weights(net))
        return net

    rules = ["mono_forward", lambda: DFA(feedback="orthogonal")]
    call = {"rules": rules, "seeds": 2, "epochs": 1, "controls": False, "out": tmp_path / "c"}
    done = bpfree.compare(make, digits, **call)
    rows = {row["name"]: row for row in done.record["groups"][0]["rows"]}
    assert set(rows) == {"backprop", "mono_forward", "dfa"}
    first, other = made[0], next(weights for weights in made if not same(weights, made[0]))
    assert all(same(weights, first) or same(weights, other) for weights in made)

    def times():
        return {file: file.stat().st_mtime_ns for file in (tmp_path / "c").glob("runs/*/result.json")}

    finished = times()
    assert len(finished) == 6
    again = bpfree.compare(make, digits, **call)
    assert times() == finished
    assert [row["mean"] for row in again.record["groups"][0]["rows"]] == [row["mean"] for row in rows.values()]

    x, y = digits
    for net, data, changed, what in (
        (make, (x.flip(0), y), rules, "data"),
        (lambda: small(9), digits, rules, "net"),
        (make, digits, ["mono_forward", lambda: DFA(feedback="uniform")], "rule dfa"),
    ):
        with pytest.raises(UserError, match=f"holds runs with another {what}. Choose another folder"):
            bpfree.compare(net, data, **call | {"rules": changed})


def test_ctrl_c_keeps_a_checkpoint_and_the_same_call_ends_in_the_same_weights(digits, tmp_path, at_once):
    class Interrupting(DFA):
        steps = 0

        def gradients(self, net, task, batch, noise):
            Interrupting.steps += 1
            if Interrupting.steps == 3:
                signal.raise_signal(signal.SIGINT)
            return super().gradients(net, task, batch, noise)

    call = {"rules": [Interrupting], "seeds": 1, "epochs": 3, "controls": False}
    with pytest.raises(KeyboardInterrupt):
        bpfree.compare(small, digits, **call, out=tmp_path / "stopped")
    assert (tmp_path / "stopped" / "runs" / "backprop-0" / "result.json").exists()
    assert not (tmp_path / "stopped" / "compare.json").exists()
    nets = []
    for name in ("stopped", "whole"):
        bpfree.compare(small, digits, **call, out=tmp_path / name)
        run = tmp_path / name / "runs" / "Interrupting-0"
        nets.append(weights(bpfree.load(run, net=small(), rule=Interrupting()).net))
    assert same(*nets)


def test_a_module_is_copied_and_its_weights_are_drawn_anew():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10), nn.Linear(10, 1))
    before = weights(net)
    make = net_maker(net)
    assert same(weights(make(3)), weights(make(3)))
    assert not torch.equal(make(3)[0].weight, make(4)[0].weight)
    assert same(weights(net), before)
    assert same(weights(net_maker(lambda: copy.deepcopy(net))(3)), before)  # a function decides for itself


def test_a_module_whose_weights_cannot_be_drawn_anew_is_refused():
    initialised = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 10))
    nn.init.kaiming_normal_(initialised[0].weight)
    trained = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
    trained(torch.randn(4, 1, 8, 8))
    zero = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32))
    nn.init.zeros_(zero[1].weight)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 32)))
    for net, why in (
        (initialised, "its 0.weight does not look as its reset_parameters"),
        (trained, "its 1 was trained before"),
        (zero, "its 1.weight does not look"),
        (normed, "its 0.parametrizations.weight .ParametrizationList. cannot be drawn anew"),
        (TorchTransformer(), "its own parameters .TorchTransformer. cannot be drawn anew"),
    ):
        with pytest.raises(UserError, match=f"net: {why}.*Give a function that makes the net"):
            net_maker(net)


def test_what_cannot_be_compared(digits):
    net = nn.Linear(64, 10)
    make = net_maker(lambda: net)
    assert make(0) is net
    with pytest.raises(UserError, match="net: the function returns the same net twice"):
        make(1)
    for call, message in (
        ({"rules": []}, "rules: found none, allowed: one or more"),
        ({"rules": [DFA()]}, "rules: found a DFA object, allowed: a name, a spec, or a function"),
        ({"rules": [lambda: "dfa"]}, "rules: found a function that returns str"),
        ({"rules": ["dfa"], "overrides": ["train.epochs=1"]}, "overrides: allowed with configs only"),
        ({"rules": ["dfa"], "epoch": 1}, "unknown argument 'epoch'. Did you mean 'epochs'"),
        ({"rules": ["dfa"], "jobs": 2}, "jobs: found 2, allowed: 1, since nets, rules and data"),
        ({"rules": ["noprop_dt"]}, "found noprop_dt, which needs a net 'denoiser'"),
    ):
        with pytest.raises(UserError, match=message):
            bpfree.compare(ResNet, digits, **call)
    with pytest.raises(UserError, match="net: the function returns dict, allowed: a new torch.nn.Module"):
        bpfree.compare(dict, digits, rules=["dfa"])
    with pytest.raises(UserError, match="net: found int, allowed: a module, a function"):
        bpfree.compare(3, digits, rules=["dfa"])
    with pytest.raises(UserError, match="epochs: allowed with a net and data only"):
        bpfree.compare("digits/mlp", rules=["dfa"], epochs=3)


def test_an_error_in_the_code_of_the_user_ends_one_run_alone(digits, tmp_path):
    class Broken(DFA):
        steps = 0

        def gradients(self, net, task, batch, noise):
            Broken.steps += 1
            if Broken.steps == 3:
                raise RuntimeError("no such luck")
            return super().gradients(net, task, batch, noise)

    call = {"seeds": 1, "epochs": 2, "controls": False, "out": tmp_path / "c"}
    done = bpfree.compare(small, digits, rules=[Broken, "dfa"], **call)
    assert list(done.failed) == ["Broken seed 0"]
    assert done.failed["Broken seed 0"].startswith("RuntimeError: no such luck (see ")
    assert "no such luck" in (tmp_path / "c" / "runs" / "Broken-0.log").read_text()


def test_a_net_by_name_on_a_named_data_set_trains_by_config(tmp_path, trained_here):
    """The config in the run's folder trains the same net again; the recipe of the rule is that of the data set."""
    call = {"seeds": 1, "epochs": 1, "fraction": 0.2, "out": tmp_path / "c"}
    done = bpfree.compare({"name": "tests.outside:Linear", "bias": False}, "digits", rules=["es"], **call)
    assert not done.failed
    of_rule, control = (
        json.loads((tmp_path / "c" / "runs" / run / "result.json").read_text())["queries"]
        for run in ("es-0", "forward_gradient-equal-queries-0")
    )
    assert of_rule == control
    config = load_config(str(tmp_path / "c" / "runs" / "es-0" / "config.yaml"))
    assert config.net == {"name": "tests.outside:Linear", "bias": False}
    assert config.rule == load_config("digits/es").rule
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["groups"][0]["name"] == "Linear-digits"
