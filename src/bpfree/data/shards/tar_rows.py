"""Samples that stay in tars: each is read from its offset and decoded when a batch needs it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bpfree.data.files.open_file import OpenFiles
from bpfree.data.files.pixels import PixelFormat
from bpfree.data.files.rows import Blocks
from bpfree.data.shards.decoders import ArrayDecoder, Decoder, ImageDecoder, in_threads
from bpfree.data.shards.tar_index import TarIndex
from bpfree.data.shards.tar_samples import name_at
from bpfree.errors import UserError

NEIGHBOURS = 256
"""The number of samples in a block: neighbours in a tar, which a shuffled order keeps close."""

_HEADER = 512  # bytes of the header before a member


class TarRows:
    """The samples of some tars, as a source of `bpfree.data.files.rows.Rows`.

    Args:
        tars: the paths of the tars.
        index: where the samples lie.
        window: the number of samples that a shuffled order mixes at a time.
        decoder: of the training samples; None to make one from the first sample.
        form: the format that images are decoded to.

    Raises:
        UserError: the first sample cannot be read.

    Attributes:
        bytes_read: how many bytes of samples were read so far, for measurements.
    """

    def __init__(
        self, tars: Sequence[Path], index: TarIndex, window: int, *, decoder: Decoder | None, form: PixelFormat
    ) -> None:
        self.path = tars[0].parent
        self.index = index
        self.bytes_read = 0
        self._files = OpenFiles(tars)
        self.decoder = decoder or self._first_decoder(form)
        self.shape, self.dtype = self.decoder.shape, self.decoder.dtype
        self.blocks: Blocks | None = Blocks(_neighbours(index.shard), window)

    def read(self, index: Tensor) -> Tensor:
        """Return the samples at the positions `index` [n], int64, as a tensor [n, ...] in memory.

        Raises:
            UserError: a tar has changed, or a sample cannot be decoded or differs from the first one.
        """
        out = torch.empty(len(index), *self.shape, dtype=self.dtype)
        positions: list[int] = index.tolist()

        def fill(i: int) -> None:
            out[i] = self._sample(positions[i])

        in_threads(fill, len(positions))
        self.bytes_read += int(self.index.size[index].sum())
        return out

    def name(self, position: int) -> str:
        """Return the tar and the name of a sample, for errors. It is read from the tar."""
        tar, place = self._files.get(int(self.index.shard[position])), int(self.index.place[position])
        name = name_at(bytes(tar.read(place - _HEADER, _HEADER))) if place >= _HEADER else ""
        return f"{tar.path}: {name!r}" if name else f"{tar.path}, byte {place:,}"

    def _sample(self, position: int) -> Tensor:
        content = self._content(position)
        try:
            return self.decoder(content, "")
        except UserError:
            # Once more, now with the name for the error. Names are not in the index, because they take memory.
            return self.decoder(content, self.name(position))

    def _content(self, position: int) -> bytearray:
        tar = self._files.get(int(self.index.shard[position]))
        return tar.read(int(self.index.place[position]), int(self.index.size[position]))

    def _first_decoder(self, form: PixelFormat) -> Decoder:
        content, name = self._content(0), self.name(0)
        return ArrayDecoder(content, name) if self.index.are_arrays else ImageDecoder(form, content, name)


def _neighbours(shard: Tensor) -> Tensor:
    """Return the number of the block of each sample, int64 [N], for the place of its tar, [N], rising."""
    counts = torch.bincount(shard)
    nth = torch.arange(len(shard)) - (counts.cumsum(0) - counts)[shard]  # in its tar
    blocks = -(-counts // NEIGHBOURS)
    return (blocks.cumsum(0) - blocks)[shard] + nth // NEIGHBOURS
