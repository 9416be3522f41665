"""Transformer blocks: attention that can keep its keys and values, and a feed-forward net, each behind a normalisation.

    h <- h + attention(norm(h)),    h <- h + mlp(norm(h))

Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762, with the normalisation before each
branch (Xiong et al. 2020, https://arxiv.org/abs/2002.04745). RMSNorm: Zhang & Sennrich 2019,
https://arxiv.org/abs/1910.07467. Rotary positions: Su et al. 2021, https://arxiv.org/abs/2104.09864. SwiGLU: Shazeer
2020, https://arxiv.org/abs/2002.05202. Initial weights: Nguyen & Salazar 2019, https://arxiv.org/abs/1910.05895, with
the last layer of each branch divided by sqrt(2 L) for L blocks, as in GPT-2.

Short sequences are filled at their end, and there all features are 0. So each layer, each head of a local rule and each
process sees from its own input which steps do not count; no mask goes beside the features.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.errors import UserError, check_choice, check_positive

NormName = Literal["rms", "layer"]
MLPName = Literal["swiglu", "gelu"]
Cache = tuple[Tensor, Tensor]
"""The keys and the values of the steps before, each [B, heads, T, H / heads]."""
_BASE = 10_000.0  # the slowest rotation turns once in about 2 pi _BASE steps


@dataclass(frozen=True)
class BlockForm:
    """The form of a Transformer block, from which a rule can make more blocks of the same kind.

    Attributes:
        width: H, the number of features of each token.
        heads: the number of attention heads, which divides H.
        hidden: the width of the feed-forward net. Default: 4 H for "gelu"; for "swiglu" 8/3 H, rounded up to a multiple
            of 8, which gives about as many parameters.
        norm: "rms" for RMSNorm and layers without biases, as in Llama; "layer" for LayerNorm and layers with biases, as
            in GPT-2.
        mlp: the feed-forward net, "swiglu" or "gelu".
        rotary: True if queries and keys are rotated by their positions.
        causal: True if a token sees only itself and the tokens before it.
        dropout: the probability that a feature is dropped at the end of each branch.
        filled: True if steps at the end whose features are all 0 do not count, and stay 0.

    Raises:
        UserError: an unknown choice, a number that is not above 0, or heads that do not divide the width.
    """

    width: int = 128
    heads: int = 4
    hidden: int | None = None
    norm: NormName = "rms"
    mlp: MLPName = "swiglu"
    rotary: bool = True
    causal: bool = True
    dropout: float = 0.0
    filled: bool = False

    def __post_init__(self) -> None:
        """Raise UserError if values do not fit."""
        check_choice("net.norm", self.norm, ("rms", "layer"))
        check_choice("net.mlp", self.mlp, ("swiglu", "gelu"))
        for name in ("width", "heads", "inside"):
            check_positive(f"net.{'hidden' if name == 'inside' else name}", getattr(self, name))
        # A rotation turns pairs of features.
        multiple = self.heads * (2 if self.rotary else 1)
        if self.width % multiple:
            pairs = " 2 x heads, since rotary positions turn pairs of features:" if self.rotary else " the heads:"
            raise UserError(f"net.width: found {self.width}, allowed: a multiple of{pairs} {multiple}")

    @property
    def inside(self) -> int:
        """The width of the feed-forward net."""
        if self.hidden is not None:
            return self.hidden
        return 4 * self.width if self.mlp == "gelu" else 8 * math.ceil(self.width / 3)

    @property
    def bias(self) -> bool:
        """True if linear layers have a bias."""
        return self.norm == "layer"

    def make_norm(self) -> nn.Module:
        """Return a new normalisation of features [..., H]."""
        if self.norm == "rms":
            return nn.RMSNorm(self.width, eps=1e-6)  # it leaves features of 0 at 0
        return FilledLayerNorm(self.width) if self.filled else nn.LayerNorm(self.width)


class FilledLayerNorm(nn.LayerNorm):
    """A LayerNorm that leaves steps whose features are all 0 as they are."""

    def forward(self, h: Tensor) -> Tensor:
        """Return new features [B, T, H]."""
        return super().forward(h) * counts(h)


def counts(h: Tensor) -> Tensor:
    """Return 1 for each step that counts, and 0 for steps whose features are all 0, [B, T, 1] for h [B, T, H]."""
    return (h != 0).any(-1, keepdim=True).to(h.dtype)


class Attention(nn.Module):
    """Attention with several heads.

    Args:
        form: its width, heads, positions and dropout.
    """

    def __init__(self, form: BlockForm) -> None:
        super().__init__()
        self.form = form
        self.qkv = nn.Linear(form.width, 3 * form.width, form.bias)
        self.out = nn.Linear(form.width, form.width, form.bias)
        self.drop = dropout_layer(form.dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Return what each token reads from the tokens that it sees, [B, T, H] for h [B, T, H]."""
        return self.step(h, None)[0]

    def step(self, h: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        """Return what the newest tokens read, and the cache that includes them.

        Args:
            h: features of the newest tokens [B, t, H].
            past: the cache of the tokens before; None if there are none.
        """
        parts = self.qkv(h).unflatten(-1, (3, self.form.heads, -1)).unbind(-3)
        q, k, v = (part.transpose(-3, -2) for part in parts)  # each [B, heads, t, H / heads]
        start = 0 if past is None else past[0].shape[-2]
        if self.form.rotary:
            q, k = rotate(q, start), rotate(k, start)
        mask = None
        if past is not None:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=h.device).tril(start)
        # `is_causal` is fast, but it would place the newest tokens at the start of the keys.
        read = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.form.causal and mask is None)
        return self.drop(self.out(read.transpose(-3, -2).flatten(-2))), (k, v)


