"""What several tests build."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from bpfree.diffusion import DiffusionRule
from bpfree.nets import NETS
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.runs.config_file import load_config
from bpfree.tasks import Classify
from bpfree.types import Batch

TASK = Classify(10)
IN_SHAPE = (1, 8, 8)
VIT = {"width": 16, "heads": 2, "depth": 4}
"""Options of a small net for rules that need a ViT."""


def net_for(rule: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small net that the rule can train, with batch norm and dropout where the net has them."""
    torch.manual_seed(0)
    if issubclass(RULES[rule], DiffusionRule):
        net = NETS["denoiser"](IN_SHAPE, 10, **{"width": 16, **denoiser_for(rule)})
    elif RULES[rule].needs_net == "vit":
        net = NETS["vit"](IN_SHAPE, 10, **VIT, dropout=0.1)
    else:
        net = NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16], activation="tanh", batch_norm=True, dropout=0.2)
    return net.to(device=device, dtype=dtype)


def denoiser_for(rule: str) -> dict[str, object]:
    """What a denoising net must be for the rule."""
    kind = RULES[rule]
    head = {"timed": kind.timed, "predicts": kind.predicts}
    return {"blocks": 1, "head": head, "width": 32} if kind.timed else {"blocks": 3, "head": head}


def own_net(rule: str) -> dict[str, object] | None:
    """The section of a config for a rule that needs a net of its own kind; None for a rule that takes any net."""
    if issubclass(RULES[rule], DiffusionRule):
        return {"name": "denoiser", **denoiser_for(rule)}
    return {"name": "vit", **VIT} if RULES[rule].needs_net == "vit" else None


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients by parameter name."""
    return {
        f"{type(module).__name__}.{name}": p.grad.clone()
        for module in modules
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def without_pictures() -> Iterator[pytest.MonkeyPatch]:
    """Runs are written without their pictures, which take many times as long as the small trainings of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpfree.runs.run.draw", lambda *_: [])
        yield patch


def zero_grad(*modules: nn.Module) -> None:
    for module in modules:
        module.zero_grad()


def jolt(parameters: Iterable[nn.Parameter]) -> None:
    """Change parameters by much."""
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn_like(p))


def autograd_of(loss: Tensor, net: nn.Module) -> dict[str, Tensor]:
    parameters = dict(net.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def bound(rule, net: nn.Module, batch: Batch, task=TASK):
    torch.manual_seed(1)
    rule.bind(net, task, batch)
    return rule.to(batch.device)


def repeatable_rule(name: str) -> Rule:
    """A rule with its defaults, except for the evaluator of black-box rules: "auto" chooses it by the clock."""
    rule = RULES[name]()
    return RULES[name](evaluator="loop") if getattr(rule, "evaluator", "") == "auto" else rule


def optimizer_for(rule: str) -> dict[str, object]:
    """An optimiser for a short training by the rule: that of its shipped config on digits, with longer steps.

    Shipped configs train for 40 epochs and more, tests for 10 or fewer.
    """
    optimizer = load_config(f"digits/{rule}").optimizer
    return {**optimizer, "lr": 3 * optimizer["lr"]}


def optimizer_for_any_task(rule: str, lr: float) -> dict[str, object]:
    """Adam with this step, or the optimiser of a rule whose gradient has a scale of its own.

    The shipped configs are tuned for digits, and diverge on other tasks with longer steps.
    """
    special = {
        "recombine": {"name": "sgd", "lr": 3.0},
        "snes": {"name": "sgd", "lr": 1.0},
        "pgpe": {"name": "clipup", "lr": 0.15},
    }
    return special.get(rule, {"name": "adam", "lr": lr})
