"""Random numbers from a key (seed, step, unit): `Noise`, and `StepNoise` for steps that are captured on a device."""

from bpfree.noise.clock import Clock, StepNoise
from bpfree.noise.draws import NotCapturable
from bpfree.noise.key import (
    Key,
    Noise,
    counting_everywhere,
    counts,
    drawn_since,
    generator_states,
    seed_global,
)

__all__ = [
    "Clock",
    "Key",
    "Noise",
    "NotCapturable",
    "StepNoise",
    "counting_everywhere",
    "counts",
    "drawn_since",
    "generator_states",
    "seed_global",
]
