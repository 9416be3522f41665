"""Data from a torch DataLoader, gone through once: what it draws at random is drawn once and for all."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from bpfree.errors import UserError


def collect(loader: "DataLoader[Any]", what: str) -> tuple[Tensor, Tensor]:
    """All samples [N, ...] and labels of a DataLoader, in the order of its data set if it shuffles.

    Shuffling is bpfree's own, by key, so that a training can be repeated; the loader's workers do the reading.

    Args:
        loader: of pairs (samples, labels).
        what: for errors.

    Raises:
        UserError: it has no length, so it may never end, no batches, or batches that are no pairs of tensors.
    """
    loader = _in_order(loader)
    try:
        batches = len(loader)
    except TypeError as error:
        raise UserError(
            f"{what}: found a DataLoader without a length, which may never end, allowed: one whose len() is known. "
            "Take as many batches as you want yourself, and give (torch.cat(samples), torch.cat(labels))"
        ) from error
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for batch in islice(loader, batches):
        is_pair = isinstance(batch, list | tuple) and len(batch) == 2
        if not is_pair or not all(isinstance(part, Tensor) and part.dim() for part in batch):
            raise UserError(
                f"{what}: found batches that are no pairs of tensors, but {type(batch).__name__}, allowed: (samples "
                "[B, ...], labels [B])"
            )
        xs.append(batch[0])
        ys.append(batch[1])
    if not xs:
        raise UserError(f"{what}: found no samples, allowed: at least one")
    try:
        return torch.cat(xs), torch.cat(ys)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what}: its batches do not go together ({reason}), allowed: samples of one shape") from error


def _in_order(loader: "DataLoader[Any]") -> "DataLoader[Any]":
    """The same without plain shuffling; samplers of one's own stay."""
    sampler: Any = loader.sampler
    is_plain = type(loader.batch_sampler) is torch.utils.data.BatchSampler and type(sampler) is RandomSampler
    if not is_plain or sampler.replacement or sampler.num_samples != len(sampler.data_source):
        return loader
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
