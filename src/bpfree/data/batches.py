"""Minibatches: shuffled by key, augmented and normalised on the device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bpfree.data.augment import Augment
from bpfree.data.files.rows import Rows
from bpfree.data.order import local_order
from bpfree.data.part import Part
from bpfree.data.placement import Raw, gathered, on_device, one_ahead, placed, sent
from bpfree.data.preprocess import Preprocess
from bpfree.data.split import Split
from bpfree.errors import UserError
from bpfree.inputs import apply, one_tensor, tensors_of
from bpfree.noise import Noise
from bpfree.types import Batch


class Batches:
    """The minibatches of a split.

    With a seed, the samples are shuffled anew in each epoch, by key, and a last batch that is not full is left out,
    because batch norm cannot use a single sample. Without a seed they come in order, and every sample comes. Samples
    that are slow to read one by one are shuffled within a window; see `bpfree.data.order`.

    Args:
        split: raw samples. They are moved to the device once if they fit there well; else, and if they lie in a file,
            batch by batch. See `bpfree.data.placement`.
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
        self.device = torch.empty(0, device=device).device  # with its number
        self.x = apply(split.x, lambda x: placed(x, self.device))
        self.y = placed(split.y, self.device)
        self.preprocess = preprocess
        self.batch_size = min(batch_size, max(len(self.y), 1))
        self.dtype = dtype
        self.augment = augment or Augment()
        self._changes = self.augment != Augment(values=self.augment.values)
        if not isinstance(self.x, Tensor):
            self.augment.refuse_several()
        self.seed = seed
        self.rebuild = rebuild

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        n = len(self.y)
        return n // self.batch_size if self.seed is not None else -(-n // self.batch_size)

    def epoch(self, epoch: int = 0, start: int = 0, part: tuple[int, int] | None = None) -> Iterator[Batch]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: the number of the epoch, from 0; it decides the order and the random changes.
            start: the first batch, from 0. A resumed run starts in the middle, with the same draws.
            part: the number of a process, from 0, and the number of processes; see `Part.of`. Each batch then has only
                the rows of this process, and only they are read, unless mixup or a transform needs the others. The
                parts together are the whole batch; on a CPU to the bit. None gives whole batches.

        Raises:
            UserError: there is no such process, or a training batch has fewer rows than there are processes.
        """
        if part is not None and self.seed is not None and part[1] > self.batch_size:
            raise UserError(f"batch_size: found {self.batch_size}, allowed: at least {part[1]}, one for each process")
        # The whole order is drawn even if `start` skips batches. So a resumed epoch has the batches that were left.
        orders = self._orders(epoch)
        # Mixup takes the partner of a sample from anywhere in the batch, so a part is cut from the mixed batch.
        is_whole = self.seed is not None and self.augment.needs_whole_batches
        needed = None if is_whole else part
        raw: Iterator[Raw] = (self._picked(orders, i, needed) for i in range(start, len(self)))
        if any(place != self.device for place in orders):
            raw = (one_ahead if self.device.type == "cuda" else on_device)(raw, self.device)
        for i, (x, y) in enumerate(raw, start):
            if self.seed is not None and isinstance(x, Tensor):
                # Keyed by (seed, epoch, batch): neither a resume nor another batch changes the draws.
                x, y = self._changed(x, y, Noise(self.seed, epoch).fold("batch", i), self._part(i, needed))
                if is_whole:
                    rows = self._part(i, part).rows
                    x, y = x[rows], y[rows]
            # The target is what the net sees: an autoencoder rebuilds the augmented and mixed sample.
            y = self.preprocess.target(one_tensor(x), self.dtype) if self.rebuild else y
            yield Batch(self.preprocess(x, self.dtype), y)

    def _part(self, i: int, share: tuple[int, int] | None) -> Part:
        """Return which rows of batch i a process has; all rows without a share. The last batch may be smaller."""
        return Part.of(min(self.batch_size, len(self.y) - i * self.batch_size), share)

    def _changed(self, x: Tensor, y: Tensor, noise: Noise, part: Part) -> tuple[Tensor, Tensor]:
        """Return the rows of a training batch after random changes."""
        x = x.to(self.dtype) if self.preprocess.scaling.has_numbers(x) else x
        if not self._changes:
            return x, y
        return self.augment.mix(self.augment(x, noise, part), y, noise, self.preprocess.classes)

    def _orders(self, epoch: int) -> dict[torch.device, Tensor]:
        """Return the order of the samples in an epoch, int64 [N], on each device where samples or labels lie."""
        places = {x.device for x in (*tensors_of(self.x), self.y)}
        if self.seed is None:
            return {place: torch.arange(len(self.y), device=place) for place in places}
        noise = Noise(self.seed, epoch).fold("shuffle")
        blocks = next((x.blocks for x in tensors_of(self.x) if isinstance(x, Rows)), None)
        order = noise.permutation(len(self.y)) if blocks is None else local_order(blocks, noise, self.batch_size)
        return {place: sent(order, place) for place in places}

    def _picked(self, orders: dict[torch.device, Tensor], i: int, share: tuple[int, int] | None) -> Raw:
        """Return the raw samples of a batch, or of a share of it, where they lie."""
        part, first = self._part(i, share), i * self.batch_size
        chosen = {place: order[first + part.start : first + part.stop] for place, order in orders.items()}
        x = apply(self.x, lambda x: gathered(x, chosen[x.device], self.device))
        return Raw(x, gathered(self.y, chosen[self.y.device], self.device))
