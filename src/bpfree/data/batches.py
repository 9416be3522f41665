"""Minibatches: shuffled by key, augmented and normalised on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bpfree.data.dataset import Preprocess, Split
from bpfree.errors import UserError
from bpfree.noise import Noise
from bpfree.types import Batch


@dataclass(frozen=True)
class Augment:
    """Random changes to raw images [B, C, H, W], drawn for each image anew.

    Args:
        shift: pixels that an image may move in each direction; what comes in is black.
        flip: mirror left and right with probability 1/2.
    """

    shift: int = 0
    flip: bool = False

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """[B, C, H, W] -> the same.

        Raises:
            UserError: the samples are no images.
        """
        if not self.shift and not self.flip:
            return x
        if x.dim() != 4:
            raise UserError(
                f"data.shift, data.flip: samples have the shape {list(x.shape[1:])}, allowed: images "
                "[channels, height, width]"
            )
        generator = noise.fold("augment").generator()
        b, _, height, width = x.shape
        rows = torch.arange(height).expand(b, height)
        columns = torch.arange(width).expand(b, width)
        if self.flip:
            flipped = torch.rand(b, 1, generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        if self.shift:
            moves = torch.randint(0, 2 * self.shift + 1, (2, b, 1), generator=generator)
            rows, columns = rows + moves[0], columns + moves[1]
            x = torch.nn.functional.pad(x, [self.shift] * 4)
        sample = torch.arange(b, device=x.device).view(b, 1, 1)
        rows, columns = rows.to(x.device).unsqueeze(2), columns.to(x.device).unsqueeze(1)
        return x.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)


class Batches:
    """The minibatches of a split.

    With a seed they are shuffled anew each epoch, by key, and a last one that is not full is left out (batch norm
    cannot use a single sample); without one they come in order and all of them.

    Args:
        split: raw samples; moved to the device once.
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
        self.x, self.y = split.x.to(device), split.y.to(device)
        self.preprocess = preprocess
        self.batch_size = min(batch_size, max(len(self.y), 1))
        self.dtype = dtype
        self.augment = augment or Augment()
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
        order = order.to(self.y.device)
        for i in range(start, len(self)):
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            x = self.x[index]
            if self.seed is not None:
                x = self.augment(x, Noise(self.seed, epoch).fold("batch", i))
            y = self.preprocess.target(x, self.dtype) if self.rebuild else self.y[index]
            yield Batch(self.preprocess(x, self.dtype), y)
