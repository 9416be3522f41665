"""`deterministic: true` gives the same bits, and leaves torch as it was."""

import os

import pytest
import torch
from torch import nn

from bpfree import Trainer, UserError
from bpfree.rules import RULES
from bpfree.training.compute import Compute
from bpfree.training.determinism import prepare
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, net_for, repeatable_rule


def settings():
    cudnn = torch.backends.cudnn
    return (
        cudnn.deterministic,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("name", RULES)
def test_every_rule_trains_deterministically(name):
    torch.manual_seed(0)
    batch = Batch(torch.randn(12, *IN_SHAPE), torch.arange(12) % 10)
    before, outcomes = settings(), []
    for deterministic in (True, True, False):
        rule = repeatable_rule(name)
        trainer = Trainer(net_for(name, dtype=torch.float32), rule, TASK, compute={"deterministic": deterministic})
        for _ in range(2):
            trainer.step(batch)
        outcomes.append([*trainer.net.state_dict().values(), trainer.predict(batch.x)])
        assert settings() == before
    assert all(map(torch.equal, outcomes[0], outcomes[1]))
    assert all(map(torch.equal, outcomes[0], outcomes[2])), "no rule needs another algorithm on a CPU"


def test_it_is_on_while_a_trainer_computes_and_at_no_other_time():
    class Ask(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []

        def forward(self, x):
            self.seen.append(torch.are_deterministic_algorithms_enabled())
            if len(x) == 3:
                raise RuntimeError("put_ does not have a deterministic implementation")
            return self.body(x)

    net = Ask()
    trainer = Trainer(net, "backprop", TASK, compute={"deterministic": True})
    batch = Batch(torch.randn(4, *IN_SHAPE), torch.arange(4))
    trainer.bind(batch)
    net.seen.clear()
    trainer.step(batch)
    trainer.predict(batch.x)
    assert net.seen == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UserError, match="compute.deterministic: found true, but put_ does not have"):
        trainer.step(batch.first(3))
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UserError, match="compute.deterministic: found 'yes', allowed: true or false"):
        Compute(deterministic="yes")


def test_the_workspace_of_cublas_is_fixed(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cuda = torch.device("cuda")
    prepare(False, cuda)
    prepare(True, torch.device("cpu"))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    prepare(True, cuda)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG is :0:0, allowed: :4096:8 or :16:8"):
        prepare(True, cuda)
