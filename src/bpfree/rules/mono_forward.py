"""Mono-Forward: each layer learns to tell the classes apart by its own projection.

Gong, Li, Abdulla 2025, "Mono-Forward: Backpropagation-Free Algorithm for Efficient Neural Network Training Harnessing
Local Errors", https://arxiv.org/abs/2501.09238

    G_l = h_l M_l^T  [B, C],    segment l and M_l minimise loss(G_l, y), the cross-entropy for classes

Every layer has a projection M_l of its own, without bias, and learns to tell the classes apart by it; nothing passes
from layer to layer but the activations.

Where we differ: the paper's net ends at its last hidden layer and is read by M_L ("ff" prediction) or by the sum of
all G_l. Here the net keeps the output layer it came with, which learns from the features below it, detached; so
`net(x)` alone is the trained classifier. `read: last` and `read: sum` give the paper's two. The loss is that of the
task, so class weights and label smoothing are in it, and tasks that the paper does not have can be done: several labels
a sample, numbers, and a class for each pixel, for which M_l is a 1x1 convolution whose scores are interpolated to the
labels.
"""

from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.local.headed import HeadedRule
from bpfree.local.heads.linear import head_shape, read_linear
from bpfree.local.reading import ReadingRule
from bpfree.types import Batch, Task, classes_of


class MonoForward(ReadingRule, HeadedRule):
    """The task's loss of each segment, through a learned projection.

    Args:
        read: where a prediction is read: "net" (its output), "last" (G of the last hidden segment) or "sum" (of all
            G and the output).
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.
    """

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make M_l [C, H_l] for every hidden segment.

        Raises:
            UserError: `read: last` on a net without a hidden segment; `read` asks for scores of a task without classes.
        """
        super().bind(net, task, batch)
        if classes_of(task) is None and self.read != "net":
            raise UserError(
                f"read: found '{self.read}', but the task {type(task).__name__} has no classes, allowed: net. A task "
                "of your own says with an attribute `classes` how many it has"
            )

    def make_head(self, index: int, net: nn.Module, task: Task, batch: Batch) -> nn.Module:
        """Return M_l [C, H_l] for a hidden segment, as a linear layer; see `HeadedRule`."""
        rows, columns = head_shape(self.segments[index], task.dim, self.pixels)
        return nn.Linear(columns, rows, bias=False)

    def scores(self, index: int, h: Tensor) -> Tensor:
        """Return G_l = h M_l^T, the scores of each class.

        Args:
            index: number of the segment.
            h: [B, ...], its output.

        Returns:
            [B, C], or [B, C, H, W] if each pixel has a class.
        """
        return read_linear(h, self.heads[index].get_parameter("weight"), self.pixels)
