"""The certificate's doors and manners: nets of one's own, what comes back as it was, files and the shell."""

import json
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bpfree
from bpfree import LocalRule, Rule, UserError
from bpfree.grad import backward, output_error
from bpfree.inputs import tensors_of
from bpfree.lab.certify import Certificate
from bpfree.nets import NETS
from bpfree.rule import LOCAL, Locality
from bpfree.rules import RULES
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK
from tests.lab.test_certify import HIDDEN, certified, net_for
from tests.lab.test_certify_hostile import Hostile, Skipping


@pytest.fixture
def batch(batch):
    return Batch(batch.x.float(), batch.y)


def test_a_net_of_ones_own_without_stages(batch):
    """Weights used without their modules, a frozen layer, and no Sequential."""

    class Mine(Skipping):
        def forward(self, x):
            h = torch.tanh(F.linear(x.flatten(1), self.first.weight, self.first.bias))
            return self.read(torch.tanh(self.third(torch.tanh(self.second(h)))))

    net = Mine()
    found = bpfree.certify(net, "backprop", TASK, batch)
    assert (found.chain, found.measurements.structure.depth, found.ok) == (4, 4, True)
    assert found.measurements.structure.layers == ("first", "second", "third", "read")
    transport = found.measurements.dependencies.transport
    assert transport["first"] == {"second": "weights", "third": "weights", "read": "weights"}
    net.second.requires_grad_(False)
    found = bpfree.certify(net, {"name": "dfa", "taps": ["third"]}, TASK, batch)
    assert found.ok
    assert found.measurements.structure.parts == {"third": ("first", "second", "third"), "output": ("read",)}
    assert found.chain == 3, "through the frozen layer too"
    assert not any(p.requires_grad for p in net.second.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_hides_no_layer(reentrant, batch):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Skipping):
        def forward(self, x):
            h = torch.tanh(self.first(x.flatten(1)))
            h = checkpoint(lambda h: torch.tanh(self.third(torch.tanh(self.second(h)))), h, use_reentrant=reentrant)
            return self.read(h)

    found = bpfree.certify(Checkpointed(), "backprop", TASK, batch)
    assert found.ok
    assert found.chain == 4
    assert found.measurements.objectives[0].graph.reaches == ("first", "second", "third", "read")


def test_convolutions_skips_within_a_segment_and_weight_norm(batch):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x):
            return x + self.b(torch.relu(self.a(x)))

    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 6, 3))
    net = nn.Sequential(normed, nn.ReLU(inplace=True), Block(), nn.Flatten(), nn.LayerNorm(216), nn.Linear(216, 10))
    found = bpfree.certify(net, "mono_forward", TASK, batch)
    assert found.ok
    assert found.measurements.structure.parts == {"1": ("0",), "4": ("2.a", "2.b"), "output": ("5",)}
    assert found.chain == 2
    by_backprop = bpfree.certify(net, "backprop", TASK, batch)
    assert by_backprop.chain == 4
    transport = by_backprop.measurements.dependencies.transport
    assert transport["0"] == dict.fromkeys(["2.a", "2.b", "5"], "weights")


def snapshot(*modules):
    named = [item for module in modules for item in (*module.named_parameters(), *module.named_buffers())]
    return [(name, t.clone(), t.grad if t.grad is None else t.grad.clone(), t.requires_grad) for name, t in named]


