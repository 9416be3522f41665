"""Recurrent nets: one step at a time is the whole, and `detach` cuts time and nothing else."""

import pytest
import torch

import bpfree
from bpfree import Batch, UserError
from bpfree.nets import NETS
from bpfree.nets.recurrent import RecurrentLayer
from bpfree.tasks import Sequence

NAMES = ("gru", "lstm", "liquid")
pytestmark = pytest.mark.parametrize("name", NAMES)


def made(name, **options):
    torch.manual_seed(0)
    return NETS[name]((7, 3), 3, **{"hidden": [6, 5], "each_step": True, **options}).double()


@pytest.fixture
def sequences():
    return torch.randn(4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_stepping_is_the_whole_pass(name, sequences):
    net = made(name)
    whole, state, outs = net(sequences), None, []
    for x in sequences.unbind(1):
        out, state = net.step(x, state)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), whole, rtol=1e-12, atol=1e-14)
    assert whole.shape == (4, 7, 3)
    last = made(name, each_step=False)(sequences)
    torch.testing.assert_close(last, whole[:, -1], rtol=1e-12, atol=1e-14)


def test_detach_changes_no_output(name, sequences):
    net, other = made(name), made(name, detach=True)
    torch.testing.assert_close(other(sequences), net(sequences), rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        assert torch.equal(other(sequences), net(sequences))


def by_hand(net, batch):
    """The mean over steps of gradients of single steps, whose states came before and are constants."""
    state, total = None, 0
    steps = batch.x.shape[1]
    for t in range(steps):
        held = None if state is None else tuple(tuple(part.detach() for part in layer) for layer in state)
        out, state = net.step(batch.x[:, t], held)
        total = total + (out - batch.y[:, t]).square().mean() / steps
    return torch.autograd.grad(total, list(net.parameters()))


def test_detach_has_the_gradients_of_single_steps(name, sequences):
    task, batch = Sequence(3), Batch(sequences, sequences.roll(-1, 1))
    net = made(name, detach=True)
    task.loss(net(batch.x), batch).backward()
    for p, expected in zip(net.parameters(), by_hand(net, batch), strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-14)
    through_time = made(name)
    task.loss(through_time(batch.x), batch).backward()
    first = next(net.parameters()).grad
    assert not torch.allclose(first, next(through_time.parameters()).grad, rtol=1e-3)


def test_no_error_goes_back_in_time_or_it_does(name, sequences):
    for detach in (False, True):
        net = made(name, detach=detach)
        x = sequences.clone().requires_grad_()
        net(x)[:, 4].sum().backward()
        reached = x.grad.abs().sum((0, 2)) > 0
        assert reached.tolist() == [t == 4 or (t < 4 and not detach) for t in range(7)]


def test_images_are_read_row_by_row(name):
    net = NETS[name]((3, 8, 5), 10, hidden=[4])
    images = torch.randn(2, 3, 8, 5)
    assert net(images).shape == (2, 10)
    rows = net.rows(images)
    assert rows.shape == (2, 8, 15)
    for t in range(8):
        assert torch.equal(rows[:, t], images[:, :, t].flatten(1))


def test_a_local_rule_cuts_between_its_layers(name):
    net = made(name)
    names = [key for key, module in net.named_children() if isinstance(module, RecurrentLayer)]
    assert [segment.name for segment in bpfree.owners(net, names, torch.randn(2, 7, 3).double())] == [*names, "output"]


def test_what_is_no_sequence_is_refused(name):
    with pytest.raises(UserError, match=r"samples of shape \[10\], allowed in a recurrent net: \[steps, values\]"):
        NETS[name]((10,), 3)
    with pytest.raises(UserError, match=r"net.hidden: found none"):
        NETS[name]((5, 3), 3, hidden=[])
    with pytest.raises(UserError, match=r"net.hidden: found 0"):
        NETS[name]((5, 3), 3, hidden=[0])


def test_it_learns_digits_row_by_row(name):
    net = {"name": name, "hidden": [32]}
    run = bpfree.fit(net, "digits", "backprop", epochs=8, optimizer={"name": "adam", "lr": 5e-3}, batch_size=32)
    assert run.result["test"]["accuracy"] > 0.85
