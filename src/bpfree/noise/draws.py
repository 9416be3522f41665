"""Random numbers that a net draws in `forward`, such as dropout masks, from a key and not from torch's generators.

A generator has to be seeded by the host, which a captured step cannot do, and torch's generators on CUDA give another
dropout mask for another number type. Inside `KeyedDraws` the n-th draw of a pass has the row n of the key; so a pass
that is repeated with the same key has the same masks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bpfree.mesh import drawn_for_samples
from bpfree.mesh.draws import RandomOperations
from bpfree.noise import philox

aten = torch.ops.aten


class NotCapturable(RuntimeError):  # noqa: N818, it is a reason and not always an error
    """The reason why a step cannot be captured once and replayed: it needs a number that only the host has."""


class KeyedDraws(RandomOperations):  # type: ignore[no-untyped-call]
    """A context in which torch's random operations take their numbers from a key.

    Operations that are not known here run as torch runs them, after `otherwise` was called.

    Args:
        draw: (kind, row, n) -> n numbers [n] of a kind, "uniform" or "normal".
        otherwise: called before an operation that is not known here.

    Attributes:
        count: the number of draws so far.
    """

    def __init__(self, draw: Callable[[philox.Kind, int, int], Tensor], otherwise: Callable[[str], None]) -> None:
        super().__init__()
        self._draw = draw
        self._otherwise = otherwise
        self.count = 0

    def random(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Run one random operation of torch with numbers from the key."""
        if (keyed := _KEYED.get(func)) is not None:
            return keyed(self, *args, **options)
        if not _without_dropout(func, args, options):
            self.count += 1
            self._otherwise(str(func))
        return func(*args, **options)

    def uniform(self, like: Tensor) -> Tensor:
        """Draw from U[0, 1) in float32, with the shape of a tensor."""
        return self._drawn("uniform", like)

    def normal(self, like: Tensor) -> Tensor:
        """Draw from N(0, 1) in float32, with the shape of a tensor."""
        return self._drawn("normal", like)

    def _drawn(self, kind: philox.Kind, like: Tensor) -> Tensor:
        row = self.count
        self.count += 1
        if like.is_meta:  # a part of the net that another process trains
            return torch.empty_like(like, dtype=torch.float32)
        if not like.dim():
            return self._draw(kind, row, 1).view(())
        size = like[:1].numel()
        return drawn_for_samples(lambda rows: self._draw(kind, row, rows * size).view(-1, *like.shape[1:]), len(like))


def _without_dropout(func: Any, args: Sequence[Any], options: dict[str, Any]) -> bool:
    """True if the only random part of the operation is a dropout, and its probability is 0."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            value = args[place] if place < len(args) else options.get(argument.name, argument.default_value)
            return not value
    return False


def _native_dropout(mode: KeyedDraws, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = mode.uniform(x) >= p
    scale = 1 / (1 - p) if p < 1 else 0.0
    return x * kept * scale, kept


def _bernoulli_(mode: KeyedDraws, x: Tensor, p: float | Tensor = 0.5, generator: None = None) -> Tensor:
    return x.copy_(mode.uniform(x) < p)


def _bernoulli(mode: KeyedDraws, x: Tensor, p: float | None = None, generator: None = None) -> Tensor:
    return (mode.uniform(x) < (x if p is None else p)).to(x.dtype)


def _uniform_(mode: KeyedDraws, x: Tensor, low: float = 0.0, high: float = 1.0, generator: None = None) -> Tensor:
    return x.copy_(low + (high - low) * mode.uniform(x))


def _normal_(mode: KeyedDraws, x: Tensor, mean: float = 0.0, std: float = 1.0, generator: None = None) -> Tensor:
    return x.copy_(mean + std * mode.normal(x))


def _rand_like(mode: KeyedDraws, x: Tensor, **options: Any) -> Tensor:
    out = torch.empty_like(x, **options)
    return out.copy_(mode.uniform(out))


def _randn_like(mode: KeyedDraws, x: Tensor, **options: Any) -> Tensor:
    out = torch.empty_like(x, **options)
    return out.copy_(mode.normal(out))


def _rand(mode: KeyedDraws, size: Sequence[int], **options: Any) -> Tensor:
    options.pop("generator", None)
    out = torch.empty(size, **options)
    return out.copy_(mode.uniform(out))


def _randn(mode: KeyedDraws, size: Sequence[int], **options: Any) -> Tensor:
    options.pop("generator", None)
    out = torch.empty(size, **options)
    return out.copy_(mode.normal(out))


def _randint(mode: KeyedDraws, *args: Any, **options: Any) -> Tensor:
    (low, high), size = ((0, args[0]) if len(args) == 2 else args[:2]), args[-1]
    options.pop("generator", None)
    out = torch.empty(size, **{"dtype": torch.int64, **{k: v for k, v in options.items() if v is not None}})
    # In double: float32 would round the product up to `high` where it is large.
    return out.copy_(low + (mode.uniform(out).double() * (high - low)).floor())


_KEYED: dict[Any, Callable[..., Any]] = {
    aten.native_dropout.default: _native_dropout,
    aten.bernoulli_.float: _bernoulli_,
    aten.bernoulli_.Tensor: _bernoulli_,
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli.p: _bernoulli,
    aten.uniform_.default: _uniform_,
    aten.normal_.default: _normal_,
    aten.rand_like.default: _rand_like,
    aten.randn_like.default: _randn_like,
    aten.rand.default: _rand,
    aten.randn.default: _randn,
    aten.randint.default: _randint,
    aten.randint.low: _randint,
}
