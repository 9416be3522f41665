"""Data from a torch DataLoader, gone through once: what it draws at random is drawn once and for all."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from bpfree.data.origins import numbered, origin
from bpfree.data.records import record_of
from bpfree.data.tensors import to_inputs, to_tensor
from bpfree.errors import UserError
from bpfree.inputs import Inputs, concatenate, shapes, tensors_of


class Collected(NamedTuple):
    """Samples and labels that were read from a data set or a loader.

    Attributes:
        x: samples.
        y: labels [N, ...].
        origin: int64 [N], the same number for copies of one sample; None if there are none.
    """

    x: Inputs
    y: Tensor
    origin: Tensor | None = None


class _Plan(NamedTuple):
    """A loader whose order is fixed.

    Attributes:
        loader: to go through.
        batches: how many there are.
        indices: of the samples of each batch; None if the loader does not tell.
    """

    loader: "DataLoader[Any]"
    batches: int
    indices: list[list[Any]] | None


def collect(loader: "DataLoader[Any]", what: str) -> Collected:
    """All samples and labels of a DataLoader, in the order of its data set if it shuffles.

    Shuffling is bpfree's own, by key, so that a training can be repeated; the loader's workers do the reading. A last
    batch that is not full is read too. A sampler of the user's own is asked once, and what it repeats is remembered, so
    that no copy of a validation sample is trained on.

    Args:
        loader: of pairs (samples, labels), or of dicts with labels; see `bpfree.data.records`.
        what: for errors.

    Raises:
        UserError: it has no length, so it may never end, no batches, batches of another form, or reading one failed.
    """
    plan = _plan(loader, what)
    xs: list[Inputs] = []
    ys: list[Tensor] = []
    for batch in _batches(plan, what):
        x, y = record_of(batch, f"{what}: found batches that are no pairs of tensors")
        y = to_tensor(y, f"{what} (labels)")
        xs.append(to_inputs(x, f"{what} (samples)", len(y) if y.dim() else None, lists=True))
        if not y.dim() or any(not t.dim() for t in tensors_of(xs[-1])):
            raise UserError(
                f"{what}: found batches of shape {shapes(xs[-1])} with labels {list(y.shape)}, allowed: samples "
                "[B, ...] and labels [B, ...]. Leave the loader's batch_size to more than None"
            )
        ys.append(y)
    if not xs:
        raise UserError(f"{what}: found no samples, allowed: at least one")
    try:
        together = Collected(joined(xs), torch.cat(ys))
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{what}: its batches do not go together ({reason}), allowed: samples of one shape and form"
        ) from error
    return together._replace(origin=_origin(loader, plan, [len(y) for y in ys], what))


def joined(parts: list[Inputs]) -> Inputs:
    """Inputs joined along the samples.

    Raises:
        TypeError: some are of another form than others.
        RuntimeError: some are of another shape than others.
    """
    forms = [sorted(x) if isinstance(x, dict) else [len(x)] if isinstance(x, tuple) else [] for x in parts]
    for form in forms:
        if form != forms[0]:
            raise TypeError(f"the inputs {form or 'of one array'} beside {forms[0] or 'one array'}")
    return concatenate(parts)


def _plan(loader: "DataLoader[Any]", what: str) -> _Plan:
    """The same loader in a known order.

    Raises:
        UserError: it has no length.
    """
    try:
        batches = len(loader)
    except (TypeError, NotImplementedError) as error:
        raise UserError(
            f"{what}: found a DataLoader without a length, which may never end, allowed: one whose len() is known. "
            "Take as many batches as you want yourself, and give (torch.cat(samples), torch.cat(labels))"
        ) from error
    if type(loader).__iter__ is not DataLoader.__iter__:
        return _Plan(loader, batches, None)
    if isinstance(loader.dataset, IterableDataset):  # by one worker: several would each give the whole stream
        one = DataLoader(loader.dataset, loader.batch_size, num_workers=0, collate_fn=loader.collate_fn)
        return _Plan(one, batches, None)
    if loader.batch_sampler is None:
        order = list(islice(iter(loader.sampler), batches))
        return _Plan(_with(loader, batch_size=None, sampler=order), batches, [[index] for index in order])
    if _is_plain(loader):
        size = int(loader.batch_size or 1)
        n = len(loader.sampler)  # type: ignore[arg-type]
        lists = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    else:
        lists = [list(batch) for batch in islice(iter(loader.batch_sampler), batches)]
    return _Plan(_with(loader, batch_sampler=lists), len(lists), lists)


def _is_plain(loader: "DataLoader[Any]") -> bool:
    """Whether each sample of the data set comes once, in order or shuffled; samplers of one's own stay."""
    sampler: Any = loader.sampler
    if type(loader.batch_sampler) is not BatchSampler or type(sampler) not in (RandomSampler, SequentialSampler):
        return False
    source: Any = loader.dataset
    if sampler.data_source is not source:
        return False
    whole = not getattr(sampler, "replacement", False) and len(sampler) == len(source)
    return type(sampler) is SequentialSampler or whole


def _with(loader: "DataLoader[Any]", **order: Any) -> "DataLoader[Any]":
    return DataLoader(
        loader.dataset,
        **order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        timeout=loader.timeout,
        generator=loader.generator,
    )


def _batches(plan: _Plan, what: str) -> Iterator[Any]:
    """Iterate over the batches of a loader.

    Raises:
        UserError: the data set, a worker or the loader's collate_fn raised something.
    """
    batches = iter(plan.loader)
    for number in range(plan.batches):
        try:
            batch = next(batches)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:  # of the user's code, in this process or a worker
            raise UserError(
                f"{what}: its DataLoader failed at batch {number}, from 0 ({told(error)}). Look at what its data set "
                "gives there; with num_workers=0 Python shows the place"
            ) from error
        yield batch


def told(error: Exception) -> str:
    """Return an error of the user's code as one line: the last line of the traceback that a worker's error holds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "worker process" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines)}".removesuffix(": ")


def _origin(loader: "DataLoader[Any]", plan: _Plan, counts: list[int], what: str) -> Tensor | None:
    """Which samples are copies of one.

    Raises:
        UserError: there are some, and batches have other numbers of samples than the sampler asked for.
    """
    if plan.indices is None:
        return None
    keys = [[origin(loader.dataset, index) for index in batch] for batch in plan.indices]
    try:
        numbers = numbered([key for batch in keys for key in batch])
    except TypeError:  # indices that cannot be compared
        return None
    if numbers is None:
        return None
    if loader.batch_sampler is None:  # a batch for each index
        return numbered([(key, row) for (key,), count in zip(keys, counts, strict=True) for row in range(count)])
    if counts != [len(batch) for batch in keys]:
        raise UserError(
            f"{what}: its sampler repeats samples, and its collate_fn gives {sum(counts)} samples where the sampler "
            f"asks for {len(numbers)}, so that it cannot be told which are copies of one, allowed: a sampler that does "
            "not repeat, or a collate_fn that keeps all samples. A copy in validation would be trained on"
        )
    return numbers
