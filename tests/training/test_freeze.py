"""Parameters that stay as they are."""

import pytest
import torch

import bpfree
from bpfree import UserError
from bpfree.nets import NETS
from bpfree.training.freeze import freeze


@pytest.mark.parametrize("rule", ["backprop", "dfa", "mono_forward", "eggroll", "forward_gradient"])
def test_what_is_frozen_stays_and_the_rest_learns(rule):
    net = NETS["mlp"]((1, 8, 8), 10, hidden=[20, 20])
    before = {name: p.clone() for name, p in net.named_parameters()}
    bpfree.fit(net, "digits", rule, epochs=1, freeze=["*", "!fc3.*"])
    for name, p in net.named_parameters():
        assert torch.equal(p.cpu(), before[name]) == (not name.startswith("fc3")), name


def test_patterns_that_fit_nothing_or_leave_nothing_are_refused():
    net = NETS["mlp"]((1, 8, 8), 10)
    with pytest.raises(UserError, match="unknown parameter in freeze 'fc9.*'"):
        freeze(net, ["fc9.*"])
    with pytest.raises(UserError, match=r"freeze: found \['\*'\], which leaves no parameter to train"):
        freeze(net, ["*"])
