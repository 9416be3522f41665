"""A locality certificate for any rule on any net, measured on the running rule.

Nothing is taken from the rule's name, class or declaration. The rule runs many times from the same state (see `Bench`),
and each time one thing is changed: a layer's weights, or the size of one derivative. A gradient that changes depends on
what was changed; a gradient that stays does not. Such an experiment also finds what a rule hides from autograd.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from bpfree.errors import LeakError, UserError
from bpfree.grad import first_trainable
from bpfree.inputs import forward, tensors_of
from bpfree.lab.certify.activation_memory import ActivationMemory, Meter
from bpfree.lab.certify.bench import Bench, Gradients, State, layers_with
from bpfree.lab.certify.certificate import Certificate
from bpfree.lab.certify.layers import (
    Layers,
    all_trainable,
    belongs_to_rule,
    find_parts,
    part_of_each_layer,
    samples_to_tell_apart,
)
from bpfree.lab.certify.measurements import Dependencies, Differentiation, GraphReach, Measurements, Structure
from bpfree.lab.certify.violations import find_violations
from bpfree.lab.certify.walk import Reach, Walk
from bpfree.lab.certify.watch import Objectives, Pins
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.spec import Spec
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars, Task

_MOST_SAMPLES = 32  # that the rule is bound with
_MANY_STEPS = 1_000_000  # the length of the training that `begin` gets, so that no rule finds it too short


def certify(net: nn.Module, rule: Rule | Spec, task: Task, batch: Batch) -> Certificate:
    """Measure how local a rule is on a net, and compare the result with the rule's declaration.

    The rule is called about three times for each layer of the net, on at most 16 samples. A copy of the rule is bound,
    so net, rule and random state are the same to the bit before and after, also when an exception is raised.

    Args:
        net: any module.
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        task: a task of `bpfree.tasks` that the rule can do.
        batch: x [B, ...] and y [B], B at least 2, on any device: the batch is copied to the device of the net.

    Returns:
        The certificate. Print it with rich, or read `violations`. If the rule refuses the net because of a connection
        around a tap, that is a violation too, and nothing is measured.

    Raises:
        UserError: the rule cannot train this net for another reason, or its gradients do not repeat.

    Example:
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
            return _certified(net, rule, task, batch.first(_MOST_SAMPLES).to(device))
    finally:
        before.restore()


def _certified(net: nn.Module, rule: Rule | Spec, task: Task, batch: Batch) -> Certificate:
    trainer = Trainer(net, _copied(rule, net), task)
    bound = trainer.rule
    names, declared = (type(bound).__name__, type(net).__name__), bound.locality()
    try:
        trainer.bind(batch)
    except LeakError as leak:
        return Certificate(*names, declared, violations=[f"leak: {leak}"])
    bound.train()
    bound.begin(_OneBatch(batch), steps=_MANY_STEPS, resumed=False)
    bench = Bench(net, bound, task, samples_to_tell_apart(Layers(net, bound), batch))
    measured = _measure(bench)
    violations = find_violations(declared, measured)
    if bench.shares_graph:
        violations.append(
            "graph: two objectives are differentiated through the same nodes, so that a training would fail"
        )
    return Certificate(*names, declared, measured, violations)


def _copied(rule: Rule | Spec, net: nn.Module) -> Rule | Spec:
    """Return a copy of the rule that can be bound anew; its references to the net still point to this net."""
    if not isinstance(rule, Rule):
        return rule
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


def _measure(bench: Bench) -> Measurements:
    layers = bench.layers
    parts = find_parts(bench.net, bench.rule, layers, bench.batch)
    home = part_of_each_layer(parts, layers)
    order = _Order.of(bench)
    plain = bench.settle()  # all experiments are compared with these gradients
    objectives = list(_objectives(bench, plain, home, order))
    explained = {layer for objective in objectives for layer in objective.moves}
    depends = _dependencies(bench, plain)
    transport, unpinned = _transport(bench, plain, order)
    return Measurements(
        Structure(
            depth=order.longest(layers.net),
            parts={part: tuple(layer for layer in layers.net if home[layer] == part) for part in parts},
            outputs=[i for i in layers.net if not any(i in order.before[j] for j in layers.net)],
        ),
        objectives,
        Dependencies(
            depends=depends,
            # Every layer depends on the layers before it: they compute its input. Only a dependency on a later layer
            # means that the layer has to wait.
            waits={i: [j for j in depends[i] if i in order.before[j]] for i in layers.net},
            transport=transport,
            unpinned=unpinned,
            unexplained=[layer for layer in layers.net if layer in layers_with(plain, layers) - explained],
        ),
        _memory(bench, home),
    )


