"""A locality certificate for any rule on any net: measured on the running rule, whatever it says of itself."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from bpfree.errors import LeakError, UserError
from bpfree.grad import first_trainable
from bpfree.inputs import forward, tensors_of
from bpfree.lab.certify.activation_memory import Held, Meter
from bpfree.lab.certify.bench import Bench, Gradients, State, by_layer
from bpfree.lab.certify.certificate import Certificate, Differentiation
from bpfree.lab.certify.layers import Layers, all_trainable, find_parts, is_rules, layers_of, samples_to_tell_apart
from bpfree.lab.certify.violations import find_breaches, measured_locality
from bpfree.lab.certify.walk import Reach, Walk
from bpfree.lab.certify.watch import Objectives, Pins
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.spec import Spec
from bpfree.training.trainer import Trainer
from bpfree.types import Batch, Scalars, Task

_MOST = 32  # samples to bind with
_MANY_STEPS = 1_000_000  # so that no rule finds its training too short


def certify(net: nn.Module, rule: Rule | Spec, task: Task, batch: Batch) -> Certificate:
    """Measure what a rule differentiates and what its layers wait for, and compare with what it says of itself.

    The rule is called a few times for each layer of the net, on at most 16 samples. It is bound anew for it, as a copy;
    net, rule and random state come out bit for bit as they went in.

    Args:
        net: any module.
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        task: see `bpfree.tasks`.
        batch: x [B, ...], y [B], two samples at least, on any device: they are copied to the net's.

    Returns:
        The certificate; print it with rich, or see `breaches`. A connection around a tap, for which a rule refuses a
        net, is a breach.

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
            return _certified(net, rule, task, batch.first(_MOST).to(device))
    finally:
        before.restore()


def _certified(net: nn.Module, rule: Rule | Spec, task: Task, batch: Batch) -> Certificate:
    trainer = Trainer(net, _copied(rule, net), task)
    own = trainer.rule
    blank = Certificate(type(own).__name__, type(net).__name__, own.locality())
    try:
        trainer.bind(batch)
    except LeakError as leak:
        return replace(blank, breaches=[f"leak: {leak}"])
    own.train()
    own.begin(_OneBatch(batch), steps=_MANY_STEPS, resumed=False)
    bench = Bench(net, own, task, samples_to_tell_apart(Layers(net, own), batch))
    found = _measure(bench, blank)
    found = replace(found, measured=measured_locality(found))
    breaches = find_breaches(found)
    if bench.shares_graph:
        breaches.append(
            "graph: two objectives are differentiated through the same nodes, so that a training would fail"
        )
    return replace(found, breaches=breaches)


def _copied(rule: Rule | Spec, net: nn.Module) -> Rule | Spec:
    """The rule, to be bound anew; what it holds of the net stays that of the net."""
    if not isinstance(rule, Rule):
        return rule
    same = {id(part): part for part in (*net.modules(), *net.parameters(), *net.buffers())}
    return copy.deepcopy(rule, same)


class _OneBatch:
    """Epochs of a single batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batch."""
        yield self.batch


def _measure(bench: Bench, blank: Certificate) -> Certificate:
    layers = bench.layers
    parts = find_parts(bench.net, bench.rule, layers, bench.batch)
    home = layers_of(parts, layers)
    map_ = _Map.of(bench)
    plain = bench.settle()
    objectives = list(_objectives(bench, plain, home, map_))
    explained = {layer for objective in objectives for layer in objective.moves}
    depends = _dependencies(bench, plain)
    transport, loose = _transport(bench, plain, map_)
    return replace(
        blank,
        depth=map_.longest(layers.net),
        parts={part: tuple(layer for layer in layers.net if home[layer] == part) for part in parts},
        objectives=objectives,
        chain=max((objective.chain for objective in objectives), default=0),
        depends=depends,
        waits={i: [j for j in depends[i] if i in map_.before[j]] for i in layers.net},
        outputs=[i for i in layers.net if not any(i in map_.before[j] for j in layers.net)],
        transport=transport,
        loose=loose,
        held=_held(bench, home),
        unexplained=[layer for layer in layers.net if layer in by_layer(plain, layers) - explained],
    )


class _Map(NamedTuple):
    """The net as it is, whatever trains it.

    Attributes:
        before: for each layer, those that its input is computed from.
        longest: the most of given layers on a path through the net.
    """

    before: Mapping[str, Collection[str]]
    longest: Callable[[Collection[str]], int]

    @staticmethod
    def of(bench: Bench) -> "_Map":
        """By the graph of a forward pass; of a net without one, layers come one after the other as they are defined."""
        layers = bench.layers
        everything = all_trainable(bench.net), unchanged_buffers(bench.net), Noise().global_rng(bench.device)
        with everything[0], everything[1], everything[2], torch.enable_grad():
            try:
                out = forward(bench.net, bench.batch.x)
            except (RuntimeError, ValueError, TypeError, IndexError):  # the rule alone knows how to call it
                out = None
            walk = Walk([out], layers, len(bench.batch.y)) if isinstance(out, torch.Tensor) else None
            before = walk.flow() if walk else {}
        if walk is None or not set(layers.net) <= before.keys():
            in_order = {layer: layers.net[:i] for i, layer in enumerate(layers.net)}
            return _Map(in_order, len)
        return _Map(before, walk.longest)


