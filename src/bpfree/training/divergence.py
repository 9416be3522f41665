"""Checks for trainings that go wrong: a first batch that does not fit the net, a loss or weight that is not finite."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from bpfree.errors import DivergedError, UserError
from bpfree.inputs import shapes
from bpfree.nets.hard import without_derivatives
from bpfree.rule import Rule
from bpfree.rules import RULES
from bpfree.types import Batch, Scalars


def refuse_no_derivatives(net: nn.Module, rule: Rule) -> None:
    """Raise UserError if the rule differentiates and a module of the net does not have a derivative.

    Args:
        net: the net.
        rule: the rule. Its `needs_derivatives` says if it differentiates.
    """
    hard = without_derivatives(net) if rule.needs_derivatives else None
    if hard:
        able = [name for name, each in RULES.items() if not each.needs_derivatives]
        raise UserError(
            f"net: {hard} has no derivative, but {type(rule).__name__} differentiates. Allowed: "
            f"rules that do not ({', '.join(able)})"
        )


def find_non_finite(net: nn.Module, rule: nn.Module) -> Iterator[str]:
    """Yield a description of each parameter and buffer that contains a NaN or an infinity.

    Args:
        net: the net.
        rule: the rule.
    """
    for part, module in (("net", net), ("rule", rule)):
        # Not parameters() alone: the running means of batch norm may become infinite too.
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                yield f"'{name}' of the {part}"


def read_scalars(scalars: Sequence[Scalars], first: int) -> Iterator[tuple[int, str, float]]:
    """Yield the scalars of several steps as numbers: the step, counted from 1, the name and the value.

    Args:
        scalars: the rule's scalars, for each step.
        first: the number of steps that were taken before these.
    """
    labels = [(step, name) for step, each in enumerate(scalars, start=first + 1) for name in each]
    # One tensor for all of them: each `tolist` waits until the GPU has computed everything before it.
    values = [value.float() for each in scalars for value in each.values()]
    for (step, name), value in zip(labels, torch.stack(values).tolist() if values else [], strict=True):
        yield step, name, value


def divergence_error(optimizer: torch.optim.Optimizer, clip: float | None, what: str) -> DivergedError:
    """Return the error that says what is not finite, and what the user can try.

    Args:
        optimizer: for its learning rate.
        clip: the trainer's limit of gradient norms, if there is one.
        what: the value that is not finite, as a sentence.
    """
    lr = optimizer.param_groups[0]["lr"]
    milder = "a smaller train.clip" if clip else "train.clip=1"
    return DivergedError(
        f"training diverged: {what}. Try a smaller optimizer.lr (it is {lr:g} now), {milder}, or a schedule that "
        "starts slowly (schedule=onecycle)"
    )


@contextmanager
def explain_first_step(batch: Batch) -> Iterator[None]:
    """Turn an error of torch within the block into a UserError; most often the net does not fit the data.

    Args:
        batch: the batch of the step, for its shape, dtype and device.

    Raises:
        UserError: the block raised an error that a wrong batch can cause.
    """
    try:
        yield
    # A UserError is a ValueError, and says already what is wrong.
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # IndexError: a label out of range
        text = " ".join(str(error).split())
        advice = "Does the net take samples of that shape, batches of that size, and labels in that range?"
        if any(words in text for words in _DIFFERENT_PLACES):
            advice = (
                f"The samples are {batch.dtype} on {batch.device}: the net must have that dtype and be on that device. "
                "Move one of them, for example with batch.to(device)"
            )
        raise UserError(f"the first step failed on a batch of shape {shapes(batch.x)}: {text}. {advice}") from error


_DIFFERENT_PLACES = ("same device", "same dtype", "should be the same", "expected device")
"""Words of torch's errors about samples and weights that differ in dtype or device."""
