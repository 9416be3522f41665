"""How the members of a generation are run. All evaluators give the same scores, but for rounding."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.population.first_layer import sharing
from bpfree.population.generation import Generation
from bpfree.population.perturbation import Sample

Judge = Callable[[Tensor], Tensor]
"""Outputs [B, D] -> a score, 0-d, to be minimised."""


class Evaluator(ABC):
    """A way to run members."""

    @abstractmethod
    def __call__(self, net: nn.Module, x: Tensor, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """Scores [P], and the outputs [B, D] of the first member.

        The parameters come out bit for bit as they went in, an exception or Ctrl-C included, unless said otherwise.
        """


class Loop(Evaluator):
    """One member after the other, its noise added to the parameters in place and taken off again exactly.

    Memory: that of inference, a copy of the parameters, and the noise of one block of keys.

    Args:
        samples: how many of the minibatch to run at once; all, by default. Fewer stay in a processor's cache.
        first: the layer whose products members with low-rank noise share; see `find_first_layer`.
    """

    def __init__(self, samples: int | None = None, first: nn.Module | None = None) -> None:
        self.samples = samples
        self.first = first

    def __call__(self, net: nn.Module, x: Tensor, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """See the base class."""
        parameters = generation.parameters
        base = [p.detach().clone() for p in parameters]
        slices = torch.split(x, self.samples or len(x))
        outs: list[Tensor] = []
        scores: list[Tensor] = []
        try:
            with frozen_parts_run_once(net, slices), sharing(self.first, generation, len(slices)) as first:
                for chunk in generation.blocks():
                    if first:
                        first.begin(chunk)
                    for place, sign in zip(chunk.places, chunk.signs, strict=True):
                        if first:
                            first.move(place, sign)
                        for i, (p, b, sample) in enumerate(zip(parameters, base, chunk.samples, strict=True)):
                            if not first or i not in first.owned:
                                sample.add(b, place, sign * generation.scale_of(i), p.data)
                        torch.clear_autocast_cache()  # it keeps casts of weights and does not see them change
                        out = outputs(net, slices)
                        outs = outs or [out]
                        scores.append(judge(out))
                    del chunk, sample  # before the next are drawn
        finally:
            for p, b in zip(parameters, base, strict=True):
                p.data.copy_(b)
            torch.clear_autocast_cache()
        return torch.stack(scores), outs[0]


class InPlace(Evaluator):
    """As `Loop`, without a copy of the parameters: noise is added and subtracted, one tensor at a time (MeZO, Alg. 1).

    Memory: that of inference and the noise on one parameter. The parameters come back but for rounding.

    Args:
        samples: see `Loop`.
    """

    def __init__(self, samples: int | None = None) -> None:
        self.samples = samples

    def __call__(self, net: nn.Module, x: Tensor, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """See the class."""
        slices = torch.split(x, self.samples or len(x))
        outs: list[Tensor] = []
        scores: list[Tensor] = []
        with frozen_parts_run_once(net, slices):
            for member in generation.members:
                self._move(generation, member.key, member.sign)
                try:
                    out = outputs(net, slices)
                finally:
                    self._move(generation, member.key, -member.sign)
                outs = outs or [out]
                scores.append(judge(out))
        return torch.stack(scores), outs[0]

    @staticmethod
    def _move(generation: Generation, key: int, sign: int) -> None:
        block, place = divmod(key, generation.perturbation.together)
        for i, (p, sample) in enumerate(zip(generation.parameters, generation.draw(block), strict=True)):
            sample.add(p.data, place, sign * generation.scale_of(i), p.data)
        torch.clear_autocast_cache()


class Vmap(Evaluator):
    """Several members at once, their parameters written out side by side (`torch.func.vmap`).

    Args:
        members: how many at once.
    """

    def __init__(self, members: int) -> None:
        self.members = members

    def __call__(self, net: nn.Module, x: Tensor, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """See the base class."""
        names = {id(p): name for name, p in net.named_parameters()}
        keys = [names[id(p)] for p in generation.parameters]

        def run(*parameters: Tensor) -> tuple[Tensor, Tensor]:
            out = torch.func.functional_call(net, dict(zip(keys, parameters, strict=True)), (x,))
            return judge(out), out

        outs: list[Tensor] = []
        scores: list[Tensor] = []
        for samples, places, signs in generation.chunks(self.members):
            written = [
                _written(p, sample, places, signs, generation.scale_of(i))
                for i, (p, sample) in enumerate(zip(generation.parameters, samples, strict=True))
            ]
            with warnings.catch_warnings():  # of operations that vmap runs one by one, which the choice has timed
                warnings.filterwarnings("ignore", "There is a performance drop")
                own, out = torch.func.vmap(run)(*written)
            outs = outs or [out[0].clone()]
            scores.append(own)
        return torch.cat(scores), outs[0]


def _written(p: Tensor, sample: Sample, places: list[int], signs: list[int], scale: float | Tensor) -> Tensor:
    """Parameters [n, *shape] of n members."""
    every = torch.tensor(signs, dtype=p.dtype, device=p.device).view(-1, *[1] * p.dim()) * scale
    return torch.addcmul(p.detach(), sample.dense()[torch.tensor(places, device=p.device)], every)


def outputs(net: nn.Module, slices: Sequence[Tensor]) -> Tensor:
    """Outputs [B, D] of a minibatch [B, ...] that comes in slices."""
    return net(slices[0]) if len(slices) == 1 else torch.cat([net(part) for part in slices])


@contextmanager
def frozen_parts_run_once(net: nn.Module, inputs: Sequence[Tensor]) -> Iterator[None]:
    """Within it, what no trainable parameter has touched on its way from an input is computed once and remembered.

    A submodule without trainable parameters gives the same for the same tensor, so a frozen beginning of the net runs
    for the first member only. The inputs are the very tensors that the net is called with.
    """
    if all(p.requires_grad for p in net.parameters()):
        yield
        return
    untouched = {id(x): x for x in inputs}  # alive, so that no other tensor gets the id

    def once(module: nn.Module, known: dict[int, tuple[Tensor, int, int]], *args: Any, **options: Any) -> Any:
        if options or len(args) != 1 or id(args[0]) not in untouched:
            return type(module).forward(module, *args, **options)
        (h,) = args
        out, *versions = known.get(id(h), (None, -1, -1))
        if out is None or versions != [out._version, h._version]:  # or somebody has changed one in place since
            untouched.pop(id(out), None)
            changes_h = any(getattr(part, "inplace", False) for part in module.modules())
            out = type(module).forward(module, h.clone() if changes_h else h)
            if isinstance(out, Tensor):
                untouched[id(out)] = out
                known[id(h)] = (out, out._version, h._version)
        return out

    parts = list(_frozen_parts(net))
    for part in parts:
        part.forward = partial(once, part, {})
    try:
        yield
    finally:
        for part in parts:
            del part.forward


def _frozen_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The largest submodules without trainable parameters."""
    if not any(p.requires_grad for p in module.parameters()):
        if "forward" not in vars(module):
            yield module
        return
    for child in module.children():
        yield from _frozen_parts(child)
