"""Small trunks: new layers of the kind of a net's own, which turn features of a segment into those of its read-out."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from bpfree.local.heads.features import form_of
from bpfree.local.heads.linear import PooledLinear
from bpfree.local.segments import Segment, channel_axis
from bpfree.nets.blocks import BlockForm, Pool, block_layers

_WIDTH_OF_A_HEAD = 32  # of attention, where the net does not tell


def small_trunk(net: nn.Module, segment: Segment, width: int, depth: int, *, per_step: bool) -> nn.Sequential:
    """Return new layers behind a segment: features [B, ...] -> [B, W], or [B, T, ...] -> [B, T, W] for each step.

    Tokens go through Transformer blocks and a normalisation. The blocks have the form of those in the net; for a net
    without `bpfree.nets.blocks.Block`, such as one of Hugging Face, they are bpfree's own. Without a target at each
    step the tokens are then pooled as in the net, or averaged. Other features go through linear layers with GELU. The
    layers have no dropout, so that they draw nothing.

    Args:
        net: the net that was cut.
        segment: its output is the input of the layers; with `per_step` its shape is that of one step.
        width: W, the number of features that the net's read-out takes.
        depth: the number of blocks or linear layers.
        per_step: True if the task has a target at each step.
    """
    if per_step or (len(segment.shape) == 2 and channel_axis(net, segment) == -1):
        return _of_blocks(net, segment.shape, width, depth, per_step)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if depth or segment.shape.numel() != width:
        first = PooledLinear(segment.shape, width)
        first.linear.reset_parameters()  # zeros are for read-outs
        layers["fc1"] = first
    else:
        layers["flat"] = nn.Flatten()
    for i in range(1, depth + 1):
        layers[f"act{i}"] = nn.GELU()
        if i < depth:
            layers[f"fc{i + 1}"] = nn.Linear(width, width)
    layers["norm"] = nn.LayerNorm(width)
    return nn.Sequential(layers)


def _of_blocks(net: nn.Module, shape: Sequence[int], width: int, depth: int, per_step: bool) -> nn.Sequential:
    """Blocks of the width of the features, and behind them a linear layer if the read-out takes another width."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    own = torch.Size(shape).numel() if per_step else shape[-1]
    if per_step and len(shape) != 1:
        layers["flat"] = nn.Flatten(2)
    form = _form(net, own, causal=per_step)
    layers |= block_layers(form, depth) if depth else {"norm": form.make_norm()}
    if not per_step:
        layers["pool"] = next((Pool(m.kind, m.filled) for m in net.modules() if isinstance(m, Pool)), Pool("mean"))
    if own != width:
        layers["widen"] = nn.Linear(own, width, bias=False)
    return nn.Sequential(layers)


def _form(net: nn.Module, width: int, *, causal: bool) -> BlockForm:
    """The form of the first block in the net if it has that width, else one for features of that width."""
    form = form_of(net, width)
    if form is not None:
        return replace(form, dropout=0.0)
    pairs = width % 2 == 0
    sizes = range(max(1, width // _WIDTH_OF_A_HEAD), 0, -1)
    heads = next(n for n in sizes if width % (2 * n if pairs else n) == 0)
    # LayerNorm, which takes features in bfloat16 too; those between the blocks of bpfree's nets are float32.
    return BlockForm(width, heads, norm="layer", mlp="gelu", rotary=pairs, causal=causal)
