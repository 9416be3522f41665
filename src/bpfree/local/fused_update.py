"""Stepping a segment's parameters as soon as its gradients are there, so that those of one segment exist at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bpfree.errors import UserError
from bpfree.local.rule import LocalRule
from bpfree.rule import Rule


class FusedUpdate:
    """The weights come out as if all were stepped together: no segment reads another's parameters.

    Args:
        net: bound to the rule.
        rule: a local rule; others have no segments that learn one after the other.
        optimizer: of all parameters; those without a gradient it passes by.
        clip: largest gradient norm of a segment.

    Raises:
        UserError: the rule is no local rule.
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
        """Within it, the rule's gradients are used up segment by segment; without `step` they are only freed."""
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
