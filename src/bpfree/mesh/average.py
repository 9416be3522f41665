"""The average of `.grad` over processes, part by part, while the rule still computes other parts."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, distributed, nn

from bpfree.errors import UserError
from bpfree.mesh.group import Group

_BUCKET = 2**20  # bytes that are sent together at least; a message has a fixed cost
_checked: WeakSet[nn.Module] = WeakSet()  # modules whose gradients all processes have


def average_gradients(*modules: nn.Module, weight: float | None = None) -> None:
    """Average the gradients of modules over all processes, for your own training loop.

    Call it between `rule.gradients` and `optimizer.step`, in all processes. Without several processes it does nothing.

    Args:
        modules: the net and the rule, such as `average_gradients(net, rule)`.
        weight: the part of the whole batch that the samples of this process are. Default: one part in n.

    Raises:
        UserError: processes have gradients of different parameters.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    group = Group()
    if any(module not in _checked for module in modules):
        refuse_different(group, (named for module in modules for named in module.named_parameters()))
        _checked.update(modules)
    average = Average(group, 1 / group.size if weight is None else weight)
    average.start(p for module in modules for p in module.parameters())
    average.send()
    average.wait()


class Average:
    """The average of the gradients of one step over processes.

    Args:
        group: the processes.
        weight: what the gradients of this process are multiplied by; the sum over the processes is 1.
    """

    def __init__(self, group: Group, weight: float) -> None:
        self._group = group
        self._weight = weight
        self._begun: list[tuple[list[nn.Parameter], Tensor, Any]] = []
        self._known: set[int] = set()
        self._waiting: list[nn.Parameter] = []
        self._bytes = 0  # of the waiting ones

    def start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Send the gradients of parameters, which are complete; `finish` waits for the average.

        Args:
            parameters: those without a gradient are passed by.
        """
        for p in parameters:
            if p.grad is not None and id(p) not in self._known:
                self._known.add(id(p))
                self._waiting.append(p)
                self._bytes += p.numel() * p.itemsize
                if self._bytes >= _BUCKET:
                    self.send()

    def finish(self, parameters: Iterable[nn.Parameter], flag: bool = False) -> bool:
        """Send the gradients that are left, and wait until the average of all is in `.grad`.

        Args:
            parameters: all parameters; those that `start` got are not sent again.
            flag: something that this process tells the others.

        Returns:
            True if any process told the flag.
        """
        self.start(parameters)
        self.send()
        flags = torch.tensor([float(flag)])
        self._begun.append(([], flags, self._group.start_sum(flags)))
        self.wait()
        return bool(flags.item())

    def wait(self) -> None:
        """Wait until the average of the gradients that were sent is in `.grad`."""
        for some, flat, work in self._begun:
            self._group.wait(work)
            first = 0
            for p in some:
                assert p.grad is not None
                p.grad.copy_(flat[first : first + p.numel()].view_as(p))
                first += p.numel()
        self._begun.clear()

    def send(self) -> None:
        """Send the gradients that wait until there are enough of them for a message."""
        for kind in dict.fromkeys(p.dtype for p in self._waiting):
            some = [p for p in self._waiting if p.dtype == kind]
            flat = torch.cat([p.grad.reshape(-1) for p in some if p.grad is not None]).mul_(self._weight)
            self._begun.append((some, flat, self._group.start_sum(flat)))
        self._waiting.clear()
        self._bytes = 0


def refuse_different(group: Group, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raise UserError if the processes have gradients of different parameters: their sums would be mixed up.

    Args:
        group: the processes.
        parameters: all parameters by name.
    """
    own = [name for name, p in parameters if p.grad is not None]
    others = group.all_of(own)
    if any(each != own for each in others):
        differ = sorted(set(own) ^ set(next(each for each in others if each != own)))
        raise UserError(
            f"mesh: the parameter '{differ[0]}' has a gradient in some processes only, so gradients cannot be "
            "averaged. Use a net whose layers all run for every batch"
        )
