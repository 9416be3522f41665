"""Language: at each token of a text the net predicts the next one.

    loss             the mean over the tokens that count of -log p(next token), in nats
    perplexity       e^loss
    accuracy         the share of tokens whose most likely prediction is right
    bits_per_token   loss / log 2
    bits_per_byte    the bits of all tokens, divided by the number of bytes that they stand for. Unlike the others it
                     can be compared between vocabularies

The last three are figures of a whole split: the mean of the perplexities of its batches is not the perplexity.
"""

from math import exp, log
from typing import ClassVar

import torch
from torch import Tensor, nn

from bpfree.data.labels import IGNORED
from bpfree.data.preprocess import Preprocess
from bpfree.data.vocabulary import bytes_of_tokens
from bpfree.errors import UserError
from bpfree.tasks.base import DataTask, form_of
from bpfree.tasks.cross_entropy import summed_cross_entropy
from bpfree.types import Batch, Scalars


class Language(DataTask):
    """Cross-entropy on the next token, whose index is the label. Its target is never dense: V may be large.

    Args:
        classes: V, the number of different tokens, at least 2.
        ignore_index: the label of tokens that do not count, such as padding.
        token_bytes: how many bytes each of the V tokens stands for; None if that is not known.

    Raises:
        UserError: there are fewer than 2 tokens, or not one number of bytes for each.

    Example:
        >>> task, y = Language(3), torch.tensor([[0, 2]])
        >>> float(task.loss(torch.zeros(1, 2, 3), Batch(y, y)))  # log 3
        1.0986123085021973
    """

    name: ClassVar[str] = "language"
    answers = "tokens"
    per_step: bool = True
    classes: int

    def __init__(
        self, classes: int, *, ignore_index: int = IGNORED, token_bytes: tuple[int, ...] | None = None
    ) -> None:
        if classes < 2:
            raise UserError(f"classes: found {classes}, allowed: at least 2 different tokens")
        if token_bytes is not None and len(token_bytes) != classes:
            raise UserError(f"token_bytes: found {len(token_bytes)} numbers, allowed: {classes}, one for each token")
        self.classes = classes
        self.ignore_index = ignore_index
        self.token_bytes = token_bytes

    @classmethod
    def of(cls, data: Preprocess, *, ignore_index: int = IGNORED) -> "Language":
        """Make the task for a data set of tokens.

        Args:
            data: the preprocessing of the data set, with the facts about its labels.
            ignore_index: the label of tokens that do not count.

        Raises:
            UserError: samples are not tokens [T] with a label for each.
        """
        shape = data.labels.answer_shape
        if not data.classes or len(shape) != 1 or data.shape[:1] != shape:
            raise UserError(
                f"task: found 'language' on samples {list(data.shape)} with labels {list(shape)}, allowed: [T] tokens "
                "and for each of them the next one, such as data=tinyshakespeare"
            )
        sizes = None if data.vocabulary is None else bytes_of_tokens(data.vocabulary)
        return cls(data.classes, ignore_index=ignore_index, token_bytes=sizes)

    @property
    def dim(self) -> int:
        """The number V of different tokens."""
        return self.classes

    def target(self, batch: Batch) -> Tensor:
        """Return the index of each next token, int64 [B*T]; a dense target would have [B*T, V] values."""
        return batch.y.flatten()

    def check_output(self, out: Tensor, batch: Batch) -> Tensor:
        """Return logits [B, T, V], or [B*T, V] for labels of that form, as they are: the loss widens a part at a time.

        Raises:
            UserError: the output or the labels have another shape.
        """
        if batch.y.is_floating_point() or batch.y.dim() not in (1, 2):
            raise UserError(
                f"labels: found {batch.y.dtype} of shape {list(batch.y.shape)}, allowed with task=language: the index "
                "of each next token, int64 [B, T]"
            )
        shape = (*batch.y.shape, self.classes)
        if not isinstance(out, Tensor) or out.shape != shape:
            raise UserError(
                f"net: its output is {form_of(out)}, but {self.classes} scores for each next token need {list(shape)}. "
                "Use net.name=gru net.each_step=true, or your own net with an output at each step"
            )
        return out

    def plain_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the tokens that count; 0 if none does."""
        return self.nats(out, batch) / self.weight("loss", batch).clamp_min(1)

    def nats(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the cross-entropies of the tokens that count, 0-d."""
        return summed_cross_entropy(out.reshape(-1, self.classes), batch.y.flatten(), self.ignore_index)

    def weight(self, metric: str, batch: Batch) -> Tensor:
        """Return the number of tokens that count."""
        return (batch.y != self.ignore_index).sum()

    def other_metrics(self, out: Tensor, batch: Batch) -> Scalars:
        """Return `accuracy` of the tokens that count."""
        right = (out.argmax(-1) == batch.y) & (batch.y != self.ignore_index)
        return {"accuracy": right.sum() / self.weight("accuracy", batch).clamp_min(1)}

    def tally(self, net: nn.Module | None) -> "Bits":
        """Return an empty tally for `perplexity`, `bits_per_token` and `bits_per_byte`."""
        return Bits(self)

    def decode(self, out: Tensor) -> Tensor:
        """Return the most likely next tokens, int64 [N, T]."""
        return out.argmax(-1)

    def probabilities(self, out: Tensor) -> Tensor:
        """Return the softmax over the tokens, [N, T, V]."""
        return out.softmax(-1)


class Bits:
    """The bits of a split, and the tokens and bytes that they are for.

    Args:
        task: gives the loss of each token, and the bytes.
    """

    def __init__(self, task: Language) -> None:
        self.task = task
        self.sizes = None if task.token_bytes is None else torch.tensor(task.token_bytes)
        self.sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes

    def add(self, out: Tensor, batch: Batch) -> None:
        """Add the tokens of a batch, for outputs [B, T, V]."""
        counts = batch.y != self.task.ignore_index
        size = counts.new_zeros((), dtype=torch.int64)
        if self.sizes is not None:
            self.sizes = self.sizes.to(batch.y.device)
            size = (self.sizes[batch.y.where(counts, 0)] * counts).sum()
        sums = torch.stack([total.double() for total in (self.task.nats(out.detach(), batch), counts.sum(), size)])
        self.sums = self.sums.to(sums.device) + sums

    def metrics(self) -> dict[str, float]:
        """Return the figures of all batches so far; `bits_per_byte` only if the bytes of tokens are known."""
        nats, tokens, size = self.sums.tolist()
        if not tokens:
            return {}
        mean = nats / tokens
        # A net whose loss has no bound must not end the training with an OverflowError.
        found = {"perplexity": exp(mean) if mean < 700 else float("inf"), "bits_per_token": mean / log(2)}
        return {**found, "bits_per_byte": nats / log(2) / size} if size else found
