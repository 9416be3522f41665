"""Random numbers that are a function of a key and a counter, for devices on which a step must not seed a generator.

Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405: Philox 4x32 with 10 rounds turns a counter of four words of 32 bits and a key
of two words into four random words.

Element e of row r at step s gets lane e mod 4 of the counter (e // 4, r, s mod 2^32, s // 2^32). So a number depends
neither on how many numbers are drawn in the same call, nor on which other rows are. The step may be a tensor on the
device: then no number is read by the host, and a CUDA graph draws new numbers each time it is replayed.

Two implementations give the same words: integer arithmetic of torch, on any device, and on CUDA one Triton kernel. The
normal numbers of the two differ in the last bit, since logarithm and cosine do. All numbers are made in float32 and
then rounded to the wanted type, so they do not depend on it.
"""

import logging
from functools import cache
from importlib.util import find_spec
from math import tau
from typing import Any, Literal

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Kind = Literal["words", "uniform", "normal"]
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_UNIT = 2.0**-24  # a float32 holds 24 bits exactly


def words(key: int, step: int | Tensor, rows: Tensor, n: int) -> Tensor:
    """Return n random words for each row, int64 [K, n] with values from 0 to 2^32 - 1.

    Args:
        key: 64 bits.
        step: the number of the step, or an int64 tensor, 0-d, on the device of `rows`.
        rows: the numbers of K rows, int64 [K], each from 0 to 2^32 - 1.
        n: the number of words in a row, at most 2^34.
    """
    return _drawn("words", key, step, rows, n)


def uniform(key: int, step: int | Tensor, rows: Tensor, n: int) -> Tensor:
    """Return n numbers from U[0, 1) for each row, float32 [K, n]; multiples of 2^-24. For the arguments see `words`."""
    return _drawn("uniform", key, step, rows, n)


def normal(key: int, step: int | Tensor, rows: Tensor, n: int) -> Tensor:
    """Return n standard normal numbers for each row, float32 [K, n], by Box and Muller. See `words`."""
    return _drawn("normal", key, step, rows, n)


def _drawn(kind: Kind, key: int, step: int | Tensor, rows: Tensor, n: int) -> Tensor:
    if rows.device.type == "cuda" and kernel_runs(rows.device):
        from bpfree.noise import kernel  # only here, since importing Triton takes a second

        if n <= kernel.LONGEST_ROW:
            return kernel.drawn(kind, key, step, rows, n)
    return drawn_by_torch(kind, key, step, rows, n)


def has_triton() -> bool:
    """Return True if Triton is installed."""
    return find_spec("triton") is not None


@cache
def kernel_runs(device: torch.device) -> bool:
    """Return True if the kernel runs on a device and gives the words that it should; tried once.

    Triton needs a C compiler, which a machine may not have.

    Args:
        device: a GPU.
    """
    if not has_triton():
        return False
    from bpfree.noise import kernel

    rows = torch.arange(2, device=device)
    try:
        return torch.equal(kernel.drawn("words", 1, 2, rows, 9), drawn_by_torch("words", 1, 2, rows, 9))
    except Exception as error:  # of any type: it comes from a compiler
        log.info("Random numbers are computed without Triton, which is slower: %s", " ".join(str(error).split())[:200])
        return False


def drawn_by_torch(kind: Kind, key: int, step: int | Tensor, rows: Tensor, n: int) -> Tensor:
    """Draw by integer arithmetic of torch, on any device.

    Args:
        kind: "words" for int64, "uniform" or "normal" for float32.
        key, step, rows, n: see `words`.

    Returns:
        [K, n].
    """
    place = torch.arange(-(-n // 4), dtype=torch.int64, device=rows.device)  # [M]
    lanes = philox(place.unsqueeze(0), rows.unsqueeze(1), step, key)  # four of [K, M]
    if kind != "words":
        lanes = [(lane >> 8).float() * _UNIT for lane in lanes]
    if kind == "normal":
        lanes = [number for pair in (lanes[:2], lanes[2:]) for number in _pair(*pair)]
    return torch.stack(lanes, 2).flatten(1)[:, :n]


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two independent normal numbers for two uniform ones."""
    radius = (-2 * torch.log(1 - first)).sqrt()  # 1 - first is above 0
    return radius * torch.cos(tau * second), radius * torch.sin(tau * second)


def philox(place: Tensor, row: Tensor, step: int | Tensor, key: int) -> list[Tensor]:
    """Return the four words of the counter (place, row, step), each int64, broadcast over place and row.

    Args:
        place: c0, from 0 to 2^32 - 1.
        row: c1, from 0 to 2^32 - 1.
        step: c2 and c3, its lower and upper half.
        key: k0 and k1, its lower and upper half.
    """
    c0, c1 = torch.broadcast_tensors(place, row)  # type: ignore[no-untyped-call]
    c2: int | Tensor = step & _LOW
    c3: int | Tensor = (step >> 32) & _LOW
    k0, k1 = key & _LOW, key >> 32 & _LOW
    for _ in range(_ROUNDS):
        # Products of two words wrap around in int64, but their 64 bits are right.
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = _upper(b) ^ c1 ^ k0, b & _LOW, _upper(a) ^ c3 ^ k1, a & _LOW
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return [c0, c1, c2, c3]


def _upper(product: Any) -> Any:
    """The upper word of a product of 64 bits."""
    return product >> 32 & _LOW
