"""The evaluator for low-rank noise: what the members share is computed once for all of them.

    x (W + sigma A B^T)^T = x W^T + sigma (x B) A^T

The first product is one of the whole population; the rest is thin. As long as the members have the same x, before
the first layer that differs, x W^T is computed once for them all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.inputs import Inputs, count
from bpfree.population.behaviour import PLAIN, Behaviour
from bpfree.population.evaluators import Evaluator, Judge
from bpfree.population.first_layer import convolve, thin_obstacle, thin_products
from bpfree.population.generation import Chunk, Generation
from bpfree.population.passes import passes
from bpfree.population.perturbation import Dense, Factored


class LowRankEvaluator(Evaluator):
    """Several members at once, their samples side by side in one batch [n B, ...].

    It takes nets whose trainable parameters belong to Linear, Conv2d and batch-norm layers, each sample going its own
    way through everything else.

    Args:
        members: how many at once.
        behaviour: what is known of the net.
    """

    def __init__(self, members: int, behaviour: Behaviour = PLAIN) -> None:
        self.members = members
        self.behaviour = behaviour

    @staticmethod
    def obstacle(net: nn.Module) -> str | None:
        """What keeps the evaluator from running this net; None for nothing."""
        for name, module in net.named_modules():
            own = [p for p in module.parameters(recurse=False) if p.requires_grad]
            if own and (type(module) not in _MEMBERWISE or "forward" in vars(module)):
                return f"{name or 'the net'} is a {type(module).__name__} with parameters of its own"
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
        """See the base class."""
        outs: list[Tensor] = []
        scores: list[Tensor] = []
        samples = count(x)
        with passes(net, [x], generation.noise, self.behaviour) as run:
            for chunk in generation.chunks(self.members):
                with _memberwise(net, samples, chunk, generation):
                    out = run()
                out = out.view(len(chunk.places), samples, *out.shape[1:])
                outs = outs or [out[0].clone()]
                scores.append(self._judged(out, judge))
        return torch.cat(scores), outs[0]

    @staticmethod
    def _judged(out: Tensor, judge: Judge) -> Tensor:
        try:
            return torch.func.vmap(judge)(out)
        except (RuntimeError, TypeError, ValueError):  # what is not written in torch throughout
            return torch.stack([judge(own) for own in out])


class _Noise:
    """The noise of a chunk on one parameter, member by member, with sign and scale."""

    def __init__(self, sample: Dense | Factored, chunk: Chunk, scale: float, like: Tensor) -> None:
        self.places = torch.tensor(chunk.places, device=like.device)
        factors = scale * torch.tensor(chunk.signs, device=like.device, dtype=like.dtype)
        values = sample.a if isinstance(sample, Factored) else sample.values
        self.values = values[self.places] * factors.view(-1, *[1] * (values.dim() - 1))  # A [n, O, r], or E [n, O]
        self.b = sample.b if isinstance(sample, Factored) else None  # [K, I, r]


@contextmanager
def _memberwise(net: nn.Module, samples: int, chunk: Chunk, generation: Generation) -> Iterator[None]:
    """Within it, layers with trainable parameters treat a batch [n B, ...] member by member."""
    assert isinstance(generation.scale, float)
    noise = {
        id(p): _Noise(sample, chunk, generation.scale, p)  # type: ignore[arg-type]
        for p, sample in zip(generation.parameters, chunk.samples, strict=True)
    }
    changed = []
    try:
        for module in net.modules():
            own = {name: noise[id(p)] for name, p in module.named_parameters(recurse=False) if id(p) in noise}
            if own:
                run = _MEMBERWISE[type(module)]
                layer = partial(run, module, len(chunk.places), samples, own.get("weight"), own.get("bias"))
                module.forward = partial(_called, layer)
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _called(layer: Callable[[Tensor], Tensor], *args: Tensor, **named: Tensor) -> Tensor:
    """The layer's output, whether its input comes by place or by name."""
    return layer(*args, *named.values())


def _linear(layer: nn.Linear, n: int, samples: int, weight: _Noise | None, bias: _Noise | None, x: Tensor) -> Tensor:
    """[n B, ..., O] of x [B, ..., I], which all members share, or [n B, ..., I]."""
    out = F.linear(x, layer.weight, layer.bias)
    shared = len(x) == samples
    base = out.view(1, -1, out.shape[-1]).expand(n, -1, -1) if shared else out.view(n, -1, out.shape[-1])
    thin, wide = [], []
    if weight is not None:
        assert weight.b is not None
        if shared:
            thin.append(thin_products(layer, weight.b, x)[weight.places].flatten(1, -2))
        else:
            thin.append(torch.bmm(x.reshape(n, -1, x.shape[-1]), weight.b[weight.places]))
        wide.append(weight.values)
    if bias is not None:
        thin.append(base.new_ones(1, 1, 1).expand(n, base.shape[1], 1))
        wide.append(bias.values.unsqueeze(2))
    moved = torch.baddbmm(base, torch.cat(thin, 2), torch.cat(wide, 2).transpose(1, 2))
    return moved.view(n * samples, *out.shape[1:])


def _conv2d(layer: nn.Conv2d, n: int, samples: int, weight: _Noise | None, bias: _Noise | None, x: Tensor) -> Tensor:
    """[n B, O, H', W'] of x [B, I, H, W], which all members share, or [n B, I, H, W]."""
    out = nn.Conv2d.forward(layer, x)
    shared = len(x) == samples
    base = out.unsqueeze(0) if shared else out.view(n, samples, *out.shape[1:])
    if weight is not None:
        assert weight.b is not None
        if shared:
            thin = thin_products(layer, weight.b, x)[weight.places]
        else:
            own = x.view(n, samples, *x.shape[1:])
            filters = weight.b.transpose(1, 2).reshape(len(weight.b), -1, *layer.weight.shape[1:])
            thin = torch.stack([convolve(layer, h, filters[p]) for h, p in zip(own, weight.places, strict=True)])
        for rank in range(thin.shape[2]):  # [n, B, 1, H, W] times [n, 1, O, 1, 1]
            base = torch.addcmul(base, thin[:, :, rank : rank + 1], weight.values[:, None, :, rank, None, None])
    if bias is not None:
        base = base + bias.values[:, None, :, None, None]
    return base.expand(n, *base.shape[1:]).flatten(0, 1)


def _batch_norm(
    layer: nn.BatchNorm1d | nn.BatchNorm2d, n: int, samples: int, weight: _Noise | None, bias: _Noise | None, x: Tensor
) -> Tensor:
    """[n B, C, ...] of x [B, C, ...], which all members share, or [n B, C, ...]."""
    own = x.unsqueeze(0) if len(x) == samples else x.view(n, samples, *x.shape[1:])
    place = (-1, 1, x.shape[1], *[1] * (x.dim() - 2))
    if layer.training or layer.running_mean is None or layer.running_var is None:
        exact = own.float() if own.itemsize < 4 else own
        variance, mean = torch.var_mean(exact, (1, *range(3, own.dim())), correction=0, keepdim=True)
    else:
        variance, mean = layer.running_var.view(place), layer.running_mean.view(place)
    scale = (layer.weight if weight is None else layer.weight + weight.values).view(place)
    shift = (layer.bias if bias is None else layer.bias + bias.values).view(place)
    scale = scale * torch.rsqrt(variance + layer.eps)
    return torch.addcmul(shift - mean * scale, own, scale).expand(n, *own.shape[1:]).flatten(0, 1)


_MEMBERWISE: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
