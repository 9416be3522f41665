"""A stand-in for a CUDA graph on the CPU: it records operations with their memory, and runs them without our Python."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bpfree.noise import NotCapturable
from bpfree.training.graphs import RECORDERS
from bpfree.training.watch import Watch, address

SWITCH = torch.backends.mkldnn.matmul  # the library of float32 products; see `bpfree.training.precision`


class Tape:
    """A `Recording` of the CPU."""

    captures = 0
    replays = 0

    def __init__(self, device):
        self._device = device
        self._mode = None

    @contextmanager
    def warm_up(self):
        yield

    @contextmanager
    def capture(self):
        """Record the block. Afterwards all memory that it found is as it was, as if only replays computed."""
        self._mode = _Recorder(self._device)
        type(self).captures += 1
        try:
            with self._mode:
                yield
        finally:
            self._mode.restore()

    def replay(self):
        type(self).replays += 1
        with torch.no_grad():
            for func, args, kwargs, outputs, setting in self._mode.operations:
                SWITCH.fp32_precision, before = setting, SWITCH.fp32_precision
                found = func(*args, **kwargs)
                SWITCH.fp32_precision = before
                for output, value in zip(outputs, tree_leaves(found), strict=True):
                    if output is not None:
                        output.copy_(value)


class _Recorder(TorchDispatchMode):
    def __init__(self, device):
        super().__init__()
        self._watch = Watch(device)
        self._known = {0: None}  # storages by address: alive, so that no address is used twice
        self._saved = []
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if reason := self._watch._forbidden(func, args, kwargs):
            raise NotCapturable(reason)
        # Attention has a dropout, which is 0 in all nets here.
        if torch.Tag.nondeterministic_seeded in func.tags and "scaled_dot_product" not in str(func):
            raise NotCapturable(f"{func} draws from a generator")
        # The same memory under other objects: the operations of a graph know addresses, and not requires_grad.
        args, kwargs = tree_map_only(Tensor, self._found, (args, kwargs))
        given = {address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        setting = SWITCH.fp32_precision
        out = func(*args, **kwargs)
        outputs = [
            None if not isinstance(t, Tensor) or address(t) in given | {0} else t.detach() for t in tree_leaves(out)
        ]
        for t in outputs:
            if t is not None:
                self._known[address(t)] = t.untyped_storage()
        self.operations.append((func, args, kwargs, outputs, setting))
        return out

    def _found(self, t):
        if address(t) not in self._known:
            storage = t.untyped_storage()
            self._known[address(t)] = storage
            self._saved.append((storage, storage.clone()))
        return t.detach()

    def restore(self):
        for storage, before in self._saved:
            storage.copy_(before)


def one_hot(y, classes):
    """As torch does it on a GPU. On a CPU it looks first if the labels are in range."""
    return torch.zeros(*y.shape, classes, dtype=torch.int64).scatter_(-1, y.unsqueeze(-1), 1)


@contextmanager
def taping():
    """Let trainers on the CPU capture their steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "one_hot", one_hot)
        patch.setitem(RECORDERS, "cpu", Tape)
        patch.setattr(Tape, "captures", 0)
        patch.setattr(Tape, "replays", 0)
        yield Tape
