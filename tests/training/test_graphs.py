"""Captured steps equal eager ones to the bit: with a tape in place of a CUDA graph, and device code on the CPU."""

import copy
import logging
from inspect import signature

import pytest
import torch
from torch import nn

import bpfree
from bpfree import Trainer, UserError
from bpfree.data import Batches, Preprocess
from bpfree.noise import counting_everywhere
from bpfree.rules import RULES, Backprop
from bpfree.trackers import Tracker, make_trackers
from bpfree.training.optim import OPTIMIZERS
from bpfree.types import Batch
from tests.helpers import IN_SHAPE, TASK, net_for
from tests.training.tape import taping


@pytest.fixture
def tape():
    with counting_everywhere(), taping() as each:
        yield each


def rule_for(name):
    rule = RULES[name](population=4) if "population" in signature(RULES[name]).parameters else RULES[name]()
    if getattr(rule, "evaluator", "") == "auto":  # it chooses by the clock
        rule.evaluator = "loop"
    return rule


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(torch.randn(n, *IN_SHAPE, generator=generator), torch.randint(10, (n,), generator=generator))
        for n in sizes
    ]


class Look(Tracker):
    """Keeps the gradients of one step."""

    def __init__(self, step):
        self.step = step
        self.seen = []

    def wants_gradients(self, step):
        return step == self.step

    def on_gradients(self, trainer, batch, scalars):
        self.seen += [p.grad.clone() for p in trainer.net.parameters() if p.grad is not None]


def trained(rule, graph, sizes=(12,) * 8, *, between=None, net=None, optimizer="adam", **options):
    """A trainer after some steps, and everything that a user can see of them."""
    rule = rule_for(rule) if isinstance(rule, str) else rule
    net = net_for("dfa", dtype=torch.float32) if net is None else net
    trainer = Trainer(net, rule, TASK, optimizer, compute={"graph": graph}, **options)
    trainer.bind(batches(*sizes)[0])
    seen = []
    for step, batch in enumerate(batches(*sizes)):
        if between is not None:
            between(trainer, step)
        seen.append(trainer.step(batch))
    return trainer, [
        [value for each in seen for value in each.values()],
        list(trainer.net.state_dict().values()),
        list(trainer.rule.state_dict().values()),
        [p.grad for p in trainer.net.parameters() if p.grad is not None],
        [v for values in trainer.optimizer.state.values() for v in values.values() if isinstance(v, torch.Tensor)],
        [trainer.optimizer.param_groups[0]["lr"], trainer.progress.step, trainer.progress.queries],
    ]


def equal(a, b):
    plain = [torch.as_tensor(v) for part in a for v in part], [torch.as_tensor(v) for part in b for v in part]
    return len(plain[0]) == len(plain[1]) and all(map(torch.equal, *plain))


@pytest.mark.parametrize("name", RULES)
def test_a_captured_step_has_the_bits_of_an_eager_one(name, tape):
    """With dropout, clipping, a schedule, a short batch in the middle, and a listener to one step."""
    looks, outcomes = [], []
    for graph in ("off", "auto"):
        look = Look(6)

        def listen(trainer, step, look=look):
            trainer._gradient_listeners = [look]

        net = net_for(name, dtype=torch.float32)
        schedule = {"name": "onecycle", "total_steps": 9}
        sizes = (12, 12, 12, 12, 7, 12, 12, 12, 12)
        trainer, seen = trained(name, graph, sizes, between=listen, net=net, schedule=schedule, clip=0.5)
        looks.append(look.seen)
        outcomes.append(seen)
    assert equal(*outcomes)
    assert looks[0]
    assert equal([looks[0]], [looks[1]])
    assert trainer._graph.reason is None
    assert trainer.uses_graph
    assert tape.captures == 1
    assert tape.replays == 4


@pytest.mark.parametrize(
    ("sizes", "captures"),
    [
        ((12, 12, 7) * 6, 1),  # epochs with a short batch in the end, shorter than the steps before a capture
        ((12,) * 5 + (7,) * 9, 2),  # from some step on all batches have another size
    ],
)
def test_short_batches_are_no_reason_to_capture_anew(sizes, captures, tape):
    _, eager = trained("backprop", "off", sizes)
    _, seen = trained("backprop", "auto", sizes)
    assert equal(eager, seen)
    assert tape.captures == captures


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_gives_the_same_bits(name, tape):
    options = {"name": name, "lr": 0.01, **({"momentum": 0.9} if name == "sgd" else {})}
    schedule = {"name": "cosine", "total_steps": 8}
    _, eager = trained("dfa", "off", optimizer=options, schedule=schedule)
    trainer, seen = trained("dfa", "auto", optimizer=options, schedule=schedule)
    assert equal(eager, seen)
    # torch can capture these three on a GPU only.
    assert (trainer._graph.reason is not None) == (name in ("nadam", "radam", "rmsprop"))