class _Order(NamedTuple):
    """The order of the net's layers in `net(x)`, whatever rule trains them.

    Attributes:
        before: for each layer, the layers that its input is computed from.
        longest: a function that returns the largest number of the given layers on one path through the net.
    """

    before: Mapping[str, Collection[str]]
    longest: Callable[[Collection[str]], int]

    @staticmethod
    def of(bench: Bench) -> "_Order":
        """Return the order that the graph of a forward pass shows.

        Without such a graph (nets without derivatives, nets that only the rule knows how to call) the order of
        definition is used.
        """
        layers = bench.layers
        # A frozen layer would leave no trace in the graph; a forward pass in training mode would update batch norm.
        contexts = all_trainable(bench.net), unchanged_buffers(bench.net), Noise().global_rng(bench.device)
        with contexts[0], contexts[1], contexts[2], torch.enable_grad():
            try:
                out = forward(bench.net, bench.batch.x)
            except (RuntimeError, ValueError, TypeError, IndexError):  # only the rule knows how to call this net
                out = None
            walk = Walk([out], layers, len(bench.batch.y)) if isinstance(out, torch.Tensor) else None
            before = walk.layers_before() if walk else {}
        if walk is None or not set(layers.net) <= before.keys():
            by_definition = {layer: layers.net[:i] for i, layer in enumerate(layers.net)}
            return _Order(by_definition, len)
        return _Order(before, walk.longest)


def _objectives(bench: Bench, plain: Gradients, home: Mapping[str, str], order: _Order) -> Iterator[Differentiation]:
    """Yield each objective with the layers that its graph reaches and the gradients that perturbation moves."""
    watch = Objectives(bench.layers, len(bench.batch.y))
    bench.run(watch.watching())
    names: dict[str, int] = {}
    for number, (kind, reach) in enumerate(zip(watch.kinds, watch.reaches, strict=True)):
        if kind == "forward":
            # Forward mode makes no graph. It needs a tangent on each parameter that it differentiates by, so these
            # marks say what is reached; on a path through the net each marked layer counts.
            marked = layers_with(watch.duals[number], bench.layers)
            net = frozenset(layer for layer in marked if not belongs_to_rule(layer))
            reach = Reach(net, frozenset(watch.duals[number]), False, order.longest(net), 0)
        # The runs are deterministic, so objective `number` is the same one here as in the run above.
        moved = bench.changed(plain, bench.run(Objectives(doubled=number).watching()))
        name = _name(reach, home, bench.layers)
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name} #{names[name]}"
        yield _objective(name, kind, reach, moved, plain, bench.layers)


def _objective(
    name: str, kind: str, reach: Reach, moved: set[str], plain: Gradients, layers: Layers
) -> Differentiation:
    """Return an objective, with the parameters for which graph and perturbation disagree.

    Twice the derivative means twice the gradient of every parameter that the graph reaches. So a parameter that is
    reached and not moved got its gradient elsewhere, and one that is moved and not reached got it by hand, from hidden
    copies for example. The second is allowed if the derivative goes to activations: it may be a teaching signal, as the
    error of DFA.
    """
    order = [*layers.net, *layers.rule]
    unmoved = (reach.ends & plain.keys()) - moved  # parameters without a gradient in `plain` cannot move
    unreached = set() if reach.signal else moved - reach.ends
    copies = sorted(layer for layer in reach.through if layer not in layers.net)
    graph = GraphReach(
        through=(*(layer for layer in order if layer in reach.through), *copies),
        reaches=tuple(layer for layer in order if layer in layers_with(reach.ends, layers)),
        chain=reach.chain,
        heads=reach.heads,
        signal=reach.signal,
    )
    moves = tuple(layer for layer in order if layer in layers_with(moved, layers))
    return Differentiation(name, kind, graph, moves, disagrees=tuple(sorted(unmoved | unreached)))


