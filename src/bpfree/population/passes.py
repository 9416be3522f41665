"""Forward passes of members; each one begins with the same state and the same random numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.inputs import Inputs, apply, count, forward, main_input, tensors_of
from bpfree.noise import Noise
from bpfree.population.behaviour import PLAIN, Behaviour, State


class Passes:
    """A function that runs a net on the same minibatch again and again; `passes` makes it.

    Args:
        net: the net.
        slices: the minibatch, in parts.
        numbers: makes a context in which a pass draws its random numbers; None if it does not draw any.
        state: the state to put back before each pass; None if a pass does not change any.
    """

    def __init__(
        self,
        net: nn.Module,
        slices: Sequence[Inputs],
        numbers: Callable[[], AbstractContextManager[None]] | None,
        state: State | None,
    ) -> None:
        self.net = net
        self.slices = slices
        self._numbers = numbers
        self._state = state

    def begin(self) -> AbstractContextManager[None]:
        """Put back the state of the net, and return a context in which the random numbers begin anew."""
        if self._state is not None:
            self._state.put_back()
        return _NOTHING if self._numbers is None else self._numbers()

    def __call__(self) -> Tensor:
        """Return the outputs [B, ...] of a pass from this state and with these random numbers."""
        with self.begin():
            return outputs(self.net, self.slices)


_NOTHING = nullcontext()


@contextmanager
def passes(net: nn.Module, slices: Sequence[Inputs], noise: Noise, behaviour: Behaviour = PLAIN) -> Iterator[Passes]:
    """Prepare the passes of a generation inside the block; they depend only on weights, minibatch and key.

    Args:
        net: the net, in the mode in which members run.
        slices: the minibatch, in parts.
        noise: the key of the step.
        behaviour: the behaviour of the net.

    Yields:
        The function that runs a pass.
    """
    numbers, state = None, None
    with ExitStack() as stack:
        if behaviour.draws:
            numbers = stack.enter_context(noise.fold("forward").repeated_rng(main_input(slices[0]).device))
        if behaviour.frozen:
            stack.enter_context(parts_run_once(behaviour.frozen, slices))
        if behaviour.stateful:
            state = State(behaviour.stateful)
            stack.callback(state.put_back)
        yield Passes(net, slices, numbers, state)


def outputs(net: nn.Module, slices: Sequence[Inputs]) -> Tensor:
    """Return the outputs [B, ...] for a minibatch that comes in slices.

    Args:
        net: the net.
        slices: the minibatch, in parts.
    """
    return forward(net, slices[0]) if len(slices) == 1 else torch.cat([forward(net, part) for part in slices])


def split(x: Inputs, size: int | None) -> list[Inputs]:
    """Split a minibatch into slices.

    Args:
        x: the minibatch.
        size: the number of samples of a slice; None for a single slice.
    """
    if size is None or size >= count(x):
        return [x]
    return [apply(x, partial(_part, start=start, size=size)) for start in range(0, count(x), size)]


def _part(tensor: Tensor, start: int, size: int) -> Tensor:
    return tensor[start : start + size]


@contextmanager
def parts_run_once(parts: Sequence[nn.Module], inputs: Sequence[Inputs]) -> Iterator[None]:
    """Keep the outputs of frozen parts inside the block, as long as their input does not depend on the member.

    Such an input is an input of the net, or the kept output of another part.

    Args:
        parts: submodules without trainable parameters that give the same output for the same tensor.
        inputs: the tensors that the net is called with. They are recognised by identity, not by content.
    """
    # The tensors are values here and not only ids: a tensor that is freed could pass its id on to another one.
    untouched = {id(t): t for x in inputs for t in tensors_of(x)}

    def once(module: nn.Module, known: dict[int, tuple[Tensor, int, int]], *args: Any, **options: Any) -> Any:
        # The input may depend on the member, or it cannot be recognised: then the part runs as usual.
        if options or len(args) != 1 or id(args[0]) not in untouched:
            return type(module).forward(module, *args, **options)
        (h,) = args
        out, *versions = known.get(id(h), (None, -1, -1))
        if out is None or versions != [out._version, h._version]:  # other versions: one was changed in place since then
            untouched.pop(id(out), None)
            # A part such as ReLU(inplace=True) would overwrite h, which the next member needs: it gets a copy.
            changes_h = any(getattr(part, "inplace", False) for part in module.modules())
            out = type(module).forward(module, h.clone() if changes_h else h)
            if isinstance(out, Tensor):
                untouched[id(out)] = out
                known[id(h)] = (out, out._version, h._version)
        return out

    for part in parts:
        # A dict for each part: two parts may get the same input and give different outputs.
        part.forward = partial(once, part, {})
    try:
        yield
    finally:
        for part in parts:
            del part.forward


@contextmanager
def in_double(net: nn.Module) -> Iterator[None]:
    """Hold floating-point parameters and buffers of a net in double precision inside the block.

    Args:
        net: the net. Afterwards it has the tensors that it had before.
    """
    parameters = [(p, p.data) for p in net.parameters() if p.is_floating_point()]
    buffers = [
        (module, name, buffer)
        for module in net.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_floating_point()
    ]
    try:
        for p, data in parameters:
            # Only the data change. The parameter stays the same object, by whose id evaluators find its noise.
            p.data = data.double()
        for module, name, buffer in buffers:
            module._buffers[name] = buffer.double()
        yield
    finally:
        for p, data in parameters:
            p.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
