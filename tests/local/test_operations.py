"""The operations of a step, counted by hand for small nets."""

import pytest
import torch
from torch import nn

from bpfree import Trainer
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.tasks import Classify, Language
from bpfree.types import Batch

INPUTS, WIDTH, HIDDEN, CLASSES = 20, 30, 40, 10


def trainer(rule, **options):
    torch.manual_seed(0)
    layers = (nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    return Trainer(nn.Sequential(*layers), rule, Classify(CLASSES), "sgd", **options)


@pytest.fixture
def digits():
    torch.manual_seed(0)
    return Batch(torch.randn(8, INPUTS), torch.arange(8))


@pytest.mark.parametrize(
    ("rule", "heads"),
    [
        ("mono_forward", 6 * (WIDTH + HIDDEN) * CLASSES),  # forward, gradient of the head, error of its input
        ("local", 4 * (WIDTH + HIDDEN) * CLASSES),  # fixed heads have no gradient
        ({"name": "hff", "prototypes": 3}, 6 * (WIDTH + HIDDEN) * CLASSES * 3),
        ("cwcomp", 0),  # no products of matrices
    ],
)
def test_heads_and_net_are_counted_apart(rule, heads, digits):
    counted = trainer(rule).flops(digits)
    assert counted.net == 4 * (INPUTS * WIDTH + WIDTH * HIDDEN + HIDDEN * CLASSES)
    assert counted.heads == heads


def test_without_cuts_errors_pass_through_all_layers_but_the_first(digits):
    cut, whole = (trainer(rule).flops(digits) for rule in ("mono_forward", "deep_supervision"))
    assert whole.net - cut.net == 2 * (WIDTH * HIDDEN + HIDDEN * CLASSES)
    assert whole.heads == cut.heads


@pytest.mark.parametrize("rule", ["backprop", "dfa", "forward_forward", "es"])
def test_rules_without_heads_are_not_counted(rule, digits):
    assert not getattr(RULES[rule], "has_heads", False)
    assert trainer(rule).flops(digits) is None


@pytest.mark.parametrize("update", ["together", "fused"])
def test_counting_teaches_nothing(update, digits):
    made = trainer("mono_forward", compute={"update": update})
    made.step(digits)
    before = [p.clone() for p in (*made.net.parameters(), *made.rule.parameters())]
    assert made.flops(digits).heads > 0
    after = [*made.net.parameters(), *made.rule.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


def test_a_net_that_cannot_be_counted_still_trains(digits, monkeypatch):
    made = trainer("mono_forward")

    def fails(*_):
        raise RuntimeError("no formula")

    monkeypatch.setattr(made.rule, "flops", fails)
    assert made.flops(digits) is None


def test_attention_counts_on_a_cpu():
    """Two layers of attention on T tokens of width D: their products of two matrices [T, D] and [T, T] are counted."""
    steps, width = 16, 32
    torch.manual_seed(0)
    net = NETS["transformer"]((steps,), 11, width=width, depth=2, heads=2, each_step=True)
    tokens = torch.randint(11, (3, steps))
    made = Trainer(net, {"name": "deep_supervision", "rule": "mono_forward"}, Language(11), "sgd")
    linear = sum(p.numel() for m in net.modules() if isinstance(m, nn.Linear) for p in (m.weight,))
    counted = made.flops(Batch(tokens, tokens))
    # 2 products forward, and backward 5, since the fused kernel computes the first of them again.
    attention = 2 * 7 * 2 * steps * steps * width
    assert counted.net == pytest.approx(6 * linear * steps + attention, rel=0.01)
