"""The experiments that show on which weights the gradient of each layer depends, and by which way.

A gradient depends on the weights of a later layer in two ways: forwards, because they change the output and its error,
and on the way back, because the error is sent through them (weight transport). To see the second alone, all outputs of
modules are held at the values of a run before ("pinned") while the weights change. The error is then the same, so a
gradient that still changes must have read the weights themselves.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from bpfree.lab.certify.bench import Bench, Gradients, layers_with
from bpfree.lab.certify.order import Order
from bpfree.lab.certify.pins import Pins
from bpfree.lab.certify.watch import Objectives
from bpfree.types import Scalars

UNKNOWN = "unknown"
"""The kind of transport where a gradient changes and the experiment cannot tell by which way."""


@dataclass
class Influences:
    """The weights that gradients depend on. All mappings go by the layer whose gradient it is.

    Attributes:
        depends: the layers of the net whose weights the gradient depends on.
        transport: later layers whose weights the gradient reads on the way back; each with "weights", "initial",
            "signs" or `UNKNOWN`.
        late: later layers on whose weights in an earlier step the gradient depends.
        output_bytes: bytes of the outputs of all modules for one sample.
    """

    depends: dict[str, set[str]] = field(default_factory=dict)
    transport: dict[str, dict[str, str]] = field(default_factory=dict)
    late: dict[str, set[str]] = field(default_factory=dict)
    output_bytes: float = 0.0

    def add(self, other: "Influences") -> None:
        """Add the findings of other experiments; of two kinds of transport the worse one stays."""
        for mine, theirs in ((self.depends, other.depends), (self.late, other.late)):
            for layer, others in theirs.items():
                mine[layer] = mine.get(layer, set()) | others
        for layer, read in other.transport.items():
            own = self.transport.setdefault(layer, {})
            for j, kind in read.items():
                own[j] = max(own.get(j, kind), kind, key=_RANK.index)


_FEWEST = 4  # samples; batch norm needs some
_RANK = ("signs", "initial", UNKNOWN, "weights")


def find_influences(bench: Bench, plain: Gradients, order: Order) -> Influences:
    """Return the weights that each gradient depends on.

    Args:
        bench: the bench.
        plain: the gradients of an unchanged run.
        order: the order of the layers.
    """
    depends: dict[str, set[str]] = {}
    for j in bench.layers.net:
        # Noise as large as the weights makes a change that rounding cannot hide.
        for i in layers_with(bench.changed(plain, bench.run(bench.changed_weights([j]))), bench.layers):
            depends.setdefault(i, set()).add(j)
    found = Influences(depends)
    # A gradient that does not change at all does not read the weights on the way back either.
    candidates = {j: [i for i in order.before[j] if j in depends.get(i, ())] for j in bench.layers.net}
    if not any(candidates.values()):
        return found
    pinned = Pinned.recorded(bench, changed_throughout)
    found.output_bytes = pinned.pins.size / len(pinned.bench.batch.y)
    for j, before in candidates.items():
        for i, kind in pinned.read_on_the_way_back(j, before).items() if before else ():
            found.transport.setdefault(i, {})[j] = kind
    return found


Run = Callable[..., Gradients]
"""A function (layers, how, *contexts) -> the gradients with other weights of these layers, see `changed_weights`."""


def changed_throughout(bench: Bench) -> Run:
    """Return a function that runs a bench while the weights of some layers are different."""

    def run(layers: Collection[str], how: str, *around: AbstractContextManager[object]) -> Gradients:
        return bench.run(bench.changed_weights(layers, how), *around)

    return run


class Pinned(NamedTuple):
    """Steps whose values of the forward pass are held while weights change.

    Attributes:
        bench: the bench; with fewer samples if the outputs of modules would take too much memory.
        run: runs it with changed weights.
        pins: the recorded outputs of modules.
        plain: the gradients of the run that was recorded.
        scalars: the scalars of this run.
    """

    bench: Bench
    run: Run
    pins: Pins
    plain: Gradients
    scalars: Sequence[Scalars]

    @staticmethod
    def recorded(bench: Bench, runs: Callable[[Bench], Run]) -> "Pinned":
        """Record the outputs of modules in an unchanged run.

        Args:
            bench: the bench.
            runs: makes the function that runs a bench with changed weights.
        """
        while True:
            pins, run = Pins(), runs(bench)
            plain = run((), "noise", pins.recording())
            if not pins.full or len(bench.batch.y) < _FEWEST:
                return Pinned(bench, run, pins, plain, bench.scalars)
            bench = bench.at(batch=bench.batch.first(len(bench.batch.y) // 2))

    def read_on_the_way_back(self, layer: str, before: Collection[str]) -> dict[str, str]:
        """Return the layers whose gradients read the weights of a layer on the way back, each with the kind.

        Args:
            layer: the layer whose weights change.
            before: layers before it. The gradient of a later layer may depend on it forwards.
        """

        def moved(how: str, run: Callable[[str], Gradients]) -> set[str]:
            return layers_with(self.bench.changed(self.plain, run(how)), self.bench.layers).intersection(before)

        def pinned(how: str) -> Gradients:
            return self.run([layer], how, self.pins.replaying())

        def only_while_autograd_runs(how: str) -> Gradients:
            watch = Objectives(during=lambda: self.bench.changed_weights([layer], how))
            return self.run((), how, watch.watching())

        movable = moved("noise", pinned)
        if not movable:
            return {}
        run, unknown = pinned, set[str]()
        if not held(self.pins, self.scalars, self.bench.scalars):
            # A changed gradient proves nothing now. If it also changes with weights that are different only while
            # autograd runs backward, its way back reads them; a way back that is computed by hand stays unknown.
            run, unknown = only_while_autograd_runs, movable
            movable = moved("noise", run)
        # New sizes under the same signs: a gradient that stays reads no more than signs.
        by_size = moved("sizes", run) if movable else set()
        kinds = dict.fromkeys(unknown, UNKNOWN) | {i: "weights" if i in by_size else "signs" for i in movable}
        return {i: kinds[i] for i in sorted(kinds)}


def held(pins: Pins, before: Sequence[Scalars], after: Sequence[Scalars]) -> bool:
    """Return True if pins held all values of the forward pass, as far as it can be seen.

    The losses of tasks are computed from the outputs. If they change although everything is pinned, some values were
    computed outside of modules. Losses of units (`loss/<unit>`) are left out: they may be computed from a signal that
    was sent back, and a signal that reads weights must not look like a value that was not held.

    Args:
        pins: the pins.
        before: the scalars of each step of the recorded run.
        after: the scalars of each step of the run with other weights.
    """
    return not pins.left_alone and not any(
        name not in now or not torch.allclose(value, now[name], rtol=1e-4, equal_nan=True)
        for first, now in zip(before, after, strict=True)
        for name, value in first.items()
        if not name.startswith("loss/")
    )
