"""The random key that the rule gets in a step, on devices where the host may not count the steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bpfree.noise import Clock, Noise, StepNoise, counts, drawn_since, generator_states


class StepKey:
    """Makes the key of each step.

    Args:
        device: of the training.

    Attributes:
        clock: the number of the step on the device; None where a key is made by the host, as on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clock = Clock(device) if counts(device) else None

    def set(self, step: int) -> None:
        """Go to a step."""
        if self.clock is not None:
            self.clock.set(step)

    def plain(self, noise: Noise, step: int) -> Noise:
        """Return the key of a step, with which a look at that step draws the same numbers as the rule.

        Args:
            noise: the key of the training.
            step: the number of the step, as `set` got it.
        """
        return noise.at(step) if self.clock is None else StepNoise(noise.seed, units=noise.units, clock=self.clock)

    @contextmanager
    def of(self, noise: Noise, step: int) -> Iterator[Noise]:
        """Give the key of a step to the block, which is the rule's part of that step.

        Where no forward pass draws numbers, further steps spare the look for operations that do.

        Args:
            noise: the key of the training.
            step: the number of the step, as `set` got it.
        """
        clock, key = self.clock, self.plain(noise, step)
        if clock is None:
            yield key
            return
        before = generator_states(self._device) if clock.still and not clock.hidden else None
        yield key
        if not clock.hidden:
            # A net that began to draw numbers has drawn them from torch's generators in this step.
            clock.still = not clock.drew and (before is None or not drawn_since(before, self._device))
