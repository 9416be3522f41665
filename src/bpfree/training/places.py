"""The things that a captured step takes for granted: where tensors lie in memory, and the values of options."""

from collections.abc import Callable, Hashable, Iterable
from operator import is_, itemgetter
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


class Places:
    """The parameters, buffers and options of a net, a rule and an optimiser, as they were when this object was made.

    The look at them, before each step, takes about a microsecond for each module.

    Args:
        modules: the net and the rule.
        optimizer: its learning rates may change.
        others: returns further values that must stay equal.

    Attributes:
        parameters: of all modules, each once.
    """

    def __init__(
        self, modules: Iterable[nn.Module], optimizer: Optimizer, others: Callable[[], Hashable] = tuple
    ) -> None:
        every = [m for module in modules for m in module.modules()]
        self._objects = [
            table
            for m in every
            for each in (m._parameters, m._buffers, m._modules)
            if (table := _Table.of(type(m).__name__, each, lambda _, value: value is not None))
        ]
        options = [
            *((type(m).__name__, vars(m)) for m in every),
            *(("the optimizer", g) for g in optimizer.param_groups),
        ]
        self._values = [table for owner, values in options if (table := _Table.of(owner, values, _is_option))]
        self._optimizer, self._groups, self._state = optimizer, list(optimizer.param_groups), optimizer.state
        self._entries = _entries(optimizer)
        found = {id(t): t for table in self._objects for t in table.values if isinstance(t, Tensor)}
        self._tensors = list(found.values())
        self.parameters = [t for t in self._tensors if isinstance(t, nn.Parameter)]
        self._addresses = self._where()
        self._others, self._expected = others, others()

    def changed(self) -> str | None:
        """Return what is not as it was, in words; None if nothing is."""
        try:
            for table in self._objects:
                if not all(map(is_, table.get(table.entries), table.values)):
                    return f"a part of {table.owner}"
            for table in self._values:
                if table.get(table.entries) != table.values:
                    return f"an option of {table.owner}"
        except KeyError:
            return "an attribute"
        optimizer = self._optimizer
        if optimizer.state is not self._state or len(optimizer.param_groups) != len(self._groups):
            return "the state of the optimizer"
        if not all(map(is_, optimizer.param_groups, self._groups)):
            return "a group of the optimizer"
        if self._where() != self._addresses:
            return "the memory or requires_grad of a parameter"
        return None if self._others() == self._expected else "an option of the trainer"

    def grown(self) -> str | None:
        """Return what of the optimiser's state is new, in words; None if nothing is. It takes longer than `changed`."""
        return None if _entries(self._optimizer) == self._entries else "the state of the optimizer"

    def _where(self) -> list[Any]:
        return [*map(Tensor.data_ptr, self._tensors), *(p.requires_grad for p in self.parameters)]


class _Table:
    """Some entries of a dictionary, and a function that reads them fast."""

    def __init__(self, owner: str, entries: dict[str, Any], names: list[str]) -> None:
        self.owner, self.entries = owner, entries
        # Of one name itemgetter returns the value alone, and of two a tuple.
        self.get = itemgetter(*names, names[0])
        self.values = self.get(entries)

    @classmethod
    def of(cls, owner: str, entries: dict[str, Any], wanted: Callable[[str, Any], bool]) -> "_Table | None":
        names = [name for name, value in entries.items() if wanted(name, value)]
        return cls(owner, entries, names) if names else None


def _is_option(name: str, value: Any) -> bool:
    """Return True for a plain value that is to stay the same. A learning rate may change."""
    if isinstance(value, tuple):
        return all(_is_option("", each) for each in value)
    return name != "lr" and (value is None or isinstance(value, bool | int | float | str))


def _entries(optimizer: Optimizer) -> dict[tuple[int, str], int]:
    """Return the identity of each value of the optimiser's state."""
    return {(id(p), name): id(value) for p, values in optimizer.state.items() for name, value in values.items()}
