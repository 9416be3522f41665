"""Read a torch DataLoader once into memory. What its data set draws at random is drawn once, not in every epoch."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from bpfree.data.origins import number_copies, original
from bpfree.data.records import record_of
from bpfree.data.tensors import to_inputs, to_tensor
from bpfree.errors import UserError
from bpfree.inputs import Inputs, concatenate, shapes, tensors_of


class Collected(NamedTuple):
    """Samples and labels that were read from a data set or a loader.

    Attributes:
        x: samples [N, ...], or several inputs.
        y: labels [N, ...].
        origin: int64 [N], the same number for copies of one sample; None if no sample is a copy.
    """

    x: Inputs
    y: Tensor
    origin: Tensor | None = None


class _Plan(NamedTuple):
    """A loader whose order is fixed, so that every run reads the same samples.

    Attributes:
        loader: the loader to read.
        batches: the number of its batches.
        indices: for each batch the indices of its samples in the data set; None if they cannot be known.
    """

    loader: "DataLoader[Any]"
    batches: int
    indices: list[list[Any]] | None


def collect(loader: "DataLoader[Any]", what: str) -> Collected:
    """Return all samples and labels of a DataLoader.

    A loader that shuffles is read in the order of its data set, because bpfree shuffles by key, so that a training can
    be repeated. The loader's workers do the reading. A last batch that is not full is read too. The user's own sampler
    is asked once. If it repeats samples, the copies are noted, so that training gets no copy of a validation sample.

    Args:
        loader: gives pairs (samples, labels), or dicts with labels; see `bpfree.data.records`.
        what: the data, for errors.

    Raises:
        UserError: the loader has no length (it may never end), has no batches, gives batches of another form, or a
            batch cannot be read.
    """
    plan = _plan(loader, what)
    xs: list[Inputs] = []
    ys: list[Tensor] = []
    for batch in _batches(plan, what):
        x, y = record_of(batch, f"{what}: found batches that are not pairs of tensors")
        y = to_tensor(y, f"{what} (labels)")
        xs.append(to_inputs(x, f"{what} (samples)", len(y) if y.dim() else None, lists=True))
        if not y.dim() or any(not t.dim() for t in tensors_of(xs[-1])):
            raise UserError(
                f"{what}: found batches of shape {shapes(xs[-1])} with labels {list(y.shape)}, allowed: samples "
                "[B, ...] and labels [B, ...]. Give the loader a batch_size"
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
    """Return inputs joined along the samples.

    Args:
        parts: inputs of one form: all tensors, all tuples of one length, or all dicts with the same names.

    Raises:
        TypeError: the parts differ in form.
        RuntimeError: the parts differ in shape.
    """
    forms = [sorted(x) if isinstance(x, dict) else [len(x)] if isinstance(x, tuple) else [] for x in parts]
    for form in forms:
        if form != forms[0]:
            raise TypeError(f"the inputs {form or 'of one array'} beside {forms[0] or 'one array'}")
    return concatenate(parts)


def _plan(loader: "DataLoader[Any]", what: str) -> _Plan:
    """Return the loader in a known order.

    Raises:
        UserError: the loader has no length.
    """
    try:
        batches = len(loader)
    except (TypeError, NotImplementedError) as error:
        raise UserError(
            f"{what}: found a DataLoader without a length, which may never end, allowed: one whose len() is known. "
            "Read as many batches as you want yourself, and give (torch.cat(samples), torch.cat(labels))"
        ) from error
    if type(loader).__iter__ is not DataLoader.__iter__:  # the user's subclass decides on its own what it gives
        return _Plan(loader, batches, None)
    if isinstance(loader.dataset, IterableDataset):  # read by this process: each worker would give the whole stream
        one = DataLoader(loader.dataset, loader.batch_size, num_workers=0, collate_fn=loader.collate_fn)
        return _Plan(one, batches, None)
    if loader.batch_sampler is None:
        # No batching: the data set returns something for one index. `islice`, because a user's sampler may never end.
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
    """Return True if each sample of the data set comes once, in order or shuffled: then the sampler is replaced."""
    sampler: Any = loader.sampler
    # Exact types: a subclass may choose samples in a way of its own.
    if type(loader.batch_sampler) is not BatchSampler or type(sampler) not in (RandomSampler, SequentialSampler):
        return False
    source: Any = loader.dataset
    if sampler.data_source is not source:
        return False
    whole = not getattr(sampler, "replacement", False) and len(sampler) == len(source)
    return type(sampler) is SequentialSampler or whole


def _with(loader: "DataLoader[Any]", **order: Any) -> "DataLoader[Any]":
    """Return a copy of a loader that reads in another order, with the same workers and collate_fn."""
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
        UserError: the data set, a worker or the loader's collate_fn raised an exception.
    """
    batches = iter(plan.loader)
    # Not more than len() says: an IterableDataset may go on for ever, whatever length it declares.
    for number in range(plan.batches):
        try:
            batch = next(batches)
        # A loader may end before its length. In a generator, Python would turn this into a RuntimeError.
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything, here or in a worker
            raise UserError(
                f"{what}: its DataLoader failed at batch {number}, from 0 ({error_line(error)}). Look at what its data "
                "set gives there; with num_workers=0 Python shows the place"
            ) from error
        yield batch


def error_line(error: Exception) -> str:
    """Return an error of the user's code as one line: the last line of the traceback that a worker's error holds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "worker process" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines)}".removesuffix(": ")


def _origin(loader: "DataLoader[Any]", plan: _Plan, counts: list[int], what: str) -> Tensor | None:
    """Return the numbers that copies of one sample share; None if no sample is a copy.

    Args:
        loader: the user's loader.
        plan: the order in which it was read.
        counts: the number of samples that came in each batch.
        what: the data, for errors.

    Raises:
        UserError: there are copies, but a batch does not have as many samples as its sampler asked for.
    """
    if plan.indices is None:
        return None
    keys = [[original(loader.dataset, index) for index in batch] for batch in plan.indices]
    try:
        numbers = number_copies([key for batch in keys for key in batch])
    except TypeError:  # indices that cannot be compared
        return None
    if numbers is None:
        return None
    if loader.batch_sampler is None:  # a batch for each index
        return number_copies([(key, row) for (key,), count in zip(keys, counts, strict=True) for row in range(count)])
    if counts != [len(batch) for batch in keys]:
        raise UserError(
            f"{what}: its sampler repeats samples, and its collate_fn gives {sum(counts)} samples where the sampler "
            f"asks for {len(numbers)}, so bpfree cannot tell which samples are copies, allowed: a sampler that does "
            "not repeat, or a collate_fn that keeps all samples. Else training could use a copy of a validation sample"
        )
    return numbers
