"""Transformer blocks that know the level of noise: a block's normalisations and branches are scaled by the level.

Adaptive layer norm with gates that start at zero: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers",
https://arxiv.org/abs/2212.09748.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.nets.blocks import Attention, Block, Cache, rotate

_FEATURES = 64
_LOWEST = 1e-4  # the ratio of the lowest frequency to the highest


class Level(nn.Module):
    """The conditioning of some layers on the level of noise: shifts, scales and gates for each of them.

    All of them start at zero. So at first a layer's branches add nothing, and the shift and the scale at the end
    change nothing.

    Args:
        width: H, the number of features of a token.
        layers: the number of layers.
        inner: the number of features of the level.
    """

    frequencies: Tensor

    def __init__(self, width: int, layers: int, inner: int) -> None:
        super().__init__()
        half = _FEATURES // 2
        self.register_buffer("frequencies", _LOWEST ** (torch.arange(half) / half), persistent=False)
        self.clock = nn.Sequential(nn.Linear(_FEATURES, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU())
        self.layers = nn.ModuleList(nn.Linear(inner, 6 * width) for _ in range(layers))
        self.end = nn.Linear(inner, 2 * width)
        for linear in (*self.layers, self.end):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, level: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the changes of each layer [B, 1, 6 H], and those at the end [B, 1, 2 H].

        Args:
            level: c_noise, [B].
        """
        angles = level[:, None] * self.frequencies.to(level.dtype)
        known = self.clock(torch.cat([angles.cos(), angles.sin()], 1))[:, None]  # [B, 1, inner]
        return [linear(known) for linear in self.layers], self.end(known)


def changed(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return h (1 + scale) + shift.

    Args:
        h: features [B, T, H].
        shift: [B, 1, H].
        scale: [B, 1, H].
    """
    return h * (1 + scale) + shift


def run(blocks: Sequence[Block], changes: Sequence[Tensor], h: Tensor, context: Tensor | None) -> Tensor:
    """Return the features behind some Transformer blocks that know the level of noise, [B, T, H].

    Args:
        blocks: one or more blocks of one net.
        changes: those of each block, [B, 1, 6 H]; see `Level`.
        h: features [B, T, H].
        context: None if each token sees the tokens that the block lets it see. Else features [B, T, H] of clean tokens,
            which the blocks read as they are and without changes. Then token i of h sees itself and the clean tokens up
            to i, and no other token of h.
    """
    for block, change in zip(blocks, changes, strict=True):
        shift1, scale1, gate1, shift2, scale2, gate2 = change.chunk(6, -1)
        asked = changed(block.norm1(h), shift1, scale1)
        if context is None:
            read = block.attention(asked)
        else:
            context, past = block.step(context, None)
            read = beside(block.attention, asked, past)
        h = h + gate1 * read
        h = h + gate2 * block.mlp(changed(block.norm2(h), shift2, scale2))
    return h


def beside(attention: Attention, h: Tensor, past: Cache) -> Tensor:
    """Return what each token reads from itself and from the clean tokens up to its own position, [B, T, H].

    Args:
        attention: of one block.
        h: features [B, T, H].
        past: the keys and values of the clean tokens, each [B, heads, T, H / heads].
    """
    parts = attention.qkv(h).unflatten(-1, (3, attention.form.heads, -1)).unbind(-3)
    q, k, v = (part.transpose(-3, -2) for part in parts)
    if attention.form.rotary:
        q, k = rotate(q), rotate(k)
    own = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
    clean = torch.ones_like(own).tril()
    mask = torch.cat([clean, own], 1)  # [T, 2 T]
    read = F.scaled_dot_product_attention(q, torch.cat([past[0], k], -2), torch.cat([past[1], v], -2), mask)
    out: Tensor = attention.drop(attention.out(read.transpose(-3, -2).flatten(-2)))
    return out
