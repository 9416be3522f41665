"""Raw samples become the input of a net: scaled by the training data's mean and standard deviation, or passed as is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from bpfree.data import statistics
from bpfree.data.columns import Column, width
from bpfree.data.dataset import Dataset
from bpfree.errors import UserError
from bpfree.inputs import Inputs, one_tensor, tensors_of

LARGEST_SAMPLE = 1 << 28  # values; a run folder that claims more is damaged, and memory is not reserved for it


@dataclass(frozen=True)
class Scaling:
    """The form of raw samples, and how they become inputs: (x - mean) / std, by channel for images.

    Args:
        shape: the shape of one sample.
        mean: one value, or one for each channel, in raw units.
        std: one value, or one for each channel, in raw units, above 0.
        white: the raw value of a white pixel.
        dtype: the type of raw samples, such as "uint8". Integers that are not bytes are tokens, which pass as is.
        limits: the smallest and the largest value of what an autoencoder rebuilds.
        columns: for a table, its features.
        inputs: for a net of several inputs, the scaling of each by its name, or by "0", "1", ... if they have no names.
            The other fields are then those of the first input that is not tokens.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float
    dtype: str
    limits: tuple[float, float]
    columns: tuple[Column, ...] | None = None
    inputs: tuple[tuple[str, "Scaling"], ...] = ()

    @classmethod
    def of(cls, dataset: Dataset, x: Inputs) -> "Scaling":
        """Return the scaling for training samples: statistics for bytes and for tables; other values pass as is.

        Args:
            dataset: where the samples come from.
            x: the training samples, one tensor or several.
        """
        if not isinstance(x, Tensor):
            named = x.items() if isinstance(x, Mapping) else ((str(i), tensor) for i, tensor in enumerate(x))
            each = {name: cls.of(dataset, tensor) for name, tensor in named}
            main = next((one for one in each.values() if not one.has_tokens), next(iter(each.values())))
            return replace(main, inputs=tuple(each.items()))
        x = statistics.for_statistics(x)
        is_image = x.dtype == torch.uint8
        mean, std = statistics.of_bytes(x) if is_image else ((0.0,), (1.0,))
        if dataset.columns is not None:
            mean, std = statistics.of_table(x, dataset.columns)
        limits = (0.0, 1.0) if is_image else statistics.limits_of(x)
        dtype = str(x.dtype).removeprefix("torch.")
        return cls(tuple(x.shape[1:]), mean, std, dataset.white, dtype, limits, dataset.columns)

    def check(self) -> None:
        """Raise ValueError for values that no data set has; they come from files that may be damaged."""
        channels = self.shape[0] if self.shape else 0
        numbers = (*self.mean, *self.std, *self.limits, self.white)
        for fits, what in (
            (min((1, *self.shape)) > 0 and math.prod(self.shape) <= LARGEST_SAMPLE, "shape"),
            (len(self.mean) in (1, channels) and len(self.std) == len(self.mean), "mean and std"),
            (all(map(math.isfinite, numbers)), "numbers that are finite"),
            (min((*self.std, self.white), default=0) > 0, "std and white above 0"),
            (self.limits[0] <= self.limits[1], "limits"),
            (isinstance(getattr(torch, self.dtype, None), torch.dtype), "dtype"),
            (self.columns is None or width(self.columns) == channels, "columns"),
            (all(name and not part.inputs for name, part in self.inputs), "inputs"),
        ):
            if not fits:
                raise ValueError(f"{what} cannot be so")
        for _, part in self.inputs:
            part.check()

    def __call__(self, x: Inputs, dtype: torch.dtype = torch.float32) -> Inputs:
        """Scale raw samples [B, ...]. Of several inputs each is scaled, and bools stay bools, as masks are.

        Args:
            x: raw samples.
            dtype: the floating type of the result.

        Raises:
            UserError: samples of another shape or form than those of training, or no tokens where those were.
        """
        if not self.inputs:
            return self._scaled(one_tensor(x), dtype)
        self._check_form(x)
        scaled = [
            t if part.dtype == "bool" and t.dtype == torch.bool else part._scaled(t, dtype)
            for t, part in zip(tensors_of(x), self._in_order(x), strict=True)
        ]
        return dict(zip(x, scaled, strict=True)) if isinstance(x, Mapping) else tuple(scaled)

    def _in_order(self, x: Inputs) -> list["Scaling"]:
        """Return the scalings of the inputs in the order of x: a dict may have another order than in training."""
        by_name = dict(self.inputs)
        return [by_name[name] for name in x] if isinstance(x, Mapping) else list(by_name.values())

    def _check_form(self, x: Inputs) -> None:
        """Raise UserError unless x has the inputs of training, by the same names or in the same number."""
        names = [name for name, _ in self.inputs]
        # Names that are digits stand for a tuple. Names of arguments, as a dict has them, are never digits.
        by_name = not names[0].isdigit()
        form = sorted(x) if isinstance(x, Mapping) else len(tensors_of(x))
        if isinstance(x, Tensor) or form != (sorted(names) if by_name else len(names)):
            allowed = f"a dict of {', '.join(names)}" if by_name else f"a tuple of {len(names)}"
            shown = "one" if isinstance(x, Tensor) else ", ".join(x) if isinstance(x, Mapping) else len(x)
            raise UserError(f"samples: found {shown}, allowed: {allowed}, as in training")

    def _scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return one input scaled, or unchanged if it holds tokens."""
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"samples have the shape {list(x.shape[1:])}, allowed: {list(self.shape)}, as in training")
        if self.has_tokens:
            if x.is_floating_point():
                raise UserError(f"samples are {x.dtype}, allowed: integers, as in training")
            return x.to(getattr(torch, self.dtype))
        # A column of a table may hold times in seconds: float32 would lose the minutes before the mean is subtracted.
        exact = dtype if self.columns is None else torch.float64
        x = x.to(exact, copy=True)  # a copy, since the next line works in place and `x` may be the user's array
        per_channel = (-1, *[1] * (len(self.shape) - 1)) if len(self.mean) > 1 else (1,)  # [C, 1, ...]
        mean, std = (constant(v, exact, x.device).view(per_channel) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std).to(dtype)

    def target(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what an autoencoder rebuilds from raw samples [B, ...]: images in [0, 1], floating values as is."""
        return x.to(dtype) / self.white if self.dtype == "uint8" else x.to(dtype)

    @property
    def has_tokens(self) -> bool:
        """True if samples are tokens, integers that stand for names and pass as is."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return not dtype.is_floating_point and dtype not in (torch.uint8, torch.bool)

    def has_numbers(self, x: Tensor) -> bool:
        """Return True if raw samples are integers that are quantities: neither bytes nor tokens."""
        return not x.is_floating_point() and x.dtype not in (torch.uint8, torch.bool) and not self.has_tokens

    def as_numbers(self) -> "Scaling":
        """Return the scaling that turns integers into floating numbers, because they are quantities and not tokens."""
        return replace(self, dtype="float32") if self.has_tokens and not self.inputs else self

    def blank(self, n: int) -> Inputs:
        """Return raw samples [n, ...] of zeros."""
        if self.inputs:
            blanks = {name: part._blank(n) for name, part in self.inputs}
            return tuple(blanks.values()) if self.inputs[0][0].isdigit() else blanks
        return self._blank(n)

    def _blank(self, n: int) -> Tensor:
        return torch.zeros(n, *self.shape, dtype=getattr(torch, self.dtype))


@lru_cache(maxsize=128)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return values as a tensor [n] that is made once and must not be changed: each copy to a GPU waits for it.

    Args:
        values: n numbers.
        dtype: the type of the tensor.
        device: the device of the tensor.
    """
    with torch.inference_mode(False):  # a tensor of inference mode could not take part in a backward pass later
        return torch.tensor(values, dtype=dtype, device=device)
