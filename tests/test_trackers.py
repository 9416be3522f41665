"""What is watched: that it is true, leaves no trace, survives a kill, and costs nothing when off."""

import contextlib
import copy
import json
import math
import os
import signal
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import bpfree
from bpfree import BlackBoxRule, Noise, Trainer, UserError
from bpfree.api import resume
from bpfree.cli import app
from bpfree.data import Batches, Preprocess
from bpfree.nets import NETS
from bpfree.noise import counting_everywhere
from bpfree.rules import RULES
from bpfree.runs.config_file import load_config
from bpfree.trackers import MEASURES, Measure, Tracker
from bpfree.trackers.alignment import angle
from bpfree.trackers.depth import probe
from tests.helpers import IN_SHAPE, TASK, net_for, same

pytestmark = [pytest.mark.filterwarnings("ignore:drtp"), pytest.mark.usefixtures("undrawn")]


def watched(rule, trackers, data, *, net=None, epochs=1, dtype=torch.float64, **options):
    """A trainer that has trained on 320 digits, 10 steps an epoch."""
    if net is None:
        torch.manual_seed(0)
        net = NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16], activation="tanh", batch_norm=True, dropout=0.2).to(dtype)
    split = data.train.take(torch.arange(320))
    trainer = Trainer(net, rule, TASK, options.pop("optimizer", {"name": "adam", "lr": 0.01}), **options)
    trainer.fit(Batches(split, Preprocess.of(data, split), 32, seed=0, dtype=dtype), epochs, trackers=trackers)
    return trainer


def values(trainer, tracker):
    return [record["values"] for record in trainer.progress.tracked if record["tracker"] == tracker]


def plain_net(hidden=(30, 20, 15)):
    torch.manual_seed(0)
    return NETS["mlp"](IN_SHAPE, 10, hidden=hidden, activation="tanh").double()


@pytest.mark.parametrize("randomness", [nullcontext, counting_everywhere], ids=["generators", "keys"])
def test_backprop_is_backprop_with_dropout_and_batch_norm(randomness, digits_data):
    with randomness():
        trainer = watched("backprop", [MEASURES["bp_cosine"](every=3)], digits_data, epochs=2, clip=0.01)
    records = trainer.progress.tracked
    assert [record["step"] for record in records] == [1, 4, 7, 10, 13, 16, 19]
    for record in records:
        assert list(record["values"]) == ["fc1", "norm1", "fc2", "norm2", "fc3"]
        assert list(record["values"].values()) == pytest.approx([1] * 5, abs=1e-6)


def test_feedback_that_is_the_weight_is_backprop(digits_data):
    """FA with B = W: a cosine of 1 and an angle of 0, before B and W part."""
    trackers = [MEASURES[name](every=1) for name in ("bp_cosine", "weight_alignment")]
    trainer = watched({"name": "fa", "feedback": "aligned"}, trackers, digits_data)
    cosines, angles = values(trainer, "bp_cosine"), values(trainer, "weight_alignment")
    assert list(cosines[0].values()) == pytest.approx([1] * 5, abs=1e-9)
    assert angles[0] == pytest.approx({"fc2": 0, "fc3": 0}, abs=1e-9)
    assert cosines[-1]["fc1"] < 1 - 1e-9
    assert 0 < angles[-1]["fc2"] < 90


def test_dfa_through_the_products_of_its_feedback_has_an_angle_of_0(batch):
    net = plain_net().to(batch.device)
    trainer = Trainer(net, "dfa", TASK)
    trainer.bind(batch)
    b = [trainer.rule.get_buffer(f"B{index}") for index in range(3)]
    with torch.no_grad():
        net.fc2.weight.copy_(2 * b[1].T @ b[0])
        net.fc3.weight.copy_(b[2].T @ b[1])
        net.fc4.weight.copy_(-b[2])
    paths = trainer.rule.feedback_paths(net, Noise())
    assert {layer: float(angle(*path)) for layer, path in paths.items()} == pytest.approx(
        {"fc2": 0, "fc3": 0, "fc4": 180}, abs=1e-6
    )


def test_angles_of_random_feedback_and_of_its_signs(digits_data):
    """|R| sign(W), R and W both uniform: cos = E|r|^2 / E r^2 = 3/4. Without the signs it would read 90 degrees."""
    expected = {"fa": 90, "frsf": 41.4, "brsf": 41.4, "usf": 30}
    for rule, degrees in expected.items():
        trainer = watched(rule, [MEASURES["weight_alignment"](every=100)], digits_data, net=plain_net((200, 200, 200)))
        assert trainer.progress.tracked[0]["values"] == pytest.approx({f"fc{i}": degrees for i in (2, 3, 4)}, abs=4)


