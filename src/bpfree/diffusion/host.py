"""The nets whose Transformer blocks denoise the embedding of the target: a ViT for classes, a decoder for tokens."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bpfree.errors import UserError
from bpfree.nets.blocks import Block, Pool
from bpfree.nets.patches import PlacedPatches
from bpfree.nets.transformer import Embed, Transformer


class Host(NamedTuple):
    """The parts of a net whose blocks denoise.

    Attributes:
        entry: samples -> tokens [B, T, H].
        layers: the Transformer blocks.
        norm: the normalisation behind them.
        readout: features -> scores.
        table: the embeddings of tokens, [V, H]; None if the net has none of the classes.
    """

    entry: nn.Module
    layers: list[Block]
    norm: nn.Module
    readout: nn.Linear
    table: Tensor | None

    def place(self, tokens: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features that the blocks change, and the clean tokens beside them if there are any.

        Args:
            tokens: what the entry gave, [B, T, H].
            z: the scaled noisy embeddings, [B, H] of classes or [B, T, H] of tokens. That of a class is added to the
                class token. Those of tokens stand beside the clean tokens.
        """
        if self.table is not None:
            return z, tokens
        return torch.cat([tokens[:, :1] + z[:, None], tokens[:, 1:]], 1), None

    def taken(self, h: Tensor) -> Tensor:
        """Return the features [B, H] or [B, T, H] from which the embedding is predicted.

        Args:
            h: normalised features behind the blocks, [B, T, H].
        """
        return h if self.table is not None else h[:, 0]


def host_of(net: nn.Module, outputs: int, *, tokens: bool) -> Host:
    """Return the parts of a net whose blocks denoise.

    Args:
        net: the net.
        outputs: D, the number of classes or of different tokens.
        tokens: True for a decoder with an output at each step.

    Raises:
        UserError: the net is another one, or has another number of outputs.
    """
    found = dict(net.named_children()) if isinstance(net, nn.Sequential) else {}
    entry, norm, readout = next(iter(found.values()), None), found.get("norm"), found.get("fc")
    layers = [layer for layer in found.values() if isinstance(layer, Block)]
    pool = found.get("pool")
    fits = (
        isinstance(net, Transformer) and pool is None and isinstance(getattr(entry, "values", None), nn.Embedding)
        if tokens
        else isinstance(entry, PlacedPatches) and isinstance(pool, Pool) and pool.kind == "first"
    )
    if not fits or norm is None or not isinstance(readout, nn.Linear):
        wanted = "net.name=transformer net.each_step=true" if tokens else "net.name=vit net.pool=class"
        raise UserError(
            f"net: found {type(net).__name__}, but DiffusionBlocks denoises embeddings of "
            f"{'the next tokens beside the tokens of a decoder' if tokens else 'labels on the class token of a ViT'}. "
            f"Use {wanted}"
        )
    if readout.out_features != outputs:
        raise UserError(f"net: it has {readout.out_features} outputs, allowed: {outputs}, as the task has")
    assert isinstance(entry, Embed | PlacedPatches)
    return Host(entry, layers, norm, readout, table_of(entry) if isinstance(entry, Embed) else None)


def table_of(entry: Embed) -> Tensor:
    """Return the embeddings of tokens, [V, H].

    Args:
        entry: the first layer of a decoder for tokens.
    """
    assert isinstance(entry.values, nn.Embedding)
    return entry.values.weight
