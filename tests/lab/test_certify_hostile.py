"""Rules that say that they are local and are not, and nets with a way around a tap: all are caught and named."""

import copy

import pytest
import torch
from torch import nn

import bpfree
from bpfree import LocalRule, Noise
from bpfree.grad import add_gradients
from bpfree.rule import BLACK_BOX
from bpfree.types import Batch
from tests.helpers import TASK
from tests.lab.test_certify import certified, net_for


@pytest.fixture
def batch(batch):
    return Batch(batch.x.float(), batch.y)


class Hostile(LocalRule):
    """Says that it is local, and writes the true gradient, by one of many ways."""

    def local_loss(self, index, h, signal):
        return h.square().mean()

    def rest(self, net, index, h, parameters=None):
        """The output from what segment `index` gives."""
        run = False
        for name, child in net.named_children():
            if run:
                own = {n.removeprefix(f"{name}."): p for n, p in (parameters or {}).items() if n.startswith(f"{name}.")}
                h = torch.func.functional_call(child, own, (h,)) if own else child(h)
            run = run or name == self.taps[index]
        return h


class TheRestInTheLoss(Hostile):
    """The loss of a segment is that of the whole net, reached through the layers behind it."""

    def gradients(self, net, task, batch, noise):
        self.held = net, task, batch
        return super().gradients(net, task, batch, noise)

    def local_loss(self, index, h, signal):
        net, task, batch = self.held
        return task.loss(self.rest(net, index, h, self.used(net)), batch)

    def used(self, net):
        return None


class TheRestFrozen(TheRestInTheLoss):
    """Likewise, and nothing but the segment is to be seen as a leaf of the graph."""

    def used(self, net):
        return {name: p.detach() for name, p in net.named_parameters()}


class TheRestCopied(TheRestInTheLoss):
    """Likewise, with copies, so that not even what the graph keeps is the net's."""

    def used(self, net):
        return {name: p.detach().clone() for name, p in net.named_parameters()}


def write(net, gradients):
    add_gradients(net.parameters(), [g.clone() for g in gradients])


class TuckedAway(Hostile):
    """Backprop on a copy of the net that nobody sees."""

    def gradients(self, net, task, batch, noise):
        twin = copy.deepcopy(net)
        twin.load_state_dict(net.state_dict())
        loss = task.loss(twin(batch.x), batch)
        write(net, torch.autograd.grad(loss, list(twin.parameters())))
        return {"loss": loss.detach()}


class Functional(Hostile):
    """Backprop by `torch.func.grad`, of which no tensor of the net's tells."""

    def gradients(self, net, task, batch, noise):
        def loss(parameters):
            return task.loss(torch.func.functional_call(net, parameters, (batch.x,)), batch)

        found = torch.func.grad(loss)({name: p.detach() for name, p in net.named_parameters()})
        write(net, found.values())
        return {"loss": task.loss(net(batch.x).detach(), batch)}


class ByHand(Hostile):
    """Backprop in closed form: nothing is differentiated at all."""

    def gradients(self, net, task, batch, noise):
        layers = [m for m in net if isinstance(m, nn.Linear)]
        with torch.no_grad():
            values = [batch.x.flatten(1)]
            for layer in layers[:-1]:
                values.append(torch.tanh(layer(values[-1])))
            out = layers[-1](values[-1])
            d = (out.softmax(1) - task.target(batch)) / len(out)
            for layer, h in zip(reversed(layers), reversed(values), strict=True):
                add_gradients([layer.weight, layer.bias], [d.T @ h, d.sum(0)])
                d = (d @ layer.weight) * (1 - h * h)
        return {"loss": task.loss(out, batch)}


class WithThePermissionToWait(ByHand):
    """As DFA waits for the error."""

    needs_error = True


class BlackBoxByHand(ByHand):
    """Says that it differentiates nothing, which is even true."""

    def locality(self):
        return BLACK_BOX


class OutsideOfModules(ByHand):
    """Not even the activations come from the net's own modules, and it may wait: what cannot be told is said."""

    needs_error = True

    def gradients(self, net, task, batch, noise):
        own = [m for m in net if isinstance(m, nn.Linear)]
        values = [batch.x.flatten(1)]
        with torch.no_grad():
            for i, layer in enumerate(own):
                a = values[-1] @ layer.weight.T + layer.bias
                values.append(torch.tanh(a) if i < len(own) - 1 else a)
            out = values.pop()
            d = (out.softmax(1) - task.target(batch)) / len(out)
            for layer, h in zip(reversed(own), reversed(values), strict=True):
                add_gradients([layer.weight, layer.bias], [d.T @ h, d.sum(0)])
                d = (d @ layer.weight) * (1 - h * h)
        return {"loss": task.loss(out, batch)}


