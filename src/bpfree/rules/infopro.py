"""InfoPro: a segment learns from the task's loss of a small net, and keeps what its input says about the sample.

Wang, Ni, Song, Yang, Huang 2021, "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training",
https://arxiv.org/abs/2101.10832

    loss_k = a_k rebuild(h_k, x) + b_k L(h_k, y)        the graph is cut between segments
    rebuild: binary cross-entropy between a decoder's image and x in [0, 1]
    L: "softmax", the task's loss of a small net; or "contrast", the supervised contrastive loss of 2-layer projections
       L = -mean_i mean_{j: y_j = y_i} log( exp(z_i z_j / t) / sum_{k != i} exp(z_i z_k / t) ),    |z| = 1, t = 0.07
    a_k and b_k go linearly from the first to the last hidden segment

Without `rebuild`, early segments drop what only later ones could use. Decoder: bilinear to the size of the image, 3x3
convolution to 12 channels, batch norm, ReLU, 3x3 convolution. Small net: 3x3 convolution, which halves the map and
doubles the channels while the net has more, batch norm, ReLU, mean over places, linear to 128, ReLU, linear. As in the
authors' code, https://github.com/blackfeather-wang/InfoPro-Pytorch.

Where we differ: the authors undo their own normalisation of the image. Here the lowest and the highest value of each
channel in the first batch become 0 and 1, and values outside are clipped. They choose the four weights for each net and
number of segments; our defaults lie between theirs. Their better results are those of "contrast"; the default here is
"softmax", which every task can do. A weight of 0 leaves the decoder or the small net out. What is not an image is ours:
numbers are rebuilt by a linear layer and the squared error, tokens by a linear layer at each step and the
cross-entropy. What is not a map has two linear layers without the convolution as its small net.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_choice, check_positive, no_soft_labels
from bpfree.inputs import main_input
from bpfree.local.auxiliary import AuxiliaryRule
from bpfree.local.cut import Taps
from bpfree.local.heads.features import Features
from bpfree.local.heads.linear import PixelLinear, head_shape
from bpfree.local.heads.rebuild import Decoder, decoder_for
from bpfree.mesh import whole
from bpfree.tasks.abilities import LABELS_ONLY, check_loss, check_task
from bpfree.tasks.base import widened
from bpfree.types import Batch, Task, kind_of

_DECODER_CHANNELS = 12


class InfoPro(AuxiliaryRule):
    """A loss that rebuilds the sample, and a loss of its label, at each segment.

    Args:
        rebuild: the weight of the first loss at the first and at the last hidden segment.
        label: the weight of the second loss at the first and at the last hidden segment.
        loss: the second loss, "softmax" for the task's loss, or "contrast" for labels of one class a sample.
        width: the features of the small net before its last layer, and of the projections of "contrast".
        temperature: t of "contrast".
        taps: submodules after which the graph is cut; a number of taps, for segments of about as many stages each; or
            "auto", the default: each stage of a Sequential or block of another net is a segment.
    """

    def __init__(
        self,
        *,
        rebuild: Sequence[float] = (5.0, 0.5),
        label: Sequence[float] = (0.5, 1.0),
        loss: Literal["softmax", "contrast"] = "softmax",
        width: int = 128,
        temperature: float = 0.07,
        taps: Taps = None,
    ) -> None:
        super().__init__(taps=taps)
        for name, pair in (("rebuild", rebuild), ("label", label)):
            if len(pair) != 2 or min(pair) < 0:
                raise UserError(f"{name}: found {list(pair)}, allowed: two numbers from 0 on, such as [5.0, 0.5]")
        check_choice("loss", loss, ("softmax", "contrast"))
        check_positive("width", width)
        check_positive("temperature", temperature)
        self.rebuild, self.label = tuple(rebuild), tuple(label)
        self.loss = loss
        self.width = width
        self.temperature = temperature

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make a decoder and a small net for each hidden segment.

        Raises:
            UserError: `contrast` on a task without one class for each sample; both weights of a segment are 0.
        """
        if self.loss == "contrast":
            name = "infopro with loss=contrast"
            check_task(name, LABELS_ONLY, kind_of(task))
            check_loss(name, False, getattr(task, "custom_loss", ""))
            if batch.y.is_floating_point():
                raise no_soft_labels(name)
        super().bind(net, task, batch)

    def weights(self, index: int) -> tuple[float, float]:
        """Return a_k and b_k of a hidden segment.

        Args:
            index: k, number of the segment.
        """
        hidden = len(self.taps)
        r = index / (hidden - 1) if hidden > 1 else 0.0
        return tuple((1 - r) * first + r * last for first, last in (self.rebuild, self.label))  # type: ignore[return-value]

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return a new decoder and a new small net for a hidden segment; see `AuxiliaryRule`."""
        features = Features.of(net, self.segments[index], per_step=self.per_step)
        rebuild, label = self.weights(index)
        if not rebuild and not label:
            raise UserError(f"rebuild, label: found 0 for both at segment {index}, allowed: at least one above 0")
        decoder = decoder_for(net, features, batch.x, _DECODER_CHANNELS) if rebuild else None
        return _Head(decoder, self._reader(index, features, net, task) if label else None)

    def _reader(self, index: int, features: Features, net: nn.Module, task: Task) -> nn.Module:
        """The small net: to scores, or to projections for "contrast"."""
        most = max((m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)), default=0)
        grows = features.kind == "map" and features.channels < most
        channels = min(2 * features.channels, most) if grows else features.channels
        stride = 2 if grows and self.pixels is None else 1
        conv: list[nn.Module] = []
        if features.kind == "map":
            conv = [
                nn.Conv2d(features.channels, channels, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        if self.pixels is not None:
            classes, _ = head_shape(self.segments[index], task.dim, self.pixels)
            return nn.Sequential(*conv, PixelLinear(channels, classes, self.pixels, zero=False))
        outputs = self.width if self.loss == "contrast" else task.dim
        mlp = [nn.Linear(channels, self.width), nn.ReLU(), nn.Linear(self.width, outputs)]
        return nn.Sequential(*conv, *features.to_vector(net), *mlp)

    def scores(self, index: int, h: Tensor) -> Tensor | None:
        """Return the scores of the small net; None if it gives none."""
        reader = self._head_of(index).reader
        if reader is None or self.loss == "contrast":
            return None
        scores: Tensor = reader(h)
        return scores

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return a_k times the loss of what is rebuilt, plus b_k times that of the label, 0-d."""
        head, (rebuild, label) = self._head_of(index), self.weights(index)
        losses = []
        if head.decoder is not None:
            assert self._step is not None, "a step runs while segments learn"
            losses.append(rebuild * head.decoder(h, main_input(self._step.batch.x)))
        if head.reader is not None and self.loss == "contrast":
            losses.append(label * contrast(head.reader(h), self.once(_same_class, signal), self.temperature))
        elif head.reader is not None:
            losses.append(label * super().local_loss(index, h, signal))
        return torch.stack(losses).sum()

    def _head_of(self, index: int) -> "_Head":
        head = self.heads[index]
        assert isinstance(head, _Head)
        return head


class _Head(nn.Module):
    """A decoder and a small net; one of them may be left out."""

    def __init__(self, decoder: Decoder | None, reader: nn.Module | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.reader = reader


def contrast(z: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss, 0-d; samples that are alone in their class count as 0.

    Khosla et al. 2020, https://arxiv.org/abs/2004.11362

    Args:
        z: [B, P], projections of any length.
        same: [B, B], True where two samples have one class, also on the diagonal.
        temperature: t.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(whole(widened(z)), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        # A finite number, since its product with a mask of zeros is taken.
        log_p = (z @ z.T / temperature).masked_fill(itself, -1e9).log_softmax(1)
        positive = (same & ~itself).to(z.dtype)
        return -((positive * log_p).sum(1) / positive.sum(1).clamp_min(1)).mean()


def _same_class(signal: Tensor) -> Tensor:
    """True where two samples of the whole batch have one class, [B, B], from one-hot labels [B, C]."""
    classes = whole(signal).argmax(1)
    return classes[:, None] == classes
