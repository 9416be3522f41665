"""The decision if the feature maps of a net lie channels last in memory while it trains.

With channels last, convolutions are up to 1.7 times as fast on a CPU. The units of a GPU that multiply bfloat16 and
TF32 read maps in this order, and other maps are first copied into it. We put only the samples in this order; the
outputs of convolutions then follow. The net does not change: its weights stay as they are.

The order is used if three conditions hold. It is known to be faster for such a net. No known fault of a library forbids
it. And a rehearsal on copies of net and rule passes, because some nets cannot run in this order
(`x.view(len(x), -1)` after a convolution raises), and some derivatives do not exist (forward mode of GroupNorm).
Checkpoints contain the decision.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bpfree.inputs import Inputs, tensors_of
from bpfree.local.channels_last import channels_last
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.training.compute import arithmetic_of
from bpfree.training.precision import Precision
from bpfree.training.processor import has_avx512, is_x86
from bpfree.types import Batch, Task

log = logging.getLogger(__name__)

_KEY = Noise().fold("rehearsal")
_FEW = 16  # samples of a rehearsal; a whole batch would take the time of a step
# Relative; two orders add numbers in another sequence.
_TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "float32_torch": 1e-3, "tf32": 0.02, "bfloat16": 0.1}


class Fault(NamedTuple):
    """A fault of a library that shows only with channels last.

    Attributes:
        link: address of its description.
        hits: a function of net and rule that returns True if the fault can occur in their training on the CPU.
    """

    link: str
    hits: Callable[[nn.Module, nn.Module], bool]


def _narrow_strided_1x1(*modules: nn.Module) -> bool:
    """Return True for a strided 1x1 convolution with fewer than 8 input channels, on a processor without AVX-512.

    oneDNN's backward pass then writes past the end of its workspace: the process dies, or gradients are wrong.
    """
    if not is_x86() or has_avx512():
        return False
    layers = [layer for module in modules for layer in module.modules()]
    # Weights may also belong to modules other than Conv2d. So every weight of that shape counts, unless a Conv2d of
    # stride 1 has it.
    safe = {id(layer.weight) for layer in layers if isinstance(layer, nn.Conv2d) and set(layer.stride) == {1}}
    return any(
        p.dim() == 4 and p.shape[2:] == (1, 1) and p.shape[1] < 8 and id(p) not in safe
        for module in modules
        for p in module.parameters()
    )


FAULTS = (Fault("https://github.com/uxlfoundation/oneDNN/issues/6035", _narrow_strided_1x1),)


def allows_channels_last(
    net: nn.Module, rule: Rule, task: Task, batch: Batch, precision: Precision, decided: bool | None
) -> bool:
    """Return True if the samples of a training are to lie channels last.

    Args:
        net: the net.
        rule: bound to the net.
        task: the task.
        batch: the first batch of the training.
        precision: the number type of forward passes.
        decided: the decision in the checkpoint of a training that goes on, or whose weights are used; None if there is
            not one. A known fault of a library on this machine still forbids the order.
    """
    if not gains(net, batch.x, precision):
        return False
    hitting = [fault.link for fault in FAULTS if fault.hits(net, rule)]
    if hitting and batch.device.type == "cpu":
        log.info("net: feature maps do not lie channels last, because of a fault of a library: %s", hitting[0])
        return False
    return _Rehearsal(net, rule, task, precision).passes(batch) if decided is None else decided


class _Rehearsal(NamedTuple):
    """A step that is tried on copies of net and rule, in both orders."""

    net: nn.Module
    rule: Rule
    task: Task
    precision: Precision

    def passes(self, batch: Batch) -> bool:
        """Return True if the step works with channels last and its outcome is that of the other order."""
        with warnings.catch_warnings(), _KEY.global_rng(batch.device):
            warnings.simplefilter("ignore")  # the training will give them
            for part in (batch.first(_FEW), batch):  # few samples may be too few for the rule
                try:
                    expected = self.outcome(part, training=False)
                except Exception as error:  # whatever a foreign net or rule raises; the training itself will raise it
                    log.debug("rehearsal: %s", error)
                    continue
                ordered = part._replace(x=channels_last(part.x))
                try:
                    self.outcome(ordered, training=True)
                    outcome = self.outcome(ordered, training=False)
                except Exception as error:
                    log.info("net: feature maps do not lie channels last, since then it fails: %s", error)
                    return False
                return alike(outcome, expected, self.precision)
        return False

    def outcome(self, batch: Batch, *, training: bool) -> list[Tensor | None]:
        """Return the prediction, and the gradients of net and rule.

        Args:
            batch: the samples, in either order.
            training: False to switch dropout off. Its masks are drawn in the order in which values lie in memory, so
                two orders would not be alike.
        """
        net, rule = copy.deepcopy((self.net, self.rule))  # together: a rule may hold modules of the net
        net.train(training)
        rule.train(training)
        with arithmetic_of(rule, self.precision, batch.device):
            if rule.needs_derivatives:
                rule.gradients(net, self.task, batch, _KEY)
            net.eval()
            rule.eval()
            with torch.no_grad():
                out = rule.predict(net, batch.x)
        return [out, *(p.grad for p in (*net.parameters(), *rule.parameters()))]


def gains(net: nn.Module, x: Inputs, precision: Precision) -> bool:
    """Return True if a net with such inputs is faster with channels last: measured on x86 processors, expected on CUDA.

    Args:
        net: the net.
        x: samples, for their shapes, types and device.
        precision: the number type of forward passes.
    """
    maps = [t for t in tensors_of(x) if t.dim() == 4 and t.dtype == torch.float32]
    if not maps or not any(p.dim() == 4 and p.dtype == torch.float32 for p in net.parameters()):
        return False
    device = maps[0].device.type
    if device == "cpu":
        return is_x86() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return device == "cuda" and precision in ("bfloat16", "tf32")


def alike(found: list[Tensor | None], expected: list[Tensor | None], precision: Precision) -> bool:
    """Return True if two outcomes of a rehearsal differ by no more than rounding.

    Args:
        found: the tensors with channels last; None for a parameter without a gradient.
        expected: the tensors of the ordinary order.
        precision: the number type of forward passes.
    """
    tolerance = _TOLERANCES[precision]
    if [t is None for t in found] != [t is None for t in expected]:
        return False
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    # A gradient that is zero but for rounding, such as that of a bias before batch norm, has no meaningful relative
    # error. So a share of the largest norm is added to each norm.
    small = 1e-3 * max(float(b.norm()) for _, b in pairs)
    return all(float((a - b).norm()) <= tolerance * (float(b.norm()) + small) for a, b in pairs)
