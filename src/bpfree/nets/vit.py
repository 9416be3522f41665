"""The Vision Transformer, whose tokens are patches of an image. Each block is a stage for local rules.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929

Where we differ: initial weights are those of `bpfree.nets.blocks`, and the read-out does not start at zero.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from bpfree.errors import check_choice
from bpfree.nets.blocks import BlockForm, Pool, block_layers, small_init
from bpfree.nets.patches import PlacedPatches


def vit(
    in_shape: int | Sequence[int],
    out_features: int,
    *,
    patch: int = 4,
    width: int = 128,
    depth: int = 6,
    heads: int = 4,
    hidden: int | None = None,
    pool: Literal["class", "mean"] = "class",
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a Vision Transformer, a Sequential whose stages are its blocks.

    Args:
        in_shape: [channels, height, width] of one image.
        out_features: D.
        patch: the side of a patch in pixels; it divides height and width. ViT-S/16 has patch 16, width 384, depth 12
            and 6 heads.
        width: H, the number of features of each patch.
        depth: the number of blocks.
        heads: the number of attention heads of each block.
        hidden: the width of the feed-forward nets. Default: 4 H.
        pool: "class" reads the output from a class token, as in the paper; "mean" from the mean over patches.
        dropout: the probability that a feature is dropped behind the patches and at the end of each branch.

    Raises:
        UserError: the samples are not images that patches divide, or heads do not divide the width.
    """
    check_choice("net.pool", pool, ("class", "mean"))
    form = BlockForm(width, heads, hidden, "layer", "gelu", rotary=False, causal=False, dropout=dropout)
    with_token = pool == "class"
    patches = PlacedPatches(in_shape, patch, width, class_token=with_token, dropout=dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict(patches=patches)
    layers |= block_layers(form, depth)
    layers["pool"] = Pool("first" if with_token else "mean")
    layers["fc"] = readout = nn.Linear(width, out_features)
    small_init(readout, width)
    return nn.Sequential(layers)
