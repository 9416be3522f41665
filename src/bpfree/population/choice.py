"""Which evaluator runs a net best, found out by trying."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, call, count, main_input
from bpfree.population.behaviour import PLAIN, Behaviour, choose_frozen
from bpfree.population.evaluators import Evaluator, InPlace, Judge, Loop, Vmap
from bpfree.population.first_layer import find_first_layer
from bpfree.population.generation import Generation
from bpfree.population.lowrank import LowRankEvaluator
from bpfree.population.passes import in_double, passes, split
from bpfree.population.perturbation import LowRank

EvaluatorName = Literal["loop", "lowrank", "vmap", "in_place"]
_CACHE = 8 * 2**20  # bytes: what the members of a chunk take is to stay near the processor
_SLICE = 32  # samples at least, so that parameters are not fetched for a few
_TRIED = 64  # members at most that a trial runs
_COMPARED = 4  # members of which outputs with and without shared work are compared
_WIDE = 0.1  # sigma at least, by which members are compared: what leaves out some noise is to be seen


def choose(
    asked: EvaluatorName | Literal["auto"],
    net: nn.Module,
    x: Inputs,
    judge: Judge,
    generation: Generation,
    max_memory: float | None,
    behaviour: Behaviour = PLAIN,
) -> tuple[EvaluatorName, Evaluator]:
    """The evaluator that was asked for, or the fastest one.

    Args:
        asked: its name, or "auto" to time those that can run the net, each on one generation after another to warm up.
        net, x, judge, generation: what will be run, the net in the mode in which members run.
        max_memory: MiB that the members of a chunk, or the samples of a slice, may take together.
        behaviour: what `study` found out about the net.

    Raises:
        UserError: the one that was asked for cannot run the net.
    """
    memory = _CACHE if max_memory is None else max_memory * 2**20
    largest = largest_output(net, x)
    written = sum(p.numel() * p.element_size() for p in generation.parameters)
    trial = replace(generation, members=generation.members[:_TRIED])
    behaviour = _with_frozen_parts(behaviour, net, x, trial)
    samples = _slice(net, x, memory / (2 * largest / count(x)), 1 if max_memory else _SLICE, trial, behaviour)
    first = find_first_layer(net, x, generation, memory) if isinstance(generation.perturbation, LowRank) else None
    if first and not _alike(Loop(None, first, behaviour), net, x, judge, trial):  # it uses the weight elsewhere, too
        first = None
    makers: dict[EvaluatorName, Callable[[], Evaluator]] = {
        "loop": lambda: Loop(samples, first, behaviour),
        "lowrank": lambda: LowRankEvaluator(_fitting(memory, 2 * largest), behaviour),
        "vmap": lambda: Vmap(_fitting(memory, 2 * largest + 3 * written), behaviour),  # noise, and noise times sigma
        "in_place": lambda: InPlace(samples, behaviour),
    }
    if asked != "auto":
        obstacle = _obstacle(asked, makers[asked](), net, x, judge, trial)
        if obstacle:
            raise UserError(f"evaluator: found {asked}, but {obstacle}. Allowed: auto, loop")
        return asked, makers[asked]()
    names: list[EvaluatorName] = ["loop", "lowrank", "vmap"]
    able = [name for name in names if not _obstacle(name, makers[name](), net, x, judge, trial)]
    seconds = {name: _seconds(makers[name](), net, x, judge, trial) for name in able}
    best = min(able, key=lambda name: seconds[name])
    return best, makers[best]()


@torch.no_grad()
def largest_output(net: nn.Module, x: Inputs) -> int:
    """Bytes of the largest output of a layer with trainable parameters, for one member.

    Args:
        net: in the mode in which members run.
        x: [B, ...], what one member runs on.
    """
    most = 1

    def note(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal most
        if isinstance(out, Tensor):
            most = max(most, out.numel() * out.element_size())

    layers = (m for m in net.modules() if any(p.requires_grad for p in m.parameters(recurse=False)))
    hooks = [module.register_forward_hook(note) for module in layers]
    try:
        call(net, x)
    finally:
        for hook in hooks:
            hook.remove()
    return most


def _with_frozen_parts(behaviour: Behaviour, net: nn.Module, x: Inputs, trial: Generation) -> Behaviour:
    few = replace(_widened(trial), members=trial.members[:_COMPARED])

    def of_members(behaviour: Behaviour) -> Tensor:
        return Loop(None, None, behaviour)(net, x, Tensor.clone, few)[0]

    return choose_frozen(net, behaviour, of_members)


def _fitting(memory: float, member: int) -> int:
    """How many members of so many bytes to run at once: a power of two."""
    return 1 << max(int(memory // member), 1).bit_length() - 1


def _slice(
    net: nn.Module, x: Inputs, fitting: float, least: int, trial: Generation, behaviour: Behaviour
) -> int | None:
    """How many samples to run at once, as a power of two; None for all of them, which a GPU likes best.

    Args:
        net, x: in the mode in which members run, and what one of them runs on.
        fitting: how many samples the memory holds.
        least: how many it must be.
        trial: a generation, of which the random numbers of a pass are taken.
        behaviour: what is known of the net.
    """
    samples = max(_fitting(fitting, 1), least)
    if samples >= count(x) or (main_input(x).device.type != "cpu" and least > 1):
        return None
    if behaviour.draws:  # a slice draws other numbers than the whole
        return None

    def of(size: int | None, x: Inputs) -> Tensor:
        with torch.no_grad(), passes(net, split(x, size), trial.noise, behaviour) as run:
            return run()

    whole, parts = of(None, x), of(samples, x)
    if whole.shape != parts.shape or not torch.allclose(whole, parts, rtol=0.02, atol=0.01, equal_nan=True):
        return None
    return samples if _close_in_double(net, x, lambda x: of(None, x), lambda x: of(samples, x)) else None


def _obstacle(
    name: EvaluatorName, evaluator: Evaluator, net: nn.Module, x: Inputs, judge: Judge, trial: Generation
) -> str | None:
    """Why the evaluator cannot run the net as the loop does."""
    if name in ("loop", "in_place"):
        return None
    if name == "lowrank" and not isinstance(trial.perturbation, LowRank):
        return "the noise has no low rank, as that of eggroll has"
    if name == "lowrank" and (obstacle := LowRankEvaluator.obstacle(net)):
        return obstacle
    if name == "lowrank" and evaluator.behaviour.draws:
        return "the net draws random numbers, which would differ from member to member"
    try:
        alike = _alike(evaluator, net, x, judge, trial)
    except UserError:  # of the score, which the loop does not accept either
        raise
    except Exception as error:  # the net runs as it is written, so this way of running it is what fails
        return f"the net does not run under it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return None if alike else "the net gives other outputs when members are run side by side"


def _alike(evaluator: Evaluator, net: nn.Module, x: Inputs, judge: Judge, trial: Generation) -> bool:
    """Whether the evaluator gives the scores of the plain loop, and in double precision the same outputs."""
    trial = _widened(trial)
    plain = Loop(behaviour=replace(evaluator.behaviour, frozen=()))
    expected, _ = plain(net, x, judge, trial)
    found, _ = evaluator(net, x, judge, trial)
    if not torch.allclose(found, expected, rtol=0.02, atol=0.01, equal_nan=True):
        return False
    few = replace(trial, members=trial.members[:_COMPARED])
    if not isinstance(few.scale, float):
        few = replace(few, scale=[sigma.double() for sigma in few.scale])

    def of(evaluator: Evaluator, x: Inputs) -> Tensor:
        return evaluator(net, x, Tensor.clone, few)[0]

    return _close_in_double(net, x, lambda x: of(plain, x), lambda x: of(evaluator, x))


def _close_in_double(
    net: nn.Module, x: Inputs, plain: Callable[[Inputs], Tensor], other: Callable[[Inputs], Tensor]
) -> bool:
    """Whether two ways to run the net are the same in double precision, where rounding hides nothing.

    It is taken for granted where the net does not run in double precision.
    """
    with in_double(net):
        x = apply(x, lambda t: t.double() if t.is_floating_point() else t)
        try:
            expected = plain(x)
        except (RuntimeError, TypeError):
            return True
        found = other(x)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True)


def _widened(trial: Generation) -> Generation:
    return replace(trial, scale=max(trial.scale, _WIDE)) if isinstance(trial.scale, float) else trial


def _seconds(evaluator: Evaluator, net: nn.Module, x: Inputs, judge: Judge, trial: Generation) -> float:
    """The shorter of two runs; `_obstacle` has warmed it up."""
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        evaluator(net, x, judge, trial)[0].sum().item()  # waits for the device
        spent.append(time.perf_counter() - start)
    return min(spent)
