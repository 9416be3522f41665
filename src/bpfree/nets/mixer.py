"""The MLP-Mixer, which mixes patches and channels by fully connected layers. Each block is a stage for local rules.

Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision", https://arxiv.org/abs/2105.01601

    h <- h + tokens(norm(h)^T)^T,    h <- h + channels(norm(h))

Where we differ: layers start with torch's random weights, and the read-out does not start at zero.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from bpfree.errors import check_positive
from bpfree.nets.blocks import Pool, gelu_mlp
from bpfree.nets.patches import Patches


class MixerBlock(nn.Module):
    """A block that mixes first the tokens of each channel, and then the channels of each token.

    Args:
        tokens: N.
        width: H.
        dropout: the probability that a feature is dropped at the end of each branch.
    """

    def __init__(self, tokens: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.tokens = gelu_mlp(tokens, max(1, width // 2), dropout)
        self.norm2 = nn.LayerNorm(width)
        self.channels = gelu_mlp(width, 4 * width, dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Return new features [B, N, H] for h [B, N, H]."""
        h = h + self.tokens(self.norm1(h).transpose(1, 2)).transpose(1, 2)
        out: Tensor = h + self.channels(self.norm2(h))
        return out


def mixer(
    in_shape: int | Sequence[int],
    out_features: int,
    *,
    patch: int = 4,
    width: int = 128,
    depth: int = 6,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return an MLP-Mixer, a Sequential whose stages are its blocks.

    As in the published nets, the layers that mix tokens have width / 2 hidden units, and those that mix channels 4
    width.

    Args:
        in_shape: [channels, height, width] of one image.
        out_features: D.
        patch: the side of a patch in pixels; it divides height and width. Mixer-S/16 has patch 16, width 512, depth 8.
        width: H, the number of channels of each patch.
        depth: the number of blocks.
        dropout: the probability that a feature is dropped at the end of each branch.

    Raises:
        UserError: the samples are not images that patches divide.
    """
    check_positive("net.depth", depth)
    patches = Patches(in_shape, patch, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(patches=patches)
    for i in range(1, depth + 1):
        layers[f"block{i}"] = MixerBlock(patches.count, width, dropout)
    layers["norm"] = nn.LayerNorm(width)
    layers["pool"] = Pool("mean")
    layers["fc"] = nn.Linear(width, out_features)
    return nn.Sequential(layers)
