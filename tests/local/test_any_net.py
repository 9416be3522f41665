"""Nets as people have them: each rule trains them, or says why not."""

import copy
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import bpfree
from bpfree import Noise, UserError, taps
from bpfree.lab.certify import certify
from bpfree.local.autotaps import find_segments
from bpfree.local.segments import stages
from bpfree.nets import NETS
from bpfree.population.rule import BlackBoxRule
from bpfree.rules import DFA, RULES, Backprop, MonoForward
from bpfree.tasks import Classify
from bpfree.trackers import make_trackers
from bpfree.training.evaluation import evaluate_split
from bpfree.training.trainer import Trainer
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, bound, gradients, net_for, same
from tests.nets_people_have import B, Checkpointed, Plain, ResNet, kinds, made

KINDS = kinds()


def batch_of(kind):
    return Batch(KINDS[kind].x, torch.arange(B) % KINDS[kind].classes)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_cuts_are_found_at_block_level(kind):
    net, batch, expected = made(KINDS[kind]), batch_of(kind), KINDS[kind].taps
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    if expected:
        rule = bound(DFA(), net, batch, Classify(KINDS[kind].classes))
        assert rule.taps == expected
        assert rule.metadata() == {"taps": ", ".join(expected)}
        owned = [name for segment in rule.segments for name in segment.parameters]
        assert sorted(owned) == sorted(name for name, p in net.named_parameters() if p.requires_grad)
    else:
        with pytest.raises(UserError, match="'emb.weight' is used before and behind each of them"):
            find_segments(net, batch.x)
    if not expected:
        assert torch.equal(random, torch.get_rng_state())
    assert same(before, net.state_dict())
    assert not any(m._forward_hooks for m in net.modules())


