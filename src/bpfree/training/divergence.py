"""When training goes wrong: a first batch that does not fit the net, a loss or weight that is no longer finite."""

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
    """Raise UserError if a rule that differentiates meets a module without a derivative."""
    found = without_derivatives(net) if rule.needs_derivatives else None
    if found:
        able = [name for name, each in RULES.items() if not each.needs_derivatives]
        raise UserError(
            f"net: {found} has no derivative, but {type(rule).__name__} differentiates. Allowed: "
            f"rules that do not ({', '.join(able)})"
        )


def find_non_finite(net: nn.Module, rule: nn.Module) -> Iterator[str]:
    """Names of the parameters and buffers that hold a NaN or an infinity."""
    for part, module in (("net", net), ("rule", rule)):
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                yield f"'{name}' of the {part}"


def read_scalars(scalars: Sequence[Scalars], first: int) -> Iterator[tuple[int, str, float]]:
    """The scalars of some steps as numbers, read from the device at once.

    Args:
        scalars: of each step.
        first: how many steps were taken before them.

    Yields:
        The step, counted from 1, the name and the value.
    """
    told = [(step, name) for step, each in enumerate(scalars, start=first + 1) for name in each]
    values = [value.float() for each in scalars for value in each.values()]
    for (step, name), value in zip(told, torch.stack(values).tolist() if values else [], strict=True):
        yield step, name, value


def divergence_error(optimizer: torch.optim.Optimizer, clip: float | None, what: str) -> DivergedError:
    """The error that says what is not finite, and what to try."""
    lr = optimizer.param_groups[0]["lr"]
    milder = "a smaller train.clip" if clip else "train.clip=1"
    return DivergedError(
        f"training diverged: {what}. Try a smaller optimizer.lr (it is {lr:g} now), {milder}, or a schedule that "
        "starts slowly (schedule=onecycle)"
    )


@contextmanager
def explain_first_step(batch: Batch) -> Iterator[None]:
    """What torch raises on the first batch is most often a net that does not fit the data."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # IndexError: a label out of range
        text = " ".join(str(error).split())
        fits = "Does the net take samples of that shape, batches of that size, and labels in that range?"
        if any(words in text for words in _APART):
            fits = (
                f"The samples are {batch.dtype} on {batch.device}: the net must have that dtype and be on that device. "
                "Move one of them, for example with batch.to(device)"
            )
        raise UserError(f"the first step failed on a batch of shape {shapes(batch.x)}: {text}. {fits}") from error


_APART = ("same device", "same dtype", "should be the same", "expected device")
"""What torch says where the samples and the weights differ in dtype or device."""
