"""DRTP, shallow and local: what they share with DFA, and what not."""

import pytest
import torch
from torch.nn import functional as F

from bpfree import Noise
from bpfree.local.feedback import FEEDBACKS, random_like, random_magnitudes
from bpfree.nets import NETS
from bpfree.rules import DFA, DRTP, Local, Shallow
from tests.helpers import IN_SHAPE, TASK, bound, gradients, same, zero_grad


def net(batch, activation="tanh"):
    torch.manual_seed(0)
    return NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9], activation=activation).double().to(batch.x.device)


def test_drtp_is_dfa_with_minus_y_for_e(batch):
    model = net(batch)
    drtp, dfa = bound(DRTP(), model, batch), bound(DFA(), model, batch)
    dfa.load_state_dict(drtp.state_dict())
    zero_grad(model)
    drtp.gradients(model, TASK, batch, Noise())
    found = gradients(model)
    h1 = model.fc1(batch.x.flatten(1)).tanh()
    h2 = model.fc2(h1.detach()).tanh()
    signal = -TASK.target(batch) / len(batch.y)
    zero_grad(model)
    (dfa.local_loss(0, h1, signal) + dfa.local_loss(1, h2, signal)).backward()
    TASK.loss(model.fc3(h2.detach()), batch).backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name], expected)


def test_drtp_is_a_row_lookup(batch):
    """The signal of a sample is the row of B of its class."""
    model = net(batch)
    rule = bound(DRTP(), model, batch)
    h = torch.zeros(len(batch.y), 12, dtype=torch.float64, device=batch.x.device, requires_grad=True)
    rule.local_loss(0, h, TASK.target(batch)).backward()
    torch.testing.assert_close(h.grad, -rule.B0[batch.y] / len(batch.y))


def test_drtp_does_not_wait_for_the_output(batch):
    """Hidden gradients are the same whatever the output layer does; DFA's are not."""
    for make, waits in ((DRTP, False), (DFA, True)):
        model = net(batch)
        rule = bound(make(), model, batch)
        hidden = []
        for _ in range(2):
            zero_grad(model)
            rule.gradients(model, TASK, batch, Noise())
            hidden.append({k: v for k, v in gradients(model).items() if "fc3" not in k})
            torch.nn.init.normal_(model.fc3.weight)
        assert same(*hidden) != waits


def test_drtp_warns_of_activations_without_a_bound(batch):
    with pytest.warns(UserWarning, match="drtp: the outputs of act1, act2 have no bound"):
        bound(DRTP(), net(batch, "relu"), batch)


def test_shallow_moves_the_output_layer_alone(batch):
    model = net(batch)
    rule = bound(Shallow(), model, batch)
    zero_grad(model)
    rule.gradients(model, TASK, batch, Noise())
    assert {name.split(".")[1] for name in gradients(model)} == {"fc3"}


@pytest.mark.parametrize("backward", ["transpose", "sign"])
def test_local_learns_by_a_classifier_that_never_changes(backward, batch):
    model = net(batch)
    rule = bound(Local(backward=backward), model, batch)
    assert list(rule.parameters()) == []
    h = torch.randn(len(batch.y), 12, dtype=torch.float64, device=batch.x.device, requires_grad=True)
    loss = rule.local_loss(0, h, TASK.target(batch))
    scores = h @ rule.C0.T
    torch.testing.assert_close(loss, F.cross_entropy(scores, batch.y))
    loss.backward()
    error = (scores.softmax(1) - TASK.target(batch)) / len(batch.y)
    carrier = rule.C0 if backward == "transpose" else rule.R0
    torch.testing.assert_close(h.grad, (error @ carrier).detach())
    if backward == "sign":
        assert torch.equal(rule.R0.sign(), rule.C0.sign())
        assert not torch.allclose(rule.R0, rule.C0)


@pytest.mark.parametrize("name", FEEDBACKS)
def test_magnitudes_by_key_have_the_distribution_of_the_initialisation(name):
    weight = torch.empty(300, 40, 3, 3).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    once = random_like(name, weight)
    keyed, again, other = (torch.mul(*random_magnitudes(name, weight, Noise(0, step))) for step in (3, 3, 4))
    assert torch.equal(keyed, again)
    assert not torch.equal(keyed, other)
    assert once.stride() == keyed.stride() == weight.stride()
    rough = 0.3 if name in ("lecun", "orthogonal") else 0.02
    for moment in (lambda x: x.abs().mean(), lambda x: x.square().mean(), lambda x: x.abs().max()):
        torch.testing.assert_close(moment(keyed), moment(once), rtol=rough, atol=0)
    halves = keyed.flatten().abs().chunk(2)
    assert abs(float(torch.corrcoef(torch.stack(halves))[0, 1])) < 0.02
