"""Black-box search for those who have no net: ask for parameters to try, tell how good they were."""

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
"""A tensor, or lists, tuples and mappings of trees."""

ADAM: Spec = {"name": "adam", "lr": 0.01}


class Members(Sequence[Tree]):
    """The members of a generation, each made when it is looked at."""

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
        block, place = divmod(key, self._generation.perturbation.together)
        moved = []
        for i, (p, sample) in enumerate(zip(self._generation.parameters, self._generation.draw(block), strict=True)):
            member = torch.empty_like(p, memory_format=torch.contiguous_format, requires_grad=False)
            sample.add(p.detach(), place, sign * self._generation.scale_of(i), member)
            moved.append(member)
        return rebuild(self._like, iter(moved))


class Evolution:
    """Ask and tell.

    Args:
        params: where to start: a tensor, or lists, tuples and mappings of tensors.
        rule: a name or spec of a black-box rule ("es", "eggroll", "snes", "pgpe", "recombine", "spsa"), or a rule.
        optimizer: a name or spec from `bpfree.training.optim.OPTIMIZERS`.
        schedule: of the learning rate; others than "constant" must know `steps`.
        steps: how many generations there will be.
        maximize: whether high scores are good.
        seed: of the noise.

    Raises:
        UserError: the rule is no black-box rule, or there is no tensor of floats among the params.

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
        found = list(leaves(params))
        if not found or not all(t.is_floating_point() for t in found):
            raise UserError("params: allowed: at least one tensor, and all of floating-point types")
        self.rule = made
        self.maximize = maximize
        self.noise = Noise(seed)
        self.step = 0
        self._like = params
        self._net = nn.ParameterList(t.detach().clone() for t in found)
        self.rule.bind(self._net, Classify(2), Batch(found[0], torch.zeros(1, dtype=torch.int64)))
        self.rule.to(found[0].device)
        self.optimizer = make_optimizer(optimizer, self.rule.optimizer_groups(self._net))
        keep_gradients_in_order(self.optimizer)
        self.schedule = make_schedule(schedule, self.optimizer, steps)

    @property
    def params(self) -> Tree:
        """Where the search is: the centre of the population."""
        return rebuild(self._like, (p.detach().clone() for p in self._net))

    def _generation(self) -> Generation:
        return self.rule.generation(list(self._net), self.noise.at(self.step))

    @torch.no_grad()
    def ask(self) -> Members:
        """The members of this generation, shaped like the params; the same on every call until `tell`."""
        return Members(self._generation(), self._like)

    @torch.no_grad()
    def tell(self, scores: Sequence[float | Tensor] | Tensor) -> None:
        """Take a step by the scores of all members, in the order of `ask`; NaN counts as the worst.

        Raises:
            UserError: there are more or fewer scores than members.
        """
        like = self._net[0]
        values = scores if isinstance(scores, Tensor) else torch.stack([torch.as_tensor(s) for s in scores])
        values = values.detach().to(like.device, torch.promote_types(like.dtype, torch.float32))
        if values.shape != (len(self.rule.members),):
            raise UserError(
                f"scores: found {list(values.shape)}, allowed: one of each of {len(self.rule.members)} members"
            )
        self.optimizer.zero_grad()
        self.rule.learn(self._generation(), -values if self.maximize else values)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1


@dataclass
class Evolved:
    """What `evolve` found.

    Attributes:
        params: the centre of the last generation.
        score: fn(params).
        history: by generation, the mean score of the members that have one.
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
    """Minimise, or maximise, any function of tensors, without derivatives.

    Args:
        fn: of params, to a number.
        params: where to start: a tensor, or lists, tuples and mappings of tensors.
        rule, optimizer, schedule, maximize, seed: see `Evolution`.
        steps: generations.
        callback: told the number of each generation, from 1, and its mean score.

    Example:
        >>> start = {"a": torch.zeros(3), "b": torch.ones(1)}
        >>> found = evolve(lambda p: (p["a"] - 2).square().sum() + p["b"] ** 2, start)
        >>> found.score < 0.1
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
            history.append(float(finite.mean()) if len(finite) else float("nan"))
            if callback is not None:
                callback(step, history[-1])
        found = evolution.params
        return Evolved(found, float(fn(found)), history)


def leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree, in order.

    Raises:
        UserError: there is something else in it.
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
    """A tree like another, of these tensors."""
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, Mapping):
        return {key: rebuild(inner, tensors) for key, inner in like.items()}
    parts = [rebuild(inner, tensors) for inner in like]
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
