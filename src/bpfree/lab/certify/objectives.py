"""The objectives of a rule: what it differentiates, through which layers, and which gradients change with it."""

from collections.abc import Mapping

from bpfree.lab.certify.bench import Bench, Gradients, layers_with
from bpfree.lab.certify.layers import Layers, belongs_to_rule
from bpfree.lab.certify.measurements import Differentiation, GraphReach
from bpfree.lab.certify.order import Order
from bpfree.lab.certify.walk import Reach
from bpfree.lab.certify.watch import Objectives

_LARGE = 2.0**20


class ObjectiveFinder:
    """Finds the objectives of a rule at several benches, and each of them once.

    Args:
        home: the part of each layer.
        order: the order of the layers.

    Attributes:
        found: the objectives, in the order in which they were found.
    """

    def __init__(self, home: Mapping[str, str], order: Order) -> None:
        self.home, self.order = home, order
        self.found: list[Differentiation] = []
        self._seen: set[tuple[str, Reach]] = set()
        self._names: dict[str, int] = {}

    def look(self, bench: Bench) -> Gradients:
        """Add the objectives of a run. At a second bench only those count that differ from all at the benches before.

        Args:
            bench: the bench.

        Returns:
            The gradients of the run, which is not changed in any way.
        """
        watch = Objectives(bench.layers, len(bench.batch.y))
        plain = bench.run(watch.watching())
        reaches = [self._reach(bench, watch, number) for number in range(len(watch.kinds))]
        keys = list(zip(watch.kinds, reaches, strict=True))
        new = [number for number, key in enumerate(keys) if key not in self._seen]
        self._seen.update(keys)
        for number in new:
            # The runs are deterministic, so objective `number` is the same one here as in the run above.
            kind, reach = keys[number]
            moved = bench.changed(plain, bench.run(Objectives(scaled=number).watching()))
            if (reach.ends & plain.keys()) - moved:
                # Twice a small share of a gradient can look like a rounding error, as with a loss near 0.
                larger = Objectives(scaled=number, factor=_LARGE)
                moved |= bench.changed(plain, bench.run(larger.watching())) & reach.ends
            self.found.append(_objective(self._name(reach, bench.layers), kind, reach, moved, plain, bench.layers))
        return plain

    def _reach(self, bench: Bench, watch: Objectives, number: int) -> Reach:
        if watch.kinds[number] != "forward":
            return watch.reaches[number]
        # Forward mode makes no graph. It needs a tangent on each parameter that it differentiates by, so these marks
        # say what is reached; on a path through the net each marked layer counts.
        marked = layers_with(watch.duals[number], bench.layers)
        net = frozenset(layer for layer in marked if not belongs_to_rule(layer))
        return Reach(net, frozenset(watch.duals[number]), False, self.order.longest(net), 0)

    def _name(self, reach: Reach, layers: Layers) -> str:
        """Return the parts that an objective trains; without any, the rule's layers, or "error" for a signal."""
        touched = reach.through | layers_with(reach.ends, layers)
        parts = list(dict.fromkeys(self.home[layer] for layer in layers.net if layer in touched))
        if parts:
            name = parts[0] if len(parts) == 1 else f"{parts[0]}..{parts[-1]}"
        elif touched:
            name = ", ".join(sorted(touched))
        else:
            name = "error" if reach.signal else ", ".join(sorted(reach.ends)) or "nothing"
        self._names[name] = self._names.get(name, 0) + 1
        return name if self._names[name] == 1 else f"{name} #{self._names[name]}"


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