def rotate(x: Tensor, start: int = 0) -> Tensor:
    """Turn pairs of features by angles in proportion to their position, so that products depend on differences only.

    Feature i and feature i + E/2 are a pair, as in Llama.

    Args:
        x: queries or keys, [..., T, E], E even.
        start: the position of the first of the T.

    Returns:
        A tensor in the shape and type of x.
    """
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32  # bfloat16 does not tell positions apart
    half = x.shape[-1] // 2
    rates = _BASE ** -(torch.arange(half, dtype=exact, device=x.device) / half)
    angles = torch.arange(start, start + x.shape[-2], dtype=exact, device=x.device)[:, None] * rates  # [T, E / 2]
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class SwiGLU(nn.Module):
    """A feed-forward net with a gate, W (silu(U h) * V h).

    Args:
        form: its width and dropout.
    """

    def __init__(self, form: BlockForm) -> None:
        super().__init__()
        self.up = nn.Linear(form.width, 2 * form.inside, form.bias)
        self.down = nn.Linear(form.inside, form.width, form.bias)
        self.drop = dropout_layer(form.dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Return new features [B, T, H] for h [B, T, H]."""
        gate, values = self.up(h).chunk(2, -1)
        out: Tensor = self.drop(self.down(F.silu(gate) * values))
        return out


def gelu_mlp(width: int, hidden: int, dropout: float, bias: bool = True) -> nn.Sequential:
    """Return a feed-forward net of two layers with a GELU between them.

    Args:
        width: H of its input and its output.
        hidden: the number of features between the two layers.
        dropout: the probability that a feature of the output is dropped.
        bias: True for layers with biases.
    """
    return nn.Sequential(
        OrderedDict(
            up=nn.Linear(width, hidden, bias),
            act=nn.GELU(),
            down=nn.Linear(hidden, width, bias),
            drop=dropout_layer(dropout),
        )
    )


def dropout_layer(dropout: float) -> nn.Module:
    """Return a dropout, or an identity if nothing is dropped.

    Args:
        dropout: the probability that a value is dropped.

    Raises:
        UserError: the probability is not from 0 to below 1.
    """
    if not 0 <= dropout < 1:
        raise UserError(f"net.dropout: found {dropout}, allowed: a number from 0 to below 1")
    return nn.Dropout(dropout) if dropout else nn.Identity()


class Block(nn.Module):
    """A Transformer block with the normalisation before each branch.

    Args:
        form: what the block is made of.
    """

    def __init__(self, form: BlockForm) -> None:
        super().__init__()
        self.filled = form.filled
        self.norm1 = form.make_norm()
        self.attention = Attention(form)
        self.norm2 = form.make_norm()
        gelu = form.mlp == "gelu"
        self.mlp = gelu_mlp(form.width, form.inside, form.dropout, form.bias) if gelu else SwiGLU(form)

    def forward(self, h: Tensor) -> Tensor:
        """Return new features [B, T, H] for h [B, T, H]."""
        return self._behind(h, self.attention(self.norm1(h)))

    def step(self, h: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        """Return new features of the newest tokens, and the cache that includes them; see `Attention.step`."""
        read, cache = self.attention.step(self.norm1(h), past)
        return self._behind(h, read), cache

    def _behind(self, before: Tensor, read: Tensor) -> Tensor:
        h = before + read
        out: Tensor = h + self.mlp(self.norm2(h))
        return out * counts(before) if self.filled else out


class Pool(nn.Module):
    """A layer that makes one feature vector [B, H] of the features [B, T, H] of all tokens.

    It belongs to the stage of the last block: a local loss there sees what the read-out sees.

    Args:
        kind: "first" for the first token, "last" for the last one, "mean" for the mean over tokens.
        filled: True if tokens at the end whose features are all 0 do not count.
    """

    def __init__(self, kind: Literal["first", "last", "mean"], filled: bool = False) -> None:
        super().__init__()
        check_choice("net.pool", kind, ("first", "last", "mean"))
        self.kind = kind
        self.filled = filled

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, H] for features h [B, T, H]."""
        if self.filled and self.kind != "first":
            share = counts(h)  # [B, T, 1]
            if self.kind == "last":
                share = share - F.pad(share[:, 1:], (0, 0, 0, 1))  # 1 where the step behind does not count
            return (h * share).sum(1) / share.sum(1).clamp_min(1)
        return h.mean(1) if self.kind == "mean" else h[:, 0 if self.kind == "first" else -1]


def block_layers(form: BlockForm, depth: int) -> OrderedDict[str, nn.Module]:
    """Return the layers block1, block2, ... and norm, with new initial weights.

    Args:
        form: what each block is made of.
        depth: the number of blocks, above 0.
    """
    check_positive("net.depth", depth)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, depth + 1):
        block = layers[f"block{i}"] = Block(form)
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                # The sum of 2 L branches keeps the variance of the features independent of the depth.
                small_init(module, form.width, 1 / math.sqrt(2 * depth) if name.endswith(("out", "down")) else 1.0)
    layers["norm"] = form.make_norm()
    return layers


def small_init(layer: nn.Linear | nn.Embedding, width: int, scale: float = 1.0) -> None:
    """Draw the weights of a layer from N(0, 2 / (5 width)), and set its bias to 0.

    Args:
        layer: it is changed in place.
        width: H of the net.
        scale: a factor of the weights.
    """
    nn.init.normal_(layer.weight, std=scale * math.sqrt(2 / (5 * width)))
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
