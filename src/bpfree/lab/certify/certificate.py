"""The certificate: the measurements of a rule on a net beside the rule's declaration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from bpfree.lab.certify.activation_memory import ActivationMemory
from bpfree.lab.certify.influences import UNKNOWN
from bpfree.lab.certify.measurements import Dependencies, Differentiation, Measurements, Structure
from bpfree.lab.certify.violations import shorten
from bpfree.rule import Locality

_NOTHING = Measurements(Structure(0, {}, ()), (), Dependencies({}, {}, {}))


@dataclass(frozen=True)
class Certificate:
    """A comparison of what a rule declares about its locality with what was measured on a net.

    Printing it with rich shows two tables: the properties, and the objectives.

    Attributes:
        rule: class name of the rule.
        net: class name of the net.
        declared: the rule's declaration, `Rule.locality()`.
        measurements: the measurements; None if the rule could not be bound to the net.
        violations: one line for each way in which the rule is worse than declared, or in which measurements disagree.
        unmeasured: one line for each property that the rule declares and nobody could measure.
    """

    rule: str
    net: str
    declared: Locality
    measurements: Measurements | None = None
    violations: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if the rule is as local as it declares; False if it is not, or if nobody can tell."""
        return not self.violations and not self.unmeasured

    @property
    def measured(self) -> Locality | None:
        """The measured properties; None if the rule could not be bound to the net."""
        return self.measurements.locality if self.measurements else None

    @property
    def chain(self) -> int:
        """The longest chain of layers that one objective is differentiated through; 0 if nothing was measured."""
        return self.measurements.chain if self.measurements else 0

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as plain values (dicts, lists, strings, numbers); docs/certify.md names the keys."""
        head = {"rule": self.rule, "net": self.net, "ok": self.ok, "violations": self.violations}
        head["unmeasured"] = self.unmeasured
        head |= {"declared": self.declared._asdict()}
        body = _plain_measurements(self.measurements or _NOTHING)
        return head | (body if self.measurements else {**body, "measured": None})  # the same keys in both cases

    def __rich__(self) -> Group:
        """Return the tables that rich prints: the properties, and the objectives if there are any."""
        objectives = self.measurements.objectives if self.measurements else ()
        return Group(self._properties(), *([_objectives_table(objectives)] if objectives else []))

    def _properties(self) -> Table:
        table = Table(title=f"{self.rule} on {self.net}: {self._verdict()}", title_justify="left", box=None)
        for heading in ("", "declared", "measured", ""):
            table.add_column(heading, overflow="fold")
        worse = self.measured.worse_than(self.declared) if self.measured else []
        for name, declared in self.declared._asdict().items():
            measured, detail = "-", ""
            if self.measurements:
                measured = _word(self.measurements.properties[name])
                detail = escape(_detail(name, self.measurements))
            mark = " [bold red]violated[/]" if name in worse else ""
            table.add_row(name, _word(declared), measured + mark, detail)
        return table

    def _verdict(self) -> str:
        if self.violations:
            return f"{len(self.violations)} violation{'s' * (len(self.violations) > 1)}"
        return f"cannot tell {len(self.unmeasured)} of 4 properties" if self.unmeasured else "as local as declared"


def _plain_measurements(measured: Measurements) -> dict[str, Any]:
    dependencies, structure = measured.dependencies, measured.structure
    return {
        "measured": measured.properties,
        "depth": structure.depth,
        "chain": measured.chain,
        "parts": {name: list(layers) for name, layers in structure.parts.items()},
        "outputs": list(structure.outputs),
        "objectives": [_plain_objective(objective) for objective in measured.objectives],
        "depends": {name: list(layers) for name, layers in dependencies.depends.items()},
        "waits": {name: list(layers) for name, layers in dependencies.waits.items()},
        "transport": {name: dict(read) for name, read in dependencies.transport.items()},
        "late": {name: list(layers) for name, layers in dependencies.late.items()},
        "unexplained": list(dependencies.unexplained),
        "memory": measured.memory and _plain_memory(measured.memory),
        "settings": [{"steps": list(steps), "samples": samples} for steps, samples in measured.settings],
    }


def _plain_objective(objective: Differentiation) -> dict[str, Any]:
    values = {"name": objective.name, "kind": objective.kind, **vars(objective.graph)}
    values |= {"moves": objective.moves, "disagrees": objective.disagrees}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _plain_memory(memory: ActivationMemory) -> dict[str, Any]:
    return {
        "curve": [{"layer": layer, "bytes": size} for layer, size in memory.curve],
        "peak_bytes": memory.peak_bytes,
        "total_bytes": memory.total_bytes,
        "parts_at_once": memory.parts_at_once,
        "parts": memory.parts,
        "alive": list(memory.alive),
        "grows": memory.grows,
    }


def _detail(name: str, measured: Measurements) -> str:
    """Return the last cell of a property's row: the evidence."""
    details = {"through": _chain_detail, "waits": _waiting_detail, "transports": _transport_detail}
    return details.get(name, _memory_detail)(measured)


