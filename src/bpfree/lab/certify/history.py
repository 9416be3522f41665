"""The experiments that show which weights a rule remembers: those of earlier steps, and those when it was bound.

A rule could keep a copy of the weights, or a gradient, and use it one step later. At that step, no change of the
weights would show it. So the weights are changed first, and put back before the step whose gradients are compared.
"""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

from bpfree.lab.certify.bench import Bench, Gradients, layers_with, sum_of
from bpfree.lab.certify.influences import UNKNOWN, Influences, Pinned, Run
from bpfree.lab.certify.order import Order
from bpfree.lab.certify.pins import Pins
from bpfree.training.trainer import Trainer

_CHANGED = (0, 1000)  # steps that are taken with other weights, if one step trains every unit
_COMPARED = (1001, 1002, 1003, 1004)  # steps that follow, with the true weights
_REBOUND = 1e-3  # relative difference: a rule that is bound twice may choose two ways that differ by rounding

Rebind = Callable[[], Trainer]
"""A function that binds a fresh copy of the rule to the net as it is now."""


def changed_before(bench: Bench) -> Run:
    """Return a function that takes some steps with other weights, and then the steps whose gradients it returns."""
    single = len(bench.steps) == 1
    changed, compared = (_CHANGED, _COMPARED) if single else (bench.steps, bench.steps)

    def run(layers: Collection[str], how: str, *around: AbstractContextManager[object]) -> Gradients:
        first = [(step, bench.changed_weights(layers, how)) for step in changed]
        return sum_of(bench.sequence([*first, *((step, nullcontext()) for step in compared)], *around)[len(first) :])

    return run


def find_late_influences(bench: Bench, order: Order) -> Influences:
    """Return the weights of earlier steps that gradients depend on.

    Args:
        bench: the bench.
        order: the order of the layers.
    """
    run, found = changed_before(bench), Influences()
    plain = run((), "noise")
    if not bench.changed(plain, run(bench.layers.net, "noise")):
        return found  # nothing is remembered; else each layer is changed alone
    for j in bench.layers.net:
        moved = layers_with(bench.changed(plain, run([j], "noise")), bench.layers)
        for i in moved.intersection(order.before[j]):
            found.depends.setdefault(i, set()).add(j)
            found.late.setdefault(i, set()).add(j)
    if not found.late:
        return found
    pinned = Pinned.recorded(bench, changed_before)
    for j in bench.layers.net:
        for i, kind in pinned.read_on_the_way_back(j, order.before[j]).items():
            found.transport.setdefault(i, {})[j] = kind
    return found


def find_initial_influences(bench: Bench, rebind: Rebind, order: Order) -> Influences:
    """Return the weights of the moment of binding that gradients still read in later steps.

    Args:
        bench: the bench.
        rebind: binds a fresh copy of the rule. The first step with it belongs to the binding, because some rules copy
            the weights only then.
        order: the order of the layers.
    """
    compared = _COMPARED if len(bench.steps) == 1 else bench.steps

    def gradients(layers: Collection[str]) -> Gradients:
        with bench.restoring(), bench.changed_weights(layers):
            trainer = rebind()
            with first.replaying() if layers else first.recording():
                for step in bench.steps:
                    trainer.progress.step = step
                    trainer.step(bench.batch)
        with later.replaying() if layers else later.recording():
            return bench.bound_by(trainer).run(steps=compared)

    # Values are held, because a rule may also remember how good other weights were, as those that adapt their noise do.
    first, later, found = Pins(), Pins(), Influences()
    plain = gradients(())
    if not bench.changed(plain, gradients(bench.layers.net), _REBOUND):
        return found
    for j in bench.layers.net:
        moved = layers_with(bench.changed(plain, gradients([j]), _REBOUND), bench.layers)
        unknown = first.left_alone or later.left_alone
        for i in moved.intersection(order.before[j]):
            found.transport.setdefault(i, {})[j] = UNKNOWN if unknown else "initial"
    return found
