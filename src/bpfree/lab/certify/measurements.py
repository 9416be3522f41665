"""The measurements of a rule on a net, and the locality that follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpfree.lab.certify.activation_memory import ActivationMemory
from bpfree.lab.certify.influences import UNKNOWN
from bpfree.lab.certify.screening import Setting
from bpfree.rule import Locality, Through, Transports


@dataclass(frozen=True)
class Structure:
    """The layers of the net, and the parts that are trained independently.

    Attributes:
        depth: number of layers on the longest path through the net.
        parts: the layers of each part, by the name of the part.
        outputs: layers that no other layer comes after.
    """

    depth: int
    parts: Mapping[str, Sequence[str]]
    outputs: Sequence[str]

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all layers of the net."""
        return tuple(layer for layers in self.parts.values() for layer in layers)

    def part_of(self, layer: str) -> str:
        """Return the part that trains a layer; a layer that no part trains is its own part."""
        return next((name for name, layers in self.parts.items() if layer in layers), layer)


@dataclass(frozen=True)
class GraphReach:
    """The layers that one objective is differentiated through, read from its autograd graph.

    Attributes:
        through: layers of the net, and copies of them, that the derivative passes or enters.
        reaches: layers of net and rule whose parameters get the derivative.
        chain: the largest number of the net's layers on one path of the derivative.
        heads: the largest number of the rule's layers on one path of the derivative.
        signal: True if activations get the derivative too. The rule may use such a derivative as a teaching signal.
    """

    through: tuple[str, ...]
    reaches: tuple[str, ...]
    chain: int
    heads: int
    signal: bool


@dataclass(frozen=True)
class Differentiation:
    """An objective: something that was differentiated in one call of `gradients`.

    Two independent methods look at it. The graph shows the layers that the derivative goes through. Perturbation
    (the derivative is doubled) shows the gradients that change, also where the rule hides the graph.

    Attributes:
        name: the part of the net that the objective trains; "error" or the names of the rule's layers if it trains
        none. kind: "backward" for backward passes, "forward" for directional derivatives (forward mode). graph: the
        layers that the derivative goes through. moves: layers of net and rule whose gradients change when the
        derivative is doubled. disagrees: parameters for which only one of the two methods finds an influence.
    """

    name: str
    kind: str
    graph: GraphReach
    moves: tuple[str, ...]
    disagrees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dependencies:
    """The weights that the gradient of each layer depends on. All mappings go by the layer whose gradient it is.

    Attributes:
        depends: the layers of the net whose weights the gradient depends on.
        waits: those of them that come after the layer: their weights change the gradient, so the layer waits for them.
        transport: layers whose weights the gradient reads on the way back; each with "weights", "signs", "initial" (as
            they were when the rule was bound), or "unknown" where the experiment cannot tell.
        late: later layers on whose weights in an earlier step the gradient depends.
        unexplained: layers that have a gradient although no objective moves it, as under a black-box rule.
    """

    depends: Mapping[str, Sequence[str]]
    waits: Mapping[str, Sequence[str]]
    transport: Mapping[str, Mapping[str, str]]
    late: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unexplained: Sequence[str] = ()


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured while a rule ran. Layers of the rule are named "rule.<name>".

    Attributes:
        structure: the layers and parts of the net.
        objectives: the objectives that were differentiated, in order.
        dependencies: the weights that gradients depend on.
        memory: activations in memory; None if they could not be measured.
        settings: the steps and the numbers of samples of the experiments; the first is that of all numbers.
    """

    structure: Structure
    objectives: Sequence[Differentiation]
    dependencies: Dependencies
    memory: ActivationMemory | None = None
    settings: Sequence[Setting] = ()

    @property
    def chain(self) -> int:
        """The longest chain of all objectives, in layers of the net."""
        return max((objective.graph.chain for objective in self.objectives), default=0)

    @property
    def locality(self) -> Locality:
        """The strongest properties that the rule could truthfully declare for this net.

        What cannot be told counts as good here: `memory` of a net with too few parts, and transport of an unknown kind.
        See `properties`.
        """
        dependencies = self.dependencies
        waits = any(self.waits_beyond(layer) for layer in dependencies.waits)
        return Locality(self._through(), waits, self._transports(), "grows" if self.grows else "flat")

    @property
    def properties(self) -> dict[str, Any]:
        """The measured properties by name; a value is None where the measurement cannot tell."""
        unknown = {"memory": None} if self.grows is None else {}
        if self.locality.transports != "weights" and self.undecided:
            unknown["transports"] = None
        return self.locality._asdict() | unknown

    @property
    def undecided(self) -> dict[str, list[str]]:
        """The layers of other parts of which nobody can tell if a layer's gradient reads their weights, by layer."""
        by_layer = {
            layer: [other for other, kind in self.transported_to(layer).items() if kind == UNKNOWN]
            for layer in self.dependencies.transport
        }
        return {layer: others for layer, others in by_layer.items() if others}

    @property
    def grows(self) -> bool | None:
        """True if activation memory grows with the number of parts; None if the measurement cannot tell."""
        return None if self.memory is None else self.memory.grows

    def waits_beyond(self, layer: str) -> list[str]:
        """Return the layers of other parts that a layer waits for.

        Waiting within a part does not count: a part is trained as one piece.
        """
        part_of = self.structure.part_of
        return [other for other in self.dependencies.waits.get(layer, ()) if part_of(other) != part_of(layer)]

    def parts_of(self, objective: Differentiation) -> list[str]:
        """Return the names of the parts that an objective is differentiated through."""
        layers = [*objective.graph.through, *(i for i in objective.graph.reaches if i in self.structure.layers)]
        if objective.graph.signal and objective.graph.through:
            # The derivative went through layers and then left the graph as a value. Whatever it teaches continues the
            # chain by hand; without this line, backprop piece by piece would count as local.
            layers += [layer for layer in objective.moves if layer in self.structure.layers]
        parts = list(dict.fromkeys(self.structure.part_of(layer) for layer in layers))
        # One backward pass may train several parts side by side, each by a path that meets no other part.
        return parts if objective.graph.chain > 1 or objective.graph.signal else parts[:1]

    def transported_to(self, layer: str) -> Mapping[str, str]:
        """Return the layers of other parts whose weights a layer's gradient reads, each with the kind."""
        part_of = self.structure.part_of
        read = self.dependencies.transport.get(layer, {})
        return {other: kind for other, kind in read.items() if part_of(other) != part_of(layer)}

    def by_hand(self, layer: str) -> list[str]:
        """Return the layers of other parts through which a layer's gradient was computed without an objective."""
        if layer not in self.dependencies.unexplained:
            return []
        return [other for other, kind in self.transported_to(layer).items() if kind in ("weights", "signs")]

    def _through(self) -> Through:
        if any(self.by_hand(layer) for layer in self.dependencies.unexplained):
            return "net"
        most = max((len(self.parts_of(objective)) for objective in self.objectives), default=0)
        return "nothing" if most == 0 else "part" if most == 1 else "net"

    def _transports(self) -> Transports:
        kinds = {kind for layer in self.dependencies.transport for kind in self.transported_to(layer).values()}
        order: tuple[Transports, ...] = ("weights", "initial", "signs")
        return next((kind for kind in order if kind in kinds), "none")