def _chain_detail(measured: Measurements) -> str:
    heads = max((objective.graph.heads for objective in measured.objectives), default=0)
    of_rule = f", and {heads} of the rule" * (heads > 0)
    depth, parts = measured.structure.depth, len(measured.structure.parts)
    return f"longest chain: {measured.chain} of {depth} layers{of_rule}; parts: {parts}"


def _waiting_detail(measured: Measurements) -> str:
    waits = measured.dependencies.waits
    beyond = {layer: measured.waits_beyond(layer) for layer in waits}
    for_output = [layer for layer, later in beyond.items() if set(measured.structure.outputs).intersection(later)]
    for_others = [layer for layer, later in beyond.items() if later and layer not in for_output]
    within_part = [layer for layer, later in waits.items() if set(later).difference(beyond[layer])]
    text = f"for the output: {shorten(for_output) or 'no layer'}"
    text += f"; for other parts behind: {shorten(for_others)}" if for_others else ""
    return text + (f"; within its own part: {shorten(within_part)}" if within_part else "")


def _transport_detail(measured: Measurements) -> str:
    transport = measured.dependencies.transport
    between = {layer: measured.transported_to(layer) for layer in transport}
    known = dict.fromkeys(other for read in between.values() for other, kind in read.items() if kind != UNKNOWN)
    within = dict.fromkeys(other for layer, read in transport.items() for other in read if other not in between[layer])
    undecided = dict.fromkeys(other for others in measured.undecided.values() for other in others)
    text = f"of {shorten(list(known))}" if known else "between parts: none" if not undecided else ""
    text += f"; within parts: of {shorten(list(within))}" if within else ""
    text += f"; cannot tell: of {shorten(list(undecided))}" if undecided else ""
    late = any(measured.waits_beyond(layer) for layer in measured.dependencies.late)
    return text.removeprefix("; ") + "; also of earlier steps" * late


def _memory_detail(measured: Measurements) -> str:
    memory = measured.memory
    if memory is None or not memory.parts:
        return "not measured"
    few = "" if memory.grows is not None else " (too few parts to tell)"
    size = f"{memory.peak_bytes:,} of {memory.total_bytes:,} bytes"
    return f"activations of {memory.parts_at_once} of {memory.parts} parts at once{few}, {size}"


def _objectives_table(objectives: Sequence[Differentiation]) -> Table:
    table = Table(box=None)
    for heading in ("objective", "chain", "differentiated through", "by the weights of", "also changes"):
        table.add_column(heading, justify="right" if heading == "chain" else "left", overflow="fold")
    for objective in objectives:
        graph = objective.graph
        others = [layer for layer in objective.moves if layer not in graph.reaches]
        cells = [shorten(names) or "-" for names in (graph.through, graph.reaches, others)]
        table.add_row(escape(objective.name), str(graph.chain), *map(escape, cells))
    return table


def _word(value: object) -> str:
    return {True: "yes", False: "no", None: "cannot tell"}.get(value) or str(value)  # type: ignore[call-overload]
