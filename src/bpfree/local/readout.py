"""The read-out of a net: its last linear layer, which turns features into the scores of the output."""

from typing import NamedTuple

from torch import nn

from bpfree.errors import UserError
from bpfree.local.segments import Segment


class Readout(NamedTuple):
    """The last linear layer of a net.

    Attributes:
        name: its name in the net.
        layer: the layer; its weight is [D, H].
    """

    name: str
    layer: nn.Linear


def readout_of(net: nn.Module, segment: Segment, outputs: int) -> Readout:
    """Return the read-out of a net, the last Linear of its output segment with as many outputs as the task has.

    Args:
        net: the net that was cut.
        segment: its output segment.
        outputs: D of the task.

    Raises:
        UserError: there is no such layer.
    """
    owners = {name.rpartition(".")[0] for name in segment.parameters}
    found = [
        Readout(name, module)
        for name, module in net.named_modules()
        if name in owners and isinstance(module, nn.Linear) and module.out_features == outputs
    ]
    if not found:
        raise UserError(
            f"net: found no nn.Linear with {outputs} outputs behind the last tap, allowed: a net that ends by one, "
            "since the rule reads its weight. Choose earlier taps, or end the net by such a layer"
        )
    return found[-1]
