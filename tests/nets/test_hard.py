"""Nets without derivatives: they compute what they say, and only rules that do not differentiate train them."""

import pytest
import torch
from torch import nn

import bpfree
from bpfree import Trainer, UserError
from bpfree.nets import NETS
from bpfree.nets.hard import UNIT, Int8Linear, Int8ReLU, Quantize, Sign, integer_product
from bpfree.rules import RULES
from tests.helpers import IN_SHAPE, TASK

HARD = {
    "sign mlp": {"name": "mlp", "hidden": [32], "activation": "sign"},
    "sign conv": {"name": "conv", "channels": [6], "hidden": 16, "activation": "sign"},
    "int8": {"name": "int8_mlp", "hidden": [32]},
    "spiking": {"name": "spiking_mlp", "hidden": [32]},
}


def make(kind):
    torch.manual_seed(0)
    options = dict(HARD[kind])
    return NETS[options.pop("name")](IN_SHAPE, 10, **options)


def test_integer_products_are_exact():
    torch.manual_seed(0)
    x, w = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((33, 784), (17, 784)))
    found = integer_product(x, w)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), x.long() @ w.long().T)


def test_an_int8_net_holds_nothing_but_integers_between_its_ends():
    net, x = make("int8"), torch.randn(20, 1, 8, 8)
    seen = []
    for module in net:
        if not isinstance(module, nn.Flatten):
            module.register_forward_hook(lambda m, args, out: seen.append((m, args[0], out)))
    scores = net(x)
    types = [out.dtype for _, _, out in seen]
    assert types == [torch.int8, torch.int32, torch.int8, torch.int32, torch.float32]
    assert torch.equal(scores, seen[-1][2])
    for module, h, out in seen:
        if isinstance(module, Int8Linear):
            weight = (module.weight / module.step).round().clamp(-127, 127).long()
            assert torch.equal(out.long(), h.long() @ weight.T)


@torch.no_grad()
def test_an_int8_net_is_its_float_net_but_for_rounding():
    net, x = make("int8"), torch.randn(200, 1, 8, 8)
    one, two = (module for module in net if isinstance(module, Int8Linear))
    gain = one.step * 2 ** next(m for m in net if isinstance(m, Int8ReLU)).shift  # of the shift, near 1
    hidden = torch.relu(x.flatten(1) @ one.weight.T) / gain
    expected = hidden.clamp_max(127 / UNIT) @ two.weight.T
    assert float((net(x) - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert 0.7 < gain < 1.5
    assert Quantize()(torch.tensor([9.0, -9.0, 1.0])).tolist() == [127, -127, UNIT]


def test_spikes_are_those_of_leaky_integrate_and_fire_neurons():
    torch.manual_seed(0)
    net = NETS["spiking_mlp"](IN_SHAPE, 10, hidden=[9, 7], steps=6, beta=0.8).double()
    x = 3 * torch.randn(5, 1, 8, 8, dtype=torch.float64)
    one, two, last = net.layers
    v1, v2, spikes = torch.zeros(5, 9), torch.zeros(5, 7), torch.zeros(5, 7, dtype=torch.float64)
    for _ in range(6):
        v1 = 0.8 * v1 + one(x.flatten(1))
        s1 = (v1 >= 1).double()
        v1 = v1 - s1
        v2 = 0.8 * v2 + two(s1)
        s2 = (v2 >= 1).double()
        v2 = v2 - s2
        spikes += s2
    torch.testing.assert_close(net(x), last(spikes / 6))
    assert float(spikes.sum()) > 0


def test_signs_have_no_zero():
    assert Sign()(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [-1.0, -1.0, 1.0]


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.needs_derivatives])
def test_rules_that_differentiate_refuse_them(name, kind, batch):
    with pytest.raises(
        UserError, match=r"has no derivative, but \w+ differentiates. Allowed: .*recombine, es, eggroll"
    ):
        Trainer(make(kind).to(batch.x), name, TASK).step(batch)


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("name", ["eggroll", "es", "snes"])
def test_black_box_rules_train_them(name, kind, digits_data):
    optimizer = {"name": "sgd", "lr": 1.0} if name == "snes" else {"name": "adam", "lr": 0.02}
    run = bpfree.fit(HARD[kind], "digits", {"name": name, "population": 32}, epochs=8, optimizer=optimizer)
    assert run.result["test"]["accuracy"] > (0.3 if kind == "sign conv" else 0.6)
