"""A tracker of the accuracy that the features at each depth of a net allow."""

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_choice, unknown
from bpfree.inputs import Inputs, forward
from bpfree.local.autotaps import find_segments
from bpfree.local.cut import cut
from bpfree.local.rule import LocalRule
from bpfree.local.segments import OUTPUT
from bpfree.trackers.base import Measure
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars, kind_of

_GRID = 4  # a probe reads feature maps as averages over a grid of this side
_RIDGE = 1e-2  # in units of the mean eigenvalue of the kernel


class SegmentAccuracy(Measure):
    """Accuracy at each tap and at the output, in evaluation mode, on training samples.

    A tap is read by the head of its segment, or by a linear probe if the segment does not have a head. A probe is a
    ridge regression on the labels. It is fitted at each measurement, on the first half of the samples. The accuracy is
    that of the second half, for heads too. The samples are the first ones of the first epoch, the same each time.

    Args:
        every: number of steps from one measurement to the next. The first step is measured.
        read: "head", or "probe" to read every tap by a probe, so that rules can be compared.
        samples: number of samples, at least 2. Half are for the probe and half for the accuracy.
        taps: names of the submodules to read. Default: the taps of a local rule; for other rules the stages of a
            Sequential, or the blocks of another net.

    Raises:
        UserError: `read` or `samples` is not allowed.
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
        """Choose the taps to read, or refuse the training.

        Args:
            trainer: the trainer. Its rule is bound.

        Raises:
            UserError: the rule does not run net(x), the task is not `classify`, or a tap is not a module of the net.
        """
        rule, self._batches = trainer.rule, []
        is_local = isinstance(rule, LocalRule)
        if not is_local and not rule.predicts_with_net:
            raise self.refuse(
                f"reads features within net(x), but {type(rule).__name__} does not run the net so. Drop this tracker"
            )
        if is_local and self.taps is not None:
            raise self.refuse(f"has taps={list(self.taps)}, but a local rule is read at its own taps. Drop the option")
        if kind_of(trainer.task) != "classify":
            raise self.refuse(
                f"needs one class for each sample, but the task is {kind_of(trainer.task)}. Drop this tracker"
            )
        modules = [name for name, _ in trainer.net.named_modules() if name]
        for tap in self.taps or ():
            if tap not in modules:
                raise unknown("tap", tap, modules)
        if isinstance(rule, LocalRule):
            self._taps = rule.taps
        else:
            assert trainer.data is not None  # within `fit`
            self._taps = tuple(self.taps or automatic_taps(trainer.net, next(trainer.data.epoch())))

    @torch.no_grad()
    def measure(self, trainer: Trainer, batch: Batch, scalars: Scalars) -> dict[str, float]:
        """Return the accuracy at each tap; and at `output`, if the rule's prediction is the net's output.

        Args:
            trainer: the trainer, within a step.
            batch: the batch of the step.
            scalars: the values that the rule returned.
        """
        assert trainer.data is not None
        # Read once and kept, so that the samples are the same each time. A resumed run reads them again.
        if not self._batches:
            # Rounded up: the last batch may be longer than needed, and is cut below.
            self._batches = list(islice(trainer.data.epoch(), -(-self.samples // trainer.data.batch_size)))
        trainer.net.eval()  # the base class restores the modes
        trainer.rule.eval()
        with trainer.arithmetic():
            by_batch = [self._read(trainer, b.x) for b in self._batches]
        target = torch.cat([trainer.task.target(b) for b in self._batches])[: self.samples].double()  # [N, C]
        labels = target.argmax(1)  # [N]; with mixup, the class with the larger share
        half = len(labels) // 2
        accuracies: dict[str, float] = {}
        for tap, (has_scores, _) in by_batch[0].items():
            values = torch.cat([by_tap[tap][1] for by_tap in by_batch])[: self.samples]
            scores = values[half:] if has_scores else probe(values[:half], target[:half], values[half:])
            accuracies[tap] = float((scores.argmax(1).to(labels.device) == labels[half:]).double().mean())
        return accuracies

    def _read(self, trainer: Trainer, x: Inputs) -> dict[str, tuple[bool, Tensor]]:
        """Return for each tap either (True, class scores [B, C]) or (False, features [B, H])."""
        rule, values = trainer.rule, {}

        def visit(index: int, h: Tensor) -> Tensor | None:
            scores = rule.scores(index, h) if isinstance(rule, LocalRule) and self.read == "head" else None
            values[self._taps[index]] = (True, scores) if scores is not None else (False, features_of(h))
            # Some rules change the input of the next segment; forward-forward scales features to a mean square of 1.
            return rule.pass_on(index, h) if isinstance(rule, LocalRule) else None

        with cut(trainer.net, self._taps, visit):
            out = forward(trainer.net, x)
        if rule.predicts_with_net:
            values[OUTPUT] = (True, out)
        return values


def automatic_taps(net: nn.Module, batch: Batch) -> tuple[str, ...]:
    """Return the taps that a local rule would choose by itself."""
    return tuple(segment.name for segment in find_segments(net, batch.first(2).x).segments[:-1])


class Probe:
    """A linear read-out of features, by ridge regression to targets.

    The linear system has the size of the samples, N x N, and not of the features, which can be many more. It is solved
    on the CPU in float64, because MPS does not have this type.

    Args:
        features: features of the samples to fit, [N, H].
        target: their targets, [N, D].
    """

    def __init__(self, features: Tensor, target: Tensor) -> None:
        self.mean, self.offset = features.mean(0), target.cpu().mean(0)
        # Centred, so that the offset does not have a penalty.
        self.features = features - self.mean
        kernel = (self.features @ self.features.T).double().cpu()  # [N, N]
        # Relative to the kernel, so that the scale of the features does not matter; above 0 if all features are equal.
        ridge = _RIDGE * kernel.diagonal().mean() + torch.finfo(torch.float32).tiny
        self.weights = torch.linalg.solve(kernel + ridge * torch.eye(len(kernel)), target.cpu() - self.offset)

    def __call__(self, features: Tensor) -> Tensor:
        """Return the scores [M, D] of other samples.

        Args:
            features: their features, [M, H].
        """
        between = ((features - self.mean) @ self.features.T).double().cpu()  # [M, N]
        scores: Tensor = between @ self.weights + self.offset
        return scores


def probe(features: Tensor, target: Tensor, unseen: Tensor) -> Tensor:
    """Return the scores [M, D] of unseen samples, by ridge regression from features to targets; see `Probe`.

    Args:
        features: features of the samples to fit, [N, H].
        target: their targets, [N, D].
        unseen: features of other samples, [M, H].
    """
    return Probe(features, target)(unseen)


def features_of(h: Tensor) -> Tensor:
    """Return features [B, ...] as vectors [B, H], in float32 or wider; feature maps as averages over a grid."""
    h = h.float() if h.itemsize < 4 else h
    return (F.adaptive_avg_pool2d(h, _GRID) if h.dim() == 4 else h).flatten(1)