def _name(reach: Reach, home: Mapping[str, str], layers: Layers) -> str:
    """Return the parts of the net that an objective trains; without any, the rule's layers, or "error" for a signal."""
    touched = reach.through | layers_with(reach.ends, layers)
    parts = list(dict.fromkeys(home[layer] for layer in layers.net if layer in touched))
    if parts:
        return parts[0] if len(parts) == 1 else f"{parts[0]}..{parts[-1]}"
    if touched:
        return ", ".join(sorted(touched))
    return "error" if reach.signal else ", ".join(sorted(reach.ends)) or "nothing"


def _dependencies(bench: Bench, plain: Gradients) -> dict[str, list[str]]:
    """Return, for each layer, the layers of the net whose weights its gradient depends on.

    One run for each layer j, with noise on its weights: the gradients that change depend on j. Noise as large as the
    weights makes a change that rounding cannot hide.
    """
    depends: dict[str, list[str]] = {layer: [] for layer in (*bench.layers.net, *bench.layers.rule)}
    for j in bench.layers.net:
        for i in layers_with(bench.changed(plain, bench.run(bench.changed_weights(j))), bench.layers):
            depends[i].append(j)
    return depends


def _transport(bench: Bench, plain: Gradients, order: _Order) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return, for each layer, the later layers whose weights its gradient reads; and the unpinned layers.

    A gradient depends on the weights of a later layer in two ways: forwards, because they change the output and its
    error, and on the way back, because the error is sent through them (weight transport). To see the second alone, all
    outputs of modules are held at the values of a run before ("pinned") while the weights change. The error is then the
    same, so a gradient that still changes must have read the weights themselves.
    """
    pins = Pins()
    bench.run(pins.recording())
    scalars = dict(bench.scalars)
    transport: dict[str, dict[str, str]] = {}
    unpinned: list[str] = []
    for j in bench.layers.net:
        run = partial(_pinned, bench, pins, j)
        moved = _moved_before(bench, plain, run("noise"), order.before[j])
        # The losses are computed from the outputs. Where they change although everything is pinned, some values were
        # computed outside of modules, and a changed gradient proves nothing. Then the weights are changed only while
        # autograd runs backward: that misses ways back that are computed by hand, so the certificate says "unpinned".
        if moved and (pins.full or _differ(scalars, bench.scalars)):
            unpinned.append(j)
            run = partial(_changed_during_backward, bench, j)
            moved = _moved_before(bench, plain, run("noise"), order.before[j])
        # New sizes under the same signs: a gradient that stays reads no more than signs.
        moved_by_size = _moved_before(bench, plain, run("sizes"), order.before[j]) if moved else set()
        for i in sorted(moved):
            transport.setdefault(i, {})[j] = "weights" if i in moved_by_size else "signs"
    return transport, unpinned


def _differ(before: Scalars, after: Scalars) -> bool:
    return any(not torch.allclose(before[name], value, rtol=1e-4, equal_nan=True) for name, value in after.items())


def _pinned(bench: Bench, pins: Pins, layer: str, how: str) -> Gradients:
    return bench.run(bench.changed_weights(layer, how), pins.replaying())


def _changed_during_backward(bench: Bench, layer: str, how: str) -> Gradients:
    """Return the gradients if a layer's weights are changed only while something is differentiated."""
    return bench.run(Objectives(during=lambda: bench.changed_weights(layer, how)).watching())


def _moved_before(bench: Bench, plain: Gradients, other: Gradients, before: Collection[str]) -> set[str]:
    """Return the layers in `before` whose gradients changed; the gradient of a later layer may depend on j forwards."""
    return layers_with(bench.changed(plain, other), bench.layers).intersection(before)


def _memory(bench: Bench, home: Mapping[str, str]) -> ActivationMemory | None:
    if bench.shares_graph:  # graphs are then kept by `retained`, which would count as the rule's memory
        return None
    inputs = [*tensors_of(bench.batch.x), bench.batch.y]
    meter = Meter(bench.layers, home, [*inputs, *bench.net.buffers(), *bench.rule.buffers()])
    try:
        bench.run(meter.measuring())
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):  # torch.func forbids these hooks while it transforms a function
            raise
        return None
    return meter.result()
