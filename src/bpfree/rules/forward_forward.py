"""Forward-forward: each layer learns to be active for true labels and quiet for wrong ones.

Hinton 2022, "The Forward-Forward Algorithm: Some Preliminary Investigations", https://arxiv.org/abs/2212.13345

    g(h) = mean of squares of h
    segment l minimises softplus(s (theta - g(h_l^pos))) + softplus(s (g(h_l^neg) - theta))
    the next segment sees h_l / sqrt(g(h_l)): the direction of h_l, and not how good it was

The label is written over the first C inputs, the true one for positive samples and a wrong one for negative samples. A
class is predicted by the goodness that its label gives, summed over all hidden segments but the first (over all, if
there is but one).

Hard negatives: the sample is seen with a neutral label first, 1/C everywhere, and from those features the net's output
layer learns to tell the classes apart. The wrong label is drawn by what that layer finds likely, the true label left
out. With even negatives all wrong labels are as likely, and the output layer stays as it was drawn.

Where we differ: goodness is the mean of squares, not the sum, so that theta does not depend on the width; s, the
`steepness`, stands in for the width. The layer that finds hard negatives reads the last hidden segment, and not all
but the first.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.grad import backward, first_trainable
from bpfree.inputs import Inputs, forward, one_tensor
from bpfree.local.cut import Taps, cut
from bpfree.local.maps import mean_square
from bpfree.local.rule import LocalRule
from bpfree.mesh import drawn_for_samples, whole
from bpfree.nets.acceptance import refuse_wrapped
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise, counts
from bpfree.rule import LOCAL, Locality
from bpfree.tasks.abilities import LABELS_ONLY
from bpfree.tasks.base import metrics_of
from bpfree.types import Batch, Scalars, Task


class ForwardForward(LocalRule):
    """Forward-forward with the label in the input.

    Args:
        theta: goodness that parts positive from negative samples.
        steepness: s, how sharply it parts them.
        negatives: how wrong labels are drawn, "hard" or "even".
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    tasks: ClassVar[tuple[str, ...]] = LABELS_ONLY
    takes_soft_labels: ClassVar[bool] = False
    uses_loss: ClassVar[bool] = False
    mean_over_samples: ClassVar[bool] = False  # wrong labels are drawn for a whole batch
    label_value: Tensor  # 0-d, what a written label's 1 is: the largest input of the first batch

    def __init__(
        self,
        *,
        theta: float = 0.5,
        steepness: float = 20.0,
        negatives: Literal["hard", "even"] = "hard",
        taps: Taps = None,
    ) -> None:
        super().__init__(taps=taps)
        check_positive("theta", theta)
        check_positive("steepness", steepness)
        check_choice("negatives", negatives, ("hard", "even"))
        self.theta = theta
        self.steepness = steepness
        self.negatives = negatives
        self.classes = 0
        self._good: dict[int, Tensor] = {}  # by segment, its goodness until the next segment runs
        self.register_buffer("label_value", torch.ones(()))

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Find the segments and the size of a written label.

        Raises:
            UserError: the input is not one tensor of floating numbers, it has fewer values than there are classes, or
                the net has no hidden segment.
        """
        super().bind(net, task, batch)
        if not batch.tensor.is_floating_point():
            raise UserError(
                f"net: samples are {batch.tensor.dtype}, but forward-forward writes the label over values, allowed: "
                "floating numbers. Use another rule, such as dfa"
            )
        if (values := batch.tensor[0].numel()) < task.dim:
            raise UserError(
                f"net: samples have {values} values, but forward-forward writes the label over the first {task.dim}"
            )
        if len(self.segments) < 2:
            raise UserError("net: it has no hidden segment, which forward-forward trains. Add a layer")
        with torch.no_grad(), unchanged_buffers(net):
            task.loss(forward(net, batch.x), batch)  # refuses an output of another width
        self.classes = task.dim
        self.label_value = batch.tensor.max().to(first_trainable(net))

    def locality(self) -> Locality:
        """Hard negatives are drawn by the output layer, for which all others therefore wait."""
        return LOCAL._replace(waits=self.negatives == "hard")

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return 2 for positive and negative samples, and with hard negatives one more for the neutral label."""
        return 3 if self.negatives == "hard" else 2

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """The segments; without hard negatives the output segment is not used."""
        return super().units(net)[: -1 if self.negatives == "even" else None]

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Run one pass of 2B samples, in which segments learn on the way; hard negatives need a pass of B before."""
        self.refuse_unbound()
        refuse_wrapped(net, type(self).__name__, deep=False)
        scalars: Scalars = {}
        if self.negatives == "hard":
            wrong, scalars = self._hard_labels(net, task, batch, noise)
        else:
            wrong = self._even_labels(batch, noise)
        both = torch.cat([self.write(batch.tensor, self._one_hot(labels)) for labels in (batch.y, wrong)])
        losses: Scalars = {}

        def learn(index: int, h: Tensor) -> None:
            losses.update(self.learn_segment(index, h, both))

        with noise.global_rng(batch.device), self.cut_net(net, both, learn):
            forward(net, both)
        return scalars | losses | {"loss": torch.stack([loss.float() for loss in losses.values()]).mean()}

    def _even_labels(self, batch: Batch, noise: Noise) -> Tensor:
        """A wrong label [B] for each sample, all equally likely."""
        key, others = noise.fold("negative"), self.classes - 1
        shift = drawn_for_samples(lambda rows: key.randint(others, rows, device=batch.y.device), len(batch.y))
        return (batch.y + 1 + shift) % self.classes

    def _hard_labels(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """A wrong label [B] for each sample, drawn by the output segment's softmax; that segment learns too."""
        neutral = batch.tensor.new_full((len(batch.y), self.classes), 1 / self.classes)
        # Cut also while the output segment learns, since activation checkpointing runs modules again then.
        with self.cut_net(net, batch.x, lambda index, h: None):
            with noise.fold("neutral").global_rng(batch.device):
                out = forward(net, self.write(batch.tensor, neutral))
            loss = task.loss(out, batch)
            backward(loss)
        self.finish_segment(len(self.taps))
        others = out.detach().float().scatter(1, batch.y.view(-1, 1), -torch.inf)
        metrics = metrics_of(task, out.detach(), batch, loss.detach())
        return drawn_by_softmax(others, noise.fold("negative")), metrics | {"loss/output": loss.detach()}

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """softplus(s (theta - g_pos)) + softplus(s (g_neg - theta)); h [2B, ...], positive samples first."""
        good = goodness(h)
        self._good[index] = good.detach()
        above = self.steepness * (good - self.theta)
        positive, negative = above.chunk(2)
        return F.softplus(-positive).mean() + F.softplus(negative).mean()

    def pass_on(self, index: int, h: Tensor) -> Tensor:
        """h, of length 1 per value."""
        good = self._good.pop(index, None)  # of the loss, if the segment has just learned
        length = (goodness(h) if good is None else good).sqrt().clamp_min(1e-6).to(h.dtype)
        return h / length.view(-1, *[1] * (h.dim() - 1))

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Goodness of each label [B, C], by C passes."""
        samples = one_tensor(x)
        scores = []
        for label in range(self.classes):
            layers: list[Tensor] = []

            def look(index: int, h: Tensor, layers: list[Tensor] = layers) -> Tensor:
                layers.append(goodness(h))
                return self.pass_on(index, h)

            with cut(net, self.taps, look):
                labels = samples.new_full((samples.shape[0],), label, dtype=torch.int64)
                forward(net, self.write(samples, self._one_hot(labels)))
            scores.append(torch.stack(layers[1:] or layers).sum(0))
        return torch.stack(scores, dim=1)

    def write(self, x: Tensor, labels: Tensor) -> Tensor:
        """The samples x [B, ...] with labels [B, C] over their first C values."""
        written = x.flatten(1).clone()
        written[:, : self.classes] = labels.to(x.dtype) * self.label_value.to(x.dtype)
        return written.view_as(x)

    def _one_hot(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.classes)


def goodness(h: Tensor) -> Tensor:
    """Mean of squares of each sample, [B], in float32 or wider."""
    return mean_square(h, tuple(range(1, h.dim())))


def drawn_by_softmax(scores: Tensor, noise: Noise) -> Tensor:
    """Draw a class for each sample, with the probabilities softmax(scores), int64 [B].

    Args:
        scores: [B, C]; -inf for a class that is never drawn.
        noise: the key.
    """
    if counts(scores.device):  # the first of exponential waiting times, as torch.multinomial does it
        classes = scores.shape[1]
        drawn = drawn_for_samples(lambda rows: noise.rand(rows, classes, device=scores.device), len(scores))
        wait = -torch.log1p(-drawn)
        return (scores - wait.clamp_min(torch.finfo(wait.dtype).tiny).log()).argmax(1)
    likely = scores.softmax(1).nan_to_num(1.0)  # of a training that diverged, which the trainer is to say
    likely = whole(likely)
    return drawn_for_samples(lambda _: torch.multinomial(likely, 1, generator=noise.generator()).flatten(), len(scores))
