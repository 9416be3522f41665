"""Torch's optimisers without its compiler."""

import copy
import pickle

import pytest
import torch
from torch import nn, optim

from bpfree.training.optim import OPTIMIZERS

TORCHS = {name: getattr(optim, kind.__name__) for name, kind in OPTIMIZERS.items() if hasattr(optim, kind.__name__)}


def steps(kind, device):
    """Return the weights after three steps of an optimiser, and the optimiser."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    x = torch.randn(7, 5)
    layer.to(device)
    made = kind(layer.parameters(), lr=0.1, weight_decay=0.01)
    for _ in range(3):
        made.zero_grad()
        layer(x.to(device)).square().sum().backward()
        made.step()
    return nn.utils.parameters_to_vector(layer.parameters()), made


@pytest.mark.parametrize("name", TORCHS)
def test_its_steps_have_the_bits_of_torchs_own(name, device):
    (ours, made), (torchs, other) = steps(OPTIMIZERS[name], device), steps(TORCHS[name], device)
    assert torch.equal(ours, torchs)
    assert isinstance(made, TORCHS[name])
    assert made.state_dict()["param_groups"] == other.state_dict()["param_groups"]
    other.load_state_dict(made.state_dict())


@pytest.mark.parametrize("name", TORCHS)
def test_it_is_copied_and_pickled(name, device):
    _, made = steps(OPTIMIZERS[name], device)
    for same in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(same) is type(made)
        assert str(same) == str(made)


def test_a_closure_is_differentiated_and_hooks_run_once(device):
    weight = nn.Parameter(torch.ones(2, device=device))
    made = OPTIMIZERS["sgd"]([weight], lr=0.5)
    seen = []
    made.register_step_pre_hook(lambda *_: seen.append("before"))
    made.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    optim.SGD([nn.Parameter(torch.ones(2))])  # torch's class gets the same wrapper of `step`
    assert made.step(closure) == 2
    assert torch.equal(weight.detach().cpu(), torch.zeros(2))
    assert seen == ["before", "after"]
