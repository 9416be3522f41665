"""Backpropagation: the baseline beside which every rule is measured.

Rumelhart, Hinton, Williams 1986, https://doi.org/10.1038/323533a0

    d_l = (d_{l+1} W_{l+1}) * f'(a_l)
"""

from torch import nn

from bpfree.grad import backward
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.types import Batch, Scalars, Task


class Backprop(Rule):
    """End-to-end backpropagation of the task's loss."""

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """The true gradient, by autograd."""
        with noise.global_rng(batch.x.device):
            out = net(batch.x)
        loss = task.loss(out, batch)
        backward(loss)
        return task.metrics(out.detach(), batch) | {"loss": loss.detach()}
