"""Minibatches: shuffled by key, augmented and normalised on the device."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bpfree.data.augment import Augment
from bpfree.data.dataset import Preprocess, Split
from bpfree.data.files.rows import Rows
from bpfree.errors import UserError
from bpfree.inputs import apply, one_tensor, tensors_of
from bpfree.noise import Noise
from bpfree.types import Batch


class Batches:
    """The minibatches of a split.

    With a seed they are shuffled anew each epoch, by key, and a last one that is not full is left out (batch norm
    cannot use a single sample); without one they come in order and all of them.

    Args:
        split: raw samples; moved to the device once, but for those in a file: of these each batch by itself.
        preprocess: raw values to input.
        batch_size: B; a split with fewer samples is one batch.
        device, dtype: of the batches.
        augment: random changes, if any.
        seed: of the shuffling and the augmentation; None for neither.
        rebuild: y is what is to be rebuilt of the sample, not its label.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        augment: Augment | None = None,
        seed: int | None = None,
        rebuild: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size: found {batch_size}, allowed: at least 1")
        self.x = apply(split.x, lambda x: x if isinstance(x, Rows) else x.to(device))
        self.y = split.y.to(device)
        self.preprocess = preprocess
        self.batch_size = min(batch_size, max(len(self.y), 1))
        self.dtype = dtype
        self.augment = augment or Augment()
        if not isinstance(self.x, Tensor):
            self.augment.refuse_several()
        self.seed = seed
        self.rebuild = rebuild

    def __len__(self) -> int:
        """Batches in an epoch."""
        n = len(self.y)
        return n // self.batch_size if self.seed is not None else -(-n // self.batch_size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on."""
        n = len(self.y)
        order = torch.arange(n) if self.seed is None else Noise(self.seed, epoch).fold("shuffle").permutation(n)
        orders = {device: order.to(device) for device in {x.device for x in (*tensors_of(self.x), self.y)}}
        for i in range(start, len(self)):
            batch = slice(i * self.batch_size, (i + 1) * self.batch_size)
            chosen = {device: indices[batch] for device, indices in orders.items()}
            x, y = apply(self.x, partial(self._pick, chosen)), self.y[chosen[self.y.device]]
            if self.seed is not None and isinstance(x, Tensor):
                x = x.to(self.dtype) if self.preprocess.has_numbers(x) else x
                noise = Noise(self.seed, epoch).fold("batch", i)
                x, y = self.augment.mix(self.augment(x, noise), y, noise, self.preprocess.classes)
            y = self.preprocess.target(one_tensor(x), self.dtype) if self.rebuild else y
            yield Batch(self.preprocess(x, self.dtype), y)

    def _pick(self, chosen: dict[torch.device, Tensor], x: Tensor) -> Tensor:
        """Samples of a batch, on the device of the labels."""
        return x[chosen[x.device]].to(self.y.device)
