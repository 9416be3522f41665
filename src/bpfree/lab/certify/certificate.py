"""What was measured of a rule on a net, beside what the rule says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from bpfree.lab.certify.activation_memory import Held
from bpfree.rule import Locality

_SHOWN = 6  # layers named in a cell of the table


@dataclass(frozen=True)
class Differentiation:
    """Something that was differentiated in one call of `gradients`.

    Attributes:
        name: of the part of the net that it trains, or what it is otherwise.
        kind: "backward", or "forward" for directional derivatives.
        through: layers of the net that its derivative passes or enters, by the graph.
        reaches: layers of net and rule whose parameters it is differentiated by, by the graph.
        moves: layers of net and rule whose gradients change with its size, by perturbation.
        chain: the largest number of the net's layers on a path that a derivative takes.
        heads: likewise of the rule's own layers.
        signal: it is differentiated by activations too, so that it may teach something else.
        disagrees: parameters that it reaches and does not move, or moves and does not reach.
    """

    name: str
    kind: str
    through: tuple[str, ...]
    reaches: tuple[str, ...]
    moves: tuple[str, ...]
    chain: int
    heads: int
    signal: bool
    disagrees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """What was measured. Layers are named as in the net, those of the rule as "rule.<name>".

    Attributes:
        rule: name of its class.
        net: name of its class.
        declared: what the rule says of itself.
        measured: the same properties as they were found; None if the rule could not be bound.
        breaches: a line for each way in which the rule is worse than it says, or measurements disagree.
        depth: layers on the longest path through the net.
        parts: layers of the net by the part that trains them.
        objectives: what was differentiated, in order.
        chain: the longest of theirs.
        depends: by layer whose gradient it is, the layers of the net whose weights it depends on.
        waits: by layer, those behind it whose weights its gradient depends on.
        outputs: the layers behind which there is no other.
        transport: by layer, the layers whose weights its gradient reads on a way back, with "weights" or "signs".
        loose: layers that move values outside of modules, so that of their transport only autograd's way back is seen.
        held: activations in memory; None where it could not be measured.
        unexplained: layers with a gradient that comes from no objective, as of a black-box rule.
    """

    rule: str
    net: str
    declared: Locality
    measured: Locality | None = None
    breaches: list[str] = field(default_factory=list)
    depth: int = 0
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    objectives: Sequence[Differentiation] = ()
    chain: int = 0
    depends: Mapping[str, Sequence[str]] = field(default_factory=dict)
    waits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    transport: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    loose: Sequence[str] = ()
    held: Held | None = None
    unexplained: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether the rule keeps what it says."""
        return not self.breaches

    @property
    def layers(self) -> tuple[str, ...]:
        """Those of the net."""
        return tuple(layer for own in self.parts.values() for layer in own)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        memory = self.held and {
            "curve": [{"layer": layer, "bytes": size} for layer, size in self.held.curve],
            "peak_bytes": self.held.peak,
            "total_bytes": self.held.total,
            "parts_at_once": self.held.parts,
            "parts": self.held.of,
            "grows": self.held.grows,
        }
        plain = {name: getattr(self, name) for name in ("rule", "net", "ok", "breaches", "depth", "chain")}
        return {
            **plain,
            "declared": self.declared._asdict(),
            "measured": self.measured and self.found,
            "parts": {name: list(own) for name, own in self.parts.items()},
            "outputs": list(self.outputs),
            "objectives": [
                {k: list(v) if isinstance(v, tuple) else v for k, v in vars(o).items()} for o in self.objectives
            ],
            "depends": {name: list(own) for name, own in self.depends.items()},
            "waits": {name: list(own) for name, own in self.waits.items()},
            "transport": {name: dict(own) for name, own in self.transport.items()},
            "loose": list(self.loose),
            "unexplained": list(self.unexplained),
            "memory": memory,
        }

    @property
    def found(self) -> dict[str, Any]:
        """The measured properties by name; None where nothing can be told."""
        assert self.measured is not None
        untold = self.held is None or self.held.grows is None
        return self.measured._asdict() | ({"memory": None} if untold else {})

    def waits_beyond(self, layer: str) -> list[str]:
        """The layers of later parts that it waits for."""
        return [j for j in self.waits.get(layer, ()) if self.part_of(j) != self.part_of(layer)]

    def part_of(self, layer: str) -> str:
        """The part that trains a layer."""
        return next((name for name, own in self.parts.items() if layer in own), layer)

    def __rich__(self) -> Group:
        """Two tables: the properties, and the objectives."""
        return Group(self._properties(), *([self._listed()] if self.objectives else []))

    def _properties(self) -> Table:
        table = Table(title=f"{self.rule} on {self.net}: {self._verdict()}", title_justify="left", box=None)
        for heading in ("", "declared", "measured", ""):
            table.add_column(heading, overflow="fold")
        worse = self.measured.worse_than(self.declared) if self.measured else []
        for name, said in self.declared._asdict().items():
            found = "-" if self.measured is None else self.found[name]
            mark = " [bold red]broken[/]" if name in worse else ""
            table.add_row(name, _word(said), _word(found) + mark, escape(self._detail(name)) if self.measured else "")
        return table

    def _verdict(self) -> str:
        return "keeps what it says" if self.ok else f"{len(self.breaches)} breach{'es' * (len(self.breaches) > 1)}"

    def _detail(self, name: str) -> str:
        if name == "through":
            heads = max((o.heads for o in self.objectives), default=0)
            own = f", and {heads} of the rule's own" * (heads > 0)
            return f"longest chain: {self.chain} of {self.depth} layers{own}; parts: {len(self.parts)}"
        if name == "waits":
            return self._waiting()
        if name == "transports":
            return self._transported()
        if self.held is None:
            return "not measured"
        told = "" if self.held.grows is not None else " (too few to tell)"
        size = f"{self.held.peak:,} of {self.held.total:,} bytes"
        return f"activations of {self.held.parts} of {self.held.of} parts at once{told}, {size}"

    def _waiting(self) -> str:
        beyond = {layer: self.waits_beyond(layer) for layer in self.waits}
        waiting = [layer for layer, own in beyond.items() if set(self.outputs).intersection(own)]
        others = [layer for layer, own in beyond.items() if own and layer not in waiting]
        inside = [layer for layer, own in self.waits.items() if set(own).difference(beyond[layer])]
        told = f"for the output: {shorten(waiting) or 'no layer'}"
        told += f"; for other parts behind: {shorten(others)}" if others else ""
        return told + (f"; within its own part: {shorten(inside)}" if inside else "")

    def _transported(self) -> str:
        pairs = [(self.part_of(i) == self.part_of(j), i, j) for i, own in self.transport.items() for j in own]
        between = dict.fromkeys(j for within, _, j in pairs if not within)
        inside = dict.fromkeys(j for within, _, j in pairs if within)
        found = f"of {shorten(list(between))}" if between else "between parts none"
        found += f"; within parts: of {shorten(list(inside))}" if inside else ""
        return found + (f"; seen by autograd alone: of {shorten(self.loose)}" if self.loose else "")

    def _listed(self) -> Table:
        table = Table(box=None)
        for heading in ("objective", "chain", "differentiated through", "by", "moves besides"):
            table.add_column(heading, justify="right" if heading == "chain" else "left", overflow="fold")
        for o in self.objectives:
            besides = [layer for layer in o.moves if layer not in o.reaches]
            cells = [shorten(names) or "-" for names in (o.through, o.reaches, besides)]
            table.add_row(escape(o.name), str(o.chain), *map(escape, cells))
        return table


def _word(value: object) -> str:
    return {True: "yes", False: "no", None: "untold"}.get(value) or str(value)  # type: ignore[call-overload]


def shorten(names: Sequence[str]) -> str:
    """Names in a row, those in the middle left out if there are many."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[:2])}, .. {names[-1]} ({len(names)})"
