"""Minibatches: shuffled by key, augmented and normalised on the device."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bpfree.data.augment import Augment
from bpfree.data.files.rows import Rows
from bpfree.data.preprocess import Preprocess
from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.inputs import apply, one_tensor, tensors_of
from bpfree.noise import Noise
from bpfree.types import Batch


class Batches:
    """The minibatches of a split.

    With a seed, the samples are shuffled anew in each epoch, by key, and a last batch that is not full is left out,
    because batch norm cannot use a single sample. Without a seed they come in order, and every sample comes.

    Args:
        split: raw samples. They are moved to the device once; samples in a file are read batch by batch.
        preprocess: turns raw values into inputs.
        batch_size: B; a split with fewer samples is one batch.
        device, dtype: the device and the floating type of the batches.
        augment: random changes; None for no changes. They need a seed.
        seed: for shuffling and augmentation; None for neither.
        rebuild: True if y is the sample itself, which an autoencoder rebuilds, and not the label.

    Raises:
        UserError: the batch size is below 1, or samples of several inputs are to be augmented.
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
        """Return the number of batches in an epoch."""
        n = len(self.y)
        return n // self.batch_size if self.seed is not None else -(-n // self.batch_size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: the number of the epoch, from 0; it decides the order and the random changes.
            start: the first batch, from 0. A resumed run starts in the middle, with the same draws.
        """
        n = len(self.y)
        # The whole order is drawn even if `start` skips batches. So a resumed epoch has the batches that were left.
        order = torch.arange(n) if self.seed is None else Noise(self.seed, epoch).fold("shuffle").permutation(n)
        # Samples in a file are indexed on the CPU while labels are on the device: one copy of the order for each.
        orders = {device: order.to(device) for device in {x.device for x in (*tensors_of(self.x), self.y)}}
        for i in range(start, len(self)):
            batch = slice(i * self.batch_size, (i + 1) * self.batch_size)
            chosen = {device: indices[batch] for device, indices in orders.items()}
            x, y = apply(self.x, partial(self._pick, chosen)), self.y[chosen[self.y.device]]
            if self.seed is not None and isinstance(x, Tensor):
                x = x.to(self.dtype) if self.preprocess.scaling.has_numbers(x) else x
                # Keyed by (seed, epoch, batch): neither a resume nor another batch changes the draws.
                noise = Noise(self.seed, epoch).fold("batch", i)
                x, y = self.augment.mix(self.augment(x, noise), y, noise, self.preprocess.classes)
            # The target is what the net sees: an autoencoder rebuilds the augmented and mixed sample.
            y = self.preprocess.target(one_tensor(x), self.dtype) if self.rebuild else y
            yield Batch(self.preprocess(x, self.dtype), y)

    def _pick(self, chosen: dict[torch.device, Tensor], x: Tensor) -> Tensor:
        """Return the samples of a batch, on the device of the labels."""
        return x[chosen[x.device]].to(self.y.device)