def test_the_angle_is_exact_near_0_in_float32():
    a = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert float(angle(a, a)) == 0
    assert float(angle(a, -a)) == pytest.approx(180)
    tilt = a.roll(1)
    tilt = 1e-4 * (tilt - a * (a @ tilt) / (a @ a)) * (a.norm() / tilt.norm())  # at a right angle to a
    assert float(angle(a, a + tilt)) == pytest.approx(math.degrees(1e-4), rel=1e-2)


def test_weights_come_to_align_with_the_feedback_of_dfa():
    """The effect that DFA is named for, on real digits."""
    run = bpfree.fit(
        "mlp", "digits", "dfa", epochs=6, trackers=["weight_alignment", {"name": "bp_cosine", "every": 50}]
    )
    angles = [record["values"] for record in run.tracked if record["tracker"] == "weight_alignment"]
    cosines = [record["values"] for record in run.tracked if record["tracker"] == "bp_cosine"]
    assert all(abs(degrees - 90) < 3 for degrees in angles[0].values())
    assert angles[-1]["fc2"] < 85
    assert angles[-1]["fc3"] < 75
    assert cosines[-1]["fc1"] > cosines[0]["fc1"] + 0.2


def test_a_population_points_where_the_gradient_does_and_a_larger_one_more_so(digits_data):
    """Without dropout, and with batch norm by the minibatch, as members run."""
    cosines = []
    for population in (20, 600):
        rule = {"name": "recombine", "population": population, "mirrored": True, "sigma": 1e-4, "p": 1.0}
        trainer = watched(rule, [MEASURES["bp_cosine"](every=100)], digits_data)
        cosines.append(values(trainer, "bp_cosine")[0]["fc3"])
    assert cosines[1] > max(0.4, cosines[0] + 0.2)


def test_norms_and_losses_are_those_of_the_step(digits_data):
    names = ("gradients", "weights", "local_loss")
    optimizer = {"name": "sgd", "lr": 0.5}
    moved: list[dict[str, float]] = []

    class Moves(Tracker):
        def on_start(self, trainer):
            self.before = copy.deepcopy(dict(trainer.net.named_parameters()))

        def on_step(self, trainer, batch):
            after = copy.deepcopy(dict(trainer.net.named_parameters()))
            moved.append({n: float((after[n] - p).detach().norm()) / 0.5 for n, p in self.before.items()})
            self.before = after

    trackers = [*(MEASURES[name](every=1) for name in names), Moves()]
    trainer = watched("mono_forward", trackers, digits_data, optimizer=optimizer)
    for norms, move in zip(values(trainer, "gradients"), moved, strict=True):
        assert {n: norm for n, norm in norms.items() if not n.startswith("rule.")} == pytest.approx(move, rel=1e-6)
        assert {"rule.heads.0.weight", "rule.heads.1.weight"} <= norms.keys()
    losses = values(trainer, "local_loss")
    mean = {f"loss/{unit}": sum(loss[unit] for loss in losses) / len(losses) for unit in ("act1", "act2")}
    assert mean == pytest.approx({name: trainer.progress.history[0]["train"][name] for name in mean}, rel=1e-6)
    torch.manual_seed(0)
    fresh = dict(NETS["mlp"](IN_SHAPE, 10, hidden=[24, 16], batch_norm=True).double().named_parameters())
    first = values(trainer, "weights")[0]
    assert {n: first[n] for n in fresh} == pytest.approx(
        {n: float(p.detach().norm()) for n, p in fresh.items()}, rel=1e-6
    )


def test_a_probe_is_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    features, unseen = torch.randn(50, 7, generator=generator).double(), torch.randn(9, 7, generator=generator).double()
    target = torch.randn(50, 3, generator=generator).double()
    h, y = features - features.mean(0), target - target.mean(0)
    ridge = 1e-2 * (h @ h.T).diagonal().mean()
    weights = torch.linalg.solve(h.T @ h + ridge * torch.eye(7), h.T @ y)
    torch.testing.assert_close(probe(features, target, unseen), (unseen - features.mean(0)) @ weights + target.mean(0))


