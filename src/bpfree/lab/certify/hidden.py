"""The search for learning that leaves no trace in `.grad`: weights that change early, and predictions that change."""

import warnings

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bpfree.lab.certify.bench import STEPS, Bench
from bpfree.lab.certify.state import State
from bpfree.lab.certify.violations import shorten
from bpfree.noise import Noise

_SAME = 1e-3  # of the largest prediction; smaller changes are rounding errors


class WeightsBefore:
    """The values of a net's weights before a rule is bound to it.

    Args:
        net: the net. Layers that do not know their shapes yet are left out.
    """

    def __init__(self, net: nn.Module) -> None:
        known = {name: p for name, p in net.named_parameters() if not is_lazy(p)}
        self._weights = {name: (p, p.detach().clone()) for name, p in known.items()}

    def violations(self) -> list[str]:
        """Return a line if weights are different now."""
        changed = [name for name, (p, before) in self._weights.items() if not torch.equal(p.detach(), before)]
        return [f"bind: the rule changed {shorten(changed)} before the first step"] if changed else []


def find_hidden_learning(bench: Bench) -> list[str]:
    """Return a line if predictions change in steps that move no parameter.

    A rule could train a second net that nobody sees, and predict with it.

    Args:
        bench: the bench, whose optimiser moves nothing.
    """
    trainer, net = bench.trainer, State(bench.net)

    def predictions() -> torch.Tensor:
        with Noise().fold("certify").global_rng(bench.batch.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # checkpoints warn where nothing is differentiated
            return trainer.predict(bench.batch.x).detach().clone()

    with bench.restoring():
        before = predictions()
        for step in dict.fromkeys((*STEPS, *bench.steps)):
            trainer.progress.step = step
            trainer.step(bench.batch)
        net.restore()  # statistics of batch norm change predictions too
        after = predictions()
    if float((after - before).abs().max()) <= _SAME * float(before.abs().max()):
        return []
    return ["hidden: predictions change in steps in which no parameter of net and rule changes"]
