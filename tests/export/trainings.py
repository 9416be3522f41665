"""Short trainings that the tests of exported nets share: one for each rule, task and kind of net."""

from functools import cache
from typing import Any

import torch
from torch import nn

import bpfree
from bpfree import Run
from bpfree.diffusion import DiffusionRule
from bpfree.rules import RULES
from tests.helpers import denoiser_for, optimizer_for_any_task, own_net, repeatable_rule

TASKS = ("classify", "multilabel", "segment", "reconstruct", "regress", "sequence", "language")
ABLE = [(rule, task) for rule, kind in RULES.items() for task in TASKS if task in kind.tasks]
_N = 96


def samples(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw samples and labels of a task, which are not standardised."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(_N, 6, generator=draws)
    if task == "language":
        text = torch.randint(0, 11, (_N, 9), generator=draws)
        return text[:, :-1], text[:, 1:]
    if task == "sequence":
        walk = torch.randn(_N, 9, 2, generator=draws).cumsum(1)
        return walk[:, :-1], walk[:, 1:]
    if task == "regress":
        return x, 1990 + 20 * x[:, :2]
    if task == "multilabel":
        return x, (x[:, :3] > 0.2).long()
    images = torch.randint(0, 256, (_N, 1, 8, 8), generator=draws, dtype=torch.uint8)
    y = (images[:, 0] > 80).long() + (images[:, 0] > 160).long()
    return images, y if task == "segment" else y.flatten(1).sum(1) % 3


def net_of(rule: str, task: str, kind: str) -> dict[str, Any] | nn.Module:
    """A small net, with batch norm and dropout where the net has them."""
    if task == "segment":
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 6, 3, 2, padding=1), nn.Tanh(),
                             nn.Upsample(scale_factor=2), nn.Conv2d(6, 3, 1))  # fmt: skip
    if issubclass(RULES[rule], DiffusionRule):
        backbone = {"backbone": {"name": "conv", "norm": True}} if kind == "conv" else {}
        width = {"embedding_dim": 64} if task == "reconstruct" else {}
        return {"name": "denoiser", **denoiser_for(rule), **backbone, **width, "trunk": "shared"}
    if net := own_net(rule):
        return net
    if task == "language":
        return {"name": "transformer", "width": 12, "depth": 2, "heads": 2, "each_step": True, "vocabulary": 11}
    if task == "sequence":
        return {"name": "gru", "hidden": [8, 6], "each_step": True}
    if kind == "conv":
        return {"name": "conv", "channels": [10, 12], "activation": "tanh", "batch_norm": True, "dropout": 0.2}
    return {"name": "mlp", "hidden": [24, 16], "activation": "tanh", "batch_norm": True, "dropout": 0.2}


@cache
def trained(rule: str, task: str = "classify", kind: str = "mlp", option: tuple[str, str] | None = None) -> Run:
    """A run of a few steps on raw samples; `option` is one of the rule."""
    spec = {"name": rule, **({option[0]: option[1]} if option else {})}
    if (evaluator := getattr(repeatable_rule(rule), "evaluator", None)) is not None:
        spec["evaluator"] = evaluator
    optimizer = optimizer_for_any_task(rule, lr=1e-3)
    return bpfree.fit(
        net_of(rule, task, kind), samples(task), spec, epochs=1, task=task, batch_size=24, optimizer=optimizer
    )


def answers(run: Run, x: Any) -> torch.Tensor:
    """What the run says for raw samples: probabilities, or what `predict` returns."""
    return run.predict(x) if run.task.classes is None else run.predict_proba(x)
