"""The key of a training step on a device whose host must not be asked for the number of the step."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bpfree.noise import philox
from bpfree.noise.draws import KeyedDraws, NotCapturable
from bpfree.noise.key import Key, Noise


class Clock:
    """The step of a training on a device other than the CPU, where the host must not be asked for it.

    Args:
        device: the device.

    Attributes:
        step: the number of the step, as the host knows it.
        tensor: the same number on the device, int64, 0-d.
        hidden: True while a step is captured; the host's number would be wrong when it is replayed.
        still: True if forward passes are known to draw no random numbers. `drew` says whether one did.
    """

    def __init__(self, device: torch.device) -> None:
        self.tensor = torch.zeros((), dtype=torch.int64, device=device)
        self.step = 0
        self.hidden = False
        self.still = False
        self.drew = False

    def set(self, step: int) -> None:
        """Go to a step."""
        self.step = step
        self.tensor.fill_(step)


@dataclass(frozen=True)
class StepNoise(Noise):
    """The key of a step whose number is on the device; see `Clock`.

    Args:
        clock: the step.
    """

    clock: Clock = field(kw_only=True)

    # A descriptor of the class would be hidden by the field `step` of the instance, which dataclasses set.
    def __getattribute__(self, name: str) -> Any:
        """Return an attribute; `step` is that of the clock."""
        if name != "step":
            return super().__getattribute__(name)
        if self.clock.hidden:
            raise NotCapturable("the rule asks for the number of the step")
        return self.clock.step

    def fold(self, *units: Key) -> "StepNoise":
        """Return the key of a unit within this key; see `Noise.fold`."""
        return StepNoise(self.seed, units=self.units + units, clock=self.clock)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a generator that starts at this key; see `Noise.generator`."""
        if self.clock.hidden:
            raise NotCapturable("the rule seeds a generator of torch")
        return super().generator(device)

    def _now(self) -> int | Tensor:
        return self.clock.tensor

    @contextmanager
    def global_rng(self, device: torch.device | str = "cpu") -> Iterator[None]:
        """Let random operations inside the block take their numbers from this key; see `KeyedDraws`."""
        if self.clock.still:
            yield
            return
        own, stack, seeded = self.fold("forward"), ExitStack(), False

        def draw(kind: philox.Kind, row: int, n: int) -> Tensor:
            self.clock.drew = True
            return own.rows(kind, torch.full((1,), row, dtype=torch.int64, device=device), n).view(-1)

        def seed(name: str) -> None:
            nonlocal seeded
            self.clock.drew = True
            if self.clock.hidden:
                raise NotCapturable(f"the net draws random numbers by {name}")
            if not seeded:
                seeded = True
                stack.enter_context(own.seeded(device))

        with stack, KeyedDraws(draw, seed):
            yield

    @contextmanager
    def watched(self, device: torch.device | str = "cpu") -> Iterator[Callable[[], bool]]:
        """Do what `global_rng` does, and yield a function that says if numbers have been drawn inside the block."""
        before, self.clock.drew = self.clock.drew, False
        try:
            with self.global_rng(device):
                yield lambda: self.clock.drew
        finally:
            self.clock.drew |= before

    @contextmanager
    def repeated_rng(self, device: torch.device | str = "cpu") -> Iterator[Callable[[], AbstractContextManager[None]]]:
        """Yield `global_rng`, whose blocks all begin with the same numbers; see `Noise.repeated_rng`."""
        yield lambda: self.global_rng(device)

    def seeded(self, device: torch.device | str) -> AbstractContextManager[None]:
        """Start torch's global generators from this key inside the block; see `Noise.global_rng`."""
        return super().global_rng(device)