def test_what_cannot_be_told_is_said(batch):
    found = certified(OutsideOfModules(), batch, net_for(batch_norm=False))
    assert found.unmeasured[0].startswith("transports: declared none, but nobody can tell")
    assert list(found.measurements.dependencies.unexplained) == ["fc1", "fc2", "fc3", "fc4", "fc5"]


class PieceByPiece(Hostile):
    """One layer at a time is differentiated, and what comes out is handed on to the layer before."""

    needs_error = True
    memory = "fast"

    def gradients(self, net, task, batch, noise):
        inputs, outs = [], []
        h = batch.x.flatten(1)
        for layer, act in ((net.fc1, net.act1), (net.fc2, net.act2), (net.fc3, net.act3), (net.fc4, net.act4)):
            inputs.append(h.detach().requires_grad_())
            outs.append(act(layer(inputs[-1])))
            h = outs[-1]
        last = h.detach().requires_grad_()
        out = net.fc5(last)
        loss = task.loss(out, batch)
        d, *own = torch.autograd.grad(loss, [last, net.fc5.weight, net.fc5.bias])
        add_gradients(net.fc5.parameters(), own)
        for i in reversed(range(4)):
            layer = net.get_submodule(f"fc{i + 1}")
            d, *own = torch.autograd.grad(outs[i], [inputs[i], layer.weight, layer.bias], d)
            add_gradients(layer.parameters(), own)
        return {"loss": loss.detach()}


@pytest.mark.parametrize(
    ("rule", "caught"),
    [
        (TheRestInTheLoss, {"through", "waits", "transports"}),
        (TheRestFrozen, {"through", "waits", "transports"}),
        (TheRestCopied, {"waits", "transports"}),
        (TuckedAway, {"through", "waits", "transports", "graph"}),
        (Functional, {"through", "waits", "transports"}),
        (ByHand, {"waits", "transports"}),
        (WithThePermissionToWait, {"transports"}),
        (BlackBoxByHand, {"transports"}),
        (PieceByPiece, {"through", "transports"}),
    ],
)
def test_a_rule_that_sneaks_the_global_gradient_in_is_caught(rule, caught, batch):
    net = net_for(batch_norm=False)
    found = certified(rule(), batch, net)
    assert {line.partition(":")[0] for line in found.violations} >= caught
    text = " ".join(found.violations)
    assert "fc5" in text
    assert "fc1" in text


def test_the_hostile_ones_write_the_true_gradient(batch):
    """So that what is caught above is what it is meant to be."""
    net = net_for(batch_norm=False).to(batch.device)
    true = torch.autograd.grad(TASK.loss(net(batch.x), batch), list(net.parameters()))
    for rule in (TheRestCopied(), TuckedAway(), Functional(), ByHand(), PieceByPiece()):
        net.zero_grad()
        rule.bind(net, TASK, batch)
        rule.gradients(net, TASK, batch, Noise(0, 0))
        for p, g in zip(net.parameters(), true, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)


class Skipping(nn.Module):
    """A net of somebody's own whose first features go around a tap; for few samples, if it is sly, they do not."""

    def __init__(self, few=0):
        super().__init__()
        self.few = few
        self.first, self.second, self.third = nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.read = nn.Linear(20, 10)

    def forward(self, x):
        a = torch.tanh(self.first(x.flatten(1)))
        b = torch.tanh(self.second(a))
        c = torch.tanh(self.third(b))
        return self.read(c + a if len(x) > self.few else c + a.detach())


def test_a_skip_around_a_tap_is_named(batch):
    """Found when the rule is bound, or, should it pass there, by the graph of what is differentiated."""
    rule = {"name": "mono_forward", "taps": ["second", "third"]}
    found = bpfree.certify(Skipping(), rule, TASK, batch)
    (line,) = found.violations
    assert line.startswith("leak: parameter 'first.weight' of segment 'second' is reached by the loss of")
    assert found.measured is None
    sly = bpfree.certify(Skipping(few=2), rule, TASK, batch)
    assert sly.violations[0] == (
        "through: declared one part at most, but objective 'second..output' is differentiated through first, read, "
        "a chain of 2, which are of second, output"
    )
    assert {line.partition(":")[0] for line in sly.violations} == {"through", "waits", "transports", "graph"}
    assert bpfree.certify(Skipping(few=99), rule, TASK, batch).violations == []
