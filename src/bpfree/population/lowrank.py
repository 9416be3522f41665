"""The evaluator for low-rank noise, which runs several members as one batch and shares the product with W.

    x (W + sigma A B^T)^T = x W^T + sigma (x B) A^T

x W^T is one large product for all members, and the rest is thin. Up to the first layer with noise all members have the
same x, so there x W^T is computed once for all of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.inputs import Inputs, count
from bpfree.noise import counts
from bpfree.population.behaviour import PLAIN, Behaviour
from bpfree.population.evaluators import Evaluator, Judge
from bpfree.population.first_layer import convolve, thin_obstacle, thin_products
from bpfree.population.generation import Chunk, Generation
from bpfree.population.passes import passes
from bpfree.population.perturbation import Dense, Factored


class LowRankEvaluator(Evaluator):
    """An evaluator that runs n members at once, with their samples side by side in one batch [n B, ...].

    The trainable parameters of the net must belong to Linear, Conv2d and batch-norm layers. All other layers must treat
    each sample independently.

    Args:
        members: n, the number of members that run at once.
        behaviour: the behaviour of the net in forward passes, see `Behaviour`.
    """

    def __init__(self, members: int, behaviour: Behaviour = PLAIN) -> None:
        self.members = members
        self.behaviour = behaviour

    @staticmethod
    def obstacle(net: nn.Module) -> str | None:
        """The reason why the evaluator cannot run a net; None if it can.

        Args:
            net: any net.
        """
        for name, module in net.named_modules():
            own = [p for p in module.parameters(recurse=False) if p.requires_grad]
            # Exact types: a subclass may compute something else. A replaced `forward` may do so, too.
            if own and (type(module) not in _MEMBERWISE or "forward" in vars(module)):
                return f"{name or 'the net'} is a {type(module).__name__} with its own parameters"
            named = {key for key, p in module.named_parameters(recurse=False) if p.requires_grad}
            if others := named - {"weight", "bias"}:
                return f"{name} computes its weight from other parameters ({', '.join(sorted(others))})"
            if own and (obstacle := thin_obstacle(module)):
                return f"{name} {obstacle}"
        owners = [id(p) for module in net.modules() for p in module.parameters(recurse=False)]
        if len(owners) != len(set(owners)):
            return "layers share parameters"
        return None

    def __call__(self, net: nn.Module, x: Inputs, judge: Judge, generation: Generation) -> tuple[Tensor, Tensor]:
        """Run all members and judge their outputs; see `Evaluator`."""
        outs: list[Tensor] = []
        scores: list[Tensor] = []
        samples = count(x)
        with passes(net, [x], generation.noise, self.behaviour) as run:
            for chunk in generation.chunks(self.members):
                with _memberwise(net, samples, chunk, generation):
                    out = run()
                out = out.view(len(chunk.places), samples, *out.shape[1:])
                outs = outs or [out[0].clone()]  # a copy, so that the outputs of the other members are freed
                scores.append(self._judged(out, judge))
        return torch.cat(scores), outs[0]

    @staticmethod
    def _judged(out: Tensor, judge: Judge) -> Tensor:
        try:
            # One set of launches for all members. This matters on a GPU, since the loss of a member is a small
            # computation.
            return torch.func.vmap(judge)(out)
        except (RuntimeError, TypeError, ValueError):  # vmap cannot run a score that leaves torch, as .item() does
            return torch.stack([judge(one) for one in out])


class _Noise:
    """The noise of a chunk on one parameter, with a row for each member, times sign and sigma.

    Sign and sigma go into A alone, so that both members of a mirrored pair use the same B.
    """

    def __init__(self, sample: Dense | Factored, chunk: Chunk, scale: float | Tensor, like: Tensor) -> None:
        _, self.places, signs = chunk.layout.on(like)
        factors = signs * scale
        values = sample.a if isinstance(sample, Factored) else sample.values
        self.values = values[self.places] * factors.view(-1, *[1] * (values.dim() - 1))  # A [n, O, r], or E [n, O]
        self.b = sample.b if isinstance(sample, Factored) else None  # [K, I, r]


@contextmanager
def _memberwise(net: nn.Module, samples: int, chunk: Chunk, generation: Generation) -> Iterator[None]:
    """Let layers with trainable parameters treat a batch [n B, ...] member by member inside the block."""
    noise = {
        id(p): _Noise(sample, chunk, generation.sigma, p)  # type: ignore[arg-type]
        for p, sample in zip(generation.parameters, chunk.samples, strict=True)
    }
    changed = []
    try:
        for module in net.modules():
            own = {name: noise[id(p)] for name, p in module.named_parameters(recurse=False) if id(p) in noise}
            if own:
                run = _MEMBERWISE[type(module)]
                layer = partial(run, module, len(chunk.places), samples, own.get("weight"), own.get("bias"))
                # An attribute of the instance hides the method of the class. Hooks still run, because `__call__` stays.
                module.forward = partial(_called, layer)
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _called(layer: Callable[[Tensor], Tensor], *args: Tensor, **named: Tensor) -> Tensor:
    """The layer's output, whether its input is passed by position or by keyword."""
    return layer(*args, *named.values())