@pytest.mark.parametrize("rule", ["backprop", "dfa", "spsa", "noprop_dt", "forward_gradient"])
def test_all_comes_back_bit_for_bit(rule, batch):
    net = net_for(rule, dropout=0.2) if not rule.startswith("noprop") else net_for(rule)
    net.to(batch.device).eval()
    for p in list(net.parameters())[::2]:
        p.grad = torch.randn_like(p)
    own = RULES[rule]()
    torch.manual_seed(5)
    own.bind(net, TASK, batch)
    grads, before, random = [p.grad for p in net.parameters()], snapshot(net, own), torch.get_rng_state()
    found = bpfree.certify(net, own, TASK, batch)
    assert found.ok
    for (name, t, grad, flag), (_, other, other_grad, other_flag) in zip(before, snapshot(net, own), strict=True):
        assert torch.equal(t, other), name
        assert flag == other_flag
        assert (grad is None) == (other_grad is None)
        assert grad is None or torch.equal(grad, other_grad)
    assert all(a is b for a, b in zip(grads, (p.grad for p in net.parameters()), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert not net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    hooks = nn.modules.module
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


def test_all_comes_back_after_an_error_too(batch):
    class Breaks(Hostile):
        calls = 0

        def gradients(self, net, task, batch, noise):
            Breaks.calls += 1
            with torch.no_grad():
                net.fc1.weight.zero_()
            if Breaks.calls > 8:
                raise ZeroDivisionError
            return super().gradients(net, task, batch, noise)

    net = net_for().to(batch.device)
    before, engine = snapshot(net), torch.autograd.Variable._execution_engine
    with pytest.raises(ZeroDivisionError):
        bpfree.certify(net, Breaks(), TASK, batch)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(before, snapshot(net), strict=True))
    assert torch.autograd.Variable._execution_engine is engine
    assert not nn.modules.module._global_forward_hooks


def test_gradients_that_do_not_repeat_are_refused(batch):
    class Counts(Rule):
        n = 0

        def gradients(self, net, task, batch, noise):
            self.n += 1
            loss = self.n * task.loss(net(batch.x), batch)
            backward(loss)
            return {"loss": loss.detach()}

    found = bpfree.certify(net_for(), Counts(), TASK, batch)
    (line,) = found.violations
    assert line.startswith("repeat: rule: two calls of Counts with one key gave different gradients")
    assert not found.ok
    assert found.measured is None
    with pytest.raises(UserError, match="found 1 samples, allowed: at least 2"):
        bpfree.certify(net_for(), "dfa", TASK, Batch(batch.x[:1], batch.y[:1]))


def test_a_rule_of_ones_own_promises_nothing_unless_it_is_a_local_rule(batch):
    class Anything(Rule):
        def gradients(self, net, task, batch, noise):
            out = net(batch.x)
            backward(out, output_error(task, out, batch).view_as(out))
            return {"loss": task.loss(out, batch).detach()}

    class Contrast(LocalRule):
        def local_loss(self, index, h, signal):
            h = F.normalize(h.flatten(1))
            return F.mse_loss(h @ h.T, signal @ signal.T)

    assert Anything().locality() == Locality()
    assert bpfree.certify(net_for(), Anything(), TASK, batch).measured == Locality()
    assert Contrast().locality() == LOCAL
    assert bpfree.certify(net_for(), Contrast(), TASK, batch).measured == LOCAL


def test_a_net_without_derivatives(batch):
    net = NETS["mlp"](IN_SHAPE, 10, hidden=HIDDEN, activation="sign")
    found = bpfree.certify(net, {"name": "eggroll", "population": 8}, TASK, batch)
    assert found.ok
    assert found.chain == 0
    measured = found.measurements
    assert tuple(measured.dependencies.unexplained) == measured.structure.layers, "scores move them, not objectives"
    with pytest.raises(UserError, match="has no derivative"):
        bpfree.certify(net, "dfa", TASK, batch)


def test_the_certificate_as_plain_values_and_as_a_picture(batch, tmp_path):
    from bpfree.lab.certify.picture import draw_dependencies, plot_dependencies

    found = certified("usf", batch)
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["declared"] == plain["measured"] == Locality(transports="signs")._asdict()
    assert plain["objectives"][0]["reaches"] == ["fc1", "fc2", "fc3", "fc4", "fc5"]
    assert plain["memory"]["curve"][0]["layer"] == "fc1"
    assert isinstance(found, Certificate)
    assert plot_dependencies(found, tmp_path / "plots" / "x.png").read_bytes().startswith(b"\x89PNG")
    draw_dependencies(found).savefig(tmp_path / "x.pdf")
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_samples_are_moved_to_where_the_net_is(batch, monkeypatch):
    """The device "meta" takes the place of a GPU: it has no numbers, so what follows the move is left out."""
    seen = []
    monkeypatch.setattr("bpfree.lab.certify.measure._certified", lambda net, rule, task, batch: seen.append(batch))
    monkeypatch.setattr("bpfree.Noise.global_rng", lambda self, device: nullcontext())
    several = (batch.x, {"a": batch.x, "b": batch.x[:, :, 0]}, (batch.x, batch.x))
    for x in several:
        bpfree.certify(net_for().to("meta"), "dfa", TASK, Batch(x, batch.y))
    assert all(t.is_meta for moved in seen for t in (*tensors_of(moved.x), moved.y))
    bpfree.certify(net_for(), "dfa", TASK, batch)
    assert seen[-1].device == seen[-1].y.device == torch.device("cpu")
    assert len(seen) == 4


class TestShell:
    def shell(self, *args):
        from typer.testing import CliRunner

        from bpfree.cli import app

        return CliRunner().invoke(app, ["certify", *map(str, args)])

    def test_a_config(self, tmp_path):
        done = self.shell("digits/dfa", "net.hidden=[14,13,12]", "--out", tmp_path)
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("DFA on Sequential: as local as declared")
        assert "longest chain: 1 of 4 layers" in done.stdout
        assert json.loads((tmp_path / "certificate.json").read_text())["measured"]["memory"] == "grows"
        assert (tmp_path / "dependencies.png").exists()

    def test_a_run(self, tmp_path, undrawn):
        run = bpfree.fit(net="mlp", data="digits", rule="mono_forward", epochs=1, out=tmp_path / "run").folder
        done = self.shell(run, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == json.loads((run / "certificate.json").read_text())
        assert (run / "plots" / "dependencies.png").exists()
        assert bpfree.load(run).net is not None

    def test_a_violation(self):
        done = self.shell("digits/dfa", "rule={name: 'tests.lab.test_certify_hostile:ByHand'}", "net.activation=tanh")
        assert done.exit_code == 1
        lines = done.stderr.strip().splitlines()
        assert len(lines) >= 2
        assert all(line.startswith("violation: ") for line in lines)
        assert done.stdout.startswith(f"ByHand on Sequential: {len(lines)} violations")

    def test_what_cannot_be_told(self):
        done = self.shell("digits/dfa", "rule={name: 'tests.lab.cheats:Numpy'}", "net.activation=tanh", "--json")
        assert done.exit_code == 1
        line, memory = done.stderr.strip().splitlines()
        assert memory.startswith("cannot tell: memory: declared flat")
        assert line.startswith("cannot tell: transports: declared none, but nobody can tell")
        assert json.loads(done.stdout)["ok"] is False

    def test_a_leak(self):
        done = self.shell("digits/dfa", f"net={{name: '{__name__}:SkippingNet'}}", "rule.taps=[second, third]")
        assert done.exit_code == 1
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("violation: leak: parameter 'first.weight'")

    @pytest.mark.parametrize(
        "args", [["digits/dfaa"], ["digits/dfa", "rule=nothing"], ["digits/drtp", "task=reconstruct"]]
    )
    def test_what_cannot_be(self, args):
        done = self.shell(*args)
        assert done.exit_code == 2
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: ")


class SkippingNet(Skipping):
    """As a config calls it."""

    def __init__(self, in_shape, out_features):
        super().__init__()
