"""Feedback alignment on nets in which errors pass by more than the layers that it hooks."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from bpfree import Noise, UserError
from bpfree.rules import BRSF, FA, FRSF, USF, Backprop
from bpfree.types import Batch
from tests.helpers import TASK, bound, gradients, same

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


@pytest.fixture
def tokens(batch):
    """Samples of tokens, on the device of the batch."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randint(VOCABULARY, shape, generator=random) for shape in ((B, TOKENS), (B,)))
    return Batch(x.to(batch.x.device), y.to(batch.x.device))


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
    return nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.1, batch_first=True, **options)


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


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("make", [FA, BRSF])
def test_with_b_equal_w_it_is_backprop_and_with_none_no_error_gets_by(make, kind, batch, tokens):
    net, batch = made(kind, batch, tokens)
    rule = bound(make(), net, batch)
    written, true = write(rule, net, batch), write(Backprop(), net, batch)
    assert any(not torch.allclose(written[name], true[name]) for name in true)
    rule.factors = lambda weight, drawn, noise: (weight, 1.0)
    written = write(rule, net, batch)
    assert written.keys() == true.keys()
    for name in true:
        torch.testing.assert_close(written[name], true[name], rtol=0, atol=1e-10, msg=name)
    rule.factors = lambda weight, drawn, noise: (torch.zeros_like(weight), 1.0)
    written = write(rule, net, batch)
    *below, weight, bias = written
    assert all(bool(written[name].any()) for name in (weight, bias)), "the output layer learns"
    assert not any(bool(written[name].any()) for name in below), "nothing below it gets an error"


def test_a_weight_has_one_b_however_it_is_used(tokens):
    net = Net(lambda net, h: net.b(net.a(h)).tanh() @ net.b.weight.T, a=dense(), b=dense()).double()
    net = net.to(tokens.x.device)
    rule = bound(FA(), net, tokens)
    assert rule.names == ["a", "b", "out"]
    rule.B1.copy_(net.b.weight.detach())
    rule.B2.copy_(net.out.weight.detach())
    rule.B0.zero_()
    written, true = write(rule, net, tokens), write(Backprop(), net, tokens)
    for name in ("a.weight", "b.weight", "out.weight"):
        torch.testing.assert_close(written[f"Net.{name}"], true[f"Net.{name}"])
    assert not bool(written["Net.emb.weight"].any())


def test_feedback_of_a_matrix_that_is_used_inputs_first(tokens):
    """x @ W has the feedback that a Linear of its shape would have: bounds by the number of its inputs."""
    net = Net(lambda net, h: (net.a(h) @ net.w).tanh() @ net.v, a=dense(), w=matrix(8, 400), v=matrix(400, 8))
    rule = bound(FA(), net.double().to(tokens.x.device), tokens)
    paths = rule.feedback_paths(net, Noise())
    assert paths["w"][1].shape == (400, 8)
    assert float(paths["w"][1].abs().max()) == pytest.approx((6 / 8) ** 0.5, rel=0.02)
    assert float(paths["v"][1].abs().max()) == pytest.approx((6 / 400) ** 0.5, rel=0.02)


@pytest.mark.parametrize("make", [FA, USF, BRSF, FRSF])
def test_what_would_carry_errors_through_true_weights_is_refused(make, tokens):
    for between, match, parts in (
        (lambda net, h: F.linear(net.a(h), F.normalize(net.w)), "computed from parameter 'w'", {"w": matrix(8, 8)}),
        (lambda net, h: net.a(h) @ (net.w @ net.v), "from parameter '[vw]'", {"w": matrix(8, 2), "v": matrix(2, 8)}),
        (lambda net, h: (net.a(h)[..., None] * net.w).sum(-2), "matrix product written as sc", {"w": matrix(8, 8)}),
        (lambda net, h: torch.cdist(net.a(h), net.w.expand(B and len(h), 8, 8)), "'w' in Cdist", {"w": matrix(8, 8)}),
        (lambda net, h: checkpoint(lambda t: t @ net.w, net.a(h), use_reentrant=True), "hides", {"w": matrix(8, 8)}),
        (lambda net, h: Through.apply(net.a(h), net.w), "'w' in ThroughBackward", {"w": matrix(8, 8)}),
    ):
        net = Net(between, a=dense(), **parts).double().to(tokens.x.device)
        with pytest.raises(UserError, match=match):
            bound(make(), net, tokens)


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, w):
        ctx.w = w
        return h @ w

    @staticmethod
    def backward(ctx, g):
        return g @ ctx.w.T, None


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 8)) for _ in range(2)
        )
        self.blocks.append(parametrizations.weight_norm(nn.Linear(8, 8)))
        self.out, self.reentrant = nn.Linear(8, 10), reentrant

    def forward(self, x):
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h) if self.reentrant is None else checkpoint(block, h, use_reentrant=self.reentrant)
        return self.out(h)


