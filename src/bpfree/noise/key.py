"""Random numbers from a key (seed, step, unit), and never from a running stream.

The numbers depend on the key alone. So a result does not depend on the number of processes, on the order in which units
draw, or on an interruption: a resumed run needs no state of a generator.

On a CPU a key seeds a generator. On other devices `bpfree.noise.philox` computes numbers from the key, so that a step
neither seeds a generator nor waits for the device.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor

from bpfree.noise import philox

Key = int | str


@dataclass(frozen=True)
class Noise:
    """A key from which random numbers are drawn.

    Args:
        seed: the seed of the run.
        step: the step of training; -1 for numbers that are drawn before the first step.
        units: everything else that distinguishes one draw from another: a segment, a member, a purpose.

    Example:
        >>> noise = Noise(seed=0, step=7)
        >>> bool((noise.fold("z", 1).randn(3) == noise.fold("z", 1).randn(3)).all())
        True
    """

    seed: int = 0
    step: int = -1
    units: tuple[Key, ...] = ()

    def at(self, step: int) -> "Noise":
        """Return this key at another step."""
        return Noise(self.seed, step, self.units)

    def fold(self, *units: Key) -> "Noise":
        """Return the key of a unit within this key.

        Args:
            units: names or numbers of the unit, such as ("member", 3).
        """
        return Noise(self.seed, self.step, self.units + units)

    def key(self) -> int:
        """Return the key as an integer of 63 bits, which fits into a signed seed of torch."""
        return int.from_bytes(self._digest(8), "little") >> 1

    def _digest(self, size: int) -> bytes:
        return _digest(self.seed, int(self.step), self.units, size)  # int(): numpy's integers have another repr

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a generator that starts at this key, for several draws in a row.

        Args:
            device: the device of the generator. Another kind of device draws other numbers.
        """
        return torch.Generator(device).manual_seed(self.key())

    def randn(
        self,
        *shape: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw standard normal numbers of a shape."""
        if counts(device):
            return self._numbers("normal", shape, device).to(dtype or torch.get_default_dtype())
        return torch.randn(*shape, generator=self.generator(device), device=device, dtype=dtype)

    def rand(self, *shape: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """Draw numbers of a shape from U[0, 1)."""
        if counts(device):
            return self._numbers("uniform", shape, device).to(dtype or torch.get_default_dtype())
        return torch.rand(*shape, generator=self.generator(device), device=device, dtype=dtype)

    def randint(self, high: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw integers of a shape from 0 to high - 1, int64.

        Args:
            high: at most 2^24 on devices other than the CPU.
            shape: the shape.
            device: the device.
        """
        if counts(device):
            # In double, since a product in float32 could be rounded up to `high`.
            return (self._numbers("uniform", shape, device).double() * high).long()
        return torch.randint(high, shape, generator=self.generator(device), device=device)

    def rows(self, kind: philox.Kind, rows: Tensor, n: int) -> Tensor:
        """Draw n numbers for each of some rows, such as members, [K, n]; the same for a row in whatever call it is.

        For devices where numbers are computed from the key; see `bpfree.noise.philox`.

        Args:
            kind: "normal" or "uniform" in float32, or "words" in int64.
            rows: the numbers of the rows, int64 [K].
            n: the number of numbers in a row.
        """
        draw = {"words": philox.words, "uniform": philox.uniform, "normal": philox.normal}[kind]
        return draw(self.stream(), self._now(), rows, n)

    def stream(self) -> int:
        """Return the key without its step as an integer of 64 bits."""
        return int.from_bytes(_digest(self.seed, "stream", self.units, 8), "little")

    def step_number(self) -> int | Tensor:
        """Return the number of the step; where the host must not ask for it, a tensor on the device, int64, 0-d."""
        return self._now()

    def _now(self) -> int | Tensor:
        return self.step

    def _numbers(self, kind: philox.Kind, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        row = torch.zeros(1, dtype=torch.int64, device=device)
        return self.rows(kind, row, prod(shape)).view(shape)

    def words(self, n: int) -> NDArray[np.uint64]:
        """Draw n words of 64 random bits, [n]. This is the fastest way to many random numbers on a CPU.

        Args:
            n: the number of words.
        """
        return np.random.SFC64(_Seed(self._digest(24))).random_raw(n)  # type: ignore[arg-type]

    def permutation(self, n: int) -> Tensor:
        """Return a random order of 0..n-1, int64 [n], on the CPU.

        Args:
            n: the number of elements.
        """
        return torch.randperm(n, generator=self.generator())

    @contextmanager
    def global_rng(self, device: torch.device | str = "cpu") -> Iterator[None]:
        """Start torch's global generators, which dropout and `nn.init` use, from this key inside the block.

        Afterwards they have the states from before.

        Args:
            device: the device whose generator starts too, besides the CPU's.
        """
        device = torch.device(device)
        with _restored_rng(device):
            seed_global(self.key(), device)
            yield

    @contextmanager
    def watched(self, device: torch.device | str = "cpu") -> Iterator[Callable[[], bool]]:
        """Yield a function that says if torch's random operations have drawn numbers inside the block.

        Args:
            device: the device on which they draw, besides the CPU.
        """
        device = torch.device(device)
        states = generator_states(device)
        yield lambda: drawn_since(states, device)

    @contextmanager
    def repeated_rng(self, device: torch.device | str = "cpu") -> Iterator[Callable[[], AbstractContextManager[None]]]:
        """Yield a function that makes contexts like `global_rng`, one for each of many passes with equal numbers.

        Args:
            device: see `global_rng`.
        """
        device, key = torch.device(device), self.key()

        def begin() -> AbstractContextManager[None]:
            seed_global(key, device)
            return nullcontext()

        # The states are put back once for all passes, because this takes longer than a small net's pass.
        with _restored_rng(device):
            yield begin


_everywhere = False


def counts(device: torch.device | str) -> bool:
    """Return True if numbers on a device are computed from their key, without a generator.

    Args:
        device: the device.
    """
    return _everywhere or torch.device(device).type != "cpu"


@contextmanager
def counting_everywhere() -> Iterator[None]:
    """Compute numbers from their key on the CPU, too, inside the block. Tests of device code use it."""
    global _everywhere
    before, _everywhere = _everywhere, True
    try:
        yield
    finally:
        _everywhere = before


def _digest(seed: int, step: int | str, units: tuple[Key, ...], size: int) -> bytes:
    plain = tuple(unit if isinstance(unit, str) else int(unit) for unit in units)
    # repr keeps the units apart: ("a", "bc") and ("ab", "c") are different keys, and so are 1 and "1".
    text = repr((int(seed), step, plain)).encode()
    # Not `hash`, which differs from process to process.
    return hashlib.blake2b(text, digest_size=size).digest()


def seed_global(key: int, device: torch.device) -> None:
    """Start torch's global generators of the CPU and of a device from a key.

    Args:
        key: the seed.
        device: the device.
    """
    # torch.manual_seed would also seed all GPUs, whose generators `_restored_rng` does not put back.
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key)


def generator_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's global generators of the CPU and of a device.

    Args:
        device: the device; for the CPU there is only one state.
    """
    cpu = torch.default_generator.get_state()
    return [cpu] if device.type == "cpu" else [cpu, torch.get_device_module(device).get_rng_state()]


def drawn_since(states: list[Tensor], device: torch.device) -> bool:
    """Return True if numbers have been drawn from the global generators since they had some states.

    Args:
        states: the states of then, from `generator_states`.
        device: the device of then.
    """
    # Bytes: an operation of torch would count as a value that the host reads.
    return any(
        a.numpy().tobytes() != b.numpy().tobytes() for a, b in zip(states, generator_states(device), strict=True)
    )


class _Seed(ISeedSequence):
    """A seed that gives SFC64 its three starting words directly, because numpy's hashing takes four times as long."""

    def __init__(self, digest: bytes) -> None:
        # "<" fixes the order of the bytes, so that every machine gets the same words.
        self.state = np.frombuffer(digest, np.dtype("<u8")).astype(np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        return self.state  # SFC64 asks for three words, the 24 bytes of the digest


# fork_rng without a list of devices would save the state of every GPU, which is slow.
def _restored_rng(device: torch.device):  # type: ignore[no-untyped-def]
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    # "cuda" without a number means the current device, and fork_rng needs the number.
    index = device.index if device.index is not None else torch.get_device_module(device).current_device()
    return torch.random.fork_rng(devices=[index], device_type=device.type)
