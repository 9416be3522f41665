"""SOLO: segments predict by a read-only copy of the net's read-out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree import Noise, Trainer, UserError
from bpfree.lab.certify import certify
from bpfree.local.heads.trunks import small_trunk
from bpfree.nets import NETS
from bpfree.nets.blocks import Block
from bpfree.rules import RULES
from bpfree.tasks import Classify, Language
from bpfree.types import Batch
from tests.helpers import autograd_of, gradients, jolt, same

TASK = Language(11)


def language_net(depth=3, **options):
    torch.manual_seed(0)
    return NETS["transformer"]((8,), 11, each_step=True, width=16, depth=depth, heads=2, **options).double()


def bound(net, batch, task=TASK, **options):
    torch.manual_seed(1)
    rule = RULES["solo"](**options)
    rule.bind(net, task, batch)
    return rule


def learned(net, rule, batch, step=0, task=TASK):
    net.zero_grad()
    rule.zero_grad()
    rule.gradients(net, task, batch, Noise(0, step))
    return gradients(net, rule)


@pytest.fixture
def tokens():
    torch.manual_seed(2)
    return Batch(torch.randint(11, (4, 8)), torch.randint(11, (4, 8)))


def test_each_segment_learns_by_the_equation(tokens):
    """Written out with plain autograd, segment after segment."""
    net = language_net(dropout=0.0)
    rule = bound(net, tokens, depth=1)
    jolt(rule.parameters())
    found = learned(net, rule, tokens)
    h = net.embed(tokens.x)
    expected = {}
    for index, block in enumerate((net.block1, net.block2)):
        h, head = block(h), rule.heads[index]
        z = head.tau * (head.phi(h) @ net.fc.weight.detach().T) + head.bias
        loss = F.cross_entropy(z.flatten(0, 1), tokens.y.flatten())
        both = autograd_of(loss, nn.ModuleDict({"Transformer": net, "Solo": rule}))
        assert not expected.keys() & both.keys()
        expected |= both
        h = h.detach()
    loss = F.cross_entropy(net.fc(net.norm(net.block3(h))).flatten(0, 1), tokens.y.flatten())
    expected |= {f"Transformer.{name}": g for name, g in autograd_of(loss, net).items()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_without_hidden_segments_it_is_backprop(tokens):
    net, rule = language_net(), RULES["backprop"]()
    rule.bind(net, TASK, tokens)
    assert same(learned(net, rule, tokens), learned(net, bound(net, tokens, taps=0), tokens))


def test_before_the_readout_itself_the_copy_gives_the_gradient_of_backprop(tokens):
    """The last segment is the read-out alone, and H is 0: then W~ norm(h) is the output of the net, to the bit."""
    net, backprop = language_net(), RULES["backprop"]()
    backprop.bind(net, TASK, tokens)
    true = learned(net, backprop, tokens)
    found = learned(net, bound(net, tokens, taps=["block3"], depth=0), tokens)
    for name, gradient in true.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-15)
    private = learned(net, bound(net, tokens, taps=["block3"], depth=0, readout="private"), tokens)
    assert not torch.allclose(private["Transformer.block3.mlp.up.weight"], true["Transformer.block3.mlp.up.weight"])


def test_no_gradient_crosses_a_boundary_and_the_readout_learns_from_the_last_loss_alone(tokens):
    """Other heads behind the first tap change nothing before it, and no head changes the last segment."""
    net = language_net()
    rule = bound(net, tokens)
    before = learned(net, rule, tokens)
    jolt(rule.heads[1].parameters())
    second = learned(net, rule, tokens)
    jolt(rule.heads[0].parameters())
    both = learned(net, rule, tokens)

    def of(found, *parts):
        return {name: g for name, g in found.items() if name.startswith(parts)}

    first = ("Transformer.embed", "Transformer.block1", "Solo.heads.0")
    assert same(of(before, *first), of(second, *first))
    assert not same(of(before, "Transformer.block2"), of(second, "Transformer.block2"))
    last = ("Transformer.block3", "Transformer.norm", "Transformer.fc")
    for found in (second, both):
        assert len(of(found, *last)) > 3
        assert same(of(before, *last), of(found, *last))


def test_the_copy_is_as_old_as_refresh_says(tokens):
    """The weights of W before each of seven steps, and the copy by which the step was taken."""
    net = language_net()
    trainer = Trainer(net, RULES["solo"](refresh=3), TASK, {"name": "sgd", "lr": 0.5})
    history = []
    for step in range(7):
        history.append(net.fc.weight.detach().clone())
        trainer.step(tokens)
        assert torch.equal(trainer.rule.copied, history[step - step % 3])
        assert not torch.equal(net.fc.weight, history[-1])
    assert not torch.equal(history[3], history[0])


def test_minibatches_of_one_step_use_one_copy(tokens):
    net = language_net()
    rule = bound(net, tokens, refresh=2)
    copies = []
    for _ in range(2):
        learned(net, rule, tokens, step=1)
        copies.append(rule.copied.clone())
        jolt([net.fc.weight])
    assert torch.equal(*copies)
    learned(net, rule, tokens, step=2)
    assert torch.equal(rule.copied, net.fc.weight)


def test_weight_decay_does_not_touch_the_copy(tokens):
    net = language_net()
    trainer = Trainer(net, RULES["solo"](refresh=100), TASK, {"name": "adamw", "lr": 0.1, "weight_decay": 0.5})
    trainer.bind(tokens)
    before = trainer.rule.copied.clone()
    for _ in range(3):
        trainer.step(tokens)
    assert torch.equal(trainer.rule.copied, before)
    assert all(trainer.rule.copied is not p for group in trainer.optimizer.param_groups for p in group["params"])


def test_a_fused_update_changes_nothing(tokens):
    found = []
    for update in ("together", "fused"):
        torch.manual_seed(3)
        trainer = Trainer(language_net(), "solo", TASK, {"name": "adam"}, compute={"update": update})
        for _ in range(3):
            trainer.step(tokens)
        found.append({**trainer.net.state_dict(), **trainer.rule.state_dict()})
    assert same(*found)


def test_private_and_random_readouts_are_not_those_of_the_net(tokens):
    net = language_net()
    shared, private, random = (bound(net, tokens, readout=name) for name in ("shared", "private", "random"))
    assert torch.equal(shared.copied, net.fc.weight)
    assert private.copied is None
    assert len({float(rule.weight.detach().sum()) for rule in private.heads}) == 2
    fixed = random.copied.clone()
    jolt([net.fc.weight])
    assert {"Solo.heads.0.weight", "Solo.heads.1.weight"} <= learned(net, private, tokens).keys()
    learned(net, random, tokens)
    assert torch.equal(random.copied, fixed)
    assert abs(float(fixed.std()) - (2 / 5 / 16) ** 0.5) < 0.03
    assert shared.locality().transports == "weights"
    assert private.locality() == random.locality() == RULES["mono_forward"]().locality()


def test_what_is_declared_is_measured():
    """The default is measured in tests/lab; here a copy that is older, and read-outs that are not shared."""
    batch = Batch(torch.randn(8, 6), torch.arange(8) % 4)
    for options in ({"refresh": 3}, {"readout": "private"}):
        net = NETS["mlp"](6, 4, hidden=[5, 7], activation="tanh")
        found = certify(net, RULES["solo"](depth=0, **options), Classify(4), batch)
        assert found.violations == []
        assert found.measured == found.declared


def test_with_every_the_segments_learn_in_turn(tokens):
    net = language_net()
    rule = bound(net, tokens, every=2)
    for step, (learns, waits) in enumerate([("block1", "block2"), ("block2", "block1")]):
        found = learned(net, rule, tokens, step)
        moved = {name.split(".")[1] for name in found if name.startswith("Transformer")}
        assert learns in moved
        assert waits not in moved
        assert {"block3", "fc"} <= moved
        assert {name.split(".")[2] for name in found if name.startswith("Solo")} == {str(step)}


def test_a_head_does_not_look_ahead(tokens):
    """Else it would see the token that it has to predict; with a form of the net and without."""
    recurrent = NETS["gru"]((8,), 11, hidden=[16, 16], each_step=True, vocabulary=11).double()
    for net in (language_net(), recurrent):
        rule = bound(net, tokens)
        h = torch.randn(2, 8, 16, dtype=torch.float64)
        later = h.clone()
        later[:, 5:] += 1
        a, b = (rule.scores(0, each) for each in (h, later))
        assert torch.equal(a[:, :5], b[:, :5])
        assert not torch.equal(a[:, 5:], b[:, 5:])


def test_small_trunks_are_of_the_kind_of_the_net(tokens):
    net = language_net(dropout=0.5)
    phi = bound(net, tokens, depth=2).heads[0].phi
    blocks = [module for module in phi.modules() if isinstance(module, Block)]
    assert len(blocks) == 2
    assert all(block.attention.form.dropout == 0 for block in blocks)
    assert phi[-1] is not net.norm
    x = torch.randn(4, 3, 8, 8)
    for name, options in {"vit": {"width": 16, "depth": 2, "heads": 2}, "conv": {"channels": [4, 6]}}.items():
        image = NETS[name]((3, 8, 8), 10, **options)
        rule = bound(image, Batch(x, torch.arange(4)), Classify(10))
        assert [kind for kind in rule.heads[0].modules() if isinstance(kind, Block)] == [] or name == "vit"
        assert rule.gradients(image, Classify(10), Batch(x, torch.arange(4)), Noise(0, 0))["loss"].isfinite()


def test_features_of_another_width_are_brought_to_that_of_the_readout():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10))
    batch = Batch(torch.randn(4, 1, 8, 8), torch.arange(4))
    for depth in (0, 1, 2):
        rule = bound(net, batch, Classify(10), taps=["2"], depth=depth)
        assert rule.copied.shape == (10, 20)
        assert rule.scores(0, torch.randn(4, 12)).shape == (4, 10)
    same_width = small_trunk(net, rule.segments[0], 12, 0, per_step=False)
    h = torch.randn(5, 12)
    torch.testing.assert_close(same_width(h), F.layer_norm(h, (12,)))


def test_tied_embeddings_and_other_readouts_are_refused_with_the_cure(tokens):
    with pytest.raises(UserError, match=r"'embed.values.weight'.*Untie layers .*net.tied=false"):
        bound(language_net(tied=True), tokens)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10), nn.ReLU(), nn.PReLU(10))
    with pytest.raises(UserError, match=r"found no nn.Linear with 10 outputs behind the last tap"):
        bound(net, Batch(torch.randn(4, 1, 8, 8), torch.arange(4)), Classify(10), taps=["2", "4"])
    with pytest.raises(UserError, match="depth: found -1"):
        RULES["solo"](depth=-1)
