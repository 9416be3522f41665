"""Choose the evaluator for a net by trying the evaluators on it.

On a CPU the fastest one is measured. On other devices the net and the noise decide, so that the choice, and with it the
rounding of a run, does not depend on what else the device does.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.inputs import Inputs, apply, call, count, main_input
from bpfree.memory import free_memory
from bpfree.noise import counts
from bpfree.population.behaviour import PLAIN, Behaviour, choose_frozen
from bpfree.population.evaluators import Evaluator, InPlace, Judge, Loop, Vmap
from bpfree.population.first_layer import find_first_layer
from bpfree.population.generation import Generation
from bpfree.population.lowrank import LowRankEvaluator
from bpfree.population.passes import in_double, passes, split
from bpfree.population.perturbation import LowRank

EvaluatorName = Literal["loop", "lowrank", "vmap", "in_place"]
_CACHE = 8 * 2**20  # bytes that the members of a chunk may take together, so that they stay in a processor's cache
# The same on other devices, if it is free. A chunk of so many bytes takes far longer than its launches, so a larger one
# would gain nothing. Where more than four times as much is free, the chunks do not depend on what else runs.
_CHUNK = 2**30
_SLICE = 32  # the least number of samples in a slice; for fewer, fetching the parameters would cost more than computing
_TRIED = 64  # the largest number of members in a trial
_COMPARED = 4  # the number of members whose outputs with and without shared work are compared
_WIDE = (
    0.1  # the least sigma in comparisons: with a small sigma an evaluator that forgets some noise would go unnoticed
)


def choose(
    asked: EvaluatorName | Literal["auto"],
    net: nn.Module,
    x: Inputs,
    judge: Judge,
    generation: Generation,
    max_memory: float | None,
    behaviour: Behaviour = PLAIN,
) -> tuple[EvaluatorName, Evaluator]:
    """Return the evaluator of a given name, or the best evaluator that can run the net.

    Args:
        asked: the name, or "auto": on a CPU the fastest of all evaluators that can run the net, where each runs once to
            warm up before; on other devices the first in the order "lowrank", "vmap", "loop" that can run it, without
            "vmap" if the parameters of two members do not fit.
        net: the net, in the mode in which members run.
        x, judge, generation: what the evaluator will be called with, see `Evaluator`.
        max_memory: MiB that the members of a chunk, or the samples of a slice, may take together. Default: what fits in
            a processor's cache; on other devices a quarter of the free memory, at most 1 GiB.
        behaviour: the behaviour of the net, from `study`.

    Returns:
        The name of the evaluator, and the evaluator.

    Raises:
        UserError: the named evaluator cannot run the net.
    """
    trial = replace(generation, members=generation.members[:_TRIED])
    behaviour = _with_frozen_parts(behaviour, net, x, trial)
    makers = _makers(net, x, judge, generation, max_memory, behaviour)
    if asked != "auto":
        obstacle = _obstacle(asked, makers[asked](), net, x, judge, trial)
        if obstacle:
            raise UserError(f"evaluator: found {asked}, but {obstacle}. Allowed: auto, loop")
        return asked, makers[asked]()
    # "in_place" is not tried, since it rounds the parameters. The loop has no obstacle, so there is always one.
    able = (name for name in _ORDER if not _obstacle(name, makers[name](), net, x, judge, trial))
    if counts(main_input(x).device):
        best = next(name for name in able if name != "vmap" or _side_by_side(makers[name]()))
    else:
        seconds = {name: _seconds(makers[name](), net, x, judge, trial) for name in list(able)}
        best = min(seconds, key=lambda name: seconds[name])
    return best, makers[best]()


_ORDER: tuple[EvaluatorName, ...] = ("lowrank", "vmap", "loop")


def _side_by_side(evaluator: Evaluator) -> bool:
    """True if the evaluator runs more than one member at once."""
    return isinstance(evaluator, Vmap | LowRankEvaluator) and evaluator.members > 1


def _room(device: torch.device) -> float:
    """The bytes that the members of a chunk may take together."""
    if not counts(device):
        return _CACHE
    free = free_memory(device)
    return _CHUNK if free is None else min(_CHUNK, free / 4)


def _makers(
    net: nn.Module,
    x: Inputs,
    judge: Judge,
    generation: Generation,
    max_memory: float | None,
    behaviour: Behaviour,
) -> dict[EvaluatorName, Callable[[], Evaluator]]:
    """Functions that make the evaluators, sized for this net, by name; see `choose` for the arguments."""
    memory = _room(main_input(x).device) if max_memory is None else max_memory * 2**20
    largest = largest_output(net, x)
    written = sum(p.numel() * p.element_size() for p in generation.parameters)
    trial = replace(generation, members=generation.members[:_TRIED])
    samples = _slice(net, x, memory / (2 * largest / count(x)), 1 if max_memory else _SLICE, trial, behaviour)
    first = find_first_layer(net, x, generation, memory) if isinstance(generation.perturbation, LowRank) else None
    if first and not _alike(Loop(None, first, behaviour), net, x, judge, trial):
        first = None  # the net uses the weight of this layer at another place, too
    return {
        "loop": lambda: Loop(samples, first, behaviour),
        "lowrank": lambda: LowRankEvaluator(_fitting(memory, 2 * largest), behaviour),
        "vmap": lambda: Vmap(_fitting(memory, 2 * largest + 3 * written), behaviour),  # E, sigma E, theta + sigma E
        "in_place": lambda: InPlace(samples, behaviour),
    }


@torch.no_grad()
def largest_output(net: nn.Module, x: Inputs) -> int:
    """Return the bytes of the largest output of a layer with trainable parameters, for one member.

    Args:
        net: the net, in the mode in which members run.
        x: the minibatch [B, ...].
    """
    # 1 and not 0: a net whose layers return no single tensor would give a division by 0 later.
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
    # The noise is widened: with a tiny sigma a part whose input depends on the member could round to equal outputs.
    few = replace(_widened(trial), members=trial.members[:_COMPARED])

    def of_members(behaviour: Behaviour) -> Tensor:
        return Loop(None, None, behaviour)(net, x, Tensor.clone, few)[0]

    return choose_frozen(net, behaviour, of_members)


def _fitting(memory: float, member: int) -> int:
    """The number of members of so many bytes that run at once, a power of two and at least 1."""
    # Python subtracts before it shifts: 1 << (n.bit_length() - 1) is the largest power of two that is at most n.
    return 1 << max(int(memory // member), 1).bit_length() - 1


def _slice(
    net: nn.Module, x: Inputs, fitting: float, least: int, trial: Generation, behaviour: Behaviour
) -> int | None:
    """The number of samples that run at once, a power of two; None for all of them, which is fastest on a GPU.

    Args:
        net: the net, in the mode in which members run.
        x: the minibatch.
        fitting: the number of samples that fit in the memory.
        least: the least number of samples.
        trial: a generation; the passes here draw its random numbers.
        behaviour: the behaviour of the net.
    """
    samples = max(_fitting(fitting, 1), least)
    if samples >= count(x) or (counts(main_input(x).device) and least > 1):
        return None
    if behaviour.draws:  # a slice would draw other random numbers than the whole minibatch
        return None

    def outputs(size: int | None, x: Inputs) -> Tensor:
        with torch.no_grad(), passes(net, split(x, size), trial.noise, behaviour) as run:
            return run()

    # A net that mixes its samples, as batch norm does, gives other outputs in slices. The first look is cheap and
    # coarse; only in double precision can a small difference not be rounding.
    whole, parts = outputs(None, x), outputs(samples, x)
    if whole.shape != parts.shape or not torch.allclose(whole, parts, rtol=0.02, atol=0.01, equal_nan=True):
        return None
    return samples if _close_in_double(net, x, lambda x: outputs(None, x), lambda x: outputs(samples, x)) else None


def _obstacle(
    name: EvaluatorName, evaluator: Evaluator, net: nn.Module, x: Inputs, judge: Judge, trial: Generation
) -> str | None:
    """The reason why the evaluator cannot run the net as the loop does; None if it can."""
    # Both run the net as it is, one member at a time, so there is nothing that could fail.
    if name in ("loop", "in_place"):
        return None
    if name == "lowrank" and not isinstance(trial.perturbation, LowRank):
        return "the noise does not have a low rank. Only eggroll's noise has one"
    if name == "lowrank" and (obstacle := LowRankEvaluator.obstacle(net)):
        return obstacle
    if name == "lowrank" and evaluator.behaviour.draws:
        return "the net draws random numbers, which would differ from member to member"
    try:
        alike = _alike(evaluator, net, x, judge, trial)
    except UserError:  # the score is wrong, and the loop would refuse it too
        raise
    except Exception as error:  # any type: the net may raise anything, and the loop has run it without an error
        return f"the net does not run under it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return None if alike else "the net gives other outputs when members are run side by side"


def _alike(evaluator: Evaluator, net: nn.Module, x: Inputs, judge: Judge, trial: Generation) -> bool:
    """True if the evaluator gives the scores of the plain loop, and in double precision also its outputs."""
    trial = _widened(trial)
    # The reference shares no work at all: an error in shared work would otherwise be on both sides and cancel out.
    plain = Loop(behaviour=replace(evaluator.behaviour, frozen=()))
    expected, _ = plain(net, x, judge, trial)
    scores, _ = evaluator(net, x, judge, trial)
    if not torch.allclose(scores, expected, rtol=0.02, atol=0.01, equal_nan=True):
        return False
    few = replace(trial, members=trial.members[:_COMPARED])
    if not isinstance(few.scale, float | Tensor):
        few = replace(few, scale=[sigma.double() for sigma in few.scale])

    def outputs(evaluator: Evaluator, x: Inputs) -> Tensor:
        return evaluator(net, x, Tensor.clone, few)[0]  # with clone as the judge, the "scores" are the outputs

    return _close_in_double(net, x, lambda x: outputs(plain, x), lambda x: outputs(evaluator, x))


def _close_in_double(
    net: nn.Module, x: Inputs, plain: Callable[[Inputs], Tensor], other: Callable[[Inputs], Tensor]
) -> bool:
    """True if two ways to run the net agree in double precision, where rounding does not hide a difference.

    Also True if the net cannot run in double precision.
    """
    with in_double(net):
        x = apply(x, lambda t: t.double() if t.is_floating_point() else t)
        try:
            expected = plain(x)
        # Such a net fixes a type in `forward`, or uses an operation without a version for doubles. The comparison in
        # its own precision, which was made before, must do.
        except (RuntimeError, TypeError):
            return True
        out = other(x)
    return out.shape == expected.shape and torch.allclose(out, expected, rtol=1e-6, atol=1e-7, equal_nan=True)


def _widened(trial: Generation) -> Generation:
    if isinstance(trial.scale, Tensor):
        return replace(trial, scale=trial.scale.clamp_min(_WIDE))
    return replace(trial, scale=max(trial.scale, _WIDE)) if isinstance(trial.scale, float) else trial


def _seconds(evaluator: Evaluator, net: nn.Module, x: Inputs, judge: Judge, trial: Generation) -> float:
    """The seconds of the faster of two runs; `_obstacle` has run the evaluator before, so it is warm."""
    # The faster run counts, because another process may have slowed the other one down.
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        evaluator(net, x, judge, trial)[0].sum().item()  # item() waits until the device is done
        spent.append(time.perf_counter() - start)
    return min(spent)
