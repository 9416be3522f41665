"""Nets that can go on from a state, so that a further token costs one step and not a whole sequence."""

from typing import Any

from torch import Tensor, nn

from bpfree.nets.recurrent import Recurrent
from bpfree.nets.transformer import Transformer


def goes_on(net: nn.Module) -> bool:
    """Return True if `go_on` can be used with a net.

    Args:
        net: any module.
    """
    return isinstance(net, Transformer | Recurrent)


def go_on(net: nn.Module, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Return the output of a net after the last of some tokens, and the state from which it goes on.

    Args:
        net: a Transformer or a recurrent net of bpfree, with an output at each step.
        x: the next tokens [B, t].
        state: what the call before returned; None at the start of the sequences.

    Returns:
        The output [B, D], and the state: keys and values, or the states of recurrent layers.

    Example:
        >>> import torch
        >>> from bpfree.nets import NETS
        >>> net = NETS["gru"]((8,), 256, each_step=True, vocabulary=256)
        >>> out, state = go_on(net, torch.tensor([[104, 105]]))
        >>> go_on(net, torch.tensor([[33]]), state)[0].shape
        torch.Size([1, 256])
    """
    if isinstance(net, Transformer):
        out, state = net.step(x, state)
        return out[:, -1], state
    assert isinstance(net, Recurrent)
    for token in x.unbind(1):
        out, state = net.step(token, state)
    return out, state