@pytest.mark.parametrize("make", [FA, USF, BRSF])
def test_activation_checkpointing_changes_nothing_or_is_refused(make, batch):
    found = []
    for reentrant in (None, False):
        net = Checkpointed(reentrant).double().to(batch.x.device)
        found.append(write(bound(make(), net, batch), net, batch))
    assert same(*found)
    with pytest.raises(UserError, match=r"parameter 'blocks\.0\.0\.weight' is trainable, but its module runs with gra"):
        bound(make(), Checkpointed(True).double().to(batch.x.device), batch)
    attending = Net(lambda net, h: checkpoint(net.e, h, use_reentrant=False), e=encoder()).double().to(batch.x.device)
    tokens = Batch(torch.zeros(4, TOKENS, dtype=torch.int64, device=batch.x.device), batch.y[:4])
    with pytest.raises(UserError, match=r"'e\.self_attn\.\w+_proj.*weight' is used inside activation checkpointing"):
        bound(make(), attending, tokens)


@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_net_learns_as_it_does_uncompiled(whole, batch):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 10)]
        net = nn.Sequential(nn.Flatten(), *layers).double().to(batch.x.device)
        given = net
        if compiled and whole:
            given = torch.compile(net, backend="eager")
        elif compiled:
            net.compile(backend="eager")
        given(batch.x)
        rule = bound(USF(), given, batch)
        rule.gradients(given, TASK, batch, Noise())
        found.append(gradients(net))
    assert same(*found)


def test_spectral_norm_iterates_once_in_a_step(tokens):
    state = []
    for rule in (Backprop(), USF()):
        torch.manual_seed(0)
        net = Net(lambda net, h: net.a(h), a=parametrizations.spectral_norm(dense())).double().to(tokens.x.device)
        rule = bound(rule, net, tokens)
        rule.gradients(net, TASK, tokens, Noise())
        rule.feedback_paths(net, Noise())
        state.append(dict(net.named_buffers()))
    assert same(*state)


def test_what_a_net_takes_and_gives(batch):
    """Several tensors, named tensors; an object with logits, and no tuple."""

    class Towers(nn.Module):
        def __init__(self, gives):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.out = nn.Linear(64, 6), nn.Linear(64, 6), nn.Linear(6, 10)
            self.gives = gives

        def forward(self, left, right):
            return self.gives(self.out((self.a(input=left) * self.b(right)).tanh()))

    x = batch.x.flatten(1)
    found = []
    for gives, given in (
        (lambda out: out, (x, 2 * x)),
        (lambda out: {"logits": out, "more": 1}, {"right": 2 * x, "left": x}),
        (lambda out: type("Output", (), {"logits": out}), (x, 2 * x)),
    ):
        net, both = Towers(gives).double().to(x.device), batch._replace(x=given)
        torch.manual_seed(1)
        rule = FA()
        rule.bind(net, TASK, both)
        rule.to(x.device).gradients(net, TASK, both, Noise())
        found.append(gradients(net))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    with pytest.raises(UserError, match="net: its output is tuple, allowed: one tensor"):
        FA().bind(Towers(lambda out: (out, out)).double().to(x.device), TASK, batch._replace(x=(x, x)))


def test_recurrent_layers_have_feedback_where_torch_would_fuse_them(batch, tokens):
    """In float32 a processor runs an LSTM in one kernel, in which nothing can be replaced."""
    net, _ = made("lstm", batch, tokens)
    rule = bound(FA(), net.float(), tokens)
    rule.factors = lambda weight, drawn, noise: (weight, 1.0)
    written, true = write(rule, net, tokens), write(Backprop(), net, tokens)
    for name in true:
        torch.testing.assert_close(written[name], true[name], rtol=0, atol=1e-6, msg=name)
    assert torch.backends.mkldnn.is_available() == torch._C._get_mkldnn_enabled()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_bfloat16(batch, tokens):
    """Casts of whole parameters are recognised; a cast of a part is refused."""
    for kind in ("encoder", "matmul", "gru", "weight norm", "transposed", "paddings"):
        net, samples = made(kind, batch, tokens)
        samples = samples if samples is tokens else samples._replace(x=samples.x.float())
        net.float()
        rule = bound(USF(), net, samples)
        rule.factors = lambda weight, drawn, noise: (weight, 1.0)
        with torch.autocast(samples.x.device.type, torch.bfloat16, cache_enabled=False):
            written, true = write(rule, net, samples), write(Backprop(), net, samples)
        for name in true:
            torch.testing.assert_close(written[name], true[name], rtol=0, atol=1e-6, msg=name)
    for kind, match in (("decoder", "'e.multihead_attn.in_proj_weight' is used in parts"), ("frozen", "frozen parame")):
        net, samples = made(kind, batch, tokens)
        rule = bound(USF(), net.float(), samples)
        with torch.autocast(samples.x.device.type, torch.bfloat16), pytest.raises(UserError, match=match):
            rule.gradients(net, TASK, samples, Noise())


def test_unbound():
    with pytest.raises(UserError, match="not bound to a net"):
        FA().gradients(nn.Linear(1, 1), TASK, Batch(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)), Noise())
