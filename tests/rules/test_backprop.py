"""The baseline and its two ways to need less memory: the same gradient."""

import pytest
import torch

from bpfree import Batch, Noise, Trainer, UserError
from bpfree.nets import NETS
from bpfree.rules import Backprop
from tests.helpers import IN_SHAPE, TASK


def net(norm=False, dropout=0.0):
    torch.manual_seed(0)
    return NETS["conv"](IN_SHAPE, 10, channels=[4, 6], hidden=12, batch_norm=norm, dropout=dropout).double()


def step(this, rule, batch):
    rule.bind(this, TASK, batch)
    scalars = rule.gradients(this, TASK, batch, Noise(0, 3))
    return scalars, [p.grad for p in this.parameters()]


def cpu64(batch):
    return Batch(batch.x.cpu().double(), batch.y.cpu())


def test_checkpointing_changes_no_bit(batch):
    """Dropout draws the same masks in both runs, and batch norm counts the batch once."""
    batch = cpu64(batch)
    plain, twice = (net(norm=True, dropout=0.3) for _ in range(2))
    expected, gradients = step(plain, Backprop(), batch)
    found, again = step(twice, Backprop(checkpoint=True), batch)
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), twice.buffers(), strict=True))


@pytest.mark.parametrize("parts", [2, 3, 1000])
def test_parts_of_a_minibatch_add_up_to_its_gradient(parts, batch):
    batch = cpu64(batch)
    plain, cut = net(), net()
    expected, gradients = step(plain, Backprop(), batch)
    found, added = step(cut, Backprop(accumulate=parts), batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(added, gradients, rtol=1e-12, atol=1e-12)


def test_both_take_less_memory():
    deep = lambda: NETS["mlp"](64, 10, hidden=[64] * 16)  # noqa: E731
    batch = Batch(torch.randn(512, 64), torch.randint(10, (512,)))

    def memory(**options):
        return Trainer(deep(), Backprop(**options), TASK).step_memory(batch, with_gradients=False)

    plain = memory()
    assert memory(checkpoint=True) < 0.6 * plain
    assert memory(accumulate=4) < 0.4 * plain


def test_what_cannot_be():
    with pytest.raises(UserError, match="accumulate: found 0"):
        Backprop(accumulate=0)