def _objectives(bench: Bench, plain: Gradients, home: Mapping[str, str], map_: _Map) -> Iterator[Differentiation]:
    """Each with what it reaches by the graph and what it moves by perturbation."""
    seen = Objectives(bench.layers, len(bench.batch.y))
    bench.run(seen.watching())
    names: dict[str, int] = {}
    for number, (kind, reach) in enumerate(zip(seen.kinds, seen.found, strict=True)):
        if kind == "forward":
            marked = by_layer(seen.forwards[number], bench.layers)
            net = frozenset(layer for layer in marked if not is_rules(layer))
            reach = Reach(net, frozenset(seen.forwards[number]), False, map_.longest(net), 0)
        moved = bench.changed(plain, bench.run(Objectives(scaled=number).watching()))
        name = _name(reach, home, bench.layers)
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name} #{names[name]}"
        yield _objective(name, kind, reach, moved, plain, bench.layers)


def _objective(
    name: str, kind: str, reach: Reach, moved: set[str], plain: Gradients, layers: Layers
) -> Differentiation:
    order = [*layers.net, *layers.rule]
    unmoved = (reach.ends & plain.keys()) - moved
    unreached = set() if reach.signal else moved - reach.ends
    copies = sorted(layer for layer in reach.through if layer not in layers.net)
    return Differentiation(
        name,
        kind,
        through=(*(layer for layer in order if layer in reach.through), *copies),
        reaches=tuple(layer for layer in order if layer in by_layer(reach.ends, layers)),
        moves=tuple(layer for layer in order if layer in by_layer(moved, layers)),
        chain=reach.chain,
        heads=reach.heads,
        signal=reach.signal,
        disagrees=tuple(sorted(unmoved | unreached)),
    )


def _name(reach: Reach, home: Mapping[str, str], layers: Layers) -> str:
    """Of the parts of the net that it trains; else of what of the rule it trains; else it is a signal."""
    touched = reach.through | by_layer(reach.ends, layers)
    parts = list(dict.fromkeys(home[layer] for layer in layers.net if layer in touched))
    if parts:
        return parts[0] if len(parts) == 1 else f"{parts[0]}..{parts[-1]}"
    if touched:
        return ", ".join(sorted(touched))
    return "error" if reach.signal else ", ".join(sorted(reach.ends)) or "nothing"


def _dependencies(bench: Bench, plain: Gradients) -> dict[str, list[str]]:
    """By layer whose gradient it is, the layers of the net whose weights it depends on."""
    found: dict[str, list[str]] = {layer: [] for layer in (*bench.layers.net, *bench.layers.rule)}
    for j in bench.layers.net:
        for i in by_layer(bench.changed(plain, bench.run(bench.other(j))), bench.layers):
            found[i].append(j)
    return found


def _transport(bench: Bench, plain: Gradients, map_: _Map) -> tuple[dict[str, dict[str, str]], list[str]]:
    """By layer, the layers behind it whose weights its gradient reads, all values of the forward pass being equal.

    And those for which they could not be held equal, so that only a way back by autograd is looked at.
    """
    pins = Pins()
    bench.run(pins.recording())
    scalars = dict(bench.scalars)
    found: dict[str, dict[str, str]] = {}
    loose: list[str] = []
    for j in bench.layers.net:
        run = partial(_pinned, bench, pins, j)
        moved = _earlier(bench, plain, run("noise"), map_.before[j])
        if moved and (pins.full or _moved(scalars, bench.scalars)):  # by what is computed outside of modules
            loose.append(j)
            run = partial(_on_the_way_back, bench, j)
            moved = _earlier(bench, plain, run("noise"), map_.before[j])
        by_size = _earlier(bench, plain, run("sizes"), map_.before[j]) if moved else set()
        for i in sorted(moved):
            found.setdefault(i, {})[j] = "weights" if i in by_size else "signs"
    return found, loose


def _moved(before: Scalars, after: Scalars) -> bool:
    return any(not torch.allclose(before[name], value, rtol=1e-4, equal_nan=True) for name, value in after.items())


def _pinned(bench: Bench, pins: Pins, layer: str, how: str) -> Gradients:
    return bench.run(bench.other(layer, how), pins.replaying())


def _on_the_way_back(bench: Bench, layer: str, how: str) -> Gradients:
    """The weights are others only while something is differentiated."""
    return bench.run(Objectives(during=lambda: bench.other(layer, how)).watching())


def _earlier(bench: Bench, plain: Gradients, other: Gradients, before: Collection[str]) -> set[str]:
    return by_layer(bench.changed(plain, other), bench.layers).intersection(before)


def _held(bench: Bench, home: Mapping[str, str]) -> Held | None:
    if bench.shares_graph:
        return None
    inputs = [*tensors_of(bench.batch.x), bench.batch.y]
    meter = Meter(bench.layers, home, [*inputs, *bench.net.buffers(), *bench.rule.buffers()])
    try:
        bench.run(meter.measuring())
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        return None
    return meter.held()