def _linear(layer: nn.Linear, n: int, samples: int, weight: _Noise | None, bias: _Noise | None, x: Tensor) -> Tensor:
    """A Linear layer of n members: [n B, ..., O].

    x is [n B, ..., I], or [B, ..., I] before the first layer with noise, where all members share it.
    """
    out = F.linear(x, layer.weight, layer.bias)  # [n B, ..., O], or [B, ..., O] if shared
    # For n = 1 both forms are the same, and this is True; the shared form is right then, too.
    shared = len(x) == samples
    base = out.view(1, -1, out.shape[-1]).expand(n, -1, -1) if shared else out.view(n, -1, out.shape[-1])
    # The noise on weight and bias is one batched product: the bias is one more column of A, against a column of ones.
    thin, wide = [], []
    if weight is not None:
        assert weight.b is not None
        if shared:
            thin.append(thin_products(layer, weight.b, x)[weight.places].flatten(1, -2))
        else:
            thin.append(torch.bmm(x.reshape(n, -1, x.shape[-1]), weight.b[weight.places]))  # [n, B.., r]
        wide.append(weight.values)
    if bias is not None:
        thin.append(base.new_ones(1, 1, 1).expand(n, base.shape[1], 1))
        wide.append(bias.values.unsqueeze(2))
    # x W^T + c + [x B, 1] [sigma A, sigma e]^T, where e is the noise on the bias c.
    perturbed = torch.baddbmm(base, torch.cat(thin, 2), torch.cat(wide, 2).transpose(1, 2))
    return perturbed.view(n * samples, *out.shape[1:])


def _conv2d(layer: nn.Conv2d, n: int, samples: int, weight: _Noise | None, bias: _Noise | None, x: Tensor) -> Tensor:
    """A convolution of n members: [n B, O, H', W'] for x [n B, I, H, W], or [B, I, H, W] that all members share."""
    out = nn.Conv2d.forward(layer, x)  # the method of the class; layer.forward is this function now
    shared = len(x) == samples
    base = out.unsqueeze(0) if shared else out.view(n, samples, *out.shape[1:])
    if weight is not None:
        assert weight.b is not None
        if shared:
            thin = thin_products(layer, weight.b, x)[weight.places]
        else:
            thin = (_thin_at_once if counts(x.device) else _thin_one_by_one)(layer, n, samples, weight, x)
        for rank in range(thin.shape[2]):  # [n, B, 1, H, W] times [n, 1, O, 1, 1]
            base = torch.addcmul(base, thin[:, :, rank : rank + 1], weight.values[:, None, :, rank, None, None])
    if bias is not None:
        base = base + bias.values[:, None, :, None, None]
    return base.expand(n, *base.shape[1:]).flatten(0, 1)


def _thin_one_by_one(layer: nn.Conv2d, n: int, samples: int, weight: _Noise, x: Tensor) -> Tensor:
    """Convolve the samples of each member [n B, I, H, W] with its own r filters: [n, B, r, H', W']."""
    assert weight.b is not None
    filters = weight.b.transpose(1, 2).reshape(len(weight.b), -1, *layer.weight.shape[1:])
    by_member = x.view(n, samples, *x.shape[1:])
    # A convolution applies one set of filters to its whole batch.
    return torch.stack([convolve(layer, h, filters[p]) for h, p in zip(by_member, weight.places, strict=True)])


def _thin_at_once(layer: nn.Conv2d, n: int, samples: int, weight: _Noise, x: Tensor) -> Tensor:
    """Do what `_thin_one_by_one` does, in a number of launches that does not depend on n.

    A product over the channels comes first, with a map for each place in the filter. A convolution with ones, which all
    members share, then moves each map to its place and adds them.
    """
    assert weight.b is not None
    _, i, height, width = layer.weight.shape
    rank, taps = weight.b.shape[2], height * width
    # [K, I h w, r] -> [n, I, r h w], and x as [n, B H W, I], which is a view if channels lie last.
    b = weight.b.unflatten(1, (i, taps)).transpose(2, 3).flatten(2)[weight.places]  # type: ignore[no-untyped-call]
    maps = torch.bmm(x.movedim(1, 3).reshape(n, -1, i), b)
    maps = maps.view(n * samples, *x.shape[2:], rank * taps).movedim(3, 1)
    ones = torch.eye(taps, dtype=maps.dtype, device=x.device).view(taps, height, width).repeat(rank, 1, 1)
    thin = F.conv2d(
        maps,
        ones.unflatten(0, (rank, taps)),  # type: ignore[no-untyped-call]
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=rank,
    )
    return thin.view(n, samples, *thin.shape[1:])


def _batch_norm(
    layer: nn.BatchNorm1d | nn.BatchNorm2d, n: int, samples: int, weight: _Noise | None, bias: _Noise | None, x: Tensor
) -> Tensor:
    """Batch norm of n members: [n B, C, ...] for x [n B, C, ...], or [B, C, ...] that all members share.

    Each member has the statistics of its own samples, as if it ran alone.
    """
    h = x.unsqueeze(0) if len(x) == samples else x.view(n, samples, *x.shape[1:])  # [n or 1, B, C, ...]
    place = (-1, 1, x.shape[1], *[1] * (x.dim() - 2))
    if layer.training or layer.running_mean is None or layer.running_var is None:
        exact = h.float() if h.itemsize < 4 else h  # as torch's own batch norm does
        # Over the samples and pixels of one member. Batch norm divides by their number, not by their number minus 1.
        variance, mean = torch.var_mean(exact, (1, *range(3, h.dim())), correction=0, keepdim=True)
    else:
        variance, mean = layer.running_var.view(place), layer.running_mean.view(place)
    scale = (layer.weight if weight is None else layer.weight + weight.values).view(place)
    shift = (layer.bias if bias is None else layer.bias + bias.values).view(place)
    # w (h - mean) / sqrt(var + eps) + b = h scale + (b - mean scale): so h - mean needs no memory.
    scale = scale * torch.rsqrt(variance + layer.eps)
    return torch.addcmul(shift - mean * scale, h, scale).expand(n, *h.shape[1:]).flatten(0, 1)


_MEMBERWISE: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
