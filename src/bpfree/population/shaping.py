"""What is made of the losses of a population: weights."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bpfree.errors import check_positive

Shaping = Callable[[Tensor], Tensor]
"""Losses [P] -> weights [P]. A loss that is not finite must weigh nothing or least."""


class Softmax:
    """w = softmax(-loss / T).

    Args:
        temperature: T in units of the loss, or "auto": the standard deviation of the losses of the generation, which
            makes the step independent of the scale of the loss.
    """

    def __init__(self, temperature: float | Literal["auto"]) -> None:
        if not isinstance(temperature, str):
            check_positive("temperature", temperature)
        self.temperature = temperature

    def __call__(self, losses: Tensor) -> Tensor:
        """Weights [P], at least 0 and summing to 1; 0 for members whose loss is NaN or infinite."""
        finite = losses.isfinite()
        temperature = self._auto(losses[finite]) if isinstance(self.temperature, str) else self.temperature
        return torch.where(finite, -losses / temperature, -torch.inf).softmax(0).nan_to_num(0.0)

    @staticmethod
    def _auto(losses: Tensor) -> Tensor:
        tiny = torch.finfo(losses.dtype).tiny
        spread = losses.std(correction=0) if len(losses) else losses.new_zeros(())
        return torch.where(spread > tiny, spread, torch.ones_like(spread))
