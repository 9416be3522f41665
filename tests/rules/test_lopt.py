"""LoPT: the first half of a net reconstructs its input, and the task's loss reaches the last half alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, Trainer, UserError
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.tasks import Classify, Language
from bpfree.types import Batch
from tests.helpers import autograd_of, gradients, jolt, same

TASK = Language(11)


def language_net(depth=4):
    torch.manual_seed(0)
    return NETS["transformer"]((8,), 11, each_step=True, width=16, depth=depth, heads=2).double()


def bound(net, batch, task=TASK, **options):
    torch.manual_seed(1)
    rule = RULES["lopt"](**options)
    rule.bind(net, task, batch)
    return rule


def learned(net, rule, batch, task=TASK):
    net.zero_grad()
    rule.zero_grad()
    rule.gradients(net, task, batch, Noise(0, 0))
    return gradients(net, rule)


@pytest.fixture
def tokens():
    torch.manual_seed(2)
    return Batch(torch.randint(11, (4, 8)), torch.randint(11, (4, 8)))


def expected_by_autograd(net, rule, batch, taps):
    """The losses written out: lambda times the mean over boundaries, each with the detached input as its target."""
    h = net.embed(batch.x)
    found, before, weight = {}, h.detach(), 10 / len(taps)
    blocks = [net.get_submodule(f"block{i}") for i in range(1, 5)]
    for i, block in enumerate(blocks, 1):
        h = block(h)
        if i in taps:
            loss = weight * F.mse_loss(rule.heads[taps.index(i)].layers(h), before)
            found |= autograd_of(loss, nn.ModuleDict({"Transformer": net, "LoPT": rule}))
            h = before = h.detach()
    loss = F.cross_entropy(net.fc(net.norm(h)).flatten(0, 1), batch.y.flatten())
    return found | {f"Transformer.{name}": g for name, g in autograd_of(loss, net).items()}


@pytest.mark.parametrize("taps", [[2], [1, 3]])
def test_each_segment_learns_by_the_equation(tokens, taps):
    net = language_net()
    rule = bound(net, tokens, taps=None if len(taps) == 1 else [f"block{i}" for i in taps])
    assert rule.taps == tuple(f"block{i}" for i in taps)
    jolt(rule.parameters())
    found, expected = learned(net, rule, tokens), expected_by_autograd(net, rule, tokens, taps)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_the_first_half_learns_nothing_about_the_labels(tokens):
    net = language_net()
    rule = bound(net, tokens)
    one = learned(net, rule, tokens)
    other = learned(net, rule, tokens._replace(y=(tokens.y + 1) % 11))
    early = [name for name in one if name.startswith(("LoPT", "Transformer.embed", "Transformer.block1"))]
    assert all(torch.equal(one[name], other[name]) for name in early)
    assert not torch.equal(one["Transformer.fc.weight"], other["Transformer.fc.weight"])


def test_without_hidden_segments_it_is_backprop(tokens):
    net, rule = language_net(), RULES["backprop"]()
    rule.bind(net, TASK, tokens)
    assert same(learned(net, rule, tokens), learned(net, bound(net, tokens, taps=0), tokens))


def test_the_first_reconstruction_is_near_zero(tokens):
    """So the first loss is about lambda times the mean square of the embeddings."""
    net = language_net()
    rule = bound(net, tokens)
    loss = float(rule.gradients(net, TASK, tokens, Noise(0, 0))["loss/block2"])
    assert loss == pytest.approx(10 * float(net.embed(tokens.x).detach().square().mean()), rel=0.2)
    assert all(
        float(layer.bias.detach().abs().max()) == 0 for layer in rule.heads[0].layers if isinstance(layer, nn.Linear)
    )


@pytest.mark.parametrize(
    ("net", "options"), [("vit", {"width": 16, "depth": 4, "heads": 2}), ("conv", {}), ("mlp", {})]
)
def test_images_are_reconstructed_in_the_form_of_the_features(net, options):
    torch.manual_seed(0)
    made = NETS[net]((3, 8, 8), 10, **options)
    batch = Batch(torch.randn(4, 3, 8, 8), torch.arange(4))
    rule = bound(made, batch, Classify(10))
    rows = {"vit": 16, "conv": 3, "mlp": 3 * 8 * 8}[net]
    assert rule.heads[0].layers[-1].out_features == rows
    assert "LoPT.heads.0.layers.1.weight" in learned(made, rule, batch, Classify(10))


def test_the_drift_is_that_of_the_features(tokens):
    net = language_net()
    trainer = Trainer(net, RULES["lopt"](drift=2), TASK, {"name": "sgd", "lr": 0.1})
    trainer.bind(tokens)
    features = nn.Sequential(net.embed, net.block1, net.block2)
    before = features(tokens.x).detach()
    found = []
    for _ in range(3):
        now = features(tokens.x).detach()
        found.append((trainer.step(tokens).get("drift/block2"), (now - before).norm() / before.norm()))
    assert float(found[0][0]) == 0
    assert found[1][0] is None
    torch.testing.assert_close(*found[2])
    assert float(found[2][0]) > 0


@pytest.mark.parametrize("update", ["together", "fused"])
def test_the_first_half_and_its_heads_have_their_own_learning_rate(tokens, update):
    """By SGD: a tenth of the rate moves them a tenth as far."""
    moved = []
    for options in ({}, {"hidden_lr": 0.02}, {"hidden_lr": 0.2}):
        net = language_net()
        torch.manual_seed(1)
        rule = RULES["lopt"](**options)
        trainer = Trainer(net, rule, TASK, {"name": "sgd", "lr": 0.2}, compute={"update": update})
        trainer.bind(tokens)
        units = [nn.utils.parameters_to_vector(unit).detach().clone() for unit in rule.units(net)]
        trainer.step(tokens)
        now = [nn.utils.parameters_to_vector(unit).detach() for unit in rule.units(net)]
        moved.append([after - before for before, after in zip(units, now, strict=True)])
    for usual, slow, given in zip(*moved, strict=True):
        assert torch.equal(usual, given)
        torch.testing.assert_close(slow, usual if usual is moved[0][-1] else usual / 10, rtol=1e-9, atol=1e-15)


def test_what_it_cannot_do_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(4, 2, 2), torch.arange(4) % 3

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc1, self.fc2 = nn.Parameter(torch.randn(5, 4)), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc2(self.fc1(self.table[x].flatten(1)))

    with pytest.raises(UserError, match=r"found tokens as its input and no nn.Embedding"):
        bound(Words(), Batch(torch.randint(5, (4, 2)), y), Classify(3), taps=["fc1"])
    with pytest.raises(UserError, match="drift: found -1"):
        RULES["lopt"](drift=-1)
    for option in ("weight", "hidden_lr"):
        with pytest.raises(UserError, match=f"{option}: found 0"):
            RULES["lopt"](**{option: 0})
    rule = bound(net, Batch(x, y), Classify(3), drift=5)
    with pytest.raises(UserError, match="mesh: found 'blocks' with drift: 5"):
        rule.refuse_mesh("blocks", net)
