"""A rule and a net as somebody else would write them, in a module of their own."""

from torch import nn

from bpfree.rules import Backprop


class HalfBackprop(Backprop):
    """Half the gradient."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor

    def gradients(self, net, task, batch, noise):
        scalars = super().gradients(net, task, batch, noise)
        for p in net.parameters():
            p.grad.mul_(self.factor)
        return scalars


class Linear(nn.Module):
    """One layer."""

    def __init__(self, in_shape, out_features, *, bias: bool = True) -> None:
        super().__init__()
        size = 1
        for n in in_shape:
            size *= n
        self.layer = nn.Linear(size, out_features, bias=bias)

    def forward(self, x):
        return self.layer(x.flatten(1))
