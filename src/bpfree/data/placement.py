"""The place of a training's samples: the device if they fit there, else the host, with copies one batch ahead.

A copy from ordinary memory makes the host wait. So batches from the host lie in pinned memory, and a second stream of
the device copies the next batch while the step on the present one runs.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpfree.data.files.rows import Rows
from bpfree.inputs import Inputs, apply, tensors_of
from bpfree.memory import free_memory

log = logging.getLogger(__name__)

_SHARE = 4  # a tensor of samples may take one part in so many of the free memory; the rest is for the training


class Raw(NamedTuple):
    """The raw samples and labels of a batch.

    Attributes:
        x: raw samples [B, ...], or several inputs.
        y: labels [B, ...].
    """

    x: Inputs
    y: Tensor


def placed(x: Tensor, device: torch.device) -> Tensor:
    """Return all samples or labels on the device, or as they are if they would fill much of its memory.

    A line in the log says so if they stay. Samples in a file stay there.

    Args:
        x: [N, ...].
        device: of the training.
    """
    if isinstance(x, Rows) or x.device == device:
        return x
    size, free = x.numel() * x.element_size(), free_memory(device)
    if free is None or _SHARE * size <= free:
        return x.to(device)
    log.info(
        "data: %s of shape %s (%.2f GB) stay on the %s, since %s has %.2f GB of free memory; batches are copied one "
        "ahead",
        *("samples or labels", list(x.shape), size / 1e9, x.device.type, device, free / 1e9),
    )
    return x


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; the host does not wait for the copy if the device can copy by itself."""
    if x.device == device or device.type != "cuda":
        return x.to(device)
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


def gathered(x: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Return some samples, where they lie; in pinned memory if they are to be copied to a GPU.

    Args:
        x: [N, ...], in memory or in a file.
        index: positions [B], int64, on the device of x.
        device: where the samples will be used.
    """
    if device.type != "cuda" or x.device.type != "cpu" or isinstance(x, Rows):
        return x[index]
    out = torch.empty(len(index), *x.shape[1:], dtype=x.dtype, pin_memory=True)
    return torch.index_select(x, 0, index, out=out)


def on_device(batches: Iterable[Raw], device: torch.device) -> Iterator[Raw]:
    """Return batches on the device.

    Args:
        batches: on the host or on the device.
        device: where they will be used.
    """
    for batch in batches:
        yield Raw(apply(batch.x, lambda x: x.to(device)), batch.y.to(device))


def one_ahead(batches: Iterable[Raw], device: torch.device) -> Iterator[Raw]:
    """Return batches of the host on the device: the copy of the next one begins before the present one is used.

    Args:
        batches: on the host, in pinned memory if possible.
        device: one that has streams, such as a GPU.
    """
    streams: Any = torch.get_device_module(device)
    side = streams.Stream(device)
    waiting: tuple[Raw, Any] | None = None
    for batch in batches:
        with streams.stream(side):
            copy = Raw(apply(batch.x, lambda x: sent(x, device)), sent(batch.y, device))
            coming = copy, side.record_event()
        if waiting is not None:
            yield _arrived(*waiting, streams.current_stream(device))
        waiting = coming
    if waiting is not None:
        yield _arrived(*waiting, streams.current_stream(device))


def _arrived(batch: Raw, copied: Any, stream: Any) -> Raw:
    """Let a stream wait until a batch has been copied, and return the batch."""
    stream.wait_event(copied)
    for tensor in (*tensors_of(batch.x), batch.y):
        tensor.record_stream(stream)  # else the memory could serve the next copy before the step has read it
    return batch
