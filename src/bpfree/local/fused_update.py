"""Update each segment as soon as its gradients are complete, so that only one segment has gradients at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bpfree.errors import UserError
from bpfree.local.rule import LocalRule
from bpfree.rule import Rule


class FusedUpdate:
    """Steps of the optimiser within `rule.gradients`, segment by segment.

    The weights come out as if all were stepped together, since no segment reads another segment's parameters.

    Args:
        net: the net that the rule is bound to.
        rule: a local rule; the units of others do not learn one after the other.
        optimizer: of all parameters. It passes over parameters without a gradient.
        clip: the largest gradient norm of a segment, or None.

    Raises:
        UserError: the rule is not a local rule.
    """

    def __init__(self, net: nn.Module, rule: Rule, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
        if not isinstance(rule, LocalRule):
            raise UserError(
                f"update: found 'fused', but the units of {type(rule).__name__} do not learn one after the other. "
                "Allowed: together, or a local rule such as dfa with memory=flat, drtp, mono_forward"
            )
        self.rule = rule
        self.optimizer = optimizer
        self.clip = clip
        self.segments = [rule.unit(net, index) for index in range(len(rule.segments))]

    @contextmanager
    def active(self, *, step: bool = True) -> Iterator[None]:
        """Use up the gradients that the rule writes inside the context, segment by segment.

        Args:
            step: False frees the gradients without a step of the optimiser, to measure a pass.
        """
        self.rule.segment_done = self._step if step else self._free
        try:
            yield
        finally:
            self.rule.segment_done = None

    def _step(self, index: int) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.segments[index], self.clip)
        self.optimizer.step()
        self._free(index)

    def _free(self, index: int) -> None:
        for p in self.segments[index]:
            p.grad = None
