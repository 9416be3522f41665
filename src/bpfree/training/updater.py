"""The second half of a step: gradients are clipped, the optimiser moves the parameters, the schedule goes on."""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bpfree.grad import trainable
from bpfree.local.channels_last import keep_gradients_in_order
from bpfree.local.fused_update import FusedUpdate
from bpfree.rule import Rule
from bpfree.spec import Spec
from bpfree.training.compute import Update
from bpfree.training.graphs import RECORDERS
from bpfree.training.optim import add_groups, make_optimizer, make_schedule
from bpfree.training.rates import DeviceRates


class Updater:
    """Moves the parameters of a net and of the rule bound to it.

    Args:
        net: the net.
        rule: bound to the net, so that its own parameters exist.
        optimizer: a name, a spec, or an optimiser of the user's, to which the rule's parameters are added.
        schedule: a name or a spec.
        clip: largest gradient norm of each unit; None for no clipping.
        update: "together" or "fused".
        total_steps: steps of the whole training, for the schedule; None if unknown.
        owned: the ids of the parameters that this process trains; None for all.

    Attributes:
        optimizer: the optimiser.
        schedule: the schedule of its learning rate.
        numbers: the number of each of its parameters among those of all processes.
        all_numbers: for each group of parameters, the numbers in all processes.

    Raises:
        UserError: a name or option is unknown, or the rule cannot train with "fused".
    """

    def __init__(
        self,
        net: nn.Module,
        rule: Rule,
        optimizer: torch.optim.Optimizer | Spec,
        schedule: Spec,
        clip: float | None,
        update: Update,
        total_steps: int | None,
        owned: set[int] | None = None,
    ) -> None:
        groups = rule.optimizer_groups(net)
        self.all_numbers, self.numbers = _numbered(groups, owned)
        if owned is not None:
            groups = [{**group, "params": [p for p in group["params"] if id(p) in owned]} for group in groups]
        if isinstance(optimizer, torch.optim.Optimizer):
            self.optimizer = optimizer
            add_groups(self.optimizer, groups, trainable(rule))
        else:
            self.optimizer = make_optimizer(optimizer, groups)
        keep_gradients_in_order(self.optimizer)  # fused optimisers read gradients in the memory order of weights
        self.schedule = make_schedule(schedule, self.optimizer, total_steps)
        self.clip = clip
        self._units = rule.units(net)  # asked once: for local rules it walks over all segments
        self._fused = FusedUpdate(net, rule, self.optimizer, clip) if update == "fused" else None
        optimized = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        self._not_optimized = [p for p in (*net.parameters(), *rule.parameters()) if id(p) not in optimized]
        self._distributed = isinstance(net, DistributedDataParallel)
        device = next(p for group in self.optimizer.param_groups for p in group["params"]).device
        # Eager steps need them, too, to have the bits of captured ones: the rates are rounded to float32.
        self._rates = DeviceRates(self.optimizer, device) if device.type in RECORDERS else None

    @property
    def not_capturable(self) -> str | None:
        """Why the update cannot be part of a captured step; None if it can."""
        if self._fused is not None:
            return "update: fused moves the parameters within the gradients"
        if self._distributed:
            return "DistributedDataParallel averages gradients by itself"
        return None if self._rates is None else self._rates.reason

    def zero_grad(self) -> None:
        """Clear all gradients of net and rule."""
        self.optimizer.zero_grad()
        # The optimiser of a user may leave parameters out. Their gradients would add up from step to step, and they
        # count in the norm when a unit is clipped.
        for p in self._not_optimized:
            p.grad = None

    def during_gradients(self, *, learn: bool = True) -> AbstractContextManager[None]:
        """Return the context in which the rule writes gradients. With "fused" each segment steps and is freed there.

        Args:
            learn: False to free gradients without a step, to measure memory.
        """
        return nullcontext() if self._fused is None else self._active(self._fused, learn)

    @contextmanager
    def _active(self, fused: FusedUpdate, learn: bool) -> Iterator[None]:
        with self._with_rates(), fused.active(step=learn):
            yield

    def _with_rates(self) -> AbstractContextManager[None]:
        return nullcontext() if self._rates is None else self._rates.active()

    def prepare(self) -> None:
        """Copy to the device what the next step reads there."""
        if self._rates is not None:
            self._rates.write()

    def step(self) -> None:
        """Clip the gradients of each unit, and step the optimiser."""
        if self.clip is not None:
            for unit in self._units:
                nn.utils.clip_grad_norm_(unit, self.clip)
        # With "fused" no gradient is left, and the optimiser passes by all parameters; but hooks of it still run.
        with self._with_rates():
            self.optimizer.step()

    def advance(self) -> None:
        """Step the schedule: the next step has another learning rate."""
        self.schedule.step()


def _numbered(groups: list[dict[str, Any]], owned: set[int] | None) -> tuple[list[list[int]], list[int]]:
    """The numbers of all parameters by group, and those of the owned ones, as torch's optimisers count them."""
    count = itertools.count()
    numbers = [[(next(count), id(p)) for p in group["params"]] for group in groups]
    own = [number for group in numbers for number, key in group if owned is None or key in owned]
    return [[number for number, _ in group] for group in numbers], own
