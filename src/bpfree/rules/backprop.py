"""Backpropagation: the baseline beside which every rule is measured.

Rumelhart, Hinton, Williams 1986, https://doi.org/10.1038/323533a0

    d_l = (d_{l+1} W_{l+1}) * f'(a_l)

With `checkpoint` most activations are computed a second time instead of being kept: Chen, Xu, Zhang, Guestrin 2016,
"Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174. With `accumulate` the minibatch goes
through in parts whose gradients add up. Both are what one would do about memory before giving up backprop.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as run_twice

from bpfree.errors import check_positive
from bpfree.grad import backward
from bpfree.inputs import Inputs, apply, forward
from bpfree.local.autotaps import is_block
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task, weight_of


class Backprop(Rule):
    """End-to-end backpropagation of the task's loss.

    Args:
        checkpoint: keep only what passes between pieces of the net, and compute the rest again when it is needed; the
            gradient is the same. A Sequential of L children has some sqrt(L) pieces, another net its blocks.
        accumulate: parts that the minibatch goes through in, one after the other. The gradient is the same, unless the
            net has batch norm, whose statistics are then those of a part.
    """

    takes_soft_labels: ClassVar[bool] = True
    one_backward: ClassVar[bool] = True
    looks_inside: ClassVar[bool] = False

    def __init__(self, *, checkpoint: bool = False, accumulate: int = 1) -> None:
        super().__init__()
        check_positive("accumulate", accumulate)
        self.checkpoint = checkpoint
        self.accumulate = accumulate

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """The true gradient, by autograd."""
        outs: list[Tensor] = []
        losses: list[Tensor] = []
        parts = _parts(batch, self.accumulate)
        with noise.global_rng(batch.device):
            for part in parts:
                out = _in_pieces(net, part.x) if self.checkpoint else forward(net, part.x)
                loss = task.loss(out, part)
                if len(parts) > 1:
                    loss = loss * _share(task, part, batch)
                backward(loss)
                outs.append(out.detach())
                losses.append(loss.detach())
        if len(parts) == 1:
            return metrics_of(task, outs[0], batch, losses[0])
        return metrics_of(task, torch.cat(outs), batch, torch.stack(losses).sum())


def _share(task: Task, part: Batch, batch: Batch) -> Tensor | float:
    """The weight of a part's loss in the loss of the whole batch."""
    own, all_of_it = weight_of(task, "loss", part), weight_of(task, "loss", batch)
    return own / all_of_it if isinstance(all_of_it, int) else own / all_of_it.clamp_min(1e-12)


def _parts(batch: Batch, count: int) -> list[Batch]:
    if count == 1:
        return [batch]
    size = -(-len(batch.y) // count)
    starts = range(0, len(batch.y), size)
    return [_slice(batch, start, start + size) for start in starts]


def _slice(batch: Batch, start: int, end: int) -> Batch:
    return Batch(apply(batch.x, lambda t: t[start:end]), batch.y[start:end])


def _in_pieces(net: nn.Module, x: Inputs) -> Tensor:
    """Run the net so that only the inputs of pieces are kept. The last piece of a Sequential keeps its activations.

    The backward pass begins with the last piece, so to compute it twice would save nothing.
    """
    if not (isinstance(net, nn.Sequential) and isinstance(x, Tensor)):
        with _forgetful(_blocks(net)):
            return forward(net, x)
    children = list(net.children())
    length = -(-len(children) // max(round(len(children) ** 0.5), 1))
    pieces = [nn.Sequential(*children[start : start + length]) for start in range(0, len(children), length)]
    for piece in pieces[:-1]:
        x = run_twice(piece, x, use_reentrant=False, context_fn=partial(_contexts, piece))
    out: Tensor = pieces[-1](x)
    return out


def _blocks(net: nn.Module) -> list[nn.Module]:
    """The outermost modules with several layers. If there is only one, look inside it, and so on."""
    children = [m for child in net.children() for m in _runs_itself(child)]
    wide = [child for child in children if is_block(child)]
    return (_blocks(wide[0]) or wide) if len(wide) == 1 else wide


def _runs_itself(module: nn.Module) -> list[nn.Module]:
    """The module itself, or its children if it is a list, whose `forward` nobody calls."""
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [module]
    return [m for child in module.children() for m in _runs_itself(child)]


@contextmanager
def _forgetful(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Make modules keep only their inputs inside the context, and run again when a backward pass needs the rest."""
    own = [(block, block.__dict__.get("forward")) for block in blocks]
    for block in blocks:
        block.forward = partial(run_twice, block.forward, use_reentrant=False, context_fn=partial(_contexts, block))
    try:
        yield
    finally:
        for block, forward_ in own:
            if forward_ is None:
                del block.forward
            else:
                block.forward = forward_


def _contexts(piece: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for the first and the second run of a piece: the second finds the buffers as the first found them.

    So batch norm updates its statistics once, and spectral_norm has the same weight in both runs.
    """
    before: list[tuple[nn.Module, str, Tensor]] = []

    @contextmanager
    def first() -> Iterator[None]:
        before[:] = [(module, name, buffer.clone()) for module, name, buffer in _buffers(piece)]
        yield

    @contextmanager
    def again() -> Iterator[None]:
        now = _buffers(piece)
        for module, name, buffer in before:
            module._buffers[name] = buffer.clone()
        try:
            yield
        finally:
            for module, name, buffer in now:
                module._buffers[name] = buffer

    return first(), again()


def _buffers(piece: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    return [(m, name, b) for m in piece.modules() for name, b in m._buffers.items() if b is not None]