def load(trainer, step):
    if step == 5:
        trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))


def freeze(trainer, step):
    if step == 5:
        trainer.net.fc1.weight.requires_grad_(False)


def move(trainer, step):
    if step == 5:
        for p in trainer.net.parameters():
            p.data = p.data * 0.5


def replace(trainer, step):
    if step == 5:
        trainer.net.fc2 = copy.deepcopy(trainer.net.fc2)


def decay(trainer, step):
    if step == 5:
        trainer.optimizer.param_groups[0]["weight_decay"] = 0.1


def drop(trainer, step):
    if step == 5:
        next(m for m in trainer.net.modules() if isinstance(m, nn.Dropout)).p = 0.6


def reseed(trainer, step):
    if step == 5:
        trainer.noise = bpfree.Noise(7)


def own_rate(trainer, step):
    trainer.optimizer.param_groups[0]["lr"] = 0.001 * (step + 1)


def look_aside(trainer, step):
    if step == 5:
        trainer.predict(torch.randn(3, *IN_SHAPE))
        trainer.step_memory(batches(12)[0])


@pytest.mark.parametrize(
    ("change", "captures"),
    [
        *((each, 2) for each in (load, freeze, move, replace, decay, drop, reseed)),
        *((each, 1) for each in (own_rate, look_aside)),
    ],
)
def test_what_changes_between_two_steps_is_noticed(change, captures, tape):
    _, eager = trained("backprop", "off", (12,) * 10, between=change)
    _, seen = trained("backprop", "auto", (12,) * 10, between=change)
    assert equal(eager, seen)
    assert tape.captures == captures


def test_a_replayed_step_runs_no_code_of_the_rule(tape):
    class Count(Backprop):
        calls = []

        def gradients(self, net, task, batch, noise):
            self.calls.append(batch.y.shape)
            return super().gradients(net, task, batch, noise)

    trained(Count(), "on", (12,) * 8)
    assert len(Count.calls) == 4, "three eager steps, and the capture"


class Reads(Backprop):
    """It waits for the device."""

    def gradients(self, net, task, batch, noise):
        scalars = super().gradients(net, task, batch, noise)
        return scalars | {"twice": torch.as_tensor(2 * float(scalars["loss"]))}


class Counts(Backprop):
    """Its gradient depends on how often Python has run it."""

    calls = 0

    def gradients(self, net, task, batch, noise):
        self.calls += 1
        scalars = super().gradients(net, task, batch, noise)
        for p in net.parameters():
            p.grad *= 1 + self.calls
        return scalars


class Carries(Backprop):
    """Its mean of losses is another tensor after each step."""

    mean = torch.zeros(())

    def gradients(self, net, task, batch, noise):
        scalars = super().gradients(net, task, batch, noise)
        self.mean = 0.9 * self.mean + 0.1 * scalars["loss"]
        return scalars | {"mean": self.mean.clone()}


class Asks(Backprop):
    """It asks for the number of the step."""

    def gradients(self, net, task, batch, noise):
        scalars = super().gradients(net, task, batch, noise)
        for p in net.parameters():
            p.grad *= noise.step % 2
        return scalars


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Reads, "reads a value back to the host .test_graphs.py"),
        (Counts, "two steps were not the same"),
        (Carries, r"reads a tensor of shape \[\] that is another one"),
        (Asks, "the number of the step|two steps were not the same"),
    ],
)
def test_a_step_that_cannot_be_captured_says_why_once_and_goes_on(rule, why, tape, caplog):
    _, eager = trained(rule(), "off")
    with caplog.at_level(logging.INFO):
        trainer, seen = trained(rule(), "on")
    assert equal(eager, seen)
    assert not trainer.uses_graph
    (line,) = [r for r in caplog.records if "graph:" in r.message]
    assert line.levelno == logging.WARNING
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(line.message)


