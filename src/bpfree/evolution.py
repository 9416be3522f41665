"""Black-box search without a net: ask for parameters to try, and tell the search how good they were."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive
from bpfree.local.channels_last import keep_gradients_in_order
from bpfree.noise import Noise
from bpfree.population.generation import Generation
from bpfree.population.rule import BlackBoxRule
from bpfree.rules import RULES
from bpfree.spec import Spec, build
from bpfree.tasks import Classify
from bpfree.training.optim import make_optimizer, make_schedule
from bpfree.types import Batch

Tree = Any
"""A tensor, or a list, tuple or mapping of trees."""

ADAM: Spec = {"name": "adam", "lr": 0.01}


class Members(Sequence[Tree]):
    """The members of a generation as a sequence; each one is computed when it is read.

    Args:
        generation: the members.
        like: a tree with the structure that members shall have.
    """

    def __init__(self, generation: Generation, like: Tree) -> None:
        self._generation = generation
        self._like = like

    def __len__(self) -> int:
        return len(self._generation.members)

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree:
        if isinstance(index, slice):
            return Members(replace(self._generation, members=self._generation.members[index]), self._like)
        key, sign = self._generation.members[index]
        tensors = []
        drawn = self._generation.draw_one(key)
        for i, (p, (sample, place)) in enumerate(zip(self._generation.parameters, drawn, strict=True)):
            # A contiguous tensor of its own: the caller may keep it, change it or view it in another shape.
            member = torch.empty_like(p, memory_format=torch.contiguous_format, requires_grad=False)
            sample.add(p.detach(), place, sign * self._generation.scale_of(i), member)
            tensors.append(member)
        return rebuild(self._like, iter(tensors))


class Evolution:
    """A black-box search that its caller runs step by step: `ask` for members, and `tell` their scores.

    Args:
        params: the start: a tensor, or a list, tuple or mapping of tensors.
        rule: a name or spec of a black-box rule ("es", "eggroll", "snes", "pgpe", "recombine", "spsa"), or a rule.
        optimizer: a name or spec from `bpfree.training.optim.OPTIMIZERS`.
        schedule: the schedule of the learning rate. Every schedule but "constant" needs `steps`.
        steps: the number of generations.
        maximize: True if high scores are good.
        seed: the seed of the noise.

    Attributes:
        step: the number of the present generation, from 0.

    Raises:
        UserError: the rule is not a black-box rule, or `params` has no tensors, or tensors that are not floats.

    Example:
        >>> evolution = Evolution(torch.zeros(3), "snes", {"name": "sgd", "lr": 1.0})
        >>> for _ in range(200):
        ...     evolution.tell([float((member - 1).square().sum()) for member in evolution.ask()])
        >>> evolution.params.round(decimals=1)
        tensor([1., 1., 1.])
    """

    def __init__(
        self,
        params: Tree,
        rule: BlackBoxRule | Spec = "es",
        optimizer: Spec = ADAM,
        *,
        schedule: Spec = "constant",
        steps: int | None = None,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        made = rule if isinstance(rule, nn.Module) else build(RULES, rule, section="rule", outside=BlackBoxRule)
        if not isinstance(made, BlackBoxRule):
            able = [name for name, kind in RULES.items() if issubclass(kind, BlackBoxRule)]
            raise UserError(f"rule: found {type(made).__name__}, allowed: {', '.join(able)}")
        tensors = list(leaves(params))
        if not tensors or not all(t.is_floating_point() for t in tensors):
            raise UserError("params: allowed: at least one tensor, and all of floating-point types")
        self.rule = made
        self.maximize = maximize
        self.noise = Noise(seed)
        self.step = 0
        self._like = params
        # The rule needs a net, a task and a batch to bind to. A list of parameters is enough: it is never run.
        self._net = nn.ParameterList(t.detach().clone() for t in tensors)
        self.rule.bind(self._net, Classify(2), Batch(tensors[0], torch.zeros(1, dtype=torch.int64)))
        self.rule.to(tensors[0].device)
        self.optimizer = make_optimizer(optimizer, self.rule.optimizer_groups(self._net))
        keep_gradients_in_order(self.optimizer)
        self.schedule = make_schedule(schedule, self.optimizer, steps)

    @property
    def params(self) -> Tree:
        """The present result of the search: the centre of the population."""
        return rebuild(self._like, (p.detach().clone() for p in self._net))

    def _generation(self) -> Generation:
        # The noise depends on seed and step alone, so `tell` draws the members of `ask` again and nothing is stored.
        return self.rule.generation(list(self._net), self.noise.at(self.step))

    @torch.no_grad()
    def ask(self) -> Members:
        """Return the members of this generation, shaped like the params; the same members until `tell` is called."""
        return Members(self._generation(), self._like)

    @torch.no_grad()
    def tell(self, scores: Sequence[float | Tensor] | Tensor) -> None:
        """Take a step by the scores of all members.

        Args:
            scores: one number for each member, in the order of `ask`. NaN counts as the worst score.

        Raises:
            UserError: there are more or fewer scores than members.
        """
        like = self._net[0]
        values = scores if isinstance(scores, Tensor) else torch.stack([torch.as_tensor(s) for s in scores])
        # At least float32: scores in half precision would tie, and ranks need differences.
        values = values.detach().to(like.device, torch.promote_types(like.dtype, torch.float32))
        if values.shape != (len(self.rule.members),):
            raise UserError(
                f"scores: found {list(values.shape)}, allowed: one of each of {len(self.rule.members)} members"
            )
        # Rules add to `.grad`, so it must be empty.
        self.optimizer.zero_grad()
        self.rule.learn(self._generation(), -values if self.maximize else values)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1


@dataclass
class Evolved:
    """The result of `evolve`.

    Attributes:
        params: the centre of the last generation.
        score: fn(params).
        history: for each generation, the mean over the finite scores of its members.
    """

    params: Tree
    score: float
    history: list[float] = field(default_factory=list)


def evolve(
    fn: Callable[[Tree], float | Tensor],
    params: Tree,
    *,
    rule: BlackBoxRule | Spec = "es",
    steps: int = 200,
    optimizer: Spec = ADAM,
    schedule: Spec = "constant",
    maximize: bool = False,
    seed: int = 0,
    callback: Callable[[int, float], object] | None = None,
) -> Evolved:
    """Minimise or maximise any function of tensors, without derivatives.

    Args:
        fn: the function from params to a number.
        params: the start: a tensor, or a list, tuple or mapping of tensors.
        rule, optimizer, schedule, maximize, seed: see `Evolution`.
        steps: the number of generations.
        callback: a function that is called after each generation with its number, from 1, and its mean score.

    Returns:
        The last centre of the population, its score, and the history.

    Example:
        >>> start = {"a": torch.zeros(3), "b": torch.ones(1)}
        >>> result = evolve(lambda p: (p["a"] - 2).square().sum() + p["b"] ** 2, start)
        >>> result.score < 0.1
        True
    """
    check_positive("steps", steps)
    evolution = Evolution(params, rule, optimizer, schedule=schedule, steps=steps, maximize=maximize, seed=seed)
    history: list[float] = []
    with torch.no_grad():
        for step in range(1, steps + 1):
            scores = torch.tensor([float(fn(member)) for member in evolution.ask()])
            evolution.tell(scores)
            finite = scores[scores.isfinite()]
            # A member that failed says nothing about the others: its inf or NaN would hide their mean.
            history.append(float(finite.mean()) if len(finite) else float("nan"))
            if callback is not None:
                callback(step, history[-1])
        params = evolution.params
        return Evolved(params, float(fn(params)), history)


def leaves(tree: Tree) -> Iterator[Tensor]:
    """Yield the tensors of a tree, in order.

    Args:
        tree: a tensor, or a list, tuple or mapping of trees.

    Raises:
        UserError: the tree has something else in it.
    """
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for inner in tree.values():
            yield from leaves(inner)
    elif isinstance(tree, list | tuple):
        for inner in tree:
            yield from leaves(inner)
    else:
        raise UserError(
            f"params: found {type(tree).__name__}, allowed: tensors, and lists, tuples and mappings of them"
        )


def rebuild(like: Tree, tensors: Iterator[Tensor]) -> Tree:
    """Return a tree with the structure of another one and new tensors.

    Args:
        like: the tree whose structure is copied.
        tensors: the new tensors, in the order of `leaves`.
    """
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, Mapping):
        # A plain dict, because the constructors of other mappings differ, such as that of defaultdict.
        return {key: rebuild(inner, tensors) for key, inner in like.items()}
    parts = [rebuild(inner, tensors) for inner in like]
    # The constructor of a named tuple takes its parts one by one, and not as a sequence.
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
