"""Backpropagation: the baseline beside which every rule is measured.

Rumelhart, Hinton, Williams 1986, https://doi.org/10.1038/323533a0

    d_l = (d_{l+1} W_{l+1}) * f'(a_l)

With `checkpoint` most activations are computed a second time instead of being kept: Chen, Xu, Zhang, Guestrin 2016,
"Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174. With `accumulate` the minibatch goes
through in parts whose gradients add up. Both are what one would do about memory before giving up backprop.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as run_twice

from bpfree.cut import unchanged_buffers
from bpfree.errors import UserError, check_positive
from bpfree.grad import backward
from bpfree.inputs import apply, forward
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.types import Batch, Scalars, Task, weight_of


class Backprop(Rule):
    """End-to-end backpropagation of the task's loss.

    Args:
        checkpoint: keep only what passes between some sqrt(L) pieces of the net's L children, and compute the rest
            again when it is needed. For a Sequential; the gradient is the same.
        accumulate: parts that the minibatch goes through in, one after the other. The gradient is the same, unless the
            net has batch norm, whose statistics are then those of a part.
    """

    takes_soft_labels: ClassVar[bool] = True

    def __init__(self, *, checkpoint: bool = False, accumulate: int = 1) -> None:
        super().__init__()
        check_positive("accumulate", accumulate)
        self.checkpoint = checkpoint
        self.accumulate = accumulate

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """The true gradient, by autograd."""
        outs: list[Tensor] = []
        losses: list[Tensor] = []
        with noise.global_rng(batch.device):
            for part in _parts(batch, self.accumulate):
                out = _in_pieces(net, part.tensor) if self.checkpoint else forward(net, part.x)
                loss = task.loss(out, part) * _share(task, part, batch)
                backward(loss)
                outs.append(out.detach())
                losses.append(loss.detach())
        return task.metrics(torch.cat(outs), batch) | {"loss": torch.stack(losses).sum()}


def _share(task: Task, part: Batch, batch: Batch) -> Tensor | float:
    """How much the loss of a part counts in that of the batch."""
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


def _in_pieces(net: nn.Module, x: Tensor) -> Tensor:
    """The output, with the activations within all pieces but the last forgotten.

    Raises:
        UserError: nobody knows the pieces of this net.
    """
    if not isinstance(net, nn.Sequential):
        raise UserError(
            f"checkpoint: found true for a {type(net).__name__}, allowed: an nn.Sequential, which can be cut in pieces"
        )
    children = list(net.children())
    length = -(-len(children) // max(round(len(children) ** 0.5), 1))
    pieces = [nn.Sequential(*children[start : start + length]) for start in range(0, len(children), length)]
    for piece in pieces[:-1]:
        x = run_twice(piece, x, use_reentrant=False, context_fn=partial(_contexts, piece))
    out: Tensor = pieces[-1](x)
    return out


def _contexts(piece: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first run and of the second, in which batch norm has seen the batch already."""
    return nullcontext(), unchanged_buffers(piece)
