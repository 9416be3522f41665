"""The trainings that one process and several processes must end with the same weights."""

from typing import Any, NamedTuple

import torch
from torch import nn

from bpfree import Batch, Rule, Trainer
from bpfree.data.sets.digits import digits
from bpfree.nets import NETS
from bpfree.population.rule import BlackBoxRule
from bpfree.rules import RULES
from bpfree.tasks import Classify
from tests.helpers import IN_SHAPE, net_for

STEPS = 4
WEIGHTS = [1.0, 2.0, 0.5, 1.0, 1.5, 1.0, 0.25, 1.0, 3.0, 1.0]


class Case(NamedTuple):
    """A rule, and how processes share its training."""

    rule: str
    mode: str

    def __str__(self) -> str:
        return f"{self.rule}-{self.mode}"


CASES = [Case(rule, mode) for rule in RULES for mode in RULES[rule].mesh_modes]


def batches() -> list[Batch]:
    """Real digits in float64, in batches that do not divide by the number of processes."""
    data = digits(None).train
    x, y = (data.x[:124].double() - 5) / 6, data.y[:124]
    return [Batch(x[i::STEPS], y[i::STEPS]) for i in range(STEPS)]  # 31 samples


def new_net(case: Case) -> nn.Module:
    """With batch norm and dropout, where the rule can be split with them."""
    if case.mode == "data" and issubclass(RULES[case.rule], BlackBoxRule):
        torch.manual_seed(0)
        return NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16], activation="tanh", dropout=0.2).double()
    return net_for(case.rule)


def new_rule(name: str, mode: str) -> Rule:
    """With enough members for all processes, of which each runs another number."""
    if name == "forward_forward" and mode == "blocks":
        return RULES[name](negatives="even")
    if name == "noprop_hybrid" and mode == "blocks":
        return RULES[name](embedding="one_hot")
    if name == "forward_gradient":
        return RULES[name](directions=4)
    if issubclass(RULES[name], BlackBoxRule):
        size = {"pairs": 4} if name == "spsa" else {"population": 8}
        return RULES[name](evaluator="loop", **size)
    return RULES[name]()


def trained(case: Case, **compute: Any) -> dict[str, torch.Tensor]:
    """The weights of net and rule after a few steps with clipping and a schedule."""
    task = Classify(10)
    if RULES[case.rule].uses_loss:
        task = Classify(10, class_weights=WEIGHTS, label_smoothing=0.1)
    optimizer = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    trainer = Trainer(
        new_net(case),
        new_rule(case.rule, case.mode),
        task,
        optimizer,
        schedule={"name": "onecycle", "total_steps": STEPS},
        clip=1.0,
        compute={"mesh": case.mode, **compute},
        seed=3,
    )
    for batch in batches():
        trainer.step(batch)
    trainer.mesh.gather()
    return {
        f"{part}.{name}": tensor
        for part, module in (("net", trainer.net), ("rule", trainer.rule))
        for name, tensor in module.state_dict().items()
    }
