"""How the members of a generation are run. All evaluators give the same scores, but for rounding."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bpfree.inputs import Inputs, scores_of, tensors_of
from bpfree.population.behaviour import PLAIN, Behaviour
from bpfree.population.first_layer import sharing
from bpfree.population.generation import Generation
from bpfree.population.passes import passes, split
from bpfree.population.perturbation import Sample

Judge = Callable[[Tensor], Tensor]
"""Outputs [B, D] -> a score, 0-d, to be minimised."""


class Evaluator(ABC):
    """A way to run members.

    Each member's forward pass begins with the same buffers, attributes and random numbers: those of torch's global
    generators come from the key of the step.
    """

    behaviour: Behaviour

    @abstractmethod
    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """Scores [P], and the outputs [B, D] of the first member.

        The parameters come out bit for bit as they went in, an exception or Ctrl-C included, unless said otherwise.
        """


class Scores:
    """The scores of members that run one by one, in a few tensors.

    A GPU's allocator gives 512 bytes to each tensor, however small, so that a tensor for each of many members would
    take more memory than a small net.
    """

    def __init__(self) -> None:
        self._single: list[Tensor] = []
        self._joined: list[Tensor] = []

    def append(self, score: Tensor) -> None:
        """Add the score of the next member."""
        self._single.append(score)
        if len(self._single) == _TOGETHER:
            self._joined.append(torch.stack(self._single))
            self._single.clear()

    def stacked(self) -> Tensor:
        """All scores in order, [P, ...]."""
        return torch.cat([*self._joined, *([torch.stack(self._single)] if self._single else [])])


_TOGETHER = 64  # scores that become one tensor


class Loop(Evaluator):
    """One member after the other, its noise added to the parameters in place and taken off again exactly.

    Memory: that of inference, a copy of the parameters, and the noise of one block of keys.

    Args:
        samples: how many of the minibatch to run at once; all, by default. Fewer stay in a processor's cache.
        first: the layer whose products members with low-rank noise share; see `find_first_layer`.
        behaviour: what is known of the net.
    """

    def __init__(
        self, samples: int | None = None, first: nn.Module | None = None, behaviour: Behaviour = PLAIN
    ) -> None:
        self.samples = samples
        self.first = first
        self.behaviour = behaviour

    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """See the base class."""
        parameters = generation.parameters
        base = [p.detach().clone() for p in parameters]
        slices = split(x, self.samples)
        outs: list[Tensor] = []
        scores = Scores()
        try:
            with (
                passes(net, slices, generation.noise, self.behaviour) as run,
                sharing(self.first, generation, len(slices)) as first,
            ):
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
                        out = run()
                        outs = outs or [out]
                        scores.append(judge(out))
                    del chunk, sample  # before the next are drawn
        finally:
            for p, b in zip(parameters, base, strict=True):
                p.data.copy_(b)
            torch.clear_autocast_cache()
        return scores.stacked(), outs[0]


class InPlace(Evaluator):
    """As `Loop`, without a copy of the parameters: noise is added and subtracted, one tensor at a time (MeZO, Alg. 1).

    Memory: that of inference and the noise on one parameter. The parameters come back but for rounding.

    Args:
        samples, behaviour: see `Loop`.
    """

    def __init__(self, samples: int | None = None, behaviour: Behaviour = PLAIN) -> None:
        self.samples = samples
        self.behaviour = behaviour

    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """See the class."""
        slices = split(x, self.samples)
        outs: list[Tensor] = []
        scores = Scores()
        with passes(net, slices, generation.noise, self.behaviour) as run:
            for member in generation.members:
                self._move(generation, member.key, member.sign)
                try:
                    out = run()
                finally:
                    self._move(generation, member.key, -member.sign)
                outs = outs or [out]
                scores.append(judge(out))
        return scores.stacked(), outs[0]

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
        behaviour: what is known of the net.
    """

    def __init__(self, members: int, behaviour: Behaviour = PLAIN) -> None:
        self.members = members
        self.behaviour = behaviour

    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """See the base class."""
        names = {id(p): name for name, p in net.named_parameters()}
        keys = [names[id(p)] for p in generation.parameters]

        args, named = ((), x) if isinstance(x, dict) else (tensors_of(x), {})

        def member(*parameters: Tensor) -> tuple[Tensor, Tensor]:
            own = dict(zip(keys, parameters, strict=True))
            out = scores_of(torch.func.functional_call(net, own, args, named))
            return judge(out), out

        outs: list[Tensor] = []
        scores: list[Tensor] = []
        with passes(net, [x], generation.noise, replace(self.behaviour, frozen=())) as run:
            for samples, places, signs in generation.chunks(self.members):
                written = [
                    _written(p, sample, places, signs, generation.scale_of(i))
                    for i, (p, sample) in enumerate(zip(generation.parameters, samples, strict=True))
                ]
                run.begin()
                with warnings.catch_warnings():  # of operations that vmap runs one by one, which the choice has timed
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    own, out = torch.func.vmap(member, randomness="same")(*written)
                outs = outs or [out[0].clone()]
                scores.append(own)
        return torch.cat(scores), outs[0]


def _written(p: Tensor, sample: Sample, places: list[int], signs: list[int], scale: float | Tensor) -> Tensor:
    """Parameters [n, *shape] of n members."""
    every = torch.tensor(signs, dtype=p.dtype, device=p.device).view(-1, *[1] * p.dim()) * scale
    return torch.addcmul(p.detach(), sample.dense()[torch.tensor(places, device=p.device)], every)