class Holds(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("name", ["resnet18", "mlp", "conv"])
def test_in_a_module_of_ones_own_the_cuts_are_those_of_the_sequential(name):
    net = NETS[name](IN_SHAPE, 10)
    found = find_segments(Holds(net), torch.randn(2, *IN_SHAPE))
    assert tuple(segment.name.removeprefix("net.") for segment in found.segments[:-1]) == stages(net)
    assert found.searched
    assert not find_segments(net, torch.randn(2, *IN_SHAPE)).searched


def made_rule(name, **running):
    """A rule with few members, where it has any."""
    if not issubclass(RULES[name], BlackBoxRule):
        return RULES[name]()
    return RULES[name](**running, **({"pairs": 2} if name == "spsa" else {"population": 4}))


@pytest.mark.slow  # tests/nets/test_people.py has nets of the same kinds
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_trains_them_or_says_why_not(kind, rule):
    net, batch = made(KINDS[kind]), batch_of(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(net, made_rule(rule), Classify(KINDS[kind].classes), "sgd")
        before = copy.deepcopy(net.state_dict())
        try:
            for _ in range(2):
                scalars = trainer.step(batch)
        except UserError as error:
            if "the first step failed" in str(error):
                raise
            return
    assert all(bool(value.isfinite()) for value in scalars.values())
    assert not same(before, net.state_dict())
    assert trainer.predict(batch.x).shape == (B, KINDS[kind].classes)


LOCAL = ["dfa", "drtp", "local", "mono_forward", "predsim", "cwcomp", "forward_forward", "backprop"]


@pytest.mark.parametrize("in_one", [False, True], ids=["each block", "taps within one region"])
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("rule", [*LOCAL, "dfa-flat"])
def test_activation_checkpointing_changes_nothing(rule, in_one, early_stop, batch):
    """A tapped module that runs again in the backward pass does not learn twice."""
    name, _, memory = rule.partition("-")
    written = []
    for make in (Plain, Checkpointed):
        torch.manual_seed(0)
        net = make(in_one=in_one).to(batch.x)
        learner = RULES[name](**({"memory": memory} if memory else {}))
        with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
            bound(learner, net, batch).gradients(net, TASK, batch, Noise(0, 3))
        written.append({name: p.grad for name, p in net.named_parameters()})
    assert written[0].keys() == written[1].keys()
    for key, expected in written[0].items():
        torch.testing.assert_close(written[1][key], expected, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("in_one", [False, True])
@pytest.mark.parametrize("options", [{}, {"taps": ["rest.blocks.0"]}, {"taps": ["rest.blocks.0", "rest.blocks.1"]}])
def test_reentrant_checkpointing_is_refused_with_the_cure(options, in_one, batch):
    """It hides its graph, so that every cut rule would be backprop."""

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rest = nn.Linear(64, 64), Checkpointed(reentrant=True, in_one=in_one)

        def forward(self, x):
            return self.rest(self.embed(x.flatten(1)))

    net = Embedded().to(batch.x)
    for rule in (DFA(**options), MonoForward(**options)):
        with pytest.raises(UserError, match=r"'rest.blocks.\d.0.weight' learns by backprop .* Use use_reentrant"):
            bound(rule, net, batch)
    assert all(p.grad is None for p in net.parameters())
    Trainer(net, Backprop(), TASK).step(batch)
    Trainer(net, {"name": "es", "population": 4, "evaluator": "loop"}, TASK).step(batch)


def test_parameters_that_do_not_learn_anyway_are_no_hindrance(batch):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.fixed, self.first, self.out = nn.Linear(64, 30), nn.Linear(30, 20), nn.Linear(20, 10)
            self.extra = nn.Linear(3, 3)

        def forward(self, x):
            with torch.no_grad():
                h = self.fixed(x.flatten(1)).tanh()
            return self.out(self.first(h).tanh())

    net = Unused().to(batch.x)
    rule = bound(DFA(), net, batch)
    assert rule.taps == ("first",)
    rule.gradients(net, TASK, batch, Noise())
    assert net.fixed.weight.grad is None


def trained(net, rule, batch, task=TASK):
    torch.manual_seed(1)
    trainer = Trainer(net, made_rule(rule, evaluator="loop"), task, "sgd")
    for _ in range(3):
        trainer.step(batch)
    return trainer


COMPILED = {
    "in place": lambda net: (net.compile(backend="eager"), net)[1],
    "wrapped": lambda net: torch.compile(net, backend="eager"),
    "a part of it": lambda net: (net[2].compile(backend="eager"), net)[1],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "rule"),
    [
        *(("in place", name) for name in RULES if "noprop" not in name),
        *((how, name) for how in ("wrapped", "a part of it") for name in ("backprop", "fa", "dfa", "pepita", "es")),
        ("wrapped", "noprop_dt"),
    ],
)
def test_a_compiled_net_trains_as_the_net_itself(rule, how, batch):
    plain = net_for(rule, batch.device)
    net = COMPILED[how](copy.deepcopy(plain))
    torch._dynamo.reset()
    for each in (plain, net):
        torch.manual_seed(2)
        each(batch.x)  # so that code without any hooks is there already
    before = [m._compiled_call_impl for m in net.modules()]
    expected = trained(plain, rule, batch).predict(batch.x)
    trainer = trained(net, rule, batch)
    assert torch.equal(trainer.predict(batch.x), expected)
    inside = getattr(net, "_orig_mod", net)
    if rule == "backprop" and how != "wrapped":
        for name, p in inside.named_parameters():
            torch.testing.assert_close(p, plain.get_parameter(name), rtol=0, atol=1e-12)
    else:
        assert same(dict(plain.state_dict()), dict(inside.state_dict()))
    assert [m._compiled_call_impl for m in net.modules()] == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", COMPILED)
def test_a_rule_can_be_given_a_compiled_net_by_hand(how, batch):
    plain = net_for("dfa", batch.device)
    net = COMPILED[how](copy.deepcopy(plain))
    net(batch.x)
    for options in ({}, {"taps": ["act1"]}):
        written = []
        for each in (plain, net):
            each.zero_grad()
            rule = bound(DFA(**options), each, batch)
            rule.gradients(each, TASK, batch, Noise(0, 0))
            written.append([p.grad.clone() for unit in rule.units(each) for p in unit])
            assert [name.removeprefix("_orig_mod.") for name in rule.taps] == (
                ["act1"] if options else ["drop1", "drop2"]
            )
        assert all(torch.equal(a, b) for a, b in zip(*written, strict=True))


def test_under_ddp_gradients_are_averaged_or_it_is_refused(tmp_path):
    """Two processes with different samples: their weights stay the same, or the rule says what to do."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.two_processes"]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    found = json.loads(outputs[0])
    for key, value in found.items():
        if key.startswith(("backprop", "fa")):
            assert value == 0, key
        else:
            assert "DistributedDataParallel" in value, key
            assert "(net.module), and call bpfree.mesh.average_gradients(net, rule)" in value
    assert len(found) == 13


def test_one_process_needs_no_wrapper(tmp_path, batch):
    net = NETS["mlp"](IN_SHAPE, 10, hidden=[12, 9]).to(batch.x)
    parallel = nn.DataParallel(net)
    assert trained(parallel, "mono_forward", batch).net is net
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        assert trained(wrapped, "dfa", batch).net is net
        assert trained(wrapped, "backprop", batch).net is wrapped
    finally:
        torch.distributed.destroy_process_group()


def test_a_sharded_net_is_refused(batch):
    class FSDPModule(nn.Sequential):
        """Known by its name, since torch's own needs processes."""

    net = FSDPModule(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).to(batch.x)
    with pytest.raises(UserError, match="net: found FSDPModule, which averages"):
        bound(DFA(), net, batch)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d()
        self.hidden, self.out = nn.LazyLinear(12), nn.LazyLinear(10)

    def forward(self, x):
        return self.out(self.hidden(self.norm(self.conv(x)).relu().flatten(1)).tanh())


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("rule", ["backprop", "dfa", "mono_forward", "es", "forward_gradient", "fa", "pepita"])
def test_lazy_modules_get_their_shapes_first(rule, batch):
    weights = []
    for _ in range(2):
        net = Lazy().double()
        options = {"population": 4} if rule == "es" else {}
        run = bpfree.fit(
            net, (batch.x.float().cpu().numpy(), batch.y.cpu()), {"name": rule, **options}, epochs=1, device="cpu"
        )
        assert type(net.hidden) is nn.Linear
        assert run.net.conv.weight.shape == (4, 1, 3, 3)
        weights.append(copy.deepcopy(net.state_dict()))
    assert same(*weights), "initialised by the seed"
    net = Lazy().double()
    assert [tap.name for tap in taps(net, batch.x) if tap.auto] == ["norm", "hidden"]
    assert type(net.hidden) is nn.Linear
    with pytest.raises(UserError, match="the lazy parameter 'conv.weight' has no shape yet. Give taps a few samples"):
        taps(Lazy())


def test_a_net_on_the_meta_device_is_refused_with_the_cure(batch):
    with torch.device("meta"):
        net = ResNet()
    x, y = batch.x.float().cpu().numpy(), batch.y.cpu().numpy()
    for attempt in (
        lambda: bpfree.fit(net, (x, y), "dfa", epochs=1),
        lambda: bpfree.fit(net, (x, y), "es", epochs=1),
        lambda: Trainer(net, "backprop", TASK),
        lambda: bound(RULES["fa"](), net, batch),
        lambda: taps(net, x),
        lambda: taps(net),
    ):
        with pytest.raises(UserError, match=r"'conv1.weight' is on the meta device.* net.to_empty\(device='cpu'\)"):
            attempt()


def test_taps_takes_what_fit_takes(batch):
    net, image = made(KINDS["resnet"]).float(), KINDS["resnet"].x
    expected = taps(net, image.float())
    assert [tap.name for tap in expected if tap.auto] == list(KINDS["resnet"].taps)
    for x in (image, image.numpy(), image.float().numpy(), image.numpy().tolist()):
        assert taps(net, x) == expected
    pixels = np.zeros((3, 1, 8, 8), dtype=np.uint8)
    assert [tap.name for tap in taps(net, pixels)] == [tap.name for tap in expected]
    towers, (left, right) = made(KINDS["two towers"]).float(), KINDS["two towers"].x
    assert [t.name for t in taps(towers, (left.numpy(), right)) if t.auto] == ["a", "b", "join.1"]
    named = {name: t.numpy() for name, t in KINDS["hugging face"].x.items()}
    found = taps(made(KINDS["hugging face"]).float(), named)
    assert [t.name for t in found if t.auto] == list(KINDS["hugging face"].taps)
    for x in ("abc", [object()]):
        with pytest.raises(UserError, match="x: found .*, allowed: an array or a tensor of numbers"):
            taps(net, x)


def test_step_takes_a_pair_of_arrays(batch):
    expected = trained(made(KINDS["two towers"]), "dfa", batch_of("two towers"), Classify(4))
    (left, right), y = batch_of("two towers")
    pairs = [((left.numpy(), right.float()), y.numpy()), [(left, right), y], Batch((left.numpy(), right), y.numpy())]
    for pair in pairs:
        torch.manual_seed(1)
        trainer = Trainer(made(KINDS["two towers"]), "dfa", Classify(4), "sgd")
        for _ in range(3):
            trainer.step(pair)
        for a, b in zip(trainer.net.parameters(), expected.net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    for wrong in (left, (left,), None, {"x": left}):
        with pytest.raises(UserError, match=r"batch: found \w+, allowed: Batch\(x, y\), or a pair"):
            trainer.step(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_backprop_is_backprop(kind):
    if kind == "checkpointed" and tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13):
        pytest.skip("torch 2.6 and 2.11 cannot checkpoint what checkpoints itself; 2.13 can")
    batch, written, buffers = batch_of(kind), [], []
    for checkpoint in (False, True):
        net = made(KINDS[kind])
        Backprop(checkpoint=checkpoint).gradients(net, Classify(KINDS[kind].classes), batch, Noise(0, 0))
        assert not any("forward" in vars(module) for module in net.modules())
        written.append(gradients(net))
        buffers.append(dict(net.named_buffers()))
    assert same(*written)
    assert same(*buffers)


def test_checkpointed_backprop_keeps_less_of_any_net(batch):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [[nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()] for _ in range(8)]
            self.blocks = nn.ModuleList(nn.Sequential(*block) for block in layers)
            self.out = nn.Linear(64, 10)

        def forward(self, x):
            x = x.flatten(1)
            for block in self.blocks:
                x = block(x)
            return self.out(x)

    many = Batch(batch.x.repeat(64, 1, 1, 1), batch.y.repeat(64))
    memory = [Trainer(Deep().to(batch.x), Backprop(checkpoint=c), TASK).step_memory(many) for c in (False, True)]
    assert memory[1] < 0.7 * memory[0]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tied gpt"])
def test_trackers_and_the_certificate_see_them(kind):
    net, batch, task = made(KINDS[kind]), batch_of(kind), Classify(KINDS[kind].classes)
    split = [Batch(batch.x, batch.y)]
    trainer = Trainer(net, "dfa", task, "sgd")
    trackers = make_trackers([{"name": "bp_cosine", "every": 1}, "gradients", "weights", "local_loss"])
    trainer.bind(batch)
    trainer._gradient_listeners = trackers
    trainer.step(batch)
    values = {record["tracker"]: record["values"] for record in trainer.progress.tracked}
    assert max(values["bp_cosine"].values()) > 0.99, "of the output layer"
    assert list(values["local_loss"]) == [tap for tap in KINDS[kind].taps if kind != "frozen parts" or tap != "layer1"]
    assert evaluate_split(task, split, trainer.predict, net).metrics["loss"] > 0
    if kind == "resnet":
        found = certify(net, trainer.rule, task, batch)
        assert found.ok, found.violations


def test_what_was_chosen_is_said_and_kept(batch, capsys, tmp_path, undrawn):
    x, y = batch.x.float().cpu().numpy(), batch.y.cpu().numpy()
    run = bpfree.fit(ResNet(), (x, y), "dfa", epochs=1, trackers=["segment_accuracy"], out=tmp_path / "run")
    assert "DFA cuts the net behind relu, layer1, layer2 (`taps` chooses other places)\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["taps"] == "relu, layer1, layer2"
    assert list(run.tracked[0]["values"]) == ["relu", "layer1", "layer2", "output"]
    run = bpfree.fit(ResNet(), (x, y), "backprop", epochs=1, trackers=["segment_accuracy"])
    assert list(run.tracked[0]["values"]) == ["relu", "layer1", "layer2", "output"]
    bpfree.fit("mlp", (x, y), "dfa", epochs=1)
    assert "taps" not in capsys.readouterr().err


def test_a_block_that_is_left_out_in_a_step_is_told(batch):
    """As by stochastic depth: its segment would learn with another one."""

    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.out, self.drop = nn.Linear(64, 9), nn.Linear(9, 9), nn.Linear(9, 10), False

        def forward(self, x):
            h = self.first(x.flatten(1)).tanh()
            return self.out(h if self.drop else self.second(h).tanh())

    net = Drops().to(batch.x)
    rule = bound(DFA(), net, batch)
    net.drop = True
    with pytest.raises(UserError, match="tap 'second' ran 0 times in one forward pass"):
        rule.gradients(net, TASK, batch, Noise())
