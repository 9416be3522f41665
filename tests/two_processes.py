"""What `DistributedDataParallel` makes of rules: run as `python -m tests.two_processes RANK FILE` by two processes.

Each prints, by rule, the largest difference between the weights of the two processes, or the error.
"""

import json
import sys
from collections.abc import Callable

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from bpfree import Batch, Noise, UserError
from bpfree.rules import RULES
from bpfree.tasks import Classify
from bpfree.training.trainer import Trainer

TASK = Classify(3)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def made(rule: str):  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    return RULES[rule](**({"population": 4} if rule == "es" else {}))


def by_trainer(net: nn.Module, rule: str, batch: Batch) -> None:
    trainer = Trainer(net, made(rule), TASK, "sgd")
    for _ in range(3):
        trainer.step(batch)


def by_hand(net: nn.Module, rule: str, batch: Batch) -> None:
    learner = made(rule)
    if rule not in ("es", "forward_gradient"):  # these need no bind
        learner.bind(net, TASK, batch)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        learner.gradients(net, TASK, batch, Noise(0, step))
        optimizer.step()


class Lightning(nn.Module):
    """The net is within what is wrapped, and the rule runs within the wrapper's forward."""

    def __init__(self, net: nn.Module, rule: str) -> None:
        super().__init__()
        self.net = net
        self.learner = [made(rule)]

    def forward(self, batch: Batch) -> None:
        self.learner[0].bind(self.net, TASK, batch)
        self.learner[0].gradients(self.net, TASK, batch, Noise(0, 0))


def outcome(train: Callable[[nn.Module], None]) -> float | str:
    """The largest difference, or the error."""
    net = DistributedDataParallel(small_net())
    try:
        train(net)
    except UserError as error:
        return str(error)
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    gathered = [torch.empty_like(flat) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, flat)
    return float((gathered[0] - gathered[-1]).abs().max())


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(rank))
    batch = Batch(x, torch.arange(10) % 3)
    found: dict[str, float | str] = {}
    for rule in ("backprop", "fa", "dfa", "mono_forward", "es", "forward_gradient"):
        found[f"{rule}, trainer"] = outcome(lambda net, rule=rule: by_trainer(net, rule, batch))  # type: ignore[misc]
        found[f"{rule}, by hand"] = outcome(lambda net, rule=rule: by_hand(net, rule, batch))  # type: ignore[misc]
    wrapped = DistributedDataParallel(Lightning(small_net(), "mono_forward"))
    try:
        wrapped(batch)
    except UserError as error:
        found["mono_forward, within"] = str(error)
    if rank == 0:
        sys.stdout.write(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