def test_segment_accuracy_reads_heads_and_probes(digits_data):
    head, read = MEASURES["segment_accuracy"](every=10, samples=300), {}

    class Check(Tracker):
        def on_gradients(self, trainer, batch, scalars):
            if trainer.progress.step == 10:
                batches = list(trainer.data.epoch(0))[:10]
                x, y = (torch.cat(parts)[150:300] for parts in zip(*batches, strict=True))
                read["output"] = float((trainer.predict(x).argmax(1) == y).double().mean())
                trainer.rule.read = "last"
                read["act2"] = float((trainer.predict(x).argmax(1) == y).double().mean())
                trainer.rule.read = "net"

    trainer = watched("mono_forward", [head, Check()], digits_data, epochs=2)
    assert list(values(trainer, "segment_accuracy")[1]) == ["act1", "act2", "output"]
    assert {name: values(trainer, "segment_accuracy")[1][name] for name in read} == read
    probes = MEASURES["segment_accuracy"](every=10, samples=300, read="probe")
    accuracies = values(watched("mono_forward", [probes], digits_data, epochs=2), "segment_accuracy")
    assert all(accuracies[0][tap] > 0.7 for tap in ("act1", "act2")), "random features of digits can be read"
    assert accuracies[0]["output"] < 0.3
    assert values(watched("backprop", [probes], digits_data, epochs=2), "segment_accuracy")[0] == accuracies[0]


def test_segment_accuracy_of_feature_maps_at_taps_of_ones_own():
    tracker = {"name": "segment_accuracy", "every": 40, "samples": 200}
    run = bpfree.fit("conv", "digits", "backprop", epochs=1, trackers=[tracker])
    assert run.tracked[0]["values"].keys() > {"output"}
    run = bpfree.fit("mlp", "digits", "backprop", epochs=1, trackers=[{**tracker, "taps": ["fc2"]}])
    assert run.tracked[0]["values"].keys() == {"fc2", "output"}
    with pytest.raises(UserError, match=r"unknown tap 'fc9'"):
        bpfree.fit("mlp", "digits", "backprop", trackers=[{**tracker, "taps": ["fc9"]}])
    with pytest.raises(UserError, match="but a local rule is read at its own taps"):
        bpfree.fit("mlp", "digits", "dfa", trackers=[{**tracker, "taps": ["fc1"]}])


class Rude(Measure):
    """Leaves nothing as it was."""

    name = "rude"

    def measure(self, trainer, batch, scalars):
        trainer.net.eval()
        trainer.rule.eval()
        torch.manual_seed(3)
        with torch.no_grad():
            for module in (trainer.net, trainer.rule):
                for tensor in (*module.parameters(), *module.buffers()):
                    tensor.zero_()
            for p in trainer.net.parameters():
                if p.grad is not None:
                    p.grad.add_(1)
                p.grad = None if p.dim() > 1 else torch.ones_like(p)
        return {"a": 1.0, "b": float("nan")}


def admitted(rule):
    """All trackers that the rule admits on the net of the tests."""
    trackers = {name: MEASURES[name](every=2) for name in MEASURES} | {"rude": Rude(every=3)}
    reads_net = RULES[rule]().predicts_with_net
    has_feedback = rule in ("fa", "usf", "brsf", "frsf", "dfa", "drtp")
    has_no_losses = rule in ("backprop", "fa", "usf", "brsf", "frsf", "shallow", "pepita", "noprop_fm")
    has_no_losses |= issubclass(RULES[rule], BlackBoxRule) or rule in ("deep_supervision", "forward_gradient")
    refused = {"bp_cosine"} if not reads_net else set()
    refused |= {"weight_alignment"} if not has_feedback else set()
    refused |= {"local_loss"} if has_no_losses else set()
    refused |= {"segment_accuracy"} if RULES[rule].needs_net is not None else set()
    return [tracker for name, tracker in trackers.items() if name not in refused]


@pytest.mark.parametrize("rule", RULES)
def test_a_watched_training_comes_to_the_same_bits(rule, digits_data):
    states = []
    for trackers in ([], admitted(rule)):
        net = net_for(rule)
        random = torch.get_rng_state()
        goes_by_the_clock = issubclass(RULES[rule], BlackBoxRule) and RULES[rule]().evaluator == "auto"
        exact = {"name": rule, "evaluator": "loop"} if goes_by_the_clock else rule
        trainer = watched(exact, trackers, digits_data, net=net, epochs=2, clip=1.0)
        assert torch.equal(random, torch.get_rng_state())
        assert not any(m._forward_hooks for m in trainer.net.modules())
        states.append(
            {f"{i}{k}": v for i, m in enumerate((trainer.net, trainer.rule)) for k, v in m.state_dict().items()}
            | {f"{i}.{k}": v for i, s in enumerate(trainer.optimizer.state.values()) for k, v in s.items()}
        )
    assert same(*states)
    found = {record["tracker"] for record in trainer.progress.tracked}
    assert found == {tracker.name for tracker in trackers}
    assert all(record["values"] for record in trainer.progress.tracked if record["step"] > 1)
    assert values(trainer, "rude") == [{"a": 1.0}] * 7, "what is not finite is left out"


