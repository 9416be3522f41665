"""Evaluators: ways to run the members of a generation. All give the same scores up to rounding."""

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
from bpfree.population.members import Layout
from bpfree.population.passes import passes, split
from bpfree.population.perturbation import Sample

Judge = Callable[[Tensor], Tensor]
"""Outputs [B, D] -> a score, 0-d, to be minimised."""


class Evaluator(ABC):
    """A way to run members.

    The forward pass of each member begins with the same buffers, attributes and random numbers. The numbers of torch's
    global generators come from the key of the step.

    Attributes:
        behaviour: the behaviour of the net in forward passes, see `Behaviour`.
    """

    behaviour: Behaviour

    @abstractmethod
    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """Run all members and judge their outputs.

        Afterwards the parameters are what they were before, to the bit, also after an exception or Ctrl-C. Only
        `InPlace` differs.

        Args:
            net: the net, in the mode in which members run.
            x: the minibatch.
            judge: outputs [B, D] -> a score, 0-d, to be minimised.
            generation: the members.

        Returns:
            The scores [P], and the outputs [B, D] of the first member.
        """


class Scores:
    """The scores of members that run one by one, joined into a few tensors.

    The allocator of a GPU gives at least 512 bytes to each tensor. With one tensor for each of many members, the scores
    would take more memory than a small net.
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
        """Return all scores in order, [P, ...]."""
        return torch.cat([*self._joined, *([torch.stack(self._single)] if self._single else [])])


_TOGETHER = 64  # the number of scores that are joined into one tensor


class Loop(Evaluator):
    """An evaluator that runs one member after the other.

    The parameters become base + noise in place, and are copied back from `base` at the end, so nothing is rounded.
    Memory: that of inference, a copy of the parameters, and the noise of one block of keys.

    Args:
        samples: the number of samples of the minibatch that run at once. Default: all. A few stay in a processor's
            cache.
        first: the layer whose products members with low-rank noise share; see `find_first_layer`.
        behaviour: the behaviour of the net in forward passes, see `Behaviour`.
    """

    def __init__(
        self, samples: int | None = None, first: nn.Module | None = None, behaviour: Behaviour = PLAIN
    ) -> None:
        self.samples = samples
        self.first = first
        self.behaviour = behaviour

    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """Run all members and judge their outputs; see `Evaluator`."""
        parameters = generation.parameters
        # Each member starts from this copy. Noise that is added and subtracted would leave a rounding error behind,
        # which would grow from member to member.
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
                                # `.data` leaves the version number of p as it is. `State` relies on it: a new version
                                # means that a forward pass wrote to a tensor.
                                sample.add(b, place, sign * generation.scale_of(i), p.data)
                        torch.clear_autocast_cache()  # it keeps casts of weights and does not see them change
                        out = run()
                        outs = outs or [out]
                        scores.append(judge(out))
                    del chunk, sample  # free this noise before the next block is drawn
        finally:
            for p, b in zip(parameters, base, strict=True):
                p.data.copy_(b)
            torch.clear_autocast_cache()
        return scores.stacked(), outs[0]


class InPlace(Evaluator):
    """An evaluator like `Loop` without a copy of the parameters: noise is added and subtracted tensor by tensor.

    Memory: that of inference and the noise on one parameter. Afterwards the parameters are the same up to rounding.

    Reference: MeZO, Malladi et al. 2023, https://arxiv.org/abs/2305.17333, Algorithm 1.

    Args:
        samples, behaviour: see `Loop`.
    """

    def __init__(self, samples: int | None = None, behaviour: Behaviour = PLAIN) -> None:
        self.samples = samples
        self.behaviour = behaviour

    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """Run all members and judge their outputs; see `Evaluator`."""
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
        # `draw_one` is lazy: only the noise on one parameter is in memory.
        for i, (p, (sample, place)) in enumerate(zip(generation.parameters, generation.draw_one(key), strict=True)):
            sample.add(p.data, place, sign * generation.scale_of(i), p.data)
        torch.clear_autocast_cache()


class Vmap(Evaluator):
    """An evaluator that runs n members at once with `torch.func.vmap`, their parameters written out side by side.

    On a GPU its time is that of memory. For each parameter of a member 4 numbers are written or read: E twice, which a
    mirrored pair shares, so it counts half; theta + sigma E twice; and for the gradient E twice again. The floor of
    noise that is written out is the 2 for theta + sigma E. To save the other 2, products would have to draw their own
    noise, by a kernel for each kind of layer.

    Args:
        members: n, the number of members that run at once.
        behaviour: the behaviour of the net in forward passes, see `Behaviour`.
    """

    def __init__(self, members: int, behaviour: Behaviour = PLAIN) -> None:
        self.members = members
        self.behaviour = behaviour

    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """Run all members and judge their outputs; see `Evaluator`."""
        # functional_call takes parameters by name, and the generation has them as tensors.
        names = {id(p): name for name, p in net.named_parameters()}
        keys = [names[id(p)] for p in generation.parameters]

        args, named = ((), x) if isinstance(x, dict) else (tensors_of(x), {})

        def member(*parameters: Tensor) -> tuple[Tensor, Tensor]:
            own = dict(zip(keys, parameters, strict=True))
            out = scores_of(torch.func.functional_call(net, own, args, named))
            return judge(out), out

        outs: list[Tensor] = []
        scores: list[Tensor] = []
        # Frozen parts need no help here: vmap runs a part whose input does not depend on the member only once.
        with passes(net, [x], generation.noise, replace(self.behaviour, frozen=())) as run:
            for chunk in generation.chunks(self.members):
                written = [
                    _written(p, sample, chunk.layout, generation.scale_of(i))
                    for i, (p, sample) in enumerate(zip(generation.parameters, chunk.samples, strict=True))
                ]
                # The members of a chunk share one pass, so state and random numbers begin once for all of them.
                with run.begin(), warnings.catch_warnings():
                    # vmap runs some operations one by one and says so; whether that is too slow, `choose` has timed.
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    own, out = torch.func.vmap(member, randomness="same")(*written)
                # A copy: a view would keep the outputs of all n members in memory.
                outs = outs or [out[0].clone()]
                scores.append(own)
        return torch.cat(scores), outs[0]


def _written(p: Tensor, sample: Sample, layout: Layout, scale: float | Tensor) -> Tensor:
    """The parameters [n, *shape] of n members, written out."""
    _, places, signs = layout.on(p)
    # Sign and sigma, [n, 1, ...], or [n, *shape] if each element has its own sigma.
    every = signs.view(-1, *[1] * p.dim()) * scale
    if layout.each:  # then E is read for the m members of a key without a copy for each: [K, 1, *shape], [K, m, ...]
        every = every.view(-1, layout.each, *every.shape[1:])
        return torch.addcmul(p.detach(), sample.dense().unsqueeze(1), every).flatten(0, 1)
    return torch.addcmul(p.detach(), sample.dense()[places], every)
