"""Nets in which errors pass by more than the layers that feedback alignment hooks."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from bpfree import Noise
from bpfree.types import Batch
from tests.helpers import TASK, gradients

WIDTH, TOKENS, VOCABULARY, B = 8, 6, 10, 16


class Net(nn.Module):
    """Tokens or images; `between` computes from the embedded tokens, or the image, what the output layer sees."""

    def __init__(self, between, **parts):
        super().__init__()
        self.emb, self.pos = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        for name, part in parts.items():
            setattr(self, name, part)
        self.out = nn.Linear(WIDTH, 10)
        self.between = between

    def forward(self, x):
        return self.out(self.between(self, self.emb(x) + self.pos).mean(1))


def tokens_like(batch):
    """Samples of tokens, on the device of the batch."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randint(VOCABULARY, shape, generator=random) for shape in ((B, TOKENS), (B,)))
    return Batch(x.to(batch.x.device), y.to(batch.x.device))


class Activated(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


def matrix(*shape):
    return nn.Parameter(torch.randn(*shape))


def frozen(part):
    return part.requires_grad_(False)


def attention(**options):
    return nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options)


def encoder(**options):
    return nn.TransformerEncoderLayer(WIDTH, 2, 12, **{"dropout": 0.1, "batch_first": True, **options})


def dense():
    return nn.Linear(WIDTH, WIDTH)


def images(*layers):
    return lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *layers)


PATHS = {
    "encoder": lambda: Net(lambda net, h: net.e(h), e=nn.TransformerEncoder(encoder(), 2)),
    "norm first": lambda: Net(lambda net, h: net.e(h), e=encoder(norm_first=True)),
    "decoder": lambda: Net(lambda net, h: net.e(h, h), e=nn.TransformerDecoderLayer(WIDTH, 2, 12, batch_first=True)),
    "other keys": lambda: Net(lambda net, h: net.e(h, h[..., :4], h[..., :4])[0], e=attention(kdim=4, vdim=4)),
    "learned queries": lambda: Net(
        lambda net, h: net.e(net.q.expand(len(h), -1, -1), h, h)[0], e=attention(), q=matrix(1, 2, WIDTH)
    ),
    "projected queries": lambda: Net(
        lambda net, h: F.scaled_dot_product_attention(net.wq(net.q).expand(len(h), -1, -1), net.wk(h), h),
        wq=dense(),
        wk=dense(),
        q=matrix(1, 2, WIDTH),
    ),
    "class token": lambda: Net(
        lambda net, h: net.e(torch.cat([net.c.expand(len(h), -1, -1), h], 1))[:, :1], e=encoder(), c=matrix(1, 1, WIDTH)
    ),
    "bias of scores": lambda: Net(
        lambda net, h: F.scaled_dot_product_attention(net.a(h), net.b(h), h, attn_mask=net.m),
        a=dense(),
        b=dense(),
        m=matrix(TOKENS, TOKENS),
    ),
    "matmul": lambda: Net(lambda net, h: (net.a(h) @ net.w).tanh() @ net.v, a=dense(), w=matrix(8, 5), v=matrix(5, 8)),
    "einsum": lambda: Net(lambda net, h: torch.einsum("btd,ed->bte", net.a(h), net.w), a=dense(), w=matrix(8, 8)),
    "passed by": lambda: Net(lambda net, h: net.a(h) @ net.b.weight.T, a=dense(), b=dense()),
    "frozen": lambda: Net(lambda net, h: net.b(net.a(h) @ net.w), a=dense(), b=frozen(dense()), w=frozen(matrix(8, 8))),
    "gru": lambda: Net(lambda net, h: net.g(h)[0], g=nn.GRU(WIDTH, WIDTH, num_layers=2, batch_first=True)),
    "gru of a state": lambda: Net(
        lambda net, h: net.g(h, net.h.expand(1, len(h), -1).contiguous())[0],
        g=nn.GRU(WIDTH, WIDTH, batch_first=True),
        h=matrix(1, 1, WIDTH),
    ),
    "lstm": lambda: Net(lambda net, h: net.g(h)[0], g=nn.LSTM(WIDTH, WIDTH, batch_first=True)),
    "cell": lambda: Net(lambda net, h: net.g(h[:, 1], net.g(h[:, 0]))[:, None], g=nn.GRUCell(WIDTH, WIDTH)),
    "bilinear": lambda: Net(lambda net, h: net.g(h, h.flip(1)), g=nn.Bilinear(WIDTH, WIDTH, WIDTH)),
    "own forward": lambda: Net(lambda net, h: net.b(net.a(h)), a=Activated(WIDTH, WIDTH), b=Activated(WIDTH, WIDTH)),
    "by keyword": lambda: Net(lambda net, h: net.b(input=net.a(input=h).tanh()), a=dense(), b=dense()),
    "unused": lambda: Net(lambda net, h: net.a(h), a=dense(), b=dense(), c=matrix(8, 8), d=attention()),
    "norms": lambda: Net(lambda net, h: net.n(net.a(h)), a=dense(), n=nn.RMSNorm([TOKENS, WIDTH])),
    "weight norm": lambda: Net(lambda net, h: net.a(h), a=parametrizations.weight_norm(dense())),
    "spectral norm": lambda: Net(lambda net, h: net.a(h), a=parametrizations.spectral_norm(dense())),
    "old spectral norm": lambda: Net(lambda net, h: net.a(h), a=nn.utils.spectral_norm(dense())),
    "old weight norm": lambda: Net(lambda net, h: net.a(h), a=nn.utils.weight_norm(dense())),
    "image norms": images(
        nn.LayerNorm([4, 8, 8]), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.PReLU(4), nn.Flatten(), nn.Linear(256, 10)
    ),
    "transposed": images(nn.ConvTranspose2d(4, 3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(867, 10)),
    "paddings": images(
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), nn.Conv2d(3, 2, 4, padding="same"), nn.Flatten(),
        nn.Linear(128, 10),
    ),
}  # fmt: skip


def made(kind, batch, tokens):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old normalisations of weights
        net = PATHS[kind]().double().to(batch.x.device)
    return net, tokens if isinstance(net, Net) else batch


def write(rule, net, batch):
    """The rule's gradients, with buffers left as they were."""
    before = {name: b.clone() for name, b in net.named_buffers()}
    net.zero_grad()
    rule.gradients(net, TASK, batch, Noise(0, 1))
    for name, b in net.named_buffers():
        b.copy_(before[name])
    return gradients(net)