def test_bfloat16_is_watched_in_bfloat16(digits_data):
    names = ("bp_cosine", "gradients", "segment_accuracy")
    trainer = watched(
        "backprop", [MEASURES[n](every=5) for n in names], digits_data, dtype=torch.float32, compute="bfloat16"
    )
    assert list(values(trainer, "bp_cosine")[0].values()) == pytest.approx([1] * 5, abs=1e-6)


def test_nothing_is_paid_when_off(digits_data):
    passes = []

    def train(trackers):
        net = plain_net()
        net.register_forward_hook(lambda *_: passes.append(1))
        passes.clear()
        return watched("backprop", trackers, digits_data, net=net), len(passes)

    trainer, off = train([Tracker()])
    assert off == 10
    assert trainer.progress.tracked == []
    assert trainer.progress.tracker_cost == {}
    trainer, on = train([MEASURES["bp_cosine"](every=4)])
    assert on == 10 + 3
    x = digits_data.train.x[:32].double()
    trainer.step(bpfree.Batch(x, digits_data.train.y[:32]))  # by hand, after fit
    assert len(passes) == 10 + 3 + 1
    assert trainer.progress.tracker_cost["bp_cosine"]["measurements"] == 3


EVERY = ["bp_cosine", "weight_alignment", "gradients", "weights", "local_loss", "segment_accuracy"]
OPTIONS = {"epochs": 3, "batch_size": 128, "trackers": [{"name": name, "every": 7} for name in EVERY]}


