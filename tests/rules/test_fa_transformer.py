"""Feedback alignment on a Transformer, against autograd functions that are written for this test."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise
from bpfree.rules import FA, USF
from tests.helpers import TASK, bound, gradients
from tests.rules.fa_nets import TOKENS, VOCABULARY, WIDTH, tokens_like


@pytest.fixture
def tokens(batch):
    return tokens_like(batch)


class Fed(torch.autograd.Function):
    """A product whose error goes back through another matrix, written for this test."""

    @staticmethod
    def forward(ctx, x, weight, feedback):
        ctx.save_for_backward(x, feedback)
        return x @ weight.T

    @staticmethod
    def backward(ctx, g):
        x, feedback = ctx.saved_tensors
        return g @ feedback, g.flatten(0, -2).T @ x.flatten(0, -2), None


class Projected(nn.Module):
    """Attention whose projections are Linear."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, h):
        q, k, v = (part(h).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        a = (q @ k.transpose(-1, -2) / (WIDTH // 2) ** 0.5).softmax(-1) @ v
        return self.o(a.transpose(1, 2).flatten(-2))


class Transformer(nn.Module):
    """Positions, normalisations, attention, and an output tied to the embedding."""

    def __init__(self, torchs):
        super().__init__()
        self.emb, self.pos = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if torchs else Projected()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm([TOKENS, WIDTH])
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        nn.init.normal_(self.norm2.weight)

    def forward(self, x):
        h = self.emb(x) + self.pos
        a = self.norm1(h)
        h = h + (self.attend(a, a, a)[0] if isinstance(self.attend, nn.MultiheadAttention) else self.attend(a))
        h = h + self.down(F.gelu(self.up(self.norm2(h))))
        return h.mean(1) @ self.emb.weight.T


def by_hand(net, x, feedback):
    """The same net once more; `feedback` gives B by the name of a parameter."""
    p = dict(net.named_parameters())

    def linear(h, name, rows=slice(None), bias=None):
        out = Fed.apply(h, p[name][rows], feedback[name][rows])
        return out if bias is None else out + p[bias][rows]

    def norm(h, name):
        dims = tuple(range(-p[f"{name}.weight"].dim(), 0))
        centred = h - h.mean(dims, keepdim=True)
        return (
            p[f"{name}.weight"] * centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()
            + p[f"{name}.bias"]
        )

    h = p["emb.weight"][x] + p["pos"]
    a = norm(h, "norm1")
    if "attend.in_proj_weight" in p:
        parts = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3)]
        q, k, v = (linear(a, "attend.in_proj_weight", rows, "attend.in_proj_bias") for rows in parts)
        o = "attend.out_proj"
    else:
        q, k, v = (linear(a, f"attend.{each}.weight", bias=f"attend.{each}.bias") for each in "qkv")
        o = "attend.o"
    heads = []
    for head in (slice(0, WIDTH // 2), slice(WIDTH // 2, WIDTH)):
        scores = torch.einsum("bid,bjd->bij", q[..., head], k[..., head]) / (WIDTH // 2) ** 0.5
        heads.append(torch.einsum("bij,bjd->bid", scores.softmax(-1), v[..., head]))
    h = h + linear(torch.cat(heads, -1), f"{o}.weight", bias=f"{o}.bias")
    up = linear(norm(h, "norm2"), "up.weight", bias="up.bias")
    h = h + linear(F.gelu(up), "down.weight", bias="down.bias")
    return linear(h.mean(1), "emb.weight")


@pytest.mark.parametrize("torchs", [False, True], ids=["projections", "MultiheadAttention"])
@pytest.mark.parametrize("make", [FA, USF])
def test_a_transformer_is_what_functions_of_ones_own_make_of_it(make, torchs, tokens):
    torch.manual_seed(0)
    net = Transformer(torchs).double().to(tokens.x.device)
    rule = bound(make(), net, tokens)
    rule.gradients(net, TASK, tokens, Noise())
    found = gradients(net)
    parameters = dict(net.named_parameters())
    if make is FA:
        drawn = dict(zip(rule.names, rule.buffers(), strict=True))
        feedback = {name if name in parameters else f"{name}.weight": b for name, b in drawn.items()}
    else:
        feedback = {n: p.sign() * (2 / sum(p.shape)) ** 0.5 for n, p in parameters.items() if p.dim() == 2}
    torch.testing.assert_close(net(tokens.x), by_hand(net, tokens.x, feedback), rtol=0, atol=1e-10)
    loss = F.cross_entropy(by_hand(net, tokens.x, feedback), tokens.y)
    for (name, p), g in zip(parameters.items(), torch.autograd.grad(loss, parameters.values()), strict=True):
        torch.testing.assert_close(found[f"Transformer.{name}"], g, rtol=0, atol=1e-10, msg=name)
        assert p.grad is not None
