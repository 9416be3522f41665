"""The certificate: what it finds of every rule, and whom it catches."""

import copy

import pytest
import torch
from torch import nn

import bpfree
from bpfree import LocalRule, Noise
from bpfree.diffusion import DiffusionRule
from bpfree.grad import add_gradients
from bpfree.locality import BLACK_BOX
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, denoiser_for

HIDDEN = [14, 13, 12, 11]


def net_for(rule="backprop", **options):
    """Five layers, so that what grows with depth can be told from what does not; or five blocks."""
    torch.manual_seed(0)
    if issubclass(RULES[rule], DiffusionRule):
        shape = {"width": 16, **denoiser_for(rule), **options}
        return NETS["denoiser"](IN_SHAPE, 10, **(shape if shape["blocks"] == 1 else {**shape, "blocks": 5}))
    return NETS["mlp"](IN_SHAPE, 10, **{"hidden": HIDDEN, "activation": "tanh", "batch_norm": True, **options})


@pytest.fixture
def batch(batch):
    return Batch(batch.x.float(), batch.y)


def certified(rule, batch, net=None):
    name = rule if isinstance(rule, str) else getattr(rule, "get", lambda _: "backprop")("name")
    return bpfree.certify(net or net_for(name), rule, TASK, batch)


OPTIONS = [
    *({"name": name} for name in RULES),
    {"name": "fa", "feedback": "aligned"},
    {"name": "dfa", "memory": "flat"},
    {"name": "dfa", "feedback": "aligned", "memory": "flat"},
    {"name": "local", "backward": "sign"},
    {"name": "mono_forward", "read": "sum"},
    {"name": "predsim", "beta": 0.5},
    {"name": "forward_forward", "negatives": "even"},
    {"name": "cwcomp", "read": "last"},
    {"name": "noprop_dt", "order": "random"},
    {"name": "noprop_dt", "order": "sequential"},
    {"name": "noprop_dt", "embedding": "prototype"},
    {"name": "noprop_fm", "embedding": "learned", "draws": 3},
    {"name": "noprop_ct", "draws": 2},
    {"name": "forward_gradient", "directions": 2},
    {"name": "es", "evaluator": "loop", "population": 8},
    {"name": "es", "evaluator": "vmap", "population": 8},
    {"name": "eggroll", "evaluator": "lowrank", "objective": "accuracy"},
]


@pytest.mark.parametrize("rule", OPTIONS, ids=lambda rule: "-".join(map(str, rule.values())))
def test_every_rule_keeps_what_it_says(rule, batch):
    own = {"embedding_dim": 64} if rule.get("embedding") == "prototype" else {}
    own |= {"width": 20} if rule.get("draws") else {}
    small = {"population": 8} if rule["name"] in ("es", "snes", "pgpe", "recombine", "eggroll") else {}
    found = certified(small | rule, batch, net_for(rule["name"], **own))
    assert found.breaches == []
    assert found.measured == found.declared or rule["name"] in ("shallow", "noprop_ct", "noprop_fm")
    assert all(not objective.disagrees for objective in found.objectives)
    assert (found.declared.through == "nothing") == (not RULES[rule["name"]].needs_derivatives)


DEPTH = len(HIDDEN) + 1


@pytest.mark.parametrize(
    ("rule", "chain"),
    [
        ("backprop", DEPTH),
        ("fa", DEPTH),  # its own autograd function stands for a layer
        ("frsf", DEPTH),
        ("forward_gradient", DEPTH),  # forwards
        ("dfa", 1),
        ("drtp", 1),
        ("mono_forward", 1),
        ("predsim", 1),
        ("forward_forward", 1),
        ("pepita", 1),
        ("eggroll", 0),
        ("recombine", 0),
    ],
)
def test_the_chain_is_counted_in_layers(rule, chain, batch):
    found = certified(rule, batch)
    assert found.chain == chain
    assert found.depth == DEPTH


