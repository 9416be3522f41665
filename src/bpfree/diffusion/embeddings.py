"""What the noise is removed from: the embedding u of a target, W_embed[y] for a label, the image itself to rebuild.

`EMBEDDINGS` is the table of label embeddings. In shapes, ... stands for any leading dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive
from bpfree.noise import Noise
from bpfree.types import Batch, Task

_COMPARED = 20_000  # samples of all classes, each compared with those of its own to find a prototype
_BINDING = Noise().fold("embedding")


class Rebuilding(Protocol):
    """A task that rebuilds samples through an output activation g, as `bpfree.tasks.Reconstruct`."""

    @property
    def dim(self) -> int:
        """Values of a sample."""
        ...

    def activate(self, out: Tensor) -> Tensor:
        """g(out)."""
        ...

    def deactivate(self, value: Tensor) -> Tensor:
        """The inverse of g."""
        ...


class Embedding(nn.Module, ABC):
    """Targets as points in a space of dimension E."""

    dim: int  # E
    learned: bool = False
    weight_decay: float | None = None  # of its own; None: the optimiser's

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """U [B, E]."""

    @abstractmethod
    def expected(self, scores: Tensor) -> Tensor:
        """u^ [..., E] of a block's scores [..., D]: softmax(scores) W_embed."""

    @abstractmethod
    def combined(self, scores: Tensor) -> Tensor:
        """[..., E]: scores W_embed, without a softmax."""

    @abstractmethod
    def nearest(self, z: Tensor) -> Tensor:
        """Scores [..., D] of points [..., E]; for labels the highest is that of the nearest embedding."""

    def begin(self, data: Iterable[Batch]) -> None:
        """Start from the training samples, if that is what the embedding does."""


class LabelEmbedding(Embedding):
    """W_embed [C, E], a row for each class."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """W_embed."""

    def forward(self, batch: Batch) -> Tensor:
        """W_embed[y]."""
        return self.weight[batch.y]

    def expected(self, scores: Tensor) -> Tensor:
        """See the base class."""
        return scores.softmax(-1).to(self.weight.dtype) @ self.weight

    def combined(self, scores: Tensor) -> Tensor:
        """See the base class."""
        return scores.to(self.weight.dtype) @ self.weight

    def nearest(self, z: Tensor) -> Tensor:
        """Minus half the squared Euclidean distance, but for |z|^2, which all classes share."""
        return z.to(self.weight.dtype) @ self.weight.T - self.weight.square().sum(1) / 2


class OneHot(LabelEmbedding):
    """Fixed: W_embed is the identity times a scale, E = C.

    Args:
        task: of C classes.
        dim: E.
        inputs: values of a sample.
        scale: the length of each row.
    """

    def __init__(self, task: Task, dim: int, inputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        check_positive("embedding.scale", scale)
        if dim != task.dim:
            raise _width(dim, f"one-hot labels have {task.dim}", task.dim)
        self.dim = dim
        self.register_buffer("table", scale * torch.eye(dim))
        self.table: Tensor

    @property
    def weight(self) -> Tensor:
        """The scaled identity."""
        return self.table


class Learned(LabelEmbedding):
    """Learned, with orthogonal rows at first if C <= E.

    Args:
        task: of C classes.
        dim: E.
        inputs: values of a sample.
        scale: of the rows at the start: their length or, for prototypes, what samples are multiplied by.
        norm_clip: a longer row counts as shortened to this; default: any length.
        weight_decay: of the embedding; default: that of the optimiser.
    """

    learned = True

    def __init__(
        self,
        task: Task,
        dim: int,
        inputs: int,
        *,
        scale: float = 1.0,
        norm_clip: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        super().__init__()
        check_positive("embedding.scale", scale)
        if norm_clip is not None:
            check_positive("embedding.norm_clip", norm_clip)
        self._check(dim, inputs)
        self.dim = dim
        self.scale = scale
        self.norm_clip = norm_clip
        self.weight_decay = weight_decay
        self.table = nn.Parameter(torch.empty(task.dim, dim))
        with _BINDING.global_rng(), torch.no_grad():
            nn.init.orthogonal_(self.table)
            self.table.mul_(scale)

    def _check(self, dim: int, inputs: int) -> None:
        """Refuse a width that does not fit; any does."""

    @property
    def weight(self) -> Tensor:
        """The rows, shortened where they must be."""
        if self.norm_clip is None:
            return self.table
        norm = self.table.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.table.dtype).tiny)
        shortened: Tensor = self.table * (self.norm_clip / norm).clamp_max(1)
        return shortened


class Prototype(Learned):
    """Learned, as wide as a sample: a class starts at its sample with the smallest median distance to the others.

    Args:
        task, dim, inputs, scale, norm_clip, weight_decay: see `Learned`.
    """

    def _check(self, dim: int, inputs: int) -> None:
        if dim != inputs:
            raise _width(dim, f"prototypes are samples, with {inputs} values", inputs)

    @torch.no_grad()
    def begin(self, data: Iterable[Batch]) -> None:
        """Choose the prototypes, among 20,000 samples of all classes; a class without samples stays as it is."""
        samples: list[list[Tensor]] = [[] for _ in self.table]
        most = _COMPARED // len(self.table)
        for batch in data:
            for label, own in enumerate(samples):
                if sum(map(len, own)) < most:
                    own.append(batch.tensor[batch.y == label].flatten(1))
        for row, own in zip(self.table, samples, strict=True):
            found = torch.cat(own)[:most].to(row.dtype)
            if len(found):
                # the (lower) median by sorting, since torch's own has no deterministic version on CUDA
                medians = torch.cdist(found, found).sort(dim=1).values[:, (len(found) - 1) // 2]
                row.copy_(self.scale * found[medians.argmin()])


class Images(Embedding):
    """The target to rebuild is its own embedding, times a scale; the read-out is the task's output activation g.

    Args:
        task: with the output activation g.
        dim: values of a target.
        inputs: values of a sample.
        scale: what targets are multiplied by.
    """

    def __init__(self, task: Rebuilding, dim: int, inputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        check_positive("embedding.scale", scale)
        if dim != task.dim:
            raise _width(dim, f"what is to be rebuilt has {task.dim} values", task.dim)
        self.dim = dim
        self.task = task
        self.scale = scale

    def forward(self, batch: Batch) -> Tensor:
        """The flat target, scaled."""
        return self.scale * batch.y.flatten(1)

    def expected(self, scores: Tensor) -> Tensor:
        """g(scores), scaled."""
        return self.scale * self.task.activate(scores.float() if scores.itemsize < 4 else scores)

    def combined(self, scores: Tensor) -> Tensor:
        """The scores themselves, scaled."""
        return self.scale * scores

    def nearest(self, z: Tensor) -> Tensor:
        """What g makes z / scale of; values that g cannot give are moved to the nearest that it can."""
        return self.task.deactivate(z / self.scale)


EMBEDDINGS: dict[str, type[LabelEmbedding]] = {"one_hot": OneHot, "learned": Learned, "prototype": Prototype}
REBUILDING: dict[str, type[Embedding]] = {"image": Images}


def _width(found: int, why: str, cure: int) -> UserError:
    return UserError(f"net: its blocks read embeddings of width {found}, but {why}. Use net.embedding_dim={cure}")