def lines(folder):
    """metrics.jsonl without what a clock tells."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "cpu_seconds", "samples_per_second")}
        for record in found
    ]


@pytest.mark.parametrize("cut", ["power", "ctrl-c"])
def test_a_resumed_run_has_the_records_of_one_that_was_never_stopped(cut, tmp_path, monkeypatch):
    whole = bpfree.fit("mlp", "digits", "dfa", out=tmp_path / "whole", **OPTIONS)
    real = bpfree.Trainer.step

    def step(self, batch):
        if self.progress.step == 25 and cut == "power":
            raise RuntimeError("power cut")
        scalars = real(self, batch)
        if self.progress.step == 15 and cut == "ctrl-c":
            os.kill(os.getpid(), signal.SIGINT)
        return scalars

    monkeypatch.setattr(bpfree.Trainer, "step", step)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        bpfree.fit("mlp", "digits", "dfa", out=tmp_path / "torn", **OPTIONS)
    if cut == "ctrl-c":
        assert [line["step"] for line in lines(tmp_path / "torn") if line.get("tracker") == "weights"] == [1, 8, 15]
    monkeypatch.undo()
    again = resume(tmp_path / "torn")
    assert again.tracked == whole.tracked
    assert lines(tmp_path / "torn") == lines(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "whole")] == sorted(
        r["step"] for r in whole.tracked + whole.metrics
    )
    for folder in (tmp_path / "torn", tmp_path / "whole"):
        assert events(folder, "bp_cosine/fc2") == [
            (r["step"], r["values"]["fc2"]) for r in whole.tracked[:: len(EVERY)]
        ]


def events(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(name)]


def test_what_a_run_leaves(tmp_path, undrawn):
    undrawn.undo()
    own = Rude(every=5)
    done = bpfree.fit("mlp", "digits", "dfa", epochs=1, out=tmp_path / "run", trackers=["cost", "gradients", own])
    drawn = {"training", "confusion", "wrong", "cost", "gradients", "rude"}
    assert {p.stem for p in (tmp_path / "run" / "plots").iterdir()} == drawn
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["trackers"].keys() == {"cost", "gradients", "rude"}
    assert result["tracker_seconds"] == sum(cost["seconds"] for cost in result["trackers"].values()) > 0
    assert result["tracker_seconds"] < result["wall_seconds"]
    cost = [record["values"] for record in done.tracked if record["tracker"] == "cost"]
    assert "samples_per_second" not in cost[0], "there is no pace before the first step"
    assert cost[0]["peak_memory_bytes"] > 1e6
    assert [record["kind"] for record in done.metrics] == ["epoch"]
    loaded = bpfree.load(tmp_path / "run")
    assert (loaded.metrics, loaded.tracked) == (done.metrics, done.tracked)
    done.save(tmp_path / "copy")
    assert lines(tmp_path / "copy") == lines(tmp_path / "run")
    assert (tmp_path / "copy" / "plots" / "rude.png").exists()
    with pytest.raises(UserError, match="its trackers came from Python as objects"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("tracker", "rule", "message"),
    [
        (
            "bp_cosine",
            "noprop_dt",
            "bp_cosine compares with backprop through net\\(x\\), but the prediction of NoPropDT",
        ),
        ("bp_cosine", "forward_forward", "but the prediction of ForwardForward is not"),
        ("bp_cosine", {"name": "mono_forward", "read": "sum"}, "but the prediction of MonoForward is not"),
        ("weight_alignment", "backprop", "but Backprop has no feedback matrices for this net. Allowed: fa"),
        ("weight_alignment", "mono_forward", "but MonoForward has no feedback matrices"),
        ("local_loss", "fa", "but FA trains this net as one unit"),
        ("segment_accuracy", "noprop_dt", "but NoPropDT does not run the net so"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tracker, rule, message, tmp_path):
    net = "denoiser" if rule == "noprop_dt" else "mlp"
    with pytest.raises(UserError, match=message):
        bpfree.fit(net, "digits", rule, trackers=[tracker], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_that_is_refused(digits_data):
    for name in ("bp_cosine", "gradients"):
        with pytest.raises(UserError, match=f"{name} reads gradients, but update: fused frees"):
            bpfree.fit("mlp", "digits", "drtp", update="fused", trackers=[name])
    with pytest.raises(UserError, match="but the task is reconstruct"):
        bpfree.fit("mlp", "digits", "dfa", task="reconstruct", trackers=["segment_accuracy"])
    with pytest.raises(UserError, match="trackers: found cost 2 times, allowed: once"):
        bpfree.fit("mlp", "digits", "dfa", trackers=["cost", MEASURES["cost"](every=3)])
    with pytest.raises(UserError, match="every: found 0, allowed: a number above 0"):
        bpfree.fit("mlp", "digits", "dfa", trackers=[{"name": "cost", "every": 0}])

    with pytest.raises(UserError, match="local_loss shows the losses of units, but Pepita does not return any"):
        bpfree.fit("mlp", "digits", "pepita", trackers=["local_loss"])

    class Step(nn.Module):
        def forward(self, x):
            return x.detach().sign()

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Step())
    with pytest.raises(UserError, match="bp_cosine needs derivatives"):
        bpfree.fit(net, digits_data.train, "recombine", trackers=["bp_cosine"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trackers=[bp_cosin]", r"unknown tracker 'bp_cosin'. Did you mean 'bp_cosine'\?"),
        ("trackers=[{name: cost, evry: 3}]", r"unknown key 'tracker.evry'. Did you mean 'tracker.every'\?"),
        ("trackers=[{name: cost, every: often}]", "tracker.every: found 'often', allowed: int"),
        ("trackers=[{every: 3}]", "tracker.name: found None, allowed: the name of a tracker"),
        ("trackers=[3]", "trackers.0: found 3"),
        ("trackers=[os:system]", "'os:system' is not a Tracker"),
    ],
)
def test_a_config_that_does_not_hold(override, message):
    with pytest.raises(UserError, match=message):
        load_config("digits/dfa", [override])


def test_configs_and_the_shell(tmp_path):
    from typer.testing import CliRunner

    config = load_config("digits/dfa", ["trackers=[cost, {name: weights, every: 5}]"])
    assert config.trackers == [{"name": "cost"}, {"name": "weights", "every": 5}]
    assert load_config("digits/dfa", ["trackers=cost"]).trackers == [{"name": "cost"}]
    assert load_config("digits/dfa").trackers == []
    args = [
        "train",
        "digits/dfa",
        "trackers=[tests.test_trackers:Rude]",
        "train.epochs=1",
        "--out",
        str(tmp_path / "r"),
    ]
    shown = CliRunner().invoke(app, args).stdout
    assert "tracker rude: 0." in shown
    assert "s in 1 measurements" in shown


def test_every_tracker_says_what_it_measures():
    for name, tracker in MEASURES.items():
        assert tracker.name == name
        assert "every: number of steps from one measurement to the next" in tracker.__doc__
    with warnings.catch_warnings(), contextlib.suppress(UserError):
        assert all(tracker().every == 100 for tracker in MEASURES.values())
