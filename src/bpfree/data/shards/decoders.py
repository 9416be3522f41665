"""Decode samples that lie in shards as encoded images or as arrays of numpy. Nothing is unpickled."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bpfree.data.files.images import decode, is_grey
from bpfree.data.files.pixels import PixelFormat, threads
from bpfree.data.tensors import channels_first, to_tensor
from bpfree.errors import UserError

_HEADERS: dict[tuple[int, int], Callable[[BytesIO], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

_BROKEN = (ValueError, KeyError, TypeError, OverflowError, EOFError, RecursionError, MemoryError)


class Decoder(Protocol):
    """Turns the content of one sample into a tensor. All samples have the shape and type of the first one.

    Attributes:
        shape: the shape of a sample.
        dtype: the type of its values.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, content: bytes | bytearray, what: str) -> Tensor:
        """Return a sample, or raise UserError if it cannot be decoded or differs from the first one.

        Args:
            content: of the file.
            what: the sample as the user knows it, for errors.
        """


class ImageDecoder:
    """Decodes images to uint8 [C, H, W].

    Args:
        form: the format that images are decoded to. "auto" channels are those of the first image, and without a size
            all images have that of the first.
        first: the content of the first image.
        what: the first image as the user knows it, for errors.

    Raises:
        UserError: the first image cannot be read.
    """

    def __init__(self, form: PixelFormat, first: bytes | bytearray, what: str) -> None:
        self._is_auto = form.channels == "auto"
        self._form = form._replace(channels=1 if is_grey(BytesIO(first)) else 3) if self._is_auto else form
        self.dtype = torch.uint8
        self.shape: tuple[int, ...] = tuple(self._decoded(first, what).shape)

    def __call__(self, content: bytes | bytearray, what: str) -> Tensor:
        """Return an image, or raise UserError if it cannot be decoded or differs from the first one."""
        # One grey image must not take the colour of all the others.
        if self._is_auto and self._form.channels == 1 and not is_grey(BytesIO(content)):
            raise UserError(
                f"{what}: found an image in colour, allowed: grey, as the first image. For colour give data.channels=3"
            )
        image = self._decoded(content, what)
        if image.shape != self.shape:
            found, allowed = (f"{shape[1]}x{shape[2]}" for shape in (image.shape, self.shape))
            raise UserError(
                f"{what}: found {found} pixels (height x width), allowed: {allowed}, as the first image. To scale all "
                "images to one size give data.size"
            )
        return image

    def _decoded(self, content: bytes | bytearray, what: str) -> Tensor:
        channels, size, bits = self._form
        assert channels != "auto"
        return decode(BytesIO(content), channels=channels, size=size, what=what, bits=bits)


class ArrayDecoder:
    """Decodes .npy files of numbers. Bytes [H, W] and [H, W, C] are images, and become [C, H, W].

    Args:
        first: the content of the first file.
        what: the first file as the user knows it, for errors.

    Raises:
        UserError: the first file is damaged, or not an array of numbers.
    """

    def __init__(self, first: bytes | bytearray, what: str) -> None:
        sample = as_samples(npy(first, what)[None], what)[0]
        self.shape: tuple[int, ...] = tuple(sample.shape)
        self.dtype = sample.dtype

    def __call__(self, content: bytes | bytearray, what: str) -> Tensor:
        """Return a sample, or raise UserError if it is damaged or differs from the first one."""
        sample = as_samples(npy(content, what)[None], what)[0]
        if sample.shape != self.shape or sample.dtype != self.dtype:
            raise UserError(
                f"{what}: found {sample.dtype} {list(sample.shape)}, allowed: {self.dtype} {list(self.shape)}, as the "
                "first sample"
            )
        return sample


def npy(content: bytes | bytearray, what: str) -> "np.ndarray[Any, Any]":
    """Return the array of numbers in a .npy file.

    Args:
        content: of the file.
        what: the file as the user knows it, for errors.

    Raises:
        UserError: the file is damaged, or contains Python objects, which would have to be unpickled.
    """
    try:
        # Of version 1 the length of the header lies in bytes 8 and 9, of version 2 in bytes 8 to 11.
        begin = 10 if content[6:7] == b"\x01" else 12
        header = bytes(content[: begin + int.from_bytes(content[8:begin], "little")])
        shape, is_fortran, dtype = _of_header(header)
        # The header may claim any size, so it is compared with the content before memory is reserved.
        if dtype.hasobject or prod(shape) * dtype.itemsize != len(content) - len(header) or not dtype.itemsize:
            raise ValueError(f"{dtype} {list(shape)} in {len(content):,} bytes")
        array = np.frombuffer(content, dtype, offset=len(header))
        return array.reshape(shape, order="F" if is_fortran else "C")
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: not an array of numbers that numpy can read ({reason})") from error


@lru_cache(maxsize=16)
def _of_header(header: bytes) -> Any:
    """Return shape, order and type in the header of a .npy file. To parse it takes longer than all the rest."""
    stream = BytesIO(header)
    return _HEADERS[np.lib.format.read_magic(stream)](stream)


def as_samples(values: "np.ndarray[Any, Any]", what: str) -> Tensor:
    """Return an array as samples [N, ...], images with channels first, as the data set `arrays` does.

    Args:
        values: an array [N, ...].
        what: the array as the user knows it, for errors.

    Raises:
        UserError: the values are not numbers, or are not finite.
    """
    x = to_tensor(values, what)
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise UserError(f"{what}: found NaN or infinite values, allowed: finite ones")
    if x.dim() == 1:
        x = x.unsqueeze(1)
    if x.dtype == torch.uint8 and x.dim() == 3:
        x = x.unsqueeze(1)
    return channels_first(x)


def in_threads(work: Callable[[int], object], n: int) -> None:
    """Call `work` with 0 to n - 1, in one thread for each core. Pillow lets other threads run while it decodes.

    Args:
        work: does one piece. The first error that it raises, by the number of the thread, is raised here.
        n: the number of pieces.
    """
    workers = min(threads(), n)
    if workers < 2:
        for i in range(n):
            work(i)
        return

    def share(first: int) -> None:
        for i in range(first, n, workers):
            work(i)

    # The threads end with the call, so that a forked process does not wait for threads that it does not have.
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(share, range(workers)))
