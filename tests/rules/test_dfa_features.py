"""DFA on Transformers: the error is taken before the read-out, and cuts are behind blocks or within them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bpfree import Noise, Trainer, UserError
from bpfree.nets import NETS
from bpfree.rules import DFA, Backprop
from bpfree.tasks import Classify, Language
from bpfree.types import Batch
from tests.helpers import gradients, same, zero_grad

V = 11
LANGUAGE = Language(V)


def decoder(depth=3, **options):
    torch.manual_seed(0)
    return NETS["transformer"]((6,), V, each_step=True, width=16, depth=depth, heads=2, **options).double()


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return Batch(torch.randint(V, (4, 6)), torch.randint(V, (4, 6)))


def bound(rule, net, batch, task=LANGUAGE):
    torch.manual_seed(2)
    rule.bind(net, task, batch)
    return rule


def written(rule, net, batch, task=LANGUAGE, noise=None):
    zero_grad(net)
    rule.gradients(net, task, batch, noise or Noise(0, 0))
    return gradients(net)


@pytest.mark.parametrize("memory", ["fast", "flat"])
def test_a_net_of_one_block_learns_by_backprop_to_the_bit(memory, tokens):
    net = decoder(1, dropout=0.2)
    with pytest.warns(UserWarning, match="one stage before its read-out"):
        rule = bound(DFA(error="features", memory=memory), net, tokens)
    assert same(written(rule, net, tokens), written(Backprop(), net, tokens))


@pytest.mark.parametrize("memory", ["fast", "flat"])
def test_the_last_block_and_the_read_out_learn_from_the_true_error(memory, tokens):
    net = decoder()
    rule = bound(DFA(error="features", memory=memory), net, tokens)
    assert rule.taps == ("block1", "block2")
    found, true = written(rule, net, tokens), written(Backprop(), net, tokens)
    last = [name for name in true if any(part in name for part in ("block3", ".norm.", ".fc."))]
    assert all(torch.equal(found[name], true[name]) for name in last)
    assert not any(torch.allclose(found[name], true[name]) for name in true.keys() - set(last))


@pytest.mark.parametrize("memory", ["fast", "flat"])
def test_with_the_identity_right_before_the_read_out_it_is_backprop(memory, tokens):
    net = decoder(2)
    rule = bound(DFA(error="features", memory=memory, taps=["norm"]), net, tokens)
    rule.B0.copy_(torch.eye(16))
    found = written(rule, net, tokens)
    for name, expected in written(Backprop(), net, tokens).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-14)


def test_the_equation(tokens):
    """The gradient in the features of block l over their rms is e B_l, for e = dLoss/d(input of the read-out)."""
    net = decoder()
    rule = bound(DFA(error="features", signal_scale=0.5), net, tokens)
    found = written(rule, net, tokens)
    h, expected = net[0](tokens.x), {}
    for index, tap in enumerate(rule.taps):
        end = net.get_submodule(tap)(h)
        ends = [p for name, p in net.named_parameters() if name in rule.segments[index].parameters]
        features = net.fc.in_features
        inputs = net.norm(net.block3(net.block2(net.block1(net.embed(tokens.x))))).detach().requires_grad_()
        (e,) = torch.autograd.grad(LANGUAGE.loss(net.fc(inputs), tokens), inputs)
        assert e.shape == (4, 6, features)
        signal = 0.5 * e @ rule.get_buffer(f"B{index}")
        unit = F.rms_norm(end, (16,), eps=1e-6)
        expected |= dict(zip(rule.segments[index].parameters, torch.autograd.grad(unit, ends, signal), strict=True))
        h = end.detach()
    assert len(expected) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"Transformer.{name}"], gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("options", [{}, {"places": "layers", "cut_embedding": True}])
def test_a_signal_does_not_change_the_length_of_features(options, tokens):
    """Nothing after a block that normalises feels their length, so they would grow without end."""
    net = decoder(mlp="gelu")
    rule = bound(DFA(error="features", **options), net, tokens)
    signal = torch.randn(24, 16, dtype=torch.float64)
    for index, segment in enumerate(rule.segments[:-1]):
        h = torch.randn(24, *segment.shape, dtype=torch.float64)
        along = (rule.local_gradient(index, h, signal) * h).sum(1)
        torch.testing.assert_close(along, torch.zeros(24).double(), rtol=0, atol=1e-5)


def test_maps_are_divided_by_the_size_of_their_channels():
    torch.manual_seed(0)
    batch = Batch(torch.randn(4, 1, 6, 6), torch.arange(4))
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    rule = bound(DFA(error="features", taps=["1", "4"]), net, batch, Classify(4))
    h, signal = torch.randn(4, 3, 4, 4).requires_grad_(), torch.randn(4, 8)
    unit = h / (h.square().mean(1, keepdim=True) + 1e-6).sqrt()
    (expected,) = torch.autograd.grad(unit, h, (signal @ rule.B0).view_as(h))
    torch.testing.assert_close(rule.local_gradient(0, h.detach(), signal), expected)
    torch.testing.assert_close(rule.local_gradient(1, torch.randn(4, 8), signal), signal @ rule.B1)


def test_the_matrices_do_not_grow_with_the_vocabulary(tokens):
    for error, rows in (("output", V), ("features", 16)):
        rule = bound(DFA(error=error), decoder(), tokens)
        assert {tuple(b.shape) for b in rule.buffers()} == {(rows, 16)}


def test_both_memories_give_the_same_bits(tokens):
    net = decoder(dropout=0.3, mlp="gelu")
    options = {"error": "features", "places": "layers", "cut_embedding": True}
    rules = [bound(DFA(memory=memory, **options), net, tokens) for memory in ("fast", "flat")]
    assert same(*(written(rule, net, tokens) for rule in rules))


def test_an_update_on_the_way_gives_the_same_weights(tokens):
    states = []
    for update in ("together", "fused"):
        net, rule = decoder(), DFA(error="features", memory="flat")
        trainer = Trainer(net, rule, LANGUAGE, "sgd", seed=0, compute={"update": update})
        for _ in range(2):
            trainer.step(tokens)
        states.append(net.state_dict())
    assert same(*states)


@pytest.mark.parametrize("options", [{}, {"places": "layers", "cut_embedding": True}])
def test_a_signal_teaches_its_own_segment_only(options, tokens):
    net = decoder(2, mlp="gelu")
    rule = bound(DFA(error="features", **options), net, tokens)
    for index, segment in enumerate(rule.segments[:-1]):
        for other, matrix in enumerate(rule.buffers()):
            matrix.fill_(1.0 if other == index else 0.0)
        found = written(rule, net, tokens)
        taught = {name.partition(".")[2] for name, gradient in found.items() if bool(gradient.abs().sum() > 0)}
        assert taught == {*segment.parameters, *rule.segments[-1].parameters}


def test_the_error_arrives_past_a_frozen_block_and_a_checkpointed_one(tokens):
    net = decoder()
    rule = bound(DFA(error="features"), net, tokens)
    plain = written(rule, net, tokens)
    inside = net.block3.forward
    net.block3.forward = lambda h: checkpoint(inside, h, use_reentrant=False)
    assert same(written(rule, net, tokens), plain)
    net.block3.forward = inside
    for part in (net.block3, net.norm):
        part.requires_grad_(False)
    frozen = written(bound(DFA(error="features"), net, tokens), net, tokens)
    assert 0 < len(frozen) < len(plain)
    assert all(torch.equal(gradient, plain[name]) for name, gradient in frozen.items())


def test_images_and_tokens_with_one_answer(device):
    torch.manual_seed(0)
    batch = Batch(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)).to(device)
    net = NETS["vit"]((3, 8, 8), 10, width=16, depth=2, heads=2).double().to(device)
    for connection, columns in (("dense", 5 * 16), ("channel", 16)):
        rule = bound(DFA(error="features", connection=connection), net, batch, Classify(10))
        assert [tuple(b.shape) for b in rule.buffers()] == [(16, columns)]
        assert len(written(rule, net, batch, Classify(10))) == len(list(net.parameters()))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x)
        return self.fc(h) + self.fc(-2 * h)


def test_what_cannot_work_is_refused(tokens):
    batch = Batch(torch.randn(4, 4), torch.arange(4) % 3)
    with pytest.raises(UserError, match=r"read-out runs 2 times .* Use error=output"):
        DFA(error="features", taps=["first"]).bind(Twice(), Classify(3), batch)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 3, 8), nn.Flatten())
    with pytest.raises(UserError, match=r"found no nn.Linear with 3 outputs"):
        DFA(error="features", taps=["1"]).bind(net, Classify(3), batch)
    with pytest.raises(UserError, match="error: found 'logits', allowed: output or features"):
        DFA(error="logits")
    with pytest.raises(UserError, match="feedback: found 'aligned' with error=features"):
        DFA(error="features", feedback="aligned")
    with pytest.raises(UserError, match="places: found 'layers' together with taps"):
        DFA(places="layers", taps=["block1"])
    with pytest.raises(UserError, match="cut_embedding: found true together with taps"):
        DFA(cut_embedding=True, taps=2)
