"""Options of an optimiser in memory of the device, where a captured step reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class DeviceRates:
    """Gives an optimiser its learning rates as tensors, during its steps only.

    A number would become a part of the captured step, and the schedule would have no effect. Outside of the steps rates
    stay numbers: for schedules, checkpoints, and users who change them. Where the optimiser has the option
    `capturable`, it is on during its steps.

    Args:
        optimizer: the optimiser.
        device: of its parameters.

    Attributes:
        reason: why a step of this optimiser cannot be captured; None if it can.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._device = device
        self._rates: list[Tensor] = []
        self._written: list[Any] = []
        self._capturable = device.type == "cuda" and any("capturable" in group for group in optimizer.param_groups)
        able = all(self._takes_tensor(group) for group in optimizer.param_groups)
        kind = type(optimizer).__name__
        self.reason = None if able else f"the optimizer {kind} reads its learning rate on the host; fused=True may help"
        if self._capturable:
            optimizer._warned_capturable_if_run_uncaptured = True  # eager steps are part of the plan
            optimizer.register_load_state_dict_post_hook(_count_on_device)
            _count_on_device(optimizer)

    def _takes_tensor(self, group: dict[str, Any]) -> bool:
        by_torch = bool(group.get("fused")) or (self._capturable and "capturable" in group)
        return by_torch or getattr(self._optimizer, "takes_tensor_rate", False)

    def write(self) -> None:
        """Copy the rates to the device, those that changed."""
        groups = self._optimizer.param_groups
        while len(self._rates) < len(groups):  # the user may add groups
            # float32 is what fused optimisers on CUDA read.
            self._rates.append(torch.zeros((), dtype=torch.float32, device=self._device))
            self._written.append(None)
        for place, group in enumerate(groups):
            rate = group["lr"]
            if rate != self._written[place] and not isinstance(rate, Tensor):
                self._rates[place].fill_(rate)
                self._written[place] = rate

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the optimiser step inside the block with the rates that `write` copied."""
        if self.reason is not None:
            yield
            return
        groups = self._optimizer.param_groups
        before = [(group["lr"], group.get("capturable")) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            if not isinstance(group["lr"], Tensor):  # the user's own tensor stays
                group["lr"] = rate
            if self._capturable and "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group["lr"] = rate
                if capturable is not None:
                    group["capturable"] = capturable


def _count_on_device(optimizer: Optimizer) -> None:
    """Move the counts of steps to the device of their parameters; torch loads them to the CPU."""
    for p, values in optimizer.state.items():
        if isinstance(values.get("step"), Tensor):
            values["step"] = values["step"].to(p.device)
