"""Feedback alignment on nets in which errors pass by more than the layers that it hooks."""

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
from tests.rules.fa_nets import PATHS, TOKENS, B, Net, dense, encoder, made, matrix, tokens_like, write

FUSED_ON_CUDA = ("gru", "gru of a state", "lstm")
"""Recurrent layers whose steps CUDA computes in one kernel, where nothing can be replaced: refused there."""


@pytest.fixture
def tokens(batch):
    return tokens_like(batch)


def refused_on_cuda(kind, net, batch):
    """Whether the device fuses what is to be tested; then it is checked that the rule refuses the net."""
    if batch.device.type != "cuda" or kind not in FUSED_ON_CUDA:
        return False
    with pytest.raises(UserError, match="an operation that takes no feedback"):
        bound(FA(), net, batch)
    return True


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("make", "kind"), [*((FA, kind) for kind in PATHS), *((BRSF, kind) for kind in ("encoder", "matmul", "transposed"))]
)
def test_with_b_equal_w_it_is_backprop_and_with_none_no_error_gets_by(make, kind, batch, tokens):
    net, batch = made(kind, batch, tokens)
    if refused_on_cuda(kind, net, batch):
        return
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


def test_a_block_that_is_left_out_when_the_rule_is_bound_has_feedback_too(tokens):
    """As by stochastic depth."""
    net = Net(lambda net, h: h if net.skips else net.e(h), e=encoder(dropout=0.0)).double().to(tokens.x.device)
    net.skips = True
    rule = bound(FA(), net, tokens)
    net.skips = False
    rule.factors = lambda weight, drawn, noise: (torch.zeros_like(weight), 1.0)
    written = write(rule, net, tokens)
    assert [name for name in written if bool(written[name].any())] == ["Net.out.weight", "Net.out.bias"]


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
    if refused_on_cuda("lstm", net.float(), tokens):
        return
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
        if refused_on_cuda(kind, net, samples):
            continue
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
