"""Local error signals: prediction and similarity matching.

Nokland & Eidnes 2019, "Training Neural Networks with Local Error Signals", https://arxiv.org/abs/1901.06656

    pred     loss(D_l pool(h_l), y)                        D_l learned, starting at zero; loss that of the task
    sim      mse(S(g_l(h_l)), S(Y))                        g_l learned: linear, or a 3x3 convolution
    predsim  (1 - beta) pred + beta sim,  beta = 0.99;     the output layer's loss also times 1 - beta

For classes the loss is the cross-entropy, with the task's class weights and label smoothing. Y holds the targets of
the task: one-hot labels, or 0 and 1 of several labels a sample. S compares samples and has no classes, so weights do
not enter there; label smoothing would not change S. If each pixel has a class, pred's D_l is a 1x1 convolution without
pooling, whose scores are interpolated to the labels; sim reduces a map to a number for each channel and cannot do it.

S(X) is the matrix [B, B] of cosine similarities between the mean-centred rows of X; a feature map is first reduced to
its standard deviation over space, channel by channel. Maps with at most 3 channels or of height 1 are taken value by
value, as in the authors' code, https://github.com/anokland/local-loss. pool averages a feature map down to at most
1,024 features (the authors' recipe for VGG8B on CIFAR-10 has 2,048).

Where we differ: pool shrinks both sides of a map alike; the authors' code halves them in turn. Biases of D_l start at
zero, too; theirs are drawn as torch draws them. The loss is taken behind the activation and before dropout and pooling,
as in the authors' blocks, which are what the default taps cut out.
"""

from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_positive
from bpfree.grad import inner
from bpfree.local.cut import Taps
from bpfree.local.headed import HeadedRule
from bpfree.local.heads.linear import PixelLinear, Pixels, PooledLinear, head_shape
from bpfree.local.maps import std_over_space
from bpfree.mesh import whole
from bpfree.tasks.abilities import ANY_LABELS
from bpfree.types import Batch, Task

_TINY = 1e-12  # below which the length of a sample counts as this
_FEW_CHANNELS = 3  # maps with no more of them are compared value by value


class PredSim(HeadedRule):
    """Prediction and similarity matching together.

    Args:
        beta: weight of the similarity loss, in [0, 1]; 1 - beta is that of the prediction loss and of the output's.
        pooled: features at most, to which a feature map is averaged for D_l.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify", "multilabel")
    has_heads: ClassVar[bool] = True  # D_l and g_l, learned
    mean_over_samples: ClassVar[bool] = False  # S compares samples in pairs

    def __init__(self, *, beta: float = 0.99, pooled: int = 1024, taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_positive("pooled", pooled)
        if not 0 <= beta <= 1:
            raise UserError(f"beta: found {beta}, allowed: a number from 0 to 1")
        self.beta = beta
        self.pooled = pooled
        self.output_weight = 1 - beta

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return g_l and D_l, as far as beta asks for them; see `HeadedRule`."""
        segment, outputs = self.segments[index], task.dim
        if self.pixels is not None:
            outputs, _ = head_shape(segment, outputs, self.pixels)
        return _Head(tuple(segment.shape), outputs, self.beta, self.pooled, self.pixels)

    def scores(self, index: int, h: Tensor) -> Tensor | None:
        """D pool(h), unless beta leaves no prediction loss."""
        head = self.heads[index]
        assert isinstance(head, _Head)
        return head.decode(h) if self.beta < 1 else None

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """(1 - beta) pred + beta sim; signal [B, D] is the target."""
        head = self.heads[index]
        assert isinstance(head, _Head)
        terms = []
        if self.beta < 1:
            terms.append((1 - self.beta) * self.task_loss(head.decode(h), signal))
        if self.beta > 0:
            terms.append(self.beta * similarity_loss(head.match(h), self.once(similarity, signal)))
        return reduce(torch.add, terms)


class Pred(PredSim):
    """Prediction loss alone: the task's loss through a learned classifier."""

    tasks: ClassVar[tuple[str, ...]] = ANY_LABELS
    mean_over_samples: ClassVar[bool] = True

    def __init__(self, *, pooled: int = 1024, taps: Taps = None) -> None:
        super().__init__(beta=0.0, pooled=pooled, taps=taps)


class Sim(PredSim):
    """Similarity matching alone; the output layer has its full loss."""

    uses_loss: ClassVar[bool] = False

    def __init__(self, *, taps: Taps = None) -> None:
        super().__init__(beta=1.0, taps=taps)
        self.output_weight = 1.0


class _Head(nn.Module):
    """D_l behind a pooling, and g_l, for features of the given shape."""

    decode: PooledLinear | PixelLinear
    match: nn.Module

    def __init__(self, shape: tuple[int, ...], classes: int, beta: float, pooled: int, pixels: Pixels) -> None:
        super().__init__()
        image = len(shape) == 3
        if pixels is not None:
            self.decode = PixelLinear(shape[0], classes, pixels)
        elif beta < 1:
            self.decode = PooledLinear(shape, classes, pooled)
        if beta > 0:
            width = shape[0] if image else shape[-1]
            self.match = (
                nn.Conv2d(width, width, 3, padding=1, bias=False) if image else nn.Linear(width, width, bias=False)
            )


def similarity(x: Tensor) -> Tensor:
    """S(x): cosine similarities [B, B] between mean-centred samples of x [B, ...], in float32 or wider."""
    with torch.autocast(x.device.type, enabled=False):
        x = whole(_features(x))
        x = F.normalize(x - x.mean(dim=1, keepdim=True), dim=1)
        return x @ x.T


def similarity_loss(x: Tensor, target: Tensor) -> Tensor:
    """mse(S(x), target), target [B, B] symmetric; its derivative is written out, in fewer passes over x."""
    with torch.autocast(x.device.type, enabled=False):
        x = whole(_features(x))
        # Normalised to mean 0 and length sqrt(H): one pass there, and one pass back.
        z = F.layer_norm(x, x.shape[1:], eps=_TINY**2 / x.shape[1])
        loss: Tensor = _SimilarityLoss.apply(z, target)  # type: ignore[no-untyped-call]
    return loss


def _features(x: Tensor) -> Tensor:
    """[B, features]; of a feature map the standard deviation over space, if there are enough channels to compare."""
    if x.dim() == 4 and x.shape[1] > _FEW_CHANNELS and x.shape[2] > 1:
        return std_over_space(x)
    return (x.float() if x.itemsize < 4 else x).flatten(1)


class _SimilarityLoss(torch.autograd.Function):
    """Mean squared error D of S = z z^T / H, of normalised z [B, H]: dL/dz = 4/(B^2 H) D z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor) -> Tensor:
        difference = torch.addmm(target.to(z.dtype), z, z.T, beta=-1, alpha=1 / z.shape[1])
        ctx.save_for_backward(z, difference)
        return inner(difference, difference) / difference.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        z, difference = ctx.saved_tensors
        return (difference * (grads[0] * (4 / (difference.numel() * z.shape[1])))) @ z, None
