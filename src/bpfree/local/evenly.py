"""Cut a net into a number of segments that have about as many stages each."""

from collections.abc import Sequence

from torch import nn

from bpfree.errors import UserError
from bpfree.inputs import Inputs
from bpfree.local.autotaps import find_segments
from bpfree.local.layers import LAYERS
from bpfree.local.segments import Segment


def whole_stages(net: nn.Module, x: Inputs) -> list[str]:
    """Return the usual taps without the one that would cut the read-out from the last stage.

    The papers on auxiliary nets count like this: the last module is the last block together with the read-out. A net
    with a single usual tap keeps it, so that it is still cut.

    Args:
        net: any module.
        x: [B, ...], a few samples.

    Raises:
        UserError: the net has several layers and no sound cut, see `bpfree.local.autotaps.find_segments`.
    """
    segments = find_segments(net, x).segments
    taps = [segment.name for segment in segments[:-1]]
    return taps[:-1] if len(taps) > 1 and is_readout(net, segments[-1]) else taps


def is_readout(net: nn.Module, segment: Segment) -> bool:
    """Return True if a segment has one layer with a weight, and normalisations at most.

    Args:
        net: the net that was cut.
        segment: one of its segments.
    """
    names = {name.rpartition(".")[0] for name in segment.parameters}
    matrices = {name.rpartition(".")[0] for name in segment.parameters if net.get_parameter(name).dim() > 1}
    return len(matrices) == 1 and all(isinstance(net.get_submodule(name), LAYERS) for name in names & matrices)


def evenly(taps: Sequence[str], number: int) -> list[str]:
    """Return some of the taps, so that the segments have about as many stages each; earlier segments have fewer.

    Args:
        taps: the ends of all stages but the last.
        number: how many to return.

    Raises:
        UserError: there are fewer taps than that.

    Example:
        >>> evenly(["block1", "block2", "block3"], 1)
        ['block2']
    """
    if not 0 <= number <= len(taps):
        raise UserError(
            f"taps: found {number}, allowed: from 0 to {len(taps)}, since the net has {len(taps) + 1} stages. Give a "
            "smaller number, or the names of submodules"
        )
    stages = len(taps) + 1
    return [taps[stages * k // (number + 1) - 1] for k in range(1, number + 1)]
