"""How much each depth of a net knows of the labels."""

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_choice, unknown
from bpfree.inputs import Inputs, forward
from bpfree.local.autotaps import find_segments
from bpfree.local.cut import OUTPUT, cut
from bpfree.local.rule import LocalRule
from bpfree.trackers.base import Measure
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars, kind_of

_GRID = 4  # to which feature maps are averaged before a probe reads them
_RIDGE = 1e-2  # in units of the mean eigenvalue


class SegmentAccuracy(Measure):
    """Accuracy at each tap and at the output, in evaluation mode, on training samples.

    A tap is read by the segment's own head, or by a linear probe where it has none: ridge regression on the labels,
    fitted anew each time on the first half of the samples. All are scored on the second half. The samples are the
    first of the first epoch, the same at every measurement.

    Args:
        every: steps from one measurement to the next; the first step is measured.
        read: "head", or "probe" to read every tap by a probe, so that rules can be compared.
        samples: how many, at least 2; half for the probe, half for the score.
        taps: submodules to read; default: those of a local rule; else the stages of a Sequential, the blocks of another
            net.
    """

    name = "segment_accuracy"
    unit = "accuracy"

    def __init__(
        self,
        *,
        every: int = 100,
        read: Literal["head", "probe"] = "head",
        samples: int = 1000,
        taps: Sequence[str] | None = None,
    ) -> None:
        super().__init__(every=every)
        check_choice("read", read, ("head", "probe"))
        if samples < 2:
            raise UserError(f"samples: found {samples}, allowed: at least 2, half of them for the probe")
        self.read = read
        self.samples = samples
        self.taps = taps
        self._batches: list[Batch] = []

    def on_start(self, trainer: Trainer) -> None:
        """Find the taps.

        Raises:
            UserError: the rule does not run net(x), the task has no accuracy, or nobody knows the taps.
        """
        rule, self._batches = trainer.rule, []
        is_local = isinstance(rule, LocalRule)
        if not is_local and not rule.predicts_with_net:
            raise self.refuse(
                f"reads features within net(x), but {type(rule).__name__} does not run the net so. Drop it"
            )
        if is_local and self.taps is not None:
            raise self.refuse(f"has taps={list(self.taps)}, but reads a local rule at the taps of the rule. Drop them")
        if kind_of(trainer.task) != "classify":
            raise self.refuse(f"needs one class for each sample, but the task is {kind_of(trainer.task)}. Drop it")
        modules = [name for name, _ in trainer.net.named_modules() if name]
        for tap in self.taps or ():
            if tap not in modules:
                raise unknown("tap", tap, modules)
        if isinstance(rule, LocalRule):
            self._taps = rule.taps
        else:
            assert trainer.data is not None
            self._taps = tuple(self.taps or _automatic(trainer.net, next(trainer.data.epoch())))

    @torch.no_grad()
    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Accuracy by tap, and `output` where the net's own output is what the rule predicts by."""
        assert trainer.data is not None
        if not self._batches:
            self._batches = list(islice(trainer.data.epoch(), -(-self.samples // trainer.data.batch_size)))
        trainer.net.eval()
        trainer.rule.eval()
        with trainer.arithmetic():
            read = [self._read(trainer, b.x) for b in self._batches]
        target = torch.cat([trainer.task.target(b) for b in self._batches])[: self.samples].double()
        labels = target.argmax(1)  # with mixup, of the larger share
        half = len(labels) // 2
        accuracies: dict[str, float] = {}
        for tap, (has_scores, _) in read[0].items():
            values = torch.cat([by_tap[tap][1] for by_tap in read])[: self.samples]
            scores = values[half:] if has_scores else probe(values[:half], target[:half], values[half:])
            accuracies[tap] = float((scores.argmax(1).to(labels.device) == labels[half:]).double().mean())
        return accuracies

    def _read(self, trainer: Trainer, x: Inputs) -> dict[str, tuple[bool, Tensor]]:
        """By tap, class scores [B, C] and True, or features [B, H] and False."""
        rule, found = trainer.rule, {}

        def visit(index: int, h: Tensor) -> Tensor | None:
            scores = rule.scores(index, h) if isinstance(rule, LocalRule) and self.read == "head" else None
            found[self._taps[index]] = (True, scores) if scores is not None else (False, _features(h))
            return rule.pass_on(index, h) if isinstance(rule, LocalRule) else None

        with cut(trainer.net, self._taps, visit):
            out = forward(trainer.net, x)
        if rule.predicts_with_net:
            found[OUTPUT] = (True, out)
        return found


def _automatic(net: nn.Module, batch: Batch) -> tuple[str, ...]:
    """Where a local rule would cut the net by itself."""
    return tuple(segment.name for segment in find_segments(net, batch.first(2).x).segments[:-1])


def probe(features: Tensor, target: Tensor, unseen: Tensor) -> Tensor:
    """Scores [M, D] of unseen features [M, H] by ridge regression from features [N, H] to targets [N, D].

    It is solved in the samples and not in the features, N x N, on the CPU in float64.
    """
    mean, offset = features.mean(0), target.cpu().mean(0)
    features, unseen = features - mean, unseen - mean
    kernel, between = (features @ features.T).double().cpu(), (unseen @ features.T).double().cpu()
    ridge = _RIDGE * kernel.diagonal().mean() + torch.finfo(torch.float32).tiny
    weights = torch.linalg.solve(kernel + ridge * torch.eye(len(kernel)), target.cpu() - offset)
    scores: Tensor = between @ weights + offset
    return scores


def _features(h: Tensor) -> Tensor:
    """[B, ...] -> [B, H] in float32 or wider; of feature maps, averages over a grid."""
    h = h.float() if h.itemsize < 4 else h
    return (F.adaptive_avg_pool2d(h, _GRID) if h.dim() == 4 else h).flatten(1)
