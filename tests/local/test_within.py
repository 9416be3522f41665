"""Cuts within the blocks of Transformers, found by what reads what and not by names."""

import pytest
import torch
from torch import nn

from bpfree import UserError
from bpfree.local.segments import owners
from bpfree.local.within import Within
from bpfree.nets import NETS

X = torch.zeros(2, 6, dtype=torch.long)


def decoder(**options):
    torch.manual_seed(0)
    return NETS["transformer"]((6,), 11, each_step=True, width=16, depth=2, heads=2, **options)


class NormBehind(nn.Module):
    """An encoder of torch, which normalises behind each branch."""

    def __init__(self, first=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=first)
        self.embed = nn.Embedding(11, 16)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 11)

    def forward(self, x):
        return self.fc(self.blocks(self.embed(x)))


def found(net, taps, *, embedding):
    places = Within(net, X, taps)
    if embedding:
        places.add_embedding()
    places.add_layers()
    owners(net, places.taps, X)  # each cut is sound beside the others
    return places.taps


@pytest.mark.parametrize(
    ("options", "first"),
    [({}, "up"), ({"mlp": "gelu"}, "act"), ({"norm": "layer", "positions": "learned", "dropout": 0.1}, "up")],
)
def test_a_block_is_cut_behind_its_attention_and_behind_its_first_matrix(options, first):
    net = decoder(**options)
    within = [[f"block{i}.attention", f"block{i}.mlp.{first}"] for i in (1, 2)]
    assert found(net, ["block1"], embedding=True) == ["embed", *within[0], "block1", *within[1]]


def test_the_embedding_goes_around_the_first_attention_of_a_net_that_normalises_before():
    assert found(decoder(), ["block1"], embedding=False) == ["block1", "block2.attention", "block2.mlp.up"]


def test_a_net_that_normalises_behind_is_cut_behind_the_normalisation():
    within = [[f"blocks.layers.{i}.norm1", f"blocks.layers.{i}.dropout"] for i in (0, 1)]
    assert found(NormBehind(), ["blocks.layers.0"], embedding=False) == [*within[0], "blocks.layers.0", *within[1]]
    cut = found(NormBehind(), ["embed", "blocks.layers.0"], embedding=True)
    assert cut == ["embed", *within[0], "blocks.layers.0", *within[1]]


class Gated(nn.Module):
    """A feed-forward net of three matrices, two of which read the same normalisation, as in Llama."""

    def __init__(self):
        super().__init__()
        self.norm, self.gate, self.up, self.down = nn.LayerNorm(16), *(nn.Linear(16, 16) for _ in range(3))

    def forward(self, h):
        read = self.norm(h)
        return h + self.down(nn.functional.silu(self.gate(read)) * self.up(read))


def test_no_place_is_taken_where_a_cut_is_not_sound():
    net = nn.Sequential(nn.Embedding(11, 16), Gated(), Gated(), nn.Linear(16, 11))
    assert found(net, ["0", "1"], embedding=False) == ["0", "1"]


def test_layers_without_blocks_have_no_places_within():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    places = Within(net, torch.randn(2, 6), ["1", "3"])
    places.add_layers()
    assert places.taps == ["1", "3"]
    with pytest.raises(UserError, match="cut_embedding: found true, but Sequential has no embedding"):
        places.add_embedding()
