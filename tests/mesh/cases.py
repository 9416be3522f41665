"""The trainings that one process and several processes must end with the same weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
    """A rule, and how processes share its training; perhaps on another net, or with another option."""

    rule: str
    mode: str
    variant: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, self))


TABLE = [Case(rule, mode) for rule in RULES for mode in RULES[rule].mesh_modes]
VARIANTS = [
    Case("mono_forward", "data", "fused"),
    Case("mono_forward", "blocks", "fused"),
    Case("predsim", "blocks", "conv"),
    Case("mono_forward", "blocks", "resnet18"),
    Case("local", "blocks", "recurrent"),
    Case("solo", "blocks", "refresh"),
    Case("lopt", "blocks", "hidden_lr"),  # two groups of parameters, and each process has those of one
    Case("noprop_dt", "blocks", "shared"),
    Case("noprop_dt", "blocks", "random"),
    Case("noprop_dt", "data", "adamw"),
]
REPLICAS = [Case(rule, "blocks", "replicas") for rule in ("mono_forward", "sim", "solo", "noprop_dt")]
CASES = [*TABLE, *VARIANTS]


def batches() -> list[Batch]:
    """Real digits in float64, in batches that do not divide by the number of processes."""
    data = digits(None).train
    x, y = (data.x[:124].double() - 5) / 6, data.y[:124]
    return [Batch(x[i::STEPS], y[i::STEPS]) for i in range(STEPS)]  # 31 samples


class Rows(nn.Module):
    """Reads an image row by row; a recurrent layer keeps a list of its weights beside its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.first = nn.LSTM(12, 12, batch_first=True)
        self.joint = nn.Tanh()
        self.second = nn.GRU(12, 12, batch_first=True)
        self.end = nn.Identity()
        self.read = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.joint(self.first(torch.tanh(self.embed(x[:, 0])))[0])
        return self.read(self.end(self.second(h)[0][:, -1]))  # type: ignore[no-any-return]


def new_net(case: Case) -> nn.Module:
    """With batch norm and dropout, where the rule can be split with them."""
    torch.manual_seed(0)
    if case.variant == "conv":
        return NETS["conv"](IN_SHAPE, 10, channels=[6, 8], dropout=0.2).double()
    if case.variant == "resnet18":
        return NETS["resnet18"](IN_SHAPE, 10, width=4).double()
    if case.variant == "recurrent":
        return Rows().double()
    if case.variant == "shared":
        return NETS["denoiser"](IN_SHAPE, 10, width=16, blocks=3, trunk="shared", backbone="conv").double()
    if case.rule == "forward_forward":  # its output layer is no part of its own
        return NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16, 12], activation="tanh", batch_norm=True, dropout=0.2).double()
    if case.mode == "data" and issubclass(RULES[case.rule], BlackBoxRule):
        return NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16], activation="tanh", dropout=0.2).double()
    return net_for(case.rule)


def new_rule(case: Case) -> Rule:
    """With enough members for all processes, of which each runs another number."""
    kind = RULES[case.rule]
    if case.rule == "forward_gradient":
        return kind(directions=4)
    if issubclass(kind, BlackBoxRule):
        return kind(evaluator="loop", **({"pairs": 4} if case.rule == "spsa" else {"population": 8}))
    options: dict[tuple[str, str], dict[str, Any]] = {
        ("forward_forward", "blocks"): {"negatives": "even"},
        ("noprop_hybrid", "blocks"): {"embedding": "one_hot"},
    }
    if case.variant == "recurrent":
        return kind(taps=["joint", "end"])
    if case.variant == "refresh":
        return kind(refresh=2)
    if case.variant == "hidden_lr":
        return kind(hidden_lr=0.01)
    if case.variant == "random":
        return kind(order="random")
    return kind(**options.get((case.rule, case.mode), {}))


def trained(case: Case, processes: int = 1) -> dict[str, Tensor]:
    """The weights of net and rule after a few steps with clipping and a schedule."""
    task = Classify(10)
    if RULES[case.rule].uses_loss:
        task = Classify(10, class_weights=WEIGHTS, label_smoothing=0.1)
    mesh: dict[str, Any] = {"name": case.mode}
    if case.variant == "replicas" and processes > 1:
        mesh["replicas"] = 2
    trainer = Trainer(
        new_net(case),
        new_rule(case),
        task,
        # Adam would divide rounding errors by each other where a gradient is 0, such as that of a bias before a norm.
        {"name": "sgd", "lr": 0.05, "momentum": 0.9} if case.variant != "adamw" else {"name": "adamw", "eps": 1e-3},
        schedule={"name": "onecycle", "total_steps": STEPS},
        clip=1.0,
        compute={"mesh": mesh, "update": "fused" if case.variant == "fused" else "together"},
        seed=3,
    )
    for batch in batches():
        trainer.step(batch)
    if trainer.mesh.apart is not None:
        trainer.mesh.apart.gather()
    return {
        f"{part}.{name}": tensor
        for part, module in (("net", trainer.net), ("rule", trainer.rule))
        for name, tensor in module.state_dict().items()
    }
