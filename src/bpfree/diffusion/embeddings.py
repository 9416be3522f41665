"""Embeddings u of targets, from which the blocks remove noise: W_embed[y] for a label, the image itself to rebuild.

`EMBEDDINGS` is the table of label embeddings. In shapes, ... means any leading dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from bpfree.errors import UserError, check_positive
from bpfree.noise import Noise
from bpfree.types import Batch, Task

# The number of samples, of all classes together, among which prototypes are chosen. Each sample is compared with all
# others of its class, so the cost is quadratic in the samples of a class.
_COMPARED = 20_000
_BINDING = Noise().fold("embedding")


class Rebuilding(Protocol):
    """A task that rebuilds samples through an output activation g, as `bpfree.tasks.Reconstruct`."""

    @property
    def dim(self) -> int:
        """The number of values of a sample."""
        ...

    def activate(self, out: Tensor) -> Tensor:
        """Return g(out), the rebuilt values."""
        ...

    def deactivate(self, value: Tensor) -> Tensor:
        """Return the inverse of g at some values."""
        ...


class Embedding(nn.Module, ABC):
    """A map from targets to points in a space of dimension E.

    Attributes:
        dim: E.
        learned: True if the embedding has parameters that learn.
        weight_decay: the embedding's own weight decay; None for the optimiser's.
    """

    dim: int
    learned: bool = False
    weight_decay: float | None = None

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the embeddings u [B, E] of a batch's targets."""

    @abstractmethod
    def expected(self, scores: Tensor) -> Tensor:
        """Return the expected embedding u^ [..., E] under a block's scores [..., D]: softmax(scores) W_embed."""

    @abstractmethod
    def combined(self, scores: Tensor) -> Tensor:
        """Return scores W_embed [..., E], without a softmax, for scores [..., D]."""

    @abstractmethod
    def nearest(self, z: Tensor) -> Tensor:
        """Return the scores [..., D] of points z [..., E]; for labels, the nearest embedding has the highest score."""

    def begin(self, data: Iterable[Batch]) -> None:
        """Initialise the embedding from the training samples, if its kind does so; by default do nothing.

        Args:
            data: the training batches of one epoch.
        """


class LabelEmbedding(Embedding):
    """An embedding of labels: a matrix W_embed [C, E] with a row for each class."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The matrix W_embed, [C, E]."""

    def forward(self, batch: Batch) -> Tensor:
        """Return the rows W_embed[y], [B, E]."""
        return self.weight[batch.y]

    def expected(self, scores: Tensor) -> Tensor:
        """Return softmax(scores) W_embed, [..., E]."""
        return scores.softmax(-1).to(self.weight.dtype) @ self.weight

    def combined(self, scores: Tensor) -> Tensor:
        """Return scores W_embed, [..., E]."""
        return scores.to(self.weight.dtype) @ self.weight

    def nearest(self, z: Tensor) -> Tensor:
        """Return z . w - |w|^2 / 2 for each row w, [..., C].

        This is minus half the squared distance from z to w, without |z|^2, which is the same for all classes.
        """
        return z.to(self.weight.dtype) @ self.weight.T - self.weight.square().sum(1) / 2


