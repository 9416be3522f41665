"""Classification by cross-entropy."""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from bpfree.data.dataset import Preprocess
from bpfree.errors import UserError
from bpfree.tasks.base import DataTask
from bpfree.types import Batch, Scalars

_FEW = 32  # classes, for which torch's softmax on a CPU is many times as fast along the first dimension


class Classify(DataTask):
    """Cross-entropy on class indices [B] or on shares of the classes [B, C]; metrics are accuracy and loss.

    Args:
        classes: C.
    """

    name: ClassVar[str] = "classify"

    def __init__(self, classes: int) -> None:
        if classes < 2:
            raise UserError(f"classes: found {classes}, allowed: at least 2")
        self.classes = classes

    @classmethod
    def of(cls, data: Preprocess) -> "Classify":
        """For the classes of a data set."""
        if data.classes == 0:
            raise UserError("task: found 'classify' on labels that are no classes, allowed: regress, sequence")
        return cls(data.classes)

    @property
    def dim(self) -> int:
        """C."""
        return self.classes

    def target(self, batch: Batch) -> Tensor:
        """One-hot labels or shares [B, C], of the type of x if that is a floating one."""
        if batch.y.is_floating_point():
            return batch.y.to(batch.dtype)
        return F.one_hot(batch.y, self.classes).to(batch.dtype)

    def loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of logits [B, C].

        Raises:
            UserError: the output has another shape, or shares have.
        """
        if not isinstance(out, Tensor):
            raise UserError(f"net: it gives {type(out).__name__}, allowed: one tensor [B, {self.classes}] of scores")
        if out.shape != (len(batch.y), self.classes):
            more = out.dim() == 2 and out.shape[1] > self.classes
            say = f", or say that there are more classes than the labels show (classes={out.shape[-1]})" if more else ""
            raise UserError(
                f"net: its output has the shape {list(out.shape)}, but {self.classes} classes and a batch of "
                f"{len(batch.y)} need [{len(batch.y)}, {self.classes}]. End the net with a layer of {self.classes}{say}"
            )
        out = out.float() if out.itemsize < 4 else out
        if batch.y.is_floating_point():
            return self._loss_of_shares(out, batch.y)
        if self.classes <= _FEW and out.device.type == "cpu":
            return F.nll_loss(F.log_softmax(out.T, 0).T, batch.y)
        return F.cross_entropy(out, batch.y)

    def _loss_of_shares(self, out: Tensor, shares: Tensor) -> Tensor:
        if shares.shape != out.shape:
            raise UserError(
                f"labels: found {shares.dtype} of shape {list(shares.shape)}, allowed: class indices, int64 "
                f"[{len(out)}], or shares of the classes {list(out.shape)}"
            )
        return F.cross_entropy(out, shares.to(out.dtype))

    def metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """`loss` and `accuracy`, detached; of shares, the class with the largest is the true one."""
        labels = batch.y.argmax(1) if batch.y.is_floating_point() else batch.y
        accuracy = (out.detach().argmax(1) == labels).float().mean()
        return {"loss": self.loss(out.detach(), batch), "accuracy": accuracy}

    def decode(self, out: Tensor) -> Tensor:
        """The most likely class, int64 [N]."""
        return out.argmax(1)
