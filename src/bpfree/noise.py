"""Randomness keyed by (seed, step, unit): never a running stream.

What is drawn depends on the key alone, so a result depends neither on how many processes share the work, nor on the
order in which units draw, nor on an interruption: a resumed run needs no generator state.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor

Key = int | str


@dataclass(frozen=True)
class Noise:
    """A key from which random numbers are drawn.

    Args:
        seed: the seed of the run.
        step: the step of training; -1 for what is drawn before the first step.
        units: whatever else tells one draw from another: a segment, a member, a purpose.

    Example:
        >>> noise = Noise(seed=0, step=7)
        >>> bool((noise.fold("z", 1).randn(3) == noise.fold("z", 1).randn(3)).all())
        True
    """

    seed: int = 0
    step: int = -1
    units: tuple[Key, ...] = ()

    def at(self, step: int) -> "Noise":
        """The same key at another step."""
        return Noise(self.seed, step, self.units)

    def fold(self, *units: Key) -> "Noise":
        """A key of its own for a unit of this one."""
        return Noise(self.seed, self.step, self.units + units)

    def key(self) -> int:
        """The key as an integer of 63 bits."""
        return int.from_bytes(self._digest(8), "little") >> 1

    def _digest(self, size: int) -> bytes:
        units = tuple(unit if isinstance(unit, str) else int(unit) for unit in self.units)
        text = repr((int(self.seed), int(self.step), units)).encode()  # numpy's integers have another repr
        return hashlib.blake2b(text, digest_size=size).digest()

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator that starts at this key, for several draws in a row."""
        return torch.Generator(device).manual_seed(self.key())

    def randn(
        self,
        *shape: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Standard normal numbers of the given shape."""
        return torch.randn(*shape, generator=self.generator(device), device=device, dtype=dtype)

    def words(self, n: int) -> NDArray[np.uint64]:
        """Words of 64 random bits, [n], on the CPU: the fastest way there to random numbers in bulk."""
        return np.random.SFC64(_Seed(self._digest(24))).random_raw(n)  # type: ignore[arg-type]

    def permutation(self, n: int) -> Tensor:
        """A shuffle of 0..n-1, int64 [n], on the CPU."""
        return torch.randperm(n, generator=self.generator())

    @contextmanager
    def global_rng(self, device: torch.device | str = "cpu") -> Iterator[None]:
        """Run torch's global generators (dropout, `nn.init`) from this key within; afterwards they are as before."""
        device = torch.device(device)
        with _restored_rng(device):
            seed_global(self.key(), device)
            yield


def seed_global(key: int, device: torch.device) -> None:
    """Start torch's global generators from a key: that of the CPU, and that of the device."""
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key)


def generator_states(device: torch.device) -> list[Tensor]:
    """The states of torch's global generators: that of the CPU, and that of the device."""
    cpu = torch.default_generator.get_state()
    return [cpu] if device.type == "cpu" else [cpu, torch.get_device_module(device).get_rng_state()]


def drawn_since(states: list[Tensor], device: torch.device) -> bool:
    """Whether numbers have been drawn from the global generators since they had these states."""
    return any(not torch.equal(a, b) for a, b in zip(states, generator_states(device), strict=True))


class _Seed(ISeedSequence):
    """The three words that SFC64 starts from, as they are; numpy's own hashing of a seed takes four times as long."""

    def __init__(self, digest: bytes) -> None:
        self.state = np.frombuffer(digest, np.dtype("<u8")).astype(np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        return self.state


def _restored_rng(device: torch.device):  # type: ignore[no-untyped-def]
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    index = device.index if device.index is not None else torch.get_device_module(device).current_device()
    return torch.random.fork_rng(devices=[index], device_type=device.type)
