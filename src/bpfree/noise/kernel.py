"""The Triton kernel of `bpfree.noise.philox`, which calls it only where Triton is installed."""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

if find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:
    tl = SimpleNamespace(constexpr=int)  # for the annotations below


def _jit(function: Any) -> Any:
    """Hand a function to Triton; without Triton, leave it as it is, so that this file can be imported."""
    # Not specialised: for a word such as 1 or 16 the kernel would be compiled again.
    plain = {"low", "high", "n"}.intersection(function.__code__.co_varnames)
    return function if find_spec("triton") is None else triton.jit(function, do_not_specialize=sorted(plain))


_BLOCK = 512  # counters of a program; each gives four numbers
LONGEST_ROW = 65_535 * 4 * _BLOCK  # what the second dimension of a grid allows


@_jit
def _fill(out, rows, step, low, high, n, kind: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)  # here, since a grid may be long in its first dimension alone
    place = tl.program_id(1) * block + tl.arange(0, block)
    now = tl.load(step)
    zero = tl.zeros((block,), tl.uint32)
    c1 = zero + tl.load(rows + row).to(tl.uint32)
    c2 = zero + now.to(tl.uint32)
    c3 = zero + (now >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(place.to(tl.uint32), c1, c2, c3, low.to(tl.uint32), high.to(tl.uint32))
    start = out + row.to(tl.int64) * n + place.to(tl.int64) * 4
    first = place.to(tl.int64) * 4
    if kind == 0:
        v0, v1, v2, v3 = w0.to(tl.int64), w1.to(tl.int64), w2.to(tl.int64), w3.to(tl.int64)
    else:
        v0, v1, v2, v3 = _unit(w0), _unit(w1), _unit(w2), _unit(w3)
        if kind == 2:
            v0, v1 = _pair(v0, v1)
            v2, v3 = _pair(v2, v3)
    tl.store(start, v0, first < n)
    tl.store(start + 1, v1, first + 1 < n)
    tl.store(start + 2, v2, first + 2 < n)
    tl.store(start + 3, v3, first + 3 < n)


@_jit
def _unit(word):  # type: ignore[no-untyped-def]
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@_jit
def _pair(first, second):  # type: ignore[no-untyped-def]
    radius = tl.sqrt(-2.0 * tl.log(1.0 - first))
    angle = 6.283185307179586 * second
    return radius * tl.cos(angle), radius * tl.sin(angle)


def drawn(kind: str, key: int, step: int | Tensor, rows: Tensor, n: int) -> Tensor:
    """Draw by one kernel; see `bpfree.noise.philox.drawn_by_torch` for the arguments.

    Args:
        kind, key, step, rows, n: see there.

    Returns:
        [K, n] on the device of `rows`.
    """
    kinds = {"words": (0, torch.int64), "uniform": (1, torch.float32), "normal": (2, torch.float32)}
    number, dtype = kinds[kind]
    out = torch.empty(len(rows), n, dtype=dtype, device=rows.device)
    now = step if isinstance(step, Tensor) else torch.full((), step, dtype=torch.int64, device=rows.device)
    low, high = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    if out.numel():
        grid = (len(rows), triton.cdiv(triton.cdiv(n, 4), _BLOCK))
        # Triton starts kernels on the current GPU. On a CPU this does nothing.
        with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
            _fill[grid](out, rows, now, low, high, n, kind=number, block=_BLOCK)
    return out
