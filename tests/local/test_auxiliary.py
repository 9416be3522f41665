"""What rules with auxiliary nets share: taps by number, read-outs at the last stage, heads over all steps."""

import pytest
import torch
from torch import nn

from bpfree import Noise, UserError, fit
from bpfree.local.auxiliary import AuxiliaryRule
from bpfree.local.evenly import evenly, whole_stages
from bpfree.local.readout import readout_of
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.tasks import Classify, Language
from bpfree.types import Batch
from tests.helpers import gradients, same


class Linears(AuxiliaryRule):
    """One linear layer as the head of each segment."""

    def make_head(self, index, net, task, batch):
        values = self.segments[index].shape
        if self.per_step:
            return nn.Linear(values[-1], task.dim)
        return nn.Sequential(nn.Flatten(), nn.Linear(values.numel(), task.dim))


def language_net(depth=4):
    torch.manual_seed(0)
    return NETS["transformer"]((8,), 11, each_step=True, width=16, depth=depth, heads=2)


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return Batch(torch.randint(11, (4, 8)), torch.randint(11, (4, 8)))


@pytest.mark.parametrize(
    ("stages", "number", "taken"), [(4, 3, "abc"), (4, 1, "b"), (5, 1, "b"), (3, 0, ""), (6, 2, "bd")]
)
def test_taps_are_spread_evenly(stages, number, taken):
    assert "".join(evenly("abcdefg"[: stages - 1], number)) == taken


def test_more_taps_than_stages_are_refused():
    with pytest.raises(UserError, match="taps: found 3, allowed: from 0 to 2"):
        evenly(["a", "b"], 3)


@pytest.mark.parametrize("net", ["resnet32", "vit", "conv", "mlp"])
def test_the_readout_stays_with_the_last_stage(net):
    torch.manual_seed(0)
    options = {"conv": {"channels": [4, 8, 8]}, "mlp": {"hidden": [8, 8]}}.get(net, {})
    made, x = NETS[net]((3, 8, 8), 10, **options), torch.randn(2, 3, 8, 8)
    usual = RULES["mono_forward"]()
    usual.bind(made, Classify(10), Batch(x, torch.zeros(2, dtype=torch.long)))
    assert whole_stages(made, x) == list(usual.taps[:-1])


def test_a_number_of_taps_is_taken_by_every_local_rule(tokens):
    net = language_net()
    for rule in (Linears(taps=1), RULES["mono_forward"](taps=1), RULES["dfa"](taps=1)):
        rule.bind(net, Language(11), tokens)
        assert rule.taps == ("block2",)
        assert readout_of(net, rule.segments[-1], 11).name == "fc"
    run = fit({"name": "mlp", "hidden": [16, 16, 16]}, "digits", rule={"name": "dfa", "taps": 1}, epochs=1)
    assert run.trainer.rule.metadata()["taps"] == "act1"


def test_without_taps_the_rule_is_backprop_to_the_bit(tokens):
    net, task = language_net(), Language(11)
    found = []
    for rule in (Linears(taps=0), RULES["backprop"]()):
        rule.bind(net, task, tokens)
        net.zero_grad()
        rule.gradients(net, task, tokens, Noise(0, 0))
        found.append(gradients(net))
    assert same(*found)


def test_a_head_sees_the_steps_of_a_sequence_together(tokens):
    net, task, rule = language_net(), Language(11), Linears()
    rule.bind(net, task, tokens)
    seen = []
    rule.heads[0].register_forward_hook(lambda module, args, out: seen.append((args[0].shape, out.shape)))
    rule.gradients(net, task, tokens, Noise(0, 0))
    assert seen == [((4, 8, 16), (4, 8, 11))]
    assert rule.taps == ("block1", "block2", "block3")


def test_no_gradient_crosses_a_tap(tokens):
    """With another loss behind the first tap, the first segment and its head get the same gradients."""
    found = []
    for scale in (1.0, 3.0):
        net, rule = language_net(), Linears()
        torch.manual_seed(2)
        rule.bind(net, Language(11), tokens)
        with torch.no_grad():
            rule.heads[1].weight.mul_(scale)
        rule.gradients(net, Language(11), tokens, Noise(0, 0))
        found.append(gradients(net, rule))
    first = [{k: g for k, g in each.items() if "block1" in k or "heads.0" in k or "embed" in k} for each in found]
    assert same(*first)
    assert not same(*found)


def test_a_net_without_a_linear_readout_is_refused(tokens):
    rule = Linears(taps=1)
    net = language_net()
    rule.bind(net, Language(11), tokens)
    with pytest.raises(UserError, match="found no nn.Linear with 7 outputs"):
        readout_of(net, rule.segments[-1], 7)