class OneHot(LabelEmbedding):
    """A fixed embedding: W_embed is the identity times a scale, with E = C.

    Args:
        task: a task with C classes.
        dim: E.
        inputs: the number of values of a sample; not used.
        scale: the length of each row.

    Raises:
        UserError: E is not C, or scale is not above 0.
    """

    def __init__(self, task: Task, dim: int, inputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        check_positive("embedding.scale", scale)
        if dim != task.dim:
            raise _width(dim, f"one-hot labels have {task.dim}", task.dim)
        self.dim = dim
        self.scale = scale
        self.register_buffer("table", scale * torch.eye(dim))
        self.table: Tensor

    @property
    def weight(self) -> Tensor:
        """The identity times the scale, [C, C]."""
        return self.table

    def expected(self, scores: Tensor) -> Tensor:
        """Return softmax(scores) times the scale, [..., C], without a product that a 16-bit type would round."""
        return self.combined(scores.softmax(-1))

    def combined(self, scores: Tensor) -> Tensor:
        """Return the scores times the scale, [..., C]."""
        return scores.to(self.table.dtype) * self.scale


class Learned(LabelEmbedding):
    """A learned embedding. Its rows are orthogonal at the start if C <= E.

    Args:
        task: a task with C classes.
        dim: E.
        inputs: the number of values of a sample; only prototypes use it.
        scale: the length of the rows at the start; for prototypes, the factor of the samples.
        norm_clip: the largest length of a row; longer rows are used as if shortened to it. Default: any length.
        weight_decay: the embedding's own weight decay. Default: the optimiser's.

    Raises:
        UserError: a number is not above 0, or E does not fit.
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
        """Raise UserError if the width E does not fit; any width fits here."""

    @property
    def weight(self) -> Tensor:
        """The rows W_embed [C, E], shortened to `norm_clip` where they are longer."""
        if self.norm_clip is None:
            return self.table
        # tiny instead of 0: the gradient of a zero row would be nan
        norm = self.table.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.table.dtype).tiny)
        shortened: Tensor = self.table * (self.norm_clip / norm).clamp_max(1)
        return shortened


class Prototype(Learned):
    """A learned embedding as wide as a sample, whose rows start at typical samples of the classes.

    A class starts at its sample with the smallest median distance to the other samples of the class.

    Args:
        task, dim, inputs, scale, norm_clip, weight_decay: see `Learned`.
    """

    def _check(self, dim: int, inputs: int) -> None:
        if dim != inputs:
            raise _width(dim, f"prototypes are samples, with {inputs} values", inputs)

    @torch.no_grad()
    def begin(self, data: Iterable[Batch]) -> None:
        """Choose the prototypes among at most 20,000 samples; the row of a class without samples stays as it is.

        Args:
            data: the training batches of one epoch.
        """
        # Samples are kept until a class has enough, because the distances below are quadratic in their number.
        chunks: list[list[Tensor]] = [[] for _ in self.table]  # by class, the flat samples of each batch
        most = _COMPARED // len(self.table)
        for batch in data:
            for label, of_class in enumerate(chunks):
                if sum(map(len, of_class)) < most:
                    of_class.append(batch.tensor[batch.y == label].flatten(1))
        for row, of_class in zip(self.table, chunks, strict=True):
            samples = torch.cat(of_class)[:most].to(row.dtype)  # [N, E]
            if len(samples):
                # The (lower) median by sorting, because torch.median has no deterministic version on CUDA.
                medians = torch.cdist(samples, samples).sort(dim=1).values[:, (len(samples) - 1) // 2]
                row.copy_(self.scale * samples[medians.argmin()])


class Images(Embedding):
    """An embedding for samples to rebuild: the target itself times a scale. The read-out is the task's activation g.

    Args:
        task: the task, with its output activation g.
        dim: E, the number of values of a target.
        inputs: the number of values of a sample; not used.
        scale: the factor of the targets.

    Raises:
        UserError: E is not the width of the task, or scale is not above 0.
    """

    def __init__(self, task: Rebuilding, dim: int, inputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        check_positive("embedding.scale", scale)
        if dim != task.dim:
            raise _width(dim, f"the samples to rebuild have {task.dim} values", task.dim)
        self.dim = dim
        self.task = task
        self.scale = scale

    def forward(self, batch: Batch) -> Tensor:
        """Return the flat targets times the scale, [B, E]."""
        return self.scale * batch.y.flatten(1)

    def expected(self, scores: Tensor) -> Tensor:
        """Return g(scores) times the scale, [..., E]."""
        # In 16 bits a sigmoid or tanh would round values near the ends of its range to the ends themselves.
        return self.scale * self.task.activate(scores.float() if scores.itemsize < 4 else scores)

    def combined(self, scores: Tensor) -> Tensor:
        """Return the scores themselves times the scale, [..., E]."""
        return self.scale * scores

    def nearest(self, z: Tensor) -> Tensor:
        """Return the scores that g maps to z / scale; values outside g's range are moved to its nearest end."""
        return self.task.deactivate(z / self.scale)


EMBEDDINGS: dict[str, type[LabelEmbedding]] = {"one_hot": OneHot, "learned": Learned, "prototype": Prototype}
REBUILDING: dict[str, type[Embedding]] = {"image": Images}


def _width(dim: int, why: str, cure: int) -> UserError:
    return UserError(f"net: its blocks read embeddings of width {dim}, but {why}. Use net.embedding_dim={cure}")
