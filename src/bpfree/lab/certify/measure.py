"""A locality certificate for any rule on any net, measured on the running rule.

Nothing is taken from the rule's name, class or declaration. The rule runs many times from the same state (see `Bench`),
and each time one thing is changed: a layer's weights, or the size of one derivative. A gradient that changes depends on
what was changed; a gradient that stays does not. Such an experiment also finds what a rule hides from autograd.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import nn

from bpfree.diffusion.blocks import BlockRule
from bpfree.errors import LeakError, UserError
from bpfree.grad import first_trainable
from bpfree.inputs import tensors_of
from bpfree.lab.certify.activation_memory import ActivationMemory, Meter
from bpfree.lab.certify.bench import Bench, Recorder, UnrepeatableError, layers_with
from bpfree.lab.certify.certificate import Certificate
from bpfree.lab.certify.hidden import WeightsBefore, find_hidden_learning
from bpfree.lab.certify.history import Rebind, find_initial_influences, find_late_influences
from bpfree.lab.certify.influences import Influences, find_influences
from bpfree.lab.certify.layers import Layers, find_parts, part_of_each_layer, samples_to_tell_apart
from bpfree.lab.certify.measurements import Dependencies, Measurements, Structure
from bpfree.lab.certify.objectives import ObjectiveFinder
from bpfree.lab.certify.order import Order
from bpfree.lab.certify.screening import Setting, other_benches, screened
from bpfree.lab.certify.state import State
from bpfree.lab.certify.violations import find_unmeasured, find_violations
from bpfree.noise import Noise
from bpfree.population.rule import BlackBoxRule
from bpfree.rule import Locality, Rule
from bpfree.rules import RULES
from bpfree.spec import Spec, build
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Task

_MANY_STEPS = 1_000_000  # the length of the training that `begin` gets, so that no rule finds it too short


def certify(net: nn.Module, rule: Rule | Spec, task: Task, batch: Batch) -> Certificate:
    """Measure how local a rule is on a net, and compare the result with the rule's declaration.

    The rule takes about three steps for each layer of the net, on at most 16 samples, and a few with other numbers and
    on the whole batch. Copies of the rule are bound, so net, rule and random state are the same to the bit before and
    after, also when an exception is raised.

    Args:
        net: any module.
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        task: a task of `bpfree.tasks` that the rule can do.
        batch: x [B, ...] and y [B], B at least 2 and best as in your training, on any device: the batch is copied to
            the device of the net.

    Returns:
        The certificate. Print it with rich, or read `violations`. If the rule refuses the net because of a connection
        around a tap, that is a violation too, and nothing is measured.

    Raises:
        UserError: the rule cannot train this net for another reason, or its gradients do not repeat.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> from bpfree.tasks import Classify
        >>> batch = Batch(torch.randn(8, 4), torch.arange(8) % 2)
        >>> certify(net, "dfa", Classify(2), batch).chain
        1
        >>> certify(net, "backprop", Classify(2), batch).chain
        2
    """
    if len(batch.y) < 2:
        raise UserError(f"batch: found {len(batch.y)} samples, allowed: at least 2")
    device = first_trainable(net).device
    before, random = State(net), Noise().fold("certify").global_rng(device)
    try:
        with random:
            return _certified(net, rule, task, batch.to(device))
    finally:
        before.restore()


def _certified(net: nn.Module, rule: Rule | Spec, task: Task, batch: Batch) -> Certificate:
    rule = rule if isinstance(rule, Rule) else build(RULES, rule, section="rule", outside=Rule)
    names = type(rule).__name__, type(net).__name__
    weights = WeightsBefore(net)
    try:
        trainer = _bound(net, rule, task, batch)
    except LeakError as leak:
        return Certificate(*names, rule.locality(), violations=[f"leak: {leak}"])
    declared, early = trainer.rule.locality(), weights.violations()
    bench = Bench(trainer, samples_to_tell_apart(Layers(trainer.net, trainer.rule), batch))
    rebind = partial(_bound, net, rule, task, batch, trainer.channels_last, again=True)
    try:
        measured = _Measurement(bench, batch, declared).of(rebind)
    except UnrepeatableError as error:
        return Certificate(*names, declared, violations=[f"repeat: {error}"])
    violations = find_violations(declared, measured) + early + find_hidden_learning(bench)
    if bench.shares_graph:
        violations.append(
            "graph: two objectives are differentiated through the same nodes, so that a training would fail"
        )
    return Certificate(*names, declared, measured, violations, find_unmeasured(declared, measured))


def _bound(
    net: nn.Module,
    rule: Rule,
    task: Task,
    batch: Batch,
    channels_last: bool | None = None,
    *,
    again: bool = False,
) -> Trainer:
    """Return a trainer with a fresh copy of the rule, bound to the net as it is now.

    Args:
        net: the net.
        rule: the rule, which stays as it is.
        task: the task.
        batch: the user's batch.
        channels_last: the memory order of an earlier trainer of this net; None to find out which one is good.
        again: True if a copy of the rule is bound already, and this one is to be compared with other copies.
    """
    recorder = Recorder([p for p in net.parameters() if p.requires_grad])
    rule = _copied(rule, net)
    if again and isinstance(rule, BlackBoxRule) and rule.evaluator == "auto":
        rule.evaluator = "loop"  # "auto" takes the fastest one, which may be another one each time
    if isinstance(rule, BlockRule):
        rule.side_by_side = False  # a block is measured by itself, on every device
    trainer = Trainer(net, rule, task, recorder)
    trainer.compute_as(None, channels_last)
    trainer.bind(batch)
    trainer.rule.train()
    trainer.rule.begin(_OneBatch(batch), steps=_MANY_STEPS, resumed=False)
    return trainer


def _copied(rule: Rule, net: nn.Module) -> Rule:
    """Return a copy of the rule that can be bound anew; its references to the net still point to this net."""
    # deepcopy would copy the net along with a rule that refers to it, and the copy would train the wrong net.
    net_stays = {id(piece): piece for piece in (*net.modules(), *net.parameters(), *net.buffers())}
    return copy.deepcopy(rule, net_stays)


class _OneBatch:
    """Training data that consist of a single batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Yield the batch once."""
        yield self.batch


class _Measurement:
    """A series of experiments on one rule and net.

    Args:
        bench: the bench with few samples.
        batch: the user's batch.
        declared: the rule's declaration. What cannot be worse than declared is not looked for at other steps.
    """

    def __init__(self, bench: Bench, batch: Batch, declared: Locality) -> None:
        self.bench, self.batch, self.declared = bench, batch, declared
        self.parts = find_parts(bench.net, bench.rule, bench.layers, bench.batch)
        self.home = part_of_each_layer(self.parts, bench.layers)
        self.order = Order.of(bench)
        self.plain = bench.settle()  # all experiments on this bench are compared with these gradients
        self.objectives = ObjectiveFinder(self.home, self.order)

    def of(self, rebind: Rebind) -> Measurements:
        """Return everything that was measured.

        Args:
            rebind: binds a fresh copy of the rule to the net as it is now.
        """
        self.objectives.look(self.bench)
        found = find_influences(self.bench, self.plain, self.order)
        found.add(find_late_influences(self.bench, self.order))
        found.add(find_initial_influences(self.bench, rebind, self.order))
        benches = self._look_elsewhere(found)
        settings = [Setting.of(bench) for bench in (self.bench, *benches)]
        return self._summary(found, settings, _memory(self.bench, self.home))

    def _look_elsewhere(self, found: Influences) -> list[Bench]:
        """Add what the rule does at other steps and with the user's batch; return the benches."""
        waits = self._summary(found).locality.waits
        benches = other_benches(self.bench, self.batch, found.output_bytes if waits else 0)
        for bench in benches:
            # Graphs need a number of samples that no weight can be mistaken for; experiments take the whole batch.
            few = samples_to_tell_apart(bench.layers, bench.batch, len(bench.batch.y))
            plain = self.objectives.look(bench.at(batch=few))
            if not waits or self.declared.transports != Locality().transports:
                plain = plain if len(few.y) == len(bench.batch.y) else bench.run()
                found.add(screened(bench, plain, self._layers_of_parts(), self.order, pinned=waits))
        return benches

    def _layers_of_parts(self) -> dict[str, tuple[str, ...]]:
        net = self.bench.layers.net
        return {part: tuple(layer for layer in net if self.home[layer] == part) for part in self.parts}

    def _summary(
        self, found: Influences, settings: Sequence[Setting] = (), memory: ActivationMemory | None = None
    ) -> Measurements:
        layers, before = self.bench.layers, self.order.before
        explained = {layer for objective in self.objectives.found for layer in objective.moves}
        depends = {i: [j for j in layers.net if j in found.depends.get(i, ())] for i in (*layers.net, *layers.rule)}
        return Measurements(
            Structure(
                depth=self.order.longest(layers.net),
                parts=self._layers_of_parts(),
                outputs=[i for i in layers.net if not any(i in before[j] for j in layers.net)],
            ),
            self.objectives.found,
            Dependencies(
                depends=depends,
                # Every layer depends on the layers before it: they compute its input. Only a dependency on a later
                # layer means that the layer has to wait.
                waits={i: [j for j in depends[i] if i in before[j]] for i in layers.net},
                transport={i: found.transport[i] for i in layers.net if i in found.transport},
                late={i: [j for j in layers.net if j in late] for i, late in found.late.items()},
                unexplained=[i for i in layers.net if i in layers_with(self.plain, layers) - explained],
            ),
            memory,
            settings,
        )


def _memory(bench: Bench, home: Mapping[str, str]) -> ActivationMemory | None:
    if bench.shares_graph:  # graphs are then kept by `retained`, which would count as the rule's memory
        return None
    inputs = [*tensors_of(bench.batch.x), bench.batch.y]
    ignored = [*inputs, *bench.net.buffers(), *bench.rule.buffers()]
    meter = Meter(bench.layers, home, ignored, bench.task.target(bench.batch))
    try:
        bench.run(meter.measuring())
    except (RuntimeError, UserError) as error:
        if "saved tensor hooks" not in str(error):  # torch.func forbids these hooks while it transforms a function
            raise
        return None
    return meter.result()