@pytest.mark.parametrize(
    ("every", "captures", "why"), [(1, 0, "two steps were not the same"), (6, 3, "changes every few steps")]
)
def test_what_changes_all_the_time_is_not_captured_for_ever(every, captures, why, tape):
    def swing(trainer, step):
        trainer.optimizer.param_groups[0]["betas"] = (0.9 + 0.001 * (step // every), 0.99)

    trainer, seen = trained("dfa", "auto", (12,) * 30, between=swing)
    assert equal(seen, trained("dfa", "off", (12,) * 30, between=swing)[1])
    assert tape.captures == captures
    assert why in trainer._graph.reason


def test_a_resumed_training_ends_in_the_same_bits(tape):
    whole, _ = trained("mono_forward", "auto", (12,) * 10)
    first, _ = trained("mono_forward", "auto", (12,) * 5)
    state = copy.deepcopy(first.state_dict())
    second = Trainer(net_for("dfa", dtype=torch.float32), "mono_forward", TASK)
    rest = batches(*(12,) * 10)[5:]
    second.bind(rest[0])
    second.load_state_dict(state)
    for batch in rest:
        second.step(batch)
    assert second.uses_graph
    assert equal([whole.net.state_dict().values()], [second.net.state_dict().values()])


def test_a_net_without_random_numbers_is_still(tape):
    class Late(nn.Module):
        """It draws from the 6th pass on."""

        def __init__(self):
            super().__init__()
            self.body, self.passes = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0

        def forward(self, x):
            self.passes += 1
            return self.body(nn.functional.dropout(x, 0.5) if self.passes > 5 else x)

    trainer, _ = trained("backprop", "off", (12,) * 3, net=Late())
    assert trainer._key.clock.still
    trainer, _ = trained("backprop", "off", (12,) * 8, net=Late())
    assert not trainer._key.clock.still
    trainer, _ = trained("backprop", "off")
    assert not trainer._key.clock.still, "it has dropout"


def test_a_device_without_graphs_refuses_them():
    with pytest.raises(UserError, match="compute.graph: found 'on', but the net is on the device cpu"):
        Trainer(net_for("dfa"), "dfa", TASK, compute={"graph": "on"})
    with pytest.raises(UserError, match="compute.graph: found 'yes', allowed: auto or on or off"):
        Trainer(net_for("dfa"), "dfa", TASK, compute={"graph": "yes"})
    trainer = Trainer(net_for("dfa", dtype=torch.float32), "dfa", TASK)
    trainer.step(batches(4)[0])
    assert not trainer.uses_graph


def test_fused_updates_are_taken_eagerly(tape):
    trainer = Trainer(net_for("dfa", dtype=torch.float32), "drtp", TASK, compute={"update": "fused"})
    for batch in batches(*(12,) * 6):
        trainer.step(batch)
    assert "update: fused" in trainer._graph.reason
    assert tape.captures == 0


def test_a_whole_fit_records_the_same(tape, digits_data):
    """With trackers, which look at some of the steps, and evaluations between the epochs."""
    split = digits_data.train.take(torch.arange(200))
    data = Batches(split, Preprocess.of(digits_data, split), 32, seed=0)  # the last batch has 8 samples
    outcomes = []
    for graph in ("off", "auto"):
        trainer = Trainer(net_for("dfa", dtype=torch.float32), "mono_forward", TASK, compute={"graph": graph})
        trackers = make_trackers([{"name": "gradients", "every": 5}, {"name": "bp_cosine", "every": 7}])
        trainer.fit(data, 3, validation=data, trackers=trackers)
        epochs = [{k: r[k] for k in ("step", "lr", "train", "validation")} for r in trainer.progress.history]
        outcomes.append((epochs, trainer.progress.tracked, trainer.progress.queries))
    assert outcomes[0] == outcomes[1]
    assert tape.captures == 1
    assert trainer.uses_graph


def test_the_result_says_if_steps_were_replayed(tape, undrawn, tmp_path):
    options = {"net": {"name": "mlp", "hidden": [8]}, "epochs": 1, "fraction": 0.2, "seed": 0}
    run = bpfree.fit(
        data="digits", rule="mono_forward", out=tmp_path / "run", graph=True, deterministic=True, **options
    )
    assert (run.result["graph"], run.result["deterministic"]) == (True, True)
    assert bpfree.load(tmp_path / "run").config.train.graph == "on", "also if YAML has read the word as true"
    run = bpfree.fit(data="digits", rule="mono_forward", graph="off", **options)
    assert (run.result["graph"], run.result["deterministic"]) == (False, False)
