"""Denoising blocks that several processes train.

A block with its own trunk needs nothing of the others. A shared trunk belongs to the process of block 1, which sends
its features to the others and waits for nothing.
"""

from typing import Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bpfree.diffusion.embeddings import Embedding
from bpfree.diffusion.net import DenoisingNet
from bpfree.errors import UserError
from bpfree.grad import trainable
from bpfree.mesh import Part
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.types import Batch


class BlocksApart(Protocol):
    """The attributes of `bpfree.diffusion.blocks.BlockRule` that this module reads; they are documented there."""

    embedding: Embedding

    @property
    def order(self) -> str: ...  # noqa: D102


def refuse_blocks(rule: BlocksApart, blocks: DenoisingNet) -> None:
    """Raise UserError if the blocks do not train apart from each other.

    Args:
        rule: bound to the net.
        blocks: the net.
    """
    if rule.embedding.learned:
        raise UserError(
            f"mesh: found 'blocks', but the embedding of {type(rule).__name__} learns from all blocks. Use "
            "rule.embedding=one_hot, or train.mesh=data"
        )
    if blocks.local:
        raise UserError(
            "mesh: found 'blocks' on a net with trunk: local, whose stages and blocks have one order. Use "
            "net.trunk=own or shared, or train.mesh=data"
        )
    if len(blocks.trunks) == 1 and rule.order != "all":
        raise UserError(
            f"mesh: found 'blocks' with order: {rule.order} and a trunk that blocks share, so that only one process "
            "would work in a step. Use rule.order=all, net.trunk=own, or train.mesh=data"
        )


@torch.no_grad()
def parts_of(rule: nn.Module, blocks: DenoisingNet, batch: Batch) -> list[Part]:
    """Return the parts that processes train: the blocks, the last one with what the rule itself trains.

    Args:
        rule: bound to the net.
        blocks: the net.
        batch: samples, for their shapes.
    """
    found, features = [], None
    few = batch.tensor[:2]
    assert isinstance(blocks, nn.Module)
    with unchanged_buffers(blocks), Noise().global_rng(few.device):
        for t, head in enumerate(blocks.heads):
            own: list[nn.Module] = [head]
            with FlopCounterMode(display=False) as operations:
                if t < len(blocks.trunks):
                    own.append(blocks.trunks[t])
                    features = blocks.trunks[t](few)
                assert features is not None
                head(features, features.new_zeros(len(few), blocks.embedding_dim))
            private = [tensor for module in own for tensor in (*module.parameters(), *module.buffers())]
            shared = trainable(rule) if t == len(blocks.heads) - 1 else []
            cost = 1 + operations.get_total_flops() / len(few)
            found.append(Part(cost, trainable(*own) + shared, [*private, *shared], private))
    return found
