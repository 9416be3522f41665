"""SoftHebb: units compete for each sample, and move their weights to the inputs that they win. Labels are not used.

Journe, Garcia Rodriguez, Guo, Moraitis 2023, "Hebbian Deep Learning Without Feedback",
https://arxiv.org/abs/2209.11883

    u = W x,    y = softmax(t u) over units;  the winner k keeps y_k, all others get -y_k (anti-Hebbian)
    dW_k = sum y_k x - (sum y_k u_k) W_k      sums over samples and places
    W_k += lr | ||W_k|| - 1 |^(1/2) dW_k / max |dW|

The second term of dW_k pulls ||W_k|| to 1, where the step of that unit ends. Every Linear layer and convolution learns
from its own input alone. A convolution's channels compete at each place of its output.

The output segment learns from the task's loss on the features below it, detached.

Where we differ:
- The learning rate is the optimiser's, so `.grad` is -| ||W_k|| - 1 |^(1/2) dW_k / max |dW|, times `scale`. Plain SGD
  gives the paper's step.
- A rule does not change the first weights of a net. The authors start at ||W_k|| = 25: units that win become short, and
  then others win. torch starts at about 0.6. `radius` gives the same dynamics: lengths are measured in units of
  it, so 0.025 puts torch's start near 25. Features become small by the same factor, so the net should normalise them
  (`net.batch_norm: true`). The default, 1, is the formula as it stands.
- All layers learn in all epochs, and the output layer learns beside them. The authors train the hidden layers for one
  epoch, and the output layer after it.
- Biases and normalisations stay as they were drawn. The authors' layers have no bias, and u leaves it out here too.
- The activation belongs to the net. The authors' is relu(u - mean u)^p, the mean over channels.
- `t` and `scale` are single numbers. The authors have a t (0.25 to 1 for convolutions) and a rate for each layer.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bpfree.errors import check_positive
from bpfree.local.cut import Taps
from bpfree.local.layers import SeenLayer, layers_of
from bpfree.local.rule import LocalRule
from bpfree.mesh import summed


class SoftHebb(LocalRule):
    """Soft winner-take-all Hebbian learning.

    Args:
        t: inverse temperature of the competition. If t u is large, one unit wins alone.
        radius: length of a weight at which the unit stops to learn; u and W above are those of W / radius.
        scale: multiplies the gradients of hidden layers, so that they can have another step than the output layer.
        taps: submodules after which the graph is cut; "auto", the default: the stages of a Sequential, the blocks of
            another net.

    Raises:
        UserError: `t`, `radius` or `scale` is not positive.
    """

    uses_loss: ClassVar[bool] = False  # hidden layers see no target at all
    sees_inputs: ClassVar[bool] = True
    mean_over_samples: ClassVar[bool] = False  # dW is divided by its largest value in the batch
    trains_every_parameter: ClassVar[bool] = False

    def __init__(self, *, t: float = 12.0, radius: float = 1.0, scale: float = 1.0, taps: Taps = None) -> None:
        super().__init__(taps=taps)
        check_positive("t", t)
        check_positive("radius", radius)
        check_positive("scale", scale)
        self.t = t
        self.radius = radius
        self.scale = scale

    def unit(self, net: nn.Module, index: int) -> list[nn.Parameter]:
        """Return the weights of the layers of a hidden segment, or all parameters of the output segment."""
        if index == len(self.taps):
            return super().unit(net, index)
        return [p for weights in layers_of(net, self.segments[index]).values() for p in weights]

    def local_loss(self, index: int, h: Tensor, signal: Tensor) -> Tensor:
        """Return -<W, dW'>, whose gradient in W is -dW'; its value has no meaning of its own."""
        losses = [-(layer.weight * self.change(layer)).sum() for layer in self.layers_of(index)]
        return torch.stack(losses).sum() if losses else h.detach().new_zeros(())

    def change(self, layer: SeenLayer) -> Tensor:
        """Return the change dW' of a layer's weight, scaled for each unit.

        Args:
            layer: the layer and its input in this pass.

        Returns:
            A tensor of the shape of the weight, detached.
        """
        w = layer.weight.detach() / self.radius  # [K, ...], of length 1 where learning ends
        u = layer.response(w)  # [B, ..., K], or [B, K, ...] of a convolution
        y = soft_winners(u, self.t, layer.axis)
        hebb = layer.hebbian(y)  # sum y_k x, [K, ...]
        decay = (y * u).sum([d for d in range(u.dim()) if d != layer.axis % u.dim()])  # [K]
        dw = summed(hebb - per_unit(decay, w) * w)
        dw = dw / dw.abs().max().clamp_min(torch.finfo(dw.dtype).tiny)
        norm = w.flatten(1).norm(dim=1)  # [K]
        return self.radius * self.scale * per_unit((norm - 1).abs().sqrt(), w) * dw


def soft_winners(u: Tensor, t: float, axis: int) -> Tensor:
    """Return y of each unit, with the sign + for the winner and - for all others.

    Args:
        u: responses of the units, of any shape.
        t: inverse temperature.
        axis: where the units lie.

    Returns:
        A tensor of the shape of u.

    >>> soft_winners(torch.tensor([[0.0, 0.0, 1.0]]), 1.0, axis=1)
    tensor([[-0.2119, -0.2119,  0.5761]])
    """
    y = (t * u).softmax(axis).to(u.dtype)
    return -y.scatter(axis, (index := u.argmax(axis, keepdim=True)), -y.gather(axis, index))


def per_unit(values: Tensor, weight: Tensor) -> Tensor:
    """Return values [K] as [K, 1, ...], so that they multiply the rows of a weight [K, ...]."""
    return values.view(-1, *[1] * (weight.dim() - 1)).to(weight.dtype)