@pytest.mark.parametrize(("trunk", "chain"), [("own", 6), ("shared", 6), ("local", 1)])
@pytest.mark.parametrize("rule", ["noprop_dt", "noprop_ct"])
def test_noprop_is_differentiated_through_a_block_or_a_stage(rule, trunk, chain, batch):
    found = certified(rule, batch, net_for(rule, trunk=trunk))
    assert found.chain == chain  # the path of z: embed, two of the residual, three of the join; of a stage: one layer
    assert found.ok
    assert next(iter(found.parts)) == ("trunks.0.1" if trunk == "local" else "trunks.0+heads.0")
    blocks = 5 if rule == "noprop_dt" else 1
    assert len(found.parts) == blocks + 2 * (trunk == "local")
    if trunk == "shared":  # the others read the features of the first
        readers = [layer for layer, on in found.depends.items() if "trunks.0.1" in on and layer.startswith("heads")]
        assert len(readers) == (6 * 5 if rule == "noprop_dt" else 7)  # with the clock
        assert not any("trunks.0.1" in objective.moves for objective in found.objectives[1:])


def test_segments_of_several_layers_are_chains_of_as_many(batch):
    rule = RULES["mono_forward"](taps=["act2", "act4"])
    found = certified(rule, batch)
    assert found.parts == {"act2": ("fc1", "fc2"), "act4": ("fc3", "fc4"), "output": ("fc5",)}
    assert found.chain == 2
    assert found.ok
    assert found.measured.transports == "none"
    assert {i: list(own) for i, own in found.transport.items()} == {"fc1": ["fc2"], "fc3": ["fc4"]}, "within parts"


def test_what_waits_for_what(batch):
    assert all(found[-1] == "fc5" for found in list(certified("dfa", batch).waits.values())[:-1])
    hard = certified({"name": "forward_forward", "negatives": "hard"}, batch)
    assert all(own[-1] == "fc5" for own in list(hard.waits.values())[:-1]), "the output layer draws the negatives"
    assert not any(certified({"name": "forward_forward", "negatives": "even"}, batch).waits.values())
    assert not any(certified("mono_forward", batch).waits.values())
    assert certified("mono_forward", batch).depends["fc3"] == ["fc1", "fc2", "fc3"]


@pytest.mark.parametrize(("rule", "kind"), [("backprop", "weights"), ("usf", "signs"), ("brsf", "signs"), ("fa", None)])
def test_what_the_way_back_reads(rule, kind, batch):
    found = certified(rule, batch).transport
    assert found == ({f"fc{i}": {f"fc{j}": kind for j in range(i + 1, 6)} for i in range(1, 5)} if kind else {})


def test_activations_pile_up_or_do_not(batch):
    """A net of even layers: backprop's curve rises by the same for each, a local rule's does not rise."""

    def curve(rule, depth):
        net = net_for(hidden=[32] * depth, batch_norm=False)
        return dict(certified(rule, batch, net).held.curve), certified(rule, batch, net).held

    for depth in (4, 8):
        sizes, held = curve("backprop", depth)
        steps = {b - a for a, b in zip(list(sizes.values())[1:-2], list(sizes.values())[2:-1], strict=True)}
        assert len(steps) == 1
        assert sizes[f"fc{depth + 1}"] > 0.8 * held.peak, "all of it is there when the output is"
    assert curve("backprop", 8)[1].peak > 1.6 * curve("backprop", 4)[1].peak
    assert curve("mono_forward", 8)[1].peak == curve("mono_forward", 4)[1].peak
    flat, fast = ({"name": "dfa", "memory": memory} for memory in ("flat", "fast"))
    assert curve(flat, 8)[1].peak == curve(flat, 4)[1].peak < curve(fast, 4)[1].peak
    assert curve("eggroll", 8)[1].grows is False


def test_three_parts_are_too_few_to_tell_whether_memory_grows(batch):
    found = certified({"name": "dfa", "memory": "flat"}, batch, net_for(hidden=[14, 13]))
    assert found.held.grows is None
    assert found.ok


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
    assert {line.partition(":")[0] for line in found.breaches} >= caught
    text = " ".join(found.breaches)
    assert "fc5" in text
    assert "fc1" in text


def test_the_hostile_ones_write_the_true_gradient(batch):
    """So that what is caught above is what it is meant to be."""
    net = net_for(batch_norm=False)
    true = torch.autograd.grad(TASK.loss(net(batch.x), batch), list(net.parameters()))
    for rule in (TheRestCopied(), TuckedAway(), Functional(), ByHand(), PieceByPiece()):
        net.zero_grad()
        rule.bind(net, TASK, batch)
        rule.gradients(net, TASK, batch, Noise(0, 0))
        for p, g in zip(net.parameters(), true, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)
