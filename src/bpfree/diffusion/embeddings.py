"""Label embeddings u_y = W_embed[y]."""

import torch
from torch import Tensor, nn


class OneHotEmbedding(nn.Module):
    """Fixed one-hot embeddings: W_embed is the identity, E = C."""

    weight: Tensor  # [C, E]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(classes))

    @property
    def dim(self) -> int:
        """E."""
        return self.weight.shape[1]

    def forward(self, y: Tensor) -> Tensor:
        """[B] -> [B, E]."""
        return self.weight[y]
